//! The local cache, fact by fact.

#![allow(clippy::unwrap_used)] // helpers are tests too

use std::sync::Arc;
use std::time::Duration;

use keyheat_core::cache::{CacheSettings, LocalCache, Lookup, Query, SourceId, Stored, Token, Ttl};
use keyheat_core::fence::WriteEpochs;
use keyheat_core::Nanos;

const A: SourceId = SourceId(0);
const B: SourceId = SourceId(7);
const BOUND: Nanos = 1000;

fn settings() -> CacheSettings {
    CacheSettings {
        max_bytes: 1 << 20,
        value_max_bytes: 1000,
        max_staleness: Duration::from_nanos(BOUND),
        max_entries: 100,
    }
}

fn cache() -> (LocalCache, Arc<WriteEpochs>) {
    let epochs = Arc::new(WriteEpochs::default());
    let mut cache = LocalCache::new(settings(), Arc::clone(&epochs));
    cache.source_up(A);
    cache.source_up(B);
    (cache, epochs)
}

fn query<'a>(key: &'a [u8], command: &'a [u8]) -> Query<'a> {
    Query {
        key,
        key_hash: key.len() as u64,
        variant: 3,
        command,
    }
}

fn get(key: &[u8]) -> Query<'_> {
    query(key, key)
}

fn token(cache: &mut LocalCache, source: SourceId, key: &[u8]) -> Token {
    cache.begin(source, key, key.len() as u64).unwrap()
}

/// Registers at time 0 and stores.
fn fill(cache: &mut LocalCache, source: SourceId, query: &Query<'_>, value: &[u8]) -> Stored {
    let token = token(cache, source, query.key);
    cache.registered(&token, 0);
    cache.store(&token, query, value, Ttl::None, 0)
}

#[test]
fn a_filled_reply_is_served_inside_the_bound_only() {
    let (mut cache, _) = cache();
    assert_eq!(fill(&mut cache, A, &get(b"k"), b"v"), Stored::Yes);
    assert_eq!(cache.lookup(A, &get(b"k"), BOUND), Lookup::Hit(b"v", &()));
    assert_eq!(cache.lookup(A, &get(b"k"), BOUND + 1), Lookup::Lapsed);
    cache.proved(A, 500);
    assert_eq!(
        cache.lookup(A, &get(b"k"), BOUND + 1),
        Lookup::Hit(b"v", &())
    );
    assert_eq!(cache.lookup(B, &get(b"k"), 0), Lookup::Miss);
}

#[test]
fn another_variant_or_command_is_another_reply() {
    let (mut cache, _) = cache();
    fill(&mut cache, A, &get(b"k"), b"v");
    assert_eq!(
        cache.lookup(
            A,
            &Query {
                variant: 2,
                ..get(b"k")
            },
            0
        ),
        Lookup::Miss
    );
    assert_eq!(cache.lookup(A, &query(b"k", b"STRLEN k"), 0), Lookup::Miss);
}

#[test]
fn one_push_drops_every_command_of_the_key_and_no_other() {
    let (mut cache, _) = cache();
    for command in [&b"GET k"[..], b"STRLEN k", b"GETRANGE k 0 1"] {
        fill(&mut cache, A, &query(b"k", command), b"v");
    }
    fill(&mut cache, A, &get(b"other"), b"v");
    fill(&mut cache, B, &get(b"k"), b"v");
    cache.invalidate(A, 1, b"k");
    assert_eq!(cache.len(), 2);
    assert_eq!(cache.lookup(A, &query(b"k", b"STRLEN k"), 0), Lookup::Miss);
    assert_eq!(cache.lookup(A, &get(b"other"), 0), Lookup::Hit(b"v", &()));
    assert_eq!(cache.lookup(B, &get(b"k"), 0), Lookup::Hit(b"v", &()));
}

#[test]
fn a_push_voids_a_fill_that_has_stored_nothing_yet() {
    let (mut cache, _) = cache();
    let token = token(&mut cache, A, b"k");
    cache.invalidate(A, 1, b"k");
    cache.registered(&token, 0);
    assert!(cache.is_void(&token));
    assert_eq!(
        cache.store(&token, &get(b"k"), b"v", Ttl::None, 0),
        Stored::Void
    );
}

#[test]
fn a_registration_serves_until_the_push_and_not_after() {
    let (mut cache, _) = cache();
    let first = token(&mut cache, A, b"k");
    assert!(!cache.is_registered(&first));
    assert_eq!(
        cache.store(&first, &get(b"k"), b"v", Ttl::None, 0),
        Stored::NotRegistered
    );
    cache.registered(&first, 0);
    let joining = token(&mut cache, A, b"k");
    assert!(cache.is_registered(&joining));
    cache.invalidate(A, 1, b"k");
    let second = token(&mut cache, A, b"k");
    cache.registered(&first, 0);
    assert!(
        !cache.is_registered(&second),
        "an old reply registers nothing new"
    );
}

#[test]
fn a_write_through_this_process_voids_entries_and_tokens_at_once() {
    let (mut cache, epochs) = cache();
    fill(&mut cache, A, &get(b"k"), b"v");
    let token = token(&mut cache, A, b"k");
    epochs.bump(1);
    assert!(cache.is_void(&token));
    assert_eq!(
        cache.store(&token, &get(b"k"), b"v", Ttl::None, 0),
        Stored::Void
    );
    assert_eq!(cache.lookup(A, &get(b"k"), 0), Lookup::Miss);
    assert_eq!(cache.len(), 0);
}

#[test]
fn a_reconnect_drops_the_generation_and_its_tokens() {
    let (mut cache, _) = cache();
    fill(&mut cache, A, &get(b"k"), b"v");
    let token = token(&mut cache, A, b"k");
    cache.source_down(A);
    assert!(!cache.is_up(A) && !cache.is_proved(A, 0));
    assert!(cache.begin(A, b"k", 1).is_none());
    cache.source_up(A);
    assert!(cache.is_up(A) && !cache.is_proved(A, 0));
    cache.registered(&token, 5);
    assert_eq!(
        cache.proof_age(A, 5),
        None,
        "a reply of the old connection proves nothing"
    );
    assert!(cache.is_void(&token));
    assert_eq!(cache.len(), 0);
}

#[test]
fn coming_up_twice_is_a_reconnect() {
    let (mut cache, _) = cache();
    fill(&mut cache, A, &get(b"k"), b"v");
    cache.source_up(A);
    assert_eq!(cache.lookup(A, &get(b"k"), 0), Lookup::Miss);
}

#[test]
fn a_null_push_drops_its_source_and_a_clear_drops_all() {
    let (mut cache, _) = cache();
    fill(&mut cache, A, &get(b"k"), b"v");
    fill(&mut cache, B, &get(b"k"), b"v");
    let (of_a, of_b) = (token(&mut cache, A, b"k"), token(&mut cache, B, b"k"));
    cache.invalidate_all(A);
    assert!(cache.is_void(&of_a) && !cache.is_void(&of_b));
    cache.clear();
    assert!(cache.is_void(&of_b));
    assert!(cache.is_empty() && cache.is_up(A) && cache.is_idle(B));
}

#[test]
fn an_expired_reply_is_neither_stored_nor_served() {
    let (mut cache, _) = cache();
    let token = token(&mut cache, A, b"k");
    cache.registered(&token, 0);
    assert_eq!(
        cache.store(&token, &get(b"k"), b"v", Ttl::At(10), 10),
        Stored::Expired
    );
    assert_eq!(
        cache.store(&token, &get(b"k"), b"v", Ttl::At(10), 9),
        Stored::Yes
    );
    assert_eq!(cache.lookup(A, &get(b"k"), 9), Lookup::Hit(b"v", &()));
    assert_eq!(cache.lookup(A, &get(b"k"), 10), Lookup::Miss);
    assert_eq!(cache.len(), 0);
}

#[test]
fn a_value_over_its_size_is_not_stored() {
    let (mut cache, _) = cache();
    assert_eq!(fill(&mut cache, A, &get(b"k"), &[0; 1000]), Stored::Yes);
    assert_eq!(fill(&mut cache, A, &get(b"k"), &[0; 1001]), Stored::TooBig);
}

#[test]
fn a_value_is_stored_under_its_own_token_only() {
    let (mut cache, _) = cache();
    let token = token(&mut cache, A, b"k");
    cache.registered(&token, 0);
    assert_eq!(
        cache.store(&token, &get(b"x"), b"v", Ttl::None, 0),
        Stored::Void
    );
}

#[test]
fn a_key_with_anothers_hash_is_not_filled() {
    let (mut cache, _) = cache();
    fill(&mut cache, A, &get(b"k"), b"v");
    assert!(cache.begin(A, b"x", 1).is_none());
    assert_eq!(cache.lookup(A, &get(b"x"), 0), Lookup::Miss);
}

#[test]
fn a_key_that_is_no_longer_hot_starts_cold_again() {
    let (mut cache, _) = cache();
    fill(&mut cache, A, &get(b"k"), b"v");
    fill(&mut cache, A, &get(b"kk"), b"v");
    let token = token(&mut cache, A, b"k");
    cache.retain(|hash| hash == 2);
    assert!(cache.is_void(&token));
    assert_eq!(cache.lookup(A, &get(b"k"), 0), Lookup::Miss);
    assert_eq!(cache.lookup(A, &get(b"kk"), 0), Lookup::Hit(b"v", &()));
    let again = cache.begin(A, b"k", 1).unwrap();
    assert!(!cache.is_registered(&again));
}

#[test]
fn a_source_is_idle_until_something_is_registered() {
    let (mut cache, _) = cache();
    let token = token(&mut cache, A, b"k");
    assert!(cache.is_idle(A));
    cache.registered(&token, 0);
    cache.registered(&token, 1);
    assert!(!cache.is_idle(A) && cache.is_idle(B));
    let mut keys = Vec::new();
    cache.for_each_registered(A, |key, _| keys.push(key.to_vec()));
    assert_eq!(keys, [b"k"]);
    cache.invalidate(A, 1, b"k");
    assert!(cache.is_idle(A));
}

#[test]
fn groups_without_values_are_bounded_and_give_way_first() {
    let (mut cache, _) = cache();
    fill(&mut cache, A, &query(b"", b"GET"), b"kept");
    let tokens: Vec<Token> = (1..1000_u64)
        .map(|key| cache.begin(A, b"k", key).unwrap())
        .collect();
    let live = tokens.iter().filter(|token| !cache.is_void(token)).count();
    assert!((90..100).contains(&live), "{live} of 100 groups live");
    assert_eq!(
        cache.lookup(A, &query(b"", b"GET"), 0),
        Lookup::Hit(b"kept", &())
    );
}

#[test]
fn an_enormous_key_pushes_nothing_out() {
    let (mut cache, _) = cache();
    fill(&mut cache, A, &get(b"k"), b"v");
    assert!(cache.begin(A, &vec![0; 1 << 20], 99).is_none());
    assert_eq!(cache.lookup(A, &get(b"k"), 0), Lookup::Hit(b"v", &()));
}

#[test]
fn a_cache_without_bytes_or_staleness_refuses_politely() {
    let epochs = Arc::new(WriteEpochs::default());
    let mut none: LocalCache = LocalCache::new(
        CacheSettings {
            max_bytes: 0,
            ..settings()
        },
        Arc::clone(&epochs),
    );
    none.source_up(A);
    assert!(none.begin(A, b"k", 1).is_none());
    let mut off = LocalCache::new(
        CacheSettings {
            max_staleness: Duration::ZERO,
            ..settings()
        },
        epochs,
    );
    off.source_up(A);
    fill(&mut off, A, &get(b"k"), b"v");
    assert_eq!(off.lookup(A, &get(b"k"), 0), Lookup::Lapsed);
}

#[test]
fn sources_nobody_has_are_down() {
    let (mut cache, _) = cache();
    let none = SourceId(u32::MAX);
    cache.source_up(none);
    cache.source_down(none);
    cache.invalidate_all(none);
    assert!(!cache.is_up(none) && cache.is_idle(none) && cache.begin(none, b"k", 1).is_none());
}

#[test]
fn an_expiry_past_the_end_of_the_clock_never_comes() {
    assert_eq!(Ttl::after(7, 2), Ttl::At(2_000_007));
    for ms in [u64::MAX, u64::MAX / 1_000_000] {
        assert_eq!(Ttl::after(u64::MAX / 2, ms), Ttl::At(Nanos::MAX), "{ms}");
    }
}
