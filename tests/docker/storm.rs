//! Many containers at a time, started and removed side by side.

use std::time::{Duration, Instant};

use super::addresses::all_distinct;
use super::common::skip::long;
use super::docker_support::{Bed, Options, note, reaches};

#[test]
fn rounds_of_many_containers_share_no_address_and_leave_nothing() {
    let Some(bed) = Bed::new(Options::default()) else {
        return;
    };
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
}
