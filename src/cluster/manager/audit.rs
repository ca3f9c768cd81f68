//! The audit log: what was asked, by whom, and what came of it. Append-only and bounded.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::command::{Actor, Envelope};
use super::reply::Outcome;

/// Entries that are kept; older ones fall out.
pub const AUDIT_MAX: usize = 1000;
/// Longest text of a result, in characters.
const RESULT_LEN_MAX: usize = 300;

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Place in the log of managers.
    pub revision: u64,
    /// Wall clock of the leader, in milliseconds since 1970.
    pub wall_ms: u64,
    /// Who asked.
    pub actor: Actor,
    /// For what, such as `network create web`.
    pub action: String,
    /// `done`, or why not.
    pub result: String,
}

/// The last [`AUDIT_MAX`] entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    entries: VecDeque<Entry>,
    /// Entries that have fallen out.
    dropped: u64,
}

impl Audit {
    /// Writes down what became of an envelope.
    pub fn record(
        &mut self,
        revision: u64,
        envelope: &Envelope,
        action: String,
        outcome: &Outcome,
    ) {
        while self.entries.len() >= AUDIT_MAX {
            self.entries.pop_front();
            self.dropped += 1;
        }
        let result = match outcome {
            Ok(_) => "done".into(),
            Err(refusal) => refusal.to_string().chars().take(RESULT_LEN_MAX).collect(),
        };
        self.entries.push_back(Entry {
            revision,
            wall_ms: envelope.stamp.wall_ms,
            actor: envelope.actor.clone(),
            action,
            result,
        });
    }

    /// From old to new.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// How many have fallen out.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
