//! Reading the leases: who uses a network, what watchers see, why a subnet is full, when a rest is over.

use std::collections::{BTreeMap, BTreeSet};

use super::{BlockState, ClaimState, Held, SubnetLeases};
use crate::cluster::ipam::space::Space;
use crate::cluster::manager::command::BlockRef;
use crate::cluster::manager::ids::NodeId;
use crate::cluster::manager::reply::{Exhausted, Share};
use crate::cluster::manager::state::Cluster;
use crate::cluster::manager::watch::{Block, Change, Claim};
use crate::model::network::Subnet;

impl SubnetLeases {
    pub(super) fn exhausted(&self, subnet: &Subnet, cluster: &Cluster, now_ms: u64) -> Exhausted {
        let space = Space::new(subnet);
        let (mut used, mut leased, mut resting) = (0, 0, 0);
        let mut next_free_ms: Option<u64> = None;
        let mut by_node: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut rests = |until_ms: u64, count: u64| {
            let wait = until_ms.saturating_sub(now_ms);
            resting += count;
            next_free_ms = Some(next_free_ms.map_or(wait, |least| least.min(wait)));
        };
        for (first, state) in &self.blocks {
            let usable = space.usable_in(*first).count() as u64;
            match state {
                BlockState::Held(held) => {
                    leased += usable - (held.except.len() as u64).min(usable);
                    used += u64::from(held.used);
                    *by_node.entry(held.node).or_default() += u64::from(held.used);
                }
                BlockState::Resting(rest) if rest.until_ms > now_ms => rests(rest.until_ms, usable),
                BlockState::Resting(_) => {}
            }
        }
        for (ip, claim) in &self.claims {
            match claim {
                ClaimState::Held { node, .. } if space.area().contains(*ip) => {
                    (used, leased) = (used + 1, leased + 1);
                    *by_node.entry(*node).or_default() += 1;
                }
                ClaimState::Service { .. } if space.area().contains(*ip) => {
                    (used, leased) = (used + 1, leased + 1);
                }
                ClaimState::Resting(rest) if rest.until_ms > now_ms => rests(rest.until_ms, 1),
                _ => {}
            }
        }
        let largest = by_node
            .into_iter()
            .max_by_key(|(node, count)| (*count, *node));
        Exhausted {
            subnet: subnet.prefix,
            capacity: space.capacity(),
            used,
            leased,
            resting,
            next_free_ms,
            largest: largest
                .filter(|(_, count)| *count > 0)
                .map(|(node, count)| Share {
                    node: cluster.node_name(node),
                    count,
                }),
        }
    }
}

impl Cluster {
    /// Whether a node holds an address of any network.
    pub(in crate::cluster::manager) fn holds_any(&self, node: NodeId) -> bool {
        let mut all = self.leases.values().flat_map(|n| n.values());
        all.any(|leases| {
            let block = |s: &BlockState| matches!(s, BlockState::Held(h) if h.node == node);
            let claim =
                |s: &ClaimState| matches!(s, ClaimState::Held { node: n, .. } if *n == node);
            leases.blocks.values().any(block) || leases.claims.values().any(claim)
        })
    }

    /// Which nodes hold addresses of which networks.
    pub(in crate::cluster::manager) fn parts(&self) -> BTreeSet<(String, NodeId)> {
        let mut parts = BTreeSet::new();
        for (network, subnets) in &self.leases {
            for leases in subnets.values() {
                let blocks = leases.blocks.values().filter_map(|s| match s {
                    BlockState::Held(held) => Some(held.node),
                    BlockState::Resting(_) => None,
                });
                let claims = leases.claims.values().filter_map(|s| match s {
                    ClaimState::Held { node, .. } => Some(*node),
                    ClaimState::Service { .. } | ClaimState::Resting(_) => None,
                });
                parts.extend(blocks.chain(claims).map(|node| (network.clone(), node)));
            }
        }
        parts
    }

    /// When the next rest is over.
    pub(in crate::cluster::manager) fn next_rest_end(&self) -> Option<u64> {
        let all = self.leases.values().flat_map(|n| n.values());
        let ends = all.flat_map(|leases| {
            let blocks = leases.blocks.values().filter_map(|state| match state {
                BlockState::Resting(rest) => Some(rest.until_ms),
                BlockState::Held(_) => None,
            });
            let claims = leases.claims.values().filter_map(|state| match state {
                ClaimState::Resting(rest) => Some(rest.until_ms),
                ClaimState::Held { .. } | ClaimState::Service { .. } => None,
            });
            blocks.chain(claims)
        });
        ends.min()
    }

    /// Nodes that hold addresses of a network, and how many of them are in use; one at least each.
    pub(in crate::cluster::manager) fn users_of(&self, network: &str) -> Vec<Share> {
        let mut by_node: BTreeMap<NodeId, u64> = BTreeMap::new();
        for leases in self
            .leases
            .get(network)
            .into_iter()
            .flat_map(|n| n.values())
        {
            for state in leases.blocks.values() {
                if let BlockState::Held(held) = state {
                    *by_node.entry(held.node).or_default() += u64::from(held.used);
                }
            }
            for state in leases.claims.values() {
                if let ClaimState::Held { node, .. } = state {
                    *by_node.entry(*node).or_default() += 1;
                }
            }
        }
        let shares = by_node.into_iter().map(|(node, count)| Share {
            node: self.node_name(node),
            count: count.max(1),
        });
        shares.collect()
    }

    /// Everything held, as watchers see it.
    pub(in crate::cluster::manager) fn lease_views(&self) -> Vec<Change> {
        let mut views = Vec::new();
        for (network, subnets) in &self.leases {
            for (subnet, leases) in subnets {
                for (first, state) in &leases.blocks {
                    let block = BlockRef {
                        network: network.clone(),
                        subnet: *subnet,
                        first: *first,
                    };
                    if let (BlockState::Held(held), Some(len)) = (state, self.block_len(&block)) {
                        views.push(Change::Block(block, held.view(len)));
                    }
                }
                for (address, state) in &leases.claims {
                    if let ClaimState::Held { node, epoch, fence } = state {
                        views.push(Change::Claim {
                            network: network.clone(),
                            address: *address,
                            claim: Claim {
                                node: *node,
                                epoch: *epoch,
                                fence: *fence,
                            },
                        });
                    }
                }
            }
        }
        views
    }

    pub(super) fn block_len(&self, block: &BlockRef) -> Option<u32> {
        let network = self.catalog.networks.get(&block.network)?;
        let subnet = network.subnets().find(|s| s.prefix == block.subnet)?;
        Some(Space::new(subnet).block_len())
    }
}

impl Held {
    pub(super) fn view(&self, len: u32) -> Block {
        Block {
            node: self.node,
            epoch: self.epoch,
            fence: self.fence,
            len,
            used: self.used,
            except: self.except.clone(),
        }
    }
}
