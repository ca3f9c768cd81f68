//! Workloads on networks, in real namespaces: what [`attach`] makes, repairs and takes back.

mod host_support;

use std::path::Path;

use host_support::{
    Place, assert_same, link, links, named, ping, ping_full, run_in, silent, snapshot,
};
use weft::host::{
    BridgeRef, EndpointSpec, GsoSizes, HostError, NetworkSpec, UplinkKind, WorkloadRef, attach,
    detach, ensure_network, faults, host_ifname, list_endpoints, workload_alive,
};
use weft::wire::Mac;

async fn network(place: &Place) -> NetworkSpec {
    let spec = place.network(&[&["10.0.1.254/24", "fd00:1::fe/64"]]);
    ensure_network(&spec).await.unwrap();
    spec
}

#[tokio::test]
async fn two_workloads_reach_each_other_and_the_gateway() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let (one, two) = (place.workload(), place.workload());
    let mut first = place.endpoint(&network, &one, "10.0.1.2/24");
    first.addresses.push("fd00:1::2/64".parse().unwrap());
    let mut second = place.endpoint(&network, &two, "10.0.1.3/24");
    second.addresses.push("fd00:1::3/64".parse().unwrap());
    attach(&first).await.unwrap();
    attach(&second).await.unwrap();
    for target in ["10.0.1.254", "10.0.1.3", "fd00:1::fe", "fd00:1::3"] {
        assert!(ping(&named(&one), target), "{target}");
    }
    assert!(ping(&named(&two), "10.0.1.2"));
    assert!(ping_full(&named(&one), "10.0.1.3", 1450));
    assert!(!ping_full(&named(&one), "10.0.1.3", 1451));
    assert!(ping(&network.netns_path, "10.0.1.2"));
}

#[tokio::test]
async fn a_workload_is_named_by_name_path_or_process() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let by_name = place.workload();
    let by_path = place.workload();
    let pid = place.process();
    let workloads = [
        WorkloadRef::Name(by_name),
        WorkloadRef::Path(named(&by_path)),
        WorkloadRef::Pid(pid),
    ];
    for (n, workload) in workloads.into_iter().enumerate() {
        let mut spec = place.endpoint(&network, "", &format!("10.0.1.{}/24", n + 2));
        spec.workload = workload;
        let attached = attach(&spec).await.unwrap();
        assert_eq!(attached.ifname, "eth0");
        assert_eq!(attached.host_ifname, host_ifname(&spec.id));
        assert!(workload_alive(&spec.workload, attached.netns_id).unwrap());
        assert!(ping(&spec.workload.path(), "10.0.1.254"));
    }
}

#[tokio::test]
async fn a_workload_looks_as_specified() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let mut spec = place.endpoint(&network, &name, "10.0.1.2/24");
    spec.routes = vec![
        (
            "10.9.0.0/16".parse().unwrap(),
            "10.0.1.254".parse().unwrap(),
        ),
        ("0.0.0.0/0".parse().unwrap(), "10.0.1.253".parse().unwrap()),
    ];
    let attached = attach(&spec).await.unwrap();
    let inner = link(&named(&name), "eth0").await.unwrap();
    assert_eq!(inner.index, attached.ifindex);
    assert_eq!((inner.mac, inner.mtu), (Some(spec.mac), 1450));
    assert_eq!(inner.mac.unwrap().to_string(), "02:42:0a:00:01:02");
    assert!(inner.running);
    let text = run_in(&named(&name), &["ip", "addr", "show", "eth0"]);
    assert!(text.contains("inet 10.0.1.2/24"), "{text}");
    assert!(!text.contains("inet6"), "no IPv6 without addresses: {text}");
    let routes = run_in(&named(&name), &["ip", "route"]);
    assert!(routes.contains("10.9.0.0/16 via 10.0.1.254 dev eth0"));
    assert!(routes.contains("default via 10.0.1.253 dev eth0"));
    let host = link(&network.netns_path, &attached.host_ifname)
        .await
        .unwrap();
    assert_eq!((host.mtu, host.index), (1450, attached.host_ifindex));
    for end in [&inner, &host] {
        let mark = end.mark().unwrap();
        assert_eq!((mark.id, mark.what), (spec.id.clone(), "eth0".into()));
    }
}

#[tokio::test]
async fn no_default_route_is_made_unasked() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    attach(&place.endpoint(&network, &name, "10.0.1.2/24"))
        .await
        .unwrap();
    assert!(!run_in(&named(&name), &["ip", "route"]).contains("default"));
}

#[tokio::test]
async fn interfaces_are_counted_from_eth0() {
    let Some(place) = Place::new() else { return };
    let (first, second) = (network(&place).await, network(&place).await);
    let name = place.workload();
    let zero = place.endpoint(&first, &name, "10.0.1.2/24");
    assert_eq!(attach(&zero).await.unwrap().ifname, "eth0");
    let one = place.endpoint(&second, &name, "10.0.1.2/24");
    assert_eq!(attach(&one).await.unwrap().ifname, "eth1");
    detach(&first.netns_path, &zero.id).await.unwrap();
    assert_eq!(attach(&zero).await.unwrap().ifname, "eth0");
    let mut named_spec = place.endpoint(&first, &name, "10.0.1.9/24");
    named_spec.ifname = Some("front0".into());
    assert_eq!(attach(&named_spec).await.unwrap().ifname, "front0");
}

#[tokio::test]
async fn a_taken_name_is_a_clear_error() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    run_in(
        &named(&name),
        &["ip", "link", "add", "eth0", "type", "bridge"],
    );
    let mut spec = place.endpoint(&network, &name, "10.0.1.2/24");
    assert_eq!(attach(&spec).await.unwrap().ifname, "eth1");

    spec.id = place.id("e");
    spec.ifname = Some("eth0".into());
    let before = snapshot(&named(&name));
    let error = attach(&spec).await.unwrap_err();
    assert!(matches!(error, HostError::NameTaken { .. }), "{error}");
    assert!(error.to_string().contains("eth0"), "{error}");
    assert_same(&before, &snapshot(&named(&name)), "the workload");
}

#[tokio::test]
async fn a_foreign_link_with_the_ports_name_is_a_clear_error() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let spec = place.endpoint(&network, &name, "10.0.1.2/24");
    let port = host_ifname(&spec.id);
    let path = &network.netns_path;
    run_in(path, &["ip", "link", "add", &port, "type", "bridge"]);
    let error = attach(&spec).await.unwrap_err();
    assert!(matches!(error, HostError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains(&port), "{error}");
    detach(path, &spec.id).await.unwrap();
    assert!(
        link(path, &port).await.is_some(),
        "it is not ours to remove"
    );
}

#[tokio::test]
async fn missing_networks_and_workloads_are_told_apart() {
    let Some(place) = Place::new() else { return };
    let name = place.workload();
    let unmade = place.network(&[&["10.0.1.254/24"]]);
    let spec = place.endpoint(&unmade, &name, "10.0.1.2/24");
    let error = attach(&spec).await.unwrap_err();
    assert!(matches!(error, HostError::NoNetwork(_)), "{error}");

    let made = network(&place).await;
    let mut spec = place.endpoint(&made, "no-such-netns", "10.0.1.2/24");
    let error = attach(&spec).await.unwrap_err();
    assert!(matches!(error, HostError::NoWorkload { .. }), "{error}");

    spec.workload = WorkloadRef::Name(name);
    spec.netns_id = Some(1);
    let before = snapshot(&made.netns_path);
    let error = attach(&spec).await.unwrap_err();
    assert!(matches!(error, HostError::OtherWorkload { .. }), "{error}");
    assert_same(&before, &snapshot(&made.netns_path), "by a refusal");
    spec.netns_id = None;

    spec.bridge = BridgeRef::Segment(1);
    let error = attach(&spec).await.unwrap_err();
    assert!(error.to_string().contains("br1"), "{error}");

    spec.bridge = BridgeRef::Segment(0);
    spec.workload = WorkloadRef::Path(made.netns_path.clone());
    let error = attach(&spec).await.unwrap_err();
    assert!(matches!(error, HostError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn a_repair_forgets_no_neighbour() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let spec = place.endpoint(&network, &name, "10.0.1.2/24");
    attach(&spec).await.unwrap();
    // In the workload, and in the network's namespace, where the gateway is.
    let known = || {
        let shown = |path: &Path| {
            let text = run_in(path, &["ip", "neigh"]);
            text.contains("lladdr 02:42:0a:00:01:09")
        };
        (shown(&named(&name)), shown(&network.netns_path))
    };
    let learn = |path: &Path, dev: &str| {
        let what =
            format!("ip neigh add 10.0.1.9 lladdr 02:42:0a:00:01:09 dev {dev} nud reachable");
        run_in(path, &what.split(' ').collect::<Vec<_>>());
    };
    learn(&named(&name), "eth0");
    learn(&network.netns_path, "br0");
    assert_eq!(known(), (true, true));
    ensure_network(&network).await.unwrap();
    attach(&spec).await.unwrap();
    assert_eq!(known(), (true, true));
    // An address that is not as it should be is set all the same.
    run_in(
        &named(&name),
        &["ip", "link", "set", "eth0", "address", "02:42:0a:00:01:07"],
    );
    attach(&spec).await.unwrap();
    let inner = link(&named(&name), "eth0").await.unwrap();
    assert_eq!(inner.mac, Some(spec.mac));
}

#[tokio::test]
async fn attaching_again_repairs() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let mut spec = place.endpoint(&network, &name, "10.0.1.2/24");
    spec.routes = vec![(
        "10.9.0.0/16".parse().unwrap(),
        "10.0.1.254".parse().unwrap(),
    )];
    let attached = attach(&spec).await.unwrap();
    let inner = named(&name);
    let before = [snapshot(&inner), snapshot(&network.netns_path)];
    let port = attached.host_ifname.as_str();
    for (netns, damage) in [
        (&inner, &["true"][..]),
        (&inner, &["ip", "link", "set", "eth0", "down"]),
        (&inner, &["ip", "addr", "flush", "dev", "eth0"]),
        (&inner, &["ip", "route", "del", "10.9.0.0/16"]),
        (&inner, &["ip", "link", "set", "eth0", "mtu", "1280"]),
        (
            &inner,
            &["ip", "link", "set", "eth0", "address", "02:00:00:00:00:09"],
        ),
        (&inner, &["ip", "link", "set", "eth0", "gso_max_segs", "7"]),
        (
            &network.netns_path,
            &["ip", "link", "set", port, "nomaster"],
        ),
        (&network.netns_path, &["ip", "link", "set", port, "down"]),
        (
            &network.netns_path,
            &["bridge", "link", "set", "dev", port, "flood", "on"],
        ),
        (
            &network.netns_path,
            &[
                "bridge",
                "fdb",
                "del",
                "02:42:0a:00:01:02",
                "dev",
                port,
                "master",
            ],
        ),
    ] {
        run_in(netns, damage);
        assert_eq!(attach(&spec).await.unwrap(), attached, "after {damage:?}");
        assert_same(&before[0], &snapshot(&inner), &format!("{damage:?}"));
        assert_same(
            &before[1],
            &snapshot(&network.netns_path),
            &format!("{damage:?}"),
        );
        assert!(ping(&inner, "10.0.1.254"), "after {damage:?}");
    }
}

#[tokio::test]
async fn a_workload_that_came_back_elsewhere_gets_a_new_pair() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let (old, new) = (place.workload(), place.workload());
    let mut spec = place.endpoint(&network, &old, "10.0.1.2/24");
    attach(&spec).await.unwrap();
    spec.workload = WorkloadRef::Name(new.clone());
    attach(&spec).await.unwrap();
    assert!(link(&named(&old), "eth0").await.is_none());
    assert!(ping(&named(&new), "10.0.1.254"));

    spec.ifname = Some("eth7".into());
    assert_eq!(attach(&spec).await.unwrap().ifname, "eth7");
    assert!(link(&named(&new), "eth0").await.is_none());
}

#[tokio::test]
async fn super_frame_sizes_are_set_on_both_ends() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let spec = place.endpoint(&network, &name, "10.0.1.2/24");
    let attached = attach(&spec).await.unwrap();
    let wanted = GsoSizes::fit(1450, UplinkKind::Packet).with_big_ipv6(1450);
    assert_eq!(attached.gso, wanted);
    let inner = link(&named(&name), "eth0").await.unwrap();
    let host = link(&network.netns_path, &attached.host_ifname)
        .await
        .unwrap();
    assert_eq!((inner.gso, host.gso), (wanted, wanted.for_delivery()));
    let text = run_in(&named(&name), &["ip", "-d", "link", "show", "eth0"]);
    assert!(text.contains("gso_max_segs 132"), "{text}");
}

#[tokio::test]
async fn detaching_is_complete_and_may_be_repeated() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let before = [snapshot(&named(&name)), snapshot(&network.netns_path)];
    let spec = place.endpoint(&network, &name, "10.0.1.2/24");
    for _ in 0..2 {
        attach(&spec).await.unwrap();
        detach(&network.netns_path, &spec.id).await.unwrap();
        detach(&network.netns_path, &spec.id).await.unwrap();
        assert_same(&before[0], &snapshot(&named(&name)), "the workload");
        assert_same(&before[1], &snapshot(&network.netns_path), "the network");
    }
    detach(Path::new("/nonexistent/netns"), &spec.id)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_pair_that_cannot_be_removed_gets_its_default_sizes_back() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let spec = place.endpoint(&network, &name, "10.0.1.2/24");
    let attached = attach(&spec).await.unwrap();
    let (result, reached) = faults::failing_at(0, detach(&network.netns_path, &spec.id)).await;
    assert!(result.is_err() && reached);
    let host = link(&network.netns_path, &attached.host_ifname)
        .await
        .unwrap();
    assert_eq!(host.gso, GsoSizes::KERNEL_DEFAULT);
    assert_eq!(attach(&spec).await.unwrap(), attached);
}

#[tokio::test]
async fn a_failure_at_any_step_undoes_all_steps() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let mut spec = place.endpoint(&network, &name, "10.0.1.2/24");
    spec.addresses.push("fd00:1::2/64".parse().unwrap());
    spec.routes = vec![(
        "10.9.0.0/16".parse().unwrap(),
        "10.0.1.254".parse().unwrap(),
    )];
    let before = [snapshot(&named(&name)), snapshot(&network.netns_path)];
    let mut failures = 0;
    loop {
        let (result, reached) = faults::failing_at(failures, attach(&spec)).await;
        if !reached {
            result.unwrap();
            break;
        }
        let error = result.unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::EIO), "{error}");
        assert!(!matches!(error, HostError::Undo { .. }), "{error}");
        let context = format!("left behind by: {error}");
        assert_same(&before[0], &snapshot(&named(&name)), &context);
        assert_same(&before[1], &snapshot(&network.netns_path), &context);
        failures += 1;
    }
    assert!(failures >= 10, "only {failures} steps were tried");
}

#[tokio::test]
async fn a_restarted_agent_finds_its_endpoints() {
    let Some(place) = Place::new() else { return };
    let network = place.network(&[&["10.0.1.254/24"], &["10.0.2.254/24"]]);
    ensure_network(&network).await.unwrap();
    let (one, two) = (place.workload(), place.workload());
    let first = place.endpoint(&network, &one, "10.0.1.2/24");
    let mut second = place.endpoint(&network, &two, "10.0.2.3/24");
    second.bridge = BridgeRef::Segment(1);
    second.isolate_spoofing = false;
    second.ifname = Some("web0".into());
    let attached = [
        attach(&first).await.unwrap(),
        attach(&second).await.unwrap(),
    ];

    let mut found = list_endpoints(&network.netns_path).await.unwrap();
    found.sort_by_key(|endpoint| endpoint.segment_index);
    assert_eq!(found.len(), 2);
    for (endpoint, (spec, attached)) in found
        .iter()
        .zip([&first, &second].into_iter().zip(&attached))
    {
        assert_eq!(endpoint.id, spec.id);
        assert_eq!(endpoint.owner, "test-node");
        let index = endpoint.segment_index.map(BridgeRef::Segment);
        assert_eq!(index.as_ref(), Some(&spec.bridge));
        assert_eq!(endpoint.host_ifindex, attached.host_ifindex);
        assert_eq!(endpoint.ifname, attached.ifname);
        assert!(endpoint.running);
    }
    assert_eq!(found[0].macs, [first.mac]);
    assert_eq!(found[1].macs, [] as [Mac; 0]);
    let adopted = ensure_network(&network).await.unwrap();
    assert_eq!(adopted.segments.len(), 2);
    assert_eq!(attach(&first).await.unwrap(), attached[0]);
    assert!(
        list_endpoints(Path::new("/nonexistent/netns"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn two_segments_of_a_network_are_routed_by_their_gateways() {
    let Some(place) = Place::new() else { return };
    let network = place.network(&[
        &["10.0.1.254/24", "fd00:1::fe/64"],
        &["10.0.2.254/24", "fd00:2::fe/64"],
    ]);
    ensure_network(&network).await.unwrap();
    let (one, two) = (place.workload(), place.workload());
    let mut first = place.endpoint(&network, &one, "10.0.1.2/24");
    first.addresses.push("fd00:1::2/64".parse().unwrap());
    first.routes = vec![
        (
            "10.0.2.0/24".parse().unwrap(),
            "10.0.1.254".parse().unwrap(),
        ),
        (
            "fd00:2::/64".parse().unwrap(),
            "fd00:1::fe".parse().unwrap(),
        ),
    ];
    let mut second = place.endpoint(&network, &two, "10.0.2.2/24");
    second.addresses.push("fd00:2::2/64".parse().unwrap());
    second.bridge = BridgeRef::Segment(1);
    second.routes = vec![
        (
            "10.0.1.0/24".parse().unwrap(),
            "10.0.2.254".parse().unwrap(),
        ),
        (
            "fd00:1::/64".parse().unwrap(),
            "fd00:2::fe".parse().unwrap(),
        ),
    ];
    attach(&first).await.unwrap();
    attach(&second).await.unwrap();
    assert!(ping(&named(&one), "10.0.2.2"));
    assert!(ping(&named(&two), "10.0.1.2"));
    assert!(ping(&named(&one), "fd00:2::2"));
    assert!(ping(&named(&two), "fd00:1::2"));
}

/// Whether a frame from `mac` reaches `listener` while `from` pings.
fn heard(listener: &str, from: &str, mac: Mac, target: &str) -> bool {
    use pnet::datalink::{self, Channel, Config};
    let listen = || {
        let all = datalink::interfaces();
        let eth0 = all.iter().find(|interface| interface.name == "eth0");
        let config = Config {
            read_timeout: Some(std::time::Duration::from_millis(200)),
            ..Config::default()
        };
        let Ok(Channel::Ethernet(_, mut frames)) = datalink::channel(eth0.unwrap(), config) else {
            panic!("cannot listen on eth0");
        };
        silent(&named(from), target);
        while let Ok(frame) = frames.next() {
            if frame[6..12] == mac.0 {
                return true;
            }
        }
        false
    };
    let netns = weft::sys::netns::Netns::open(named(listener)).unwrap();
    netns.run_in(listen).unwrap()
}

#[tokio::test]
async fn a_locked_port_drops_other_source_addresses() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let (one, two) = (place.workload(), place.workload());
    let mut first = place.endpoint(&network, &one, "10.0.1.2/24");
    let second = place.endpoint(&network, &two, "10.0.1.3/24");
    attach(&first).await.unwrap();
    attach(&second).await.unwrap();
    assert!(ping(&named(&one), "10.0.1.3"));
    assert!(heard(&two, &one, first.mac, "10.0.1.3"));

    let invented = Mac([0x02, 0x42, 0, 0, 0, 0x99]);
    for stolen in [second.mac, invented] {
        let address = stolen.to_string();
        run_in(
            &named(&one),
            &["ip", "link", "set", "eth0", "address", &address],
        );
        run_in(&named(&one), &["ip", "neigh", "flush", "dev", "eth0"]);
        assert!(silent(&named(&one), "10.0.1.254"), "{stolen}");
        assert!(
            ping(&named(&two), "10.0.1.254"),
            "the neighbour is reachable"
        );
    }
    // A broadcast, which would reach every port.
    assert!(!heard(&two, &one, invented, "10.0.1.9"));
    let refused = run_in(&network.netns_path, &["bridge", "-d", "link", "show"]);
    assert!(refused.contains("locked on"), "{refused}");

    first.isolate_spoofing = false;
    attach(&first).await.unwrap();
    let address = invented.to_string();
    run_in(
        &named(&one),
        &["ip", "link", "set", "eth0", "address", &address],
    );
    assert!(
        ping(&named(&one), "10.0.1.254"),
        "an open port takes any address"
    );
    assert!(heard(&two, &one, invented, "10.0.1.9"));
}

#[tokio::test]
async fn unknown_unicast_leaves_by_the_uplink_only() {
    let Some(place) = Place::new() else { return };
    // Without IPv6, whose group reports would be counted too.
    let network = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&network).await.unwrap();
    let (one, two) = (place.workload(), place.workload());
    attach(&place.endpoint(&network, &one, "10.0.1.2/24"))
        .await
        .unwrap();
    attach(&place.endpoint(&network, &two, "10.0.1.3/24"))
        .await
        .unwrap();
    let remote = "02:42:0a:00:01:63";
    run_in(
        &named(&one),
        &[
            "ip",
            "neigh",
            "add",
            "10.0.1.99",
            "lladdr",
            remote,
            "dev",
            "eth0",
        ],
    );
    let count = |netns: &Path, dev: &str| {
        received(&run_in(netns, &["ip", "-s", "-o", "link", "show", dev]))
    };
    let before = (
        count(&network.netns_path, "up1"),
        count(&named(&two), "eth0"),
    );
    assert!(silent(&named(&one), "10.0.1.99"));
    let after = (
        count(&network.netns_path, "up1"),
        count(&named(&two), "eth0"),
    );
    assert!(after.0 > before.0, "the uplink saw nothing");
    assert_eq!(after.1, before.1, "the neighbour saw it");
}

/// The packet count behind "RX: bytes packets …" of `ip -s -o link`.
fn received(stat: &str) -> u64 {
    let numbers = stat.split("RX:").nth(1).unwrap();
    let mut words = numbers.split('\\').nth(1).unwrap().split_whitespace();
    words.nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_workloads_attach_side_by_side() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let specs: Vec<EndpointSpec> = (0..20)
        .map(|n| {
            let name = place.workload();
            place.endpoint(&network, &name, &format!("10.0.1.{}/24", n + 2))
        })
        .collect();
    let tasks: Vec<_> = specs
        .iter()
        .cloned()
        .map(|spec| tokio::spawn(async move { attach(&spec).await }))
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(list_endpoints(&network.netns_path).await.unwrap().len(), 20);
    for spec in &specs {
        assert!(ping(&spec.workload.path(), "10.0.1.254"));
    }
    assert!(ping(&specs[0].workload.path(), "10.0.1.21"));
    let netns_path = &network.netns_path;
    let removed = specs.iter().map(|spec| detach(netns_path, &spec.id));
    let removed = futures_util::future::join_all(removed).await;
    assert!(removed.iter().all(Result::is_ok), "{removed:?}");
    assert_eq!(links(netns_path).await.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_workload_joins_ten_networks_side_by_side() {
    let Some(place) = Place::new() else { return };
    let name = place.workload();
    let mut tasks = Vec::new();
    for n in 0..10 {
        let gateway = format!("10.0.{n}.254/24");
        let spec = place.network(&[&[gateway.as_str()]]);
        ensure_network(&spec).await.unwrap();
        let endpoint = place.endpoint(&spec, &name, &format!("10.0.{n}.2/24"));
        tasks.push(tokio::spawn(async move { attach(&endpoint).await }));
    }
    let mut names = Vec::new();
    for task in tasks {
        names.push(task.await.unwrap().unwrap().ifname);
    }
    names.sort();
    let expected: Vec<String> = (0..10).map(|n| format!("eth{n}")).collect();
    assert_eq!(names, expected);
    for n in 0..10 {
        assert!(ping(&named(&name), &format!("10.0.{n}.254")));
    }
}

#[tokio::test]
async fn removing_a_network_takes_its_interfaces_from_workloads() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    attach(&place.endpoint(&network, &name, "10.0.1.2/24"))
        .await
        .unwrap();
    weft::host::remove_network(&network.netns_path, &network.id)
        .await
        .unwrap();
    assert!(link(&named(&name), "eth0").await.is_none());
}

#[tokio::test]
async fn a_changed_mac_and_a_lifted_lock_leave_no_stale_fdb_entry() {
    let Some(place) = Place::new() else { return };
    let network = network(&place).await;
    let name = place.workload();
    let mut spec = place.endpoint(&network, &name, "10.0.1.2/24");
    attach(&spec).await.unwrap();
    spec.mac = Mac([0x02, 0x42, 0, 0, 0, 7]);
    attach(&spec).await.unwrap();
    assert!(ping(&named(&name), "10.0.1.254"));
    let found = list_endpoints(&network.netns_path).await.unwrap();
    assert_eq!(found[0].macs, [spec.mac]);
    spec.isolate_spoofing = false;
    attach(&spec).await.unwrap();
    let found = list_endpoints(&network.netns_path).await.unwrap();
    assert_eq!(found[0].macs, [] as [Mac; 0]);
    assert!(ping(&named(&name), "10.0.1.254"));
}
