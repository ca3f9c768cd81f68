//! Which node holds which addresses: blocks leased as a whole, single addresses claimed by number.
//!
//! **Invariant:** at any time an address belongs to at most one node: to the holder of its block, unless it
//! is among that block's exceptions, or else to its claimer. What was in use rests before another node gets
//! it; the node that had it may have it back at once, because its own records are in order. What a service has claimed
//! is no node's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::command::{BlockRef, BlockUse};
use super::ids::NodeId;
use super::reply::{Granted, Outcome, Refusal, Reply};
use super::state::{Cluster, Scene};
use super::watch::{Change, Claim};
use crate::cluster::ipam::space::Space;
use crate::model::network::{Network, Subnet};

mod look;
pub(super) mod vips;

/// Blocks that one command may ask for.
pub const BLOCKS_PER_REQUEST_MAX: u32 = 64;
/// Blocks or addresses that one command may name.
pub const LIST_LEN_MAX: usize = 10_000;

/// The leases of all networks, by network id and subnet.
pub type Leases = BTreeMap<String, BTreeMap<IpNetwork, SubnetLeases>>;

/// The leases of one subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetLeases {
    /// Index of the block to be tried first: behind the last one given, so that used ones rest long.
    cursor: u128,
    /// Blocks that are held or rest, by first address.
    blocks: BTreeMap<IpAddr, BlockState>,
    /// Single addresses that are claimed or rest.
    claims: BTreeMap<IpAddr, ClaimState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BlockState {
    Held(Held),
    Resting(Resting),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    node: NodeId,
    epoch: u64,
    fence: u64,
    /// As last reported.
    used: u32,
    /// Addresses in it that are not the holder's.
    except: BTreeSet<IpAddr>,
    /// Until when its addresses rest for all others: the holder has got back what it had given back not long before,
    /// and need not remember that.
    #[serde(default, skip_serializing_if = "is_zero")]
    rest_until_ms: u64,
}

fn is_zero(ms: &u64) -> bool {
    *ms == 0
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Resting {
    /// The node that had it; none after a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<NodeId>,
    until_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ClaimState {
    Held {
        node: NodeId,
        epoch: u64,
        fence: u64,
    },
    /// A virtual address.
    Service {
        /// Id of the service.
        service: String,
    },
    Resting(Resting),
}

impl Resting {
    fn after(node: NodeId, until_ms: u64) -> Resting {
        let node = Some(node);
        Resting { node, until_ms }
    }

    /// Whether `node` has to keep off.
    fn bars(&self, node: NodeId, now_ms: u64) -> bool {
        self.until_ms > now_ms && self.node != Some(node)
    }
}

impl SubnetLeases {
    fn rests_alone(&self, ip: IpAddr, node: NodeId, now_ms: u64) -> bool {
        match self.claims.get(&ip) {
            Some(ClaimState::Held { .. } | ClaimState::Service { .. }) => true,
            Some(ClaimState::Resting(rest)) => rest.bars(node, now_ms),
            None => false,
        }
    }

    /// Addresses of a block that `node` cannot have because of claims.
    fn exceptions(
        &self,
        space: &Space<'_>,
        first: IpAddr,
        node: NodeId,
        now_ms: u64,
    ) -> BTreeSet<IpAddr> {
        let all = space.usable_in(first);
        all.filter(|ip| self.rests_alone(*ip, node, now_ms))
            .collect()
    }

    /// Up to `count` blocks that `node` can have, with their exceptions. Those that have rested for all go
    /// first, then what the node itself has given back.
    fn free_blocks(
        &self,
        space: &Space<'_>,
        node: NodeId,
        count: u32,
        now_ms: u64,
    ) -> Vec<(u128, IpAddr, BTreeSet<IpAddr>)> {
        let total = space.block_count();
        let start = self.cursor % total.max(1);
        let mut found = Vec::new();
        let mut own = Vec::new();
        for index in (start..total).chain(0..start) {
            if found.len() as u32 == count {
                break;
            }
            let Some(first) = space.block_at(index) else {
                break;
            };
            let rested = match self.blocks.get(&first) {
                Some(BlockState::Held(_)) => continue,
                Some(BlockState::Resting(rest)) if rest.bars(node, now_ms) => continue,
                Some(BlockState::Resting(rest)) => rest.until_ms <= now_ms,
                None => true,
            };
            let except = self.exceptions(space, first, node, now_ms);
            if space.usable_in(first).count() == except.len() {
                continue;
            }
            let list = if rested { &mut found } else { &mut own };
            list.push((index, first, except));
        }
        found.extend(own);
        found.truncate(count as usize);
        found
    }
}

impl Cluster {
    /// Gives a node up to `count` blocks of a network.
    pub(super) fn lease_blocks(
        &mut self,
        scene: &mut Scene<'_>,
        node: NodeId,
        network: &str,
        subnet: Option<IpNetwork>,
        count: u32,
    ) -> Outcome {
        if !(1..=BLOCKS_PER_REQUEST_MAX).contains(&count) {
            return Err(too_many(
                "blocks",
                u64::from(count),
                BLOCKS_PER_REQUEST_MAX.into(),
            ));
        }
        let now_ms = scene.stamp.cluster_ms;
        let epoch = self.node(node)?.epoch;
        let network = self.network(network)?.clone();
        let mut refusal = None;
        for candidate in candidates(&network, subnet)? {
            let space = Space::new(candidate);
            let leases = self.leases_of(&network.id, candidate.prefix);
            let free = leases.free_blocks(&space, node, count, now_ms);
            let Some((last, ..)) = free.last() else {
                let leases = leases.clone();
                refusal = refusal.or(Some(leases.exhausted(candidate, self, now_ms)));
                scene.changes.push(Change::Scarce {
                    network: network.id.clone(),
                    subnet: candidate.prefix,
                });
                continue;
            };
            leases.cursor = last + 1;
            let mut granted = Vec::new();
            for (_, first, except) in free {
                granted.push(self.hold(scene, &network, candidate, first, node, epoch, except));
            }
            return Ok(Reply::Blocks(granted));
        }
        Err(refusal.map_or_else(
            || Refusal::UnknownNetwork(network.id.clone()),
            Refusal::Exhausted,
        ))
    }

    #[allow(clippy::too_many_arguments)] // one call, and each of them is the lease
    fn hold(
        &mut self,
        scene: &mut Scene<'_>,
        network: &Network,
        subnet: &Subnet,
        first: IpAddr,
        node: NodeId,
        epoch: u64,
        except: BTreeSet<IpAddr>,
    ) -> Granted {
        let fence = self.next_fence();
        let leases = self.leases_of(&network.id, subnet.prefix);
        let rest_until_ms = match leases.blocks.get(&first) {
            Some(BlockState::Resting(rest)) => rest.until_ms,
            _ => 0,
        };
        let held = Held {
            node,
            epoch,
            fence,
            used: 0,
            except: except.clone(),
            rest_until_ms,
        };
        let block = BlockRef {
            network: network.id.clone(),
            subnet: subnet.prefix,
            first,
        };
        let len = Space::new(subnet).block_len();
        scene
            .changes
            .push(Change::Block(block.clone(), held.view(len)));
        let leases = self.leases_of(&network.id, subnet.prefix);
        leases.blocks.insert(first, BlockState::Held(held));
        Granted {
            block,
            len,
            fence,
            except: except.into_iter().collect(),
            revision: scene.revision,
        }
    }

    /// Takes blocks back from a node, but for those it has got anew. `rested` says that none of their addresses was
    /// in use of late.
    pub(super) fn release_blocks(
        &mut self,
        scene: &mut Scene<'_>,
        node: NodeId,
        blocks: &[BlockRef],
        rested: bool,
        fence: u64,
    ) -> Outcome {
        check_len("blocks", blocks.len())?;
        let now_ms = scene.stamp.cluster_ms;
        let anew_ms = self.rest_until(scene);
        for block in blocks {
            // Of a network that is gone, or taken back before: there is nothing left to release.
            let Some(leases) = self.existing_leases(&block.network, block.subnet) else {
                continue;
            };
            let until_ms = match leases.blocks.get(&block.first) {
                Some(BlockState::Held(held)) if held.node == node && held.fence <= fence => {
                    if rested {
                        held.rest_until_ms
                    } else {
                        anew_ms
                    }
                }
                _ => continue,
            };
            if until_ms <= now_ms {
                leases.blocks.remove(&block.first);
            } else {
                let rest = Resting::after(node, until_ms);
                leases.blocks.insert(block.first, BlockState::Resting(rest));
            }
            scene.changes.push(Change::BlockGone(block.clone()));
        }
        Ok(Reply::Done)
    }

    /// Notes how much of its blocks a node uses.
    pub(super) fn report_use(
        &mut self,
        scene: &mut Scene<'_>,
        node: NodeId,
        blocks: &[BlockUse],
    ) -> Outcome {
        check_len("blocks", blocks.len())?;
        for BlockUse { block, used } in blocks {
            let len = self.block_len(block);
            let Some(leases) = self.existing_leases(&block.network, block.subnet) else {
                continue;
            };
            if let (Some(BlockState::Held(held)), Some(len)) =
                (leases.blocks.get_mut(&block.first), len)
                && held.node == node
            {
                held.used = (*used).min(len);
                scene
                    .changes
                    .push(Change::Block(block.clone(), held.view(len)));
            }
        }
        Ok(Reply::Done)
    }

    /// Gives a node one address and no other.
    pub(super) fn claim_address(
        &mut self,
        scene: &mut Scene<'_>,
        node: NodeId,
        network: &str,
        address: IpAddr,
    ) -> Outcome {
        let now_ms = scene.stamp.cluster_ms;
        self.node(node)?;
        let network = self.network(network)?.clone();
        let Some(subnet) = network.subnets().find(|s| s.prefix.contains(address)) else {
            let subnets: Vec<String> = network.subnets().map(|s| s.prefix.to_string()).collect();
            return Err(Refusal::AddressOutside {
                address,
                name: network.name.clone(),
                subnets: subnets.join(", "),
            });
        };
        let space = Space::new(subnet);
        if let Some(what) = space.unusable(address) {
            return Err(Refusal::AddressReserved {
                address,
                subnet: subnet.prefix,
                what,
            });
        }
        let leases = self.leases_of(&network.id, subnet.prefix);
        match leases.claims.get(&address) {
            // It may have given the claim back, and that is still on its way: the new fence keeps it off.
            Some(ClaimState::Held { node: owner, .. }) if *owner == node => {
                return Ok(self.hold_claim(scene, &network.id, subnet, address, node));
            }
            Some(ClaimState::Held { node: owner, .. }) => {
                let owner = *owner;
                return Err(self.taken(address, owner));
            }
            Some(ClaimState::Service { service }) => {
                let service = service.clone();
                return Err(Refusal::AddressOfService {
                    address,
                    service: self.service_name(&service),
                });
            }
            Some(ClaimState::Resting(rest)) if rest.bars(node, now_ms) => {
                return Err(rests(address, rest.until_ms, now_ms));
            }
            _ => {}
        }
        let block = space.block_of(address).map(|(first, _)| first);
        match block.and_then(|first| leases.blocks.get(&first)) {
            Some(BlockState::Held(held)) if !held.except.contains(&address) => {
                let held = held.clone();
                let first = block.unwrap_or(address);
                return self.claim_in_block(scene, &network, subnet, first, &held, node, address);
            }
            Some(BlockState::Resting(rest)) if rest.bars(node, now_ms) => {
                return Err(rests(address, rest.until_ms, now_ms));
            }
            _ => {}
        }
        Ok(self.hold_claim(scene, &network.id, subnet, address, node))
    }

    fn hold_claim(
        &mut self,
        scene: &mut Scene<'_>,
        network: &str,
        subnet: &Subnet,
        address: IpAddr,
        node: NodeId,
    ) -> Reply {
        let epoch = self.nodes.get(&node).map_or(0, |node| node.epoch);
        let fence = self.next_fence();
        let leases = self.leases_of(network, subnet.prefix);
        leases
            .claims
            .insert(address, ClaimState::Held { node, epoch, fence });
        scene.changes.push(Change::Claim {
            network: network.to_owned(),
            address,
            claim: Claim { node, epoch, fence },
        });
        Reply::Claimed {
            address,
            fence,
            revision: scene.revision,
        }
    }

    /// The address is in a block that somebody holds: the node itself, which then needs no claim, or
    /// another, which is asked to give it up.
    #[allow(clippy::too_many_arguments)] // the other half of `claim_address`
    fn claim_in_block(
        &mut self,
        scene: &mut Scene<'_>,
        network: &Network,
        subnet: &Subnet,
        first: IpAddr,
        held: &Held,
        node: NodeId,
        address: IpAddr,
    ) -> Outcome {
        if held.node == node {
            let granted = Granted {
                block: BlockRef {
                    network: network.id.clone(),
                    subnet: subnet.prefix,
                    first,
                },
                len: Space::new(subnet).block_len(),
                fence: held.fence,
                except: held.except.iter().copied().collect(),
                revision: scene.revision,
            };
            // Nothing changes, but followers have to get as far as the answer says.
            let change = Change::Block(granted.block.clone(), held.view(granted.len));
            scene.changes.push(change);
            return Ok(Reply::Blocks(vec![granted]));
        }
        let up = self.nodes.get(&held.node).is_some_and(|n| n.is_ready());
        if !up {
            return Err(self.taken(address, held.node));
        }
        scene.changes.push(Change::Wanted {
            holder: held.node,
            network: network.id.clone(),
            address,
        });
        Ok(Reply::Wanted { holder: held.node })
    }

    /// Takes claimed addresses back.
    pub(super) fn release_addresses(
        &mut self,
        scene: &mut Scene<'_>,
        node: NodeId,
        network: &str,
        addresses: &BTreeSet<IpAddr>,
        fence: u64,
    ) -> Outcome {
        check_len("addresses", addresses.len())?;
        let until_ms = self.rest_until(scene);
        for address in addresses {
            for leases in self
                .leases
                .get_mut(network)
                .into_iter()
                .flat_map(|n| n.values_mut())
            {
                let own = matches!(leases.claims.get(address),
                    Some(ClaimState::Held { node: owner, fence: of, .. }) if *owner == node && *of <= fence);
                if own {
                    let rest = ClaimState::Resting(Resting::after(node, until_ms));
                    leases.claims.insert(*address, rest);
                    scene.changes.push(Change::ClaimGone {
                        network: network.to_owned(),
                        address: *address,
                    });
                }
            }
        }
        Ok(Reply::Done)
    }

    /// A node gives up one unused address of its block.
    pub(super) fn yield_address(
        &mut self,
        scene: &mut Scene<'_>,
        node: NodeId,
        network: &str,
        address: IpAddr,
        fence: u64,
    ) -> Outcome {
        let not_held = Refusal::NotHeld {
            node: self.node(node)?.name.clone(),
            what: format!("address {address}"),
        };
        let network = self.network(network)?.clone();
        let subnet = network.subnets().find(|s| s.prefix.contains(address));
        let place = subnet.and_then(|s| Some((s, Space::new(s).block_of(address)?.0)));
        let Some((subnet, first)) = place else {
            return Err(not_held);
        };
        let len = Space::new(subnet).block_len();
        let now_ms = scene.stamp.cluster_ms;
        let leases = self.leases_of(&network.id, subnet.prefix);
        match leases.blocks.get_mut(&first) {
            Some(BlockState::Held(held)) if held.node == node && held.fence <= fence => {
                held.except.insert(address);
                let until_ms = held.rest_until_ms;
                if until_ms > now_ms {
                    let rest = ClaimState::Resting(Resting {
                        node: Some(node),
                        until_ms,
                    });
                    leases.claims.entry(address).or_insert(rest);
                }
                let block = BlockRef {
                    network: network.id.clone(),
                    subnet: subnet.prefix,
                    first,
                };
                scene.changes.push(Change::Block(block, held.view(len)));
                Ok(Reply::Done)
            }
            _ => Err(not_held),
        }
    }

    /// All that a node holds goes back, and rests.
    pub(super) fn release_all(&mut self, scene: &mut Scene<'_>, node: NodeId) {
        let until_ms = self.rest_until(scene);
        for (network, subnets) in &mut self.leases {
            for (subnet, leases) in subnets {
                for (first, state) in &mut leases.blocks {
                    if matches!(state, BlockState::Held(held) if held.node == node) {
                        *state = BlockState::Resting(Resting::after(node, until_ms));
                        scene.changes.push(Change::BlockGone(BlockRef {
                            network: network.clone(),
                            subnet: *subnet,
                            first: *first,
                        }));
                    }
                }
                for (address, state) in &mut leases.claims {
                    if matches!(state, ClaimState::Held { node: owner, .. } if *owner == node) {
                        *state = ClaimState::Resting(Resting::after(node, until_ms));
                        scene.changes.push(Change::ClaimGone {
                            network: network.clone(),
                            address: *address,
                        });
                    }
                }
            }
        }
    }

    /// A node has started again with what it knew: its leases are of the new epoch.
    pub(super) fn adopt_all(&mut self, scene: &mut Scene<'_>, node: NodeId, epoch: u64) {
        let mut blocks = Vec::new();
        for (network, subnets) in &mut self.leases {
            for (subnet, leases) in subnets {
                for (first, state) in &mut leases.blocks {
                    if let BlockState::Held(held) = state
                        && held.node == node
                    {
                        held.epoch = epoch;
                        let block = BlockRef {
                            network: network.clone(),
                            subnet: *subnet,
                            first: *first,
                        };
                        blocks.push((block, held.clone()));
                    }
                }
                for (address, state) in &mut leases.claims {
                    if let ClaimState::Held {
                        node: owner,
                        epoch: of,
                        fence,
                    } = state
                        && *owner == node
                    {
                        *of = epoch;
                        scene.changes.push(Change::Claim {
                            network: network.clone(),
                            address: *address,
                            claim: Claim {
                                node,
                                epoch,
                                fence: *fence,
                            },
                        });
                    }
                }
            }
        }
        for (block, held) in blocks {
            if let Some(len) = self.block_len(&block) {
                scene.changes.push(Change::Block(block, held.view(len)));
            }
        }
    }

    /// Forgets rests that are over.
    pub(super) fn end_rests(&mut self, now_ms: u64) {
        for leases in self.leases.values_mut().flat_map(|n| n.values_mut()) {
            let over = |rest: &Resting| rest.until_ms <= now_ms;
            leases
                .blocks
                .retain(|_, state| !matches!(state, BlockState::Resting(rest) if over(rest)));
            leases
                .claims
                .retain(|_, state| !matches!(state, ClaimState::Resting(rest) if over(rest)));
        }
    }

    fn taken(&self, address: IpAddr, owner: NodeId) -> Refusal {
        Refusal::AddressTaken {
            address,
            owner: self.node_name(owner),
        }
    }

    fn rest_until(&self, scene: &Scene<'_>) -> u64 {
        scene
            .stamp
            .cluster_ms
            .saturating_add(self.settings.quarantine_ms)
    }

    fn leases_of(&mut self, network: &str, subnet: IpNetwork) -> &mut SubnetLeases {
        let subnets = self.leases.entry(network.to_owned()).or_default();
        subnets.entry(subnet).or_default()
    }

    fn existing_leases(&mut self, network: &str, subnet: IpNetwork) -> Option<&mut SubnetLeases> {
        self.leases.get_mut(network)?.get_mut(&subnet)
    }
}

/// The subnet that was asked for, or the network's IPv4 subnets in order.
fn candidates(network: &Network, subnet: Option<IpNetwork>) -> Result<Vec<&Subnet>, Refusal> {
    let Some(wanted) = subnet else {
        return Ok(network.segments.iter().map(|s| &s.v4).collect());
    };
    let found = network.subnets().find(|s| s.prefix == wanted);
    let refusal = || Refusal::UnknownNetwork(format!("{} with subnet {wanted}", network.name));
    Ok(vec![found.ok_or_else(refusal)?])
}

fn rests(address: IpAddr, until_ms: u64, now_ms: u64) -> Refusal {
    Refusal::AddressRests {
        address,
        free_in_ms: until_ms.saturating_sub(now_ms),
    }
}

fn check_len(what: &str, len: usize) -> Result<(), Refusal> {
    match len <= LIST_LEN_MAX {
        true => Ok(()),
        false => Err(too_many(what, len as u64, LIST_LEN_MAX as u64)),
    }
}

fn too_many(what: &str, count: u64, max: u64) -> Refusal {
    Refusal::TooMany {
        what: what.into(),
        count,
        max,
    }
}
