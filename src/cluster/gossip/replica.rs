//! One network's logs, and the hash that tells in eight bytes whether two nodes know the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::log::OwnerLog;
use super::message::{Row, Tag, row_hash};
use crate::cluster::NodeNumber;
use crate::tables::record::Version;

/// The logs of a network.
#[derive(Debug)]
pub struct Replica {
    /// The network's id; empty for the cluster's own log.
    pub id: Arc<str>,
    /// Its tag.
    pub tag: Tag,
    /// Who takes part, and since which change of their cluster log.
    pub takers: BTreeMap<NodeNumber, Version>,
    /// When an owner's log was last asked for, so that not everybody sends it.
    pub wanted_ms: BTreeMap<NodeNumber, u64>,
    /// When it last changed, or was last seen to differ from another's.
    pub stirred_ms: u64,
    logs: BTreeMap<NodeNumber, OwnerLog>,
    /// Logs of owners that may take no part at present: as if they were not there, but not forgotten. INVARIANT:
    /// none of them is in `logs`.
    aside: BTreeMap<NodeNumber, OwnerLog>,
    /// Exclusive or of the hashes of all rows.
    hash: u64,
}

impl Replica {
    pub(super) fn new(id: Arc<str>) -> Replica {
        Replica {
            tag: Tag::of(&id),
            id,
            takers: BTreeMap::new(),
            wanted_ms: BTreeMap::new(),
            stirred_ms: 0,
            logs: BTreeMap::new(),
            aside: BTreeMap::new(),
            hash: 0,
        }
    }

    /// Two replicas with one hash have the same logs.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The logs by owner.
    pub fn logs(&self) -> &BTreeMap<NodeNumber, OwnerLog> {
        &self.logs
    }

    /// The logs that are put aside, by owner.
    pub fn aside(&self) -> &BTreeMap<NodeNumber, OwnerLog> {
        &self.aside
    }

    /// How far an owner's log is known.
    pub fn version(&self, owner: NodeNumber) -> Version {
        self.logs
            .get(&owner)
            .map_or(Version::default(), OwnerLog::version)
    }

    /// What is known, by owner.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        let rows = self.logs.iter().map(|(owner, log)| Row {
            owner: *owner,
            version: log.version(),
        });
        rows.filter(|row| row.version != Version::default())
    }

    /// Changes an owner's log, and the hash with it.
    pub(super) fn change<T>(
        &mut self,
        owner: NodeNumber,
        change: impl FnOnce(&mut OwnerLog) -> T,
    ) -> T {
        let log = self.logs.entry(owner).or_default();
        let before = log.version();
        let done = change(log);
        let after = log.version();
        if before != after {
            self.hash ^= hash(owner, before) ^ hash(owner, after);
        }
        done
    }

    /// Takes an owner's log out.
    pub(super) fn remove(&mut self, owner: NodeNumber) -> Option<OwnerLog> {
        let log = self.logs.remove(&owner)?;
        self.hash ^= hash(owner, log.version());
        self.wanted_ms.remove(&owner);
        Some(log)
    }

    /// Puts an owner's log aside that was taken out.
    pub(super) fn put_aside(&mut self, owner: NodeNumber, log: OwnerLog) {
        if log.version() != Version::default() {
            self.aside.insert(owner, log);
        }
    }

    /// Brings a log back that was put aside.
    pub(super) fn bring_back(&mut self, owner: NodeNumber) -> Option<&OwnerLog> {
        let log = self.aside.remove(&owner)?;
        debug_assert!(!self.logs.contains_key(&owner), "it is in one place");
        self.hash ^= hash(owner, log.version());
        self.logs.insert(owner, log);
        self.logs.get(&owner)
    }

    /// Forgets a log that was put aside, if it goes no further than this.
    pub(super) fn forget_aside(&mut self, owner: NodeNumber, at: Version) {
        let over = |log: &OwnerLog| log.version() <= at;
        if self.aside.get(&owner).is_some_and(over) {
            self.aside.remove(&owner);
        }
    }
}

/// A log nobody has begun counts for nothing.
fn hash(owner: NodeNumber, version: Version) -> u64 {
    if version == Version::default() {
        return 0;
    }
    row_hash(&Row { owner, version })
}
