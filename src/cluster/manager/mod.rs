//! Managers: what the cluster has decided, agreed by Raft, and how nodes ask for a change.
//!
//! ```text
//!  proposer ── Envelope ──► leader ── log ──► every manager ── apply ──► Outcome, and Changes for watchers
//! ```
//! | file | owns |
//! |---|---|
//! | [`ids`] | node and request ids, roles, digests, secrets that do not print |
//! | [`command`] | what can be proposed, and the envelope that makes it count once |
//! | [`reply`] | what comes of it: answers and refusals that explain |
//! | [`state`] | the state machine: one pure function from state and envelope to state and outcome |
//! | [`nodes`], [`networks`], [`leases`], [`secrets`] | its parts, one per kind of thing |
//! | [`audit`], [`retry`] | what was asked by whom; outcomes that wait to be asked for again |
//! | [`watch`] | what followers get: a snapshot, then changes by revision |
//! | [`store`] | vote, log and snapshot on disk |
//! | [`raft`] | the log agreed on by several, and a manager at work |
//! | [`rpc`] | what managers and nodes say to each other |
//! | [`gate`] | who may ask for what; joining, renewing certificates |
//! | [`transport`] | mutual TLS |

pub mod audit;
pub mod command;
pub mod gate;
pub mod ids;
pub mod json;
pub mod leases;
pub mod networks;
pub mod nodes;
pub mod raft;
pub mod reply;
pub mod retry;
pub mod rpc;
pub mod secrets;
pub mod services;
pub mod state;
pub mod store;
pub mod transport;
pub mod watch;
