//! What to do with a frame that does not fit the path to its VTEP. Cold.
//!
//! A VTEP never fragments the outer packet (RFC 7348 §4.3). An IPv4 packet that allows it is
//! fragmented inside; a sender that forbids it (DF, or IPv6) is told the size that fits, by the
//! network's gateway (RFC 1191, RFC 8201), which is what the sender's path MTU discovery waits for.

use std::net::IpAddr;

use super::split::{HEADERS_MAX, Plan};
use crate::tables::Segment;
use crate::wire::inner::{self, Kind};
use crate::wire::{icmp, ipv4, vxlan};

/// The result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Frames that fit, to be sent in its place.
    Fragments(Vec<Vec<u8>>),
    /// A frame to give back to the sender; the frame itself is dropped.
    Tell(Vec<u8>),
    /// Drop it in silence: not IP, or nobody may be told (RFC 1122 §3.2.2).
    Nothing,
}

/// Bytes around an inner frame on the underlay: IP, UDP and VXLAN headers.
pub fn overhead_len(vtep: IpAddr) -> usize {
    let ip = if vtep.is_ipv4() { 20 } else { 40 };
    ip + 8 + vxlan::LEN
}

/// Decides on `frame`, which does not fit `path_mtu` underlay bytes.
pub fn handle(frame: &[u8], segment: &Segment, vtep: IpAddr, path_mtu: u32) -> Outcome {
    let Ok(inner) = inner::parse(frame) else {
        return Outcome::Nothing;
    };
    let room = (path_mtu as usize).saturating_sub(overhead_len(vtep) + usize::from(inner.l3));
    let Ok(mtu_inner) = u16::try_from(room) else {
        return Outcome::Nothing;
    };
    let gateway_v4 = segment.gateways.iter().find_map(|ip| match ip {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    let gateway_v6 = segment.gateways.iter().find_map(|ip| match ip {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    });
    let reply = match inner.kind {
        Kind::Ipv4 => {
            if let Ok(fragments) = ipv4::fragment(frame, &inner, usize::from(mtu_inner)) {
                return Outcome::Fragments(fragments);
            }
            let from = gateway_v4
                .or_else(|| Some(ipv4_of(frame, &inner)))
                .filter(|ip| !ip.is_unspecified());
            from.and_then(|ip| {
                icmp::fragmentation_needed(frame, &inner, mtu_inner, ip, segment.gateway_mac)
            })
        }
        Kind::Ipv6 => {
            let from = gateway_v6.unwrap_or_else(|| link_local(segment));
            icmp::packet_too_big(
                frame,
                &inner,
                u32::from(mtu_inner),
                from,
                segment.gateway_mac,
            )
        }
        Kind::Arp | Kind::Other => None,
    };
    reply.map_or(Outcome::Nothing, Outcome::Tell)
}

/// Without a gateway of the family the message comes from the destination itself, which is on link.
fn ipv4_of(frame: &[u8], inner: &inner::Inner) -> std::net::Ipv4Addr {
    match inner::dst_ip(frame, inner) {
        Some(IpAddr::V4(ip)) => ip,
        _ => std::net::Ipv4Addr::UNSPECIFIED,
    }
}

/// The gateway's link-local address, made from its MAC (RFC 4291 appendix A).
fn link_local(segment: &Segment) -> std::net::Ipv6Addr {
    let m = segment.gateway_mac.0;
    let pair = |a: u8, b: u8| u16::from_be_bytes([a, b]);
    std::net::Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        pair(m[0] ^ 2, m[1]),
        pair(m[2], 0xff),
        pair(0xfe, m[3]),
        pair(m[4], m[5]),
    )
}

/// Segment `index` of a super-frame as a frame of its own.
pub fn whole_segment(plan: &Plan, index: usize, frame: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADERS_MAX];
    let payload = plan.segment(index, frame, &mut out);
    out.truncate(plan.header_len());
    out.extend_from_slice(&frame[payload]);
    out
}
