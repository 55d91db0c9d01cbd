//! A client connection: what it has sent, what it still waits for, and what it has yet to read.
//!
//! Replies leave in the order of the requests, though they come from several nodes and from the
//! local cache. Each request that cannot be answered at once takes a *slot*; the oldest slot
//! writes straight into the output, later ones keep what arrives early. A reply that comes in
//! pieces is passed on in pieces, so a large value is not held here whole while it is on its way.

use std::borrow::Cow;
use std::collections::VecDeque;

use keyheat_core::Nanos;
use keyheat_net::clock::MS;
use keyheat_resp::command::Command;
use keyheat_resp::request::RequestParser;
use keyheat_resp::Protocol;

use super::own::Own;
use super::rights::Verdict;
use super::selects::Selects;
use super::subscribe::Listening;
use super::users::{Authenticating, SERVICE};
use crate::stream::Stream;

/// A busy client keeps this much of its output buffer: to grow it anew for every batch of larger
/// replies costs more than the replies do.
const KEEP_BYTES: usize = 512 * 1024;
/// A client with more unanswered than this gets no more of its requests served for now.
const REQUESTS_SOFT_BYTES: usize = 1 << 20;
/// A client with more to read than this, replies on their way included, gets no more of its requests served for
/// now.
const REPLIES_SOFT_BYTES: usize = 4 << 20;
/// The same while the clients of a shard together take, or wait for, half of what they may.
pub(super) const REPLIES_SCARCE_BYTES: usize = 64 * 1024;
/// A reply is taken to be so long before the first has come: a pipeline is not all sent on before it is known
/// what it asks for.
const REPLY_GUESS_BYTES: usize = 256 * 1024;
/// A blocking command that has not been answered so long after it was sent waits for something to come.
const BLOCKS_AFTER: Nanos = 100 * MS;
/// A client for which less is held is not worth cutting.
pub(super) const LITTLE_BYTES: usize = 1 << 20;

/// So many reads of one client are on their way at most, however short its replies are: the next may be long.
const READS_AT_ONCE: usize = 128;

/// What one client may have to read before it is held back: well below what it would be cut for, and little
/// where the clients together take much, or are about to.
pub(super) fn replies_soft_bytes(budget: usize, output_max: usize, taken: Taken) -> usize {
    let scarce = if taken.memory + taken.awaited > budget / 2 {
        REPLIES_SCARCE_BYTES
    } else {
        REPLIES_SOFT_BYTES
    };
    scarce.min(budget / 4).min(output_max / 2)
}

/// What a client takes, or all of them, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Taken {
    /// Without requests that are on their way, which are counted where they lie.
    pub memory: usize,
    /// Replies that are not here yet.
    pub awaited: usize,
}

/// Names one client of a shard. `generation` tells a reused place from the client that left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientId {
    pub index: u32,
    pub generation: u32,
}

/// A request of a client that waits for its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub client: ClientId,
    pub seq: u32,
}

/// A reply that came before its turn.
#[derive(Debug, Default)]
struct Slot {
    data: Vec<u8>,
    is_done: bool,
    /// The client does not want this reply (`CLIENT REPLY`).
    is_muted: bool,
    /// Its reply tells nothing of what this client reads.
    is_write: bool,
    /// Bytes of the request, held upstream until it is answered.
    cost: usize,
}

/// Where a client stands in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Transaction {
    /// None, or only `WATCH`.
    #[default]
    None,
    /// `MULTI` was answered here; no node is chosen yet (Cluster).
    Pending,
    /// `MULTI` was sent to the pinned connection.
    Open,
}

/// Which replies a client wants, as it said by `CLIENT REPLY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Wants {
    /// All of them.
    #[default]
    All,
    /// None.
    None,
    /// Not that of its next request.
    SkipNext,
    /// Not that of the request in hand.
    SkipThis,
}

/// What a client has done so far, for `CLIENT LIST`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Deeds {
    pub connected_at: Nanos,
    pub active_at: Nanos,
    pub last: Option<&'static Command>,
    pub requests: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// Everything that is kept of a client.
pub(super) struct Client {
    pub stream: Stream,
    pub generation: u32,
    pub id: u64,
    pub peer: String,
    pub name: Vec<u8>,
    pub library: (Vec<u8>, Vec<u8>),
    pub protocol: Protocol,
    pub db: u32,
    pub is_authenticated: bool,
    /// By whose rights it is served, its password being judged by the server.
    pub user: u32,
    /// The server was asked whether this client needs a password.
    pub is_tried: bool,
    pub authenticating: Option<Box<Authenticating>>,
    /// Whether its user may what it asks for now.
    pub verdict: Option<Box<Verdict>>,
    pub parser: RequestParser,
    /// What was read and is not served yet, and before it so many bytes that are done with.
    pub input: Vec<u8>,
    pub input_served: usize,
    pub out: Vec<u8>,
    pub written: usize,
    slots: VecDeque<Slot>,
    head: u32,
    /// So much of the oldest slot's reply has been written; it is not whole yet.
    streamed: usize,
    /// Reads whose replies have not come yet, and how long a reply of this client is of late.
    unanswered: usize,
    reply_bytes: usize,
    /// Bytes of requests that are unanswered, and of replies that came before their turn, or in part.
    held: usize,
    /// Of these, the requests.
    pub asked: usize,
    /// Of these, parts of replies to requests that were split.
    gathered: usize,
    /// It sends all it has before it reads a reply.
    pub reads_last: bool,
    /// Bytes that it had taken when this was last looked at.
    seen_read: u64,
    /// Number of the newest write that was sent, of the newest read that waits for a fill.
    last_write: u32,
    last_fill: u32,
    /// Messages that wait for the end of a reply that is being written.
    aside: Vec<u8>,
    /// Requests wait in `input` until every slot is answered.
    pub is_held: bool,
    /// Readable, but not read yet because of `is_held` or a full output.
    pub has_unread: bool,
    pub has_ended: bool,
    /// It will say no more than what is in its socket.
    pub is_last: bool,
    /// Close once the output is written.
    pub is_closing: bool,
    /// It is closed in the middle of what it sends.
    pub may_still_send: bool,
    pub is_dirty: bool,
    pub is_queued: bool,
    pub transaction: Transaction,
    pub is_watching: bool,
    /// An error inside `MULTI` that the server has not seen.
    pub is_aborted: bool,
    /// A watch could not be set, or was lost: the next EXEC must not run.
    pub is_watch_lost: bool,
    /// Commands of a transaction that came before its node was known.
    pub queued: Vec<Vec<u8>>,
    /// How many commands the transaction has, and what it selects.
    pub queued_count: usize,
    pub selects: Option<Box<Selects>>,
    /// The transaction may write keys that it does not name.
    pub writes_all: bool,
    /// A (P)SUBSCRIBE or (P)UNSUBSCRIBE is not confirmed yet.
    pub is_subscribing: bool,
    /// Something was read or written since the last look.
    pub is_active: bool,
    /// When that last was so, to the second.
    pub active_at: Nanos,
    /// Hashes of the keys written inside the transaction.
    pub written_keys: Vec<u64>,
    /// The upstream connection that belongs to this client alone, for now.
    pub pinned: Option<u32>,
    /// The upstream connection of its subscriptions.
    pub subscriber: Option<u32>,
    pub subscriptions: i64,
    /// Of these, channels and patterns, and shard channels.
    pub counts: [i64; 2],
    /// Its last reply came from a connection that will be given back when it arrives.
    pub releases_pinned: bool,
    /// The database that a SELECT on its way asks for.
    pub wanted_db: Option<u32>,
    /// It waits in a blocking command.
    pub is_blocked: bool,
    /// From when on that is in vain, should it have left. Never, where the server knows that it has.
    in_vain_from: Nanos,
    pub wants: Wants,
    pub deeds: Deeds,
    /// Upstream connections of its own, for as long as it asks for what a shared one cannot give.
    pub own: Option<Box<Own>>,
    /// `CLIENT NO-EVICT ON`: here nobody is evicted, but it is shown.
    pub is_kept: bool,
    /// Shard channels and `MONITOR`.
    pub listening: Option<Box<Listening>>,
    /// Upstream connections on which one request of this client waits.
    pub beside: Vec<u32>,
    /// Where it has written: nodes, and how many connections to each were lost before.
    pub wrote: Vec<(u32, u32)>,
    /// A connection to a node was lost after it had written there.
    pub is_write_lost: bool,
    /// What of the shard's sum is its.
    counted: Taken,
}

impl Client {
    pub fn new(stream: Stream, generation: u32, id: u64, peer: String) -> Self {
        Self {
            stream,
            generation,
            id,
            peer,
            name: Vec::new(),
            library: (Vec::new(), Vec::new()),
            protocol: Protocol::Resp2,
            db: 0,
            is_authenticated: false,
            user: SERVICE,
            is_tried: false,
            authenticating: None,
            verdict: None,
            parser: RequestParser::new(keyheat_resp::Limits::default()),
            input: Vec::new(),
            input_served: 0,
            out: Vec::new(),
            written: 0,
            slots: VecDeque::new(),
            head: 0,
            streamed: 0,
            unanswered: 0,
            reply_bytes: REPLY_GUESS_BYTES,
            held: 0,
            asked: 0,
            gathered: 0,
            reads_last: false,
            seen_read: 0,
            last_write: u32::MAX,
            last_fill: u32::MAX,
            aside: Vec::new(),
            is_held: false,
            has_unread: false,
            has_ended: false,
            is_last: false,
            is_closing: false,
            may_still_send: false,
            is_dirty: false,
            is_queued: false,
            transaction: Transaction::None,
            is_watching: false,
            is_aborted: false,
            is_watch_lost: false,
            queued: Vec::new(),
            queued_count: 0,
            selects: None,
            writes_all: false,
            is_subscribing: false,
            is_active: false,
            active_at: 0,
            written_keys: Vec::new(),
            pinned: None,
            subscriber: None,
            subscriptions: 0,
            counts: [0, 0],
            releases_pinned: false,
            wanted_db: None,
            is_blocked: false,
            in_vain_from: 0,
            wants: Wants::All,
            deeds: Deeds::default(),
            own: None,
            is_kept: false,
            listening: None,
            beside: Vec::new(),
            wrote: Vec::new(),
            is_write_lost: false,
            counted: Taken::default(),
        }
    }

    /// Its name, where it is the client at `index`.
    pub fn name_at(&self, index: usize) -> ClientId {
        ClientId {
            index: index as u32,
            generation: self.generation,
        }
    }

    /// Opens a slot for a request whose reply comes later.
    ///
    /// `cost`: bytes of the request.
    pub fn open_slot(&mut self, cost: usize) -> u32 {
        let seq = self.head.wrapping_add(self.slots.len() as u32);
        self.held += cost;
        self.asked += cost;
        self.unanswered += 1;
        self.slots.push_back(Slot {
            cost,
            is_muted: self.is_mute(),
            ..Slot::default()
        });
        seq
    }

    /// Whether the request in hand is to be answered with nothing.
    fn is_mute(&self) -> bool {
        matches!(self.wants, Wants::None | Wants::SkipThis)
    }

    /// The request in hand has been taken: what was said of its reply alone is over.
    pub fn next_request(&mut self) {
        self.wants = match self.wants {
            Wants::SkipNext => Wants::SkipThis,
            Wants::SkipThis => Wants::All,
            lasting => lasting,
        };
    }

    /// Remembers that `seq` is a write.
    pub fn note_write(&mut self, seq: u32) {
        self.last_write = seq;
        let place = seq.wrapping_sub(self.head) as usize;
        if let Some(slot) = self.slots.get_mut(place) {
            self.unanswered -= usize::from(!slot.is_write);
            slot.is_write = true;
        }
    }

    /// Remembers that `seq` waits for a fill.
    pub fn note_fill(&mut self, seq: u32) {
        self.last_fill = seq;
    }

    /// Remembers that it wrote to `node`, to which so many connections had been lost by then.
    #[inline]
    pub fn note_write_to(&mut self, node: u32, losses: u32) {
        if self.wrote.last() != Some(&(node, losses)) {
            self.note_node(node, losses);
        }
    }

    #[cold]
    fn note_node(&mut self, node: u32, losses: u32) {
        if let Some(place) = self.wrote.iter().position(|(n, _)| *n == node) {
            self.is_write_lost |= self.wrote.swap_remove(place).1 != losses;
        }
        self.wrote.push((node, losses));
    }

    fn is_waiting_for(&self, seq: u32) -> bool {
        (seq.wrapping_sub(self.head) as usize) < self.slots.len()
    }

    /// Whether a write of this client is unanswered. Its reads behind it must go the same way, or
    /// they could be answered from before it.
    pub fn has_unanswered_write(&self) -> bool {
        self.is_waiting_for(self.last_write)
    }

    /// Whether a read of this client waits for a fill. Its writes behind it must wait too, or they
    /// could run before it.
    pub fn has_waiting_fill(&self) -> bool {
        self.is_waiting_for(self.last_fill)
    }

    /// Requests that still wait for a reply.
    pub fn waiting(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that the client has yet to read; TLS may hold some 64 KiB more.
    pub fn backlog(&self) -> usize {
        self.out.len() - self.written
    }

    /// Whether everything for the client has left.
    pub fn is_written(&self) -> bool {
        self.backlog() == 0 && !self.stream.holds()
    }

    /// A part of a reply has come.
    pub fn gather(&mut self, bytes: usize) {
        self.held += bytes;
        self.gathered += bytes;
    }

    /// Parts have been made one reply.
    pub fn has_gathered(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
        self.gathered = self.gathered.saturating_sub(bytes);
    }

    /// Whether there are parts of replies for it.
    pub fn gathers(&self) -> bool {
        self.gathered > 0
    }

    /// Bytes that are held on behalf of the client.
    pub fn load(&self) -> usize {
        self.backlog() + self.held
    }

    /// Memory that is taken for the client and its requests: what was written of a buffer, and what may still
    /// be put into it, take as much as the rest.
    pub fn memory(&self) -> usize {
        let buffers = self.out.capacity() + self.input.capacity() + self.aside.capacity();
        buffers + self.parser.memory() + self.held
    }

    /// What it takes now, and what it took when this was last asked.
    pub fn recount(&mut self) -> (Taken, Taken) {
        let now = Taken {
            memory: self.memory().saturating_sub(self.asked),
            awaited: self.unanswered.saturating_mul(self.reply_bytes),
        };
        (now, std::mem::replace(&mut self.counted, now))
    }

    /// Whether no more of its requests are served for now: until servers have answered what it asked, or it has
    /// read what it was answered.
    ///
    /// `replies_max`: bytes it may have to read, what is on its way included.
    pub fn is_full(&self, replies_max: usize) -> bool {
        let each = self.reply_bytes.max(replies_max / READS_AT_ONCE);
        let expected = self.unanswered.saturating_mul(each);
        self.asked > REQUESTS_SOFT_BYTES || self.unread().saturating_add(expected) > replies_max
    }

    /// Bytes of replies that are here.
    fn unread(&self) -> usize {
        self.load().saturating_sub(self.asked)
    }

    /// Learns how long a reply was. Rises fast and falls slowly: to ask for too much at once costs memory, for
    /// too little a moment.
    fn learn_length(&mut self, length: usize) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if length > self.reply_bytes {
            self.reply_bytes = self.reply_bytes.midpoint(length);
        } else {
            self.reply_bytes -= (self.reply_bytes - length) / 8;
        }
    }

    /// Whether it has read nothing since this was last asked, though it is full and there is something to read.
    ///
    /// Many clients send all of a pipeline before they read, and would wait for ever: what they send is taken
    /// then, and served once they read. Requests of such a pipeline are less than its replies.
    pub fn has_stopped_reading(&mut self, replies_max: usize) -> bool {
        let has_read = self.has_read();
        self.seen_read = self.deeds.bytes_out;
        self.has_unread && !has_read && self.unread() > replies_max && !self.is_written()
    }

    /// Whether it has read something since it was last asked whether it has stopped.
    pub fn has_read(&self) -> bool {
        self.seen_read != self.deeds.bytes_out
    }

    /// Gives back what was left of its input, of which so much is done with.
    pub fn keep_input(&mut self, mut input: Vec<u8>, served: usize) {
        self.input_served = served;
        // Not for every few requests of a long rest, or it would be moved over and over.
        if served > input.len() / 2 {
            input.drain(..served);
            self.input_served = 0;
        }
        if input.is_empty() && input.capacity() > 16 * 1024 {
            input = Vec::new();
        }
        self.input = input;
    }

    /// Adds up what it is subscribed to.
    pub fn count_subscriptions(&mut self) {
        self.subscriptions = self.counts.iter().sum();
    }

    /// Every upstream connection that is this client's alone, taken from it.
    pub fn connections(&mut self) -> Vec<u32> {
        let mut all: Vec<u32> = [self.pinned.take(), self.subscriber.take()]
            .into_iter()
            .flatten()
            .collect();
        let own = self.own.take().map(|own| own.connections);
        let listening = self.listening.take();
        let (heard, echoes) = listening.map(|l| (l.connections, l.echoes)).unzip();
        let theirs = own.into_iter().chain(heard).chain(echoes);
        all.extend(theirs.flatten().map(|(_, index)| index));
        all.append(&mut self.beside);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether a reply given now would go straight to the output.
    pub fn is_clear(&self) -> bool {
        self.slots.is_empty()
    }

    /// Answers the newest request at once.
    pub fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.is_mute() {
            return;
        }
        if self.slots.is_empty() {
            write(&mut self.out);
        } else {
            let mut data = Vec::new();
            write(&mut data);
            self.held += data.len();
            self.slots.push_back(Slot {
                data,
                is_done: true,
                ..Slot::default()
            });
        }
    }

    /// Hands over a piece of the reply with number `seq`.
    pub fn deliver(&mut self, seq: u32, piece: &[u8], is_done: bool) {
        let place = seq.wrapping_sub(self.head) as usize;
        if place > 0 {
            if let Some(slot) = self.slots.get_mut(place) {
                slot.is_done |= is_done;
                if !slot.is_muted {
                    slot.data.extend_from_slice(piece);
                    self.held += piece.len();
                }
                let (length, is_write) = (slot.data.len(), slot.is_write);
                if is_done && !is_write {
                    self.learn_length(length);
                }
            }
            return;
        }
        let Some(front) = self.slots.front() else {
            return;
        };
        let is_write = front.is_write;
        if !front.is_muted {
            self.out.extend_from_slice(piece);
            self.streamed += piece.len();
        }
        if is_done {
            let length = std::mem::take(&mut self.streamed);
            if !is_write {
                self.learn_length(length);
            }
            self.advance();
        }
    }

    fn advance(&mut self) {
        self.forget_front();
        while let Some(front) = self.slots.front_mut() {
            self.out.extend_from_slice(&front.data);
            self.held = self.held.saturating_sub(front.data.len());
            if !front.is_done {
                self.streamed = front.data.len();
                front.data = Vec::new();
                break;
            }
            self.forget_front();
        }
        if self.streamed == 0 && !self.aside.is_empty() {
            self.out.append(&mut self.aside);
        }
        if self.slots.is_empty() && self.slots.capacity() > 1024 {
            self.slots = VecDeque::new();
        }
    }

    fn forget_front(&mut self) {
        if let Some(slot) = self.slots.pop_front() {
            self.held = self.held.saturating_sub(slot.cost);
            self.asked = self.asked.saturating_sub(slot.cost);
        }
        self.head = self.head.wrapping_add(1);
    }

    /// Hands over a message that answers no request; it goes between replies.
    pub fn push(&mut self, message: &[u8]) {
        if self.streamed > 0 {
            self.aside.extend_from_slice(message);
        } else {
            self.out.extend_from_slice(message);
        }
    }

    /// Hands over a message of its subscriptions. What the client itself is about to cause comes after the
    /// reply to its request, as from the server, though it comes on another connection.
    pub fn push_published(&mut self, message: &[u8]) {
        let message = &*self.spoken(message);
        if self.slots.is_empty() || self.is_blocked {
            return self.push(message);
        }
        self.held += message.len();
        self.slots.push_back(Slot {
            data: message.to_vec(),
            is_done: true,
            ..Slot::default()
        });
    }

    /// A message in the client's protocol: the connection that it came on may still speak the one before.
    fn spoken<'a>(&self, message: &'a [u8]) -> Cow<'a, [u8]> {
        let kind = match self.protocol {
            Protocol::Resp2 => b'*',
            Protocol::Resp3 => b'>',
        };
        match message {
            [b'*' | b'>', rest @ ..] if message[0] != kind => {
                Cow::Owned([&[kind][..], rest].concat())
            }
            _ => Cow::Borrowed(message),
        }
    }

    /// Forgets what was written, and gives large memory back.
    pub fn settle(&mut self) {
        if self.written == self.out.len() {
            if self.out.capacity() > KEEP_BYTES {
                self.out = Vec::new();
            } else {
                self.out.clear();
            }
            self.written = 0;
        } else if self.written > 256 * 1024 && self.written > self.out.len() / 2 {
            self.trim();
        }
    }

    /// Forgets the part that was written of what has not all been, and gives back the memory it took.
    fn trim(&mut self) {
        self.out.drain(..self.written);
        self.written = 0;
        if self.out.capacity() > KEEP_BYTES.max(2 * self.out.len()) {
            self.out.shrink_to_fit();
        }
    }

    /// Gives back what is held for no use, where that is most of it.
    pub fn give_back(&mut self) {
        let is_wasteful = |capacity: usize, used: usize| capacity > 4096.max(2 * used);
        if is_wasteful(self.out.capacity(), self.backlog()) {
            self.trim();
            self.out.shrink_to_fit();
        }
        if is_wasteful(self.input.capacity(), self.input.len()) {
            self.input.shrink_to_fit();
        }
        self.parser.trim();
    }

    /// Whether its socket may have more, after `n` bytes of at most `room` were read: its end too, which no event
    /// will tell of again.
    pub fn may_have_more(&mut self, n: usize, room: usize) -> bool {
        self.is_last && !self.has_ended || self.stream.may_have_more(n, room)
    }

    /// It begins to wait in a blocking command.
    pub fn block(&mut self, now: Nanos) {
        self.is_blocked = true;
        self.in_vain_from = now + BLOCKS_AFTER;
    }

    /// The server in which it waits has been told that it has left, and ends the wait.
    pub fn has_said_end(&mut self) {
        self.in_vain_from = Nanos::MAX;
    }

    /// Whether it has left, and waits for something that may never come. Not at once: what there is for a blocking
    /// command to take is its. Nor where the server knows that it has left.
    pub fn waits_in_vain(&self, now: Nanos) -> bool {
        let is_blocked = self.is_blocked && now >= self.in_vain_from;
        let is_listening = self.subscriber.is_some() || self.listening.is_some();
        self.is_last && (is_blocked || is_listening)
    }

    /// Whether its silence means nothing: it waits for something to come, or for a reply.
    pub fn may_be_silent(&self) -> bool {
        let is_listening = self.subscriptions > 0 || self.subscriber.is_some();
        self.is_blocked || is_listening || !self.is_clear()
    }

    /// Gives back the memory of a client that has been silent for a while.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.is_active) {
            return;
        }
        if self.out.is_empty() {
            self.out = Vec::new();
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
        self.parser.trim();
    }

    /// Whether reads may be answered locally: not after `WATCH`, not inside `MULTI`, and not where the
    /// server is to know of them.
    pub fn may_read_locally(&self) -> bool {
        !self.is_watching && self.transaction == Transaction::None && self.own.is_none()
    }

    /// Whether a read that comes now may be answered by another than the primary, which has every write of
    /// this client: memory, a copy, a replica.
    pub fn may_read_elsewhere(&self) -> bool {
        self.may_read_locally() && !self.has_unanswered_write()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> Client {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = Stream::Tcp(mio::net::TcpStream::from_std(stream));
        Client::new(stream, 0, 1, String::new())
    }

    #[test]
    fn replies_leave_in_the_order_of_the_requests() {
        let mut c = client();
        let a = c.open_slot(0);
        let b = c.open_slot(0);
        c.reply(|out| out.extend_from_slice(b"3"));
        let d = c.open_slot(0);
        c.deliver(b, b"2", true);
        c.deliver(d, b"4", true);
        assert_eq!(c.out, b"");
        c.deliver(a, b"1", true);
        assert_eq!(c.out, b"1234");
        assert!(c.is_clear());
    }

    #[test]
    fn a_piece_of_a_reply_is_passed_on_before_its_end() {
        let mut c = client();
        let a = c.open_slot(0);
        let b = c.open_slot(0);
        c.deliver(b, b"B1", false);
        c.deliver(a, b"A1", false);
        assert_eq!(c.out, b"A1");
        c.push(b"message");
        c.deliver(a, b"A2", true);
        assert_eq!(c.out, b"A1A2B1");
        c.deliver(b, b"B2", true);
        assert_eq!(c.out, b"A1A2B1B2message");
    }

    #[test]
    fn a_write_is_unanswered_until_its_reply_has_come() {
        let mut c = client();
        assert!(!c.has_unanswered_write());
        let a = c.open_slot(0);
        let b = c.open_slot(0);
        c.note_write(b);
        assert!(c.has_unanswered_write());
        c.deliver(a, b"1", true);
        assert!(c.has_unanswered_write());
        c.deliver(b, b"2", true);
        assert!(!c.has_unanswered_write());
        c.open_slot(0);
        assert!(!c.has_unanswered_write());
    }

    #[test]
    fn a_reply_that_is_not_wanted_takes_its_place_and_leaves_nothing() {
        let mut c = client();
        c.wants = Wants::SkipNext;
        c.next_request();
        let a = c.open_slot(0);
        c.next_request();
        let b = c.open_slot(0);
        c.wants = Wants::None;
        c.reply(|out| out.extend_from_slice(b"3"));
        let d = c.open_slot(0);
        c.deliver(d, b"4", true);
        c.deliver(b, b"2", true);
        c.deliver(a, b"1", true);
        assert_eq!(c.out, b"2");
        assert!(c.is_clear());
    }

    #[test]
    fn what_is_asked_at_once_depends_on_how_long_replies_are() {
        let at_once = |c: &mut Client| {
            while !c.is_full(REPLIES_SOFT_BYTES) {
                c.open_slot(0);
            }
            let count = c.waiting();
            while !c.is_clear() {
                c.deliver(c.head, b"", true);
            }
            count
        };
        let mut c = client();
        assert_eq!(at_once(&mut c), 17);
        for _ in 0..100 {
            at_once(&mut c);
            let a = c.open_slot(0);
            c.deliver(a, b"short", true);
        }
        // The next may be long again, but as many writes as it likes.
        assert_eq!(at_once(&mut c), READS_AT_ONCE);
        for _ in 0..1_000 {
            let a = c.open_slot(0);
            c.note_write(a);
        }
        assert!(!c.is_full(REPLIES_SOFT_BYTES));
        while !c.is_clear() {
            c.deliver(c.head, b"+OK", true);
        }
        let a = c.open_slot(0);
        c.deliver(a, &[b'x'; 1 << 19], false);
        c.deliver(a, &[b'x'; 1 << 19], true);
        c.written = c.out.len();
        assert_eq!(at_once(&mut c), 8);
    }

    #[test]
    fn a_connection_that_was_lost_after_a_write_is_remembered() {
        let mut c = client();
        c.note_write_to(1, 0);
        c.note_write_to(2, 5);
        c.note_write_to(1, 0);
        assert!(!c.is_write_lost);
        c.note_write_to(1, 1);
        assert!(c.is_write_lost);
        assert_eq!(c.wrote, [(2, 5), (1, 1)]);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut c = client();
        c.head = u32::MAX;
        let a = c.open_slot(0);
        let b = c.open_slot(0);
        c.deliver(b, b"2", true);
        c.deliver(a, b"1", true);
        assert_eq!(c.out, b"12");
    }
}
