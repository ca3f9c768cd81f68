//! Services as data: what clients call, and which endpoints answer.
//!
//! A service has a name on its networks, a virtual address on each of them (or none), and perhaps published ports.
//! Its backends are not listed here: they are the endpoints that name the service or carry its name as an alias.
//! Pure, as [`super::network`]: [`Known`] has the rules, and the managers choose virtual addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

mod plan;
mod wish;

pub use plan::{DYNAMIC_PORTS, Known, find};
pub use wish::{CreateService, HealthWish, PortWish, UpdateService};

/// How the service's name leads to its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// One virtual address per network, spread over the backends.
    #[default]
    Vip,
    /// All backends' addresses, in the DNS answer.
    Dnsrr,
}

/// Which backend a new connection goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Each in turn, by weight.
    #[default]
    RoundRobin,
    /// The one that the client's address hashes to, by weight; few move when backends come or go.
    SourceHash,
}

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// Where a published port answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, whichever holds the backend.
    #[default]
    Ingress,
    /// On the nodes that hold a backend, and led to that one.
    Host,
}

/// A published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// The address on nodes; every one of them when absent. A loopback address is reached from the node alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    /// The port on nodes.
    pub published: u16,
    /// The port of the backends.
    pub target: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// On which nodes it answers.
    pub mode: PublishMode,
    /// Begin each connection with a PROXY protocol header (version 2). TCP only.
    #[serde(default)]
    pub proxy_protocol: bool,
}

/// What a backend has to answer to be given connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// The backends' port.
    pub port: u16,
    /// Time from one check to the next, in milliseconds.
    pub interval_ms: u64,
    /// Time a check may take, in milliseconds.
    pub timeout_ms: u64,
    /// So many failures in a row make it unhealthy; one success makes it well again.
    pub retries: u32,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// A connection is accepted.
    Tcp,
    /// `GET` of this path is answered with a status from 200 to 399.
    Http(String),
}

/// A service's part in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceNetwork {
    /// Id of the network.
    pub network: String,
    /// Its virtual addresses there, IPv4 first; none with [`EndpointMode::Dnsrr`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// 25 base-36 characters.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Nanoseconds since 1970.
    pub created: u64,
    /// Nanoseconds since 1970.
    pub updated: u64,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How its name leads to its backends.
    pub mode: EndpointMode,
    /// Which backend a new connection goes to.
    pub balance: Balance,
    /// Its networks, in the order they were given; at least one.
    pub networks: Vec<ServiceNetwork>,
    /// Its published ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// What backends have to answer; being up is enough when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

impl Service {
    /// Whether an endpoint on one of its networks is a backend: it names the service, or has its name as an alias.
    pub fn is_backed_by(&self, service: &str, aliases: &[String]) -> bool {
        service == self.name || aliases.contains(&self.name)
    }
}
