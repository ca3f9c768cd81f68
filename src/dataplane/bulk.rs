//! Flows of many small datagrams: how they are noticed, and when their lane is read. Pure.
//!
//! A sender of a hundred thousand datagrams per second wakes the worker for every few of them, and each wake-up, send
//! and delivery takes the processor from the sender. Read every half millisecond instead, a hundred share them. Whatever
//! else uses the uplink must not wait for that, so such a flow gets a lane of its own ([`Lane::Bulk`](super::io::Lane)).
//!
//! 1. A flow that has most of the single frames of a window, and enough of them, is diverted.
//! 2. While a lane has flows it is read once per pause; at first not before all older frames in the common lane.
//! 3. When it brings few, its flows are restored; until that has happened it is read before each frame of the common
//!    lane is sent.

use std::time::Duration;

use crate::wire::flow::DatagramFlow;

/// Datagrams per second of one flow from which it gets the lane.
const ENTER_RATE: u64 = 40_000;
/// Datagrams per second in the lane below which its flows go back.
const LEAVE_RATE: u64 = 20_000;
/// How long a flow is watched before it is diverted.
const ENTER_WINDOW_NS: u64 = 20_000_000;
/// How long the lane is watched before its flows go back.
const LEAVE_WINDOW_NS: u64 = 100_000_000;
/// A common lane that is never empty has a queue; what was in it is gone after this time.
const JOIN_MAX_NS: u64 = 100_000_000;

/// Finds the flow that has the majority of an uplink's datagrams (Boyer and Moore's vote).
#[derive(Clone, Copy, Debug, Default)]
pub struct Detector {
    candidate: DatagramFlow,
    /// Its datagrams less all others'.
    votes: u64,
    since_ns: u64,
}

impl Detector {
    /// Notes one datagram. Returns its flow when a window has ended in which that flow had a majority and the rate.
    #[inline]
    pub fn note(&mut self, flow: DatagramFlow, now_ns: u64) -> Option<DatagramFlow> {
        if flow == self.candidate {
            self.votes += 1;
        } else if self.votes == 0 {
            (self.candidate, self.votes) = (flow, 1);
        } else {
            self.votes -= 1;
        }
        let elapsed = now_ns.saturating_sub(self.since_ns);
        if elapsed < ENTER_WINDOW_NS {
            return None;
        }
        let heavy = is_rate(self.votes, elapsed, ENTER_RATE);
        (self.votes, self.since_ns) = (0, now_ns);
        heavy.then_some(self.candidate)
    }
}

/// What the owner of a lane has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No flow is diverted: nothing comes in the lane.
    Off,
    /// A flow was diverted: its frames in the common lane are older. Once no more of them can come there, and it was read
    /// until it was empty, it is this lane's turn.
    Joining,
    /// Read this lane when it is due.
    On,
    /// Flows are on their way back: what is in this lane goes before each frame of the common one.
    Restoring,
}

/// When the bulk lane of one uplink is read.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    phase: Phase,
    pause_ns: u64,
    due_ns: u64,
    frames: u64,
    since_ns: u64,
    /// Since when the flows that are joining come here alone.
    settled_ns: Option<u64>,
}

impl Pace {
    /// A lane without flows, to be read every `pause`.
    pub fn new(pause: Duration) -> Pace {
        Pace {
            phase: Phase::Off,
            pause_ns: pause.as_nanos() as u64,
            due_ns: 0,
            frames: 0,
            since_ns: 0,
            settled_ns: None,
        }
    }

    /// Whether flows are to be diverted at all.
    #[inline]
    pub fn is_enabled(&self) -> bool {
        self.pause_ns > 0
    }

    /// What the lane is doing.
    #[inline]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// When the lane is to be read next.
    #[inline]
    pub fn due_ns(&self) -> Option<u64> {
        (self.phase != Phase::Off).then_some(self.due_ns)
    }

    /// A flow was diverted; not while others are on their way back.
    pub fn diverted(&mut self, now_ns: u64) {
        debug_assert!(self.phase != Phase::Restoring);
        if self.phase == Phase::Off {
            self.due_ns = now_ns + self.pause_ns;
            (self.frames, self.since_ns) = (0, now_ns);
        }
        (self.phase, self.settled_ns) = (Phase::Joining, None);
    }

    /// The common lane was read: until it was empty, or as long as a turn lasts. `settled`: before that all that was asked
    /// for had happened. Returns whether it is this lane's turn.
    pub fn join(&mut self, settled: bool, emptied: bool, now_ns: u64) -> bool {
        if !settled {
            self.settled_ns = None;
            self.due_ns = now_ns + self.pause_ns;
            return false;
        }
        let since_ns = *self.settled_ns.get_or_insert(now_ns);
        let joined = emptied || now_ns.saturating_sub(since_ns) >= JOIN_MAX_NS;
        if joined {
            self.phase = Phase::On;
        } else {
            self.due_ns = now_ns;
        }
        joined
    }

    /// The lane was read, until it was empty or as long as its turn lasts: `frames` came. Returns whether its flows are to
    /// be restored.
    pub fn read(&mut self, frames: u64, emptied: bool, now_ns: u64) -> bool {
        self.frames += frames;
        self.due_ns = if emptied {
            now_ns + self.pause_ns
        } else {
            now_ns
        };
        let elapsed = now_ns.saturating_sub(self.since_ns);
        if elapsed < LEAVE_WINDOW_NS || self.phase != Phase::On {
            return false;
        }
        let few = !is_rate(self.frames, elapsed, LEAVE_RATE);
        (self.frames, self.since_ns) = (0, now_ns);
        few
    }

    /// The lane's flows were asked back.
    pub fn restoring(&mut self) {
        self.phase = Phase::Restoring;
    }

    /// The flows are back, and the lane was read empty after that.
    pub fn restored(&mut self) {
        self.phase = Phase::Off;
    }
}

fn is_rate(count: u64, elapsed_ns: u64, per_second: u64) -> bool {
    u128::from(count) * 1_000_000_000 >= u128::from(per_second) * u128::from(elapsed_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn flow(port: u32) -> DatagramFlow {
        DatagramFlow {
            ports: port,
            ..DatagramFlow::default()
        }
    }

    /// Notes `rate` datagrams per second for `ms`, of flows in turn, and returns those that were found.
    fn found(flows: &[u32], rate: u64, ms: u64) -> Vec<DatagramFlow> {
        let mut detector = Detector::default();
        let step = 1_000_000_000 / rate;
        let count = ms * MS / step;
        let ports = flows.iter().cycle();
        (1..=count)
            .zip(ports)
            .filter_map(|(index, port)| detector.note(flow(*port), index * step))
            .collect()
    }

    #[test]
    fn a_heavy_flow_is_found_within_two_windows() {
        assert_eq!(found(&[7], 50_000, 45), [flow(7), flow(7)]);
        assert_eq!(found(&[7, 7, 7, 8], 100_000, 25), [flow(7)]);
    }

    #[test]
    fn slow_flows_and_crowds_are_not() {
        assert_eq!(found(&[7], 30_000, 500), []);
        assert_eq!(found(&[7, 8], 100_000, 500), [], "no majority");
        let crowd: Vec<u32> = (0..1000).collect();
        assert_eq!(found(&crowd, 500_000, 500), []);
    }

    #[test]
    fn a_burst_is_not_a_rate() {
        let mut detector = Detector::default();
        detector.note(flow(1), 1);
        let heard = (0..700).filter_map(|_| detector.note(flow(1), 30 * MS));
        assert_eq!(heard.count(), 0);
    }

    #[test]
    fn a_lane_that_dries_up_is_given_back_once() {
        let mut pace = Pace::new(Duration::from_micros(500));
        assert_eq!((pace.phase(), pace.due_ns()), (Phase::Off, None));
        pace.diverted(MS);
        assert_eq!(pace.due_ns(), Some(MS + MS / 2));
        let mut now = MS;
        assert!(
            !pace.join(false, true, now),
            "frames may still come elsewhere"
        );
        assert!(pace.join(true, true, now));
        for _ in 0..1000 {
            now += MS / 2;
            assert!(!pace.read(20, true, now), "40,000 per second stay");
        }
        let mut told = 0;
        for _ in 0..1000 {
            now += MS / 2;
            if pace.read(5, true, now) {
                told += 1;
                pace.restoring();
            }
        }
        assert_eq!((told, pace.phase()), (1, Phase::Restoring));
        assert!(!pace.read(0, true, now + 1000 * MS));
        pace.restored();
        assert_eq!(pace.due_ns(), None);
    }

    #[test]
    fn a_common_lane_that_is_never_empty_does_not_keep_a_flow_out_for_ever() {
        let mut pace = Pace::new(Duration::from_micros(500));
        pace.diverted(MS);
        assert!(!pace.join(true, false, 2 * MS));
        assert!(!pace.join(true, false, 101 * MS));
        assert_eq!(pace.due_ns(), Some(101 * MS), "again at once");
        pace.diverted(101 * MS);
        assert!(!pace.join(true, false, 102 * MS), "another flow came");
        assert!(pace.join(true, false, 202 * MS));
        assert_eq!(pace.phase(), Phase::On);
    }

    #[test]
    fn without_a_pause_there_is_no_lane() {
        assert!(!Pace::new(Duration::ZERO).is_enabled());
    }
}
