//! What there is in a workload's namespace: one interface, and the routes. Looks, changes nothing.

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;

use super::failure::{Code, Failure};
use crate::agent::api::Mac;
use crate::host::{HostError, Netlink};
use crate::sys::netns::Netns;

/// A namespace at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The interface asked for.
    pub interface: Option<SeenInterface>,
    /// Routes of the main table with a gateway.
    pub routes: Vec<SeenRoute>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenInterface {
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up.
    pub up: bool,
    /// Its addresses with prefix length.
    pub addresses: Vec<IpNetwork>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRoute {
    /// Where to.
    pub destination: IpNetwork,
    /// By whom.
    pub gateway: IpAddr,
    /// Through the interface asked for.
    pub through_it: bool,
    /// Through one that weft made.
    pub through_ours: bool,
}

/// Looks at the interface and the routes.
///
/// # Errors
/// [`Code::Environment`] if there is no such namespace, [`Code::Io`] if it cannot be looked at.
pub async fn look(netns: &Path, ifname: &str) -> Result<Seen, Failure> {
    let netns = open(netns)?;
    seen(&netns, ifname)
        .await
        .map_err(|e| Failure::new(Code::Io, format!("cannot look at the workload: {e}")))
}

async fn seen(netns: &Netns, ifname: &str) -> Result<Seen, HostError> {
    let netlink = Netlink::open(netns)?;
    let links = netlink.links().await?;
    let own = links.iter().find(|link| link.name == ifname);
    let interface = match own {
        None => None,
        Some(link) => {
            let all = netlink.addresses().await?.into_iter();
            let addresses = all.filter(|(index, _)| *index == link.index);
            Some(SeenInterface {
                mac: link.mac,
                mtu: link.mtu,
                up: link.up,
                addresses: addresses.map(|(_, address)| address).collect(),
            })
        }
    };
    let mut routes = Vec::new();
    for v6 in [false, true] {
        for route in netlink.gateway_routes(v6).await? {
            let by = links.iter().find(|link| Some(link.index) == route.link);
            routes.push(SeenRoute {
                destination: route.destination,
                gateway: route.gateway,
                through_it: by.is_some_and(|link| link.name == ifname),
                through_ours: by.is_some_and(|link| link.mark().is_some()),
            });
        }
    }
    Ok(Seen { interface, routes })
}

/// Refuses a namespace that is the caller's own: what is attached there would be the node itself.
///
/// # Errors
/// [`Code::Environment`].
pub fn check_foreign(path: &Path) -> Result<(), Failure> {
    let other = open(path)?.id().ok();
    let own = Netns::current().ok().and_then(|own| own.id().ok());
    if other.is_some() && other == own {
        let text = format!("CNI_NETNS {} is the node's own namespace", path.display());
        return Err(Failure::new(Code::Environment, text));
    }
    Ok(())
}

/// Whether there is a namespace at this path.
pub fn exists(path: &Path) -> bool {
    Netns::open(path).is_ok()
}

fn open(path: &Path) -> Result<Netns, Failure> {
    Netns::open(path).map_err(|e| {
        let text = format!("CNI_NETNS {}: {e}", path.display());
        Failure::new(Code::Environment, text)
    })
}
