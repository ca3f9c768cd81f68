//! The hash of an inner flow, and the outer UDP source port made of it (RFC 7348 §5: entropy for
//! ECMP and receive queues, from 49152 to 65535).
//!
//! One flow always gives one value, so nothing is reordered. Fragments hash by addresses alone: only
//! the first has ports, and all must take one path.

use super::inner::{Inner, Kind, PROTO_UDP, chunk};

/// The lowest source port: the start of the dynamic range (RFC 6335 §6).
pub const SOURCE_PORT_MIN: u16 = 49152;

/// A hash of the flow `frame` belongs to: addresses, protocol and ports of unfragmented TCP and UDP,
/// addresses and protocol of other IP, MACs and EtherType of anything else. Directions differ.
#[inline]
pub fn hash(frame: &[u8], inner: &Inner) -> u32 {
    let l3 = usize::from(inner.l3);
    let upper = u64::from(inner.proto) << 32 | ports_word(frame, inner);
    let (a, b) = match inner.kind {
        Kind::Ipv4 => (word(frame, l3 + 12), upper),
        Kind::Ipv6 => {
            let src = mix(word(frame, l3 + 8) ^ K0, word(frame, l3 + 16) ^ K1);
            let dst = mix(word(frame, l3 + 24) ^ K2, word(frame, l3 + 32) ^ K3);
            (src ^ dst.rotate_left(32), upper)
        }
        Kind::Arp | Kind::Other => {
            let tag = u64::from(inner.ethertype) << 48;
            (inner.src.to_u64() | tag, inner.dst.to_u64())
        }
    };
    let h = mix(mix(a ^ K0, b ^ K1) ^ a, K2 ^ b);
    (h ^ h >> 32) as u32
}

/// The outer UDP source port for a flow hash, in 49152..=65535.
#[inline]
pub const fn source_port(hash: u32) -> u16 {
    SOURCE_PORT_MIN | (hash >> 18) as u16
}

/// A flow of unfragmented UDP as far as a socket filter compares it: of addresses the last four bytes alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DatagramFlow {
    /// Over IPv6.
    pub v6: bool,
    /// Last four bytes of the source address, big endian.
    pub source: u32,
    /// Last four bytes of the destination address, big endian.
    pub destination: u32,
    /// Source port, then destination port.
    pub ports: u32,
}

impl DatagramFlow {
    /// The flow of a frame; `None` for all but UDP in one piece, untagged and without IPv6 extension headers.
    #[inline]
    pub fn of(frame: &[u8], inner: &Inner) -> Option<DatagramFlow> {
        if inner.proto != PROTO_UDP || inner.vlan.is_some() || !inner.has_ports() {
            return None;
        }
        let (l3, l4) = (usize::from(inner.l3), usize::from(inner.l4));
        let (source, destination) = match inner.kind {
            Kind::Ipv4 => (12, 16),
            Kind::Ipv6 if !inner.has_options => (20, 36),
            _ => return None,
        };
        let word = |at| chunk::<4>(frame, at).map(|bytes| u32::from_be_bytes(*bytes));
        Some(DatagramFlow {
            v6: inner.kind == Kind::Ipv6,
            source: word(l3 + source)?,
            destination: word(l3 + destination)?,
            ports: word(l4)?,
        })
    }
}

#[inline]
fn ports_word(frame: &[u8], inner: &Inner) -> u64 {
    if !inner.has_ports() || usize::from(inner.l4) + 4 > inner.end {
        return 0;
    }
    chunk::<4>(frame, usize::from(inner.l4)).map_or(0, |p| u64::from(u32::from_le_bytes(*p)))
}

#[inline]
fn word(frame: &[u8], at: usize) -> u64 {
    chunk::<8>(frame, at).map_or(0, |b| u64::from_le_bytes(*b))
}

/// Both halves of the 128-bit product, as wyhash does: every input bit reaches most output bits.
#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let p = u128::from(a) * u128::from(b);
    p as u64 ^ (p >> 64) as u64
}

/// Odd constants with 32 bits set each (wyhash's defaults).
const K0: u64 = 0xa076_1d64_78bd_642f;
const K1: u64 = 0xe703_7ed1_a0b4_28db;
const K2: u64 = 0x8ebc_6af0_9c88_c6e3;
const K3: u64 = 0x5899_65cc_7537_4cc3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::inner;

    fn udp_frame(src: u32, dst: u32, sport: u16, dport: u16, fragment: u16) -> Vec<u8> {
        let mut f = vec![2, 0x42, 0, 0, 0, 1, 2, 0x42, 0, 0, 0, 2, 0x08, 0];
        f.extend([0x45, 0, 0, 28, 0, 0]);
        f.extend(fragment.to_be_bytes());
        f.extend([64, 17, 0, 0]);
        f.extend(src.to_be_bytes());
        f.extend(dst.to_be_bytes());
        f.extend(sport.to_be_bytes());
        f.extend(dport.to_be_bytes());
        f.extend([0, 8, 0, 0]);
        f
    }

    fn hash_of(frame: &[u8]) -> u32 {
        hash(frame, &inner::parse(frame).unwrap())
    }

    #[test]
    fn ports_stay_in_the_dynamic_range_and_reach_both_ends() {
        assert_eq!(source_port(0), 49152);
        assert_eq!(source_port(u32::MAX), 65535);
    }

    #[test]
    fn fragments_of_one_datagram_hash_alike_whatever_their_ports() {
        let first = hash_of(&udp_frame(1, 2, 1000, 53, 0x2000));
        let later = hash_of(&udp_frame(1, 2, 7, 9, 0x2010));
        assert_eq!(first, later);
        assert_ne!(first, hash_of(&udp_frame(1, 2, 1000, 53, 0)));
    }

    #[test]
    fn every_input_bit_flips_about_half_of_the_hash() {
        let frame = udp_frame(0x0a00_0102, 0x0a00_0103, 40000, 5201, 0);
        let base = hash_of(&frame);
        for bit in 0..96 {
            // addresses and ports are bytes 26..38
            let mut flips = 0;
            for salt in 0..64u8 {
                let mut a = frame.clone();
                a[37] ^= salt.wrapping_mul(37);
                let mut b = a.clone();
                b[26 + bit / 8] ^= 1 << (bit % 8);
                flips += (hash_of(&a) ^ hash_of(&b)).count_ones();
            }
            let mean = f64::from(flips) / 64.0;
            assert!((12.0..20.0).contains(&mean), "bit {bit}: {mean} of 32");
        }
        assert_eq!(base, hash_of(&frame));
    }

    #[test]
    fn neighbouring_flows_spread_evenly_over_source_ports() {
        let mut buckets = [0u32; 64];
        for i in 0..6400u16 {
            let f = udp_frame(0x0a00_0102, 0x0a00_0103, 32768 + i, 5201, 0);
            buckets[usize::from(source_port(hash_of(&f)) >> 8 & 63)] += 1;
        }
        let worst = buckets.iter().max().unwrap();
        assert!(
            *worst < 160,
            "fullest of 64 buckets has {worst}, fair is 100"
        );
    }

    #[test]
    fn non_ip_frames_hash_by_their_addresses() {
        let mut f = vec![
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0x42, 0, 0, 0, 2, 0x88, 0xcc,
        ];
        let a = hash_of(&f);
        f[11] = 3;
        assert_ne!(a, hash_of(&f));
    }
}
