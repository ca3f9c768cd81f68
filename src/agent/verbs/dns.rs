//! What is said of names: listed, and asked for as a workload would.

use std::net::{IpAddr, Ipv4Addr};

use crate::agent::api::{DnsAnswer, DnsList, DnsLookup, DnsName, DnsRecord, DnsStatus, DnsTimes};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::agent::names::Names;
use crate::services::dns::counters::{BOUNDS_US, Times, outcome_name};
use crate::services::dns::message::{self, Decision, Outcome, Transport};
use crate::services::dns::server::Shared;
use crate::services::dns::zone::{Entry, TTL_S, reversed_name};

impl Agent {
    /// Every name of a network, or of all that are up on this node.
    ///
    /// # Errors
    /// `network_not_found`, `builtin_network`, `ambiguous_reference`, `unsupported` where names are switched off.
    pub fn dns(&self, network: Option<&str>) -> Result<DnsList, ApiError> {
        let names = self.named()?;
        let networks = self.networks_named(network, "list the names of")?;
        let mut list = Vec::new();
        for (id, network) in networks {
            let Some(shared) = names.shared(&id) else {
                continue;
            };
            let zone = shared.zone().load();
            for (name, entry) in zone.entries() {
                list.extend(rows(&network, &name, entry));
            }
            list.extend(zone.addresses().map(|(address, names)| {
                let values = names.iter().map(ToString::to_string);
                row(&network, address.to_string(), "PTR", values)
            }));
        }
        Ok(DnsList {
            schema: "weft/dns/1".into(),
            domain: names.domain().into(),
            names: list,
        })
    }

    /// Asks a network's server, by the way that a workload's query takes but for the socket: what the network does not know is
    /// forwarded. Without a network all of them are asked for what they know themselves.
    ///
    /// # Errors
    /// `invalid_request` for what is no name or type, `record_not_found` if no network knows the name; those of
    /// [`Agent::dns`].
    pub async fn dns_lookup(
        &self,
        name: &str,
        network: Option<&str>,
        kind: Option<&str>,
    ) -> Result<DnsLookup, ApiError> {
        let names = self.named()?;
        let (asked, kind) = question_of(name, kind);
        let query = message::kind_of(&kind).and_then(|kind| message::question(&asked, kind));
        let query = query.ok_or_else(|| {
            ApiError::new(
                ErrorCode::InvalidRequest,
                format!("\"{name}\" of type \"{kind}\" cannot be asked for"),
                "give a name or an address, and a type such as A, AAAA or PTR",
            )
        })?;
        let mut answers = Vec::new();
        for (id, known_as) in self.networks_named(network, "look names up in")? {
            match names.shared(&id) {
                Some(shared) => {
                    let asked = ask(&shared, &query, network.is_some()).await;
                    answers.extend(asked.map(|answer| view(known_as, answer)));
                }
                None if network.is_some() => {
                    return Err(ApiError::new(
                        ErrorCode::RecordNotFound,
                        format!(
                            "network \"{known_as}\" is not up on this node, so nobody serves its names here"
                        ),
                        "ask on a node that has an endpoint of it: weft ps",
                    ));
                }
                None => {}
            }
        }
        if answers.is_empty() {
            return Err(ApiError::new(
                ErrorCode::RecordNotFound,
                format!("no network on this node knows \"{name}\""),
                "list the names: weft dns ls; to have it asked for elsewhere, name a network: --network NETWORK",
            ));
        }
        Ok(DnsLookup {
            schema: "weft/dns-lookup/1".into(),
            name: asked,
            kind,
            answers,
        })
    }

    fn named(&self) -> Result<&Names, ApiError> {
        self.names().ok_or_else(|| {
            ApiError::new(
                ErrorCode::Unsupported,
                "this agent serves no names: dns = false",
                "set dns = true and restart it, to have names served",
            )
        })
    }

    /// Ids and names of the networks meant, by name.
    fn networks_named(
        &self,
        network: Option<&str>,
        verb: &str,
    ) -> Result<Vec<(String, String)>, ApiError> {
        let live = self.live();
        let catalog = &live.node.catalog;
        let mut networks: Vec<_> = match network {
            Some(reference) => vec![catalog.find_overlay(reference, verb)?],
            None => catalog.networks.values().collect(),
        };
        networks.sort_by_key(|network| &network.name);
        let pairs = networks.iter().map(|n| (n.id.clone(), n.name.clone()));
        Ok(pairs.collect())
    }

    /// Names in the status; none where they are switched off.
    pub(in crate::agent) fn dns_status(&self) -> Option<DnsStatus> {
        let names = self.names()?;
        let counters = names.counters();
        let (networks, count) = names.sizes();
        let map = |counts: Vec<(&'static str, u64)>| {
            let counts = counts.into_iter();
            counts
                .map(|(name, count)| (name.to_owned(), count))
                .collect()
        };
        Some(DnsStatus {
            networks,
            names: count,
            queries: map(counters.outcomes()),
            drops: map(counters.drops()),
            upstreams: map(counters.askings()),
            local: times(&counters.local),
            forwarded: times(&counters.forwarded),
        })
    }
}

fn times(times: &Times) -> DnsTimes {
    let (counts, sum_us) = times.read();
    DnsTimes {
        bounds_us: BOUNDS_US.to_vec(),
        counts,
        sum_us,
    }
}

/// The name and type to ask for: an address is asked for its name.
fn question_of(name: &str, kind: Option<&str>) -> (String, String) {
    let kind = kind.map(str::to_ascii_uppercase);
    match name.parse::<IpAddr>() {
        Ok(address) if kind.as_deref().is_none_or(|kind| kind == "PTR") => {
            (reversed_name(address), "PTR".into())
        }
        _ => (name.into(), kind.unwrap_or_else(|| "A".into())),
    }
}

/// What a network's server says; without `all`, only if the network knows the name.
async fn ask(shared: &Shared, query: &[u8], all: bool) -> Option<(Vec<u8>, Outcome)> {
    let known = |outcome| all || matches!(outcome, Outcome::Answered | Outcome::Empty);
    match shared.decide(query, Transport::Tcp, None) {
        Decision::Reply(reply, outcome) if known(outcome) => Some((reply, outcome)),
        // The node itself is a client like any other, and bounded as they are.
        Decision::Ask(asked) if all => {
            Some(shared.forward(&asked, Ipv4Addr::LOCALHOST.into()).await)
        }
        _ => None,
    }
}

fn view(network: String, (reply, outcome): (Vec<u8>, Outcome)) -> DnsAnswer {
    let said = message::said(&reply).unwrap_or_default();
    let records = said
        .answers
        .into_iter()
        .map(|(name, kind, ttl, value)| DnsRecord {
            name,
            kind,
            ttl,
            value,
        });
    DnsAnswer {
        network,
        outcome: outcome_name(outcome).into(),
        code: said.code,
        records: records.collect(),
    }
}

fn rows(network: &str, name: &str, entry: &Entry) -> Vec<DnsName> {
    let (v4, v6) = (&entry.v4, &entry.v6);
    let mut rows = Vec::new();
    if !v4.is_empty() || v6.is_empty() {
        rows.push(row(
            network,
            name.into(),
            "A",
            v4.iter().map(ToString::to_string),
        ));
    }
    if !v6.is_empty() {
        rows.push(row(
            network,
            name.into(),
            "AAAA",
            v6.iter().map(ToString::to_string),
        ));
    }
    rows
}

fn row(network: &str, name: String, kind: &str, values: impl Iterator<Item = String>) -> DnsName {
    DnsName {
        network: network.into(),
        name,
        kind: kind.into(),
        values: values.collect(),
        ttl: TTL_S,
    }
}
