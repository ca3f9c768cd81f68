//! One direction of an impaired link: frames go in, fates are rolled, frames come out when due.
//!
//! Pure: time is an argument (nanoseconds of any clock that only moves forward) and the dice come from a
//! seed, so the same frames at the same times meet the same fate. Frames are conserved:
//! `offered + duplicated = delivered + every named drop + waiting`.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

use super::impair::{Impairment, RATE_BACKLOG_US, REORDER_HOLD_US};
use crate::wire::VnetHdr;

/// A frame on its way, with the offload header it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Checksum and segmentation left to do.
    pub vnet: VnetHdr,
    /// Ethernet header and on.
    pub bytes: Vec<u8>,
}

/// What became of the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneCounters {
    /// Frames that came in.
    pub offered: u64,
    /// Frames that went out, copies included.
    pub delivered: u64,
    /// Copies made.
    pub duplicated: u64,
    /// Frames held back so that others overtake.
    pub reordered: u64,
    /// Frames with a bit flipped.
    pub corrupted: u64,
    /// Dropped by the dice.
    pub drop_loss: u64,
    /// Dropped for their size.
    pub drop_mtu: u64,
    /// Dropped by a black hole or while the link was flapped down.
    pub drop_dead: u64,
    /// Dropped because too much was waiting.
    pub drop_queue: u64,
    /// Refused by the link they were to leave by.
    pub drop_send: u64,
    /// Frames waiting now.
    pub waiting: u64,
}

impl LaneCounters {
    /// Whether every frame is accounted for.
    pub fn balanced(&self) -> bool {
        let drops = self.drop_loss + self.drop_mtu + self.drop_dead + self.drop_queue;
        self.offered + self.duplicated == self.delivered + drops + self.drop_send + self.waiting
    }
}

/// One direction of an impaired link.
#[derive(Debug)]
pub struct Lane {
    impairment: Impairment,
    dice: Dice,
    changed_ns: u64,
    sending_until_ns: u64,
    queue: BinaryHeap<Reverse<Waiting>>,
    serial: u64,
    counters: LaneCounters,
}

impl Lane {
    /// A lane whose dice start from `seed`.
    pub fn new(impairment: Impairment, seed: u64, now_ns: u64) -> Lane {
        Lane {
            impairment,
            dice: Dice(seed),
            changed_ns: now_ns,
            sending_until_ns: now_ns,
            queue: BinaryHeap::new(),
            serial: 0,
            counters: LaneCounters::default(),
        }
    }

    /// Changes the ills and starts the dice anew; frames already waiting keep their time.
    pub fn change(&mut self, impairment: Impairment, seed: u64, now_ns: u64) {
        self.impairment = impairment;
        self.dice = Dice(seed);
        self.changed_ns = now_ns;
        self.sending_until_ns = now_ns;
    }

    /// Takes a frame in and decides its fate.
    pub fn offer(&mut self, now_ns: u64, frame: Frame) {
        self.counters.offered += 1;
        // Always the same number of rolls per frame: one frame's fate does not depend on another's.
        let rolls = Rolls::of(&mut self.dice);
        if let Some(counter) = self.drop_counter(now_ns, &frame, &rolls) {
            *counter += 1;
            return;
        }
        let Some(sent_ns) = self.sent_at(now_ns, frame.bytes.len()) else {
            self.counters.drop_queue += 1;
            return;
        };
        let frame = self.corrupt(frame, &rolls);
        let mut due_ns = sent_ns + self.delay_ns(rolls.jitter);
        if rolls.reorder.hits(self.impairment.reorder_percent) {
            self.counters.reordered += 1;
            due_ns += REORDER_HOLD_US * 1000;
        }
        if rolls.duplicate.hits(self.impairment.duplicate_percent) {
            self.counters.duplicated += 1;
            self.push(due_ns, frame.clone());
        }
        self.push(due_ns, frame);
    }

    /// The next frame whose time has come.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<Frame> {
        if self.next_due()? > now_ns {
            return None;
        }
        let Reverse(waiting) = self.queue.pop()?;
        self.counters.delivered += 1;
        Some(waiting.frame)
    }

    /// The frame taken out last could not be sent.
    pub fn send_failed(&mut self) {
        self.counters.delivered -= 1;
        self.counters.drop_send += 1;
    }

    /// When the next frame is due.
    pub fn next_due(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse(waiting)| waiting.due_ns)
    }

    /// What became of the frames so far.
    pub fn counters(&self) -> LaneCounters {
        LaneCounters {
            waiting: self.queue.len() as u64,
            ..self.counters
        }
    }

    fn drop_counter(&mut self, now_ns: u64, frame: &Frame, rolls: &Rolls) -> Option<&mut u64> {
        let limit = self.impairment.mtu as usize;
        if self.dead(now_ns) {
            Some(&mut self.counters.drop_dead)
        } else if limit > 0 && frame.bytes.len() > limit + ETHERNET_LEN {
            Some(&mut self.counters.drop_mtu)
        } else if rolls.loss.hits(self.impairment.loss_percent) {
            Some(&mut self.counters.drop_loss)
        } else {
            None
        }
    }

    fn dead(&self, now_ns: u64) -> bool {
        let (up, down) = self.impairment.flap_ms;
        let age_ms = now_ns.saturating_sub(self.changed_ns) / 1_000_000;
        self.impairment.blackhole || (up + down > 0 && age_ms % (up + down) >= up)
    }

    /// When the last bit has left a link of limited rate; `None` when too much waits already.
    fn sent_at(&mut self, now_ns: u64, len: usize) -> Option<u64> {
        if self.queue.len() >= WAITING_MAX {
            return None;
        }
        if self.impairment.rate_bps == 0 {
            return Some(now_ns);
        }
        let start_ns = self.sending_until_ns.max(now_ns);
        if start_ns - now_ns > RATE_BACKLOG_US * 1000 {
            return None;
        }
        let takes_ns = len as u128 * 8 * 1_000_000_000 / u128::from(self.impairment.rate_bps);
        self.sending_until_ns = start_ns + takes_ns as u64;
        Some(self.sending_until_ns)
    }

    fn delay_ns(&self, roll: Roll) -> u64 {
        let spread_ns = 2 * self.impairment.jitter_us * 1000;
        let least_ns = (self.impairment.delay_us - self.impairment.jitter_us) * 1000;
        least_ns + (roll.share() * spread_ns as f64) as u64
    }

    fn corrupt(&mut self, mut frame: Frame, rolls: &Rolls) -> Frame {
        let len = frame.bytes.len();
        if !rolls.corrupt.hits(self.impairment.corrupt_percent) || len <= ETHERNET_LEN {
            return frame;
        }
        self.counters.corrupted += 1;
        let bit = rolls.place.0 as usize % ((len - ETHERNET_LEN) * 8);
        frame.bytes[ETHERNET_LEN + bit / 8] ^= 1 << (bit % 8);
        frame
    }

    fn push(&mut self, due_ns: u64, frame: Frame) {
        self.serial += 1;
        self.queue.push(Reverse(Waiting {
            due_ns,
            serial: self.serial,
            frame,
        }));
    }
}

#[derive(Debug)]
struct Waiting {
    due_ns: u64,
    /// Frames due at the same time leave as they came.
    serial: u64,
    frame: Frame,
}

impl Waiting {
    fn key(&self) -> (u64, u64) {
        (self.due_ns, self.serial)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, and the same on every machine and release.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> Roll {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Roll(z ^ (z >> 31))
    }
}

#[derive(Clone, Copy, Debug)]
struct Roll(u64);

impl Roll {
    /// Evenly within 0 (inclusive) and 1 (exclusive).
    fn share(self) -> f64 {
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn hits(self, percent: f64) -> bool {
        self.share() * 100.0 < percent
    }
}

struct Rolls {
    loss: Roll,
    duplicate: Roll,
    reorder: Roll,
    corrupt: Roll,
    place: Roll,
    jitter: Roll,
}

impl Rolls {
    fn of(dice: &mut Dice) -> Rolls {
        Rolls {
            loss: dice.roll(),
            duplicate: dice.roll(),
            reorder: dice.roll(),
            corrupt: dice.roll(),
            place: dice.roll(),
            jitter: dice.roll(),
        }
    }
}

const ETHERNET_LEN: usize = 14;
const WAITING_MAX: usize = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn frame(number: u32, len: usize) -> Frame {
        let mut bytes = vec![0; len];
        bytes[len - 4..].copy_from_slice(&number.to_be_bytes());
        Frame {
            vnet: VnetHdr::default(),
            bytes,
        }
    }

    fn number(frame: &Frame) -> u32 {
        let tail = frame.bytes.last_chunk::<4>().unwrap();
        u32::from_be_bytes(*tail)
    }

    /// Offers `count` frames of 100 bytes, one each 0.1 ms, and returns (due time, number) of what comes out.
    fn run(impairment: Impairment, seed: u64, count: u32) -> (Vec<(u64, u32)>, LaneCounters) {
        let mut lane = Lane::new(impairment, seed, 0);
        let mut out = Vec::new();
        let mut drain = |lane: &mut Lane, until: u64| {
            while let Some(due) = lane.next_due().filter(|due| *due <= until) {
                out.push((due, number(&lane.pop_due(until).unwrap())));
            }
        };
        for n in 0..count {
            let now = u64::from(n) * 100_000;
            drain(&mut lane, now);
            lane.offer(now, frame(n, 100));
        }
        drain(&mut lane, u64::MAX);
        let counters = lane.counters();
        assert!(counters.balanced(), "{counters:?}");
        (out, counters)
    }

    #[test]
    fn a_clean_lane_passes_all_in_order_at_once() {
        let (out, counters) = run(Impairment::default(), 1, 1000);
        assert!(
            out.iter()
                .enumerate()
                .all(|(i, &(due, n))| n as usize == i && due == i as u64 * 100_000)
        );
        assert_eq!(counters.delivered, 1000);
    }

    #[test]
    fn the_same_seed_meets_the_same_fate_and_another_does_not() {
        let ills = Impairment {
            loss_percent: 10.0,
            duplicate_percent: 10.0,
            reorder_percent: 10.0,
            delay_us: 1000,
            jitter_us: 500,
            ..Impairment::default()
        };
        assert_eq!(run(ills.clone(), 42, 2000), run(ills.clone(), 42, 2000));
        assert_ne!(run(ills.clone(), 42, 2000).0, run(ills, 43, 2000).0);
    }

    #[test]
    fn shares_come_out_as_asked() {
        let ills = Impairment {
            loss_percent: 5.0,
            duplicate_percent: 20.0,
            corrupt_percent: 2.0,
            reorder_percent: 10.0,
            ..Impairment::default()
        };
        let (_, counters) = run(ills, 3, 20_000);
        let near = |count: u64, want: f64| (count as f64 - want).abs() < want * 0.15;
        assert!(near(counters.drop_loss, 1000.0), "{counters:?}");
        assert!(near(counters.duplicated, 19_000.0 * 0.2), "{counters:?}");
        assert!(near(counters.corrupted, 19_000.0 * 0.02), "{counters:?}");
        assert!(near(counters.reordered, 19_000.0 * 0.1), "{counters:?}");
    }

    #[test]
    fn delay_is_kept_to_the_nanosecond_and_jitter_within_its_bounds() {
        let delayed = Impairment {
            delay_us: 5000,
            ..Impairment::default()
        };
        let (out, _) = run(delayed, 1, 100);
        assert!(
            out.iter()
                .all(|&(due, n)| due == u64::from(n) * 100_000 + 5 * MS)
        );
        let jittery = Impairment {
            delay_us: 5000,
            jitter_us: 2000,
            ..Impairment::default()
        };
        let (out, _) = run(jittery, 1, 1000);
        let held = |&(due, n): &(u64, u32)| due - u64::from(n) * 100_000;
        assert!(out.iter().all(|o| (3 * MS..=7 * MS).contains(&held(o))));
        assert!(out.iter().map(held).max() > out.iter().map(held).min().map(|m| m + 3 * MS));
    }

    #[test]
    fn reordered_frames_are_overtaken() {
        let ills = Impairment {
            reorder_percent: 25.0,
            ..Impairment::default()
        };
        let (out, counters) = run(ills, 9, 400);
        let order: Vec<u32> = out.iter().map(|o| o.1).collect();
        assert!(!order.is_sorted());
        assert_eq!(counters.delivered, 400);
    }

    #[test]
    fn a_rate_spaces_frames_and_drops_what_would_wait_too_long() {
        // 100 bytes at 8 Mbit/s take 0.1 ms: exactly as fast as they come.
        let fits = Impairment {
            rate_bps: 8_000_000,
            ..Impairment::default()
        };
        assert_eq!(run(fits, 1, 1000).1.drop_queue, 0);
        let half = Impairment {
            rate_bps: 4_000_000,
            ..Impairment::default()
        };
        let (out, counters) = run(half, 1, 10_000);
        assert!(counters.drop_queue > 3000, "{counters:?}");
        assert!(out.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 199_000));
    }

    #[test]
    fn size_limit_blackhole_and_flap_drop_by_name() {
        let mut lane = Lane::new(
            Impairment {
                mtu: 1400,
                ..Impairment::default()
            },
            0,
            0,
        );
        lane.offer(0, frame(0, 1414));
        lane.offer(0, frame(1, 1415));
        assert_eq!((lane.counters().waiting, lane.counters().drop_mtu), (1, 1));
        lane.change(
            Impairment {
                blackhole: true,
                ..Impairment::default()
            },
            0,
            0,
        );
        lane.offer(0, frame(2, 60));
        assert_eq!(lane.counters().drop_dead, 1);
        lane.change(
            Impairment {
                flap_ms: (10, 5),
                ..Impairment::default()
            },
            0,
            100 * MS,
        );
        for (at, dead) in [(100, 1), (109, 1), (110, 2), (114, 3), (115, 3), (126, 4)] {
            lane.offer(at * MS, frame(3, 60));
            assert_eq!(lane.counters().drop_dead, dead, "at {at} ms");
        }
        assert!(lane.counters().balanced());
    }

    #[test]
    fn corruption_flips_one_bit_behind_the_ethernet_header() {
        let mut lane = Lane::new(
            Impairment {
                corrupt_percent: 100.0,
                ..Impairment::default()
            },
            5,
            0,
        );
        for n in 0..200 {
            lane.offer(0, frame(n, 60));
            let got = lane.pop_due(0).unwrap();
            let want = frame(n, 60);
            let flipped: u32 = got
                .bytes
                .iter()
                .zip(&want.bytes)
                .map(|(a, b)| (a ^ b).count_ones())
                .sum();
            assert_eq!(flipped, 1);
            assert_eq!(got.bytes[..14], want.bytes[..14]);
        }
    }

    #[test]
    fn a_frame_too_short_to_corrupt_passes() {
        let mut lane = Lane::new(
            Impairment {
                corrupt_percent: 100.0,
                ..Impairment::default()
            },
            5,
            0,
        );
        lane.offer(0, frame(1, 14));
        assert_eq!(lane.pop_due(0), Some(frame(1, 14)));
    }
}
