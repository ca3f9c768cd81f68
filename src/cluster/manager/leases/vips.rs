//! Virtual addresses: claimed by services, out of blocks that no node holds, from the subnet's end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{BlockState, ClaimState, Resting, SubnetLeases};
use crate::cluster::ipam::space::Space;
use crate::cluster::manager::reply::{Exhausted, Refusal};
use crate::cluster::manager::state::{Cluster, Scene};
use crate::cluster::manager::watch::Change;
use crate::model::network::Subnet;

/// Virtual addresses with the ids of their networks.
pub(in crate::cluster::manager) type Vips = BTreeSet<(String, IpAddr)>;

impl SubnetLeases {
    /// The last address but one that is nobody's: nodes lease blocks from the other end, and services share theirs.
    fn free_vip(&self, space: &Space<'_>, now_ms: u64) -> Option<IpAddr> {
        let unclaimed = |ip: &IpAddr| match self.claims.get(ip) {
            None => true,
            Some(ClaimState::Resting(rest)) => rest.until_ms <= now_ms,
            Some(ClaimState::Held { .. } | ClaimState::Service { .. }) => false,
        };
        let mut blocks = (0..space.block_count()).rev();
        blocks.find_map(|index| {
            let first = space.block_at(index)?;
            match self.blocks.get(&first) {
                Some(BlockState::Held(held)) => held.except.iter().copied().find(unclaimed),
                Some(BlockState::Resting(rest)) if rest.until_ms > now_ms => None,
                _ => space.usable_in(first).find(unclaimed),
            }
        })
    }
}

impl Cluster {
    /// One address per family for a service on a network, IPv4 first: those of the first segment that has both.
    pub(in crate::cluster::manager) fn choose_vips(
        &self,
        scene: &mut Scene<'_>,
        network: &str,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let network = self.network(network)?;
        let mut refusal = None;
        for segment in &network.segments {
            let chosen: Result<Vec<IpAddr>, (&Subnet, Exhausted)> = segment
                .subnets()
                .map(|subnet| self.choose_vip(scene, &network.id, subnet))
                .collect();
            match chosen {
                Ok(vips) => return Ok(vips),
                Err((subnet, why)) => {
                    scene.changes.push(Change::Scarce {
                        network: network.id.clone(),
                        subnet: subnet.prefix,
                    });
                    refusal = refusal.or(Some(why));
                }
            }
        }
        Err(refusal.map_or_else(
            || Refusal::UnknownNetwork(network.id.clone()),
            Refusal::Exhausted,
        ))
    }

    fn choose_vip<'a>(
        &self,
        scene: &Scene<'_>,
        network: &str,
        subnet: &'a Subnet,
    ) -> Result<IpAddr, (&'a Subnet, Exhausted)> {
        let none = SubnetLeases::default();
        let subnets = self.leases.get(network);
        let leases = subnets.and_then(|s| s.get(&subnet.prefix)).unwrap_or(&none);
        let now_ms = scene.stamp.cluster_ms;
        let found = leases.free_vip(&Space::new(subnet), now_ms);
        found.ok_or_else(|| (subnet, leases.exhausted(subnet, self, now_ms)))
    }

    /// The addresses are the service's.
    pub(in crate::cluster::manager) fn hold_vips(
        &mut self,
        service: &str,
        vips: Vec<(String, IpAddr)>,
    ) {
        for (network, address) in vips {
            let found = self.network(&network).ok();
            let subnet = found.and_then(|n| n.subnets().find(|s| s.prefix.contains(address)));
            let Some(subnet) = subnet.map(|s| s.prefix) else {
                continue;
            };
            let claim = ClaimState::Service {
                service: service.to_owned(),
            };
            let leases = self.leases_of(&network, subnet);
            leases.claims.insert(address, claim);
        }
    }

    /// The addresses are nobody's, and rest.
    pub(in crate::cluster::manager) fn free_vips(&mut self, scene: &Scene<'_>, vips: Vips) {
        let until_ms = self.rest_until(scene);
        for (network, address) in vips {
            let subnets = self.leases.get_mut(&network).into_iter();
            for leases in subnets.flat_map(|n| n.values_mut()) {
                if let Some(claim @ ClaimState::Service { .. }) = leases.claims.get_mut(&address) {
                    let node = None;
                    *claim = ClaimState::Resting(Resting { node, until_ms });
                }
            }
        }
    }
}
