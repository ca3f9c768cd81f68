//! What comes of a command: answers, and refusals that say what is wrong and what to do next.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::command::BlockRef;
use super::ids::{NodeId, Role};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::network::Network;
use crate::model::service::Service;

/// The result of a command, kept for as long as the same request may be asked again.
pub type Outcome = Result<Reply, Refusal>;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done; there is nothing to tell.
    Done,
    /// The node is part of the cluster.
    Joined {
        /// What the token made it.
        role: Role,
        /// Its number, for compact encodings.
        number: u64,
        /// Its number in the Raft group, of a manager.
        raft_id: Option<u64>,
    },
    /// The node has this number in the Raft group, or had it.
    RaftId(u64),
    /// The network is there.
    Network {
        /// The network.
        network: Box<Network>,
        /// What works but may surprise.
        warnings: Vec<String>,
    },
    /// The network is gone.
    Removed {
        /// Its id.
        network: String,
        /// Its name.
        name: String,
    },
    /// The service is there, like this.
    Service(Box<Service>),
    /// The service is gone.
    ServiceRemoved {
        /// Its id.
        service: String,
        /// Its name.
        name: String,
    },
    /// The node holds these blocks from now on.
    Blocks(Vec<Granted>),
    /// The address is the node's from now on; the number fences it.
    Claimed {
        /// The address.
        address: IpAddr,
        /// Greater than that of any lease before.
        fence: u64,
        /// As of this place in the managers' log.
        #[serde(default)]
        revision: u64,
    },
    /// Another node holds the address in a block and does not use it, as far as is known. It has been
    /// asked to give it up: ask again in a moment, with a new request.
    Wanted {
        /// The node that holds it.
        holder: NodeId,
    },
}

/// A block that a node has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Which one.
    pub block: BlockRef,
    /// How many addresses from its first one.
    pub len: u32,
    /// Greater than that of any lease before.
    pub fence: u64,
    /// Addresses in it that others have claimed.
    pub except: Vec<IpAddr>,
    /// As of this place in the managers' log: what is known of earlier ones says nothing about it.
    #[serde(default)]
    pub revision: u64,
}

/// A node and how much of something it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Name of the node.
    pub node: String,
    /// How many addresses.
    pub count: u64,
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.node, self.count)
    }
}

/// Why there is no address to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exhausted {
    /// The subnet.
    pub subnet: IpNetwork,
    /// Addresses that endpoints can have at all.
    pub capacity: u64,
    /// Those with an endpoint, as last told by the nodes.
    pub used: u64,
    /// Those that nodes hold, with or without an endpoint.
    pub leased: u64,
    /// Those that rest after use.
    pub resting: u64,
    /// When the next of them can be given out, in milliseconds from now.
    pub next_free_ms: Option<u64>,
    /// The node that uses most.
    pub largest: Option<Share>,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exhausted {
            subnet,
            capacity,
            used,
            leased,
            resting,
            ..
        } = self;
        write!(f, "{subnet} has {used} of {capacity} addresses in use")?;
        if *leased > *used {
            write!(f, ", {} more are held by nodes", leased - used)?;
        }
        if *resting > 0 {
            write!(f, ", {resting} rest after use")?;
        }
        match &self.largest {
            Some(share) => write!(f, "; the largest user is {share}"),
            None => Ok(()),
        }
    }
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A rule of networks.
    #[error("{0}")]
    Network(ApiError),
    /// A rule of services.
    #[error("{0}")]
    Service(ApiError),
    /// The cluster has not been made.
    #[error("this is no cluster yet")]
    NoCluster,
    /// It has been made before.
    #[error("this node is a manager of cluster {cluster} already")]
    ClusterExists {
        /// Its id.
        cluster: String,
    },
    /// A setting that cannot work.
    #[error("{0}")]
    BadSetting(String),
    /// No node of that id.
    #[error("the cluster knows no node {0}")]
    UnknownNode(NodeId),
    /// The id joins again.
    #[error("node {node} is part of the cluster already, as \"{name}\"")]
    NodeExists {
        /// Its id.
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// Two nodes with one name.
    #[error("node name \"{name}\" belongs to node {owner} at {vtep}")]
    NodeNameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        owner: NodeId,
        /// Where that is.
        vtep: IpAddr,
    },
    /// Two nodes with one address.
    #[error("address {address} belongs to node \"{owner}\"")]
    NodeAddressTaken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        owner: String,
    },
    /// Two nodes that answer at one place.
    #[error("{address} belongs to node \"{owner}\"")]
    NodeControlTaken {
        /// The address and port.
        address: SocketAddr,
        /// Whose it is.
        owner: String,
    },
    /// A VTEP that cannot be one.
    #[error("{0} cannot be a node's address")]
    BadVtep(IpAddr),
    /// The command comes from a node's past, or from a start that the managers have not been told of.
    #[error("{}", other_epoch(node, *given, *current))]
    StaleEpoch {
        /// Name of the node.
        node: String,
        /// What the command says.
        given: u64,
        /// What is known.
        current: u64,
    },
    /// The node has left or was removed.
    #[error("node \"{0}\" has left the cluster")]
    NodeLeft(String),
    /// It still answers.
    #[error("node \"{0}\" still answers")]
    NodeStillUp(String),
    /// A manager has to be demoted first.
    #[error("node \"{0}\" is a manager")]
    NodeIsManager(String),
    /// The last manager.
    #[error("node \"{0}\" is the only manager")]
    LastManager(String),
    /// A manager has to be reachable.
    #[error("node \"{0}\" has told no address where it answers other managers")]
    NoControlAddress(String),
    /// No token has that secret.
    #[error("the join token is not, or no longer, one of this cluster's")]
    TokenUnknown,
    /// Its time is over.
    #[error("the join token of role {role} expired {ago_s} s ago")]
    TokenExpired {
        /// Its role.
        role: Role,
        /// By the leader's clock.
        ago_s: u64,
    },
    /// The network of that id is gone or was never there.
    #[error("the cluster knows no network {0}")]
    UnknownNetwork(String),
    /// Nodes hold addresses of it.
    #[error("network \"{name}\" is in use on {}", list(.users))]
    NetworkInUse {
        /// Name of the network.
        name: String,
        /// By whom.
        users: Vec<Share>,
    },
    /// Services are on it.
    #[error("network \"{name}\" is in use by services: {}", listed(.services))]
    NetworkServed {
        /// Name of the network.
        name: String,
        /// Names of the services.
        services: Vec<String>,
    },
    /// The address is in no subnet of the network.
    #[error("{address} is in no subnet of network \"{name}\": {subnets}")]
    AddressOutside {
        /// The address.
        address: IpAddr,
        /// Name of the network.
        name: String,
        /// Its subnets.
        subnets: String,
    },
    /// The address is nobody's to have.
    #[error("{address} is {what} of {subnet}")]
    AddressReserved {
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: IpNetwork,
        /// The gateway, for one.
        what: String,
    },
    /// The address belongs to another node's endpoint.
    #[error("{address} belongs to node \"{owner}\"")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        owner: String,
    },
    /// The address is a service's.
    #[error("{address} is a virtual address of service \"{service}\"")]
    AddressOfService {
        /// The address.
        address: IpAddr,
        /// Name of the service.
        service: String,
    },
    /// The address has been another's until a moment ago.
    #[error("{address} rests after use, for another {} s", .free_in_ms.div_ceil(1000))]
    AddressRests {
        /// The address.
        address: IpAddr,
        /// For how long.
        free_in_ms: u64,
    },
    /// No address is left.
    #[error("{0}")]
    Exhausted(Exhausted),
    /// The node does not hold it (any more).
    #[error("node \"{node}\" does not hold {what}")]
    NotHeld {
        /// Name of the node.
        node: String,
        /// The block or address.
        what: String,
    },
    /// A list longer than any honest one.
    #[error("{what}: {count} at once, at most {max}")]
    TooMany {
        /// Of what.
        what: String,
        /// How many.
        count: u64,
        /// How many are taken.
        max: u64,
    },
}

impl Refusal {
    /// The stable name for front ends.
    pub fn code(&self) -> ErrorCode {
        match self {
            Refusal::Network(error) | Refusal::Service(error) => error.code,
            Refusal::NoCluster => ErrorCode::NoCluster,
            Refusal::ClusterExists { .. } => ErrorCode::ClusterExists,
            Refusal::BadSetting(_) => ErrorCode::InvalidRequest,
            Refusal::UnknownNode(_) => ErrorCode::NodeNotFound,
            Refusal::NodeExists { .. } => ErrorCode::IdTaken,
            Refusal::NodeNameTaken { .. } => ErrorCode::NameTaken,
            Refusal::NodeAddressTaken { .. } | Refusal::NodeControlTaken { .. } => {
                ErrorCode::NodeAddressTaken
            }
            Refusal::BadVtep(_) => ErrorCode::InvalidVtep,
            Refusal::StaleEpoch { .. } => ErrorCode::StaleEpoch,
            Refusal::NodeLeft(_) => ErrorCode::NodeLeft,
            Refusal::NodeStillUp(_)
            | Refusal::NodeIsManager(_)
            | Refusal::LastManager(_)
            | Refusal::NoControlAddress(_) => ErrorCode::NodeRoleConflict,
            Refusal::TokenUnknown | Refusal::TokenExpired { .. } => ErrorCode::TokenRefused,
            Refusal::UnknownNetwork(_) => ErrorCode::NetworkNotFound,
            Refusal::NetworkInUse { .. } | Refusal::NetworkServed { .. } => ErrorCode::NetworkInUse,
            Refusal::AddressOutside { .. } | Refusal::AddressReserved { .. } => {
                ErrorCode::InvalidAddress
            }
            Refusal::AddressTaken { .. }
            | Refusal::AddressOfService { .. }
            | Refusal::AddressRests { .. } => ErrorCode::AddressInUse,
            Refusal::Exhausted(_) => ErrorCode::AddressesExhausted,
            Refusal::NotHeld { .. } => ErrorCode::LeaseLost,
            Refusal::TooMany { .. } => ErrorCode::InvalidRequest,
        }
    }

    /// What to do about it.
    pub fn next(&self) -> String {
        match self {
            Refusal::Network(error) | Refusal::Service(error) => error.next.clone(),
            Refusal::NoCluster => {
                "make one with weft init, or join one: weft join --token TOKEN HOST".into()
            }
            Refusal::ClusterExists { .. } => {
                "to begin anew, first: weft leave --force, on every node".into()
            }
            Refusal::BadSetting(_) => {
                "give pools of private IPv4 addresses, such as --default-addr-pool 10.0.0.0/8".into()
            }
            Refusal::UnknownNode(_) => "list the nodes: weft node ls".into(),
            Refusal::NodeExists { .. } => {
                "to join anew, first: weft leave there, and weft node rm here".into()
            }
            Refusal::NodeNameTaken { owner, .. } => {
                format!("join with another --name, or if that node is gone: weft node rm {owner}")
            }
            Refusal::NodeAddressTaken { owner, .. } | Refusal::NodeControlTaken { owner, .. } => {
                format!("give the node's own --vtep, or if \"{owner}\" is gone: weft node rm {owner}")
            }
            Refusal::BadVtep(_) => "give the node's unicast address on the underlay: --vtep".into(),
            Refusal::StaleEpoch { given, current, .. } if given > current => {
                "try again: the node tells the managers of its start twice a second".into()
            }
            Refusal::StaleEpoch { .. } => {
                "is a second agent running with the state of this node? Stop one of them".into()
            }
            Refusal::NodeLeft(name) => {
                format!("join it anew: weft node rm {name}, then weft join there")
            }
            Refusal::NodeStillUp(name) => {
                format!("let it leave (weft leave, there), or: weft node rm --force {name}")
            }
            Refusal::NodeIsManager(name) => format!("first: weft node demote {name}"),
            Refusal::LastManager(_) => {
                "promote another node first: weft node promote NODE".into()
            }
            Refusal::NoControlAddress(_) => {
                "start its agent with a control address that managers can reach".into()
            }
            Refusal::TokenUnknown | Refusal::TokenExpired { .. } => {
                "make a good one on a manager: weft token create worker".into()
            }
            Refusal::UnknownNetwork(_) => "list the networks: weft network ls".into(),
            Refusal::NetworkInUse { .. } => "detach its endpoints there first (weft detach), or if those nodes are \
                 gone: weft node rm NODE gives their addresses back"
                .into(),
            Refusal::NetworkServed { services, .. } => format!(
                "take them off or remove them first: weft service rm {}",
                services.first().map_or("NAME", String::as_str)
            ),
            Refusal::AddressOutside { .. } => {
                "give an address of one of the subnets, or leave --ip out".into()
            }
            Refusal::AddressReserved { .. }
            | Refusal::AddressTaken { .. }
            | Refusal::AddressOfService { .. } => {
                "give another address, or leave --ip out to get a free one".into()
            }
            Refusal::AddressRests { .. } => "wait that long, or give another address".into(),
            Refusal::Exhausted(why) => match why.next_free_ms {
                Some(ms) => format!(
                    "wait {} s, detach endpoints, or add a subnet: weft ipam ls shows who uses what",
                    ms.div_ceil(1000)
                ),
                None => "detach endpoints, or make a network with a larger subnet: weft ipam ls shows \
                         who uses what"
                    .into(),
            },
            Refusal::NotHeld { .. } => {
                "the node has been away too long: its endpoints with such addresses have to be attached anew"
                    .into()
            }
            Refusal::TooMany { .. } => "ask in smaller parts".into(),
        }
    }
}

impl From<&Refusal> for ApiError {
    fn from(refusal: &Refusal) -> ApiError {
        ApiError::new(refusal.code(), refusal.to_string(), refusal.next())
    }
}

fn list(shares: &[Share]) -> String {
    let texts: Vec<String> = shares.iter().take(5).map(Share::to_string).collect();
    match shares.len() {
        0 => "a node".into(),
        n if n > 5 => format!("{} and {} more nodes", texts.join(", "), n - 5),
        _ => texts.join(", "),
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(5).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len() {
        n if n > 5 => format!("{shown} and {} more", n - 5),
        _ => shown,
    }
}

fn other_epoch(node: &str, given: u64, current: u64) -> String {
    match given > current {
        true => format!(
            "node \"{node}\" has not told of its start: the request is of its epoch {given}, it is known at {current}"
        ),
        false => format!(
            "node \"{node}\" has started since: the request is of its epoch {given}, it is at {current}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_subnet_says_who_has_it() {
        let mut why = Exhausted {
            subnet: "10.0.1.0/28".parse().unwrap(),
            capacity: 13,
            used: 13,
            leased: 13,
            resting: 0,
            next_free_ms: None,
            largest: Some(Share {
                node: "node2".into(),
                count: 9,
            }),
        };
        assert_eq!(
            why.to_string(),
            "10.0.1.0/28 has 13 of 13 addresses in use; the largest user is node2 (9)"
        );
        why.used = 10;
        why.leased = 11;
        why.resting = 2;
        why.next_free_ms = Some(1500);
        assert_eq!(
            why.to_string(),
            "10.0.1.0/28 has 10 of 13 addresses in use, 1 more are held by nodes, 2 rest after use; the \
             largest user is node2 (9)"
        );
        let refusal = Refusal::Exhausted(why);
        assert!(refusal.next().starts_with("wait 2 s"), "{}", refusal.next());
    }

    #[test]
    fn users_of_a_network_are_listed_up_to_five() {
        let users: Vec<Share> = (1..=7)
            .map(|n| Share {
                node: format!("node{n}"),
                count: n,
            })
            .collect();
        let refusal = Refusal::NetworkInUse {
            name: "web".into(),
            users,
        };
        assert_eq!(
            refusal.to_string(),
            "network \"web\" is in use on node1 (1), node2 (2), node3 (3), node4 (4), node5 (5) and 2 more nodes"
        );
    }
}
