//! One network's names: which addresses a name stands for, and which name an address has.
//!
//! Pure. A zone is built from everything that is known of a network and is never changed: a newer one takes its place.
//! Names are kept without suffix; a question is stripped of the search domain and of the network's name instead.
//!
//! | asked | answered with |
//! |---|---|
//! | endpoint's name, alias, first 12 characters of its id | its addresses |
//! | service | its virtual addresses; its backends' without any |
//! | `tasks.` and a service | its backends' addresses |
//! | each of these with `.<network>`, `.<domain>` or both | the same |
//!
//! Of several endpoints behind one name, those answer that take new connections. If none does, all of them do: to a
//! client no address reads as "there is no such service", which it may remember, while a backend that is called
//! unhealthy may well answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::ident;
use crate::model::service::{EndpointMode, Service};
use crate::tables::record::EndpointRecord;

/// How long an answer may be kept, in seconds. An endpoint that fails is gone from here within five seconds; clients
/// that remember names for long would make that worth little.
pub const TTL_S: u32 = 2;
/// The longest name, in characters without the last dot (RFC 1035 §2.3.4).
const NAME_MAX: usize = 253;
const TASKS: &str = "tasks";

/// What a zone is made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contents {
    /// Name of the network.
    pub network: String,
    /// The search domain.
    pub domain: String,
    /// The network's subnets: nobody else is asked who has an address of theirs.
    pub subnets: Vec<IpNetwork>,
    /// Endpoints of the network, here and elsewhere.
    pub records: Vec<Arc<EndpointRecord>>,
    /// Services with a part in the network, each with its virtual addresses there.
    pub services: Vec<(Service, Vec<IpAddr>)>,
}

/// The addresses behind a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// IPv4, in order.
    pub v4: Box<[Ipv4Addr]>,
    /// IPv6, in order.
    pub v6: Box<[Ipv6Addr]>,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// It has these addresses.
    Addresses(&'a Entry),
    /// These names have the address.
    Names(&'a [Box<str>]),
    /// It exists, and there is nothing to say of it.
    Empty,
    /// There is no such name, and nobody else would know.
    Absent,
    /// It is nothing of this network.
    Foreign,
}

/// One network's names.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    network: Box<str>,
    domain: Box<str>,
    subnets: Vec<IpNetwork>,
    names: BTreeMap<Box<str>, Entry>,
    tasks: BTreeMap<Box<str>, Entry>,
    addresses: BTreeMap<IpAddr, Box<[Box<str>]>>,
}

impl Zone {
    /// Builds the zone.
    pub fn new(contents: &Contents) -> Zone {
        let records = &contents.records;
        let mut names: Vec<(Box<str>, usize)> = Vec::with_capacity(records.len() * 2);
        let mut tasks: Vec<(Box<str>, usize)> = Vec::new();
        let services = contents.services.iter();
        let served: BTreeSet<Box<str>> = services.filter_map(|(s, _)| key(&s.name)).collect();
        for (index, record) in records.iter().enumerate() {
            let own = [record.name.as_str(), ident::short(&record.endpoint)];
            let aliases = record.aliases.iter().filter_map(|alias| key(alias));
            let service = key(&record.service);
            // An endpoint backs a service also by carrying its name as an alias.
            let backs = aliases.clone().filter(|alias| served.contains(alias));
            tasks.extend(backs.chain(service.clone()).map(|name| (name, index)));
            let all = own.into_iter().filter_map(key).chain(aliases);
            names.extend(all.chain(service).map(|name| (name, index)));
        }
        let mut names = grouped(names, records);
        for (service, vips) in &contents.services {
            let Some(name) = key(&service.name) else {
                continue;
            };
            if service.mode == EndpointMode::Vip && !vips.is_empty() {
                names.insert(name, Entry::of(vips.iter().copied()));
            } else {
                names.entry(name).or_default();
            }
        }
        let mut tasks = grouped(tasks, records);
        for name in served {
            tasks.entry(name).or_default();
        }
        let mut zone = Zone {
            network: key(&contents.network).unwrap_or_default(),
            domain: contents.domain.to_ascii_lowercase().into(),
            subnets: contents.subnets.clone(),
            names,
            tasks,
            addresses: BTreeMap::new(),
        };
        zone.addresses = zone.pointers(contents);
        zone
    }

    /// The full names of all addresses.
    fn pointers(&self, contents: &Contents) -> BTreeMap<IpAddr, Box<[Box<str>]>> {
        let mut pairs: Vec<(IpAddr, Box<str>)> = Vec::with_capacity(contents.records.len());
        for record in &contents.records {
            let name = key(&record.name).or_else(|| key(ident::short(&record.endpoint)));
            pairs.extend(
                record
                    .ips
                    .iter()
                    .copied()
                    .zip(std::iter::repeat(name).flatten()),
            );
        }
        for (service, vips) in &contents.services {
            let name = key(&service.name);
            pairs.extend(vips.iter().copied().zip(std::iter::repeat(name).flatten()));
        }
        pairs.sort();
        pairs.dedup();
        let mut addresses = BTreeMap::new();
        for same in pairs.chunk_by(|a, b| a.0 == b.0) {
            let full = same.iter().map(|(_, name)| self.full_name(name).into());
            addresses.insert(same[0].0, full.collect());
        }
        addresses
    }

    fn full_name(&self, name: &str) -> String {
        format!("{name}.{}.{}", self.network, self.domain)
    }

    /// Looks a name up: lower case, without the last dot.
    pub fn find(&self, name: &str) -> Found<'_> {
        if let Some(address) = reversed_address(name) {
            return self.find_address(address);
        }
        let (stem, ours) = match strip(name, &self.domain) {
            Some(stem) => (stem, true),
            None => (name, false),
        };
        if ours && (stem.is_empty() || stem == &*self.network || stem == TASKS) {
            return Found::Empty;
        }
        let short = strip(stem, &self.network);
        let entry = self.entry(stem).or_else(|| self.entry(short?));
        if let Some(entry) = entry {
            return Found::Addresses(entry);
        }
        if ours && short == Some(TASKS) {
            return Found::Empty;
        }
        // A network may be called as a top-level domain is: what is only below its name may be somebody else's.
        match ours || !name.contains('.') && !name.is_empty() {
            true => Found::Absent,
            false => Found::Foreign,
        }
    }

    fn entry(&self, stem: &str) -> Option<&Entry> {
        let named = self.names.get(stem);
        named.or_else(|| self.tasks.get(stem.strip_prefix("tasks.")?))
    }

    /// Looks up who has an address.
    pub fn find_address(&self, address: IpAddr) -> Found<'_> {
        match self.addresses.get(&address) {
            Some(names) => Found::Names(names),
            None if self.subnets.iter().any(|s| s.contains(address)) => Found::Absent,
            None => Found::Foreign,
        }
    }

    /// Every name with its addresses, services' backends under `tasks.`; in order.
    pub fn entries(&self) -> impl Iterator<Item = (String, &Entry)> {
        let names = self.names.iter().map(|(name, e)| (name.to_string(), e));
        let tasks = self.tasks.iter();
        names.chain(tasks.map(|(name, entry)| (format!("{TASKS}.{name}"), entry)))
    }

    /// Every address with its names, in order.
    pub fn addresses(&self) -> impl Iterator<Item = (IpAddr, &[Box<str>])> {
        self.addresses
            .iter()
            .map(|(address, names)| (*address, &**names))
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len() + self.tasks.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Entry {
    fn of(addresses: impl Iterator<Item = IpAddr>) -> Entry {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
        Entry {
            v4: v4.into(),
            v6: v6.into(),
        }
    }
}

/// Names with the addresses of those endpoints behind them that answer.
fn grouped(
    mut pairs: Vec<(Box<str>, usize)>,
    records: &[Arc<EndpointRecord>],
) -> BTreeMap<Box<str>, Entry> {
    pairs.sort_unstable();
    pairs.dedup();
    let groups = pairs.chunk_by(|a, b| a.0 == b.0).map(|group| {
        let members = || group.iter().map(|(_, index)| &records[*index]);
        let any_ready = members().any(|record| record.backing.share() > 0);
        let answering = members().filter(|record| !any_ready || record.backing.share() > 0);
        let addresses = answering.flat_map(|record| record.ips.iter().copied());
        (group[0].0.clone(), Entry::of(addresses))
    });
    groups.collect()
}

/// A name in the form it is kept in; none for what cannot be one.
fn key(name: &str) -> Option<Box<str>> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let good = !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(fine);
    good.then(|| name.to_ascii_lowercase().into())
}

/// The name without a suffix and the dot before it.
fn strip<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let stem = name.strip_suffix(suffix)?;
    match stem {
        "" => Some(""),
        _ if suffix.is_empty() => None,
        _ => stem.strip_suffix('.'),
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035 §3.5, RFC 3596 §2.5).
pub fn reversed_address(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut parts = digits.split('.');
        for octet in octets.iter_mut().rev() {
            let part = parts.next().filter(|part| part.len() <= 3)?;
            *octet = part.parse().ok()?;
        }
        return parts.next().is_none().then(|| octets.into());
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut count = 0;
    for part in nibbles.split('.') {
        let mut digits = part.chars();
        let (Some(digit), None) = (digits.next(), digits.next()) else {
            return None;
        };
        if count == 32 {
            return None;
        }
        bits |= u128::from(digit.to_digit(16)?) << (4 * count);
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(bits.into()))
}

/// The name below which an address's own name is asked for.
pub fn reversed_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let digits = format!("{:032x}", u128::from(v6));
            let mut name = String::with_capacity(72);
            digits
                .chars()
                .rev()
                .for_each(|digit| name.extend([digit, '.']));
            name + "ip6.arpa"
        }
    }
}

#[cfg(test)]
mod tests;
