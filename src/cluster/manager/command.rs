//! What can be proposed to the managers, and the envelope that makes each wish count once.
//!
//! A command is kept in the log as JSON, so that a field added later with a default does not make old logs
//! unreadable. A command that a manager does not know stops it: skipping one would let managers differ.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnetwork::{IpNetwork, Ipv4Network};
use serde::{Deserialize, Serialize};

use super::ids::{Digest, Key, NodeId, RequestId, Role, SecretText, VerifyKey};
use super::json;
use crate::model::request::CreateNetwork;
use crate::model::service::{CreateService, UpdateService};

/// Version of the commands that this code writes and the newest that it reads.
pub const COMMAND_VERSION: u16 = 1;

/// The leader's clocks at the moment of a proposal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Cluster time in milliseconds: advances by the leaders' monotonic clocks only, so no step of a wall
    /// clock makes a lease end early. It stands still while there is no leader.
    pub cluster_ms: u64,
    /// Wall clock, in milliseconds since 1970, for what people read and for tokens' lives.
    pub wall_ms: u64,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// An operator at a node's agent.
    Operator {
        /// The node.
        node: NodeId,
        /// User id behind the agent's socket.
        uid: u32,
    },
    /// A node for itself.
    Node(NodeId),
    /// A node that is not one yet, by its address.
    Joiner(IpAddr),
    /// The leader, for what is due.
    Leader,
}

/// A command on its way into the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Version of the command's form.
    pub version: u16,
    /// The same for every attempt at one wish: applied once, answered each time.
    pub request: RequestId,
    /// Who asks.
    pub actor: Actor,
    /// When, by the leader's clocks.
    pub stamp: Stamp,
    /// What.
    #[serde(with = "json")]
    pub command: Command,
}

/// Settings of the cluster, chosen at `weft init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Where subnets come from when none is given, tried in order.
    pub pools: Vec<Ipv4Network>,
    /// Length of the prefix of each such subnet.
    pub prefix_len: u8,
    /// How long a node has to be down before its addresses are taken back, in milliseconds.
    pub reclaim_after_ms: u64,
    /// How long an address rests before another endpoint gets it: at least the life of a tombstone of the
    /// gossip table, in milliseconds.
    pub quarantine_ms: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            pools: DEFAULT_POOL.into_iter().collect(),
            prefix_len: 24,
            reclaim_after_ms: 60 * 60 * 1000,
            quarantine_ms: 5 * 60 * 1000,
        }
    }
}

/// 10.0.0.0/8, as in Docker Swarm.
const DEFAULT_POOL: Option<Ipv4Network> =
    Ipv4Network::new_checked(std::net::Ipv4Addr::new(10, 0, 0, 0), 8);

/// What a node tells of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWish {
    /// Its id, drawn by itself.
    pub id: NodeId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its VTEP on the underlay, unique in the cluster.
    pub vtep: IpAddr,
    /// Where its agent answers managers and nodes, if it may become a manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<SocketAddr>,
    /// How often its agent has started: a fence against its own past.
    pub epoch: u64,
    /// Digest of its certificate.
    pub certificate: Digest,
    /// What its gossip is verified with.
    pub verify_key: VerifyKey,
}

/// Whether a node takes new workloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// It does.
    #[default]
    Active,
    /// It does not, and what runs there is to be moved.
    Drain,
}

/// Whether a node answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeStatus {
    /// It answers.
    #[default]
    Ready,
    /// It does not.
    Down,
    /// It has left by itself.
    Left,
}

/// The CA of the cluster. The private key is on managers only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Certificate in PEM.
    pub certificate: String,
    /// Private key in PEM.
    pub key: SecretText,
    /// SHA-256 of the certificate in DER: what tokens pin.
    pub digest: Digest,
}

/// A join token as managers keep it: the secret itself is not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenWish {
    /// What it lets a node become.
    pub role: Role,
    /// SHA-256 of the secret.
    pub hash: Digest,
    /// How long it is good for, in milliseconds; without an end when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub life_ms: Option<u64>,
}

/// A block of addresses a node holds: its network, subnet and first address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockRef {
    /// Id of the network.
    pub network: String,
    /// The subnet.
    pub subnet: IpNetwork,
    /// First address of the block.
    pub first: IpAddr,
}

/// How much of a block is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockUse {
    /// The block.
    pub block: BlockRef,
    /// Its addresses with an endpoint.
    pub used: u32,
}

/// A change that managers are asked to agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Makes the cluster: settings, CA, first key and tokens, and the first manager. Once.
    Init(Box<InitCluster>),

    /// A node joins by a token, which says what it becomes.
    Join {
        /// What it tells of itself.
        node: NodeWish,
        /// SHA-256 of the token's secret.
        token: Digest,
    },
    /// A node's agent has started again, or its addresses have changed.
    NodeStart {
        /// The node.
        node: NodeId,
        /// Greater than ever before.
        epoch: u64,
        /// Its VTEP.
        vtep: IpAddr,
        /// Where its agent answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        control: Option<SocketAddr>,
        /// Whether it still has its state. Without it, its addresses go back.
        kept_state: bool,
    },
    /// The leader has seen a node go or come back.
    NodeStatus {
        /// The node.
        node: NodeId,
        /// As of this epoch of the node; older news are refused.
        epoch: u64,
        /// Ready or down.
        status: NodeStatus,
    },
    /// A worker becomes a manager.
    NodePromote(NodeId),
    /// A manager becomes a worker.
    NodeDemote(NodeId),
    /// Sets whether a node takes workloads.
    NodeAvailability {
        /// The node.
        node: NodeId,
        /// From now on.
        availability: Availability,
    },
    /// A node has a new certificate.
    NodeCertificate {
        /// The node.
        node: NodeId,
        /// Its digest.
        certificate: Digest,
    },
    /// A node leaves by itself; its addresses go back.
    NodeLeave {
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: u64,
    },
    /// A node is forgotten and its certificate refused from now on.
    NodeRemove {
        /// The node.
        node: NodeId,
        /// Even if it still answers.
        force: bool,
    },

    /// A new network. What is left open (subnet, VNIs) is chosen when applied.
    NetworkCreate {
        /// What is wanted.
        wish: Box<CreateNetwork>,
        /// The id, drawn by the proposer; that of the wish goes first.
        id: String,
        /// Nanoseconds since 1970.
        created: u64,
        /// VTEP of the proposer: its family decides the smallest MTU.
        vtep: IpAddr,
    },
    /// Changes what can be changed of a network.
    NetworkUpdate {
        /// Id of the network.
        network: String,
        /// New labels, in place of all before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        labels: Option<BTreeMap<String, String>>,
        /// Whether workloads outside of services may join.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attachable: Option<bool>,
        /// A new name, which no other network has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Removes a network.
    NetworkRemove {
        /// Id, name, or the beginning of an id.
        network: String,
        /// Even if nodes hold addresses of it.
        force: bool,
    },

    /// A new service. Its virtual addresses and open ports are chosen when applied.
    ServiceCreate {
        /// What is wanted.
        wish: Box<CreateService>,
        /// The id, drawn by the proposer.
        id: String,
        /// Nanoseconds since 1970.
        created: u64,
    },
    /// Changes a service.
    ServiceUpdate {
        /// Id, name, or the beginning of an id.
        service: String,
        /// What is to change.
        wish: Box<UpdateService>,
        /// Nanoseconds since 1970.
        updated: u64,
    },
    /// Removes a service; its virtual addresses rest.
    ServiceRemove {
        /// Id, name, or the beginning of an id.
        service: String,
    },

    /// A node wants a block of addresses, or several at once.
    LeaseBlocks {
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: u64,
        /// Id of the network.
        network: String,
        /// The subnet; any of the network's IPv4 subnets with room when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subnet: Option<IpNetwork>,
        /// How many blocks, at most; at least one comes or it is refused.
        count: u32,
    },
    /// A node gives blocks back; their addresses rest before others get them.
    ReleaseBlocks {
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: u64,
        /// The blocks.
        blocks: Vec<BlockRef>,
        /// None of their addresses was in use for as long as an address has to rest.
        rested: bool,
        /// The latest of their fences. What the node has got since stays its own: this may come late, after the
        /// node has given up waiting and got the same again.
        #[serde(default = "any_fence")]
        fence: u64,
    },
    /// A node tells how much of its blocks is in use, for reports and errors.
    ReportUse {
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: u64,
        /// The blocks that have changed.
        blocks: Vec<BlockUse>,
    },
    /// A node wants one address and no other (`--ip`).
    ClaimAddress {
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: u64,
        /// Id of the network.
        network: String,
        /// The address.
        address: IpAddr,
    },
    /// A node gives claimed addresses back.
    ReleaseAddresses {
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: u64,
        /// Id of the network.
        network: String,
        /// The addresses.
        addresses: BTreeSet<IpAddr>,
        /// As of [`Command::ReleaseBlocks`].
        #[serde(default = "any_fence")]
        fence: u64,
    },
    /// A node gives up an unused address of a block it holds, because another wants that one.
    YieldAddress {
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: u64,
        /// Id of the network.
        network: String,
        /// The address.
        address: IpAddr,
        /// That of the block's lease; a later lease has the address again.
        #[serde(default = "any_fence")]
        fence: u64,
    },

    /// A new token beside those there are.
    TokenAdd(TokenWish),
    /// A new token in place of all of its role.
    TokenRotate(TokenWish),
    /// Brings a key into the gossip ring; the key before it becomes the one to seal with.
    KeyRotate {
        /// The key.
        key: Key,
    },
    /// Seals with the newest key at once and forgets all others: an old key is known to be stolen.
    KeyReplace {
        /// The key.
        key: Key,
    },
    /// Puts the next CA beside the one in use.
    AuthorityRotate(Box<Authority>),
    /// Does what is due: takes back addresses, ends rests, drops dead tokens.
    Tick,
}

/// Of commands from before fences were in them.
fn any_fence() -> u64 {
    u64::MAX
}

/// Everything a cluster begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitCluster {
    /// Id of the cluster.
    pub cluster: String,
    /// Chance for the ids of the networks every node has.
    pub seed: u128,
    /// Settings.
    pub settings: Settings,
    /// The CA.
    pub authority: Authority,
    /// The first key of the gossip ring.
    pub key: Key,
    /// A token per role.
    pub tokens: Vec<TokenWish>,
    /// The first manager.
    pub node: NodeWish,
}

impl Command {
    /// The verb, for the audit log and messages.
    pub fn verb(&self) -> &'static str {
        match self {
            Command::Init(_) => "init",
            Command::Join { .. } => "node join",
            Command::NodeStart { .. } => "node start",
            Command::NodeStatus { .. } => "node status",
            Command::NodePromote(_) => "node promote",
            Command::NodeDemote(_) => "node demote",
            Command::NodeAvailability { availability, .. } => match availability {
                Availability::Active => "node activate",
                Availability::Drain => "node drain",
            },
            Command::NodeCertificate { .. } => "node certificate",
            Command::NodeLeave { .. } => "node leave",
            Command::NodeRemove { .. } => "node rm",
            Command::NetworkCreate { .. } => "network create",
            Command::NetworkUpdate { .. } => "network update",
            Command::NetworkRemove { .. } => "network rm",
            Command::ServiceCreate { .. } => "service create",
            Command::ServiceUpdate { .. } => "service update",
            Command::ServiceRemove { .. } => "service rm",
            Command::LeaseBlocks { .. } => "lease blocks",
            Command::ReleaseBlocks { .. } => "release blocks",
            Command::ReportUse { .. } => "report use",
            Command::ClaimAddress { .. } => "claim address",
            Command::ReleaseAddresses { .. } => "release addresses",
            Command::YieldAddress { .. } => "yield address",
            Command::TokenAdd(_) => "token add",
            Command::TokenRotate(_) => "token rotate",
            Command::KeyRotate { .. } => "key rotate",
            Command::KeyReplace { .. } => "key replace",
            Command::AuthorityRotate(_) => "ca rotate",
            Command::Tick => "tick",
        }
    }

    /// Whether it is the daily work of nodes and leader, which would drown the audit log.
    pub fn is_routine(&self) -> bool {
        matches!(
            self,
            Command::NodeStatus { .. }
                | Command::LeaseBlocks { .. }
                | Command::ReleaseBlocks { .. }
                | Command::ReportUse { .. }
                | Command::ClaimAddress { .. }
                | Command::ReleaseAddresses { .. }
                | Command::YieldAddress { .. }
                | Command::Tick
        )
    }

    /// The node it acts for, if a node may propose it for itself: managers refuse it from any other.
    pub fn own_node(&self) -> Option<NodeId> {
        match self {
            Command::NodeStart { node, .. }
            | Command::NodeLeave { node, .. }
            | Command::LeaseBlocks { node, .. }
            | Command::ReleaseBlocks { node, .. }
            | Command::ReportUse { node, .. }
            | Command::ClaimAddress { node, .. }
            | Command::ReleaseAddresses { node, .. }
            | Command::YieldAddress { node, .. } => Some(*node),
            _ => None,
        }
    }
}
