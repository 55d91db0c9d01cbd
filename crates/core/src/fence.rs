//! Write epochs: a write that passes through any shard voids what every shard read before it.
//!
//! What it is: one table of counters for the whole process, indexed by key hash, shared by all
//! shards. A fill notes the key's counters before its read is sent (its *stamp*); the value is
//! stored, and later served, only while the counters still read the same. Whoever forwards a write
//! of that key bumps them.
//!
//! Why, when the server sends invalidations: those arrive on another connection, later than the
//! write's own reply. A client that has seen its write acknowledged would read the old value from
//! the local cache for that little while. With the fence it cannot, whichever shard it asks.
//!
//! When to bump: when the write is sent, when its reply is passed on (before it is), and when its
//! outcome is unknown (timeout, cut connection). The second is what the proof below stands on; the
//! first keeps most reads in flight from being stored in vain; the third covers writes that were
//! applied though no reply ever came.
//!
//! Why a bump before the reply is enough. Let a fill read the old value. Then the server ran that
//! read before the write, so the fill took its stamp before the write was answered, hence before
//! the bump. A reader that starts after the reply was passed on loads the counter after the bump,
//! sees another number than the stamp holds, and is not served.
//!
//! Memory ordering. The chain is: bump → reply written to a socket → the client → a request read
//! from a socket → load of the counter. The sockets give the *happens-before* (their queues are
//! handed over under locks); what is left is that neither side lets the counter slip past its
//! system call: the bump is `AcqRel`, so nothing sequenced before it sinks below it and the bump is
//! published by the hand-over; the loads are `Acquire`, so the read that a stamp guards cannot be
//! sent before the stamp is taken. No second location has to agree with the first in one order (the
//! two counters of a stamp are each compared with themselves), so sequential consistency would buy
//! nothing.
//!
//! Cost: one `fetch_add` per write, two loads per cache lookup. Several keys share a counter: a
//! write of one then voids the other's entry, which costs a fill and never an error. Memory is
//! eight bytes a counter, fixed. A counter would have to be bumped 2^64 times between a stamp and
//! its check to deceive it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters in a table made by `WriteEpochs::default()`.
const DEFAULT_COUNTERS: usize = 16_384;

/// The table; see the module's description.
#[derive(Debug)]
pub struct WriteEpochs {
    counters: Box<[AtomicU64]>,
    all: AtomicU64,
}

/// What the table said about one key at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStamp {
    key: u64,
    all: u64,
}

impl Default for WriteEpochs {
    fn default() -> Self {
        Self::new(DEFAULT_COUNTERS)
    }
}

impl WriteEpochs {
    /// A table of at least `counters` counters, rounded up to a power of two.
    pub fn new(counters: usize) -> Self {
        let counters = counters.clamp(1, 1 << 30).next_power_of_two();
        Self {
            counters: (0..counters).map(|_| AtomicU64::new(0)).collect(),
            all: AtomicU64::new(0),
        }
    }

    /// Voids the stamps of one key (and of the few that share its counter).
    pub fn bump(&self, key_hash: u64) {
        self.counter(key_hash).fetch_add(1, Ordering::AcqRel);
    }

    /// Voids every stamp: for a write whose keys are not known (a script, FLUSHALL, SWAPDB).
    pub fn bump_all(&self) {
        self.all.fetch_add(1, Ordering::AcqRel);
    }

    /// The key's stamp now. Take it before the read it is to guard is sent.
    #[inline]
    pub fn stamp(&self, key_hash: u64) -> EpochStamp {
        EpochStamp {
            key: self.counter(key_hash).load(Ordering::Acquire),
            all: self.all.load(Ordering::Acquire),
        }
    }

    /// Whether no bump of the key came between `stamp` and now.
    #[inline]
    pub fn is_current(&self, key_hash: u64, stamp: EpochStamp) -> bool {
        self.stamp(key_hash) == stamp
    }

    #[inline]
    fn counter(&self, key_hash: u64) -> &AtomicU64 {
        // The length is a power of two, so the mask keeps the index inside.
        let index = crate::hash::spread(key_hash) as usize & (self.counters.len() - 1);
        &self.counters[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_until_its_key_is_bumped() {
        let epochs = WriteEpochs::default();
        let stamp = epochs.stamp(7);
        assert!(epochs.is_current(7, stamp));
        epochs.bump(7);
        assert!(!epochs.is_current(7, stamp));
        assert!(epochs.is_current(7, epochs.stamp(7)));
    }

    #[test]
    fn a_bump_of_all_voids_every_key() {
        let epochs = WriteEpochs::new(4);
        let stamps: Vec<_> = (0..100).map(|key| epochs.stamp(key)).collect();
        epochs.bump_all();
        assert!((0..100)
            .zip(stamps)
            .all(|(key, stamp)| !epochs.is_current(key, stamp)));
    }

    #[test]
    fn a_bump_spares_most_other_keys() {
        let epochs = WriteEpochs::default();
        let stamps: Vec<_> = (0..1000).map(|key| epochs.stamp(key)).collect();
        epochs.bump(1);
        let void = (0..1000)
            .zip(stamps)
            .filter(|(key, stamp)| !epochs.is_current(*key, *stamp))
            .count();
        assert!((1..5).contains(&void), "{void} of 1000 were voided");
    }

    #[test]
    fn any_number_of_counters_is_accepted() {
        for counters in [0, 1, 3, 1000] {
            let epochs = WriteEpochs::new(counters);
            epochs.bump(u64::MAX);
            assert!(epochs.is_current(u64::MAX, epochs.stamp(u64::MAX)));
        }
    }

    #[test]
    fn a_bump_by_another_thread_is_seen_after_the_hand_over() {
        let epochs = std::sync::Arc::new(WriteEpochs::default());
        let stamp = epochs.stamp(9);
        let other = std::sync::Arc::clone(&epochs);
        std::thread::spawn(move || other.bump(9)).join().unwrap();
        assert!(!epochs.is_current(9, stamp));
    }
}
