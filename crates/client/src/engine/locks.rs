//! Keys that are taken for locks.
//!
//! Kept in two generations: where the younger is full it becomes the older, and what was older is
//! forgotten. So no insertion ever looks through them all, however many names an application has for its
//! locks. One that is forgotten too early may be cached, within the staleness bound as anything else.

use keyheat_core::hash::ByHash;
use keyheat_core::Nanos;

/// Keys of one generation.
const GENERATION_MAX: usize = 32_768;

/// By the key's hash, until when it is taken for a lock.
#[derive(Debug, Default)]
pub(super) struct Locks {
    young: ByHash<Nanos>,
    old: ByHash<Nanos>,
}

impl Locks {
    /// The key is a lock until then.
    pub fn insert(&mut self, key_hash: u64, until: Nanos) {
        if self.young.len() >= GENERATION_MAX && !self.young.contains_key(&key_hash) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key_hash, until);
    }

    /// Whether the key is taken for one.
    pub fn contains(&self, key_hash: u64, now: Nanos) -> bool {
        let until = self
            .young
            .get(&key_hash)
            .or_else(|| self.old.get(&key_hash));
        until.is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered_and_no_more_than_two_generations() {
        let mut locks = Locks::default();
        let all = 5 * GENERATION_MAX as u64;
        for hash in 0..all {
            locks.insert(hash, 100);
            assert!(locks.contains(hash, 99));
            assert!(!locks.contains(hash, 100));
        }
        assert!((all - GENERATION_MAX as u64..all).all(|hash| locks.contains(hash, 0)));
        assert!(locks.young.len() + locks.old.len() <= 2 * GENERATION_MAX);
        assert!(!locks.contains(0, 0));
    }
}
