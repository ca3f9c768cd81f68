//! The forwarding database: (segment, MAC) → where the station is.
//!
//! Static entries come from the control plane; learned ones exist only on networks in interop mode
//! and can never replace a static one.

use std::num::NonZeroU64;
use std::sync::Arc;

use arc_swap::Guard;

use super::atomic_map::{AtomicMap, Table};
use super::network::SegmentIndex;
use crate::wire::Mac;

/// Where a station is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    /// A workload of this node.
    Local,
    /// The network's anycast gateway, present on every node.
    Gateway,
    /// Behind the VTEP of this index, told by the control plane.
    Remote(u32),
    /// Behind the VTEP of this index, learned from a frame at this second.
    Learned {
        /// VTEP index.
        vtep: u32,
        /// Monotonic seconds when last seen.
        seen_s: u32,
    },
}

impl Station {
    /// The VTEP index of a remote station.
    pub fn vtep(self) -> Option<u32> {
        match self {
            Station::Remote(vtep) | Station::Learned { vtep, .. } => Some(vtep),
            Station::Local | Station::Gateway => None,
        }
    }
}

// Value word: kind in bits 63..=61, learned time in bits 60..=32 (17 years of seconds), VTEP in 31..=0.
const KIND_SHIFT: u32 = 61;
const SEEN_MASK: u64 = (1 << 29) - 1;

fn pack(station: Station) -> NonZeroU64 {
    let word = match station {
        Station::Local => 1 << KIND_SHIFT,
        Station::Gateway => 2 << KIND_SHIFT,
        Station::Remote(vtep) => 3 << KIND_SHIFT | u64::from(vtep),
        Station::Learned { vtep, seen_s } => {
            4 << KIND_SHIFT | (u64::from(seen_s) & SEEN_MASK) << 32 | u64::from(vtep)
        }
    };
    NonZeroU64::new(word).expect("every kind sets a bit")
}

fn unpack(word: NonZeroU64) -> Station {
    let word = word.get();
    match word >> KIND_SHIFT {
        1 => Station::Local,
        2 => Station::Gateway,
        3 => Station::Remote(word as u32),
        _ => Station::Learned {
            vtep: word as u32,
            seen_s: (word >> 32 & SEEN_MASK) as u32,
        },
    }
}

/// Segment in the high 16 bits (plus one, so that the key is never zero), MAC in the low 48.
#[inline]
fn key(segment: SegmentIndex, mac: Mac) -> [u64; 1] {
    [(u64::from(segment.0) + 1) << 48 | mac.to_u64()]
}

/// The table all workers read.
#[derive(Debug)]
pub struct Fdb(AtomicMap<1>);

/// The table as one burst sees it.
pub struct FdbView(Guard<Arc<Table<1>>>);

impl FdbView {
    /// Where `mac` is. HOT PATH.
    #[inline(always)]
    pub fn find(&self, segment: SegmentIndex, mac: Mac) -> Option<Station> {
        self.0.find(&key(segment, mac)).map(unpack)
    }

    /// Notes that a learned station was seen again; true when the entry was still the same one.
    pub fn touch(&self, segment: SegmentIndex, mac: Mac, was: Station, now_s: u32) -> bool {
        let Station::Learned { vtep, .. } = was else {
            return false;
        };
        self.0.refresh(
            &key(segment, mac),
            pack(was),
            pack(Station::Learned {
                vtep,
                seen_s: now_s,
            }),
        )
    }
}

impl Fdb {
    /// An empty table.
    pub fn new(seed: u64) -> Fdb {
        Fdb(AtomicMap::new(seed))
    }

    /// The table for one burst.
    #[inline]
    pub fn view(&self) -> FdbView {
        FdbView(self.0.load())
    }

    /// Writer: sets a station.
    pub fn insert(&self, segment: SegmentIndex, mac: Mac, station: Station) -> Option<Station> {
        self.0.insert(key(segment, mac), pack(station)).map(unpack)
    }

    /// Writer: removes a station.
    pub fn remove(&self, segment: SegmentIndex, mac: Mac) -> Option<Station> {
        self.0.remove(&key(segment, mac)).map(unpack)
    }

    /// Number of stations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All stations, in no order.
    pub fn entries(&self) -> Vec<(SegmentIndex, Mac, Station)> {
        let row = |([word], value): ([u64; 1], NonZeroU64)| {
            (
                SegmentIndex((word >> 48) as u16 - 1),
                Mac::from_u64(word),
                unpack(value),
            )
        };
        self.0.entries().into_iter().map(row).collect()
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
    fn every_kind_of_station_survives_packing() {
        for station in [
            Station::Local,
            Station::Gateway,
            Station::Remote(0),
            Station::Remote(u32::MAX),
            Station::Learned {
                vtep: 7,
                seen_s: 123_456,
            },
        ] {
            assert_eq!(unpack(pack(station)), station);
        }
    }

    #[test]
    fn one_mac_in_two_segments_is_two_stations() {
        let fdb = Fdb::new(1);
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        fdb.insert(SegmentIndex(0), mac, Station::Local);
        fdb.insert(SegmentIndex(1), mac, Station::Remote(3));
        let view = fdb.view();
        assert_eq!(view.find(SegmentIndex(0), mac), Some(Station::Local));
        assert_eq!(view.find(SegmentIndex(1), mac), Some(Station::Remote(3)));
        assert_eq!(view.find(SegmentIndex(2), mac), None);
    }

    #[test]
    fn touching_refreshes_a_learned_station_only() {
        let fdb = Fdb::new(1);
        let (segment, mac) = (SegmentIndex(0), Mac([2, 0, 0, 0, 0, 1]));
        let learned = Station::Learned {
            vtep: 1,
            seen_s: 10,
        };
        fdb.insert(segment, mac, learned);
        assert!(fdb.view().touch(segment, mac, learned, 20));
        assert_eq!(
            fdb.view().find(segment, mac),
            Some(Station::Learned {
                vtep: 1,
                seen_s: 20
            })
        );
        assert!(
            !fdb.view().touch(segment, mac, learned, 30),
            "the entry changed meanwhile"
        );
        assert!(!fdb.view().touch(segment, mac, Station::Local, 30));
    }
}
