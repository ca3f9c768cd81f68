//! weft as Docker's network and address driver, on two real engines.

#[path = "docker/addresses.rs"]
mod addresses;
#[path = "docker/chaos.rs"]
mod chaos;
mod common;
#[path = "docker/comparison.rs"]
mod comparison;
#[path = "docker/compose.rs"]
mod compose;
mod docker_support;
#[path = "docker/life.rs"]
mod life;
#[path = "docker/requests.rs"]
mod requests;
#[path = "docker/restarts.rs"]
mod restarts;
#[path = "docker/storm.rs"]
mod storm;
#[path = "docker/swarm.rs"]
mod swarm;
#[path = "docker/walkthrough.rs"]
mod walkthrough;

use std::time::Duration;

use docker_support::{Bed, Options, PATIENCE, eventually, ip};

/// What the bed itself can do, told by Docker's own networks: without it no other finding here means anything.
#[test]
fn two_real_engines_reach_each_other_and_leave_nothing() {
    let bed = Bed::new(Options {
        no_weft: true,
        ..Options::default()
    });
    let Some(bed) = bed else { return };
    bed.form_swarm();
    let (one, two) = (bed.one(), bed.two());
    one.done("network create --driver overlay --attachable --subnet 10.0.9.0/24 reference");
    one.sleeper("alpha", "--network reference");
    two.sleeper("beta", "--network reference");
    let to = two.ip("beta", "reference");
    let mut from = one.pinger("alpha");
    eventually("an answer from the other engine", PATIENCE, || {
        from.ping(to, Duration::from_millis(200)).unwrap().is_some()
    });
    assert!(one.exec("alpha", "ping -c1 -W2 beta").ok);
    let name = bed.name.clone();
    drop(bed);
    assert!(!ip("netns list").contains(&name));
}

#[test]
fn a_leak_is_found_and_an_engine_killed_with_live_restore_keeps_its_containers() {
    let bed = Bed::new(Options {
        no_weft: true,
        live_restore: true,
        ..Options::default()
    });
    let Some(mut bed) = bed else { return };
    let before = bed.inventory();
    bed.one().sleeper("alpha", "");
    let during = bed.inventory();
    let more = during.beyond(&before);
    for part in ["of Docker: alpha", "link veth*", "namespace of Docker"] {
        assert!(
            more.iter().any(|line| line.contains(part)),
            "{part}: {more:#?}"
        );
    }
    let address = bed.one().inspect("alpha")["NetworkSettings"]["IPAddress"].clone();
    bed.engines[0].kill_docker();
    bed.engines[0].boot_docker();
    let found = bed.one().inspect("alpha");
    assert_eq!(found["State"]["Running"], true);
    assert_eq!(found["NetworkSettings"]["IPAddress"], address);
    during.assert_reached_again(&bed, PATIENCE);
    bed.one().done("rm --force alpha");
    before.assert_reached_again(&bed, PATIENCE);
}
