//! Software segmentation: one super-frame from a workload becomes many frames for the wire.
//!
//! ```text
//! | Ethernet | 0-2 VLAN tags | IPv4 / IPv6 (+ extensions) | TCP / UDP | payload ..................... |
//!  \_______________________ headers, copied and patched ____________/ \_ gso_size _/\_ gso_size _/\_ rest
//! ```
//! [`plan`] checks the super-frame and its virtio header against each other and sums everything that
//! stays equal; [`Plan::segment`] then stamps one header block per segment. Payload is never copied:
//! the caller sends a header block and a slice of the super-frame (scatter-gather).
//!
//! A workload controls every byte of the frame, and, with a packet socket of its own, the virtio
//! header too. Nothing here trusts either, and no input makes these functions panic.
//!
//! Owns: segmentation rules (RFC 791, 8200, 9293, 768; Linux `tcp_gso_segment`,
//! `__udp_gso_segment`) and unfinished checksums. Must not know: VXLAN, VTEPs, sockets.

#[doc(hidden)]
pub mod fuzzing;

use std::ops::Range;

use crate::wire::inner::{PROTO_TCP as TCP, PROTO_UDP as UDP};
use crate::wire::ipv6::{self, HOP_BY_HOP, JUMBO_OPTION};
use crate::wire::{Kind, Malformed, VnetHdr, checksum, inner};

/// The largest header block of a segment, bytes: Ethernet 14, two VLAN tags, IPv6 with up to 70 bytes
/// of extension headers, TCP with all options.
pub const HEADERS_MAX: usize = 192;

/// The most segments one super-frame may be cut into: 256 KiB in pieces of 64 bytes. Linux itself
/// bounds TCP by `gso_max_segs` and UDP by 128.
pub const SEGMENTS_MAX: usize = 4096;

/// Why a frame from a workload was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SplitError {
    /// The frame fails the parse every inner frame must pass.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A GSO type that was never offered: UFO, a tunnel type, a future one.
    #[error("the virtio header asks for an unknown kind of segmentation")]
    UnknownGsoType,
    /// The virtio header describes a frame coalesced by a receiver (`VIRTIO_NET_HDR_F_RSC_INFO`).
    #[error("the virtio header is that of a received frame")]
    ReceiveInfo,
    /// The frame carries neither TCP nor UDP over IPv4 or IPv6.
    #[error("only TCP and UDP over IPv4 or IPv6 can be segmented")]
    NotTcpOrUdp,
    /// The frame is TCP and the virtio header says UDP, IPv6 and it says IPv4, UDP with ECN, ...
    #[error("the virtio header names another protocol than the frame carries")]
    GsoTypeMismatch,
    /// A super-frame without `NEEDS_CSUM`: its checksum could not be right for the segments.
    #[error("a super-frame came without a request for its checksum")]
    NoChecksumRequest,
    /// `csum_start` is not where the layer-4 header begins, or lies in the layer-2 or -3 headers.
    #[error("the checksum does not start at the layer-4 header")]
    BadChecksumStart,
    /// `csum_offset` is not the place of the protocol's checksum.
    #[error("the checksum field is not where the protocol has it")]
    BadChecksumOffset,
    /// The layer-4 header reaches past the end of the datagram.
    #[error("the layer-4 header reaches past the end of the datagram")]
    HeaderBeyondFrame,
    /// More than [`HEADERS_MAX`] bytes of headers.
    #[error("the headers are too long")]
    HeadersTooLong,
    /// A TCP data offset below 20 bytes.
    #[error("the TCP header length is below its minimum")]
    BadDataOffset,
    /// An IPv6 routing header (its pseudo-header differs) in a super-frame.
    #[error("an extension header that cannot be segmented")]
    ExtensionHeader,
    /// A fragment cannot be a super-frame, nor can its checksum be finished.
    #[error("an IP fragment with an offload request")]
    Fragment,
    /// `gso_size` is zero.
    #[error("a segment size of zero")]
    ZeroGsoSize,
    /// One segment would exceed what an IP length field can say.
    #[error("a segment would be longer than an IP packet can be")]
    SegmentTooLong,
    /// More than [`SEGMENTS_MAX`] segments.
    #[error("too many segments")]
    TooManySegments,
    /// A length field disagrees with the frame.
    #[error("a length field disagrees with the frame")]
    LengthMismatch,
}

/// How to cut one super-frame. Valid for exactly the frame it was made from.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Sum of the IPv4 header without total length, identification and checksum.
    ip_sum: u64,
    /// Sum of the pseudo-header without length and of the layer-4 header without changing fields.
    l4_sum: u64,
    /// Where the payload starts in the super-frame.
    payload: u32,
    payload_len: u32,
    gso_size: u32,
    count: u32,
    seq: u32,
    id: u16,
    /// Header block of a segment: offsets and total length, bytes.
    l3: u16,
    l4: u16,
    header_len: u16,
    /// Bytes of jumbo hop-by-hop header left out behind the fixed IPv6 header (0 or 8).
    strip: u16,
    tcp_flags: u8,
    ipv6: bool,
    tcp: bool,
}

/// Checks a super-frame against its virtio header and prepares its segmentation.
///
/// `frame` starts at the Ethernet header and holds no virtio header. The frame may exceed 64 KiB: an
/// IPv4 total length or IPv6 payload length of zero then means "up to the end of the frame" (Linux
/// BIG TCP), and the hop-by-hop header that goes with it is left out of the segments. `hdr_len` is ignored:
/// on forwarded frames Linux lets it cover a whole segment.
///
/// # Errors
/// [`SplitError`], when frame and virtio header contradict each other or themselves.
pub fn plan(frame: &[u8], vnet: &VnetHdr) -> Result<Plan, SplitError> {
    let tcp = check_request(vnet)?;
    let layout = Layout::of(frame)?;
    check_protocol(&layout, vnet, tcp)?;
    if usize::from(vnet.csum_start) != layout.l4 {
        return Err(SplitError::BadChecksumStart);
    }
    let ip = &frame[layout.l3..layout.end];
    let strip = if layout.extended {
        check_extensions(ip, layout.l4 - layout.l3)?
    } else {
        0
    };
    let payload = layout.l4 + layer4_header_len(&frame[layout.l4..layout.end], tcp)?;
    let header_len = payload - strip;
    if header_len > HEADERS_MAX {
        return Err(SplitError::HeadersTooLong);
    }
    let gso_size = usize::from(vnet.gso_size);
    let payload_len = layout.end - payload;
    if header_len - layout.l3 + gso_size.min(payload_len) > 65_535 {
        return Err(SplitError::SegmentTooLong);
    }
    let count = payload_len.div_ceil(gso_size).max(1);
    if count > SEGMENTS_MAX {
        return Err(SplitError::TooManySegments);
    }
    let mut plan = Plan {
        ip_sum: 0,
        l4_sum: 0,
        payload: payload as u32,
        payload_len: payload_len as u32,
        gso_size: gso_size as u32,
        count: count as u32,
        seq: 0,
        id: 0,
        l3: layout.l3 as u16,
        l4: (layout.l4 - strip) as u16,
        header_len: header_len as u16,
        strip: strip as u16,
        tcp_flags: 0,
        ipv6: layout.ipv6,
        tcp,
    };
    plan.presum(frame, &layout);
    Ok(plan)
}

impl Plan {
    /// Number of segments, at least one.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Bytes of headers of each segment, at most [`HEADERS_MAX`].
    pub fn header_len(&self) -> usize {
        usize::from(self.header_len)
    }

    /// Payload bytes of every segment but the last.
    pub fn gso_size(&self) -> usize {
        self.gso_size as usize
    }

    /// Length of segment `i` from its Ethernet header, bytes. All but the last are equal.
    pub fn frame_len(&self, i: usize) -> usize {
        self.header_len() + self.payload_len(i)
    }

    fn payload_len(&self, i: usize) -> usize {
        (self.payload_len as usize)
            .saturating_sub(i * self.gso_size())
            .min(self.gso_size())
    }

    /// Writes the headers of segment `i` to `out[..header_len]` and tells which bytes of `frame`
    /// follow as its payload.
    ///
    /// # Panics
    /// When `i` is not below [`Plan::count`], `out` is shorter than [`Plan::header_len`], or `frame` is
    /// not the frame the plan was made from.
    #[inline]
    pub fn segment(&self, i: usize, frame: &[u8], out: &mut [u8]) -> Range<usize> {
        assert!(i < self.count());
        let start = self.payload as usize + i * self.gso_size();
        let range = start..start + self.payload_len(i);
        let payload = &frame[range.clone()];
        let out = &mut out[..self.header_len()];
        self.copy_headers(frame, out);
        let (ip, l4) = out[usize::from(self.l3)..].split_at_mut(usize::from(self.l4 - self.l3));
        self.patch_ip(i, ip, l4.len() + payload.len());
        if self.tcp {
            self.patch_tcp(i, l4, payload);
        } else {
            self.patch_udp(l4, payload);
        }
        range
    }

    #[inline]
    fn copy_headers(&self, frame: &[u8], out: &mut [u8]) {
        if self.strip == 0 {
            out.copy_from_slice(&frame[..out.len()]);
            return;
        }
        let l3 = usize::from(self.l3);
        let (fixed, rest) = out.split_at_mut(l3 + IPV6_LEN);
        fixed.copy_from_slice(&frame[..fixed.len()]);
        let jumbo = &frame[fixed.len()..];
        fixed[l3 + 6] = jumbo[0];
        rest.copy_from_slice(&jumbo[usize::from(self.strip)..][..rest.len()]);
    }

    /// Lengths, identification and header checksum. `l4_len` is layer-4 header plus payload.
    #[inline]
    fn patch_ip(&self, i: usize, ip: &mut [u8], l4_len: usize) {
        if self.ipv6 {
            put16(ip, 4, (ip.len() - IPV6_LEN + l4_len) as u16);
            return;
        }
        let total = (ip.len() + l4_len) as u16;
        let id = self.id.wrapping_add(i as u16);
        put16(ip, 2, total);
        put16(ip, 4, id);
        let sum = self.ip_sum + checksum::be16(total) + checksum::be16(id);
        put_ne(ip, 10, checksum::finish(sum));
    }

    #[inline]
    fn patch_tcp(&self, i: usize, tcp: &mut [u8], payload: &[u8]) {
        let seq = self
            .seq
            .wrapping_add((i as u32).wrapping_mul(self.gso_size))
            .to_be_bytes();
        let mut flags = self.tcp_flags;
        if i + 1 < self.count() {
            flags &= !(FIN | PSH);
        }
        if i > 0 {
            flags &= !CWR;
        }
        tcp[4..8].copy_from_slice(&seq);
        tcp[13] = flags;
        let sum = self.l4_sum
            + u64::from(u32::from_ne_bytes(seq))
            + checksum::be16(u16::from(flags))
            + checksum::be16((tcp.len() + payload.len()) as u16);
        put_ne(tcp, 16, checksum::finish(checksum::sum(payload, sum)));
    }

    #[inline]
    fn patch_udp(&self, udp: &mut [u8], payload: &[u8]) {
        let len = (udp.len() + payload.len()) as u16;
        put16(udp, 4, len);
        // The length counts twice: in the pseudo-header and in the header.
        let sum = self.l4_sum + 2 * checksum::be16(len);
        put_ne(
            udp,
            6,
            nonzero(checksum::finish(checksum::sum(payload, sum))),
        );
    }

    /// Sums what all segments share.
    fn presum(&mut self, frame: &[u8], layout: &Layout) {
        let ip = &frame[layout.l3..layout.l4];
        let l4 = &frame[layout.l4..self.payload as usize];
        let proto = checksum::be16(u16::from(layout.proto));
        if self.ipv6 {
            self.l4_sum = checksum::sum(&ip[8..IPV6_LEN], proto);
        } else {
            self.id = get16(ip, 4);
            self.ip_sum = checksum::sum(&ip[6..10], checksum::sum(&ip[..2], 0));
            self.ip_sum = checksum::sum(&ip[12..], self.ip_sum);
            self.l4_sum = checksum::sum(&ip[12..20], proto);
        }
        self.l4_sum = checksum::sum(&l4[..4], self.l4_sum);
        if self.tcp {
            self.seq = u32::from_be_bytes([l4[4], l4[5], l4[6], l4[7]]);
            self.tcp_flags = l4[13];
            self.l4_sum = checksum::sum(&l4[8..12], self.l4_sum);
            self.l4_sum += checksum::be16(u16::from(l4[12]) << 8);
            self.l4_sum = checksum::sum(&l4[14..16], self.l4_sum);
            self.l4_sum = checksum::sum(&l4[18..], self.l4_sum);
        }
    }
}

/// Finishes the layer-4 checksum of an ordinary (not super-) frame in place, if `vnet` asks for it.
///
/// A result of zero is stored as `0xffff`, for UDP by rule (RFC 768) and for others as Linux
/// (`skb_checksum_help`) does. SCTP gets its CRC-32c (RFC 9260 §6.8). The checksum may belong to an
/// inner header when the workload runs a tunnel of its own; it may not lie in the layer-2 or -3
/// headers, which would let a workload alter addresses that were already checked.
///
/// # Errors
/// [`SplitError`], when the request does not fit the frame; the frame is then unchanged.
pub fn finish_checksum(frame: &mut [u8], vnet: &VnetHdr) -> Result<(), SplitError> {
    if !vnet.needs_csum() {
        return Ok(());
    }
    let layout = Layout::of(frame)?;
    let start = usize::from(vnet.csum_start);
    let offset = usize::from(vnet.csum_offset);
    if start < layout.l4 || start > layout.end {
        return Err(SplitError::BadChecksumStart);
    }
    let body = &mut frame[start..layout.end];
    let expected = match layout.proto {
        TCP => 16,
        UDP => 6,
        SCTP => 8,
        _ => offset,
    };
    if start == layout.l4 && offset != expected {
        return Err(SplitError::BadChecksumOffset);
    }
    if start == layout.l4 && layout.proto == SCTP {
        return finish_sctp(body);
    }
    if offset + 2 > body.len() {
        return Err(SplitError::BadChecksumOffset);
    }
    put_ne(
        body,
        offset,
        nonzero(checksum::finish(checksum::sum(body, 0))),
    );
    Ok(())
}

fn finish_sctp(packet: &mut [u8]) -> Result<(), SplitError> {
    if packet.len() < 12 {
        return Err(SplitError::HeaderBeyondFrame);
    }
    packet[8..12].fill(0);
    let crc = crc32c(packet);
    packet[8..12].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

/// Checks the virtio header alone; tells whether it asks for TCP.
fn check_request(vnet: &VnetHdr) -> Result<bool, SplitError> {
    if vnet.flags & RSC_INFO != 0 {
        return Err(SplitError::ReceiveInfo);
    }
    let tcp = match vnet.gso_kind() {
        VnetHdr::GSO_TCPV4 | VnetHdr::GSO_TCPV6 => true,
        VnetHdr::GSO_UDP_L4 => false,
        _ => return Err(SplitError::UnknownGsoType),
    };
    if !tcp && vnet.gso_type & VnetHdr::GSO_ECN != 0 {
        return Err(SplitError::GsoTypeMismatch);
    }
    if !vnet.needs_csum() {
        return Err(SplitError::NoChecksumRequest);
    }
    if vnet.csum_offset != if tcp { 16 } else { 6 } {
        return Err(SplitError::BadChecksumOffset);
    }
    if vnet.gso_size == 0 {
        return Err(SplitError::ZeroGsoSize);
    }
    Ok(tcp)
}

/// Whether the frame carries what the virtio header says.
fn check_protocol(layout: &Layout, vnet: &VnetHdr, tcp: bool) -> Result<(), SplitError> {
    if layout.proto != TCP && layout.proto != UDP {
        return Err(SplitError::NotTcpOrUdp);
    }
    let family = match vnet.gso_kind() {
        VnetHdr::GSO_TCPV4 => !layout.ipv6,
        VnetHdr::GSO_TCPV6 => layout.ipv6,
        _ => true,
    };
    if !family || (layout.proto == TCP) != tcp {
        return Err(SplitError::GsoTypeMismatch);
    }
    Ok(())
}

/// Length of the layer-4 header, which lies within the datagram.
fn layer4_header_len(l4: &[u8], tcp: bool) -> Result<usize, SplitError> {
    if !tcp {
        if l4.len() < UDP_LEN {
            return Err(SplitError::HeaderBeyondFrame);
        }
        if usize::from(get16(l4, 4)) != l4.len() {
            return Err(SplitError::LengthMismatch);
        }
        return Ok(UDP_LEN);
    }
    if l4.len() < TCP_LEN {
        return Err(SplitError::HeaderBeyondFrame);
    }
    let len = usize::from(l4[12] >> 4) * 4;
    if len < TCP_LEN {
        return Err(SplitError::BadDataOffset);
    }
    if len > l4.len() {
        return Err(SplitError::HeaderBeyondFrame);
    }
    Ok(len)
}

/// Where the parts of a frame are. INVARIANT: `l3 < l4 < end <= frame.len()`.
#[derive(Debug, Clone, Copy)]
struct Layout {
    l3: usize,
    l4: usize,
    /// End of the IP datagram; Ethernet padding follows.
    end: usize,
    proto: u8,
    ipv6: bool,
    /// IPv6 extension headers are present.
    extended: bool,
}

impl Layout {
    fn of(frame: &[u8]) -> Result<Layout, SplitError> {
        let inner = inner::parse_super(frame)?;
        if inner.fragment {
            return Err(SplitError::Fragment);
        }
        if inner.l4 == 0 {
            return Err(SplitError::NotTcpOrUdp);
        }
        let ipv6 = inner.kind == Kind::Ipv6;
        Ok(Layout {
            l3: usize::from(inner.l3),
            l4: usize::from(inner.l4),
            end: inner.end,
            proto: inner.proto,
            ipv6,
            extended: ipv6 && inner.has_options,
        })
    }
}

/// Length of the hop-by-hop header to leave out of the segments, bytes. Linux before 7.0 puts one with the
/// jumbo payload option (RFC 2675) into each IPv6 BIG TCP super-frame, the merger one of padding; a workload
/// that forwards sends us our own back.
#[cold]
fn check_extensions(ip: &[u8], l4: usize) -> Result<usize, SplitError> {
    let mut next = ip[6];
    let mut at = IPV6_LEN;
    while at < l4 {
        if next == ROUTING {
            return Err(SplitError::ExtensionHeader);
        }
        next = ip[at];
        at += (usize::from(ip[at + 1]) + 1) * 8;
    }
    if get16(ip, 4) != 0 {
        return Ok(0);
    }
    let header = &ip[IPV6_LEN..IPV6_LEN + JUMBO_LEN];
    let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    let jumbo = header[..4] == [TCP, 0, JUMBO_OPTION, 4] && len == ip.len() - IPV6_LEN;
    if ip[6] != HOP_BY_HOP || !(jumbo || header == ipv6::PADDING) {
        return Err(SplitError::LengthMismatch);
    }
    Ok(JUMBO_LEN)
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Stores a checksum, which is in native order already.
fn put_ne(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

/// RFC 768: a computed checksum of zero is sent as all ones; zero means "none".
fn nonzero(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

/// CRC-32c (Castagnoli, reflected), bit-serial per table byte: SCTP is no bulk path here.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, b: &u8| CRC32C[usize::from(crc as u8 ^ b)] ^ (crc >> 8);
    !bytes.iter().fold(!0, step)
}

const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

const IPV6_LEN: usize = ipv6::LEN;
const JUMBO_LEN: usize = ipv6::PADDING.len();
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const SCTP: u8 = 132;
const ROUTING: u8 = 43;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// `VIRTIO_NET_HDR_F_RSC_INFO`: only a device may say this, to a driver.
const RSC_INFO: u8 = 4;

#[cfg(test)]
pub(super) mod tests;
