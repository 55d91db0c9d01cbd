//! What application threads call. Nothing here waits for a server, and nothing fails: where the engine
//! cannot help, the answer is "ask the server".
//!
//! # A read
//!
//! 1. A key that is not hot goes upstream at once: one look into an immutable hot set.
//! 2. A hot one is looked up. A hit is a clone of what was stored.
//! 3. A miss needs the key registered on its primary's tracking connection. The first to miss has that
//!    asked for, by `PTTL` (a read, so the server remembers the key, and it brings the expiry), and
//!    waits for nothing: its read goes upstream as ever.
//! 4. Once registered, the next to miss takes a fence token and goes upstream; what it brings back is
//!    stored if nothing came in between.
//! 5. Meanwhile others who ask for the same thing may join the read under way ([`crate::flight`]).
//!
//! # Why the registration's `PTTL` is good for the value
//!
//! It is read before the value. Any change of the key or of its expiry in between ends the registration,
//! and the push that says so drops the entry, within the same bound as any other invalidation. Without
//! such a push nothing has changed, so the expiry is the value's.
//!
//! # Counting
//!
//! Two windows. Whoever finds the first taken (the tracker is reading it) counts in the second; the
//! detector adds them up, as it adds up the shards of a proxy.

mod locks;
mod thread;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyheat_core::cache::{Found, LocalCache, Lookup, SourceId, Stored, Token, Ttl};
use keyheat_core::detect::Nominator;
use keyheat_core::fence::WriteEpochs;
use keyheat_core::hash::{ByHash, KeyHasher};
use keyheat_core::hotset::HotSet;
use keyheat_core::window::{Access, Totals, Window};
use keyheat_core::Nanos;
use keyheat_net::clock::{self, MS, SEC};
use keyheat_net::lock;
use keyheat_resp::command::Cacheable;
use mio::{Poll, Waker};

use crate::connect::Connector;
use crate::flight::{Flight, OnEnd};
use crate::settings::Settings;
use crate::stats::Stats;
use crate::topology::{Node, Topology};
use crate::tracker::{self, Message};
use locks::Locks;
use thread::Thread;

/// Counting windows; see the module's description.
const WINDOWS: usize = 2;
/// A key whose value cannot be kept is left alone so long.
const NOT_WORTH: Nanos = 10 * SEC;
/// A key that was set as locks are is taken for one so long.
const LOCK_FOR: Nanos = 3600 * SEC;
/// Most keys that are not worth it, and most pairs of key and fields, that are remembered.
const REMEMBERED_MAX: usize = 16_384;
/// Keys that keyheat itself has in the server: copies, leases, counters' parts.
const OWN_PREFIX: &[u8] = b"keyheat:";
/// A tracking connection is asked for at most so often.
const WANT_EVERY: Nanos = 20 * MS;
/// Most messages waiting for the tracker.
const INBOX_MAX: usize = 16_384;
/// Tries for the cache's lock before a read goes upstream instead.
const LOCK_TRIES: u32 = 64;

/// A cacheable read.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The one key of the command.
    pub key: &'a [u8],
    /// Its hash, by [`Engine::hash`].
    pub key_hash: u64,
    /// What else changes the decoded reply: client settings, database, options.
    pub variant: u64,
    /// The whole command line, in any encoding that tells two lines apart.
    pub line: &'a [u8],
    /// What the command table says of it.
    pub cacheable: Cacheable,
    /// The fields that a hash command names.
    pub fields: &'a [&'a [u8]],
}

/// What to do about a read.
#[derive(Debug)]
pub enum Read<V: Clone> {
    /// Here is the reply.
    Hit(V),
    /// Ask the server.
    Upstream,
    /// Ask the server, and hand in what it says.
    Lead(Lead<V>),
    /// Somebody asks the server for the same right now.
    Join(Arc<Flight<V>>),
}

/// A read that goes upstream on behalf of others: for the cache, for those who join, or both.
///
/// Dropped without a value, those who joined are told so.
#[derive(Debug)]
pub struct Lead<V: Clone> {
    engine: Arc<Shared<V>>,
    flight: Option<Arc<Flight<V>>>,
    fill: Option<(Token, Found)>,
    node: u32,
    process: Option<Arc<str>>,
}

/// The switches of an engine; all work while it runs.
#[derive(Debug)]
pub struct Switches {
    /// Count, and so detect.
    pub counting: AtomicBool,
    /// Answer from memory.
    pub local_cache: AtomicBool,
    /// Let callers join a read under way.
    pub coalesce: AtomicBool,
    /// Send reads to copies.
    pub copies: AtomicBool,
    /// Send reads to replicas.
    pub replica_reads: AtomicBool,
    /// Measure, and apply nothing.
    pub shadow: AtomicBool,
}

impl Switches {
    /// All switches by their names.
    pub fn named(&self) -> [(&'static str, &AtomicBool); 6] {
        [
            ("counting", &self.counting),
            ("local_cache", &self.local_cache),
            ("coalesce", &self.coalesce),
            ("copies", &self.copies),
            ("replica_reads", &self.replica_reads),
            ("shadow", &self.shadow),
        ]
    }
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            counting: AtomicBool::new(true),
            local_cache: AtomicBool::new(true),
            coalesce: AtomicBool::new(true),
            copies: AtomicBool::new(true),
            replica_reads: AtomicBool::new(true),
            shadow: AtomicBool::new(false),
        }
    }
}

/// What was saved for one hot key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Saved {
    /// Reads answered from memory.
    pub hits: u64,
    /// The first of them.
    pub first_at: Nanos,
    /// Reads answered by another caller's read.
    pub joins: u64,
}

/// What is done for a hot key now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HotPlan {
    /// Its values may be kept.
    pub local_cache: bool,
    /// Reads of it that are under way may be shared.
    pub coalesce: bool,
    /// Reads of it that go to the server may go to copies.
    pub copies: bool,
    /// Reads of it that go to the server may go to replicas.
    pub replica_reads: bool,
}

/// The hot set and what is done for its keys.
#[derive(Debug, Default)]
pub struct HotNow {
    /// The verdict.
    pub set: Arc<HotSet>,
    pub(crate) plans: ByHash<HotPlan>,
}

/// The counts of some threads.
#[derive(Debug)]
pub(crate) struct Counting {
    pub window: Window,
    /// Nominated lately, so not again.
    pub nominated: ByHash<()>,
}

/// The cache and what is remembered beside it.
#[derive(Debug)]
pub(crate) struct Cached<V> {
    pub cache: LocalCache<V>,
    pub saved: ByHash<Saved>,
    flights: ByHash<Arc<Flight<V>>>,
    not_worth: ByHash<Nanos>,
    locks: Locks,
    /// By identity of a hash-field read: the registration under which its fields were found to have
    /// no expiry, or `None` while that is being asked.
    fields: ByHash<Option<Token>>,
    wanted_at: ByHash<Nanos>,
    /// The server process behind each node's tracking connection, and whether its hash fields expire.
    pub peers: ByHash<(Arc<str>, bool)>,
}

/// Everything that application threads and the tracker share.
#[derive(Debug)]
pub struct Shared<V> {
    pub(crate) settings: Settings,
    /// See [`Switches`].
    pub switches: Switches,
    /// See [`Stats`].
    pub stats: Stats,
    hasher: KeyHasher,
    pub(crate) epochs: Arc<WriteEpochs>,
    pub(crate) counting: [Mutex<Counting>; WINDOWS],
    nominator: Nominator,
    pub(crate) hot: ArcSwap<HotNow>,
    hot_len: AtomicUsize,
    pub(crate) cached: Mutex<Cached<V>>,
    pub(crate) topology: ArcSwap<Topology>,
    is_cluster: bool,
    thread: Thread,
    inbox: Mutex<Vec<Message>>,
    waker: Waker,
    /// The tracker sleeps without a timeout.
    pub(crate) is_asleep: AtomicBool,
    /// A value was at hand and not proved fresh.
    pub(crate) is_beat_wanted: AtomicBool,
    /// When a value was last looked up, hit or not.
    pub(crate) wanted_at: AtomicU64,
    /// Why nothing is cached, by node, for people.
    pub(crate) refusals: Mutex<ByHash<String>>,
    /// The staleness bound in force.
    pub(crate) bound_ns: AtomicU64,
    /// The interval between heartbeats in force.
    pub(crate) beat_ns: AtomicU64,
    /// Attempts to connect under way.
    pub(crate) dialling: AtomicUsize,
    /// See [`Shared::plant`].
    pub(crate) is_deaf: AtomicBool,
}

/// What a process has written, and how it names keys.
#[derive(Debug, Clone)]
pub struct Writes {
    epochs: Arc<WriteEpochs>,
    hasher: KeyHasher,
}

impl Writes {
    /// Nothing yet.
    ///
    /// Args: `seed` of the key hash, secret.
    pub fn new(seed: u64) -> Self {
        Self {
            epochs: Arc::new(WriteEpochs::default()),
            hasher: KeyHasher::new(seed),
        }
    }
}

/// An engine and its thread.
#[derive(Debug)]
pub struct Engine<V> {
    shared: Arc<Shared<V>>,
}

impl<V: Clone + Send + Sync + 'static> Engine<V> {
    /// An engine whose tracker runs as soon as a key is worth a look.
    ///
    /// Args: `writes` what this process has written: its write epochs, shared by all its engines, so that
    /// one sees what is written through another, and the hasher they are kept by, whose seed is secret.
    ///
    /// # Errors
    /// The settings are refused, or the system refuses an event queue.
    pub fn start(
        settings: Settings,
        topology: Topology,
        connector: Arc<dyn Connector>,
        writes: &Writes,
    ) -> Result<Self, String> {
        let poll = Poll::new().map_err(|e| e.to_string())?;
        let waker = Waker::new(poll.registry(), tracker::WAKE).map_err(|e| e.to_string())?;
        let shared = Arc::new(Shared::new(settings, topology, waker, writes)?);
        let run = tracker::Tracker::new(Arc::clone(&shared), poll, connector)?;
        shared.thread.prepare(move || run.run());
        Ok(Self { shared })
    }

    /// What the engine's threads share.
    pub fn shared(&self) -> &Arc<Shared<V>> {
        &self.shared
    }

    /// Ends the tracker, and with it everything but counting. Waits at most `timeout` for its thread.
    pub fn stop(&self, timeout: Duration) {
        self.shared.tell(Message::Stop);
        // Attempts to connect run in the language's interpreter, which must not go away under them.
        let is_dialling = || self.shared.dialling.load(Relaxed) > 0;
        self.shared.thread.end(timeout, is_dialling);
    }
}

impl<V> Drop for Engine<V> {
    fn drop(&mut self) {
        self.shared.tell(Message::Stop);
        // What has not begun owns what is dropped here.
        self.shared.thread.end(Duration::ZERO, || false);
    }
}

impl<V> Shared<V> {
    /// Leaves a message for the tracker. Returns false where its inbox is full; what nobody would say
    /// again is taken even then.
    pub(crate) fn tell(&self, message: Message) -> bool {
        if message.is_work() {
            self.begin();
        }
        {
            let mut inbox = lock(&self.inbox);
            if inbox.len() >= INBOX_MAX && message.is_asked_again() {
                return false;
            }
            inbox.push(message);
            if inbox.len() > 1 {
                return true; // it was woken for the first of them
            }
        }
        let _ = self.waker.wake();
        true
    }

    /// Has the tracker run.
    #[inline]
    fn begin(&self) {
        if let Err(e) = self.thread.begin() {
            tracing::error!("no thread to track hot keys: {e}");
            let reason = format!("the system refuses a thread: {e}");
            lock(&self.refusals).insert(0, reason);
        }
    }

    pub(crate) fn take_inbox(&self) -> Vec<Message> {
        std::mem::take(&mut *lock(&self.inbox))
    }

    /// The staleness bound in force: the one that was set, or the wider one that was needed.
    pub fn bound(&self) -> Duration {
        Duration::from_nanos(self.bound_ns.load(Relaxed))
    }

    /// The interval between heartbeats in force.
    pub fn beat_interval(&self) -> Duration {
        Duration::from_nanos(self.beat_ns.load(Relaxed))
    }

    /// The hot set as of the last judging.
    pub fn hot(&self) -> Arc<HotNow> {
        self.hot.load_full()
    }

    /// Why nothing is cached from some nodes.
    pub fn refusals(&self) -> Vec<String> {
        lock(&self.refusals).values().cloned().collect()
    }
}

impl<V: Clone> Shared<V> {
    fn new(
        settings: Settings,
        topology: Topology,
        waker: Waker,
        writes: &Writes,
    ) -> Result<Self, String> {
        let rules = settings.rule_set()?;
        let nominator = Nominator::new(&rules, WINDOWS as u32);
        // Until the first tick has seen traffic, every access is worth a look that an idle node's is.
        let window_length = Duration::from_millis(settings.window_ms);
        let (ops, bytes) = nominator.check_steps(&Totals::default(), window_length);
        let counting = || -> Result<_, String> {
            let mut window = Window::new(settings.window()?).map_err(|e| e.to_string())?;
            window.set_check_steps(ops, bytes);
            Ok(Mutex::new(Counting {
                window,
                nominated: ByHash::default(),
            }))
        };
        let epochs = Arc::clone(&writes.epochs);
        Ok(Self {
            counting: [counting()?, counting()?],
            nominator,
            cached: Mutex::new(Cached {
                cache: LocalCache::new(settings.cache(), Arc::clone(&epochs)),
                saved: ByHash::default(),
                flights: ByHash::default(),
                not_worth: ByHash::default(),
                locks: Locks::default(),
                fields: ByHash::default(),
                wanted_at: ByHash::default(),
                peers: ByHash::default(),
            }),
            epochs,
            switches: Switches::default(),
            stats: Stats::default(),
            hasher: writes.hasher,
            hot: ArcSwap::default(),
            hot_len: AtomicUsize::new(0),
            is_cluster: topology.is_cluster(),
            topology: ArcSwap::new(Arc::new(topology)),
            thread: Thread::none(),
            inbox: Mutex::default(),
            waker,
            is_asleep: AtomicBool::new(false),
            is_beat_wanted: AtomicBool::new(false),
            wanted_at: AtomicU64::new(0),
            refusals: Mutex::default(),
            bound_ns: AtomicU64::new(settings.max_staleness_ms * MS),
            dialling: AtomicUsize::new(0),
            is_deaf: AtomicBool::new(false),
            beat_ns: AtomicU64::new(settings.max_staleness_ms * MS / 4),
            settings,
        })
    }

    /// The hash of a key.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash(key)
    }

    #[inline]
    fn owner(&self, key: &[u8]) -> Option<u32> {
        if self.is_cluster {
            self.topology.load().owner(key)
        } else {
            Some(0)
        }
    }

    /// Whether any key is hot, so that [`Shared::read`] can be of use.
    #[inline]
    pub fn has_hot_keys(&self) -> bool {
        self.hot_len.load(Relaxed) > 0 || self.settings.every_key
    }

    /// Whether [`Shared::read`] can be of use for this key.
    pub fn is_wanted(&self, key_hash: u64) -> bool {
        self.settings.every_key || self.is_hot(key_hash)
    }

    /// Whether the key is hot.
    pub fn is_hot(&self, key_hash: u64) -> bool {
        self.hot_len.load(Relaxed) > 0 && self.hot.load().set.get(key_hash).is_some()
    }

    /// Counts one access of one key.
    ///
    /// Args: `bytes` moved for it, either way.
    #[inline]
    pub fn count(&self, key: &[u8], key_hash: u64, access: Access, bytes: u64, now: Nanos) {
        if !self.switches.counting.load(Relaxed) {
            return;
        }
        let node = self.owner(key).unwrap_or(0);
        let mut counting = self.counting();
        if counting.window.record(key_hash, node, access, bytes, now) {
            self.look(&mut counting, key, key_hash, node, now);
        }
        drop(counting);
        self.rouse();
    }

    /// Has the tracker judge and beat again, if it had nothing to do.
    #[inline]
    fn rouse(&self) {
        if self.is_asleep.load(Relaxed) && self.is_asleep.swap(false, Relaxed) {
            let _ = self.waker.wake();
        }
    }

    #[inline]
    fn counting(&self) -> MutexGuard<'_, Counting> {
        match self.counting[0].try_lock() {
            Ok(counting) => counting,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => lock(&self.counting[1]),
        }
    }

    /// Whether a key that is due for a look passes its local share and was not nominated just now.
    #[cold]
    fn look(&self, counting: &mut Counting, key: &[u8], key_hash: u64, node: u32, now: Nanos) {
        if counting.nominated.contains_key(&key_hash) || self.is_hot(key_hash) {
            return;
        }
        if key.starts_with(OWN_PREFIX) {
            return;
        }
        self.begin(); // it also says how often to look, by what the node's traffic is
        let counts = counting.window.estimate(key_hash, now);
        let totals = counting.window.totals(node, now);
        let window = Duration::from_millis(self.settings.window_ms);
        if self.nominator.should_nominate(&counts, &totals, window)
            && counting.nominated.len() < REMEMBERED_MAX
        {
            let key = key.into();
            let nomination = Message::Nominate {
                key,
                key_hash,
                node,
            };
            if self.tell(nomination) {
                counting.nominated.insert(key_hash, ());
            }
        }
    }

    pub(crate) fn nominator(&self) -> &Nominator {
        &self.nominator
    }

    /// A command that writes this key is about to be sent, was answered, or failed in the middle: no
    /// value read before is served after.
    pub fn wrote(&self, key_hash: u64) {
        self.epochs.bump(key_hash);
    }

    /// The key was set only if it was not there (`SET … NX`, `SETNX`), as locks are: from now on, and for
    /// long after, every read of it goes to the server.
    pub fn set_if_absent(&self, key_hash: u64, now: Nanos) {
        if !self.settings.nx_is_lock {
            return;
        }
        lock(&self.cached).locks.insert(key_hash, now + LOCK_FOR);
    }

    /// Whether the key is taken for a lock.
    pub fn is_lock(&self, key_hash: u64, now: Nanos) -> bool {
        lock(&self.cached).is_lock(key_hash, now)
    }

    /// As [`Shared::wrote`], for a command whose keys are not known.
    pub fn wrote_all(&self) {
        self.epochs.bump_all();
    }

    /// Decides about a read that starts at `now`.
    #[inline]
    pub fn read(self: &Arc<Self>, query: &Query<'_>, now: Nanos) -> Read<V> {
        if !self.has_hot_keys() {
            return Read::Upstream;
        }
        let plan = match self.hot.load().plans.get(&query.key_hash) {
            Some(plan) => *plan,
            None if self.settings.every_key => {
                let all = HotPlan {
                    local_cache: true,
                    coalesce: true,
                    ..HotPlan::default()
                };
                return self.read_hot(query, all, false, now);
            }
            None => return Read::Upstream,
        };
        self.read_hot(query, plan, true, now)
    }

    /// Args: `is_hot` or only treated so, in which case nothing is noted of it.
    fn read_hot(
        self: &Arc<Self>,
        query: &Query<'_>,
        plan: HotPlan,
        is_hot: bool,
        now: Nanos,
    ) -> Read<V> {
        self.stats.hot_reads.add(1);
        let Some(node) = self.owner(query.key) else {
            return Read::Upstream;
        };
        let is_cached = plan.local_cache
            && self.switches.local_cache.load(Relaxed)
            && self.bound_ns.load(Relaxed) > 0;
        let is_joined = plan.coalesce && self.switches.coalesce.load(Relaxed);
        let is_shadow = self.switches.shadow.load(Relaxed);
        if !is_cached && !is_joined {
            return Read::Upstream;
        }
        let Some(mut cached) = self.try_cached() else {
            return Read::Upstream;
        };
        if cached.is_lock(query.key_hash, now) {
            return Read::Upstream;
        }
        if is_cached {
            self.wanted_at.store(now, Relaxed);
            match cached.look_up(node, query, now) {
                Lookup::Hit(_, value) => {
                    let value = value.clone();
                    if is_shadow {
                        self.stats.shadow_hits.add(1);
                        return Read::Upstream;
                    }
                    if is_hot {
                        let saved = cached.saved.entry(query.key_hash).or_default();
                        saved.hits += 1;
                        if saved.first_at == 0 {
                            saved.first_at = now;
                        }
                    }
                    drop(cached);
                    self.stats.local_hits.add(1);
                    return Read::Hit(value);
                }
                Lookup::Lapsed => {
                    self.stats.lapsed.add(1);
                    if !self.is_beat_wanted.swap(true, Relaxed) {
                        let _ = self.waker.wake();
                    }
                }
                Lookup::Miss => {}
            }
        }
        let is_joined = is_joined && !is_shadow;
        let identity = identity(query);
        if is_joined {
            if let Some(flight) = self.flight_to_join(&cached, query, identity, now) {
                if is_hot {
                    cached.saved.entry(query.key_hash).or_default().joins += 1;
                }
                self.stats.joins.add(1);
                return Read::Join(flight);
            }
        }
        let fill = is_cached
            .then(|| self.begin_fill(&mut cached, node, query, identity, now))
            .flatten();
        let flight = is_joined.then(|| self.begin_flight(&mut cached, query, identity, now));
        if fill.is_none() && flight.is_none() {
            return Read::Upstream;
        }
        let process = fill
            .as_ref()
            .and_then(|_| cached.peers.get(&u64::from(node)))
            .map(|(process, _)| Arc::clone(process));
        Read::Lead(Lead {
            engine: Arc::clone(self),
            flight,
            fill,
            node,
            process,
        })
    }

    /// The cache, unless somebody holds it for longer than a glance: then the server is quicker.
    fn try_cached(&self) -> Option<MutexGuard<'_, Cached<V>>> {
        for _ in 0..LOCK_TRIES {
            match self.cached.try_lock() {
                Ok(cached) => return Some(cached),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            }
        }
        None
    }

    fn flight_to_join(
        &self,
        cached: &Cached<V>,
        query: &Query<'_>,
        identity: u64,
        now: Nanos,
    ) -> Option<Arc<Flight<V>>> {
        let flight = cached.flights.get(&identity)?;
        let is_same = *flight.line == *query.line && flight.variant == query.variant;
        let is_fresh = now.saturating_sub(flight.begun_at) <= self.bound_ns.load(Relaxed);
        let is_current = self.epochs.is_current(query.key_hash, flight.stamp);
        (is_same && is_fresh && is_current).then(|| Arc::clone(flight))
    }

    fn begin_flight(
        &self,
        cached: &mut Cached<V>,
        query: &Query<'_>,
        identity: u64,
        now: Nanos,
    ) -> Arc<Flight<V>> {
        let flight = Arc::new(Flight::new(
            identity,
            query.variant,
            query.line,
            now,
            self.epochs.stamp(query.key_hash),
        ));
        cached.flights.insert(identity, Arc::clone(&flight));
        flight
    }

    /// A token and what its registration found, if the key is registered. If not, that is asked for.
    fn begin_fill(
        &self,
        cached: &mut Cached<V>,
        node: u32,
        query: &Query<'_>,
        identity: u64,
        now: Nanos,
    ) -> Option<(Token, Found)> {
        if let Some(until) = cached.not_worth.get(&query.key_hash) {
            if now < *until {
                return None;
            }
            cached.not_worth.remove(&query.key_hash);
        }
        let source = SourceId(node);
        if !cached.cache.is_up(source) {
            self.want(cached, node, now);
            return None;
        }
        let mut token = cached.cache.begin(source, query.key, query.key_hash)?;
        let is_over = |found: Found| matches!(found.expiry, Ttl::At(at) if at <= now);
        if cached.cache.found(&token).is_some_and(is_over) {
            cached.cache.forget(&token);
            token = cached.cache.begin(source, query.key, query.key_hash)?;
        }
        let has_field_expiry = cached
            .peers
            .get(&u64::from(node))
            .is_none_or(|(_, has_field_expiry)| *has_field_expiry);
        match (query.cacheable, has_field_expiry) {
            (Cacheable::No, _) | (Cacheable::WholeHash, true) => return None,
            (Cacheable::HashFields, true) => {
                return self.begin_field_fill(cached, token, query, identity);
            }
            _ => {}
        }
        match cached.cache.found(&token) {
            Some(found) => Some((token, found)),
            None => {
                self.register(cached, &token, query.key);
                None
            }
        }
    }

    /// As [`Shared::begin_fill`], for hash fields on a server where they may expire: the fields' own
    /// expiries have to be asked for as well.
    fn begin_field_fill(
        &self,
        cached: &mut Cached<V>,
        token: Token,
        query: &Query<'_>,
        identity: u64,
    ) -> Option<(Token, Found)> {
        let found = cached.cache.found(&token);
        match cached.fields.get(&identity) {
            Some(Some(checked)) if checked.is_of_same_group(&token) => {
                return found.map(|found| (token, found));
            }
            Some(None) if found.is_some() => return None, // being asked
            _ => {}
        }
        if cached.fields.len() >= REMEMBERED_MAX {
            cached.fields.clear();
        }
        cached.fields.insert(identity, None);
        self.register(cached, &token, query.key);
        let fields = Message::Fields {
            token,
            key: query.key.into(),
            identity,
            fields: query.fields.iter().map(|field| (*field).into()).collect(),
        };
        if !self.tell(fields) {
            cached.fields.remove(&identity);
        }
        None
    }

    fn register(&self, cached: &mut Cached<V>, token: &Token, key: &[u8]) {
        if cached.cache.ask(token) {
            let message = Message::Register {
                token: token.clone(),
                key: key.into(),
            };
            if !self.tell(message) {
                cached.cache.forget(token);
            }
        }
    }

    fn want(&self, cached: &mut Cached<V>, node: u32, now: Nanos) {
        let asked_at = cached.wanted_at.entry(u64::from(node)).or_default();
        if now.saturating_sub(*asked_at) >= WANT_EVERY {
            *asked_at = now;
            self.tell(Message::Want { node });
        }
    }

    /// A reader's connection turned out to lead elsewhere, or the value cannot be kept: the key is left
    /// alone for a while.
    fn is_not_worth(&self, key_hash: u64, now: Nanos) {
        lock(&self.cached).leave_alone(key_hash, now);
    }

    /// The topology as the client library sees it has changed: `change` is applied to a copy.
    ///
    /// Values of a slot that moved are not found any more, for they are kept under their old node.
    pub fn change_topology(&self, change: impl FnOnce(&mut Topology)) {
        let mut topology = (**self.topology.load()).clone();
        change(&mut topology);
        self.topology.store(Arc::new(topology));
        self.tell(Message::Topology);
    }

    /// The topology in use.
    pub fn topology(&self) -> Arc<Topology> {
        self.topology.load_full()
    }

    /// Nobody uses the engine for now: its connections are closed, and opened again when a hot key is asked
    /// for.
    pub fn rest(&self) {
        self.tell(Message::Rest);
    }

    /// Drops everything that is cached.
    pub fn clear(&self) {
        lock(&self.cached).cache.clear();
    }

    /// Breaks a promise on purpose, for tests that show that a checker would find such a bug: with
    /// `missing-fence` what was read before a write is stored and served after it, with
    /// `deaf` invalidations are ignored. Returns false for any other.
    #[doc(hidden)]
    pub fn plant(&self, bug: &str) -> bool {
        match bug {
            "missing-fence" => lock(&self.cached).cache.plant_missing_fence(),
            "deaf" => self.is_deaf.store(true, Relaxed),
            _ => return false,
        }
        true
    }

    /// How many replies are cached, and the bytes they take.
    pub fn cached_size(&self) -> (usize, usize) {
        let cached = lock(&self.cached);
        (cached.cache.len(), cached.cache.bytes())
    }

    /// What was saved for a key.
    pub fn saved(&self, key_hash: u64) -> Saved {
        let cached = lock(&self.cached);
        cached.saved.get(&key_hash).copied().unwrap_or_default()
    }

    /// What is done for a key now.
    pub fn plan(&self, key_hash: u64) -> HotPlan {
        let hot = self.hot.load();
        hot.plans.get(&key_hash).copied().unwrap_or_default()
    }

    /// What is done for a read of a key that goes to the server, by the plan and the switches.
    pub fn routing(&self, key_hash: u64, now: Nanos) -> HotPlan {
        let plan = self.plan(key_hash);
        let is_routed = plan.copies || plan.replica_reads;
        if !is_routed || self.switches.shadow.load(Relaxed) || self.is_lock(key_hash, now) {
            return HotPlan::default();
        }
        HotPlan {
            copies: plan.copies && self.switches.copies.load(Relaxed),
            replica_reads: plan.replica_reads && self.switches.replica_reads.load(Relaxed),
            ..HotPlan::default()
        }
    }

    /// How old the proof of the key's node is.
    pub fn proof_age(&self, key: &[u8], now: Nanos) -> Option<Nanos> {
        let node = self.topology.load().owner(key)?;
        lock(&self.cached).cache.proof_age(SourceId(node), now)
    }

    /// Publishes a verdict.
    pub(crate) fn publish(&self, set: Arc<HotSet>, plans: ByHash<HotPlan>) {
        let len = set.len();
        let hot = Arc::new(HotNow { set, plans });
        let old = self.hot.swap(Arc::clone(&hot));
        self.hot_len.store(len, Relaxed);
        if old.plans == hot.plans {
            return;
        }
        let mut cached = lock(&self.cached);
        let is_kept = |hash| hot.plans.get(&hash).is_some_and(|plan| plan.local_cache);
        if !self.settings.every_key {
            cached.cache.retain(is_kept);
        }
        cached.saved.retain(|hash, _| hot.set.get(*hash).is_some());
    }
}

impl<V: Clone> Cached<V> {
    fn look_up(&mut self, node: u32, query: &Query<'_>, now: Nanos) -> Lookup<'_, V> {
        let query = keyheat_core::cache::Query {
            key: query.key,
            key_hash: query.key_hash,
            variant: query.variant,
            command: query.line,
        };
        self.cache.lookup(SourceId(node), &query, now)
    }

    fn is_lock(&self, key_hash: u64, now: Nanos) -> bool {
        self.locks.contains(key_hash, now)
    }

    /// No value of the key is kept for a while.
    fn leave_alone(&mut self, key_hash: u64, now: Nanos) {
        if self.not_worth.len() >= REMEMBERED_MAX {
            self.not_worth.clear();
        }
        self.not_worth.insert(key_hash, now + NOT_WORTH);
    }

    /// A key's fields were asked for: `is_stable` where none of them expires on its own.
    pub(crate) fn on_fields(&mut self, token: &Token, identity: u64, is_stable: bool, now: Nanos) {
        if is_stable {
            self.fields.insert(identity, Some(token.clone()));
        } else {
            self.fields.remove(&identity);
            self.leave_alone(token.key_hash(), now);
        }
    }

    /// A key's registration was refused: it is left alone for a while.
    pub(crate) fn on_refused(&mut self, token: &Token, now: Nanos) {
        self.leave_alone(token.key_hash(), now);
        self.cache.forget(token);
    }

    /// The questions on their way were lost.
    pub(crate) fn forget_fields(&mut self) {
        self.fields.clear();
    }
}

impl<V: Clone> Lead<V> {
    /// Whether the value will be stored, if it is good.
    pub fn is_fill(&self) -> bool {
        self.fill.is_some()
    }

    /// The node that the value must come from, as the client library knows it.
    pub fn node(&self) -> Option<Node> {
        let topology = self.engine.topology.load();
        topology.nodes().get(self.node as usize).cloned()
    }

    /// The server process that the value must come from (its `run_id`); `None` where this is no fill.
    pub fn process(&self) -> Option<&str> {
        self.process.as_deref()
    }

    /// The value did not, or not certainly, come from where the key is tracked: it is not stored.
    pub fn disown(&mut self) {
        self.fill = None;
    }

    /// Hands in what the server said; `bytes` is what `value` holds in memory, `None` where it cannot
    /// be kept or shared. Whoever joined is told by what is returned, each to be called.
    pub fn end(mut self, query: &Query<'_>, value: Option<(V, usize)>, now: Nanos) -> Vec<OnEnd> {
        if let Some((token, found)) = self.fill.take() {
            match &value {
                Some((value, bytes)) => {
                    self.store(&token, found, query, (value.clone(), *bytes), now);
                }
                None => self.engine.is_not_worth(query.key_hash, now),
            }
        }
        self.land(value.map(|(value, _)| value))
    }

    fn store(
        &self,
        token: &Token,
        found: Found,
        query: &Query<'_>,
        (value, bytes): (V, usize),
        now: Nanos,
    ) {
        let core_query = keyheat_core::cache::Query {
            key: query.key,
            key_hash: query.key_hash,
            variant: query.variant,
            command: query.line,
        };
        let stored = {
            let mut cached = lock(&self.engine.cached);
            cached
                .cache
                .store_with(token, &core_query, b"", (value, bytes), found.expiry, now)
        };
        match stored {
            Stored::Yes => self.engine.stats.fills.add(1),
            refused => {
                self.engine.stats.fills_refused.add(1);
                if matches!(refused, Stored::TooBig | Stored::Full) {
                    self.engine.is_not_worth(query.key_hash, now);
                }
            }
        }
    }

    fn land(&mut self, value: Option<V>) -> Vec<OnEnd> {
        let Some(flight) = self.flight.take() else {
            return Vec::new();
        };
        {
            let mut cached = lock(&self.engine.cached);
            let is_same = |own: &Arc<Flight<V>>| Arc::ptr_eq(own, &flight);
            if cached.flights.get(&flight.identity).is_some_and(is_same) {
                cached.flights.remove(&flight.identity);
            }
        }
        flight.land(value)
    }
}

impl<V: Clone> Drop for Lead<V> {
    fn drop(&mut self) {
        for on_end in self.land(None) {
            on_end();
        }
    }
}

fn identity(query: &Query<'_>) -> u64 {
    KeyHasher::new(query.key_hash ^ query.variant.rotate_left(17)).hash(query.line)
}

/// The engine's clock.
pub fn now() -> Nanos {
    clock::now()
}

#[cfg(test)]
mod tests;
