//! What upstreams said, kept for as long as they said it holds, and in limits of our own.
//!
//! Pure: the time is an argument. Negative answers are kept as RFC 2308 §5 has it, by the SOA record they come with and not
//! at all without one; failures are not kept.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, Record};

use super::message::{Answer, Asked};

/// How many answers one network keeps.
const ENTRIES_MAX: usize = 1024;
/// How many records an answer may have to be kept.
const RECORDS_MAX: usize = 64;
/// The longest time anything is kept, in seconds.
const TTL_MAX_S: u32 = 300;
/// The longest time it is kept that there is no such name, in seconds.
const NEGATIVE_TTL_MAX_S: u32 = 30;

/// Name, type, and the flags that make another answer.
type Key = (String, u16, (bool, bool));

#[derive(Debug)]
struct Kept {
    answer: Arc<Answer>,
    since: Instant,
    until: Instant,
    number: u64,
}

/// Answers by question, the oldest going first when there are too many.
#[derive(Debug, Default)]
pub struct Cache {
    kept: BTreeMap<Key, Kept>,
    order: VecDeque<(u64, Key)>,
    last_number: u64,
}

impl Cache {
    /// The answer to a question, with its age in seconds.
    pub fn find(&self, asked: &Asked, now: Instant) -> Option<(Arc<Answer>, u32)> {
        let kept = self.kept.get(&key(asked)).filter(|kept| now < kept.until)?;
        let age = now.saturating_duration_since(kept.since).as_secs();
        Some((
            Arc::clone(&kept.answer),
            u32::try_from(age).unwrap_or(u32::MAX),
        ))
    }

    /// Keeps an answer, if it may be kept.
    pub fn keep(&mut self, asked: &Asked, answer: &Arc<Answer>, now: Instant) {
        let Some(ttl_s) = life(answer).filter(|ttl| *ttl > 0) else {
            return;
        };
        self.last_number += 1;
        let number = self.last_number;
        let key = key(asked);
        let kept = Kept {
            answer: Arc::clone(answer),
            since: now,
            until: now + Duration::from_secs(ttl_s.into()),
            number,
        };
        self.kept.insert(key.clone(), kept);
        self.order.push_back((number, key));
        while self.kept.len() > ENTRIES_MAX || self.order.len() > 2 * ENTRIES_MAX {
            let Some((number, key)) = self.order.pop_front() else {
                break;
            };
            // One that was asked for anew since has another number.
            if self
                .kept
                .get(&key)
                .is_some_and(|kept| kept.number == number)
            {
                self.kept.remove(&key);
            }
        }
    }

    /// How many answers there are, those past their time included.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

fn key(asked: &Asked) -> Key {
    (asked.name(), asked.kind().into(), asked.flags())
}

/// For how many seconds an answer holds.
fn life(answer: &Answer) -> Option<u32> {
    let sections = [&answer.answers, &answer.authorities, &answer.additionals];
    if sections.iter().map(|s| s.len()).sum::<usize>() > RECORDS_MAX {
        return None;
    }
    let least = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    let negative = answer
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum).min(NEGATIVE_TTL_MAX_S)),
            _ => None,
        });
    match (answer.code, answer.answers.is_empty()) {
        (ResponseCode::NoError, false) => least(&answer.answers).map(|ttl| ttl.min(TTL_MAX_S)),
        (ResponseCode::NoError, true) => negative,
        (ResponseCode::NXDomain, _) => {
            // A name may lead to another one that does not exist.
            let ttl = least(&answer.answers).unwrap_or(u32::MAX);
            negative.map(|negative| negative.min(ttl))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RecordType};

    use super::super::message::{Decision, Transport, View, decide, question};
    use super::*;

    fn asked(name: &str) -> Asked {
        let bytes = question(name, RecordType::A).unwrap();
        let view = View {
            zones: &[],
            forwards: true,
            turn: 0,
        };
        match decide(&view, &bytes, Transport::Udp) {
            Decision::Ask(asked) => *asked,
            other => panic!("{other:?}"),
        }
    }

    fn positive(ttl: u32) -> Arc<Answer> {
        let name = Name::from_ascii("a.example.").unwrap();
        let record = Record::from_rdata(name, ttl, RData::A(A::new(192, 0, 2, 7)));
        Arc::new(Answer {
            answers: vec![record],
            ..Answer::default()
        })
    }

    fn negative(minimum: u32) -> Arc<Answer> {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
        Arc::new(Answer {
            code: ResponseCode::NXDomain,
            authorities: vec![Record::from_rdata(name, 3_600, RData::SOA(soa))],
            ..Answer::default()
        })
    }

    #[test]
    fn an_answer_is_kept_for_its_time_and_ages() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.keep(&asked("a.example"), &positive(20), now);
        let at = |s| now + Duration::from_secs(s);
        assert_eq!(cache.find(&asked("A.Example"), at(19)).unwrap().1, 19);
        assert!(cache.find(&asked("a.example"), at(20)).is_none());
        assert!(cache.find(&asked("b.example"), now).is_none());
    }

    #[test]
    fn long_lives_are_cut_and_no_life_is_not_kept() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.keep(&asked("a.example"), &positive(86_400), now);
        let after = now + Duration::from_secs(TTL_MAX_S.into());
        assert!(cache.find(&asked("a.example"), after).is_none());
        cache.keep(&asked("b.example"), &positive(0), now);
        assert!(cache.find(&asked("b.example"), now).is_none());
    }

    #[test]
    fn that_there_is_no_such_name_is_kept_as_its_zone_says() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.keep(&asked("a.example"), &negative(5), now);
        cache.keep(&asked("b.example"), &negative(900), now);
        let at = |s| now + Duration::from_secs(s);
        assert!(cache.find(&asked("a.example"), at(4)).is_some());
        assert!(cache.find(&asked("a.example"), at(5)).is_none());
        assert!(
            cache
                .find(&asked("b.example"), at(NEGATIVE_TTL_MAX_S.into()))
                .is_none()
        );
        let failure = Arc::new(Answer {
            code: ResponseCode::ServFail,
            ..Answer::default()
        });
        cache.keep(&asked("c.example"), &failure, now);
        assert!(cache.find(&asked("c.example"), now).is_none());
    }

    #[test]
    fn it_does_not_grow_beyond_its_limit() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for i in 0..3 * ENTRIES_MAX {
            cache.keep(&asked(&format!("n{i}.example")), &positive(60), now);
            cache.keep(&asked("again.example"), &positive(60), now);
        }
        assert!(cache.len() <= ENTRIES_MAX && cache.order.len() <= 2 * ENTRIES_MAX);
        assert!(cache.find(&asked("again.example"), now).is_some());
        assert!(cache.find(&asked("n0.example"), now).is_none());
    }
}
