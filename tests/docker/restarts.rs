//! Engines and agents that are killed and come back, in every order, with containers that talk meanwhile.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::common::skip::long;
use super::docker_support::{Bed, Options, PATIENCE, eventually, note, reaches};
use weft::lab::ping::Pinger;

/// Docker tries a plugin that does not answer for a quarter of a minute, and that for each thing it has to do.
const DOCKERS_PATIENCE: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    KillAgent,
    KillDocker,
    BootAgent,
    BootDocker,
}
pub(super) use Step::{BootAgent, BootDocker, KillAgent, KillDocker};

const ORDERS: [&[Step]; 6] = [
    &[KillAgent, BootAgent],
    &[KillDocker, BootDocker],
    &[KillAgent, KillDocker, BootAgent, BootDocker],
    &[KillAgent, KillDocker, BootDocker, BootAgent],
    &[KillDocker, KillAgent, BootAgent, BootDocker],
    &[KillDocker, KillAgent, BootDocker, BootAgent],
];
/// Of those, what is tried without `WEFT_LONG=1`.
const SHORT: usize = 3;

/// Pings without an end; knows the longest time without an answer.
struct Talk {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Talk {
    fn begin(mut pinger: Pinger, to: Ipv4Addr) -> Talk {
        let stop = Arc::new(AtomicBool::new(false));
        let halt = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !halt.load(Ordering::Relaxed) {
                if pinger
                    .ping(to, Duration::from_millis(100))
                    .unwrap()
                    .is_some()
                {
                    last = Instant::now();
                    std::thread::sleep(Duration::from_millis(10));
                }
                longest = longest.max(last.elapsed());
            }
            longest
        });
        Talk { stop, thread }
    }

    /// The longest time without an answer.
    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Takes the steps on these engines, all of them a step at a time.
pub(super) fn take(bed: &mut Bed, engines: &[usize], order: &[Step]) {
    for step in order {
        for index in engines {
            let engine = &mut bed.engines[*index];
            match step {
                KillAgent => engine.kill_agent(),
                KillDocker => engine.kill_docker(),
                BootAgent => engine.boot_agent(),
                BootDocker => engine.boot_docker(),
            }
        }
    }
}

#[test]
fn containers_of_living_engines_reach_each_other_after_any_kill() {
    let bed = Bed::new(Options {
        live_restore: true,
        ..Options::default()
    });
    let Some(mut bed) = bed else { return };
    bed.my_network("");
    bed.one()
        .sleeper("alpha", "--network my-network --dns 10.0.1.254");
    bed.two()
        .sleeper("beta", "--network my-network --dns 10.0.1.254");
    let (alpha, beta) = (
        bed.one().ip("alpha", "my-network"),
        bed.two().ip("beta", "my-network"),
    );
    reaches(bed.one(), "alpha", beta);
    let before = bed.inventory();
    let orders = match long("orders of kills beyond the first three, and kills on both engines") {
        true => ORDERS.len(),
        false => SHORT,
    };
    let places: &[&[usize]] = if orders == SHORT {
        &[&[0]]
    } else {
        &[&[0], &[0, 1]]
    };
    for engines in places {
        for order in &ORDERS[..orders] {
            let talk = Talk::begin(bed.one().pinger("alpha"), beta);
            take(&mut bed, engines, order);
            reaches(bed.one(), "alpha", beta);
            reaches(bed.two(), "beta", alpha);
            let silence = talk.end();
            note(&format!(
                "kills {order:?} on {} engine(s): silent for {} ms at most",
                engines.len(),
                silence.as_millis()
            ));
            if !order.contains(&KillAgent) {
                assert!(
                    silence < Duration::from_secs(2),
                    "{order:?}: the engine is not in the way of frames: {silence:?}"
                );
            }
            // What comes after works as before.
            bed.one()
                .sleeper("gamma", "--network my-network --dns 10.0.1.254");
            reaches(bed.one(), "gamma", beta);
            eventually("the other engine's container by name", PATIENCE, || {
                bed.one().exec("gamma", "ping -c1 -W2 beta").ok
            });
            bed.one().done("rm --force gamma");
            before.assert_reached_again(&bed, PATIENCE);
        }
    }
    for (engine, name) in [(bed.one(), "alpha"), (bed.two(), "beta")] {
        engine.done(&format!("rm --force {name}"));
    }
}

#[test]
fn containers_that_their_engine_starts_again_are_on_the_network_again() {
    let Some(mut bed) = Bed::new(Options::default()) else {
        return;
    };
    bed.my_network("");
    bed.one().sleeper(
        "alpha",
        "--network my-network --dns 10.0.1.254 --restart always",
    );
    bed.two().sleeper(
        "beta",
        "--network my-network --dns 10.0.1.254 --restart always",
    );
    let beta = bed.two().ip("beta", "my-network");
    reaches(bed.one(), "alpha", beta);
    let before = bed.inventory();
    take(&mut bed, &[0], &[KillDocker, BootDocker]);
    eventually("the container runs again", DOCKERS_PATIENCE, || {
        bed.one().inspect("alpha")["State"]["Running"] == true
    });
    reaches(bed.one(), "alpha", beta);
    reaches(bed.two(), "beta", bed.one().ip("alpha", "my-network"));
    eventually("it is known by name", PATIENCE, || {
        bed.two().exec("beta", "ping -c1 -W2 alpha").ok
    });
    before.assert_reached_again(&bed, PATIENCE);
}

#[test]
fn a_container_removed_while_the_agent_is_away_leaves_nothing() {
    let Some(mut bed) = Bed::new(Options::default()) else {
        return;
    };
    bed.my_network("");
    bed.used_inventory();
    bed.two().sleeper("beta", "--network my-network");
    let before = bed.inventory();
    bed.one()
        .sleeper("alpha", "--network my-network --ip 10.0.1.50");
    bed.engines[0].kill_agent();
    // Docker may well complain, but has to let go.
    bed.one().docker("rm --force alpha");
    assert_eq!(bed.one().done("ps --all --quiet"), "");
    bed.engines[0].boot_agent();
    before.assert_reached_again(&bed, DOCKERS_PATIENCE);
    // Its address is free again.
    eventually("the address can be had again", DOCKERS_PATIENCE, || {
        let again = bed.one().docker(
            "run --detach --name alpha --network my-network --ip 10.0.1.50 box:latest sleep 1000",
        );
        if !again.ok {
            bed.one().docker("rm --force alpha");
        }
        again.ok
    });
    reaches(bed.one(), "alpha", bed.two().ip("beta", "my-network"));
}

#[test]
fn a_container_that_dies_while_the_engine_is_away_leaves_nothing() {
    let bed = Bed::new(Options {
        live_restore: true,
        ..Options::default()
    });
    let Some(mut bed) = bed else { return };
    bed.used_inventory();
    bed.my_network("");
    let before = bed.inventory();
    bed.one().sleeper("alpha", "--network my-network");
    let pid = bed.one().inspect("alpha")["State"]["Pid"].as_i64().unwrap();
    bed.engines[0].kill_docker();
    bed.one().kill_inside(pid);
    bed.engines[0].boot_docker();
    eventually("the engine knows of the death", DOCKERS_PATIENCE, || {
        bed.one().inspect("alpha")["State"]["Running"] == false
    });
    bed.one().done("rm --force alpha");
    before.assert_reached_again(&bed, DOCKERS_PATIENCE);
}
