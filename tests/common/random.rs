//! Chance that can be repeated, and hostile frames made by it.

use weft::dataplane::split;
use weft::wire::{VnetHdr, inner};

/// SplitMix64: deterministic, so that a failure can be replayed by its seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `limit`; 0 of nothing.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Changes some of the first `depth` bytes, and cuts or extends.
    pub fn mutate(&mut self, frame: &mut Vec<u8>, depth: usize) {
        for _ in 0..self.below(5) {
            let at = self.below(frame.len().min(depth));
            if let Some(byte) = frame.get_mut(at) {
                *byte = self.next() as u8;
            }
        }
        match self.below(6) {
            0 => frame.truncate(self.below(frame.len() + 1)),
            1 => {
                let extra = self.below(100);
                frame.extend(self.bytes(extra));
            }
            _ => {}
        }
    }

    /// A virtio header of which most are nonsense.
    pub fn vnet(&mut self) -> VnetHdr {
        VnetHdr {
            flags: self.below(4) as u8,
            gso_type: [0, 1, 3, 4, 5, 0x81, 0x20, 255][self.below(8)],
            hdr_len: self.below(300) as u16,
            gso_size: [0, 1, 100, 536, 1400, 65_535][self.below(6)],
            csum_start: [14, 34, 54, self.below(120)][self.below(4)] as u16,
            csum_offset: [6, 16, self.below(40)][self.below(3)] as u16,
        }
    }
}

/// As how many frames on the wire a worker counts what it reads: a super-frame that can be cut as its
/// segments, anything else as one. `tag` is the VLAN tag that the kernel took out, TCI and TPID.
pub fn frames_in(mut vnet: VnetHdr, frame: &[u8], tag: Option<(u16, u16)>) -> u64 {
    if !vnet.is_gso() {
        return 1;
    }
    let mut frame = frame.to_vec();
    if let Some((tci, tpid)) = tag
        && frame.len() >= 12
    {
        frame.splice(12..12, [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
        vnet.csum_start = vnet.csum_start.saturating_add(4);
    }
    match (inner::parse_super(&frame), split::plan(&frame, &vnet)) {
        (Ok(_), Ok(plan)) => plan.count() as u64,
        _ => 1,
    }
}
