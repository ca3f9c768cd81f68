//! What a killed agent leaves behind, and what lies below the tunnel.

mod host_support;

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use host_support::{Place, link, named, ping, run_in};
use weft::host::{
    HostError, UnderlayDevice, attach, ensure_network, host_ifname, list_endpoints, sweep,
    underlay_device, watch_underlay,
};
use weft::sys::netns::Netns;

#[tokio::test]
async fn a_sweep_removes_unknown_networks_and_endpoints_and_nothing_else() {
    let Some(place) = Place::new() else { return };
    let (known, unknown) = (
        place.network(&[&["10.0.1.254/24"]]),
        place.network(&[&["10.0.2.254/24"]]),
    );
    ensure_network(&known).await.unwrap();
    ensure_network(&unknown).await.unwrap();
    let names = [place.workload(), place.workload(), place.workload()];
    let kept = place.endpoint(&known, &names[0], "10.0.1.2/24");
    let stale = place.endpoint(&known, &names[1], "10.0.1.3/24");
    let orphan = place.endpoint(&unknown, &names[2], "10.0.2.2/24");
    for spec in [&kept, &stale, &orphan] {
        attach(spec).await.unwrap();
    }

    let keep = HashSet::from([known.id.clone(), kept.id.clone()]);
    let report = sweep(place.run_dir(), &keep).await.unwrap();
    assert_eq!(report.networks_removed.join(","), unknown.id);
    assert_eq!(report.endpoints_removed.join(","), stale.id);
    assert!(report.errors.is_empty() && report.untouched.is_empty());
    assert!(!unknown.netns_path.exists());
    for gone in [&names[1], &names[2]] {
        assert!(link(&named(gone), "eth0").await.is_none());
    }
    let left = list_endpoints(&known.netns_path).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].id, kept.id);
    assert!(ping(&named(&names[0]), "10.0.1.254"));

    let again = sweep(place.run_dir(), &keep).await.unwrap();
    assert!(again.networks_removed.is_empty() && again.endpoints_removed.is_empty());
}

#[tokio::test]
async fn a_sweep_leaves_alone_what_carries_no_mark() {
    let Some(place) = Place::new() else { return };
    let network = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&network).await.unwrap();
    let dir = place.run_dir().join("netns");
    let foreign_netns = dir.join("somebodys");
    Netns::create(&foreign_netns).unwrap();
    run_in(
        &foreign_netns,
        &["ip", "link", "add", "br0", "type", "bridge"],
    );
    let file = dir.join("note.txt");
    fs::write(&file, "not a namespace").unwrap();
    run_in(
        &network.netns_path,
        &["ip", "link", "add", "veth1234567", "type", "bridge"],
    );

    let keep = HashSet::from([network.id.clone()]);
    let report = sweep(place.run_dir(), &keep).await.unwrap();
    assert!(report.networks_removed.is_empty() && report.endpoints_removed.is_empty());
    assert_eq!(report.untouched, [file.clone(), foreign_netns.clone()]);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a namespace");
    assert!(link(&foreign_netns, "br0").await.is_some());
    assert!(link(&network.netns_path, "veth1234567").await.is_some());
}

#[tokio::test]
async fn a_pair_that_was_never_marked_is_swept_and_replaced() {
    let Some(place) = Place::new() else { return };
    let network = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&network).await.unwrap();
    let name = place.workload();
    let spec = place.endpoint(&network, &name, "10.0.1.2/24");
    let port = host_ifname(&spec.id);
    let group = link(&network.netns_path, "br0")
        .await
        .unwrap()
        .group
        .to_string();
    let make = || {
        run_in(
            &network.netns_path,
            &[
                "ip", "link", "add", &port, "group", &group, "type", "veth", "peer", "name",
                "eth0", "netns", &name,
            ],
        )
    };
    make();
    let keep = HashSet::from([network.id.clone()]);
    let report = sweep(place.run_dir(), &keep).await.unwrap();
    assert_eq!(report.endpoints_removed.join(","), port);
    assert!(link(&named(&name), "eth0").await.is_none());

    make();
    assert_eq!(attach(&spec).await.unwrap().ifname, "eth0");
    assert!(ping(&named(&name), "10.0.1.254"));
}

#[tokio::test]
async fn what_a_killed_creation_left_is_swept() {
    let Some(place) = Place::new() else { return };
    let dir = place.run_dir().join("netns");
    fs::create_dir_all(&dir).unwrap();
    let (file, bare) = (dir.join("0abcdefghij1"), dir.join("0abcdefghij2"));
    let (note, other) = (dir.join("0abcdefghij3"), dir.join("not-a-network"));
    fs::write(&file, "").unwrap();
    Netns::create(&bare).unwrap();
    fs::write(&note, "not a namespace").unwrap();
    fs::write(&other, "").unwrap();

    let report = sweep(place.run_dir(), &HashSet::new()).await.unwrap();
    assert_eq!(report.half_made_removed, [file.clone(), bare.clone()]);
    assert_eq!(report.untouched, [note.clone(), other.clone()]);
    assert!(!file.exists() && !bare.exists() && note.exists() && other.exists());
}

#[tokio::test]
async fn a_missing_run_directory_has_no_leftovers() {
    let report = sweep("/nonexistent/run".as_ref(), &HashSet::new())
        .await
        .unwrap();
    assert!(report.networks_removed.is_empty() && report.untouched.is_empty());
}

/// Runs `test` on a thread and runtime of its own inside the namespace, as an agent of a node would.
fn inside<T: Send, F: Future<Output = T>>(
    netns: &std::path::Path,
    test: impl FnOnce() -> F + Send,
) -> T {
    let netns = Netns::open(netns).unwrap();
    netns
        .run_in(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap().block_on(test())
        })
        .unwrap()
}

fn node(place: &Place) -> std::path::PathBuf {
    let netns = named(&place.workload());
    for command in [
        "link add under0 mtu 1400 type veth peer name under1",
        "link set under0 up",
        "link set under1 up",
        "addr add 192.0.2.7/24 dev under0",
        "addr add 2001:db8::7/64 dev under0 nodad",
    ] {
        let mut words = vec!["ip"];
        words.extend(command.split(' '));
        run_in(&netns, &words);
    }
    netns
}

#[test]
fn the_underlay_device_is_found_by_its_address() {
    let Some(place) = Place::new() else { return };
    let netns = node(&place);
    for (vtep, prefix) in [
        ("192.0.2.7", "192.0.2.7/24"),
        ("2001:db8::7", "2001:db8::7/64"),
    ] {
        let vtep: IpAddr = vtep.parse().unwrap();
        let found = inside(&netns, || underlay_device(vtep)).unwrap();
        assert_eq!((found.name.as_str(), found.mtu), ("under0", 1400));
        assert_eq!(found.addr_prefix, prefix.parse().unwrap());
        assert!(found.running);
    }
    let error = inside(&netns, || underlay_device("192.0.2.8".parse().unwrap())).unwrap_err();
    assert!(matches!(error, HostError::NoUnderlay { .. }), "{error}");
    assert!(error.to_string().contains("192.0.2.8"), "{error}");
}

#[test]
fn changes_of_the_underlay_are_seen() {
    let Some(place) = Place::new() else { return };
    let netns = node(&place);
    inside(&netns, || async {
        let mut watch = watch_underlay("192.0.2.7".parse().unwrap()).await.unwrap();
        assert_eq!(watch.borrow().as_ref().unwrap().mtu, 1400);
        type Seen = fn(&Option<UnderlayDevice>) -> bool;
        let steps: [(&[&str], Seen); 5] = [
            (&["ip", "link", "set", "under0", "mtu", "1300"], |now| {
                now.as_ref().is_some_and(|d| d.mtu == 1300)
            }),
            (&["ip", "link", "set", "under1", "down"], |now| {
                now.as_ref().is_some_and(|d| !d.running)
            }),
            (&["ip", "link", "set", "under1", "up"], |now| {
                now.as_ref().is_some_and(|d| d.running)
            }),
            (
                &["ip", "addr", "del", "192.0.2.7/24", "dev", "under0"],
                Option::is_none,
            ),
            (
                &["ip", "addr", "add", "192.0.2.7/25", "dev", "under1"],
                |now| {
                    now.as_ref()
                        .is_some_and(|d| d.name == "under1" && d.addr_prefix.prefix() == 25)
                },
            ),
        ];
        for (command, expected) in steps {
            run_in(&netns, command);
            let seen = tokio::time::timeout(Duration::from_secs(5), watch.wait_for(expected)).await;
            assert!(seen.is_ok(), "not seen: {command:?}");
        }
    });
}
