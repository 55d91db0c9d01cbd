//! What the cache says it takes, beside what it really asks the allocator for.

#![allow(clippy::unwrap_used)] // helpers are tests too

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use keyheat_core::cache::{CacheSettings, LocalCache, Query, SourceId, Stored, Ttl};
use keyheat_core::fence::WriteEpochs;

/// Counts live bytes. This file has one test, so nothing else allocates meanwhile.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_cache_takes_no_more_than_it_says_and_says_no_more_than_it_may() {
    let max_bytes = 4 << 20;
    let settings = CacheSettings {
        max_bytes,
        ..CacheSettings::default()
    };
    let mut cache: LocalCache = LocalCache::new(settings, Arc::new(WriteEpochs::default()));
    let source = SourceId(0);
    cache.source_up(source);
    let before = LIVE.load(Ordering::Relaxed);
    let mut stored = 0;
    // Many tiny values, then fewer and larger ones, then tiny ones again.
    for round in 0..120_000_u64 {
        let random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let len = if (40_000..80_000).contains(&round) {
            random % 20_000
        } else {
            random % 60
        } as usize;
        let key = format!("key:{}", random % 30_000).into_bytes();
        let value = vec![0; len];
        let query = Query {
            key: &key,
            key_hash: random % 30_000,
            variant: 0,
            command: &key,
        };
        if let Some(token) = cache.begin(source, &key, random % 30_000) {
            cache.registered(&token, 0);
            stored += u32::from(cache.store(&token, &query, &value, Ttl::None, 0) == Stored::Yes);
        }
        drop((key, value));
        let taken = LIVE.load(Ordering::Relaxed) - before;
        assert!(
            cache.bytes() <= max_bytes,
            "says {} of {max_bytes}",
            cache.bytes()
        );
        assert!(
            taken <= cache.bytes() + 4096,
            "takes {taken}, says {}",
            cache.bytes()
        );
    }
    assert!(stored > 100_000, "stored {stored}");
    assert!(cache.len() > 5000, "holds {}", cache.len());
}
