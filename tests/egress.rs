//! Workloads' way out over the gateway bridge, on real agents: what leaves, what does not, and what comes back by itself.

mod lab_support;
mod service_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, eventually, note};
use service_support::{CLIENT_V4, Field, PATIENCE, Server, answered, ask, netns_name, run_in};
use weft::sys::netns::Netns;

/// Ends what waits for it when it goes, also by a failed check: a scope waits for its threads.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn rules(netns: &Netns) -> String {
    let output = netns
        .command("nft")
        .unwrap()
        .args(["list", "table", "inet", "weft"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_workload_goes_out_by_its_nodes_address_and_reaches_no_other_workload_that_way() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _outside = Server::start("outside", &field.client, 80);
    let workload = field.lab.netns("my-web.1").unwrap();
    let to = format!("{CLIENT_V4}:80").parse().unwrap();
    let (name, seen) = answered("the way out", || ask(&workload, to));
    assert_eq!((name.as_str(), seen.as_str()), ("outside", "10.99.0.1"));

    // A second workload of the same node: over the bridge it is not reached, neither on the link nor by routing.
    let other = field.workload("n1", "other", "my-network", &[]);
    let _other = Server::start("other", &other, 80);
    let legs = run_in(
        &other,
        &["ip", "-brief", "-4", "address", "show", "dev", "eth1"],
    );
    let leg = legs
        .split_whitespace()
        .nth(2)
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    assert!(ask(&workload, format!("{leg}:80").parse().unwrap()).is_err());
    run_in(
        &workload,
        &[
            "ip",
            "route",
            "add",
            &format!("{leg}/32"),
            "via",
            "172.18.0.1",
        ],
    );
    assert!(ask(&workload, format!("{leg}:80").parse().unwrap()).is_err());
    // Nor by a neighbour of the node that knows where it is.
    run_in(
        &field.client,
        &["ip", "route", "add", "172.18.0.0/16", "via", "10.99.0.1"],
    );
    assert!(ask(&field.client, format!("{leg}:80").parse().unwrap()).is_err());

    // An internal network has no way out.
    field.done("n1", &["network", "create", "inside", "--internal"]);
    let inside = field.workload("n1", "inside", "inside", &[]);
    assert_eq!(run_in(&inside, &["ip", "route", "show", "default"]), "");
    assert!(ask(&inside, to).is_err());
    // One that is on another network, too, has that one's.
    field.done(
        "n1",
        &[
            "attach",
            "inside",
            &format!("weft-{}-other", field.lab.name()),
        ],
    );
    answered("the way out beside an internal network", || ask(&other, to));

    // With its endpoint the leg goes.
    field.done("n1", &["detach", "my-network", "other"]);
    eventually("the leg is gone", PATIENCE, || {
        run_in(&other, &["ip", "route", "show", "default"]).is_empty()
    });
}

#[test]
fn a_default_route_of_the_workloads_own_is_kept() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let netns = format!("weft-{}-own", field.lab.name());
    let own = weft::lab::space::create(&netns).unwrap();
    run_in(
        &own,
        &[
            "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1",
        ],
    );
    run_in(
        &own,
        &["ip", "address", "add", "203.0.113.2/24", "dev", "v0"],
    );
    run_in(&own, &["ip", "link", "set", "v0", "up"]);
    run_in(
        &own,
        &["ip", "route", "add", "default", "via", "203.0.113.1"],
    );
    field.done("n2", &["attach", "my-network", &netns]);
    let routes = run_in(&own, &["ip", "route", "show", "default"]);
    assert_eq!(routes.trim(), "default via 203.0.113.1 dev v0 linkdown");
}

#[test]
fn flushed_rules_come_back_within_a_second_and_nothing_leaves_unmasked_meanwhile() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _outside = Server::start("outside", &field.client, 80);
    let workload = field.lab.netns("my-web.1").unwrap();
    let to = format!("{CLIENT_V4}:80").parse().unwrap();
    answered("the way out", || ask(&workload, to));
    let node = field.lab.netns("n1").unwrap();
    // Whatever arrives at the client with an address of the bridge has leaked.
    run_in(
        &field.client,
        &[
            "nft",
            "add table ip watch; add chain ip watch in { type filter hook prerouting priority -300; }; add rule ip watch in ip saddr 172.16.0.0/12 counter",
        ],
    );
    let mut worst = Duration::ZERO;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Asks all the while: each question is answered as before, or not at all.
        let asking = scope.spawn(|| {
            let mut answers = 0;
            while !over.load(Ordering::Relaxed) {
                if let Ok((_, seen)) = ask(&workload, to) {
                    assert_eq!(seen, "10.99.0.1");
                    answers += 1;
                }
            }
            answers
        });
        let _end = End(&over);
        for _ in 0..10 {
            run_in(&node, &["nft", "flush", "ruleset"]);
            let begun = Instant::now();
            eventually("rules are back", Duration::from_secs(5), || {
                rules(&node).contains("masquerade")
            });
            worst = worst.max(begun.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
        over.store(true, Ordering::Relaxed);
        assert!(asking.join().unwrap() > 0);
    });
    let counted = run_in(&field.client, &["nft", "list", "table", "ip", "watch"]);
    assert!(counted.contains("packets 0 bytes 0"), "{counted}");
    note(&format!(
        "10 flushes: rules back after {} ms at most",
        worst.as_millis()
    ));
    assert!(worst <= Duration::from_secs(1), "{worst:?}");
}

#[test]
fn somebody_elses_bridge_of_that_name_is_left_alone() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let node = netns_name(&field.lab, "n3");
    let netns = field.lab.netns("n3").unwrap();
    // As if Docker had been there first: weft's own goes, then Docker's comes.
    field.done("n3", &["detach", "my-network", "my-web.3"]);
    eventually("the bridge is gone", PATIENCE, || {
        let shown = netns
            .command("ip")
            .unwrap()
            .args(["link", "show", "docker_gwbridge"])
            .output();
        !shown.unwrap().status.success()
    });
    service_support::ip(&[
        "-n",
        &node,
        "link",
        "add",
        "docker_gwbridge",
        "type",
        "bridge",
    ]);
    service_support::ip(&[
        "-n",
        &node,
        "address",
        "add",
        "172.18.0.1/16",
        "dev",
        "docker_gwbridge",
    ]);
    service_support::ip(&["-n", &node, "link", "set", "docker_gwbridge", "up"]);
    let workload = field.workload("n3", "beside", "my-network", &[]);
    let _outside = Server::start("outside", &field.client, 80);
    let to = format!("{CLIENT_V4}:80").parse().unwrap();
    let (_, seen) = answered("the way out", || ask(&workload, to));
    assert_eq!(seen, "10.99.0.3");
    let addresses = run_in(
        &workload,
        &["ip", "-4", "-brief", "address", "show", "dev", "eth1"],
    );
    assert!(
        addresses.contains("172.19."),
        "the next free subnet: {addresses}"
    );
    let link = run_in(&netns, &["ip", "-d", "link", "show", "docker_gwbridge"]);
    assert!(!link.contains("altname weft"), "{link}");
}
