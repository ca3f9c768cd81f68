//! A small cluster for tests: nodes at 127.0.0.1 and up, one network, a block for each node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::directory::Directory;
use super::gossip::SigningKey;
use super::manager::command::{Availability, BlockRef, NodeStatus};
use super::manager::ids::{Digest, Key, NodeId, Role, VerifyKey};
use super::manager::nodes::Node;
use super::manager::secrets::KeyRing;
use super::manager::watch::{Block, Replica};
use crate::model::network::{Catalog, Fresh, Pools};
use crate::model::request::{CreateNetwork, IpamConfigRequest, IpamRequest};

/// Secret of node `n`, counted from 1.
pub fn seed(n: u8) -> [u8; 32] {
    [n; 32]
}

/// VTEP of node `n`.
pub fn vtep(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, n))
}

/// Nodes 1 to `count`, numbered likewise; network `net` is 10.0.1.0/24, and node `n` holds its `n`th block of
/// four.
pub fn replica(count: u8) -> Replica {
    let mut catalog = Catalog::new(1, 1);
    let wish = CreateNetwork {
        name: "net".into(),
        id: Some("net0000000000000000000000".into()),
        ipam: IpamRequest {
            config: vec![IpamConfigRequest {
                subnet: "10.0.1.0/24".into(),
                ..IpamConfigRequest::default()
            }],
            ..IpamRequest::default()
        },
        ..CreateNetwork::default()
    };
    let pools = Pools {
        pool: "10.0.0.0/8".parse().unwrap(),
        prefix_len: 24,
        avoid: Vec::new(),
    };
    let fresh = Fresh {
        id: "net0000000000000000000000".into(),
        now: 1,
        vtep: vtep(1),
    };
    let plan = catalog.plan(&wish, &pools, &fresh).unwrap();
    let mut network = plan.network;
    let subnet = network.segments[0].v4.prefix;
    network.id = "net".into();
    catalog.networks.insert("net".into(), network);
    let node = |n: u8| Node {
        id: NodeId::from_bits(n.into()),
        number: n.into(),
        name: format!("node{n}"),
        vtep: vtep(n),
        control: None,
        epoch: 1,
        role: Role::Manager,
        availability: Availability::Active,
        status: NodeStatus::Ready,
        raft_id: Some(n.into()),
        certificate: Digest::from_bytes([n; 32]),
        verify_key: VerifyKey::from_bytes(SigningKey::from_seed(&seed(n)).public().0),
        joined_ms: 1,
        down_since_ms: None,
    };
    let block = |n: u8| {
        let at = BlockRef {
            network: "net".into(),
            subnet,
            first: IpAddr::V4(Ipv4Addr::new(10, 0, 1, (n - 1) * 4)),
        };
        let block = Block {
            node: NodeId::from_bits(n.into()),
            epoch: 1,
            fence: n.into(),
            len: 4,
            used: 0,
            except: BTreeSet::new(),
        };
        (at, block)
    };
    Replica {
        revision: 1,
        catalog: Some(catalog),
        nodes: (1..=count)
            .map(|n| (NodeId::from_bits(n.into()), node(n)))
            .collect(),
        blocks: BTreeMap::from([("net".into(), (1..=count).map(block).collect())]),
        keys: Some(KeyRing::new(Key::from_bytes([1; 32]))),
        network_keys: BTreeMap::from([("net".into(), vec![Key::from_bytes([2; 32])])]),
        ..Replica::default()
    }
}

/// [`replica`] as gossip sees it.
pub fn directory(count: u8) -> Arc<Directory> {
    Arc::new(Directory::new(Arc::new(replica(count))))
}
