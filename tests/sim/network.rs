//! The network between the nodes: what is lost, doubled, delayed, and who cannot reach whom.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What the network does to datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub loss: f64,
    pub duplication: f64,
    /// Microseconds, uniform.
    pub delay_us: (u64, u64),
}

impl Weather {
    /// A rack.
    pub const LAN: Weather = Weather {
        loss: 0.0,
        duplication: 0.0,
        delay_us: (200, 1_000),
    };
}

/// Bytes of IPv4 and UDP around a datagram.
pub const UDP_LEN: usize = 28;
/// Bytes of IPv4 and TCP around a segment of a stream, and how long segments are.
pub const TCP_LEN: usize = 40;
const SEGMENT_LEN: usize = 1_360;
/// Bytes that a stream moves in a millisecond.
const STREAM_PER_MS: usize = 10_000;

pub struct Network {
    pub weather: Weather,
    /// Ordered pairs that cannot talk.
    pub cut: BTreeSet<(usize, usize)>,
    rng: StdRng,
    pub datagrams: u64,
    pub streams: u64,
    /// With headers.
    pub wire_bytes: u64,
    pub sent_by: Vec<u64>,
}

impl Network {
    pub fn new(seed: u64, nodes: usize) -> Network {
        Network {
            weather: Weather::LAN,
            cut: BTreeSet::new(),
            rng: StdRng::seed_from_u64(seed ^ 0x6e65_7477),
            datagrams: 0,
            streams: 0,
            wire_bytes: 0,
            sent_by: vec![0; nodes],
        }
    }

    fn delay_us(&mut self) -> u64 {
        let (low, high) = self.weather.delay_us;
        self.rng.random_range(low..=high)
    }

    fn count(&mut self, from: usize, bytes: usize) {
        self.wire_bytes += bytes as u64;
        if let Some(sent) = self.sent_by.get_mut(from) {
            *sent += bytes as u64;
        }
    }

    /// Sends a datagram; returns after how many microseconds copies of it arrive.
    pub fn datagram(&mut self, from: usize, to: usize, len: usize) -> Vec<u64> {
        self.datagrams += 1;
        self.count(from, len + UDP_LEN);
        if self.cut.contains(&(from, to)) || self.rng.random_bool(self.weather.loss) {
            return Vec::new();
        }
        let mut arrivals = vec![self.delay_us()];
        while arrivals.len() < 4 && self.rng.random_bool(self.weather.duplication) {
            arrivals.push(self.delay_us());
        }
        arrivals
    }

    /// Sends a stream; returns when each of its messages arrives, unless it cannot be opened.
    pub fn stream(&mut self, from: usize, to: usize, lens: &[usize]) -> Option<Vec<u64>> {
        self.streams += 1;
        let total: usize = lens.iter().sum();
        let segments = total.div_ceil(SEGMENT_LEN);
        // Connection and TLS take about four kilobytes and three round trips; acknowledgements every other segment.
        let overhead = 4_000 + segments * TCP_LEN + segments / 2 * TCP_LEN;
        self.count(from, total + overhead);
        if self.cut.contains(&(from, to)) || self.cut.contains(&(to, from)) {
            return None;
        }
        let begin = 7 * self.delay_us();
        let mut sent = 0;
        let arrivals = lens.iter().map(|len| {
            sent += len;
            // Lost segments are sent again and hold up what follows.
            begin + (sent * 1_000 / STREAM_PER_MS) as u64
        });
        Some(arrivals.collect())
    }
}
