//! The VXLAN header, RFC 7348 §5.
//!
//! ```text
//!   0                   1                   2                   3
//!   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//!  +-+-+-+-+-+-+-+-+-----------------------------------------------+
//!  |R|R|R|R|I|R|R|R|                   reserved                    |
//!  +-+-+-+-+-+-+-+-+---------------------------------+-------------+
//!  |             VXLAN network identifier            |   reserved  |
//!  +-------------------------------------------------+-------------+
//! ```
//! Reserved bits are zero when sent; what to do with ones that are set on receipt is the caller's
//! policy (the RFC ignores them, Linux drops them, extensions such as GBP give them a meaning).

use super::Vni;

/// Bytes of the header.
pub const LEN: usize = 8;
/// The UDP destination port IANA assigned.
pub const PORT: u16 = 4789;
/// The flag that says the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;

/// What a VXLAN header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The 24-bit identifier; may be 0, which is no [`Vni`].
    pub vni: u32,
    /// The bits that should be zero and are not, at their place in the big-endian header.
    pub reserved_bits: u64,
}

/// Why a datagram is no VXLAN packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum VxlanError {
    /// Under 8 bytes.
    #[error("datagram is shorter than a VXLAN header")]
    TooShort,
    /// The I flag is clear: RFC 7348 §5 requires it set.
    #[error("VXLAN header without the VNI flag")]
    NoVniFlag,
}

/// The header for `vni`, reserved bits zero.
#[inline]
pub const fn encode(vni: Vni) -> [u8; LEN] {
    ((FLAG_VNI as u64) << 56 | (vni.value() as u64) << 8).to_be_bytes()
}

/// Reads the header at the start of `datagram`.
///
/// # Errors
/// [`VxlanError`] when it is not there or the I flag is clear.
#[inline]
pub fn decode(datagram: &[u8]) -> Result<Decoded, VxlanError> {
    let header = datagram.first_chunk::<LEN>().ok_or(VxlanError::TooShort)?;
    let word = u64::from_be_bytes(*header);
    if word & KNOWN_FLAG == 0 {
        return Err(VxlanError::NoVniFlag);
    }
    Ok(Decoded {
        vni: (word >> 8) as u32 & 0xff_ffff,
        reserved_bits: word & !(KNOWN_FLAG | VNI_MASK),
    })
}

const KNOWN_FLAG: u64 = (FLAG_VNI as u64) << 56;
const VNI_MASK: u64 = 0xffff_ff00;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_bytes_are_those_of_the_rfc() {
        let vni = Vni::new(0x12_3456).unwrap();
        assert_eq!(encode(vni), [0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        let got = decode(&encode(vni)).unwrap();
        assert_eq!((got.vni, got.reserved_bits), (0x12_3456, 0));
    }

    #[test]
    fn reserved_bits_are_reported_not_judged() {
        let got = decode(&[0x8c, 0, 0, 2, 0, 0, 1, 0x80]).unwrap();
        assert_eq!(got.vni, 1);
        assert_eq!(got.reserved_bits, 0x8400_0002_0000_0080);
    }

    #[test]
    fn short_datagrams_and_a_clear_flag_are_refused() {
        assert_eq!(decode(&[8; 7]), Err(VxlanError::TooShort));
        assert_eq!(
            decode(&[0xf7, 0, 0, 0, 0, 0, 1, 0]),
            Err(VxlanError::NoVniFlag)
        );
    }
}
