//! Names as workloads see them: a real agent, real namespaces, real `dig`.
//!
//! ```text
//!   node (agent, 192.0.2.1) ══ veth ══ underlay peer (192.0.2.2)
//!     └ network red 10.7.1.0/24, fd07:1::/64 ── workloads
//! ```
//! Needs root, `ip` and `dig`; without them each test says so and ends. Figures are printed; the bars are asserted.

mod lab_support;
mod node_support;
#[path = "common/skip.rs"]
mod skip;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use lab_support::{Guard, note};
use nix::sys::signal::Signal;
use node_support::{Node, Space, ip, until};
use skip::skip;
use weft::agent::api::{
    AttachRequest, CreateNetwork, EndpointView, IpamConfigRequest, OPTION_VXLANID_LIST,
    RecordRequest,
};
use weft::frontend::client::{Client, block_on};
use weft::lab::space;
use weft::services::dns::message::question;
use weft::wire::frame::FrameBuilder;
use weft::wire::{Mac, Vni, vxlan};

const GATEWAY: &str = "10.7.1.1";
const VNI: u32 = 7001;

fn able() -> bool {
    let dig = Command::new("dig").arg("-v").output().is_ok();
    if !dig {
        skip("no `dig` program");
    }
    dig && node_support::able()
}

/// A node with an underlay device, its agent running.
fn node(extra: &[&'static str]) -> Node {
    let mut node = Node::new("192.0.2.1", extra);
    let space = node.space.0.clone();
    ip(&format!(
        "-n {space} link add und0 type veth peer name und1"
    ));
    ip(&format!("-n {space} addr add 192.0.2.1/24 dev und0"));
    for device in ["und0", "und1"] {
        ip(&format!("-n {space} link set {device} up"));
    }
    node.boot();
    node
}

fn network(node: &Node, name: &str, third: u8, internal: bool) {
    let mut wish = CreateNetwork {
        name: name.into(),
        internal,
        enable_ipv6: true,
        ..CreateNetwork::default()
    };
    for subnet in [format!("10.7.{third}.0/24"), format!("fd07:{third}::/64")] {
        wish.ipam.config.push(IpamConfigRequest {
            subnet,
            ..IpamConfigRequest::default()
        });
    }
    let vni = (7000 + u32::from(third)).to_string();
    wish.options.insert(OPTION_VXLANID_LIST.into(), vni);
    block_on(node.client().create_network(&wish)).unwrap();
}

fn attach(node: &Node, network: &str, workload: &Space, name: &str) -> EndpointView {
    let wish = AttachRequest {
        target: workload.0.clone(),
        name: Some(name.into()),
        aliases: vec![format!("{name}-alias")],
        service: Some("local".into()),
        ..AttachRequest::default()
    };
    block_on(node.client().attach(network, &wish)).unwrap()
}

/// Endpoints of another node, from 10.7.1.100 upwards or, for many, from 10.8.0.0.
fn remote(index: u32, ip: IpAddr, service: &str) -> RecordRequest {
    let [a, b, c, d] = index.to_be_bytes();
    RecordRequest {
        mac: Mac([2, 0x77, a, b, c, d]),
        ips: vec![ip],
        vtep: "192.0.2.2".parse().unwrap(),
        endpoint: None,
        node: "n2".into(),
        name: format!("far-{index}"),
        aliases: Vec::new(),
        service: service.into(),
        version: None,
    }
}

/// What `dig` prints in a workload's namespace.
fn dig(space: &Space, words: &str) -> String {
    let mut command = Command::new("dig");
    command.args(words.split_whitespace());
    space.netns().enter_on_spawn(&mut command).unwrap();
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The values of the answer, in order.
fn short(space: &Space, words: &str) -> Vec<String> {
    let text = dig(space, &format!("+short {words}"));
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn dns_counter(node: &Node, of: &str, name: &str) -> u64 {
    let dns = block_on(node.client().status()).unwrap().dns.unwrap();
    let map = match of {
        "queries" => dns.queries,
        "drops" => dns.drops,
        _ => dns.upstreams,
    };
    map[name]
}

fn udp(space: &Space, to: &str) -> UdpSocket {
    let socket = space
        .netns()
        .run_in(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let socket = socket.unwrap();
    socket.connect((to, 53)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

/// What comes next. A signal may interrupt a wait that has a limit.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> usize {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}

#[test]
fn names_are_answered_in_every_form_and_to_nobody_outside() {
    if !able() {
        return;
    }
    let node = node(&[]);
    network(&node, "red", 1, false);
    let (web, db) = (Space::new(), Space::new());
    let view = attach(&node, "red", &web, "web");
    // Names are there when the attachment is answered.
    let at = format!("@{GATEWAY}");
    let (v4, v6) = (view.ips[0].ip().to_string(), view.ips[1].ip().to_string());
    let id = &view.id[..12];
    for name in [
        "web",
        "WEB",
        "web-alias",
        id,
        "web.red",
        "web.weft.internal",
        "web.red.weft.internal",
    ] {
        assert_eq!(
            short(&web, &format!("{at} {name} A")),
            [v4.as_str()],
            "{name}"
        );
        assert_eq!(
            short(&web, &format!("{at} {name} AAAA")),
            [v6.as_str()],
            "{name}"
        );
    }
    attach(&node, "red", &db, "db");
    // Both gateways answer, by both ways.
    for server in [GATEWAY, "fd07:1::1"] {
        for way in ["+notcp", "+tcp"] {
            let both = short(&db, &format!("@{server} {way} tasks.local A"));
            assert_eq!(both.len(), 2, "{server} {way}");
        }
    }
    assert_eq!(
        view.nameservers
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        [GATEWAY, "fd07:1::1"]
    );
    assert_eq!(
        short(&db, &format!("{at} -x {v4}")),
        ["web.red.weft.internal."]
    );
    assert_eq!(
        short(&db, &format!("{at} -x {v6}")),
        ["web.red.weft.internal."]
    );
    // An alias is no CNAME; a type that is not there is no error; an unknown name is one.
    let text = dig(&db, &format!("{at} web-alias A"));
    assert!(
        text.contains("status: NOERROR") && !text.contains("CNAME"),
        "{text}"
    );
    let text = dig(&db, &format!("{at} web MX"));
    assert!(
        text.contains("status: NOERROR") && text.contains("ANSWER: 0"),
        "{text}"
    );
    for name in ["nobody", "nobody.red.weft.internal"] {
        let text = dig(&db, &format!("{at} {name}"));
        assert!(text.contains("status: NXDOMAIN"), "{text}");
    }
    // An endpoint elsewhere.
    let far = remote(1, "10.7.1.100".parse().unwrap(), "");
    block_on(node.client().put_records("red", &[far])).unwrap();
    until("the record's name", || {
        short(&db, &format!("{at} far-1")) == ["10.7.1.100"]
    });

    // From the node's own namespace and from the test's there is no way to any of it.
    let host = Space::new();
    for place in [&node.space, &host] {
        for server in [GATEWAY, "192.0.2.1"] {
            let text = dig(place, &format!("+tries=1 +timeout=1 @{server} web"));
            assert!(!text.contains("status:"), "{text}");
        }
    }
    block_on(node.client().detach("red", "db")).unwrap();
    until("the name is gone", || {
        short(&web, &format!("{at} db")).is_empty()
    });
}

#[test]
fn forged_frames_from_the_underlay_get_no_answer() {
    if !able() {
        return;
    }
    let mut node = Node::new("192.0.2.1", &[]);
    let outside = Space::new();
    let (left, right) = (node.space.0.clone(), outside.0.clone());
    ip(&format!(
        "link add und0 netns {left} type veth peer name und0 netns {right}"
    ));
    for (space, address) in [(&left, "192.0.2.1"), (&right, "192.0.2.2")] {
        ip(&format!("-n {space} addr add {address}/24 dev und0"));
        ip(&format!("-n {space} link set und0 up"));
    }
    node.boot();
    network(&node, "red", 1, false);
    let web = Space::new();
    attach(&node, "red", &web, "web");
    let (attacker, victim) = ([10, 7, 1, 100].into(), "10.7.1.100".parse().unwrap());
    block_on(node.client().put_records("red", &[remote(1, victim, "")])).unwrap();
    let socket = outside
        .netns()
        .run_in(|| UdpSocket::bind("192.0.2.2:4789").unwrap());
    let socket = socket.unwrap();
    socket.set_nonblocking(true).unwrap();
    let (gateway, gateway_mac) = ([10, 7, 1, 1].into(), Mac::from_ipv4([10, 7, 1, 1].into()));
    let mac = remote(1, victim, "").mac;
    let frame = FrameBuilder::new(mac, gateway_mac)
        .ipv4(attacker, gateway)
        .udp(4000, 53)
        .payload(&question("web", RecordType::A).unwrap())
        .build();
    let datagram = [&vxlan::encode(Vni::new(VNI).unwrap())[..], &frame].concat();
    until("a forged query arrives", || {
        socket.send_to(&datagram, "192.0.2.1:4789").unwrap();
        dns_counter(&node, "drops", "stranger") > 0
    });
    // The server reads in order: what came after it was answered, so it was not.
    assert_eq!(short(&web, &format!("@{GATEWAY} web")).len(), 1);
    let mut buffer = [0; 2048];
    while let Ok(len) = socket.recv(&mut buffer) {
        let ports = [4000u16.to_be_bytes(), 53u16.to_be_bytes()];
        let reply = [ports[1], ports[0]].concat();
        let found = buffer[..len].windows(4).any(|bytes| bytes == reply);
        assert!(!found, "an answer left the node");
    }
}

#[test]
fn long_answers_are_cut_and_come_whole_by_tcp() {
    if !able() {
        return;
    }
    let node = node(&[]);
    network(&node, "red", 1, false);
    let web = Space::new();
    attach(&node, "red", &web, "web");
    let records: Vec<RecordRequest> = (100..200u8)
        .map(|last| remote(last.into(), [10, 7, 1, last].into(), "shop"))
        .collect();
    block_on(node.client().put_records("red", &records)).unwrap();
    let at = format!("@{GATEWAY}");
    until("all backends", || {
        short(&web, &format!("{at} tasks.shop")).len() == 100
    });
    let text = dig(&web, &format!("{at} +noedns +ignore shop"));
    assert!(text.contains("flags: qr aa tc rd"), "{text}");
    let size = |text: &str| -> usize {
        let rest = text.split("MSG SIZE  rcvd: ").nth(1).unwrap();
        rest.trim().parse().unwrap()
    };
    assert!((497..=512).contains(&size(&text)), "{text}");
    let text = dig(&web, &format!("{at} +bufsize=1000 +ignore shop"));
    assert!(
        text.contains(" tc ") && size(&text) <= 1000 && text.contains("udp: 1232"),
        "{text}"
    );
    let text = dig(&web, &format!("{at} +bufsize=4096 +ignore shop"));
    assert!(text.contains(" tc ") && size(&text) <= 1232, "{text}");
    // Without being told otherwise, dig asks again by TCP.
    let text = dig(&web, &format!("{at} +noedns shop"));
    assert!(
        text.contains("ANSWER: 100") && text.contains("(TCP)"),
        "{text}"
    );
}

/// An upstream resolver on the node's loopback: it answers `*.example.org` and stays silent about `stuck.…`.
struct Upstream {
    asked: mpsc::Receiver<String>,
}

fn upstream(node: &Space, port: u16) -> Upstream {
    let socket = node
        .netns()
        .run_in(|| UdpSocket::bind(("127.0.0.1", port)).unwrap());
    let socket = socket.unwrap();
    let (tell, asked) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let mut reply = Message::from_vec(&buffer[..len]).unwrap();
            let name = reply.queries[0].name().clone();
            if tell.send(name.to_ascii()).is_err() {
                return;
            }
            if name.to_ascii().starts_with("stuck") {
                continue;
            }
            reply.metadata.message_type = MessageType::Response;
            if name.to_ascii().ends_with("example.org.") {
                let data = RData::A(A::new(203, 0, 113, 7));
                reply.add_answer(Record::from_rdata(name, 60, data));
            } else {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
        }
    });
    Upstream { asked }
}

#[test]
fn other_names_are_forwarded_and_a_stuck_upstream_holds_nobody_up() {
    if !able() {
        return;
    }
    let node = node(&["--dns-upstreams", "127.0.0.1:5300"]);
    let upstream = upstream(&node.space, 5300);
    network(&node, "red", 1, false);
    network(&node, "closed", 2, true);
    let (web, hidden) = (Space::new(), Space::new());
    attach(&node, "red", &web, "web");
    attach(&node, "closed", &hidden, "hidden");
    let at = format!("@{GATEWAY}");
    assert_eq!(short(&web, &format!("{at} a.example.org")), ["203.0.113.7"]);
    assert_eq!(
        short(&web, &format!("{at} A.Example.org")),
        ["203.0.113.7"],
        "from the cache"
    );
    assert!(dig(&web, &format!("{at} else.example.net")).contains("status: NXDOMAIN"));
    let asked: Vec<String> = upstream.asked.try_iter().collect();
    assert_eq!(asked, ["a.example.org.", "else.example.net."]);
    // What is ours to know is not asked for, and an internal network asks nobody.
    for name in ["nobody", "nobody.weft.internal", "-x 10.7.1.77"] {
        assert!(
            dig(&web, &format!("{at} {name}")).contains("status: NXDOMAIN"),
            "{name}"
        );
    }
    assert!(dig(&hidden, "@10.7.2.1 b.example.org").contains("status: REFUSED"));
    assert_eq!(short(&hidden, "@10.7.2.1 hidden").len(), 1);
    assert_eq!(upstream.asked.try_iter().count(), 0);
    // Two hundred questions wait for an upstream that does not answer them.
    let slow = udp(&web, GATEWAY);
    for i in 0..200 {
        let query = question(&format!("stuck{i}.example.org"), RecordType::A).unwrap();
        slow.send(&query).unwrap();
    }
    upstream.asked.recv_timeout(Duration::from_secs(5)).unwrap();
    // Known names and other questions are answered meanwhile: they wait for nothing.
    let begun = Instant::now();
    assert_eq!(short(&web, &format!("{at} web")).len(), 1);
    assert_eq!(short(&web, &format!("{at} c.example.org")), ["203.0.113.7"]);
    assert!(
        begun.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        begun.elapsed()
    );
    // And those that wait are told in the end.
    let mut buffer = [0; 512];
    let len = receive(&slow, &mut buffer);
    let reply = Message::from_vec(&buffer[..len]).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(dns_counter(&node, "upstreams", "timed_out") > 0);

    let lookup = block_on(node.client().dns_lookup("d.example.org", Some("red"), None)).unwrap();
    assert_eq!(lookup.answers[0].records[0].value, "203.0.113.7");
    let lookup = block_on(node.client().dns_lookup("web", None, None)).unwrap();
    assert_eq!(
        (lookup.answers.len(), lookup.answers[0].network.as_str()),
        (1, "red")
    );
}

#[test]
fn slow_tcp_clients_hold_nobody_up() {
    if !able() {
        return;
    }
    let node = node(&[]);
    network(&node, "red", 1, false);
    let (web, db) = (Space::new(), Space::new());
    attach(&node, "red", &web, "web");
    attach(&node, "red", &db, "db");
    let at = format!("@{GATEWAY}");
    let connect = || {
        let stream = web
            .netns()
            .run_in(|| TcpStream::connect((GATEWAY, 53)).unwrap());
        let mut stream = stream.unwrap();
        // Half of a length: the server waits for the rest.
        stream.write_all(&[0]).unwrap();
        stream
    };
    let mut slow: Vec<TcpStream> = (0..64).map(|_| connect()).collect();
    let begun = Instant::now();
    assert_eq!(short(&db, &format!("{at} +tcp web")).len(), 1);
    assert_eq!(short(&web, &format!("{at} web")).len(), 1);
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    until("the same client has only so many", || {
        dns_counter(&node, "drops", "connection_limit") >= 32
    });
    // And none for ever.
    let first = slow.first_mut().unwrap();
    first
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    assert_eq!(first.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn named_namespaces_are_told_whom_to_ask() {
    if !able() {
        return;
    }
    let mut node = node(&[]);
    network(&node, "red", 1, false);
    network(&node, "blue", 2, false);
    let (web, db) = (Space::new(), Space::new());
    let file = |space: &Space| {
        PathBuf::from("/etc/netns")
            .join(&space.0)
            .join("resolv.conf")
    };
    let text = |space: &Space| std::fs::read_to_string(file(space)).unwrap_or_default();
    attach(&node, "red", &web, "web");
    attach(&node, "red", &db, "db");
    attach(&node, "blue", &db, "blue-db");
    let lines = |space: &Space| -> Vec<String> {
        let servers = text(space);
        servers.lines().skip(1).map(str::to_owned).collect()
    };
    assert_eq!(
        lines(&web),
        [
            "nameserver 10.7.1.1",
            "search weft.internal",
            "options ndots:0"
        ]
    );
    assert_eq!(
        lines(&db)[..2],
        ["nameserver 10.7.1.1", "nameserver 10.7.2.1"]
    );
    let resolves = |from: &Space, name: &str| {
        let words = ["netns", "exec", &from.0, "getent", "ahostsv4", name];
        Command::new("ip")
            .args(words)
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(resolves(&web, "db") && resolves(&web, "db.red") && !resolves(&web, "blue-db"));
    // Names of the second network, from the first one's server.
    assert!(resolves(&db, "web") && resolves(&db, "blue-db"));

    // An agent that is killed leaves names to the next one.
    node.kill();
    assert!(!resolves(&web, "db"));
    node.boot();
    until("names are back", || resolves(&web, "db"));

    block_on(node.client().detach("red", "db")).unwrap();
    assert_eq!(lines(&db)[0], "nameserver 10.7.2.1");
    block_on(node.client().detach("blue", "blue-db")).unwrap();
    assert!(!file(&db).parent().unwrap().exists());

    // Somebody else's file stays as it is, with and without us.
    std::fs::create_dir_all(file(&db).parent().unwrap()).unwrap();
    std::fs::write(file(&db), "nameserver 192.0.2.53\n").unwrap();
    attach(&node, "red", &db, "db");
    block_on(node.client().detach("red", "db")).unwrap();
    assert_eq!(text(&db), "nameserver 192.0.2.53\n");
    std::fs::remove_dir_all(file(&db).parent().unwrap()).unwrap();

    // What a killed agent left goes with the reset that takes its networks.
    node.kill();
    let reset = node
        .program(&["--socket", "/nonexistent.sock", "reset", "--yes"])
        .output();
    assert!(reset.unwrap().status.success());
    assert!(!file(&web).exists());
}

#[test]
fn a_taken_port_is_told_and_names_come_when_it_is_free() {
    if !able() {
        return;
    }
    let mut node = node(&[]);
    network(&node, "red", 1, false);
    let web = Space::new();
    attach(&node, "red", &web, "web");
    let at = format!("@{GATEWAY}");
    assert_eq!(short(&web, &format!("{at} web")).len(), 1);
    node.kill();
    let dir = node.run_dir().join("netns");
    let path = std::fs::read_dir(dir)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let netns = weft::sys::netns::Netns::open(Path::new(&path)).unwrap();
    let thief = netns
        .run_in(|| UdpSocket::bind((GATEWAY, 53)).unwrap())
        .unwrap();
    drop(netns);
    node.boot();
    let codes = |node: &Node| -> Vec<String> {
        let status = block_on(node.client().status()).unwrap();
        status.health.into_iter().map(|item| item.code).collect()
    };
    assert_eq!(codes(&node), ["dns_not_served"]);
    drop(thief);
    until("names are served", || codes(&node).is_empty());
    assert_eq!(short(&web, &format!("{at} web")).len(), 1);
}

/// How long each of so many queries took, one every millisecond.
fn latencies(socket: &UdpSocket, count: u32, name: impl Fn(u32) -> String) -> Vec<Duration> {
    let mut buffer = [0; 2048];
    let begun = Instant::now();
    let mut times = Vec::new();
    for i in 0..count {
        let due = Duration::from_millis(i.into());
        thread::sleep(due.saturating_sub(begun.elapsed()));
        let mut query = question(&name(i), RecordType::A).unwrap();
        query[..2].copy_from_slice(&(i as u16).to_be_bytes());
        let sent = Instant::now();
        socket.send(&query).unwrap();
        let len = receive(socket, &mut buffer);
        times.push(sent.elapsed());
        let reply = Message::from_vec(&buffer[..len]).unwrap();
        assert_eq!((reply.metadata.id, reply.answers.len()), (i as u16, 1));
    }
    times.sort();
    times
}

#[test]
fn ten_thousand_names_are_answered_within_a_millisecond() {
    if !able() {
        return;
    }
    let node = node(&[]);
    let mut wish = CreateNetwork {
        name: "red".into(),
        ..CreateNetwork::default()
    };
    wish.ipam.config.push(IpamConfigRequest {
        subnet: "10.8.0.0/16".into(),
        ..IpamConfigRequest::default()
    });
    block_on(node.client().create_network(&wish)).unwrap();
    let web = Space::new();
    attach(&node, "red", &web, "web");
    let ip_of = |i: u32| IpAddr::from([10, 8, (1 + i / 250) as u8, (1 + i % 250) as u8]);
    let records: Vec<RecordRequest> = (0..10_000).map(|i| remote(i, ip_of(i), "")).collect();
    // Each record is compared with all others, which takes a busy machine a while.
    let patient = node.client().with_timeout(Duration::from_secs(120));
    block_on(patient.put_records("red", &records)).unwrap();
    let begun = Instant::now();
    until("the last name", || {
        short(&web, "@10.8.0.1 far-9999").len() == 1
    });
    let known_after = begun.elapsed();
    let socket = udp(&web, "10.8.0.1");
    let times = latencies(&socket, 3_000, |i| {
        format!("far-{}.red.weft.internal", i * 3)
    });
    let at = |percent: usize| times[times.len() * percent / 100];
    let line = format!(
        "10,000 names, 1,000 queries/s: median {:?}, p99 {:?}, max {:?}; the last name known after {known_after:?}",
        at(50),
        at(99),
        times.last().unwrap()
    );
    note(&line);
    // A loaded machine doubles the tail, and more; the middle it leaves.
    assert!(
        at(50) < Duration::from_millis(1) && at(99) < Duration::from_millis(20),
        "{line}"
    );
    let list = block_on(node.client().dns(Some("red"))).unwrap();
    assert!(
        list.names.len() > 20_000,
        "names, ids and addresses: {}",
        list.names.len()
    );
}

#[test]
fn names_cross_nodes_and_go_with_them() {
    if !able() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard
        .up(|options| {
            options.nodes = 3;
            options.managers = 1;
        })
        .unwrap();
    let client = |lab: &weft::lab::Lab, node: &str| Client::new(lab.socket(node));
    let mut wish = CreateNetwork {
        name: "red".into(),
        ..CreateNetwork::default()
    };
    wish.ipam.config.push(IpamConfigRequest {
        subnet: "10.7.1.0/24".into(),
        ..IpamConfigRequest::default()
    });
    block_on(client(&lab, "n1").create_network(&wish)).unwrap();
    let attach = |lab: &weft::lab::Lab, node: &str, name: &str| {
        let netns = format!("weft-{}-{name}", lab.name());
        space::create(&netns).unwrap();
        let wish = AttachRequest {
            target: netns.clone(),
            name: Some(name.into()),
            ..AttachRequest::default()
        };
        // The network is known on every node within moments.
        until("the network is known", || {
            let attached = block_on(client(lab, node).attach("red", &wish));
            attached.is_ok()
        });
        netns
    };
    let asker = attach(&lab, "n3", "asker");
    let socket = space::open(&asker)
        .unwrap()
        .run_in(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let socket = socket.unwrap();
    socket.connect((GATEWAY, 53)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut id = 0u16;
    let mut answers = |name: &str| -> usize {
        id += 1;
        let mut query = question(name, RecordType::A).unwrap();
        query[..2].copy_from_slice(&id.to_be_bytes());
        socket.send(&query).unwrap();
        let mut buffer = [0; 2048];
        loop {
            let len = receive(&socket, &mut buffer);
            let reply = Message::from_vec(&buffer[..len]).unwrap();
            if reply.metadata.id == id {
                return reply.answers.len();
            }
        }
    };
    let mut wait = |what: &str, name: &str, count: usize| {
        let begun = Instant::now();
        while answers(name) != count {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
            thread::sleep(Duration::from_millis(2));
        }
        begun.elapsed()
    };
    wait("its own name", "asker", 1);
    attach(&lab, "n2", "web");
    let came = wait("a name of another node", "web", 1);
    // Its node fails: the name goes with what the tunnel knows of it, and comes back with the node.
    lab.kill_agent("n2", Signal::SIGKILL).unwrap();
    let went = wait("the name of a dead node", "web", 0);
    lab.start_agent("n2").unwrap();
    let back = wait("the name of a node that is back", "web", 1);
    note(&format!(
        "3 nodes: a name is known elsewhere {came:?} after the attachment, gone {went:?} after its node, back {back:?} \
         after its agent answers"
    ));
    assert!(came < Duration::from_secs(1), "{came:?}");
    assert!(went < Duration::from_secs(10), "{went:?}");
    assert!(back < Duration::from_secs(5), "{back:?}");
}
