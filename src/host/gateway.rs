//! The node's way out of overlays: a bridge in the agent's own namespace (`docker_gwbridge`), and the legs of workloads
//! on it.
//!
//! ```text
//!   the node's namespace                                       workload namespace
//!  ┌──────────────────────────────────────────────────┐       ┌──────────────────────┐
//!  │  underlay ◄─ masquerade ─ docker_gwbridge ─ veth ═════════ eth1, default route   │
//!  └──────────────────────────────────────────────────┘       └──────────────────────┘
//! ```
//!
//! Legs do not reach each other: their ports are isolated, and what comes in by the bridge goes nowhere unless our rules
//! have marked it ([`EGRESS_MARK`]). So a flushed firewall closes the way instead of letting private addresses out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::endpoint::{
    AttachedEndpoint, BridgeRef, EndpointSpec, attach, delete_pair, detach, is_half_made,
    list_endpoints,
};
use super::rule::PolicyRule;
use super::sandbox::{check_mtu, open_network};
use super::sysctl::{self, Scope};
use super::undo::{Step, Undo, blocking, delete_netns};
use super::{BridgeSpec, GatewayRoute, GsoSizes, HostError, Mark, Netlink, WorkloadRef};
use crate::sys::netns::Netns;
use crate::wire::Mac;

/// The bit our rules set in the mark of packets that come in by the bridge.
pub const EGRESS_MARK: u32 = 0x0200_0000;

/// The bridge as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySpec {
    /// Its name.
    pub bridge: String,
    /// Its addresses with the prefix of their subnet: legs' gateways.
    pub addresses: Vec<IpNetwork>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Who makes it, a word for people.
    pub owner: String,
}

/// What there is under a bridge's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayBridge {
    /// Nothing.
    Absent,
    /// A bridge of ours, with these addresses.
    Ours(Vec<IpNetwork>),
    /// Something of somebody else's, such as Docker's.
    Foreign,
}

/// A workload's leg on the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegSpec {
    /// The leg's id, at most 64 letters and digits.
    pub id: String,
    /// The bridge.
    pub bridge: String,
    /// The workload.
    pub workload: WorkloadRef,
    /// Inode number its namespace must have.
    pub netns_id: u64,
    /// Its addresses with the prefix of their subnet.
    pub addresses: Vec<IpNetwork>,
    /// Where its default routes lead, one per address family at most.
    pub gateways: Vec<IpAddr>,
    /// Its MAC.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Isolated legs do not reach each other. With br_netfilter the kernel bridges what the node's rules lead from one leg
    /// to another, so the leg that published ports lead to is not.
    pub isolated: bool,
    /// Who makes it, a word for people.
    pub owner: String,
}

/// Looks for the bridge in the agent's namespace.
///
/// # Errors
/// The kernel's reason.
pub async fn find_gateway(bridge: &str) -> Result<GatewayBridge, HostError> {
    let netlink = Netlink::current()?;
    let Some(link) = netlink.link_by_name(bridge).await? else {
        return Ok(GatewayBridge::Absent);
    };
    if link.mark().is_none() {
        return Ok(GatewayBridge::Foreign);
    }
    let addresses = netlink.addresses().await?;
    let own = addresses
        .into_iter()
        .filter(|(index, _)| *index == link.index);
    let lasting = own
        .map(|(_, address)| address)
        .filter(|address| match address {
            IpNetwork::V4(_) => true,
            IpNetwork::V6(v6) => !v6.ip().is_unicast_link_local(),
        });
    Ok(GatewayBridge::Ours(lasting.collect()))
}

/// Makes the bridge, or repairs it, and lets the node forward.
///
/// # Errors
/// [`HostError::Foreign`] if the name belongs to somebody else; the kernel's reason otherwise. A bridge that was made is
/// removed again.
pub async fn ensure_gateway(spec: &GatewaySpec) -> Result<(), HostError> {
    let v6 = spec.addresses.iter().any(IpNetwork::is_ipv6);
    check_mtu(spec.mtu, v6)?;
    let mut undo = Undo::default();
    match build(spec, v6, &mut undo).await {
        Ok(()) => Ok(()),
        Err(cause) => Err(undo.roll_back(cause).await),
    }
}

async fn build(spec: &GatewaySpec, v6: bool, undo: &mut Undo) -> Result<(), HostError> {
    let netns = Netns::current()?;
    let netlink = Arc::new(Netlink::open(&netns)?);
    let found = netlink.link_by_name(&spec.bridge).await?;
    let mark = Mark::new(GATEWAY_ID, &spec.bridge, &spec.owner);
    if let Some(link) = &found
        && link.mark().is_none()
    {
        return Err(HostError::Foreign {
            what: format!("link {}", spec.bridge),
            expected: mark.to_string(),
            found: "no mark".into(),
        });
    }
    let mac = spec.addresses.iter().find_map(|address| match address {
        IpNetwork::V4(v4) => Some(Mac::from_ipv4(v4.ip())),
        IpNetwork::V6(_) => None,
    });
    netlink
        .put_bridge(&BridgeSpec {
            name: spec.bridge.clone(),
            mac: mac.unwrap_or(Mac([0x02, b'w', 0, 0, 0, 1])),
            mtu: spec.mtu,
        })
        .await?;
    if found.is_none() {
        undo.push(Step::Link(Arc::clone(&netlink), spec.bridge.clone()));
        netlink.mark_link(&spec.bridge, &mark).await?;
    }
    let scope = match v6 {
        true => Scope::BridgeWithV6,
        false => Scope::BridgeWithoutV6,
    };
    sysctl::set(&netns, &[(Scope::Gateway, ""), (scope, &spec.bridge)])?;
    if v6 {
        sysctl::forward_v6(&netns)?;
    }
    let link = netlink.link_by_name(&spec.bridge).await?;
    let link = link.ok_or_else(|| HostError::NoNetwork(format!("link {}", spec.bridge)))?;
    for address in &spec.addresses {
        netlink.put_address(link.index, *address).await?;
    }
    let rule = closed_unless_marked(&spec.bridge);
    netlink.put_rule(&rule, false).await?;
    if v6 {
        netlink.put_rule(&rule, true).await?;
    }
    Ok(())
}

fn closed_unless_marked(bridge: &str) -> PolicyRule {
    PolicyRule::Prohibit {
        iif: bridge.to_owned(),
        unless: EGRESS_MARK,
    }
}

/// Removes the bridge and what lets packets through it; fine if it is gone, or not ours.
///
/// # Errors
/// The kernel's reasons.
pub async fn remove_gateway(bridge: &str) -> Result<(), HostError> {
    if !matches!(find_gateway(bridge).await?, GatewayBridge::Ours(_)) {
        return Ok(());
    }
    let netlink = Netlink::current()?;
    let rule = closed_unless_marked(bridge);
    let mut errors = Vec::new();
    for leg in list_legs().await? {
        errors.extend(detach_leg(&leg).await.err());
    }
    errors.extend(netlink.delete_rule(&rule, false).await.err());
    errors.extend(netlink.delete_rule(&rule, true).await.err());
    errors.extend(netlink.delete_link(bridge).await.err());
    HostError::collect(errors)
}

/// Gives a workload its leg, or repairs it. `None`: the workload has a default route of its own, and keeps it.
///
/// # Errors
/// As [`attach`].
pub async fn attach_leg(spec: &LegSpec) -> Result<Option<AttachedEndpoint>, HostError> {
    let netns = spec.workload.open()?;
    let workload = Netlink::open(&netns)?;
    let links = workload.links().await?;
    let own = links
        .iter()
        .find(|link| link.mark().is_some_and(|mark| mark.id == spec.id))
        .map(|link| link.index);
    for v6 in [false, true] {
        if workload.has_default_route(v6, own).await? {
            return Ok(None);
        }
    }
    let any = |gateway: &IpAddr| match gateway {
        IpAddr::V4(_) => DEFAULT_V4,
        IpAddr::V6(_) => DEFAULT_V6,
    };
    let routes = spec.gateways.iter().map(|gateway| {
        let destination: IpNetwork = any(gateway).parse().expect("a constant prefix");
        (destination, *gateway)
    });
    let endpoint = EndpointSpec {
        network_netns: own_netns(),
        id: spec.id.clone(),
        bridge: BridgeRef::Gateway {
            name: spec.bridge.clone(),
            isolated: spec.isolated,
        },
        workload: spec.workload.clone(),
        netns_id: Some(spec.netns_id),
        ifname: None,
        mac: spec.mac,
        addresses: spec.addresses.clone(),
        mtu: spec.mtu,
        gso: GsoSizes::KERNEL_DEFAULT,
        routes: routes.collect(),
        owner: spec.owner.clone(),
        isolate_spoofing: true,
        handed_over: false,
        outgoing: None,
        incoming: None,
    };
    attach(&endpoint).await.map(Some)
}

/// Removes a leg; fine if it is gone.
///
/// # Errors
/// As [`detach`].
pub async fn detach_leg(id: &str) -> Result<(), HostError> {
    detach(&own_netns(), id).await
}

/// The ids of all legs there are. What an agent had begun to make when it was killed is removed: nobody is to be at
/// making one meanwhile.
///
/// # Errors
/// The kernel's reason.
pub async fn list_legs() -> Result<Vec<String>, HostError> {
    let (_netns, netlink) = open_network(&own_netns())?;
    for link in netlink
        .links()
        .await?
        .iter()
        .filter(|link| is_half_made(link))
    {
        delete_pair(&netlink, link).await?;
    }
    let legs = list_endpoints(&own_netns()).await?;
    Ok(legs.into_iter().map(|leg| leg.id).collect())
}

/// Where packets go back to that a workload sends with one of these marks: through its interface `ifname`, by the gateway
/// beside the mark. The rules of other marks within `mask` are taken away, and the interface takes packets of any source
/// in.
///
/// # Errors
/// [`HostError::NoWorkload`], [`HostError::NoNetwork`] without the interface; the kernel's reason.
pub async fn return_routes(
    workload: &WorkloadRef,
    ifname: &str,
    mask: (u32, u32),
    ways: &[(u32, IpAddr)],
) -> Result<(), HostError> {
    let netns = workload.open()?;
    let netlink = Netlink::open(&netns)?;
    let link = netlink.link_by_name(ifname).await?;
    let link = link.ok_or_else(|| HostError::NoNetwork(format!("link {ifname} of {workload}")))?;
    sysctl::set(&netns, &[(Scope::LoosePath, ifname)])?;
    for v6 in [false, true] {
        let wanted: Vec<_> = ways
            .iter()
            .filter(|(_, gateway)| gateway.is_ipv6() == v6)
            .collect();
        let there = netlink.marked_tables(v6).await?;
        for (mark, gateway) in &wanted {
            netlink
                .put_table_default(link.index, *mark, *gateway)
                .await?;
            netlink
                .put_rule(&PolicyRule::MarkToTable(*mark), v6)
                .await?;
        }
        let ours = there.iter().filter(|mark| **mark & mask.1 == mask.0);
        for mark in ours.filter(|mark| !wanted.iter().any(|(wanted, _)| wanted == *mark)) {
            netlink
                .delete_rule(&PolicyRule::MarkToTable(*mark), v6)
                .await?;
        }
    }
    Ok(())
}

/// The node's own routes to single addresses through the bridge, each by the address beside it. Others that were made by
/// this are taken away. An address on a link of the node's own is its neighbour's, and gets none.
///
/// # Errors
/// [`HostError::NoNetwork`] without the bridge; the kernel's reason.
pub async fn node_routes(bridge: &str, ways: &BTreeMap<IpAddr, IpAddr>) -> Result<(), HostError> {
    let netlink = Netlink::current()?;
    let link = netlink.link_by_name(bridge).await?;
    let link = link.ok_or_else(|| HostError::NoNetwork(format!("link {bridge}")))?;
    let mut there = Vec::new();
    for v6 in [false, true] {
        there.extend(netlink.gateway_routes(v6).await?);
    }
    there.retain(|route| route.ours && route.link == Some(link.index));
    let neighbours = netlink.addresses().await?;
    let is_neighbour = |ip: IpAddr| {
        let mut others = neighbours.iter().filter(|(index, _)| *index != link.index);
        others.any(|(_, prefix)| prefix.contains(ip))
    };
    let ways: BTreeMap<IpAddr, IpAddr> = ways
        .iter()
        .filter(|(to, _)| !is_neighbour(**to))
        .map(|(to, by)| (*to, *by))
        .collect();
    for route in &there {
        if ways.get(&route.destination.ip()) != Some(&route.gateway) {
            netlink
                .delete_own_route(link.index, route.destination, route.gateway)
                .await?;
        }
    }
    for (to, by) in ways {
        let known = |route: &GatewayRoute| route.destination.ip() == to && route.gateway == by;
        if !there.iter().any(known) {
            netlink
                .put_own_route(link.index, IpNetwork::from(to), by)
                .await?;
        }
    }
    Ok(())
}

/// Prefixes the agent's namespace has an address of or a route to, but for default routes and what belongs to the link
/// `but`.
///
/// # Errors
/// The kernel's reason.
pub async fn prefixes_in_use(but: &str) -> Result<Vec<IpNetwork>, HostError> {
    let netlink = Netlink::current()?;
    let but = netlink.link_by_name(but).await?.map(|link| link.index);
    let addresses = netlink.addresses().await?;
    let addresses = addresses
        .into_iter()
        .filter(|(index, _)| Some(*index) != but);
    let mut prefixes: Vec<IpNetwork> = addresses.map(|(_, address)| address).collect();
    for v6 in [false, true] {
        prefixes.extend(netlink.route_prefixes(v6, but).await?);
    }
    Ok(prefixes)
}

/// Makes a namespace at `path` that forwards between its links, or takes over the one there.
///
/// # Errors
/// [`HostError::Sys`] if it can neither be opened nor made; the kernel's reason.
pub async fn ensure_router(path: &Path) -> Result<(), HostError> {
    let netns = match Netns::open(path) {
        Ok(netns) => netns,
        // What an interrupted creation left is an empty file, or none.
        Err(_) => {
            let path = path.to_owned();
            blocking(move || Netns::create(path)).await?
        }
    };
    sysctl::set(&netns, &[(Scope::Router, "")])?;
    Netlink::open(&netns)?.set_up("lo").await
}

/// Removes such a namespace with everything in it; fine if it is gone.
///
/// # Errors
/// The kernel's reason.
pub async fn remove_router(path: &Path) -> Result<(), HostError> {
    delete_netns(path.to_owned()).await
}

/// The agent's own namespace. Its threads never leave it for good.
fn own_netns() -> PathBuf {
    Path::new("/proc/self/ns/net").to_owned()
}

/// The mark of a gateway bridge has no id of a network.
const GATEWAY_ID: &str = "gateway";
const DEFAULT_V4: &str = "0.0.0.0/0";
const DEFAULT_V6: &str = "::/0";
