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
//! # Reconnecting must not become the hot spot
//!
//! A node is left alone for a while after each failure, twice as long after the next, and what ends that is
//! a heartbeat answered well, not a connection opened: one that is lost again at its first question has
//! proved nothing. An error that says that somebody has to change something (a right, a password) is
//! believed for longer ([`REFUSED_FOR`]). An error about one key costs that key, or its slot, never the
//! connection.

mod beat;
mod conn;
mod dial;
mod judge;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use keyheat_core::cache::{SourceId, Token};
use keyheat_core::hash::ByHash;
use keyheat_core::Nanos;
use keyheat_net::clock::{self, MS, SEC};
use keyheat_net::lock;
use mio::{Events, Interest, Poll};

use crate::connect::{Connector, Ready, Refusal};
use crate::engine::Shared;
use crate::topology::{Topology, SLOTS};
use conn::Conn;
use dial::Dial;
use judge::Judge;

/// The token of the inbox.
pub(crate) const WAKE: mio::Token = mio::Token(0);
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
    /// The attempt under way.
    connecting: Option<Attempt>,
    backoff: Nanos,
    not_before: Nanos,
    next_census: Nanos,
    tracking_clients: u32,
    /// More clients track it than a bound of [`WIDEST`] allows: nothing is cached from it.
    is_crowded: bool,
    /// A question on an open connection was refused, and nothing has been proved since.
    is_refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    number: u64,
    begun_at: Nanos,
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
            self.tell_slow_dials(now);
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
                    if !conn.register(token.clone(), &key, now) {
                        lock(&self.shared.cached).cache.forget(&token);
                    }
                }
            }
            Message::Fields {
                token,
                key,
                identity,
                fields,
            } => {
                if let Some(conn) = self.conn(token.source().0) {
                    if !conn.ask_fields(token.clone(), &key, identity, &fields, now) {
                        lock(&self.shared.cached).on_fields(&token, identity, false, now);
                    }
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
                self.let_go(&topology);
            }
            Message::Rest => {
                let nodes: Vec<u32> = self.nodes.keys().copied().collect();
                for node in nodes {
                    self.down(node);
                    // One that is on its way is not wanted any more either.
                    let state = self.nodes.get_mut(&node);
                    if state.is_some_and(|state| state.connecting.take().is_some()) {
                        self.unrefuse(node);
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
        state.connecting = Some(Attempt {
            number: self.attempts,
            begun_at: now,
        });
        let (shared, connector) = (Arc::clone(&self.shared), Arc::clone(&self.connector));
        let dial = Dial::new(shared, connector, number, self.attempts);
        let started = std::thread::Builder::new()
            .name("keyheat-connect".into())
            .spawn(move || dial.run(&node));
        if let Err(e) = started {
            tracing::warn!("no thread to open a tracking connection: {e}");
        }
    }

    fn on_opened(&mut self, number: u32, attempt: u64, result: Result<Ready, Refusal>, now: Nanos) {
        let state = self.nodes.entry(number).or_default();
        if state.connecting.map(|connecting| connecting.number) != Some(attempt) {
            return;
        }
        state.connecting = None;
        match result {
            Ok(ready) => self.up(number, ready, now),
            Err(refusal) => {
                state.is_refused = false;
                self.leave_alone(number, &refusal, now);
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
        state.tracking_clients = 0;
        state.is_crowded = false;
        // What was refused on an open connection stands until a heartbeat says otherwise.
        if !state.is_refused {
            self.unrefuse(number);
        }
        self.on_event(number, now);
    }

    fn unrefuse(&self, number: u32) {
        lock(&self.shared.refusals).remove(&u64::from(number));
    }

    fn refuse(&self, number: u32, why: &str) {
        let topology = self.shared.topology();
        if !owners(&topology).contains(&number) {
            return; // it left, and nothing would ever take the entry back
        }
        let name = match topology.nodes().get(number as usize) {
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

    /// As [`Tracker::down`], for a connection that failed: the next attempt waits.
    fn lose(&mut self, number: u32, why: &Refusal, now: Nanos) {
        self.down(number);
        self.nodes.entry(number).or_default().is_refused = matches!(why, Refusal::Refused(_));
        self.leave_alone(number, why, now);
    }

    /// A node failed or refused: it is left alone for a while, and people are told why.
    fn leave_alone(&mut self, number: u32, why: &Refusal, now: Nanos) {
        let state = self.nodes.entry(number).or_default();
        let backoff = state.back_off();
        state.not_before = now
            + match why {
                Refusal::Unreachable(_) => backoff,
                Refusal::Refused(_) => REFUSED_FOR,
            };
        self.refuse(number, why.why());
    }

    /// Nodes that own nothing any more are forgotten: nobody will ask for what they have.
    fn let_go(&mut self, topology: &Topology) {
        let owners = owners(topology);
        let is_gone = |number: &u32| !owners.contains(number);
        let gone: Vec<u32> = self.nodes.keys().copied().filter(is_gone).collect();
        for number in gone {
            self.down(number);
            self.nodes.remove(&number); // an attempt under way ends unheard
        }
        lock(&self.shared.refusals)
            .retain(|number, _| u32::try_from(*number).is_ok_and(|n| owners.contains(&n)));
        self.set_bound();
    }

    /// After so long an attempt to connect is worth a word: connecting and introducing itself have had the
    /// time they may take.
    fn slow_dial(&self) -> Nanos {
        2 * self.shared.settings.connect_timeout_ms * MS + SEC
    }

    /// An attempt that takes too long is told of: it may hang in the language's own client.
    fn tell_slow_dials(&self, now: Nanos) {
        for (number, state) in &self.nodes {
            let Some(attempt) = state.connecting else {
                continue;
            };
            let taken = now.saturating_sub(attempt.begun_at);
            if taken >= self.slow_dial()
                && !lock(&self.shared.refusals).contains_key(&u64::from(*number))
            {
                self.refuse(
                    *number,
                    "opening a tracking connection takes longer than it may",
                );
            }
        }
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
        let census = conn.census.take();
        if std::mem::take(&mut conn.has_proved) && !state.is_crowded {
            state.backoff = 0;
            if std::mem::take(&mut state.is_refused) {
                self.unrefuse(number);
            }
        }
        if let Some(clients) = census {
            self.on_census(number, clients);
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

/// The numbers of the nodes that own anything.
fn owners(topology: &Topology) -> HashSet<u32> {
    if !topology.is_cluster() {
        return (0..topology.nodes().len() as u32).collect();
    }
    (0..SLOTS as u16)
        .filter_map(|slot| topology.owner_of_slot(slot))
        .collect()
}
