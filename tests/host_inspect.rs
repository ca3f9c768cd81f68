//! What is found of a damaged network, on real namespaces. Needs root; the repair itself is tested in
//! `host_network.rs`.

mod host_support;

use host_support::{Place, run_in};
use weft::host::{HostError, attach, ensure_network, inspect_network, list_endpoints};

#[tokio::test]
async fn every_damage_is_found_and_gone_after_the_repair() {
    let Some(place) = Place::new() else { return };
    let spec = place.network(&[&["10.0.1.254/24", "fd00:1::fe/64"], &["10.0.2.254/24"]]);
    ensure_network(&spec).await.unwrap();
    let path = &spec.netns_path;
    let faults = async || inspect_network(&spec).await.unwrap().faults;
    assert_eq!(faults().await, [""; 0]);
    for (damage, expect) in [
        (&["ip", "link", "del", "br0"][..], "br0 is missing"),
        (&["ip", "link", "del", "up2"], "up3 is missing"),
        (&["ip", "link", "set", "br1", "down"], "br1 is down"),
        (&["ip", "link", "set", "up0", "down"], "up0 is down"),
        (&["ip", "link", "set", "up1", "down"], "up1 is down"),
        (
            &["ip", "link", "set", "up0", "nomaster"],
            "up0 is no port of br0",
        ),
        (
            &["ip", "link", "set", "br0", "mtu", "1400"],
            "br0 has an MTU of 1400, not 1450",
        ),
        (
            &["ip", "addr", "del", "10.0.2.254/24", "dev", "br1"],
            "br1 lacks 10.0.2.254/24",
        ),
        (
            &["ip", "addr", "del", "fd00:1::fe/64", "dev", "br0"],
            "br0 lacks fd00:1::fe/64",
        ),
    ] {
        run_in(path, damage);
        let found = faults().await;
        assert!(
            found.iter().any(|fault| fault == expect),
            "{damage:?}: {found:?}"
        );
        ensure_network(&spec).await.unwrap();
        assert_eq!(faults().await, [""; 0], "{damage:?}");
    }
}

#[tokio::test]
async fn a_changed_mtu_and_another_device_are_found() {
    let Some(place) = Place::new() else { return };
    let mut spec = place.network(&[&["10.0.1.254/24"]]);
    let made = ensure_network(&spec).await.unwrap();
    let before = inspect_network(&spec).await.unwrap();
    assert_eq!(
        before.held[0].map(|(_, index)| index),
        made.segments[0].held_ifindex
    );
    run_in(&spec.netns_path, &["ip", "link", "del", "up0"]);
    ensure_network(&spec).await.unwrap();
    assert_ne!(inspect_network(&spec).await.unwrap().held, before.held);
    spec.segments[0].mtu = 1400;
    assert_eq!(inspect_network(&spec).await.unwrap().faults.len(), 3);

    let unmade = place.network(&[&["10.0.1.254/24"]]);
    let error = inspect_network(&unmade).await.unwrap_err();
    assert!(matches!(error, HostError::NoNetwork(_)), "{error}");
}

#[tokio::test]
async fn a_port_that_was_taken_down_or_off_its_bridge_is_told() {
    let Some(place) = Place::new() else { return };
    let network = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&network).await.unwrap();
    let spec = place.endpoint(&network, &place.workload(), "10.0.1.2/24");
    let port = attach(&spec).await.unwrap().host_ifname;
    for damage in [
        &["ip", "link", "set", &port, "down"][..],
        &["ip", "link", "set", &port, "nomaster"],
    ] {
        let whole = async || {
            let found = list_endpoints(&network.netns_path).await.unwrap();
            found[0].up && found[0].segment_index == Some(0)
        };
        assert!(whole().await);
        run_in(&network.netns_path, damage);
        assert!(!whole().await, "{damage:?}");
        attach(&spec).await.unwrap();
        assert!(whole().await, "{damage:?}");
    }
}
