//! Who uses how many addresses of which subnet: the table behind `weft ipam ls`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::space::Space;
use crate::cluster::manager::ids::NodeId;
use crate::cluster::manager::watch::Replica;

/// One subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetUse {
    /// Id of its network.
    pub network: String,
    /// Name of its network.
    pub name: String,
    /// The subnet.
    pub subnet: IpNetwork,
    /// Addresses that endpoints can have at all, outside of a range those that are claimed.
    pub capacity: u64,
    /// Those with an endpoint, as last told by the nodes, and those of services.
    pub used: u64,
    /// Those that nobody holds. Some of them may rest after use.
    pub free: u64,
    /// By node, the largest user first.
    pub nodes: Vec<NodeUse>,
    /// Virtual addresses, by service name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<VipUse>,
}

/// A service's part of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VipUse {
    /// Name of the service.
    pub service: String,
    /// Its virtual address.
    pub address: IpAddr,
}

/// One node's part of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUse {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Addresses with an endpoint.
    pub used: u64,
    /// Addresses it holds, with or without an endpoint.
    pub held: u64,
}

/// The use of every subnet, by network name and subnet.
pub fn table(replica: &Replica) -> Vec<SubnetUse> {
    let networks = replica.catalog.iter().flat_map(|c| c.networks.values());
    let mut rows = Vec::new();
    for network in networks {
        for subnet in network.subnets() {
            let space = Space::new(subnet);
            let mut nodes: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
            let blocks = replica.blocks.get(&network.id).into_iter().flatten();
            for (at, block) in blocks.filter(|(at, _)| at.subnet == subnet.prefix) {
                let usable = space.usable_in(at.first);
                let held = usable.filter(|ip| !block.except.contains(ip)).count() as u64;
                let entry = nodes.entry(block.node).or_default();
                *entry = (entry.0 + u64::from(block.used), entry.1 + held);
            }
            let claims = replica.claims.get(&network.id).into_iter().flatten();
            let mut outside = 0;
            for (ip, claim) in claims.filter(|(ip, _)| subnet.prefix.contains(**ip)) {
                let entry = nodes.entry(claim.node).or_default();
                *entry = (entry.0 + 1, entry.1 + 1);
                outside += u64::from(!space.area().contains(*ip));
            }
            let parts = replica.services.values().flat_map(|service| {
                let parts = service.networks.iter();
                let parts = parts.filter(|part| part.network == network.id);
                let vips = parts.flat_map(|part| part.vips.iter().copied());
                vips.map(|address| (service.name.clone(), address))
            });
            let vips = parts.filter(|(_, address)| subnet.prefix.contains(*address));
            let mut services: Vec<VipUse> = vips
                .map(|(service, address)| VipUse { service, address })
                .collect();
            services.sort();
            let count = services.len() as u64;
            let capacity = space.capacity().saturating_add(outside);
            let used = nodes.values().map(|n| n.0).sum::<u64>() + count;
            let held = nodes.values().map(|n| n.1).sum::<u64>() + count;
            let mut nodes: Vec<NodeUse> = nodes
                .into_iter()
                .map(|(node, (used, held))| NodeUse {
                    node,
                    name: replica
                        .nodes
                        .get(&node)
                        .map_or_else(|| node.to_string(), |n| n.name.clone()),
                    used,
                    held,
                })
                .collect();
            nodes.sort_by_key(|n| (std::cmp::Reverse(n.used), n.node));
            rows.push(SubnetUse {
                network: network.id.clone(),
                name: network.name.clone(),
                subnet: subnet.prefix,
                capacity,
                used,
                free: capacity.saturating_sub(held),
                nodes,
                services,
            });
        }
    }
    rows.sort_by(|a, b| (&a.name, a.subnet).cmp(&(&b.name, b.subnet)));
    rows
}
