//! The hot set as the data plane needs it: one look-up by hash, and what to do.

use keyheat_core::hash::ByHash;

/// What the data plane does for a hot key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotPlan {
    /// Its reads may be answered locally.
    pub local_cache: bool,
    /// Its reads may go to replicas.
    pub replica_reads: bool,
}

/// The hot keys now.
#[derive(Debug, Default)]
pub struct HotView {
    /// Plans by key hash.
    pub plans: ByHash<HotPlan>,
}

impl HotView {
    /// Whether the key is hot.
    #[must_use]
    pub fn contains(&self, key_hash: u64) -> bool {
        self.plans.contains_key(&key_hash)
    }

    /// Whether a plan sends reads of the key to replicas.
    #[must_use]
    pub fn reads_replicas(&self, key_hash: u64) -> bool {
        self.plans.get(&key_hash).is_some_and(|p| p.replica_reads)
    }

    /// Whether reads of the key may be answered locally.
    #[must_use]
    pub fn caches(&self, key_hash: u64) -> bool {
        self.plans.get(&key_hash).is_some_and(|p| p.local_cache)
    }
}
