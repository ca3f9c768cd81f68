//! Outcomes that are remembered, so that a request sent twice counts once and is answered twice.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::ids::RequestId;
use super::reply::Outcome;

/// How long an outcome is remembered, in milliseconds of cluster time. Proposers give up long before.
pub const REMEMBER_MS: u64 = 10 * 60 * 1000;
/// How many are remembered at most; a hundred per second for all of that time.
pub const REMEMBER_MAX: usize = 60_000;

/// The outcomes of late.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    outcomes: BTreeMap<RequestId, Outcome>,
    /// In the order of time.
    order: VecDeque<(u64, RequestId)>,
}

impl Retries {
    /// What became of a request before.
    pub fn find(&self, request: RequestId) -> Option<&Outcome> {
        self.outcomes.get(&request)
    }

    /// Remembers an outcome and forgets the old ones.
    pub fn remember(&mut self, request: RequestId, now_ms: u64, outcome: &Outcome) {
        let late = now_ms.saturating_sub(REMEMBER_MS);
        while self.order.len() >= REMEMBER_MAX || self.order.front().is_some_and(|o| o.0 < late) {
            match self.order.pop_front() {
                Some((_, old)) => self.outcomes.remove(&old),
                None => break,
            };
        }
        if self.outcomes.insert(request, outcome.clone()).is_none() {
            self.order.push_back((now_ms, request));
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::manager::reply::Reply;

    #[test]
    fn an_outcome_is_found_until_its_time_is_over() {
        let mut retries = Retries::default();
        let id = |n| RequestId::from_bits(n);
        retries.remember(id(1), 0, &Ok(Reply::Done));
        retries.remember(id(2), REMEMBER_MS, &Ok(Reply::Done));
        assert!(retries.find(id(1)).is_some() && retries.find(id(2)).is_some());
        retries.remember(id(3), REMEMBER_MS + 1, &Ok(Reply::Done));
        assert!(retries.find(id(1)).is_none() && retries.len() == 2);
    }

    #[test]
    fn memory_is_bounded() {
        let mut retries = Retries::default();
        for n in 0..REMEMBER_MAX as u128 + 10 {
            retries.remember(RequestId::from_bits(n), 0, &Ok(Reply::Done));
        }
        assert_eq!(
            (retries.len(), retries.order.len()),
            (REMEMBER_MAX, REMEMBER_MAX)
        );
    }
}
