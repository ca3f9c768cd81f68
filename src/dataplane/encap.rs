//! Encap decisions: what becomes of a frame a workload sent. Pure; one question, one verdict.
//!
//! Order: 1. frames that never leave a node  2. who sent it (spoof check)  3. neighbour requests,
//! answered from the table  4. the FDB  5. broadcast and multicast, within the rate.

use std::net::IpAddr;

use super::bum::{self, NeighbourQuestion, TokenBucket};
use super::checks;
use super::verdict::{Answer, DropReason, EncapVerdict};
use crate::tables::fdb::Station;
use crate::tables::{Segment, View};
use crate::wire::inner::{self, Inner, Kind};

/// Decides on one frame (or super-frame) of a workload. HOT PATH.
///
/// `frame` starts at the Ethernet header and `inner` is its parse; `bum` is the port's bucket for
/// flooded frames and `now_ns` monotonic time.
#[inline]
pub fn decide(
    view: &View,
    segment: &Segment,
    frame: &[u8],
    inner: &Inner,
    bum: &mut TokenBucket,
    now_ns: u64,
) -> EncapVerdict {
    if let Err(reason) = admit(view, segment, frame, inner) {
        return EncapVerdict::Drop(reason);
    }
    if inner.dst.is_group() {
        return decide_group(view, segment, frame, inner, bum, now_ns);
    }
    match view.fdb.find(segment.index, inner.dst) {
        Some(Station::Remote(vtep) | Station::Learned { vtep, .. }) => EncapVerdict::Forward(vtep),
        Some(Station::Local | Station::Gateway) => EncapVerdict::Drop(DropReason::LocalDestination),
        None if segment.policy.flood_unknown => flood(segment, bum, now_ns),
        None => EncapVerdict::Drop(DropReason::UnknownUnicast),
    }
}

/// Broadcast and multicast: neighbour requests end here, the rest is flooded.
#[cold]
fn decide_group(
    view: &View,
    segment: &Segment,
    frame: &[u8],
    inner: &Inner,
    bum: &mut TokenBucket,
    now_ns: u64,
) -> EncapVerdict {
    let question = match on_own_vlan(inner) {
        true => None,
        false => bum::neighbour_question(frame, inner),
    };
    let Some(question) = question else {
        return flood(segment, bum, now_ns);
    };
    let (NeighbourQuestion::Arp(target) | NeighbourQuestion::NeighbourDiscovery(target)) = question;
    match view.neigh.find(segment.index, target) {
        // An announcement, or duplicate address detection: where no control plane tells the other
        // VTEPs' stations who has an address, they have to hear it.
        Some(neighbour) if neighbour.mac == inner.src && segment.policy.flood_unknown => {
            flood(segment, bum, now_ns)
        }
        Some(neighbour) if neighbour.local => EncapVerdict::Drop(DropReason::NeighbourLocal),
        // A gratuitous ARP or ND about the sender itself needs no answer.
        Some(neighbour) if neighbour.mac == inner.src => {
            EncapVerdict::Drop(DropReason::NeighbourLocal)
        }
        Some(neighbour) => EncapVerdict::Answer(match question {
            NeighbourQuestion::Arp(_) => Answer::Arp(neighbour.mac),
            NeighbourQuestion::NeighbourDiscovery(_) => {
                Answer::NeighbourAdvertisement(neighbour.mac)
            }
        }),
        None if segment.policy.flood_unknown => flood(segment, bum, now_ns),
        // Link-local addresses are in no record: their owners are asked, within the rate.
        None if is_link_local(target) => flood(segment, bum, now_ns),
        None => EncapVerdict::Drop(DropReason::NeighbourUnknown),
    }
}

fn flood(segment: &Segment, bum: &mut TokenBucket, now_ns: u64) -> EncapVerdict {
    if segment.flood.is_empty() {
        return EncapVerdict::Drop(DropReason::NoVtep);
    }
    if !bum.take(segment.policy.bum_rate, now_ns) {
        return EncapVerdict::Drop(DropReason::BumRate);
    }
    EncapVerdict::Flood
}

/// Frames that never leave, and frames whose sender is not who it says.
#[inline]
fn admit(view: &View, segment: &Segment, frame: &[u8], inner: &Inner) -> Result<(), DropReason> {
    if !checks::ENFORCED {
        return Ok(());
    }
    if inner.dst.is_link_local_control() {
        return Err(DropReason::LinkLocalControl);
    }
    if inner.vlan.is_some() && !segment.policy.carry_vlan {
        return Err(DropReason::TaggedFrame);
    }
    if !segment.policy.spoof_check {
        return Ok(());
    }
    match view.fdb.find(segment.index, inner.src) {
        Some(Station::Local) => {}
        Some(Station::Gateway) => return admit_gateway(view, segment, frame, inner),
        _ => return Err(DropReason::SpoofedSourceMac),
    }
    if on_own_vlan(inner) {
        return Ok(());
    }
    if let Some(reason) = bum::rogue_server(frame, inner) {
        return Err(reason);
    }
    match bum::claimed_address(frame, inner) {
        bum::Claim::Nothing => Ok(()),
        bum::Claim::Lie => Err(DropReason::SpoofedSourceIp),
        bum::Claim::Address(ip) => {
            let owner = view.neigh.find(segment.index, ip);
            let own = owner.is_some_and(|n| n.local && n.mac == inner.src);
            if own || bum::brings_clients(segment, frame, inner) {
                Ok(())
            } else {
                Err(DropReason::SpoofedSourceIp)
            }
        }
    }
}

/// The gateway forwards for endpoints of sibling segments, and speaks for itself.
fn admit_gateway(
    view: &View,
    segment: &Segment,
    frame: &[u8],
    inner: &Inner,
) -> Result<(), DropReason> {
    if let Some(reason) = bum::rogue_server(frame, inner) {
        return Err(reason);
    }
    if bum::speaks_for_another(segment, frame, inner) {
        return Err(DropReason::SpoofedSourceIp);
    }
    let Some(ip) = inner::src_ip(frame, inner) else {
        let arp = inner.kind == Kind::Arp;
        return if arp {
            Ok(())
        } else {
            Err(DropReason::SpoofedSourceMac)
        };
    };
    let local = |index| view.neigh.find(index, ip).is_some_and(|n| n.local);
    let known =
        is_link_local(ip) || local(segment.index) || segment.siblings.iter().any(|s| local(*s));
    if known {
        Ok(())
    } else {
        Err(DropReason::SpoofedSourceIp)
    }
}

/// Whether the frame is on a VLAN of the workloads' own making, whose addresses no record lists.
#[inline]
pub(super) fn on_own_vlan(inner: &Inner) -> bool {
    inner.vlan.is_some_and(|tci| tci & 0xfff != 0)
}

/// IPv6 link-local: every station has one that no record lists.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
