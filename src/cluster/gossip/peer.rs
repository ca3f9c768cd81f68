//! The other nodes: where they are, how they are, and what they are known to have of this node's logs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::message::Tag;
use super::pace::Bucket;
use crate::tables::record::Version;

/// What membership says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It answers, or nothing is known to its disadvantage.
    Alive,
    /// It did not answer lately; it is treated as alive.
    Suspect,
    /// It is taken for dead.
    Failed,
    /// It said farewell.
    Left,
}

/// Messages a node may send at once, and per millisecond.
const IN_BURST: u64 = 2_000;
const IN_PER_MS: u64 = 1;
/// Bytes that are sent to one node at once, and per millisecond.
const OUT_BURST: u64 = 64 << 10;
const OUT_PER_MS: u64 = 1 << 10;
/// A row older than a push is no news for this long: they crossed on the way.
const CROSSED_MS: u64 = 300;

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    version: Version,
    pushed_ms: u64,
}

/// Another node.
#[derive(Debug)]
pub struct Peer {
    /// Where its gossip goes.
    pub addr: Option<SocketAddr>,
    /// Its highest epoch heard of.
    pub epoch: u64,
    /// How it is.
    pub status: Status,
    /// Since when.
    pub since_ms: u64,
    /// What it may send.
    pub incoming: Bucket,
    /// What may be sent to it.
    pub outgoing: Bucket,
    known: BTreeMap<Tag, Known>,
}

impl Peer {
    pub(super) fn new(now_ms: u64) -> Peer {
        Peer {
            addr: None,
            epoch: 0,
            status: Status::Alive,
            since_ms: now_ms,
            incoming: Bucket::new(IN_BURST, IN_PER_MS),
            outgoing: Bucket::new(OUT_BURST, OUT_PER_MS),
            known: BTreeMap::new(),
        }
    }

    /// Whether something is sent to it unasked.
    pub fn is_up(&self) -> bool {
        matches!(self.status, Status::Alive | Status::Suspect) && self.addr.is_some()
    }

    /// Notes an epoch; a new one knows nothing of what the one before knew.
    pub(super) fn note_epoch(&mut self, epoch: u64) -> bool {
        let newer = epoch > self.epoch;
        if newer {
            self.epoch = epoch;
            self.known.clear();
        }
        newer
    }

    /// Up to where it is taken to know this node's log.
    pub(super) fn known(&self, tag: Tag) -> Version {
        self.known
            .get(&tag)
            .map_or(Version::default(), |k| k.version)
    }

    /// It was sent everything up to `version`.
    pub(super) fn pushed(&mut self, tag: Tag, version: Version, now_ms: u64) {
        self.known.insert(
            tag,
            Known {
                version,
                pushed_ms: now_ms,
            },
        );
    }

    /// It says that it knows the log up to `version`.
    pub(super) fn says(&mut self, tag: Tag, version: Version, now_ms: u64) {
        let known = self.known.entry(tag).or_default();
        if version > known.version || now_ms >= known.pushed_ms + CROSSED_MS {
            known.version = version;
        }
    }

    /// What it still lacks if it asks for what lies beyond `asked`: a push may have crossed its question.
    pub(super) fn lacks_beyond(&self, tag: Tag, asked: Version, now_ms: u64) -> Version {
        match self.known.get(&tag) {
            Some(known) if now_ms < known.pushed_ms + CROSSED_MS => known.version.max(asked),
            _ => asked,
        }
    }

    pub(super) fn forget(&mut self, tag: Tag) {
        self.known.remove(&tag);
    }
}
