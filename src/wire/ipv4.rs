//! The IPv4 header (RFC 791), and fragmentation of an inner packet that allows it.
//!
//! ```text
//!   0       8       16              31
//!  | 4 |ihl| tos   | total length    |
//!  | id            |0 DF MF| offset  |
//!  | ttl   | proto | header checksum |
//!  | source                          |
//!  | destination                     |
//!  | options (ihl - 5 words)         |
//! ```

use std::net::Ipv4Addr;

use super::checksum::{finish, fold, sum};
use super::inner::{Inner, Kind};

/// Bytes of a header without options.
pub const LEN_MIN: usize = 20;
/// IP protocol number of ICMP for IPv4.
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// A view of a header, options included.
///
/// INVARIANT: the slice is exactly the header, 20 to 60 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a>(&'a [u8]);

impl<'a> Ipv4<'a> {
    /// A view of the header at the start of `bytes`, if version and header length allow it.
    pub fn new(bytes: &'a [u8]) -> Option<Ipv4<'a>> {
        let first = *bytes.first()?;
        let len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || len < LEN_MIN {
            return None;
        }
        bytes.get(..len).map(Ipv4)
    }

    /// A view of the header of a parsed frame.
    pub fn of(frame: &'a [u8], inner: &Inner) -> Option<Ipv4<'a>> {
        if inner.kind != Kind::Ipv4 {
            return None;
        }
        Ipv4::new(frame.get(usize::from(inner.l3)..)?)
    }

    /// Bytes of the header.
    pub fn header_len(&self) -> usize {
        self.0.len()
    }

    /// Bytes of header and payload, as the field says.
    pub fn total_len(&self) -> u16 {
        self.be16(2)
    }

    /// Identification, for reassembly.
    pub fn id(&self) -> u16 {
        self.be16(4)
    }

    /// Whether routers may not fragment it.
    pub fn dont_fragment(&self) -> bool {
        self.0[6] & 0x40 != 0
    }

    /// Whether fragments follow.
    pub fn more_fragments(&self) -> bool {
        self.0[6] & 0x20 != 0
    }

    /// Where its payload belongs in the datagram, in bytes.
    pub fn fragment_offset(&self) -> usize {
        usize::from(self.be16(6) & 0x1fff) * 8
    }

    /// Hops left.
    pub fn ttl(&self) -> u8 {
        self.0[8]
    }

    /// Protocol of the payload.
    pub fn proto(&self) -> u8 {
        self.0[9]
    }

    /// Source address.
    pub fn src(&self) -> Ipv4Addr {
        self.addr(12)
    }

    /// Destination address.
    pub fn dst(&self) -> Ipv4Addr {
        self.addr(16)
    }

    /// Options, padding included.
    pub fn options(&self) -> &'a [u8] {
        &self.0[LEN_MIN..]
    }

    /// Whether the header checksum is right.
    pub fn checksum_ok(&self) -> bool {
        fold(sum(self.0, 0)) == 0xffff
    }

    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    fn addr(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3])
    }
}

/// Computes and stores the checksum of `header`, which must be exactly one header.
///
/// # Panics
/// When `header` is shorter than 20 bytes.
pub fn fill_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let check = finish(sum(header, 0));
    header[10..12].copy_from_slice(&check.to_ne_bytes());
}

/// Why a packet cannot be cut into fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FragmentError {
    /// Not an IPv4 frame.
    #[error("not an IPv4 frame")]
    NotIpv4,
    /// The sender forbids it; "fragmentation needed" is the answer.
    #[error("the packet must not be fragmented")]
    DontFragment,
    /// No room for the header and eight bytes.
    #[error("MTU is too small for a fragment")]
    MtuTooSmall,
    /// The datagram would be longer than 65535 bytes.
    #[error("the datagram is longer than IPv4 can say")]
    TooLong,
}

/// Cuts the packet of an Ethernet frame into frames whose IP packets are at most `mtu` bytes
/// (RFC 791 §3.2). A packet that fits comes back as one frame; Ethernet padding is not kept.
///
/// Later fragments carry only the options with the copy bit. A fragment may be cut again: offsets
/// and the last piece's more-fragments flag carry on from it. Layer-4 checksums must be finished.
///
/// # Errors
/// [`FragmentError`]; nothing is made.
pub fn fragment(frame: &[u8], inner: &Inner, mtu: usize) -> Result<Vec<Vec<u8>>, FragmentError> {
    let packet = Packet::new(frame, inner)?;
    if packet.header.len() + packet.payload.len() <= mtu {
        return Ok(vec![frame[..inner.end].to_vec()]);
    }
    if packet.view.dont_fragment() {
        return Err(FragmentError::DontFragment);
    }
    let later = later_header(&packet.view);
    let mut out = Vec::with_capacity(packet.payload.len() / mtu.max(8) + 2);
    let mut at = 0;
    while at < packet.payload.len() || out.is_empty() {
        let header = if at == 0 { packet.header } else { &later };
        let room = mtu.saturating_sub(header.len()) & !7;
        if room == 0 {
            return Err(FragmentError::MtuTooSmall);
        }
        // The last piece need not be a multiple of eight.
        let left = packet.payload.len() - at;
        let fits = header.len() + left <= mtu;
        let len = if fits { left } else { room.min(left) };
        out.push(packet.piece(header, at, len));
        at += len;
    }
    Ok(out)
}

/// The parts of the packet being cut.
struct Packet<'a> {
    view: Ipv4<'a>,
    link: &'a [u8],
    header: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    fn new(frame: &'a [u8], inner: &Inner) -> Result<Packet<'a>, FragmentError> {
        let view = Ipv4::of(frame, inner).ok_or(FragmentError::NotIpv4)?;
        let l3 = usize::from(inner.l3);
        let packet = frame.get(l3..inner.end).ok_or(FragmentError::NotIpv4)?;
        let (header, payload) = packet
            .split_at_checked(view.header_len())
            .ok_or(FragmentError::NotIpv4)?;
        if view.fragment_offset() + packet.len() > 0xffff {
            return Err(FragmentError::TooLong);
        }
        Ok(Packet {
            view,
            link: &frame[..l3],
            header,
            payload,
        })
    }

    /// One fragment: `len` bytes of the payload from `at`, under `header`.
    fn piece(&self, header: &[u8], at: usize, len: usize) -> Vec<u8> {
        let last = at + len == self.payload.len();
        let more = u16::from(!last || self.view.more_fragments()) << 13;
        let offset = ((self.view.fragment_offset() + at) / 8) as u16;
        let total = (header.len() + len) as u16;
        let mut out = Vec::with_capacity(self.link.len() + usize::from(total));
        out.extend_from_slice(self.link);
        out.extend_from_slice(header);
        let made = &mut out[self.link.len()..];
        made[2..4].copy_from_slice(&total.to_be_bytes());
        made[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        fill_checksum(made);
        out.extend_from_slice(&self.payload[at..at + len]);
        out
    }
}

/// The header of the fragments after the first: options without the copy bit left out.
fn later_header(view: &Ipv4<'_>) -> Vec<u8> {
    let mut out = view.0[..LEN_MIN].to_vec();
    let mut rest = view.options();
    while let Some(&kind) = rest.first() {
        let len = match kind {
            OPTION_END => break,
            OPTION_NOP => 1,
            _ => usize::from(*rest.get(1).unwrap_or(&0)),
        };
        let Some((option, after)) = rest.split_at_checked(len).filter(|_| len > 0) else {
            break;
        };
        if kind & OPTION_COPY != 0 && len >= 2 {
            out.extend_from_slice(option);
        }
        rest = after;
    }
    out.resize(out.len().next_multiple_of(4), OPTION_END);
    out[0] = 0x40 | (out.len() / 4) as u8;
    out
}

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_COPY: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameBuilder;
    use crate::wire::inner::parse;
    use proptest::prelude::*;

    fn cut(frame: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, FragmentError> {
        fragment(frame, &parse(frame).unwrap(), mtu)
    }

    /// (offset, more, header length, payload) of each piece, which must be sound.
    fn pieces(frames: &[Vec<u8>], mtu: usize) -> Vec<(usize, bool, usize, Vec<u8>)> {
        let describe = |f: &Vec<u8>| {
            let inner = parse(f).unwrap();
            let view = Ipv4::of(f, &inner).unwrap();
            assert!(view.checksum_ok());
            assert!(inner.end - usize::from(inner.l3) <= mtu);
            assert_eq!(inner.end, f.len());
            let payload = f[usize::from(inner.l3) + view.header_len()..].to_vec();
            (
                view.fragment_offset(),
                view.more_fragments(),
                view.header_len(),
                payload,
            )
        };
        frames.iter().map(describe).collect()
    }

    #[test]
    fn a_full_packet_is_cut_on_eight_byte_boundaries() {
        let frame = FrameBuilder::v4()
            .id(77)
            .udp(1, 2)
            .payload_len(1400)
            .build();
        let frames = cut(&frame, 580).unwrap();
        let got = pieces(&frames, 580);
        let shape: Vec<_> = got.iter().map(|p| (p.0, p.1, p.3.len())).collect();
        assert_eq!(
            shape,
            [(0, true, 560), (560, true, 560), (1120, false, 288)]
        );
        assert!(frames.iter().all(|f| f[18..20] == [0, 77]));
    }

    #[test]
    fn a_packet_that_fits_is_one_frame_without_padding() {
        let frame = FrameBuilder::v4().udp(1, 2).payload(b"x").padded().build();
        assert_eq!(cut(&frame, 100).unwrap(), [frame[..14 + 29].to_vec()]);
    }

    #[test]
    fn dont_fragment_and_tiny_mtus_are_refused() {
        let frame = FrameBuilder::v4()
            .dont_fragment()
            .udp(1, 2)
            .payload_len(100)
            .build();
        assert_eq!(cut(&frame, 68), Err(FragmentError::DontFragment));
        let frame = FrameBuilder::v4().udp(1, 2).payload_len(100).build();
        assert_eq!(cut(&frame, 27), Err(FragmentError::MtuTooSmall));
        assert_eq!(cut(&frame, 28).unwrap().len(), 14);
        let frame = FrameBuilder::v6().udp(1, 2).payload_len(100).build();
        assert_eq!(cut(&frame, 68), Err(FragmentError::NotIpv4));
        let frame = FrameBuilder::v4()
            .fragment(65_000, true)
            .udp(1, 2)
            .payload_len(1000)
            .build();
        assert_eq!(cut(&frame, 576), Err(FragmentError::TooLong));
    }

    #[test]
    fn a_fragment_cut_again_keeps_its_place_and_its_more_flag() {
        let frame = FrameBuilder::v4()
            .fragment(1480, true)
            .raw(17)
            .payload_len(1000)
            .build();
        let got = pieces(&cut(&frame, 520).unwrap(), 520);
        let shape: Vec<_> = got.iter().map(|p| (p.0, p.1, p.3.len())).collect();
        assert_eq!(
            shape,
            [(1480, true, 496), (1976, true, 496), (2472, true, 8)]
        );
    }

    #[test]
    fn only_options_with_the_copy_bit_go_into_later_fragments() {
        let options = [7, 7, 4, 0, 0, 0, 0, 1, 0x94, 4, 0, 0]; // record route, nop, router alert
        let frame = FrameBuilder::v4()
            .ip_options(&options)
            .udp(1, 2)
            .payload_len(600)
            .build();
        let frames = cut(&frame, 300).unwrap();
        let lens: Vec<_> = pieces(&frames, 300).iter().map(|p| p.2).collect();
        assert_eq!(lens, [32, 24, 24]);
        assert_eq!(frames[1][34..38], [0x94, 4, 0, 0]);
    }

    #[test]
    fn an_option_of_length_zero_or_beyond_the_header_ends_the_copying() {
        for options in [[0x94, 0, 0, 0], [0x94, 9, 0, 0], [1, 1, 1, 0x94]] {
            let frame = FrameBuilder::v4()
                .ip_options(&options)
                .udp(1, 2)
                .payload_len(64)
                .build();
            let frames = cut(&frame, 64).unwrap();
            assert_eq!(pieces(&frames, 64)[1].2, 20);
        }
    }

    proptest! {
        #[test]
        fn fragments_put_together_are_the_payload(
            len in 0usize..5000, mtu in 28usize..2000, start in 0usize..4000, more in any::<bool>(),
        ) {
            let start = start & !7;
            let frame = FrameBuilder::v4().fragment(start, more).raw(200).payload_len(len).build();
            let got = pieces(&cut(&frame, mtu).unwrap(), mtu);
            let mut at = start;
            let mut whole = Vec::new();
            for (i, (offset, flag, _, payload)) in got.iter().enumerate() {
                let last = i + 1 == got.len();
                prop_assert_eq!(*offset, at);
                prop_assert_eq!(*flag, !last || more);
                prop_assert!(last || payload.len() % 8 == 0);
                at += payload.len();
                whole.extend_from_slice(payload);
            }
            prop_assert_eq!(&whole, &frame[34..]);
        }
    }
}
