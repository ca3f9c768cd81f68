//! The managers' state as gossip asks for it: who a node number is, what is leased to it, which keys there are.
//!
//! A directory is one state, seen from one node. A new state makes a new directory; nothing in it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::gossip::{Authority, PublicKey, Unauthorised};
use super::manager::command::NodeStatus;
use super::manager::ids;
use super::manager::watch::Replica;
use super::node::NodeNumber;
use super::seal::Secret;
use crate::tables::record::EndpointRecord;

/// How far a node's epoch may be ahead of what the managers know. Agents may start again while there is no
/// manager to tell; a number far ahead is nobody's honest epoch, and would make the node's own messages look old.
const EPOCHS_AHEAD_MAX: u64 = 64;

/// A node, as the managers know it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its id.
    pub id: ids::NodeId,
    /// Its name.
    pub name: Arc<str>,
    /// Its VTEP, where its gossip comes from and goes to, too.
    pub vtep: IpAddr,
    /// The epoch it has told.
    pub epoch: u64,
    key: PublicKey,
}

/// One state of the managers. See the module's description.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    replica: Arc<Replica>,
    nodes: BTreeMap<NodeNumber, Listed>,
    /// Who holds addresses of what.
    parts: BTreeSet<(NodeNumber, String)>,
}

impl Directory {
    /// Of a state. Nodes that have left are not in it.
    pub fn new(replica: Arc<Replica>) -> Directory {
        let present = |status| status != NodeStatus::Left;
        let nodes = replica.nodes.values().filter(|node| present(node.status));
        let nodes: BTreeMap<NodeNumber, Listed> = nodes
            .map(|node| {
                let listed = Listed {
                    id: node.id,
                    name: node.name.as_str().into(),
                    vtep: node.vtep,
                    epoch: node.epoch,
                    key: PublicKey(*node.verify_key.bytes()),
                };
                (NodeNumber(node.number), listed)
            })
            .collect();
        let numbers: BTreeMap<ids::NodeId, NodeNumber> = nodes
            .iter()
            .map(|(number, node)| (node.id, *number))
            .collect();
        let blocks = replica.blocks.iter().flat_map(|(network, blocks)| {
            blocks.iter().map(move |(_, block)| (network, block.node))
        });
        let claims = replica
            .claims
            .iter()
            .flat_map(|(network, claims)| claims.values().map(move |claim| (network, claim.node)));
        let parts = blocks
            .chain(claims)
            .filter_map(|(network, node)| Some((*numbers.get(&node)?, network.clone())))
            .collect();
        Directory {
            replica,
            nodes,
            parts,
        }
    }

    /// The state itself.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// A node.
    pub fn node(&self, number: NodeNumber) -> Option<&Listed> {
        self.nodes.get(&number)
    }

    /// What to call a node when speaking to people: its name, or its number if the managers know no such node.
    pub fn name_of(&self, number: NodeNumber) -> String {
        match self.nodes.get(&number) {
            Some(node) => node.name.to_string(),
            None => number.to_string(),
        }
    }

    /// Every node, by number.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeNumber, &Listed)> {
        self.nodes.iter().map(|(number, node)| (*number, node))
    }

    /// Whether a message of that node and epoch can be an honest one.
    pub fn admits(&self, number: NodeNumber, epoch: u64) -> bool {
        self.nodes.get(&number).is_some_and(|node| {
            (node.epoch..=node.epoch.saturating_add(EPOCHS_AHEAD_MAX)).contains(&epoch)
        })
    }

    /// The ring of each scope (empty for the cluster): the key that seals comes first.
    pub fn rings(&self) -> BTreeMap<String, Vec<Secret>> {
        let secret = |key: &ids::Key| Secret(*key.bytes());
        let mut rings = BTreeMap::new();
        if let Some(ring) = &self.replica.keys {
            let keys = ring.in_order();
            rings.insert(String::new(), keys.iter().map(secret).collect());
        }
        for (network, keys) in &self.replica.network_keys {
            rings.insert(network.clone(), keys.iter().map(secret).collect());
        }
        rings
    }
}

impl Authority for Directory {
    fn node_name(&self, node: NodeNumber) -> Option<Arc<str>> {
        self.nodes.get(&node).map(|node| Arc::clone(&node.name))
    }

    fn takes_part(&self, node: NodeNumber, network: &str) -> bool {
        self.parts.contains(&(node, network.to_owned()))
    }

    fn judge(
        &self,
        owner: NodeNumber,
        epoch: u64,
        record: &EndpointRecord,
    ) -> Result<(), Unauthorised> {
        let node = self.nodes.get(&owner).ok_or(Unauthorised::Vtep)?;
        if record.vtep != node.vtep {
            return Err(Unauthorised::Vtep);
        }
        if !record.mac.is_station() {
            return Err(Unauthorised::Mac);
        }
        let catalog = self.replica.catalog.as_ref();
        let network = catalog.and_then(|catalog| catalog.networks.get(&record.network));
        let segment = network.and_then(|n| n.segments.iter().find(|s| s.vni == record.vni));
        let segment = segment.ok_or(Unauthorised::Vni)?;
        let leased = |ip: &IpAddr| {
            let holder = self.replica.holder_of(&record.network, *ip);
            // A lease of a later start of the node does not cover what it said before that start.
            holder.is_some_and(|claim| claim.node == node.id && claim.epoch <= epoch)
        };
        let inside = |ip: &IpAddr| segment.subnets().any(|subnet| subnet.prefix.contains(*ip));
        match record.ips.iter().all(|ip| inside(ip) && leased(ip)) && !record.ips.is_empty() {
            true => Ok(()),
            false => Err(Unauthorised::Address),
        }
    }

    fn verify(&self, node: NodeNumber, message: &[u8], signature: &[u8; 64]) -> bool {
        let node = self.nodes.get(&node);
        node.is_some_and(|node| node.key.verify(message, signature))
    }
}

#[cfg(test)]
mod tests;
