//! What the dataplane must understand of neighbour protocols, and the flood's rate limit. Pure.
//!
//! ARP (RFC 826) and neighbour discovery (RFC 4861) are answered from the table; router
//! advertisements, redirects and DHCP server messages of workloads are kept in.

use std::net::{IpAddr, Ipv6Addr};

use super::verdict::DropReason;
use crate::tables::Segment;
use crate::wire::arp::{Arp, Op};
use crate::wire::guard::{self, Authority};
use crate::wire::inner::{self, Inner, Kind, PROTO_ICMPV6, PROTO_UDP};
use crate::wire::ndp::{self, Neighbour};

/// A request that the table may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighbourQuestion {
    /// ARP who-has.
    Arp(IpAddr),
    /// Neighbour solicitation.
    NeighbourDiscovery(IpAddr),
}

/// The address a frame claims for its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// None that a record could list: not IP, a probe, or link-local.
    Nothing,
    /// This one.
    Address(IpAddr),
    /// It contradicts the Ethernet header.
    Lie,
}

/// The question of a broadcast or multicast frame, if it is one.
pub fn neighbour_question(frame: &[u8], inner: &Inner) -> Option<NeighbourQuestion> {
    match inner.kind {
        Kind::Arp => {
            let arp = Arp::parse(frame, inner).ok()?;
            (arp.op == Op::Request).then_some(NeighbourQuestion::Arp(arp.target_ip.into()))
        }
        Kind::Ipv6 => match ndp::parse(frame, inner) {
            Ok(Neighbour::Solicitation(asked)) => {
                Some(NeighbourQuestion::NeighbourDiscovery(asked.target.into()))
            }
            _ => None,
        },
        Kind::Ipv4 | Kind::Other => None,
    }
}

/// Whether the frame is of a node's own leg on the ingress network, and its IP packet of a client outside. Who has which
/// address on the segment itself is still nobody's to say but the table's.
#[cold]
pub fn brings_clients(segment: &Segment, frame: &[u8], inner: &Inner) -> bool {
    let outside = |ip| !segment.subnets.iter().any(|subnet| subnet.contains(ip));
    segment.policy.client_addresses
        && inner.src.is_ingress_leg()
        && inner.vlan.is_none()
        && matches!(inner.kind, Kind::Ipv4 | Kind::Ipv6)
        && inner::src_ip(frame, inner).is_some_and(outside)
        && (inner.proto != PROTO_ICMPV6 || ndp::parse(frame, inner).is_err())
}

/// The address the sender claims in IP, ARP or neighbour discovery. HOT PATH.
#[inline]
pub fn claimed_address(frame: &[u8], inner: &Inner) -> Claim {
    match inner.kind {
        Kind::Ipv4 => match inner::src_ip(frame, inner) {
            Some(ip) if ip.is_unspecified() => Claim::Nothing,
            Some(ip) => Claim::Address(ip),
            None => Claim::Lie,
        },
        Kind::Ipv6 if inner.proto == PROTO_ICMPV6 => claimed_by_icmpv6(frame, inner),
        Kind::Ipv6 => claimed_by_ipv6(frame, inner),
        Kind::Arp => claimed_by_arp(frame, inner),
        Kind::Other => Claim::Nothing,
    }
}

#[inline]
fn claimed_by_ipv6(frame: &[u8], inner: &Inner) -> Claim {
    match inner::src_ip(frame, inner) {
        Some(IpAddr::V6(ip)) => claim_v6(ip),
        _ => Claim::Lie,
    }
}

fn claim_v6(ip: Ipv6Addr) -> Claim {
    if ip.is_unspecified() || ip.is_unicast_link_local() {
        Claim::Nothing
    } else {
        Claim::Address(ip.into())
    }
}

#[cold]
fn claimed_by_icmpv6(frame: &[u8], inner: &Inner) -> Claim {
    match ndp::parse(frame, inner) {
        Ok(Neighbour::Advertisement(told)) => {
            let lies = told.target_mac.is_some_and(|mac| mac != inner.src);
            if lies {
                Claim::Lie
            } else {
                claim_v6(told.target)
            }
        }
        Ok(Neighbour::Solicitation(asked))
            if asked.source_mac.is_some_and(|mac| mac != inner.src) =>
        {
            Claim::Lie
        }
        _ => claimed_by_ipv6(frame, inner),
    }
}

#[cold]
fn claimed_by_arp(frame: &[u8], inner: &Inner) -> Claim {
    match Arp::parse(frame, inner) {
        Ok(arp) if arp.sender_mac != inner.src => Claim::Lie,
        Ok(arp) if arp.sender_ip.is_unspecified() => Claim::Nothing,
        Ok(arp) => Claim::Address(arp.sender_ip.into()),
        // Kernels take ARP of other hardware types for Ethernet's (Linux `arp_process`: IEEE 802),
        // so what is not understood here is not let through.
        Err(_) => Claim::Lie,
    }
}

/// Whether a frame with the gateway's MAC says in ARP or neighbour discovery that the gateway has an
/// address which is not its own: it may route for others, never answer for them.
pub fn speaks_for_another(segment: &Segment, frame: &[u8], inner: &Inner) -> bool {
    let told = match inner.kind {
        Kind::Arp => claimed_by_arp(frame, inner),
        Kind::Ipv6 if inner.proto == PROTO_ICMPV6 => match ndp::parse(frame, inner) {
            Ok(_) => claimed_by_icmpv6(frame, inner),
            Err(_) => Claim::Nothing,
        },
        _ => Claim::Nothing,
    };
    match told {
        Claim::Nothing => false,
        Claim::Address(ip) => !segment.gateways.contains(&ip),
        Claim::Lie => true,
    }
}

/// The reason to keep in a frame by which a workload plays router or DHCP server.
#[inline]
pub fn rogue_server(frame: &[u8], inner: &Inner) -> Option<DropReason> {
    if !matches!(inner.proto, PROTO_UDP | PROTO_ICMPV6) {
        return None;
    }
    match guard::authority(frame, inner)? {
        Authority::RouterAdvertisement | Authority::Redirect => Some(DropReason::RogueRouter),
        _ => Some(DropReason::RogueDhcp),
    }
}

/// A token bucket of one second's worth of tokens. Time is given, never read.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    /// Tokens in nanoseconds of the rate, so that no fraction is lost.
    credit_ns: u64,
    filled_ns: u64,
}

impl Default for TokenBucket {
    fn default() -> TokenBucket {
        TokenBucket {
            credit_ns: TokenBucket::SECOND_NS,
            filled_ns: 0,
        }
    }
}

impl TokenBucket {
    const SECOND_NS: u64 = 1_000_000_000;

    /// Takes one token if there is one; `rate` per second, 0 for no limit.
    pub fn take(&mut self, rate: u32, now_ns: u64) -> bool {
        self.take_many(1, rate, now_ns)
    }

    /// Takes `count` tokens if there are so many, otherwise none.
    pub fn take_many(&mut self, count: u64, rate: u32, now_ns: u64) -> bool {
        if rate == 0 {
            return true;
        }
        let elapsed = now_ns.saturating_sub(self.filled_ns);
        self.filled_ns = now_ns;
        self.credit_ns = self
            .credit_ns
            .saturating_add(elapsed)
            .min(TokenBucket::SECOND_NS);
        let price = (TokenBucket::SECOND_NS / u64::from(rate)).saturating_mul(count);
        if self.credit_ns < price {
            return false;
        }
        self.credit_ns -= price;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_second_of_burst_and_then_the_rate() {
        let mut bucket = TokenBucket::default();
        let start = 5_000_000_000;
        assert_eq!((0..200).filter(|_| bucket.take(100, start)).count(), 100);
        assert_eq!(
            (0..200)
                .filter(|_| bucket.take(100, start + 250_000_000))
                .count(),
            25
        );
        assert!(bucket.take(0, start));
        let later = start + 10_000_000_000;
        assert!(!bucket.take_many(101, 100, later));
        assert!(bucket.take_many(100, 100, later));
        assert!(!bucket.take(100, later));
    }
}
