//! The neighbour table: (segment, IP) → MAC, for ARP and ND answers and for spoof checks.

use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;

use arc_swap::Guard;

use super::atomic_map::{AtomicMap, Table};
use super::network::SegmentIndex;
use crate::wire::Mac;

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The station.
    pub mac: Mac,
    /// Whether it is on this node: then it answers for itself.
    pub local: bool,
}

const PRESENT: u64 = 1 << 63;
const LOCAL: u64 = 1 << 62;

#[inline]
fn key(segment: SegmentIndex, ip: IpAddr) -> [u64; 3] {
    let head = (u64::from(segment.0) + 1) << 8;
    match ip {
        IpAddr::V4(v4) => [head | 4, 0, u64::from(u32::from(v4))],
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            [head | 6, (bits >> 64) as u64, bits as u64]
        }
    }
}

fn pack(neighbour: Neighbour) -> NonZeroU64 {
    let local = if neighbour.local { LOCAL } else { 0 };
    NonZeroU64::new(PRESENT | local | neighbour.mac.to_u64()).expect("PRESENT is set")
}

fn unpack(word: NonZeroU64) -> Neighbour {
    Neighbour {
        mac: Mac::from_u64(word.get()),
        local: word.get() & LOCAL != 0,
    }
}

/// The table all workers read.
#[derive(Debug)]
pub struct NeighbourTable(AtomicMap<3>);

/// The table as one burst sees it.
pub struct NeighbourView(Guard<Arc<Table<3>>>);

impl NeighbourView {
    /// Who has `ip` on the segment.
    #[inline]
    pub fn find(&self, segment: SegmentIndex, ip: IpAddr) -> Option<Neighbour> {
        self.0.find(&key(segment, ip)).map(unpack)
    }
}

impl NeighbourTable {
    /// An empty table.
    pub fn new(seed: u64) -> NeighbourTable {
        NeighbourTable(AtomicMap::new(seed))
    }

    /// The table for one burst.
    #[inline]
    pub fn view(&self) -> NeighbourView {
        NeighbourView(self.0.load())
    }

    /// Writer: sets who has `ip`.
    pub fn insert(
        &self,
        segment: SegmentIndex,
        ip: IpAddr,
        neighbour: Neighbour,
    ) -> Option<Neighbour> {
        self.0.insert(key(segment, ip), pack(neighbour)).map(unpack)
    }

    /// Writer: forgets `ip`.
    pub fn remove(&self, segment: SegmentIndex, ip: IpAddr) -> Option<Neighbour> {
        self.0.remove(&key(segment, ip)).map(unpack)
    }

    /// Number of addresses.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes held by the table.
    pub fn memory_len(&self) -> usize {
        self.0.memory_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_and_segments_do_not_mix() {
        let table = NeighbourTable::new(1);
        let (a, b) = (SegmentIndex(0), SegmentIndex(1));
        let one = Neighbour {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            local: true,
        };
        let two = Neighbour {
            mac: Mac([2, 0, 0, 0, 0, 2]),
            local: false,
        };
        let (v4, v6) = ("0.0.0.1".parse().unwrap(), "::1".parse().unwrap());
        table.insert(a, v4, one);
        table.insert(a, v6, two);
        assert_eq!(table.view().find(a, v4), Some(one));
        assert_eq!(table.view().find(a, v6), Some(two));
        assert_eq!(table.view().find(b, v4), None);
        assert_eq!(table.remove(a, v4), Some(one));
        assert_eq!((table.view().find(a, v4), table.len()), (None, 1));
    }
}
