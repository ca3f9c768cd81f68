//! What a container engine's network plugin asks of the agent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::wire::Mac;

/// A network as an engine wants it. Engines do not tell its name; it may be among the options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineNetworkWish {
    /// Its subnets with their gateways, at least one.
    pub pools: Vec<EnginePool>,
    /// The driver's options, as the user gave them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// No way out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
}

/// One subnet of [`EngineNetworkWish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnginePool {
    /// The subnet.
    pub subnet: IpNetwork,
    /// Its gateway, if the engine has one for it.
    pub gateway: Option<IpAddr>,
}

/// A subnet that an engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineSubnet {
    /// The subnet.
    pub subnet: IpNetwork,
    /// The gateway of a network that was asked for by name.
    pub gateway: Option<IpAddr>,
}

/// An endpoint as an engine wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineEndpointWish {
    /// The engine's id of the network.
    pub network: String,
    /// The engine's id of the endpoint.
    pub endpoint: String,
    /// Addresses, at most one of each family; free ones when empty.
    pub ips: Vec<IpAddr>,
    /// MAC; made from the IPv4 address when absent.
    pub mac: Option<Mac>,
}

/// An endpoint as an engine gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineEndpoint {
    /// Addresses with the prefix lengths of their subnets.
    pub ips: Vec<IpNetwork>,
    /// MAC.
    pub mac: Mac,
    /// VNI of its segment.
    pub vni: crate::wire::Vni,
    /// Id of its network.
    pub network: String,
    /// Other subnets of the network, and the gateway that leads there.
    pub routes: Vec<(IpNetwork, IpAddr)>,
    /// Name of the interface that waits in the node's own namespace, once a container has joined.
    pub ifname: String,
}

/// What an engine knows of one of its containers' endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineNames {
    /// The engine's id of the endpoint.
    pub endpoint: String,
    /// The engine's id of the container.
    pub container: String,
    /// Name of the container.
    pub name: String,
    /// Further names on the network.
    pub aliases: Vec<String>,
    /// The service it backs, if any.
    pub service: Option<String>,
}
