//! Who is told that a node came or went, and when: in place of a membership protocol.
//!
//! The seam for a real one: it would own datagrams of its own and call the same three methods of `Gossip`
//! that [`World::notify`](crate::world::World::notify) calls.

use rand::RngExt;
use rand::rngs::StdRng;

/// What a node is told of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    Up,
    Failed,
}

/// How long it takes to notice, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Detector {
    pub failed_ms: (u64, u64),
    pub up_ms: (u64, u64),
    /// How many notices never come.
    pub missed: f64,
}

impl Detector {
    pub const PROMPT: Detector = Detector {
        failed_ms: (1_500, 3_000),
        up_ms: (5, 200),
        missed: 0.0,
    };

    /// After how many milliseconds a notice comes, if it does.
    pub fn delay_ms(&self, notice: Notice, rng: &mut StdRng) -> Option<u64> {
        if rng.random_bool(self.missed) {
            return None;
        }
        let (low, high) = match notice {
            Notice::Up => self.up_ms,
            Notice::Failed => self.failed_ms,
        };
        Some(rng.random_range(low..=high))
    }
}
