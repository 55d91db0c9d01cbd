//! One tracking connection: what is asked on it, what comes back, and what each answer proves.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::atomic::Ordering::Relaxed;

use keyheat_core::cache::{Found, SourceId, Token, Ttl};
use keyheat_core::Nanos;
use keyheat_net::lock;
use keyheat_resp::reply::{parse, Value};
use keyheat_resp::tracking::{invalidation, is_primary, Invalidation};
use keyheat_resp::{encode, Limits};

use crate::connect::{info_field, Wire};
use crate::engine::Shared;

/// Most bytes of answers held at once; ours are all small.
const INBOX_MAX: usize = 4 << 20;
/// Most questions on their way.
const PENDING_MAX: usize = 65_536;
/// One read takes at most so much.
const PIECE: usize = 16 << 10;

enum Asked {
    Beat { is_first: bool, is_last: bool },
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
    /// How many clients track the server, when it has just said so.
    pub census: Option<u64>,
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

    fn ask(&mut self, args: &[&[u8]], asked: Asked, now: Nanos) {
        if self.pending.len() >= PENDING_MAX {
            return; // it is stuck, and about to be found so
        }
        encode::command(&mut self.out, args);
        self.pending.push_back(Pending {
            asked,
            sent_at: now,
        });
    }

    /// Registers a key by asking for its expiry: a read, so the server remembers who asked.
    pub fn register(&mut self, token: Token, key: &[u8], now: Nanos) {
        self.ask(&[b"PTTL", key], Asked::Register(token), now);
    }

    pub fn ask_fields(
        &mut self,
        token: Token,
        key: &[u8],
        identity: u64,
        fields: &[Box<[u8]>],
        now: Nanos,
    ) {
        let count = fields.len().to_string();
        let mut args: Vec<&[u8]> = vec![b"HPTTL", key, b"FIELDS", count.as_bytes()];
        args.extend(fields.iter().map(|field| &**field));
        self.ask(&args, Asked::Fields { token, identity }, now);
    }

    pub fn ask_census(&mut self, now: Nanos) {
        self.ask(&[b"INFO", b"clients"], Asked::Census, now);
    }

    /// Sends a heartbeat: `ROLE`, and `EXISTS` of each of `probes`.
    pub fn beat(&mut self, probes: &[Box<[u8]>], now: Nanos) {
        self.beaten_at = now;
        let first = Asked::Beat {
            is_first: true,
            is_last: probes.is_empty(),
        };
        self.ask(&[b"ROLE"], first, now);
        for (i, key) in probes.iter().enumerate() {
            let probe = Asked::Beat {
                is_first: false,
                is_last: i + 1 == probes.len(),
            };
            self.ask(&[b"EXISTS", key], probe, now);
        }
    }

    /// Sends what waits to be sent, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), String> {
        while !self.out.is_empty() {
            match self.wire.write(&self.out) {
                Ok(0) => return Err("the connection takes nothing".into()),
                Ok(n) => drop(self.out.drain(..n)),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        match self.wire.flush() {
            Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => Err(e.to_string()),
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
    ) -> Result<(), String> {
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
                Ok(0) => return Err("the server closed the tracking connection".into()),
                Ok(_) => self.apply(shared, source, now)?,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return self.flush(),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    fn apply<V: Clone>(
        &mut self,
        shared: &Shared<V>,
        source: SourceId,
        now: Nanos,
    ) -> Result<(), String> {
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
                    break Err("an answer is too long".into())
                }
                Ok(None) => break Ok(()),
                Err(e) => break Err(format!("an answer is no RESP: {e}")),
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
    ) -> Result<(), String> {
        if let Value::Push(parts) = value {
            on_push(shared, source, &parts);
            return Ok(());
        }
        let Some(Pending { asked, sent_at }) = self.pending.pop_front() else {
            return Err("an answer without a question".into());
        };
        match asked {
            Asked::Beat { is_first, is_last } => {
                let is_good = match &value {
                    role if is_first => is_primary(role),
                    exists => matches!(exists, Value::Int(_)),
                };
                if !is_good {
                    return Err(format!(
                        "it no longer serves what was cached from it{}",
                        because(&value)
                    ));
                }
                self.is_beat_good = is_first || self.is_beat_good;
                if is_last && self.is_beat_good {
                    lock(&shared.cached).cache.proved(source, sent_at);
                }
            }
            Asked::Register(token) => match found(&value, sent_at) {
                Some(found) => {
                    shared.stats.registrations.add(1);
                    // No proof: it says nothing of other slots, nor that this is still a primary.
                    let mut cached = lock(&shared.cached);
                    self.has_first |= cached.cache.is_idle(source);
                    cached.cache.registered_as(&token, found, 0);
                }
                None if is_of_key(&value) => {
                    // This key is not to be read by us; the others are none the worse for it.
                    lock(&shared.cached).on_refused(&token, now);
                }
                None => return Err(format!("PTTL was refused{}", because(&value))),
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
fn found(value: &Value, sent_at: Nanos) -> Option<Found> {
    let Value::Int(ms) = value else {
        return None;
    };
    let expiry = match u64::try_from(*ms) {
        Ok(ms) => Ttl::after(sent_at, ms),
        Err(_) => Ttl::None,
    };
    Some(Found {
        is_missing: *ms == -2,
        expiry,
    })
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

/// Whether an error is about one key alone: the user has no right to it.
fn is_of_key(value: &Value) -> bool {
    matches!(value, Value::Error(why) if why.starts_with(b"NOPERM") && !is_of_command(why))
}

/// Whether the right that is missing is to the command, so that no key can be registered.
fn is_of_command(why: &[u8]) -> bool {
    why.windows(7).any(|part| part == b"command")
}

fn because(value: &Value) -> String {
    match value {
        Value::Error(why) => format!(": {}", String::from_utf8_lossy(why)),
        _ => String::new(),
    }
}
