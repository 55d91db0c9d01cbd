//! `auth = "pass_through"`: a client is at the server who it says it is.
//!
//! The proxy judges no password. A client that has sent none is tried on a new connection without one, a
//! client that has sent one on a new connection with it, and what the server answers is what the client
//! gets. Requests then go on connections of that user: the shared ones are per protocol, database and user,
//! so the server applies the user's rights to everything that reaches it.
//!
//! Connections outlive the moment in which a password held, here as at the server. A new one needs the
//! password again, so it is kept for as long as a client of that user is connected, and overwritten after.
//! Where a new connection is refused (the password was changed, the user deleted), every client of the user
//! is unauthenticated from then on and told so.
//!
//! # Answers from memory
//!
//! They pass no server, so its rights are asked for: `ACL DRYRUN user command …`, by the proxy's own
//! account, at the node that owns the key. An answer is given only if the server said OK to that very line
//! in reply to a question that was *sent* no longer ago than the staleness bound; the question is put anew
//! at half of it while the line is in use. So a right that is taken away holds no longer than a value
//! would. Where the account may not ask (or the server is older than 7.0), nobody but the account is
//! answered from memory.

use keyheat_core::Nanos;
use keyheat_resp::request::RequestParser;
use keyheat_resp::{encode, Protocol};

use super::client::{ClientId, Ticket};
use super::intake::limits_of;
use super::rights::Right;
use super::serve::{Flow, Request};
use super::upstream::{Owner, Pending, Role, Step};
use super::Shard;
use crate::control::ToControl;
use crate::settings::Auth;
use keyheat_net::clock::{MS, SEC};

/// The proxy's own account.
pub(super) const SERVICE: u32 = 0;
/// No password was given.
pub(super) const NOBODY: u32 = 1;

/// Users at once, per shard.
const USERS_MAX: usize = 4096;
/// Connections of a user that were silent so long are closed.
const IDLE: Nanos = 60 * SEC;
/// Lines that are remembered as allowed.
const PERMITS_MAX: usize = 16_384;
/// A refusal of `ACL DRYRUN` itself is believed so long.
const BLIND_FOR: Nanos = 10 * SEC;
/// Where refusals are shown: no node has this number.
const NO_NODE: u32 = u32::MAX;

/// A user by whose rights clients are served.
#[derive(Debug, Default)]
pub(super) struct User {
    pub name: String,
    /// The words of `AUTH`, until nobody needs them.
    words: Vec<Vec<u8>>,
    clients: usize,
    /// What it may of what the proxy does itself.
    pub rights: Vec<Right>,
}

impl Drop for User {
    fn drop(&mut self) {
        for word in &mut self.words {
            word.fill(0);
            std::hint::black_box(&word);
        }
    }
}

/// What a client waits for that is being authenticated.
#[derive(Debug)]
pub(super) struct Authenticating {
    /// The words of `AUTH`; none where it is asked whether a password is needed.
    words: Vec<Vec<u8>>,
    name: String,
    /// The slot of the answer, where there is one.
    seq: Option<u32>,
    /// What `HELLO` asks for beside.
    hello: Option<(Option<Protocol>, Option<Vec<u8>>)>,
}

/// Whether a line may be answered from memory.
#[derive(Debug)]
pub(super) struct Permit {
    frame: Box<[u8]>,
    user: u32,
    /// When the question was sent to which the server said yes.
    said_at: Option<Nanos>,
    asked_at: Option<Nanos>,
}

impl Shard {
    pub(super) fn passes_through(&self) -> bool {
        self.settings.auth == Auth::PassThrough
    }

    /// The words with which a connection of a user is set up; none where it needs none.
    pub(super) fn words_of(&self, user: u32) -> Vec<Vec<u8>> {
        if user == SERVICE {
            let account = &self.settings.upstream;
            let name = account
                .username
                .iter()
                .filter(|_| account.password.is_some());
            let words = name.chain(&account.password);
            return words.map(|word| word.clone().into_bytes()).collect();
        }
        self.users
            .get(user as usize)
            .map_or_else(Vec::new, |u| u.words.clone())
    }

    pub(super) fn user_name(&self, user: u32) -> &str {
        match self.users.get(user as usize) {
            Some(user) if !user.name.is_empty() => &user.name,
            _ if user == SERVICE => self
                .settings
                .upstream
                .username
                .as_deref()
                .unwrap_or("default"),
            _ => "default",
        }
    }

    /// Lets the server say who a client is. `words` are those behind `AUTH`; none asks whether the server
    /// wants any.
    pub(super) fn authenticate(
        &mut self,
        id: ClientId,
        words: &[&[u8]],
        hello: Option<(Option<Protocol>, Option<Vec<u8>>)>,
    ) -> Flow {
        if self.client(id).is_some_and(|c| !c.is_clear()) {
            return Flow::Wait;
        }
        let opened = self
            .some_node(id)
            .and_then(|node| self.open(node, Role::Pinned(Some(id)), Protocol::Resp2, 0, NOBODY));
        let index = match opened {
            Ok(index) => index,
            Err(text) => return self.refuse_upstream(id, &text),
        };
        let now = self.now;
        let mut frame = Vec::new();
        if words.is_empty() {
            encode::command(&mut frame, &[b"PING"]);
        } else {
            let mut line: Vec<&[u8]> = vec![b"AUTH"];
            line.extend_from_slice(words);
            encode::command(&mut frame, &line);
        }
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let name = match words {
            [user, _] => String::from_utf8_lossy(user).into_owned(),
            _ => "default".to_owned(),
        };
        let seq = (!words.is_empty()).then(|| client.open_slot(0));
        client.is_held = true;
        client.beside.push(index);
        client.authenticating = Some(Box::new(Authenticating {
            words: words.iter().map(|w| w.to_vec()).collect(),
            name,
            seq,
            hello,
        }));
        let pending = Pending::new(Owner::Auth(id), frame.len(), now);
        self.upstreams[index as usize].send(&frame, pending);
        self.mark_upstream(index);
        if words.is_empty() {
            Flow::Wait
        } else {
            Flow::Next
        }
    }

    /// The server has said who a client is.
    pub(super) fn on_authenticated(&mut self, id: ClientId, index: u32, reply: &[u8]) {
        let request_max_bytes = self.settings.request_max_bytes;
        let Some(client) = self.client(id) else {
            return;
        };
        client.beside.retain(|i| *i != index);
        let Some(mut asked) = client.authenticating.take() else {
            return;
        };
        let is_probe = asked.words.is_empty();
        let is_good = if is_probe {
            !reply.starts_with(b"-NOAUTH")
        } else {
            reply.starts_with(b"+")
        };
        if is_probe {
            client.is_tried = true;
            client.is_authenticated = is_good;
            // It waits between two requests: none is half read by the old limits.
            client.parser = RequestParser::new(limits_of(client, request_max_bytes));
            self.drop_connection(index);
            return self.mark_client(id);
        }
        if !is_good {
            if let Some(seq) = asked.seq {
                client.deliver(seq, reply, true);
            }
            self.drop_connection(index);
            return self.mark_client(id);
        }
        let words = std::mem::take(&mut asked.words);
        match self.user_of(&asked.name, words) {
            Some(user) => {
                self.become_user(id, user);
                // It is a connection of that user now, fit for the next request that needs one.
                if let Some(up) = self.upstreams.get_mut(index as usize) {
                    up.user = user;
                    self.release(index);
                    self.introduce(index);
                }
                self.finish_auth(id, &asked);
            }
            None => {
                self.drop_connection(index);
                let mut error = Vec::new();
                encode::error(
                    &mut error,
                    "ERR keyheat: too many users are connected at once",
                );
                if let (Some(client), Some(seq)) = (self.client(id), asked.seq) {
                    client.deliver(seq, &error, true);
                }
            }
        }
        self.mark_client(id);
    }

    /// The server could not be asked who a client is: it gets `error`, and stays who it was.
    pub(super) fn on_auth_lost(&mut self, id: ClientId, error: &[u8]) {
        if let Some(client) = self.client(id) {
            let asked = client.authenticating.take();
            match asked.and_then(|asked| asked.seq) {
                Some(seq) => client.deliver(seq, error, true),
                None => {
                    let seq = client.open_slot(0);
                    client.deliver(seq, error, true);
                    client.is_closing = true;
                }
            }
        }
        self.mark_client(id);
    }

    fn finish_auth(&mut self, id: ClientId, asked: &Authenticating) {
        let mut reply = b"+OK\r\n".to_vec();
        if let Some((protocol, name)) = &asked.hello {
            reply = self.greet(id, *protocol, name.as_deref());
        }
        if let (Some(client), Some(seq)) = (self.client(id), asked.seq) {
            client.deliver(seq, &reply, true);
        }
    }

    /// Asks once more what a server that wants a password refused while the connection was nobody's: its name,
    /// and its number, by which a client that blocks on it is unblocked.
    fn introduce(&mut self, index: u32) {
        let now = self.now;
        if let Some(up) = self.upstreams.get_mut(index as usize) {
            if up.server_id == 0 {
                let name: [&[u8]; 3] = [b"CLIENT", b"SETNAME", b"keyheat"];
                up.ask(&name, Owner::Setup(Step::Name), now);
                up.ask(&[b"CLIENT", b"ID"], Owner::Setup(Step::Id), now);
                self.mark_upstream(index);
            }
        }
    }

    fn drop_connection(&mut self, index: u32) {
        if self.upstreams.contains(index as usize) {
            self.unpin_and_close(index, "it was only asked who a client is");
        }
    }

    /// The user of that name and password; `None` where there are too many.
    fn user_of(&mut self, name: &str, words: Vec<Vec<u8>>) -> Option<u32> {
        let known = self
            .users
            .iter()
            .find(|(_, u)| u.name == name && u.words == words);
        if let Some((index, _)) = known {
            return Some(index as u32);
        }
        if self.users.len() >= USERS_MAX {
            return None;
        }
        let user = User {
            name: name.to_owned(),
            words,
            clients: 0,
            rights: Vec::new(),
        };
        Some(self.users.insert(user) as u32)
    }

    fn become_user(&mut self, id: ClientId, user: u32) {
        let request_max_bytes = self.settings.request_max_bytes;
        let Some(client) = self.client(id) else {
            return;
        };
        let before = std::mem::replace(&mut client.user, user);
        client.is_authenticated = true;
        client.is_tried = true;
        client.parser = RequestParser::new(limits_of(client, request_max_bytes));
        let mut mine: Vec<u32> = client.pinned.into_iter().chain(client.subscriber).collect();
        let own = client.own.as_ref().map(|own| &own.connections);
        let listening = client.listening.as_ref();
        let (heard, echoes) = listening.map(|l| (&l.connections, &l.echoes)).unzip();
        let theirs = own.into_iter().chain(heard).chain(echoes);
        mine.extend(theirs.flatten().map(|(_, index)| *index));
        self.count_user(before, -1);
        self.count_user(user, 1);
        let words = self.words_of(user);
        mine.sort_unstable();
        mine.dedup();
        // What is the client's alone becomes the user's with it.
        for index in mine {
            let Some(up) = self.upstreams.get_mut(index as usize) else {
                continue;
            };
            let mut line: Vec<&[u8]> = vec![b"AUTH"];
            line.extend(words.iter().map(Vec::as_slice));
            up.user = user;
            up.ask(&line, Owner::Setup(Step::Auth), self.now);
            if up.stage != super::upstream::Stage::Ready {
                up.setup_end = up.out.len();
            }
            self.mark_upstream(index);
        }
    }

    fn count_user(&mut self, user: u32, by: isize) {
        if let Some(user) = self.users.get_mut(user as usize) {
            user.clients = user.clients.saturating_add_signed(by);
        }
    }

    /// A client has left, or is nobody again.
    pub(super) fn leave_user(&mut self, user: u32) {
        self.count_user(user, -1);
    }

    /// A connection of a user was refused by the server: its clients are nobody from now on.
    pub(super) fn on_user_refused(&mut self, user: u32) {
        for (_, client) in &mut self.clients {
            if client.user == user {
                client.is_authenticated = false;
                client.is_tried = user != NOBODY;
            }
        }
        self.permits.retain(|_, permit| permit.user != user);
    }

    /// Closes what nobody needs any more, and forgets users whose clients have all left.
    pub(super) fn look_after_users(&mut self) {
        if !self.passes_through() {
            return;
        }
        let now = self.now;
        let idle: Vec<u32> = self
            .upstreams
            .iter()
            .filter(|(_, up)| {
                let is_unused = up.pending.is_empty()
                    && matches!(up.role, Role::Shared | Role::Reader | Role::Pinned(None));
                let user = self.users.get(up.user as usize);
                let is_left = up.user > NOBODY && user.is_none_or(|u| u.clients == 0);
                is_unused && up.user != SERVICE && (is_left || now > up.used_at + IDLE)
            })
            .map(|(index, _)| index as u32)
            .collect();
        for index in idle {
            self.unpin_and_close(index, "nobody uses it");
        }
        let upstreams = &self.upstreams;
        let mut gone = Vec::new();
        self.users.retain(|index, user| {
            let is_kept = index as u32 <= NOBODY
                || user.clients > 0
                || upstreams.iter().any(|(_, up)| up.user == index as u32);
            if !is_kept {
                gone.push(index as u32);
            }
            is_kept
        });
        let bound = self.permit_bound();
        self.permits.retain(|_, permit| {
            !gone.contains(&permit.user)
                && permit
                    .asked_at
                    .or(permit.said_at)
                    .is_some_and(|at| now <= at + 10 * bound)
        });
    }

    pub(super) fn permit_bound(&self) -> Nanos {
        self.settings.max_staleness_ms * MS
    }

    /// Whether a client's user may be answered a line from memory now. If that is not known, the server is
    /// asked, and this line goes to it.
    pub(super) fn may_answer(&mut self, user: u32, request: &Request<'_>, node: u32) -> bool {
        let now = self.now;
        if now < self.blind_until {
            return false;
        }
        let bound = self.permit_bound();
        let identity = self.hasher.hash(request.frame) ^ u64::from(user).rotate_left(32);
        let known = self.permits.get(&identity);
        let known = known.filter(|p| p.user == user && *p.frame == *request.frame);
        let age = known
            .and_then(|p| p.said_at)
            .map(|at| now.saturating_sub(at));
        let is_allowed = age.is_some_and(|age| age <= bound);
        let is_asked = known
            .and_then(|p| p.asked_at)
            .is_some_and(|at| now.saturating_sub(at) <= bound);
        if !is_asked && age.is_none_or(|age| age > bound / 2) {
            self.ask_permit(identity, user, request, node);
        }
        is_allowed
    }

    /// Whether the server has allowed a user a line just now; it is not asked.
    pub(super) fn is_permitted(&self, user: u32, frame: &[u8]) -> bool {
        let identity = self.hasher.hash(frame) ^ u64::from(user).rotate_left(32);
        let known = self.permits.get(&identity);
        let said_at = known
            .filter(|p| p.user == user && *p.frame == *frame)
            .and_then(|p| p.said_at);
        let is_fresh = |at| self.now.saturating_sub(at) <= self.permit_bound();
        self.now >= self.blind_until && said_at.is_some_and(is_fresh)
    }

    fn ask_permit(&mut self, identity: u64, user: u32, request: &Request<'_>, node: u32) {
        if self.permits.len() >= PERMITS_MAX {
            self.permits.clear();
        }
        let db = self.settings.upstream.db;
        let Ok(index) = self.shared(node, Protocol::Resp2, db) else {
            return;
        };
        let name = self.user_name(user).to_owned();
        let mut line: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", name.as_bytes()];
        line.extend((0..request.argc()).map(|i| request.arg(i)));
        let now = self.now;
        self.upstreams[index as usize].ask(&line, Owner::Permit(identity), now);
        self.mark_upstream(index);
        let said_at = self.permits.get(&identity).and_then(|p| {
            let is_same = p.user == user && *p.frame == *request.frame;
            p.said_at.filter(|_| is_same)
        });
        let permit = Permit {
            frame: request.frame.into(),
            user,
            said_at,
            asked_at: Some(now),
        };
        self.permits.insert(identity, permit);
    }

    /// The server has said whether a user may.
    pub(super) fn on_permit(&mut self, identity: u64, sent_at: Nanos, reply: &[u8]) {
        let is_allowed = reply == b"+OK\r\n";
        if reply.starts_with(b"-NOPERM") || reply.starts_with(b"-ERR unknown") {
            // Not the user's right that is missing, but ours.
            self.blind_until = self.now + BLIND_FOR;
            self.permits.clear();
            let said = String::from_utf8_lossy(&reply[1..]);
            let why = format!(
                "the proxy's account cannot ask what users may do, so they are not answered from \
                 memory: {}",
                said.trim_end()
            );
            let told = ToControl::NoTracking(self.index, NO_NODE, why);
            let _ = self.control.send(told);
            self.is_blind_told = true;
            return;
        }
        if std::mem::take(&mut self.is_blind_told) {
            let _ = self.control.send(ToControl::Tracking(self.index, NO_NODE));
        }
        // An answer to an earlier question, of a user who had this number before, is nobody's.
        let permit = self.permits.get_mut(&identity);
        if let Some(permit) = permit.filter(|p| p.asked_at == Some(sent_at)) {
            permit.asked_at = None;
            permit.said_at = is_allowed.then_some(sent_at);
        }
    }

    /// `AUTH`, where the server judges.
    pub(super) fn auth_upstream(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let words: Vec<&[u8]> = (1..request.argc()).map(|i| request.arg(i)).collect();
        if words.is_empty() || words.len() > 2 {
            return self.refuse(id, "ERR syntax error");
        }
        self.authenticate(id, &words, None)
    }

    /// The ticket of a request's client, where it has one.
    pub(super) fn asker(&self, pending: &Pending) -> Option<ClientId> {
        match pending.owner {
            Owner::Client(Ticket { client, .. }) => Some(client),
            Owner::Part { job, .. } => self.jobs.get(job as usize).map(|j| j.ticket.client),
            _ => None,
        }
    }
}
