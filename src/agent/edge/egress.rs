//! The gateway bridge and workloads' legs on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;

use super::Look;
use super::plan::{Workload, node_ways, workloads};
use super::state::{Gateway, Leg};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::agent::ident;
use crate::agent::network::overlap;
use crate::agent::plumbing::edge::{BRIDGES, GatewayBridge, GatewayPlan, LegPlan, WorkloadPlace};
use crate::wire::Mac;

/// Gives every workload that should have one its leg, and takes the others'.
pub(super) async fn settle(agent: &Agent, look: Look) {
    if !agent.settings().egress {
        return;
    }
    let mut given = agent.inner.edge.legs.lock().await;
    if look == Look::Everything {
        given.forget();
    }
    let wanted = legs_wanted(agent);
    let known: Vec<(String, Leg)> = {
        let live = agent.live();
        let legs = live.node.edge.legs.iter();
        legs.map(|(id, leg)| (id.clone(), leg.clone())).collect()
    };
    for (id, leg) in &known {
        if !wanted
            .iter()
            .any(|one| one.place.netns_inode == leg.netns_inode)
        {
            given.legs.remove(&leg.netns_inode);
            drop_leg(agent, id).await;
        }
    }
    for one in &wanted {
        let result = give_leg(agent, &mut given, one).await;
        report(agent, one, result);
    }
    if wanted.is_empty() {
        given.forget();
        close(agent).await;
    }
    lead_node(agent, &mut given).await;
    if look == Look::Everything {
        drop_strays(agent).await;
    }
}

/// As [`settle`], for one workload.
pub(super) async fn settle_one(agent: &Agent, netns_inode: u64) {
    if !agent.settings().egress {
        return;
    }
    let mut given = agent.inner.edge.legs.lock().await;
    let wanted = legs_wanted(agent);
    match wanted
        .iter()
        .find(|one| one.place.netns_inode == netns_inode)
    {
        Some(one) => {
            let result = give_leg(agent, &mut given, one).await;
            report(agent, one, result);
        }
        None => {
            let id = {
                let live = agent.live();
                live.node.edge.leg_of(netns_inode).map(|(id, _)| id.clone())
            };
            if let Some(id) = id {
                given.legs.remove(&netns_inode);
                drop_leg(agent, &id).await;
            }
        }
    }
    lead_node(agent, &mut given).await;
}

/// Leads the node itself to the workloads that it is to reach.
async fn lead_node(agent: &Agent, given: &mut Given) {
    let Some(gateway) = &given.gateway else {
        return;
    };
    let ways = node_ways(&agent.live().node);
    if given.node.as_ref() == Some(&ways) {
        return;
    }
    let key = "the node's routes to workloads";
    match agent
        .plumbing()
        .edge()
        .node_routes(&gateway.bridge, &ways)
        .await
    {
        Ok(()) => {
            given.node = Some(ways);
            agent.well_again(key);
        }
        Err(error) => agent.trouble(key, error.code.as_str(), &error),
    }
}

/// Takes a workload's leg away if its interface has this name, and gives it none before [`let_in`]. Tells whether it had.
pub(super) async fn keep_out(agent: &Agent, netns_inode: u64, ifname: &str) -> bool {
    let mut given = agent.inner.edge.legs.lock().await;
    let id = {
        let live = agent.live();
        let leg = live.node.edge.leg_of(netns_inode);
        leg.filter(|(_, leg)| leg.ifname == ifname)
            .map(|(id, _)| id.clone())
    };
    let Some(id) = id else {
        return false;
    };
    given.legs.remove(&netns_inode);
    given.kept_out.insert(netns_inode);
    drop_leg(agent, &id).await;
    true
}

/// Ends what [`keep_out`] began.
pub(super) async fn let_in(agent: &Agent, netns_inode: u64) {
    let mut given = agent.inner.edge.legs.lock().await;
    given.kept_out.remove(&netns_inode);
}

/// What stands in the kernel since it was last gone through.
#[derive(Debug, Default)]
pub struct Given {
    gateway: Option<Gateway>,
    legs: BTreeMap<u64, LegPlan>,
    node: Option<BTreeMap<IpAddr, IpAddr>>,
    /// Namespaces where the name of a leg is just being given to another interface.
    kept_out: BTreeSet<u64>,
}

impl Given {
    /// Takes nothing for standing.
    fn forget(&mut self) {
        let kept_out = std::mem::take(&mut self.kept_out);
        *self = Given {
            kept_out,
            ..Given::default()
        };
    }
}

/// A workload that is to have a leg.
struct Wanted {
    place: WorkloadPlace,
    v6: bool,
    mesh: bool,
}

fn legs_wanted(agent: &Agent) -> Vec<Wanted> {
    let live = agent.live();
    let all = workloads(&live.node);
    let wanting = all
        .values()
        .filter(|workload| workload.wants_leg(&live.node));
    wanting
        .map(|workload: &Workload<'_>| Wanted {
            place: workload.place.clone(),
            v6: workload.has_v6(),
            mesh: workload.is_mesh(),
        })
        .collect()
}

fn report(agent: &Agent, wanted: &Wanted, result: Result<(), ApiError>) {
    let key = format!("way out of workload {}", wanted.place.target);
    match result {
        Ok(()) => agent.well_again(&key),
        // The workload is gone, and its endpoints will be.
        Err(error) if error.code == ErrorCode::TargetNotFound => agent.well_again(&key),
        Err(error) => agent.trouble(&key, error.code.as_str(), &error),
    }
}

async fn give_leg(agent: &Agent, given: &mut Given, wanted: &Wanted) -> Result<(), ApiError> {
    if given.kept_out.contains(&wanted.place.netns_inode) {
        return Ok(());
    }
    let gateway = match &given.gateway {
        Some(gateway) => gateway.clone(),
        None => given.gateway.insert(open(agent).await?).clone(),
    };
    let (id, leg, new) = {
        let live = agent.live();
        match live.node.edge.leg_of(wanted.place.netns_inode) {
            Some((id, leg)) => (id.clone(), leg.clone(), false),
            None => {
                let addresses = live.node.edge.free_addresses().ok_or_else(|| {
                    ApiError::new(
                        ErrorCode::AddressesExhausted,
                        format!("no address is free on {}", gateway.bridge),
                        "detach workloads that need no way out",
                    )
                })?;
                let leg = Leg {
                    target: wanted.place.target.clone(),
                    netns_inode: wanted.place.netns_inode,
                    addresses,
                    ifname: String::new(),
                };
                (ident::random_id(), leg, true)
            }
        }
    };
    let used = |address: &&IpNetwork| wanted.v6 || address.is_ipv4();
    let v4 = leg.addresses.iter().find_map(|address| match address {
        IpNetwork::V4(v4) => Some(v4.ip()),
        IpNetwork::V6(_) => None,
    });
    let plan = LegPlan {
        id: id.clone(),
        bridge: gateway.bridge.clone(),
        place: wanted.place.clone(),
        addresses: leg.addresses.iter().filter(used).copied().collect(),
        gateways: gateway
            .addresses
            .iter()
            .filter(used)
            .map(IpNetwork::ip)
            .collect(),
        mac: v4.map_or(Mac([0x02, b'w', 0, 0, 0, 2]), Mac::from_ipv4),
        mtu: mtu(agent),
        isolated: !wanted.mesh,
    };
    if given.legs.get(&wanted.place.netns_inode) == Some(&plan) {
        return Ok(());
    }
    // Known before it is made: what a killed agent leaves is found again.
    if new {
        agent.live().node.edge.legs.insert(id.clone(), leg.clone());
    }
    let made = agent.plumbing().edge().leg_up(plan.clone()).await;
    let ifname = match made {
        Ok(ifname) => ifname.unwrap_or_default(),
        Err(error) => {
            if new {
                agent.live().node.edge.legs.remove(&id);
            }
            return Err(error);
        }
    };
    if new || ifname != leg.ifname {
        if let Some(leg) = agent.live().node.edge.legs.get_mut(&id) {
            leg.ifname = ifname;
        }
        agent.save().await?;
    }
    given.legs.insert(wanted.place.netns_inode, plan);
    Ok(())
}

async fn drop_leg(agent: &Agent, id: &str) {
    let key = format!("leg {id}");
    match agent.plumbing().edge().leg_down(id).await {
        Ok(()) => {
            agent.live().node.edge.legs.remove(id);
            agent.well_again(&key);
            if let Err(error) = agent.save().await {
                agent.trouble("edge", error.code.as_str(), &error);
            }
        }
        Err(error) => agent.trouble(&key, error.code.as_str(), &error),
    }
}

/// Legs that no state tells of: of an agent that was killed, or whose state was lost.
async fn drop_strays(agent: &Agent) {
    let Ok(found) = agent.plumbing().edge().legs().await else {
        return;
    };
    for id in found {
        let known = agent.live().node.edge.legs.contains_key(&id);
        if !known && let Err(error) = agent.plumbing().edge().leg_down(&id).await {
            tracing::warn!(leg = id, %error, "a leg nobody knows stays");
        }
    }
}

fn mtu(agent: &Agent) -> u32 {
    match agent.live().underlay_mtu {
        0 => 1500,
        mtu => mtu.clamp(1280, 65535),
    }
}

/// The gateway bridge, made if need be.
async fn open(agent: &Agent) -> Result<Gateway, ApiError> {
    let known = agent.live().node.edge.gateway.clone();
    let edge = agent.plumbing().edge();
    let gateway = match known {
        // Somebody else may have taken the name since.
        Some(gateway)
            if bridges(agent).contains(&gateway.bridge.as_str())
                && edge.gateway(&gateway.bridge).await? != GatewayBridge::Foreign =>
        {
            gateway
        }
        _ => choose(agent).await?,
    };
    let plan = GatewayPlan {
        bridge: gateway.bridge.clone(),
        addresses: gateway.addresses.clone(),
        mtu: mtu(agent),
    };
    edge.gateway_up(plan).await?;
    let before = agent.live().node.edge.gateway.replace(gateway.clone());
    if before.as_ref() != Some(&gateway) {
        // Legs on another bridge have addresses that lead nowhere.
        agent.live().node.edge.legs.clear();
        agent.save().await?;
    }
    Ok(gateway)
}

/// Names that the gateway bridge may have: beside an engine the first one is the engine's, also before it has made it.
fn bridges(agent: &Agent) -> &'static [&'static str] {
    let settings = agent.settings();
    match settings.docker_plugin.is_some() || settings.docker_engine.is_some() {
        true => &BRIDGES[1..],
        false => &BRIDGES,
    }
}

/// A name that is free or ours, and subnets that nothing on this node uses.
async fn choose(agent: &Agent) -> Result<Gateway, ApiError> {
    let edge = agent.plumbing().edge();
    for &bridge in bridges(agent) {
        match edge.gateway(bridge).await? {
            GatewayBridge::Foreign => {
                tracing::info!(bridge, "belongs to somebody else, and is left alone");
            }
            GatewayBridge::Ours(addresses) if !addresses.is_empty() => {
                let bridge = bridge.to_owned();
                return Ok(Gateway { bridge, addresses });
            }
            GatewayBridge::Ours(_) | GatewayBridge::Absent => {
                let mut in_use = edge.prefixes_in_use(bridge).await?;
                {
                    let live = agent.live();
                    let networks = live.node.catalog.networks.values();
                    in_use.extend(networks.flat_map(|n| n.subnets()).map(|s| s.prefix));
                }
                in_use.push(agent.settings().vtep.into());
                return Ok(Gateway {
                    bridge: bridge.to_owned(),
                    addresses: free_subnets(&in_use)?,
                });
            }
        }
    }
    Err(ApiError::new(
        ErrorCode::KernelRefused,
        format!("{} belong to somebody else", BRIDGES.join(" and ")),
        "remove or rename one of these links: ip link",
    ))
}

/// The gateway's addresses in the first subnets nobody uses: Docker's pools, and an IPv6 prefix of our own.
fn free_subnets(in_use: &[IpNetwork]) -> Result<Vec<IpNetwork>, ApiError> {
    let free = |candidate: &IpNetwork| !in_use.iter().any(|used| overlap(*used, *candidate));
    let large = (18..32).map(|second| format!("172.{second}.0.1/16"));
    let small = (0..16).map(|step| format!("192.168.{}.1/20", step * 16));
    let mut v4 = large.chain(small).filter_map(|text| text.parse().ok());
    let v4: IpNetwork = v4.find(free).ok_or_else(|| {
        ApiError::new(
            ErrorCode::SubnetsExhausted,
            "every subnet for the gateway bridge is in use on this node: 172.18.0.0/16 to 172.31.0.0/16, 192.168.0.0/16",
            "free one of them, or let workloads go without a way out: egress = false",
        )
    })?;
    let mut addresses = vec![v4];
    // A kernel without IPv6 refuses such addresses.
    if Path::new("/proc/net/if_inet6").exists() {
        let v6 = (1..256).filter_map(|nth| format!("fd77:6566:7400:{nth:x}::1/64").parse().ok());
        addresses.extend(v6.into_iter().find(free));
    }
    Ok(addresses)
}

/// Takes the gateway bridge and all legs away.
pub(super) async fn take_down(agent: &Agent) {
    let mut given = agent.inner.edge.legs.lock().await;
    given.forget();
    close(agent).await;
}

/// Takes the gateway bridge away: nobody needs it.
async fn close(agent: &Agent) {
    let Some(gateway) = agent.live().node.edge.gateway.clone() else {
        return;
    };
    let closed = agent.plumbing().edge().gateway_down(&gateway.bridge).await;
    match closed {
        Ok(()) => {
            agent.live().node.edge = Default::default();
            agent.well_again("gateway bridge");
            if let Err(error) = agent.save().await {
                agent.trouble("edge", error.code.as_str(), &error);
            }
        }
        Err(error) => agent.trouble("gateway bridge", error.code.as_str(), &error),
    }
}

/// The addresses of a workload's leg.
pub(super) fn leg_addresses(agent: &Agent, netns_inode: u64) -> Vec<IpAddr> {
    let live = agent.live();
    let leg = live.node.edge.leg_of(netns_inode);
    let leg = leg.filter(|(_, leg)| !leg.ifname.is_empty());
    leg.map_or_else(Vec::new, |(_, leg)| {
        leg.addresses.iter().map(IpNetwork::ip).collect()
    })
}
