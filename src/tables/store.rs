//! The one writer of the tables: segments, endpoint records, members.
//!
//! Records are the truth; FDB and neighbour entries are derived from them here and nowhere else. When
//! several records claim one MAC or one IP, the winner is the same on every node: the highest
//! version, then the smallest endpoint id; the others take over when it leaves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::fdb::Station;
use super::neigh::Neighbour;
use super::network::{Segment, SegmentIndex, SegmentPolicy, Vtep, VtepSet};
use super::record::{EndpointRecord, Version};
use super::snapshot::{Snapshot, Tables};
use crate::wire::{Mac, Vni};

/// Most stations learned from the tunnel, on all segments together: a flood of invented addresses ends
/// here, and ageing makes room again.
pub const LEARNED_MAX: usize = 16_384;

/// What a segment is made of.
#[derive(Clone, Debug)]
pub struct SegmentConfig {
    /// Its VNI.
    pub vni: Vni,
    /// Network id.
    pub network: String,
    /// Inner MTU, bytes.
    pub mtu: u32,
    /// Prefixes.
    pub subnets: Vec<IpNetwork>,
    /// Gateway addresses.
    pub gateways: Vec<IpAddr>,
    /// Anycast MAC of the gateway.
    pub gateway_mac: Mac,
    /// What may pass.
    pub policy: SegmentPolicy,
}

/// A change the tables refused; nothing was altered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Another segment has the VNI.
    #[error("VNI {0} is already used on this node")]
    VniTaken(Vni),
    /// No such segment.
    #[error("VNI {0} is not known on this node")]
    UnknownVni(Vni),
    /// 65,535 segments exist.
    #[error("this node already has {0} segments, the most it can hold")]
    TooManySegments(usize),
    /// A record without an address, with a group MAC, or naming the gateway.
    #[error("endpoint record refused: {0}")]
    BadRecord(&'static str),
}

/// What an upsert did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Stored.
    Stored,
    /// The stored record is newer or the same; nothing changed.
    Stale,
}

/// One claim on a MAC or IP, ordered so that the winner comes first.
type Rank = (Reverse<Version>, Arc<str>);

/// Those who claim one MAC or IP, the winner first. Nearly always one, so a list that is no longer than it must be.
type Claims = Vec<Rank>;

#[derive(Clone, Debug)]
struct Entry {
    record: EndpointRecord,
    local: bool,
}

#[derive(Debug)]
struct SegmentState {
    config: SegmentConfig,
    index: SegmentIndex,
    /// VTEPs given explicitly, and how many records each VTEP has.
    explicit: Vec<u32>,
    records_by_vtep: HashMap<u32, usize>,
    /// By endpoint id.
    entries: BTreeMap<String, Entry>,
    mac_claims: HashMap<Mac, Claims>,
    ip_claims: HashMap<IpAddr, Claims>,
}

/// The one writer.
#[derive(Debug)]
pub struct TableWriter {
    tables: Arc<Tables>,
    port: u16,
    segments: BTreeMap<Vni, SegmentState>,
    /// Network id → its segments, ascending.
    networks: HashMap<String, BTreeSet<Vni>>,
    free: Vec<u16>,
    next: u16,
}

impl TableWriter {
    /// Empty tables. `port` is the VXLAN port of other VTEPs; `seed` should be random.
    pub fn new(port: u16, seed: u64) -> (TableWriter, Arc<Tables>) {
        let tables = Arc::new(Tables::new(seed));
        let writer = TableWriter {
            tables: Arc::clone(&tables),
            port,
            segments: BTreeMap::new(),
            networks: HashMap::new(),
            free: Vec::new(),
            next: 0,
        };
        (writer, tables)
    }

    /// The shared tables.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Adds a segment; segments of one network are siblings.
    ///
    /// # Errors
    /// [`TableError::VniTaken`], [`TableError::TooManySegments`].
    pub fn add_segment(&mut self, config: SegmentConfig) -> Result<SegmentIndex, TableError> {
        if self.segments.contains_key(&config.vni) {
            return Err(TableError::VniTaken(config.vni));
        }
        let index = match self.free.pop() {
            Some(index) => SegmentIndex(index),
            None if self.next == u16::MAX => {
                return Err(TableError::TooManySegments(self.segments.len()));
            }
            None => {
                self.next += 1;
                SegmentIndex(self.next - 1)
            }
        };
        if config.gateway_mac.is_station() {
            self.tables
                .fdb
                .insert(index, config.gateway_mac, Station::Gateway);
        }
        for gateway in &config.gateways {
            let neighbour = Neighbour {
                mac: config.gateway_mac,
                local: true,
            };
            self.tables.neigh.insert(index, *gateway, neighbour);
        }
        let (vni, network) = (config.vni, config.network.clone());
        self.segments.insert(
            vni,
            SegmentState {
                config,
                index,
                explicit: Vec::new(),
                records_by_vtep: HashMap::new(),
                entries: BTreeMap::new(),
                mac_claims: HashMap::new(),
                ip_claims: HashMap::new(),
            },
        );
        let siblings = self.networks.entry(network).or_default();
        siblings.insert(vni);
        let siblings = siblings.clone();
        self.publish(siblings);
        Ok(index)
    }

    /// Replaces MTU and policy of a segment.
    ///
    /// # Errors
    /// [`TableError::UnknownVni`].
    pub fn update_segment(
        &mut self,
        vni: Vni,
        mtu: u32,
        policy: SegmentPolicy,
    ) -> Result<(), TableError> {
        let state = self
            .segments
            .get_mut(&vni)
            .ok_or(TableError::UnknownVni(vni))?;
        state.config.mtu = mtu;
        state.config.policy = policy;
        self.publish([vni]);
        Ok(())
    }

    /// Removes a segment with all its records. The caller must have removed its uplink first, since
    /// the index may be reused. Returns whether it existed.
    pub fn remove_segment(&mut self, vni: Vni) -> bool {
        let Some(state) = self.segments.remove(&vni) else {
            return false;
        };
        self.withdraw(&state);
        for mac in state.mac_claims.keys().chain([&state.config.gateway_mac]) {
            self.tables.fdb.remove(state.index, *mac);
        }
        for ip in state.ip_claims.keys().chain(&state.config.gateways) {
            self.tables.neigh.remove(state.index, *ip);
        }
        // Learned stations are in no record.
        for (segment, mac, _) in self.tables.fdb.entries() {
            if segment == state.index {
                self.tables.fdb.remove(segment, mac);
            }
        }
        self.free.push(state.index.0);
        true
    }

    /// The number of a VNI's segment.
    pub fn segment_index(&self, vni: Vni) -> Option<SegmentIndex> {
        self.segments.get(&vni).map(|s| s.index)
    }

    /// Stores a record of an endpoint on this node.
    ///
    /// # Errors
    /// [`TableError::UnknownVni`], [`TableError::BadRecord`].
    pub fn upsert_local(&mut self, record: &EndpointRecord) -> Result<Applied, TableError> {
        self.upsert(record, true)
    }

    /// Stores a record of an endpoint on another node.
    ///
    /// # Errors
    /// [`TableError::UnknownVni`], [`TableError::BadRecord`].
    pub fn upsert_remote(&mut self, record: &EndpointRecord) -> Result<Applied, TableError> {
        self.upsert(record, false)
    }

    fn upsert(&mut self, record: &EndpointRecord, local: bool) -> Result<Applied, TableError> {
        let state = self
            .segments
            .get(&record.vni)
            .ok_or(TableError::UnknownVni(record.vni))?;
        check(record, &state.config)?;
        let before = state.entries.get(&record.endpoint).cloned();
        if let Some(old) = &before
            && (old.record.version > record.version
                || (old.record == *record && old.local == local))
        {
            return Ok(Applied::Stale);
        }
        let vtep = if local {
            None
        } else {
            Some(self.vtep_index(record.vtep))
        };
        let state = self.segments.get_mut(&record.vni).expect("looked up above");
        let rank: Rank = (Reverse(record.version), record.endpoint.as_str().into());
        claim(state.mac_claims.entry(record.mac).or_default(), &rank);
        for ip in &record.ips {
            claim(state.ip_claims.entry(*ip).or_default(), &rank);
        }
        state.entries.insert(
            record.endpoint.clone(),
            Entry {
                record: record.clone(),
                local,
            },
        );
        let mut members_changed = false;
        if let Some(vtep) = vtep {
            let count = state.records_by_vtep.entry(vtep).or_default();
            *count += 1;
            members_changed = *count == 1;
        }
        self.derive(record);
        // The old record goes only now: what both have in common is never absent to a worker.
        if let Some(old) = before {
            members_changed |= self.release(&old, Some(record));
            self.derive(&old.record);
        }
        if members_changed {
            self.publish([record.vni]);
        }
        Ok(Applied::Stored)
    }

    /// Takes back what an entry claimed, but for claims that are its successor's as well. Returns whether it
    /// was the last record of its VTEP.
    fn release(&mut self, old: &Entry, successor: Option<&EndpointRecord>) -> bool {
        let Entry { record, local } = old;
        let Some(state) = self.segments.get_mut(&record.vni) else {
            return false;
        };
        let rank: Rank = (Reverse(record.version), record.endpoint.as_str().into());
        let heir = successor.filter(|heir| heir.version == record.version);
        if heir.is_none_or(|heir| heir.mac != record.mac) {
            release(&mut state.mac_claims, &record.mac, &rank);
        }
        for ip in &record.ips {
            if heir.is_none_or(|heir| !heir.ips.contains(ip)) {
                release(&mut state.ip_claims, ip, &rank);
            }
        }
        if !local
            && let Some(vtep) = self.tables.snapshot.load().vtep_by_addr.get(&record.vtep)
            && let Some(count) = state.records_by_vtep.get_mut(vtep)
        {
            *count -= 1;
            if *count == 0 {
                state.records_by_vtep.remove(vtep);
                return true;
            }
        }
        false
    }

    /// The endpoints of a segment, each with whether it is one of this node; nothing if there is no such segment.
    pub fn endpoints(&self, vni: Vni) -> Vec<(String, bool)> {
        let entries = self.segments.get(&vni).map(|state| state.entries.iter());
        let entries = entries.into_iter().flatten();
        entries
            .map(|(endpoint, entry)| (endpoint.clone(), entry.local))
            .collect()
    }

    /// Removes the record of an endpoint; another claimant of its MAC or IPs takes over.
    pub fn remove(&mut self, vni: Vni, endpoint: &str) -> Option<EndpointRecord> {
        let state = self.segments.get_mut(&vni)?;
        let entry = state.entries.remove(endpoint)?;
        let last_of_vtep = self.release(&entry, None);
        self.derive(&entry.record);
        if last_of_vtep {
            self.publish([vni]);
        }
        Some(entry.record)
    }

    /// Writes FDB and neighbour entries of everything `record` touches, from the current claims.
    fn derive(&self, record: &EndpointRecord) {
        let Some(state) = self.segments.get(&record.vni) else {
            return;
        };
        let tables = &self.tables;
        match state.winner(state.mac_claims.get(&record.mac)) {
            Some(entry) => {
                let station = self.station(entry);
                tables.fdb.insert(state.index, record.mac, station);
            }
            None => {
                tables.fdb.remove(state.index, record.mac);
            }
        }
        for ip in &record.ips {
            match state.winner(state.ip_claims.get(ip)) {
                Some(entry) => {
                    let neighbour = Neighbour {
                        mac: entry.record.mac,
                        local: entry.local,
                    };
                    tables.neigh.insert(state.index, *ip, neighbour);
                }
                None => {
                    tables.neigh.remove(state.index, *ip);
                }
            }
        }
    }

    fn station(&self, entry: &Entry) -> Station {
        if entry.local {
            return Station::Local;
        }
        let snapshot = self.tables.snapshot.load();
        let vtep = snapshot.vtep_by_addr.get(&entry.record.vtep);
        Station::Remote(*vtep.expect("a stored remote record has its VTEP numbered"))
    }

    /// Replaces the VTEPs given explicitly as members of a segment; those of records stay members.
    ///
    /// # Errors
    /// [`TableError::UnknownVni`].
    pub fn set_vteps(&mut self, vni: Vni, vteps: &[IpAddr]) -> Result<(), TableError> {
        if !self.segments.contains_key(&vni) {
            return Err(TableError::UnknownVni(vni));
        }
        let mut explicit: Vec<u32> = vteps.iter().map(|addr| self.vtep_index(*addr)).collect();
        explicit.sort_unstable();
        explicit.dedup();
        self.segments.get_mut(&vni).expect("checked above").explicit = explicit;
        self.publish([vni]);
        Ok(())
    }

    /// Notes a station seen behind a VTEP, on a learning segment. Never replaces a static entry, and
    /// takes no new station when [`LEARNED_MAX`] are known; returns whether it was noted.
    pub fn learn(&mut self, segment: SegmentIndex, mac: Mac, vtep: u32, now_s: u32) -> bool {
        let known = self.tables.fdb.view().find(segment, mac);
        let replaceable = match known {
            None => mac.is_station() && !self.learned_is_full(),
            Some(station) => matches!(station, Station::Learned { .. }),
        };
        if replaceable {
            self.tables.fdb.insert(
                segment,
                mac,
                Station::Learned {
                    vtep,
                    seen_s: now_s,
                },
            );
        }
        replaceable
    }

    /// Records and gateways have their entries for sure; what is beyond them was learned.
    fn learned_is_full(&self) -> bool {
        let segments = self.segments.values();
        let fixed: usize = segments.map(|segment| segment.entries.len() + 1).sum();
        self.tables.fdb.len() >= fixed + LEARNED_MAX
    }

    /// Removes learned stations not seen for `ageing_s` seconds; returns how many.
    pub fn age(&mut self, now_s: u32, ageing_s: u32) -> usize {
        let old = |station| matches!(station, Station::Learned { seen_s, .. } if now_s.saturating_sub(seen_s) >= ageing_s);
        let entries = self.tables.fdb.entries();
        let gone = entries.into_iter().filter(|(segment, mac, station)| {
            old(*station) && self.tables.fdb.remove(*segment, *mac).is_some()
        });
        gone.count()
    }

    /// Removes one learned station.
    pub fn forget(&mut self, segment: SegmentIndex, mac: Mac) -> bool {
        let learned = matches!(
            self.tables.fdb.view().find(segment, mac),
            Some(Station::Learned { .. })
        );
        learned && self.tables.fdb.remove(segment, mac).is_some()
    }

    /// The records of a segment with whether each is local, by endpoint id.
    pub fn records(&self, vni: Vni) -> impl Iterator<Item = (&EndpointRecord, bool)> {
        let entries = self
            .segments
            .get(&vni)
            .into_iter()
            .flat_map(|s| s.entries.values());
        entries.map(|e| (&e.record, e.local))
    }

    fn vtep_index(&mut self, addr: IpAddr) -> u32 {
        let snapshot = self.tables.snapshot.load();
        if let Some(index) = snapshot.vtep_by_addr.get(&addr) {
            return *index;
        }
        let mut new = Snapshot::clone(&snapshot);
        let index = u32::try_from(new.vteps.len()).expect("fewer VTEPs than IPv4 addresses");
        new.vteps.push(Vtep {
            addr,
            port: self.port,
            path_mtu: Arc::default(),
        });
        new.vtep_by_addr.insert(addr, index);
        self.tables.snapshot.store(Arc::new(new));
        index
    }

    /// Builds the segments of `changed` anew and swaps the snapshot, which shares the others with the one before.
    fn publish(&self, changed: impl IntoIterator<Item = Vni>) {
        let mut new = Snapshot::clone(&self.tables.snapshot.load());
        new.segments.resize(usize::from(self.next), None);
        self.rebuild(&mut new, changed);
        self.tables.snapshot.store(Arc::new(new));
    }

    /// Takes a removed segment out of the snapshot and out of its siblings' lists.
    fn withdraw(&mut self, gone: &SegmentState) {
        let (vni, network) = (gone.config.vni, &gone.config.network);
        let mut left = self.networks.remove(network).unwrap_or_default();
        left.remove(&vni);
        if !left.is_empty() {
            self.networks.insert(network.clone(), left.clone());
        }
        let mut new = Snapshot::clone(&self.tables.snapshot.load());
        new.by_vni.remove(&vni.value());
        new.segments[usize::from(gone.index.0)] = None;
        self.rebuild(&mut new, left);
        self.tables.snapshot.store(Arc::new(new));
    }

    fn rebuild(&self, new: &mut Snapshot, changed: impl IntoIterator<Item = Vni>) {
        for state in changed
            .into_iter()
            .filter_map(|vni| self.segments.get(&vni))
        {
            let index = state.index;
            let segment = state.to_segment(self.siblings(state));
            new.by_vni.insert(state.config.vni.value(), index);
            new.segments[usize::from(index.0)] = Some(Arc::new(segment));
        }
    }

    /// The other segments of the same network, by ascending VNI.
    fn siblings(&self, state: &SegmentState) -> Vec<SegmentIndex> {
        let network = self.networks.get(&state.config.network);
        let all = network.into_iter().flatten();
        all.filter(|vni| **vni != state.config.vni)
            .filter_map(|vni| Some(self.segments.get(vni)?.index))
            .collect()
    }
}

impl SegmentState {
    fn winner(&self, claims: Option<&Claims>) -> Option<&Entry> {
        let (_, endpoint) = claims?.first()?;
        self.entries.get(&**endpoint)
    }

    fn to_segment(&self, siblings: Vec<SegmentIndex>) -> Segment {
        let mut flood: Vec<u32> = self.explicit.clone();
        flood.extend(self.records_by_vtep.keys());
        flood.sort_unstable();
        flood.dedup();
        let mut members = VtepSet::default();
        flood.iter().for_each(|vtep| members.insert(*vtep));
        let config = self.config.clone();
        Segment {
            index: self.index,
            vni: config.vni,
            network: config.network,
            mtu: config.mtu,
            subnets: config.subnets,
            gateways: config.gateways,
            gateway_mac: config.gateway_mac,
            policy: config.policy,
            siblings,
            members,
            flood,
        }
    }
}

fn check(record: &EndpointRecord, config: &SegmentConfig) -> Result<(), TableError> {
    if record.endpoint.is_empty() {
        return Err(TableError::BadRecord("it has no endpoint id"));
    }
    if !record.mac.is_station() {
        return Err(TableError::BadRecord(
            "its MAC is a group or all-zero address",
        ));
    }
    if record.mac == config.gateway_mac {
        return Err(TableError::BadRecord("its MAC is the gateway's"));
    }
    if record.ips.is_empty() {
        return Err(TableError::BadRecord("it has no IP address"));
    }
    if record.ips.iter().any(|ip| config.gateways.contains(ip)) {
        return Err(TableError::BadRecord("it claims the gateway's address"));
    }
    if record.vtep.is_unspecified() || record.vtep.is_multicast() {
        return Err(TableError::BadRecord("its VTEP is not a unicast address"));
    }
    Ok(())
}

fn claim(claims: &mut Claims, rank: &Rank) {
    if let Err(place) = claims.binary_search(rank) {
        claims.reserve_exact(1);
        claims.insert(place, rank.clone());
    }
}

fn release<K: std::hash::Hash + Eq + Copy>(claims: &mut HashMap<K, Claims>, key: &K, rank: &Rank) {
    if let Some(ranks) = claims.get_mut(key) {
        if let Ok(place) = ranks.binary_search(rank) {
            ranks.remove(place);
        }
        if ranks.is_empty() {
            claims.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::record::Backing;

    fn config(vni: u32, network: &str) -> SegmentConfig {
        SegmentConfig {
            vni: Vni::new(vni).unwrap(),
            network: network.into(),
            mtu: 1450,
            subnets: vec!["10.0.1.0/24".parse().unwrap()],
            gateways: vec!["10.0.1.254".parse().unwrap()],
            gateway_mac: Mac::from_ipv4("10.0.1.254".parse().unwrap()),
            policy: SegmentPolicy::default(),
        }
    }

    fn record(vni: u32, endpoint: &str, host: u8, vtep: u8, counter: u64) -> EndpointRecord {
        let ip = std::net::Ipv4Addr::new(10, 0, 1, host);
        EndpointRecord {
            network: "net".into(),
            vni: Vni::new(vni).unwrap(),
            endpoint: endpoint.into(),
            mac: Mac::from_ipv4(ip),
            ips: vec![ip.into()],
            vtep: IpAddr::from([192, 0, 2, vtep]),
            node: String::new(),
            name: String::new(),
            aliases: Vec::new(),
            service: String::new(),
            backing: Backing::default(),
            version: Version { epoch: 1, counter },
        }
    }

    fn writer() -> (TableWriter, Arc<Tables>) {
        let (mut writer, tables) = TableWriter::new(4789, 1);
        writer.add_segment(config(4097, "net")).unwrap();
        (writer, tables)
    }

    const SEGMENT: SegmentIndex = SegmentIndex(0);

    #[test]
    fn a_remote_record_makes_station_neighbour_and_member() {
        let (mut writer, tables) = writer();
        let record = record(4097, "e1", 2, 9, 1);
        assert_eq!(writer.upsert_remote(&record), Ok(Applied::Stored));
        assert_eq!(writer.upsert_remote(&record), Ok(Applied::Stale));
        let view = tables.view();
        assert_eq!(view.fdb.find(SEGMENT, record.mac), Some(Station::Remote(0)));
        assert_eq!(
            view.neigh.find(SEGMENT, record.ips[0]).unwrap().mac,
            record.mac
        );
        let segment = view.snapshot.segment_by_vni(4097).unwrap();
        assert!(segment.members.contains(0));
        assert_eq!(segment.flood, [0]);
        writer.remove(record.vni, "e1").unwrap();
        let view = tables.view();
        assert_eq!(view.fdb.find(SEGMENT, record.mac), None);
        assert_eq!(view.neigh.find(SEGMENT, record.ips[0]), None);
        assert!(view.snapshot.segment_by_vni(4097).unwrap().flood.is_empty());
    }

    #[test]
    fn an_older_version_changes_nothing() {
        let (mut writer, tables) = writer();
        writer.upsert_remote(&record(4097, "e1", 2, 9, 5)).unwrap();
        assert_eq!(
            writer.upsert_remote(&record(4097, "e1", 3, 9, 4)),
            Ok(Applied::Stale)
        );
        assert_eq!(
            tables
                .view()
                .neigh
                .find(SEGMENT, "10.0.1.3".parse().unwrap()),
            None
        );
    }

    #[test]
    fn removing_one_claimant_of_an_address_brings_back_the_other() {
        let (mut writer, tables) = writer();
        let (one, two) = (record(4097, "e1", 2, 8, 1), record(4097, "e2", 2, 9, 2));
        writer.upsert_remote(&one).unwrap();
        writer.upsert_remote(&two).unwrap();
        assert_eq!(
            tables.view().fdb.find(SEGMENT, one.mac),
            Some(Station::Remote(1))
        );
        writer.remove(two.vni, "e2");
        assert_eq!(
            tables.view().fdb.find(SEGMENT, one.mac),
            Some(Station::Remote(0))
        );
        assert_eq!(
            tables.view().neigh.find(SEGMENT, one.ips[0]).unwrap().mac,
            one.mac
        );
    }

    #[test]
    fn records_that_claim_the_gateway_or_nonsense_are_refused() {
        let (mut writer, _) = writer();
        let good = record(4097, "e1", 2, 9, 1);
        let bad = [
            EndpointRecord {
                mac: Mac::BROADCAST,
                ..good.clone()
            },
            EndpointRecord {
                mac: config(1, "").gateway_mac,
                ..good.clone()
            },
            EndpointRecord {
                ips: vec![],
                ..good.clone()
            },
            EndpointRecord {
                ips: vec!["10.0.1.254".parse().unwrap()],
                ..good.clone()
            },
            EndpointRecord {
                vtep: "0.0.0.0".parse().unwrap(),
                ..good.clone()
            },
            EndpointRecord {
                endpoint: String::new(),
                ..good.clone()
            },
        ];
        for record in bad {
            assert!(
                matches!(writer.upsert_remote(&record), Err(TableError::BadRecord(_))),
                "{record:?}"
            );
        }
        assert!(matches!(
            writer.upsert_remote(&record(9, "e", 2, 9, 1)),
            Err(TableError::UnknownVni(_))
        ));
    }

    #[test]
    fn learned_stations_never_replace_static_ones_and_age_out() {
        let (mut writer, tables) = writer();
        let known = record(4097, "e1", 2, 9, 1);
        writer.upsert_remote(&known).unwrap();
        writer
            .set_vteps(known.vni, &["192.0.2.50".parse().unwrap()])
            .unwrap();
        assert!(!writer.learn(SEGMENT, known.mac, 1, 100));
        let guest = Mac([2, 9, 9, 9, 9, 9]);
        assert!(writer.learn(SEGMENT, guest, 1, 100));
        assert_eq!(
            tables.view().fdb.find(SEGMENT, guest).unwrap().vtep(),
            Some(1)
        );
        assert_eq!(writer.age(399, 300), 0);
        assert_eq!(writer.age(400, 300), 1);
        assert_eq!(tables.view().fdb.find(SEGMENT, guest), None);
        assert!(tables.view().fdb.find(SEGMENT, known.mac).is_some());
    }

    #[test]
    fn learning_ends_at_its_limit_and_starts_again_after_ageing() {
        let (mut writer, tables) = writer();
        let before = tables.fdb.len();
        writer
            .set_vteps(Vni::FIRST_USER, &["192.0.2.50".parse().unwrap()])
            .unwrap();
        let guest = |i: usize| Mac::from_u64(0x0200_0000_0000 | i as u64);
        let noted = (0..LEARNED_MAX + 1000).filter(|i| writer.learn(SEGMENT, guest(*i), 0, 1));
        assert!((LEARNED_MAX - 2..=LEARNED_MAX + 2).contains(&noted.count()));
        assert!(tables.fdb.len() <= before + LEARNED_MAX + 2);
        assert!(
            writer.learn(SEGMENT, guest(0), 0, 2),
            "a known one is refreshed"
        );
        assert!(writer.age(400, 300) > 0);
        assert!(writer.learn(SEGMENT, guest(1 << 20), 0, 401));
    }

    #[test]
    fn a_removed_segment_leaves_nothing_for_the_next_one_of_its_number() {
        let (mut writer, tables) = writer();
        writer.upsert_local(&record(4097, "e1", 2, 9, 1)).unwrap();
        writer.learn(SEGMENT, Mac([2, 9, 9, 9, 9, 9]), 0, 1);
        assert!(writer.remove_segment(Vni::FIRST_USER));
        assert!(!writer.remove_segment(Vni::FIRST_USER));
        assert!(tables.fdb.is_empty() && tables.neigh.is_empty());
        assert!(tables.snapshot().segment_by_vni(4097).is_none());
        assert_eq!(writer.add_segment(config(5000, "other")), Ok(SEGMENT));
    }

    #[test]
    fn segments_of_one_network_are_siblings_and_a_vni_is_unique() {
        let (mut writer, tables) = writer();
        let second = writer.add_segment(config(4098, "net")).unwrap();
        writer.add_segment(config(4099, "other")).unwrap();
        assert_eq!(
            writer.add_segment(config(4098, "x")),
            Err(TableError::VniTaken(Vni::new(4098).unwrap()))
        );
        let snapshot = tables.snapshot();
        assert_eq!(snapshot.segment(SEGMENT).unwrap().siblings, [second]);
        assert!(snapshot.segment_by_vni(4099).unwrap().siblings.is_empty());
    }

    #[test]
    fn a_removed_sibling_is_in_nobodys_list_and_others_are_shared_with_the_snapshot_before() {
        let (mut writer, tables) = writer();
        for (vni, network) in [(4098, "net"), (4099, "other"), (4100, "net")] {
            writer.add_segment(config(vni, network)).unwrap();
        }
        let before = tables.snapshot();
        assert!(writer.remove_segment(Vni::new(4098).unwrap()));
        let after = tables.snapshot();
        assert!(after.segment_by_vni(4098).is_none());
        assert!(after.segment(SegmentIndex(1)).is_none());
        let siblings = |vni| after.segment_by_vni(vni).unwrap().siblings.clone();
        assert_eq!(siblings(4097), [SegmentIndex(3)]);
        assert_eq!(siblings(4100), [SEGMENT]);
        let [was, is] = [&before, &after].map(|s| s.segment_by_vni(4099).unwrap());
        assert!(Arc::ptr_eq(was, is), "it has not changed");
        assert_eq!(
            writer.add_segment(config(4101, "other")),
            Ok(SegmentIndex(1)),
            "the number is free again"
        );
        let other = tables.snapshot().segment_by_vni(4099).unwrap().clone();
        assert_eq!(other.siblings, [SegmentIndex(1)]);
    }
}
