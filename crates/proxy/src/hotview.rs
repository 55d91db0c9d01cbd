//! The hot set as the data plane needs it: one look-up by hash, and what to do.

use std::hash::{BuildHasherDefault, Hasher};

/// A hasher for keys that are hashes already.
#[derive(Debug, Default, Clone, Copy)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(b);
        }
    }

    fn write_u64(&mut self, n: u64) {
        // hashbrown takes its tag from the top bits and the place from the low ones.
        self.0 = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A map by key hash.
pub type HashMap64<V> = hashbrown::HashMap<u64, V, BuildHasherDefault<Identity>>;

/// What the data plane does for a hot key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotPlan {
    /// Its reads may be answered locally.
    pub local_cache: bool,
}

/// The hot keys now.
#[derive(Debug, Default)]
pub struct HotView {
    /// Plans by key hash.
    pub plans: HashMap64<HotPlan>,
}

impl HotView {
    /// Whether the key is hot.
    #[must_use]
    pub fn contains(&self, key_hash: u64) -> bool {
        self.plans.contains_key(&key_hash)
    }

    /// Whether reads of the key may be answered locally.
    #[must_use]
    pub fn caches(&self, key_hash: u64) -> bool {
        self.plans.get(&key_hash).is_some_and(|p| p.local_cache)
    }
}
