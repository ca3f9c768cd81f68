//! Known pseudo-random bytes, and a fast hash over a stream of them. Pure.
//!
//! The bytes at any offset of a stream follow from its seed alone, so a receiver can say where
//! exactly a stream went wrong; the hash is a second opinion that shares no code path with that.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The mixing step of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The eight bytes of stream `seed` at byte offset `index * 8`.
fn word(seed: u64, index: u64) -> [u8; 8] {
    mix(mix(seed).wrapping_add(index.wrapping_mul(GOLDEN))).to_le_bytes()
}

/// Fills `out` with the bytes of stream `seed` from `offset` on.
pub fn fill(seed: u64, offset: u64, out: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let head = if skip == 0 {
        0
    } else {
        (8 - skip).min(out.len())
    };
    let (first, rest) = out.split_at_mut(head);
    first.copy_from_slice(&word(seed, offset / 8)[skip..skip + head]);
    let base = (offset + head as u64) / 8;
    for (index, chunk) in rest.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&word(seed, base + index as u64)[..chunk.len()]);
    }
}

/// First position where `got` differs from stream `seed` at `offset`; `scratch` is as long as `got`.
pub fn first_difference(seed: u64, offset: u64, got: &[u8], scratch: &mut [u8]) -> Option<u64> {
    let expected = &mut scratch[..got.len()];
    fill(seed, offset, expected);
    if got == expected {
        return None;
    }
    let position = got.iter().zip(expected.iter()).position(|(a, b)| a != b)?;
    Some(offset + position as u64)
}

/// A 64-bit hash of a byte stream, whatever pieces it comes in. Four independent multiply-mix
/// lanes over 32-byte blocks; for finding accidents, not for resisting attackers.
#[derive(Clone, Debug)]
pub struct Digest {
    lanes: [u64; 4],
    pending: [u8; 32],
    pending_len: usize,
    len: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            lanes: [1, 2, 3, 4].map(mix),
            pending: [0; 32],
            pending_len: 0,
            len: 0,
        }
    }
}

impl Digest {
    /// Takes the next bytes of the stream.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len() as u64;
        if self.pending_len > 0 {
            let take = bytes.len().min(32 - self.pending_len);
            self.pending[self.pending_len..][..take].copy_from_slice(&bytes[..take]);
            self.pending_len += take;
            bytes = &bytes[take..];
            if self.pending_len < 32 {
                return;
            }
            let block = self.pending;
            self.block(&block);
            self.pending_len = 0;
        }
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            self.block(block);
        }
        self.pending[..rest.len()].copy_from_slice(rest);
        self.pending_len = rest.len();
    }

    fn block(&mut self, block: &[u8; 32]) {
        for (lane, bytes) in self.lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            let value = u64::from_le_bytes(*bytes);
            *lane = (*lane ^ value).wrapping_mul(GOLDEN | 1).rotate_left(29);
        }
    }

    /// The hash of everything taken so far.
    pub fn finish(&self) -> u64 {
        let mut whole = self.clone();
        let mut last = [0; 32];
        last[..self.pending_len].copy_from_slice(&self.pending[..self.pending_len]);
        whole.block(&last);
        whole.lanes.iter().fold(mix(self.len), |hash, lane| {
            mix(hash ^ lane).wrapping_add(GOLDEN)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_whatever_pieces_it_is_made_in() {
        let mut whole = vec![0; 1000];
        fill(7, 0, &mut whole);
        for (start, len) in [(0, 1), (1, 3), (3, 20), (8, 8), (13, 400), (999, 1)] {
            let mut piece = vec![0; len];
            fill(7, start as u64, &mut piece);
            assert_eq!(piece, &whole[start..start + len], "at {start}+{len}");
        }
    }

    #[test]
    fn streams_of_other_seeds_differ() {
        let (mut one, mut two) = ([0; 64], [0; 64]);
        fill(1, 0, &mut one);
        fill(2, 0, &mut two);
        assert_ne!(one, two);
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let (mut bytes, mut scratch) = (vec![0; 300], vec![0; 300]);
        fill(9, 5000, &mut bytes);
        assert_eq!(first_difference(9, 5000, &bytes, &mut scratch), None);
        bytes[123] ^= 1;
        bytes[200] ^= 1;
        assert_eq!(first_difference(9, 5000, &bytes, &mut scratch), Some(5123));
    }

    #[test]
    fn the_hash_does_not_depend_on_the_pieces() {
        let mut bytes = vec![0; 10_000];
        fill(3, 0, &mut bytes);
        let mut whole = Digest::default();
        whole.update(&bytes);
        for step in [1, 7, 31, 32, 33, 1000] {
            let mut pieces = Digest::default();
            bytes.chunks(step).for_each(|piece| pieces.update(piece));
            assert_eq!(pieces.finish(), whole.finish(), "pieces of {step}");
        }
    }

    #[test]
    fn the_hash_sees_flips_swaps_and_missing_ends() {
        let mut bytes = vec![0; 4096];
        fill(3, 0, &mut bytes);
        let hash = |bytes: &[u8]| {
            let mut digest = Digest::default();
            digest.update(bytes);
            digest.finish()
        };
        let good = hash(&bytes);
        assert_ne!(hash(&bytes[..4095]), good);
        let mut flipped = bytes.clone();
        flipped[2000] ^= 0x10;
        assert_ne!(hash(&flipped), good);
        let (left, right) = bytes.split_at(2048);
        assert_ne!(hash(&[right, left].concat()), good);
        assert_ne!(hash(&[&bytes[..], &[0]].concat()), good);
    }
}
