//! What a shard is told, and what it does then.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Sender, TryRecvError};
use std::sync::Arc;
use std::time::Duration;

use keyheat_core::detect::ShardReport;
use keyheat_core::Nanos;
use keyheat_net::clock::MS;
use keyheat_resp::request::RequestParser;
use mio::{Interest, Token};

use super::ask::{Answer, Question};
use super::client::{Client, ClientId, Ticket};
use super::{intake, users, Shard, KIND_BITS, KIND_CLIENT};
use crate::hotview::HotView;
use crate::settings::Settings;
use crate::stream::Stream;
use crate::topology::Topology;

/// A client that is silent so long is asked whether it is still there.
const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(300);

/// What a shard is told.
pub(crate) enum ToShard {
    /// A new client.
    Client(Stream, String),
    /// The upstream looks like this now.
    Topology(Arc<Topology>),
    /// The upstream could not be looked at.
    NoTopology(String),
    /// These keys are hot now.
    Hot(Arc<HotView>),
    /// Count these keys, please.
    Poll(Arc<[u64]>, Sender<PollReply>),
    /// Local answers on or off.
    LocalCache(bool),
    /// Settings have changed.
    Settings(ShardSettings),
    /// What a client asks about all clients.
    Asked(Arc<Question>, Sender<Answer>),
    /// What all shards say to that.
    Answered(Ticket, Arc<Question>, Result<Answer, String>),
    /// Finish what is under way and let the clients go.
    Drain,
    /// End now.
    Stop,
}

/// What of the settings a shard goes by.
pub(crate) struct ShardSettings {
    pub settings: Arc<Settings>,
    pub tls: Option<Arc<keyheat_net::tls::Client>>,
}

/// Local answers given for one hot key.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Hits {
    pub count: u64,
    pub first: Nanos,
}

/// A shard's answer to [`ToShard::Poll`].
pub(crate) struct PollReply {
    pub report: ShardReport,
    pub hits: Vec<(u64, Hits)>,
}

impl Shard {
    pub(super) fn read_inbox(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(message) => self.on_message(message),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_stopped = true;
                    return;
                }
            }
        }
    }

    fn on_message(&mut self, message: ToShard) {
        match message {
            ToShard::Client(stream, peer) => self.accept(stream, peer),
            ToShard::Topology(topology) => {
                self.on_topology(topology);
                self.on_first_look();
            }
            ToShard::NoTopology(why) => {
                self.topology_error = why;
                self.on_first_look();
            }
            ToShard::Hot(view) => self.on_hot(view),
            ToShard::Poll(hashes, reply) => {
                let _ = reply.send(self.report(&hashes));
            }
            ToShard::LocalCache(on) => {
                self.cache_on = on && self.settings.may_cache();
                if !self.cache_on {
                    self.cache.clear();
                }
            }
            ToShard::Settings(settings) => self.on_settings(settings),
            ToShard::Asked(question, reply) => self.answer(&question, reply),
            ToShard::Answered(ticket, question, answer) => {
                self.on_answered(ticket, &question, answer);
            }
            ToShard::Drain => self.is_draining = true,
            ToShard::Stop => self.is_stopped = true,
        }
    }

    fn on_first_look(&mut self) {
        if std::mem::replace(&mut self.has_looked, true) {
            return;
        }
        let ids: Vec<ClientId> = self.clients.iter().map(|(i, c)| c.name_at(i)).collect();
        for id in ids {
            self.queue_client(id);
        }
    }

    fn accept(&mut self, stream: Stream, peer: String) {
        if self.is_draining {
            return;
        }
        stream.prepare(CLIENT_KEEP_ALIVE);
        self.generation = self.generation.wrapping_add(1);
        let id = self.next_client_id.fetch_add(1, Relaxed);
        let mut client = Client::new(stream, self.generation, id, peer);
        client.db = self.settings.upstream.db;
        client.deeds.connected_at = self.now;
        client.deeds.active_at = self.now;
        if self.passes_through() {
            client.user = users::NOBODY;
        } else {
            client.is_authenticated = self.settings.upstream.password.is_none();
        }
        client.active_at = self.now;
        client.parser =
            RequestParser::new(intake::limits_of(&client, self.settings.request_max_bytes));
        let entry = self.clients.vacant_entry();
        let token = Token(entry.key() << KIND_BITS | KIND_CLIENT);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(e) = self
            .poll
            .registry()
            .register(&mut client.stream, token, interest)
        {
            tracing::warn!("cannot watch a client: {e}");
            return;
        }
        if client.stream.is_agreeing() {
            let until = self.now + self.settings.handshake_timeout_ms * MS;
            self.strangers
                .push_back((until, client.name_at(entry.key())));
        }
        entry.insert(client);
        self.stats.clients.add(1);
        self.stats.clients_total.add(1);
    }
}
