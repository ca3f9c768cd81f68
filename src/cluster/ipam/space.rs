//! The addresses of a subnet: which ones endpoints can have, and how they are cut into blocks.
//!
//! ```text
//! 10.0.1.0/24     network address, gateway, reserved ones, broadcast address: nobody's
//! ├─ .0 ─ .3      blocks of 4, the unit that a node leases: a 64th of the area, 1 to 64 addresses
//! ├─ .4 ─ .7
//! ```
//! The area is the `--ip-range` if there is one, else the whole subnet. Fixed addresses may also lie outside
//! of the area.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::model::network::{Subnet, is_edge};

/// Into how many blocks a subnet is cut, if they do not get too small or too large by that.
const BLOCKS_PER_AREA: u128 = 64;
/// Addresses of the largest block.
pub const BLOCK_LEN_MAX: u32 = 64;

/// A subnet seen as addresses to give out.
#[derive(Clone, Copy, Debug)]
pub struct Space<'a> {
    subnet: &'a Subnet,
}

impl<'a> Space<'a> {
    /// Of a subnet that [`crate::model::network`] has checked.
    pub fn new(subnet: &'a Subnet) -> Space<'a> {
        Space { subnet }
    }

    /// Where addresses come from that nobody asked for by number.
    pub fn area(&self) -> IpNetwork {
        self.subnet.range.unwrap_or(self.subnet.prefix)
    }

    /// Addresses of a block.
    pub fn block_len(&self) -> u32 {
        let ideal = area_len(self.area()) / BLOCKS_PER_AREA;
        let ideal = u32::try_from(ideal).unwrap_or(u32::MAX);
        // Both are powers of two: so is the quotient.
        ideal.clamp(1, BLOCK_LEN_MAX)
    }

    /// How many blocks there are.
    pub fn block_count(&self) -> u128 {
        area_len(self.area()) / u128::from(self.block_len())
    }

    /// First address of the block at `index`, counted from the area's beginning.
    pub fn block_at(&self, index: u128) -> Option<IpAddr> {
        if index >= self.block_count() {
            return None;
        }
        let first = bits(self.area().network()) + index * u128::from(self.block_len());
        Some(address(first, self.area()))
    }

    /// First address and index of the block that holds `ip`, if it is in the area.
    pub fn block_of(&self, ip: IpAddr) -> Option<(IpAddr, u128)> {
        if !self.area().contains(ip) {
            return None;
        }
        let index = (bits(ip) - bits(self.area().network())) / u128::from(self.block_len());
        Some((self.block_at(index)?, index))
    }

    /// Addresses of the block that begins with `first` which an endpoint can have.
    pub fn usable_in(&self, first: IpAddr) -> impl Iterator<Item = IpAddr> + use<'a> {
        let space = *self;
        let from = bits(first);
        let all = (0..u128::from(self.block_len())).filter_map(move |n| from.checked_add(n));
        all.map(move |bits| address(bits, space.area()))
            .filter(move |ip| space.unusable(*ip).is_none())
    }

    /// Why an endpoint cannot have `ip`; `None` if it can.
    pub fn unusable(&self, ip: IpAddr) -> Option<String> {
        let subnet = self.subnet;
        if !subnet.prefix.contains(ip) {
            return Some("no address".into());
        }
        if ip == subnet.gateway {
            return Some("the gateway".into());
        }
        if is_edge(subnet.prefix, ip) {
            let first = ip == subnet.prefix.network();
            let which = if first { "network" } else { "broadcast" };
            return Some(format!("the {which} address"));
        }
        let reserved = subnet.reserved.iter().find(|(_, other)| **other == ip);
        reserved.map(|(name, _)| format!("the reserved address \"{name}\""))
    }

    /// How many addresses of the area endpoints can have; counts no further than `u64` does.
    pub fn capacity(&self) -> u64 {
        let (subnet, area) = (self.subnet, self.area());
        let mut apart: Vec<IpAddr> = vec![subnet.prefix.network(), subnet.gateway];
        if subnet.prefix.is_ipv4() {
            apart.push(subnet.prefix.broadcast());
        }
        apart.extend(subnet.reserved.values());
        apart.sort();
        apart.dedup();
        let apart = apart.iter().filter(|ip| area.contains(**ip)).count();
        let capacity = area_len(area).saturating_sub(apart as u128);
        u64::try_from(capacity).unwrap_or(u64::MAX)
    }
}

fn area_len(area: IpNetwork) -> u128 {
    let width = if area.is_ipv4() { 32 } else { 128 };
    1_u128
        .checked_shl(width - u32::from(area.prefix()))
        .unwrap_or(u128::MAX)
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(bits: u128, family_of: IpNetwork) -> IpAddr {
    match family_of {
        // The area ends where 32 bits do.
        IpNetwork::V4(_) => Ipv4Addr::from(bits as u32).into(),
        IpNetwork::V6(_) => Ipv6Addr::from(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn subnet(prefix: &str, gateway: &str, range: Option<&str>) -> Subnet {
        Subnet {
            prefix: prefix.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
            range: range.map(|r| r.parse().unwrap()),
            reserved: BTreeMap::new(),
        }
    }

    #[test]
    fn blocks_are_a_64th_of_the_area_within_bounds() {
        for (prefix, gateway, range, len, count) in [
            ("10.0.1.0/24", "10.0.1.1", None, 4, 64),
            ("10.0.0.0/8", "10.0.0.1", None, 64, 262_144),
            ("10.0.1.0/28", "10.0.1.1", None, 1, 16),
            ("10.0.1.0/30", "10.0.1.1", None, 1, 4),
            ("10.0.0.0/16", "10.0.0.1", Some("10.0.4.0/22"), 16, 64),
            ("fd00::/64", "fd00::1", None, 64, 1 << 58),
            ("fd00::/126", "fd00::1", None, 1, 4),
        ] {
            let subnet = subnet(prefix, gateway, range);
            let space = Space::new(&subnet);
            assert_eq!(
                (space.block_len(), space.block_count()),
                (len, count),
                "{prefix}"
            );
        }
    }

    #[test]
    fn nobody_gets_gateway_edges_or_reserved_addresses() {
        let mut subnet = subnet("10.0.1.0/28", "10.0.1.14", None);
        let camera = "10.0.1.5".parse().unwrap();
        subnet.reserved.insert("camera".into(), camera);
        let space = Space::new(&subnet);
        let all: Vec<IpAddr> = (0..space.block_count())
            .flat_map(|n| space.usable_in(space.block_at(n).unwrap()))
            .collect();
        assert_eq!(all.len(), 12);
        assert_eq!(space.capacity(), 12);
        for (ip, why) in [
            ("10.0.1.0", "the network address"),
            ("10.0.1.15", "the broadcast address"),
            ("10.0.1.14", "the gateway"),
            ("10.0.1.5", "the reserved address \"camera\""),
            ("10.0.2.1", "no address"),
        ] {
            let ip = ip.parse().unwrap();
            assert!(!all.contains(&ip));
            assert_eq!(space.unusable(ip).as_deref(), Some(why));
        }
    }

    #[test]
    fn every_address_of_the_area_is_in_the_block_it_came_from() {
        for (prefix, gateway, range) in [
            ("10.0.0.0/22", "10.0.0.1", None),
            (
                "255.255.255.0/24",
                "255.255.255.1",
                Some("255.255.255.128/25"),
            ),
            ("fd00::/120", "fd00::1", None),
        ] {
            let subnet = subnet(prefix, gateway, range);
            let space = Space::new(&subnet);
            for index in 0..space.block_count() {
                let first = space.block_at(index).unwrap();
                for ip in space.usable_in(first) {
                    assert_eq!(space.block_of(ip), Some((first, index)));
                }
            }
            assert_eq!(space.block_at(space.block_count()), None);
            assert_eq!(space.block_of("192.0.2.1".parse().unwrap()), None);
        }
    }
}
