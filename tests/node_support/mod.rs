//! Nodes for tests of real agents: a network namespace each, an agent process in it, all gone at the end.
#![allow(dead_code)] // each test program uses a part

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::skip;
use weft::frontend::client::{Client, block_on};
use weft::sys::netns::Netns;

static COUNTER: AtomicUsize = AtomicUsize::new(0);

/// Whether the machine lets these tests run; says why not.
pub fn able() -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "no `ip` program"
    } else {
        return true;
    };
    skip(missing);
    false
}

pub fn ip(args: &str) -> Output {
    let output = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A named namespace that goes with the value.
pub struct Space(pub String);

impl Space {
    pub fn new() -> Space {
        let name = format!(
            "wfa{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Space(name)
    }

    pub fn netns(&self) -> Netns {
        Netns::open(Path::new("/run/netns").join(&self.0)).unwrap()
    }

    pub fn links(&self) -> String {
        String::from_utf8(ip(&format!("-n {} -o link show", self.0)).stdout).unwrap()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _gone_already = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// One node. Dropping it kills its agent and removes everything.
pub struct Node {
    pub space: Space,
    pub dir: tempfile::TempDir,
    pub vtep: IpAddr,
    extra: Vec<&'static str>,
    pub agent: Option<Child>,
}

impl Node {
    pub fn new(vtep: &str, extra: &[&'static str]) -> Node {
        Node {
            space: Space::new(),
            dir: tempfile::tempdir().unwrap(),
            vtep: vtep.parse().unwrap(),
            extra: extra.to_vec(),
            agent: None,
        }
    }

    pub fn program(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command
            .args(words)
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--state-dir")
            .arg(self.dir.path().join("s"));
        command.env_clear().stdin(Stdio::null());
        self.space.netns().enter_on_spawn(&mut command).unwrap();
        command
    }

    pub fn boot(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut command = self.program(&["agent", "--reconcile-interval", "1"]);
        command
            .arg("--vtep")
            .arg(self.vtep.to_string())
            .args(&self.extra)
            .stderr(log);
        self.agent = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = block_on(self.client().version()) {
            let ended = self
                .agent
                .as_mut()
                .is_some_and(|agent| agent.try_wait().is_ok_and(|e| e.is_some()));
            assert!(
                !ended && Instant::now() < deadline,
                "{error}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    pub fn stop(&mut self) {
        let mut agent = self.agent.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(agent.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(agent.wait().unwrap().success(), "{}", self.log());
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    pub fn client(&self) -> Client {
        Client::new(self.run_dir().join("weft.sock"))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn networks_in_kernel(&self) -> usize {
        std::fs::read_dir(self.run_dir().join("netns")).map_or(0, Iterator::count)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _gone_already = agent.kill();
            let _gone_already = agent.wait();
        }
        let mut reset = self.program(&["--socket", "/nonexistent.sock", "reset", "--yes"]);
        let output = reset.output().unwrap();
        if std::thread::panicking() {
            println!("log of {}:\n{}", self.vtep, self.log());
        } else {
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(self.networks_in_kernel(), 0, "reset leaves nothing");
        }
    }
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
