//! Clusters on the real thing: agents in namespaces, real managers, gossip and tunnels; the bars of how soon a change
//! is felt, and of what a failure costs. Figures are printed; the bars are asserted.

mod lab_support;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, eventually, long, note, quiet};
use nix::sys::signal::Signal;
use weft::agent::api::{
    ApiError, AttachRequest, CreateNetwork, ErrorCode, IpamConfigRequest, NodeStatus,
};
use weft::frontend::client::{Client, block_on};
use weft::lab::Lab;
use weft::lab::ping::Pinger;
use weft::lab::space;

/// Held by every test, and alone by the one that makes the machine busy: the others' bars are of an idle one.
static MACHINE: RwLock<()> = RwLock::new(());

fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

const PATIENCE: Duration = Duration::from_secs(30);
/// How often a ping is tried.
const TRY: Duration = Duration::from_millis(5);

fn client(lab: &Lab, node: &str) -> Client {
    Client::new(lab.socket(node))
}

fn network(name: &str, subnet: &str) -> CreateNetwork {
    let mut wish = CreateNetwork {
        name: name.into(),
        ..CreateNetwork::default()
    };
    wish.ipam.config.push(IpamConfigRequest {
        subnet: subnet.into(),
        ..IpamConfigRequest::default()
    });
    wish
}

/// A workload's namespace beside those of the lab's own plan, gone with the lab.
fn workload(lab: &Lab, name: &str) -> String {
    let netns = format!("weft-{}-{name}", lab.name());
    space::create(&netns).unwrap();
    netns
}

fn attach(lab: &Lab, node: &str, network: &str, netns: &str) -> Result<Ipv4Addr, ApiError> {
    let wish = AttachRequest {
        target: netns.into(),
        ..AttachRequest::default()
    };
    let view = block_on(client(lab, node).attach(network, &wish))?;
    match view.ips[0].ip() {
        std::net::IpAddr::V4(ip) => Ok(ip),
        other => panic!("{other}"),
    }
}

/// Pings until an answer comes; how long that took.
fn first_answer(from: &mut Pinger, to: Ipv4Addr, limit: Duration) -> Option<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if from.ping(to, TRY).unwrap().is_some() {
            return Some(begun.elapsed());
        }
    }
    None
}

fn pinger(netns: &str) -> Pinger {
    Pinger::open(&space::open(netns).unwrap()).unwrap()
}

/// Pinged from every workload to every other one; pairs without an answer.
fn silent_pairs(lab: &Lab) -> Vec<(String, String)> {
    let matrix = lab.ping_matrix(&quiet()).unwrap();
    let names: Vec<&String> = lab.plan().workloads.iter().map(|w| &w.name).collect();
    let mut silent = Vec::new();
    for (from, row) in names.iter().zip(&matrix) {
        for (to, time) in names.iter().zip(row) {
            if from != to && time.is_none() {
                silent.push(((*from).clone(), (*to).clone()));
            }
        }
    }
    silent
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent).div_ceil(100).max(1) - 1]
}

#[test]
fn a_network_made_on_one_node_carries_traffic_on_others_at_once() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let sizes: &[usize] = if long() { &[3, 16] } else { &[3] };
    for nodes in sizes.iter().copied() {
        let guard = Guard::new();
        let lab = guard
            .up(|options| {
                options.nodes = nodes;
                options.managers = 3;
            })
            .unwrap();
        let rounds = if long() { 10 } else { 4 };
        let mut pings = Vec::new();
        let mut attaches = Vec::new();
        for round in 0..rounds {
            let (maker, here, there) = (
                format!("n{}", round % nodes + 1),
                format!("n{}", (round + 1) % nodes + 1),
                format!("n{}", (round + 2) % nodes + 1),
            );
            let name = format!("net{round}");
            let subnet = format!("10.7.{round}.0/24");
            block_on(client(&lab, &maker).create_network(&network(&name, &subnet))).unwrap();
            let (one, other) = (
                workload(&lab, &format!("a{round}")),
                workload(&lab, &format!("b{round}")),
            );
            // Known everywhere at once: no waiting between the commands beyond a try or two.
            let end = Instant::now() + PATIENCE;
            let to = loop {
                match attach(&lab, &here, &name, &one) {
                    Ok(ip) => break ip,
                    Err(error) if error.code == ErrorCode::NetworkNotFound => {
                        assert!(Instant::now() < end, "{error}");
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            let begun = Instant::now();
            attach(&lab, &there, &name, &other).unwrap();
            attaches.push(begun.elapsed());
            let answer = first_answer(&mut pinger(&other), to, PATIENCE);
            pings.push(answer.expect("an answer"));
        }
        let worst = *pings.iter().max().unwrap();
        note(&format!(
            "{nodes} nodes, 3 managers, {rounds} rounds: attach {} ms (median) {} ms (max); first ping after it {} ms \
             (median), {} ms (max)",
            percentile(&mut attaches, 50).as_millis(),
            percentile(&mut attaches, 100).as_millis(),
            percentile(&mut pings, 50).as_millis(),
            worst.as_millis()
        ));
        assert!(worst <= Duration::from_millis(300), "{pings:?}");
    }
}

#[test]
fn a_moved_endpoint_is_reached_at_its_new_place() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let lab = guard
        .up(|options| (options.nodes, options.managers) = (3, 1))
        .unwrap();
    let rounds = if long() { 50 } else { 10 };
    let mut times = Vec::new();
    let mut from = pinger(&lab.workload("my-web.1").unwrap().netns.clone());
    let netns = workload(&lab, "mover");
    for round in 0..rounds {
        let node = format!("n{}", round % 2 + 2);
        let wish = AttachRequest {
            target: netns.clone(),
            name: Some("mover".into()),
            ..AttachRequest::default()
        };
        let view = block_on(client(&lab, &node).attach("my-network", &wish)).unwrap();
        let up = Instant::now();
        let std::net::IpAddr::V4(ip) = view.ips[0].ip() else {
            panic!("{view:?}");
        };
        first_answer(&mut from, ip, PATIENCE).expect("an answer");
        times.push(up.elapsed());
        block_on(client(&lab, &node).detach("my-network", "mover")).unwrap();
    }
    let (median, worst) = (percentile(&mut times, 50), percentile(&mut times, 99));
    note(&format!(
        "{rounds} moves: interface up to first reply {} ms (median), {} ms (p99)",
        median.as_millis(),
        worst.as_millis()
    ));
    assert!(worst <= Duration::from_millis(200), "{times:?}");
}

#[test]
fn a_killed_node_is_noticed_and_comes_back() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let mut lab = guard
        .up(|options| {
            options.nodes = 4;
            options.managers = 3;
        })
        .unwrap();
    // The leader and a worker.
    let leader = leader(&lab);
    for victim in [leader.as_str(), "n4"] {
        let other = if victim == "n2" { "n3" } else { "n2" };
        lab.kill_agent(victim, Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        eventually("others take it for failed", PATIENCE, || {
            let peers = block_on(client(&lab, other).peers()).unwrap().peers;
            peers
                .iter()
                .any(|peer| peer.name == victim && peer.liveness == "failed")
        });
        let noticed = killed.elapsed();
        eventually("its endpoints are out of the tables", PATIENCE, || {
            let fdb = block_on(client(&lab, other).fdb(None)).unwrap().entries;
            fdb.iter().all(|row| row.node != victim)
        });
        eventually("the managers know", PATIENCE, || {
            let node = block_on(client(&lab, other).node(victim));
            node.is_ok_and(|node| node.status == NodeStatus::Down)
        });
        // A change is agreed on meanwhile.
        let name = format!("while-{victim}");
        let begun = Instant::now();
        let subnet = format!("10.8.{}.0/24", victim.as_bytes()[1] - b'0');
        let end = begun + PATIENCE;
        while let Err(error) =
            block_on(client(&lab, other).create_network(&network(&name, &subnet)))
        {
            assert!(Instant::now() < end, "{error}");
        }
        let agreed = begun.elapsed();
        let start = Instant::now();
        lab.start_agent(victim).unwrap();
        eventually("its endpoints are back", PATIENCE, || {
            let fdb = block_on(client(&lab, other).fdb(None)).unwrap().entries;
            fdb.iter().any(|row| row.node == victim)
        });
        let back = start.elapsed();
        eventually("it knows what was made meanwhile", PATIENCE, || {
            block_on(client(&lab, victim).network(&name)).is_ok()
        });
        eventually("all pings pass", PATIENCE, || silent_pairs(&lab).is_empty());
        note(&format!(
            "{victim}{}: noticed after {} ms, change agreed on in {} ms, back in tables {} ms after its start",
            if victim == leader { " (leader)" } else { "" },
            noticed.as_millis(),
            agreed.as_millis(),
            back.as_millis()
        ));
        assert!(noticed <= Duration::from_secs(5), "{noticed:?}");
    }
}

/// The node that leads the managers.
fn leader(lab: &Lab) -> String {
    let mut found = None;
    eventually("a leader", PATIENCE, || {
        let nodes = block_on(client(lab, "n1").nodes()).unwrap().nodes;
        found = nodes.into_iter().find(|node| node.leader == Some(true));
        found.is_some()
    });
    found.unwrap().name
}

#[test]
fn a_dead_leader_is_replaced_within_two_seconds() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let mut lab = guard
        .up(|options| (options.nodes, options.managers) = (3, 3))
        .unwrap();
    let rounds = if long() { 10 } else { 2 };
    let mut times = Vec::new();
    for round in 0..rounds {
        let dead = leader(&lab);
        let other = if dead == "n1" { "n2" } else { "n1" };
        lab.kill_agent(&dead, Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        let name = format!("after{round}");
        let subnet = format!("10.9.{round}.0/24");
        let end = killed + PATIENCE;
        while let Err(error) =
            block_on(client(&lab, other).create_network(&network(&name, &subnet)))
        {
            assert!(Instant::now() < end, "{error}");
        }
        times.push(killed.elapsed());
        lab.start_agent(&dead).unwrap();
        eventually("the dead one is back", PATIENCE, || {
            let status = block_on(client(&lab, &dead).status()).unwrap();
            status.cluster.is_some_and(|cluster| cluster.converged)
        });
    }
    let worst = *times.iter().max().unwrap();
    note(&format!("new network after the leader's death: {times:?}"));
    assert!(worst <= Duration::from_secs(2), "{times:?}");
}

#[test]
fn without_a_majority_changes_are_refused_and_traffic_is_not() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let mut lab = guard
        .up(|options| {
            options.nodes = 4;
            options.managers = 3;
        })
        .unwrap();
    lab.kill_agent("n2", Signal::SIGKILL).unwrap();
    lab.kill_agent("n3", Signal::SIGKILL).unwrap();
    let mut from = pinger(&lab.workload("my-web.4").unwrap().netns.clone());
    let to = lab.workload("my-web.1").unwrap().ip;
    for node in ["n1", "n4"] {
        let begun = Instant::now();
        let refused = block_on(client(&lab, node).create_network(&network("no", "10.9.1.0/24")));
        let (error, took) = (refused.unwrap_err(), begun.elapsed());
        assert_eq!(error.code, ErrorCode::NoQuorum, "{error}");
        note(&format!("{node}: refused after {} ms", took.as_millis()));
        assert!(took <= Duration::from_millis(2100), "{node}: {took:?}");
        for _ in 0..20 {
            assert!(
                from.ping(to, Duration::from_secs(1)).unwrap().is_some(),
                "traffic goes on"
            );
        }
    }
    for node in ["n1", "n4"] {
        eventually("the status says so", PATIENCE, || {
            let status = block_on(client(&lab, node).status()).unwrap();
            status.health.iter().any(|item| item.code == "no_quorum")
        });
    }
    lab.start_agent("n2").unwrap();
    let begun = Instant::now();
    let end = begun + PATIENCE;
    while let Err(error) =
        block_on(client(&lab, "n4").create_network(&network("yes", "10.9.2.0/24")))
    {
        assert!(Instant::now() < end, "{error}");
    }
    note(&format!(
        "changes are possible {} ms after the second manager is back",
        begun.elapsed().as_millis()
    ));
    assert!(
        begun.elapsed() <= Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    lab.start_agent("n3").unwrap();
    eventually("all pings pass", PATIENCE, || silent_pairs(&lab).is_empty());
}

#[test]
fn after_a_partition_all_traffic_is_back_within_five_seconds() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let mut lab = guard
        .up(|options| {
            options.nodes = 4;
            options.managers = 3;
        })
        .unwrap();
    assert_eq!(silent_pairs(&lab), []);
    let cuts: &[&[&str]] = match long() {
        true => &[&["n1", "n4"], &["n2"]],
        false => &[&["n1", "n4"]],
    };
    let length = Duration::from_secs(if long() { 25 } else { 8 });
    let mut times = BTreeMap::new();
    for cut in cuts {
        let names: Vec<String> = cut.iter().map(|name| (*name).to_owned()).collect();
        lab.cut(&names).unwrap();
        std::thread::sleep(length);
        assert!(!silent_pairs(&lab).is_empty(), "cut off");
        lab.cut(&[]).unwrap();
        let healed = Instant::now();
        while !silent_pairs(&lab).is_empty() {
            assert!(healed.elapsed() < PATIENCE, "{:?}", silent_pairs(&lab));
        }
        times.insert(names.join("+"), healed.elapsed());
        eventually("one cluster", PATIENCE, || {
            lab.plan().nodes.iter().all(|node| {
                let status = block_on(client(&lab, &node.name).status()).unwrap();
                status.cluster.is_some_and(|cluster| cluster.converged)
            })
        });
    }
    note(&format!(
        "{} s of partition, all traffic back after: {times:?}",
        length.as_secs()
    ));
    assert!(
        times.values().all(|time| *time <= Duration::from_secs(5)),
        "{times:?}"
    );
}

#[test]
fn a_paused_agent_is_taken_for_dead_and_lives_on() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let lab = guard
        .up(|options| (options.nodes, options.managers) = (3, 1))
        .unwrap();
    lab.kill_agent("n3", Signal::SIGSTOP).unwrap();
    let failed = |by: &str| {
        let peers = block_on(client(&lab, by).peers()).unwrap().peers;
        peers
            .iter()
            .any(|peer| peer.name == "n3" && peer.liveness == "failed")
    };
    eventually("n3 is taken for dead", PATIENCE, || {
        failed("n1") && failed("n2")
    });
    lab.kill_agent("n3", Signal::SIGCONT).unwrap();
    let awake = Instant::now();
    eventually("n3 is alive again everywhere", PATIENCE, || {
        ["n1", "n2"].iter().all(|by| {
            let peers = block_on(client(&lab, by).peers()).unwrap().peers;
            peers
                .iter()
                .any(|peer| peer.name == "n3" && peer.liveness == "alive")
        })
    });
    eventually("all pings pass", PATIENCE, || silent_pairs(&lab).is_empty());
    note(&format!(
        "all pings pass {} ms after a paused agent goes on",
        awake.elapsed().as_millis()
    ));
}

#[test]
fn gossip_on_the_underlay_shows_no_names_and_no_addresses() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let lab = guard
        .up(|options| (options.nodes, options.managers) = (3, 1))
        .unwrap();
    let path = lab.state().dir().join("gossip.pcapng");
    let binary = lab_support::weft();
    let capture = std::process::Command::new(&binary)
        .args(["lab", "capture", lab.name(), "n2", "--for", "4s", "-w"])
        .arg(&path)
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut capture = capture.unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let secret = "a-name-that-is-nobodys-business";
    block_on(client(&lab, "n1").create_network(&network("hush", "10.44.55.0/24"))).unwrap();
    for node in ["n1", "n2"] {
        let netns = workload(&lab, &format!("s{node}"));
        let wish = AttachRequest {
            target: netns,
            name: Some(format!("{secret}-{node}")),
            ..AttachRequest::default()
        };
        eventually("the network is known", PATIENCE, || {
            block_on(client(&lab, node).attach("hush", &wish)).is_ok()
        });
    }
    assert!(capture.wait().unwrap().success());
    let bytes = std::fs::read(&path).unwrap();
    let contains = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    // The gossip port, 7378, is in there: something was said.
    assert!(contains(&[0x1c, 0xd2]), "no gossip was captured");
    for needle in [&secret.as_bytes()[..12], b"hush", b"my-web", &[10, 44, 55]] {
        assert!(
            !contains(needle),
            "{:?} is in the clear",
            String::from_utf8_lossy(needle)
        );
    }
}

#[test]
fn a_starved_machine_makes_no_node_fail() {
    if !can_make_labs() {
        return;
    }
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    let guard = Guard::new();
    // WEFT_SOAK=1 asks for the full ten minutes.
    let soak = std::env::var_os("WEFT_SOAK").is_some_and(|value| value == "1");
    let (nodes, length) = match soak {
        true => (16, Duration::from_secs(600)),
        false => (4, Duration::from_secs(12)),
    };
    let lab = guard
        .up(|options| (options.nodes, options.managers) = (nodes, 3))
        .unwrap();
    // Each in a session of its own, so that the scheduler's groups give each as much as a whole agent.
    let burner = || {
        let mut command = std::process::Command::new("setsid");
        command.args(["sh", "-c", "while :; do :; done"]);
        Burner(command.spawn().unwrap())
    };
    let burners: Vec<Burner> = (0..32).map(|_| burner()).collect();
    std::thread::sleep(length);
    drop(burners);
    let mut failures = Vec::new();
    for node in &lab.plan().nodes {
        let events = block_on(client(&lab, &node.name).events(0)).unwrap().events;
        let failed = events
            .into_iter()
            .filter(|entry| matches!(entry.event, weft::agent::events::Event::NodeFailed { .. }));
        failures.extend(failed.map(|entry| (node.name.clone(), entry.event)));
    }
    note(&format!(
        "{nodes} nodes beside 32 busy programs for {} s: {} false alarms",
        length.as_secs(),
        failures.len()
    ));
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(silent_pairs(&lab), []);
}

/// A busy program, ended with the test however it ends.
struct Burner(std::process::Child);

impl Drop for Burner {
    fn drop(&mut self) {
        let _gone_is_fine = self.0.kill();
        let _gone_is_fine = self.0.wait();
    }
}

#[test]
fn an_underlay_of_ipv6_carries_a_cluster_too() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let lab = guard
        .up(|options| {
            (options.nodes, options.managers) = (3, 3);
            options.ipv6_underlay = true;
        })
        .unwrap();
    eventually("all pings pass", PATIENCE, || silent_pairs(&lab).is_empty());
}

#[test]
fn a_network_of_several_subnets_is_routed_between_nodes() {
    if !can_make_labs() {
        return;
    }
    let _others = beside_others();
    let guard = Guard::new();
    let mut lab = guard
        .up(|options| (options.nodes, options.managers) = (3, 1))
        .unwrap();
    let mut wish = network("two", "10.5.0.0/24");
    wish.ipam.config.push(IpamConfigRequest {
        subnet: "10.6.0.0/24".into(),
        ..IpamConfigRequest::default()
    });
    block_on(client(&lab, "n1").create_network(&wish)).unwrap();
    let (one, other) = (workload(&lab, "one"), workload(&lab, "other"));
    attach(&lab, "n1", "two", &one).unwrap();
    let to: Ipv4Addr = "10.6.0.77".parse().unwrap();
    let wish = AttachRequest {
        target: other.clone(),
        ips: vec![to.into()],
        ..AttachRequest::default()
    };
    eventually("the network is known", PATIENCE, || {
        block_on(client(&lab, "n2").attach("two", &wish)).is_ok()
    });
    // Neither node has an endpoint in the other's subnet: both route.
    first_answer(&mut pinger(&one), to, Duration::from_secs(10)).expect("an answer");
    lab.cut(&["n2".into()]).unwrap();
    eventually("it is taken for dead", PATIENCE, || {
        let table = block_on(client(&lab, "n1").fdb(Some("two")))
            .unwrap()
            .entries;
        table.len() == 1
    });
    lab.cut(&[]).unwrap();
    first_answer(&mut pinger(&one), to, Duration::from_secs(10)).expect("an answer after the cut");
}
