//! What an agent can be asked to do. Each verb: check everything, apply, undo on failure.
//!
//! Verbs that change something run to their end even when the caller goes away.

mod cluster;
mod dns;
pub(super) mod endpoint;
mod engine;
mod network;
pub(super) mod records;
mod reset;
mod service;
mod view;
