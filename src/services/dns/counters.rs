//! What became of queries, and how long answers took. Atomics, shared by all networks of a node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::message::Outcome;

/// Why nothing was said to whoever sent something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropCause {
    /// It was an answer, or too short to be a query.
    NoQuery,
    /// It came from an address that no endpoint of this node has.
    Stranger,
    /// The answer could not be sent: the client's side is full, or gone.
    NotSent,
    /// A connection beyond the limit, in all or of one client.
    ConnectionLimit,
    /// A connection on which nothing came for too long, or not all of a query.
    ConnectionIdle,
}

/// What came of asking one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// It answered.
    Answered,
    /// It said that it cannot or will not answer.
    Declined,
    /// It said nothing in time.
    TimedOut,
    /// It could not be reached.
    Unreachable,
    /// Something came that is no answer to what was asked.
    Mismatched,
}

const OUTCOMES: [(Outcome, &str); 9] = [
    (Outcome::Answered, "answered"),
    (Outcome::Empty, "empty"),
    (Outcome::Absent, "absent"),
    (Outcome::Cached, "cached"),
    (Outcome::Forwarded, "forwarded"),
    (Outcome::Failed, "failed"),
    (Outcome::Refused, "refused"),
    (Outcome::Malformed, "malformed"),
    (Outcome::Unsupported, "unsupported"),
];
const DROPS: [(DropCause, &str); 5] = [
    (DropCause::NoQuery, "no_query"),
    (DropCause::Stranger, "stranger"),
    (DropCause::NotSent, "not_sent"),
    (DropCause::ConnectionLimit, "connection_limit"),
    (DropCause::ConnectionIdle, "connection_idle"),
];
const ASKINGS: [(Asking, &str); 5] = [
    (Asking::Answered, "answered"),
    (Asking::Declined, "declined"),
    (Asking::TimedOut, "timed_out"),
    (Asking::Unreachable, "unreachable"),
    (Asking::Mismatched, "mismatched"),
];

/// An outcome's name.
pub fn outcome_name(outcome: Outcome) -> &'static str {
    OUTCOMES[outcome as usize].1
}

/// Upper ends of the classes of time, in microseconds; above is one more.
pub const BOUNDS_US: [u64; 10] = [
    50, 100, 250, 500, 1_000, 5_000, 25_000, 100_000, 1_000_000, 10_000_000,
];

/// How long answers took.
#[derive(Debug, Default)]
pub struct Times {
    classes: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Times {
    /// Notes one.
    pub fn note(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = BOUNDS_US.partition_point(|bound| *bound < us);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Counts by class, and the sum in microseconds.
    pub fn read(&self) -> (Vec<u64>, u64) {
        let counts = self.classes.iter().map(|c| c.load(Ordering::Relaxed));
        (counts.collect(), self.sum_us.load(Ordering::Relaxed))
    }
}

/// All counters.
#[derive(Debug, Default)]
pub struct Counters {
    outcomes: [AtomicU64; OUTCOMES.len()],
    drops: [AtomicU64; DROPS.len()],
    askings: [AtomicU64; ASKINGS.len()],
    /// Answers that needed nobody else.
    pub local: Times,
    /// Answers that waited for an upstream.
    pub forwarded: Times,
}

impl Counters {
    /// A query ended so.
    pub fn outcome(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Something was dropped.
    pub fn dropped(&self, drop: DropCause) {
        self.drops[drop as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// An upstream was asked.
    pub fn asked(&self, asking: Asking) {
        self.askings[asking as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Queries by outcome.
    pub fn outcomes(&self) -> Vec<(&'static str, u64)> {
        named(OUTCOMES.map(|(_, name)| name), &self.outcomes)
    }

    /// Drops by reason.
    pub fn drops(&self) -> Vec<(&'static str, u64)> {
        named(DROPS.map(|(_, name)| name), &self.drops)
    }

    /// Questions to upstreams by what came of them.
    pub fn askings(&self) -> Vec<(&'static str, u64)> {
        named(ASKINGS.map(|(_, name)| name), &self.askings)
    }
}

fn named<const N: usize>(
    names: [&'static str; N],
    values: &[AtomicU64; N],
) -> Vec<(&'static str, u64)> {
    let values = values.iter().map(|value| value.load(Ordering::Relaxed));
    names.into_iter().zip(values).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_stands_for_its_own_variant() {
        let counters = Counters::default();
        assert!(
            OUTCOMES
                .iter()
                .enumerate()
                .all(|(i, (o, _))| *o as usize == i)
        );
        assert!(DROPS.iter().enumerate().all(|(i, (d, _))| *d as usize == i));
        assert!(
            ASKINGS
                .iter()
                .enumerate()
                .all(|(i, (a, _))| *a as usize == i)
        );
        counters.dropped(DropCause::Stranger);
        assert!(counters.drops().contains(&("stranger", 1)));
    }

    #[test]
    fn a_time_falls_into_the_class_that_ends_with_it() {
        let times = Times::default();
        for us in [1, 50, 51, 20_000_000] {
            times.note(Duration::from_micros(us));
        }
        let (counts, sum_us) = times.read();
        assert_eq!((counts[0], counts[1], counts[BOUNDS_US.len()]), (2, 1, 1));
        assert_eq!(sum_us, 20_000_102);
    }
}
