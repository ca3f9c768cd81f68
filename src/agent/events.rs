//! What happened: each event is logged, kept in a ring for `GET /v1/events`, and sent to subscribers.
//!
//! Events are facts in the past tense; nothing is decided here.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::ident;

/// How many events the ring keeps.
pub const RING_LEN: usize = 256;

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)] // the variants' and fields' names say it all
pub enum Event {
    AgentStarted {
        node: String,
        epoch: u64,
    },
    AgentStopping,
    NetworkCreated {
        network: String,
        name: String,
    },
    NetworkRemoved {
        network: String,
        name: String,
    },
    NetworkUp {
        network: String,
        name: String,
    },
    NetworkDown {
        network: String,
        name: String,
    },
    EndpointAttached {
        network: String,
        endpoint: String,
        name: String,
    },
    EndpointDetached {
        network: String,
        endpoint: String,
        name: String,
    },
    EndpointAdopted {
        network: String,
        endpoint: String,
        name: String,
    },
    EndpointLost {
        network: String,
        endpoint: String,
        name: String,
        reason: String,
    },
    RecordsChanged {
        network: String,
        applied: usize,
        ignored: usize,
    },
    VtepsChanged {
        network: String,
        count: usize,
    },
    ClusterJoined {
        cluster: String,
        role: String,
    },
    ClusterLeft {
        cluster: String,
    },
    NodeUp {
        node: String,
    },
    NodeFailed {
        node: String,
    },
    NodeNumberUsedTwice {
        address: String,
    },
    ManagerStarted {
        node: String,
    },
    ManagerStopped {
        node: String,
    },
    EpochUsed {
        epoch: u64,
    },
    AddressConflict {
        network: String,
        address: String,
        winner: String,
        losers: Vec<String>,
    },
    AddressConflictOver {
        network: String,
        address: String,
    },
    TablesRepaired {
        added: usize,
        removed: usize,
    },
    RulesRestored {
        place: String,
    },
    ServiceCreated {
        service: String,
        name: String,
    },
    ServiceUpdated {
        service: String,
        name: String,
    },
    ServiceRemoved {
        service: String,
        name: String,
    },
    BackendReady {
        service: String,
        network: String,
        endpoint: String,
        name: String,
        node: String,
    },
    BackendDraining {
        service: String,
        network: String,
        endpoint: String,
        name: String,
        node: String,
    },
    BackendUnhealthy {
        service: String,
        network: String,
        endpoint: String,
        name: String,
        node: String,
    },
    BackendGone {
        service: String,
        network: String,
        endpoint: String,
        name: String,
        node: String,
    },
    BackendsChanged {
        count: usize,
    },
    Swept {
        object: String,
    },
    StateRecovered {
        reason: String,
    },
    RepairFailed {
        what: String,
        reason: String,
    },
}

impl Event {
    /// Whether somebody should look at it.
    fn is_warning(&self) -> bool {
        matches!(
            self,
            Event::EndpointLost { .. }
                | Event::NodeFailed { .. }
                | Event::NodeNumberUsedTwice { .. }
                | Event::EpochUsed { .. }
                | Event::AddressConflict { .. }
                | Event::TablesRepaired { .. }
                | Event::RulesRestored { .. }
                | Event::BackendUnhealthy { .. }
                | Event::StateRecovered { .. }
                | Event::RepairFailed { .. }
        )
    }
}

/// An event with its place and time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEntry {
    /// Counts from 1 since the agent started.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// The ring and the subscribers.
#[derive(Debug)]
pub struct EventLog {
    ring: Mutex<Ring>,
    sender: broadcast::Sender<EventEntry>,
}

#[derive(Debug, Default)]
struct Ring {
    last_seq: u64,
    entries: VecDeque<EventEntry>,
}

impl Default for EventLog {
    fn default() -> EventLog {
        EventLog {
            ring: Mutex::default(),
            sender: broadcast::channel(RING_LEN).0,
        }
    }
}

impl EventLog {
    /// Logs, keeps and sends one event.
    pub fn emit(&self, event: Event) {
        let fields = serde_json::to_string(&event).unwrap_or_default();
        if event.is_warning() {
            tracing::warn!(target: "weft::events", "{fields}");
        } else {
            tracing::info!(target: "weft::events", "{fields}");
        }
        let mut ring = self.ring();
        ring.last_seq += 1;
        let entry = EventEntry {
            seq: ring.last_seq,
            time: ident::rfc3339(ident::unix_nanos()),
            event,
        };
        if ring.entries.len() == RING_LEN {
            ring.entries.pop_front();
        }
        ring.entries.push_back(entry.clone());
        // No subscriber is no error.
        let _ = self.sender.send(entry);
    }

    /// The kept events with a number above `after`, oldest first.
    pub fn since(&self, after: u64) -> Vec<EventEntry> {
        let ring = self.ring();
        ring.entries
            .iter()
            .filter(|e| e.seq > after)
            .cloned()
            .collect()
    }

    /// Every event from now on; a slow subscriber loses the oldest and is told so.
    pub fn subscribe(&self) -> broadcast::Receiver<EventEntry> {
        self.sender.subscribe()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_keeps_the_last_events_in_order() {
        let log = EventLog::default();
        let mut subscriber = log.subscribe();
        for n in 0..RING_LEN as u64 + 10 {
            log.emit(Event::AgentStarted {
                node: "n1".into(),
                epoch: n,
            });
        }
        let kept = log.since(0);
        assert_eq!(kept.len(), RING_LEN);
        assert_eq!(kept[0].seq, 11);
        assert_eq!(log.since(RING_LEN as u64 + 9).len(), 1);
        assert!(
            subscriber.try_recv().is_err(),
            "a slow subscriber is told that it lagged"
        );
    }

    #[test]
    fn events_read_as_flat_objects() {
        let event = Event::Swept {
            object: "netns/abc".into(),
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, r#"{"event":"swept","object":"netns/abc"}"#);
    }
}
