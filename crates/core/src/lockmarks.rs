//! Keys that are taken for locks, known to every thread of a process.
//!
//! What it is: a table of atomics, in sets of [`WAYS`] places. A place holds part of a key's hash and until
//! when the key is taken for a lock; where a set is full, the one that ends first goes. So the table is bounded,
//! nothing is ever swept, and an application with a million names for its locks forgets old ones instead of
//! having its other keys taken for locks: two keys are confused only if 32 bits of their hashes agree.
//!
//! A lock that is forgotten too early may be cached, within the staleness bound, as anything else.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::hash::spread;
use crate::Nanos;

const SETS: usize = 16_384;
/// Places of a set.
pub const WAYS: usize = 4;
/// Bits of a place that say until when, in seconds.
const TIME_BITS: u32 = 32;
const SECOND: Nanos = 1_000_000_000;

/// The table.
#[derive(Debug)]
pub struct LockMarks {
    places: Box<[AtomicU64]>,
}

impl Default for LockMarks {
    fn default() -> Self {
        Self {
            places: (0..SETS * WAYS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl LockMarks {
    /// The key is taken for a lock until then.
    pub fn insert(&self, key_hash: u64, until: Nanos) {
        let (set, tag) = self.find(key_hash);
        let until = (until / SECOND + 1) & ((1 << TIME_BITS) - 1);
        let is_same = |place: &&AtomicU64| place.load(Relaxed) >> TIME_BITS == tag;
        let ends = |place: &&AtomicU64| place.load(Relaxed) & ((1 << TIME_BITS) - 1);
        let same = set.iter().find(is_same);
        if let Some(place) = same.or_else(|| set.iter().min_by_key(ends)) {
            // Two threads may choose the same place: one of the marks is lost then, as if it were old.
            place.store(tag << TIME_BITS | until, Relaxed);
        }
    }

    /// Whether the key is taken for one.
    #[must_use]
    pub fn contains(&self, key_hash: u64, now: Nanos) -> bool {
        let (set, tag) = self.find(key_hash);
        let now = now / SECOND;
        set.iter().any(|place| {
            let mark = place.load(Relaxed);
            mark >> TIME_BITS == tag && mark != 0 && now < mark & ((1 << TIME_BITS) - 1)
        })
    }

    fn find(&self, key_hash: u64) -> (&[AtomicU64], u64) {
        let spread = spread(key_hash);
        let set = (spread as usize & (SETS - 1)) * WAYS;
        (&self.places[set..set + WAYS], spread >> TIME_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_lock_until_its_time_is_over() {
        let marks = LockMarks::default();
        assert!(!marks.contains(7, 0));
        marks.insert(7, 10 * SECOND);
        assert!(marks.contains(7, 9 * SECOND));
        assert!(!marks.contains(7, 12 * SECOND));
        assert!(!marks.contains(8, 0));
    }

    #[test]
    fn many_names_push_old_ones_out_and_mark_nobody_else() {
        let marks = LockMarks::default();
        let all = 20 * (SETS * WAYS) as u64;
        for hash in 0..all {
            marks.insert(hash, (100 + hash / 10_000) * SECOND);
            assert!(marks.contains(hash, 50 * SECOND));
        }
        let others = (all..all + 1_000_000).filter(|hash| marks.contains(*hash, 50 * SECOND));
        assert_eq!(others.count(), 0);
        assert!(!marks.contains(0, 50 * SECOND));
    }
}
