//! What this node knows of the others: their endpoints' records and the VTEPs of each network.
//!
//! Pure. Updates are ordered by version: an older one than what is known, or than a removal, changes
//! nothing. A VTEP belongs to a network while it is listed as a member or a record names it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::api::{RecordOutcome, VtepEntry};
use crate::tables::record::{EndpointRecord, Version};
use crate::wire::{Mac, Vni};

/// Remote records, removals and members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteTable {
    #[serde(with = "as_list")]
    records: BTreeMap<(Vni, Mac), Arc<EndpointRecord>>,
    /// Versions of removals that carried one, so that a late update cannot bring the record back.
    #[serde(default, with = "as_pairs")]
    removed: BTreeMap<(Vni, Mac), Version>,
    members: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl RemoteTable {
    /// Every record, by VNI and MAC.
    pub fn records(&self) -> impl Iterator<Item = &EndpointRecord> {
        self.records.values().map(|record| &**record)
    }

    /// Every record, shared.
    pub fn shared_records(&self) -> impl Iterator<Item = &Arc<EndpointRecord>> {
        self.records.values()
    }

    /// The records of one network.
    pub fn of_network<'a>(&'a self, network: &'a str) -> impl Iterator<Item = &'a EndpointRecord> {
        self.records()
            .filter(move |record| record.network == network)
    }

    /// One record.
    pub fn record(&self, vni: Vni, mac: Mac) -> Option<&EndpointRecord> {
        self.records.get(&(vni, mac)).map(|record| &**record)
    }

    /// The version that makes an unversioned update the newest.
    pub fn next_version(&self, vni: Vni, mac: Mac) -> Version {
        let known = self.records.get(&(vni, mac)).map(|record| record.version);
        let last = known
            .max(self.removed.get(&(vni, mac)).copied())
            .unwrap_or_default();
        // A counter given from outside may be the largest there is.
        match last.counter.checked_add(1) {
            Some(counter) => Version { counter, ..last },
            None => Version {
                epoch: last.epoch.saturating_add(1),
                counter: 0,
            },
        }
    }

    /// Takes a record in unless something newer is known; tells what became of it.
    pub fn upsert(&mut self, record: EndpointRecord) -> RecordOutcome {
        let key = (record.vni, record.mac);
        let outcome = |version, applied, note: String| RecordOutcome {
            mac: key.1,
            version,
            applied,
            note,
        };
        if let Some(known) = self.records.get(&key) {
            if **known == record {
                return outcome(known.version, false, "unchanged".into());
            }
            if known.version >= record.version {
                let note = format!("ignored: {} is known already", in_words(known.version));
                return outcome(known.version, false, note);
            }
        }
        if let Some(removed) = self
            .removed
            .get(&key)
            .filter(|removed| **removed >= record.version)
        {
            let note = format!("ignored: it was removed at {}", in_words(*removed));
            return outcome(*removed, false, note);
        }
        let version = record.version;
        self.removed.remove(&key);
        self.records.insert(key, Arc::new(record));
        outcome(version, true, String::new())
    }

    /// Takes a record out, unless `version` is older than it. The removal is remembered at that version,
    /// or at the record's own.
    pub fn remove(&mut self, vni: Vni, mac: Mac, version: Option<Version>) -> Removal {
        let key = (vni, mac);
        let known = self.records.get(&key).map(|record| record.version);
        match (known, version) {
            (None, None) => return Removal::Unknown,
            (Some(known), Some(version)) if version < known => return Removal::Stale(known),
            _ => {}
        }
        let at = version.or(known).unwrap_or_default();
        let last = self.removed.get(&key).copied().unwrap_or_default();
        self.removed.insert(key, at.max(last));
        self.records
            .remove(&key)
            .map_or(Removal::Unknown, Removal::Done)
    }

    /// Takes a record in whatever is known: gossip has ordered it already. `replaced` is what it said of the
    /// endpoint before.
    pub fn show(&mut self, record: Arc<EndpointRecord>, replaced: Option<&EndpointRecord>) {
        if let Some(old) = replaced {
            self.hide(old);
        }
        self.records.insert((record.vni, record.mac), record);
    }

    /// Takes a record out, unless another endpoint has come to its place.
    pub fn hide(&mut self, record: &EndpointRecord) {
        let key = (record.vni, record.mac);
        let same = self
            .records
            .get(&key)
            .is_some_and(|known| known.endpoint == record.endpoint);
        if same {
            self.records.remove(&key);
        }
    }

    /// The members of a network.
    pub fn members(&self, network: &str) -> Vec<IpAddr> {
        let members = self.members.get(network).into_iter().flatten();
        members.copied().collect()
    }

    /// Lists VTEPs as members; tells how many are new.
    pub fn add_members(&mut self, network: &str, vteps: &[IpAddr]) -> usize {
        let members = self.members.entry(network.into()).or_default();
        vteps.iter().filter(|vtep| members.insert(**vtep)).count()
    }

    /// Takes VTEPs off the list; tells how many were on it.
    pub fn remove_members(&mut self, network: &str, vteps: &[IpAddr]) -> usize {
        let Some(members) = self.members.get_mut(network) else {
            return 0;
        };
        vteps.iter().filter(|vtep| members.remove(vtep)).count()
    }

    /// Forgets a network.
    pub fn forget(&mut self, network: &str, vnis: &[Vni]) {
        self.records.retain(|_, record| record.network != network);
        self.removed.retain(|(vni, _), _| !vnis.contains(vni));
        self.members.remove(network);
    }

    /// Puts one network's share back as it was in `before`.
    pub fn restore(&mut self, network: &str, before: &RemoteTable) {
        let mine = |record: &EndpointRecord| record.network == network;
        let vnis: BTreeSet<Vni> = self
            .records()
            .chain(before.records())
            .filter(|r| mine(r))
            .map(|r| r.vni)
            .collect();
        self.records.retain(|_, record| !mine(record));
        let old = before.records.iter().filter(|(_, record)| mine(record));
        self.records
            .extend(old.map(|(key, record)| (*key, record.clone())));
        self.removed.retain(|(vni, _), _| !vnis.contains(vni));
        self.removed.extend(
            before
                .removed
                .iter()
                .filter(|((vni, _), _)| vnis.contains(vni)),
        );
        match before.members.get(network) {
            Some(members) => drop(self.members.insert(network.into(), members.clone())),
            None => drop(self.members.remove(network)),
        }
    }

    /// Every VTEP of a network: members and those that records name.
    pub fn vteps(&self, network: &str) -> Vec<VtepEntry> {
        let mut entries: BTreeMap<IpAddr, VtepEntry> = BTreeMap::new();
        let blank = |vtep, member| VtepEntry {
            vtep,
            node: String::new(),
            member,
            endpoints: 0,
        };
        for vtep in self.members.get(network).into_iter().flatten() {
            entries.insert(*vtep, blank(*vtep, true));
        }
        for record in self.of_network(network) {
            let entry = entries
                .entry(record.vtep)
                .or_insert_with(|| blank(record.vtep, false));
            entry.endpoints += 1;
            if entry.node.is_empty() {
                entry.node.clone_from(&record.node);
            }
        }
        entries.into_values().collect()
    }
}

/// What became of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The record is gone.
    Done(Arc<EndpointRecord>),
    /// There was none.
    Unknown,
    /// The record is newer than the removal.
    Stale(Version),
}

/// `version 3.14` for epoch 3, counter 14.
pub fn in_words(version: Version) -> String {
    format!("version {}.{}", version.epoch, version.counter)
}

/// The record map as a list: JSON keys are text only.
mod as_list {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Arc, BTreeMap, EndpointRecord, Mac, Vni};

    type Records = BTreeMap<(Vni, Mac), Arc<EndpointRecord>>;

    pub fn serialize<S: Serializer>(records: &Records, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(records.values().map(|record| &**record))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Records, D::Error> {
        let list = Vec::<EndpointRecord>::deserialize(d)?;
        Ok(list
            .into_iter()
            .map(|record| ((record.vni, record.mac), Arc::new(record)))
            .collect())
    }
}

/// The removals as a list of triples.
mod as_pairs {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{BTreeMap, Mac, Version, Vni};

    type Removed = BTreeMap<(Vni, Mac), Version>;

    pub fn serialize<S: Serializer>(removed: &Removed, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(
            removed
                .iter()
                .map(|((vni, mac), version)| (vni, mac, version)),
        )
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Removed, D::Error> {
        let list = Vec::<(Vni, Mac, Version)>::deserialize(d)?;
        Ok(list
            .into_iter()
            .map(|(vni, mac, version)| ((vni, mac), version))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::record::Backing;

    const MAC: Mac = Mac([2, 0x42, 10, 0, 1, 9]);

    fn record(epoch: u64, counter: u64, vtep: &str) -> EndpointRecord {
        EndpointRecord {
            network: "n".into(),
            vni: Vni::FIRST_USER,
            endpoint: "e".into(),
            mac: MAC,
            ips: vec!["10.0.1.9".parse().unwrap()],
            vtep: vtep.parse().unwrap(),
            node: "n2".into(),
            name: String::new(),
            aliases: vec![],
            service: String::new(),
            backing: Backing::default(),
            version: Version { epoch, counter },
        }
    }

    #[test]
    fn newer_updates_win_and_older_ones_are_noted() {
        let mut table = RemoteTable::default();
        assert!(table.upsert(record(1, 5, "192.0.2.2")).applied);
        let stale = table.upsert(record(1, 4, "192.0.2.3"));
        assert_eq!(
            (stale.applied, stale.note.as_str()),
            (false, "ignored: version 1.5 is known already")
        );
        assert_eq!(table.upsert(record(1, 5, "192.0.2.2")).note, "unchanged");
        assert!(
            !table.upsert(record(1, 5, "192.0.2.3")).applied,
            "same version, other content"
        );
        assert!(
            table.upsert(record(2, 0, "192.0.2.3")).applied,
            "a later epoch beats any counter"
        );
        assert_eq!(
            table.record(Vni::FIRST_USER, MAC).unwrap().vtep.to_string(),
            "192.0.2.3"
        );
    }

    #[test]
    fn a_removal_outlives_late_updates() {
        let mut table = RemoteTable::default();
        table.upsert(record(1, 5, "192.0.2.2"));
        let old = table.remove(
            Vni::FIRST_USER,
            MAC,
            Some(Version {
                epoch: 1,
                counter: 4,
            }),
        );
        assert_eq!(
            old,
            Removal::Stale(Version {
                epoch: 1,
                counter: 5
            })
        );
        let done = table.remove(
            Vni::FIRST_USER,
            MAC,
            Some(Version {
                epoch: 1,
                counter: 6,
            }),
        );
        assert!(matches!(done, Removal::Done(_)));
        assert!(!table.upsert(record(1, 6, "192.0.2.2")).applied);
        assert!(table.upsert(record(1, 7, "192.0.2.2")).applied);
        let unseen = Mac([2, 0, 0, 0, 0, 1]);
        table.remove(
            Vni::FIRST_USER,
            unseen,
            Some(Version {
                epoch: 9,
                counter: 0,
            }),
        );
        assert_eq!(
            table.next_version(Vni::FIRST_USER, unseen),
            Version {
                epoch: 9,
                counter: 1
            }
        );
        assert_eq!(
            table.remove(Vni::FIRST_USER, Mac([4; 6]), None),
            Removal::Unknown
        );
    }

    #[test]
    fn after_the_largest_counter_comes_the_next_epoch() {
        let mut table = RemoteTable::default();
        table.upsert(record(1, u64::MAX, "192.0.2.2"));
        let (epoch, counter) = (2, 0);
        assert_eq!(
            table.next_version(Vni::FIRST_USER, MAC),
            Version { epoch, counter }
        );
    }

    #[test]
    fn a_vtep_counts_while_listed_or_named_by_a_record() {
        let mut table = RemoteTable::default();
        let vtep: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(table.add_members("n", &[vtep, vtep]), 1);
        table.upsert(record(1, 1, "192.0.2.2"));
        let entries = table.vteps("n");
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (
                entries[0].member,
                entries[0].endpoints,
                entries[0].node.as_str()
            ),
            (false, 1, "n2")
        );
        assert_eq!((entries[1].member, entries[1].endpoints), (true, 0));
        assert_eq!(table.remove_members("n", &[vtep]), 1);
        assert_eq!(table.remove_members("n", &[vtep]), 0);
        table.forget("n", &[Vni::FIRST_USER]);
        assert!(table.vteps("n").is_empty());
    }

    #[test]
    fn the_table_survives_json() {
        let mut table = RemoteTable::default();
        table.upsert(record(1, 5, "192.0.2.2"));
        table.remove(
            Vni::FIRST_USER,
            Mac([2; 6]),
            Some(Version {
                epoch: 9,
                counter: 0,
            }),
        );
        table.add_members("n", &["192.0.2.9".parse().unwrap()]);
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<RemoteTable>(&text).unwrap(), table);
    }
}
