//! Texts of rules: what they say, and that nft takes them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::super::counts::Path;
use super::*;
use crate::model::service::PublishMode;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn target(text: &str) -> Target {
    Target {
        ip: ip(text),
        share: 1,
    }
}

fn vip(vip: &str, targets: &[&str]) -> VirtualAddress {
    VirtualAddress {
        vip: ip(vip),
        balance: Balance::RoundRobin,
        targets: targets.iter().map(|text| target(text)).collect(),
        counted: Counted::new(SERVICE, Path::Vip),
    }
}

const SERVICE: &str = "0123456789abcdefghijklmno";

fn port(bind: Option<&str>, published: u16, protocol: Protocol) -> PublishedPort {
    PublishedPort {
        bind: bind.map(ip),
        published,
        target: 80,
        protocol,
        mode: PublishMode::Ingress,
        proxy_protocol: false,
    }
}

/// Fails if nft does not take the text as our table.
fn check(body: &str) {
    let script = format!("table inet weft {{\n{body}}}\n");
    let mut command = match nix::unistd::geteuid().is_root() {
        true => {
            let mut command = Command::new("unshare");
            command.args(["-n", "nft", "-c", "-f", "-"]);
            command
        }
        false => return eprintln!("SKIP: needs root"),
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{script}");
}

fn leg() -> BackendLeg {
    let node = |last| Ipv4Addr::new(10, 0, 0, last);
    let nodes = [2, 3].map(|last| (Mac::ingress_leg(node(last)), return_mark(node(last))));
    BackendLeg {
        ifname: "eth2".into(),
        addresses: vec![ip("10.0.0.5"), ip("fd00::5")],
        nodes: nodes.into(),
        reply_from: vec![ip("172.18.0.7"), ip("fd18::7")],
    }
}

#[test]
fn a_workload_without_services_has_no_rules() {
    assert_eq!(workload(&[], None, 0), "");
}

#[test]
fn a_client_is_led_to_backends_and_refused_where_there_is_none() {
    let vips = [
        vip("10.0.1.2", &["10.0.1.3", "10.0.1.4"]),
        vip("fd00::2", &["fd00::3"]),
        vip("10.0.1.9", &[]),
        vip("fd00::9", &[]),
    ];
    let text = workload(&vips, None, 0);
    check(&text);
    assert!(text.contains("dnat ip to numgen inc mod 2 map { 0 : 10.0.1.3, 1 : 10.0.1.4 }"));
    assert!(
        text.contains("ip daddr vmap { 10.0.1.2 : goto vip0 }"),
        "{text}"
    );
    assert!(text.contains("ip daddr { 10.0.1.9 } meta l4proto tcp reject with tcp reset"));
    assert!(text.contains("ip6 daddr { fd00::9 } reject"));
}

#[test]
fn hashing_by_client_is_taken() {
    let mut by_client = vip("10.0.1.2", &["10.0.1.3", "10.0.1.4"]);
    by_client.balance = Balance::SourceHash;
    let mut by_client_v6 = vip("fd00::2", &["fd00::3", "fd00::4"]);
    by_client_v6.balance = Balance::SourceHash;
    check(&workload(&[by_client, by_client_v6], None, 0));
}

#[test]
fn a_backend_marks_flows_by_the_leg_they_came_through() {
    let text = workload(&[], Some(&leg()), 0);
    check(&text);
    let marks = "02:77:0a:00:00:02 : 0x1000002, 02:77:0a:00:00:03 : 0x1000003";
    assert!(
        text.contains(&format!("ct mark set ether saddr map {{ {marks} }}")),
        "{text}"
    );
    let udp = "meta l4proto udp ip daddr 10.0.0.5 dnat ip to 172.18.0.7";
    assert!(text.contains(udp), "{text}");
}

#[test]
fn a_backend_that_knows_no_leg_is_closed() {
    let alone = BackendLeg {
        nodes: BTreeMap::new(),
        ..leg()
    };
    let text = workload(&[], Some(&alone), 0);
    check(&text);
    assert!(text.contains("iifname \"eth2\" drop"), "{text}");
}

#[test]
fn datagrams_of_the_node_come_to_the_address_they_are_answered_from() {
    let text = node_way(&NodeWay {
        ifname: "eth1".into(),
        addresses: vec![ip("10.0.1.2"), ip("fd00::2")],
        reply_from: vec![ip("172.18.0.2"), ip("fd18::2")],
    });
    check(&text);
    for rule in [
        "iifname \"eth1\" meta l4proto udp ip daddr 10.0.1.2 dnat ip to 172.18.0.2",
        "iifname \"eth1\" meta l4proto udp ip6 daddr fd00::2 dnat ip6 to fd18::2",
    ] {
        assert!(text.contains(rule), "{text}");
    }
}

fn gateway() -> Gateway {
    Gateway {
        bridge: "docker_gwbridge".into(),
        subnets: vec![
            "172.18.0.1/16".parse().unwrap(),
            "fd18::1/64".parse().unwrap(),
        ],
        mark: 0x0200_0000,
    }
}

#[test]
fn a_node_masks_what_leaves_and_lets_nobody_in_unasked() {
    let text = node(&gateway(), &[]);
    check(&text);
    let out = "ip saddr 172.18.0.0/16 oifname != \"docker_gwbridge\" masquerade";
    assert!(text.contains(out), "{text}");
    assert!(text.contains("oifname \"docker_gwbridge\" drop"), "{text}");
}

#[test]
fn published_ports_are_led_on_by_family_and_bind() {
    let to = (vec![ip("172.18.0.2"), ip("fd18::2")], 8080);
    let node_port = |bind, protocol| NodePort {
        from: None,
        port: port(bind, 8080, protocol),
        to: to.clone(),
        counted: None,
    };
    let anywhere = node(&gateway(), &[node_port(None, Protocol::Tcp)]);
    check(&anywhere);
    assert!(anywhere.contains("ip daddr != 127.0.0.0/8 tcp dport 8080 dnat ip to 172.18.0.2:8080"));
    assert!(anywhere.contains("ip6 daddr != ::1 tcp dport 8080 dnat ip6 to [fd18::2]:8080"));

    let one = node(&gateway(), &[node_port(Some("192.0.2.1"), Protocol::Udp)]);
    check(&one);
    assert!(
        one.contains("ip daddr 192.0.2.1 udp dport 8080 dnat ip to"),
        "{one}"
    );
    assert!(!one.contains("dnat ip6"), "{one}");

    let v6 = node(&gateway(), &[node_port(Some("2001:db8::1"), Protocol::Tcp)]);
    check(&v6);
    assert!(
        v6.contains("ip6 daddr 2001:db8::1") && !v6.contains("dnat ip to"),
        "{v6}"
    );

    for loopback in ["127.0.0.1", "::1"] {
        let own = node(&gateway(), &[node_port(Some(loopback), Protocol::Tcp)]);
        assert!(!own.contains("dport"), "nobody else reaches it: {own}");
    }
    let inside = NodePort {
        from: Some("docker_gwbridge".into()),
        ..node_port(None, Protocol::Tcp)
    };
    let inside = node(&gateway(), &[inside]);
    check(&inside);
    let from = "  iifname \"docker_gwbridge\" fib daddr type local ip daddr != 127.0.0.0/8 tcp dport 8080 dnat";
    assert!(inside.contains(from), "{inside}");
    let v4_only = node(&gateway(), &[node_port(Some("0.0.0.0"), Protocol::Tcp)]);
    assert!(
        v4_only.contains("dnat ip to") && !v4_only.contains("dnat ip6"),
        "{v4_only}"
    );
}

#[test]
fn the_mesh_leads_each_family_to_its_backends() {
    let mesh = MeshPort {
        protocol: Protocol::Tcp,
        handed: 8080,
        balance: Balance::RoundRobin,
        targets: ["10.0.0.5", "fd00::5", "10.0.0.6", "fd00::6"]
            .map(target)
            .to_vec(),
        target: 80,
        proxied: false,
        counted: None,
    };
    let proxied = MeshPort {
        handed: 9090,
        proxied: true,
        ..mesh.clone()
    };
    let hashed = MeshPort {
        handed: 53,
        protocol: Protocol::Udp,
        balance: Balance::SourceHash,
        ..mesh.clone()
    };
    let text = ingress("eth1", "eth0", &[mesh, proxied, hashed], 1);
    check(&text);
    let v4 = "numgen inc mod 2 map { 0 : 10.0.0.6 . 80, 1 : 10.0.0.5 . 80 }";
    assert!(
        text.contains(&format!("tcp dport 8080 dnat ip to {v4}")),
        "{text}"
    );
    assert!(text.contains("tcp dport { 9090 } accept"), "{text}");
    assert!(!text.contains("dport 9090 dnat"), "{text}");
    check(&ingress("eth1", "eth0", &[], 0));
}

#[test]
fn ports_bound_to_addresses_are_handed_over_apart() {
    let ports = [
        port(Some("192.0.2.1"), 8080, Protocol::Tcp),
        port(None, 9090, Protocol::Tcp),
        port(Some("192.0.2.2"), 8080, Protocol::Tcp),
        port(Some("0.0.0.0"), 9091, Protocol::Tcp),
    ];
    let handed = handed_over(&ports);
    assert_eq!((handed[1], handed[3]), (9090, 9091));
    assert_ne!(handed[0], handed[2]);
    let mut other_way: Vec<PublishedPort> = ports.to_vec();
    other_way.reverse();
    let mut back = handed_over(&other_way);
    back.reverse();
    assert_eq!(back, handed, "whatever the order");
    let alone = handed_over(&ports[..1]);
    assert_eq!(alone[0], handed[0], "and whatever else there is");
}

#[test]
fn return_marks_are_told_from_others() {
    let mark = return_mark(Ipv4Addr::new(10, 255, 1, 2));
    assert_eq!(mark, 0x01ff_0102);
    assert_eq!(mark & RETURN_MARK.1, RETURN_MARK.0);
}

const CONNECTIONS: &str = "connections_0123456789abcdefghijklmno";
const TO_BACKEND: &str = "to-backend_0123456789abcdefghijklmno";
const TO_CLIENT: &str = "to-client_0123456789abcdefghijklmno";

#[test]
fn a_client_counts_what_it_asks_of_services_and_what_it_is_answered() {
    let vips = [
        vip("10.0.1.2", &["10.0.1.3", "10.0.1.4"]),
        vip("fd00::2", &["fd00::3"]),
        vip("10.0.1.9", &[]),
    ];
    let text = workload(&vips, None, 0);
    check(&text);
    for rule in [
        &format!("counter vip_{CONNECTIONS} {{ }}\n"),
        &format!("counter name \"vip_{CONNECTIONS}\" dnat ip6 to"),
        &format!(
            "ct direction original counter name ct original ip daddr map {{ 10.0.1.2 : \"vip_{TO_BACKEND}\", 10.0.1.9 : \
             \"vip_{TO_BACKEND}\" }}"
        ),
        &format!(
            "ct direction reply counter name ct original ip6 daddr map {{ fd00::2 : \"vip_{TO_CLIENT}\" }}"
        ),
    ] {
        assert!(text.contains(rule), "{rule}\n{text}");
    }
    let uncounted = vips.map(|vip| VirtualAddress {
        counted: None,
        ..vip
    });
    let text = workload(&uncounted, None, 0);
    check(&text);
    assert!(!text.contains("counter"), "{text}");
}

#[test]
fn published_ports_are_counted_once_on_their_way() {
    let to = (vec![ip("172.18.0.2"), ip("fd18::2")], 8080);
    let host = |bind, published, protocol| NodePort {
        port: port(bind, published, protocol),
        to: to.clone(),
        from: None,
        counted: Counted::new(SERVICE, Path::Host),
    };
    let ports = [
        host(None, 8080, Protocol::Tcp),
        host(Some("192.0.2.1"), 53, Protocol::Udp),
        host(Some("2001:db8::1"), 53, Protocol::Udp),
    ];
    let text = node(&gateway(), &ports);
    check(&text);
    let bound = format!(
        "iifname \"docker_gwbridge\" ct original ip6 daddr 2001:db8::1 ct status dnat meta l4proto udp ct direction reply \
         counter name ct original proto-dst map {{ 53 : \"host_{TO_CLIENT}\" }}"
    );
    assert!(text.contains(&bound), "{text}");
    let begun = format!("tcp dport 8080 counter name \"host_{CONNECTIONS}\" dnat ip to");
    assert_eq!(text.matches(&begun).count(), 2, "{text}");

    let mesh = |handed, protocol, proxied| MeshPort {
        protocol,
        handed,
        balance: Balance::RoundRobin,
        targets: vec![target("10.0.0.5")],
        target: 80,
        proxied,
        counted: Counted::new(SERVICE, Path::Ingress),
    };
    let ports = [
        mesh(8080, Protocol::Tcp, false),
        mesh(8080, Protocol::Udp, false),
        mesh(9090, Protocol::Tcp, true),
    ];
    let text = ingress("eth1", "eth0", &ports, 0);
    check(&text);
    for rule in [
        format!("udp dport 8080 counter name \"ingress_{CONNECTIONS}\" dnat ip to"),
        format!("tcp dport 9090 counter name \"ingress_{CONNECTIONS}\" \n"),
        format!(
            "oifname \"eth1\" ct status dnat meta l4proto udp ct direction reply counter name ct original proto-dst map \
             {{ 8080 : \"ingress_{TO_CLIENT}\" }}"
        ),
        format!(
            "iifname \"eth1\" counter name tcp dport map {{ 9090 : \"ingress_{TO_BACKEND}\" }}"
        ),
        format!("oifname \"eth1\" counter name tcp sport map {{ 9090 : \"ingress_{TO_CLIENT}\" }}"),
    ] {
        assert!(text.contains(&rule), "{rule}\n{text}");
    }
}
