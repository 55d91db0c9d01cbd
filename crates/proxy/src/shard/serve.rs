//! Deciding where each request goes.

use keyheat_resp::command::{self, Access, Command};
use keyheat_resp::request::RequestParser;
use keyheat_resp::{encode, slot};

use super::classify::{Class, Local, Merge, Session};
use super::client::{ClientId, Ticket, Transaction};
use super::upstream::{Owner, Pending};
use super::users::NOBODY;
use super::Shard;
use crate::requests::Way;
use crate::topology::Topology;
use keyheat_core::Nanos;
use keyheat_net::clock::SEC;

/// A key that was set as locks are is taken for one so long.
const LOCK_FOR: Nanos = 3600 * SEC;
/// How a server begins to refuse EXEC, before it says why.
const EXEC_REFUSED: &str = "EXECABORT Transaction discarded because of:";

/// Servers before 7.0 close a connection on which a longer request comes, and others share it.
const WORDS_OLD: usize = 1024 * 1024;
const TOO_MANY_WORDS: &str =
    "ERR keyheat: a request of more than 1048576 words, which servers before 7.0 do not take";

/// One whole request.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    /// As RESP, ready to be sent on.
    pub frame: &'a [u8],
    parser: &'a RequestParser,
}

impl<'a> Request<'a> {
    pub fn new(frame: &'a [u8], parser: &'a RequestParser) -> Self {
        Self { frame, parser }
    }

    pub fn argc(&self) -> usize {
        self.parser.argc()
    }

    pub fn arg(&self, i: usize) -> &'a [u8] {
        self.parser.arg(self.frame, i)
    }
}

/// What becomes of the request that was just looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// It was taken.
    Next,
    /// Everything before it must be answered first; it is looked at again then.
    Wait,
}

/// What is known about a request's keys.
pub(super) struct Keys {
    /// Hash of the first key.
    pub hash: u64,
    /// Place of the first key among the arguments; 0 if there is none.
    pub first: usize,
    pub count: usize,
    /// The slot of the keys; `None` where they lie in several.
    pub slot: Option<u16>,
}

impl Shard {
    /// Answers a request with an error.
    pub(super) fn refuse(&mut self, id: ClientId, message: &str) -> Flow {
        self.taken.way = Way::Error;
        if let Some(client) = self.client(id) {
            client.is_aborted |= client.transaction != Transaction::None;
            client.reply(|out| encode::error(out, message));
        }
        Flow::Next
    }

    pub(super) fn dispatch(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let name = request.arg(0);
        let command = command::lookup(name);
        let class = match command {
            Some(c) => self.classes.get(c, request.arg(1)),
            None if is_http(name) => Class::Cut,
            None => Class::AnyNode,
        };
        self.taken = class.taken(command.map(|c| c.sub(request.arg(1)).unwrap_or(c)));
        let Some(client) = self.clients.get_mut(id.index as usize) else {
            return Flow::Next;
        };
        client.deeds.requests += 1;
        if !client.is_authenticated
            && !matches!(
                class,
                Class::Local(Local::Auth | Local::Hello | Local::Quit | Local::Reset)
            )
        {
            if client.user == NOBODY && !client.is_tried {
                return self.authenticate(id, &[], None);
            }
            let text = "NOAUTH Authentication required.";
            return match command {
                Some(c) if c.name == "exec" => self.refuse(id, &format!("{EXEC_REFUSED} {text}")),
                _ => self.refuse(id, text),
            };
        }
        if request.argc() > WORDS_OLD && is_old(self.topology.as_deref()) {
            return self.refuse(id, TOO_MANY_WORDS);
        }
        if let Some(c) = command {
            let sub = c.sub(request.arg(1)).unwrap_or(c);
            if !c.arity_ok(request.argc()) || !sub.arity_ok(request.argc()) {
                let name = if c.arity_ok(request.argc()) {
                    sub.name
                } else {
                    c.name
                };
                if let Some(flow) = self.ask_about_arity(id, request, sub, class) {
                    return flow;
                }
                if class == Class::Session(Session::Exec) {
                    return self.exec_with_arguments(id, request);
                }
                let text = format!("ERR wrong number of arguments for '{name}' command");
                return self.refuse(id, &text);
            }
        }
        // From here on a subcommand stands for its command: it is what has keys and writes.
        let command = command.map(|c| c.sub(request.arg(1)).unwrap_or(c));
        client.deeds.last = command;
        if client.has_waiting_fill() && command.is_none_or(writes) {
            return Flow::Wait;
        }
        let is_plain = client.transaction == Transaction::None
            && client.subscriptions == 0
            && client.listening.is_none();
        if !is_plain {
            if let Some(flow) = self.in_session(id, request, command, class) {
                return flow;
            }
        }
        let class = if self.notice.is_paused(self.now) {
            self.class_while_paused(class, command)
        } else {
            class
        };
        match class {
            Class::Keyed | Class::Split(_) => self.keyed(id, request, command, class),
            Class::AnyNode => self.any_node(id, request, command),
            Class::OneServerOnly => self.one_server(id, request, command),
            Class::AllNodes(_) | Class::Beside(_) => self.all_nodes(id, request, command, class),
            Class::Scan => self.scan(id, request),
            Class::Local(local) => self.local(id, request, command, local),
            Class::Session(session) => self.session(id, request, session),
            Class::Blocking => self.blocking(id, request, command),
            Class::Subscribe => self.subscribe(id, request),
            Class::Monitor => self.monitor(id, request),
            Class::Wait => self.wait_for_copies(id, request, command),
            Class::Apart => self.apart(id, request, command),
            Class::Refused(why) => {
                self.stats.refused.add(1);
                let name = String::from_utf8_lossy(name).to_lowercase();
                self.refuse(id, &format!("ERR keyheat: '{name}' {why}"))
            }
            Class::Cut => {
                self.stats.protocol_errors.add(1);
                if let Some(client) = self.client(id) {
                    client.is_closing = true;
                }
                self.mark_client(id);
                Flow::Next
            }
        }
    }

    /// Lets the server say what is wrong with a command's arguments: it may not know the command, or know it
    /// otherwise. `None` where it cannot be asked.
    fn ask_about_arity(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: &'static Command,
        class: Class,
    ) -> Option<Flow> {
        let is_passed_on = matches!(
            class,
            Class::Keyed
                | Class::Split(_)
                | Class::AnyNode
                | Class::OneServerOnly
                | Class::Blocking
        );
        let is_cluster = self.is_cluster();
        let client = self.client(id).filter(|_| is_passed_on)?;
        if client.has_waiting_fill() || client.subscriptions > 0 || client.listening.is_some() {
            return None;
        }
        match client.transaction {
            Transaction::None => Some(self.any_node(id, request, Some(command))),
            // It spoils the transaction at the server too.
            _ if !is_cluster => self.in_session(id, request, Some(command), class),
            _ => Some(self.send_queued(id, request, None)),
        }
    }

    /// Finds the keys of a request.
    pub(super) fn keys_of(
        &self,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Result<Keys, &'static str> {
        let is_cluster = self.is_cluster();
        let mut keys = Keys {
            hash: 0,
            first: 0,
            count: 0,
            slot: None,
        };
        let mut is_apart = false;
        let found = command.for_each_key_access(
            request.argc(),
            |i| request.arg(i),
            |i, access| {
                if is_cluster {
                    let slot = slot::slot(request.arg(i));
                    is_apart |= keys.slot.is_some_and(|s| s != slot);
                    keys.slot = Some(slot);
                }
                if access == Access::NotKey {
                    return; // a shard channel: it has a slot, and is no key
                }
                if keys.count == 0 {
                    keys.first = i;
                    keys.hash = self.hasher.hash(request.arg(i));
                }
                keys.count += 1;
            },
        );
        if found.is_err() {
            // The server has the better words for what is wrong with the arguments.
            return Ok(Keys {
                hash: 0,
                first: 0,
                count: 0,
                slot: None,
            });
        }
        if is_apart {
            keys.slot = None;
        } else if !is_cluster {
            keys.slot = Some(0);
        }
        Ok(keys)
    }

    fn keyed(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
        class: Class,
    ) -> Flow {
        let Some(command) = command else {
            return self.any_node(id, request, None);
        };
        let keys = match self.keys_of(request, command) {
            Ok(keys) => keys,
            Err(text) => return self.refuse(id, text),
        };
        if keys.count == 0 {
            return match keys.slot.map(|slot| self.owner(slot)) {
                Some(Ok(node)) if !writes(command) => self.send_for(id, request.frame, node, 0, 0),
                _ => self.any_node(id, request, Some(command)),
            };
        }
        if self.has_limits && keys.count > 1 && !writes(command) {
            if let Some(flow) = self.limit_read_of_many(id, request, command) {
                return flow;
            }
        }
        let Some(slot) = keys.slot else {
            return match class {
                Class::Split(merge) => self.split(id, request, command, merge),
                _ => self.refuse(id, "CROSSSLOT Keys in request don't hash to the same slot"),
            };
        };
        let node = match self.owner(slot) {
            Ok(node) => node,
            Err(text) => return self.refuse_upstream(id, &text),
        };
        let is_write = writes(command);
        if keys.count == 1 && !is_write && self.hot.caches(keys.hash) {
            if let Some(flow) = self.read_locally(id, request, command, &keys, node) {
                return flow;
            }
        }
        let is_shared = keys.count == 1
            && !is_write
            && self.hot.coalesces(keys.hash)
            && self.may_share(id, request, command, &keys, node);
        if is_shared && self.join(id, request.frame) {
            return Flow::Next;
        }
        if self.has_limits && !is_write && keys.count == 1 {
            if let Some(flow) = self.limit_read(id, request, &keys, node) {
                return flow;
            }
        }
        if !is_write && self.has_copies(keys.hash) {
            if let Some(flow) = self.read_from_copy(id, request, command, &keys, node) {
                return flow;
            }
        }
        if !is_write && self.may_ask_replica(keys.hash) {
            if let Some(flow) = self.read_from_replica(id, request, command, &keys, node) {
                return flow;
            }
        }
        if is_shared {
            if let Some(flow) = self.lead_shared(id, request, &keys, node) {
                return flow;
            }
        }
        let mut flags = Pending::HAS_KEY | Pending::COUNT;
        if keys.count > 1 {
            flags |= Pending::MANY_KEYS;
        }
        if is_write {
            flags |= Pending::WRITE;
            self.void_keys(request, command, &keys);
            self.know_lock(request, command, &keys);
        }
        self.send_for(id, request.frame, node, keys.hash, flags)
    }

    /// A key that is set only if it is not there (`SET … NX`, `SETNX`) is taken for a lock.
    fn know_lock(&mut self, request: &Request<'_>, command: &'static Command, keys: &Keys) {
        let is_lock = match command.name {
            "setnx" => true,
            "set" => (3..request.argc()).any(|i| request.arg(i).eq_ignore_ascii_case(b"nx")),
            _ => false,
        };
        if is_lock && self.settings.nx_is_lock {
            // What is cached of it is void by this write; nothing is stored from now on.
            self.locks.insert(keys.hash, self.now + LOCK_FOR);
        }
    }

    /// Voids what is cached of the keys of a write, in all shards.
    pub(super) fn void_keys(
        &mut self,
        request: &Request<'_>,
        command: &'static Command,
        keys: &Keys,
    ) {
        if keys.count <= 1 {
            self.epochs.bump(keys.hash);
            return;
        }
        let (hasher, epochs) = (&self.hasher, &self.epochs);
        let _ = command.for_each_key(
            request.argc(),
            |i| request.arg(i),
            |i| epochs.bump(hasher.hash(request.arg(i))),
        );
    }

    /// Sends a request of a client on the shared connection to `node`.
    pub(super) fn send_for(
        &mut self,
        id: ClientId,
        frame: &[u8],
        node: u32,
        key_hash: u64,
        flags: u8,
    ) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let (protocol, db) = (client.protocol, client.db);
        let is_shared = client.own.is_none();
        let opened = if is_shared {
            let user = client.user;
            self.shared_as(node, protocol, db, user)
        } else {
            self.own_connection(id, node)
        };
        let index = match opened {
            Ok(index) => index,
            Err(text) => return self.refuse_or_stale(id, frame, flags, &text),
        };
        if is_shared && self.is_at_gate(node, index) {
            match self.admit(node) {
                Ok(()) => {}
                Err(_) if self.must_wait(id, node) => return Flow::Wait,
                Err(text) => return self.refuse_or_stale(id, frame, flags, &text),
            }
        }
        let now = self.now;
        let losses = self.nodes[node as usize].losses;
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let seq = client.open_slot(frame.len());
        if flags & (Pending::WRITE | Pending::WRITES_ALL) != 0 {
            client.note_write(seq);
            client.note_write_to(node, losses);
        }
        let mut pending = Pending::new(Owner::Client(Ticket { client: id, seq }), frame.len(), now);
        pending.key_hash = key_hash;
        pending.flags = flags;
        self.upstreams[index as usize].send(frame, pending);
        self.stats.forwarded.add(1);
        self.mark_upstream(index);
        Flow::Next
    }

    pub(super) fn refuse_upstream(&mut self, id: ClientId, text: &str) -> Flow {
        self.stats.upstream_errors.add(1);
        self.refuse(id, text)
    }

    /// A request without a key, or of an unknown command: some node answers, and what it says
    /// (an error, `MOVED`) is dealt with as usual.
    pub(super) fn any_node(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
    ) -> Flow {
        let node = match self.some_node(id) {
            Ok(node) => node,
            Err(text) => return self.refuse_upstream(id, &text),
        };
        let mut flags = 0;
        if command.is_none_or(writes) {
            flags |= Pending::WRITES_ALL;
            self.epochs.bump_all();
        }
        self.send_for(id, request.frame, node, 0, flags)
    }

    /// What may wait at the server until clients are unpaused goes on a connection of its own.
    #[cold]
    fn class_while_paused(&self, class: Class, command: Option<&'static Command>) -> Class {
        let is_cluster = self.is_cluster();
        match class {
            Class::AllNodes(merge) => Class::Beside(merge),
            Class::Split(_) | Class::OneServerOnly if is_cluster => class,
            Class::Keyed | Class::Split(_) | Class::AnyNode | Class::OneServerOnly
                if command.is_some() =>
            {
                Class::Blocking
            }
            _ => class,
        }
    }

    /// Remembers that a client has written to a node.
    pub(super) fn note_write_to(&mut self, id: ClientId, node: u32) {
        let losses = self.nodes[node as usize].losses;
        if let Some(client) = self.client(id) {
            client.note_write_to(node, losses);
        }
    }

    /// About one server, and it may take its time or say what answers no request (`DEBUG`).
    fn apart(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
    ) -> Flow {
        if self.is_cluster() {
            match request.arg(1).to_ascii_lowercase().as_slice() {
                // They look at no key of the server's.
                b"error" | b"protocol" | b"stringmatch-len" | b"help" => {
                    return self.blocking(id, request, command);
                }
                b"sleep" | b"set-active-expire" => {
                    return self.all_nodes(id, request, command, Class::Beside(Merge::AllOk));
                }
                _ => return self.one_server(id, request, command),
            }
        }
        let flow = self.blocking(id, request, command);
        if let Some(client) = self.client(id).filter(|c| c.is_blocked) {
            // It may change any key (DEBUG RELOAD, POPULATE …).
            client.writes_all = true;
        }
        flow
    }

    fn one_server(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
    ) -> Flow {
        let nodes = self.topology.as_ref().map_or(0, |t| t.primaries.len());
        let is_cluster = self.is_cluster();
        // Of a subcommand that is not known here the server has something to say, if only that.
        let is_known = command.is_none_or(|c| c.subcommands.is_empty());
        if is_cluster && is_known {
            self.stats.refused.add(1);
            let name = String::from_utf8_lossy(request.arg(0)).to_lowercase();
            let text = format!(
                "ERR keyheat: '{name}' is about one server, and behind this address there are \
                 {nodes}; connect to the node you mean"
            );
            return self.refuse(id, &text);
        }
        self.any_node(id, request, command)
    }
}

#[cold]
fn is_old(topology: Option<&Topology>) -> bool {
    topology.is_some_and(|t| t.server.is_before(7))
}

/// Whether a command writes, or may: scripts and functions say only at run time.
pub(super) fn writes(command: &'static Command) -> bool {
    command.is_write()
}

/// A browser that was lured here. The server cuts such a connection, and would cut the one that
/// all clients share.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

impl Merge {
    /// Whether parts hold one element per key.
    pub fn is_per_key(self) -> bool {
        self == Merge::Elements
    }
}
