//! The CNI plugin as a container runtime calls it: on real agents and namespaces, alone, in a chain with the plugins that
//! every runtime brings along, and under Podman.

mod cni_support;
mod lab_support;
mod node_support;
mod service_support;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use cni_support::{Chain, Runtime, plugin};
use lab_support::{Guard, can_make_labs, eventually, pings, skip};
use node_support::{Node, Space, able, ip};
use serde_json::{Value, json};
use service_support::{PATIENCE, Server, answered, ask, ask_datagram};
use weft::agent::api::CreateNetwork;
use weft::frontend::client::block_on;
use weft::lab::space;
use weft::sys::netns::Netns;

const VTEP: &str = "192.0.2.1";
/// Where somebody outside of the node is, and the node's address on the way there.
const OUTSIDE: &str = "198.51.100.2";
const NODE: &str = "198.51.100.1";

/// A node with an agent and two networks, `red` and `inside`, which is internal.
fn node() -> Node {
    let mut node = Node::new(VTEP, &[]);
    ip(&format!("-n {} addr add {VTEP}/32 dev lo", node.space.0));
    node.boot();
    for (name, internal) in [("red", false), ("blue", false), ("inside", true)] {
        let wish = CreateNetwork {
            name: name.into(),
            internal,
            ..CreateNetwork::default()
        };
        block_on(node.client().create_network(&wish)).unwrap();
    }
    node
}

/// A namespace beside the node, on a link of its own.
fn outside(node: &Node) -> Space {
    let outside = Space::new();
    let (node, other) = (&node.space.0, &outside.0);
    ip(&format!(
        "link add out netns {node} type veth peer name eth0 netns {other}"
    ));
    ip(&format!("-n {node} addr add {NODE}/24 dev out"));
    ip(&format!("-n {node} link set out up"));
    ip(&format!("-n {other} addr add {OUTSIDE}/24 dev eth0"));
    ip(&format!("-n {other} link set eth0 up"));
    outside
}

fn netns(space: &Space) -> String {
    format!("/run/netns/{}", space.0)
}

fn shown(space: &Space, what: &str) -> String {
    let output = ip(&format!("-n {} {what}", space.0));
    String::from_utf8(output.stdout).unwrap()
}

fn endpoints(node: &Node) -> usize {
    block_on(node.client().endpoints()).unwrap().endpoints.len()
}

#[test]
fn a_container_is_attached_checked_and_detached() {
    if !able() {
        return;
    }
    let node = node();
    let runtime = Runtime::of(&node);
    let space = Space::new();
    let place = netns(&space);
    let red = json!({"network": "red"});
    let eth0 = ("cnitool-77383ca0a0715733ca6f", place.as_str(), "eth0");
    runtime.done("STATUS", eth0, &red);
    assert_eq!(runtime.code("CHECK", eth0, &red), 7, "no prevResult");

    let added = runtime.done("ADD", eth0, &red);
    assert_eq!(added["cniVersion"], "1.1.0");
    let interface = &added["interfaces"][0];
    assert_eq!(interface["name"], "eth0");
    assert_eq!(interface["sandbox"], place.as_str());
    assert!(interface["mtu"].as_u64().unwrap() > 1000);
    let address = added["ips"][0]["address"].as_str().unwrap();
    assert_eq!(added["ips"][0]["interface"], 0);
    let links = shown(&space, "-o link show eth0");
    assert!(
        links.contains(interface["mac"].as_str().unwrap()),
        "{links}"
    );
    assert!(shown(&space, "-o addr show eth0").contains(address));
    // The way out is told as it is.
    let default = shown(&space, "route show default");
    let by = added["routes"][0]["gw"].as_str().unwrap();
    assert!(
        default.starts_with(&format!("default via {by} ")),
        "{default}"
    );
    assert_eq!(added["routes"][0]["dst"], "0.0.0.0/0");
    assert_eq!(added["dns"]["nameservers"][0], added["ips"][0]["gateway"]);

    assert_eq!(runtime.done("ADD", eth0, &red), added, "a second time");
    assert_eq!(endpoints(&node), 1);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let config = json!({"network": "red", "cniVersion": version});
        let old = runtime.done("ADD", eth0, &config);
        assert_eq!(old["cniVersion"], version);
        assert_eq!(old["ips"][0]["version"] == "4", version < "1.0.0");
        assert_eq!(old["ips"][0]["address"], address);
    }

    // The node itself reaches it, as the probes of a runtime have to.
    let host = address.split('/').next().unwrap();
    let mut ping = Command::new("ping");
    ping.args(["-c1", "-W5", host]);
    node.space.netns().enter_on_spawn(&mut ping).unwrap();
    assert!(ping.output().unwrap().status.success());

    // Nobody else does on that way: neither a workload of another network nor a neighbour that knows the way.
    let (other, outside) = (Space::new(), outside(&node));
    let blue = ("other", &*netns(&other), "eth0");
    runtime.done("ADD", blue, &json!({"network": "blue"}));
    ip(&format!("-n {} route add {host}/32 via {NODE}", outside.0));
    let _server = Server::start("pod", &space.netns(), 80);
    let to = SocketAddr::new(host.parse().unwrap(), 80);
    answered("the node", || ask(&node.space.netns(), to));
    for stranger in [&other, &outside] {
        assert!(ask(&stranger.netns(), to).is_err(), "{}", stranger.0);
    }
    runtime.done("DEL", blue, &json!({"network": "blue"}));

    let checked = json!({"network": "red", "prevResult": added.clone()});
    runtime.done("CHECK", eth0, &checked);
    assert_eq!(
        runtime.code("CHECK", ("other", &place, "eth0"), &checked),
        3
    );
    let mut other = checked.clone();
    other["prevResult"]["ips"][0]["address"] = "10.0.1.77/24".into();
    assert_eq!(runtime.code("CHECK", eth0, &other), 103);
    let mut other = checked.clone();
    other["prevResult"]["routes"][0]["gw"] = "172.18.7.7".into();
    assert_eq!(runtime.code("CHECK", eth0, &other), 103);
    let mut other = checked.clone();
    other["prevResult"]["interfaces"] = json!([]);
    assert_eq!(runtime.code("CHECK", eth0, &other), 103);

    // What is a neighbour's stays the neighbour's.
    ip(&format!(
        "-n {} addr add 10.0.1.200/24 dev out",
        node.space.0
    ));
    let routes = || shown(&node.space, "route show proto 87");
    eventually("the route gives way", PATIENCE, || routes().is_empty());
    ip(&format!(
        "-n {} addr del 10.0.1.200/24 dev out",
        node.space.0
    ));
    eventually("the route is back", PATIENCE, || routes().contains(host));

    runtime.done("DEL", eth0, &red);
    assert!(!space.links().contains("eth"), "{}", space.links());
    assert_eq!(runtime.code("CHECK", eth0, &checked), 3);
    runtime.done("DEL", eth0, &red);
    runtime.done("DEL", eth0, &json!({"network": "gone"}));
    drop(space);
    runtime.done("DEL", eth0, &red);
    assert_eq!(runtime.code("ADD", eth0, &red), 4, "no namespace");
    let nowhere = Space::new();
    let elsewhere = ("a", &*netns(&nowhere), "eth0");
    assert_eq!(
        runtime.code("ADD", elsewhere, &json!({"network": "gone"})),
        7
    );
    assert_eq!(
        runtime.code("STATUS", elsewhere, &json!({"network": "gone"})),
        50
    );
    assert_eq!(
        shown(&node.space, "route show proto 87"),
        "",
        "no routes of ours are left"
    );
}

#[test]
fn one_container_has_interfaces_on_several_networks() {
    if !able() {
        return;
    }
    let node = node();
    let runtime = Runtime::of(&node);
    let space = Space::new();
    let place = netns(&space);
    let on = |network: &str| json!({"network": network, "name": network});
    let first = runtime.done("ADD", ("pod", &place, "eth0"), &on("red"));
    // The way out has this name, and gives it up.
    assert!(space.links().contains("eth1"));
    let second = runtime.done("ADD", ("pod", &place, "eth1"), &on("blue"));
    let third = runtime.done("ADD", ("pod", &place, "eth2"), &on("inside"));
    for (name, result) in [("eth0", &first), ("eth1", &second), ("eth2", &third)] {
        let addresses = shown(&space, &format!("-o addr show {name}"));
        assert!(addresses.contains(result["ips"][0]["address"].as_str().unwrap()));
    }
    assert_eq!(
        third["routes"],
        json!([]),
        "an internal network has no way out"
    );
    assert!(shown(&space, "route show default").contains("dev eth3"));
    for (name, network, result) in [("eth0", "red", &first), ("eth1", "blue", &second)] {
        let mut config = on(network);
        config["prevResult"] = result.clone();
        runtime.done("CHECK", ("pod", &place, name), &config);
    }
    let taken = runtime.code("ADD", ("pod", &place, "eth5"), &on("red"));
    assert_eq!(taken, 101, "one interface per network");
    for (name, network) in [("eth1", "blue"), ("eth0", "red"), ("eth2", "inside")] {
        runtime.done("DEL", ("pod", &place, name), &on(network));
    }
    assert_eq!(space.links().lines().count(), 1, "{}", space.links());
}

#[test]
fn what_is_asked_for_is_given_and_names_resolve() {
    if !able() {
        return;
    }
    let node = node();
    let runtime = Runtime::of(&node);
    let space = Space::new();
    let place = netns(&space);
    let asked = json!({
        "network": "red",
        "runtimeConfig": {"ips": ["10.0.1.77/24"], "mac": "02:42:aa:bb:cc:dd", "aliases": ["db"]},
        "dns": {"nameservers": ["203.0.113.53"], "search": ["example.org"]},
        "prevResult": {
            "cniVersion": "1.1.0", "interfaces": [{"name": "lo", "sandbox": &place}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}], "dns": {},
        },
    });
    let added = runtime.done("ADD", ("pod", &place, "net1"), &asked);
    assert_eq!(added["interfaces"][0]["name"], "lo");
    assert_eq!(added["interfaces"][1]["name"], "net1");
    assert_eq!(added["interfaces"][1]["mac"], "02:42:aa:bb:cc:dd");
    assert_eq!(added["ips"][1]["interface"], 1);
    assert_eq!(added["ips"][1]["address"], "10.0.1.77/24");
    assert_eq!(added["dns"], asked["dns"]);
    let found = block_on(node.client().dns_lookup("db", Some("red"), None)).unwrap();
    let found = serde_json::to_string(&found).unwrap();
    assert!(found.contains("10.0.1.77"), "{found}");
    let other = Space::new();
    let again = json!({"network": "red", "runtimeConfig": {"ips": ["10.0.1.77"]}});
    let taken = runtime.code("ADD", ("other", &netns(&other), "eth0"), &again);
    assert_eq!(taken, 101);
    runtime.done("DEL", ("pod", &place, "net1"), &json!({"network": "red"}));
}

#[test]
fn abandoned_attachments_are_collected_and_others_are_not() {
    if !able() {
        return;
    }
    let node = node();
    let runtime = Runtime::of(&node);
    let spaces: Vec<Space> = (0..4).map(|_| Space::new()).collect();
    let place: Vec<String> = spaces.iter().map(netns).collect();
    let red = json!({"network": "red", "name": "red"});
    runtime.done("ADD", ("kept", &place[0], "eth0"), &red);
    runtime.done("ADD", ("abandoned", &place[1], "eth0"), &red);
    // Another configuration on the same network, and somebody without one.
    runtime.done(
        "ADD",
        ("abandoned", &place[2], "eth0"),
        &json!({"network": "red", "name": "other"}),
    );
    let by_hand = weft::agent::api::AttachRequest {
        target: place[3].clone(),
        name: Some("cni-by-hand".into()),
        ..Default::default()
    };
    block_on(node.client().attach("red", &by_hand)).unwrap();
    assert_eq!(endpoints(&node), 4);
    let mut gc = red.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    runtime.done("GC", ("", "", ""), &gc);
    assert_eq!(endpoints(&node), 3);
    assert!(!spaces[1].links().contains("eth0"));
    runtime.done("GC", ("", "", ""), &gc);
    assert_eq!(endpoints(&node), 3);
    gc["cni.dev/valid-attachments"] = Value::Null;
    runtime.done("GC", ("", "", ""), &gc);
    assert_eq!(endpoints(&node), 2);
    gc["network"] = "gone".into();
    runtime.done("GC", ("", "", ""), &gc);
}

#[test]
fn while_no_agent_answers_the_runtime_tries_again() {
    if !able() {
        return;
    }
    let mut node = node();
    let runtime = Runtime::of(&node);
    let (space, gone) = (Space::new(), Space::new());
    let (place, lost) = (netns(&space), netns(&gone));
    let red = json!({"network": "red"});
    runtime.done("ADD", ("pod", &place, "eth0"), &red);
    runtime.done("ADD", ("lost", &lost, "eth0"), &red);
    node.kill();
    for verb in ["DEL", "ADD"] {
        assert_eq!(
            runtime.code(verb, ("pod", &place, "eth0"), &red),
            11,
            "{verb}"
        );
    }
    assert_eq!(runtime.code("STATUS", ("", "", ""), &red), 50);
    // Whose namespace is gone has nothing left to be taken away; the agent sees that when it starts.
    drop(gone);
    runtime.done("DEL", ("lost", &lost, "eth0"), &red);
    runtime.done("DEL", ("lost", "", "eth0"), &red);
    node.boot();
    eventually("the agent forgets what is gone", PATIENCE, || {
        endpoints(&node) == 1
    });
    runtime.done("STATUS", ("", "", ""), &red);
    runtime.done("DEL", ("pod", &place, "eth0"), &red);
    assert_eq!(endpoints(&node), 0);
}

#[test]
fn containers_on_two_nodes_reach_each_other() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let lab = guard.up(|options| options.managers = 1).unwrap();
    let mut addresses = Vec::new();
    for node in ["n1", "n2"] {
        let name = format!("weft-{}-pod-{node}", lab.name());
        space::create(&name).unwrap();
        let runtime = Runtime::new(lab.netns(node).unwrap(), lab.socket(node));
        let place = format!("/run/netns/{name}");
        let pod = (name.as_str(), place.as_str(), "eth0");
        let added = runtime.done("ADD", pod, &json!({"network": "my-network"}));
        let address = added["ips"][0]["address"].as_str().unwrap();
        addresses.push((place, address.split('/').next().unwrap().to_owned()));
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let netns = Netns::open(Path::new(&addresses[from].0)).unwrap();
        eventually("a ping between containers", PATIENCE, || {
            let mut ping = Command::new("ping");
            ping.args(["-c1", "-W1", &addresses[to].1]);
            netns.enter_on_spawn(&mut ping).unwrap();
            ping.output().unwrap().status.success()
        });
    }
    // And the lab's own workloads.
    assert!(pings(&lab, "my-web.1", "my-web.2", 3) > 0);
}

#[test]
fn a_limited_container_is_as_slow_as_that_both_ways() {
    if !able() {
        return;
    }
    let node = node();
    let runtime = Runtime::of(&node);
    let (slow, fast) = (Space::new(), Space::new());
    let places = [netns(&slow), netns(&fast)];
    let limited = json!({"network": "red", "runtimeConfig": {"bandwidth": {
        "ingressRate": 40_000_000, "ingressBurst": 800_000,
        "egressRate": 20_000_000, "egressBurst": 800_000,
    }}});
    let added = runtime.done("ADD", ("slow", &places[0], "eth0"), &limited);
    assert_eq!(
        runtime.done("ADD", ("slow", &places[0], "eth0"), &limited),
        added
    );
    let other = runtime.done(
        "ADD",
        ("fast", &places[1], "eth0"),
        &json!({"network": "red"}),
    );
    let address = |result: &Value| {
        let text = result["ips"][0]["address"].as_str().unwrap();
        text.split('/').next().unwrap().parse().unwrap()
    };
    let (slow, fast) = (slow.netns(), fast.netns());
    let in_time = transfer_time(&fast, &slow, address(&added), 2 << 20);
    let out_time = transfer_time(&slow, &fast, address(&other), 2 << 20);
    // 16.8 Mbit: 0.42 s and 0.84 s, less what a burst carries; without a limit a few milliseconds.
    let within = |time: f64, ideal: f64| time > 0.8 * ideal && time < 10.0 * ideal;
    assert!(within(in_time, 0.40), "{in_time} s");
    assert!(within(out_time, 0.80), "{out_time} s");
    let nothing = json!({"network": "red", "runtimeConfig": {"bandwidth": {"egressRate": 1}}});
    let third = Space::new();
    assert_eq!(
        runtime.code("ADD", ("third", &netns(&third), "eth0"), &nothing),
        7
    );
}

/// Seconds that `len` bytes take from one container to the other over TCP.
fn transfer_time(from: &Netns, to: &Netns, address: IpAddr, len: usize) -> f64 {
    let listener = to.run_in(|| std::net::TcpListener::bind("0.0.0.0:9").unwrap());
    let listener = listener.unwrap();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).unwrap()
    });
    let target = SocketAddr::new(address, 9);
    let begin = std::time::Instant::now();
    let connect = || std::net::TcpStream::connect_timeout(&target, Duration::from_secs(5));
    let mut stream = from.run_in(connect).unwrap().unwrap();
    std::io::Write::write_all(&mut stream, &vec![7; len]).unwrap();
    drop(stream);
    assert_eq!(reader.join().unwrap(), len as u64);
    begin.elapsed().as_secs_f64()
}

#[test]
fn ports_are_mapped_by_the_plugin_behind_it() {
    if !able() {
        return;
    }
    let Some(plugins) = others() else {
        return;
    };
    let node = node();
    let outside = outside(&node);
    let runtime = Runtime::of(&node);
    let space = Space::new();
    let place = netns(&space);
    let chain = Chain {
        runtime: &runtime,
        plugins: vec![
            (
                plugin(&runtime),
                json!({"type": "weft-cni", "network": "red"}),
            ),
            (
                plugins.join("portmap"),
                json!({"type": "portmap", "snat": true}),
            ),
            (plugins.join("bandwidth"), json!({"type": "bandwidth"})),
        ],
        config: json!({"runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8053, "containerPort": 80, "protocol": "udp"},
        ]}}),
    };
    let pod = ("cnitool-77383ca0a0715733ca6f", place.as_str(), "eth0");
    let added = chain.add(pod);
    assert_eq!(added["interfaces"][0]["name"], "eth0");
    chain.check(pod, &added);
    let _server = Server::start("pod", &space.netns(), 80);
    let port = |port: u16| SocketAddr::new(NODE.parse().unwrap(), port);
    let from = outside.netns();
    let (_, seen) = answered("a mapped port", || ask(&from, port(8080)));
    assert_eq!(seen, OUTSIDE, "the client's own address");
    answered("a mapped datagram port", || ask_datagram(&from, port(8053)));
    let own = node.space.netns();
    answered("a mapped port from the node", || ask(&own, port(8080)));

    chain.del(pod, &added);
    assert!(ask(&from, port(8080)).is_err());
    chain.del(pod, &added);
    assert_eq!(endpoints(&node), 0);
}

/// Where the plugins are that every runtime brings along; says so if they are not.
fn others() -> Option<&'static Path> {
    let dirs = ["/usr/lib/cni", "/opt/cni/bin"].map(Path::new);
    let found = dirs.into_iter().find(|dir| dir.join("portmap").exists());
    let found = found.filter(|_| Command::new("iptables").arg("-V").output().is_ok());
    if found.is_none() {
        skip(
            "no CNI plugins beside ours, of containernetworking-plugins, or no `iptables` program",
        );
    }
    found
}

#[test]
fn podman_runs_containers_on_it() {
    if !able() {
        return;
    }
    let Some(plugins) = others() else {
        return;
    };
    for program in ["podman", "busybox"] {
        if Command::new(program).arg("--help").output().is_err() {
            skip(&format!("no `{program}` program"));
            return;
        }
    }
    let node = node();
    let outside = outside(&node);
    let podman = cni_support::Podman::new(&node, plugins);
    let podman = match podman {
        Ok(podman) => podman,
        Err(why) => {
            skip(&format!("podman does not run here: {why}"));
            return;
        }
    };
    let serve = "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp";
    podman.done(&[
        "run",
        "-d",
        "--name",
        "db",
        "--network",
        "web",
        "-p",
        "8080:80",
        "bb",
        "sh",
        "-c",
        serve,
    ]);
    // By its name, from another container.
    let by_name = [
        "run",
        "--rm",
        "--network",
        "web",
        "bb",
        "wget",
        "-q",
        "-O-",
        "http://db/index.html",
    ];
    let mut said = String::new();
    eventually("an answer by name", Duration::from_secs(20), || {
        said = podman.run(&by_name).unwrap_or_else(|error| error);
        said.contains("served")
    });
    let mapped = SocketAddr::new(NODE.parse().unwrap(), 8080);
    let from = outside.netns();
    let connected = from
        .run_in(|| std::net::TcpStream::connect_timeout(&mapped, Duration::from_secs(5)))
        .unwrap();
    connected.expect("the mapped port answers");
    let inspected = podman.done(&[
        "inspect",
        "db",
        "--format",
        "{{(index .NetworkSettings.Networks \"web\").IPAddress}}",
    ]);
    let all = block_on(node.client().endpoints()).unwrap().endpoints;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(inspected.trim(), all[0].ips[0].ip().to_string());
    podman.done(&["rm", "-f", "-t", "0", "db"]);
    assert_eq!(endpoints(&node), 0);
}
