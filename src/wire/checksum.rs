//! RFC 1071 internet checksums.
//!
//! Sums are carried as *native-order* 64-bit accumulators: a one's complement sum does not depend on
//! byte order as long as bytes are loaded and the result stored in the same order (RFC 1071 §2(B)).
//! So the value of [`fold`] is stored with `to_ne_bytes`.

/// Adds `bytes` to the running sum `seed`. The data is taken as starting at an even offset.
pub fn sum(bytes: &[u8], seed: u64) -> u64 {
    let mut total = seed;
    let mut chunks = bytes.chunks_exact(4);
    for c in &mut chunks {
        total += u64::from(u32::from_ne_bytes([c[0], c[1], c[2], c[3]]));
    }
    let rest = chunks.remainder();
    if rest.len() >= 2 {
        total += u64::from(u16::from_ne_bytes([rest[0], rest[1]]));
    }
    if rest.len() % 2 == 1 {
        total += u64::from(u16::from_ne_bytes([rest[rest.len() - 1], 0]));
    }
    total
}

/// Folds a running sum to 16 bits, not complemented.
pub fn fold(mut s: u64) -> u16 {
    s = (s & 0xffff_ffff) + (s >> 32);
    s = (s & 0xffff_ffff) + (s >> 32);
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    s as u16
}

/// The checksum to store (native order): the complement of the folded sum.
pub fn finish(s: u64) -> u16 {
    !fold(s)
}

/// A big-endian 16-bit field as an addend.
pub fn be16(v: u16) -> u64 {
    u64::from(v.to_be())
}
