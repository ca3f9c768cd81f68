//! The TCP header (RFC 9293 §3.1).
//!
//! ```text
//!   0                16              31
//!  | source port    | destination port |
//!  | sequence number                   |
//!  | acknowledgement number            |
//!  |off|rsv| flags  | window           |
//!  | checksum       | urgent pointer   |
//!  | options (off - 5 words)           |
//! ```

use super::inner::{Inner, PROTO_TCP};

/// Bytes of a header without options.
pub const LEN_MIN: usize = 20;
/// Offset of the checksum field.
pub const CHECKSUM_OFFSET: usize = 16;
/// The sender has no more data.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgement field counts.
pub const ACK: u8 = 0x10;
/// The urgent pointer counts.
pub const URG: u8 = 0x20;
/// ECN echo.
pub const ECE: u8 = 0x40;
/// Congestion window reduced.
pub const CWR: u8 = 0x80;

/// A view of a header, options included.
///
/// INVARIANT: the slice is exactly the header, 20 to 60 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a>(&'a [u8]);

impl<'a> Tcp<'a> {
    /// A view of the header at the start of `bytes`, if its data offset allows it.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Option<Tcp<'a>> {
        let len = usize::from(bytes.get(12)? >> 4) * 4;
        if len < LEN_MIN {
            return None;
        }
        bytes.get(..len).map(Tcp)
    }

    /// A view of the header of a parsed frame; first fragments may have one too.
    #[inline]
    pub fn of(frame: &'a [u8], inner: &Inner) -> Option<Tcp<'a>> {
        if inner.proto != PROTO_TCP || inner.l4 == 0 {
            return None;
        }
        Tcp::new(frame.get(usize::from(inner.l4)..inner.end)?)
    }

    /// Bytes of the header.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.0.len()
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

    /// Sequence number of the first payload byte.
    #[inline]
    pub fn seq(&self) -> u32 {
        self.be32(4)
    }

    /// Acknowledgement number.
    #[inline]
    pub fn ack(&self) -> u32 {
        self.be32(8)
    }

    /// The eight flags, [`FIN`] to [`CWR`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0[13]
    }

    /// Receive window, unscaled.
    #[inline]
    pub fn window(&self) -> u16 {
        self.be16(14)
    }

    /// The checksum field.
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.be16(16)
    }

    /// Options, padding included.
    #[inline]
    pub fn options(&self) -> &'a [u8] {
        &self.0[LEN_MIN..]
    }

    #[inline]
    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    #[inline]
    fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameBuilder;
    use crate::wire::inner::parse;

    #[test]
    fn fields_are_read_from_their_places() {
        let frame = FrameBuilder::v4()
            .tcp(40000, 5201)
            .seq(0x0102_0304)
            .ack(0x0506_0708)
            .flags(ACK | PSH)
            .window(501)
            .tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
            .payload(b"data")
            .build();
        let tcp = Tcp::of(&frame, &parse(&frame).unwrap()).unwrap();
        assert_eq!((tcp.src_port(), tcp.dst_port()), (40000, 5201));
        assert_eq!((tcp.seq(), tcp.ack()), (0x0102_0304, 0x0506_0708));
        assert_eq!((tcp.flags(), tcp.window()), (0x18, 501));
        assert_eq!((tcp.header_len(), tcp.options()[2]), (32, 8));
    }

    #[test]
    fn impossible_data_offsets_give_no_view() {
        let mut bytes = [0; 24];
        for (offset, ok) in [(4, false), (5, true), (6, true), (7, false)] {
            bytes[12] = offset << 4;
            assert_eq!(Tcp::new(&bytes).is_some(), ok, "{offset}");
        }
        assert!(Tcp::new(&bytes[..12]).is_none());
    }
}
