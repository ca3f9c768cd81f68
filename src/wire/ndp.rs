//! Neighbour discovery for IPv6 (RFC 4861): what suppression reads and answers.
//!
//! ```text
//!  0      1      2          4                  8        24
//!  | type | code | checksum | R S O / reserved | target | options: type, length/8, ...
//! ```
//! Messages are validated as RFC 4861 §7.1 asks: hop limit 255, code 0, right checksum, sound options;
//! and never fragmented (RFC 6980). Owns no table and no policy.

use std::fmt;
use std::net::Ipv6Addr;

use etherparse::icmpv6::NeighborAdvertisementHeader;
use etherparse::{Icmpv6Header, Icmpv6Type, IpNumber, Ipv6Header};

use super::Mac;
use super::ethernet::reply_header;
use super::inner::{Inner, PROTO_ICMPV6, chunk};
use super::ipv6::{self, ALL_NODES, Ipv6, multicast_mac};
use super::l4;

/// ICMPv6 type of a router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// ICMPv6 type of a router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6 type of a neighbour solicitation.
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// ICMPv6 type of a redirect.
pub const REDIRECT: u8 = 137;

/// "Who has `target`?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// Who asks; unspecified during duplicate address detection.
    pub source: Ipv6Addr,
    /// The address asked for.
    pub target: Ipv6Addr,
    /// The source link-layer address option.
    pub source_mac: Option<Mac>,
}

impl Solicitation {
    /// Whether it asks if anyone uses the target address, before taking it (RFC 4862 §5.4).
    pub fn is_dad(&self) -> bool {
        self.source.is_unspecified()
    }
}

/// "`target` is at `target_mac`."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Who says so.
    pub source: Ipv6Addr,
    /// The address spoken of.
    pub target: Ipv6Addr,
    /// The target link-layer address option.
    pub target_mac: Option<Mac>,
    /// R flag: the sender is a router.
    pub router: bool,
    /// S flag: an answer.
    pub solicited: bool,
    /// O flag: replaces what is cached.
    pub overrides: bool,
}

/// A valid neighbour message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Type 135.
    Solicitation(Solicitation),
    /// Type 136.
    Advertisement(Advertisement),
}

/// Why a frame is no valid neighbour message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NdpError {
    /// Not ICMPv6 type 135 or 136.
    #[error("not a neighbour solicitation or advertisement")]
    NotNeighbour,
    /// Fragmented: RFC 6980 §5 says to ignore it.
    #[error("fragmented neighbour message")]
    Fragmented,
    /// It crossed a router, so it is forged.
    #[error("hop limit is not 255")]
    BadHopLimit,
    /// Code is not zero.
    #[error("code is not 0")]
    BadCode,
    /// Checksum is wrong.
    #[error("ICMPv6 checksum is wrong")]
    BadChecksum,
    /// Under 24 bytes.
    #[error("neighbour message is shorter than 24 bytes")]
    Short,
    /// The source is a multicast address, which no host has.
    #[error("source is a multicast address")]
    MulticastSource,
    /// The target is a multicast address.
    #[error("target is a multicast address")]
    MulticastTarget,
    /// An option of length zero, or cut short.
    #[error("option is empty or cut short")]
    BadOption,
    /// Unspecified source with a source link-layer option or a destination that is no
    /// solicited-node group.
    #[error("duplicate address detection with a link-layer option or a wrong destination")]
    BadDad,
    /// Solicited flag on a message sent to a multicast address.
    #[error("solicited flag on a multicast advertisement")]
    SolicitedMulticast,
}

/// Reads the neighbour message of a parsed frame.
///
/// # Errors
/// [`NdpError`] names the first check that failed; RFC 4861 §7.1 says to discard silently.
pub fn parse(frame: &[u8], inner: &Inner) -> Result<Neighbour, NdpError> {
    if inner.proto != PROTO_ICMPV6 {
        return Err(NdpError::NotNeighbour);
    }
    let ip = Ipv6::of(frame, inner).ok_or(NdpError::NotNeighbour)?;
    if inner.fragment {
        return Err(NdpError::Fragmented);
    }
    let body = frame
        .get(usize::from(inner.l4)..inner.end)
        .filter(|_| inner.l4 != 0)
        .ok_or(NdpError::NotNeighbour)?;
    match body[0] {
        NEIGHBOUR_SOLICITATION => {
            let target = checked(frame, inner, &ip, body)?;
            solicitation(&ip, target, body)
        }
        NEIGHBOUR_ADVERTISEMENT => {
            let target = checked(frame, inner, &ip, body)?;
            advertisement(&ip, target, body)
        }
        _ => Err(NdpError::NotNeighbour),
    }
}

/// The checks both messages share; gives the target.
fn checked(frame: &[u8], inner: &Inner, ip: &Ipv6<'_>, body: &[u8]) -> Result<Ipv6Addr, NdpError> {
    if ip.hop_limit() != 255 {
        return Err(NdpError::BadHopLimit);
    }
    let target = chunk::<16>(body, 8).ok_or(NdpError::Short)?;
    if body[1] != 0 {
        return Err(NdpError::BadCode);
    }
    if l4::verify(frame, inner) != Some(true) {
        return Err(NdpError::BadChecksum);
    }
    if ip.src().is_multicast() {
        return Err(NdpError::MulticastSource);
    }
    let target = Ipv6Addr::from(*target);
    if target.is_multicast() {
        return Err(NdpError::MulticastTarget);
    }
    Ok(target)
}

fn solicitation(ip: &Ipv6<'_>, target: Ipv6Addr, body: &[u8]) -> Result<Neighbour, NdpError> {
    let source_mac = link_layer_option(&body[FIXED_LEN..], OPTION_SOURCE_MAC)?;
    let source = ip.src();
    if source.is_unspecified() {
        let [group @ .., _, _, _] = ip.dst().octets();
        if source_mac.is_some() || group != SOLICITED_NODE_PREFIX {
            return Err(NdpError::BadDad);
        }
    }
    Ok(Neighbour::Solicitation(Solicitation {
        source,
        target,
        source_mac,
    }))
}

fn advertisement(ip: &Ipv6<'_>, target: Ipv6Addr, body: &[u8]) -> Result<Neighbour, NdpError> {
    let target_mac = link_layer_option(&body[FIXED_LEN..], OPTION_TARGET_MAC)?;
    let flags = NeighborAdvertisementHeader::from_bytes([body[4], 0, 0, 0]);
    if flags.solicited && ip.dst().is_multicast() {
        return Err(NdpError::SolicitedMulticast);
    }
    Ok(Neighbour::Advertisement(Advertisement {
        source: ip.src(),
        target,
        target_mac,
        router: flags.router,
        solicited: flags.solicited,
        overrides: flags.r#override,
    }))
}

/// The Ethernet address in the first option of type `wanted`; all options must be sound.
fn link_layer_option(mut options: &[u8], wanted: u8) -> Result<Option<Mac>, NdpError> {
    let mut found = None;
    while let Some(&kind) = options.first() {
        let len = usize::from(*options.get(1).unwrap_or(&0)) * 8;
        if len == 0 {
            return Err(NdpError::BadOption);
        }
        let (option, rest) = options.split_at_checked(len).ok_or(NdpError::BadOption)?;
        if kind == wanted && len == 8 && found.is_none() {
            found = chunk::<6>(option, 2).map(|m| Mac(*m));
        }
        options = rest;
    }
    Ok(found)
}

/// The frame that answers the neighbour solicitation in `frame`: the target is at `mac`.
///
/// To the asker, or to all nodes when it was duplicate address detection; solicited flag unless
/// that; override flag set, as the answer comes from the owner's own record (RFC 4861 §7.2.4).
/// `None` when `frame` is no valid solicitation, or its sender is no station.
pub fn advertise(frame: &[u8], inner: &Inner, mac: Mac, router: bool) -> Option<Vec<u8>> {
    let Neighbour::Solicitation(asked) = parse(frame, inner).ok()? else {
        return None;
    };
    if !inner.src.is_station() {
        return None;
    }
    let dad = asked.is_dad();
    let dst = if dad { ALL_NODES } else { asked.source };
    let kind = Icmpv6Type::NeighborAdvertisement(NeighborAdvertisementHeader {
        router,
        solicited: !dad,
        r#override: true,
    });
    let body = advertisement_body(asked.target, mac);
    let mut out = reply_header(frame, inner, mac, ipv6::LEN + 8 + body.len());
    if dad {
        out[..6].copy_from_slice(&multicast_mac(ALL_NODES).0);
    } else if let Some(link) = asked.source_mac.filter(|m| m.is_station()) {
        out[..6].copy_from_slice(&link.0);
    }
    push_icmpv6(&mut out, kind, asked.target, dst, 255, &body)?;
    Some(out)
}

/// Target and target link-layer address option.
fn advertisement_body(target: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let mut body = target.octets().to_vec();
    body.extend([OPTION_TARGET_MAC, 1]);
    body.extend(mac.0);
    body
}

/// Appends an IPv6 packet with an ICMPv6 message; `None` if the message is over 65535 bytes.
pub(super) fn push_icmpv6(
    out: &mut Vec<u8>,
    kind: Icmpv6Type,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    body: &[u8],
) -> Option<()> {
    let (src, dst) = (src.octets(), dst.octets());
    let icmp = Icmpv6Header::with_checksum(kind, src, dst, body).ok()?;
    let ip = Ipv6Header {
        payload_length: u16::try_from(icmp.header_len() + body.len()).ok()?,
        next_header: IpNumber::IPV6_ICMP,
        hop_limit,
        source: src,
        destination: dst,
        ..Ipv6Header::default()
    };
    out.extend_from_slice(&ip.to_bytes());
    out.extend_from_slice(&icmp.to_bytes());
    out.extend_from_slice(body);
    Some(())
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Neighbour::Solicitation(s) => write!(f, "ND who has {} tell {}", s.target, s.source),
            Neighbour::Advertisement(a) => match a.target_mac {
                Some(mac) => write!(f, "ND {} is at {mac}", a.target),
                None => write!(f, "ND {} is at its sender", a.target),
            },
        }
    }
}

const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;
/// Bytes before the options of either message.
const FIXED_LEN: usize = 24;
/// `ff02:0:0:0:0:1:ff00::/104`.
const SOLICITED_NODE_PREFIX: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameBuilder;
    use crate::wire::inner::parse as parse_frame;
    use crate::wire::ipv6::solicited_node;

    const ASKER: Mac = Mac([2, 0x42, 10, 0, 1, 2]);
    const OWNER: Mac = Mac([2, 0x42, 10, 0, 1, 3]);

    fn asked() -> Ipv6Addr {
        "fd00::3".parse().unwrap()
    }

    fn ask(source: &str, options: &[u8]) -> FrameBuilder {
        let group = solicited_node(asked());
        let body = [&asked().octets()[..], options].concat();
        FrameBuilder::new(ASKER, multicast_mac(group))
            .ipv6(source.parse().unwrap(), group)
            .ttl(255)
            .icmp(NEIGHBOUR_SOLICITATION, 0, 0)
            .payload(&body)
    }

    fn read(frame: &[u8]) -> Result<Neighbour, NdpError> {
        parse(frame, &parse_frame(frame).unwrap())
    }

    fn answer(frame: &[u8]) -> Option<Vec<u8>> {
        advertise(frame, &parse_frame(frame).unwrap(), OWNER, false)
    }

    #[test]
    fn a_solicitation_is_answered_to_its_source() {
        let frame = ask("fd00::2", &[1, 1, 2, 0x42, 10, 0, 1, 2]).build();
        let got = read(&frame).unwrap();
        let want = Solicitation {
            source: "fd00::2".parse().unwrap(),
            target: asked(),
            source_mac: Some(ASKER),
        };
        assert_eq!(got, Neighbour::Solicitation(want));
        assert_eq!(got.to_string(), "ND who has fd00::3 tell fd00::2");
        let reply = answer(&frame).unwrap();
        assert_eq!((&reply[..6], &reply[6..12]), (&ASKER.0[..], &OWNER.0[..]));
        let inner = parse_frame(&reply).unwrap();
        let ip = Ipv6::of(&reply, &inner).unwrap();
        assert_eq!((ip.src(), ip.dst()), (asked(), "fd00::2".parse().unwrap()));
        let want = Advertisement {
            source: asked(),
            target: asked(),
            target_mac: Some(OWNER),
            router: false,
            solicited: true,
            overrides: true,
        };
        assert_eq!(read(&reply), Ok(Neighbour::Advertisement(want)));
    }

    #[test]
    fn duplicate_address_detection_is_answered_to_all_nodes() {
        let frame = ask("::", &[]).build();
        let reply = answer(&frame).unwrap();
        assert_eq!(reply[..6], [0x33, 0x33, 0, 0, 0, 1]);
        let ip = Ipv6::new(&reply[14..]).unwrap();
        assert_eq!(ip.dst(), ALL_NODES);
        let Ok(Neighbour::Advertisement(said)) = read(&reply) else {
            panic!("no advertisement");
        };
        assert!(!said.solicited && said.overrides);
    }

    #[test]
    fn the_nonce_option_of_enhanced_dad_is_stepped_over() {
        let frame = ask("::", &[14, 1, 1, 2, 3, 4, 5, 6]).build();
        assert!(read(&frame).is_ok());
    }

    #[test]
    fn invalid_messages_are_refused_by_name() {
        let check = |frame: Vec<u8>, want| {
            assert_eq!(read(&frame), Err(want));
            assert_eq!(answer(&frame), None);
        };
        let option = [1, 1, 2, 0x42, 10, 0, 1, 2];
        check(
            ask("fd00::2", &option).ttl(64).build(),
            NdpError::BadHopLimit,
        );
        check(ask("::", &option).build(), NdpError::BadDad);
        check(
            ask("fd00::2", &[1, 0, 0, 0, 0, 0, 0, 0]).build(),
            NdpError::BadOption,
        );
        check(
            ask("fd00::2", &[1, 2, 0, 0, 0, 0, 0, 0]).build(),
            NdpError::BadOption,
        );
        check(ask("fd00::2", &[1]).build(), NdpError::BadOption);
        check(
            ask("fd00::2", &[]).no_checksum().build(),
            NdpError::BadChecksum,
        );
        check(
            ask("fd00::2", &[]).icmp(135, 1, 0).build(),
            NdpError::BadCode,
        );
        check(
            ask("fd00::2", &[]).payload(&[0; 15]).build(),
            NdpError::Short,
        );
        check(
            ask("fd00::2", &[]).payload(&[0xff; 16]).build(),
            NdpError::MulticastTarget,
        );
        check(
            ask("fd00::2", &[]).fragment(0, false).build(),
            NdpError::Fragmented,
        );
        check(
            ask("fd00::2", &[]).icmp(128, 0, 0).build(),
            NdpError::NotNeighbour,
        );
        check(
            FrameBuilder::v4().icmp(135, 0, 0).build(),
            NdpError::NotNeighbour,
        );
        check(ask("ff02::2", &[]).build(), NdpError::MulticastSource);
        let wrong_group = ask("::", &[]).ipv6(Ipv6Addr::UNSPECIFIED, ALL_NODES);
        check(wrong_group.build(), NdpError::BadDad);
        let flags = ask("fd00::2", &[]).icmp(136, 0, 0x4000_0000);
        check(flags.build(), NdpError::SolicitedMulticast);
    }
}
