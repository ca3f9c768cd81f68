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
    /// How far each owner has numbered what it wrote, in all networks together.
    top: BTreeMap<NodeNumber, Version>,
    /// When owners took endpoints back: whatever they had written of one until then is at this version or below,
    /// whatever they write later is above.
    ended: BTreeMap<Place, BTreeSet<Version>>,
    /// What owners do not show themselves because the managers, as far as they know, do not allow it.
    hidden: BTreeSet<Place>,
}

fn state(records: &[Arc<EndpointRecord>]) -> Vec<String> {
    let mut contents: Vec<_> = records.iter().map(|record| content(record)).collect();
    contents.sort();
    contents
}

impl Ledger {
    pub fn wrote(&mut self, owner: NodeNumber, record: &EndpointRecord) {
        self.written
            .entry(key_of(owner, record))
            .or_default()
            .insert(content(record));
    }

    /// What an owner's own view tells of its own records: what it does not show any more it has taken back, unless that
    /// is the managers' word. To be called before [`Ledger::stands`] tells of what it has written at the same moment.
    pub fn own_event(&mut self, me: NodeNumber, event: &Event) {
        match event {
            Event::Unauthorised { owner, record, .. } if *owner == me => {
                self.hidden.insert(key_of(me, record));
            }
            Event::Upsert { owner, record, .. } if *owner == me => {
                self.hidden.remove(&key_of(me, record));
            }
            Event::Remove { owner, record } if *owner == me => {
                let place = key_of(me, record);
                if !self.hidden.contains(&place) {
                    let top = self.top.get(&me).copied().unwrap_or_default();
                    self.ended.entry(place).or_default().insert(top);
                }
            }
            _ => {}
        }
    }

    /// An epoch of an owner is over: what it does not wish to keep has ended with it at the latest.
    pub fn epoch_ended(
        &mut self,
        owner: NodeNumber,
        epoch: u64,
        wishes: &BTreeMap<(String, String), EndpointRecord>,
    ) {
        let counter = u64::MAX;
        let places = self.written.keys().filter(|place| place.0 == owner);
        for place in places {
            let (_, network, endpoint) = place.clone();
            if !wishes.contains_key(&(network, endpoint)) {
                let ended = self.ended.entry(place.clone()).or_default();
                ended.insert(Version { epoch, counter });
            }
        }
    }

    /// When an endpoint's owner took back what it had written at this version, if it has.
    fn end_of(&self, place: &Place, written: Version) -> Option<Version> {
        let ends = self.ended.get(place)?;
        ends.range(written..).next().copied()
    }

    /// Where an owner's log is and what it says there.
    pub fn stands(
        &mut self,
        owner: NodeNumber,
        network: &str,
        at: Version,
        records: &[Arc<EndpointRecord>],
    ) {
        let top = self.top.entry(owner).or_default();
        *top = at.max(*top);
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
        let contents = self.written.get(&key_of(owner, record));
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
    /// What was removed after its owner had taken it back, and when that was: nothing it wrote before may be shown
    /// again.
    gone: BTreeMap<Place, Version>,
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
                self.hidden.remove(&place);
                if let Some(end) = self.gone.get(&place).filter(|end| record.version <= **end) {
                    return Err(format!("{record:?} is back, deleted at {end:?}"));
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
                let end = ledger.and_then(|ledger| ledger.end_of(&place, record.version));
                if let Some(end) = end.filter(|_| !hidden) {
                    self.gone.insert(place, end);
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
        self.gone.retain(|(_, other, _), _| other != network);
    }
}
