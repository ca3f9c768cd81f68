//! Tests of the managers' state as gossip asks for it.

use super::*;
use crate::cluster::gossip::{Signer, SigningKey};
use crate::cluster::manager::ids::Key;
use crate::cluster::manager::secrets::KeyRing;
use crate::cluster::sample;
use crate::tables::record::Backing;
use crate::wire::{Mac, Vni};

fn record(vtep: &str, ip: &str) -> EndpointRecord {
    EndpointRecord {
        network: "net".into(),
        vni: Vni::FIRST_USER,
        endpoint: "e".into(),
        mac: Mac([2, 0x42, 10, 0, 1, 2]),
        ips: vec![ip.parse().unwrap()],
        vtep: vtep.parse().unwrap(),
        node: "node1".into(),
        name: "web".into(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: crate::tables::record::Version::default(),
    }
}

#[test]
fn a_node_may_publish_what_is_leased_to_it_and_nothing_else() {
    let directory = sample::directory(2);
    let judge =
        |owner, epoch, record: &EndpointRecord| directory.judge(NodeNumber(owner), epoch, record);
    let own = record("127.0.0.1", "10.0.1.2");
    assert_eq!(judge(1, 1, &own), Ok(()));
    assert_eq!(judge(2, 1, &own), Err(Unauthorised::Vtep));
    assert_eq!(judge(9, 1, &own), Err(Unauthorised::Vtep), "nobody");
    assert_eq!(
        judge(1, 0, &own),
        Err(Unauthorised::Address),
        "an earlier start"
    );
    let others = record("127.0.0.1", "10.0.1.6");
    assert_eq!(judge(1, 1, &others), Err(Unauthorised::Address));
    let outside = record("127.0.0.1", "10.9.9.9");
    assert_eq!(judge(1, 1, &outside), Err(Unauthorised::Address));
    let mut none = own.clone();
    none.ips.clear();
    assert_eq!(judge(1, 1, &none), Err(Unauthorised::Address));
    let mut group = own.clone();
    group.mac = Mac([1, 0, 0x5e, 0, 0, 1]);
    assert_eq!(judge(1, 1, &group), Err(Unauthorised::Mac));
    let mut elsewhere = own;
    elsewhere.vni = Vni::INGRESS;
    assert_eq!(judge(1, 1, &elsewhere), Err(Unauthorised::Vni));
}

#[test]
fn epochs_may_be_a_little_ahead_and_never_behind() {
    let directory = sample::directory(1);
    assert!(!directory.admits(NodeNumber(1), 0));
    assert!(directory.admits(NodeNumber(1), 1));
    assert!(directory.admits(NodeNumber(1), 1 + EPOCHS_AHEAD_MAX));
    assert!(!directory.admits(NodeNumber(1), 2 + EPOCHS_AHEAD_MAX));
    assert!(!directory.admits(NodeNumber(2), 1));
}

#[test]
fn whoever_holds_addresses_takes_part() {
    let directory = sample::directory(2);
    assert!(directory.takes_part(NodeNumber(1), "net"));
    assert!(!directory.takes_part(NodeNumber(1), "other"));
    assert!(!directory.takes_part(NodeNumber(3), "net"));
}

#[test]
fn signatures_are_checked_by_the_nodes_key() {
    let directory = sample::directory(2);
    let signature = SigningKey::from_seed(&sample::seed(1)).sign(b"x");
    assert!(directory.verify(NodeNumber(1), b"x", &signature));
    assert!(!directory.verify(NodeNumber(2), b"x", &signature));
    assert!(!directory.verify(NodeNumber(9), b"x", &signature));
}

#[test]
fn rings_have_the_sealing_key_first() {
    let mut replica = sample::replica(1);
    replica.keys = Some(KeyRing::new(Key::from_bytes([7; 32])));
    replica.network_keys.insert(
        "net".into(),
        vec![Key::from_bytes([8; 32]), Key::from_bytes([9; 32])],
    );
    let rings = Directory::new(Arc::new(replica)).rings();
    assert_eq!(rings[""], [Secret([7; 32])]);
    assert_eq!(rings["net"], [Secret([8; 32]), Secret([9; 32])]);
}

#[test]
fn who_has_left_is_nobody() {
    let mut replica = sample::replica(2);
    for node in replica.nodes.values_mut().filter(|node| node.number == 2) {
        node.status = NodeStatus::Left;
    }
    let directory = Directory::new(Arc::new(replica));
    assert!(directory.node(NodeNumber(2)).is_none());
    assert!(!directory.takes_part(NodeNumber(2), "net"));
    assert!(directory.node_name(NodeNumber(1)).is_some());
}
