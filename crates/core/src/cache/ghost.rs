//! Ghosts: what was evicted lately, remembered by fingerprint alone.
//!
//! A key that comes back soon after it was evicted from the small queue deserved better. To know, it
//! is enough to keep 32 bits of its hash and the count of evictions at that time: a set-associative
//! table, in which the oldest of a set gives way, and a ghost counts as gone once as many others came
//! after it as the cache has entries. A false match admits one entry to the main queue unearned;
//! with eight places to a set that is less than one in 10^8.

/// Places in one set: one cache line.
const WAYS: usize = 8;

/// Bytes of the table for each entry of the cache, at most.
pub(super) const BYTES_PER_ENTRY: usize = 2 * size_of::<Ghost>();

#[derive(Debug, Clone, Copy, Default)]
struct Ghost {
    /// Never zero where there is a ghost.
    fingerprint: u32,
    evicted_at: u32,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Ghosts {
    sets: Vec<[Ghost; WAYS]>,
    evictions: u32,
}

impl Ghosts {
    /// Makes the table fit a cache of `entries` entries. Ghosts are forgotten: a cache that grows has
    /// evicted nothing of late.
    pub(super) fn resize(&mut self, entries: usize) {
        let sets = (entries / WAYS).next_power_of_two();
        if sets > self.sets.len() {
            self.sets = vec![[Ghost::default(); WAYS]; sets];
        }
    }

    fn set_of(&mut self, hash: u64) -> Option<&mut [Ghost; WAYS]> {
        let mask = self.sets.len().wrapping_sub(1);
        self.sets.get_mut((hash >> 32) as usize & mask)
    }

    pub(super) fn remember(&mut self, hash: u64) {
        let (fingerprint, evicted_at) = (fingerprint(hash), self.evictions);
        self.evictions = self.evictions.wrapping_add(1);
        let Some(set) = self.set_of(hash) else { return };
        let age = |ghost: &Ghost| match ghost.fingerprint {
            0 => u64::MAX,
            same if same == fingerprint => u64::MAX,
            _ => u64::from(evicted_at.wrapping_sub(ghost.evicted_at)),
        };
        if let Some(oldest) = set.iter_mut().max_by_key(|ghost| age(ghost)) {
            *oldest = Ghost {
                fingerprint,
                evicted_at,
            };
        }
    }

    /// Whether `hash` is among the last `window` evictions; it is then forgotten.
    pub(super) fn recall(&mut self, hash: u64, window: usize) -> bool {
        let (fingerprint, evictions) = (fingerprint(hash), self.evictions);
        let Some(set) = self.set_of(hash) else {
            return false;
        };
        let Some(ghost) = set
            .iter_mut()
            .find(|ghost| ghost.fingerprint == fingerprint)
        else {
            return false;
        };
        let age = evictions.wrapping_sub(ghost.evicted_at);
        *ghost = Ghost::default();
        age as usize <= window
    }
}

fn fingerprint(hash: u64) -> u32 {
    (hash as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::spread;

    #[test]
    fn a_ghost_is_recalled_once() {
        let mut ghosts = Ghosts::default();
        ghosts.resize(64);
        ghosts.remember(spread(1));
        assert!(!ghosts.recall(spread(2), 64));
        assert!(ghosts.recall(spread(1), 64));
        assert!(!ghosts.recall(spread(1), 64));
    }

    #[test]
    fn a_ghost_is_gone_after_as_many_evictions_as_the_window() {
        let mut ghosts = Ghosts::default();
        ghosts.resize(1024);
        (0..101).for_each(|key| ghosts.remember(spread(key)));
        assert!(!ghosts.recall(spread(0), 100));
        assert!(ghosts.recall(spread(1), 100));
    }

    #[test]
    fn a_table_of_no_size_remembers_nothing() {
        let mut ghosts = Ghosts::default();
        ghosts.remember(1);
        assert!(!ghosts.recall(1, 10));
    }

    #[test]
    fn the_table_stays_within_its_bytes() {
        for entries in [1, 16, 100, 1024, 5000] {
            let mut ghosts = Ghosts::default();
            ghosts.resize(entries);
            assert!(
                ghosts.sets.len() * WAYS * size_of::<Ghost>() <= entries.max(8) * BYTES_PER_ENTRY
            );
        }
    }
}
