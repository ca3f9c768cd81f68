//! The seam between what the agent decides and what makes it true: kernel objects, tables, forwarding.
//!
//! The agent sees only [`Plumbing`]. [`linux`] drives the kernel and the dataplane; [`fake`] remembers what
//! was asked, so that everything above runs in a test without privileges. Every verb is idempotent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use ipnetwork::IpNetwork;

use super::api::{DataplaneStatus, Limits};
use super::endpoint::Endpoint;
use super::error::{ApiError, ErrorCode};
use super::network::Network;
use crate::services::dns::server::Sockets;
use crate::tables::SegmentPolicy;
use crate::tables::record::EndpointRecord;
use crate::wire::{Mac, Vni};

pub mod edge;
pub mod fake;
pub mod linux;

/// Result of a verb.
pub type Outcome<T> = Result<T, ApiError>;

/// A network as it shall be in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Network id.
    pub id: String,
    /// Its name, for people who look at kernel objects.
    pub name: String,
    /// The underlay MTU asked for, in bytes; the device's own when absent.
    pub mtu_underlay: Option<u32>,
    /// What its segments let pass.
    pub policy: SegmentPolicy,
    /// Segments in order of their index.
    pub segments: Vec<SegmentPlan>,
}

/// One segment of [`NetworkPlan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPlan {
    /// VNI.
    pub vni: Vni,
    /// Prefixes, IPv4 first.
    pub subnets: Vec<IpNetwork>,
    /// Gateways with prefix length, one per prefix.
    pub gateways: Vec<IpNetwork>,
    /// MAC of the bridge on every node.
    pub gateway_mac: Mac,
}

impl NetworkPlan {
    /// From the model.
    pub fn of(network: &Network) -> NetworkPlan {
        let segments = network.segments.iter().map(|segment| SegmentPlan {
            vni: segment.vni,
            subnets: segment.subnets().map(|subnet| subnet.prefix).collect(),
            gateways: segment
                .subnets()
                .filter_map(|s| IpNetwork::new(s.gateway, s.prefix.prefix()).ok())
                .collect(),
            gateway_mac: gateway_mac(segment.v4.gateway),
        });
        NetworkPlan {
            id: network.id.clone(),
            name: network.name.clone(),
            mtu_underlay: network.mtu_underlay,
            policy: network.policy(),
            segments: segments.collect(),
        }
    }
}

/// `02:42` and the gateway's IPv4 address: the same on every node, so that a workload may move.
pub fn gateway_mac(gateway: IpAddr) -> Mac {
    match gateway {
        IpAddr::V4(v4) => Mac::from_ipv4(v4),
        IpAddr::V6(_) => Mac([0x02, 0x42, 0, 0, 0, 1]),
    }
}

/// A network as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkUp {
    /// Its namespace.
    pub netns: PathBuf,
    /// MTU of workloads in bytes.
    pub mtu: u32,
}

/// An endpoint as it shall be in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPlan {
    /// Network id.
    pub network: String,
    /// Index of the segment.
    pub segment: usize,
    /// Endpoint id.
    pub id: String,
    /// The workload's namespace, as the user named it.
    pub target: String,
    /// The inode that namespace must have.
    pub netns_inode: u64,
    /// MAC of the interface.
    pub mac: Mac,
    /// Addresses with prefix length.
    pub ips: Vec<IpNetwork>,
    /// Interface name; the first free `eth<N>` when absent.
    pub ifname: Option<String>,
    /// Other subnets of the network and the gateway that leads there.
    pub routes: Vec<(IpNetwork, IpAddr)>,
    /// The workload may send with addresses nobody gave it.
    pub interop: bool,
    /// Somebody else moves the interface into the workload and sets it up there.
    pub handed_over: bool,
    /// How fast it may send and be sent to.
    pub limits: Limits,
}

impl EndpointPlan {
    /// From the model.
    pub fn of(network: &Network, endpoint: &Endpoint) -> EndpointPlan {
        EndpointPlan {
            network: network.id.clone(),
            segment: endpoint.segment,
            id: endpoint.id.clone(),
            target: endpoint.target.clone(),
            netns_inode: endpoint.netns_inode,
            mac: endpoint.mac,
            ips: endpoint.ips.clone(),
            ifname: (!endpoint.ifname.is_empty()).then(|| endpoint.ifname.clone()),
            routes: sibling_routes(network, endpoint.segment),
            interop: network.interop,
            handed_over: endpoint.engine.is_some(),
            limits: endpoint.limits,
        }
    }
}

/// The ways from one segment to the network's other subnets: through its own gateway, as Docker does.
pub fn sibling_routes(network: &Network, segment: usize) -> Vec<(IpNetwork, IpAddr)> {
    let Some(own) = network.segments.get(segment) else {
        return Vec::new();
    };
    let others = network
        .segments
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != segment);
    let mut routes = Vec::new();
    for (_, other) in others {
        for subnet in other.subnets() {
            let same_family =
                |s: &&super::network::Subnet| s.prefix.is_ipv4() == subnet.prefix.is_ipv4();
            if let Some(gateway) = own.subnets().find(same_family).map(|s| s.gateway) {
                routes.push((subnet.prefix, gateway));
            }
        }
    }
    routes
}

/// An endpoint as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointUp {
    /// Interface name in the workload.
    pub ifname: String,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// A workload's namespace, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its file.
    pub path: PathBuf,
    /// Its inode: tells namespaces apart that had the same path at different times.
    pub netns_inode: u64,
}

/// The device below the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Device name.
    pub ifname: String,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// What the kernel has of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Endpoints whose kernel objects exist.
    pub endpoints: BTreeSet<String>,
    /// Those of them that somebody took down or off the network's bridge.
    pub damaged: BTreeSet<String>,
    /// What else is not as it was made, in words. Only of a network that is forwarded for.
    pub faults: Vec<String>,
}

/// What a sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// What was removed.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

/// What a sweep must leave alone: endpoint ids by network id.
pub type Keep = BTreeMap<String, BTreeSet<String>>;

/// The verbs the agent needs. Those without a future do not wait.
pub trait Plumbing: Send + Sync + std::fmt::Debug + 'static {
    /// Finds a workload's namespace.
    fn workload(&self, target: &str) -> Outcome<Workload>;

    /// Whether the target still leads to the namespace with that inode. An error tells neither.
    fn workload_alive(&self, target: &str, netns_inode: u64) -> Outcome<bool> {
        match self.workload(target) {
            Ok(found) => Ok(found.netns_inode == netns_inode),
            Err(error) if error.code == ErrorCode::TargetNotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The device that carries the VTEP.
    fn underlay(&self) -> BoxFuture<'_, Outcome<Underlay>>;

    /// Makes or repairs a network's kernel objects, puts its segments into the tables and takes its
    /// frames in. On failure nothing new is left.
    fn network_up(&self, plan: NetworkPlan) -> BoxFuture<'_, Outcome<NetworkUp>>;

    /// Takes a network out of the dataplane, the tables and the kernel. No error if it is not there.
    fn network_down<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>>;

    /// Makes or repairs a workload's interface. On failure nothing new is left.
    fn endpoint_up(&self, plan: EndpointPlan) -> BoxFuture<'_, Outcome<EndpointUp>>;

    /// Removes a workload's interface. No error if it is not there.
    fn endpoint_down<'a>(
        &'a self,
        network: &'a str,
        endpoint: &'a str,
    ) -> BoxFuture<'a, Outcome<()>>;

    /// What the kernel has of a network; `None` if the network does not exist.
    fn present(&self, plan: NetworkPlan) -> BoxFuture<'_, Outcome<Option<Present>>>;

    /// Whether tables and workers have the network. A verb that fails may have let it go.
    fn forwards(&self, network: &str) -> bool;

    /// Ids of the networks that exist in the kernel.
    fn networks(&self) -> BoxFuture<'_, Outcome<Vec<String>>>;

    /// Removes everything of this agent's in the kernel but what is to be kept; tells what that was.
    fn sweep(&self, keep: Keep) -> BoxFuture<'_, Outcome<Swept>>;

    /// Puts an endpoint of this node into the tables of a network that is up.
    fn put_local(&self, record: &EndpointRecord) -> Outcome<()>;

    /// Puts an endpoint of another node into the tables of a network that is up.
    fn put_remote(&self, record: &EndpointRecord) -> Outcome<()>;

    /// Takes an endpoint out of the tables.
    fn remove_record(&self, vni: Vni, endpoint: &str);

    /// The endpoints that the tables have of a segment, each with whether it is one of this node.
    fn table(&self, vni: Vni) -> Vec<(String, bool)>;

    /// Sets the remote VTEPs of a segment that is up.
    fn set_vteps(&self, vni: Vni, vteps: &[IpAddr]) -> Outcome<()>;

    /// What lies at the node's edge.
    fn edge(&self) -> &dyn edge::Edge;

    /// Tells namespaces apart that a network had at different times; none where it has no real one.
    fn names_place(&self, network: &str) -> Outcome<Option<u64>>;

    /// Opens the sockets of a network's name server, inside its namespace.
    fn open_names(&self, network: &str, addresses: &[IpAddr]) -> Outcome<Sockets>;

    /// Writes the resolv.conf of a named namespace, or removes it. Tells whether it is ours to write.
    fn set_resolv(&self, name: &str, text: Option<&str>) -> Outcome<bool>;

    /// Removes every resolv.conf of ours but those of these namespaces.
    fn sweep_resolv(&self, keep: &BTreeSet<String>) -> Outcome<()>;

    /// Workers, offloads, counters.
    fn dataplane(&self) -> DataplaneStatus;

    /// What is wrong with the dataplane; empty when all is well.
    fn trouble(&self) -> Vec<super::api::HealthItem>;

    /// Stops forwarding; kernel objects stay.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}
