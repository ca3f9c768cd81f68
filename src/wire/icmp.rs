//! "Too big" answers to inner frames that do not fit the tunnel, as whole frames: ICMPv4
//! "fragmentation needed" (RFC 792, RFC 1191) and ICMPv6 "packet too big" (RFC 4443 §3.2).
//!
//! Owns when such an answer is forbidden (RFC 1122 §3.2.2, RFC 4443 §2.4(e)) and how much is quoted.
//! Rate limiting and the choice of source address are the caller's.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Type, IpNumber, Ipv4Header};

use super::Mac;
use super::ethernet::reply_header;
use super::inner::{Inner, PROTO_ICMP, PROTO_ICMPV6};
use super::ipv4::{self, Ipv4};
use super::ipv6::{self, Ipv6};
use super::ndp::{REDIRECT, push_icmpv6};

/// Longest ICMPv4 error, IP header included: hosts need not take more (RFC 1812 §4.3.2.3).
pub const ERROR_V4_LEN_MAX: usize = 576;
/// Longest ICMPv6 error, IP header included: the minimum MTU (RFC 4443 §2.4(c)).
pub const ERROR_V6_LEN_MAX: usize = ipv6::MTU_MIN;

/// Type and code of the ICMP or ICMPv6 message in a parsed frame.
pub fn type_and_code(frame: &[u8], inner: &Inner) -> Option<(u8, u8)> {
    let icmp = inner.proto == PROTO_ICMP || inner.proto == PROTO_ICMPV6;
    if !icmp || inner.l4 == 0 {
        return None;
    }
    match frame.get(usize::from(inner.l4)..inner.end)? {
        [kind, code, ..] => Some((*kind, *code)),
        _ => None,
    }
}

/// The frame that tells the sender of `frame` that its packet needs fragmentation and forbids it
/// (type 3, code 4), with the MTU of the next hop. `from` and `mac` are whom it comes from.
///
/// Quotes the IP header and as much as fits 576 bytes. `None` where an error must not be sent:
/// about ICMP errors, later fragments, group or broadcast destinations, and to sources that name no
/// single host. Whether DF is set is not looked at.
pub fn fragmentation_needed(
    frame: &[u8],
    inner: &Inner,
    mtu: u16,
    from: Ipv4Addr,
    mac: Mac,
) -> Option<Vec<u8>> {
    let ip = Ipv4::of(frame, inner)?;
    let may = may_answer(inner)
        && ip.fragment_offset() == 0
        && is_host_v4(ip.src())
        && !ip.dst().is_multicast()
        && !ip.dst().is_broadcast()
        && !is_icmp_error(frame, inner, is_error_v4);
    if !may {
        return None;
    }
    let quote = quote(frame, inner, ERROR_V4_LEN_MAX - ipv4::LEN_MIN - ICMP_LEN)?;
    let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
        next_hop_mtu: mtu,
    });
    let icmp = Icmpv4Header::with_checksum(kind, quote).to_bytes();
    let header = error_header(from, ip.src(), icmp.len() + quote.len());
    let mut out = reply_header(frame, inner, mac, ERROR_V4_LEN_MAX);
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(&icmp);
    out.extend_from_slice(quote);
    Some(out)
}

/// The frame that tells the sender of `frame` the MTU its packet exceeded (type 2). `from` and `mac`
/// are whom it comes from. Hosts ignore MTUs under 1280 (RFC 8201 §4).
///
/// Quotes as much as fits 1280 bytes. `None` where an error must not be sent: about ICMPv6 errors and
/// redirects, later fragments, and to sources that name no single host. Multicast destinations are
/// answered, as path MTU discovery needs it (RFC 4443 §2.4(e.3)).
pub fn packet_too_big(
    frame: &[u8],
    inner: &Inner,
    mtu: u32,
    from: Ipv6Addr,
    mac: Mac,
) -> Option<Vec<u8>> {
    let ip = Ipv6::of(frame, inner)?;
    let later_fragment = inner.fragment && inner.l4 == 0;
    let may = inner.src.is_station()
        && !later_fragment
        && is_host_v6(ip.src())
        && !is_icmp_error(frame, inner, is_error_v6);
    if !may {
        return None;
    }
    let quote = quote(frame, inner, ERROR_V6_LEN_MAX - ipv6::LEN - ICMP_LEN)?;
    let mut out = reply_header(frame, inner, mac, ERROR_V6_LEN_MAX);
    let kind = Icmpv6Type::PacketTooBig { mtu };
    push_icmpv6(&mut out, kind, from, ip.src(), 64, quote)?;
    Some(out)
}

/// Error messages and redirects of ICMPv4: never answered with an error.
pub const fn is_error_v4(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// Error messages and redirects of ICMPv6: never answered with an error.
pub const fn is_error_v6(kind: u8) -> bool {
    kind < 128 || kind == REDIRECT
}

/// Sent by and to one station: RFC 1122 forbids errors about link-layer broadcasts.
fn may_answer(inner: &Inner) -> bool {
    inner.src.is_station() && !inner.dst.is_group()
}

/// Whether the frame is an ICMP error, or an ICMP message too short to tell.
fn is_icmp_error(frame: &[u8], inner: &Inner, is_error: fn(u8) -> bool) -> bool {
    let icmp = inner.proto == PROTO_ICMP || inner.proto == PROTO_ICMPV6;
    icmp && type_and_code(frame, inner).is_none_or(|(kind, _)| is_error(kind))
}

fn is_host_v4(ip: Ipv4Addr) -> bool {
    let class_e = ip.octets()[0] >= 240; // broadcast too
    let this_network = ip.octets()[0] == 0;
    !(class_e || this_network || ip.is_multicast() || ip.is_loopback())
}

fn is_host_v6(ip: Ipv6Addr) -> bool {
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback())
}

/// The packet from its IP header on, at most `len_max` bytes.
fn quote<'a>(frame: &'a [u8], inner: &Inner, len_max: usize) -> Option<&'a [u8]> {
    let packet = frame.get(usize::from(inner.l3)..inner.end)?;
    Some(&packet[..packet.len().min(len_max)])
}

fn error_header(src: Ipv4Addr, dst: Ipv4Addr, payload_len: usize) -> Ipv4Header {
    let mut header = Ipv4Header {
        dscp: etherparse::IpDscp::CS6, // RFC 1812 §4.3.2.5: precedence 6
        dont_fragment: true,           // so that id 0 is allowed, RFC 6864 §4.1
        total_len: (ipv4::LEN_MIN + payload_len) as u16,
        time_to_live: 64,
        protocol: IpNumber::ICMP,
        source: src.octets(),
        destination: dst.octets(),
        ..Ipv4Header::default()
    };
    header.header_checksum = header.calc_header_checksum();
    header
}

/// Bytes of the ICMP header before the quoted packet.
const ICMP_LEN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameBuilder;
    use crate::wire::inner::{parse, parse_super};
    use crate::wire::l4;

    const GATEWAY: Mac = Mac([2, 0x42, 10, 0, 1, 1]);
    const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);

    fn gateway_v6() -> Ipv6Addr {
        "fd00::1".parse().unwrap()
    }

    fn needed(frame: &[u8]) -> Option<Vec<u8>> {
        let inner = parse_super(frame).unwrap();
        fragmentation_needed(frame, &inner, 1450, GATEWAY_V4, GATEWAY)
    }

    fn too_big(frame: &[u8]) -> Option<Vec<u8>> {
        let inner = parse_super(frame).unwrap();
        packet_too_big(frame, &inner, 1430, gateway_v6(), GATEWAY)
    }

    #[test]
    fn fragmentation_needed_quotes_what_fits_576_bytes() {
        let frame = FrameBuilder::v4()
            .dont_fragment()
            .tcp(1, 2)
            .payload_len(1480)
            .build();
        let reply = needed(&frame).unwrap();
        let inner = parse(&reply).unwrap();
        assert_eq!((inner.dst.0, inner.src), ([2, 0x42, 10, 0, 1, 2], GATEWAY));
        assert_eq!((inner.end, inner.tos), (14 + 576, 0xc0));
        let ip = Ipv4::of(&reply, &inner).unwrap();
        assert!(ip.checksum_ok());
        assert_eq!(
            (ip.src(), ip.dst().to_string()),
            (GATEWAY_V4, "10.0.1.2".into())
        );
        assert_eq!(l4::verify(&reply, &inner), Some(true));
        assert_eq!(type_and_code(&reply, &inner), Some((3, 4)));
        assert_eq!(reply[38..42], [0, 0, 0x05, 0xaa]);
        assert_eq!(reply[42..], frame[14..14 + 548]);
    }

    #[test]
    fn packet_too_big_quotes_what_fits_1280_bytes() {
        let frame = FrameBuilder::v6()
            .vlan(5)
            .udp(1, 2)
            .payload_len(1440)
            .build();
        let reply = too_big(&frame).unwrap();
        let inner = parse(&reply).unwrap();
        assert_eq!((inner.vlan, inner.end), (Some(5), 18 + 1280));
        assert_eq!(l4::verify(&reply, &inner), Some(true));
        assert_eq!(type_and_code(&reply, &inner), Some((2, 0)));
        assert_eq!(reply[62..66], [0, 0, 0x05, 0x96]);
        assert_eq!(reply[66..], frame[18..18 + 1232]);
        let ip = Ipv6::of(&reply, &inner).unwrap();
        assert_eq!(
            (ip.src(), ip.dst()),
            (gateway_v6(), "fd00::2".parse().unwrap())
        );
    }

    #[test]
    fn super_frames_are_answered_like_any_other() {
        let frame = FrameBuilder::v4().tcp(1, 2).payload_len(180_000).build();
        assert_eq!(needed(&frame).unwrap().len(), 14 + 576);
        let frame = FrameBuilder::v6().tcp(1, 2).payload_len(180_000).build();
        assert_eq!(too_big(&frame).unwrap().len(), 14 + 1280);
    }

    #[test]
    fn padding_is_not_quoted() {
        let frame = FrameBuilder::v4().udp(1, 2).payload(b"x").padded().build();
        assert_eq!(needed(&frame).unwrap().len(), 14 + 28 + 29);
    }

    #[test]
    fn errors_are_never_sent_about_icmpv4_errors_fragments_or_groups() {
        let v4 = FrameBuilder::v4;
        let dst = Ipv4Addr::new(10, 0, 1, 3);
        for kind in [3, 4, 5, 11, 12] {
            assert_eq!(needed(&v4().icmp(kind, 0, 0).build()), None);
        }
        assert!(needed(&v4().icmp_echo(1, 1).build()).is_some());
        assert_eq!(needed(&v4().raw(PROTO_ICMP).build()), None);
        assert_eq!(needed(&v4().fragment(8, false).udp(1, 2).build()), None);
        assert!(needed(&v4().fragment(0, true).udp(1, 2).build()).is_some());
        assert_eq!(needed(&v4().dst(Mac::BROADCAST).udp(1, 2).build()), None);
        assert_eq!(needed(&v4().src(Mac([1; 6])).udp(1, 2).build()), None);
        for src in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            let frame = v4().ipv4(src.parse().unwrap(), dst).udp(1, 2).build();
            assert_eq!(needed(&frame), None, "{src}");
        }
        for to in ["224.0.0.1", "255.255.255.255"] {
            let frame = v4().ipv4(dst, to.parse().unwrap()).udp(1, 2).build();
            assert_eq!(needed(&frame), None, "{to}");
        }
        assert_eq!(needed(&FrameBuilder::v6().udp(1, 2).build()), None);
    }

    #[test]
    fn errors_are_never_sent_about_icmpv6_errors_fragments_or_to_groups() {
        let v6 = FrameBuilder::v6;
        let dst: Ipv6Addr = "fd00::3".parse().unwrap();
        for kind in [1, 2, 3, 4, 127, 137] {
            assert_eq!(too_big(&v6().icmp(kind, 0, 0).build()), None);
        }
        assert!(too_big(&v6().icmp_echo(1, 1).build()).is_some());
        assert_eq!(too_big(&v6().fragment(8, false).udp(1, 2).build()), None);
        for src in ["::", "::1", "ff02::1"] {
            let frame = v6().ipv6(src.parse().unwrap(), dst).udp(1, 2).build();
            assert_eq!(too_big(&frame), None, "{src}");
        }
        let group = v6()
            .dst(Mac([0x33, 0x33, 0, 0, 0, 1]))
            .ipv6(dst, ipv6::ALL_NODES);
        assert!(too_big(&group.udp(1, 2).build()).is_some());
        assert_eq!(too_big(&FrameBuilder::v4().udp(1, 2).build()), None);
    }
}
