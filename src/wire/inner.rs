//! The one parse of an inner Ethernet frame on the hot path: offsets, never copies, never panics.
//!
//! Owns what is checked before any other part of weft looks into a frame. Knows nothing of where the
//! frame came from; whether a VLAN tag or a fragment is welcome is the caller's policy.
//!
//! ```text
//!  0     6     12          14 (18, 22 with tags)   l3             l4            end      len
//!  | dst | src | [tags...] | ethertype | IPv4, IPv6, ARP | options | TCP, UDP... | padding |
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Mac;
pub use super::ethernet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN,
    LEN as ETHERNET_LEN,
};
pub use super::ipv4::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};
use super::ipv6::{HOP_BY_HOP, JUMBO_OPTION, PAYLOAD_MAX};

/// What the frame carries at layer 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Address resolution, RFC 826.
    Arp,
    /// IPv4, header checked.
    Ipv4,
    /// IPv6, extension headers walked.
    Ipv6,
    /// Anything else, unread; IEEE 802.3 length fields too.
    Other,
}

/// Where things are in an inner frame. Valid only together with the frame it was parsed from.
///
/// INVARIANT: `l3 <= end <= frame.len()`, and `l4 < end` when `l4` is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// Tag control information (priority, DEI, VLAN id) of the outermost tag.
    pub vlan: Option<u16>,
    /// EtherType after the tags.
    pub ethertype: u16,
    /// What `ethertype` says, as far as it is read.
    pub kind: Kind,
    /// Offset of the layer-3 header.
    pub l3: u16,
    /// Offset of the layer-4 header; 0 when there is none: not IP, no payload, or not the first fragment.
    pub l4: u16,
    /// Layer-4 protocol, after IPv6 extension headers; 0 when not IP.
    pub proto: u8,
    /// Part of a fragmented datagram: IPv4 MF or offset, or an IPv6 fragment header.
    pub fragment: bool,
    /// IPv4 options or any IPv6 extension header.
    pub has_options: bool,
    /// IPv4 TOS or IPv6 traffic class; 0 when not IP.
    pub tos: u8,
    /// End of the layer-3 packet: from here on the frame is Ethernet padding.
    pub end: usize,
}

impl Inner {
    /// Whether the frame has a complete-looking TCP or UDP header position and is no fragment.
    #[inline]
    pub fn has_ports(&self) -> bool {
        (self.proto == PROTO_TCP || self.proto == PROTO_UDP) && !self.fragment && self.l4 != 0
    }
}

/// Why a frame is no valid inner frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Shorter than its Ethernet, tag, ARP, IPv4 or IPv6 header.
    #[error("frame is shorter than its headers")]
    Short,
    /// The version nibble does not agree with the EtherType.
    #[error("IP version does not agree with the EtherType")]
    BadIpVersion,
    /// IPv4 header length under 20 bytes or over the total length.
    #[error("IPv4 header length is under 20 bytes or over the total length")]
    BadHeaderLength,
    /// IPv4 total length or IPv6 payload length says more than the frame holds.
    #[error("IP length is beyond the end of the frame")]
    LengthBeyondFrame,
    /// An IPv6 extension header is cut short, there are more than eight, or a first fragment ends
    /// before the upper layer starts (RFC 7112 §5: such packets hide what they carry).
    #[error("IPv6 extension headers are cut short, too many, or not all in the first fragment")]
    BadExtensionHeader,
    /// A jumbo payload option (RFC 2675) elsewhere than in a super-frame: no packet on a wire is so long, and its
    /// length would be anybody's guess.
    #[error("a jumbo payload option in a packet that has a length")]
    JumboOption,
    /// More than two VLAN tags.
    #[error("more than two VLAN tags")]
    NestedVlan,
}

/// Reads an inner frame as it goes on a wire: the IP length must be there and true.
///
/// # Errors
/// [`Malformed`] names the first check that failed.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Inner, Malformed> {
    walk::<false>(frame)
}

/// Reads a frame from a segmentation-offload source, which may be a super-frame: when the packet is
/// longer than 65535 bytes, an IP length of 0 means "to the end of the frame" (Linux BIG TCP,
/// `iph_set_totlen`; IPv6 with or without the jumbo payload option of RFC 2675).
///
/// # Errors
/// [`Malformed`] names the first check that failed.
#[inline]
pub fn parse_super(frame: &[u8]) -> Result<Inner, Malformed> {
    walk::<true>(frame)
}

#[inline(always)]
fn walk<const SUPER: bool>(frame: &[u8]) -> Result<Inner, Malformed> {
    let head = frame
        .first_chunk::<ETHERNET_LEN>()
        .ok_or(Malformed::Short)?;
    let mut link = Link {
        vlan: None,
        ethertype: u16::from_be_bytes([head[12], head[13]]),
        l3: ETHERNET_LEN,
    };
    if is_tag(link.ethertype) {
        link = tags(frame)?;
    }
    let net = match link.ethertype {
        ETHERTYPE_IPV4 => ipv4::<SUPER>(frame, link.l3)?,
        ETHERTYPE_IPV6 => ipv6::<SUPER>(frame, link.l3)?,
        ETHERTYPE_ARP => arp(frame, link.l3)?,
        _ => Net::unread(Kind::Other, frame.len()),
    };
    Ok(Inner {
        dst: Mac([head[0], head[1], head[2], head[3], head[4], head[5]]),
        src: Mac([head[6], head[7], head[8], head[9], head[10], head[11]]),
        vlan: link.vlan,
        ethertype: link.ethertype,
        kind: net.kind,
        l3: link.l3 as u16,
        l4: net.l4 as u16,
        proto: net.proto,
        fragment: net.fragment,
        has_options: net.has_options,
        tos: net.tos,
        end: net.end,
    })
}

/// What the tags say.
struct Link {
    vlan: Option<u16>,
    ethertype: u16,
    l3: usize,
}

/// What the layer-3 header says; fields as in [`Inner`].
struct Net {
    kind: Kind,
    l4: usize,
    proto: u8,
    fragment: bool,
    has_options: bool,
    tos: u8,
    end: usize,
}

impl Net {
    #[inline]
    fn unread(kind: Kind, end: usize) -> Net {
        Net {
            kind,
            l4: 0,
            proto: 0,
            fragment: false,
            has_options: false,
            tos: 0,
            end,
        }
    }
}

#[inline]
fn is_tag(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

#[cold]
fn tags(frame: &[u8]) -> Result<Link, Malformed> {
    let mut l3 = ETHERNET_LEN;
    let mut vlan = None;
    for _ in 0..2 {
        let tag = chunk::<4>(frame, l3).ok_or(Malformed::Short)?;
        vlan = vlan.or(Some(u16::from_be_bytes([tag[0], tag[1]])));
        let ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        l3 += 4;
        if !is_tag(ethertype) {
            return Ok(Link {
                vlan,
                ethertype,
                l3,
            });
        }
    }
    Err(Malformed::NestedVlan)
}

#[inline(always)]
fn ipv4<const SUPER: bool>(frame: &[u8], l3: usize) -> Result<Net, Malformed> {
    let head = chunk::<20>(frame, l3).ok_or(Malformed::Short)?;
    if head[0] >> 4 != 4 {
        return Err(Malformed::BadIpVersion);
    }
    let room = frame.len() - l3;
    let header_len = usize::from(head[0] & 0x0f) * 4;
    let mut total_len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if SUPER && total_len == 0 && room > 0xffff {
        total_len = room;
    }
    if header_len < 20 || header_len > total_len {
        return Err(Malformed::BadHeaderLength);
    }
    if total_len > room {
        return Err(Malformed::LengthBeyondFrame);
    }
    let fragmentation = u16::from_be_bytes([head[6], head[7]]) & 0x3fff;
    let starts_here = fragmentation & 0x1fff == 0 && header_len < total_len;
    Ok(Net {
        kind: Kind::Ipv4,
        l4: if starts_here { l3 + header_len } else { 0 },
        proto: head[9],
        fragment: fragmentation != 0,
        has_options: header_len > 20,
        tos: head[1],
        end: l3 + total_len,
    })
}

#[inline(always)]
fn ipv6<const SUPER: bool>(frame: &[u8], l3: usize) -> Result<Net, Malformed> {
    let head = chunk::<40>(frame, l3).ok_or(Malformed::Short)?;
    if head[0] >> 4 != 6 {
        return Err(Malformed::BadIpVersion);
    }
    let room = frame.len() - l3 - 40;
    let mut payload_len = usize::from(u16::from_be_bytes([head[4], head[5]]));
    let jumbo = SUPER && payload_len == 0 && room > PAYLOAD_MAX;
    if jumbo {
        payload_len = room;
    }
    if payload_len > room {
        return Err(Malformed::LengthBeyondFrame);
    }
    let start = l3 + 40;
    let end = start + payload_len;
    let (tos, proto) = (head[0] << 4 | head[1] >> 4, head[6]);
    if matches!(proto, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
        if !jumbo && proto == HOP_BY_HOP && has_jumbo_option(&frame[start..end]) {
            return Err(Malformed::JumboOption);
        }
        return extensions(&frame[..end], start, proto, tos);
    }
    let has_upper = payload_len > 0 && proto != NO_NEXT_HEADER;
    Ok(Net {
        kind: Kind::Ipv6,
        l4: if has_upper { start } else { 0 },
        proto,
        fragment: false,
        has_options: false,
        tos,
        end,
    })
}

/// Walks the IPv6 extension headers that may stand before the upper layer (RFC 8200 §4).
#[cold]
fn extensions(packet: &[u8], start: usize, proto: u8, tos: u8) -> Result<Net, Malformed> {
    let mut at = start;
    let mut net = Net {
        proto,
        tos,
        has_options: true,
        ..Net::unread(Kind::Ipv6, packet.len())
    };
    for _ in 0..EXTENSION_HEADERS_MAX {
        at += match net.proto {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let head = chunk::<8>(packet, at).ok_or(Malformed::BadExtensionHeader)?;
                net.proto = head[0];
                usize::from(head[1]) * 8 + 8
            }
            FRAGMENT => {
                let head = chunk::<8>(packet, at).ok_or(Malformed::BadExtensionHeader)?;
                net.proto = head[0];
                net.fragment = true;
                if u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0 {
                    return Ok(net);
                }
                8
            }
            NO_NEXT_HEADER => return Ok(net),
            _ if at < packet.len() => {
                net.l4 = at;
                return Ok(net);
            }
            _ if net.fragment => return Err(Malformed::BadExtensionHeader),
            _ => return Ok(net),
        };
        if at > packet.len() {
            return Err(Malformed::BadExtensionHeader);
        }
    }
    Err(Malformed::BadExtensionHeader)
}

/// Whether a hop-by-hop header holds a jumbo payload option. One that is cut short, or not the first header, is nobody's.
#[cold]
fn has_jumbo_option(header: &[u8]) -> bool {
    let len = header.get(1).map_or(0, |words| usize::from(*words) * 8 + 8);
    let mut options = header.get(2..len.min(header.len())).unwrap_or_default();
    while let [kind, rest @ ..] = options {
        options = match (*kind, rest) {
            (JUMBO_OPTION, _) => return true,
            (0, rest) => rest,
            (_, [len, rest @ ..]) => rest.get(usize::from(*len)..).unwrap_or_default(),
            (_, []) => return false,
        };
    }
    false
}

fn arp(frame: &[u8], l3: usize) -> Result<Net, Malformed> {
    let end = l3 + ARP_LEN;
    if end > frame.len() {
        return Err(Malformed::Short);
    }
    Ok(Net::unread(Kind::Arp, end))
}

/// The source address of an IP frame.
#[inline]
pub fn src_ip(frame: &[u8], inner: &Inner) -> Option<IpAddr> {
    ip_at(frame, inner, 12, 8)
}

/// The destination address of an IP frame.
#[inline]
pub fn dst_ip(frame: &[u8], inner: &Inner) -> Option<IpAddr> {
    ip_at(frame, inner, 16, 24)
}

/// Source and destination port of a TCP or UDP frame that is no fragment.
#[inline]
pub fn ports(frame: &[u8], inner: &Inner) -> Option<(u16, u16)> {
    if !inner.has_ports() {
        return None;
    }
    let p = chunk::<4>(frame.get(..inner.end)?, usize::from(inner.l4))?;
    Some((
        u16::from_be_bytes([p[0], p[1]]),
        u16::from_be_bytes([p[2], p[3]]),
    ))
}

#[inline]
fn ip_at(frame: &[u8], inner: &Inner, offset_v4: usize, offset_v6: usize) -> Option<IpAddr> {
    let l3 = usize::from(inner.l3);
    match inner.kind {
        Kind::Ipv4 => chunk::<4>(frame, l3 + offset_v4).map(|a| Ipv4Addr::from(*a).into()),
        Kind::Ipv6 => chunk::<16>(frame, l3 + offset_v6).map(|a| Ipv6Addr::from(*a).into()),
        Kind::Arp | Kind::Other => None,
    }
}

/// `N` bytes of `bytes` from `at`, if they are there.
#[inline]
pub(crate) fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>()
}

const ARP_LEN: usize = 28;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
const NO_NEXT_HEADER: u8 = 59;
/// More than any sane packet; a bound on the work one packet can ask for.
const EXTENSION_HEADERS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SRC: Mac = Mac([2, 0x42, 10, 0, 1, 2]);
    const DST: Mac = Mac([2, 0x42, 10, 0, 1, 3]);

    fn ethernet(ethertype: &[u16], l3: &[u8]) -> Vec<u8> {
        let mut out = [DST.0, SRC.0].concat();
        for (i, e) in ethertype.iter().enumerate() {
            out.extend(e.to_be_bytes());
            if i + 1 < ethertype.len() {
                out.extend([0x20, i as u8 + 1]);
            }
        }
        out.extend(l3);
        out
    }

    fn ip4(header_words: u8, total: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut h = vec![0x40 | header_words, 0xb9];
        h.extend(total.to_be_bytes());
        h.extend([0, 1]);
        h.extend(fragment.to_be_bytes());
        h.extend([64, PROTO_UDP, 0, 0, 10, 0, 1, 2, 10, 0, 1, 3]);
        h.resize(usize::from(header_words.max(5)) * 4, 1);
        h.extend(payload);
        h
    }

    fn ip6(next: u8, payload_len: u16, payload: &[u8]) -> Vec<u8> {
        let mut h = vec![0x6b, 0x90, 0, 0];
        h.extend(payload_len.to_be_bytes());
        h.extend([next, 64]);
        h.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        h.extend("fd00::3".parse::<Ipv6Addr>().unwrap().octets());
        h.extend(payload);
        h
    }

    #[test]
    fn udp_over_ipv4_with_padding_gives_offsets_and_true_end() {
        let mut frame = ethernet(
            &[ETHERTYPE_IPV4],
            &ip4(5, 30, 0x4000, &[0x30, 0x39, 0, 53, 0, 10, 0, 0, 1, 2]),
        );
        frame.resize(60, 0);
        let got = parse(&frame).unwrap();
        let want = Inner {
            dst: DST,
            src: SRC,
            vlan: None,
            ethertype: 0x0800,
            kind: Kind::Ipv4,
            l3: 14,
            l4: 34,
            proto: 17,
            fragment: false,
            has_options: false,
            tos: 0xb9,
            end: 44,
        };
        assert_eq!(got, want);
        assert_eq!(ports(&frame, &got), Some((12345, 53)));
        assert_eq!(src_ip(&frame, &got), Some("10.0.1.2".parse().unwrap()));
        assert_eq!(dst_ip(&frame, &got), Some("10.0.1.3".parse().unwrap()));
    }

    #[test]
    fn lying_ipv4_lengths_are_refused_by_name() {
        let check = |l3: &[u8], want| {
            assert_eq!(parse(&ethernet(&[ETHERTYPE_IPV4], l3)), Err(want));
        };
        check(&ip4(4, 28, 0, &[0; 8]), Malformed::BadHeaderLength);
        check(&ip4(6, 20, 0, &[0; 8]), Malformed::BadHeaderLength);
        check(&ip4(5, 0, 0, &[0; 8]), Malformed::BadHeaderLength);
        check(&ip4(5, 29, 0, &[0; 8]), Malformed::LengthBeyondFrame);
        check(&ip4(5, 28, 0, &[0; 8])[..19], Malformed::Short);
        check(&ip6(17, 8, &[0; 8]), Malformed::BadIpVersion);
    }

    #[test]
    fn a_jumbo_option_is_for_super_frames_alone() {
        let options: [&[u8]; 4] = [
            &[6, 0, 0xc2, 4, 0, 1, 0x11, 0x78],
            &[6, 1, 1, 2, 0, 0, 0xc2, 4, 0, 1, 0x11, 0x78, 1, 2, 0, 0],
            &[6, 1, 0, 0, 5, 2, 0, 0, 0xc2, 4, 0, 1, 0, 0, 0, 0],
            &[6, 0, 1, 3, 0, 0, 0, 0xc2],
        ];
        for options in options {
            let packet = |len: usize, field| {
                let payload = [options, &vec![0x50; len]].concat();
                ethernet(&[ETHERTYPE_IPV6], &ip6(HOP_BY_HOP, field, &payload))
            };
            let small = packet(40, 40 + options.len() as u16);
            assert_eq!(parse(&small), Err(Malformed::JumboOption));
            assert_eq!(parse_super(&small), Err(Malformed::JumboOption));
            let big = packet(70_000, 0);
            assert_eq!(parse_super(&big).unwrap().end, big.len());
            assert_eq!(parse(&big), Err(Malformed::BadExtensionHeader));
        }
        // In another header the number means nothing, nor does it in the data of another option.
        let data = ip6(
            HOP_BY_HOP,
            16,
            &[60, 0, 0x1e, 4, 0xc2, 4, 0, 0, 17, 0, 0xc2, 4, 0, 0, 0, 0],
        );
        assert!(parse(&ethernet(&[ETHERTYPE_IPV6], &data)).is_ok());
        let cut = ip6(HOP_BY_HOP, 9, &[17, 5, 0xc2, 4, 0, 0, 0, 0, 0]);
        let cut = parse(&ethernet(&[ETHERTYPE_IPV6], &cut));
        assert!(cut.is_err(), "{cut:?}");
    }

    #[test]
    fn ipv4_options_move_the_layer_four_offset() {
        let frame = ethernet(&[ETHERTYPE_IPV4], &ip4(7, 36, 0, &[0, 7, 0, 9, 0, 8, 0, 0]));
        let got = parse(&frame).unwrap();
        assert!(got.has_options);
        assert_eq!(got.l4, 14 + 28);
        assert_eq!(ports(&frame, &got), Some((7, 9)));
    }

    #[test]
    fn fragments_have_no_ports_and_later_ones_no_layer_four() {
        for (flags, l4) in [(0x2000, 34), (0x2001, 0), (0x00b9, 0)] {
            let frame = ethernet(&[ETHERTYPE_IPV4], &ip4(5, 28, flags, &[0; 8]));
            let got = parse(&frame).unwrap();
            assert!(got.fragment);
            assert_eq!(got.l4, l4);
            assert_eq!(ports(&frame, &got), None);
        }
    }

    #[test]
    fn two_vlan_tags_are_walked_and_a_third_is_refused() {
        let l3 = ip4(5, 28, 0, &[0; 8]);
        let one = parse(&ethernet(&[0x8100, 0x0800], &l3)).unwrap();
        assert_eq!((one.vlan, one.l3, one.l4), (Some(0x2001), 18, 38));
        let two = parse(&ethernet(&[0x88a8, 0x8100, 0x0800], &l3)).unwrap();
        assert_eq!((two.vlan, two.l3, two.l4), (Some(0x2001), 22, 42));
        let three = parse(&ethernet(&[0x88a8, 0x8100, 0x8100, 0x0800], &l3));
        assert_eq!(three, Err(Malformed::NestedVlan));
        assert_eq!(parse(&ethernet(&[0x8100], &[0, 1])), Err(Malformed::Short));
    }

    #[test]
    fn ipv6_extension_headers_are_walked_to_the_upper_layer() {
        let chain = [
            &[60, 0, 1, 4, 0, 0, 0, 0][..], // hop-by-hop
            &[43, 1, 1, 12, 0, 0, 0, 0],
            &[0; 8],                    // destination, 16 bytes
            &[17, 0, 0, 0, 0, 0, 0, 0], // routing
            &[0, 7, 0, 9, 0, 8, 0, 0],  // UDP
        ]
        .concat();
        let frame = ethernet(&[ETHERTYPE_IPV6], &ip6(0, 40, &chain));
        let got = parse(&frame).unwrap();
        assert_eq!(
            (got.kind, got.proto, got.l4),
            (Kind::Ipv6, 17, 14 + 40 + 32)
        );
        assert!(got.has_options && !got.fragment);
        assert_eq!(got.tos, 0xb9);
        assert_eq!(ports(&frame, &got), Some((7, 9)));
        assert_eq!(src_ip(&frame, &got), Some("fd00::2".parse().unwrap()));
    }

    #[test]
    fn ipv6_fragments_are_marked_and_later_ones_have_no_layer_four() {
        let first = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &[0; 8]].concat();
        let got = parse(&ethernet(&[ETHERTYPE_IPV6], &ip6(44, 16, &first))).unwrap();
        assert_eq!((got.fragment, got.proto, got.l4), (true, 17, 62));
        let later = [&[17, 0, 0x05, 0xa8, 0, 0, 0, 9][..], &[0; 8]].concat();
        let got = parse(&ethernet(&[ETHERTYPE_IPV6], &ip6(44, 16, &later))).unwrap();
        assert_eq!((got.fragment, got.proto, got.l4), (true, 17, 0));
    }

    #[test]
    fn broken_ipv6_is_refused_by_name() {
        let check = |l3: &[u8], want| {
            assert_eq!(parse(&ethernet(&[ETHERTYPE_IPV6], l3)), Err(want));
        };
        check(&ip6(17, 9, &[0; 8]), Malformed::LengthBeyondFrame);
        check(&ip6(17, 8, &[0; 8])[..39], Malformed::Short);
        check(&ip6(0, 4, &[17, 0, 0, 0]), Malformed::BadExtensionHeader);
        check(
            &ip6(0, 8, &[17, 1, 0, 0, 0, 0, 0, 0]),
            Malformed::BadExtensionHeader,
        );
        check(&ip6(0, 160, &[0; 160]), Malformed::BadExtensionHeader);
        check(&ip4(5, 20, 0, &[0; 20]), Malformed::BadIpVersion);
        let hiding = [58, 0, 0, 1, 0, 0, 0, 9];
        check(&ip6(44, 8, &hiding), Malformed::BadExtensionHeader);
    }

    #[test]
    fn no_next_header_and_empty_payloads_have_no_layer_four() {
        for (next, len) in [(59u8, 8usize), (59, 0), (6, 0)] {
            let l3 = ip6(next, len as u16, &vec![0; len]);
            let got = parse(&ethernet(&[ETHERTYPE_IPV6], &l3)).unwrap();
            assert_eq!((got.proto, got.l4), (next, 0));
        }
        let got = parse(&ethernet(&[ETHERTYPE_IPV4], &ip4(5, 20, 0, &[]))).unwrap();
        assert_eq!(got.l4, 0);
    }

    #[test]
    fn zero_lengths_mean_rest_of_frame_only_in_super_frames_over_64k() {
        let big = ethernet(&[ETHERTYPE_IPV4], &ip4(5, 0, 0x4000, &vec![0; 100_000]));
        assert_eq!(parse(&big), Err(Malformed::BadHeaderLength));
        assert_eq!(parse_super(&big).unwrap().end, big.len());
        let small = ethernet(&[ETHERTYPE_IPV4], &ip4(5, 0, 0x4000, &vec![0; 65_515]));
        assert_eq!(parse_super(&small), Err(Malformed::BadHeaderLength));

        let big = ethernet(&[ETHERTYPE_IPV6], &ip6(6, 0, &vec![0; 100_000]));
        assert_eq!(parse(&big).unwrap().end, 54);
        let got = parse_super(&big).unwrap();
        assert_eq!((got.end, got.l4), (big.len(), 54));
        let jumbo = [&[6, 0, 0xc2, 4, 0, 1, 0x86, 0xa0][..], &vec![0; 99_992]].concat();
        let big = ethernet(&[ETHERTYPE_IPV6], &ip6(0, 0, &jumbo));
        let got = parse_super(&big).unwrap();
        assert_eq!((got.end, got.l4, got.proto), (big.len(), 62, 6));
    }

    #[test]
    fn arp_and_unknown_ethertypes_are_passed_unread() {
        let got = parse(&ethernet(&[ETHERTYPE_ARP], &[0; 46])).unwrap();
        assert_eq!((got.kind, got.end, got.l4), (Kind::Arp, 42, 0));
        assert_eq!(
            parse(&ethernet(&[ETHERTYPE_ARP], &[0; 27])),
            Err(Malformed::Short)
        );
        let got = parse(&ethernet(&[0x88cc], &[])).unwrap();
        assert_eq!((got.kind, got.end, got.proto), (Kind::Other, 14, 0));
        assert_eq!(src_ip(&[], &got), None);
        assert_eq!(parse(&[0; 13]), Err(Malformed::Short));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn offsets_of_any_accepted_frame_are_inside_it(
            mut frame in proptest::collection::vec(any::<u8>(), 0..200),
            ethertype in proptest::sample::select(vec![0x0800u16, 0x86dd, 0x8100, 0x0806]),
            first in any::<bool>(),
        ) {
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                if first { frame[14] = if ethertype == 0x86dd { 0x60 } else { 0x45 }; }
            }
            if let Ok(i) = parse(&frame) {
                prop_assert!(usize::from(i.l3) <= i.end && i.end <= frame.len());
                prop_assert!(i.l4 == 0 || usize::from(i.l4) < i.end);
                prop_assert!(ports(&frame, &i).is_none() || i.has_ports());
                prop_assert_eq!(parse_super(&frame), Ok(i));
            }
        }
    }
}
