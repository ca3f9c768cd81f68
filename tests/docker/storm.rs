//! Many containers at a time, started and removed side by side.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::addresses::all_distinct;
use super::common::skip::long;
use super::docker_support::{Bed, Options, note, reaches};

#[test]
fn rounds_of_many_containers_share_no_address_and_leave_nothing() {
    let bed = Bed::new(Options {
        usual_pace: true,
        ..Options::default()
    });
    let Some(bed) = bed else { return };
    let (count, rounds) =
        match long("50 containers per engine at a time, 5 rounds; 10 and 2 are tried") {
            true => (50, 5),
            false => (10, 2),
        };
    bed.used_inventory();
    bed.my_network("");
    let before = bed.inventory();
    for round in 1..=rounds {
        let begun = Instant::now();
        bed.on_both(count, |engine, number| {
            engine.sleeper(
                &format!("box-{}-{number}", engine.number),
                "--network my-network",
            );
        });
        let started = begun.elapsed();
        all_distinct(&bed, 2 * count);
        let last = bed.two().ip(&format!("box-2-{}", count - 1), "my-network");
        reaches(bed.one(), "box-1-0", last);
        let begun = Instant::now();
        bed.on_both(count, |engine, number| {
            engine.done(&format!("rm --force box-{}-{number}", engine.number));
        });
        note(&format!(
            "round {round}: {count} containers per engine started in {started:?}, removed in {:?}",
            begun.elapsed()
        ));
        before.assert_reached_again(&bed, Duration::from_secs(60));
    }
    let all = calls(&bed);
    for (call, times) in &all {
        let times = Times::of(times);
        note(&format!("{call}: {times}"));
        let latest = match KERNEL_CALLS.contains(&call.as_str()) {
            true => KERNEL_LATEST,
            false => LATEST,
        };
        assert!(times.late <= latest, "{call}: {times}");
    }
    // Six calls for each container's life at least.
    let count = 6 * 2 * count * rounds;
    let answered: usize = all.values().map(Vec::len).sum();
    assert!(answered >= count, "{answered} of {count}");
}

/// What has to wait for the kernel, which makes and removes one link at a time for all programs of the machine.
const KERNEL_CALLS: [&str; 3] = [
    "NetworkDriver.Join",
    "NetworkDriver.DeleteEndpoint",
    "NetworkDriver.DeleteNetwork",
];
/// What 99 of 100 calls are answered within, in ms: several times what they take, for this machine is starved.
const LATEST: u64 = 1_000;
const KERNEL_LATEST: u64 = 10_000;

/// How long calls of both engines took, by name.
fn calls(bed: &Bed) -> BTreeMap<String, Vec<u64>> {
    let mut all: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for engine in &bed.engines {
        for (call, times) in engine.call_times() {
            all.entry(call).or_default().extend(times);
        }
    }
    all
}

/// Times in ms.
struct Times {
    count: usize,
    middle: u64,
    /// 99 of 100 are no longer.
    late: u64,
    longest: u64,
}

impl Times {
    fn of(times: &[u64]) -> Times {
        let mut times = times.to_vec();
        times.sort_unstable();
        let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
        Times {
            count: times.len(),
            middle: at(50),
            late: at(99),
            longest: at(100),
        }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Times {
            count,
            middle,
            late,
            longest,
        } = self;
        write!(
            f,
            "{count} answered, p50 {middle} ms, p99 {late} ms, {longest} ms at most"
        )
    }
}
