//! Endpoint ids that look random and still say where they come from, so gossip need not carry them.
//!
//! An id of 25 base-36 characters holds 128 bits. A random one costs those 16 bytes in every copy that every
//! node receives. An id made here is a number `(node, epoch, serial)` behind a fixed permutation: the wire
//! carries the small number, and the text is computed at both ends. Nothing is secret in it, and nobody has
//! to believe it: a text either is the image of those three numbers or it is carried whole.

use super::NodeNumber;

/// Length of an id in characters.
pub const LEN: usize = 25;

const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const ROUND_KEYS: [u64; 6] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7344,
    0xa409_3822_299f_31d0,
    0x082e_fa98_ec4e_6c89,
    0x4528_21e6_38d0_1377,
    0xbe54_66cf_34e9_0c6c,
];

/// Where an id was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The low 32 bits of the node's number.
    pub node: u32,
    /// The low 32 bits of the node's epoch then.
    pub epoch: u32,
    /// The how manieth id of that epoch.
    pub serial: u64,
}

/// The id of the `serial`th endpoint that `node` makes in `epoch`.
pub fn endpoint_id(node: NodeNumber, epoch: u64, serial: u64) -> String {
    // Truncation is part of the format: see `Origin`.
    let origin = Origin {
        node: node.0 as u32,
        epoch: epoch as u32,
        serial,
    };
    text_of(origin)
}

/// The id that an origin stands for.
pub fn text_of(origin: Origin) -> String {
    let mut halves = (
        u64::from(origin.node) << 32 | u64::from(origin.epoch),
        origin.serial,
    );
    for key in ROUND_KEYS {
        halves = (halves.1, halves.0 ^ mix(halves.1 ^ key));
    }
    to_text(u128::from(halves.0) << 64 | u128::from(halves.1))
}

/// Where an id comes from, if it was made by [`endpoint_id`]. Any 128 bits have some origin; a random id has
/// the origin of an unlikely node.
pub fn origin_of(bits: u128) -> Origin {
    let mut halves = ((bits >> 64) as u64, bits as u64);
    for key in ROUND_KEYS.iter().rev() {
        halves = (halves.1 ^ mix(halves.0 ^ key), halves.0);
    }
    Origin {
        node: (halves.0 >> 32) as u32,
        epoch: halves.0 as u32,
        serial: halves.1,
    }
}

/// 128 bits as 25 base-36 characters.
pub fn to_text(mut bits: u128) -> String {
    let mut text = [b'0'; LEN];
    for place in text.iter_mut().rev() {
        *place = ALPHABET[(bits % 36) as usize];
        bits /= 36;
    }
    text.iter().map(|&b| char::from(b)).collect()
}

/// The bits of 25 lower-case base-36 characters; none for any other text, and for the few that exceed 128
/// bits.
pub fn from_text(text: &str) -> Option<u128> {
    if text.len() != LEN {
        return None;
    }
    text.bytes().try_fold(0_u128, |bits, byte| {
        let digit = ALPHABET.iter().position(|&b| b == byte)?;
        bits.checked_mul(36)?.checked_add(digit as u128)
    })
}

/// The finaliser of SplitMix64.
pub(super) fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_origin() {
        for (node, epoch, serial) in [
            (0, 0, 0),
            (1, 1, 1),
            (7, 3, u64::MAX),
            (u32::MAX, 9, 1 << 40),
        ] {
            let origin = Origin {
                node,
                epoch,
                serial,
            };
            let text = text_of(origin);
            assert_eq!(text.len(), LEN);
            assert_eq!(from_text(&text).map(origin_of), Some(origin));
        }
    }

    #[test]
    fn neighbours_look_unrelated() {
        let (a, b) = (
            endpoint_id(NodeNumber(1), 1, 1),
            endpoint_id(NodeNumber(1), 1, 2),
        );
        let same = a.bytes().zip(b.bytes()).filter(|(a, b)| a == b).count();
        assert!(same < 8, "{a} {b}");
    }

    #[test]
    fn the_form_is_stable() {
        assert_eq!(
            endpoint_id(NodeNumber(1), 1, 1),
            "dc1520gtpmdqahqtfc1ov0uxh"
        );
    }

    #[test]
    fn texts_of_other_forms_have_no_bits() {
        assert_eq!(from_text(""), None);
        assert_eq!(from_text("abc"), None);
        assert_eq!(from_text("ABCDEFGHIJKLMNOPQRSTUVWXY"), None);
        assert_eq!(from_text("zzzzzzzzzzzzzzzzzzzzzzzzz"), None);
        assert_eq!(from_text(&to_text(u128::MAX)), Some(u128::MAX));
    }
}
