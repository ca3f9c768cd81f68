//! Links between nodes: impaired on purpose, watched, and shared with the kernel's own VXLAN.

mod lab_support;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lab_support::{Guard, can_make_labs, eventually, pings, skip};
use nix::sys::signal::Signal;
use weft::lab::Lab;
use weft::lab::capture::{Limits, Tap};
use weft::lab::impair::{Impairment, LinkImpairment, Profile};
use weft::lab::pcapng::Way;
use weft::lab::ping::Pinger;
use weft::lab::steps::Interrupt;
use weft::lab::summary::summary;
use weft::lab::throughput::{End, transfer};

fn both(impairment: Impairment) -> LinkImpairment {
    LinkImpairment {
        out: impairment.clone(),
        into: impairment,
        seed: 7,
    }
}

fn best_ping(lab: &Lab) -> Option<Duration> {
    let mut pinger = Pinger::open(&lab.netns("my-web.1").unwrap()).unwrap();
    let to = lab.workload("my-web.2").unwrap().ip;
    let ping = |_| pinger.ping(to, Duration::from_secs(1)).unwrap();
    (0..5).filter_map(ping).min()
}

/// Sends for a moment and checks every byte.
fn send(lab: &Lab, from: &str, to: &str) -> u64 {
    let (a, b) = (lab.netns(from).unwrap(), lab.netns(to).unwrap());
    let ends = [(&a, from), (&b, to)];
    let [from, to] = ends.map(|(netns, name)| End {
        netns,
        ip: lab.workload(name).unwrap().ip,
    });
    transfer(
        &from,
        &to,
        Duration::from_millis(500),
        &AtomicBool::new(false),
    )
    .unwrap()
    .bytes
}

#[test]
fn a_link_is_delayed_while_it_should_be_and_whole_afterwards() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard.up(|_| {}).unwrap();
    let delayed = Impairment {
        delay_us: 20_000,
        ..Impairment::default()
    };
    lab.impair("n1", &both(delayed)).unwrap();
    let time = best_ping(&lab).unwrap();
    assert!(time >= Duration::from_millis(40), "{time:?}");
    assert!(time < Duration::from_millis(80), "{time:?}");
    let report = lab.impairment("n1").unwrap().unwrap();
    assert!(
        report.out.offered > 0 && report.into.offered > 0,
        "{report:?}"
    );
    lab.clear_impairment("n1").unwrap();
    assert!(lab.impairment("n1").unwrap().is_none());
    let time = best_ping(&lab).unwrap();
    assert!(time < Duration::from_millis(20), "{time:?}");
    lab.clear_impairment("n1").unwrap();
}

#[test]
fn loss_is_counted_and_every_frame_is_accounted_for() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard.up(|_| {}).unwrap();
    let lossy = Impairment {
        loss_percent: 50.0,
        ..Impairment::default()
    };
    let link = LinkImpairment {
        out: lossy,
        seed: 3,
        ..LinkImpairment::default()
    };
    lab.impair("n1", &link).unwrap();
    let mut pinger = Pinger::open(&lab.netns("my-web.1").unwrap()).unwrap();
    let to = lab.workload("my-web.2").unwrap().ip;
    let ping = |_: &usize| {
        pinger
            .ping(to, Duration::from_millis(30))
            .unwrap()
            .is_some()
    };
    let answered = (0..100).filter(ping).count();
    let report = lab.impairment("n1").unwrap().unwrap();
    assert!((25..=75).contains(&answered), "{answered} of 100");
    assert!(report.out.drop_loss >= 25, "{report:?}");
    assert_eq!(
        report.into.drop_loss, 0,
        "only one way was impaired: {report:?}"
    );
    assert!(
        report.out.balanced() && report.into.balanced(),
        "{report:?}"
    );
}

#[test]
fn one_way_silence_stops_pings_and_the_other_way_still_works() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard.up(|_| {}).unwrap();
    let dead = Impairment {
        blackhole: true,
        ..Impairment::default()
    };
    let link = LinkImpairment {
        into: dead,
        ..LinkImpairment::default()
    };
    lab.impair("n2", &link).unwrap();
    assert_eq!(pings(&lab, "my-web.1", "my-web.2", 2), 0);
    let report = lab.impairment("n2").unwrap().unwrap();
    assert_eq!(report.into.delivered, 0);
    assert!(report.into.drop_dead > 0);
    lab.impair("n2", &LinkImpairment::default()).unwrap();
    assert_eq!(pings(&lab, "my-web.1", "my-web.2", 2), 2);
}

#[test]
fn tcp_arrives_whole_over_a_bad_link() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard.up(|_| {}).unwrap();
    let bad = Impairment {
        loss_percent: 0.5,
        duplicate_percent: 5.0,
        reorder_percent: 5.0,
        corrupt_percent: 0.5,
        delay_us: 500,
        jitter_us: 200,
        ..Impairment::default()
    };
    lab.impair("n1", &both(bad)).unwrap();
    assert!(send(&lab, "my-web.1", "my-web.2") > 0);
    let report = lab.impairment("n1").unwrap().unwrap();
    assert!(
        report.out.corrupted > 0 && report.out.duplicated > 0,
        "{report:?}"
    );
    assert!(
        report.out.balanced() && report.into.balanced(),
        "{report:?}"
    );
}

#[test]
fn a_size_limit_swallows_what_is_larger() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard.up(|_| {}).unwrap();
    lab.impair("n1", &both(Profile::Blackhole1400.impairment()))
        .unwrap();
    assert_eq!(pings(&lab, "my-web.1", "my-web.2", 2), 2, "small ones pass");
    let large = ["ping", "-c", "2", "-W", "0.3", "-s", "1400", "10.0.1.2"].map(str::to_owned);
    let mut command = lab.command("my-web.1", &large).unwrap();
    let output = lab
        .netns("my-web.1")
        .unwrap()
        .run_in(|| command.output())
        .unwrap();
    match output {
        Err(error) => skip(&format!("no ping program: {error}")),
        Ok(output) => assert!(
            !output.status.success(),
            "1450 bytes and a tunnel passed 1400"
        ),
    }
    assert!(lab.impairment("n1").unwrap().unwrap().out.balanced());
}

#[test]
fn a_killed_relay_is_replaced_and_the_link_can_be_made_whole() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard.up(|_| {}).unwrap();
    for repair in [true, false] {
        lab.impair("n1", &LinkImpairment::default()).unwrap();
        let relay = lab.state().relays["n1"].process;
        relay.signal(Signal::SIGKILL).unwrap();
        assert!(relay.ended_within(Duration::from_secs(2)));
        assert_eq!(
            pings(&lab, "my-web.1", "my-web.2", 1),
            0,
            "nobody carries frames"
        );
        match repair {
            true => drop(lab.impair("n1", &LinkImpairment::default()).unwrap()),
            false => lab.clear_impairment("n1").unwrap(),
        }
        let answered = || pings(&lab, "my-web.1", "my-web.2", 1) == 1;
        eventually("a ping", Duration::from_secs(2), answered);
    }
}

#[test]
fn both_ways_of_a_link_and_a_workload_are_captured() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let lab = guard.up(|options| options.kernel_peers = 1).unwrap();
    for (place, request, reply) in [
        ("n1", Way::Out, Way::In),
        ("n2", Way::In, Way::Out),
        ("my-web.1", Way::Out, Way::In),
        ("my-web.2", Way::In, Way::Out),
    ] {
        let tap = Tap::open(&lab, place).unwrap();
        assert_eq!(pings(&lab, "my-web.1", "my-web.2", 1), 1);
        let limits = Limits {
            time: Some(Duration::from_millis(300)),
            frames: None,
        };
        let mut seen = Vec::new();
        let sink = |frame: weft::lab::capture::Seen<'_>| {
            seen.push((frame.way, summary(frame.frame, 4789)));
            Ok(())
        };
        tap.run(limits, &Interrupt::default(), sink).unwrap();
        let tunnel = if place.starts_with('n') {
            "vxlan vni 4097 | "
        } else {
            ""
        };
        for (way, inner) in [
            (request, "10.0.1.1 > 10.0.1.2 icmp echo request"),
            (reply, "10.0.1.2 > 10.0.1.1 icmp echo reply"),
        ] {
            let found = seen
                .iter()
                .any(|(w, text)| *w == way && text.ends_with(&format!("{tunnel}{inner}")));
            assert!(found, "{place} {inner}: {seen:?}");
        }
    }
    Tap::open(&lab, "my-web.3").unwrap();
}

#[test]
fn the_kernels_vxlan_and_weft_exchange_pings_and_streams() {
    if !can_make_labs() {
        return;
    }
    for ipv6_underlay in [false, true] {
        let guard = Guard::new();
        let lab = guard.up(|options| {
            options.nodes = 1;
            options.kernel_peers = 1;
            options.ipv6_underlay = ipv6_underlay;
        });
        let lab = lab.unwrap();
        assert_eq!(pings(&lab, "my-web.1", "my-web.2", 3), 3);
        assert_eq!(pings(&lab, "my-web.2", "my-web.1", 3), 3);
        assert!(send(&lab, "my-web.1", "my-web.2") > 1 << 20);
        assert!(send(&lab, "my-web.2", "my-web.1") > 1 << 20);
    }
}
