//! Clients with upstream connections of their own, for as long as they ask for what a shared one cannot
//! give: `CLIENT TRACKING` of the client itself, `CLIENT NO-TOUCH`.
//!
//! One connection per node, opened when it is needed (for tracking: to every primary at once, since what is
//! announced by prefix comes from all of them). Everything of the client that goes upstream goes there, reads
//! of hot keys too: the server must see them, so the local cache never answers such a client. What the server
//! announces on them is passed on between replies. Like a session, it is lost with its connection: the client
//! is then cut, as by the server itself.
//!
//! Requests that go over two connections would overtake each other, so the change from one to the other waits
//! until everything before it is answered.

use keyheat_resp::{encode, Protocol};

use super::client::{ClientId, Transaction};
use super::serve::{Flow, Request};
use super::upstream::{Owner, Pending, Role, Stage, Step};
use super::Shard;

/// What a client asks of its own connections.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// The `CLIENT TRACKING ON …` that stand.
    pub tracking: Vec<Vec<u8>>,
    pub is_untouching: bool,
    /// `CLIENT CACHING …`, to be sent before the next request, wherever that goes.
    caching: Option<Vec<u8>>,
    /// What was asked and is not answered yet.
    asked: Option<Asked>,
    /// Nodes, and the connection to each.
    pub connections: Vec<(u32, u32)>,
}

#[derive(Debug)]
enum Asked {
    Track(Vec<u8>),
    TrackNoMore,
    Untouch(bool),
}

impl Own {
    fn is_needed(&self) -> bool {
        !self.tracking.is_empty() || self.is_untouching
    }

    pub fn holds(&self, index: u32) -> bool {
        self.connections.iter().any(|(_, i)| *i == index)
    }

    pub fn has_mode(&self, mode: &[u8]) -> bool {
        let has = |frame: &Vec<u8>| {
            frame
                .split(|&b| b == b'\n')
                .any(|word| word.trim_ascii().eq_ignore_ascii_case(mode))
        };
        self.tracking.iter().any(has)
    }
}

impl Shard {
    /// The connection on which a request of a client goes to `node`.
    #[inline]
    pub(super) fn path(
        &mut self,
        id: ClientId,
        node: u32,
        protocol: Protocol,
        db: u32,
    ) -> Result<u32, String> {
        let client = self.clients.get(id.index as usize);
        let Some(client) = client.filter(|c| c.generation == id.generation) else {
            return Err("ERR keyheat: the client has left".into());
        };
        if client.own.is_some() {
            return self.own_connection(id, node);
        }
        self.shared_as(node, protocol, db, client.user)
    }

    /// The client's own connection to `node`, with whatever it has asked for said on it.
    #[cold]
    pub(super) fn own_connection(&mut self, id: ClientId, node: u32) -> Result<u32, String> {
        let Some(client) = self.client(id) else {
            return Err("ERR keyheat: the client has left".into());
        };
        let (protocol, db, user) = (client.protocol, client.db, client.user);
        let Some(own) = &mut client.own else {
            return Err("ERR keyheat: the client has no connections of its own".into());
        };
        if let Some((_, index)) = own.connections.iter().find(|(n, _)| *n == node) {
            let (index, caching) = (*index, own.caching.take());
            if let Some(frame) = caching {
                let pending = Pending::new(Owner::Nobody, frame.len(), self.now);
                self.upstreams[index as usize].send(&frame, pending);
            }
            return Ok(index);
        }
        let mut said = own.tracking.clone();
        said.extend(own.is_untouching.then(|| untouch(true)));
        let caching = own.caching.take();
        let index = self.open(node, Role::Pinned(Some(id)), protocol, db, user)?;
        let up = &mut self.upstreams[index as usize];
        for frame in said {
            up.send(
                &frame,
                Pending::new(Owner::Setup(Step::Own), frame.len(), self.now),
            );
        }
        up.setup_end = up.out.len();
        if let Some(frame) = caching {
            up.send(&frame, Pending::new(Owner::Nobody, frame.len(), self.now));
        }
        if let Some(own) = self.client(id).and_then(|c| c.own.as_mut()) {
            own.connections.push((node, index));
        }
        Ok(index)
    }

    /// `CLIENT TRACKING`, `CACHING`, `TRACKINGINFO`, `GETREDIR`, `NO-TOUCH`.
    pub(super) fn own_command(&mut self, id: ClientId, request: &Request<'_>, sub: &[u8]) -> Flow {
        let has_own = self.client(id).is_some_and(|c| c.own.is_some());
        let word = request.arg(2).to_ascii_lowercase();
        match sub {
            b"caching" if has_own => return self.caching(id, request),
            b"tracking" if word == b"on" => {
                if (3..request.argc()).any(|i| request.arg(i).eq_ignore_ascii_case(b"redirect")) {
                    return self.refuse(
                        id,
                        "ERR keyheat: REDIRECT names a connection of the server, and this one is of \
                         the proxy; track without it over RESP3",
                    );
                }
            }
            b"no-touch" if word == b"on" => {}
            b"tracking" if word == b"off" && has_own => {}
            b"no-touch" if word == b"off" && has_own => {}
            // Nothing of this client is set: the server's answer on any connection is the right one.
            _ => {
                return match self.some_node(id) {
                    Ok(node) => self.send_for(id, request.frame, node, 0, 0),
                    Err(text) => self.refuse_upstream(id, &text),
                }
            }
        }
        let is_turning = self
            .client(id)
            .is_some_and(|c| !c.is_clear() || c.is_watching || c.transaction != Transaction::None);
        if is_turning {
            let is_clear = self.client(id).is_some_and(|c| c.is_clear());
            if !is_clear {
                return Flow::Wait;
            }
            return self.refuse(
                id,
                "ERR keyheat: not after WATCH, whose keys another connection watches",
            );
        }
        self.ask_own(id, request, sub, &word)
    }

    fn ask_own(&mut self, id: ClientId, request: &Request<'_>, sub: &[u8], word: &[u8]) -> Flow {
        let node = match self.some_node(id) {
            Ok(node) => node,
            Err(text) => return self.refuse_upstream(id, &text),
        };
        let asked = match (sub, word) {
            (b"tracking", b"on") => Asked::Track(request.frame.to_vec()),
            (b"tracking", _) => Asked::TrackNoMore,
            (_, word) => Asked::Untouch(word == b"on"),
        };
        if let Some(client) = self.client(id) {
            client.own.get_or_insert_default().asked = Some(asked);
        }
        let flow = self.send_for(id, request.frame, node, 0, Pending::OWN);
        if let Some(client) = self.client(id) {
            if client.is_clear() {
                // It was refused here and now.
                self.on_own_reply(id, b"-");
            } else {
                client.is_held = true;
            }
        }
        flow
    }

    fn caching(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let is_cluster = self.is_cluster();
        let Some(own) = self.client(id).and_then(|c| c.own.as_mut()) else {
            return Flow::Next;
        };
        let wanted: &[u8] = if request.arg(2).eq_ignore_ascii_case(b"yes") {
            b"optin"
        } else {
            b"optout"
        };
        if is_cluster && own.has_mode(wanted) {
            // It is about the next request, whose node is not known yet.
            own.caching = Some(request.frame.to_vec());
            if let Some(client) = self.client(id) {
                client.reply(|out| encode::simple(out, "OK"));
            }
            return Flow::Next;
        }
        match self.some_node(id) {
            Ok(node) => self.send_for(id, request.frame, node, 0, 0),
            Err(text) => self.refuse_upstream(id, &text),
        }
    }

    /// The server has answered what was asked of the client's own connection.
    pub(super) fn on_own_reply(&mut self, id: ClientId, reply: &[u8]) {
        let Some(own) = self.client(id).and_then(|c| c.own.as_mut()) else {
            return;
        };
        let is_good = reply.starts_with(b"+OK");
        let mut say = None;
        match own.asked.take().filter(|_| is_good) {
            Some(Asked::Track(frame)) => {
                say = Some(frame.clone());
                own.tracking.push(frame);
            }
            Some(Asked::TrackNoMore) => {
                own.tracking.clear();
                say = Some(b"*3\r\n$6\r\nCLIENT\r\n$8\r\nTRACKING\r\n$3\r\nOFF\r\n".to_vec());
            }
            Some(Asked::Untouch(on)) => {
                own.is_untouching = on;
                say = Some(untouch(on));
            }
            None => {}
        }
        let first = own.connections.first().map(|(_, index)| *index);
        let others: Vec<u32> = own.connections.iter().skip(1).map(|(_, i)| *i).collect();
        if !own.is_needed() {
            return self.end_own(id, "its client needs it no more");
        }
        if let (Some(frame), Some(_)) = (say, first) {
            for index in others {
                let pending = Pending::new(Owner::Nobody, frame.len(), self.now);
                self.upstreams[index as usize].send(&frame, pending);
                self.mark_upstream(index);
            }
        }
        self.open_own(id);
        self.mark_client(id);
    }

    /// Opens a tracking client's connection to every primary.
    fn open_own(&mut self, id: ClientId) {
        let is_tracking = self
            .client(id)
            .and_then(|c| c.own.as_ref())
            .is_some_and(|own| !own.tracking.is_empty());
        let primaries = match &self.topology {
            Some(t) if is_tracking && t.is_cluster() => t.primaries.clone(),
            _ => return,
        };
        for node in primaries {
            // One that cannot be reached now is tried again by the first request for it.
            let _ = self.own_connection(id, node);
        }
    }

    /// Primaries may have joined.
    pub(super) fn open_own_of_all(&mut self) {
        let ids: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|(_, c)| c.own.is_some())
            .map(|(index, c)| c.name_at(index))
            .collect();
        for id in ids {
            self.open_own(id);
        }
    }

    /// Closes a client's own connections: it goes on over the shared ones.
    pub(super) fn end_own(&mut self, id: ClientId, why: &str) {
        let own = self.client(id).and_then(|c| c.own.take());
        for (_, index) in own.map(|own| own.connections).unwrap_or_default() {
            self.unpin_and_close(index, why);
        }
        self.mark_client(id);
    }

    /// Turns every connection that is the client's alone to another protocol.
    pub(super) fn turn_protocol(&mut self, id: ClientId, protocol: Protocol) {
        let Some(client) = self.client(id) else {
            return;
        };
        let mut indexes: Vec<u32> = [client.pinned, client.subscriber]
            .into_iter()
            .flatten()
            .collect();
        if let Some(own) = &client.own {
            indexes.extend(own.connections.iter().map(|(_, index)| *index));
        }
        if let Some(listening) = client.listening.as_ref().filter(|l| !l.is_monitor) {
            let all = listening.connections.iter().chain(&listening.echoes);
            indexes.extend(all.map(|(_, index)| *index));
        }
        indexes.sort_unstable();
        indexes.dedup();
        let version: &[u8] = if protocol == Protocol::Resp3 {
            b"3"
        } else {
            b"2"
        };
        for index in indexes {
            let Some(up) = self.upstreams.get_mut(index as usize) else {
                continue;
            };
            up.protocol = protocol;
            up.ask(&[b"HELLO", version], Owner::Setup(Step::Hello), self.now);
            if up.stage != Stage::Ready {
                up.setup_end = up.out.len();
            }
            self.mark_upstream(index);
        }
    }
}

fn untouch(on: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let word: &[u8] = if on { b"ON" } else { b"OFF" };
    encode::command(&mut frame, &[b"CLIENT", b"NO-TOUCH", word]);
    frame
}
