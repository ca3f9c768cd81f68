//! VXLAN network identifier.

use std::fmt;

/// A 24-bit VXLAN network identifier, `1..=0xff_ffff` (RFC 7348 §5; zero is kept out because Linux
/// and Docker treat it as "none").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Vni(u32);

/// A number that is no VNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("VNI {0} is out of range: it must be between 1 and 16777215")]
pub struct VniOutOfRange(pub u64);

impl Vni {
    /// Docker's number for the `ingress` network.
    pub const INGRESS: Vni = Vni(4096);
    /// The first VNI given to a user's network, as Docker Swarm does.
    pub const FIRST_USER: Vni = Vni(4097);
    /// The largest VNI.
    pub const MAX: Vni = Vni(0xff_ffff);

    /// Checks the range.
    ///
    /// # Errors
    /// [`VniOutOfRange`] for zero and for anything above 24 bits.
    pub const fn new(value: u32) -> Result<Vni, VniOutOfRange> {
        if value == 0 || value > 0xff_ffff {
            Err(VniOutOfRange(value as u64))
        } else {
            Ok(Vni(value))
        }
    }

    /// The number.
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vni({})", self.0)
    }
}

impl serde::Serialize for Vni {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u32(self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Vni {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Vni, D::Error> {
        Vni::new(u32::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_one_to_24_bits() {
        assert_eq!(Vni::new(0), Err(VniOutOfRange(0)));
        assert_eq!(Vni::new(1 << 24), Err(VniOutOfRange(1 << 24)));
        assert_eq!(Vni::new(4097), Ok(Vni::FIRST_USER));
        assert_eq!(Vni::new((1 << 24) - 1), Ok(Vni::MAX));
    }
}
