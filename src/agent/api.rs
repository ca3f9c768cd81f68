//! Plain request and reply types, and the [`Agent`] handle: the front ends' only door.
//!
//! Networks have the shape of Docker Engine's `/networks` (PascalCase keys in Docker's order); everything
//! else is snake_case. Nothing here does anything.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use self::cluster::*;
pub use self::dns::*;
pub use self::engine::*;
pub use self::service::*;
pub use super::events::EventEntry;
pub use super::handle::Agent;
pub use super::{config, ident, metrics};
pub use crate::model::error::{ApiError, ErrorBody, ErrorCode, exit};
pub use crate::model::request::*;
pub use crate::model::suggest;
pub use crate::tables::record::{Backing, EndpointRecord, Standing, Version};
pub use crate::wire::{Mac, Vni};

mod cluster;
mod dns;
mod engine;
mod service;

/// Version of the API in the URL prefix.
pub const API_VERSION: &str = "v1";

/// Reply to `POST /v1/networks`, as Docker's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkCreated {
    /// The network's id.
    pub id: String,
    /// What will work but may surprise; empty for nothing.
    pub warning: String,
}

/// One network, with Docker's keys in Docker's order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkView {
    /// Unique name.
    pub name: String,
    /// 25 base-36 characters; 64 hexadecimal ones for networks of the node itself.
    pub id: String,
    /// RFC 3339 with nanoseconds, UTC.
    pub created: String,
    /// `swarm` or `local`.
    pub scope: String,
    /// `overlay`, `bridge`, `host` or `null`.
    pub driver: String,
    /// Whether it carries IPv4.
    #[serde(rename = "EnableIPv4")]
    pub enable_ipv4: bool,
    /// Whether it carries IPv6.
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    /// Subnets and gateways.
    #[serde(rename = "IPAM")]
    pub ipam: IpamView,
    /// No way out of the network.
    pub internal: bool,
    /// Workloads outside of services may join.
    pub attachable: bool,
    /// The routing-mesh network.
    pub ingress: bool,
    /// Always empty: there are no configuration-only networks.
    pub config_from: ConfigFrom,
    /// Always false.
    pub config_only: bool,
    /// Local endpoints by endpoint id.
    pub containers: BTreeMap<String, ContainerView>,
    /// Driver options, the VNIs among them.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Nodes that take part, as far as this node knows.
    #[serde(default)]
    pub peers: Vec<PeerView>,
}

/// The `IPAM` part of [`NetworkView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamView {
    /// Always `default`.
    pub driver: String,
    /// Always null.
    pub options: Option<BTreeMap<String, String>>,
    /// One entry per subnet.
    pub config: Vec<IpamConfigView>,
}

/// One subnet of [`IpamView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamConfigView {
    /// The subnet.
    pub subnet: IpNetwork,
    /// Where endpoints' addresses come from, when not the whole subnet.
    #[serde(rename = "IPRange", default, skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<IpNetwork>,
    /// The address every node holds on the network's bridge.
    pub gateway: IpAddr,
    /// Addresses never given to an endpoint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliary_addresses: BTreeMap<String, IpAddr>,
}

/// Docker's `ConfigFrom`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ConfigFrom {
    /// Always empty.
    pub network: String,
}

/// One local endpoint in [`NetworkView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerView {
    /// The endpoint's name.
    #[serde(rename = "Name")]
    pub name: String,
    /// The endpoint's id.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// Its MAC address.
    #[serde(rename = "MacAddress")]
    pub mac_address: Mac,
    /// Its IPv4 address with the prefix length.
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    /// Its IPv6 address with the prefix length, or empty.
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

/// One node in [`NetworkView`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// The node's name, empty while nobody has told it.
    #[serde(rename = "Name")]
    pub name: String,
    /// Its VTEP.
    #[serde(rename = "IP")]
    pub ip: IpAddr,
}

/// Reply to `POST /v1/networks/prune`, as Docker's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworksPruned {
    /// Names of the removed networks.
    pub networks_deleted: Vec<String>,
}

/// Body of `POST` and `DELETE /v1/networks/{ref}/vteps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VtepChange {
    /// The VTEPs to add or remove.
    pub vteps: Vec<IpAddr>,
}

/// One VTEP of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VtepEntry {
    /// The underlay address.
    pub vtep: IpAddr,
    /// The node's name, empty while unknown.
    pub node: String,
    /// Whether it was added as a member (it then gets broadcasts); otherwise only records name it.
    pub member: bool,
    /// How many records live behind it.
    pub endpoints: usize,
}

/// Reply of the VTEP routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VtepList {
    /// Network id.
    pub network: String,
    /// Remote VTEPs, in order of address.
    pub vteps: Vec<VtepEntry>,
}

/// One remote endpoint to be put into a network's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordRequest {
    /// The endpoint's MAC.
    pub mac: Mac,
    /// Its addresses, at least one.
    pub ips: Vec<IpAddr>,
    /// The node that holds it.
    pub vtep: IpAddr,
    /// Endpoint id; made from the MAC when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Node name.
    #[serde(default)]
    pub node: String,
    /// Endpoint name.
    #[serde(default)]
    pub name: String,
    /// Further names.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The service it backs.
    #[serde(default)]
    pub service: String,
    /// Orders updates; without one the update is taken as the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

/// Body of `POST /v1/networks/{ref}/records`: one record or many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RecordBatch {
    /// Many; either all are accepted or none.
    Many(Vec<RecordRequest>),
    /// One.
    One(RecordRequest),
}

impl RecordBatch {
    /// The records as a list.
    pub fn into_vec(self) -> Vec<RecordRequest> {
        match self {
            RecordBatch::Many(list) => list,
            RecordBatch::One(one) => vec![one],
        }
    }
}

/// What became of one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordOutcome {
    /// The record's MAC.
    pub mac: Mac,
    /// Its version in the table now.
    pub version: Version,
    /// Whether the table changed.
    pub applied: bool,
    /// Why it did not; empty otherwise.
    pub note: String,
}

/// Reply to `POST /v1/networks/{ref}/records`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsApplied {
    /// One outcome per record, in the order given.
    pub records: Vec<RecordOutcome>,
}

/// Body of `POST /v1/networks/{ref}/endpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The workload's network namespace: its name, a path, or the id of a process in it.
    pub target: String,
    /// Name of the endpoint; taken from the target when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Fixed addresses, at most one of each family; the lowest free ones when absent.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Fixed MAC; made from the IPv4 address when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Interface name in the workload; the first free `eth<N>` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// Further names on this network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The service it backs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its share of that service's new connections; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// The node itself reaches its addresses, where the network has a way out.
    #[serde(default)]
    pub node_access: bool,
    /// How fast it may send and be sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// How fast a workload may send and be sent to, on its interface on one network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// To the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incoming: Option<Rate>,
    /// From the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outgoing: Option<Rate>,
}

impl Limits {
    /// Whether nothing is limited.
    pub fn are_none(&self) -> bool {
        *self == Limits::default()
    }
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In the long run.
    pub bits_per_second: u64,
    /// At once, after a silence; what 50 ms carry when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_bits: Option<u64>,
}

impl Rate {
    /// What may go at once. A super-frame larger than that is cut into packets first; a packet always fits.
    pub fn burst_bits(&self) -> u64 {
        let burst = self.burst_bits.unwrap_or(self.bits_per_second / 20);
        burst.max(BURST_BITS_MIN)
    }
}

/// Two packets of a large MTU.
const BURST_BITS_MIN: u64 = 2 * 9216 * 8;

/// One endpoint as `weft ps` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// Endpoint id.
    pub id: String,
    /// Endpoint name.
    pub name: String,
    /// Name of its network.
    pub network: String,
    /// Id of its network.
    pub network_id: String,
    /// VNI of its segment.
    pub vni: Vni,
    /// Addresses with prefix length.
    pub ips: Vec<IpNetwork>,
    /// MAC address.
    pub mac: Mac,
    /// The VTEP it sits behind.
    pub vtep: IpAddr,
    /// Its node's name, empty while unknown.
    pub node: String,
    /// Further names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The service it backs, empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// How it takes part in that service.
    #[serde(default, skip_serializing_if = "Backing::is_usual")]
    pub backing: Backing,
    /// Whether it is an endpoint of this node.
    pub local: bool,
    /// The workload's namespace, for local ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Interface name in the workload, for local ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// Where the workload can ask for the network's names, for local ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<IpAddr>,
    /// MTU of the interface in bytes, for local ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// RFC 3339, for local ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The record's version.
    pub version: Version,
}

/// Reply to `GET /v1/endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointList {
    /// `weft/endpoints/1`.
    pub schema: String,
    /// By network name, then address.
    pub endpoints: Vec<EndpointView>,
}

/// What an FDB row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FdbKind {
    /// An endpoint of this node.
    Local,
    /// An endpoint behind another VTEP.
    Remote,
    /// A VTEP that gets a copy of each broadcast.
    Flood,
}

/// One row of the forwarding table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// Name of the network.
    pub network: String,
    /// VNI of the segment.
    pub vni: Vni,
    /// What the row is.
    pub kind: FdbKind,
    /// The station; all-zero for a flood row.
    pub mac: Mac,
    /// The station's addresses.
    pub ips: Vec<IpAddr>,
    /// Where its frames go.
    pub vtep: IpAddr,
    /// Endpoint name.
    pub name: String,
    /// Node name.
    pub node: String,
    /// The record's version.
    pub version: Version,
}

/// Reply to `GET /v1/fdb`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbList {
    /// `weft/fdb/1`.
    pub schema: String,
    /// By network, then kind, then MAC.
    pub entries: Vec<FdbEntry>,
}

/// How the node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All is well.
    Ok,
    /// It works, with the listed trouble.
    Degraded,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthItem {
    /// Stable name, such as `vtep_missing`.
    pub code: String,
    /// What is wrong and why.
    pub message: String,
    /// What to do.
    pub next: String,
}

/// Dataplane part of [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataplaneStatus {
    /// Worker threads.
    pub workers: usize,
    /// `packet`, `tap`, or `none` while no network is up.
    pub uplink: String,
    /// Offloads by name and state (`on`, `off: reason`).
    pub offloads: BTreeMap<String, String>,
    /// Frames and bytes out of and into the tunnel since start.
    pub counters: Counters,
    /// For each reason that has dropped something: what it means and what to do.
    #[serde(default)]
    pub drop_help: BTreeMap<String, String>,
}

/// What the dataplane has counted since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Inner frames sent into the tunnel.
    pub encap_frames: u64,
    /// Their bytes.
    pub encap_bytes: u64,
    /// Inner frames taken out of the tunnel.
    pub decap_frames: u64,
    /// Their bytes.
    pub decap_bytes: u64,
    /// Dropped frames by reason; reasons with zero are present too.
    pub drops: BTreeMap<String, u64>,
    /// Every further counter of the dataplane by name.
    #[serde(default)]
    pub other: BTreeMap<String, u64>,
}

impl Counters {
    /// All drops together.
    pub fn drops_total(&self) -> u64 {
        self.drops.values().sum()
    }
}

/// One network in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// VNIs of its segments.
    pub vnis: Vec<Vni>,
    /// Whether it exists in the kernel now: networks are made with their first local endpoint.
    pub up: bool,
    /// Its namespace, while up.
    pub netns: Option<PathBuf>,
    /// MTU of workloads in bytes, while up.
    pub mtu: Option<u32>,
    /// Local endpoints.
    pub local_endpoints: usize,
    /// Endpoints on other nodes.
    pub remote_endpoints: usize,
    /// Other nodes' VTEPs.
    pub vteps: usize,
}

/// Reply to `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `weft/status/1`.
    pub schema: String,
    /// How the node is.
    pub verdict: Verdict,
    /// Why it is not well, and what to do.
    pub health: Vec<HealthItem>,
    /// Version of the agent.
    pub version: String,
    /// Name of the node.
    pub node: String,
    /// Its VTEP.
    pub vtep: IpAddr,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
    /// MTU of the device that carries the VTEP, in bytes.
    pub underlay_mtu: u32,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Process id of the agent.
    pub pid: u32,
    /// How often an agent started with this state directory.
    pub epoch: u64,
    /// The node's part in its cluster, if it is part of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStatus>,
    /// Names, where they are served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsStatus>,
    /// The dataplane.
    pub dataplane: DataplaneStatus,
    /// Every overlay network; `ingress` where it is up.
    pub networks: Vec<NetworkStatus>,
    /// Every service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceStatus>,
}

/// One service in [`Status`]: its backends, as far as this node knows, by how they stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Backends that get connections.
    pub ready: usize,
    /// Backends that end what they have.
    pub draining: usize,
    /// Backends whose check fails.
    pub unhealthy: usize,
    /// Published ports.
    pub ports: usize,
    /// What has come to it by way of this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<ServiceTraffic>,
}

/// Reply to `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// Version of the program.
    pub version: String,
    /// Versions of the API it speaks.
    pub api: Vec<String>,
    /// Target operating system and architecture.
    pub platform: String,
}

impl VersionInfo {
    /// Of this very program.
    pub fn this() -> VersionInfo {
        VersionInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            api: vec![API_VERSION.into()],
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// Reply to `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// `weft/events/1`.
    pub schema: String,
    /// The last events, oldest first.
    pub events: Vec<super::events::EventEntry>,
}

/// Reply to `POST /v1/reset`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// Names of removed networks.
    pub networks: Vec<String>,
    /// Number of detached endpoints.
    pub endpoints: usize,
    /// Further kernel objects found and removed.
    pub swept: Vec<String>,
    /// What could not be removed, and why.
    #[serde(default)]
    pub failures: Vec<String>,
    /// As what it was part of a cluster, which has not been told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}
