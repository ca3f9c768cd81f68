//! An exact-match hash map for one writer and any number of lock-free readers.
//!
//! Buckets of four slots, each `K` key words and one value word, all atomics, so no `unsafe` is
//! needed. A key is in the bucket of its hash, or where that was full in the next one that was not:
//! a reader does one hash, then nearly always one cache line (two for three key words). Buckets may be
//! three quarters full, which keeps the table of a million stations near the size of a cache. Figures:
//! docs/perf.md, tables.
//!
//! INVARIANT: a slot's key never changes once its first word is non-zero, and slots of a bucket are
//! taken in order. Removing a key sets its value to zero and keeps the key; inserting it again fills
//! the same slot. Therefore a reader that found its key can trust the value it loads next, without
//! re-checking (no ABA), and one that sees an empty slot need not look further. Dead slots go
//! away when the table is rebuilt, and a rebuild is published by swapping the whole table: readers
//! that hold the old one for the rest of their burst see it as it was.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};

use crate::sys::memory;

/// `K` key words (the first is never zero) to one non-zero value word.
#[derive(Debug)]
pub struct AtomicMap<const K: usize> {
    table: ArcSwap<Table<K>>,
    writer: Mutex<Writer>,
}

/// One generation of the map; what readers probe.
#[derive(Debug)]
pub struct Table<const K: usize> {
    buckets: Box<[Bucket<K>]>,
    seed: u64,
}

/// One cache line for one key word, two for three.
#[derive(Debug)]
#[repr(align(64))]
struct Bucket<const K: usize> {
    keys: [[AtomicU64; K]; BUCKET_SLOTS],
    values: [AtomicU64; BUCKET_SLOTS],
}

/// How full the current table is: slots that ever got a key, and those with a value now.
#[derive(Debug, Default)]
struct Writer {
    claimed: usize,
    live: usize,
}

impl<const K: usize> Bucket<K> {
    fn empty() -> Bucket<K> {
        Bucket {
            keys: [const { [const { AtomicU64::new(0) }; K] }; BUCKET_SLOTS],
            values: [const { AtomicU64::new(0) }; BUCKET_SLOTS],
        }
    }

    /// Looks for `key`. HOT PATH.
    #[inline(always)]
    fn look(&self, key: &[u64; K]) -> Look<'_> {
        let mut last = 0;
        for (slot, value) in self.keys.iter().zip(&self.values) {
            last = slot[0].load(Ordering::Acquire);
            if last == key[0] && rest_equals(slot, key) {
                return Look::Found(value);
            }
        }
        // Slots are taken in order: the last one is empty, or all are taken by others.
        if last == 0 {
            Look::Absent
        } else {
            Look::Further
        }
    }

    /// Writer only: the value word of `key` in a slot that was empty.
    fn claim(&self, key: &[u64; K]) -> Option<&AtomicU64> {
        let taken = |slot: &[AtomicU64; K]| slot[0].load(Ordering::Relaxed) != 0;
        let index = self.keys.iter().position(|slot| !taken(slot))?;
        let slot = &self.keys[index];
        for (place, word) in slot.iter().zip(key).skip(1) {
            place.store(*word, Ordering::Relaxed);
        }
        slot[0].store(key[0], Ordering::Release);
        Some(&self.values[index])
    }
}

/// What a bucket says of a key.
enum Look<'a> {
    Found(&'a AtomicU64),
    Absent,
    /// The bucket is full of others: the key may be in the next one.
    Further,
}

#[inline(always)]
fn rest_equals<const K: usize>(slot: &[AtomicU64; K], key: &[u64; K]) -> bool {
    (1..K).all(|i| slot[i].load(Ordering::Relaxed) == key[i])
}

impl<const K: usize> Table<K> {
    /// Room for `slots` or a few more.
    fn with_slots(slots: usize, seed: u64) -> Table<K> {
        let count = slots.div_ceil(BUCKET_SLOTS).max(BUCKETS_MIN);
        let mut buckets = Vec::with_capacity(count);
        if count * size_of::<Bucket<K>>() >= HUGE_FROM_LEN {
            memory::prefer_huge_pages(buckets.spare_capacity_mut());
        }
        buckets.extend((0..count).map(|_| Bucket::empty()));
        Table {
            buckets: buckets.into_boxed_slice(),
            seed,
        }
    }

    fn slot_count(&self) -> usize {
        self.buckets.len() * BUCKET_SLOTS
    }

    /// Folded multiplication per word; the seed keeps outsiders from choosing collisions. The high bits
    /// of the hash, scaled to the number of buckets, choose one.
    #[inline]
    fn home(&self, key: &[u64; K]) -> usize {
        let mut hash = self.seed;
        for word in key {
            let wide = u128::from(word ^ hash) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
            hash = (wide as u64) ^ ((wide >> 64) as u64);
        }
        ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize
    }

    /// The value of `key`. HOT PATH: no lock, no store.
    #[inline(always)]
    pub fn find(&self, key: &[u64; K]) -> Option<NonZeroU64> {
        self.value(key)
            .and_then(|value| NonZeroU64::new(value.load(Ordering::Acquire)))
    }

    /// Replaces the value of `key` if it still is `current`; for readers that refresh a time stamp.
    pub fn refresh(&self, key: &[u64; K], current: NonZeroU64, new: NonZeroU64) -> bool {
        let (current, new) = (current.get(), new.get());
        self.value(key).is_some_and(|value| {
            value
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })
    }

    #[inline]
    fn value(&self, key: &[u64; K]) -> Option<&AtomicU64> {
        let home = self.home(key);
        match self.buckets[home].look(key) {
            Look::Found(value) => Some(value),
            Look::Absent => None,
            Look::Further => self.value_after(home, key),
        }
    }

    /// Kept out of the callers, so that they hold one bucket's worth of code.
    #[inline(never)]
    fn value_after(&self, home: usize, key: &[u64; K]) -> Option<&AtomicU64> {
        let mut index = home;
        for _ in 1..self.buckets.len() {
            index = self.after(index);
            match self.buckets[index].look(key) {
                Look::Found(value) => return Some(value),
                Look::Absent => return None,
                Look::Further => {}
            }
        }
        None
    }

    /// Writer only: the value word of `key`, and whether its slot was claimed just now. `None` when the
    /// table is full.
    fn claim(&self, key: &[u64; K]) -> Option<(&AtomicU64, bool)> {
        if let Some(value) = self.value(key) {
            return Some((value, false));
        }
        let mut index = self.home(key);
        for _ in 0..self.buckets.len() {
            if let Some(value) = self.buckets[index].claim(key) {
                return Some((value, true));
            }
            index = self.after(index);
        }
        None
    }

    #[inline]
    fn after(&self, index: usize) -> usize {
        if index + 1 == self.buckets.len() {
            0
        } else {
            index + 1
        }
    }

    fn iter(&self) -> impl Iterator<Item = ([u64; K], NonZeroU64)> + '_ {
        let slots = self
            .buckets
            .iter()
            .flat_map(|bucket| bucket.keys.iter().zip(&bucket.values));
        slots.filter_map(|(key, value)| {
            let value = NonZeroU64::new(value.load(Ordering::Acquire))?;
            let key = std::array::from_fn(|i| key[i].load(Ordering::Acquire));
            Some((key, value))
        })
    }
}

impl<const K: usize> AtomicMap<K> {
    /// An empty map; `seed` should be random wherever outsiders choose keys.
    pub fn new(seed: u64) -> AtomicMap<K> {
        AtomicMap {
            table: ArcSwap::from_pointee(Table::with_slots(0, seed)),
            writer: Mutex::default(),
        }
    }

    /// The current generation, to be held for one burst.
    #[inline]
    pub fn load(&self) -> Guard<Arc<Table<K>>> {
        self.table.load()
    }

    /// Sets `key` to `value` and returns the value before.
    ///
    /// # Panics
    /// When the first word of `key` is zero: that marks an empty slot.
    pub fn insert(&self, key: [u64; K], value: NonZeroU64) -> Option<NonZeroU64> {
        assert!(key[0] != 0, "the first key word marks a slot as taken");
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = self.table.load_full();
        if (writer.claimed + 1) * 4 > table.slot_count() * 3 {
            table = self.rebuild(&table, &mut writer);
        }
        let (place, fresh) = table
            .claim(&key)
            .expect("a table at most 3/4 full has an empty slot");
        writer.claimed += usize::from(fresh);
        let before = NonZeroU64::new(place.swap(value.get(), Ordering::AcqRel));
        writer.live += usize::from(before.is_none());
        before
    }

    /// Removes `key` and returns its value.
    pub fn remove(&self, key: &[u64; K]) -> Option<NonZeroU64> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.load();
        let before = NonZeroU64::new(table.value(key)?.swap(0, Ordering::AcqRel))?;
        writer.live -= 1;
        Some(before)
    }

    /// Number of keys with a value.
    pub fn len(&self) -> usize {
        self.writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .live
    }

    /// Whether no key has a value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of all entries, in no order.
    pub fn entries(&self) -> Vec<([u64; K], NonZeroU64)> {
        self.table.load().iter().collect()
    }

    /// Bytes of the current table.
    pub fn memory_len(&self) -> usize {
        self.table.load().buckets.len() * size_of::<Bucket<K>>()
    }

    /// COLD PATH: a new table without dead slots, half full, published at once.
    ///
    /// A reader's `refresh` racing with the copy may be lost; it only carries a time stamp.
    fn rebuild(&self, old: &Table<K>, writer: &mut Writer) -> Arc<Table<K>> {
        let new = Arc::new(Table::with_slots((writer.live + 1) * 2, old.seed));
        let mut count = 0;
        for (key, value) in old.iter() {
            let (place, _) = new.claim(&key).expect("two slots per entry");
            place.store(value.get(), Ordering::Release);
            count += 1;
        }
        *writer = Writer {
            claimed: count,
            live: count,
        };
        self.table.store(Arc::clone(&new));
        new
    }
}

const BUCKET_SLOTS: usize = 4;
const BUCKETS_MIN: usize = 16;
/// Tables from this size, bytes, ask for huge pages: below it the small ones do not miss the TLB either.
const HUGE_FROM_LEN: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    fn nz(v: u64) -> NonZeroU64 {
        NonZeroU64::new(v).unwrap()
    }

    #[test]
    fn removed_keys_are_gone_and_come_back_in_the_same_slot() {
        let map = AtomicMap::<1>::new(7);
        assert_eq!(map.insert([5], nz(1)), None);
        assert_eq!(map.insert([5], nz(2)), Some(nz(1)));
        assert_eq!(map.remove(&[5]), Some(nz(2)));
        assert_eq!(map.load().find(&[5]), None);
        assert_eq!(map.remove(&[5]), None);
        assert_eq!(map.insert([5], nz(3)), None);
        assert_eq!((map.load().find(&[5]), map.len()), (Some(nz(3)), 1));
    }

    #[test]
    fn churn_of_ever_new_keys_does_not_grow_the_table() {
        let map = AtomicMap::<1>::new(1);
        for key in 1..200_000u64 {
            map.insert([key], nz(key));
            if key > 100 {
                map.remove(&[key - 100]);
            }
        }
        assert_eq!(map.len(), 100);
        assert!(map.memory_len() <= 1024 * 16, "{}", map.memory_len());
    }

    #[test]
    fn readers_never_see_a_value_of_another_key() {
        let map = AtomicMap::<2>::new(3);
        let (stop, hits) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let table = map.load();
                    for key in 1..500u64 {
                        if let Some(value) = table.find(&[key, key * 3]) {
                            assert_eq!(value.get() >> 20, key);
                            hits.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
            // At least so many, and until the reader had its turn.
            let mut round = 0u64;
            while round < 200 || (hits.load(Ordering::Relaxed) == 0 && round < 100_000) {
                for key in 1..500u64 {
                    map.insert([key, key * 3], nz((key << 20) | (round % (1 << 20))));
                    if (key + round).is_multiple_of(3) {
                        map.remove(&[key, key * 3]);
                    }
                }
                round += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(hits.into_inner() > 0);
    }

    #[test]
    fn a_full_bucket_sends_its_keys_on() {
        // More keys than buckets have slots at home, all alive: some live in a neighbour.
        let map = AtomicMap::<3>::new(5);
        for key in 1..=48u64 {
            map.insert([key, 0, key], nz(key));
        }
        let table = map.load();
        let last = |bucket: &Bucket<3>| bucket.keys[BUCKET_SLOTS - 1][0].load(Ordering::Acquire);
        let crowded = table.buckets.iter().filter(|b| last(b) != 0).count();
        assert!(crowded > 0, "48 keys in 16 buckets of 4");
        assert!((1..=48u64).all(|key| table.find(&[key, 0, key]) == Some(nz(key))));
        assert!((49..=96u64).all(|key| table.find(&[key, 0, key]).is_none()));
    }

    proptest! {
        #[test]
        fn behaves_like_a_hash_map(ops in prop::collection::vec((1u64..40, 0u64..3, 0u64..5), 1..400)) {
            let map = AtomicMap::<2>::new(11);
            let mut model = HashMap::new();
            for (key, low, value) in ops {
                let words = [key, low];
                match NonZeroU64::new(value) {
                    Some(v) => prop_assert_eq!(map.insert(words, v), model.insert(words, v)),
                    None => prop_assert_eq!(map.remove(&words), model.remove(&words)),
                }
                prop_assert_eq!(map.load().find(&words), model.get(&words).copied());
                prop_assert_eq!(map.len(), model.len());
            }
            let entries: HashMap<_, _> = map.entries().into_iter().collect();
            prop_assert_eq!(entries, model);
        }
    }
}
