//! The managers' state as the simulator has it: the same on every node, and changed by hand.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use weft::cluster::NodeNumber;
use weft::cluster::gossip::{Authority, PublicKey, SigningKey, Unauthorised};
use weft::cluster::manager::nodes::Node;
use weft::cluster::manager::watch::Replica;
use weft::tables::record::EndpointRecord;

/// A node as the managers know it.
pub struct Grant {
    pub name: Arc<str>,
    pub key: PublicKey,
    pub vtep: IpAddr,
}

/// What the managers say.
#[derive(Default)]
pub struct Managers {
    pub nodes: BTreeMap<NodeNumber, Grant>,
    /// Networks with a list of their nodes; others are open to all.
    pub closed: BTreeMap<String, BTreeSet<NodeNumber>>,
    /// Addresses that are leased to one node; others are anybody's.
    pub leases: BTreeMap<IpAddr, NodeNumber>,
    pub verified: Rc<Verified>,
}

/// The same chunk is verified once for all nodes: real signatures, a fraction of the time.
#[derive(Default)]
pub struct Verified {
    known: RefCell<HashMap<(u64, u64), bool>>,
    pub count: Cell<u64>,
}

impl Verified {
    fn verify(
        &self,
        node: NodeNumber,
        key: PublicKey,
        message: &[u8],
        signature: &[u8; 64],
    ) -> bool {
        let hash = |salt: u64| {
            let mut hasher = DefaultHasher::new();
            (salt, node, message, signature).hash(&mut hasher);
            hasher.finish()
        };
        let place = (hash(1), hash(2));
        *self.known.borrow_mut().entry(place).or_insert_with(|| {
            self.count.set(self.count.get() + 1);
            key.verify(message, signature)
        })
    }
}

/// The managers' state as one node knows it: a copy that follows.
#[derive(Default)]
pub struct Known {
    pub replica: Replica,
    pub verified: Rc<Verified>,
}

impl Known {
    fn node(&self, node: NodeNumber) -> Option<&Node> {
        self.replica.nodes.values().find(|n| n.number == node.0)
    }
}

impl Authority for Known {
    fn node_name(&self, node: NodeNumber) -> Option<Arc<str>> {
        self.node(node).map(|node| node.name.as_str().into())
    }

    fn takes_part(&self, node: NodeNumber, network: &str) -> bool {
        let node = self.node(node);
        node.is_some_and(|node| self.replica.takes_part(node.id, network))
    }

    fn judge(
        &self,
        owner: NodeNumber,
        _epoch: u64,
        record: &EndpointRecord,
    ) -> Result<(), Unauthorised> {
        let node = self.node(owner).ok_or(Unauthorised::Vtep)?;
        if record.vtep != node.vtep {
            return Err(Unauthorised::Vtep);
        }
        let own = |ip: &IpAddr| {
            let holder = self.replica.holder_of(&record.network, *ip);
            holder.is_some_and(|claim| claim.node == node.id)
        };
        match record.ips.iter().all(own) {
            true => Ok(()),
            false => Err(Unauthorised::Address),
        }
    }

    fn verify(&self, node: NodeNumber, message: &[u8], signature: &[u8; 64]) -> bool {
        let Some(known) = self.node(node) else {
            return false;
        };
        let key = PublicKey(*known.verify_key.bytes());
        self.verified.verify(node, key, message, signature)
    }
}

/// The key of a node; a seed makes it.
pub fn key_of(node: NodeNumber) -> SigningKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&node.0.to_be_bytes());
    SigningKey::from_seed(&seed)
}

pub fn vtep_of(node: NodeNumber) -> IpAddr {
    let [.., a, b] = node.0.to_be_bytes();
    IpAddr::from([192, 168, a, b])
}

impl Managers {
    pub fn admit(&mut self, node: NodeNumber) {
        let grant = Grant {
            name: format!("node-{}", node.0).into(),
            key: key_of(node).public(),
            vtep: vtep_of(node),
        };
        self.nodes.insert(node, grant);
    }
}

impl Authority for Managers {
    fn node_name(&self, node: NodeNumber) -> Option<Arc<str>> {
        self.nodes.get(&node).map(|grant| Arc::clone(&grant.name))
    }

    fn takes_part(&self, node: NodeNumber, network: &str) -> bool {
        let allowed = |nodes: &BTreeSet<NodeNumber>| nodes.contains(&node);
        self.nodes.contains_key(&node) && self.closed.get(network).is_none_or(allowed)
    }

    fn judge(
        &self,
        owner: NodeNumber,
        _epoch: u64,
        record: &EndpointRecord,
    ) -> Result<(), Unauthorised> {
        let grant = self.nodes.get(&owner).ok_or(Unauthorised::Vtep)?;
        if record.vtep != grant.vtep {
            return Err(Unauthorised::Vtep);
        }
        let foreign = |ip: &IpAddr| self.leases.get(ip).is_some_and(|node| *node != owner);
        if record.ips.iter().any(foreign) {
            return Err(Unauthorised::Address);
        }
        Ok(())
    }

    fn verify(&self, node: NodeNumber, message: &[u8], signature: &[u8; 64]) -> bool {
        let grant = self.nodes.get(&node);
        grant.is_some_and(|grant| self.verified.verify(node, grant.key, message, signature))
    }
}
