//! Real agents on real kernel objects: each node is a network namespace with its own agent process.
//!
//! ```text
//!   node a (agent, 192.0.2.1) ══ veth ══ node b (agent, 192.0.2.2)
//!     └ networks' namespaces               └ networks' namespaces
//!        └ workloads a0, a1 …                 └ workloads b0, b1 …
//! ```
//! Needs root and `ip`; without them each test says so and ends.

mod node_support;
#[path = "common/skip.rs"]
mod skip;

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use node_support::{Node, Space, able, ip, until};
use skip::skip;
use weft::agent::api::{
    ApiError, AttachRequest, CreateNetwork, EndpointView, IpamConfigRequest,
    OPTION_STRICT_RESERVED_BITS, OPTION_VXLANID_LIST, RecordRequest, Verdict, VtepChange,
};
use weft::frontend::client::block_on;
use weft::sys::netns::Netns;
use weft::wire::frame::FrameBuilder;
use weft::wire::{Mac, Vni, vxlan};

/// Two nodes with networks `red` (10.7.1.0/24) and `blue` (10.7.2.0/24), members of each other.
fn two_nodes(extra: &[&'static str]) -> (Node, Node) {
    let (mut a, mut b) = (Node::new("192.0.2.1", extra), Node::new("192.0.2.2", extra));
    let (left, right) = (&a.space.0, &b.space.0);
    ip(&format!(
        "link add und0 netns {left} type veth peer name und0 netns {right}"
    ));
    for (node, peer) in [(&mut a, "192.0.2.2"), (&mut b, "192.0.2.1")] {
        let (space, vtep) = (node.space.0.clone(), node.vtep);
        ip(&format!("-n {space} addr add {vtep}/24 dev und0"));
        ip(&format!("-n {space} link set und0 up"));
        node.boot();
        for (name, subnet, vni, id) in [
            ("red", "10.7.1.0/24", "7001", "r"),
            ("blue", "10.7.2.0/24", "7002", "b"),
        ] {
            let mut wish = CreateNetwork {
                name: name.into(),
                id: Some(id.repeat(25)),
                ..Default::default()
            };
            wish.ipam.config.push(IpamConfigRequest {
                subnet: subnet.into(),
                ..Default::default()
            });
            wish.options.insert(OPTION_VXLANID_LIST.into(), vni.into());
            block_on(node.client().create_network(&wish)).unwrap();
            let change = VtepChange {
                vteps: vec![peer.parse().unwrap()],
            };
            block_on(node.client().add_vteps(name, &change)).unwrap();
        }
    }
    (a, b)
}

/// Attaches a workload to `red` or `blue` with a fixed address.
fn attach(
    node: &Node,
    network: &str,
    workload: &Space,
    last_byte: u8,
) -> Result<EndpointView, ApiError> {
    let third = if network == "red" { 1 } else { 2 };
    let wish = AttachRequest {
        target: workload.0.clone(),
        ips: vec![IpAddr::from([10, 7, third, last_byte])],
        ..AttachRequest::default()
    };
    block_on(node.client().attach(network, &wish))
}

/// Tells `to` of an endpoint of `from`.
fn tell(from: &Node, endpoint: &EndpointView, to: &Node) {
    let record = RecordRequest {
        mac: endpoint.mac,
        ips: endpoint.ips.iter().map(|ip| ip.ip()).collect(),
        vtep: from.vtep,
        endpoint: Some(endpoint.id.clone()),
        node: String::new(),
        name: endpoint.name.clone(),
        aliases: vec![],
        service: String::new(),
        version: None,
    };
    block_on(to.client().put_records(&endpoint.network, &[record])).unwrap();
}

/// Sends datagrams from one workload to another and back until one makes it, or the time is up.
fn talks(from: &Space, to: &Space, address: &EndpointView) -> bool {
    let address = address.ips[0].ip();
    let server = to
        .netns()
        .run_in(|| UdpSocket::bind((address, 0)).unwrap())
        .unwrap();
    let there = server.local_addr().unwrap();
    let client = from
        .netns()
        .run_in(|| UdpSocket::bind("0.0.0.0:0").unwrap())
        .unwrap();
    for socket in [&server, &client] {
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let _no_route_yet = client.send_to(b"there", there);
        let mut buffer = [0; 16];
        let Ok((_, back)) = server.recv_from(&mut buffer) else {
            continue;
        };
        server.send_to(b"and back", back).unwrap();
        if client.recv(&mut buffer).is_ok() {
            return true;
        }
    }
    false
}

/// Attaches one workload on each side, tells each of the other, and checks that they talk.
fn connect(
    a: &Node,
    b: &Node,
    network: &str,
    left: &Space,
    right: &Space,
) -> (EndpointView, EndpointView) {
    let here = attach(a, network, left, 11).unwrap();
    let there = attach(b, network, right, 12).unwrap();
    tell(a, &here, b);
    tell(b, &there, a);
    assert!(talks(left, right, &there), "{network}: {}", a.log());
    assert!(talks(right, left, &here), "{network}: {}", a.log());
    (here, there)
}

fn two_networks_come_and_go(extra: &[&'static str]) {
    let (a, b) = two_nodes(extra);
    let (left, right) = (Space::new(), Space::new());
    for _ in 0..3 {
        connect(&a, &b, "red", &left, &right);
        connect(&a, &b, "blue", &left, &right);
        assert_eq!((a.networks_in_kernel(), b.networks_in_kernel()), (2, 2));
        for node in [&a, &b] {
            assert_eq!(
                block_on(node.client().status()).unwrap().verdict,
                Verdict::Ok
            );
        }
        for network in ["red", "blue"] {
            block_on(a.client().detach(network, &left.0)).unwrap();
            block_on(b.client().detach(network, &right.0)).unwrap();
        }
        assert_eq!(
            (a.networks_in_kernel(), b.networks_in_kernel()),
            (0, 0),
            "the last endpoint takes all along"
        );
        assert!(!left.links().contains("eth"), "{}", left.links());
    }
}

#[test]
fn two_networks_carry_traffic_and_leave_nothing_behind() {
    if able() {
        two_networks_come_and_go(&[]);
    }
}

#[test]
fn the_tap_uplink_does_the_same() {
    if able() {
        if !Path::new("/dev/net/tun").exists() {
            skip("no /dev/net/tun");
            return;
        }
        two_networks_come_and_go(&["--uplink", "tap", "--workers", "2"]);
    }
}

#[test]
fn a_killed_agent_is_followed_by_one_that_takes_everything_over() {
    if !able() {
        return;
    }
    let (mut a, b) = two_nodes(&[]);
    let (left, right) = (Space::new(), Space::new());
    let (here, there) = connect(&a, &b, "red", &left, &right);
    let before = left.links();
    a.kill();
    assert_eq!(left.links(), before, "the workload keeps its interface");
    a.boot();
    let after = block_on(a.client().endpoints()).unwrap().endpoints;
    assert!(after.iter().any(|e| e.id == here.id && e.ips == here.ips));
    assert_eq!(left.links(), before, "it is taken over, not made again");
    assert!(talks(&left, &right, &there), "{}", a.log());
    assert!(talks(&right, &left, &here), "{}", a.log());
    // The orderly way.
    a.stop();
    assert_eq!(left.links(), before);
    a.boot();
    assert!(talks(&left, &right, &there), "{}", a.log());
}

#[test]
fn a_workload_that_ends_frees_its_address_and_the_network() {
    if !able() {
        return;
    }
    let (a, _b) = two_nodes(&[]);
    let workload = Space::new();
    attach(&a, "red", &workload, 11).unwrap();
    drop(workload);
    until("the endpoint is forgotten", || {
        block_on(a.client().endpoints())
            .unwrap()
            .endpoints
            .is_empty()
    });
    until("the network is gone", || a.networks_in_kernel() == 0);
    assert_eq!(block_on(a.client().status()).unwrap().verdict, Verdict::Ok);
}

#[test]
fn what_somebody_breaks_is_repaired() {
    if !able() {
        return;
    }
    let (a, b) = two_nodes(&[]);
    let (left, right) = (Space::new(), Space::new());
    let (_, there) = connect(&a, &b, "red", &left, &right);
    ip(&format!("-n {} link del eth0", left.0));
    until("the interface is back", || left.links().contains("eth0"));
    assert!(talks(&left, &right, &there), "{}", a.log());
    let netns = a.run_dir().join("netns").join("r".repeat(12));
    assert!(Netns::delete(&netns).unwrap());
    until("the network is back", || {
        left.links().contains("eth0") && netns.exists()
    });
    assert!(talks(&left, &right, &there), "{}", a.log());
}

#[test]
fn two_agents_do_not_share_a_directory_or_port() {
    if !able() {
        return;
    }
    let (a, _b) = two_nodes(&[]);
    let second = a
        .program(&["agent", "--vtep", "192.0.2.1"])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("code: already_running"));
    let elsewhere = tempfile::tempdir().unwrap();
    let mut third = Command::new(env!("CARGO_BIN_EXE_weft"));
    third
        .args(["agent", "--vtep", "192.0.2.1", "--run-dir"])
        .arg(elsewhere.path());
    third.arg("--state-dir").arg(elsewhere.path());
    a.space.netns().enter_on_spawn(&mut third).unwrap();
    let third = third.output().unwrap();
    assert!(String::from_utf8_lossy(&third.stderr).contains("code: port_in_use"));
}

#[test]
fn cleanup_on_exit_removes_everything_at_a_clean_stop() {
    if !able() {
        return;
    }
    let (mut a, _b) = two_nodes(&["--cleanup-on-exit"]);
    let workload = Space::new();
    attach(&a, "red", &workload, 11).unwrap();
    assert!(workload.links().contains("eth0"));
    a.stop();
    assert!(!workload.links().contains("eth0"));
    assert_eq!(a.networks_in_kernel(), 0);
    a.boot();
    assert!(
        block_on(a.client().endpoints())
            .unwrap()
            .endpoints
            .is_empty()
    );
    assert!(
        block_on(a.client().network("red")).is_ok(),
        "the networks stay known"
    );
}

#[test]
fn the_workloads_mtu_follows_the_underlay() {
    if !able() {
        return;
    }
    let (a, b) = two_nodes(&[]);
    let workload = Space::new();
    attach(&a, "red", &workload, 11).unwrap();
    assert!(
        workload.links().contains("mtu 1450"),
        "{}",
        workload.links()
    );
    for node in [&a, &b] {
        ip(&format!("-n {} link set und0 mtu 9000", node.space.0));
    }
    until("the MTU has followed", || {
        workload.links().contains("mtu 8950")
    });
}

#[test]
fn reserved_header_bits_pass_where_the_network_says_so() {
    if !able() {
        return;
    }
    let (mut a, b) = (Node::new("192.0.2.1", &[]), Space::new());
    ip(&format!(
        "link add und0 netns {} type veth peer name und0 netns {}",
        a.space.0, b.0
    ));
    for (space, vtep) in [(&a.space, "192.0.2.1"), (&b, "192.0.2.2")] {
        ip(&format!("-n {} addr add {vtep}/24 dev und0", space.0));
        ip(&format!("-n {} link set und0 up", space.0));
    }
    a.boot();
    let (lenient, strict) = (Space::new(), Space::new());
    for (third, name, workload) in [(1, "lenient", &lenient), (2, "strict", &strict)] {
        let mut wish = CreateNetwork {
            name: name.into(),
            ..Default::default()
        };
        wish.ipam.config.push(IpamConfigRequest {
            subnet: format!("10.7.{third}.0/24"),
            ..Default::default()
        });
        let vni = 7000 + i32::from(third);
        wish.options
            .insert(OPTION_VXLANID_LIST.into(), vni.to_string());
        if name == "lenient" {
            wish.options
                .insert(OPTION_STRICT_RESERVED_BITS.into(), "false".into());
        }
        block_on(a.client().create_network(&wish)).unwrap();
        let peer = RecordRequest {
            mac: Mac::from_ipv4([10, 7, third, 9].into()),
            ips: vec![IpAddr::from([10, 7, third, 9])],
            vtep: [192, 0, 2, 2].into(),
            endpoint: None,
            node: String::new(),
            name: String::new(),
            aliases: vec![],
            service: String::new(),
            version: None,
        };
        block_on(a.client().put_records(name, &[peer])).unwrap();
        let wish = AttachRequest {
            target: workload.0.clone(),
            ips: vec![IpAddr::from([10, 7, third, 11])],
            ..AttachRequest::default()
        };
        block_on(a.client().attach(name, &wish)).unwrap();
    }
    // The rule must outlive the agent.
    a.kill();
    a.boot();
    let view = block_on(a.client().network("lenient")).unwrap();
    assert_eq!(view.options[OPTION_STRICT_RESERVED_BITS], "false");

    let sender = b
        .netns()
        .run_in(|| UdpSocket::bind("192.0.2.2:0").unwrap())
        .unwrap();
    // Bound once: a child that a neighbouring test is starting holds a copy of
    // every descriptor until its exec, so a closed port is not free at once.
    let serve = |workload: &Space, third: u8| {
        let address = IpAddr::from([10, 7, third, 11]);
        let server = workload
            .netns()
            .run_in(|| UdpSocket::bind((address, 5000)).unwrap())
            .unwrap();
        let patience = Duration::from_millis(100);
        server.set_read_timeout(Some(patience)).unwrap();
        server
    };
    let (lenient, strict) = (serve(&lenient, 1), serve(&strict, 2));
    let hears = |server: &UdpSocket, third: u8, reserved: u8| {
        let ends = [[10, 7, third, 9].into(), [10, 7, third, 11].into()];
        let frame = FrameBuilder::new(Mac::from_ipv4(ends[0]), Mac::from_ipv4(ends[1]))
            .ipv4(ends[0], ends[1])
            .udp(4000, 5000)
            .payload(b"marked")
            .build();
        let mut header = vxlan::encode(Vni::new(7000 + u32::from(third)).unwrap());
        header[7] = reserved;
        let datagram = [&header[..], &frame].concat();
        (0..20).any(|_| {
            sender.send_to(&datagram, "192.0.2.1:4789").unwrap();
            server.recv(&mut [0; 64]).is_ok()
        })
    };
    assert!(hears(&strict, 2, 0), "{}", a.log());
    assert!(
        hears(&lenient, 1, 0) && hears(&lenient, 1, 1),
        "{}",
        a.log()
    );
    let refused = || {
        let status = block_on(a.client().status()).unwrap();
        status.dataplane.counters.drops["vxlan_reserved_bits"]
    };
    assert_eq!(refused(), 0);
    assert!(!hears(&strict, 2, 1));
    assert!(refused() > 0);
}
