//! One tracking connection: what is asked on it, what comes back, and what each answer proves.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering::Relaxed;

use keyheat_core::cache::{Found, SourceId, Token, Ttl};
use keyheat_core::Nanos;
use keyheat_net::lock;
use keyheat_resp::reply::{parse, Value};
use keyheat_resp::tracking::{invalidation, is_primary, trouble, Invalidation, Trouble};
use keyheat_resp::{encode, slot, Limits};

use crate::connect::{info_field, refused, Refusal, Wire};
use crate::engine::Shared;

/// Most bytes of answers held at once; ours are all small.
const INBOX_MAX: usize = 4 << 20;
/// Most questions on their way.
const PENDING_MAX: usize = 65_536;
/// One read takes at most so much.
const PIECE: usize = 16 << 10;

enum Asked {
    Role { is_last: bool },
    Probe { slot: u16, is_last: bool },
    Register(Token),
    Fields { token: Token, identity: u64 },
    Census,
}

struct Pending {
    asked: Asked,
    sent_at: Nanos,
}

/// See the module's description.
pub(super) struct Conn {
    wire: Box<dyn Wire>,
    inbox: Vec<u8>,
    out: Vec<u8>,
    pending: VecDeque<Pending>,
    is_beat_good: bool,
    pub beaten_at: Nanos,
    /// Something was registered while no heartbeat was due.
    pub has_first: bool,
    /// A whole heartbeat has just been answered well.
    pub has_proved: bool,
    /// How many clients track the server, when it has just said so.
    pub census: Option<u32>,
}

impl Conn {
    pub fn new(wire: Box<dyn Wire>, rest: Vec<u8>) -> Self {
        Self {
            wire,
            inbox: rest,
            out: Vec::new(),
            pending: VecDeque::new(),
            is_beat_good: false,
            beaten_at: 0,
            has_first: false,
            has_proved: false,
            census: None,
        }
    }

    pub fn fd(&self) -> RawFd {
        self.wire.fd()
    }

    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// How long the oldest question has been waiting.
    pub fn waiting_for(&self, now: Nanos) -> Nanos {
        let oldest = self.pending.front();
        oldest.map_or(0, |oldest| now.saturating_sub(oldest.sent_at))
    }

    /// Returns what was to be asked where too much is on its way already.
    fn ask(&mut self, args: &[&[u8]], asked: Asked, now: Nanos) -> Result<(), Asked> {
        if self.pending.len() >= PENDING_MAX {
            return Err(asked);
        }
        encode::command(&mut self.out, args);
        self.pending.push_back(Pending {
            asked,
            sent_at: now,
        });
        Ok(())
    }

    /// Registers a key by asking for its expiry: a read, so the server remembers who asked.
    ///
    /// Returns false where it was not asked, so that the next reader has to.
    #[must_use]
    pub fn register(&mut self, token: Token, key: &[u8], now: Nanos) -> bool {
        let asked = Asked::Register(token);
        self.ask(&[b"PTTL", key], asked, now).is_ok()
    }

    /// Asks whether fields of a hash expire. Returns false where it was not asked.
    #[must_use]
    pub fn ask_fields(
        &mut self,
        token: Token,
        key: &[u8],
        identity: u64,
        fields: &[Box<[u8]>],
        now: Nanos,
    ) -> bool {
        let count = fields.len().to_string();
        let mut args: Vec<&[u8]> = vec![b"HPTTL", key, b"FIELDS", count.as_bytes()];
        args.extend(fields.iter().map(|field| &**field));
        let asked = Asked::Fields { token, identity };
        self.ask(&args, asked, now).is_ok()
    }

    /// Asks how many clients track the server. Returns false where it was not asked.
    pub fn ask_census(&mut self, now: Nanos) -> bool {
        let asked = self.ask(&[b"INFO", b"clients"], Asked::Census, now);
        asked.is_ok()
    }

    /// Sends a heartbeat: `ROLE`, and `EXISTS` of each of `probes`.
    pub fn beat(&mut self, probes: &[Box<[u8]>], now: Nanos) {
        self.beaten_at = now;
        if self.pending.len() + probes.len() >= PENDING_MAX {
            return; // a part of a heartbeat would prove nothing
        }
        let is_last = probes.is_empty();
        let _ = self.ask(&[b"ROLE"], Asked::Role { is_last }, now);
        for (i, key) in probes.iter().enumerate() {
            let probe = Asked::Probe {
                slot: slot::slot(key),
                is_last: i + 1 == probes.len(),
            };
            let _ = self.ask(&[b"EXISTS", key], probe, now);
        }
    }

    /// Sends what waits to be sent, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), Refusal> {
        while !self.out.is_empty() {
            match self.wire.write(&self.out) {
                Ok(0) => return Err(broken("the connection takes nothing")),
                Ok(n) => drop(self.out.drain(..n)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(e)),
            }
        }
        match self.wire.flush() {
            Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => Err(broken(e)),
            _ => Ok(()),
        }
    }

    /// Takes everything that has arrived.
    ///
    /// # Errors
    /// The connection is no longer to be believed, and why.
    pub fn receive<V: Clone>(
        &mut self,
        shared: &Shared<V>,
        source: SourceId,
        now: Nanos,
    ) -> Result<(), Refusal> {
        self.apply(shared, source, now)?;
        loop {
            let len = self.inbox.len();
            self.inbox.resize(len + PIECE, 0);
            let read = self
                .wire
                .read(self.inbox.get_mut(len..).unwrap_or_default());
            let taken = *read.as_ref().unwrap_or(&0);
            self.inbox.truncate(len + taken);
            match read {
                Ok(0) => return Err(broken("the server closed the tracking connection")),
                Ok(_) => self.apply(shared, source, now)?,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return self.flush(),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(e)),
            }
        }
    }

    fn apply<V: Clone>(
        &mut self,
        shared: &Shared<V>,
        source: SourceId,
        now: Nanos,
    ) -> Result<(), Refusal> {
        let limits = Limits::default();
        let mut at = 0;
        let inbox = std::mem::take(&mut self.inbox);
        let result = loop {
            match parse(inbox.get(at..).unwrap_or_default(), &limits) {
                Ok(Some((value, len))) => {
                    at += len;
                    if let Err(why) = self.on_value(shared, source, value, now) {
                        break Err(why);
                    }
                }
                Ok(None) if inbox.len() - at > INBOX_MAX => {
                    break Err(broken("an answer is too long"))
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(broken(format!("an answer is no RESP: {e}"))),
            }
        };
        self.inbox = inbox;
        self.inbox.drain(..at);
        result
    }

    fn on_value<V: Clone>(
        &mut self,
        shared: &Shared<V>,
        source: SourceId,
        value: Value,
        now: Nanos,
    ) -> Result<(), Refusal> {
        if let Value::Push(parts) = value {
            on_push(shared, source, &parts);
            return Ok(());
        }
        let Some(Pending { asked, sent_at }) = self.pending.pop_front() else {
            return Err(broken("an answer without a question"));
        };
        match asked {
            Asked::Role { is_last } => {
                if !is_primary(&value) {
                    return Err(not_served("ROLE", &value));
                }
                self.is_beat_good = true;
                self.end_beat(shared, source, is_last, sent_at);
            }
            Asked::Probe { slot, is_last } => {
                match meaning(&value) {
                    Ok(_) => {}
                    // What was cached of this slot goes; what is left is as good as the heartbeat says.
                    Err(Trouble::Key) => forget_slot(shared, source, slot),
                    Err(_) => return Err(not_served("EXISTS", &value)),
                }
                self.end_beat(shared, source, is_last, sent_at);
            }
            Asked::Register(token) => match meaning(&value) {
                Ok(ms) => {
                    shared.stats.registrations.add(1);
                    // No proof: it says nothing of other slots, nor that this is still a primary.
                    let mut cached = lock(&shared.cached);
                    self.has_first |= cached.cache.is_idle(source);
                    cached.cache.registered_as(&token, found(ms, sent_at), 0);
                }
                // This key is not to be read by us, or not here; the others are none the worse for it.
                Err(Trouble::Key) => lock(&shared.cached).on_refused(&token, now),
                Err(_) => return Err(told("PTTL was refused", &value)),
            },
            Asked::Fields { token, identity } => {
                let is_stable = are_stable(&value);
                lock(&shared.cached).on_fields(&token, identity, is_stable, now);
            }
            Asked::Census => {
                if let Value::Bulk(text) | Value::Verbatim { text, .. } = &value {
                    let clients = info_field(text, b"tracking_clients");
                    self.census = clients.and_then(|n| n.parse().ok());
                }
            }
        }
        Ok(())
    }

    /// An answer of a heartbeat was good; the last one proves what was sent before the first.
    fn end_beat<V: Clone>(
        &mut self,
        shared: &Shared<V>,
        source: SourceId,
        is_last: bool,
        sent_at: Nanos,
    ) {
        if is_last && self.is_beat_good {
            self.has_proved = true;
            lock(&shared.cached).cache.proved(source, sent_at);
        }
    }
}

/// The slot is no longer, or not wholly, served there: nothing of it stays cached from there.
fn forget_slot<V: Clone>(shared: &Shared<V>, source: SourceId, gone: u16) {
    let mut cached = lock(&shared.cached);
    let mut keys: Vec<Box<[u8]>> = Vec::new();
    cached.cache.for_each_registered(source, |key, _| {
        if slot::slot(key) == gone {
            keys.push(key.into());
        }
    });
    for key in keys {
        let hash = shared.hash(&key);
        cached.cache.invalidate(source, hash, &key);
    }
}

fn on_push<V: Clone>(shared: &Shared<V>, source: SourceId, parts: &[Value]) {
    if shared.is_deaf.load(Relaxed) {
        return;
    }
    match invalidation(parts) {
        Some(Invalidation::Keys(keys)) => {
            for key in keys {
                shared.stats.invalidations.add(1);
                let hash = shared.hash(key);
                lock(&shared.cached).cache.invalidate(source, hash, key);
            }
        }
        Some(Invalidation::All) => {
            shared.stats.invalidations.add(1);
            let mut cached = lock(&shared.cached);
            cached.cache.invalidate_all(source);
            cached.forget_fields();
        }
        None => {}
    }
}

/// What `PTTL` said, counted from before it was sent.
fn found(ms: i64, sent_at: Nanos) -> Found {
    let expiry = match u64::try_from(ms) {
        Ok(ms) => Ttl::after(sent_at, ms),
        Err(_) => Ttl::None,
    };
    Found {
        is_missing: ms == -2,
        expiry,
    }
}

/// Whether `HPTTL` said that none of the fields expires on its own.
fn are_stable(value: &Value) -> bool {
    match value {
        // No such field, or a field without an expiry.
        Value::Array(times) => times.iter().all(|time| matches!(time, Value::Int(-2 | -1))),
        Value::Null => true, // no such key
        _ => false,
    }
}

/// What `EXISTS` or `PTTL` said: a number, or an error of some kind.
fn meaning(value: &Value) -> Result<i64, Trouble> {
    match value {
        Value::Int(n) => Ok(*n),
        Value::Error(why) => Err(trouble(why)),
        _ => Err(Trouble::Passing),
    }
}

/// The node is not, or not for us, what it was.
fn not_served(command: &str, value: &Value) -> Refusal {
    told(
        &format!("it no longer serves what was cached from it: {command}"),
        value,
    )
}

/// Why a connection is no longer to be believed, with the error that says so.
fn told(what: &str, value: &Value) -> Refusal {
    match value {
        Value::Error(why) => refused(what, why),
        _ => broken(what),
    }
}

fn broken(why: impl ToString) -> Refusal {
    Refusal::Unreachable(why.to_string())
}
