//! What an operator may ask of a network: the request with Docker's keys, and the names of driver options.
//!
//! Text stays text here, so that a refusal can quote it; the rules are in [`super::network`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Option key: the VNIs of a network, comma-separated, one per IPv4 subnet (Docker's name).
pub const OPTION_VXLANID_LIST: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// Option key: the MTU of the underlay, in bytes; workloads get that minus the encapsulation (Docker's name).
pub const OPTION_MTU: &str = "com.docker.network.driver.mtu";
/// Option key: encryption on the wire (Docker's name).
pub const OPTION_ENCRYPTED: &str = "encrypted";
/// Option key: `true` floods and learns on the network, to talk to VTEPs that no records describe, such as
/// the kernel's. Nothing checks addresses there.
pub const OPTION_INTEROP: &str = "weft.interop";
/// Option key: `false` takes frames whose VXLAN header has reserved bits set.
pub const OPTION_STRICT_RESERVED_BITS: &str = "weft.strict-reserved-bits";
/// Option key: `false` drops frames with an 802.1Q tag.
pub const OPTION_CARRY_VLAN: &str = "weft.carry-vlan";
/// Option key: `true` copies the workload's DSCP to the outer header.
pub const OPTION_INHERIT_DSCP: &str = "weft.inherit-dscp";
/// Option key: broadcast and multicast frames per second and worker; 0 for no limit.
pub const OPTION_BUM_RATE: &str = "weft.bum-rate";
/// Option key of container engines' networks alone: the name of the network that is meant, or its id.
pub const OPTION_NETWORK: &str = "weft.network";
/// The only driver whose networks weft makes.
pub const DRIVER_OVERLAY: &str = "overlay";

/// Body of `POST /v1/networks`, a subset of Docker's with `Id` added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateNetwork {
    /// The network's name.
    pub name: String,
    /// A fixed id of 25 base-36 characters, for the same network on several agents; random without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `overlay`, which is also the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// `swarm` or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// IPv4 cannot be switched off.
    #[serde(
        rename = "EnableIPv4",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub enable_ipv4: Option<bool>,
    /// Whether workloads also get IPv6 addresses.
    #[serde(rename = "EnableIPv6", default)]
    pub enable_ipv6: bool,
    /// Subnets and gateways; the default pools serve when empty.
    #[serde(rename = "IPAM", default)]
    pub ipam: IpamRequest,
    /// No way out of the network.
    #[serde(default)]
    pub internal: bool,
    /// Workloads outside of services may join.
    #[serde(default)]
    pub attachable: bool,
    /// Asks for a routing-mesh network; refused, since every node has its own `ingress`.
    #[serde(default)]
    pub ingress: bool,
    /// Driver options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The `IPAM` part of [`CreateNetwork`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct IpamRequest {
    /// `default` or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// No option is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, String>>,
    /// One entry per subnet.
    #[serde(default)]
    pub config: Vec<IpamConfigRequest>,
}

/// One subnet of [`IpamRequest`], as text so that errors can quote it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct IpamConfigRequest {
    /// The subnet in CIDR form; empty when only a gateway is given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subnet: String,
    /// Endpoints get addresses from this part of the subnet only.
    #[serde(rename = "IPRange", default, skip_serializing_if = "String::is_empty")]
    pub ip_range: String,
    /// The gateway; the subnet's first address when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Addresses never given to an endpoint, by host name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary_addresses: BTreeMap<String, String>,
}
