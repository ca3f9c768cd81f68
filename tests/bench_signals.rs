//! What the bench starts hears signals, although the bench itself has blocked them. Needs root.

mod host_support;

use std::process::Command;

use host_support::Place;
use nix::sys::signal::{SigSet, Signal};

#[test]
fn a_program_of_the_bench_starts_with_no_signal_blocked() {
    let Some(place) = Place::new() else { return };
    let netns = place.workload();
    let blocked: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    blocked.thread_block().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["bench", "exec", "--netns", &netns, "--"])
        .args(["cat", "/proc/self/status"])
        .output();
    blocked.thread_unblock().unwrap();
    let output = output.unwrap();
    let status = String::from_utf8(output.stdout).unwrap();
    assert!(
        status.contains("SigBlk:\t0000000000000000\n"),
        "{status}{:?}",
        output.stderr
    );
}
