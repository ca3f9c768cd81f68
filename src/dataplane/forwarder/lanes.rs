//! The lanes of a worker's uplinks: which is read when, and in which order. What a lane is like over time is in
//! [`crate::dataplane::bulk`].

use super::Worker;
use crate::dataplane::bulk::Phase;
use crate::dataplane::io::{FramePort, Lane, Underlay};
use crate::tables::{SegmentIndex, View};
use crate::wire::flow::DatagramFlow;
use crate::wire::inner::Inner;

/// How long after a frame that is not TCP's more of them are expected.
pub(super) const SHARED_NS: u64 = 100_000_000;

/// Most bursts of one turn of a bulk lane.
const BULK_BURSTS: usize = 4;

impl<P: FramePort, U: Underlay> Worker<P, U> {
    /// One burst of a lane of an uplink that is ready. Returns how many frames were read.
    pub fn uplink_burst(&mut self, segment: SegmentIndex, lane: Lane, now_ns: u64) -> usize {
        self.select_lane(segment, lane);
        let reads = self.encap_burst(segment, now_ns);
        if lane == Lane::Rest && reads > 0 {
            self.shared_until_ns = now_ns + SHARED_NS;
        }
        reads
    }

    /// Whether something else than TCP has come of late, and so is expected.
    #[inline]
    pub fn is_shared(&self, now_ns: u64) -> bool {
        now_ns < self.shared_until_ns
    }

    /// When [`Self::bulk_round`] has something to do next.
    #[inline]
    pub fn bulk_due_ns(&self) -> Option<u64> {
        let due = |segment: &SegmentIndex| {
            let port = self.ports.get(usize::from(segment.0))?.as_ref()?;
            port.pace.due_ns()
        };
        self.bulk.iter().filter_map(due).min()
    }

    /// Reads the bulk lanes that are due. Returns how many frames were read.
    pub fn bulk_round(&mut self, now_ns: u64) -> usize {
        let (mut frames, mut index) = (0, 0);
        while let Some(&segment) = self.bulk.get(index) {
            let port = self.ports.get(usize::from(segment.0));
            match port.and_then(|port| port.as_ref()?.pace.due_ns()) {
                Some(due_ns) => {
                    if due_ns <= now_ns {
                        frames += self.bulk_turn(segment, now_ns);
                    }
                    index += 1;
                }
                None => {
                    self.bulk.swap_remove(index);
                }
            }
        }
        frames
    }

    /// Reads a bulk lane until it is empty or has had its turn.
    fn bulk_turn(&mut self, segment: SegmentIndex, now_ns: u64) -> usize {
        let Some(Some(port)) = self.ports.get(usize::from(segment.0)) else {
            return 0;
        };
        let (phase, settled) = (port.pace.phase(), port.io.is_settled());
        let mut older = 0;
        if phase == Phase::Joining {
            older = self.read_lane(segment, Lane::Rest, now_ns);
            let emptied = self.emptied;
            let Some(Some(port)) = self.ports.get_mut(usize::from(segment.0)) else {
                return older;
            };
            // Another flow may have been diverted just now.
            let settled = settled && port.io.is_settled();
            if !port.pace.join(settled, emptied, now_ns) {
                return older;
            }
        }
        let frames = self.read_lane(segment, Lane::Bulk, now_ns);
        self.counters.bulk_frames.add(frames as u64);
        let emptied = self.emptied;
        if let Some(Some(port)) = self.ports.get_mut(usize::from(segment.0)) {
            if phase == Phase::Restoring && settled && emptied {
                port.pace.restored();
            } else if port.pace.read(frames as u64, emptied, now_ns) && port.io.restore() {
                port.pace.restoring();
            }
        }
        older + frames
    }

    /// Sends what waits in the bulk lane of an uplink whose flows are on their way back to the common lane: it is older
    /// than the frame that was just read there, which stays where it is in the arena.
    #[cold]
    pub(super) fn send_older(&mut self, view: &View, segment: SegmentIndex, now_ns: u64) {
        self.select_lane(segment, Lane::Bulk);
        while self.arena.has_room() {
            let Some(Some(port)) = self.ports.get_mut(usize::from(segment.0)) else {
                break;
            };
            let Ok(Some(received)) = port.io.recv(self.arena.free()) else {
                break;
            };
            self.counters.bulk_frames.add(1);
            let at = self.arena.position();
            self.arena.keep(received.len);
            self.encap_read(view, segment, at, received, now_ns);
        }
        self.select_lane(segment, Lane::Rest);
    }

    /// A few bursts of one lane, or fewer until it is [empty](Self::emptied).
    fn read_lane(&mut self, segment: SegmentIndex, lane: Lane, now_ns: u64) -> usize {
        self.select_lane(segment, lane);
        let mut frames = 0;
        for _ in 0..BULK_BURSTS {
            frames += self.encap_burst(segment, now_ns);
            if self.emptied {
                break;
            }
        }
        frames
    }

    /// Notes a single frame of the common lane; a flow with many of them is diverted.
    #[inline]
    pub(super) fn watch(
        &mut self,
        segment: SegmentIndex,
        frame: (usize, usize),
        inner: &Inner,
        now_ns: u64,
    ) {
        let Some(Some(port)) = self.ports.get_mut(usize::from(segment.0)) else {
            return;
        };
        // While flows are on their way back none sets out: what is older is in one lane or in the other.
        if port.lane != Lane::Rest
            || !port.pace.is_enabled()
            || port.pace.phase() == Phase::Restoring
        {
            return;
        }
        let frame = &self.arena.bytes()[frame.0..frame.1];
        if let Some(flow) = DatagramFlow::of(frame, inner)
            && let Some(heavy) = port.detector.note(flow, now_ns)
            && port.io.divert(heavy)
        {
            port.pace.diverted(now_ns);
            if !self.bulk.contains(&segment) {
                self.bulk.push(segment);
            }
        }
    }
}
