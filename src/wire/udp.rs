//! The UDP header (RFC 768).
//!
//! ```text
//!  0        2        4        6          8
//!  | source | dest.  | length | checksum |
//! ```

use super::inner::{Inner, PROTO_UDP, chunk};

/// Bytes of the header.
pub const LEN: usize = 8;
/// Offset of the checksum field.
pub const CHECKSUM_OFFSET: usize = 6;

/// A view of the header.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a>(&'a [u8; LEN]);

impl<'a> Udp<'a> {
    /// A view of the header at the start of `bytes`, if it is whole.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Udp<'a>> {
        bytes.first_chunk::<LEN>().map(Udp)
    }

    /// A view of the header of a parsed frame; first fragments have one too.
    #[inline]
    pub fn of(frame: &'a [u8], inner: &Inner) -> Option<Udp<'a>> {
        if inner.proto != PROTO_UDP || inner.l4 == 0 {
            return None;
        }
        chunk::<LEN>(frame.get(..inner.end)?, usize::from(inner.l4)).map(Udp)
    }

    /// Source port.
    #[inline]
    pub fn src_port(&self) -> u16 {
        self.be16(0)
    }

    /// Destination port.
    #[inline]
    pub fn dst_port(&self) -> u16 {
        self.be16(2)
    }

    /// Bytes of header and payload, as the field says.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u16 {
        self.be16(4)
    }

    /// The checksum field; 0 means "none" over IPv4.
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.be16(6)
    }

    #[inline]
    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }
}

/// The header bytes; `len` counts header and payload.
pub fn header(src_port: u16, dst_port: u16, len: u16, checksum_ne: u16) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[..2].copy_from_slice(&src_port.to_be_bytes());
    out[2..4].copy_from_slice(&dst_port.to_be_bytes());
    out[4..6].copy_from_slice(&len.to_be_bytes());
    out[6..].copy_from_slice(&checksum_ne.to_ne_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_header_reads_back() {
        let bytes = header(49152, 4789, 58, 0);
        assert_eq!(bytes, [0xc0, 0, 0x12, 0xb5, 0, 58, 0, 0]);
        let view = Udp::new(&bytes).unwrap();
        assert_eq!((view.src_port(), view.dst_port()), (49152, 4789));
        assert_eq!((view.len(), view.checksum()), (58, 0));
        assert!(Udp::new(&bytes[..7]).is_none());
    }
}
