//! The Ethernet II header, and turning one round for a reply.
//!
//! ```text
//!  0     6     12               14
//!  | dst | src | (tags, 4 each) | ethertype | payload
//! ```

use super::{Inner, Mac};

/// Bytes of a header without tags.
pub const LEN: usize = 14;
/// Bytes of the shortest frame Ethernet carries, without frame check sequence (IEEE 802.3 §3.2.8);
/// virtual links carry shorter ones.
pub const FRAME_LEN_MIN: usize = 60;
/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of an IEEE 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an IEEE 802.1ad service tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// An untagged header.
pub fn header(dst: Mac, src: Mac, ethertype: u16) -> [u8; LEN] {
    let mut out = [0; LEN];
    out[..6].copy_from_slice(&dst.0);
    out[6..12].copy_from_slice(&src.0);
    out[12..].copy_from_slice(&ethertype.to_be_bytes());
    out
}

/// The start of a frame that answers `frame` from `mac`: back to its source, with its tags and
/// EtherType, `room` bytes reserved for the rest.
///
/// `inner` must come from `frame`.
pub fn reply_header(frame: &[u8], inner: &Inner, mac: Mac, room: usize) -> Vec<u8> {
    let l3 = usize::from(inner.l3);
    let mut out = Vec::with_capacity(l3 + room);
    out.extend_from_slice(&inner.src.0);
    out.extend_from_slice(&mac.0);
    out.extend_from_slice(frame.get(12..l3).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::inner;

    #[test]
    fn a_reply_goes_back_to_the_source_with_the_same_tags() {
        let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let mut frame = header(b, a, ETHERTYPE_VLAN).to_vec();
        frame.extend([0x00, 0x05, 0x88, 0xcc, 1, 2, 3]);
        let parsed = inner::parse(&frame).unwrap();
        let reply = reply_header(&frame, &parsed, b, 10);
        assert_eq!(reply[..6], a.0);
        assert_eq!(reply[6..12], b.0);
        assert_eq!(reply[12..], [0x81, 0, 0, 5, 0x88, 0xcc]);
    }
}
