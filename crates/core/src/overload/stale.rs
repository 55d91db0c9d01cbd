//! The last replies for hot keys, to answer from while their node cannot; off unless asked for.
//!
//! What it is: a copy of each reply that the local cache took in, with the fence token it came under and the
//! moment as of which it was last proved to be what the server has. While the token stands that moment moves on
//! with the proof ([`StaleStore::renew`]); once it is void (the key was announced as changed, the connection was
//! lost) it stands still. A reply is given for at most the caller's bound after it.
//!
//! Why a copy: the cache itself must forget everything when a connection is lost, since from then on nothing
//! proves what it holds.
//!
//! *Bound.* `max_bytes`, replies, command lines and [`OVERHEAD`] each; the oldest go first. Cost: a copy per
//! fill, a walk over all entries per renewal; nothing per read while nodes answer.

use std::collections::VecDeque;

use crate::cache::Token;
use crate::hash::ByHash;
use crate::Nanos;

/// Bytes of an entry beside its reply and command line: its structures.
pub const OVERHEAD: usize = 300;

/// One kept reply.
#[derive(Debug)]
struct Entry {
    number: u64,
    variant: u64,
    command: Box<[u8]>,
    reply: Box<[u8]>,
    token: Token,
    proved_at: Nanos,
    expires_at: Nanos,
}

/// A reply that is being handed in.
#[derive(Debug)]
pub struct Kept<'a> {
    /// The whole command line.
    pub command: &'a [u8],
    /// What else changes the reply.
    pub variant: u64,
    /// The reply.
    pub reply: &'a [u8],
    /// What it was read under.
    pub token: Token,
    /// When it was asked for.
    pub read_at: Nanos,
    /// When it stops being true by itself; `Nanos::MAX` for never.
    pub expires_at: Nanos,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct StaleStore {
    max_bytes: usize,
    bytes: usize,
    entries: ByHash<Entry>,
    /// Names and numbers, the oldest first; some were replaced since.
    order: VecDeque<(u64, u64)>,
    last: u64,
}

impl StaleStore {
    /// An empty store; with 0 bytes it keeps nothing.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            ..Self::default()
        }
    }

    /// What it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a reply in place of what was known under its name.
    ///
    /// Args: `name` a hash of command line and variant.
    pub fn put(&mut self, name: u64, kept: Kept<'_>) {
        self.remove(name);
        let size = kept.command.len() + kept.reply.len() + OVERHEAD;
        if size > self.max_bytes {
            return;
        }
        while self.bytes + size > self.max_bytes && self.drop_oldest() {}
        self.last += 1;
        let entry = Entry {
            number: self.last,
            variant: kept.variant,
            command: kept.command.into(),
            reply: kept.reply.into(),
            token: kept.token,
            proved_at: kept.read_at,
            expires_at: kept.expires_at,
        };
        self.bytes += size;
        self.entries.insert(name, entry);
        self.order.push_back((name, self.last));
        if self.order.len() > 2 * self.entries.len() + 16 {
            let entries = &self.entries;
            self.order
                .retain(|(name, number)| entries.get(name).is_some_and(|e| e.number == *number));
        }
    }

    /// Whose token still stands was proved again.
    ///
    /// Args: `proof` says as of when, of a token that stands.
    pub fn renew(&mut self, mut proof: impl FnMut(&Token) -> Option<Nanos>) {
        for entry in self.entries.values_mut() {
            if let Some(at) = proof(&entry.token) {
                entry.proved_at = entry.proved_at.max(at);
            }
        }
    }

    /// The last reply, if it was proved no longer than `max_age` ago, and what it was read under.
    #[must_use]
    pub fn get(
        &self,
        name: u64,
        (command, variant): (&[u8], u64),
        now: Nanos,
        max_age: Nanos,
    ) -> Option<(&[u8], &Token)> {
        let entry = self.entries.get(&name)?;
        let is_same = *entry.command == *command && entry.variant == variant;
        let is_good = now.saturating_sub(entry.proved_at) <= max_age && now < entry.expires_at;
        (is_same && is_good).then_some((&entry.reply, &entry.token))
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((name, number)) = self.order.pop_front() else {
            return false;
        };
        if self.entries.get(&name).is_some_and(|e| e.number == number) {
            self.remove(name);
        }
        true
    }

    fn remove(&mut self, name: u64) {
        if let Some(entry) = self.entries.remove(&name) {
            self.bytes -= entry.command.len() + entry.reply.len() + OVERHEAD;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cache::{CacheSettings, LocalCache, SourceId};
    use crate::fence::WriteEpochs;

    fn token() -> Token {
        let epochs = Arc::new(WriteEpochs::default());
        let mut cache: LocalCache = LocalCache::new(CacheSettings::default(), epochs);
        cache.source_up(SourceId(0));
        cache.begin(SourceId(0), b"k", 7).unwrap()
    }

    fn put(store: &mut StaleStore, name: u64, reply: &[u8], read_at: Nanos) {
        let kept = Kept {
            command: b"GET k",
            variant: 1,
            reply,
            token: token(),
            read_at,
            expires_at: Nanos::MAX,
        };
        store.put(name, kept);
    }

    fn get(store: &StaleStore, name: u64, now: Nanos) -> Option<Vec<u8>> {
        let found = store.get(name, (b"GET k", 1), now, 100);
        found.map(|(reply, _)| reply.to_vec())
    }

    #[test]
    fn a_reply_is_given_for_so_long_after_its_last_proof() {
        let mut store = StaleStore::new(10_000);
        put(&mut store, 1, b"v", 1_000);
        assert_eq!(get(&store, 1, 1_100).as_deref(), Some(&b"v"[..]));
        assert_eq!(get(&store, 1, 1_101), None);
        store.renew(|_| Some(1_050));
        assert!(get(&store, 1, 1_150).is_some());
        store.renew(|_| None);
        store.renew(|_| Some(900));
        assert!(get(&store, 1, 1_150).is_some());
        assert!(get(&store, 1, 1_151).is_none());
    }

    #[test]
    fn another_command_or_variant_of_the_same_hash_gets_nothing() {
        let mut store = StaleStore::new(10_000);
        put(&mut store, 1, b"v", 0);
        assert!(store.get(1, (b"GET l", 1), 0, 100).is_none());
        assert!(store.get(1, (b"GET k", 2), 0, 100).is_none());
    }

    #[test]
    fn it_stays_within_its_bytes_and_drops_the_oldest() {
        let mut store = StaleStore::new(1_000);
        for name in 0..50 {
            put(&mut store, name % 5, &[b'v'; 20], name);
            assert!(store.bytes() <= 1_000);
        }
        assert_eq!((0..5).filter(|n| get(&store, *n, 50).is_some()).count(), 3);
        assert!(get(&store, 4, 50).is_some());
        put(&mut store, 9, &[b'v'; 2_000], 0);
        assert!(get(&store, 9, 0).is_none());
        assert!(store.order.len() < 32);
        let mut none = StaleStore::new(0);
        put(&mut none, 1, b"v", 0);
        assert!(get(&none, 1, 0).is_none());
    }
}
