//! Networks in real namespaces: what [`ensure_network`] makes, adopts, repairs and takes back.

mod host_support;

use host_support::{Place, assert_same, link, links, run_in, skip, snapshot, try_in};
use weft::host::{
    BridgePortFlags, GsoSizes, HostError, NetworkSpec, UplinkKind, ensure_network, faults,
    finish_tap, jumbo_support, remove_network,
};

#[tokio::test]
async fn a_network_has_bridge_gateway_and_uplink() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24"]]);
    let sandbox = ensure_network(&spec).await.unwrap();

    let segment = &sandbox.segments[0];
    assert_eq!(
        [&segment.bridge, &segment.port, &segment.held],
        ["br0", "up0", "up1"]
    );
    let path = &spec.netns_path;
    let bridge = link(path, "br0").await.unwrap();
    assert_eq!(bridge.mac.unwrap().to_string(), "02:42:0a:00:01:fe");
    assert!(bridge.up && bridge.mtu == 1450);
    let port = link(path, "up0").await.unwrap();
    assert_eq!(port.port, Some(BridgePortFlags::UPLINK));
    assert_eq!(port.bridge, Some(bridge.index));
    let held = link(path, "up1").await.unwrap();
    assert_eq!(segment.held_ifindex, Some(held.index));
    assert!(held.running && held.noarp && held.promiscuous && held.bridge.is_none());
    assert_eq!((held.tx_queue_len, held.mtu), (10_000, 1450));

    let detail = run_in(path, &["ip", "-d", "link", "show", "br0"]);
    for setting in [
        "stp_state 0",
        "vlan_filtering 0",
        "mcast_snooping 0",
        "ageing_time 30000",
        "nf_call_iptables 0",
    ] {
        assert!(detail.contains(setting), "{setting} in {detail}");
    }
    assert!(host_support::ping(path, "10.0.1.254"));
}

#[tokio::test]
async fn every_link_carries_the_networks_mark() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24"], &["10.0.2.254/24"]]);
    ensure_network(&spec).await.unwrap();
    let all = links(&spec.netns_path).await;
    assert_eq!(all.len(), 7, "lo and two segments of three");
    for link in all {
        let mark = link.mark().expect("a mark");
        assert_eq!((&mark.id, &mark.what), (&spec.id, &link.name));
        assert_eq!(mark.owner, "test-node");
    }
}

#[tokio::test]
async fn super_frame_sizes_are_really_set() {
    let Some(place) = Place::new() else { return };
    for uplink_mtu in [1450, 8950] {
        let mut spec = place.network(&[&["10.0.1.254/24"]]);
        spec.segments[0].mtu = uplink_mtu;
        ensure_network(&spec).await.unwrap();
        let wanted = GsoSizes::fit(uplink_mtu, UplinkKind::Packet).with_big_ipv6(uplink_mtu);
        let wanted = wanted.for_delivery();
        for name in ["br0", "up0", "up1"] {
            let link = link(&spec.netns_path, name).await.unwrap();
            assert_eq!(link.gso, wanted, "{name}");
        }
        let text = run_in(&spec.netns_path, &["ip", "-d", "link", "show", "up1"]);
        assert!(text.contains(&format!("gso_max_segs {}", wanted.max_segs)));
        assert!(text.contains(&format!("gso_max_size {}", wanted.max_size)));
    }
}

#[tokio::test]
async fn the_uplink_says_nothing_of_its_own() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24", "fd00:1::fe/64"]]);
    ensure_network(&spec).await.unwrap();
    let path = &spec.netns_path;
    for name in ["up0", "up1"] {
        let addresses = run_in(path, &["ip", "addr", "show", name]);
        assert!(!addresses.contains("inet"), "{addresses}");
        let knob = format!("net.ipv6.conf.{name}.disable_ipv6");
        assert_eq!(sysctl(path, &knob), Some("1".into()));
    }
    assert_eq!(
        sysctl(path, "net.bridge.bridge-nf-call-iptables").unwrap_or("0".into()),
        "0"
    );
}

#[tokio::test]
async fn an_ipv6_gateway_answers_at_once() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24", "fd00:1::fe/64"]]);
    ensure_network(&spec).await.unwrap();
    let path = &spec.netns_path;
    let addresses = run_in(path, &["ip", "-6", "addr", "show", "br0"]);
    assert!(addresses.contains("fd00:1::fe/64"), "{addresses}");
    assert!(!addresses.contains("tentative"), "{addresses}");
    assert!(host_support::ping(path, "fd00:1::fe"));
}

#[tokio::test]
async fn only_a_network_of_several_segments_forwards() {
    let Some(place) = Place::new() else { return };
    let one = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&one).await.unwrap();
    let two = place.network(&[&["10.0.1.254/24"], &["10.0.2.254/24"]]);
    ensure_network(&two).await.unwrap();
    for (spec, value) in [(&one, "0"), (&two, "1")] {
        for knob in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            let found = sysctl(&spec.netns_path, knob);
            assert_eq!(found.as_deref().unwrap_or(value), value, "{knob}");
        }
    }
}

#[tokio::test]
async fn ensuring_twice_changes_nothing() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24", "fd00:1::fe/64"], &["10.0.2.254/24"]]);
    let first = ensure_network(&spec).await.unwrap();
    let before = snapshot(&spec.netns_path);
    let second = ensure_network(&spec).await.unwrap();
    assert_eq!(first.segments, second.segments);
    assert_eq!(first.netns.id().unwrap(), second.netns.id().unwrap());
    assert_same(&before, &snapshot(&spec.netns_path), "a second time");
}

#[tokio::test]
async fn damage_is_repaired() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&spec).await.unwrap();
    let path = &spec.netns_path;
    let before = snapshot(path);
    for damage in [
        &["ip", "link", "set", "br0", "down"][..],
        &["ip", "link", "set", "up1", "down"],
        &["ip", "link", "set", "up0", "nomaster"],
        &["ip", "link", "set", "br0", "address", "02:00:00:00:00:01"],
        &["ip", "link", "set", "br0", "mtu", "1400"],
        &["ip", "addr", "add", "10.0.9.1/24", "dev", "br0"],
        &["ip", "addr", "flush", "dev", "br0"],
        &["bridge", "link", "set", "dev", "up0", "learning", "on"],
        &["ip", "link", "set", "up1", "promisc", "off", "arp", "on"],
        &["ip", "link", "set", "up1", "gso_max_segs", "7"],
        &["ip", "link", "set", "lo", "down"],
        &["sysctl", "-qw", "net.ipv4.ip_forward=1"],
    ] {
        run_in(path, damage);
        ensure_network(&spec).await.unwrap();
        assert_same(&before, &snapshot(path), &format!("after {damage:?}"));
    }
    run_in(path, &["ip", "link", "del", "up0"]);
    ensure_network(&spec).await.unwrap();
    assert!(link(path, "up1").await.unwrap().running);
}

#[tokio::test]
async fn a_tap_is_finished_once_it_is_there() {
    let Some(place) = Place::new() else { return };
    let mut spec = place.network(&[&["10.0.1.254/24"]]);
    spec.segments[0].uplink = UplinkKind::Tap;
    let sandbox = ensure_network(&spec).await.unwrap();
    assert_eq!(sandbox.segments[0].held_ifindex, None);
    let missing = finish_tap(&spec, 0).await.unwrap_err();
    assert!(matches!(missing, HostError::NoNetwork(_)), "{missing}");

    let path = &spec.netns_path;
    if !add_tap(path) {
        return;
    }
    let index = finish_tap(&spec, 0).await.unwrap();
    let tap = link(path, "tap0").await.unwrap();
    assert_eq!(tap.index, index);
    assert!(tap.up && tap.mtu == 1450 && tap.tx_queue_len == 10_000);
    assert_eq!(tap.port, Some(BridgePortFlags::UPLINK));
    assert_eq!(tap.gso, GsoSizes::fit(1450, UplinkKind::Tap).for_delivery());
    assert_eq!(tap.mark().unwrap().id, spec.id);
    finish_tap(&spec, 0).await.unwrap();
    let again = ensure_network(&spec).await.unwrap();
    assert_eq!(again.segments[0].held_ifindex, Some(index));
    remove_network(path, &spec.id).await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn the_kind_of_uplink_can_change() {
    let Some(place) = Place::new() else { return };
    let mut spec = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&spec).await.unwrap();
    let path = spec.netns_path.clone();
    spec.segments[0].uplink = UplinkKind::Tap;
    ensure_network(&spec).await.unwrap();
    assert!(link(&path, "up0").await.is_none());
    if !add_tap(&path) {
        return;
    }
    finish_tap(&spec, 0).await.unwrap();
    spec.segments[0].uplink = UplinkKind::Packet;
    ensure_network(&spec).await.unwrap();
    assert!(link(&path, "tap0").await.is_none());
    assert!(link(&path, "up1").await.unwrap().running);
}

#[tokio::test]
async fn removal_is_complete_and_may_be_repeated() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24"], &["10.0.2.254/24"]]);
    ensure_network(&spec).await.unwrap();
    remove_network(&spec.netns_path, &spec.id).await.unwrap();
    assert!(!spec.netns_path.exists());
    remove_network(&spec.netns_path, &spec.id).await.unwrap();
    ensure_network(&spec).await.unwrap();
}

#[tokio::test]
async fn namespaces_of_others_are_left_alone() {
    let Some(place) = Place::new() else { return };
    let mut spec = place.network(&[&["10.0.1.254/24"]]);
    spec.netns_path = host_support::named(&place.workload());
    run_in(
        &spec.netns_path,
        &["ip", "link", "add", "mine", "type", "bridge"],
    );
    let before = snapshot(&spec.netns_path);
    let error = ensure_network(&spec).await.unwrap_err();
    assert!(matches!(error, HostError::Foreign { .. }), "{error}");
    let error = remove_network(&spec.netns_path, &spec.id)
        .await
        .unwrap_err();
    assert!(matches!(error, HostError::Foreign { .. }), "{error}");
    assert_same(&before, &snapshot(&spec.netns_path), "a second time");

    let first = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&first).await.unwrap();
    let mut second = place.network(&[&["10.0.2.254/24"]]);
    second.netns_path = first.netns_path.clone();
    let error = ensure_network(&second).await.unwrap_err();
    assert!(matches!(error, HostError::Foreign { .. }), "{error}");
    let before = snapshot(&first.netns_path);
    let error = remove_network(&first.netns_path, &second.id)
        .await
        .unwrap_err();
    assert!(matches!(error, HostError::Foreign { .. }), "{error}");
    assert_same(
        &before,
        &snapshot(&first.netns_path),
        "by another's removal",
    );
}

#[tokio::test]
async fn what_a_killed_creation_left_is_completed() {
    let Some(place) = Place::new() else { return };
    let empty_file = place.network(&[&["10.0.1.254/24"]]);
    std::fs::create_dir_all(empty_file.netns_path.parent().unwrap()).unwrap();
    std::fs::File::create(&empty_file.netns_path).unwrap();
    ensure_network(&empty_file).await.unwrap();

    let empty_netns = place.network(&[&["10.0.1.254/24"]]);
    weft::sys::netns::Netns::create(&empty_netns.netns_path).unwrap();
    ensure_network(&empty_netns).await.unwrap();
}

#[tokio::test]
async fn a_failure_at_any_step_undoes_all_steps() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24", "fd00:1::fe/64"], &["10.0.2.254/24"]]);
    let mut failures = 0;
    loop {
        let (result, reached) = faults::failing_at(failures, ensure_network(&spec)).await;
        if !reached {
            result.unwrap();
            break;
        }
        let error = result.unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::EIO), "{error}");
        assert!(!matches!(error, HostError::Undo { .. }), "{error}");
        assert!(!spec.netns_path.exists(), "left behind by: {error}");
        failures += 1;
    }
    assert!(failures > 20, "only {failures} steps were tried");
}

#[tokio::test]
async fn a_failed_repair_leaves_what_was_there() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&spec).await.unwrap();
    let before = snapshot(&spec.netns_path);
    for index in 0.. {
        let (_, reached) = faults::failing_at(index, ensure_network(&spec)).await;
        assert_same(
            &before,
            &snapshot(&spec.netns_path),
            &format!("step {index}"),
        );
        if !reached {
            break;
        }
    }
}

#[tokio::test]
async fn networks_can_be_made_side_by_side() {
    let Some(place) = Place::new() else { return };
    let specs: Vec<NetworkSpec> = (0..8)
        .map(|_| place.network(&[&["10.0.1.254/24"]]))
        .collect();
    let made = futures_util::future::join_all(specs.iter().map(ensure_network)).await;
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    let removed = specs
        .iter()
        .map(|spec| remove_network(&spec.netns_path, &spec.id));
    let removed = futures_util::future::join_all(removed).await;
    assert!(removed.iter().all(Result::is_ok), "{removed:?}");
}

fn sysctl(netns: &std::path::Path, knob: &str) -> Option<String> {
    let (ok, text) = try_in(netns, &["sysctl", "-n", knob]);
    ok.then(|| text.trim().to_owned())
}

fn add_tap(netns: &std::path::Path) -> bool {
    let (ok, text) = try_in(netns, &["ip", "tuntap", "add", "tap0", "mode", "tap"]);
    if !ok {
        skip(&format!("cannot make a TAP here: {text}"));
    }
    ok
}

#[tokio::test]
async fn kernels_that_make_long_super_frames_of_ipv6_take_them_in_one_of_two_forms() {
    let Some(_place) = Place::new() else { return };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().unwrap().parse::<u32>().unwrap();
    let version = (number(), number());
    let support = jumbo_support().await.unwrap();
    println!("{}: {support:?}", release.trim());
    assert_eq!(support.made, version >= (5, 19));
    assert_eq!(support.taken.is_some(), support.made);
}
