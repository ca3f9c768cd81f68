//! Request and reply types about the cluster: making, joining and leaving it, its nodes, tokens and addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

pub use crate::cluster::ipam::usage::{NodeUse, SubnetUse, VipUse};
pub use crate::cluster::manager::command::{Availability, NodeStatus};
pub use crate::cluster::manager::ids::{NodeId, Role};

/// Body of `POST /v1/cluster/init`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// Where subnets come from when none is given, tried in order; 10.0.0.0/8 when empty.
    #[serde(default)]
    pub pools: Vec<Ipv4Network>,
    /// Prefix length of those subnets; 24 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_len: Option<u8>,
    /// How long a node has to be down before its addresses are taken back, in seconds; an hour when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim_after_s: Option<u64>,
    /// How long an address rests before another node gets it, in seconds; five minutes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine_s: Option<u64>,
}

/// Reply to `POST /v1/cluster/init`. The tokens are shown here and never again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitReply {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node.
    pub node: NodeId,
    /// Name of this node.
    pub name: String,
    /// Where other nodes join.
    pub control: SocketAddr,
    /// Lets a node join as a worker.
    pub worker_token: String,
    /// Lets a node join as a manager.
    pub manager_token: String,
}

/// Body of `POST /v1/cluster/join`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinClusterRequest {
    /// A join token.
    pub token: String,
    /// A manager: `HOST` or `HOST:PORT`.
    pub manager: String,
}

/// Reply to `POST /v1/cluster/join`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of this node.
    pub node: NodeId,
    /// Name of this node.
    pub name: String,
    /// What it is there.
    pub role: Role,
}

/// Body of `POST /v1/cluster/leave`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveRequest {
    /// Even if endpoints are attached, no manager answers, or this is the last manager.
    #[serde(default)]
    pub force: bool,
}

/// Reply to `POST /v1/cluster/leave`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveReply {
    /// Id of the cluster that it was part of.
    pub cluster: String,
    /// Endpoints that were detached by force.
    pub endpoints: usize,
    /// Why the managers were not told, if they were not; empty otherwise.
    #[serde(default)]
    pub warning: String,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Its unique name.
    pub name: String,
    /// Its number, for compact encodings.
    pub number: u64,
    /// What it may do.
    pub role: Role,
    /// What the managers last heard of it.
    pub status: NodeStatus,
    /// Whether it takes workloads.
    pub availability: Availability,
    /// Its VTEP.
    pub vtep: IpAddr,
    /// Where it answers as a manager.
    pub control: Option<SocketAddr>,
    /// How often its agent has started.
    pub epoch: u64,
    /// Whether it leads the managers; nothing where that is not known.
    pub leader: Option<bool>,
    /// Whether it is the node that answers.
    #[serde(rename = "self")]
    pub is_self: bool,
    /// Addresses in use there, as last told.
    pub addresses: u64,
    /// RFC 3339.
    pub joined: String,
}

/// Reply to `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// `weft/nodes/1`.
    pub schema: String,
    /// By name.
    pub nodes: Vec<NodeView>,
}

/// What can be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeAction {
    /// A worker becomes a manager.
    Promote,
    /// A manager becomes a worker.
    Demote,
    /// It takes no new workloads.
    Drain,
    /// It takes workloads again.
    Activate,
}

/// Body of `POST /v1/nodes/{ref}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeChange {
    /// What to do.
    pub action: NodeAction,
}

/// One join token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenView {
    /// What it lets a node become.
    pub role: Role,
    /// The first digits of its SHA-256, to tell tokens apart.
    pub digest: String,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339; nothing for one without an end.
    pub expires: Option<String>,
    /// Whether its time is over.
    pub expired: bool,
}

/// Reply to `GET /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// `weft/tokens/1`.
    pub schema: String,
    /// In the order in which they were made.
    pub tokens: Vec<TokenView>,
}

/// Body of `POST /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it lets a node become.
    pub role: Role,
    /// How long it is good for, in seconds; without an end when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life_s: Option<u64>,
    /// Whether it takes the place of all tokens of its role.
    #[serde(default)]
    pub rotate: bool,
}

/// Reply to `POST /v1/tokens`. The token is shown here and never again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// What it lets a node become.
    pub role: Role,
    /// The token.
    pub token: String,
    /// Where nodes join with it.
    pub control: SocketAddr,
}

/// Reply to `GET /v1/ipam`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamList {
    /// `weft/ipam/1`.
    pub schema: String,
    /// By network name and subnet.
    pub subnets: Vec<SubnetUse>,
}

/// How another node looks from this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipPeer {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: NodeId,
    /// Its VTEP.
    pub vtep: IpAddr,
    /// `alive`, `suspect`, `failed`, or `unheard` if nobody has told of it.
    pub liveness: String,
    /// The start number of its agent, as heard.
    pub epoch: u64,
    /// Endpoints of it that are known here.
    pub endpoints: usize,
    /// Names of the networks that both take part in.
    pub networks: Vec<String>,
}

/// Reply to `GET /v1/peers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerList {
    /// `weft/peers/1`.
    pub schema: String,
    /// By name.
    pub peers: Vec<GossipPeer>,
}

/// The cluster's part of the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Id of the cluster.
    pub id: String,
    /// Id of this node.
    pub node: NodeId,
    /// What this node is.
    pub role: Role,
    /// Whether it takes workloads.
    pub availability: Availability,
    /// Name of the managers' leader, where it is known.
    pub leader: Option<String>,
    /// Managers that answer, as last told, and all of them.
    pub managers: (usize, usize),
    /// Nodes that answer, as last told, and all of them.
    pub nodes: (usize, usize),
    /// How far in the managers' log this node knows their state.
    pub revision: u64,
    /// Seconds since a manager last answered; nothing if none has since the start.
    pub heard_s: Option<u64>,
    /// Other members by liveness, as seen from here.
    pub members: BTreeMap<String, usize>,
    /// Whether this node's tables are complete as far as it can tell: every network's table agrees with another
    /// node's, every node that should answer does, and the managers know of this start.
    pub converged: bool,
    /// What is missing to that, in words.
    pub waiting_for: Vec<String>,
    /// Hash of each network's table by name: equal on nodes that know the same.
    pub tables: BTreeMap<String, String>,
    /// Bytes and entries that gossip holds.
    pub table_bytes: usize,
    /// Entries that gossip holds.
    pub table_entries: usize,
    /// Counters of gossip by name.
    pub counters: BTreeMap<String, u64>,
}
