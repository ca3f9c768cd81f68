//! Time, chance and rates, all fed from outside.

use crate::cluster::endpoint_id::mix;

/// The longest step that the own clock makes at once: a node that was paused for hours does not find all of
/// its timers run out by hours.
const STEP_MAX_MS: u64 = 10_000;

/// A clock that only moves on, whatever the caller's does.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    given_ms: u64,
    now_ms: u64,
}

impl Clock {
    /// Starts at zero.
    pub fn new(given_ms: u64) -> Clock {
        Clock {
            given_ms,
            now_ms: 0,
        }
    }

    /// Takes the caller's time; a step back counts as no time, one far ahead as [`STEP_MAX_MS`].
    pub fn set(&mut self, given_ms: u64) {
        self.now_ms += given_ms.saturating_sub(self.given_ms).min(STEP_MAX_MS);
        self.given_ms = given_ms;
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }
}

/// Chance from a seed (SplitMix64). Nothing secret hangs on it.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, or zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound.max(1)
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len() as u64) as usize)
    }

    /// Puts them into some order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end as u64 + 1) as usize);
        }
    }
}

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Below zero after a message that was larger than what was left.
    level: i64,
    burst: i64,
    per_ms: u64,
    at_ms: u64,
}

impl Bucket {
    /// A full bucket that holds `burst` and gains `per_ms`.
    pub fn new(burst: u64, per_ms: u64) -> Bucket {
        let burst = i64::try_from(burst).unwrap_or(i64::MAX);
        Bucket {
            level: burst,
            burst,
            per_ms,
            at_ms: 0,
        }
    }

    fn fill(&mut self, now_ms: u64) {
        let gained = now_ms
            .saturating_sub(self.at_ms)
            .saturating_mul(self.per_ms);
        let gained = i64::try_from(gained).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(gained).min(self.burst);
        self.at_ms = now_ms;
    }

    /// Whether anything is left. A message may be larger than that, and its sender waits the longer
    /// afterwards: so every message gets through, however small the bucket.
    pub fn has_some(&mut self, now_ms: u64) -> bool {
        self.fill(now_ms);
        self.level > 0
    }

    /// Takes out.
    pub fn take(&mut self, cost: u64) {
        let cost = i64::try_from(cost).unwrap_or(i64::MAX);
        self.level = self.level.saturating_sub(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_steps_back_or_far_ahead_does_no_harm() {
        let mut clock = Clock::new(5_000_000);
        clock.set(5_000_100);
        assert_eq!(clock.now_ms(), 100);
        clock.set(1_000);
        assert_eq!(clock.now_ms(), 100);
        clock.set(1_050);
        assert_eq!(clock.now_ms(), 150);
        clock.set(900_000_000);
        assert_eq!(clock.now_ms(), 150 + STEP_MAX_MS);
    }

    #[test]
    fn a_bucket_lets_its_rate_through() {
        let mut bucket = Bucket::new(1_000, 10);
        let mut sent = 0;
        for now in 0..1_000 {
            while bucket.has_some(now) {
                bucket.take(100);
                sent += 100;
            }
        }
        assert!((10_900..=11_200).contains(&sent), "{sent}");
    }

    #[test]
    fn a_shuffle_keeps_all() {
        let mut items: Vec<_> = (0..50).collect();
        Chance::new(1).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
