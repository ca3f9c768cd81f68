//! What this node publishes: changes are staged, coalesced, numbered and cut into signed chunks.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::chunk::{Builder, Chunk};
use super::entry::{self, CLUSTER, Change, Entry, Key, PublishError};
use super::log::{ENTRIES_MAX, OwnerLog};
use super::message::Tag;
use super::replica::Replica;
use super::{Authority, Gossip};
use crate::cluster::endpoint_id::endpoint_id;
use crate::tables::record::EndpointRecord;

/// Chunks that a log may have for no reason, and one more for so many entries.
const CHUNKS_SPARE: usize = 16;
const ENTRIES_PER_CHUNK: usize = 25;
/// Rows that a log may have beyond four for each entry.
const ROWS_SPARE: usize = 64;
/// More chunks than these are cleaned up however young the tombstones are.
const CHUNKS_MAX: usize = 1_024;

/// The writing side of this node's logs.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// The last counter given out in this epoch, over all networks: a network that is left and joined again
    /// goes on above everything it ever wrote.
    counter: u64,
    /// The last serial of an endpoint id.
    serial: u64,
    staged: BTreeMap<Tag, Staged>,
    cut_ms: Option<u64>,
    /// When each log was last written anew.
    base_ms: BTreeMap<Tag, u64>,
}

/// Changes that wait for a cut, one per key.
#[derive(Debug, Default)]
struct Staged {
    /// With the order in which they were made.
    changes: BTreeMap<Key, (u64, Option<Entry>)>,
    count: u64,
}

impl Staged {
    fn in_order(self) -> Vec<(Key, Option<Entry>)> {
        let mut changes: Vec<_> = self.changes.into_iter().collect();
        changes.sort_by_key(|(_, (order, _))| *order);
        let changes = changes.into_iter().map(|(key, (_, entry))| (key, entry));
        changes.collect()
    }
}

impl Gossip {
    /// Takes part in a network from now on; nothing happens if it does already.
    pub fn join(&mut self, network: &str) {
        let tag = Tag::of(network);
        if network == CLUSTER || self.replicas.contains_key(&tag) {
            return;
        }
        let id: Arc<str> = network.into();
        let key = Key::Takes(Arc::clone(&id));
        let mut replica = Replica::new(Arc::clone(&id));
        let cluster = self.replicas[&Tag::CLUSTER].logs().iter();
        let takers =
            cluster.filter_map(|(node, log)| Some((*node, log.entries().get(&key)?.since)));
        replica
            .takers
            .extend(takers.filter(|(node, _)| *node != self.config.node));
        self.replicas.insert(tag, replica);
        self.own.staged.entry(tag).or_default();
        self.stage(Tag::CLUSTER, key, Some(Entry::Takes));
        self.stir();
    }

    /// Takes no part in a network any more: its records are forgotten here, and this node's go everywhere.
    pub fn leave(&mut self, network: &str) {
        let tag = Tag::of(network);
        if network == CLUSTER || !self.replicas.contains_key(&tag) {
            return;
        }
        self.own.staged.remove(&tag);
        self.own.base_ms.remove(&tag);
        let owners: Vec<_> = self.replicas[&tag].logs().keys().copied().collect();
        for owner in owners {
            self.remove_log(tag, owner);
        }
        self.replicas.remove(&tag);
        for peer in self.peers.values_mut() {
            peer.forget(tag);
        }
        self.stage(Tag::CLUSTER, Key::Takes(network.into()), None);
    }

    /// Leaves every network, to stop. Poll once more for the last words.
    pub fn farewell(&mut self) {
        let networks: Vec<_> = self.networks().cloned().collect();
        for network in networks {
            self.leave(&network);
        }
    }

    /// An id for a new endpoint that costs next to nothing on the wire.
    pub fn new_endpoint_id(&mut self) -> String {
        self.own.serial += 1;
        endpoint_id(self.config.node, self.config.epoch, self.own.serial)
    }

    /// Publishes an endpoint of this node, or what changed of it. Its node and version are set here.
    ///
    /// # Errors
    /// What makes the record unfit; nothing was altered.
    pub fn publish(&mut self, record: EndpointRecord) -> Result<(), PublishError> {
        let tag = Tag::of(&record.network);
        let Some(replica) = self.replicas.get(&tag).filter(|r| &*r.id != CLUSTER) else {
            return Err(PublishError::NotTaking(record.network));
        };
        let record = entry::canonical(record);
        entry::check(&record)?;
        let key = Key::Endpoint(record.endpoint.as_str().into());
        let log = replica.logs().get(&self.config.node);
        let published = log.and_then(|log| log.entries().get(&key));
        let staged = self.own.staged.get(&tag);
        let staged_count = staged.map_or(0, |staged| staged.changes.len());
        let now = match staged.and_then(|staged| staged.changes.get(&key)) {
            Some((_, entry)) => entry.as_ref(),
            None => published.map(|held| &held.entry),
        };
        if let Some(Entry::Endpoint(now)) = now
            && entry::same_content(now, &record)
        {
            return Ok(());
        }
        if log.map_or(0, |log| log.entries().len()) + staged_count >= ENTRIES_MAX {
            return Err(PublishError::Full(ENTRIES_MAX));
        }
        let entry = Entry::Endpoint(Arc::new(record));
        self.check_len(&key, &entry)?;
        self.stage(tag, key, Some(entry));
        Ok(())
    }

    fn check_len(&self, key: &Key, entry: &Entry) -> Result<(), PublishError> {
        let mut alone = Builder::new(self.config.node, self.config.epoch, 0);
        let change = Change {
            // Any counter may come; this one takes the most bytes.
            counter: u64::MAX,
            since: 0,
            key: key.clone(),
            entry: Some(entry.clone()),
        };
        let max = alone.rows_len_max();
        alone
            .push(&change)
            .map_err(|len| PublishError::TooLong { len, max })
    }

    /// Withdraws an endpoint of this node. Leaves a tombstone also if it was never published.
    pub fn withdraw(&mut self, network: &str, endpoint: &str) {
        let tag = Tag::of(network);
        if network != CLUSTER && self.replicas.contains_key(&tag) {
            self.stage(tag, Key::Endpoint(endpoint.into()), None);
        }
    }

    /// The last counter of this epoch, over all networks.
    pub(super) fn own_counter(&self) -> u64 {
        self.own.counter
    }

    pub(super) fn stage(&mut self, tag: Tag, key: Key, entry: Option<Entry>) {
        let staged = self.own.staged.entry(tag).or_default();
        staged.count += 1;
        staged.changes.insert(key, (staged.count, entry));
    }

    /// When the next cut is due, on the own clock.
    pub(super) fn cut_due_ms(&self) -> Option<u64> {
        if self.own.staged.is_empty() {
            return None;
        }
        Some(self.own.cut_ms.map_or(0, |at| at + self.config.coalesce_ms))
    }

    /// Turns what is staged into chunks.
    pub(super) fn cut(&mut self, authority: &dyn Authority) {
        self.own.cut_ms = Some(self.clock.now_ms());
        // The cluster's log comes first in this order, and says in which networks the others count.
        for (tag, staged) in std::mem::take(&mut self.own.staged) {
            self.cut_log(tag, staged, authority);
        }
    }

    fn cut_log(&mut self, tag: Tag, staged: Staged, authority: &dyn Authority) {
        let now = self.clock.now_ms();
        let Some(replica) = self.replicas.get(&tag) else {
            return;
        };
        let id = Arc::clone(&replica.id);
        let log = replica.logs().get(&self.config.node);
        let log = log.filter(|log| log.version().epoch == self.config.epoch);
        let base_ms = self.own.base_ms.get(&tag).copied().unwrap_or(0);
        let ripe = now >= base_ms + self.config.tombstone_ms;
        let floor = self.own.counter;
        let (from, base, changes) = match log {
            Some(log) if !is_crowded(log, ripe) => {
                let changes = self.own.number(Vec::new(), staged.in_order());
                (log.version().counter, false, changes)
            }
            log => {
                let live = log.map_or(Vec::new(), |log| live(log, &staged));
                let staged = staged.in_order().into_iter();
                let staged = staged.filter(|(_, entry)| entry.is_some());
                (floor, true, self.own.number(live, staged.collect()))
            }
        };
        if base {
            self.own.base_ms.insert(tag, now);
            self.counters.bases_written += 1;
            // An empty base is a change too.
            self.own.counter += u64::from(changes.is_empty());
        } else if changes.is_empty() {
            return;
        }
        let floor = base.then_some(floor);
        for chunk in self.chunks(&id, from, floor, &changes) {
            self.apply(tag, chunk, true, authority);
        }
        self.push_to_all(tag);
    }

    fn chunks(
        &self,
        network: &str,
        from: u64,
        floor: Option<u64>,
        changes: &[Change],
    ) -> Vec<Chunk> {
        let (node, epoch) = (self.config.node, self.config.epoch);
        let signer = &*self.signer;
        let mut chunks = Vec::new();
        let mut builder = Builder::new(node, epoch, from);
        for change in changes {
            if builder.push(change).is_ok() {
                continue;
            }
            let next = Builder::new(node, epoch, builder.counter());
            let full = std::mem::replace(&mut builder, next);
            let (to, begins) = (full.counter(), floor.is_some() && chunks.is_empty());
            chunks.push(full.finish(network, to, begins, None, signer));
            let fits = builder.push(change);
            debug_assert!(fits.is_ok(), "publish checked that a change fits alone");
        }
        let begins = floor.is_some() && chunks.is_empty();
        chunks.push(builder.finish(network, self.own.counter, begins, floor, signer));
        chunks
    }
}

impl Own {
    /// Gives changes their counters: entries that are written again keep their `since`.
    fn number(&mut self, again: Vec<Change>, staged: Vec<(Key, Option<Entry>)>) -> Vec<Change> {
        let mut changes = again;
        for change in &mut changes {
            self.counter += 1;
            change.counter = self.counter;
        }
        for (key, entry) in staged {
            self.counter += 1;
            changes.push(Change {
                counter: self.counter,
                since: self.counter,
                key,
                entry,
            });
        }
        changes
    }
}

/// Whether a log is mostly history.
fn is_crowded(log: &OwnerLog, ripe: bool) -> bool {
    let (chunks, live) = (log.chunks().len(), log.entries().len());
    let rows: usize = log.chunks().iter().map(|kept| kept.rows).sum();
    let crowded = chunks > CHUNKS_SPARE + live / ENTRIES_PER_CHUNK || rows > 4 * live + ROWS_SPARE;
    crowded && ripe || chunks > CHUNKS_MAX
}

/// The entries of a log that are not staged, oldest first.
fn live(log: &OwnerLog, staged: &Staged) -> Vec<Change> {
    let entries = log.entries().iter();
    let untouched = entries.filter(|(key, _)| !staged.changes.contains_key(*key));
    let mut live: Vec<_> = untouched
        .map(|(key, held)| Change {
            counter: 0,
            since: held.since.counter,
            key: key.clone(),
            entry: Some(held.entry.clone()),
        })
        .collect();
    live.sort_by_key(|change| change.since);
    live
}
