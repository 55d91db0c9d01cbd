//! What a client asks about the proxy's clients, and every shard answers for its own.
//!
//! Shards know nothing of each other: the question goes to control, which puts it to all of them, and the
//! sum comes back to the shard that was asked. A shard that does not answer makes the reply an error, never
//! one that leaves its clients out.

use std::sync::mpsc::Sender;
use std::sync::Arc;

use keyheat_core::Nanos;
use keyheat_resp::{encode, Protocol};

use super::client::{Client, ClientId, Ticket, Transaction};
use super::upstream::Owner;
use super::Shard;
use crate::control::ToControl;
use keyheat_net::clock::SEC;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    /// `is_old`: `CLIENT KILL address`, which answers OK or an error.
    Kill {
        is_old: bool,
    },
    Unblock {
        is_error: bool,
    },
}

/// A question about the clients that a filter lets through.
#[derive(Debug)]
pub(crate) struct Question {
    pub(super) kind: Kind,
    pub(super) filter: Filter,
    /// Number of the client who asks.
    pub(super) asker: u64,
}

/// What shards say: lines with the numbers of their clients, and how many were killed or unblocked.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub lines: Vec<(u64, String)>,
    pub count: i64,
}

impl Answer {
    /// Adds what another shard said.
    pub fn add(&mut self, other: Self) {
        self.lines.extend(other.lines);
        self.count += other.count;
    }
}

/// A client's wait that is being ended.
pub(super) struct Unblocking {
    left: usize,
    count: i64,
    reply: Sender<Answer>,
}

/// Which clients are meant: all conditions must hold.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub ids: Vec<u64>,
    pub pairs: Vec<(Field, String)>,
    pub skips_asker: bool,
}

/// What a condition is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Address,
    LocalAddress,
    Ip,
    Kind,
    User,
    Name,
    Library,
    LibraryVersion,
    Db,
    Flags,
    MaxAge,
    Idle,
    Capa,
}

impl Shard {
    /// Puts a question to all shards; the answer fills the client's slot.
    pub(super) fn put(&mut self, id: ClientId, kind: Kind, filter: Filter) {
        let Some(client) = self.client(id) else {
            return;
        };
        let asker = client.id;
        let seq = client.open_slot(0);
        let question = Arc::new(Question {
            kind,
            filter,
            asker,
        });
        let ticket = Ticket { client: id, seq };
        let _ = self
            .control
            .send(ToControl::Ask(self.index, ticket, question));
    }

    /// Gives this shard's part of an answer, now or when a server has said its part.
    pub(super) fn answer(&mut self, question: &Question, reply: Sender<Answer>) {
        let now = self.now;
        let mut answer = Answer::default();
        let mut meant = Vec::new();
        for (index, client) in &self.clients {
            let user = self.user_name(client.user);
            if client.is_closing || !question.lets(client, user, now) {
                continue;
            }
            if question.kind == Kind::List {
                answer.lines.push((client.id, describe(client, user, now)));
            } else {
                meant.push((client.name_at(index), client.id == question.asker));
            }
        }
        if let (Kind::Unblock { is_error }, Some((id, _))) = (&question.kind, meant.first()) {
            return self.unblock(*id, *is_error, reply);
        }
        for (id, is_asker) in meant {
            answer.count += 1;
            if !is_asker {
                self.close_client(id);
            } else if let Some(client) = self.client(id) {
                client.is_closing = true; // once it has its answer
            }
        }
        let _ = reply.send(answer);
    }

    /// Ends the wait of a client in a blocking command. The server says whether it was waiting.
    fn unblock(&mut self, id: ClientId, is_error: bool, reply: Sender<Answer>) {
        let Some(client) = self.client(id).filter(|c| c.is_blocked) else {
            let _ = reply.send(Answer::default());
            return;
        };
        let mut indexes = client.beside.clone();
        indexes.extend(client.pinned);
        let word: &[u8] = if is_error { b"ERROR" } else { b"TIMEOUT" };
        let number = self.unblocking.insert(Unblocking {
            left: 1,
            count: 0,
            reply,
        });
        for index in indexes {
            let Some(up) = self.upstreams.get(index as usize) else {
                continue;
            };
            let (node, server_id, db) = (up.node, up.server_id.to_string(), up.db);
            if let Ok(shared) = self.shared(node, Protocol::Resp2, db) {
                let line: [&[u8]; 4] = [b"CLIENT", b"UNBLOCK", server_id.as_bytes(), word];
                let owner = Owner::Unblock(number as u32);
                self.upstreams[shared as usize].ask(&line, owner, self.now);
                self.mark_upstream(shared);
                if let Some(unblocking) = self.unblocking.get_mut(number) {
                    unblocking.left += 1;
                }
            }
        }
        self.on_unblocked(number as u32, b"");
    }

    /// A server has said whether a connection was waiting.
    pub(super) fn on_unblocked(&mut self, number: u32, said: &[u8]) {
        let Some(unblocking) = self.unblocking.get_mut(number as usize) else {
            return;
        };
        unblocking.left -= 1;
        unblocking.count = unblocking.count.max(i64::from(said == b":1\r\n"));
        if unblocking.left == 0 {
            let done = self.unblocking.remove(number as usize);
            let _ = done.reply.send(Answer {
                count: done.count,
                ..Answer::default()
            });
        }
    }

    /// All shards have answered.
    pub(super) fn on_answered(
        &mut self,
        ticket: Ticket,
        question: &Question,
        answer: Result<Answer, String>,
    ) {
        let Some(client) = self.client(ticket.client) else {
            return;
        };
        let mut out = Vec::new();
        match (answer, &question.kind) {
            (Err(why), _) => encode::error(&mut out, &format!("ERR keyheat: {why}")),
            (Ok(mut answer), Kind::List) => {
                answer.lines.sort_unstable();
                let text: String = answer.lines.into_iter().map(|(_, line)| line).collect();
                verbatim(&mut out, &text, client.protocol);
            }
            (Ok(answer), Kind::Kill { is_old: true }) if answer.count == 0 => {
                encode::error(&mut out, "ERR No such client");
            }
            (Ok(_), Kind::Kill { is_old: true }) => encode::simple(&mut out, "OK"),
            (Ok(answer), _) => encode::integer(&mut out, answer.count),
        }
        client.deliver(ticket.seq, &out, true);
        self.mark_client(ticket.client);
    }
}

impl Question {
    fn lets(&self, client: &Client, user: &str, now: Nanos) -> bool {
        if self.filter.skips_asker && client.id == self.asker {
            return false;
        }
        let ids = &self.filter.ids;
        (ids.is_empty() || ids.contains(&client.id))
            && self
                .filter
                .pairs
                .iter()
                .all(|(field, wanted)| holds(client, *field, wanted, user, now))
    }
}

fn holds(client: &Client, field: Field, wanted: &str, user: &str, now: Nanos) -> bool {
    let is_text = |bytes: &[u8]| bytes == wanted.as_bytes();
    let at_least = |since: Nanos| {
        let seconds = now.saturating_sub(since) / SEC;
        wanted.parse::<u64>().is_ok_and(|least| seconds >= least)
    };
    match field {
        Field::Address => client.peer == wanted,
        Field::LocalAddress => client.stream.local() == wanted,
        Field::Ip => client
            .peer
            .rsplit_once(':')
            .is_some_and(|(ip, _)| ip == wanted),
        Field::Kind => match wanted {
            "normal" => client.subscriptions == 0,
            "pubsub" => client.subscriptions > 0,
            _ => false,
        },
        Field::User => user == wanted,
        Field::Name => is_text(&client.name),
        Field::Library => is_text(&client.library.0),
        Field::LibraryVersion => is_text(&client.library.1),
        Field::Db => client.db.to_string() == wanted,
        Field::Flags => {
            let flags = flags(client);
            wanted.chars().all(|flag| flags.contains(flag))
        }
        Field::MaxAge => at_least(client.deeds.connected_at),
        Field::Idle => at_least(client.deeds.active_at),
        Field::Capa => false,
    }
}

fn flags(c: &Client) -> String {
    let is_monitor = c.listening.as_ref().is_some_and(|l| l.is_monitor);
    let is_tracking = c.own.as_ref().is_some_and(|own| !own.tracking.is_empty());
    let is_broadcast = c.own.as_ref().is_some_and(|own| own.has_mode(b"BCAST"));
    let is_untouching = c.own.as_ref().is_some_and(|own| own.is_untouching);
    let all = [
        (is_monitor, 'O'),
        (c.subscriptions > 0, 'P'),
        (c.transaction != Transaction::None, 'x'),
        (c.is_blocked, 'b'),
        (is_tracking, 't'),
        (is_broadcast, 'B'),
        (c.is_closing, 'c'),
        (c.is_kept, 'e'),
        (is_untouching, 'T'),
        (c.stream.is_unix(), 'U'),
    ];
    let set: String = all
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, flag)| flag)
        .collect();
    if set.is_empty() {
        "N".to_owned()
    } else {
        set
    }
}

/// A line of `CLIENT LIST`, with the server's fields.
pub(super) fn describe(c: &Client, user: &str, now: Nanos) -> String {
    let is_tracking = c.own.as_ref().is_some_and(|own| !own.tracking.is_empty());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let multi = match c.transaction {
        Transaction::None => -1,
        _ => c.queued_count as i64,
    };
    format!(
        "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={} db={} sub={} psub=0 ssub={} \
         multi={multi} watch={} qbuf={} qbuf-free={} argv-mem=0 multi-mem=0 rbs={} rbp={} obl={} \
         oll=0 omem=0 tot-mem={} events=r cmd={} user={user} redir={} resp={} lib-name={} lib-ver={} \
         tot-net-in={} tot-net-out={} tot-cmds={}\n",
        c.id,
        c.peer,
        c.stream.local(),
        c.stream.number(),
        text(&c.name),
        now.saturating_sub(c.deeds.connected_at) / SEC,
        now.saturating_sub(c.deeds.active_at) / SEC,
        flags(c),
        c.db,
        c.counts[0],
        c.counts[1],
        u8::from(c.is_watching),
        c.input.len(),
        c.input.capacity() - c.input.len(),
        c.out.capacity(),
        c.out.capacity(),
        c.backlog(),
        c.input.capacity() + c.out.capacity() + c.load(),
        c.deeds.last.map_or("NULL", |command| command.name),
        if is_tracking { 0 } else { -1 },
        if c.protocol == Protocol::Resp3 { 3 } else { 2 },
        text(&c.library.0),
        text(&c.library.1),
        c.deeds.bytes_in,
        c.deeds.bytes_out,
        c.deeds.requests,
    )
}

/// A text for people: in RESP3 it says so.
pub(super) fn verbatim(out: &mut Vec<u8>, text: &str, protocol: Protocol) {
    match protocol {
        Protocol::Resp2 => encode::bulk(out, text.as_bytes()),
        Protocol::Resp3 => {
            out.extend_from_slice(format!("={}\r\ntxt:{text}\r\n", text.len() + 4).as_bytes());
        }
    }
}
