//! The virtio network header that packet sockets and TAPs put before each frame.
//!
//! ```text
//!  0      1         2         4          6            8             10            12
//!  | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | num_buffers |
//! ```
//! Fields are in native order (virtio 1.2 §5.1.6 with `VIRTIO_NET_HDR_F` values; Linux
//! `include/uapi/linux/virtio_net.h`, `struct virtio_net_hdr_v1`). `csum_start` counts from the
//! Ethernet header.

/// A parsed virtio network header, 12-byte form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// [`VnetHdr::NEEDS_CSUM`], [`VnetHdr::DATA_VALID`].
    pub flags: u8,
    /// `GSO_*`, possibly with [`VnetHdr::GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of headers before the payload; a hint of the kernel's, not to be trusted.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksummed region starts, from the Ethernet header.
    pub csum_start: u16,
    /// Where in that region the checksum field is.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// Bytes on the wire between us and the kernel.
    pub const LEN: usize = 12;
    /// The checksum field holds the folded pseudo-header sum; the rest is to be added.
    pub const NEEDS_CSUM: u8 = 1;
    /// The checksum was verified; ignored by TAPs on write.
    pub const DATA_VALID: u8 = 2;
    /// An ordinary frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4 super-frame.
    pub const GSO_TCPV4: u8 = 1;
    /// Old UFO; refused.
    pub const GSO_UDP: u8 = 3;
    /// TCP over IPv6 super-frame.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP super-frame (USO), either family.
    pub const GSO_UDP_L4: u8 = 5;
    /// Flag on TCP types: CWR is set on the first segment.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header from the start of `buf`.
    ///
    /// # Panics
    /// When `buf` is shorter than [`VnetHdr::LEN`].
    pub fn parse(buf: &[u8]) -> VnetHdr {
        let at = |i: usize| u16::from_ne_bytes([buf[i], buf[i + 1]]);
        VnetHdr {
            flags: buf[0],
            gso_type: buf[1],
            hdr_len: at(2),
            gso_size: at(4),
            csum_start: at(6),
            csum_offset: at(8),
        }
    }

    /// The bytes to hand to the kernel; `num_buffers` is zero.
    pub fn to_bytes(self) -> [u8; VnetHdr::LEN] {
        let mut out = [0; VnetHdr::LEN];
        out[0] = self.flags;
        out[1] = self.gso_type;
        out[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        out[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        out[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        out[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        out
    }

    /// The GSO type without the ECN flag.
    pub fn gso_kind(self) -> u8 {
        self.gso_type & !VnetHdr::GSO_ECN
    }

    /// Whether the frame is a super-frame to be segmented.
    pub fn is_gso(self) -> bool {
        self.gso_kind() != VnetHdr::GSO_NONE
    }

    /// Whether the layer-4 checksum is unfinished.
    pub fn needs_csum(self) -> bool {
        self.flags & VnetHdr::NEEDS_CSUM != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_round_trips() {
        let hdr = VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            gso_type: VnetHdr::GSO_TCPV4 | VnetHdr::GSO_ECN,
            hdr_len: 66,
            gso_size: 1398,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(VnetHdr::parse(&hdr.to_bytes()), hdr);
        assert!(hdr.is_gso() && hdr.needs_csum());
        assert_eq!(hdr.gso_kind(), VnetHdr::GSO_TCPV4);
    }
}
