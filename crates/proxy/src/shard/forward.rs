//! Connections upstream: opening them, writing to them, losing them, and sending a request to
//! another node when the first one says so.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keyheat_core::cache::SourceId;
use keyheat_core::Nanos;
use keyheat_resp::{encode, Protocol};
use mio::{Interest, Token};

use super::client::ClientId;
use super::upstream::{Owner, Pending, Role, Stage, Step, Upstream};
use super::users::SERVICE;
use super::{NodeState, Shard, KIND_BITS, KIND_UPSTREAM};
use crate::copies::names;
use crate::stream::Stream;
use crate::topology::{host_of, Topology};
use keyheat_net::clock::{MS, SEC};

/// An upstream that is silent so long is asked whether it is still there.
const UPSTREAM_KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a node may take to answer HELLO, AUTH and the like.
const SETUP_MAX: Nanos = 5 * SEC;
/// A node that is no primary any more may answer so long what it was asked as one.
const DEMOTED_GRACE: Nanos = 300 * MS;
/// After this long without an answer the topology is looked at.
const SLOW: Nanos = 500 * MS;
/// Idle connections kept per node for requests that need one of their own.
const IDLE_MAX: usize = 16;

impl Shard {
    /// The node that owns a slot.
    pub(super) fn owner(&self, slot: u16) -> Result<u32, String> {
        match &self.topology {
            None => Err(format!(
                "ERR keyheat: no upstream could be reached yet: {}",
                self.topology_error
            )),
            Some(t) => t
                .owner(slot)
                .ok_or_else(|| format!("CLUSTERDOWN keyheat: no node owns slot {slot}")),
        }
    }

    /// Some primary, the same one for a client every time.
    pub(super) fn some_node(&self, id: ClientId) -> Result<u32, String> {
        match &self.topology {
            Some(t) if !t.primaries.is_empty() => {
                Ok(t.primaries[id.generation as usize % t.primaries.len()])
            }
            _ => self.owner(0),
        }
    }

    pub(super) fn node_name(&self, node: u32) -> &str {
        self.topology
            .as_ref()
            .and_then(|t| t.nodes.get(node as usize))
            .map_or("?", |n| n.name.as_str())
    }

    /// The connection to `node` that requests of all clients share.
    /// It is the proxy's own account that asks on it.
    pub(super) fn shared(&mut self, node: u32, protocol: Protocol, db: u32) -> Result<u32, String> {
        self.shared_as(node, protocol, db, SERVICE)
    }

    /// As `shared`, with the rights of a user.
    #[inline]
    pub(super) fn shared_as(
        &mut self,
        node: u32,
        protocol: Protocol,
        db: u32,
        user: u32,
    ) -> Result<u32, String> {
        let found = self.nodes[node as usize]
            .shared
            .iter()
            .find(|(p, d, u, _)| *p == protocol && *d == db && *u == user);
        if let Some(&(_, _, _, index)) = found {
            return Ok(index);
        }
        let index = self.open(node, Role::Shared, protocol, db, user)?;
        let shared = &mut self.nodes[node as usize].shared;
        shared.push((protocol, db, user, index));
        Ok(index)
    }

    /// A connection to `node` for one client alone.
    pub(super) fn pinned(
        &mut self,
        node: u32,
        id: ClientId,
        protocol: Protocol,
        db: u32,
    ) -> Result<u32, String> {
        let user = self.client(id).map_or(SERVICE, |c| c.user);
        self.pinned_as(node, id, protocol, db, user)
    }

    /// The same, by the rights of `user`.
    pub(super) fn pinned_as(
        &mut self,
        node: u32,
        id: ClientId,
        protocol: Protocol,
        db: u32,
        user: u32,
    ) -> Result<u32, String> {
        let fits = |u: &Upstream| u.protocol == protocol && u.db == db && u.user == user;
        let idle = &self.nodes[node as usize].idle;
        let place = idle
            .iter()
            .position(|&i| self.upstreams.get(i as usize).is_some_and(fits));
        if let Some(place) = place {
            let index = self.nodes[node as usize].idle.swap_remove(place);
            self.upstreams[index as usize].role = Role::Pinned(Some(id));
            return Ok(index);
        }
        self.open(node, Role::Pinned(Some(id)), protocol, db, user)
    }

    /// Gives a client's connection back.
    pub(super) fn release(&mut self, index: u32) {
        let up = &mut self.upstreams[index as usize];
        if up.is_ending {
            return self.unpin_and_close(index, "its client left");
        }
        up.role = Role::Pinned(None);
        let node = &mut self.nodes[up.node as usize];
        if up.pending.is_empty() && node.idle.len() < IDLE_MAX {
            node.idle.push(index);
        } else {
            self.close_upstream(index, "no longer needed");
        }
    }

    /// Opens a connection and queues its set-up. Requests wait behind the set-up's replies: none
    /// is sent before it is known that AUTH and SELECT held.
    pub(super) fn open(
        &mut self,
        node: u32,
        role: Role,
        protocol: Protocol,
        db: u32,
        user: u32,
    ) -> Result<u32, String> {
        if let Err(text) = self.check_pause(node) {
            self.note_turned_back(node, u64::from(role == Role::Shared));
            return Err(text);
        }
        self.dial(node, role, protocol, db, user)
    }

    /// As `open`, whatever is thought of the node.
    pub(super) fn dial(
        &mut self,
        node: u32,
        role: Role,
        protocol: Protocol,
        db: u32,
        user: u32,
    ) -> Result<u32, String> {
        let Some(addr) = self
            .topology
            .as_ref()
            .and_then(|t| t.nodes.get(node as usize))
            .map(|n| n.addr)
        else {
            return Err("ERR keyheat: the topology has changed; try again".into());
        };
        let stream = self
            .connect(node, addr)
            .map_err(|e| self.cannot_open(node, &e.to_string()))?;
        self.generation = self.generation.wrapping_add(1);
        let mut up = Upstream::new(stream, self.generation, node, role, self.now);
        up.protocol = protocol;
        up.db = db;
        up.user = user;
        let entry = self.upstreams.vacant_entry();
        let index = entry.key() as u32;
        let token = Token(entry.key() << KIND_BITS | KIND_UPSTREAM);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let watched = self
            .poll
            .registry()
            .register(&mut up.stream, token, interest);
        entry.insert(up);
        if let Err(e) = watched {
            self.upstreams.remove(index as usize);
            return Err(self.cannot_open(node, &e.to_string()));
        }
        self.stats.upstreams.add(1);
        self.set_up(index);
        Ok(index)
    }

    /// Begins to connect.
    fn connect(&self, node: u32, addr: SocketAddr) -> std::io::Result<Stream> {
        let name = host_of(self.node_name(node));
        let stream = Stream::connect(addr, self.tls.as_deref().map(|tls| (tls, name)))?;
        let silence = self.settings.upstream_timeout();
        stream.prepare_upstream(|socket| {
            let _ = socket.set_tcp_nodelay(true);
            set_keep_alive(&socket, UPSTREAM_KEEP_ALIVE);
            bound_silence(&socket, silence);
        });
        Ok(stream)
    }

    fn cannot_open(&mut self, node: u32, why: &str) -> String {
        self.on_unreachable(node, why);
        let name = self.node_name(node);
        format!("ERR keyheat: upstream {name} cannot be reached: {why}")
    }

    fn set_up(&mut self, index: u32) {
        let user = self.upstreams[index as usize].user;
        let words = self.words_of(user);
        let service = self.words_of(SERVICE);
        let has_resp3 = self.topology.as_ref().is_some_and(|t| t.server.has_resp3);
        let is_cluster = self.is_cluster();
        let now = self.now;
        let up = &mut self.upstreams[index as usize];
        let mut step = |args: &[&[u8]], step: Step| {
            let start = up.out.len();
            encode::command(&mut up.out, args);
            let len = up.out.len() - start;
            up.pending
                .push_back(Pending::new(Owner::Setup(step), len, now));
        };
        let db = up.db.to_string();
        if up.db != 0 && up.user != SERVICE && !words.is_empty() {
            // Its clients chose the database before they were this user, who may not be let choose one.
            if !service.is_empty() {
                let mut line: Vec<&[u8]> = vec![b"AUTH"];
                line.extend(service.iter().map(Vec::as_slice));
                step(&line, Step::Before);
            }
            step(&[b"SELECT", db.as_bytes()], Step::Before);
        }
        match (&words[..], up.protocol) {
            ([user, password], Protocol::Resp3) => {
                step(&[b"HELLO", b"3", b"AUTH", user, password], Step::Hello);
            }
            ([password], Protocol::Resp3) => {
                let words: [&[u8]; 5] = [b"HELLO", b"3", b"AUTH", b"default", password];
                step(&words, Step::Hello);
            }
            (_, Protocol::Resp3) => step(&[b"HELLO", b"3"], Step::Hello),
            ([user, password], Protocol::Resp2) => step(&[b"AUTH", user, password], Step::Auth),
            ([password], Protocol::Resp2) => step(&[b"AUTH", password], Step::Auth),
            (_, Protocol::Resp2) => {}
        }
        if up.db != 0 {
            step(&[b"SELECT", db.as_bytes()], Step::Select);
        }
        if has_resp3 {
            // An old server without it would be asked in vain; the name is for CLIENT LIST only.
            step(&[b"CLIENT", b"SETNAME", b"keyheat"], Step::Name);
        }
        if up.role == Role::Reader && is_cluster {
            step(&[b"READONLY"], Step::ReadOnly);
        }
        if matches!(up.role, Role::Pinned(_)) {
            step(&[b"CLIENT", b"ID"], Step::Id);
        }
        if up.role == Role::Tracking {
            step(&[b"CLIENT", b"TRACKING", b"ON"], Step::Tracking);
            step(&[b"ROLE"], Step::Role);
        }
        up.setup_end = up.out.len();
    }

    /// The TCP connection is there.
    pub(super) fn on_connected(&mut self, index: u32) {
        let up = &mut self.upstreams[index as usize];
        if let (Role::Tracking, Some(address)) = (up.role, up.stream.local_tcp()) {
            up.talk = Some(self.notice.talk(address));
        }
        if up
            .pending
            .iter()
            .any(|p| matches!(p.owner, Owner::Setup(_)))
        {
            up.stage = Stage::Setup;
            self.mark_upstream(index);
        } else {
            self.on_ready(index);
        }
    }

    /// Every step of the set-up was answered well.
    pub(super) fn on_ready(&mut self, index: u32) {
        let up = &mut self.upstreams[index as usize];
        up.stage = Stage::Ready;
        let (node, role) = (up.node, up.role);
        if role == Role::Tracking {
            self.on_tracking_ready(index);
        }
        self.mark_upstream(index);
        self.on_node_answers(node, index);
    }

    pub(super) fn flush_upstream(&mut self, index: u32) {
        let Some(up) = self.upstreams.get_mut(index as usize) else {
            return;
        };
        let mut end = up.sendable();
        if up.role == Role::Shared && up.stage == Stage::Ready {
            let window = self.nodes[up.node as usize].window;
            up.has_line = up.pending.len() > window;
            if up.has_line {
                end = end.min(up.end_of(window));
            }
        }
        let mut is_sent = false;
        while up.sent < end {
            match up.stream.write(&up.out[up.sent..end]) {
                Ok(0) => return self.close_upstream(index, "it takes no more"),
                Ok(n) => {
                    up.sent += n;
                    is_sent = true;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return self.close_upstream(index, &e.to_string()),
            }
        }
        if is_sent && up.role == Role::Shared {
            up.marks.set(up.sent, self.now);
        }
        if up.is_ending && up.stage == Stage::Ready && up.sent == up.out.len() {
            let _ = up.stream.finish();
        }
        if up.stream.holds() {
            match up.stream.flush() {
                Err(e) if e.kind() != ErrorKind::WouldBlock => {
                    self.close_upstream(index, &e.to_string());
                }
                _ => {}
            }
        }
    }

    /// Ends a connection: everybody who waits on it is told, in words that say whether the
    /// request may have run.
    pub(super) fn close_upstream(&mut self, index: u32, why: &str) {
        let Some(mut up) = self.upstreams.try_remove(index as usize) else {
            return;
        };
        let _ = self.poll.registry().deregister(&mut up.stream);
        self.stats.upstreams.add(-1);
        let name = self.node_name(up.node).to_owned();
        self.note_loss(&up);
        let state = &mut self.nodes[up.node as usize];
        state.shared.retain(|(_, _, _, i)| *i != index);
        state.readers.retain(|(_, _, _, i)| *i != index);
        state.idle.retain(|i| *i != index);
        let is_lost = up.refusal.is_none() && up.stage == Stage::Ready;
        if is_lost && !up.is_ending && matches!(up.role, Role::Shared | Role::Pinned(Some(_))) {
            state.losses = state.losses.wrapping_add(1);
        }
        if up.role == Role::Reader {
            self.forget_replica(up.node);
        }
        if up.role == Role::Tracking {
            self.on_tracking_lost(up.node, why);
        } else if let Some(said) = &up.refusal {
            if up.role == Role::Reader {
                self.refuse_at_replica(up.node, up.user);
            } else if said.starts_with("NOAUTH") || said.starts_with("WRONGPASS") {
                self.on_user_refused(up.user);
            }
        } else if up.stage != Stage::Ready && !up.is_dropped {
            self.on_unreachable(up.node, why);
            self.want_look();
        } else if up.role == Role::Shared {
            tracing::warn!(upstream = %name, waiting = up.pending.len(), "lost a connection: {why}");
            self.want_look();
        }
        let has_ended = up.is_ending && up.stage == Stage::Ready;
        if let (true, Role::Pinned(Some(id))) = (has_ended, up.role) {
            // As the server ends a client that has left: without a word.
            self.close_client(id);
        }
        self.tell_owners(&mut up, &name, why);
        match up.role {
            Role::Pinned(Some(id)) | Role::Subscriber(id) => self.cut_session(id, index),
            _ => {}
        }
    }

    fn tell_owners(&mut self, up: &mut Upstream, name: &str, why: &str) {
        let (unsent, unknown) = match up.refusal.take() {
            Some(said) => (said.clone(), said),
            None => (
                format!("ERR keyheat: upstream {name} cannot be reached: {why}"),
                format!(
                    "ERR keyheat: lost the connection to upstream {name} before its reply ({why}); \
                     the command may have run"
                ),
            ),
        };
        let mut is_first = true;
        while let Some((pending, range)) = up.pop() {
            let text = if range.start >= up.sent || up.stage != Stage::Ready {
                &unsent
            } else {
                &unknown
            };
            // A reply that was passed on in part cannot be taken back: its client is cut.
            let is_cut = is_first && up.streamed > 0;
            if pending.owner == Owner::Replication {
                self.forget_question(up.node);
            }
            if is_cut {
                if let Owner::Client(ticket) = pending.owner {
                    self.close_client(ticket.client);
                }
            }
            is_first = false;
            let frame = up.out.get(range).unwrap_or_default().to_vec();
            if up.role == Role::Reader && !is_cut && self.read_from_primary(&pending, &frame, false)
            {
                continue;
            }
            self.settle_access(&pending, up.primary, 0, &frame);
            self.give_up(&pending, &frame, text);
        }
    }

    pub(super) fn on_topology(&mut self, topology: Arc<Topology>) {
        let has_moved = self
            .topology
            .as_ref()
            .is_some_and(|t| t.routes_differ(&topology));
        while self.nodes.len() < topology.nodes.len() {
            self.nodes.push(NodeState::default());
            self.set_gate(self.nodes.len() as u32 - 1);
        }
        if has_moved {
            // An entry is proved by the primary that owned its slot when it was read.
            self.cache.clear();
        }
        let gone: Vec<u32> = topology
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, n)| !n.is_primary)
            .map(|(i, _)| i as u32)
            .collect();
        let topology_primaries = topology.primaries.clone();
        self.copy_places = names::places(&topology);
        self.topology = Some(topology);
        for state in &mut self.nodes {
            state.demoted_at.get_or_insert(self.now);
        }
        for primary in topology_primaries {
            self.nodes[primary as usize].demoted_at = None;
        }
        self.leave_replicas();
        for node in gone {
            self.unrefuse(node);
            if let Some(index) = self.nodes[node as usize].tracking {
                self.close_upstream(index, "it is no longer a primary");
            }
        }
        self.open_tracking();
        self.unpark();
        self.open_own_of_all();
    }

    /// Gives up connections that never came to be, and opens tracking where it is missing.
    pub(super) fn look_after_upstreams(&mut self) {
        let limit = self.settings.connect_timeout_ms * MS;
        let late: Vec<u32> = self
            .upstreams
            .iter()
            .filter(|(_, u)| match u.stage {
                Stage::Connecting => self.now > u.opened_at + limit,
                // The node is there; a busy one may take its time.
                Stage::Setup => self.now > u.opened_at + limit.max(SETUP_MAX),
                Stage::Ready => self.is_hung(u) || self.is_left_behind(u) || self.is_mute(u),
            })
            .map(|(i, _)| i as u32)
            .collect();
        for index in late {
            self.close_upstream(index, "it did not answer in time");
        }
        if self.upstreams.iter().any(|(_, u)| self.is_slow(u)) {
            self.want_look();
        }
        self.open_tracking();
    }

    /// Whether a connection leads to a node that has ceased to be a primary, and what was asked of it as one
    /// will not be answered any more: one that hangs never says so itself.
    fn is_left_behind(&self, up: &Upstream) -> bool {
        let Some(since) = self.nodes[up.node as usize].demoted_at else {
            return false;
        };
        let is_settling = self.now < since + DEMOTED_GRACE;
        if is_settling && !self.is_slow(up) {
            return false;
        }
        // A node that takes over its first slot is no primary yet, and is asked all the same.
        let is_old = up.pending.front().is_some_and(|p| p.sent_at <= since);
        let is_replica = || {
            let topology = self.topology.as_ref();
            topology.is_some_and(|t| t.primary_of(up.node).is_some())
        };
        match up.role {
            Role::Shared | Role::Pinned(_) => is_old || is_replica(),
            Role::Subscriber(_) => true,
            Role::Reader | Role::Tracking => false,
        }
    }

    /// Whether what all clients share has been waiting for long: the node may be down without a word.
    fn is_slow(&self, up: &Upstream) -> bool {
        let oldest = up.pending.front().map_or(self.now, |p| p.sent_at);
        up.role == Role::Shared && self.now.saturating_sub(oldest) > SLOW
    }

    fn open_tracking(&mut self) {
        if !self.settings.may_cache() {
            return;
        }
        let Some(topology) = self.topology.clone() else {
            return;
        };
        for &node in &topology.primaries {
            let state = &self.nodes[node as usize];
            let is_wanted = state.tracking.is_none()
                && self.now >= state.track_after
                && !self.is_left_alone(node);
            if !is_wanted {
                continue;
            }
            if !topology.server.has_resp3 {
                self.refuse_tracking(node, "the server does not speak RESP3");
                continue;
            }
            let db = self.settings.upstream.db;
            match self.open(node, Role::Tracking, Protocol::Resp3, db, SERVICE) {
                Ok(index) => self.nodes[node as usize].tracking = Some(index),
                Err(text) => self.on_tracking_lost(node, &text),
            }
        }
    }

    pub(super) fn source(node: u32) -> SourceId {
        SourceId(node)
    }
}

/// A peer that has gone without a word is noticed a quarter of a minute after that silence.
pub(crate) fn keep_alive<'a, S>(stream: &'a S, silence: Duration)
where
    socket2::SockRef<'a>: From<&'a S>,
{
    set_keep_alive(&socket2::SockRef::from(stream), silence);
}

fn set_keep_alive(socket: &socket2::SockRef<'_>, silence: Duration) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(silence)
        .with_interval(Duration::from_secs(5));
    #[cfg(target_os = "linux")]
    let keepalive = keepalive.with_retries(3);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// A peer that has acknowledged nothing for so long, though there was something to acknowledge, is gone: where
/// packets vanish without a word, nothing else ends a connection on which replies are awaited.
///
/// It is the peer's system that acknowledges: a server that is merely busy is waited for, unless so much is
/// sent to it that its buffers are full all that time.
fn bound_silence(socket: &socket2::SockRef<'_>, silence: Duration) {
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(silence));
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, silence);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn silence_on_an_upstream_connection_is_bounded() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let silence = Duration::from_millis(1_234);
        bound_silence(&socket2::SockRef::from(&stream), silence);
        let set = socket2::SockRef::from(&stream).tcp_user_timeout();
        assert_eq!(set.unwrap(), Some(silence));
    }
}
