//! What followers of the managers get: everything once, then changes by revision.
//!
//! A revision is a place in the managers' log. A follower that was away asks for what came after the revision
//! it knows; if that is no longer remembered it is told so and takes everything anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::command::{BlockRef, Settings};
use super::ids::{Digest, Key, NodeId};
use super::nodes::{Node, Revoked};
use super::secrets::KeyRing;
use crate::model::network::{Catalog, Network};
use crate::model::service::Service;

/// Revisions that are remembered.
pub const HISTORY_MAX: usize = 4096;

/// What the cluster is, for nodes to know and to check certificates by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its id.
    pub cluster: String,
    /// Its settings.
    pub settings: Settings,
    /// Certificates of the CAs to trust, in PEM.
    pub authorities: Vec<String>,
    /// SHA-256 of the CA in use.
    pub digest: Digest,
}

/// A leased block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The holder.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: u64,
    /// Greater than that of any lease before.
    pub fence: u64,
    /// How many addresses from its first one.
    pub len: u32,
    /// How many have an endpoint, as last told by the holder.
    pub used: u32,
    /// Addresses in it that are not the holder's.
    pub except: BTreeSet<IpAddr>,
}

/// A claimed address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Whose it is.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: u64,
    /// Greater than that of any lease before.
    pub fence: u64,
}

/// Something is, or is no longer. Each can be applied twice without harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The cluster is this.
    Identity(Box<Identity>),
    /// The networks every node has, and no user network or service yet.
    Catalog(Box<Catalog>),
    /// A node is like this.
    Node(Box<Node>),
    /// A node is gone.
    NodeGone(NodeId),
    /// A certificate is refused from now on.
    Revoked(Revoked),
    /// A network is like this.
    Network(Box<Network>),
    /// A network is gone, with all leases in it.
    NetworkGone(String),
    /// A service is like this.
    Service(Box<Service>),
    /// A service is gone.
    ServiceGone(String),
    /// A block is held like this.
    Block(BlockRef, Block),
    /// A block is held by nobody.
    BlockGone(BlockRef),
    /// An address is claimed.
    Claim {
        /// Id of the network.
        network: String,
        /// The address.
        address: IpAddr,
        /// By whom.
        claim: Claim,
    },
    /// An address is no longer claimed.
    ClaimGone {
        /// Id of the network.
        network: String,
        /// The address.
        address: IpAddr,
    },
    /// The gossip ring is this.
    Keys(KeyRing),
    /// The keys of one network are these. For one node, and no other gets to see it.
    NetworkKeys {
        /// The node, which takes part in the network.
        node: NodeId,
        /// Id of the network.
        network: String,
        /// The one that seals comes first. None: the node takes part no more.
        keys: Vec<Key>,
    },
    /// A hint to the holder of a block: give this address up if it is unused.
    Wanted {
        /// The holder.
        holder: NodeId,
        /// Id of the network.
        network: String,
        /// The address.
        address: IpAddr,
    },
    /// A hint to all: give unused blocks of this subnet back.
    Scarce {
        /// Id of the network.
        network: String,
        /// The subnet.
        subnet: IpNetwork,
    },
}

/// The changes of one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Place in the managers' log.
    pub revision: u64,
    /// In the order they happened.
    pub changes: Vec<Change>,
}

/// What a follower asking for "after revision r" gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update {
    /// Everything there is; what is not in here is not.
    Snapshot(Delta),
    /// What came after, in order; empty when nothing did.
    Deltas(Vec<Delta>),
}

impl Update {
    /// Without what is meant for other nodes than this one.
    #[must_use]
    pub fn only_for(mut self, node: NodeId) -> Update {
        let foreign =
            |change: &Change| matches!(change, Change::NetworkKeys { node: of, .. } if *of != node);
        let deltas = match &mut self {
            Update::Snapshot(delta) => std::slice::from_mut(delta),
            Update::Deltas(deltas) => deltas,
        };
        for delta in deltas {
            delta.changes.retain(|change| !foreign(change));
        }
        self
    }
}

/// The last revisions of one manager.
#[derive(Clone, Debug, Default)]
pub struct History {
    deltas: VecDeque<Delta>,
    /// Every change after this revision is in `deltas`.
    floor: u64,
}

impl History {
    /// Of a state at `revision` whose past is not known.
    pub fn starting_at(revision: u64) -> History {
        History {
            deltas: VecDeque::new(),
            floor: revision,
        }
    }

    /// Adds what a command changed.
    pub fn push(&mut self, revision: u64, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        while self.deltas.len() >= HISTORY_MAX {
            if let Some(old) = self.deltas.pop_front() {
                self.floor = old.revision;
            }
        }
        self.deltas.push_back(Delta { revision, changes });
    }

    /// What came after `revision`, at most `max` revisions of it; `None` if that is no longer known.
    pub fn after(&self, revision: u64, max: usize) -> Option<Vec<Delta>> {
        if revision < self.floor {
            return None;
        }
        let from = self.deltas.partition_point(|d| d.revision <= revision);
        Some(self.deltas.range(from..).take(max).cloned().collect())
    }
}

/// What a follower knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Everything up to this revision is in here.
    pub revision: u64,
    /// What the cluster is.
    pub identity: Option<Identity>,
    /// Networks, with those every node has.
    pub catalog: Option<Catalog>,
    /// Services by id.
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Certificates that are refused.
    pub revoked: Vec<Revoked>,
    /// Leased blocks, by network and then by subnet and first address.
    pub blocks: BTreeMap<String, Vec<(BlockRef, Block)>>,
    /// Claimed addresses, by network.
    pub claims: BTreeMap<String, BTreeMap<IpAddr, Claim>>,
    /// The gossip ring.
    pub keys: Option<KeyRing>,
    /// The keys of the networks that this node takes part in; the one that seals comes first.
    #[serde(default)]
    pub network_keys: BTreeMap<String, Vec<Key>>,
}

impl Replica {
    /// Takes an update in. Returns what is new, for whoever acts on it; after a snapshot that is all of it.
    pub fn take(&mut self, update: Update) -> Vec<Change> {
        let deltas = match update {
            Update::Snapshot(delta) => {
                *self = Replica::default();
                vec![delta]
            }
            Update::Deltas(deltas) => deltas,
        };
        let mut news = Vec::new();
        for delta in deltas {
            // A snapshot may be of any revision; a delta that came twice is no news.
            if delta.revision <= self.revision && self.identity.is_some() {
                continue;
            }
            for change in delta.changes {
                self.apply(&change);
                news.push(change);
            }
            self.revision = self.revision.max(delta.revision);
        }
        news
    }

    /// The node that may use `address`, with epoch and fence of its lease.
    pub fn holder_of(&self, network: &str, address: IpAddr) -> Option<Claim> {
        if let Some(claim) = self.claims.get(network).and_then(|c| c.get(&address)) {
            return Some(*claim);
        }
        let blocks = self.blocks.get(network)?;
        let from = blocks.partition_point(|(at, _)| at.first <= address);
        let (at, block) = blocks.get(from.checked_sub(1)?)?;
        let inside = offset(at.first, address).is_some_and(|n| n < u128::from(block.len));
        (inside && !block.except.contains(&address)).then_some(Claim {
            node: block.node,
            epoch: block.epoch,
            fence: block.fence,
        })
    }

    /// Whether a node holds addresses of a network: only then may it have endpoints there.
    pub fn takes_part(&self, node: NodeId, network: &str) -> bool {
        let blocks = self.blocks.get(network).into_iter().flatten();
        let mut claims = self
            .claims
            .get(network)
            .into_iter()
            .flat_map(|c| c.values());
        blocks.into_iter().any(|(_, block)| block.node == node) || claims.any(|c| c.node == node)
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Identity(identity) => self.identity = Some((**identity).clone()),
            Change::Catalog(catalog) => self.catalog = Some((**catalog).clone()),
            Change::Node(node) => {
                self.nodes.insert(node.id, (**node).clone());
            }
            Change::NodeGone(id) => {
                self.nodes.remove(id);
            }
            Change::Revoked(revoked) => {
                if !self.revoked.contains(revoked) {
                    self.revoked.push(revoked.clone());
                }
            }
            Change::Network(network) => {
                if let Some(catalog) = &mut self.catalog {
                    catalog
                        .networks
                        .insert(network.id.clone(), (**network).clone());
                }
            }
            Change::NetworkGone(id) => {
                if let Some(catalog) = &mut self.catalog {
                    catalog.remove(id);
                }
                self.blocks.remove(id);
                self.claims.remove(id);
                self.network_keys.remove(id);
            }
            Change::Service(service) => {
                self.services
                    .insert(service.id.clone(), (**service).clone());
            }
            Change::ServiceGone(id) => {
                self.services.remove(id);
            }
            Change::Block(at, block) => {
                let blocks = self.blocks.entry(at.network.clone()).or_default();
                match blocks.binary_search_by_key(&at.first, |(at, _)| at.first) {
                    Ok(index) => blocks[index].1 = block.clone(),
                    Err(index) => blocks.insert(index, (at.clone(), block.clone())),
                }
            }
            Change::BlockGone(at) => {
                if let Some(blocks) = self.blocks.get_mut(&at.network) {
                    blocks.retain(|(other, _)| other.first != at.first);
                }
            }
            Change::Claim {
                network,
                address,
                claim,
            } => {
                let claims = self.claims.entry(network.clone()).or_default();
                claims.insert(*address, *claim);
            }
            Change::ClaimGone { network, address } => {
                if let Some(claims) = self.claims.get_mut(network) {
                    claims.remove(address);
                }
            }
            Change::Keys(keys) => self.keys = Some(keys.clone()),
            Change::NetworkKeys { network, keys, .. } if keys.is_empty() => {
                self.network_keys.remove(network);
            }
            Change::NetworkKeys { network, keys, .. } => {
                self.network_keys.insert(network.clone(), keys.clone());
            }
            Change::Wanted { .. } | Change::Scarce { .. } => {}
        }
    }
}

fn offset(from: IpAddr, to: IpAddr) -> Option<u128> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            u32::from(to).checked_sub(u32::from(from)).map(u128::from)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => u128::from(to).checked_sub(u128::from(from)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(n: u128) -> Vec<Change> {
        vec![Change::NodeGone(NodeId::from_bits(n))]
    }

    #[test]
    fn a_networks_keys_reach_one_node_only() {
        let keys = |n: u128| Change::NetworkKeys {
            node: NodeId::from_bits(n),
            network: "net".into(),
            keys: vec![Key::from_bytes([n as u8; 32])],
        };
        let delta = Delta {
            revision: 1,
            changes: vec![keys(1), Change::NodeGone(NodeId::from_bits(9)), keys(2)],
        };
        for update in [Update::Snapshot(delta.clone()), Update::Deltas(vec![delta])] {
            let mut replica = Replica::default();
            let news = replica.take(update.only_for(NodeId::from_bits(2)));
            assert_eq!(news.len(), 2);
            assert_eq!(
                replica.network_keys["net"],
                [Key::from_bytes([2; 32])],
                "the other's key came through"
            );
        }
    }

    #[test]
    fn history_goes_back_as_far_as_it_says() {
        let mut history = History::starting_at(10);
        history.push(11, gone(1));
        history.push(12, Vec::new());
        history.push(13, gone(2));
        assert_eq!(history.after(9, 100), None);
        let revisions = |after| -> Vec<u64> {
            let deltas = history.after(after, 100).unwrap();
            deltas.iter().map(|d| d.revision).collect()
        };
        assert_eq!(revisions(10), [11, 13]);
        assert_eq!(revisions(12), [13]);
        assert_eq!(revisions(13), [0; 0]);
        assert_eq!(history.after(10, 1).unwrap().len(), 1);
    }

    #[test]
    fn history_is_bounded_and_knows_its_floor() {
        let mut history = History::default();
        for revision in 1..=HISTORY_MAX as u64 + 5 {
            history.push(revision, gone(1));
        }
        assert_eq!(history.after(4, 1), None);
        assert_eq!(history.after(5, usize::MAX).unwrap().len(), HISTORY_MAX);
    }
}
