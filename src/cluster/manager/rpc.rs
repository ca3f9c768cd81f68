//! What managers and nodes say to each other, and the [`Link`] that carries it.
//!
//! Frames are postcard. What has optional fields (commands, outcomes, updates) travels inside as JSON, in the
//! form in which it is stored, so that it can grow.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::command::{Actor, Command, NodeWish};
use super::ids::RequestId;
use super::json;
use super::raft::Types;
use super::reply::Outcome;
use super::watch::Update;
use crate::model::error::ApiError;

/// Bytes of a frame at most. A snapshot of the cluster goes in parts; an update to a watcher must fit.
pub const FRAME_LEN_MAX: usize = 16 << 20;
/// Bytes of a frame from somebody who has shown no certificate.
pub const FRAME_LEN_MAX_JOINER: usize = 64 << 10;

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Raft, managers only: entries, or a sign of life.
    Append(AppendEntriesRequest<Types>),
    /// Raft, managers only: an election.
    Vote(VoteRequest<u64>),
    /// Raft, managers only: a part of a snapshot.
    Snapshot(InstallSnapshotRequest<Types>),
    /// A change, from any node.
    Propose(Proposal),
    /// What came after a revision; waits for something to come.
    Watch {
        /// The revision known; 0 for none.
        after: u64,
        /// How long to wait, in milliseconds.
        wait_ms: u32,
    },
    /// A node that is not one yet.
    Join(Box<JoinRequest>),
    /// A new certificate for a node that has one.
    Renew {
        /// Certificate signing request in DER.
        csr: Vec<u8>,
    },
}

/// A wish for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The same for every attempt.
    pub request: RequestId,
    /// Who wants it, as the sending node says; the receiver checks the node.
    pub actor: Actor,
    /// What.
    #[serde(with = "json")]
    pub command: Command,
}

/// A node asks to be let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The same for every attempt.
    pub request: RequestId,
    /// What it tells of itself; the digest of its certificate is filled in by the manager.
    #[serde(with = "json")]
    pub node: NodeWish,
    /// The token as given. It travels only inside TLS to the CA it pins.
    pub token: String,
    /// Certificate signing request in DER.
    pub csr: Vec<u8>,
}

/// A node is let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Its certificate in PEM.
    pub certificate: String,
    /// Certificates of the CAs to trust, in PEM.
    pub authorities: Vec<String>,
    /// Its number, for compact encodings.
    pub number: u64,
    /// Its number in the Raft group, of a manager.
    pub raft_id: Option<u64>,
    /// Control addresses of the managers.
    pub managers: Vec<String>,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Append`].
    Append(AppendEntriesResponse<u64>),
    /// To [`Request::Vote`].
    Vote(VoteResponse<u64>),
    /// To [`Request::Snapshot`].
    Snapshot(Result<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>>),
    /// To [`Request::Propose`]: applied, with this result.
    Outcome(#[serde(with = "json")] Outcome),
    /// To [`Request::Propose`]: this is not the leader.
    NotLeader {
        /// Control address of the leader, if one is known.
        leader: Option<String>,
    },
    /// To [`Request::Watch`].
    Update(#[serde(with = "json")] Update),
    /// To [`Request::Join`].
    Welcome(Box<Welcome>),
    /// To [`Request::Renew`]: the certificate in PEM.
    Certificate(String),
    /// To anything: it cannot or must not be done.
    Refused(#[serde(with = "json")] ApiError),
}

/// Why a question got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nobody there.
    #[error("cannot reach {to}: {reason}")]
    Unreachable {
        /// The address.
        to: String,
        /// What the system says.
        reason: String,
    },
    /// No answer in time.
    #[error("{to} did not answer within {ms} ms")]
    Timeout {
        /// The address.
        to: String,
        /// How long was waited.
        ms: u64,
    },
    /// The other side is not who it should be, or does not know us.
    #[error("{to} is not trusted, or does not trust this node: {reason}")]
    Untrusted {
        /// The address.
        to: String,
        /// What TLS says.
        reason: String,
    },
    /// What came is no answer.
    #[error("{to} sent what is no answer: {reason}")]
    Garbled {
        /// The address.
        to: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A call on its way.
pub type Call = Pin<Box<dyn Future<Output = Result<Answer, LinkError>> + Send>>;

/// The way to other managers: mutual TLS in the field, memory in tests.
pub trait Link: Send + Sync + 'static {
    /// Asks whoever answers at `to`, and waits for at most `limit`.
    fn call(&self, to: &str, request: Request, limit: Duration) -> Call;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::manager::ids::NodeId;

    #[test]
    fn proposals_survive_the_frame() {
        let proposal = Proposal {
            request: RequestId::from_bits(7),
            actor: Actor::Node(NodeId::from_bits(1)),
            command: Command::Tick,
        };
        let bytes = postcard::to_stdvec(&Request::Propose(proposal.clone())).unwrap();
        match postcard::from_bytes(&bytes).unwrap() {
            Request::Propose(read) => assert_eq!(read, proposal),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            &[][..],
            &[99],
            &[3, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            assert!(postcard::from_bytes::<Request>(bytes).is_err());
            assert!(postcard::from_bytes::<Answer>(bytes).is_err());
        }
    }
}
