//! The seam to what lies at a node's edge: the gateway bridge and its legs, nftables rules, flows.
//!
//! Beside [`super::Plumbing`], and as there every verb is idempotent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use ipnetwork::IpNetwork;

use super::Outcome;
pub use crate::host::GatewayBridge;
use crate::services::counts::Reading;
use crate::wire::Mac;

pub mod fake;
pub mod linux;

/// Names the gateway bridge may have: Docker's; where that is Docker's own, another.
pub const BRIDGES: [&str; 2] = ["docker_gwbridge", "weft_gwbridge"];
/// Name of the ingress namespace, in the directory of networks' namespaces, and of its endpoint; Docker's.
pub const SANDBOX: &str = "ingress_sbox";

/// The gateway bridge as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayPlan {
    /// Its name.
    pub bridge: String,
    /// Its addresses with prefix length.
    pub addresses: Vec<IpNetwork>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// A workload's leg on the gateway bridge as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegPlan {
    /// Its id.
    pub id: String,
    /// The bridge.
    pub bridge: String,
    /// The workload.
    pub place: WorkloadPlace,
    /// Its addresses with prefix length.
    pub addresses: Vec<IpNetwork>,
    /// Where its default routes lead.
    pub gateways: Vec<IpAddr>,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Isolated legs do not reach each other, but those that are not.
    pub isolated: bool,
}

/// A workload's namespace, as the user named it, with the inode it must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadPlace {
    /// As the user named it.
    pub target: String,
    /// Its inode.
    pub netns_inode: u64,
}

/// A namespace with rules of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The agent's own.
    Node,
    /// A workload's, or the ingress namespace.
    Workload(WorkloadPlace),
}

/// Counters in one namespace. They can be read as long as this lives, also when the namespace has no name any more.
pub trait ReadCounters: Send + Sync + std::fmt::Debug {
    /// All of them by name. Takes microseconds.
    fn read(&self) -> Outcome<Reading>;
}

/// The verbs.
pub trait Edge: Send + Sync + std::fmt::Debug + 'static {
    /// What there is under a bridge's name.
    fn gateway<'a>(&'a self, bridge: &'a str) -> BoxFuture<'a, Outcome<GatewayBridge>>;

    /// Makes or repairs the gateway bridge.
    fn gateway_up(&self, plan: GatewayPlan) -> BoxFuture<'_, Outcome<()>>;

    /// Removes the gateway bridge with all legs. No error if it is not there.
    fn gateway_down<'a>(&'a self, bridge: &'a str) -> BoxFuture<'a, Outcome<()>>;

    /// Prefixes the node itself has an address of or a route to, but for the bridge of this name.
    fn prefixes_in_use<'a>(&'a self, but: &'a str) -> BoxFuture<'a, Outcome<Vec<IpNetwork>>>;

    /// Makes or repairs a leg and tells its name in the workload. `None`: the workload has a default route of its own.
    fn leg_up(&self, plan: LegPlan) -> BoxFuture<'_, Outcome<Option<String>>>;

    /// Removes a leg. No error if it is not there.
    fn leg_down<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>>;

    /// The ids of all legs there are.
    fn legs(&self) -> BoxFuture<'_, Outcome<Vec<String>>>;

    /// The node's own routes through the bridge: to each address by that beside it. Others of ours are taken away.
    fn node_routes<'a>(
        &'a self,
        bridge: &'a str,
        ways: &'a BTreeMap<IpAddr, IpAddr>,
    ) -> BoxFuture<'a, Outcome<()>>;

    /// Puts our rules in place of those there; an empty text removes them.
    fn put_rules<'a>(&'a self, place: &'a Place, body: &'a str) -> BoxFuture<'a, Outcome<()>>;

    /// As [`Self::put_rules`], in place of `before`, which was put there: counters that are in both go on. Refused, with
    /// nothing changed, where something else stands by now.
    fn change_rules<'a>(
        &'a self,
        place: &'a Place,
        before: &'a str,
        body: &'a str,
    ) -> BoxFuture<'a, Outcome<()>>;

    /// Opens the counters of our rules.
    fn rule_counters(&self, place: &Place) -> Outcome<Box<dyn ReadCounters>>;

    /// Our rules as the kernel has them.
    fn rules<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Outcome<Option<String>>>;

    /// Tells whenever anybody changes rules there; ends when that cannot be told any more.
    fn watch_rules(&self, place: &Place) -> Outcome<BoxStream<'static, ()>>;

    /// Forgets flows of datagrams to backends that were left, and to those gone connections that never came to be.
    fn forget_flows<'a>(
        &'a self,
        place: &'a Place,
        left: &'a [IpAddr],
        gone: &'a [IpAddr],
    ) -> BoxFuture<'a, Outcome<()>>;

    /// Where a workload's packets with these marks go: by the gateway beside the mark, through its interface `ifname`.
    fn return_routes<'a>(
        &'a self,
        place: &'a WorkloadPlace,
        ifname: &'a str,
        ways: &'a [(u32, IpAddr)],
    ) -> BoxFuture<'a, Outcome<()>>;

    /// Makes a namespace that forwards, for the ingress mesh.
    fn sandbox_up<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Outcome<()>>;

    /// Removes such a namespace. No error if it is not there.
    fn sandbox_down<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Outcome<()>>;
}
