//! A connection to an upstream node, and what was asked on it.
//!
//! Requests of many clients share a connection; the server answers in order, so the oldest
//! pending request owns the next reply. The bytes of a request stay in `out` until its reply has
//! come: a request that is answered `MOVED` is sent again from there, without a copy having been
//! made of each request just in case.

use std::collections::VecDeque;

use keyheat_core::Nanos;
use keyheat_resp::reply::ReplyScanner;
use keyheat_resp::{encode, Limits, Protocol};

use super::client::{ClientId, Ticket};
use super::marks::Marks;
use crate::notice::OwnTalk;
use crate::stream::Stream;

/// What a server may answer: anything. To give up a connection for a reply would be at the cost of everybody on
/// it. A script may nest as deep as Lua's stack (some 8,000 tables) lets it, and answer with a status or an error
/// as long as a value; `DUMP` of a list is as long as all of its values.
pub(super) const REPLIES: Limits = Limits {
    bulk_max_bytes: usize::MAX / 2,
    inline_max_bytes: 1 << 30,
    depth_max: 65_536,
    ..Limits::DEFAULT
};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Requests of all clients of the shard.
    Shared,
    /// Reads of all clients of the shard, from a replica.
    Reader,
    /// Registrations and heartbeats of the local cache.
    Tracking,
    /// Requests of one client, or idle in the pool.
    Pinned(Option<ClientId>),
    /// Subscriptions of one client.
    Subscriber(ClientId),
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The connection is not there yet, or its ends have not agreed on TLS.
    Connecting,
    /// HELLO, AUTH, SELECT and the like are not answered yet; requests wait behind them.
    Setup,
    /// In use.
    Ready,
}

/// Who gets a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A client, as it is.
    Client(Ticket),
    /// A request that was split over nodes.
    Part { job: u32, part: u32 },
    /// The value that a fill reads.
    Fill(u64),
    /// The time to live of the key that a fill reads.
    FillTtl(u64),
    /// The times to live of the hash fields that a fill reads.
    FillFields(u64),
    /// The registration of the key of a fill.
    Register(u64),
    /// One request of a heartbeat; `last` closes it.
    Beat { is_role: bool, is_last: bool },
    /// A read that went to a copy.
    Copy(u32),
    /// A step in voiding copies.
    Void { voiding: u32, key: u32 },
    /// A look at the node's replication.
    Replication,
    /// A step of the connection's own set-up.
    Setup(Step),
    /// The MULTI that was put before a transaction.
    Multi,
    /// Whether a client is who it says it is.
    Auth(ClientId),
    /// Whether a user may have a line answered from memory.
    Permit(u64),
    /// Whether a user may what the proxy does itself.
    Right { user: u32, place: u8 },
    /// Whether a client's wait was ended.
    Unblock(u32),
    /// Nobody.
    Nobody,
}

/// A step of a connection's set-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Auth,
    Hello,
    Select,
    /// A database that the user may not be let choose, chosen by the proxy's own account.
    Before,
    Name,
    ReadOnly,
    Tracking,
    Role,
    /// The connection's number at the server, for `CLIENT UNBLOCK`.
    Id,
    /// What the client that owns the connection has asked for.
    Own,
    /// Whether the node serves requests.
    Probe,
}

/// What is known of a pending request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub owner: Owner,
    /// Bytes of the request in `out`.
    pub len: usize,
    /// Hash of its first key; meaningless without `HAS_KEY`.
    pub key_hash: u64,
    pub sent_at: Nanos,
    pub flags: u8,
    pub redirects: u8,
}

impl Pending {
    /// It writes.
    pub const WRITE: u8 = 1;
    /// It is counted when it ends.
    pub const COUNT: u8 = 2;
    /// It has several keys; they are read again from the request.
    pub const MANY_KEYS: u8 = 4;
    /// It has a key, hashed in `key_hash`.
    pub const HAS_KEY: u8 = 8;
    /// It may write keys that it does not name (FLUSHALL, scripts without keys).
    pub const WRITES_ALL: u8 = 16;
    /// Its reply ends the pinning of the client's connection.
    pub const RELEASES: u8 = 32;
    /// Its reply decides whether the client has connections of its own.
    pub const OWN: u8 = 64;
    /// It is the DISCARD of a transaction that was spoilt here; its answer says so.
    pub const ABORTS: u8 = 128;

    pub fn new(owner: Owner, len: usize, now: Nanos) -> Self {
        Self {
            owner,
            len,
            key_hash: 0,
            sent_at: now,
            flags: 0,
            redirects: 0,
        }
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A connection to an upstream node.
pub(super) struct Upstream {
    pub stream: Stream,
    pub generation: u32,
    pub node: u32,
    /// The node for which accesses are counted: of a replica, its primary.
    pub primary: u32,
    pub role: Role,
    pub protocol: Protocol,
    pub db: u32,
    /// It was chosen before the user was taken on.
    pub is_db_set: bool,
    /// By whose rights the server serves it.
    pub user: u32,
    /// When something was last sent on it.
    pub used_at: Nanos,
    /// Why the server did not let its user in, in its own words.
    pub refusal: Option<String>,
    /// Nobody needs it any more: its end says nothing of the node.
    pub is_dropped: bool,
    /// Its client has left while it waits: the server is told so, behind what was sent.
    pub is_ending: bool,
    pub stage: Stage,
    /// Requests: `[answered.., sent.., unsent..]`; the answered ones are forgotten now and then.
    pub out: Vec<u8>,
    pub acked: usize,
    pub sent: usize,
    /// While setting up, only so much of `out` may be sent.
    pub setup_end: usize,
    pub pending: VecDeque<Pending>,
    /// Bytes of a header line that is not complete.
    pub input: Vec<u8>,
    pub scanner: ReplyScanner,
    /// The current reply so far, where its owner needs it whole.
    pub partial: Vec<u8>,
    /// Bytes of the current reply that were passed on.
    pub streamed: u64,
    pub is_dirty: bool,
    pub opened_at: Nanos,
    /// When something was last read from it.
    pub heard_at: Nanos,
    /// Not all of `out` may be sent now.
    pub has_line: bool,
    pub marks: Marks,
    /// A beat is under way and every reply of it was good so far.
    pub is_beat_good: bool,
    pub beats_in_flight: u32,
    /// The server's number of a connection that may block.
    pub server_id: i64,
    /// Of a tracking connection: `MONITOR` does not show it.
    pub talk: Option<OwnTalk>,
}

impl Upstream {
    pub fn new(stream: Stream, generation: u32, node: u32, role: Role, now: Nanos) -> Self {
        Self {
            stream,
            generation,
            node,
            primary: node,
            role,
            protocol: Protocol::Resp2,
            db: 0,
            is_db_set: false,
            user: 0,
            used_at: now,
            refusal: None,
            is_dropped: false,
            is_ending: false,
            stage: Stage::Connecting,
            out: Vec::new(),
            acked: 0,
            sent: 0,
            setup_end: 0,
            pending: VecDeque::new(),
            input: Vec::new(),
            scanner: ReplyScanner::new(REPLIES),
            partial: Vec::new(),
            streamed: 0,
            is_dirty: false,
            opened_at: now,
            heard_at: now,
            has_line: false,
            marks: Marks::default(),
            is_beat_good: false,
            beats_in_flight: 0,
            server_id: 0,
            talk: None,
        }
    }

    /// Puts a request behind the others.
    pub fn send(&mut self, frame: &[u8], pending: Pending) {
        self.out.extend_from_slice(frame);
        self.used_at = pending.sent_at;
        self.pending.push_back(pending);
    }

    /// Asks something of our own, behind the others.
    pub fn ask(&mut self, args: &[&[u8]], owner: Owner, now: Nanos) {
        let start = self.out.len();
        encode::command(&mut self.out, args);
        let len = self.out.len() - start;
        self.pending.push_back(Pending::new(owner, len, now));
    }

    /// What may be written now.
    pub fn sendable(&self) -> usize {
        match self.stage {
            Stage::Connecting => self.sent,
            Stage::Setup => self.setup_end.max(self.sent),
            Stage::Ready => self.out.len(),
        }
    }

    /// Bytes that are held on the way there and back.
    pub fn held(&self) -> usize {
        self.out.len() + self.input.len() + self.partial.len()
    }

    /// Takes the oldest request off, with the place of its bytes in `out`.
    pub fn pop(&mut self) -> Option<(Pending, std::ops::Range<usize>)> {
        let pending = self.pending.pop_front()?;
        let start = self.acked;
        self.acked += pending.len;
        Some((pending, start..self.acked))
    }

    /// Forgets answered requests, and gives large memory back.
    pub fn settle(&mut self) {
        if self.acked == self.out.len() {
            if self.out.capacity() > 1 << 20 {
                self.out = Vec::new();
            } else {
                self.out.clear();
            }
            self.acked = 0;
            self.sent = 0;
            self.setup_end = 0;
        } else if self.acked > 256 * 1024 && self.acked > self.out.len() / 2 {
            self.out.drain(..self.acked);
            self.sent -= self.acked;
            self.marks.shift(self.acked);
            self.setup_end = self.setup_end.saturating_sub(self.acked);
            self.acked = 0;
        }
    }
}
