//! The hot set: the versioned set of keys that are hot now, each with its heat and plan.
//!
//! It is a plain value that is built once and never changed, so it is handed to shards behind an
//! `Arc` and read without a lock. The version changes when a key joins or leaves, or when its plan,
//! rule or node changes; heats move all the time and do not count. A reader that only needs to know
//! what to do compares versions; one that shows heats takes the newest set.

use std::sync::Arc;

use crate::hash::ByHash;
use crate::rule::Plan;
use crate::Nanos;

/// The measured load of a key, as an upper bound over the window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Heat {
    /// Reads of the key.
    pub reads_per_s: f64,
    /// Writes of the key.
    pub writes_per_s: f64,
    /// Bytes moved for the key.
    pub bytes_per_s: f64,
    /// The key's operations over those of its node, 0 to 1.
    pub share: f64,
    /// The key's bytes over those of its node, 0 to 1.
    pub bytes_share: f64,
    /// How far the operations may be over-reported: upper minus lower bound.
    pub error_per_s: f64,
}

/// Where a key of the hot set stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HotState {
    /// Its heat is at or above its rule's levels.
    Hot,
    /// Its heat fell below; it leaves when it has cooled.
    Cooling,
}

/// A key of the hot set.
#[derive(Debug, Clone, PartialEq)]
pub struct HotKey {
    /// The key itself.
    pub key: Box<[u8]>,
    /// Its hash.
    pub key_hash: u64,
    /// The upstream node that owns it.
    pub node: u32,
    /// Its load when the set was built.
    pub heat: Heat,
    /// The name of the rule by which it is hot.
    pub rule: Arc<str>,
    /// What is done about it.
    pub plan: Plan,
    /// When it became hot.
    pub since: Nanos,
    /// Hot or cooling.
    pub state: HotState,
}

/// See the module's description. The default is the empty set, version 0.
#[derive(Debug, Clone, Default)]
pub struct HotSet {
    /// Grows by one at every change of membership, plan, rule or node.
    pub version: u64,
    keys: Vec<Arc<HotKey>>,
    by_hash: ByHash<u32>,
}

impl HotSet {
    /// A set of these keys; their order is kept. Of two keys with one hash the first counts.
    pub fn new(version: u64, keys: Vec<Arc<HotKey>>) -> Self {
        let mut by_hash = ByHash::with_capacity_and_hasher(keys.len(), Default::default());
        for (index, key) in keys.iter().enumerate() {
            by_hash.entry(key.key_hash).or_insert(index as u32);
        }
        Self {
            version,
            keys,
            by_hash,
        }
    }

    /// The hot key with this hash.
    #[inline]
    pub fn get(&self, key_hash: u64) -> Option<&Arc<HotKey>> {
        self.by_hash
            .get(&key_hash)
            .and_then(|index| self.keys.get(*index as usize))
    }

    /// The keys, the hottest first.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<HotKey>> {
        self.keys.iter()
    }

    /// How many keys are hot.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is hot.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether both ask for the same to be done: same keys, plans, rules and nodes.
    pub fn is_same_verdict(&self, other: &HotSet) -> bool {
        let is_same = |key: &Arc<HotKey>| {
            other.get(key.key_hash).is_some_and(|theirs| {
                theirs.key == key.key
                    && theirs.plan == key.plan
                    && theirs.rule == key.rule
                    && theirs.node == key.node
            })
        };
        self.len() == other.len() && self.iter().all(is_same)
    }
}

impl<'a> IntoIterator for &'a HotSet {
    type Item = &'a Arc<HotKey>;
    type IntoIter = std::slice::Iter<'a, Arc<HotKey>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
