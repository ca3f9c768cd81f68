//! Waiting for counts: that reach a goal, stand still, or agree.

use std::time::{Duration, Instant};

/// Waits until a counter is at `goal`; false after two seconds without progress.
pub fn reaches(read: impl Fn() -> u64, goal: u64) -> bool {
    let (mut last, mut since) = (read(), Instant::now());
    while last < goal {
        if since.elapsed() > Duration::from_secs(2) {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
        let now = read();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    true
}

/// Reads until nothing is under way any more: something that is (a neighbour probe, the last ping) would stand in one
/// reading and not in the other. `told` are the figures that have to stand still.
pub fn at_rest<T, K: PartialEq>(read: impl Fn() -> T, told: impl Fn(&T) -> K) -> T {
    let mut last = read();
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let now = read();
        if told(&last) == told(&now) {
            return now;
        }
        last = now;
    }
    panic!("there is traffic without an end");
}

/// Waits until two sums that should be equal are; fails with both if they are not after ten seconds.
pub fn agree(what: &str, mut sums: impl FnMut() -> (u64, u64)) {
    let start = Instant::now();
    let mut now = sums();
    while now.0 != now.1 {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{what}: {} came, {} are accounted for",
            now.0,
            now.1
        );
        std::thread::sleep(Duration::from_millis(20));
        now = sums();
    }
}
