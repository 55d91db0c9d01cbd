//! The local cache: values of hot keys, served only while it is proved that nothing is missing.
//!
//! # What is promised
//!
//! A read that starts at t is never answered with a value that was overwritten by a write acknowledged
//! before t − `max_staleness`. [`crate::proof`] says why one connection proves it. Here is what the
//! cache adds, and why no value slips past it:
//!
//! - *Sources.* Each primary's tracking connection is a source, with its own proof. A reconnect is a
//!   new generation: it starts empty, and tokens of the old one are void. Nothing is ever carried over.
//! - *Groups.* All replies of one key are one group, and an invalidation drops the group as a whole,
//!   registration and tokens included. A server's registration is one-shot: the next fill registers
//!   again.
//! - *Tokens.* A fill takes a token before anything is sent, and its value is stored only if since then
//!   no invalidation of the key, no lost connection, no clearing and no write through this process came
//!   in between. So a value read before an invalidation is never stored after it.
//! - *Write epochs.* An entry is served only while the process has not written its key since the fill
//!   ([`crate::fence`]): a client reads its own writes at once, without waiting for the push.
//!
//! The one registration covers every read made after it, on whatever connection: if a write comes after
//! the registration was made, its push is on its way, and it arrives before the reply to any heartbeat
//! sent after that write was acknowledged. A second write that finds no registration left is covered by
//! the push of the first, which drops everything filled before it arrives.
//!
//! # Shape
//!
//! `sources` (few), `groups` (place, id, registration), `values` (S3-FIFO by bytes, see there). A lookup
//! is one hash of the command line, one probe, a comparison of the bytes, then epoch, expiry, proof, the
//! cheap reasons to say no after the one that usually does. The hash starts from the key's own, so it
//! is as secret as that.
//!
//! # Bound
//!
//! [`LocalCache::bytes`] counts values, command lines, keys and the overhead of all structures, and
//! never exceeds `max_bytes`. Groups may take a quarter of it, and there are at most `max_entries` of
//! them. When a new one needs room, one without values goes first; its tokens are void, and a push for
//! it finds nothing.
//!
//! # How an entry leaves
//!
//! Invalidated, evicted, cleared; expired or overwritten through this process (found out at lookup);
//! its key no longer hot ([`LocalCache::retain`]): then all is forgotten and it would start cold.
//!
//! Concurrency: none. One cache per shard; the write epochs are what shards share. The caller applies
//! pushes in the order of the connection, and reports a proof after the pushes before it.

mod ghost;
mod groups;
mod slab;
mod values;

#[cfg(test)]
mod model_tests;

use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use groups::Found;
pub use values::{Name, ValueStore};

use crate::fence::{EpochStamp, WriteEpochs};
use crate::hash::spread;
use crate::proof::Proof;
use crate::Nanos;
use groups::{Group, Groups};

/// Sources are numbered below this: as many as a Cluster can have primaries.
const MAX_SOURCES: usize = 16_384;

/// How much the cache may hold and how old its proof may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    /// Everything the cache allocates.
    pub max_bytes: usize,
    /// The largest value that is stored.
    pub value_max_bytes: usize,
    /// The staleness bound; zero switches local serving off.
    pub max_staleness: Duration,
    /// The most replies, and the most keys.
    pub max_entries: usize,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            value_max_bytes: 1 << 20,
            max_staleness: Duration::from_millis(100),
            max_entries: 65_536,
        }
    }
}

/// One primary's tracking connection. Numbers are small and may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u32);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// The one key of the command.
    pub key: &'a [u8],
    /// Its hash.
    pub key_hash: u64,
    /// What else changes the reply: protocol version, database.
    pub variant: u64,
    /// The whole command line.
    pub command: &'a [u8],
}

/// What the cache says to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'a, X = ()> {
    /// The reply, good to be passed on, and what was stored with it.
    Hit(&'a [u8], &'a X),
    /// Nothing is known.
    Miss,
    /// A reply is there, but the source's proof is not live.
    Lapsed,
}

/// What a fill holds from before its registration is sent until its value is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    source: SourceId,
    source_generation: u64,
    group: u32,
    group_id: u64,
    key_hash: u64,
    stamp: EpochStamp,
}

impl Token {
    /// The hash of its key.
    pub fn key_hash(&self) -> u64 {
        self.key_hash
    }

    /// The source it was taken from.
    pub fn source(&self) -> SourceId {
        self.source
    }

    /// Whether both stand for the same registration.
    pub fn is_of_same_group(&self, other: &Token) -> bool {
        self.group_id == other.group_id && self.source == other.source
    }
}

/// When a reply stops being true by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// Never.
    None,
    /// At this moment of the local clock, counted from before the read was sent.
    At(Nanos),
}

impl Ttl {
    /// In so many milliseconds, counted from `sent_at`, when that was asked for. One that lies past the
    /// end of the clock never comes.
    pub fn after(sent_at: Nanos, ms: u64) -> Self {
        Self::At(sent_at.saturating_add(ms.saturating_mul(1_000_000)))
    }
}

/// What became of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is stored.
    Yes,
    /// Something came in between: the value may be out of date.
    Void,
    /// The value is larger than `value_max_bytes`.
    TooBig,
    /// It is past its expiry already.
    Expired,
    /// The registration's reply has not been reported.
    NotRegistered,
    /// It does not fit beside what cannot be evicted.
    Full,
}

#[derive(Debug, Clone, Copy)]
struct Meta<X> {
    /// `Nanos::MAX` for never.
    expires_at: Nanos,
    stamp: EpochStamp,
    extra: X,
}

#[derive(Debug)]
struct Source {
    generation: u64,
    is_up: bool,
    proof: Proof,
    groups: usize,
    registered: usize,
}

/// See the module's description.
///
/// `X` is kept with each reply and means nothing here: a Python client keeps the decoded object.
#[derive(Debug)]
pub struct LocalCache<X = ()> {
    settings: CacheSettings,
    epochs: Arc<WriteEpochs>,
    sources: Vec<Source>,
    groups: Groups,
    values: ValueStore<Meta<X>>,
    last_id: u64,
    /// Switched off by tests that show that other tests would notice.
    is_fenced: bool,
}

impl<X> LocalCache<X> {
    /// An empty cache without sources.
    ///
    /// Args: `epochs` shared with every shard of the process.
    pub fn new(settings: CacheSettings, epochs: Arc<WriteEpochs>) -> Self {
        Self {
            values: ValueStore::new(settings.max_bytes, settings.max_entries),
            settings,
            epochs,
            sources: Vec::new(),
            groups: Groups::new(),
            last_id: 0,
            is_fenced: true,
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn source(&self, source: SourceId) -> Option<&Source> {
        self.sources
            .get(source.0 as usize)
            .filter(|source| source.is_up)
    }

    fn source_mut(&mut self, source: SourceId) -> Option<&mut Source> {
        self.sources
            .get_mut(source.0 as usize)
            .filter(|source| source.is_up)
    }

    /// A tracking connection is up: a new generation, empty and without proof.
    ///
    /// A number past those of the largest Cluster is ignored: that source stays down.
    pub fn source_up(&mut self, source: SourceId) {
        let index = source.0 as usize;
        if index >= MAX_SOURCES {
            return;
        }
        self.drop_source(source);
        while self.sources.len() <= index {
            let proof = Proof::new(self.settings.max_staleness);
            self.sources.push(Source {
                generation: 0,
                is_up: false,
                proof,
                groups: 0,
                registered: 0,
            });
        }
        let generation = self.next_id();
        let source = &mut self.sources[index];
        source.generation = generation;
        source.is_up = true;
        source.proof.lapse();
    }

    /// The connection is gone or no longer to be believed: its generation is dropped.
    pub fn source_down(&mut self, source: SourceId) {
        self.drop_source(source);
        if let Some(source) = self.sources.get_mut(source.0 as usize) {
            source.is_up = false;
            source.proof.lapse();
        }
    }

    /// Changes the staleness bound of every source, from the next lookup on.
    pub fn set_max_staleness(&mut self, max_staleness: Duration) {
        self.settings.max_staleness = max_staleness;
        for source in &mut self.sources {
            source.proof.set_max_staleness(max_staleness);
        }
    }

    /// Whether the source has a generation.
    pub fn is_up(&self, source: SourceId) -> bool {
        self.source(source).is_some()
    }

    /// A reply to a request sent at `sent_at` on the source's connection arrived, and every push
    /// before it is applied, here and in all shards that serve from this connection.
    pub fn proved(&mut self, source: SourceId, sent_at: Nanos) {
        if let Some(source) = self.source_mut(source) {
            source.proof.proved(sent_at);
        }
    }

    /// Whether a read that starts at `now` may be served from this source's entries.
    pub fn is_proved(&self, source: SourceId, now: Nanos) -> bool {
        self.source(source)
            .is_some_and(|source| source.proof.is_live(now))
    }

    /// How old the source's newest proof is.
    pub fn proof_age(&self, source: SourceId, now: Nanos) -> Option<Nanos> {
        self.source(source).and_then(|source| source.proof.age(now))
    }

    /// A push for one key: drops its group, its registration, and voids its tokens.
    pub fn invalidate(&mut self, source: SourceId, key_hash: u64, _key: &[u8]) {
        // Another key with the same hash loses its group for nothing, which is safe.
        if let Some(place) = self.groups.find(source.0, key_hash) {
            self.drop_group(place, false);
        }
    }

    /// A push without keys (FLUSHALL, or the server's table overflowed): drops all of the source.
    pub fn invalidate_all(&mut self, source: SourceId) {
        self.drop_source(source);
    }

    /// The topology changed: drops every group of every source and voids every token.
    pub fn clear(&mut self) {
        self.drop_groups(|_| true);
    }

    /// Asks for a reply to a read that starts at `now`.
    #[inline]
    pub fn lookup(&mut self, source: SourceId, query: &Query<'_>, now: Nanos) -> Lookup<'_, X> {
        let Some(place) = self.values.find(hash(source, query), &name(source, query)) else {
            return Lookup::Miss;
        };
        let Some(meta) = self.values.meta(place) else {
            return Lookup::Miss;
        };
        let is_overwritten = !self.epochs.is_current(query.key_hash, meta.stamp);
        if is_overwritten && self.is_fenced() || now >= meta.expires_at {
            self.values.expire(place);
            return Lookup::Miss;
        }
        if !self.is_proved(source, now) {
            return Lookup::Lapsed;
        }
        self.values
            .hit(place)
            .map_or(Lookup::Miss, |(value, meta)| {
                Lookup::Hit(value, &meta.extra)
            })
    }

    /// Begins a fill. To be called before the registration, or the read, is sent.
    ///
    /// Returns `None` where the source is down or no room can be made: the read is then not cached.
    pub fn begin(&mut self, source: SourceId, key: &[u8], key_hash: u64) -> Option<Token> {
        let source_generation = self.source(source)?.generation;
        // The stamp comes first: a write that is bumped from here on voids the token.
        let stamp = self.epochs.stamp(key_hash);
        let group = match self.groups.find(source.0, key_hash) {
            Some(place) => place,
            None => self.add_group(source, key, key_hash)?,
        };
        let found = self.groups.get(group).filter(|found| *found.key == *key)?;
        Some(Token {
            source,
            source_generation,
            group,
            group_id: found.id,
            key_hash,
            stamp,
        })
    }

    /// Whether the token's group has a live registration, so that the fill may read at once.
    pub fn is_registered(&self, token: &Token) -> bool {
        self.group_of(token)
            .is_some_and(|group| group.is_registered)
    }

    /// The reply to a registration sent at `sent_at` arrived. It is a proof as good as a heartbeat's.
    pub fn registered(&mut self, token: &Token, sent_at: Nanos) {
        let is_same = |source: &Source| source.generation == token.source_generation;
        if !self.source(token.source).is_some_and(is_same) {
            return;
        }
        self.proved(token.source, sent_at);
        if self.group_of(token).is_none_or(|group| group.is_registered) {
            return;
        }
        if let Some(group) = self.groups.get_mut(token.group) {
            group.is_registered = true;
            if let Some(source) = self.source_mut(token.source) {
                source.registered += 1;
            }
        }
    }

    /// Says that the registration is being sent, unless it was sent before.
    ///
    /// Returns true the first time, and only where the group still needs one.
    pub fn ask(&mut self, token: &Token) -> bool {
        let is_wanted = |group: &Group| !group.is_asked && !group.is_registered;
        if !self.group_of(token).is_some_and(is_wanted) {
            return false;
        }
        let group = self.groups.get_mut(token.group);
        group.is_some_and(|group| {
            group.is_asked = true;
            true
        })
    }

    /// As [`LocalCache::registered`], with what the reply said of the key.
    pub fn registered_as(&mut self, token: &Token, found: Found, sent_at: Nanos) {
        self.registered(token, sent_at);
        if self.group_of(token).is_some() {
            if let Some(group) = self.groups.get_mut(token.group) {
                group.found = found;
            }
        }
    }

    /// What the token's registration found, or `None` where there is no live one.
    pub fn found(&self, token: &Token) -> Option<Found> {
        self.group_of(token)
            .filter(|group| group.is_registered)
            .map(|group| group.found)
    }

    /// Drops the token's group, so that the next fill registers anew.
    pub fn forget(&mut self, token: &Token) {
        if self.group_of(token).is_some() {
            self.drop_group(token.group, false);
        }
    }

    /// Whether something came in between, so that a value read under the token may be out of date.
    pub fn is_void(&self, token: &Token) -> bool {
        self.group_of(token).is_none() || !self.epochs.is_current(token.key_hash, token.stamp)
    }

    /// Whether this process has written the token's key since it was taken.
    pub fn is_overwritten(&self, token: &Token) -> bool {
        !self.epochs.is_current(token.key_hash, token.stamp)
    }

    /// The token's group, if it and the generation it belongs to are still there.
    fn group_of(&self, token: &Token) -> Option<&Group> {
        let source = self.source(token.source)?;
        let group = self.groups.get(token.group)?;
        (source.generation == token.source_generation && group.id == token.group_id)
            .then_some(group)
    }

    /// Ends a fill: stores the reply, if nothing came in between.
    ///
    /// Args: `ttl` from a PTTL sent after the read and counted from before the read was sent, or what
    /// the registration found.
    pub fn store(
        &mut self,
        token: &Token,
        query: &Query<'_>,
        value: &[u8],
        ttl: Ttl,
        now: Nanos,
    ) -> Stored
    where
        X: Default,
    {
        self.store_with(token, query, value, (X::default(), 0), ttl, now)
    }

    /// As [`LocalCache::store`], with something to keep beside the reply.
    ///
    /// Args: `(extra, extra_bytes)` what to keep, and how much memory it holds outside of itself.
    pub fn store_with(
        &mut self,
        token: &Token,
        query: &Query<'_>,
        value: &[u8],
        (extra, extra_bytes): (X, usize),
        ttl: Ttl,
        now: Nanos,
    ) -> Stored {
        let owner = match self.owner_for(token, query) {
            Ok(owner) => owner,
            Err(refusal) => return refusal,
        };
        if value.len().saturating_add(extra_bytes) > self.settings.value_max_bytes {
            return Stored::TooBig;
        }
        let expires_at = match ttl {
            Ttl::None => Nanos::MAX,
            Ttl::At(at) if at <= now => return Stored::Expired,
            Ttl::At(at) => at,
        };
        let meta = Meta {
            expires_at,
            stamp: token.stamp,
            extra,
        };
        let (hash, name) = (hash(token.source, query), name(token.source, query));
        match self
            .values
            .insert(hash, &name, owner, (meta, extra_bytes), value)
        {
            true => Stored::Yes,
            false => Stored::Full,
        }
    }

    /// The group under which a token's value may be stored.
    fn owner_for(&self, token: &Token, query: &Query<'_>) -> Result<u32, Stored> {
        if !self.is_fenced() {
            return self
                .groups
                .find(token.source.0, token.key_hash)
                .ok_or(Stored::Void);
        }
        let group = self.group_of(token).ok_or(Stored::Void)?;
        let is_of_query = query.key_hash == token.key_hash && *query.key == *group.key;
        if !is_of_query || self.is_void(token) {
            return Err(Stored::Void);
        }
        if !group.is_registered {
            return Err(Stored::NotRegistered);
        }
        Ok(token.group)
    }

    /// The hot set changed: drops the groups of keys that `keep` does not want, by hash.
    pub fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) {
        self.drop_groups(|group| !keep(group.key_hash));
    }

    /// Shows every registered key of a source, and what its registration found: what a Cluster's
    /// heartbeat has to ask for.
    pub fn for_each_registered(&self, source: SourceId, mut f: impl FnMut(&[u8], Found)) {
        if self.is_idle(source) {
            return;
        }
        let groups = self.groups.iter().map(|(_, group)| group);
        let registered = groups.filter(|group| group.source == source.0 && group.is_registered);
        registered.for_each(|group| f(&group.key, group.found));
    }

    /// Whether nothing is registered or cached at a source, so that it needs no heartbeat.
    pub fn is_idle(&self, source: SourceId) -> bool {
        // Values exist in registered groups only.
        self.source(source)
            .is_none_or(|source| source.registered == 0)
    }

    /// How many replies are cached.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether no reply is cached.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Everything the cache takes, overhead included; at most `max_bytes`.
    pub fn bytes(&self) -> usize {
        self.values.bytes() + self.groups.bytes()
    }

    /// Adds a group, giving up others where there is no room.
    fn add_group(&mut self, source: SourceId, key: &[u8], key_hash: u64) -> Option<u32> {
        let (max_bytes, more) = (self.settings.max_bytes / 4, Groups::key_bytes(key));
        // A key that cannot fit in any case must not push others out.
        if more.saturating_add(self.groups.bytes_without_keys()) > max_bytes {
            return None;
        }
        while !self.groups.has_free() && !self.grow_groups(more)
            || self.groups.bytes().saturating_add(more) > max_bytes
        {
            let values = &self.values;
            let victim = self.groups.victim(|place| values.owner_len(place) > 0)?;
            self.drop_group(victim, true);
        }
        if !self.values.reserve(self.groups.bytes() + more) {
            return None;
        }
        let (id, key) = (self.next_id(), key.into());
        let group = Group {
            id,
            source: source.0,
            key_hash,
            key,
            is_registered: false,
            is_asked: false,
            found: Found::UNKNOWN,
        };
        let place = self.groups.add(group)?;
        if let Some(source) = self.source_mut(source) {
            source.groups += 1;
        }
        Some(place)
    }

    /// Adds places for groups, if they fit beside `key_bytes`.
    fn grow_groups(&mut self, key_bytes: usize) -> bool {
        let places = self.groups.places();
        let mut more = (places / 4)
            .max(16)
            .min(self.settings.max_entries.saturating_sub(places));
        let needed = |more| self.groups.bytes() + Groups::growth_bytes(more) + key_bytes;
        while more > 0 && needed(more) > self.settings.max_bytes / 4 {
            more /= 2;
        }
        if more == 0 || !self.values.reserve(needed(more)) {
            return false;
        }
        self.groups.grow(more);
        true
    }

    fn drop_source(&mut self, source: SourceId) {
        let has_groups = |source: &Source| source.groups > 0;
        if self.sources.get(source.0 as usize).is_some_and(has_groups) {
            self.drop_groups(|group| group.source == source.0);
        }
    }

    fn drop_groups(&mut self, mut is_dropped: impl FnMut(&Group) -> bool) {
        let dropped = self.groups.iter().filter(|(_, group)| is_dropped(group));
        let places: Vec<u32> = dropped.map(|(place, _)| place).collect();
        places
            .into_iter()
            .for_each(|place| self.drop_group(place, true));
    }

    fn drop_group(&mut self, place: u32, is_forgotten: bool) {
        self.values.remove_owner(place, is_forgotten);
        let Some(group) = self.groups.remove(place) else {
            return;
        };
        if let Some(source) = self.sources.get_mut(group.source as usize) {
            source.groups -= 1;
            source.registered -= usize::from(group.is_registered);
        }
        // What groups need has shrunk, so this evicts nothing.
        self.values.reserve(self.groups.bytes());
    }

    fn is_fenced(&self) -> bool {
        self.is_fenced
    }

    /// Breaks the promise on purpose: what was read before a write is stored and served after it. For tests
    /// that show that a checker would find such a bug.
    #[doc(hidden)]
    pub fn plant_missing_fence(&mut self) {
        self.is_fenced = false;
    }
}

#[inline]
fn hash(source: SourceId, query: &Query<'_>) -> u64 {
    let seed = query.key_hash ^ spread(query.variant ^ u64::from(source.0).rotate_left(32));
    xxh3_64_with_seed(query.command, seed)
}

#[inline]
fn name<'a>(source: SourceId, query: &Query<'a>) -> Name<'a> {
    Name {
        source: source.0,
        variant: query.variant,
        command: query.command,
    }
}
