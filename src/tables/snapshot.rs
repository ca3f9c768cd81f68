//! What workers read: the snapshot of segments and VTEPs, and one burst's view of all tables.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use rustc_hash::FxHashMap;

use super::fdb::{Fdb, FdbView};
use super::neigh::{NeighbourTable, NeighbourView};
use super::network::{Segment, SegmentIndex, Vtep};

/// Segments and VTEPs at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By [`SegmentIndex`]; `None` where a segment was removed.
    pub segments: Vec<Option<Arc<Segment>>>,
    /// By VTEP index; indices are never reused.
    pub vteps: Vec<Vtep>,
    /// VNI number → segment.
    pub by_vni: FxHashMap<u32, SegmentIndex>,
    /// Underlay address → VTEP index.
    pub vtep_by_addr: FxHashMap<IpAddr, u32>,
}

impl Snapshot {
    /// The segment of this number.
    #[inline]
    pub fn segment(&self, index: SegmentIndex) -> Option<&Arc<Segment>> {
        self.segments.get(usize::from(index.0))?.as_ref()
    }

    /// The segment of this VNI.
    #[inline]
    pub fn segment_by_vni(&self, vni: u32) -> Option<&Arc<Segment>> {
        self.segment(*self.by_vni.get(&vni)?)
    }
}

/// All tables, shared between the writer and the workers.
#[derive(Debug)]
pub struct Tables {
    /// (segment, MAC) → station.
    pub fdb: Fdb,
    /// (segment, IP) → MAC.
    pub neigh: NeighbourTable,
    pub(super) snapshot: ArcSwap<Snapshot>,
}

/// The tables as one burst sees them. Cheap to take; must not be held while sleeping.
pub struct View {
    /// Stations.
    pub fdb: FdbView,
    /// Neighbours.
    pub neigh: NeighbourView,
    /// Segments and VTEPs.
    pub snapshot: Guard<Arc<Snapshot>>,
}

impl Tables {
    pub(super) fn new(seed: u64) -> Tables {
        Tables {
            fdb: Fdb::new(seed),
            neigh: NeighbourTable::new(seed.rotate_left(32)),
            snapshot: ArcSwap::default(),
        }
    }

    /// One burst's view.
    #[inline]
    pub fn view(&self) -> View {
        View {
            fdb: self.fdb.view(),
            neigh: self.neigh.view(),
            snapshot: self.snapshot.load(),
        }
    }

    /// The current snapshot, for the control plane.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }
}
