//! Groups: what the cache knows of one key at one source, apart from its values.
//!
//! A group is created when a fill begins, before anything is sent, so that an invalidation finds
//! something to void even while no value is there. Each has an id that is never used again: a token
//! names its group by place and id, and when the group is gone, so is what the token stood for.

use hashbrown::HashTable;

use super::slab::Slab;
use super::values::{ALLOCATION_BYTES, INDEX_BYTES};
use super::Ttl;
use crate::hash::spread;

/// Groups looked at when room is sought, before one with values is sacrificed.
const LOOKS: usize = 64;

/// What a registration's reply said of its key. It holds until the push that ends the registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The key is not there.
    pub is_missing: bool,
    /// When it expires, counted from before the registration was sent.
    pub expiry: Ttl,
}

impl Found {
    /// Nothing is known: the fill asks by itself.
    pub const UNKNOWN: Self = Self {
        is_missing: false,
        expiry: Ttl::None,
    };
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: u64,
    pub(super) source: u32,
    pub(super) key_hash: u64,
    pub(super) key: Box<[u8]>,
    /// The server will push at the key's next write.
    pub(super) is_registered: bool,
    /// Its registration is on its way.
    pub(super) is_asked: bool,
    /// What the registration's reply said of the key itself.
    pub(super) found: Found,
}

/// All groups of all sources.
#[derive(Debug)]
pub(super) struct Groups {
    groups: Slab<Group>,
    index: HashTable<u32>,
    key_bytes: usize,
    hand: u32,
}

impl Groups {
    /// One place: the struct, its free-list entry, the index, and the value store's list head, which
    /// may have doubled.
    const PLACE_BYTES: usize =
        size_of::<Option<Group>>() + size_of::<u32>() + INDEX_BYTES + 2 * size_of::<(u32, u32)>();

    pub(super) fn new() -> Self {
        Self {
            groups: Slab::new(),
            index: HashTable::new(),
            key_bytes: 0,
            hand: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.groups.places() * Self::PLACE_BYTES + self.key_bytes
    }

    pub(super) fn bytes_without_keys(&self) -> usize {
        self.bytes() - self.key_bytes
    }

    /// What adding a key takes beyond a place.
    pub(super) fn key_bytes(key: &[u8]) -> usize {
        key.len() + ALLOCATION_BYTES
    }

    pub(super) fn has_free(&self) -> bool {
        self.groups.has_free()
    }

    pub(super) fn places(&self) -> usize {
        self.groups.places()
    }

    /// Bytes that `more` places would add.
    pub(super) fn growth_bytes(more: usize) -> usize {
        more * Self::PLACE_BYTES
    }

    pub(super) fn grow(&mut self, more: usize) {
        self.groups.grow(more);
        let groups = &self.groups;
        let hash_of = |place: &u32| groups.get(*place).map_or(0, |g| hash(g.source, g.key_hash));
        self.index
            .reserve(groups.places() - self.index.len(), hash_of);
    }

    #[inline]
    pub(super) fn find(&self, source: u32, key_hash: u64) -> Option<u32> {
        let is_it = |place: &u32| {
            self.groups
                .get(*place)
                .is_some_and(|g| g.key_hash == key_hash && g.source == source)
        };
        self.index.find(hash(source, key_hash), is_it).copied()
    }

    pub(super) fn get(&self, place: u32) -> Option<&Group> {
        self.groups.get(place)
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut Group> {
        self.groups.get_mut(place)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Group)> {
        self.groups.iter()
    }

    /// Adds a group to a free place; `None` when there is none.
    pub(super) fn add(&mut self, group: Group) -> Option<u32> {
        let (key_bytes, hashed) = (
            Self::key_bytes(&group.key),
            hash(group.source, group.key_hash),
        );
        let place = self.groups.take(group)?;
        self.key_bytes += key_bytes;
        let groups = &self.groups;
        let hash_of = |place: &u32| groups.get(*place).map_or(0, |g| hash(g.source, g.key_hash));
        self.index.insert_unique(hashed, place, hash_of);
        Some(place)
    }

    pub(super) fn remove(&mut self, place: u32) -> Option<Group> {
        let group = self.groups.free(place)?;
        self.key_bytes -= Self::key_bytes(&group.key);
        let hashed = hash(group.source, group.key_hash);
        if let Ok(found) = self.index.find_entry(hashed, |other| *other == place) {
            found.remove();
        }
        Some(group)
    }

    /// A group to give up: the next without values, else the next. `None` when there is no group.
    pub(super) fn victim(&mut self, has_values: impl Fn(u32) -> bool) -> Option<u32> {
        let places = self.groups.places() as u32;
        let mut fallback = None;
        let mut looks = 0;
        for _ in 0..places {
            self.hand = if self.hand + 1 < places {
                self.hand + 1
            } else {
                0
            };
            if self.groups.get(self.hand).is_none() {
                continue;
            }
            if !has_values(self.hand) {
                return Some(self.hand);
            }
            fallback = fallback.or(Some(self.hand));
            looks += 1;
            if looks >= LOOKS {
                break;
            }
        }
        fallback
    }
}

fn hash(source: u32, key_hash: u64) -> u64 {
    spread(key_hash ^ u64::from(source).rotate_left(40))
}
