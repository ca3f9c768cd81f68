//! Addresses of a node: allocated here, inside blocks that the managers have leased to it.
//!
//! ```text
//!  managers ── lease ──► block: free ──► used by an endpoint ──► resting ──► free
//!     ▲                    │                                     │
//!     └─── release ────────┴──── all of a network's blocks, when its last endpoint goes
//! ```
//! Pure and level-triggered: [`Ipam::actions`] says what managers should be asked for, and says it again until
//! it is done. **Invariant:** an address is given out only from a block or claim that is held, that managers have
//! confirmed within half of the time after which they would take it back, and that has rested.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use self::space::Space;
use super::manager::command::{BlockRef, BlockUse, Command};
use super::manager::ids::NodeId;
use super::manager::reply::Granted;
use super::manager::watch::Replica;
use crate::model::network::Subnet;

pub mod space;
pub mod usage;

/// Most blocks that are asked for at once.
const BLOCKS_AT_ONCE_MAX: u32 = 16;

/// The addresses a node holds, by network id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    /// How long an address rests, in milliseconds.
    quarantine_ms: u64,
    /// How long leases may go unconfirmed before nothing new is given out.
    trust_ms: u64,
    /// When managers last confirmed the leases, since the agent started.
    #[serde(skip)]
    confirmed_ms: Option<u64>,
    /// Places in the managers' log: that of the last grant that was taken in, and that of the state that was last
    /// compared with.
    #[serde(default)]
    granted_at: u64,
    #[serde(default)]
    compared_at: u64,
    networks: BTreeMap<String, Holding>,
}

/// What a node holds of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Holding {
    /// By first address.
    blocks: BTreeMap<IpAddr, Block>,
    claims: BTreeMap<IpAddr, Claim>,
    /// Claims that the managers have still to be told are over, with their fences.
    given_back: BTreeMap<IpAddr, u64>,
    /// Blocks that the managers have taken back, with their fences, until a copy of their state says so too.
    #[serde(default)]
    gone: BTreeMap<IpAddr, u64>,
    /// How many are waiting for addresses: those that come are for them.
    #[serde(skip)]
    awaited: u32,
    /// Claims that a copy of the managers' state has shown before their answer came, with their fences.
    #[serde(skip)]
    offered: BTreeMap<IpAddr, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Block {
    subnet: IpNetwork,
    len: u32,
    fence: u64,
    /// Addresses an endpoint can have; the yielded ones are out.
    usable: BTreeSet<IpAddr>,
    /// Endpoint ids by address.
    used: BTreeMap<IpAddr, String>,
    /// When the rest of an address is over.
    resting: BTreeMap<IpAddr, u64>,
    /// What the managers were last told is used.
    reported: u32,
    /// On its way back: nothing is given out of it.
    leaving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    endpoint: String,
    fence: u64,
}

/// An address an endpoint has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The address.
    pub address: IpAddr,
    /// Its subnet.
    pub subnet: IpNetwork,
    /// Of the lease, for the endpoint's record.
    pub fence: u64,
}

/// Why there is no address here and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Short {
    /// The managers have to be asked for blocks.
    #[error("no leased address is free: ask the managers for {count} more blocks")]
    NeedBlocks {
        /// How many to ask for.
        count: u32,
    },
    /// Nobody has confirmed the leases since the agent started.
    #[error("no manager has confirmed this node's addresses since its agent started")]
    NeverConfirmed,
    /// Nobody has confirmed the leases for too long: they may be another's by now.
    #[error("no manager has confirmed this node's addresses for {for_s} s")]
    Unconfirmed {
        /// For how long.
        for_s: u64,
    },
}

/// What became of the wish for one address and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// It is the endpoint's.
    Taken(Allocated),
    /// Another endpoint of this node has it.
    InUse {
        /// The endpoint.
        endpoint: String,
    },
    /// It is in no block of this node: claim it at the managers.
    Claim,
}

/// What the managers should be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lease blocks of a subnet, before the last address goes.
    Lease {
        /// Id of the network.
        network: String,
        /// The subnet.
        subnet: IpNetwork,
        /// How many.
        count: u32,
    },
    /// Take blocks back; then call [`Ipam::released`].
    Release {
        /// The blocks.
        blocks: Vec<BlockRef>,
        /// None of their addresses was in use of late.
        rested: bool,
        /// The latest of their fences.
        fence: u64,
    },
    /// Take claimed addresses back; then call [`Ipam::addresses_released`].
    ReleaseAddresses {
        /// Id of the network.
        network: String,
        /// The addresses.
        addresses: BTreeSet<IpAddr>,
        /// The latest of their fences.
        fence: u64,
    },
    /// Note what is in use; then call [`Ipam::reported`]. With nothing to note, it asks for a word that the
    /// leases still hold: any answer to a change is one, for it comes from a majority.
    Report(Vec<BlockUse>),
}

impl Action {
    /// What a node asks the managers for this with.
    pub fn command(&self, node: NodeId, epoch: u64) -> Command {
        match self.clone() {
            Action::Lease {
                network,
                subnet,
                count,
            } => Command::LeaseBlocks {
                node,
                epoch,
                network,
                subnet: Some(subnet),
                count,
            },
            Action::Release {
                blocks,
                rested,
                fence,
            } => Command::ReleaseBlocks {
                node,
                epoch,
                blocks,
                rested,
                fence,
            },
            Action::ReleaseAddresses {
                network,
                addresses,
                fence,
            } => Command::ReleaseAddresses {
                node,
                epoch,
                network,
                addresses,
                fence,
            },
            Action::Report(blocks) => Command::ReportUse {
                node,
                epoch,
                blocks,
            },
        }
    }
}

/// An endpoint whose address is no longer the node's: it has to be detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Id of the network.
    pub network: String,
    /// The address.
    pub address: IpAddr,
    /// The endpoint that had it.
    pub endpoint: String,
}

impl Ipam {
    /// Of a node that holds nothing. Nothing is given out before the first [`Ipam::confirm`].
    pub fn new(quarantine_ms: u64, reclaim_after_ms: u64) -> Ipam {
        Ipam {
            quarantine_ms,
            trust_ms: reclaim_after_ms / 2,
            confirmed_ms: None,
            granted_at: 0,
            compared_at: 0,
            networks: BTreeMap::new(),
        }
    }

    /// After a restart of the agent: the clock has begun anew, and what rested rests anew. How long the agent was
    /// away is not known, so nothing new is given out until managers have confirmed the leases.
    pub fn restart(&mut self, now_ms: u64) {
        self.confirmed_ms = None;
        let until = now_ms.saturating_add(self.quarantine_ms);
        let blocks = self
            .networks
            .values_mut()
            .flat_map(|h| h.blocks.values_mut());
        for end in blocks.flat_map(|b| b.resting.values_mut()) {
            *end = until;
        }
    }

    /// A majority of managers has answered: the leases hold as of now. What a follower is told is no such
    /// answer, for the manager that tells it may be cut off itself.
    pub fn confirm(&mut self, now_ms: u64) {
        self.confirmed_ms = self.confirmed_ms.max(Some(now_ms));
    }

    /// Somebody asks the managers for addresses of a network: what comes is not to go back at once. Until
    /// [`Ipam::await_no_more`].
    pub fn await_addresses(&mut self, network: &str) {
        let holding = self.networks.entry(network.to_owned()).or_default();
        holding.awaited += 1;
    }

    /// The answer has been taken in, or will not come.
    pub fn await_no_more(&mut self, network: &str) {
        if let Some(holding) = self.networks.get_mut(network) {
            holding.awaited = holding.awaited.saturating_sub(1);
        }
        self.forget_empty();
    }

    /// Takes a leased block in. Does nothing if it is here already, or if the answer comes so late that the state
    /// compared with is newer: then that has said what became of it.
    pub fn add_block(&mut self, granted: &Granted, subnet: &Subnet) {
        if granted.revision > self.compared_at {
            self.granted_at = self.granted_at.max(granted.revision);
            self.insert_block(granted, subnet);
        }
    }

    fn insert_block(&mut self, granted: &Granted, subnet: &Subnet) {
        let holding = self
            .networks
            .entry(granted.block.network.clone())
            .or_default();
        let usable = Space::new(subnet).usable_in(granted.block.first);
        let usable = usable.filter(|ip| !granted.except.contains(ip)).collect();
        let block = Block {
            subnet: granted.block.subnet,
            len: granted.len,
            fence: granted.fence,
            usable,
            used: BTreeMap::new(),
            resting: BTreeMap::new(),
            reported: 0,
            leaving: false,
        };
        // What was on its way back may have been granted anew before its release was heard of.
        let known = holding.blocks.get(&granted.block.first);
        if known.is_none_or(|known| known.fence < granted.fence) {
            holding.blocks.insert(granted.block.first, block);
        }
    }

    /// Takes a claimed address in, for an endpoint, as of a place in the managers' log. Returns whether the endpoint
    /// has it: not if the answer comes so late that a newer state has been seen in which it is not the node's.
    pub fn add_claim(
        &mut self,
        network: &str,
        address: IpAddr,
        (fence, revision): (u64, u64),
        endpoint: &str,
    ) -> bool {
        let late = revision <= self.compared_at;
        let holding = self.networks.entry(network.to_owned()).or_default();
        if late && holding.offered.get(&address) != Some(&fence) {
            return false;
        }
        self.granted_at = self.granted_at.max(revision);
        holding.given_back.remove(&address);
        let endpoint = endpoint.to_owned();
        holding.claims.insert(address, Claim { endpoint, fence });
        true
    }

    /// Gives an endpoint the lowest address of a subnet that is free and has rested. The same endpoint gets
    /// the same address again.
    ///
    /// # Errors
    /// When managers have to be asked first, or have not answered for too long.
    pub fn allocate(
        &mut self,
        network: &str,
        subnet: IpNetwork,
        endpoint: &str,
        now_ms: u64,
    ) -> Result<Allocated, Short> {
        if let Some(own) = self.address_of(network, subnet, endpoint) {
            return Ok(own);
        }
        self.check_trust(now_ms)?;
        self.pick(network, subnet, endpoint, now_ms)
    }

    /// As [`Ipam::allocate`], for when managers have no block left: the address that has rested longest. Other
    /// nodes cannot mix it up, because all records of it are this node's and in order.
    ///
    /// # Errors
    /// As `allocate`.
    pub fn allocate_resting(
        &mut self,
        network: &str,
        subnet: IpNetwork,
        endpoint: &str,
        now_ms: u64,
    ) -> Result<Allocated, Short> {
        let short = match self.allocate(network, subnet, endpoint, now_ms) {
            Err(short @ Short::NeedBlocks { .. }) => short,
            other => return other,
        };
        let holding = self.networks.get_mut(network).ok_or(short)?;
        let blocks = holding.blocks.values_mut();
        let resting = blocks
            .filter(|block| block.subnet == subnet && !block.leaving)
            .flat_map(|block| block.resting.iter_mut());
        let oldest = resting.min_by_key(|(_, until)| **until);
        *oldest.ok_or(short)?.1 = 0;
        self.pick(network, subnet, endpoint, now_ms)
    }

    /// Gives an endpoint one address and no other, if it is in a block of this node.
    ///
    /// # Errors
    /// When managers have not answered for too long.
    pub fn take(
        &mut self,
        network: &str,
        address: IpAddr,
        endpoint: &str,
        now_ms: u64,
    ) -> Result<Fixed, Short> {
        let trusted = self.check_trust(now_ms);
        let Some(holding) = self.networks.get_mut(network) else {
            return Ok(Fixed::Claim);
        };
        if let Some(claim) = holding.claims.get(&address) {
            return Ok(match claim.endpoint == endpoint {
                true => Fixed::Claim,
                false => Fixed::InUse {
                    endpoint: claim.endpoint.clone(),
                },
            });
        }
        let own = |b: &&mut Block| b.usable.contains(&address) && !b.leaving;
        let Some(block) = holding.blocks.values_mut().find(own) else {
            return Ok(Fixed::Claim);
        };
        match block.used.get(&address) {
            Some(owner) if owner != endpoint => {
                return Ok(Fixed::InUse {
                    endpoint: owner.clone(),
                });
            }
            Some(_) => {}
            None => trusted?,
        }
        block.resting.remove(&address);
        block.used.insert(address, endpoint.to_owned());
        Ok(Fixed::Taken(Allocated {
            address,
            subnet: block.subnet,
            fence: block.fence,
        }))
    }

    /// An endpoint is gone: its address rests. With the last one of a network all its blocks go back.
    pub fn release(&mut self, network: &str, address: IpAddr, now_ms: u64) {
        let until = now_ms.saturating_add(self.quarantine_ms);
        let Some(holding) = self.networks.get_mut(network) else {
            return;
        };
        if let Some(claim) = holding.claims.remove(&address) {
            holding.given_back.insert(address, claim.fence);
        }
        for block in holding.blocks.values_mut() {
            if block.used.remove(&address).is_some() {
                block.resting.insert(address, until);
            }
        }
        if holding.claims.is_empty() && holding.blocks.values().all(|b| b.used.is_empty()) {
            holding.blocks.values_mut().for_each(|b| b.leaving = true);
        }
    }

    /// Gives an address in use to another endpoint of this node.
    pub fn rename(&mut self, network: &str, address: IpAddr, endpoint: &str) {
        let holding = self.networks.get_mut(network);
        let blocks = holding.into_iter().flat_map(|h| h.blocks.values_mut());
        for owner in blocks.filter_map(|block| block.used.get_mut(&address)) {
            endpoint.clone_into(owner);
        }
    }

    /// Releases what endpoints hold that are not there, as after a crash between two steps of a removal.
    pub fn retain_endpoints(&mut self, now_ms: u64, exists: impl Fn(&str) -> bool) {
        let mut gone = Vec::new();
        for (network, holding) in &self.networks {
            let used = holding.blocks.values().flat_map(|b| b.used.iter());
            let claimed = holding.claims.iter().map(|(ip, c)| (ip, &c.endpoint));
            let lost = used
                .chain(claimed)
                .filter(|(_, endpoint)| !exists(endpoint));
            gone.extend(lost.map(|(ip, _)| (network.clone(), *ip)));
        }
        for (network, ip) in gone {
            self.release(&network, ip, now_ms);
        }
    }

    /// Another node wants an address of ours: it is given up if no endpoint has it and it has rested. Then the
    /// managers have to be told, with the fence of its block, and this node has forgotten it already.
    pub fn give_up(&mut self, network: &str, address: IpAddr, now_ms: u64) -> Option<u64> {
        let blocks = self.networks.get_mut(network)?.blocks.values_mut();
        let mut own = blocks.filter(|b| b.usable.contains(&address));
        let block = own.next().filter(|b| b.is_free(address, now_ms))?;
        block.usable.remove(&address);
        Some(block.fence)
    }

    /// Others lack addresses of a subnet: blocks that nothing of is in use go back.
    pub fn scarce(&mut self, network: &str, subnet: IpNetwork) {
        let holding = self.networks.get_mut(network);
        for block in holding.into_iter().flat_map(|h| h.blocks.values_mut()) {
            if block.subnet == subnet && block.used.is_empty() {
                block.leaving = true;
            }
        }
    }

    /// What the managers should be asked for. Says it again until it is done.
    pub fn actions(&self, now_ms: u64) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut report = Vec::new();
        for (network, holding) in &self.networks {
            let (mut rested, mut fresh) = ((Vec::new(), 0), (Vec::new(), 0));
            let mut subnets = BTreeSet::new();
            for (first, block) in &holding.blocks {
                let at = block.at(network, *first);
                if block.leaving {
                    let quiet = block.resting.values().all(|until| *until <= now_ms);
                    let list = if quiet { &mut rested } else { &mut fresh };
                    list.0.push(at);
                    list.1 = block.fence.max(list.1);
                    continue;
                }
                subnets.insert(block.subnet);
                let used = block.used.len() as u32;
                if used != block.reported {
                    report.push(BlockUse { block: at, used });
                }
            }
            for ((blocks, fence), rested) in [(rested, true), (fresh, false)] {
                if !blocks.is_empty() {
                    actions.push(Action::Release {
                        blocks,
                        rested,
                        fence,
                    });
                }
            }
            if let Some(fence) = holding.given_back.values().copied().max() {
                actions.push(Action::ReleaseAddresses {
                    network: network.clone(),
                    addresses: holding.given_back.keys().copied().collect(),
                    fence,
                });
            }
            let low = subnets.into_iter().filter(|s| holding.is_low(*s, now_ms));
            actions.extend(low.map(|subnet| Action::Lease {
                network: network.clone(),
                subnet,
                count: holding.growth(subnet),
            }));
        }
        let silent_ms = self.silent_ms(now_ms);
        let stale = silent_ms.is_none_or(|ms| ms > self.trust_ms / CONFIRM_EARLY);
        if !report.is_empty() || stale && !self.networks.is_empty() {
            actions.push(Action::Report(report));
        }
        actions
    }

    /// The managers have taken blocks back, those of leases up to `fence`.
    pub fn released(&mut self, blocks: &[BlockRef], fence: u64) {
        for at in blocks {
            if let Some(holding) = self.networks.get_mut(&at.network) {
                let block = holding.blocks.get(&at.first);
                let gone = block.filter(|b| b.leaving && b.fence <= fence);
                if let Some(fence) = gone.map(|block| block.fence) {
                    holding.blocks.remove(&at.first);
                    holding.gone.insert(at.first, fence);
                }
            }
        }
        self.forget_empty();
    }

    /// The managers have taken claimed addresses back.
    pub fn addresses_released(&mut self, network: &str, addresses: &BTreeSet<IpAddr>) {
        if let Some(holding) = self.networks.get_mut(network) {
            holding.given_back.retain(|ip, _| !addresses.contains(ip));
        }
        self.forget_empty();
    }

    /// The managers know what is in use.
    pub fn reported(&mut self, blocks: &[BlockUse]) {
        for BlockUse { block: at, used } in blocks {
            let holding = self.networks.get_mut(&at.network);
            if let Some(block) = holding.and_then(|h| h.blocks.get_mut(&at.first)) {
                block.reported = *used;
            }
        }
    }

    /// Compares with what the managers say. What is no longer this node's is dropped, and endpoints that had
    /// such addresses are returned. Blocks that it did not know it held, because an answer was lost, come in.
    ///
    /// A copy of the state from before the last grant, or from before the managers knew of this start of the agent,
    /// says nothing about what is held now: it is not looked at, and confirms nothing. Any other confirms the leases
    /// as of the time that is given, where the copy is known to be what a majority says.
    pub fn reconcile(
        &mut self,
        replica: &Replica,
        (me, epoch): (NodeId, u64),
        confirmed_ms: Option<u64>,
    ) -> Vec<Lost> {
        let knows_us = replica.nodes.get(&me).is_none_or(|n| n.epoch == epoch);
        if replica.revision < self.granted_at || !knows_us {
            return Vec::new();
        }
        self.compared_at = replica.revision;
        self.confirmed_ms = self.confirmed_ms.max(confirmed_ms);
        let mut lost = Vec::new();
        for (network, holding) in &mut self.networks {
            let theirs = replica.blocks.get(network);
            holding.blocks.retain(|first, block| {
                let found = theirs.and_then(|blocks| {
                    let index = blocks
                        .binary_search_by_key(first, |(at, _)| at.first)
                        .ok()?;
                    Some(&blocks[index].1)
                });
                let kept = found.filter(|lease| lease.node == me && lease.fence == block.fence);
                if let Some(lease) = kept {
                    block.usable.retain(|ip| !lease.except.contains(ip));
                    return true;
                }
                lost.extend(block.used.iter().map(|(ip, endpoint)| Lost {
                    network: network.clone(),
                    address: *ip,
                    endpoint: endpoint.clone(),
                }));
                false
            });
            let claims = replica.claims.get(network);
            let mine = |ip: &IpAddr| claims.and_then(|c| c.get(ip)).is_some_and(|c| c.node == me);
            holding.claims.retain(|ip, claim| {
                if !mine(ip) {
                    lost.push(Lost {
                        network: network.clone(),
                        address: *ip,
                        endpoint: claim.endpoint.clone(),
                    });
                }
                mine(ip)
            });
            holding.given_back.retain(|ip, _| mine(ip));
            holding.gone.retain(|first, fence| {
                let mut theirs = theirs.into_iter().flatten();
                theirs.any(|(at, lease)| at.first == *first && lease.fence == *fence)
            });
        }
        self.adopt_unknown(replica, me);
        // A block that was fetched ahead may have come after the last endpoint went.
        let unused = self.networks.values_mut().filter(|h| !h.is_in_use());
        for block in unused.flat_map(|h| h.blocks.values_mut()) {
            block.leaving = true;
        }
        self.forget_empty();
        lost
    }

    fn adopt_unknown(&mut self, replica: &Replica, me: NodeId) {
        let networks = replica.catalog.iter().flat_map(|c| c.networks.values());
        for network in networks {
            let theirs = replica.blocks.get(&network.id).into_iter().flatten();
            for (at, lease) in theirs.filter(|(_, lease)| lease.node == me) {
                let known = self.networks.get(&network.id);
                let gone = |h: &Holding| h.gone.get(&at.first) == Some(&lease.fence);
                if known.is_some_and(|h| h.blocks.contains_key(&at.first) || gone(h)) {
                    continue;
                }
                let Some(subnet) = network.subnets().find(|s| s.prefix == at.subnet) else {
                    continue;
                };
                let granted = Granted {
                    block: at.clone(),
                    len: lease.len,
                    fence: lease.fence,
                    except: lease.except.iter().copied().collect(),
                    revision: replica.revision,
                };
                // Nobody here waits for it: keep it only if the network is in use.
                let in_use = known.is_some_and(Holding::is_in_use);
                self.insert_block(&granted, subnet);
                let holding = self.networks.get_mut(&network.id);
                if let Some(block) = holding.and_then(|h| h.blocks.get_mut(&at.first)) {
                    block.reported = lease.used;
                    block.leaving = !in_use;
                }
            }
            let theirs = replica.claims.get(&network.id).into_iter().flatten();
            if let Some(holding) = self.networks.get_mut(&network.id) {
                holding.offered.clear();
            }
            for (ip, claim) in theirs.filter(|(_, claim)| claim.node == me) {
                let holding = self.networks.entry(network.id.clone()).or_default();
                if holding.claims.contains_key(ip) {
                    continue;
                }
                // Its answer may be on its way to somebody who waits for it.
                match holding.awaited {
                    0 => drop(holding.given_back.insert(*ip, claim.fence)),
                    _ => drop(holding.offered.insert(*ip, claim.fence)),
                }
            }
        }
    }

    /// The address an endpoint has in a subnet.
    fn address_of(&self, network: &str, subnet: IpNetwork, endpoint: &str) -> Option<Allocated> {
        let holding = self.networks.get(network)?;
        let mut claims = holding.claims.iter();
        let own = |(ip, c): &(&IpAddr, &Claim)| c.endpoint == endpoint && subnet.contains(**ip);
        if let Some((address, claim)) = claims.find(own) {
            return Some(Allocated {
                address: *address,
                subnet,
                fence: claim.fence,
            });
        }
        let blocks = holding.blocks.values().filter(|b| b.subnet == subnet);
        let mut all = blocks.flat_map(|b| b.used.iter().map(move |(ip, of)| (b, ip, of)));
        let (block, address, _) = all.find(|(_, _, of)| *of == endpoint)?;
        Some(Allocated {
            address: *address,
            subnet,
            fence: block.fence,
        })
    }

    fn pick(
        &mut self,
        network: &str,
        subnet: IpNetwork,
        endpoint: &str,
        now_ms: u64,
    ) -> Result<Allocated, Short> {
        let need = |count| Short::NeedBlocks { count };
        let holding = self.networks.get_mut(network).ok_or(need(1))?;
        let count = holding.growth(subnet);
        let blocks = holding.blocks.values_mut();
        let mut own = blocks.filter(|b| b.subnet == subnet && !b.leaving);
        let found = own.find_map(|block| Some((block.first_free(now_ms)?, block)));
        let (address, block) = found.ok_or(need(count))?;
        block.resting.remove(&address);
        block.used.insert(address, endpoint.to_owned());
        Ok(Allocated {
            address,
            subnet,
            fence: block.fence,
        })
    }

    /// For how long managers have confirmed nothing; `None` if they never have since the start.
    pub fn silent_ms(&self, now_ms: u64) -> Option<u64> {
        let confirmed_ms = self.confirmed_ms?;
        Some(now_ms.saturating_sub(confirmed_ms))
    }

    fn check_trust(&self, now_ms: u64) -> Result<(), Short> {
        match self.silent_ms(now_ms) {
            None => Err(Short::NeverConfirmed),
            Some(ms) if ms > self.trust_ms => Err(Short::Unconfirmed { for_s: ms / 1000 }),
            Some(_) => Ok(()),
        }
    }

    fn forget_empty(&mut self) {
        self.networks.retain(|_, h| {
            !(h.awaited == 0
                && h.blocks.is_empty()
                && h.claims.is_empty()
                && h.given_back.is_empty()
                && h.gone.is_empty())
        });
    }
}

impl Holding {
    fn is_in_use(&self) -> bool {
        self.awaited > 0
            || !self.claims.is_empty()
            || self.blocks.values().any(|b| !b.used.is_empty())
    }

    /// Whether less than half a block is free. Small blocks are not fetched ahead: that would take a large
    /// part of a small subnet out of others' reach.
    fn is_low(&self, subnet: IpNetwork, now_ms: u64) -> bool {
        let blocks = || {
            self.blocks
                .values()
                .filter(|b| b.subnet == subnet && !b.leaving)
        };
        let len = blocks().map(|b| b.len).max().unwrap_or(0);
        let free: usize = blocks().map(|b| b.free_count(now_ms)).sum();
        len >= AHEAD_LEN_MIN && self.is_in_use() && free < len as usize / 2
    }

    /// How many blocks to ask for: half as many as there are.
    fn growth(&self, subnet: IpNetwork) -> u32 {
        let held = self.blocks.values().filter(|b| b.subnet == subnet).count() as u32;
        (held / 2).clamp(1, BLOCKS_AT_ONCE_MAX)
    }
}

/// Leases are confirmed this many times before they are no longer trusted.
const CONFIRM_EARLY: u64 = 4;

/// Blocks at least this long are fetched before the last address of those before is gone.
const AHEAD_LEN_MIN: u32 = 4;

impl Block {
    fn at(&self, network: &str, first: IpAddr) -> BlockRef {
        BlockRef {
            network: network.to_owned(),
            subnet: self.subnet,
            first,
        }
    }

    fn is_free(&self, ip: IpAddr, now_ms: u64) -> bool {
        let rests = self.resting.get(&ip).is_some_and(|until| *until > now_ms);
        !rests && !self.used.contains_key(&ip)
    }

    fn first_free(&self, now_ms: u64) -> Option<IpAddr> {
        let mut usable = self.usable.iter();
        usable.find(|ip| self.is_free(**ip, now_ms)).copied()
    }

    fn free_count(&self, now_ms: u64) -> usize {
        let free = self.usable.iter().filter(|ip| self.is_free(**ip, now_ms));
        free.count()
    }
}

#[cfg(test)]
mod tests;
