//! Transactions and blocking commands: what needs an upstream connection of its own.
//!
//! A connection is pinned to a client from the command that needs it to the reply that ends the
//! need (EXEC, the answer of BLPOP), and then goes to a small pool. Requests of one client that go
//! over two connections would overtake each other, so a change from one to the other waits until
//! everything before it is answered.
//!
//! In a Cluster the node of a transaction is that of its first key: `MULTI` is answered here and
//! sent when that key is seen.

use keyheat_resp::command::Command;
use keyheat_resp::{encode, Protocol};

use super::classify::{Class, Local, Merge, Session};
use super::client::{ClientId, Ticket, Transaction};
use super::jobs::How;
use super::selects::Selects;
use super::serve::{writes, Flow, Request};
use super::upstream::{Owner, Pending, Role};
use super::users::SERVICE;
use super::Shard;
use crate::requests::Way;

/// Commands of a transaction that are kept before its first key.
const QUEUED_MAX: usize = 1024;

/// What EXEC answers where a command of the transaction was refused.
pub(super) const EXEC_ABORT: &[u8] =
    b"-EXECABORT Transaction discarded because of previous errors.\r\n";

impl Shard {
    /// A request of a client inside `MULTI` or with subscriptions. `None`: nothing special.
    pub(super) fn in_session(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
        class: Class,
    ) -> Option<Flow> {
        let client = self.clients.get(id.index as usize)?;
        if client.transaction == Transaction::None {
            let is_monitor = client.listening.as_ref().is_some_and(|l| l.is_monitor);
            if is_monitor && matches!(class, Class::Keyed | Class::Split(_) | Class::Blocking) {
                return Some(self.refuse(id, "ERR Replica can't interact with the keyspace"));
            }
            if client.subscriptions == 0 {
                return None;
            }
            let is_free = client.protocol == Protocol::Resp3
                || matches!(
                    class,
                    Class::Subscribe | Class::Local(Local::Ping | Local::Quit | Local::Reset)
                );
            if is_free {
                return None;
            }
            let text = format!(
                "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / \
                 RESET are allowed in this context",
                String::from_utf8_lossy(request.arg(0)).to_lowercase()
            );
            return Some(self.refuse(id, &text));
        }
        match class {
            Class::Session(Session::Multi) => {
                Some(self.nested(id, request, "ERR MULTI calls can not be nested"))
            }
            Class::Session(Session::Watch) => {
                Some(self.nested(id, request, "ERR WATCH inside MULTI is not allowed"))
            }
            Class::Session(_) | Class::Local(Local::Quit | Local::Reset) => None,
            Class::Local(Local::Ping | Local::Echo)
            | Class::Keyed
            | Class::Split(_)
            | Class::Blocking
            | Class::AnyNode
            | Class::Apart
            | Class::OneServerOnly => Some(self.queue_command(id, request, command)),
            Class::Local(Local::Cluster | Local::OfCluster) if !self.is_cluster() => {
                Some(self.queue_command(id, request, command))
            }
            // A client that tracks has its transactions on the connection that tracks.
            Class::Local(Local::Client)
                if request.argc() == 3 && request.arg(1).eq_ignore_ascii_case(b"caching") =>
            {
                Some(self.queue_command(id, request, command))
            }
            Class::Local(Local::Select) => Some(self.queue_select(id, request, command)),
            Class::AllNodes(_) | Class::Scan => {
                if self.is_cluster() {
                    return Some(self.refuse_inside(id, request, command, class));
                }
                Some(self.queue_command(id, request, command))
            }
            _ => Some(self.refuse_inside(id, request, command, class)),
        }
    }

    /// `MULTI` or `WATCH` inside a transaction. Whether it spoils the transaction depends on the server, so
    /// the server is told: at once, or with the rest where the node is not known yet.
    fn nested(&mut self, id: ClientId, request: &Request<'_>, text: &str) -> Flow {
        let is_cluster = self.is_cluster();
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if !is_cluster || client.pinned.is_some() {
            // It has no keys that would count: none is read or written.
            return self.send_queued(id, request, None);
        }
        if client.queued.len() < QUEUED_MAX {
            client.queued.push(request.frame.to_vec());
        }
        client.reply(|out| encode::error(out, text));
        self.taken.way = Way::Error;
        Flow::Next
    }

    pub(super) fn session(&mut self, id: ClientId, request: &Request<'_>, what: Session) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let is_open = client.transaction != Transaction::None;
        match what {
            Session::Exec | Session::Discard if !is_open => {
                let name = if what == Session::Exec {
                    "EXEC"
                } else {
                    "DISCARD"
                };
                self.refuse(id, &format!("ERR {name} without MULTI"))
            }
            Session::Unwatch if is_open => self.queue_command(id, request, None),
            Session::Unwatch if !client.is_watching => {
                client.reply(|out| encode::simple(out, "OK"));
                Flow::Next
            }
            // Everything before it must be answered, or it could be overtaken.
            _ if !client.is_clear() && !is_open => Flow::Wait,
            Session::Multi => match self.unless_allowed(id, "multi") {
                Some(flow) => flow,
                None => self.multi(id),
            },
            Session::Watch => self.watch(id, request),
            Session::Unwatch => {
                client.is_watching = false;
                client.is_watch_lost = false;
                self.on_pinned(id, request.frame, Pending::RELEASES)
            }
            Session::Exec => self.exec(id, request),
            Session::Discard => self.discard(id, request),
        }
    }

    /// `SELECT` inside a transaction: the client is in that database once it has run.
    fn queue_select(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
    ) -> Flow {
        if self.is_cluster() {
            return self.refuse_inside(id, request, command, Class::Local(Local::Select));
        }
        let db = std::str::from_utf8(request.arg(1))
            .ok()
            .and_then(|s| s.parse().ok());
        if let (Some(db), Some(client)) = (db, self.client(id)) {
            let selects = client.selects.get_or_insert_with(|| Selects::new().into());
            selects.note(client.queued_count, db);
        }
        self.queue_command(id, request, command)
    }

    fn multi(&mut self, id: ClientId) -> Flow {
        if let Some(client) = self.client(id) {
            client.transaction = Transaction::Pending;
            client.is_aborted = false;
            client.queued.clear();
            client.queued_count = 0;
            client.selects = None;
            client.writes_all = false;
            client.written_keys.clear();
            client.reply(|out| encode::simple(out, "OK"));
        }
        Flow::Next
    }

    fn watch(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let Some(command) = keyheat_resp::command::lookup(b"watch") else {
            return Flow::Next;
        };
        let keys = match self.keys_of(request, command) {
            Ok(keys) => keys,
            Err(text) => return self.refuse(id, text),
        };
        let Some(slot) = keys.slot else {
            let text = "CROSSSLOT Keys in request don't hash to the same slot";
            return self.refuse(id, text);
        };
        let node = match self.owner(slot) {
            Ok(node) => node,
            Err(text) => return self.refuse_upstream(id, &text),
        };
        if let Err(text) = self.pin(id, node) {
            return self.refuse_upstream(id, &text);
        }
        if let Some(client) = self.client(id) {
            client.is_watching = true;
        }
        let flow = self.on_pinned(id, request.frame, 0);
        // The reads that follow must not run before the watch does.
        if let Some(client) = self.client(id) {
            client.is_held = true;
        }
        flow
    }

    /// Sends a command of an open transaction to its node, which is chosen by the first key.
    fn queue_command(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
    ) -> Flow {
        let mut wanted = None;
        if let Some(client) = self.client(id) {
            client.queued_count += 1;
            client.writes_all |= command.is_none();
        }
        if let Some(command) = command {
            match self.keys_of(request, command) {
                Ok(keys) if keys.count > 0 => match keys.slot.map(|s| self.owner(s)) {
                    None => {
                        let text = "CROSSSLOT Keys in request don't hash to the same slot";
                        return self.refuse(id, text);
                    }
                    Some(Err(text)) => return self.refuse_upstream(id, &text),
                    Some(Ok(node)) => wanted = Some(node),
                },
                _ => {}
            }
            if writes(command) {
                self.remember_writes(id, request, command);
            }
        }
        let is_cluster = self.is_cluster();
        // The server says at once that it does not know a subcommand: it is not to be kept for later.
        let is_known = command.is_some_and(|c| c.subcommands.is_empty());
        if is_cluster && is_known && wanted.is_none() && self.pinned_node(id).is_none() {
            return self.keep_for_later(id, request.frame);
        }
        self.send_queued(id, request, wanted)
    }

    /// Sends a command of a transaction to `wanted`, or where the rest of it is.
    pub(super) fn send_queued(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        wanted: Option<u32>,
    ) -> Flow {
        let node = match wanted {
            Some(node) => node,
            None => match self.pinned_node(id).map_or_else(|| self.some_node(id), Ok) {
                Ok(node) => node,
                Err(text) => return self.refuse_upstream(id, &text),
            },
        };
        if self.pinned_node(id).is_some_and(|n| n != node) {
            let text = "CROSSSLOT keyheat: the keys of this transaction lie on several nodes";
            return self.refuse(id, text);
        }
        if let Err(text) = self.pin(id, node) {
            return self.refuse_upstream(id, &text);
        }
        let is_first = self
            .client(id)
            .is_some_and(|c| c.transaction == Transaction::Pending);
        if is_first {
            self.open_transaction(id);
        }
        self.on_pinned(id, request.frame, 0)
    }

    fn open_transaction(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else {
            return;
        };
        client.transaction = Transaction::Open;
        let queued = std::mem::take(&mut client.queued);
        let Some(index) = client.pinned else {
            return;
        };
        let up = &mut self.upstreams[index as usize];
        up.ask(&[b"MULTI"], Owner::Multi, self.now);
        for frame in queued {
            // They were answered with QUEUED; should the server refuse one, EXEC says so.
            up.send(&frame, Pending::new(Owner::Nobody, frame.len(), self.now));
        }
        self.mark_upstream(index);
    }

    /// Keeps a command without a key until the node of the transaction is known.
    fn keep_for_later(&mut self, id: ClientId, frame: &[u8]) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if client.queued.len() >= QUEUED_MAX {
            return self.refuse(id, "ERR keyheat: too many commands before the first key");
        }
        client.queued.push(frame.to_vec());
        client.reply(|out| encode::simple(out, "QUEUED"));
        Flow::Next
    }

    fn remember_writes(&mut self, id: ClientId, request: &Request<'_>, command: &'static Command) {
        let mut hashes = Vec::new();
        let _ = command.for_each_key(
            request.argc(),
            |i| request.arg(i),
            |i| hashes.push(self.hasher.hash(request.arg(i))),
        );
        if let Some(client) = self.client(id) {
            client.writes_all |= hashes.is_empty();
            client.written_keys.append(&mut hashes);
        }
    }

    fn exec(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let is_aborted = client.is_aborted || client.is_watch_lost;
        let stage = client.transaction;
        if is_aborted {
            if stage == Transaction::Pending {
                return self.drop_transaction(id, |out| out.extend_from_slice(EXEC_ABORT));
            }
            let flags = Pending::RELEASES | Pending::ABORTS;
            return self.on_pinned(id, b"*1\r\n$7\r\nDISCARD\r\n", flags);
        }
        if stage == Transaction::Pending && client.pinned.is_none() && !client.queued.is_empty() {
            // Nothing in it has a key: any node will do.
            let pinned = self.some_node(id).and_then(|node| self.pin(id, node));
            if let Err(text) = pinned {
                return self.refuse_upstream(id, &text);
            }
        } else if stage == Transaction::Pending && client.pinned.is_none() {
            client.transaction = Transaction::None;
            client.reply(|out| encode::array_header(out, 0));
            return Flow::Next;
        }
        if stage == Transaction::Pending {
            // Only watched: the server must say whether the watched keys have changed.
            self.open_transaction(id);
        }
        if let Some(client) = self.client(id) {
            let (keys, is_all) = (client.written_keys.clone(), client.writes_all);
            for hash in keys {
                self.epochs.bump(hash);
            }
            if is_all {
                self.epochs.bump_all();
            }
        }
        self.on_pinned(id, request.frame, Pending::RELEASES)
    }

    fn discard(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if client.transaction == Transaction::Pending {
            return self.drop_transaction(id, |out| encode::simple(out, "OK"));
        }
        client.written_keys.clear();
        self.on_pinned(id, request.frame, Pending::RELEASES)
    }

    /// Ends a transaction that is not to run, with an answer of our own.
    pub(super) fn drop_transaction(
        &mut self,
        id: ClientId,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        client.reply(write);
        client.transaction = Transaction::None;
        client.is_watching = false;
        client.is_aborted = false;
        client.is_watch_lost = false;
        client.queued.clear();
        client.selects = None;
        client.writes_all = false;
        client.written_keys.clear();
        let own = client.own.as_ref();
        if let Some(index) = client
            .pinned
            .filter(|i| own.is_some_and(|own| own.holds(*i)))
        {
            client.pinned = None;
            let up = &mut self.upstreams[index as usize];
            up.ask(&[b"UNWATCH"], Owner::Nobody, self.now);
            self.mark_upstream(index);
        } else if let Some(index) = client.pinned.take() {
            // With a transaction open or keys watched, closing is the surest way to forget both.
            self.unpin_and_close(index, "its transaction was dropped");
        }
        Flow::Next
    }

    pub(super) fn unpin_and_close(&mut self, index: u32, why: &str) {
        if let Some(up) = self.upstreams.get_mut(index as usize) {
            up.role = Role::Pinned(None);
            up.is_dropped = true;
        }
        self.close_upstream(index, why);
    }

    pub(super) fn blocking(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
    ) -> Flow {
        let Some(command) = command else {
            return Flow::Next;
        };
        if self.client(id).is_some_and(|c| !c.is_clear()) {
            return Flow::Wait;
        }
        let keys = match self.keys_of(request, command) {
            Ok(keys) => keys,
            Err(text) => return self.refuse(id, text),
        };
        let node = match (keys.count, keys.slot) {
            (0, _) => self.some_node(id),
            (_, None) => {
                let text = "CROSSSLOT Keys in request don't hash to the same slot";
                return self.refuse(id, text);
            }
            (_, Some(slot)) => self.owner(slot),
        };
        let node = match node {
            Ok(node) => node,
            Err(text) => return self.refuse_upstream(id, &text),
        };
        if writes(command) {
            self.remember_writes(id, request, command);
            self.void_keys(request, command, &keys);
        }
        if self.pinned_node(id).is_some_and(|pinned| pinned != node) {
            // Keys are watched on another node: the wait has a connection of its own.
            self.note_write_to(id, node);
            let frames = [request.frame.to_vec()];
            let user = self.client(id).map_or(SERVICE, |c| c.user);
            return self.start_beside(id, user, How::Merge(Merge::AllOk), &[node], &frames);
        }
        if let Err(text) = self.pin(id, node) {
            return self.refuse_upstream(id, &text);
        }
        let now = self.now;
        if let Some(client) = self.client(id) {
            client.block(now);
        }
        let flow = self.on_pinned(id, request.frame, Pending::RELEASES);
        self.end_wait(id);
        flow
    }

    /// A client that has left says so to the server in which it waits, behind its command. So what there is for it
    /// to take it gets, and nothing is taken for it later: the server ends the connection, as it would its own.
    /// Where the client still has keys watched there, or connections of its own, it is let go after a while.
    pub(super) fn end_wait(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else {
            return;
        };
        let is_apart = client.own.is_none() && !client.is_watching;
        if !client.is_last || !client.is_blocked || !is_apart {
            return;
        }
        let Some(index) = client.pinned else {
            return;
        };
        client.has_said_end();
        if let Some(up) = self.upstreams.get_mut(index as usize) {
            up.is_ending = true;
            self.mark_upstream(index);
        }
    }

    fn pinned_node(&self, id: ClientId) -> Option<u32> {
        let index = self.clients.get(id.index as usize)?.pinned?;
        self.upstreams.get(index as usize).map(|u| u.node)
    }

    fn pin(&mut self, id: ClientId, node: u32) -> Result<(), String> {
        match self.pinned_node(id) {
            Some(n) if n == node => return Ok(()),
            Some(_) => {
                return Err(
                    "CROSSSLOT keyheat: the watched keys lie on another node than this key".into(),
                )
            }
            None => {}
        }
        let Some(client) = self.client(id) else {
            return Ok(());
        };
        let (protocol, db) = (client.protocol, client.db);
        let index = if client.own.is_some() {
            self.own_connection(id, node)?
        } else {
            self.pinned(node, id, protocol, db)?
        };
        if let Some(client) = self.client(id) {
            client.pinned = Some(index);
        }
        Ok(())
    }

    /// Sends a request on the client's own connection.
    pub(super) fn on_pinned(&mut self, id: ClientId, frame: &[u8], flags: u8) -> Flow {
        let now = self.now;
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let Some(index) = client.pinned else {
            return self.refuse(id, "ERR keyheat: the connection of this session was lost");
        };
        if flags & Pending::RELEASES != 0 {
            client.releases_pinned = true;
            client.is_held = true;
        }
        let seq = client.open_slot(frame.len());
        let owner = Owner::Client(Ticket { client: id, seq });
        let mut pending = Pending::new(owner, frame.len(), now);
        pending.flags = flags;
        let up = &mut self.upstreams[index as usize];
        up.send(frame, pending);
        let node = up.node;
        // Whether it writes is not asked: WAIT may wait for too much, never for too little.
        self.note_write_to(id, node);
        self.stats.forwarded.add(1);
        self.mark_upstream(index);
        Flow::Next
    }

    /// The reply that ends a client's need for a connection of its own has come.
    pub(super) fn on_session_reply(&mut self, pending: &Pending, reply: &[u8]) {
        let Owner::Client(ticket) = pending.owner else {
            return;
        };
        let id = ticket.client;
        self.void_written(id);
        let Some(client) = self.client(id) else {
            return;
        };
        client.releases_pinned = false;
        let wanted = client.wanted_db.take();
        let selects = client.selects.take().and_then(|mut selects| {
            selects.read(reply);
            selects.selected()
        });
        let selected = wanted.filter(|_| reply == b"+OK\r\n").or(selects);
        client.db = selected.unwrap_or(client.db);
        if let (Some(db), Some(index)) = (selected, client.pinned) {
            if let Some(up) = self.upstreams.get_mut(index as usize) {
                up.db = db;
            }
        }
        let Some(client) = self.client(id) else {
            return;
        };
        let is_passing = std::mem::take(&mut client.is_blocked) || wanted.is_some();
        if is_passing && client.is_watching {
            // Only the wait is over; the watch goes on, and its connection stays the client's own.
            return self.mark_client(id);
        }
        client.transaction = Transaction::None;
        client.is_watching = false;
        client.is_aborted = false;
        client.is_watch_lost = false;
        let pinned = client.pinned.take();
        let own = client.own.as_ref();
        let is_own = pinned.is_some_and(|i| own.is_some_and(|own| own.holds(i)));
        if let Some(index) = pinned.filter(|_| !is_own) {
            if self.upstreams.contains(index as usize) {
                self.release(index);
            }
        }
        self.mark_client(id);
    }

    /// The upstream connection of a session is gone, and with it what the server knew of it. The
    /// client is cut, as it would be by the server itself; it must not go on as if `MULTI` or its
    /// subscriptions still stood.
    pub(super) fn cut_session(&mut self, id: ClientId, lost: u32) {
        let Some(client) = self.client(id) else {
            return;
        };
        client.is_closing = true;
        if client.is_subscribing {
            let mut error = Vec::new();
            let text = "ERR keyheat: the upstream was lost before it confirmed the subscription";
            encode::error(&mut error, text);
            client.push(&error);
        }
        if let Some(listening) = client
            .listening
            .as_ref()
            .filter(|l| l.monitors_starting > 0)
        {
            let (seq, mut error) = (listening.monitor_seq, Vec::new());
            encode::error(
                &mut error,
                "ERR keyheat: a primary was lost before it let MONITOR in",
            );
            client.deliver(seq, &error, true);
        }
        let others = client.connections();
        self.void_written(id);
        // Whoever waits on the other connections must be answered too, or the client never ends.
        for index in others.into_iter().filter(|i| *i != lost) {
            self.unpin_and_close(index, "its client is being cut");
        }
        self.mark_client(id);
    }

    /// Voids what the transaction of a client has written, or may have.
    pub(super) fn void_written(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else {
            return;
        };
        let keys = std::mem::take(&mut client.written_keys);
        let is_all = std::mem::take(&mut client.writes_all);
        for hash in keys {
            self.on_written(hash);
        }
        if is_all {
            self.on_written_all();
        }
    }

    /// A redirect met a session: its transaction must not run, nor must one that relies on a watch.
    pub(super) fn spoil_session(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else {
            return;
        };
        client.is_aborted |= client.transaction != Transaction::None;
        client.is_watch_lost |= client.is_watching;
    }

    /// Forgets transaction and subscriptions (RESET).
    pub(super) fn end_session(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else {
            return;
        };
        client.is_watching = false;
        client.is_aborted = false;
        client.is_watch_lost = false;
        client.queued.clear();
        client.selects = None;
        client.writes_all = false;
        client.counts = [0, 0];
        client.subscriptions = 0;
        client.is_subscribing = false;
        client.written_keys.clear();
        for index in client.connections() {
            self.unpin_and_close(index, "its client was reset");
        }
    }

    /// Asks the server, on a connection of its own, whether there is such a database: only then
    /// is the client in it.
    pub(super) fn try_select(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        db: Option<u32>,
    ) -> Flow {
        let pinned = self.some_node(id).and_then(|node| self.pin(id, node));
        if let Err(text) = pinned {
            return self.refuse_upstream(id, &text);
        }
        if let Some(client) = self.client(id) {
            client.wanted_db = db;
        }
        self.on_pinned(id, request.frame, Pending::RELEASES)
    }
}
