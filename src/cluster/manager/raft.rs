//! Raft among managers, by openraft: its types, its timing, and where its parts are.
//!
//! | file | owns |
//! |---|---|
//! | [`log`] | the log and vote as openraft wants them, over [`super::store`] |
//! | [`machine`] | the state machine as openraft wants it, with snapshots and watchers |
//! | [`network`] | its calls over any [`super::rpc::Link`] |
//! | [`node`] | a running manager: proposing, leading, membership |

use std::io::Cursor;
use std::sync::Arc;

use openraft::{Config, SnapshotPolicy};
use serde::{Deserialize, Serialize};

use super::command::Envelope;
use super::reply::Outcome;

pub mod log;
pub mod machine;
pub mod network;
pub mod node;

/// What an entry of the log comes to; nothing for entries that are Raft's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied(pub Option<Outcome>);

openraft::declare_raft_types!(
    /// Types of the managers' Raft group.
    pub Types:
        D = Envelope,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two signs of life of the leader, in milliseconds.
    pub heartbeat_ms: u64,
    /// Silence after which a manager stands for election, at least and at most, in milliseconds.
    pub election_ms: (u64, u64),
    /// How long a proposal is tried before it is refused, in milliseconds.
    pub propose_ms: u64,
    /// Entries after which a snapshot replaces the log.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, for managers that are a little late.
    pub keep_behind: u64,
}

impl Default for Timing {
    /// A dead leader is replaced in about a second, and a proposal without a quorum refused in under two.
    fn default() -> Timing {
        Timing {
            heartbeat_ms: 100,
            election_ms: (300, 600),
            propose_ms: 1800,
            snapshot_every: 2000,
            keep_behind: 500,
        }
    }
}

impl Timing {
    /// As openraft wants it.
    ///
    /// # Errors
    /// When it makes no sense, such as elections faster than heartbeats.
    pub fn config(&self) -> Result<Arc<Config>, String> {
        let config = Config {
            cluster_name: "weft".into(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_ms.0,
            election_timeout_max: self.election_ms.1,
            install_snapshot_timeout: 5000,
            max_payload_entries: 200,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            snapshot_max_chunk_size: SNAPSHOT_CHUNK_LEN,
            max_in_snapshot_log_to_keep: self.keep_behind,
            ..Config::default()
        };
        config.validate().map(Arc::new).map_err(|e| e.to_string())
    }
}

/// Bytes of a snapshot that go in one frame: well below [`super::rpc::FRAME_LEN_MAX`].
const SNAPSHOT_CHUNK_LEN: u64 = 1 << 20;

#[cfg(test)]
mod tests;
