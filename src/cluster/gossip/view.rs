//! What the rest of the agent sees of the table: records, whose nodes are suspended, and who claims the same.
//!
//! Several nodes may say that they have one endpoint, one address or one MAC. Who counts is decided by the
//! claims alone and not by the order in which they came: first those of nodes that are not suspended, then
//! the higher version, then the smaller id. [`crate::tables::store`] chooses by the same rule.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::authority::Unauthorised;
use crate::cluster::NodeNumber;
use crate::tables::record::{EndpointRecord, Version};
use crate::wire::{Mac, Vni};

/// Events that are kept for watchers that are behind.
pub const EVENTS_MAX: usize = 16_384;

/// Something that can have one holder only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// An IP address of a segment.
    Ip(Vni, IpAddr),
    /// A MAC of a segment. Endpoints of one node may share one.
    Mac(Vni, Mac),
}

/// Several records with one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The network's id.
    pub network: Arc<str>,
    /// What they share.
    pub address: Address,
    /// Who counts: its node and the endpoint's id.
    pub winner: (NodeNumber, String),
    /// Who does not, best first.
    pub losers: Vec<(NodeNumber, String)>,
}

/// A change of what the table shows.
///
/// Nothing tells a first record from a later one but `replaced`, which is relative to what this watcher has
/// been shown: the order in which a record's states travel is nobody's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A record is there, or says something else. When an endpoint moves to another owner, its removal comes
    /// first.
    Upsert {
        /// Its owner.
        owner: NodeNumber,
        /// What it says.
        record: Arc<EndpointRecord>,
        /// What was shown for this endpoint before.
        replaced: Option<Arc<EndpointRecord>>,
        /// Whether its owner is suspended.
        suspended: bool,
    },
    /// A record is gone.
    Remove {
        /// Its owner.
        owner: NodeNumber,
        /// What it said.
        record: Arc<EndpointRecord>,
    },
    /// A node failed: its records stay, and nothing is to be sent to them.
    Suspend(NodeNumber),
    /// A node is back, with all of its records.
    Resume(NodeNumber),
    /// Several records have one address, or who wins changed.
    Conflict(Conflict),
    /// An address has one holder again, or none.
    ConflictOver(Arc<str>, Address),
    /// A record is kept but not shown: its owner may not publish it.
    Unauthorised {
        /// Its owner.
        owner: NodeNumber,
        /// What it says.
        record: Arc<EndpointRecord>,
        /// What is wrong with it.
        reason: Unauthorised,
    },
    /// Others know of changes by this node that it does not know itself: its epoch was used before.
    EpochUsed(Version),
}

/// A record as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its owner.
    pub owner: NodeNumber,
    /// What it says.
    pub record: Arc<EndpointRecord>,
    /// Whether its owner is suspended.
    pub suspended: bool,
}

/// A place in the sequence of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    next: u64,
}

/// A watcher that fell behind further than events are kept: it has to begin with a snapshot again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were missed; watch again from a snapshot")]
pub struct Lagged(pub u64);

#[derive(Debug)]
struct Claim {
    owner: NodeNumber,
    record: Arc<EndpointRecord>,
    allowed: Result<(), Unauthorised>,
}

#[derive(Debug, Default)]
struct NetworkView {
    /// By endpoint; nearly always one, so a list with room for one.
    claims: BTreeMap<Arc<str>, Vec<Claim>>,
    shown: BTreeMap<Arc<str>, (NodeNumber, Arc<EndpointRecord>)>,
    holders: BTreeMap<Address, Vec<(NodeNumber, Arc<str>)>>,
    conflicts: BTreeMap<Address, Conflict>,
}

/// The view of all networks.
#[derive(Debug, Default)]
pub struct View {
    networks: BTreeMap<Arc<str>, NetworkView>,
    suspended: BTreeSet<NodeNumber>,
    events: VecDeque<Event>,
    /// The number of the first event that is kept.
    first: u64,
}

impl View {
    /// What is shown now, and a watch that continues from here.
    pub fn snapshot(&self) -> (Vec<Shown>, Watch) {
        let networks = self.networks.values();
        let shown = networks.flat_map(|network| network.shown.values());
        let shown = shown.map(|(owner, record)| Shown {
            owner: *owner,
            record: Arc::clone(record),
            suspended: self.suspended.contains(owner),
        });
        (shown.collect(), self.watch())
    }

    /// A watch that begins with the next event.
    fn watch(&self) -> Watch {
        Watch {
            next: self.first + self.events.len() as u64,
        }
    }

    /// The events since the last call.
    ///
    /// # Errors
    /// [`Lagged`] when some of them are gone. The watch stays where it was.
    pub fn events(&self, watch: &mut Watch) -> Result<Vec<Event>, Lagged> {
        let Some(skip) = watch.next.checked_sub(self.first) else {
            return Err(Lagged(self.first - watch.next));
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let events = self.events.iter().skip(skip).cloned().collect();
        *watch = self.watch();
        Ok(events)
    }

    /// Whether a watch has events to come.
    pub fn is_behind(&self, watch: &Watch) -> bool {
        watch.next < self.first + self.events.len() as u64
    }

    /// The nodes that are suspended.
    pub fn suspended(&self) -> &BTreeSet<NodeNumber> {
        &self.suspended
    }

    /// Every address with several holders.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        let networks = self.networks.values();
        networks.flat_map(|network| network.conflicts.values())
    }

    pub(super) fn emit(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
            self.first += 1;
        }
        self.events.push_back(event);
    }

    /// A node's claim: there or changed.
    pub(super) fn put(
        &mut self,
        network: &Arc<str>,
        owner: NodeNumber,
        record: Arc<EndpointRecord>,
        allowed: Result<(), Unauthorised>,
    ) {
        let id: Arc<str> = record.endpoint.as_str().into();
        let view = self.networks.entry(Arc::clone(network)).or_default();
        let claims = view.claims.entry(Arc::clone(&id));
        let claims = claims.or_insert_with(|| Vec::with_capacity(1));
        let claim = Claim {
            owner,
            record: Arc::clone(&record),
            allowed,
        };
        let old = claims.iter_mut().find(|old| old.owner == owner);
        let told = old
            .as_ref()
            .is_some_and(|old| old.record == record && old.allowed == allowed);
        match old {
            Some(old) => *old = claim,
            None => claims.push(claim),
        }
        if let Err(reason) = allowed
            && !told
        {
            self.emit(Event::Unauthorised {
                owner,
                record,
                reason,
            });
        }
        self.show(network, &id);
    }

    /// A node's claim is gone.
    pub(super) fn drop(&mut self, network: &Arc<str>, owner: NodeNumber, endpoint: &Arc<str>) {
        let Some(view) = self.networks.get_mut(network) else {
            return;
        };
        if let Some(claims) = view.claims.get_mut(endpoint) {
            claims.retain(|claim| claim.owner != owner);
            if claims.is_empty() {
                view.claims.remove(endpoint);
            }
        }
        self.show(network, endpoint);
        if self
            .networks
            .get(network)
            .is_some_and(|v| v.claims.is_empty())
        {
            self.networks.remove(network);
        }
    }

    /// Judges every claim again.
    pub(super) fn judge(
        &mut self,
        mut verdict: impl FnMut(NodeNumber, &EndpointRecord) -> Result<(), Unauthorised>,
    ) {
        let mut changed = Vec::new();
        for (network, view) in &mut self.networks {
            for (endpoint, claims) in &mut view.claims {
                for claim in claims {
                    let allowed = verdict(claim.owner, &claim.record);
                    if allowed != claim.allowed {
                        claim.allowed = allowed;
                        changed.push((Arc::clone(network), Arc::clone(endpoint), claim.owner));
                    }
                }
            }
        }
        for (network, endpoint, owner) in changed {
            let mut claims = self.networks[&network].claims[&endpoint].iter();
            if let Some(Claim {
                record,
                allowed: Err(reason),
                ..
            }) = claims.find(|claim| claim.owner == owner)
            {
                let (record, reason) = (Arc::clone(record), *reason);
                self.emit(Event::Unauthorised {
                    owner,
                    record,
                    reason,
                });
            }
            self.show(&network, &endpoint);
        }
    }

    /// How many records are kept and not shown because their owners may not publish them.
    pub fn unauthorised(&self) -> usize {
        let networks = self.networks.values();
        let claims = networks.flat_map(|v| v.claims.values().flatten());
        claims.filter(|claim| claim.allowed.is_err()).count()
    }

    /// Suspends or resumes a node.
    pub(super) fn suspend(&mut self, node: NodeNumber, suspended: bool) {
        let changed = if suspended {
            self.suspended.insert(node)
        } else {
            self.suspended.remove(&node)
        };
        if !changed {
            return;
        }
        self.emit(if suspended {
            Event::Suspend(node)
        } else {
            Event::Resume(node)
        });
        let mut affected = Vec::new();
        for (network, view) in &self.networks {
            for (endpoint, claims) in &view.claims {
                if let Some(claim) = claims.iter().find(|claim| claim.owner == node) {
                    let record = Arc::clone(&claim.record);
                    affected.push((Arc::clone(network), Arc::clone(endpoint), record));
                }
            }
        }
        for (network, endpoint, record) in affected {
            self.show(&network, &endpoint);
            self.settle(&network, addresses(&record));
        }
    }

    /// Shows the best claim of an endpoint.
    fn show(&mut self, network: &Arc<str>, endpoint: &Arc<str>) {
        let Some(view) = self.networks.get_mut(network) else {
            return;
        };
        let suspended = &self.suspended;
        let claims = view.claims.get(endpoint).into_iter().flatten();
        let allowed = claims.filter(|claim| claim.allowed.is_ok());
        let best = allowed.min_by_key(|claim| {
            let out = suspended.contains(&claim.owner);
            (out, Reverse(claim.record.version), claim.owner)
        });
        let best = best.map(|claim| (claim.owner, Arc::clone(&claim.record)));
        let shown = view.shown.get(endpoint).cloned();
        if best == shown {
            return;
        }
        let mut touched = BTreeSet::new();
        if let Some((owner, record)) = &shown {
            for address in addresses(record) {
                if let Some(holders) = view.holders.get_mut(&address) {
                    holders.retain(|(node, id)| (node, id) != (owner, endpoint));
                    if holders.is_empty() {
                        view.holders.remove(&address);
                    }
                }
                touched.insert(address);
            }
        }
        match best {
            Some((owner, record)) => {
                // Versions of different owners say nothing about each other: a consumer that orders by them
                // has to see the end of one record and the beginning of the other.
                let replaced = match shown {
                    Some((before, old)) if before != owner => {
                        self.emit_removed(before, old);
                        None
                    }
                    shown => shown.map(|(_, old)| old),
                };
                let Some(view) = self.networks.get_mut(network) else {
                    return;
                };
                for address in addresses(&record) {
                    let holders = view.holders.entry(address);
                    let holders = holders.or_insert_with(|| Vec::with_capacity(1));
                    holders.push((owner, Arc::clone(endpoint)));
                    touched.insert(address);
                }
                let new = (owner, Arc::clone(&record));
                view.shown.insert(Arc::clone(endpoint), new);
                let suspended = self.suspended.contains(&owner);
                self.emit(Event::Upsert {
                    owner,
                    record,
                    replaced,
                    suspended,
                });
            }
            None => {
                view.shown.remove(endpoint);
                if let Some((owner, record)) = shown {
                    self.emit_removed(owner, record);
                }
            }
        }
        self.settle(network, touched);
    }

    fn emit_removed(&mut self, owner: NodeNumber, record: Arc<EndpointRecord>) {
        self.emit(Event::Remove { owner, record });
    }

    /// Decides anew who has each of the addresses.
    fn settle(&mut self, network: &Arc<str>, touched: impl IntoIterator<Item = Address>) {
        for address in touched {
            let Some(view) = self.networks.get_mut(network) else {
                return;
            };
            let now = view.conflict(network, address, &self.suspended);
            if now.as_ref() == view.conflicts.get(&address) {
                continue;
            }
            match now {
                Some(conflict) => {
                    view.conflicts.insert(address, conflict.clone());
                    self.emit(Event::Conflict(conflict));
                }
                None => {
                    view.conflicts.remove(&address);
                    self.emit(Event::ConflictOver(Arc::clone(network), address));
                }
            }
        }
    }
}

impl NetworkView {
    fn conflict(
        &self,
        network: &Arc<str>,
        address: Address,
        suspended: &BTreeSet<NodeNumber>,
    ) -> Option<Conflict> {
        let holders = self.holders.get(&address)?;
        let owners: BTreeSet<NodeNumber> = holders.iter().map(|(owner, _)| *owner).collect();
        let shared = matches!(address, Address::Mac(..)) && owners.len() == 1;
        if holders.len() < 2 || shared {
            return None;
        }
        let mut ranked: Vec<_> = holders
            .iter()
            .map(|(owner, endpoint)| {
                let version = self.shown.get(endpoint).map(|(_, r)| r.version);
                let out = suspended.contains(owner);
                (out, Reverse(version), Arc::clone(endpoint), *owner)
            })
            .collect();
        ranked.sort();
        let mut ranked = ranked
            .into_iter()
            .map(|(_, _, endpoint, owner)| (owner, endpoint.to_string()));
        Some(Conflict {
            network: Arc::clone(network),
            address,
            winner: ranked.next()?,
            losers: ranked.collect(),
        })
    }
}

/// What a record claims.
fn addresses(record: &EndpointRecord) -> Vec<Address> {
    let ips = record.ips.iter().map(|ip| Address::Ip(record.vni, *ip));
    ips.chain([Address::Mac(record.vni, record.mac)]).collect()
}

#[cfg(test)]
mod tests;
