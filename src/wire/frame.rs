//! A builder of whole inner frames with right lengths and checksums, for tests, tools and benches.
//!
//! ```
//! use weft::wire::frame::FrameBuilder;
//! let syn = FrameBuilder::v4().tcp(40000, 80).flags(weft::wire::tcp::SYN).build();
//! assert_eq!(syn.len(), 14 + 20 + 20);
//! ```
//! Packets over 65535 bytes get IP length zero, as Linux writes BIG TCP super-frames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::fold;
use super::ethernet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, FRAME_LEN_MIN,
};
use super::inner::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, parse_super};
use super::{Mac, ipv4, l4, tcp, udp};

/// A frame being described. Every method has a default, so a test names only what matters to it.
#[derive(Clone, Debug)]
pub struct FrameBuilder {
    dst: Mac,
    src: Mac,
    tags: Vec<u16>,
    ip: Ip,
    l4: L4,
    payload: Vec<u8>,
    checksum: Checksum,
    padded: bool,
}

#[derive(Clone, Debug)]
struct Ip {
    addresses: Option<(IpAddr, IpAddr)>,
    ethertype: u16,
    tos: u8,
    ttl: u8,
    id: u16,
    flow_label: u32,
    /// The IPv4 flags and offset word.
    fragmentation: u16,
    options: Vec<u8>,
    /// IPv6 extension headers: (own number, bytes with the first left for the next number).
    extensions: Vec<(u8, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum L4 {
    Raw(u8),
    Udp(u16, u16),
    Tcp(TcpFields),
    Icmp { kind: u8, code: u8, rest: u32 },
    Echo { id: u16, seq: u16 },
}

#[derive(Clone, Debug)]
struct TcpFields {
    src_port: u16,
    dst_port: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Checksum {
    Full,
    Partial,
    None,
}

impl FrameBuilder {
    /// A frame between two stations; add a network layer or an [`ethertype`](Self::ethertype).
    pub fn new(src: Mac, dst: Mac) -> FrameBuilder {
        let ip = Ip {
            addresses: None,
            ethertype: 0x88b5, // IEEE 802 local experimental
            tos: 0,
            ttl: 64,
            id: 0,
            flow_label: 0,
            fragmentation: 0,
            options: Vec::new(),
            extensions: Vec::new(),
        };
        FrameBuilder {
            dst,
            src,
            tags: Vec::new(),
            ip,
            l4: L4::Raw(253), // RFC 3692: for experiments
            payload: Vec::new(),
            checksum: Checksum::Full,
            padded: false,
        }
    }

    /// IPv4 from 10.0.1.2 to 10.0.1.3, with Docker's MACs for them.
    pub fn v4() -> FrameBuilder {
        let (a, b) = (Ipv4Addr::new(10, 0, 1, 2), Ipv4Addr::new(10, 0, 1, 3));
        FrameBuilder::new(Mac::from_ipv4(a), Mac::from_ipv4(b)).ipv4(a, b)
    }

    /// IPv6 from fd00::2 to fd00::3, with the MACs of [`FrameBuilder::v4`].
    pub fn v6() -> FrameBuilder {
        let addr = |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
        let v4 = FrameBuilder::v4();
        FrameBuilder::new(v4.src, v4.dst).ipv6(addr(2), addr(3))
    }

    /// Sets the source MAC.
    pub fn src(mut self, mac: Mac) -> Self {
        self.src = mac;
        self
    }

    /// Sets the destination MAC.
    pub fn dst(mut self, mac: Mac) -> Self {
        self.dst = mac;
        self
    }

    /// Adds a tag inside those already there; with more than one, all but the last are 802.1ad.
    pub fn vlan(mut self, tci: u16) -> Self {
        self.tags.push(tci);
        self
    }

    /// Makes it a frame of another protocol: the payload follows the Ethernet header.
    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.ip.ethertype = ethertype;
        self.ip.addresses = None;
        self
    }

    /// IPv4 between two addresses.
    pub fn ipv4(mut self, src: Ipv4Addr, dst: Ipv4Addr) -> Self {
        self.ip.addresses = Some((src.into(), dst.into()));
        self
    }

    /// IPv6 between two addresses.
    pub fn ipv6(mut self, src: Ipv6Addr, dst: Ipv6Addr) -> Self {
        self.ip.addresses = Some((src.into(), dst.into()));
        self
    }

    /// IPv4 TOS or IPv6 traffic class.
    pub fn tos(mut self, tos: u8) -> Self {
        self.ip.tos = tos;
        self
    }

    /// TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ip.ttl = ttl;
        self
    }

    /// IPv4 identification.
    pub fn id(mut self, id: u16) -> Self {
        self.ip.id = id;
        self
    }

    /// IPv6 flow label.
    pub fn flow_label(mut self, label: u32) -> Self {
        self.ip.flow_label = label & 0xf_ffff;
        self
    }

    /// Sets the IPv4 DF flag.
    pub fn dont_fragment(mut self) -> Self {
        self.ip.fragmentation |= 0x4000;
        self
    }

    /// Makes it a fragment at `offset` bytes (a multiple of 8); IPv6 gets a fragment header. No
    /// layer-4 checksum is filled in then.
    pub fn fragment(mut self, offset: usize, more: bool) -> Self {
        self.ip.fragmentation = (offset / 8) as u16 | u16::from(more) << 13;
        if let Some((IpAddr::V6(_), _)) = self.ip.addresses {
            let [hi, lo] = ((offset & !7) as u16 | u16::from(more)).to_be_bytes();
            return self.extension(44, &[0, hi, lo, 0, 0, 0, 9]);
        }
        self
    }

    /// IPv4 options; padded to whole words with zeros.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip.options = options.to_vec();
        self.ip.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// Adds an IPv6 extension header numbered `number`; `rest` is all of it after the next-header byte.
    pub fn extension(mut self, number: u8, rest: &[u8]) -> Self {
        self.ip.extensions.push((number, rest.to_vec()));
        self
    }

    /// Another upper protocol: the payload follows the IP header.
    pub fn raw(mut self, proto: u8) -> Self {
        self.l4 = L4::Raw(proto);
        self
    }

    /// UDP between two ports.
    pub fn udp(mut self, src_port: u16, dst_port: u16) -> Self {
        self.l4 = L4::Udp(src_port, dst_port);
        self
    }

    /// TCP between two ports: ACK, sequence and acknowledgement 1, window 501.
    pub fn tcp(mut self, src_port: u16, dst_port: u16) -> Self {
        self.l4 = L4::Tcp(TcpFields {
            src_port,
            dst_port,
            seq: 1,
            ack: 1,
            flags: tcp::ACK,
            window: 501,
            options: Vec::new(),
        });
        self
    }

    /// TCP sequence number.
    pub fn seq(self, seq: u32) -> Self {
        self.with_tcp(|t| t.seq = seq)
    }

    /// TCP acknowledgement number.
    pub fn ack(self, ack: u32) -> Self {
        self.with_tcp(|t| t.ack = ack)
    }

    /// All eight TCP flags.
    pub fn flags(self, flags: u8) -> Self {
        self.with_tcp(|t| t.flags = flags)
    }

    /// TCP window.
    pub fn window(self, window: u16) -> Self {
        self.with_tcp(|t| t.window = window)
    }

    /// TCP options; padded to whole words with end-of-options.
    pub fn tcp_options(self, options: &[u8]) -> Self {
        let mut options = options.to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        self.with_tcp(|t| t.options = options)
    }

    /// ICMP or ICMPv6 of any kind; `rest` is the second word of the header.
    pub fn icmp(mut self, kind: u8, code: u8, rest: u32) -> Self {
        self.l4 = L4::Icmp { kind, code, rest };
        self
    }

    /// An echo request of the right family.
    pub fn icmp_echo(mut self, id: u16, seq: u16) -> Self {
        self.l4 = L4::Echo { id, seq };
        self
    }

    /// What follows the headers.
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// `len` bytes that differ from their neighbours, so that a shift shows.
    pub fn payload_len(mut self, len: usize) -> Self {
        self.payload = (0..len).map(|i| (i % 251) as u8).collect();
        self
    }

    /// Leaves in the TCP or UDP checksum field what a sender with checksum offload does: the folded
    /// pseudo-header sum (vnet `NEEDS_CSUM`).
    pub fn partial_checksum(mut self) -> Self {
        self.checksum = Checksum::Partial;
        self
    }

    /// Leaves the layer-4 checksum field zero.
    pub fn no_checksum(mut self) -> Self {
        self.checksum = Checksum::None;
        self
    }

    /// Pads the frame to Ethernet's 60 bytes.
    pub fn padded(mut self) -> Self {
        self.padded = true;
        self
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let mut out = [self.dst.0, self.src.0].concat();
        self.push_tags(&mut out);
        out.extend(self.ethertype_value().to_be_bytes());
        match self.ip.addresses {
            Some((IpAddr::V4(src), IpAddr::V4(dst))) => self.push_ipv4(&mut out, src, dst),
            Some((IpAddr::V6(src), IpAddr::V6(dst))) => self.push_ipv6(&mut out, src, dst),
            _ => out.extend_from_slice(&self.payload),
        }
        self.fill_l4(&mut out);
        if self.padded && out.len() < FRAME_LEN_MIN {
            out.resize(FRAME_LEN_MIN, 0);
        }
        out
    }

    fn with_tcp(mut self, set: impl FnOnce(&mut TcpFields)) -> Self {
        if let L4::Tcp(fields) = &mut self.l4 {
            set(fields);
        }
        self
    }

    fn is_v6(&self) -> bool {
        matches!(self.ip.addresses, Some((IpAddr::V6(_), _)))
    }

    fn ethertype_value(&self) -> u16 {
        match self.ip.addresses {
            Some((IpAddr::V4(_), _)) => ETHERTYPE_IPV4,
            Some((IpAddr::V6(_), _)) => ETHERTYPE_IPV6,
            None => self.ip.ethertype,
        }
    }

    fn push_tags(&self, out: &mut Vec<u8>) {
        for (i, tci) in self.tags.iter().enumerate() {
            let last = i + 1 == self.tags.len();
            let tag = if last { ETHERTYPE_VLAN } else { ETHERTYPE_QINQ };
            out.extend(tag.to_be_bytes());
            out.extend(tci.to_be_bytes());
        }
    }

    fn proto(&self) -> u8 {
        match self.l4 {
            L4::Raw(proto) => proto,
            L4::Udp(..) => PROTO_UDP,
            L4::Tcp(_) => PROTO_TCP,
            L4::Icmp { .. } | L4::Echo { .. } if self.is_v6() => PROTO_ICMPV6,
            L4::Icmp { .. } | L4::Echo { .. } => PROTO_ICMP,
        }
    }

    fn push_ipv4(&self, out: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr) {
        let upper = self.upper();
        let header_len = ipv4::LEN_MIN + self.ip.options.len();
        let at = out.len();
        out.extend([0x40 | (header_len / 4) as u8, self.ip.tos]);
        out.extend(length_field(header_len + upper.len()).to_be_bytes());
        out.extend(self.ip.id.to_be_bytes());
        out.extend(self.ip.fragmentation.to_be_bytes());
        out.extend([self.ip.ttl, self.proto(), 0, 0]);
        out.extend(src.octets());
        out.extend(dst.octets());
        out.extend_from_slice(&self.ip.options);
        ipv4::fill_checksum(&mut out[at..]);
        out.extend(upper);
    }

    fn push_ipv6(&self, out: &mut Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr) {
        let upper = self.upper();
        let numbers = self.ip.extensions.iter().map(|e| e.0);
        let mut numbers = numbers.chain([self.proto()]);
        let extensions_len: usize = self.ip.extensions.iter().map(|e| e.1.len() + 1).sum();
        let word = 6 << 28 | u32::from(self.ip.tos) << 20 | self.ip.flow_label;
        out.extend(word.to_be_bytes());
        out.extend(length_field(extensions_len + upper.len()).to_be_bytes());
        out.extend([numbers.next().unwrap_or_default(), self.ip.ttl]);
        out.extend(src.octets());
        out.extend(dst.octets());
        for (next, (_, rest)) in numbers.zip(&self.ip.extensions) {
            out.push(next);
            out.extend_from_slice(rest);
        }
        out.extend(upper);
    }

    /// Layer-4 header with checksum zero, and payload.
    fn upper(&self) -> Vec<u8> {
        let mut out = match &self.l4 {
            L4::Raw(_) => Vec::new(),
            L4::Udp(src, dst) => {
                let len = length_field(udp::LEN + self.payload.len());
                udp::header(*src, *dst, len, 0).to_vec()
            }
            L4::Tcp(fields) => fields.header(),
            L4::Icmp { kind, code, rest } => icmp_header(*kind, *code, *rest),
            L4::Echo { id, seq } => {
                let kind = if self.is_v6() { 128 } else { 8 };
                icmp_header(kind, 0, u32::from(*id) << 16 | u32::from(*seq))
            }
        };
        out.extend_from_slice(&self.payload);
        out
    }

    fn fill_l4(&self, frame: &mut [u8]) {
        let Ok(inner) = parse_super(frame) else {
            return; // built to be refused
        };
        match self.checksum {
            Checksum::Full => {
                l4::fill(frame, &inner);
            }
            Checksum::Partial if inner.has_ports() => {
                let offset = l4::checksum_offset(inner.proto).unwrap_or_default();
                let at = usize::from(inner.l4) + offset;
                let pseudo = fold(l4::pseudo(frame, &inner));
                frame[at..at + 2].copy_from_slice(&pseudo.to_ne_bytes());
            }
            Checksum::Partial | Checksum::None => {}
        }
    }
}

impl TcpFields {
    fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(tcp::LEN_MIN + self.options.len());
        out.extend(self.src_port.to_be_bytes());
        out.extend(self.dst_port.to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ack.to_be_bytes());
        let words = (tcp::LEN_MIN + self.options.len()) / 4;
        out.extend([(words << 4) as u8, self.flags]);
        out.extend(self.window.to_be_bytes());
        out.extend([0; 4]);
        out.extend_from_slice(&self.options);
        out
    }
}

fn icmp_header(kind: u8, code: u8, rest: u32) -> Vec<u8> {
    let mut out = vec![kind, code, 0, 0];
    out.extend(rest.to_be_bytes());
    out
}

/// A 16-bit length, zero for packets it cannot hold.
fn length_field(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::inner::parse;

    #[test]
    fn super_frames_have_length_zero_and_parse_as_such() {
        for builder in [FrameBuilder::v4(), FrameBuilder::v6()] {
            let frame = builder
                .tcp(1, 2)
                .payload_len(184_000)
                .partial_checksum()
                .build();
            let inner = parse_super(&frame).unwrap();
            assert_eq!(inner.end, frame.len());
            assert_eq!(inner.proto, PROTO_TCP);
        }
    }

    #[test]
    fn tags_options_and_extensions_are_where_the_parser_looks() {
        let frame = FrameBuilder::v6()
            .vlan(10)
            .vlan(20)
            .extension(0, &[0, 1, 4, 0, 0, 0, 0])
            .fragment(0, true)
            .udp(7, 9)
            .payload_len(8)
            .build();
        let inner = parse(&frame).unwrap();
        assert_eq!((inner.vlan, inner.l3, inner.l4), (Some(10), 22, 22 + 56));
        assert!(inner.fragment && inner.has_options);
    }

    #[test]
    fn a_partial_checksum_is_completed_by_summing_the_rest() {
        let partial = FrameBuilder::v4()
            .udp(1, 2)
            .payload(b"abc")
            .partial_checksum()
            .build();
        let full = FrameBuilder::v4().udp(1, 2).payload(b"abc").build();
        let sum = crate::wire::checksum::sum(&partial[34..], 0);
        assert_eq!(
            full[40..42],
            crate::wire::checksum::finish(sum).to_ne_bytes()
        );
    }
}
