//! The hot set as the data plane needs it: one look-up by hash, and what to do.

use std::sync::Arc;

use keyheat_core::hash::ByHash;
use keyheat_core::Nanos;

/// What the data plane does for a hot key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotPlan {
    /// Its reads may be answered locally.
    pub local_cache: bool,
    /// Its reads under way may be shared.
    pub coalesce: bool,
    /// Its reads may go to replicas.
    pub replica_reads: bool,
    /// It is copied.
    pub copies: bool,
    /// Place of its rule's limits in [`HotView::limits`].
    pub limits: Option<u16>,
}

/// A key that has copies, or may still have some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedKey {
    /// The key.
    pub key: Arc<[u8]>,
    /// The key beside it that says who makes the copies.
    pub lease: Arc<[u8]>,
    /// The key beside it whose version every write moves.
    pub register: Arc<[u8]>,
    /// Its reads may go to copies from then on: not before every write of this process is known to void them,
    /// and not at all once it has cooled.
    pub read_after: Option<Nanos>,
}

/// How much a rule lets each of its hot keys have upstream; 0 is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadLimits {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Reads per second, per proxy.
    pub reads_per_s_max: u32,
    /// Reads on their way at once, per proxy.
    pub concurrency_max: u32,
}

/// The hot keys now.
#[derive(Debug, Default)]
pub struct HotView {
    /// Plans by key hash.
    pub plans: ByHash<HotPlan>,
    /// Keys with copies, by key hash.
    pub copied: ByHash<CopiedKey>,
    /// Limits of rules that have any.
    pub limits: Vec<ReadLimits>,
}

impl HotView {
    /// Whether the key is hot.
    #[must_use]
    #[inline]
    pub fn contains(&self, key_hash: u64) -> bool {
        self.plans.contains_key(&key_hash)
    }

    /// Whether any key may be limited.
    #[must_use]
    pub fn has_limits(&self) -> bool {
        !self.limits.is_empty()
    }

    /// What the key may have.
    #[must_use]
    pub fn limits_of(&self, key_hash: u64) -> Option<&ReadLimits> {
        let place = self.plans.get(&key_hash)?.limits?;
        self.limits.get(usize::from(place))
    }

    /// Whether a plan sends reads of the key to replicas.
    #[must_use]
    pub fn reads_replicas(&self, key_hash: u64) -> bool {
        self.plans.get(&key_hash).is_some_and(|p| p.replica_reads)
    }

    /// Whether reads of the key that are under way may be shared.
    #[must_use]
    #[inline]
    pub fn coalesces(&self, key_hash: u64) -> bool {
        self.plans.get(&key_hash).is_some_and(|p| p.coalesce)
    }

    /// Whether reads of the key may be answered locally.
    #[must_use]
    #[inline]
    pub fn caches(&self, key_hash: u64) -> bool {
        self.plans.get(&key_hash).is_some_and(|p| p.local_cache)
    }
}
