//! Decap decisions: what becomes of a frame that came through the tunnel. Pure.
//!
//! Order: 1. the VXLAN header and its VNI  2. the VTEP's membership  3. whose frame it is  4. whether
//! an endpoint here has the destination. Nothing is ever sent back to the underlay (split horizon).

use std::sync::Arc;

use super::verdict::{DecapVerdict, DropReason};
use super::{bum, checks};
use crate::tables::fdb::Station;
use crate::tables::{Segment, View};
use crate::wire::inner::{self, Inner, Kind};
use crate::wire::vxlan::{self, VxlanError};

/// The segment a datagram belongs to. `vtep` is the index of its outer source.
///
/// # Errors
/// The reason to drop it: bad header, unknown VNI, or a VTEP that is not a member.
pub fn segment<'a>(
    view: &'a View,
    vtep: u32,
    datagram: &[u8],
) -> Result<&'a Arc<Segment>, DropReason> {
    let header = vxlan::decode(datagram).map_err(|e| match e {
        VxlanError::TooShort => DropReason::VxlanShort,
        VxlanError::NoVniFlag => DropReason::VxlanNoVni,
    })?;
    let segment = view
        .snapshot
        .segment_by_vni(header.vni)
        .ok_or(DropReason::UnknownVni)?;
    if !checks::ENFORCED {
        return Ok(segment);
    }
    if !segment.members.contains(vtep) {
        return Err(DropReason::NotMember);
    }
    if header.reserved_bits != 0 && segment.policy.strict_reserved_bits {
        return Err(DropReason::VxlanReservedBits);
    }
    Ok(segment)
}

/// Decides on one tunnelled frame of a member VTEP. HOT PATH.
#[inline]
pub fn decide(
    view: &View,
    segment: &Segment,
    vtep: u32,
    frame: &[u8],
    inner: &Inner,
) -> DecapVerdict {
    match admit(view, segment, vtep, frame, inner) {
        Ok(()) => destination(view, segment, inner),
        Err(reason) => DecapVerdict::Drop(reason),
    }
}

#[inline]
fn destination(view: &View, segment: &Segment, inner: &Inner) -> DecapVerdict {
    if inner.dst.is_group() {
        return DecapVerdict::Deliver;
    }
    match view.fdb.find(segment.index, inner.dst) {
        Some(Station::Local | Station::Gateway) => DecapVerdict::Deliver,
        Some(Station::Remote(_) | Station::Learned { .. }) => {
            DecapVerdict::Drop(DropReason::SplitHorizon)
        }
        // A foreign VTEP floods what it does not know; so may a stale one. Nobody here has it.
        None => DecapVerdict::Drop(DropReason::NotLocal),
    }
}

/// Whether the frame's way ends at the endpoint it is delivered to: the destination address is its own. Others are for
/// it, or for the gateway, to forward.
#[inline]
pub fn ends_here(view: &View, segment: &Segment, frame: &[u8], inner: &Inner) -> bool {
    let owner = inner::dst_ip(frame, inner).and_then(|ip| view.neigh.find(segment.index, ip));
    inner.vlan.is_none() && owner.is_some_and(|owner| owner.local && owner.mac == inner.dst)
}

#[inline]
fn admit(
    view: &View,
    segment: &Segment,
    vtep: u32,
    frame: &[u8],
    inner: &Inner,
) -> Result<(), DropReason> {
    if !checks::ENFORCED {
        return Ok(());
    }
    if inner.dst.is_link_local_control() {
        return Err(DropReason::InnerLinkLocalControl);
    }
    if inner.vlan.is_some() && !segment.policy.carry_vlan {
        return Err(DropReason::InnerTaggedFrame);
    }
    let station = view.fdb.find(segment.index, inner.src);
    if !segment.policy.spoof_check {
        // Even a trusting network does not take its own stations' frames back: that is a loop.
        let own = matches!(station, Some(Station::Local | Station::Gateway));
        return if own {
            Err(DropReason::InnerSpoofedMac)
        } else {
            Ok(())
        };
    }
    match station {
        Some(Station::Remote(owner)) if owner == vtep => {}
        Some(Station::Gateway) => return admit_gateway(view, segment, vtep, frame, inner),
        _ => return Err(DropReason::InnerSpoofedMac),
    }
    if super::encap::on_own_vlan(inner) {
        return Ok(());
    }
    if bum::rogue_server(frame, inner).is_some() {
        return Err(DropReason::InnerRogue);
    }
    match bum::claimed_address(frame, inner) {
        bum::Claim::Nothing => Ok(()),
        bum::Claim::Lie => Err(DropReason::InnerSpoofedIp),
        bum::Claim::Address(ip) => {
            let owned = view
                .neigh
                .find(segment.index, ip)
                .is_some_and(|n| n.mac == inner.src);
            if owned || bum::brings_clients(segment, frame, inner) {
                Ok(())
            } else {
                Err(DropReason::InnerSpoofedIp)
            }
        }
    }
}

/// A frame routed by the sender's copy of the anycast gateway: its address must be of an endpoint
/// behind that VTEP, in this segment or a sibling, or the gateway's own.
fn admit_gateway(
    view: &View,
    segment: &Segment,
    vtep: u32,
    frame: &[u8],
    inner: &Inner,
) -> Result<(), DropReason> {
    if bum::rogue_server(frame, inner).is_some() {
        return Err(DropReason::InnerRogue);
    }
    if bum::speaks_for_another(segment, frame, inner) {
        return Err(DropReason::InnerSpoofedIp);
    }
    let Some(ip) = inner::src_ip(frame, inner) else {
        return if inner.kind == Kind::Arp {
            Ok(())
        } else {
            Err(DropReason::InnerSpoofedMac)
        };
    };
    let behind_vtep = |index| {
        let mac = view.neigh.find(index, ip).map(|n| n.mac);
        mac.and_then(|mac| view.fdb.find(index, mac))
            .and_then(Station::vtep)
            == Some(vtep)
    };
    let known = segment.gateways.contains(&ip)
        || super::encap::is_link_local(ip)
        || behind_vtep(segment.index)
        || segment.siblings.iter().any(|s| behind_vtep(*s));
    if known {
        Ok(())
    } else {
        Err(DropReason::InnerSpoofedIp)
    }
}
