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
    /// Orders updates of this record.
    #[serde(default)]
    pub version: Version,
}
