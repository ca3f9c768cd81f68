//! The IEEE 802.1Q tag of an inner frame, which RFC 7348 §6.1 wants kept out of the tunnel.
//!
//! ```text
//!  12      14                         16
//!  | 8100  | priority(3) dei(1) id(12) | ethertype or next tag
//! ```

use std::fmt;

use super::ethernet::{ETHERTYPE_QINQ, ETHERTYPE_VLAN};

/// Bytes of a tag.
pub const LEN: usize = 4;

/// Tag control information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tci(pub u16);

impl Tci {
    /// VLAN identifier, 0 for a priority tag.
    pub const fn id(self) -> u16 {
        self.0 & 0x0fff
    }

    /// Priority code point, 0..=7.
    pub const fn priority(self) -> u8 {
        (self.0 >> 13) as u8
    }

    /// Drop eligible indicator.
    pub const fn drop_eligible(self) -> bool {
        self.0 & 0x1000 != 0
    }
}

impl fmt::Display for Tci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vlan {} priority {}", self.id(), self.priority())
    }
}

/// The outermost tag of `frame`.
pub fn outer(frame: &[u8]) -> Option<Tci> {
    let tag = frame.get(12..16)?;
    let ethertype = u16::from_be_bytes([tag[0], tag[1]]);
    let tagged = ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ;
    tagged.then(|| Tci(u16::from_be_bytes([tag[2], tag[3]])))
}

/// Takes the outermost tag off without moving the payload: the addresses move up by four bytes, and
/// the frame is what is returned. An untagged frame comes back whole.
pub fn strip(frame: &mut [u8]) -> &mut [u8] {
    if outer(frame).is_none() {
        return frame;
    }
    frame.copy_within(0..12, LEN);
    &mut frame[LEN..]
}

/// A copy of `frame` with an 802.1Q tag put before whatever follows the addresses.
///
/// A frame without room for addresses comes back as it is.
pub fn push(frame: &[u8], tci: Tci) -> Vec<u8> {
    let Some((addresses, rest)) = frame.split_at_checked(12) else {
        return frame.to_vec();
    };
    let mut out = Vec::with_capacity(frame.len() + LEN);
    out.extend_from_slice(addresses);
    out.extend_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
    out.extend_from_slice(&tci.0.to_be_bytes());
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pushed_tag_is_read_and_stripped_again() {
        let frame: Vec<u8> = (0..20).collect();
        let tci = Tci(0xb064);
        assert_eq!(
            (tci.id(), tci.priority(), tci.drop_eligible()),
            (100, 5, true)
        );
        let mut tagged = push(&frame, tci);
        assert_eq!(outer(&tagged), Some(tci));
        assert_eq!(strip(&mut tagged), &frame[..]);
    }

    #[test]
    fn untagged_and_short_frames_are_left_alone() {
        let mut frame = [0u8; 15];
        frame[12] = 0x81;
        assert_eq!(outer(&frame), None);
        assert_eq!(strip(&mut frame).len(), 15);
        assert_eq!(push(&frame[..3], Tci(1)), [0; 3]);
    }
}
