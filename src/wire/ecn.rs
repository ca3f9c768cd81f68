//! Explicit congestion notification through a tunnel, RFC 6040.
//!
//! Owns the two tables (entry and exit) and the marking of a header. The entry is "normal mode": the
//! inner field is copied. Linux's own VXLAN entry differs in one cell, sending ECT(0) outside when the
//! inner packet is already marked (RFC 3168 full-functionality); both exits read either.

use super::checksum::replace16;
use super::inner::{Inner, Kind};

/// The two low bits of IPv4 TOS or IPv6 traffic class (RFC 3168 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// The transport does not understand ECN.
    NotEct = 0,
    /// Capable, codepoint 1 (L4S, RFC 9331).
    Ect1 = 1,
    /// Capable, codepoint 0.
    Ect0 = 2,
    /// Congestion experienced.
    Ce = 3,
}

impl Ecn {
    /// The field in `tos`.
    #[inline]
    pub const fn of_tos(tos: u8) -> Ecn {
        match tos & 3 {
            0 => Ecn::NotEct,
            1 => Ecn::Ect1,
            2 => Ecn::Ect0,
            _ => Ecn::Ce,
        }
    }

    /// `tos` with this as its ECN field.
    #[inline]
    pub const fn in_tos(self, tos: u8) -> u8 {
        tos & !3 | self as u8
    }
}

/// A packet that met congestion and whose transport would not hear of it: RFC 6040 §4.2 drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("congestion was marked on a packet that is not ECN-capable")]
pub struct CongestedNotCapable;

/// The outer field at tunnel entry, for an inner TOS (RFC 6040 §4.1, normal mode).
#[inline]
pub const fn encap(inner_tos: u8) -> Ecn {
    Ecn::of_tos(inner_tos)
}

/// The inner field at tunnel exit (RFC 6040 figure 4; Linux `INET_ECN_decapsulate`).
///
/// # Errors
/// [`CongestedNotCapable`]: drop the packet.
#[inline]
pub const fn decap(inner: Ecn, outer: Ecn) -> Result<Ecn, CongestedNotCapable> {
    match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => Err(CongestedNotCapable),
        (Ecn::NotEct, _) => Ok(Ecn::NotEct),
        (_, Ecn::Ce) => Ok(Ecn::Ce),
        (Ecn::Ect0, Ecn::Ect1) => Ok(Ecn::Ect1),
        (same, _) => Ok(same),
    }
}

/// Marks the inner IP packet of a parsed frame; frames that are not IP are left alone.
#[inline]
pub fn set(frame: &mut [u8], inner: &Inner, ecn: Ecn) {
    let header = frame.get_mut(usize::from(inner.l3)..);
    match (inner.kind, header) {
        (Kind::Ipv4, Some(header)) => set_v4(header, ecn),
        (Kind::Ipv6, Some(header)) => set_v6(header, ecn),
        _ => {}
    }
}

/// Marks an IPv4 header and mends its checksum by the difference (RFC 1624). Headers under 20 bytes
/// are left alone.
#[inline]
pub fn set_v4(header: &mut [u8], ecn: Ecn) {
    let Some(h) = header.first_chunk_mut::<20>() else {
        return;
    };
    let old = [h[0], h[1]];
    h[1] = ecn.in_tos(h[1]);
    let check = replace16(
        u16::from_ne_bytes([h[10], h[11]]),
        u16::from_ne_bytes(old),
        u16::from_ne_bytes([h[0], h[1]]),
    );
    h[10..12].copy_from_slice(&check.to_ne_bytes());
}

/// Marks an IPv6 header. Headers under two bytes are left alone.
#[inline]
pub fn set_v6(header: &mut [u8], ecn: Ecn) {
    if let Some(h) = header.first_chunk_mut::<2>() {
        h[1] = h[1] & !0x30 | (ecn as u8) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::Ecn::*;
    use super::*;
    use crate::wire::frame::FrameBuilder;
    use crate::wire::inner::parse;
    use crate::wire::ipv4::Ipv4;

    #[test]
    fn all_sixteen_exits_are_those_of_figure_four() {
        let drop = Err(CongestedNotCapable);
        // columns: outer Not-ECT, ECT(0), ECT(1), CE
        let table = [
            (NotEct, [Ok(NotEct), Ok(NotEct), Ok(NotEct), drop]),
            (Ect0, [Ok(Ect0), Ok(Ect0), Ok(Ect1), Ok(Ce)]),
            (Ect1, [Ok(Ect1), Ok(Ect1), Ok(Ect1), Ok(Ce)]),
            (Ce, [Ok(Ce), Ok(Ce), Ok(Ce), Ok(Ce)]),
        ];
        for (inner, row) in table {
            for (outer, want) in [NotEct, Ect0, Ect1, Ce].into_iter().zip(row) {
                assert_eq!(decap(inner, outer), want, "{inner:?} in {outer:?}");
            }
        }
    }

    #[test]
    fn entry_copies_the_inner_field() {
        for tos in 0..=255u8 {
            assert_eq!(encap(tos) as u8, tos & 3);
            assert_eq!(Ecn::of_tos(tos).in_tos(tos), tos);
        }
    }

    #[test]
    fn marking_keeps_dscp_and_the_ipv4_checksum() {
        for tos in [0xb8, 0xb9, 0xba, 0xbb] {
            for ecn in [NotEct, Ect1, Ect0, Ce] {
                let mut v4 = FrameBuilder::v4().tos(tos).udp(1, 2).payload(b"x").build();
                let mut v6 = FrameBuilder::v6()
                    .tos(tos)
                    .flow_label(0xfffff)
                    .udp(1, 2)
                    .build();
                for frame in [&mut v4, &mut v6] {
                    let inner = parse(frame).unwrap();
                    set(frame, &inner, ecn);
                    assert_eq!(parse(frame).unwrap().tos, 0xb8 | ecn as u8);
                }
                assert!(Ipv4::new(&v4[14..]).unwrap().checksum_ok());
            }
        }
    }

    #[test]
    fn short_and_foreign_bytes_are_left_alone() {
        let mut short = [0x45, 0, 0];
        set_v4(&mut short, Ce);
        set_v6(&mut short[..1], Ce);
        assert_eq!(short, [0x45, 0, 0]);
    }
}
