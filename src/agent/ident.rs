//! Where randomness and the clock come into the agent: fresh ids and the time. Their text forms are the
//! model's.

use std::time::{SystemTime, UNIX_EPOCH};

pub use crate::model::ident::*;

/// A fresh id: 128 random bits in base 36, 25 characters, as Docker Swarm writes its ids.
pub fn random_id() -> String {
    id_from_bits(rand::random::<u128>())
}

/// Nanoseconds since 1970-01-01 UTC by the wall clock; 0 when the clock is before that.
pub fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_are_ids() {
        for _ in 0..100 {
            assert!(is_id(&random_id()));
        }
    }
}
