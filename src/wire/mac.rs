//! IEEE 802 MAC address.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A 48-bit MAC address in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

/// Locally administered, and not what workloads get (`02:42`).
const INGRESS_LEG: [u8; 2] = [0x02, 0x77];

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    /// The all-zero address, never a valid station.
    pub const ZERO: Mac = Mac([0; 6]);

    /// Docker's convention for overlay endpoints: `02:42` followed by the IPv4 address.
    pub const fn from_ipv4(ip: Ipv4Addr) -> Mac {
        let o = ip.octets();
        Mac([0x02, 0x42, o[0], o[1], o[2], o[3]])
    }

    /// The MAC of a node's own leg on the ingress network: `02:77` and its IPv4 address there. Frames from such a leg carry
    /// the addresses of clients outside.
    pub const fn ingress_leg(ip: Ipv4Addr) -> Mac {
        let [a, b, c, d] = ip.octets();
        Mac([INGRESS_LEG[0], INGRESS_LEG[1], a, b, c, d])
    }

    /// Whether it is a MAC of [`Mac::ingress_leg`].
    #[inline]
    pub fn is_ingress_leg(self) -> bool {
        self.0[..2] == INGRESS_LEG
    }

    /// Group bit: broadcast and multicast destinations.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// A usable station address: neither group nor all-zero.
    pub fn is_station(self) -> bool {
        !self.is_group() && self != Mac::ZERO
    }

    /// `01:80:c2:00:00:0X`: never forwarded by a bridge (IEEE 802.1D table 7-10: STP, LLDP, pause).
    pub fn is_link_local_control(self) -> bool {
        self.0[..5] == [0x01, 0x80, 0xc2, 0x00, 0x00] && self.0[5] < 0x10
    }

    /// The address in the low 48 bits.
    pub fn to_u64(self) -> u64 {
        // Two loads; eight bytes put together one by one take twenty instructions.
        let [a, b, c, d, e, f] = self.0;
        u64::from(u32::from_be_bytes([a, b, c, d])) << 16 | u64::from(u16::from_be_bytes([e, f]))
    }

    /// Inverse of [`Mac::to_u64`]; the high 16 bits are ignored.
    pub fn from_u64(v: u64) -> Mac {
        let b = v.to_be_bytes();
        Mac([b[2], b[3], b[4], b[5], b[6], b[7]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(
            f,
            "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
            m[0], m[1], m[2], m[3], m[4], m[5]
        )
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a MAC address was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a MAC address (want six hex pairs such as 02:42:0a:00:01:02)")]
pub struct ParseMacError;

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(s: &str) -> Result<Mac, ParseMacError> {
        let mut out = [0u8; 6];
        let mut parts = s.split([':', '-']);
        for byte in &mut out {
            let part = parts.next().ok_or(ParseMacError)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() {
            return Err(ParseMacError);
        }
        Ok(Mac(out))
    }
}

impl serde::Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Mac, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_junk_is_refused() {
        let mac: Mac = "02:42:0a:00:01:02".parse().unwrap();
        assert_eq!(mac, Mac::from_ipv4(Ipv4Addr::new(10, 0, 1, 2)));
        assert_eq!(mac.to_string(), "02:42:0a:00:01:02");
        assert_eq!(Mac::from_u64(mac.to_u64()), mac);
        for bad in [
            "",
            "02:42",
            "02:42:0a:00:01:02:03",
            "02:42:0a:00:01:zz",
            "0:42:0a:00:01:02",
            "+2:42:0a:00:01:02",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(ParseMacError), "{bad}");
        }
    }

    #[test]
    fn group_and_control_addresses_are_recognised() {
        assert!(Mac::BROADCAST.is_group());
        assert!(
            "01:80:c2:00:00:0e"
                .parse::<Mac>()
                .unwrap()
                .is_link_local_control()
        );
        assert!(
            !"01:80:c2:00:00:10"
                .parse::<Mac>()
                .unwrap()
                .is_link_local_control()
        );
        assert!(!Mac::ZERO.is_station());
    }
}
