//! One owner's log in one network, as far as this node knows it: the entries, and the chunks they came from.
//!
//! A log only ever moves on: [`OwnerLog::fit`] lets a chunk through if it begins where the log ends or if
//! nothing before it is needed, so at every moment the log is a prefix of what the owner wrote, with what a
//! base left out gone at its end. Nothing that was deleted comes back, whatever arrives in whatever order:
//! the chunk that had it lies behind the log's end. docs/gossip.md has the proof.

use std::collections::{BTreeMap, VecDeque};

use super::chunk::{Chunk, Header};
use super::entry::{Change, Entry, Key};
use crate::tables::record::Version;

/// Most entries of one owner in one network.
pub const ENTRIES_MAX: usize = 16_384;
/// Most bytes of chunks that are kept of one owner in one network.
pub const BYTES_MAX: usize = 8 << 20;
/// Most chunks that wait for what lies before them.
pub const EARLY_MAX: usize = 16;

/// How a chunk relates to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It can be applied.
    Next,
    /// The log is there already.
    Known,
    /// It is of an epoch before the log's.
    OldEpoch,
    /// Something before it is missing.
    Early,
}

/// How an applied chunk changed an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// The entry is there or says something else now.
    Put(Key, Entry, Version),
    /// The entry is gone, since this place in the log.
    Drop(Key, Version),
}

/// An entry with its place in the log.
#[derive(Clone, Debug)]
pub struct Held {
    /// Where the log has it.
    pub at: Version,
    /// When it came to say this.
    pub since: Version,
    /// What it says.
    pub entry: Entry,
}

/// A chunk that was applied.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The chunk.
    pub chunk: Chunk,
    /// When it came, on the node's own clock.
    pub at_ms: u64,
    /// Whether the owner itself sent it, and so presumably sends it to others at this moment.
    pub direct: bool,
    /// How many rows it has.
    pub rows: usize,
}

/// One owner's log.
#[derive(Clone, Debug, Default)]
pub struct OwnerLog {
    version: Version,
    entries: BTreeMap<Key, Held>,
    chunks: VecDeque<Kept>,
    bytes: usize,
    early: BTreeMap<Version, (Chunk, bool)>,
}

/// Whether a log that ends at `version` can take a chunk.
pub fn fit(version: Version, header: &Header) -> Fit {
    if header.epoch < version.epoch {
        return Fit::OldEpoch;
    }
    let same_epoch = header.epoch == version.epoch;
    if same_epoch && header.to <= version.counter {
        Fit::Known
    } else if header.begins_base || same_epoch && header.from <= version.counter {
        Fit::Next
    } else {
        Fit::Early
    }
}

impl OwnerLog {
    /// Up to where it is known without a gap; zero before the first chunk.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The entries.
    pub fn entries(&self) -> &BTreeMap<Key, Held> {
        &self.entries
    }

    /// The chunks, in order.
    pub fn chunks(&self) -> &VecDeque<Kept> {
        &self.chunks
    }

    /// Bytes of the chunks.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether this log can take a chunk.
    pub fn fit(&self, header: &Header) -> Fit {
        fit(self.version, header)
    }

    /// Whether a chunk with these changes would make the log larger than it may be.
    pub fn would_overflow(&self, chunk: &Chunk, changes: &[Change]) -> bool {
        let new = |c: &&Change| c.entry.is_some() && !self.entries.contains_key(&c.key);
        self.entries.len() + changes.iter().filter(new).count() > ENTRIES_MAX
            || self.bytes + chunk.bytes().len() > BYTES_MAX
    }

    /// Applies a chunk that is [`Fit::Next`].
    pub fn apply(
        &mut self,
        chunk: Chunk,
        changes: Vec<Change>,
        at_ms: u64,
        direct: bool,
    ) -> Vec<Delta> {
        let header = *chunk.header();
        debug_assert_eq!(self.fit(&header), Fit::Next);
        let epoch = header.epoch;
        let rows = changes.len();
        let mut deltas = Vec::new();
        for change in changes {
            if epoch == self.version.epoch && change.counter <= self.version.counter {
                continue;
            }
            self.apply_change(epoch, change, &mut deltas);
        }
        if epoch > self.version.epoch {
            self.chunks.clear();
            self.bytes = 0;
        }
        self.version = Version {
            epoch,
            counter: header.to,
        };
        self.bytes += chunk.bytes().len();
        self.chunks.push_back(Kept {
            chunk,
            at_ms,
            direct,
            rows,
        });
        if let Some(floor) = header.floor {
            self.end_base(
                Version {
                    epoch,
                    counter: floor,
                },
                &mut deltas,
            );
        }
        deltas
    }

    fn apply_change(&mut self, epoch: u64, change: Change, deltas: &mut Vec<Delta>) {
        let Change {
            counter,
            since,
            key,
            entry,
        } = change;
        let since = Version {
            epoch,
            counter: since,
        };
        let Some(entry) = entry else {
            if self.entries.remove(&key).is_some() {
                deltas.push(Delta::Drop(key, Version { epoch, counter }));
            }
            return;
        };
        let held = Held {
            at: Version { epoch, counter },
            since,
            entry: entry.clone(),
        };
        let old = self.entries.insert(key.clone(), held);
        if old.is_none_or(|old| old.since != since || old.entry != entry) {
            deltas.push(Delta::Put(key, entry, since));
        }
    }

    /// What was not written again is gone.
    fn end_base(&mut self, floor: Version, deltas: &mut Vec<Delta>) {
        let (gone, kept) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, held)| held.at <= floor);
        self.entries = kept;
        deltas.extend(gone.into_keys().map(|key| Delta::Drop(key, floor)));
        while let Some(first) = self.chunks.front() {
            if first.chunk.header().to > floor.counter {
                break;
            }
            self.bytes -= first.chunk.bytes().len();
            self.chunks.pop_front();
        }
    }

    /// Keeps a chunk until what lies before it is there; false when there is no room.
    pub fn keep_early(&mut self, chunk: Chunk, direct: bool) -> bool {
        let header = chunk.header();
        let place = Version {
            epoch: header.epoch,
            counter: header.from,
        };
        if self.early.len() >= EARLY_MAX && !self.early.contains_key(&place) {
            // What is nearest to the log's end is the most useful.
            let last = self.early.keys().next_back().copied();
            match last {
                Some(last) if last > place => self.early.remove(&last),
                _ => return false,
            };
        }
        self.early.insert(place, (chunk, direct));
        true
    }

    /// Takes out an early chunk that can be applied now; those that came too late are dropped.
    pub fn next_early(&mut self) -> Option<(Chunk, bool)> {
        let version = self.version;
        self.early
            .retain(|_, (chunk, _)| matches!(fit(version, chunk.header()), Fit::Next | Fit::Early));
        let ready = self
            .early
            .iter()
            .find(|(_, (chunk, _))| fit(version, chunk.header()) == Fit::Next);
        let place = *ready?.0;
        self.early.remove(&place)
    }

    /// Whether a chunk waits for another.
    pub fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// The chunks that bring a node that knows the log up to `known` to its end, in order.
    pub fn beyond(&self, known: Version) -> impl Iterator<Item = &Kept> {
        let mut at = known;
        self.chunks.iter().filter(move |kept| {
            let header = kept.chunk.header();
            let takes = fit(at, header) == Fit::Next;
            if takes {
                at = Version {
                    epoch: header.epoch,
                    counter: header.to,
                };
            }
            takes
        })
    }
}
