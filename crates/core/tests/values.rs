//! The value store against a model that never forgets, and its bound against the real allocator.

#![allow(clippy::unwrap_used)] // helpers are tests too

use std::collections::HashMap;

use keyheat_core::cache::{Name, ValueStore};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Play {
    Insert { key: u8, owner: u32, len: usize },
    Get { key: u8 },
    Expire { key: u8 },
    RemoveOwner { owner: u32, is_forgotten: bool },
    Reserve { bytes: usize },
}

fn plays() -> impl Strategy<Value = Vec<Play>> {
    let len = prop_oneof![4 => 0..100_usize, 2 => 100..3000_usize, 1 => 3000..40_000_usize];
    let play = prop_oneof![
        8 => (any::<u8>(), 0..20_u32, len).prop_map(|(key, owner, len)| Play::Insert { key, owner, len }),
        8 => any::<u8>().prop_map(|key| Play::Get { key }),
        1 => any::<u8>().prop_map(|key| Play::Expire { key }),
        1 => (0..20_u32, any::<bool>())
            .prop_map(|(owner, is_forgotten)| Play::RemoveOwner { owner, is_forgotten }),
        1 => (0..8000_usize).prop_map(|bytes| Play::Reserve { bytes }),
    ];
    prop::collection::vec(play, 1..600)
}

/// Hashes collide: only the bytes tell names apart.
fn hash(key: u8) -> u64 {
    u64::from(key % 64) << 57
}

struct Model {
    store: ValueStore<u32>,
    /// What was stored last under each key, and its owner.
    stored: HashMap<u8, (Vec<u8>, u32)>,
    reserved: usize,
    serial: u32,
}

impl Model {
    fn step(&mut self, play: &Play) {
        match *play {
            Play::Insert { key, owner, len } => self.insert(key, owner, len),
            Play::Get { key } => {
                let command = [key];
                let found = self
                    .store
                    .get(hash(key), &name(&command))
                    .map(<[u8]>::to_vec);
                if let Some(value) = found {
                    assert_eq!(Some(&value), self.stored.get(&key).map(|(value, _)| value));
                }
            }
            Play::Expire { key } => {
                if let Some(place) = self.store.find(hash(key), &name(&[key])) {
                    self.store.expire(place);
                    self.stored.remove(&key);
                }
                assert_eq!(self.store.find(hash(key), &name(&[key])), None);
            }
            Play::RemoveOwner {
                owner,
                is_forgotten,
            } => {
                self.store.remove_owner(owner, is_forgotten);
                self.stored.retain(|_, stored| stored.1 != owner);
                assert_eq!(self.store.owner_len(owner), 0);
            }
            Play::Reserve { bytes } => {
                if self.store.reserve(bytes) {
                    self.reserved = bytes;
                }
            }
        }
    }

    fn insert(&mut self, key: u8, owner: u32, len: usize) {
        self.serial += 1;
        let value: Vec<u8> = (0..len).map(|at| (at as u32 ^ self.serial) as u8).collect();
        self.stored.remove(&key);
        if self
            .store
            .insert(hash(key), &name(&[key]), owner, (self.serial, 0), &value)
        {
            let place = self.store.find(hash(key), &name(&[key])).unwrap();
            assert_eq!(self.store.meta(place), Some(&self.serial));
            self.stored.insert(key, (value, owner));
        }
    }

    /// What must be true at all times.
    fn check(&self, max_bytes: usize, max_entries: usize) {
        assert!(self.store.bytes() + self.reserved <= max_bytes);
        assert!(self.store.len() <= max_entries);
        let is_there = |key: &u8| self.store.find(hash(*key), &name(&[*key])).is_some();
        let mut owners: HashMap<u32, usize> = HashMap::new();
        let mut len = 0;
        for (_, (_, owner)) in self.stored.iter().filter(|(key, _)| is_there(key)) {
            *owners.entry(*owner).or_default() += 1;
            len += 1;
        }
        assert_eq!(self.store.len(), len);
        (0..20).for_each(|owner| {
            assert_eq!(
                self.store.owner_len(owner),
                owners.get(&owner).copied().unwrap_or(0)
            );
        });
    }
}

fn name(command: &[u8]) -> Name<'_> {
    Name {
        source: 1,
        variant: 2,
        command,
    }
}

proptest! {
    #[test]
    fn the_store_returns_only_what_was_stored_last_and_keeps_its_bounds(
        plays in plays(),
        max_bytes in prop::sample::select(vec![0_usize, 500, 10_000, 60_000, 1 << 20]),
        max_entries in prop::sample::select(vec![0_usize, 1, 7, 50, 10_000]),
    ) {
        let store = ValueStore::new(max_bytes, max_entries);
        let mut model = Model { store, stored: HashMap::new(), reserved: 0, serial: 0 };
        for play in plays {
            model.step(&play);
            model.check(max_bytes, max_entries);
        }
    }
}

#[test]
fn names_differ_by_source_variant_and_command() {
    let mut store = ValueStore::new(1 << 20, 100);
    let first = Name {
        source: 0,
        variant: 0,
        command: b"GET a",
    };
    let others = [
        Name { source: 1, ..first },
        Name {
            variant: 1,
            ..first
        },
        Name {
            command: b"GET b",
            ..first
        },
        Name {
            command: b"GET",
            ..first
        },
    ];
    store.insert(7, &first, 0, ((), 0), b"a's value");
    for other in others {
        assert_eq!(store.get(7, &other), None);
    }
    assert_eq!(store.get(7, &first), Some(&b"a's value"[..]));
}

#[test]
fn a_popular_entry_outlives_a_scan() {
    let mut store = ValueStore::new(1 << 20, 100);
    let get = |store: &mut ValueStore<()>, key: u64| {
        let command = key.to_le_bytes();
        let name = Name {
            source: 0,
            variant: 0,
            command: &command,
        };
        let is_hit = store.get(key, &name).is_some();
        if !is_hit {
            store.insert(key, &name, 0, ((), 0), b"value");
        }
        is_hit
    };
    for _ in 0..4 {
        for key in 0..50 {
            get(&mut store, key);
        }
    }
    for key in 1000..3000 {
        get(&mut store, key);
    }
    let survivors = (0..50).filter(|key| get(&mut store, *key)).count();
    assert_eq!(survivors, 50);
}

#[test]
fn a_value_too_large_for_the_store_evicts_nothing() {
    let mut store = ValueStore::new(20_000, 100);
    assert!(store.insert(1, &name(b"a"), 0, ((), 0), &[0; 100]));
    assert!(!store.insert(2, &name(b"b"), 0, ((), 0), &[0; 20_000]));
    assert!(store.get(1, &name(b"a")).is_some());
}
