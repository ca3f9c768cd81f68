//! What a node publishes: its endpoints in a network, and in the cluster's log where it is and which networks
//! it takes part in.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::tables::record::EndpointRecord;

/// The id of the log that every node takes part in. No network has an empty id.
pub const CLUSTER: &str = "";

/// Longest id of a network or an endpoint, bytes. Ours have 25, Docker's 64.
pub const ID_LEN_MAX: usize = 64;
/// Longest name, alias or service, bytes (RFC 1035 §2.3.4).
pub const NAME_LEN_MAX: usize = 255;
/// Most addresses of an endpoint.
pub const IPS_MAX: usize = 16;
/// Most aliases of an endpoint.
pub const ALIASES_MAX: usize = 32;

/// What an entry is filed under, within the log of its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// An endpoint's id.
    Endpoint(Arc<str>),
    /// The id of a network that the owner takes part in.
    Takes(Arc<str>),
    /// Where the owner's gossip is to be sent.
    Address,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An endpoint. Its node, network and version are not part of the bytes: they follow from the log.
    Endpoint(Arc<EndpointRecord>),
    /// The owner takes part in the network of the key.
    Takes,
    /// Where the owner's gossip is to be sent.
    Address(SocketAddr),
}

/// One change of a log: an entry, or its deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Orders the changes of an owner's epoch.
    pub counter: u64,
    /// The counter at which the entry came to say what it says. It is less than `counter` when the owner has
    /// only written the entry again, to clean its log up; records keep it as their version.
    pub since: u64,
    /// What changed.
    pub key: Key,
    /// What it is now; none is a tombstone.
    pub entry: Option<Entry>,
}

/// A record that cannot be published; nothing was altered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The node does not take part in the network.
    #[error("this node takes no part in network {0}")]
    NotTaking(String),
    /// An id, name or list is longer than the format carries, or empty where it may not be.
    #[error("endpoint record cannot be published: {0}")]
    Unfit(&'static str),
    /// The record as a whole does not fit into one packet.
    #[error("endpoint record takes {len} bytes, the most that fit are {max}")]
    TooLong {
        /// What it takes.
        len: usize,
        /// What there is.
        max: usize,
    },
    /// The log is full.
    #[error("this node already publishes {0} endpoints in the network, the most it can")]
    Full(usize),
}

/// Checks what the format needs; the order of addresses and names is kept.
pub fn check(record: &EndpointRecord) -> Result<(), PublishError> {
    let unfit = |what| Err(PublishError::Unfit(what));
    let long = |text: &String| text.len() > NAME_LEN_MAX;
    match record {
        r if r.endpoint.is_empty() => unfit("the endpoint has no id"),
        r if r.endpoint.len() > ID_LEN_MAX => unfit("the endpoint's id is too long"),
        r if r.ips.is_empty() => unfit("the endpoint has no address"),
        r if r.ips.len() > IPS_MAX => unfit("the endpoint has too many addresses"),
        r if r.aliases.len() > ALIASES_MAX => unfit("the endpoint has too many aliases"),
        r if long(&r.name) || long(&r.service) => unfit("a name is too long"),
        r if r.aliases.iter().any(long) => unfit("an alias is too long"),
        _ => Ok(()),
    }
}

/// The one spelling of a record: IPv4 addresses in IPv6 form become IPv4.
pub fn canonical(mut record: EndpointRecord) -> EndpointRecord {
    for ip in &mut record.ips {
        *ip = ip.to_canonical();
    }
    record.vtep = record.vtep.to_canonical();
    record
}

/// Whether two records say the same, whatever their versions.
pub fn same_content(a: &EndpointRecord, b: &EndpointRecord) -> bool {
    a.endpoint == b.endpoint
        && a.backing == b.backing
        && (a.vni, a.mac, a.vtep) == (b.vni, b.mac, b.vtep)
        && (&a.ips, &a.name, &a.aliases, &a.service) == (&b.ips, &b.name, &b.aliases, &b.service)
}
