//! What is remembered of the edge over a restart.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// The gateway bridge and the legs on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeState {
    /// The bridge, once it was needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// Workloads' legs by id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub legs: BTreeMap<String, Leg>,
}

/// The gateway bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// Its name.
    pub bridge: String,
    /// Its addresses with the prefix length of their subnet, IPv4 first.
    pub addresses: Vec<IpNetwork>,
}

/// A workload's leg on the gateway bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leg {
    /// The workload as the user named it.
    pub target: String,
    /// Inode of its namespace.
    pub netns_inode: u64,
    /// Its addresses with the prefix length of their subnet, IPv4 first.
    pub addresses: Vec<IpNetwork>,
    /// Its name in the workload; empty if the workload has a way out of its own and got none.
    #[serde(default)]
    pub ifname: String,
}

impl EdgeState {
    /// The leg of the workload in this namespace.
    pub fn leg_of(&self, netns_inode: u64) -> Option<(&String, &Leg)> {
        self.legs
            .iter()
            .find(|(_, leg)| leg.netns_inode == netns_inode)
    }

    /// Addresses for a new leg: the lowest that no other leg has, the same place in every subnet.
    pub fn free_addresses(&self) -> Option<Vec<IpNetwork>> {
        let gateway = self.gateway.as_ref()?;
        let taken: Vec<IpAddr> = self
            .legs
            .values()
            .flat_map(|leg| leg.addresses.iter().map(IpNetwork::ip))
            .collect();
        (2..PLACES).find_map(|place| {
            let at = |own: &IpNetwork| nth(*own, place);
            let addresses: Option<Vec<IpNetwork>> = gateway.addresses.iter().map(at).collect();
            let addresses = addresses?;
            let free = addresses.iter().all(|address| {
                !taken.contains(&address.ip()) && !gateway.addresses.contains(address)
            });
            free.then_some(addresses)
        })
    }
}

/// The `place`-th address of a subnet, with its prefix length; none of its broadcast address, or beyond it.
fn nth(subnet: IpNetwork, place: u32) -> Option<IpNetwork> {
    let ip = match subnet {
        IpNetwork::V4(v4) => {
            let ip = u32::from(v4.network()).checked_add(place)?;
            (ip < u32::from(v4.broadcast())).then(|| IpAddr::V4(ip.into()))?
        }
        IpNetwork::V6(v6) => {
            let ip = IpAddr::V6((u128::from(v6.network()) + u128::from(place)).into());
            v6.contains(match ip {
                IpAddr::V6(ip) => ip,
                IpAddr::V4(_) => return None,
            })
            .then_some(ip)?
        }
    };
    IpNetwork::new(ip, subnet.prefix()).ok()
}

/// A bridge has 1024 ports at most.
const PLACES: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legs_get_the_lowest_free_place_of_both_families() {
        let mut edge = EdgeState {
            gateway: Some(Gateway {
                bridge: "docker_gwbridge".into(),
                addresses: vec![
                    "172.18.0.1/16".parse().unwrap(),
                    "fd18::1/64".parse().unwrap(),
                ],
            }),
            legs: BTreeMap::new(),
        };
        let add = |edge: &mut EdgeState, inode| {
            let addresses = edge.free_addresses().unwrap();
            let text: Vec<String> = addresses.iter().map(IpNetwork::to_string).collect();
            let leg = Leg {
                target: "w".into(),
                netns_inode: inode,
                addresses,
                ifname: "eth1".into(),
            };
            edge.legs.insert(inode.to_string(), leg);
            text
        };
        assert_eq!(add(&mut edge, 1), ["172.18.0.2/16", "fd18::2/64"]);
        assert_eq!(add(&mut edge, 2), ["172.18.0.3/16", "fd18::3/64"]);
        edge.legs.remove("1");
        assert_eq!(add(&mut edge, 3), ["172.18.0.2/16", "fd18::2/64"]);
        assert_eq!(edge.leg_of(2).unwrap().0, "2");
    }

    #[test]
    fn a_full_subnet_has_no_address() {
        let edge = EdgeState {
            gateway: Some(Gateway {
                bridge: "b".into(),
                addresses: vec!["192.168.0.1/30".parse().unwrap()],
            }),
            ..EdgeState::default()
        };
        assert_eq!(
            edge.free_addresses().unwrap()[0].to_string(),
            "192.168.0.2/30"
        );
        assert_eq!(nth("192.168.0.1/30".parse().unwrap(), 3), None);
    }
}
