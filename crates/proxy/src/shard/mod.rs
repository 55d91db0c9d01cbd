//! A shard: one thread, one event loop, and everything that its clients need.
//!
//! Shards share nothing on the way of a request but the write epochs (a table of atomics), the hot
//! set (an `Arc` that is swapped), and whether clients are paused. Each shard counts on its own, caches on its own and has its
//! own connections upstream, tracking included: an invalidation, a heartbeat's reply and the reads
//! they are about meet in one thread, in the order of one connection, so the proof of freshness
//! needs no agreement between threads. The price is one tracking connection per shard and primary.
//!
//! One turn of the loop: wait for events; read and serve each ready client; read replies of each
//! ready upstream; run timers; then write, once per connection, what the turn has gathered. Many
//! small requests thus share system calls in proportion to the load. Where a turn has gathered both
//! replies and requests, the replies leave first, and what clients send meanwhile goes upstream in the
//! same write. (Not offered meanwhile: this core. On a busy host it comes back late, and with little.)
//!
//! # Layout
//! - `client`, `upstream`: the state of a connection on either side
//! - `classify`: what is done with each command
//! - `inbox`: what a shard is told, new clients included
//! - `greet`: what comes before requests; `intake`: requests in; `serve`: where each goes; `flush`: writing, and closing a client
//! - `locals`: commands answered here
//! - `session`: transactions (`selects`: where they leave a connection; `outside`: what is no part of them) and
//!   blocking commands; `subscribe`: subscriptions, `MONITOR`
//!   (`shard_channels`, `keyspace`: before a Cluster)
//! - `users`: clients as users of the server; `rights`: what the proxy does only for users who may
//! - `own`: clients with connections of their own; `wait`: `WAIT`
//! - `client_command`: what clients ask about clients; `ask`: of all shards; `facade`: one node, to clients
//!   of a Cluster
//! - `forward`: connections upstream, and their failure; `redirect`: MOVED and ASK
//! - `replies`: replies in
//! - `jobs`: requests split over nodes
//! - `fill`: the local cache; `tracking`: invalidations and heartbeats
//! - `replicas`: reads from replicas (`replication`: how far they are); `copies`: reads from copies, and writes that void them
//! - `expiry`: a longer expiry for keys of business entities
//! - `key_limits`: reads of one hot key, limited by its rule
//! - `stale`: what is answered while a node cannot
//! - `count`: accesses counted, keys nominated
//! - `settings`: settings that change
//! - `bounds`: clients that are let go; `linger`: until they have heard why
//! - `guard`: nodes that fail are left alone; `silence`: those that say nothing; `marks`: answers that are timed;
//!   `line`: what waits for one that is crowded; `node_report`: how they do

mod ask;
mod bounds;
mod classify;
mod client;
mod client_command;
mod copies;
mod count;
mod expiry;
mod facade;
mod fill;
mod flush;
mod forward;
mod greet;
mod guard;
mod inbox;
mod intake;
mod jobs;
mod key_limits;
mod keyspace;
mod line;
mod linger;
mod locals;
mod marks;
mod newest;
mod node_report;
mod outside;
mod own;
mod redirect;
mod replicas;
mod replication;
mod replies;
mod rights;
mod selects;
mod serve;
mod session;
mod settings;
mod shard_channels;
mod silence;
mod stale;
mod subscribe;
mod tracking;
mod upstream;
mod users;
mod wait;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::Arc;
use std::time::Duration;

use keyheat_core::cache::{CacheSettings, LocalCache};
use keyheat_core::detect::Nominator;
use keyheat_core::expiry::LongerExpiry;
use keyheat_core::fence::WriteEpochs;
use keyheat_core::hash::{ByHash, KeyHasher};
use keyheat_core::lockmarks::LockMarks;
use keyheat_core::overload::stale::StaleStore;
use keyheat_core::window::{Totals, Window};
use keyheat_core::Nanos;
use keyheat_resp::request::RequestParser;
use keyheat_resp::Protocol;
use mio::{Events, Poll, Token};
use slab::Slab;

use crate::control::ToControl;
use crate::hotview::{CopiedKey, HotView};
use crate::node_stats::Reports;
use crate::notice::Notice;
use crate::overload_settings::Overload;
use crate::own_writes::WriteTimes;
use crate::random::Random;
use crate::requests::{Kind, Taken, Way};
use crate::seldom::Seldom;
use crate::settings::Settings;
use crate::stats::ShardStats;
use crate::topology::Topology;
pub(crate) use ask::{Answer, Question};
pub(crate) use client::Ticket;
use client::{Client, ClientId};
use fill::Fill;
pub(crate) use forward::keep_alive;
pub(crate) use inbox::{Hits, PollReply, ShardSettings, ToShard};
use jobs::Job;
use keyheat_net::clock::{self, MS, SEC};
pub(crate) use locals::same;
use upstream::Upstream;

/// Bytes read from a socket at once.
const READ_BYTES: usize = 64 * 1024;
/// A client with more unanswered requests than this gets no more of them read for now.
const WAITING_MAX: usize = 4096;
/// How often a shard looks after itself.
const TICK: Nanos = 100 * MS;

pub(crate) const WAKER: Token = Token(0);
const KIND_BITS: usize = 2;
const KIND_CLIENT: usize = 1;
const KIND_UPSTREAM: usize = 2;
const KIND_LINGERING: usize = 3;

/// What a shard is made of.
pub(crate) struct ShardParts {
    pub index: usize,
    pub settings: Arc<Settings>,
    pub tls: Option<Arc<keyheat_net::tls::Client>>,
    pub poll: Poll,
    pub inbox: Receiver<ToShard>,
    pub control: Sender<ToControl>,
    pub stats: Arc<ShardStats>,
    pub node_stats: Reports,
    pub epochs: Arc<WriteEpochs>,
    pub own_writes: Arc<[WriteTimes]>,
    pub locks: Arc<LockMarks>,
    pub copies_off_until: Arc<AtomicU64>,
    pub notice: Arc<Notice>,
    pub hasher: KeyHasher,
    pub nominator: Nominator,
    pub next_client_id: Arc<AtomicU64>,
}

/// An upstream node, as a shard sees it.
#[derive(Default)]
struct NodeState {
    /// Protocol, database, user; and the connection.
    shared: Vec<(Protocol, u32, u32, u32)>,
    readers: Vec<(Protocol, u32, u32, u32)>,
    replication: replication::Replication,
    /// When it ceased to be a primary.
    demoted_at: Option<Nanos>,
    idle: Vec<u32>,
    tracking: Option<u32>,
    /// From so many requests on their way on a shared connection on, a further one is looked at.
    gate: usize,
    /// So many requests may be on their way on each of them; further ones wait in line.
    window: usize,
    /// As many may be on their way and in line, all of them together.
    room: usize,
    /// A request was turned back just now because the line is full.
    is_full: bool,
    guard: guard::Guard,
    track_after: Nanos,
    track_backoff: Nanos,
    /// The server does not let us track: it is asked again then, as what is wrong may have been set right.
    refused_until: Nanos,
    /// Control was told that the server does not let us track.
    is_refusal_told: bool,
    /// Connections on which writes may have been made that were lost.
    losses: u32,
    /// It let us open a tracking connection, and then refused what was asked on it.
    is_refused_open: bool,
}

/// A request that waits for a topology in which its node is known.
struct Parked {
    until: Nanos,
    frame: Vec<u8>,
    pending: upstream::Pending,
    protocol: Protocol,
    db: u32,
    slot: u16,
}

pub(crate) struct Shard {
    index: usize,
    /// Bytes that may be held for clients and upstreams.
    budget: usize,
    /// Bytes that one client may leave unread.
    output_max: usize,
    taken_by_clients: client::Taken,
    /// Bytes of replies that have come since clients were last written to.
    swollen: usize,
    settings: Arc<Settings>,
    overload: Overload,
    /// How connections upstream are encrypted, where they are.
    tls: Option<Arc<keyheat_net::tls::Client>>,
    poll: Poll,
    inbox: Receiver<ToShard>,
    control: Sender<ToControl>,
    stats: Arc<ShardStats>,
    node_stats: Reports,

    clients: Slab<Client>,
    lingering: Slab<linger::Lingering>,
    /// Waits of clients that are being ended.
    unblocking: Slab<ask::Unblocking>,
    /// Shard channels whose slot has moved, until they are subscribed to again.
    astray: Vec<subscribe::Astray>,
    upstreams: Slab<Upstream>,
    generation: u32,
    next_client_id: Arc<AtomicU64>,
    dirty_clients: Vec<ClientId>,
    dirty_upstreams: Vec<(u32, u32)>,
    again: VecDeque<ClientId>,
    /// Clients that are still saying who they are, and until when they may.
    strangers: VecDeque<(Nanos, ClientId)>,
    /// Says which clients are cut.
    cuts: Seldom,
    /// Steps of TLS handshakes in this turn.
    handshakes: u32,
    /// Upstreams that may have more to read, though no event will say so.
    unread_upstreams: Vec<(u32, u32, bool)>,

    topology: Option<Arc<Topology>>,
    topology_error: String,
    /// The upstream was looked at, well or badly; until then clients wait.
    has_looked: bool,
    looks_wanted_at: Nanos,
    nodes: Vec<NodeState>,
    parked: Vec<Parked>,

    classes: classify::Classes,
    hasher: KeyHasher,
    /// Whether accesses are counted.
    counts: bool,
    window: Window,
    nominator: Nominator,
    nominated: ByHash<()>,

    hot: Arc<HotView>,
    /// Some rule limits its keys.
    has_limits: bool,
    /// What lengthens expiries; most often nothing.
    longer_expiry: Option<Box<LongerExpiry>>,
    hits: ByHash<Hits>,
    /// Reads that limited keys may still have.
    buckets: ByHash<key_limits::Bucket>,
    cache: LocalCache,
    stale: StaleStore,
    cache_on: bool,
    epochs: Arc<WriteEpochs>,
    own_writes: Arc<[WriteTimes]>,
    locks: Arc<LockMarks>,
    /// Whether reads may go to replicas, and replicas are asked how far they are.
    asks_replicas: bool,
    /// What was learnt of replicas before this does not count.
    asks_since: Nanos,
    /// A place for copies on each primary.
    copy_places: Vec<(u32, u32)>,
    last_number: u32,
    copy_reads: hashbrown::HashMap<u32, copies::CopyRead>,
    /// No copies are used before this, in any shard.
    copies_off_until: Arc<AtomicU64>,
    /// Whether PINGs go upstream.
    notice: Arc<Notice>,
    copy_misses: ByHash<(Nanos, Nanos)>,
    /// Keys whose copies are to be voided before a reply is given, by its ticket.
    held: hashbrown::HashMap<(u32, u32, u32), Vec<CopiedKey>>,
    voidings: hashbrown::HashMap<u32, copies::Voiding>,
    waiting_reads: Vec<replicas::WaitingRead>,
    random: Random,
    fills: ByHash<Fill>,
    fill_of: ByHash<u64>,
    next_fill: u64,
    fill_deadlines: VecDeque<(Nanos, u64)>,
    not_worth: ByHash<Nanos>,
    /// Keys that are cached as missing: a slot that moves says nothing of them.
    missing: ByHash<()>,
    next_beat: Nanos,
    beat_every: Nanos,

    /// By whose rights clients are served; the first two are the proxy's account and nobody.
    users: Slab<users::User>,
    permits: ByHash<users::Permit>,
    /// The proxy's account may not ask what users may do; it is asked again then.
    blind_until: Nanos,
    is_blind_told: bool,

    jobs: Slab<Job>,
    rescan: RequestParser,
    scratch: Vec<u8>,
    /// What becomes of the request in hand.
    taken: Taken,
    now: Nanos,
    next_tick: Nanos,
    next_rest: Nanos,
    is_draining: bool,
    is_stopped: bool,
}

impl Shard {
    pub fn new(parts: ShardParts) -> Result<Self, String> {
        let s = &parts.settings;
        let window = s.window()?;
        let shards = s.shard_count().max(1);
        let span = window.window;
        let mut window = Window::new(window).map_err(|e| e.to_string())?;
        // From the first access on; the first tick knows the traffic and sets them anew.
        let (ops, bytes) = parts.nominator.check_steps(&Totals::default(), span);
        window.set_check_steps(ops, bytes);
        let (stale, cache_bytes) = stale::divide((s.cache_bytes / shards).max(64 * 1024), s);
        let cache = CacheSettings {
            max_bytes: cache_bytes,
            value_max_bytes: s.cache_value_max_bytes,
            max_staleness: Duration::from_millis(s.max_staleness_ms),
            max_entries: (s.cache_bytes / shards / 64).max(1024),
        };
        let (budget, output_max) = (s.buffers_max_bytes / shards, s.output_max());
        let beat_every = (s.max_staleness_ms * MS / 5).max(MS);
        Ok(Self {
            index: parts.index,
            budget,
            output_max,
            taken_by_clients: client::Taken::default(),
            swollen: 0,
            overload: Overload::of(s),
            tls: parts.tls,
            poll: parts.poll,
            inbox: parts.inbox,
            control: parts.control,
            stats: parts.stats,
            node_stats: parts.node_stats,
            clients: Slab::new(),
            lingering: Slab::new(),
            astray: Vec::new(),
            unblocking: Slab::new(),
            upstreams: Slab::new(),
            generation: 0,
            next_client_id: parts.next_client_id,
            dirty_clients: Vec::new(),
            dirty_upstreams: Vec::new(),
            again: VecDeque::new(),
            strangers: VecDeque::new(),
            cuts: Seldom::default(),
            handshakes: 0,
            unread_upstreams: Vec::new(),
            topology: None,
            topology_error: "not looked at yet".into(),
            has_looked: false,
            looks_wanted_at: 0,
            nodes: Vec::new(),
            parked: Vec::new(),
            classes: classify::Classes::new(),
            hasher: parts.hasher,
            counts: s.counts(),
            window,
            nominator: parts.nominator,
            nominated: ByHash::default(),
            hot: Arc::new(HotView::default()),
            has_limits: false,
            longer_expiry: s.longer_expiry()?.map(Box::new),
            hits: ByHash::default(),
            buckets: ByHash::default(),
            cache: LocalCache::new(cache, Arc::clone(&parts.epochs)),
            stale,
            cache_on: s.local_cache && s.may_cache(),
            epochs: parts.epochs,
            own_writes: parts.own_writes,
            locks: parts.locks,
            asks_replicas: s.reads_replicas(),
            asks_since: 0,
            copy_places: Vec::new(),
            last_number: 0,
            copy_reads: hashbrown::HashMap::new(),
            copies_off_until: parts.copies_off_until,
            notice: parts.notice,
            copy_misses: ByHash::default(),
            held: hashbrown::HashMap::new(),
            voidings: hashbrown::HashMap::new(),
            waiting_reads: Vec::new(),
            random: Random::new(clock::now()),
            fills: ByHash::default(),
            fill_of: ByHash::default(),
            next_fill: 0,
            fill_deadlines: VecDeque::new(),
            not_worth: ByHash::default(),
            missing: ByHash::default(),
            next_beat: 0,
            beat_every,
            users: [users::User::default(), users::User::default()]
                .into_iter()
                .enumerate()
                .collect(),
            permits: ByHash::default(),
            blind_until: 0,
            is_blind_told: false,
            jobs: Slab::new(),
            rescan: RequestParser::new(keyheat_resp::Limits::default()),
            scratch: vec![0; READ_BYTES],
            taken: Taken {
                kind: Kind::Other,
                way: Way::Proxy,
            },
            now: clock::now(),
            next_tick: 0,
            next_rest: 0,
            is_draining: false,
            is_stopped: false,
            settings: parts.settings,
        })
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.is_stopped {
            let timeout = self.timeout();
            if !self.wait(&mut events, timeout) {
                break;
            }
            self.handle(&events);
            if !self.dirty_upstreams.is_empty() && !self.dirty_clients.is_empty() {
                self.flush_clients();
                if !self.wait(&mut events, Duration::ZERO) {
                    break;
                }
                self.handle(&events);
            }
            self.run_timers();
            self.flush();
        }
        self.stats.clients.set(0);
        self.stats.upstreams.set(0);
    }

    /// Waits for events; false where the loop cannot go on.
    fn wait(&mut self, events: &mut Events, timeout: Duration) -> bool {
        if let Err(e) = self.poll.poll(events, Some(timeout)) {
            if e.kind() != ErrorKind::Interrupted {
                tracing::error!(shard = self.index, "event loop failed: {e}");
                return false;
            }
            events.clear();
        }
        true
    }

    fn handle(&mut self, events: &Events) {
        self.now = clock::now();
        self.handshakes = 0;
        for event in events {
            let token = event.token();
            if token == WAKER {
                self.read_inbox();
                continue;
            }
            let index = token.0 >> KIND_BITS;
            match token.0 & ((1 << KIND_BITS) - 1) {
                KIND_CLIENT => self.on_client(index, event),
                KIND_UPSTREAM => self.on_upstream(index as u32, event),
                _ => self.on_lingering(index),
            }
            if self.is_swelling() {
                self.relieve();
            }
        }
        for _ in 0..self.again.len() {
            if let Some(id) = self.again.pop_front() {
                if let Some(client) = self.client(id) {
                    client.is_queued = false;
                    self.pump(id);
                }
            }
        }
        for (index, generation, to_the_end) in std::mem::take(&mut self.unread_upstreams) {
            if self.is_there(index, generation) {
                self.read_upstream(index, to_the_end);
            }
            if self.is_swelling() {
                self.relieve();
            }
        }
    }

    fn timeout(&self) -> Duration {
        if !self.again.is_empty() || !self.unread_upstreams.is_empty() {
            return Duration::ZERO;
        }
        let mut next = self.next_tick;
        if self.next_beat != 0 {
            next = next.min(self.next_beat);
        }
        if let Some(&(deadline, _)) = self.fill_deadlines.front() {
            next = next.min(deadline);
        }
        if self.is_draining || !self.waiting_reads.is_empty() {
            next = next.min(self.now + 2 * MS);
        }
        // Rounded up: the system waits in whole milliseconds, and 0 would spin.
        let wait = next.saturating_sub(self.now);
        Duration::from_millis(wait.div_ceil(MS).clamp(1, 100))
    }

    fn client(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients
            .get_mut(id.index as usize)
            .filter(|c| c.generation == id.generation)
    }

    /// Whether a connection upstream is still the one that was at its place.
    fn is_there(&self, index: u32, generation: u32) -> bool {
        let up = self.upstreams.get(index as usize);
        up.is_some_and(|up| up.generation == generation)
    }

    /// Whether the upstream is a Cluster, as far as is known.
    fn is_cluster(&self) -> bool {
        self.topology.as_ref().is_some_and(|t| t.is_cluster())
    }

    fn mark_client(&mut self, id: ClientId) {
        if let Some(client) = self.client(id) {
            if !client.is_dirty {
                client.is_dirty = true;
                self.dirty_clients.push(id);
            }
        }
    }

    fn queue_client(&mut self, id: ClientId) {
        if let Some(client) = self.client(id) {
            if !client.is_queued {
                client.is_queued = true;
                self.again.push_back(id);
            }
        }
    }

    fn mark_upstream(&mut self, index: u32) {
        let up = &mut self.upstreams[index as usize];
        if !up.is_dirty {
            up.is_dirty = true;
            self.dirty_upstreams.push((index, up.generation));
        }
    }

    fn run_timers(&mut self) {
        self.expire_fills();
        if !self.waiting_reads.is_empty() {
            self.serve_waiting_reads();
        }
        if self.next_beat != 0 && self.now >= self.next_beat {
            self.beat();
        }
        if self.is_draining {
            self.let_go();
        }
        if self.now < self.next_tick {
            return;
        }
        self.next_tick = self.now + TICK;
        self.tick();
    }

    /// Kept out of `run_timers`, which every turn goes through.
    #[cold]
    fn tick(&mut self) {
        self.nominated.clear();
        let window = Duration::from_millis(self.settings.window_ms);
        let nominator = &self.nominator;
        self.window
            .tune_check_steps(self.now, |node| nominator.check_steps(node, window));
        self.not_worth.retain(|_, until| *until > self.now);
        self.cut_strangers();
        self.end_late_lingering();
        self.look_after_nodes();
        self.look_after_upstreams();
        self.look_at_replicas();
        if !self.voidings.is_empty() {
            self.expire_voidings();
        }
        if !self.copy_reads.is_empty() {
            self.expire_copy_reads();
        }
        self.expire_parked();
        self.look_after_astray();
        self.renew_stale();
        let cache_bytes = self.cache.bytes() + self.stale.bytes();
        self.stats.cache_bytes.set(cache_bytes as i64);
        self.stats.cache_entries.set(self.cache.len() as i64);
        self.bound_buffers();
        self.look_after_held_back();
        if self.now >= self.next_rest {
            self.next_rest = self.now + SEC;
            self.rest_clients();
            self.look_after_users();
        }
    }

    fn want_look(&mut self) {
        if self.now >= self.looks_wanted_at {
            self.looks_wanted_at = self.now + SEC / 20;
            let _ = self.control.send(ToControl::Look);
        }
    }
}
