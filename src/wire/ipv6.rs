//! The IPv6 fixed header (RFC 8200 §3) and the multicast addresses neighbour discovery uses.
//!
//! ```text
//!   0   4            12                        31
//!  | 6 | traffic class | flow label             |
//!  | payload length    | next header | hop limit|
//!  | source (16)                                |
//!  | destination (16)                           |
//! ```

use std::net::Ipv6Addr;

use super::Mac;
use super::inner::{Inner, Kind, chunk};

/// Bytes of the fixed header.
pub const LEN: usize = 40;
/// The smallest MTU a link may have (RFC 8200 §5).
pub const MTU_MIN: usize = 1280;
/// How Linux tells that TCP over IPv6 is longer than the payload length field can say (BIG TCP). Such packets exist
/// between hosts' network stacks only, never on a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jumbo {
    /// By a payload length of zero and nothing else, as over IPv4 (Linux 7.0).
    Plain,
    /// By a payload length of zero and [`PADDING`] behind the fixed header. `ip6_rcv_core` takes the buffer's length
    /// for the packet's where a hop-by-hop header follows a length of zero. The header that Linux itself writes there
    /// holds the jumbo payload option (RFC 2675), and will not do: segmentation takes it away, and frames of a packet
    /// socket pass segmentation even where they stay whole (`SKB_GSO_DODGY`). Padding stays, and where the frame is
    /// cut after all, its segments are valid.
    Padded,
}

/// A hop-by-hop header that says nothing (RFC 8200 §4.2, PadN), TCP behind it.
pub const PADDING: [u8; 8] = [super::ipv4::PROTO_TCP, 0, 1, 4, 0, 0, 0, 0];
/// The option of a hop-by-hop header that holds a packet's length instead of the payload length field (RFC 2675 §2).
pub const JUMBO_OPTION: u8 = 0xc2;
/// The number of a hop-by-hop header.
pub const HOP_BY_HOP: u8 = 0;
/// The longest packet behind a fixed header that the payload length field can name.
pub const PAYLOAD_MAX: usize = 65_535;
/// All nodes on the link, `ff02::1`.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A view of the fixed header.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a>(&'a [u8; LEN]);

impl<'a> Ipv6<'a> {
    /// A view of the header at the start of `bytes`, if it is whole and of version 6.
    pub fn new(bytes: &'a [u8]) -> Option<Ipv6<'a>> {
        let header = bytes.first_chunk::<LEN>()?;
        (header[0] >> 4 == 6).then_some(Ipv6(header))
    }

    /// A view of the header of a parsed frame.
    pub fn of(frame: &'a [u8], inner: &Inner) -> Option<Ipv6<'a>> {
        if inner.kind != Kind::Ipv6 {
            return None;
        }
        Ipv6::new(frame.get(usize::from(inner.l3)..)?)
    }

    /// Traffic class: DSCP and ECN.
    pub fn traffic_class(&self) -> u8 {
        self.0[0] << 4 | self.0[1] >> 4
    }

    /// Flow label, 20 bits.
    pub fn flow_label(&self) -> u32 {
        u32::from_be_bytes([0, self.0[1] & 0x0f, self.0[2], self.0[3]])
    }

    /// Bytes after this header, as the field says.
    pub fn payload_len(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// What follows this header, an extension header perhaps.
    pub fn next_header(&self) -> u8 {
        self.0[6]
    }

    /// Hops left.
    pub fn hop_limit(&self) -> u8 {
        self.0[7]
    }

    /// Source address.
    pub fn src(&self) -> Ipv6Addr {
        addr(self.0, 8)
    }

    /// Destination address.
    pub fn dst(&self) -> Ipv6Addr {
        addr(self.0, 24)
    }
}

/// The solicited-node multicast address of `ip` (RFC 4291 §2.7.1).
pub fn solicited_node(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = ip.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

/// The Ethernet address of an IPv6 multicast group (RFC 2464 §7).
pub fn multicast_mac(ip: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = ip.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

fn addr(header: &[u8; LEN], at: usize) -> Ipv6Addr {
    chunk::<16>(header, at).map_or(Ipv6Addr::UNSPECIFIED, |a| Ipv6Addr::from(*a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameBuilder;
    use crate::wire::inner::parse;

    #[test]
    fn fields_are_read_from_their_places() {
        let frame = FrameBuilder::v6()
            .tos(0xb9)
            .flow_label(0xabcde)
            .udp(1, 2)
            .payload(b"hi")
            .build();
        let view = Ipv6::of(&frame, &parse(&frame).unwrap()).unwrap();
        assert_eq!(view.traffic_class(), 0xb9);
        assert_eq!(view.flow_label(), 0xabcde);
        assert_eq!(
            (view.payload_len(), view.next_header(), view.hop_limit()),
            (10, 17, 64)
        );
        assert_eq!(view.src(), "fd00::2".parse::<Ipv6Addr>().unwrap());
        assert_eq!(view.dst(), "fd00::3".parse::<Ipv6Addr>().unwrap());
        assert!(Ipv6::new(&frame[14..53]).is_none());
        assert!(Ipv6::new(&[0x45; 40]).is_none());
    }

    #[test]
    fn multicast_addresses_are_those_of_the_rfcs() {
        let ip = "2001:db8::1:02aa:bbcc".parse().unwrap();
        let group = solicited_node(ip);
        assert_eq!(group.to_string(), "ff02::1:ffaa:bbcc");
        assert_eq!(multicast_mac(group).to_string(), "33:33:ff:aa:bb:cc");
        assert_eq!(multicast_mac(ALL_NODES).to_string(), "33:33:00:00:00:01");
    }
}
