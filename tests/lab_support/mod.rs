//! What the tests of the lab share: labs with names of their own that go when a test ends, however it ends.
#![allow(dead_code)] // each test program uses a part

pub mod inventory;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use weft::lab::audit::{self, Scope, Snapshot};
use weft::lab::ping::Pinger;
use weft::lab::steps::{Interrupt, Steps};
use weft::lab::{Lab, LabError, LabOptions};

/// The program under test.
pub fn weft() -> PathBuf {
    let other = std::env::var_os("WEFT_PROGRAM");
    other.map_or_else(|| env!("CARGO_BIN_EXE_weft").into(), PathBuf::from)
}

/// A name no other test has, now or in another process.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "t{}x{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Whether labs can be made here; says so when not.
pub fn can_make_labs() -> bool {
    let able = nix::unistd::geteuid().is_root();
    if !able {
        skip("making network namespaces needs root");
    }
    able
}

/// Says what could not be tested here, past the capture of a passing test's output. As `common::skip`, which some
/// test programs have beside this module.
pub fn skip(why: &str) {
    note(&format!("SKIP: {}", why.replace('\n', " ")));
}

/// Prints a figure past the capture of a passing test's output.
pub fn note(figure: &str) {
    let _ = writeln!(std::io::stderr(), "{figure}");
}

/// Whether the long forms of tests are asked for.
pub fn long() -> bool {
    std::env::var_os("WEFT_LONG").is_some_and(|value| value == "1")
}

/// Removes the lab at the end of a test and checks that nothing of it is left.
pub struct Guard(pub String);

impl Guard {
    pub fn new() -> Guard {
        Guard(unique_name())
    }

    /// Makes the lab.
    pub fn up(&self, change: impl FnOnce(&mut LabOptions)) -> Result<Lab, LabError> {
        let mut options = LabOptions {
            name: self.0.clone(),
            nodes: 2,
            binary: Some(weft()),
            ..LabOptions::default()
        };
        change(&mut options);
        Lab::up(options, &quiet())
    }

    /// Runs `weft lab …`.
    pub fn weft_lab(&self, words: &[&str]) -> Output {
        Command::new(weft())
            .arg("lab")
            .args(words)
            .output()
            .unwrap()
    }

    /// Everything of the lab is gone.
    pub fn assert_gone(&self) {
        let nothing = Snapshot::take(Scope::Lab(&self.0))
            .unwrap()
            .without_labs()
            .without_descriptors();
        let comparison =
            audit::compare(&nothing, Scope::Lab(&self.0), Duration::from_secs(5)).unwrap();
        let differences = comparison.differences();
        assert!(
            differences.iter().all(|line| !line.starts_with('+')),
            "{comparison}"
        );
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let removed = Lab::down(&self.0);
        if !std::thread::panicking() {
            removed.unwrap();
            self.assert_gone();
        }
    }
}

pub fn quiet() -> Steps {
    Steps::new(true, Interrupt::default())
}

/// Waits until the condition holds.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many of `count` pings between two workloads were answered.
pub fn pings(lab: &Lab, from: &str, to: &str, count: usize) -> usize {
    let netns = lab.netns(from).unwrap();
    let to = lab.workload(to).unwrap().ip;
    let mut pinger = Pinger::open(&netns).unwrap();
    (0..count)
        .filter(|_| {
            pinger
                .ping(to, Duration::from_millis(300))
                .unwrap()
                .is_some()
        })
        .count()
}

/// Standard output and error of a command, for messages.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
