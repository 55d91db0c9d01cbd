//! When keys were last written through this proxy: what a read from a replica must be able to see.
//!
//! One table per shard, written by that shard only, of the times at which writes were answered, by key hash.
//! A time is stored before the reply is passed on, so whoever has seen the reply finds it. A replica that is
//! known to hold all that its primary had answered at a time `t` may serve a read of a key whose time is not
//! after `t`. Keys that share a place are taken to be written when any of them was: such a read goes to the
//! primary more often than it must, and never less.

use std::sync::atomic::{AtomicU64, Ordering};

use keyheat_core::Nanos;

/// Places of a table.
const PLACES: usize = 16_384;

/// The table of one shard.
#[derive(Debug)]
pub(crate) struct WriteTimes {
    places: Box<[AtomicU64]>,
    all: AtomicU64,
}

impl Default for WriteTimes {
    fn default() -> Self {
        Self {
            places: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            all: AtomicU64::new(0),
        }
    }
}

impl WriteTimes {
    /// A write of the key is answered now.
    pub fn note(&self, key_hash: u64, now: Nanos) {
        self.places[place(key_hash)].store(now, Ordering::Release);
    }

    /// A write of keys that are not known (a script, FLUSHALL) is answered now.
    pub fn note_all(&self, now: Nanos) {
        self.all.store(now, Ordering::Release);
    }

    /// When the key was last written, at the latest.
    pub fn last(&self, key_hash: u64) -> Nanos {
        let key = self.places[place(key_hash)].load(Ordering::Acquire);
        key.max(self.all.load(Ordering::Acquire))
    }
}

fn place(key_hash: u64) -> usize {
    // The number of places is a power of two.
    keyheat_core::hash::spread(key_hash) as usize & (PLACES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_was_written_when_it_or_all_were() {
        let times = WriteTimes::default();
        assert_eq!(times.last(7), 0);
        times.note(7, 20);
        assert_eq!(times.last(7), 20);
        times.note_all(10);
        assert_eq!(times.last(7), 20);
        times.note_all(30);
        assert_eq!((times.last(7), times.last(8)), (30, 30));
    }
}
