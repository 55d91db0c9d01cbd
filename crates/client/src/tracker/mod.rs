//! The one thread behind an engine: tracking connections, heartbeats, and the judging of what is hot.
//!
//! It never waits for a lock that is held across a system call, never for the language's interpreter,
//! and never for a connection attempt (those have threads of their own): so a heartbeat is late only
//! when the machine is.
//!
//! # When it does what
//!
//! - A connection is opened when a hot key's value is first wanted from its node.
//! - A heartbeat is sent every quarter of the staleness bound, while something is registered there and
//!   somebody has looked for a value within a second. Otherwise the proof may lapse: the next reader
//!   asks the server once, and wakes the tracker.
//! - What is hot is judged every tenth of a second, and at once when a key is nominated. With no
//!   traffic and nothing hot the thread sleeps until it is roused.
//!
//! # Heartbeats must not become the hot spot
//!
//! A server tells how many clients track it. Where their heartbeats would take more than
//! [`BEAT_BUDGET`] of it, the interval grows with their number, and the staleness bound with it if the
//! settings allow; if not, the bound stays and the statistics say so.

mod conn;
mod judge;

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use keyheat_core::cache::{SourceId, Token};
use keyheat_core::hash::ByHash;
use keyheat_core::Nanos;
use keyheat_net::clock::{self, MS, SEC};
use keyheat_net::lock;
use mio::{Events, Interest, Poll};

use crate::connect::{self, Connector, Ready, Refusal};
use crate::engine::Shared;
use crate::topology::Node;
use conn::Conn;
use judge::Judge;

/// The token of the inbox.
pub(crate) const WAKE: mio::Token = mio::Token(0);
/// A heartbeat costs a server about this much processor time, most of it to notice one more connection.
const BEAT_COST: Nanos = 25_000;
/// The part of a server's core that all heartbeats together may take: one in so many.
const BEAT_BUDGET: u64 = 50;
/// Heartbeats go on so long after the last lookup.
const BEAT_ON: Nanos = SEC;
/// How often a server is asked how many clients track it.
const CENSUS_EVERY: Nanos = 10 * SEC;
/// After this long without an answer a tracking connection is opened anew.
const STUCK: Nanos = SEC;
/// Readers who find a proof lapsed hasten a heartbeat at most so often.
const HURRY_EVERY: Nanos = 2 * MS;
/// After a failure a node is left alone so long, after the next twice as long…
const BACKOFF_MIN: Nanos = 20 * MS;
/// …and never longer than this.
const BACKOFF_MAX: Nanos = 2 * SEC;
/// How long a refusal is believed.
const REFUSED_FOR: Nanos = 10 * SEC;

/// What the tracker is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// A thread saw this key pass its local share.
    Nominate {
        key: Box<[u8]>,
        key_hash: u64,
        node: u32,
    },
    /// Values of this node are wanted, and there is no tracking connection.
    Want { node: u32 },
    /// A key is to be registered.
    Register { token: Token, key: Box<[u8]> },
    /// The expiries of hash fields are to be asked for.
    Fields {
        token: Token,
        key: Box<[u8]>,
        identity: u64,
        fields: Vec<Box<[u8]>>,
    },
    /// A connection attempt has ended.
    Opened {
        node: u32,
        attempt: u64,
        result: Box<Opened>,
    },
    /// Nobody uses the engine for now: no connection is kept open.
    Rest,
    /// The topology has changed.
    Topology,
    /// End.
    Stop,
}

impl Message {
    /// Whether there is something to do, if the tracker has not begun.
    pub fn is_work(&self) -> bool {
        !matches!(self, Self::Rest | Self::Stop)
    }

    /// Whether it may be lost, because the next reader says it again.
    pub fn is_asked_again(&self) -> bool {
        match self {
            Self::Nominate { .. }
            | Self::Want { .. }
            | Self::Register { .. }
            | Self::Fields { .. } => true,
            // A lost one would leave its node for ever waiting to be connected.
            Self::Opened { .. } | Self::Rest | Self::Topology | Self::Stop => false,
        }
    }
}

/// How a connection attempt ended.
pub(crate) struct Opened(pub Result<Ready, Refusal>);

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Opened").field(&self.0.is_ok()).finish()
    }
}

/// One node as the tracker knows it.
#[derive(Default)]
struct NodeState {
    conn: Option<Conn>,
    /// The number of the attempt under way.
    connecting: Option<u64>,
    backoff: Nanos,
    not_before: Nanos,
    next_census: Nanos,
    tracking_clients: u64,
}

impl NodeState {
    /// A connection failed, or could not be had. Returns how long the next attempt waits.
    fn back_off(&mut self) -> Nanos {
        self.backoff = (self.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        self.backoff
    }

    /// Whether something was asked that is not answered yet.
    fn is_waiting(&self) -> bool {
        self.conn.as_ref().is_some_and(Conn::is_waiting)
    }
}

pub(crate) struct Tracker<V> {
    shared: Arc<Shared<V>>,
    poll: Poll,
    connector: Arc<dyn Connector>,
    nodes: HashMap<u32, NodeState>,
    attempts: u64,
    judge: Judge,
    next_beat: Nanos,
    hurry_after: Nanos,
    accounted_at: Nanos,
    is_stopping: bool,
}

impl<V: Clone + Send + Sync + 'static> Tracker<V> {
    pub fn new(
        shared: Arc<Shared<V>>,
        poll: Poll,
        connector: Arc<dyn Connector>,
    ) -> Result<Self, String> {
        Ok(Self {
            judge: Judge::new(&shared.settings)?,
            shared,
            poll,
            connector,
            nodes: HashMap::new(),
            attempts: 0,
            next_beat: 0,
            hurry_after: 0,
            accounted_at: clock::now(),
            is_stopping: false,
        })
    }

    pub fn run(mut self) {
        let mut events = Events::with_capacity(64);
        while !self.is_stopping {
            let timeout = self.timeout(clock::now());
            if timeout.is_none() {
                self.shared.is_asleep.store(true, Relaxed);
            }
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    // Nothing can be tracked any more; nothing may be served.
                    tracing::error!("the tracker cannot wait for events: {e}");
                    break;
                }
            }
            self.shared.is_asleep.store(false, Relaxed);
            let now = clock::now();
            for event in &events {
                if let Some(node) = event.token().0.checked_sub(1) {
                    self.on_event(node as u32, now);
                }
            }
            let mut is_urgent = false;
            for message in self.shared.take_inbox() {
                is_urgent |= self.on_message(message, now);
            }
            self.judge.run(&self.shared, is_urgent, now);
            if self.shared.is_beat_wanted.load(Relaxed) && now >= self.hurry_after {
                // At most once in a while: where heartbeats go unanswered, more of them help nobody.
                self.hurry_after = now + HURRY_EVERY;
                self.shared.is_beat_wanted.store(false, Relaxed);
                self.next_beat = now;
            }
            self.beat(clock::now());
            self.flush_all();
        }
        let nodes: Vec<u32> = self.nodes.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.down(node));
        self.shared.publish(Arc::default(), ByHash::default());
    }

    fn timeout(&self, now: Nanos) -> Option<Duration> {
        let due = [
            self.judge.next(),
            (self.next_beat > 0).then_some(self.next_beat),
        ];
        let due = due.into_iter().flatten().min()?;
        // Rounded up to what the system counts in, or it would return a little early, many times.
        let ns = due.saturating_sub(now).max(1);
        Some(Duration::from_nanos(ns.div_ceil(MS) * MS))
    }

    fn on_message(&mut self, message: Message, now: Nanos) -> bool {
        match message {
            Message::Nominate {
                key,
                key_hash,
                node,
            } => {
                return self.judge.nominate(&key, key_hash, node, now);
            }
            Message::Want { node } => self.open(node, now),
            Message::Register { token, key } => {
                if let Some(conn) = self.conn(token.source().0) {
                    conn.register(token, &key, now);
                }
            }
            Message::Fields {
                token,
                key,
                identity,
                fields,
            } => {
                if let Some(conn) = self.conn(token.source().0) {
                    conn.ask_fields(token, &key, identity, &fields, now);
                }
            }
            Message::Opened {
                node,
                attempt,
                result,
            } => self.on_opened(node, attempt, result.0, now),
            Message::Topology => {
                let topology = self.shared.topology();
                self.judge.set_nodes(|key| topology.owner(key));
            }
            Message::Rest => {
                let nodes: Vec<u32> = self.nodes.keys().copied().collect();
                for node in nodes {
                    self.down(node);
                    // One that is on its way is not wanted any more either.
                    if let Some(state) = self.nodes.get_mut(&node) {
                        state.connecting = None;
                    }
                }
            }
            Message::Stop => self.is_stopping = true,
        }
        false
    }

    fn conn(&mut self, node: u32) -> Option<&mut Conn> {
        self.nodes.get_mut(&node)?.conn.as_mut()
    }

    /// Opens a tracking connection, on a thread of its own.
    fn open(&mut self, number: u32, now: Nanos) {
        let Some(node) = self.shared.topology().nodes().get(number as usize).cloned() else {
            return;
        };
        let state = self.nodes.entry(number).or_default();
        if state.conn.is_some() || state.connecting.is_some() || now < state.not_before {
            return;
        }
        self.attempts += 1;
        let attempt = self.attempts;
        state.connecting = Some(attempt);
        let (shared, connector) = (Arc::clone(&self.shared), Arc::clone(&self.connector));
        let timeout = Duration::from_millis(shared.settings.connect_timeout_ms);
        shared.dialling.fetch_add(1, Relaxed);
        let dial = move |node: Node| {
            let result = Box::new(Opened(connect::open(&*connector, &node, timeout)));
            drop(connector); // the language's own, while it is still there
            shared.dialling.fetch_sub(1, Relaxed);
            shared.tell(Message::Opened {
                node: number,
                attempt,
                result,
            });
        };
        let started = std::thread::Builder::new()
            .name("keyheat-connect".into())
            .spawn(move || dial(node));
        if let Err(e) = started {
            self.shared.dialling.fetch_sub(1, Relaxed);
            let why = Refusal::Unreachable(e.to_string());
            self.on_opened(number, attempt, Err(why), now);
        }
    }

    fn on_opened(&mut self, number: u32, attempt: u64, result: Result<Ready, Refusal>, now: Nanos) {
        let state = self.nodes.entry(number).or_default();
        if state.connecting != Some(attempt) {
            return;
        }
        state.connecting = None;
        match result {
            Ok(ready) => {
                state.backoff = 0;
                state.not_before = 0;
                self.up(number, ready, now);
            }
            Err(refusal) => {
                let backoff = state.back_off();
                state.not_before = now
                    + match refusal {
                        Refusal::Unreachable(_) => backoff,
                        Refusal::Refused(_) => REFUSED_FOR,
                    };
                self.refuse(number, refusal.why());
            }
        }
    }

    fn up(&mut self, number: u32, ready: Ready, now: Nanos) {
        let conn = Conn::new(ready.wire, ready.rest);
        let token = mio::Token(number as usize + 1);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let fd = conn.fd();
        let mut source = mio::unix::SourceFd(&fd);
        if let Err(e) = self.poll.registry().register(&mut source, token, interest) {
            return self.refuse(number, &e.to_string());
        }
        tracing::debug!(server = ready.peer.server, "tracking connection opened");
        lock(&self.shared.refusals).remove(&u64::from(number));
        self.shared.stats.tracking_opened.add(1);
        {
            let mut cached = lock(&self.shared.cached);
            cached.cache.source_up(SourceId(number));
            let peer = (ready.peer.process.into(), ready.peer.has_field_expiry);
            cached.peers.insert(u64::from(number), peer);
        }
        let state = self.nodes.entry(number).or_default();
        state.conn = Some(conn);
        state.next_census = now;
        self.on_event(number, now);
    }

    fn refuse(&self, number: u32, why: &str) {
        let name = match self.shared.topology().nodes().get(number as usize) {
            Some(node) if node.port != 0 => format!("{}:{}: ", node.host, node.port),
            _ => String::new(),
        };
        let why = format!("{name}{why}");
        let mut refusals = lock(&self.shared.refusals);
        if refusals.get(&u64::from(number)) != Some(&why) {
            tracing::debug!("no tracking connection: {why}");
            refusals.insert(u64::from(number), why);
        }
    }

    /// Drops a connection and everything that was cached by it.
    fn down(&mut self, number: u32) {
        {
            let mut cached = lock(&self.shared.cached);
            cached.cache.source_down(SourceId(number));
            cached.peers.remove(&u64::from(number));
            cached.forget_fields();
        }
        let Some(state) = self.nodes.get_mut(&number) else {
            return;
        };
        if let Some(conn) = state.conn.take() {
            let fd = conn.fd();
            let _ = self
                .poll
                .registry()
                .deregister(&mut mio::unix::SourceFd(&fd));
            self.shared.stats.tracking_lost.add(1);
        }
    }

    /// As [`Tracker::down`], for a connection that failed: the next attempt waits a little.
    fn lose(&mut self, number: u32, why: &str, now: Nanos) {
        self.down(number);
        let state = self.nodes.entry(number).or_default();
        state.not_before = now + state.back_off();
        self.refuse(number, why);
    }

    fn on_event(&mut self, number: u32, now: Nanos) {
        let Some(state) = self.nodes.get_mut(&number) else {
            return;
        };
        let Some(conn) = state.conn.as_mut() else {
            return;
        };
        if let Err(why) = conn.receive(&self.shared, SourceId(number), now) {
            self.lose(number, &why, now);
            return;
        }
        if std::mem::take(&mut conn.has_first) {
            // The first thing to be cached here: without a heartbeat it could not be served.
            self.next_beat = now;
        }
        if let Some(clients) = conn.census.take() {
            state.tracking_clients = clients;
            self.set_bound();
        }
    }

    /// The interval between two heartbeats to a node with so many tracking clients.
    fn interval(&self, clients: u64) -> Nanos {
        let wanted = self.shared.settings.max_staleness_ms * MS / 4;
        if self.shared.settings.may_widen {
            wanted.max(clients * BEAT_COST * BEAT_BUDGET)
        } else {
            wanted
        }
    }

    /// Widens the bound to what the slowest heartbeat can hold, or takes it back.
    fn set_bound(&self) {
        let clients = self.nodes.values().map(|s| s.tracking_clients).max();
        let set = self.shared.settings.max_staleness_ms * MS;
        let interval = self.interval(clients.unwrap_or(0));
        self.shared.beat_ns.store(interval, Relaxed);
        // One beat on its way, and half an interval to spare.
        let bound = set.max(interval + interval / 2);
        if self.shared.bound_ns.swap(bound, Relaxed) != bound {
            let mut cached = lock(&self.shared.cached);
            cached.cache.set_max_staleness(Duration::from_nanos(bound));
        }
    }

    /// Asks every tracking connection with something cached whether it is still what it was.
    fn beat(&mut self, now: Nanos) {
        if now < self.next_beat {
            return;
        }
        self.account(now);
        let is_wanted = now.saturating_sub(self.shared.wanted_at.load(Relaxed)) <= BEAT_ON;
        let numbers: Vec<u32> = self.nodes.keys().copied().collect();
        let mut next = None;
        for number in numbers {
            if self.is_stuck(number, now) {
                self.lose(number, "heartbeats were not answered", now);
                continue;
            }
            let probes = {
                let cached = lock(&self.shared.cached);
                let source = SourceId(number);
                if cached.cache.is_idle(source) || !is_wanted {
                    None
                } else {
                    Some(self.probes(&cached.cache, source))
                }
            };
            let clients = self.nodes.get(&number).map_or(0, |s| s.tracking_clients);
            let interval = self.interval(clients);
            let Some(state) = self.nodes.get_mut(&number) else {
                continue;
            };
            let Some(conn) = state.conn.as_mut() else {
                continue;
            };
            if now >= state.next_census {
                state.next_census = now + CENSUS_EVERY;
                conn.ask_census(now);
            }
            let Some(probes) = probes else {
                continue;
            };
            if now.saturating_sub(conn.beaten_at) >= interval - interval / 8 {
                conn.beat(&probes, now);
                self.shared.stats.heartbeats.add(1);
            }
            next = Some(next.unwrap_or(Nanos::MAX).min(conn.beaten_at + interval));
        }
        // A connection that is asked something must be seen to be stuck, beats or not.
        if next.is_none() && self.nodes.values().any(NodeState::is_waiting) {
            next = Some(now + STUCK / 4);
        }
        self.next_beat = next.map_or(0, |next| next.max(now + MS));
    }

    /// The keys a heartbeat has to ask for: one of each cached slot, and each that is cached as missing
    /// (while its slot is on the way, other keys of it are still there).
    fn probes(
        &self,
        cache: &keyheat_core::cache::LocalCache<V>,
        source: SourceId,
    ) -> Vec<Box<[u8]>> {
        let mut probes: Vec<Box<[u8]>> = Vec::new();
        if !self.shared.topology().is_cluster() {
            return probes;
        }
        let mut slots = hashbrown::HashSet::new();
        cache.for_each_registered(source, |key, found| {
            if slots.insert(keyheat_resp::slot::slot(key)) || found.is_missing {
                probes.push(key.into());
            }
        });
        probes
    }

    fn is_stuck(&self, number: u32, now: Nanos) -> bool {
        let bound = 10 * self.shared.bound_ns.load(Relaxed);
        let conn = self.nodes.get(&number).and_then(|s| s.conn.as_ref());
        conn.is_some_and(|conn| conn.waiting_for(now) > STUCK.max(bound.min(10 * SEC)))
    }

    /// Adds up for how long something was cached, and for how long of it without a proof.
    fn account(&mut self, now: Nanos) {
        let past = now.saturating_sub(self.accounted_at);
        self.accounted_at = now;
        let is_wanted = now.saturating_sub(self.shared.wanted_at.load(Relaxed)) <= BEAT_ON;
        let cached = lock(&self.shared.cached);
        if cached.cache.is_empty() || !is_wanted {
            return;
        }
        self.shared.stats.cached_ns.add(past);
        let is_unproved = |number: &u32| {
            let source = SourceId(*number);
            !cached.cache.is_idle(source) && !cached.cache.is_proved(source, now)
        };
        if self.nodes.keys().any(is_unproved) {
            self.shared.stats.unproved_ns.add(past);
        }
    }

    fn flush_all(&mut self) {
        let now = clock::now();
        let mut lost = Vec::new();
        for (number, state) in &mut self.nodes {
            if let Some(Err(why)) = state.conn.as_mut().map(Conn::flush) {
                lost.push((*number, why));
            }
        }
        for (number, why) in lost {
            self.lose(number, &why, now);
        }
        if self.next_beat == 0 && self.nodes.values().any(NodeState::is_waiting) {
            self.next_beat = now + self.interval(0).max(MS);
        }
    }
}
