//! Replies in: whose they are, and what follows from them.

use std::io::{ErrorKind, Read};

use keyheat_resp::reply::{parse, Value};
use keyheat_resp::{encode, tracking, Limits};
use mio::event::Event;

use super::client::{ClientId, Ticket, Transaction};
use super::upstream::{Owner, Pending, Role, Stage};
use super::users::SERVICE;
use super::Shard;
use keyheat_net::clock;

/// How many replies before its own the place of a key's count is fetched.
const COUNT_AHEAD: usize = 5;
/// Reads of one upstream in one turn of the loop.
const READS_MAX: u32 = 8;

impl Shard {
    pub(super) fn on_upstream(&mut self, index: u32, event: &Event) {
        let Some(up) = self.upstreams.get_mut(index as usize) else {
            return;
        };
        if up.stage == Stage::Connecting {
            match up.stream.is_there() {
                Ok(true) => self.on_connected(index),
                Ok(false) => return,
                Err(e) => return self.close_upstream(index, &e.to_string()),
            }
        } else if event.is_writable() && (up.sent < up.sendable() || up.stream.holds()) {
            self.mark_upstream(index);
        }
        let has_ended = event.is_read_closed() || event.is_error();
        if event.is_readable() || has_ended {
            self.read_upstream(index, has_ended);
        }
    }

    /// Reads until the socket has no more, or long enough: one upstream must not keep the others
    /// waiting. `to_the_end`: the other side has closed, which no later event will say again.
    pub(super) fn read_upstream(&mut self, index: u32, to_the_end: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let generation = self.upstreams.get(index as usize).map(|u| u.generation);
        for turn in 0.. {
            let Some(up) = self.upstreams.get_mut(index as usize) else {
                break;
            };
            if Some(up.generation) != generation {
                break;
            }
            if turn == READS_MAX {
                self.unread_upstreams
                    .push((index, up.generation, to_the_end));
                break;
            }
            match up.stream.read(&mut scratch) {
                Ok(0) => {
                    self.close_upstream(index, "it closed the connection");
                    break;
                }
                Ok(n) => {
                    self.now = clock::now();
                    let has_more = up.stream.may_have_more(n, scratch.len());
                    let waited = match up.stage {
                        Stage::Ready => up.pending.len(),
                        _ => 0,
                    };
                    let is_ok = self.take_replies(index, &scratch[..n]);
                    self.note_read(index, waited);
                    if !is_ok || (!has_more && !to_the_end) {
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.close_upstream(index, &e.to_string());
                    break;
                }
            }
        }
        self.scratch = scratch;
        if let Some(up) = self.upstreams.get_mut(index as usize) {
            up.settle();
        }
    }

    /// Returns false where the connection is gone.
    fn take_replies(&mut self, index: u32, fresh: &[u8]) -> bool {
        let up = &mut self.upstreams[index as usize];
        let generation = up.generation;
        let mut joined = std::mem::take(&mut up.input);
        let mut buf = fresh;
        let was_in_line = !joined.is_empty();
        if was_in_line {
            joined.extend_from_slice(fresh);
            buf = &joined;
        }
        while !buf.is_empty() {
            let Some(up) = self
                .upstreams
                .get_mut(index as usize)
                .filter(|u| u.generation == generation)
            else {
                return false;
            };
            let scan = match up.scanner.scan(buf) {
                Ok(scan) => scan,
                Err(e) => {
                    self.close_upstream(index, &format!("it broke the protocol: {}", e.message()));
                    return false;
                }
            };
            if scan.consumed == 0 && !scan.complete {
                break;
            }
            let (piece, rest) = buf.split_at(scan.consumed);
            buf = rest;
            self.take_piece(index, piece, scan.complete);
        }
        // A line may be long: what was gathered of it is not copied for every piece.
        let rest = if was_in_line && buf.len() == joined.len() {
            joined
        } else {
            buf.to_vec()
        };
        if let Some(up) = self.upstreams.get_mut(index as usize) {
            if up.generation == generation {
                up.input = rest;
                return true;
            }
        }
        false
    }

    fn take_piece(&mut self, index: u32, piece: &[u8], is_complete: bool) {
        let up = &mut self.upstreams[index as usize];
        if is_complete && up.partial.is_empty() && up.streamed == 0 {
            return self.take_frame(index, piece);
        }
        let is_start = up.partial.is_empty() && up.streamed == 0;
        let is_push = if is_start {
            piece[0] == b'>'
        } else {
            up.partial.first() == Some(&b'>')
        };
        let front = up.pending.front().copied();
        if let (Some(Owner::Client(ticket)), false, true) = (
            front.map(|p| p.owner),
            is_push,
            matches!(up.role, Role::Shared | Role::Reader | Role::Pinned(_)),
        ) {
            up.streamed += piece.len() as u64;
            let total = up.streamed;
            let releases = front.is_some_and(|p| p.has(Pending::RELEASES));
            if is_complete {
                up.streamed = 0;
            }
            if releases {
                self.follow_selects(ticket.client, piece);
            }
            if is_complete {
                self.finish_streamed(index, total);
            }
            return self.pass_on(ticket.client, ticket.seq, piece, is_complete);
        }
        up.partial.extend_from_slice(piece);
        if is_complete {
            let frame = std::mem::take(&mut up.partial);
            self.take_frame(index, &frame);
        }
    }

    fn follow_selects(&mut self, id: ClientId, piece: &[u8]) {
        if let Some(selects) = self.client(id).and_then(|c| c.selects.as_mut()) {
            selects.read(piece);
        }
    }

    fn finish_streamed(&mut self, index: u32, total: u64) {
        let up = &mut self.upstreams[index as usize];
        let node = up.primary;
        let Some((pending, range)) = up.pop() else {
            return;
        };
        let request = up.out.get(range).unwrap_or_default().to_vec();
        self.settle_access(&pending, node, total, &request);
        if pending.has(Pending::RELEASES) {
            self.on_session_reply(&pending, b"");
        }
    }

    pub(super) fn pass_on(&mut self, id: ClientId, seq: u32, piece: &[u8], is_complete: bool) {
        if is_complete && !self.held.is_empty() && self.keep_back(Ticket { client: id, seq }, piece)
        {
            return;
        }
        let (budget, output_max) = (self.budget, self.output_max);
        self.swollen += piece.len();
        if let Some(client) = self.client(id) {
            client.deliver(seq, piece, is_complete);
            if client.backlog() > output_max {
                return self.cut_for_output(id);
            }
            if client.load() > budget {
                return self.cut_for_memory(id);
            }
            self.mark_client(id);
        }
    }

    /// One whole reply.
    fn take_frame(&mut self, index: u32, frame: &[u8]) {
        let up = &mut self.upstreams[index as usize];
        if let Role::Subscriber(id) = up.role {
            // A message may come before the answer to a HELLO on the same connection.
            let is_answer = matches!(up.pending.front().map(|p| p.owner), Some(Owner::Setup(_)));
            if !is_answer || (frame[0] == b'>' && up.stage == Stage::Ready) {
                return self.on_message_for(id, index, frame);
            }
        }
        if frame[0] == b'>' {
            match up.role {
                Role::Tracking => self.on_push(index, frame),
                // What the server announces to this client alone.
                Role::Pinned(Some(id)) => self.push_to(id, frame),
                _ => {}
            }
            return;
        }
        let (node, role, primary) = (up.node, up.role, up.primary);
        let Some((pending, range)) = up.pop() else {
            return self.close_upstream(index, "it answered what was not asked");
        };
        let frame = if pending.has(Pending::ABORTS) {
            super::session::EXEC_ABORT
        } else {
            frame
        };
        // The common case pays for no copy: the request is looked at only where that is needed.
        let is_error = frame[0] == b'-';
        if role == Role::Reader && self.is_unsure(&pending, frame) {
            let request = self.upstreams[index as usize].out.get(range.clone());
            let request = request.unwrap_or_default().to_vec();
            if self.read_from_primary(&pending, &request, true) {
                return;
            }
        }
        if let (Owner::Client(ticket), false) = (pending.owner, is_error) {
            self.settle_in_place(index, &pending, range, frame.len() as u64);
            if role == Role::Reader {
                self.note_latency(node, pending.sent_at);
            }
            self.pass_on(ticket.client, ticket.seq, frame, true);
            if pending.flags & (Pending::RELEASES | Pending::OWN) != 0 {
                self.after_reply(&pending, frame);
            }
            return;
        }
        if let Owner::Auth(id) = pending.owner {
            return self.on_authenticated(id, index, frame);
        }
        if let Owner::Right { .. } = pending.owner {
            return self.on_right(index, &pending, frame);
        }
        if let Owner::Setup(step) = pending.owner {
            return self.on_setup(index, step, frame);
        }
        if let Owner::Beat { is_role, is_last } = pending.owner {
            return self.on_beat(index, &pending, is_role, is_last, frame);
        }
        if pending.owner == Owner::Replication {
            return self.on_replication(node, pending.sent_at, frame);
        }
        let Some(up) = self.upstreams.get(index as usize) else {
            return;
        };
        let request = up.out.get(range).unwrap_or_default().to_vec();
        if is_error {
            self.note_failure(node, frame);
            if role == Role::Reader {
                let is_moved = frame.starts_with(b"-MOVED");
                if is_moved {
                    self.want_look();
                }
                if super::replicas::is_unfit(frame)
                    && self.read_from_primary(&pending, &request, false)
                {
                    return;
                }
            } else if self.is_bound(role) {
                self.learn(&pending, node, frame);
            } else if self.follow(&pending, node, &request, frame) {
                return;
            }
        }
        if is_error && is_about_the_node(frame) {
            self.want_look();
        }
        self.settle_access(&pending, primary, frame.len() as u64, &request);
        self.give(&pending, frame);
        if pending.owner == Owner::Multi && is_error {
            // What follows would run at once instead of being queued. What is on its way has.
            let user = self.upstreams.get(index as usize).map(|up| up.user);
            self.forget_multi(user.unwrap_or(SERVICE));
            if let Some(up) = self.upstreams.get_mut(index as usize) {
                let said = String::from_utf8_lossy(&frame[1..]);
                up.refusal = Some(format!(
                    "{} (MULTI; what followed may have run)",
                    said.trim_end()
                ));
            }
            return self.close_upstream(index, "it refused MULTI");
        }
        if matches!(pending.owner, Owner::Part { .. }) {
            let is_over = self
                .upstreams
                .get(index as usize)
                .is_some_and(|u| u.pending.is_empty());
            match role {
                Role::Pinned(None) => return self.close_upstream(index, "no longer needed"),
                Role::Pinned(Some(id)) if is_over => self.end_beside(id, index),
                _ => {}
            }
        }
        self.after_reply(&pending, frame);
    }

    /// What follows from a reply for the session of its client.
    fn after_reply(&mut self, pending: &Pending, frame: &[u8]) {
        if pending.has(Pending::RELEASES) {
            self.on_session_reply(pending, frame);
        }
        if let (Owner::Client(ticket), true) = (pending.owner, pending.has(Pending::OWN)) {
            self.on_own_reply(ticket.client, frame);
        }
    }

    /// Whether requests on such a connection stay on it: a transaction, a watch, a wait.
    fn is_bound(&mut self, role: Role) -> bool {
        match role {
            Role::Shared => false,
            Role::Pinned(Some(id)) => self.client(id).is_none_or(|c| {
                c.own.is_none()
                    || c.is_watching
                    || c.transaction != Transaction::None
                    || c.is_blocked
            }),
            _ => true,
        }
    }

    /// Passes on what answers no request.
    fn push_to(&mut self, id: ClientId, frame: &[u8]) {
        let budget = self.budget;
        let Some(client) = self.client(id) else {
            return;
        };
        client.push(frame);
        if client.load() > budget {
            return self.cut_for_memory(id);
        }
        self.mark_client(id);
    }

    /// Counts an access and voids what it wrote, without copying the request.
    fn settle_in_place(
        &mut self,
        index: u32,
        pending: &Pending,
        range: std::ops::Range<usize>,
        bytes: u64,
    ) {
        const PLAIN: u8 = Pending::HAS_KEY | Pending::COUNT;
        if pending.flags == 0 {
            return;
        }
        let up = &mut self.upstreams[index as usize];
        if let Some(soon) = up.pending.get(COUNT_AHEAD) {
            self.window.prefetch(soon.key_hash);
        }
        let node = up.primary;
        let out = std::mem::take(&mut up.out);
        let request = out.get(range).unwrap_or_default();
        if pending.flags == PLAIN {
            self.record(pending, node, bytes + pending.len as u64, request);
        } else {
            self.settle_access(pending, node, bytes, request);
        }
        if let Some(up) = self.upstreams.get_mut(index as usize) {
            up.out = out;
        }
    }

    /// What follows from the end of a request, well or badly: it is counted, and what it wrote is
    /// voided before its reply is passed on.
    pub(super) fn settle_access(
        &mut self,
        pending: &Pending,
        node: u32,
        bytes: u64,
        request: &[u8],
    ) {
        if !self.hot.copied.is_empty() {
            self.hold_answer(pending, request);
        }
        if pending.has(Pending::WRITES_ALL) {
            self.on_written_all();
        }
        if !pending.has(Pending::HAS_KEY) {
            return;
        }
        if pending.has(Pending::WRITE) {
            if pending.has(Pending::MANY_KEYS) {
                for key in super::count::all_keys(&mut self.rescan, request) {
                    self.on_written(self.hasher.hash(&key));
                }
            } else {
                self.on_written(pending.key_hash);
            }
        }
        if pending.has(Pending::COUNT) {
            self.record(pending, node, bytes + pending.len as u64, request);
        }
    }

    /// A write of the key is answered, or its outcome unknown: no read after it may show what was before.
    pub(super) fn on_written(&self, key_hash: u64) {
        self.epochs.bump(key_hash);
        if self.asks_replicas {
            self.own_writes[self.index].note(key_hash, self.now);
        }
    }

    /// The same for a write whose keys are not known.
    pub(super) fn on_written_all(&self) {
        self.epochs.bump_all();
        if self.asks_replicas {
            self.own_writes[self.index].note_all(self.now);
        }
    }

    /// Hands a whole reply to its owner.
    pub(super) fn give(&mut self, pending: &Pending, frame: &[u8]) {
        match pending.owner {
            Owner::Client(ticket) => {
                let softened = soften(frame);
                self.pass_on(
                    ticket.client,
                    ticket.seq,
                    softened.as_deref().unwrap_or(frame),
                    true,
                );
            }
            Owner::Part { job, part } => self.on_part(job, part, frame),
            Owner::Fill(fill) => self.on_fill_value(fill, frame),
            Owner::FillTtl(fill) => self.on_fill_ttl(fill, pending, frame),
            Owner::FillFields(fill) => self.on_fill_fields(fill, frame),
            Owner::Register(fill) => self.on_registered(fill, frame),
            Owner::Copy(read) => self.on_copy(read, frame),
            Owner::Void { voiding, key } => self.on_void(voiding, key, frame),
            Owner::Unblock(number) => self.on_unblocked(number, frame),
            Owner::Permit(identity) => self.on_permit(identity, pending.sent_at, frame),
            // The connection was lost before the server could say.
            Owner::Auth(id) => self.on_auth_lost(id, frame),
            Owner::Right { user, place } => self.on_right_lost(user, place, frame),
            Owner::Beat { .. }
            | Owner::Setup(_)
            | Owner::Multi
            | Owner::Replication
            | Owner::Nobody => {}
        }
    }

    fn on_setup(&mut self, index: u32, step: super::upstream::Step, frame: &[u8]) {
        use super::upstream::Step;
        let up = &mut self.upstreams[index as usize];
        let is_error = frame[0] == b'-';
        let node = up.node;
        let is_tracking = up.role == Role::Tracking;
        if let (Step::Id, Ok(Some((Value::Int(number), _)))) =
            (step, parse(frame, &Limits::default()))
        {
            up.server_id = number;
        }
        if step == Step::Before {
            // The last of them is the SELECT.
            up.is_db_set = !is_error;
        }
        if step == Step::Probe && frame.starts_with(b"-BUSY ") {
            return self.on_busy(node, index);
        }
        let is_settled = step == Step::Select && up.is_db_set;
        if is_error
            && !is_settled
            && !matches!(step, Step::Name | Step::Id | Step::Before | Step::Probe)
        {
            let error = frame.get(1..).unwrap_or_default();
            let said = String::from_utf8_lossy(error).trim_end().to_owned();
            if up.user != SERVICE {
                // Not the node's fault: its clients hear what the server said of their user.
                up.refusal = Some(said.clone());
            }
            if is_tracking && matches!(step, Step::Tracking | Step::Role | Step::Hello) {
                self.on_refused(node, error);
            }
            return self.close_upstream(index, &format!("{step:?} was refused: {said}"));
        }
        if step == Step::Role && !is_primary(frame) {
            self.want_look();
            return self.close_upstream(index, "it is not a primary");
        }
        let is_done = !up
            .pending
            .front()
            .is_some_and(|p| matches!(p.owner, Owner::Setup(_)));
        if is_done {
            self.on_ready(index);
        }
    }
}

/// Whether an error says that the node is no longer what the topology has it for.
fn is_about_the_node(error: &[u8]) -> bool {
    [
        &b"-READONLY"[..],
        b"-CLUSTERDOWN",
        b"-MASTERDOWN",
        b"-LOADING",
    ]
    .iter()
    .any(|start| error.starts_with(start))
}

/// Whether a reply to `ROLE` is a primary's.
pub(super) fn is_primary(frame: &[u8]) -> bool {
    let role = parse(frame, &Limits::default());
    matches!(role, Ok(Some((role, _))) if tracking::is_primary(&role))
}

/// A redirect that cannot be followed (inside a transaction) must not reach a client that
/// believes it talks to one server.
fn soften(frame: &[u8]) -> Option<Vec<u8>> {
    if frame.starts_with(b"-MOVED ") || frame.starts_with(b"-ASK ") {
        let mut error = Vec::new();
        encode::error(
            &mut error,
            "TRYAGAIN keyheat: the slot of this key is moving to another node; try again",
        );
        return Some(error);
    }
    None
}
