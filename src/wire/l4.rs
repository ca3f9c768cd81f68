//! The layer-4 checksum of a whole inner frame, over its pseudo-header: summed, verified, filled.
//!
//! Owns where each protocol keeps its checksum. Knows nothing of offloads: the checksum of a frame
//! whose sender left it unfinished does not verify.

use super::checksum::{self, finish, fold};
use super::inner::{
    Inner, Kind, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, chunk, dst_ip, src_ip,
};
use std::net::IpAddr;

/// Offset of the checksum field in the layer-4 header of `proto`.
#[inline]
pub const fn checksum_offset(proto: u8) -> Option<usize> {
    match proto {
        PROTO_TCP => Some(16),
        PROTO_UDP => Some(6),
        PROTO_ICMP | PROTO_ICMPV6 => Some(2),
        _ => None,
    }
}

/// The pseudo-header of `frame` as an addend; zero for ICMP over IPv4, which has none.
pub fn pseudo(frame: &[u8], inner: &Inner) -> u64 {
    let len = (inner.end - usize::from(inner.l4)) as u32;
    match (src_ip(frame, inner), dst_ip(frame, inner)) {
        (Some(IpAddr::V4(_)), _) if inner.proto == PROTO_ICMP => 0,
        (Some(IpAddr::V4(src)), Some(IpAddr::V4(dst))) => {
            checksum::pseudo_v4(src, dst, inner.proto, len)
        }
        (Some(IpAddr::V6(src)), Some(IpAddr::V6(dst))) => {
            checksum::pseudo_v6(src, dst, inner.proto, len)
        }
        _ => 0,
    }
}

/// Whether the layer-4 checksum is right. `None` when there is none to check: no TCP, UDP or ICMP,
/// a fragment, a truncated header, or UDP over IPv4 sent with checksum zero.
pub fn verify(frame: &[u8], inner: &Inner) -> Option<bool> {
    let at = field(frame, inner)?;
    let stored = *chunk::<2>(frame, at)?;
    if stored == [0, 0] && inner.proto == PROTO_UDP {
        // RFC 8200 §8.1: over IPv6 zero is not "none" but wrong.
        return (inner.kind == Kind::Ipv6).then_some(false);
    }
    let payload = &frame[usize::from(inner.l4)..inner.end];
    Some(fold(checksum::sum(payload, pseudo(frame, inner))) == 0xffff)
}

/// Computes and stores the layer-4 checksum; returns whether there was one to store.
///
/// `inner` must come from `frame`.
pub fn fill(frame: &mut [u8], inner: &Inner) -> bool {
    let Some(at) = field(frame, inner) else {
        return false;
    };
    frame[at..at + 2].fill(0);
    let payload = &frame[usize::from(inner.l4)..inner.end];
    let mut check = finish(checksum::sum(payload, pseudo(frame, inner)));
    if check == 0 && inner.proto == PROTO_UDP {
        check = 0xffff; // RFC 768: zero means "none"
    }
    frame[at..at + 2].copy_from_slice(&check.to_ne_bytes());
    true
}

/// Where the checksum field of an unfragmented frame is, if the packet reaches that far.
fn field(frame: &[u8], inner: &Inner) -> Option<usize> {
    let at = usize::from(inner.l4) + checksum_offset(inner.proto)?;
    let here = inner.l4 != 0 && !inner.fragment && at + 2 <= inner.end.min(frame.len());
    here.then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameBuilder;
    use crate::wire::inner::parse;

    #[test]
    fn built_frames_verify_and_a_flipped_byte_does_not() {
        for frame in [
            FrameBuilder::v4().tcp(1, 2).payload(b"odd").build(),
            FrameBuilder::v6().tcp(1, 2).payload(b"even").build(),
            FrameBuilder::v4().udp(1, 2).payload(b"odd").build(),
            FrameBuilder::v6().udp(1, 2).payload(b"x").build(),
            FrameBuilder::v4().icmp_echo(1, 2).payload(b"xyz").build(),
            FrameBuilder::v6().icmp_echo(1, 2).payload(b"xyz").build(),
        ] {
            let inner = parse(&frame).unwrap();
            assert_eq!(verify(&frame, &inner), Some(true), "{frame:x?}");
            let mut bad = frame.clone();
            *bad.last_mut().unwrap() ^= 0x40;
            assert_eq!(verify(&bad, &inner), Some(false));
            assert!(fill(&mut bad, &inner));
            assert_eq!(verify(&bad, &inner), Some(true));
        }
    }

    #[test]
    fn udp_without_checksum_is_fine_over_ipv4_and_wrong_over_ipv6() {
        for (builder, want) in [
            (FrameBuilder::v4(), None),
            (FrameBuilder::v6(), Some(false)),
        ] {
            let frame = builder.udp(1, 2).no_checksum().payload(b"x").build();
            assert_eq!(verify(&frame, &parse(&frame).unwrap()), want);
        }
    }
}
