//! What services' connections and bytes are counted by: the names of counters in rules, and what their readings add up to.
//!
//! A counter belongs to a service's id, so it stays the same whatever else changes in the rules. Each namespace counts by
//! itself; the sums outlive namespaces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::ident;

/// How connections came to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// By a virtual address, counted where the client is.
    Vip,
    /// By a port published on every node, counted at the node that was called.
    Ingress,
    /// By a port published on nodes with a backend, counted there.
    Host,
}

impl Path {
    /// Its name in counters, labels and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Path::Vip => "vip",
            Path::Ingress => "ingress",
            Path::Host => "host",
        }
    }
}

/// What one counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// First packets of connections: its packets count.
    Connections,
    /// Packets from clients: its bytes count.
    ToBackend,
    /// Packets to clients: its bytes count.
    ToClient,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Connections, Kind::ToBackend, Kind::ToClient];

    fn name(self) -> &'static str {
        match self {
            Kind::Connections => "connections",
            Kind::ToBackend => "to-backend",
            Kind::ToClient => "to-client",
        }
    }
}

/// One way to one service: what is counted apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    service: String,
    path: Path,
}

impl Counted {
    /// None for what is no id: names of counters are part of rules, and whoever makes a service chooses its id.
    pub fn new(service: &str, path: Path) -> Option<Counted> {
        ident::is_id(service).then(|| Counted {
            service: service.to_owned(),
            path,
        })
    }

    /// Id of the service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// How connections came.
    pub fn path(&self) -> Path {
        self.path
    }

    /// The name of one of its counters.
    pub fn counter(&self, kind: Kind) -> String {
        format!("{}_{}_{}", self.path.name(), kind.name(), self.service)
    }

    /// All of its counters' names.
    pub fn counters(&self) -> [String; 3] {
        Kind::ALL.map(|kind| self.counter(kind))
    }

    /// What a counter of this name counts; none if it is no counter of ours.
    pub fn of_counter(name: &str) -> Option<(Counted, Kind)> {
        let (path, rest) = name.split_once('_')?;
        let (kind, service) = rest.split_once('_')?;
        let path = [Path::Vip, Path::Ingress, Path::Host]
            .into_iter()
            .find(|known| known.name() == path)?;
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
        Some((Counted::new(service, path)?, kind))
    }
}

/// One counter as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The counters of one namespace by name.
pub type Reading = BTreeMap<String, Count>;

/// What has come to a service one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Connections that were led to a backend; of UDP, flows.
    pub connections: u64,
    /// Bytes of packets from clients, IP headers included.
    pub bytes_to_backend: u64,
    /// Bytes of packets to clients, IP headers included.
    pub bytes_to_client: u64,
}

/// Sums over all namespaces there are and were.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    sums: BTreeMap<Counted, Traffic>,
}

impl Totals {
    /// Adds what one namespace has counted since `last`, which becomes `now`. A counter below what it was has begun anew;
    /// one that was not read stays as it was.
    pub fn add(&mut self, last: &mut Reading, now: Reading) {
        for (name, now) in now {
            let Some((counted, kind)) = Counted::of_counter(&name) else {
                continue;
            };
            let before = last.insert(name, now).unwrap_or_default();
            let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
            let sum = self.sums.entry(counted).or_default();
            let (sum, more) = match kind {
                Kind::Connections => (&mut sum.connections, since(now.packets, before.packets)),
                Kind::ToBackend => (&mut sum.bytes_to_backend, since(now.bytes, before.bytes)),
                Kind::ToClient => (&mut sum.bytes_to_client, since(now.bytes, before.bytes)),
            };
            *sum = sum.saturating_add(more);
        }
    }

    /// What has come to a service, by the way it came.
    pub fn of(&self, service: &str) -> Vec<(Path, Traffic)> {
        let all = self.sums.iter();
        all.filter(|(counted, _)| counted.service == service)
            .map(|(counted, traffic)| (counted.path, *traffic))
            .collect()
    }

    /// Forgets services that are gone.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.sums.retain(|counted, _| keep(&counted.service));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdefghijklmno";

    fn counted(path: Path) -> Counted {
        Counted::new(ID, path).unwrap()
    }

    fn count(packets: u64, bytes: u64) -> Count {
        Count { packets, bytes }
    }

    #[test]
    fn a_counters_name_tells_what_it_counts() {
        for path in [Path::Vip, Path::Ingress, Path::Host] {
            for kind in Kind::ALL {
                let name = counted(path).counter(kind);
                assert_eq!(Counted::of_counter(&name), Some((counted(path), kind)));
            }
        }
        for foreign in ["", "packets", "vip_connections_", "vip_other_x", "a_b_c"] {
            assert_eq!(Counted::of_counter(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn an_id_that_would_end_a_rule_gets_no_counter() {
        assert_eq!(Counted::new("x } delete table inet weft", Path::Vip), None);
    }

    #[test]
    fn sums_only_grow_whatever_becomes_of_a_counter() {
        let connections = counted(Path::Vip).counter(Kind::Connections);
        let to_client = counted(Path::Vip).counter(Kind::ToClient);
        let mut totals = Totals::default();
        let sum = |totals: &Totals| totals.of(ID)[0].1;
        let mut first = Reading::new();
        let read = |connections: (&str, Count), to_client: (&str, Count)| {
            Reading::from([connections, to_client].map(|(name, count)| (name.into(), count)))
        };
        let now = read((&connections, count(3, 180)), (&to_client, count(9, 900)));
        totals.add(&mut first, now.clone());
        totals.add(&mut first, now);
        assert_eq!(
            sum(&totals),
            Traffic {
                connections: 3,
                bytes_to_backend: 0,
                bytes_to_client: 900
            },
            "read twice, counted once"
        );
        // One was missed, the other began anew.
        totals.add(
            &mut first,
            Reading::from([(connections.clone(), count(1, 60))]),
        );
        assert_eq!(sum(&totals).connections, 4);
        let now = read((&connections, count(2, 120)), (&to_client, count(10, 1000)));
        totals.add(&mut first, now);
        assert_eq!(
            (sum(&totals).connections, sum(&totals).bytes_to_client),
            (5, 1000)
        );
        // Another namespace counts on its own, and one that is gone stays in the sum.
        let mut second = Reading::new();
        totals.add(&mut second, Reading::from([(connections, count(7, 420))]));
        drop(second);
        assert_eq!(sum(&totals).connections, 12);
        totals.retain(|service| service != ID);
        assert!(totals.of(ID).is_empty());
    }
}
