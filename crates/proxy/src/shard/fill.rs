//! The local cache at work: reads of hot keys, and the fills behind them.
//!
//! A read of a hot key is answered from memory while the proof of its primary holds. Otherwise one
//! read goes upstream and the others wait for it (a *fill*):
//!
//! 1. a fence token is taken;
//! 2. the key is registered by `EXISTS` on the tracking connection, unless it still is;
//! 3. once that is answered, the client's own command is sent on the shared connection, with
//!    `PTTL` behind it (and `HPTTL` for hash fields, which expire without a word);
//! 4. the value goes to everybody who waits, and into the cache if its token is not void by then.
//!
//! A hot key whose plan has `coalesce` and that is not cached (by its plan, or for too many writes) has its reads
//! shared all the same: of the callers that ask for the same thing at a time one read goes upstream. That fill has
//! no registration and no time to live, and nothing is kept of it. What is too large to be cached is not shared
//! either: a fill is held whole, and a large reply is rather passed on piece by piece.
//!
//! Nobody ever waits for the cache: where the tracking connection does not answer in time, those
//! who wait are served as if there were no cache. The rules that make the promise hold are with
//! `keyheat_core::cache` and `keyheat_core::proof`.

use keyheat_core::cache::{Lookup, Query, Stored, Token, Ttl};
use keyheat_core::fence::EpochStamp;
use keyheat_core::Nanos;
use keyheat_resp::command::{Cacheable, Command};
use keyheat_resp::reply::{parse, Value};
use keyheat_resp::{encode, slot, Limits, Protocol};

use super::client::{ClientId, Ticket};
use super::serve::{Flow, Keys, Request};
use super::upstream::{Owner, Pending, Stage};
use super::users::SERVICE;
use super::Shard;
use crate::requests::Way;
use keyheat_net::clock::{MS, SEC};

/// A key whose value did not fit is left alone so long.
const NOT_WORTH: Nanos = 10 * SEC;

/// A read on its way that others wait for.
pub(super) struct Fill {
    node: u32,
    key: Box<[u8]>,
    key_hash: u64,
    pub frame: Box<[u8]>,
    pub identity: u64,
    pub protocol: Protocol,
    pub db: u32,
    fields: Option<Box<[u8]>>,
    guard: Guard,
    pub waiters: Vec<Ticket>,
    /// When the value was asked for; `None` while the key is being registered.
    pub read_sent_at: Option<Nanos>,
    value: Option<Vec<u8>>,
    ttl: Option<Option<Ttl>>,
    has_stable_fields: Option<bool>,
}

/// What a write voids a fill by.
enum Guard {
    /// Its value is to be cached.
    Cached(Token),
    /// It is only shared.
    Shared(EpochStamp),
}

impl Fill {
    /// Whether its key is still being registered at `node`.
    pub fn waits_for(&self, node: u32) -> bool {
        self.node == node && self.read_sent_at.is_none()
    }
}

/// What else changes the reply to a command.
pub(super) fn variant(protocol: Protocol, db: u32) -> u64 {
    u64::from(db) << 1 | u64::from(protocol == Protocol::Resp3)
}

impl Shard {
    /// Answers a read of a hot key from memory, or makes it wait for a fill. `None`: it goes
    /// upstream like any other.
    pub(super) fn read_locally(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: &'static Command,
        keys: &Keys,
        node: u32,
    ) -> Option<Flow> {
        let client = self.clients.get(id.index as usize)?;
        let (protocol, db) = (client.protocol, client.db);
        let has_field_expiry = self
            .topology
            .as_ref()
            .is_none_or(|t| t.server.has_field_expiry);
        let cacheable = match command.cacheable {
            Cacheable::No => false,
            Cacheable::Yes | Cacheable::HashFields => true,
            Cacheable::WholeHash => !has_field_expiry,
        };
        if !cacheable || !client.may_read_elsewhere() || db != self.settings.upstream.db {
            return None;
        }
        let user = client.user;
        if user != SERVICE && !self.may_answer(user, request, node) {
            return None;
        }
        self.stats.hot_reads.add(1);
        let source = Self::source(node);
        let key = request.arg(keys.first);
        let query = Query {
            key,
            key_hash: keys.hash,
            variant: variant(protocol, db),
            command: request.frame,
        };
        let is_lapsed = if self.cache_on {
            match self.cache.lookup(source, &query, self.now) {
                Lookup::Hit(value, ()) => {
                    let bytes = (value.len() + request.frame.len()) as u64;
                    if let Some(client) = self.clients.get_mut(id.index as usize) {
                        client.reply(|out| out.extend_from_slice(value));
                    }
                    self.taken.way = Way::LocalCache;
                    self.stats.local_hits.add(1);
                    let hits = self.hits.entry(keys.hash).or_insert(super::Hits {
                        count: 0,
                        first: self.now,
                    });
                    hits.count += 1;
                    self.count_local(keys.hash, node, bytes);
                    return Some(Flow::Next);
                }
                Lookup::Lapsed => true,
                Lookup::Miss => false,
            }
        } else {
            self.stats.hot_reads_upstream.add(1);
            return None;
        };
        if self.join(id, request.frame) {
            return Some(Flow::Next);
        }
        let fields = (command.cacheable == Cacheable::HashFields && has_field_expiry)
            .then(|| field_times(request, command));
        if self.begin_fill(id, request, keys, node, fields) {
            return Some(Flow::Next);
        }
        if is_lapsed {
            self.stats.lapsed.add(1);
        }
        self.stats.hot_reads_upstream.add(1);
        None
    }

    /// Joins a fill that is under way, if its answer is fresh enough for a caller who asks now.
    pub(super) fn join(&mut self, id: ClientId, frame: &[u8]) -> bool {
        let Some(client) = self.clients.get(id.index as usize) else {
            return false;
        };
        let (protocol, db) = (client.protocol, client.db);
        let identity = self.identity(frame, protocol, db);
        let Some(&number) = self.fill_of.get(&identity) else {
            return false;
        };
        let bound = self.settings.max_staleness_ms * MS;
        let now = self.now;
        let Some(fill) = self.fills.get_mut(&number) else {
            return false;
        };
        let is_same = *fill.frame == *frame && fill.protocol == protocol && fill.db == db;
        let is_fresh = fill
            .read_sent_at
            .is_none_or(|sent| now.saturating_sub(sent) <= bound);
        let is_void = match &fill.guard {
            Guard::Cached(token) => self.cache.is_void(token),
            Guard::Shared(stamp) => !self.epochs.is_current(fill.key_hash, *stamp),
        };
        if !is_same || !is_fresh || is_void {
            return false;
        }
        let Some(client) = self.clients.get_mut(id.index as usize) else {
            return false;
        };
        let (node, key_hash) = (fill.node, fill.key_hash);
        if let Some(value) = &fill.value {
            client.reply(|out| out.extend_from_slice(value));
            let bytes = (value.len() + frame.len()) as u64;
            self.count_local(key_hash, node, bytes);
        } else {
            let seq = client.open_slot(0);
            client.note_fill(seq);
            fill.waiters.push(Ticket { client: id, seq });
        }
        self.taken.way = Way::Shared;
        self.stats.fill_joins.add(1);
        true
    }

    fn begin_fill(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        keys: &Keys,
        node: u32,
        fields: Option<Vec<u8>>,
    ) -> bool {
        let source = Self::source(node);
        let key = request.arg(keys.first);
        let Some(tracking) = self.nodes[node as usize].tracking else {
            return false;
        };
        let is_usable = self
            .upstreams
            .get(tracking as usize)
            .is_some_and(|u| u.stage == Stage::Ready && !self.is_stuck(u));
        let is_lock = self.locks.contains(keys.hash, self.now);
        if !is_usable || is_lock || self.not_worth.contains_key(&keys.hash) {
            return false;
        }
        let Some(token) = self.cache.begin(source, key, keys.hash) else {
            return false;
        };
        let is_registered = self.cache.is_registered(&token);
        let guard = Guard::Cached(token);
        let Some(number) = self.open_fill(id, request, keys, node, fields, guard) else {
            return false;
        };
        self.stats.fills.add(1);
        if is_registered {
            self.read_for_fill(number);
        } else {
            self.register(number, tracking);
        }
        true
    }

    /// What requests have in common that get the same answer.
    fn identity(&self, frame: &[u8], protocol: Protocol, db: u32) -> u64 {
        self.hasher.hash(frame) ^ variant(protocol, db)
    }

    /// A fill for which its first caller waits; returns its number.
    fn open_fill(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        keys: &Keys,
        node: u32,
        fields: Option<Vec<u8>>,
        guard: Guard,
    ) -> Option<u64> {
        let client = self.clients.get(id.index as usize)?;
        let identity = self.identity(request.frame, client.protocol, client.db);
        let client = self.clients.get_mut(id.index as usize)?;
        let seq = client.open_slot(0);
        client.note_fill(seq);
        self.next_fill += 1;
        let number = self.next_fill;
        let fill = Fill {
            node,
            key: request.arg(keys.first).into(),
            key_hash: keys.hash,
            frame: request.frame.into(),
            identity,
            protocol: client.protocol,
            db: client.db,
            fields: fields.map(Vec::into_boxed_slice),
            guard,
            waiters: vec![Ticket { client: id, seq }],
            read_sent_at: None,
            value: None,
            ttl: None,
            has_stable_fields: None,
        };
        self.fills.insert(number, fill);
        self.fill_of.insert(identity, number);
        Some(number)
    }

    /// Sends a read of a hot key that others may join, which `may_share` has allowed. `None`: it goes like any
    /// other.
    pub(super) fn lead_shared(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        keys: &Keys,
        node: u32,
    ) -> Option<Flow> {
        let client = self.clients.get(id.index as usize)?;
        let (protocol, db) = (client.protocol, client.db);
        let opened = self.shared(node, protocol, db);
        if !opened.is_ok_and(|index| !self.is_at_gate(node, index)) {
            // What is to be done where a node is crowded, or left alone, is not for a fill to know.
            return None;
        }
        let guard = Guard::Shared(self.epochs.stamp(keys.hash));
        let number = self.open_fill(id, request, keys, node, None, guard)?;
        self.read_for_fill(number);
        Some(Flow::Next)
    }

    /// Whether several callers may have one answer: as old as it gets, it is younger than the bound.
    pub(super) fn may_share(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: &'static Command,
        keys: &Keys,
        node: u32,
    ) -> bool {
        let is_kept_off = !self.cache_on || self.not_worth.contains_key(&keys.hash);
        if is_kept_off || matches!(command.cacheable, Cacheable::No) {
            return false;
        }
        let Some(client) = self.clients.get(id.index as usize) else {
            return false;
        };
        if !client.may_read_elsewhere() || client.db != self.settings.upstream.db {
            return false;
        }
        let user = client.user;
        user == SERVICE || self.may_answer(user, request, node)
    }

    /// Whether the oldest request on a tracking connection has waited so long that a fill on it
    /// would only make its readers wait too.
    fn is_stuck(&self, up: &super::upstream::Upstream) -> bool {
        up.pending
            .front()
            .is_some_and(|p| self.now.saturating_sub(p.sent_at) > self.patience())
    }

    /// How long a fill may wait for its registration.
    fn patience(&self) -> Nanos {
        (self.settings.max_staleness_ms * MS / 4).max(5 * MS)
    }

    fn register(&mut self, number: u64, tracking: u32) {
        let Some(fill) = self.fills.get(&number) else {
            return;
        };
        // Nothing else is cached from there, so no heartbeat is on its way: the first one goes with
        // the first registration.
        let is_first = self.cache.is_idle(Self::source(fill.node));
        let up = &mut self.upstreams[tracking as usize];
        if is_first {
            let owner = Owner::Beat {
                is_role: true,
                is_last: true,
            };
            up.ask(&[b"ROLE"], owner, self.now);
            up.beats_in_flight += 1;
            self.stats.heartbeats.add(1);
        }
        up.ask(&[b"EXISTS", &fill.key], Owner::Register(number), self.now);
        self.stats.registrations.add(1);
        self.fill_deadlines
            .push_back((self.now + self.patience(), number));
        self.mark_upstream(tracking);
    }

    pub(super) fn on_registered(&mut self, number: u64, frame: &[u8]) {
        let is_answer = frame[0] == b':';
        let Some(fill) = self.fills.get(&number) else {
            return;
        };
        if fill.read_sent_at.is_some() {
            return;
        }
        let Guard::Cached(token) = &fill.guard else {
            return;
        };
        if !is_answer || self.cache.is_void(token) {
            let (node, key_hash) = (fill.node, fill.key_hash);
            if !is_answer {
                self.on_unregistered(node, key_hash, frame);
            }
            return self.abandon(number);
        }
        // Not a proof: it says nothing of the other slots, nor, without a Cluster, that the node is
        // still the primary. That is for the heartbeats.
        self.cache.registered(token, 0);
        if self.next_beat == 0 {
            self.next_beat = self.now + self.beat_every;
        }
        self.read_for_fill(number);
    }

    /// A key's registration was refused: for good, for this key, or for now.
    fn on_unregistered(&mut self, node: u32, key_hash: u64, frame: &[u8]) {
        let error = frame.strip_prefix(b"-").unwrap_or_default();
        if error.starts_with(b"NOPERM") {
            self.not_worth.insert(key_hash, self.now + NOT_WORTH);
        } else {
            self.want_look();
        }
        if self.on_refused(node, error) {
            if let Some(index) = self.nodes[node as usize].tracking {
                self.close_upstream(index, "it refused to register a key");
            }
        }
    }

    /// The key is registered: its value is asked for.
    fn read_for_fill(&mut self, number: u64) {
        let Some(fill) = self.fills.get(&number) else {
            return;
        };
        let (node, protocol, db) = (fill.node, fill.protocol, fill.db);
        let opened = self.shared(node, protocol, db);
        let Ok(index) = opened.and_then(|i| self.check_gate(node, i).map(|()| i)) else {
            return self.abandon(number);
        };
        let now = self.now;
        let Some(fill) = self.fills.get_mut(&number) else {
            return;
        };
        fill.read_sent_at = Some(now);
        let up = &mut self.upstreams[index as usize];
        let mut pending = Pending::new(Owner::Fill(number), fill.frame.len(), now);
        if matches!(fill.guard, Guard::Shared(_)) {
            // A read like any other for limits of the key.
            pending.key_hash = fill.key_hash;
            pending.flags = Pending::HAS_KEY;
            up.send(&fill.frame, pending);
            return self.mark_upstream(index);
        }
        up.send(&fill.frame, pending);
        up.ask(&[b"PTTL", &fill.key], Owner::FillTtl(number), now);
        match &fill.fields {
            Some(fields) => up.send(
                fields,
                Pending::new(Owner::FillFields(number), fields.len(), now),
            ),
            None => fill.has_stable_fields = Some(true),
        }
        self.mark_upstream(index);
    }

    /// Those who wait are served as if there were no cache.
    pub(super) fn abandon(&mut self, number: u64) {
        let Some(fill) = self.forget_fill(number) else {
            return;
        };
        let is_cached = u64::from(matches!(fill.guard, Guard::Cached(_)));
        for ticket in fill.waiters {
            self.stats.lapsed.add(is_cached);
            self.stats.hot_reads_upstream.add(is_cached);
            self.forward_waiter(ticket, &fill.frame, &fill.key, fill.key_hash);
        }
    }

    pub(super) fn forward_waiter(
        &mut self,
        ticket: Ticket,
        frame: &[u8],
        key: &[u8],
        key_hash: u64,
    ) {
        let Some(client) = self.client(ticket.client) else {
            return;
        };
        let (protocol, db) = (client.protocol, client.db);
        let opened = self.owner(slot::slot(key)).and_then(|node| {
            let index = self.path(ticket.client, node, protocol, db)?;
            self.check_gate(node, index).map(|()| index)
        });
        match opened {
            Ok(index) => {
                let mut pending = Pending::new(Owner::Client(ticket), frame.len(), self.now);
                pending.key_hash = key_hash;
                pending.flags = Pending::HAS_KEY | Pending::COUNT;
                self.upstreams[index as usize].send(frame, pending);
                self.stats.forwarded.add(1);
                self.mark_upstream(index);
            }
            Err(text) => {
                let mut pending = Pending::new(Owner::Client(ticket), frame.len(), self.now);
                pending.flags = Pending::HAS_KEY;
                self.give_up(&pending, frame, &text);
            }
        }
    }

    pub(super) fn on_fill_value(&mut self, number: u64, frame: &[u8]) {
        if frame[0] == b'-' && self.passes_through() {
            // It is an answer to the proxy's account, and may not be one to its users.
            return self.abandon(number);
        }
        if frame.starts_with(b"-MOVED ") || frame.starts_with(b"-ASK ") {
            // The topology has changed under it; an ordinary request knows how to follow.
            self.want_look();
            return self.abandon(number);
        }
        let Some(fill) = self.fills.get_mut(&number) else {
            return;
        };
        fill.value = Some(frame.to_vec());
        let waiters = std::mem::take(&mut fill.waiters);
        let (node, key_hash) = (fill.node, fill.key_hash);
        let bytes = (frame.len() + fill.frame.len()) as u64;
        // So many that all of it at once is no more than may be held for all clients.
        let most = (self.budget / frame.len()).max(1);
        let rest = waiters.get(most..).unwrap_or_default().to_vec();
        let again = (!rest.is_empty()).then(|| (fill.frame.clone(), fill.key.clone()));
        for ticket in waiters.into_iter().take(most) {
            self.pass_on(ticket.client, ticket.seq, frame, true);
            self.count_local(key_hash, node, bytes);
        }
        // To each of the others it comes piece by piece.
        if let Some((request, key)) = again {
            for ticket in rest {
                self.forward_waiter(ticket, &request, &key, key_hash);
            }
        }
        let is_shared = |f: &Fill| matches!(f.guard, Guard::Shared(_));
        if self.fills.get(&number).is_some_and(is_shared) {
            self.forget_fill(number);
            if frame.len() > self.settings.cache_value_max_bytes {
                self.not_worth.insert(key_hash, self.now + NOT_WORTH);
            }
            return;
        }
        self.finish_fill(number);
    }

    /// Reads that come from now on do not wait for those on their way to a node.
    pub(super) fn join_no_more(&mut self, node: u32) {
        let fills = &self.fills;
        self.fill_of
            .retain(|_, number| fills.get(number).is_none_or(|fill| fill.node != node));
    }

    pub(super) fn forget_fill(&mut self, number: u64) -> Option<Fill> {
        let fill = self.fills.remove(&number)?;
        if self.fill_of.get(&fill.identity) == Some(&number) {
            self.fill_of.remove(&fill.identity);
        }
        Some(fill)
    }

    pub(super) fn on_fill_ttl(&mut self, number: u64, pending: &Pending, frame: &[u8]) {
        let Some(fill) = self.fills.get_mut(&number) else {
            return;
        };
        let is_missing = matches!(
            fill.value.as_deref(),
            Some(b"$-1\r\n" | b"_\r\n" | b"*-1\r\n")
        );
        let answer = std::str::from_utf8(frame)
            .ok()
            .and_then(|s| s.strip_prefix(':')?.trim_end().parse::<i64>().ok());
        fill.ttl = Some(match answer {
            Some(-1) => Some(Ttl::None),
            // A key that is missing stays so until a write, which is announced. Some commands
            // answer a missing key with 0 or an empty list: those too.
            Some(-2) if is_missing || is_empty_answer(fill.value.as_deref()) => {
                self.missing.insert(fill.key_hash, ());
                Some(Ttl::None)
            }
            Some(ms) if ms > 0 => Some(Ttl::after(pending.sent_at, ms as u64)),
            _ => None,
        });
        self.finish_fill(number);
    }

    pub(super) fn on_fill_fields(&mut self, number: u64, frame: &[u8]) {
        let Some(fill) = self.fills.get_mut(&number) else {
            return;
        };
        let is_stable = match parse(frame, &Limits::default()) {
            Ok(Some((Value::Array(times), _))) => {
                times.iter().all(|t| matches!(t, Value::Int(n) if *n < 0))
            }
            _ => false,
        };
        fill.has_stable_fields = Some(is_stable);
        self.finish_fill(number);
    }

    fn finish_fill(&mut self, number: u64) {
        let is_done = self
            .fills
            .get(&number)
            .is_some_and(|f| f.value.is_some() && f.ttl.is_some() && f.has_stable_fields.is_some());
        if !is_done {
            return;
        }
        let Some(mut fill) = self.forget_fill(number) else {
            return;
        };
        let (Some(value), Some(ttl)) = (fill.value.take(), fill.ttl) else {
            return;
        };
        let is_error = matches!(value.first(), Some(b'-' | b'!'));
        let (Some(ttl), Some(true), false) = (ttl, fill.has_stable_fields, is_error) else {
            self.not_worth.insert(fill.key_hash, self.now + SEC);
            return;
        };
        if !self.cache_on || !self.hot.caches(fill.key_hash) {
            return;
        }
        let query = Query {
            key: &fill.key,
            key_hash: fill.key_hash,
            variant: variant(fill.protocol, fill.db),
            command: &fill.frame,
        };
        if self.locks.contains(fill.key_hash, self.now) {
            return;
        }
        let Guard::Cached(token) = &fill.guard else {
            return;
        };
        match self.cache.store(token, &query, &value, ttl, self.now) {
            Stored::Yes => {
                self.stats.fills_stored.add(1);
                self.keep_for_errors(&fill, token, &value, ttl);
            }
            Stored::TooBig | Stored::Full => {
                self.not_worth.insert(fill.key_hash, self.now + NOT_WORTH);
            }
            _ => self.stats.fills_void.add(1),
        }
    }

    pub(super) fn expire_fills(&mut self) {
        while let Some(&(deadline, number)) = self.fill_deadlines.front() {
            if deadline > self.now {
                return;
            }
            self.fill_deadlines.pop_front();
            if self
                .fills
                .get(&number)
                .is_some_and(|f| f.read_sent_at.is_none())
            {
                self.abandon(number);
            }
        }
    }

    pub(super) fn on_hot(&mut self, view: std::sync::Arc<crate::hotview::HotView>) {
        self.has_limits = view.has_limits();
        self.hot = view;
        let hot = &self.hot;
        self.cache.retain(|hash| hot.caches(hash));
        self.hits.retain(|hash, _| hot.contains(*hash));
        self.buckets
            .retain(|hash, _| hot.limits_of(*hash).is_some());
        self.missing.retain(|hash, ()| hot.contains(*hash));
    }
}

/// A reply that a missing key gives: 0, an empty list, an empty string.
fn is_empty_answer(value: Option<&[u8]>) -> bool {
    matches!(
        value,
        Some(
            b":0\r\n"
                | b"*0\r\n"
                | b"~0\r\n"
                | b"%0\r\n"
                | b"$0\r\n\r\n"
                | b"+none\r\n"
                | b":-2\r\n"
        )
    ) || value.is_some_and(|v| v.starts_with(b"*") && is_all_null(v))
}

fn is_all_null(frame: &[u8]) -> bool {
    match parse(frame, &Limits::default()) {
        Ok(Some((Value::Array(items), _))) => items.iter().all(|v| matches!(v, Value::Null)),
        _ => false,
    }
}

/// `HGET key field` → `HPTTL key FIELDS 1 field`.
fn field_times(request: &Request<'_>, command: &'static Command) -> Vec<u8> {
    let fields = if command.name == "hmget" {
        request.argc() - 2
    } else {
        1
    };
    let count = fields.to_string();
    let mut args: Vec<&[u8]> = vec![b"HPTTL", request.arg(1), b"FIELDS", count.as_bytes()];
    args.extend((2..2 + fields).map(|i| request.arg(i)));
    let mut out = Vec::new();
    encode::command(&mut out, &args);
    out
}
