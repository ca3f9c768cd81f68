//! What must hold at every moment: the simulator writes down what each owner did and compares.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft::cluster::NodeNumber;
use weft::cluster::gossip::Event;
use weft::tables::record::{EndpointRecord, Version};

/// A record without what the table sets.
pub fn content(record: &EndpointRecord) -> String {
    let EndpointRecord {
        network,
        vni,
        endpoint,
        mac,
        ips,
        vtep,
        name,
        aliases,
        service,
        ..
    } = record;
    format!("{network} {vni} {endpoint} {mac} {ips:?} {vtep} {name} {aliases:?} {service}")
}

type Place = (NodeNumber, String, String);

/// Everything that was ever published.
#[derive(Default)]
pub struct Ledger {
    written: BTreeMap<Place, BTreeSet<String>>,
    /// What each owner's log said at each of its versions: others must have the same at the same version.
    states: BTreeMap<(NodeNumber, String, Version), Vec<String>>,
    /// Whether the managers may say that a node takes part no more, and then that it does: its log goes and comes.
    pub logs_go: bool,
    /// What its owner has deleted and not published again.
    deleted: BTreeSet<Place>,
}

fn state(records: &[Arc<EndpointRecord>]) -> Vec<String> {
    let mut contents: Vec<_> = records.iter().map(|record| content(record)).collect();
    contents.sort();
    contents
}

impl Ledger {
    pub fn wrote(&mut self, owner: NodeNumber, record: &EndpointRecord) {
        let place = (owner, record.network.clone(), record.endpoint.clone());
        self.deleted.remove(&place);
        self.written
            .entry(place)
            .or_default()
            .insert(content(record));
    }

    pub fn deleted(&mut self, owner: NodeNumber, network: &str, endpoint: &str) {
        let place = (owner, network.to_owned(), endpoint.to_owned());
        self.deleted.insert(place);
    }

    /// Where an owner's log is and what it says there.
    pub fn stands(
        &mut self,
        owner: NodeNumber,
        network: &str,
        at: Version,
        records: &[Arc<EndpointRecord>],
    ) {
        let place = (owner, network.to_owned(), at);
        self.states.entry(place).or_insert_with(|| state(records));
    }

    /// Whether a copy of the log at this version says the same. Within a base there is nothing to compare.
    pub fn agrees(
        &self,
        owner: NodeNumber,
        network: &str,
        at: Version,
        records: &[Arc<EndpointRecord>],
    ) -> bool {
        let known = self.states.get(&(owner, network.to_owned(), at));
        known.is_none_or(|known| *known == state(records))
    }

    fn has(&self, owner: NodeNumber, record: &EndpointRecord) -> bool {
        let place = (owner, record.network.clone(), record.endpoint.clone());
        let contents = self.written.get(&place);
        contents.is_some_and(|contents| contents.contains(&content(record)))
    }
}

fn key_of(owner: NodeNumber, record: &EndpointRecord) -> Place {
    (owner, record.network.clone(), record.endpoint.clone())
}

/// A consumer of one node's events, as the table writer would be.
#[derive(Default)]
pub struct Mirror {
    pub shown: BTreeMap<(String, String), (NodeNumber, Arc<EndpointRecord>)>,
    pub suspended: BTreeSet<NodeNumber>,
    /// The last version of each record that was shown.
    last: BTreeMap<Place, Version>,
    /// What was removed after its owner had deleted it.
    gone: BTreeSet<Place>,
    /// What its owner may not publish, as the managers say.
    hidden: BTreeSet<Place>,
}

impl Mirror {
    /// Applies an event.
    ///
    /// # Errors
    /// What must never happen.
    pub fn apply(&mut self, event: &Event, ledger: Option<&Ledger>) -> Result<(), String> {
        match event {
            Event::Upsert {
                owner,
                record,
                replaced,
                suspended,
            } => {
                if ledger.is_some_and(|ledger| !ledger.has(*owner, record)) {
                    return Err(format!("{owner} never wrote {record:?}"));
                }
                if *suspended != self.suspended.contains(owner) {
                    return Err(format!("{owner} suspended: {suspended}, by the events not"));
                }
                let key = (record.network.clone(), record.endpoint.clone());
                let before = self.shown.insert(key, (*owner, Arc::clone(record)));
                if before.map(|(_, record)| record) != *replaced {
                    return Err(format!("{replaced:?} was not what was shown"));
                }
                let place = key_of(*owner, record);
                if ledger.is_some_and(|l| l.deleted.contains(&place)) && self.gone.contains(&place)
                {
                    return Err(format!("{record:?} is back although it was deleted"));
                }
                let last = self.last.entry(place).or_default();
                let again = ledger.is_some_and(|ledger| ledger.logs_go) && record.version == *last;
                if record.version <= *last && !again {
                    return Err(format!("{record:?} came after {last:?}"));
                }
                *last = record.version;
            }
            Event::Remove { owner, record } => {
                let key = (record.network.clone(), record.endpoint.clone());
                let before = self.shown.remove(&key);
                if before.as_ref() != Some(&(*owner, Arc::clone(record))) {
                    return Err(format!("removed {record:?} which was not shown"));
                }
                let place = key_of(*owner, record);
                // What is hidden because of the managers' word comes back with it.
                let hidden = self.hidden.contains(&place);
                if hidden {
                    self.last.remove(&place);
                }
                if !hidden && ledger.is_some_and(|ledger| ledger.deleted.contains(&place)) {
                    self.gone.insert(place);
                }
            }
            Event::Suspend(node) => {
                self.suspended.insert(*node);
            }
            Event::Resume(node) => {
                self.suspended.remove(node);
            }
            Event::EpochUsed(version) => return Err(format!("epoch used before: {version:?}")),
            Event::Unauthorised { owner, record, .. } => {
                self.hidden.insert(key_of(*owner, record));
            }
            Event::Conflict(_) | Event::ConflictOver(..) => {}
        }
        Ok(())
    }

    /// The node left a network: it may see old versions again after it joins.
    pub fn forget(&mut self, network: &str) {
        self.last.retain(|(_, other, _), _| other != network);
        self.gone.retain(|(_, other, _)| other != network);
    }
}
