//! The underlay: one bridge in a namespace of its own, one veth pair to each node.
//!
//! ```text
//!   weft-<lab>-net                     weft-<lab>-n1
//!  ┌──────────────────────────┐       ┌──────────────────────┐
//!  │ ul0 ─┬─ nic-n1 ═══════════════════ eth0  10.99.0.1/24   │
//!  │      ├─ nic-n2 ════ …    │       └──────────────────────┘
//!  │      └─ nic-n3 ════ …    │
//!  └──────────────────────────┘
//! ```

use std::future::Future;
use std::io;

use futures_util::future::try_join_all;
use ipnetwork::IpNetwork;

use super::error::{Context, LabError};
use super::plan::{NodePlan, Plan};
use super::space;
use crate::host::{BridgeSpec, GsoSizes, Link, Netlink, VethEnd};
use crate::sys::netns::Netns;
use crate::wire::Mac;

/// The bridge of the underlay.
pub const BRIDGE: &str = "ul0";
/// The bridge of the nodes that are cut off.
pub const ISLAND: &str = "ul1";
/// The nodes' link to the underlay.
pub const NODE_LINK: &str = "eth0";

/// Runs kernel requests from code that is not asynchronous.
///
/// # Errors
/// Those of the future; [`LabError::Io`] when the system gives no event queue.
///
/// # Panics
/// Inside an asynchronous runtime.
pub fn block_on<T>(future: impl Future<Output = Result<T, LabError>>) -> Result<T, LabError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .context(|| "start an event queue".into())?
        .block_on(future)
}

/// Makes the underlay's bridge and joins every node to it. The namespaces exist already.
///
/// # Errors
/// [`LabError::Host`] with the kernel's reason, [`LabError::Io`] when a namespace does not open.
pub async fn build(plan: &Plan) -> Result<(), LabError> {
    let switch = space::open(&plan.switch)?;
    quieten(&switch)?;
    let netlink = Netlink::open(&switch)?;
    let mtu = plan.options.underlay_mtu;
    netlink
        .put_bridge(&BridgeSpec {
            name: BRIDGE.into(),
            mac: BRIDGE_MAC,
            mtu,
        })
        .await?;
    let bridge = link(&netlink, BRIDGE).await?.index;
    try_join_all(
        plan.nodes
            .iter()
            .map(|node| join(&netlink, bridge, node, mtu)),
    )
    .await?;
    let loopbacks = plan
        .workloads
        .iter()
        .map(|workload| loopback_up(&workload.netns));
    try_join_all(loopbacks).await?;
    Ok(())
}

/// Makes a veth pair within the underlay's namespace, both ends up and in no bridge: the way out of a relay.
///
/// # Errors
/// [`LabError::Host`].
pub async fn add_pair(switch: &Netns, one: &str, other: &str, mtu: u32) -> Result<(), LabError> {
    let netlink = Netlink::open(switch)?;
    netlink
        .add_veth(&end(one, mtu, None, None), &end(other, mtu, None, None))
        .await?;
    for name in [one, other] {
        netlink.set_up(name).await?;
    }
    Ok(())
}

/// Makes `link` a port of the underlay's bridge, or of none.
///
/// # Errors
/// [`LabError::Host`].
pub async fn set_port(switch: &Netns, name: &str, mtu: u32, joined: bool) -> Result<(), LabError> {
    let netlink = Netlink::open(switch)?;
    let bridge = if joined {
        link(&netlink, BRIDGE).await?.index
    } else {
        0
    };
    let port = link(&netlink, name).await?;
    netlink
        .set_veth(&port, &end(name, mtu, Some(bridge), None))
        .await?;
    Ok(netlink.set_up(name).await?)
}

/// Makes the bridge for nodes that are cut off from the rest; fine if it is there.
///
/// # Errors
/// [`LabError::Host`].
pub async fn put_island(switch: &Netns, mtu: u32) -> Result<(), LabError> {
    let netlink = Netlink::open(switch)?;
    let spec = BridgeSpec {
        name: ISLAND.into(),
        mac: ISLAND_MAC,
        mtu,
    };
    netlink.put_bridge(&spec).await?;
    Ok(netlink.set_up(ISLAND).await?)
}

/// Makes `link` a port of one of the bridges.
///
/// # Errors
/// [`LabError::Host`]; [`LabError::Io`] when link or bridge are not there.
pub async fn move_port(switch: &Netns, name: &str, mtu: u32, bridge: &str) -> Result<(), LabError> {
    let netlink = Netlink::open(switch)?;
    let bridge = link(&netlink, bridge).await?.index;
    let port = link(&netlink, name).await?;
    netlink
        .set_veth(&port, &end(name, mtu, Some(bridge), None))
        .await?;
    Ok(netlink.set_up(name).await?)
}

/// Removes a link and the other end of its pair; fine if it is gone.
///
/// # Errors
/// [`LabError::Host`].
pub async fn remove(netns: &Netns, name: &str) -> Result<(), LabError> {
    Ok(Netlink::open(netns)?.delete_link(name).await?)
}

/// A link of a namespace by name.
///
/// # Errors
/// [`LabError::Io`] when there is none.
pub async fn find(netns: &Netns, name: &str) -> Result<Link, LabError> {
    link(&Netlink::open(netns)?, name).await
}

/// Keeps the namespace's bridge out of the firewall and its links from talking IPv6 by themselves.
fn quieten(netns: &Netns) -> Result<(), LabError> {
    for knob in [
        "bridge-nf-call-iptables",
        "bridge-nf-call-ip6tables",
        "bridge-nf-call-arptables",
    ] {
        space::set_knob(netns, &format!("bridge/{knob}"), "0")?;
    }
    space::set_knob(netns, "ipv6/conf/default/disable_ipv6", "1")
}

async fn join(switch: &Netlink, bridge: u32, node: &NodePlan, mtu: u32) -> Result<(), LabError> {
    let netns = space::open(&node.netns)?;
    space::set_knob(&netns, "ipv6/conf/default/accept_dad", "0")?;
    let nic = node.nic();
    let inner = end(NODE_LINK, mtu, None, Some(&netns));
    switch
        .add_veth(&end(&nic, mtu, Some(bridge), None), &inner)
        .await?;
    switch.set_up(&nic).await?;
    let netlink = Netlink::open(&netns)?;
    netlink.set_up(LOOPBACK).await?;
    let index = link(&netlink, NODE_LINK).await?.index;
    netlink.set_up(NODE_LINK).await?;
    put_address(&netlink, index, node.underlay).await
}

async fn put_address(netlink: &Netlink, index: u32, address: IpNetwork) -> Result<(), LabError> {
    Ok(netlink.put_address(index, address).await?)
}

async fn loopback_up(netns: &str) -> Result<(), LabError> {
    let netlink = Netlink::open(&space::open(netns)?)?;
    Ok(netlink.set_up(LOOPBACK).await?)
}

async fn link(netlink: &Netlink, name: &str) -> Result<Link, LabError> {
    let found = netlink.link_by_name(name).await?;
    found
        .ok_or(io::Error::from(io::ErrorKind::NotFound))
        .context(|| format!("find link {name}"))
}

fn end<'a>(name: &str, mtu: u32, bridge: Option<u32>, netns: Option<&'a Netns>) -> VethEnd<'a> {
    VethEnd {
        name: name.into(),
        mac: None,
        mtu,
        gso: GsoSizes::KERNEL_DEFAULT,
        tx_queue_len: None,
        bridge,
        raw: false,
        netns,
        grouped: false,
    }
}

const LOOPBACK: &str = "lo";
/// Locally administered, `weft` in the middle.
const BRIDGE_MAC: Mac = Mac([0x02, b'w', b'e', b'f', b't', 0]);
const ISLAND_MAC: Mac = Mac([0x02, b'w', b'e', b'f', b't', 1]);
