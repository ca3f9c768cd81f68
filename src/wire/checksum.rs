//! RFC 1071 internet checksums.
//!
//! Sums are carried as *native-order* 64-bit accumulators: a one's complement sum does not depend on
//! byte order as long as bytes are loaded and the result stored in the same order (RFC 1071 §2(B)).
//! So the value of [`fold`] is stored with `to_ne_bytes`.
//!
//! The loop adds 64-bit words into four 128-bit accumulators: each is an add and an add-with-carry on
//! registers, four independent chains, which runs at load speed. On a Xeon with AVX-512 this measured
//! 36 GB/s on 1398 bytes against 19 GB/s for the form LLVM vectorises with SSE2 (32-bit words widened
//! to 64) and 26 GB/s for the same with AVX2, and needs neither `unsafe` nor run-time dispatch.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Adds `bytes` to the running sum `seed`. The data is taken as starting at an even offset.
///
/// The result is at most `seed` plus 2^35, so sums of any number of packet parts fit.
#[inline]
pub fn sum(bytes: &[u8], seed: u64) -> u64 {
    let mut lanes = [0u128; 4];
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (i, word) in words.iter().enumerate() {
            lanes[i % 4] += u128::from(u64::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        lanes[0] += u128::from(u64::from_ne_bytes(*word));
    }
    let total = lanes[0] + lanes[1] + lanes[2] + lanes[3];
    // 2^64 is 1 in one's complement arithmetic, and so is 2^32: the parts may simply be added.
    seed + (total >> 64) as u64 + halves(total as u64) + tail(rest)
}

/// The sum of less than eight bytes.
#[inline]
fn tail(mut rest: &[u8]) -> u64 {
    let mut total = 0;
    if let Some((word, after)) = rest.split_first_chunk::<4>() {
        total += u64::from(u32::from_ne_bytes(*word));
        rest = after;
    }
    if let Some((word, after)) = rest.split_first_chunk::<2>() {
        total += u64::from(u16::from_ne_bytes(*word));
        rest = after;
    }
    if let Some(last) = rest.first() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

#[inline]
fn halves(v: u64) -> u64 {
    (v & 0xffff_ffff) + (v >> 32)
}

/// Folds a running sum to 16 bits, not complemented.
#[inline]
pub fn fold(s: u64) -> u16 {
    let mut s = halves(halves(s));
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    s as u16
}

/// The checksum to store (native order): the complement of the folded sum.
#[inline]
pub fn finish(s: u64) -> u16 {
    !fold(s)
}

/// A big-endian 16-bit field as an addend.
#[inline]
pub fn be16(v: u16) -> u64 {
    u64::from(v.to_be())
}

/// A big-endian 32-bit field as an addend.
#[inline]
pub fn be32(v: u32) -> u64 {
    u64::from(v.to_be())
}

/// The IPv4 pseudo-header as an addend; `len` is the layer-4 length in bytes, header included
/// (RFC 768, RFC 9293 §3.1). Lengths over 65535 are those of super-frames, summed as Linux does.
#[inline]
pub fn pseudo_v4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, len: u32) -> u64 {
    let addr = |a: Ipv4Addr| u64::from(u32::from_ne_bytes(a.octets()));
    addr(src) + addr(dst) + be16(u16::from(proto)) + be32(len)
}

/// The IPv6 pseudo-header as an addend; `len` is the upper-layer length in bytes (RFC 8200 §8.1).
#[inline]
pub fn pseudo_v6(src: Ipv6Addr, dst: Ipv6Addr, proto: u8, len: u32) -> u64 {
    let seed = be16(u16::from(proto)) + be32(len);
    sum(&dst.octets(), sum(&src.octets(), seed))
}

/// The checksum after one 16-bit field changed from `old` to `new` (RFC 1624 equation 3).
///
/// All three must be in the same byte order; the result is in that order too.
#[inline]
pub fn replace16(check: u16, old: u16, new: u16) -> u16 {
    finish(u64::from(!check) + u64::from(!old) + u64::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §4.1, in network order, one 16-bit word at a time.
    fn reference(bytes: &[u8]) -> u16 {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            let word = [pair[0], *pair.get(1).unwrap_or(&0)];
            total += u32::from(u16::from_be_bytes(word));
            total = (total & 0xffff) + (total >> 16);
        }
        !(total as u16)
    }

    #[test]
    fn worked_example_of_rfc_1071_comes_out() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&data, 0)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn all_ones_of_any_length_do_not_overflow() {
        let data = vec![0xff; 200_001];
        for len in (0..200).chain([65_535, 190_000, 200_001]) {
            let sum = finish(sum(&data[..len], 0));
            assert_eq!(
                sum.to_ne_bytes(),
                reference(&data[..len]).to_be_bytes(),
                "{len}"
            );
        }
    }

    #[test]
    fn accumulators_near_the_top_fold_without_losing_carries() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0xffff_ffff_0000_0001), 1);
        assert_eq!(fold(0), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_bytes_at_any_alignment_agree_with_the_reference(
            bytes in proptest::collection::vec(any::<u8>(), 0..700),
            start in 0usize..64,
        ) {
            let bytes = &bytes[start.min(bytes.len())..];
            prop_assert_eq!(finish(sum(bytes, 0)).to_ne_bytes(), reference(bytes).to_be_bytes());
        }

        #[test]
        fn a_sum_may_be_made_in_parts_cut_at_even_offsets(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            cut in 0usize..150,
        ) {
            let cut = (cut * 2).min(bytes.len() & !1);
            let parts = sum(&bytes[cut..], sum(&bytes[..cut], 0));
            prop_assert_eq!(fold(parts), fold(sum(&bytes, 0)));
        }

        #[test]
        fn replacing_a_word_equals_summing_again(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..64),
            new in any::<[u8; 2]>(),
        ) {
            bytes[0] = 0x45; // as in an IP header, some word is never zero
            let before = finish(sum(&bytes, 0));
            let old = u16::from_ne_bytes([bytes[2], bytes[3]]);
            bytes[2..4].copy_from_slice(&new);
            prop_assert_eq!(
                replace16(before, old, u16::from_ne_bytes(new)),
                finish(sum(&bytes, 0))
            );
        }

        #[test]
        fn pseudo_headers_equal_their_bytes(
            src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(),
            proto in any::<u8>(), len in any::<u32>(),
        ) {
            let mut v6 = [src, dst].concat();
            v6.extend(len.to_be_bytes());
            v6.extend([0, 0, 0, proto]);
            let made = pseudo_v6(src.into(), dst.into(), proto, len);
            prop_assert_eq!(fold(made), fold(sum(&v6, 0)));

            let (src, dst) = ([src[0], src[1], src[2], src[3]], [dst[0], dst[1], dst[2], dst[3]]);
            let mut v4 = [src, dst].concat();
            v4.extend([0, proto]);
            v4.extend((len as u16).to_be_bytes());
            let made = pseudo_v4(src.into(), dst.into(), proto, len & 0xffff);
            prop_assert_eq!(fold(made), fold(sum(&v4, 0)));
        }
    }
}
