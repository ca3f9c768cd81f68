//! The endpoint record: what gossip carries, what the API accepts and what the tables index.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::wire::{Mac, Vni};

/// Which of two versions of one record is newer: the node's epoch first (it grows with each start of
/// the owning agent), then a counter. No wall clock is involved.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    /// Start number of the owning node's agent.
    pub epoch: u64,
    /// Change number within the epoch.
    pub counter: u64,
}

/// Whether a backend gets new connections of its service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It does.
    #[default]
    Ready,
    /// It does not: it is about to go, and what it has begun goes on.
    Draining,
    /// It does not: its health check fails.
    Unhealthy,
}

/// How an endpoint takes part in the service it backs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Backing {
    /// Its share of new connections, in proportion to the other backends' weights; 0 for none.
    pub weight: u16,
    /// Whether it gets new connections.
    pub standing: Standing,
}

impl Default for Backing {
    fn default() -> Backing {
        Backing {
            weight: 1,
            standing: Standing::Ready,
        }
    }
}

impl Backing {
    /// Whether there is nothing to say of it.
    pub fn is_usual(&self) -> bool {
        *self == Backing::default()
    }

    /// Its share of new connections as things stand.
    pub fn share(&self) -> u16 {
        match self.standing {
            Standing::Ready => self.weight,
            Standing::Draining | Standing::Unhealthy => 0,
        }
    }
}

/// One endpoint: a workload's attachment to a network, seen from any node.
///
/// Only the owning node writes its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// Network id, 25 base-36 characters.
    pub network: String,
    /// The segment the endpoint lives in.
    pub vni: Vni,
    /// Endpoint id, 25 base-36 characters.
    pub endpoint: String,
    /// The endpoint's address on the segment.
    pub mac: Mac,
    /// Its IP addresses, at least one.
    pub ips: Vec<IpAddr>,
    /// The underlay address that terminates VXLAN for it.
    pub vtep: IpAddr,
    /// Name of the owning node.
    #[serde(default)]
    pub node: String,
    /// The endpoint's name.
    #[serde(default)]
    pub name: String,
    /// Further names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The service it backs, empty for none.
    #[serde(default)]
    pub service: String,
    /// How it takes part in that service.
    #[serde(default, skip_serializing_if = "Backing::is_usual")]
    pub backing: Backing,
    /// Orders updates of this record.
    #[serde(default)]
    pub version: Version,
}
