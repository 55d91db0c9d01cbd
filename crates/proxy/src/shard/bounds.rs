//! Clients that are let go: when too much is held for them, and when the proxy drains.

use super::client::{self, ClientId};
use super::Shard;
use keyheat_net::clock::SEC;

impl Shard {
    /// Keeps what is held for clients and upstreams within its budget: past it, the client for which most
    /// is held (replies it does not read, requests a server does not take) is cut, as the server would.
    pub(super) fn bound_buffers(&mut self) {
        let mut held: usize = self.jobs.iter().map(|(_, j)| j.held()).sum();
        held += self.voidings.values().map(|v| v.held()).sum::<usize>();
        held += self.copy_reads.values().map(|r| r.held()).sum::<usize>();
        held += self.waiting_reads.iter().map(|r| r.held()).sum::<usize>();
        held += self.parked.iter().map(|p| p.frame.len()).sum::<usize>();
        // Requests on their way are counted where they lie: their clients may have left.
        held += self.upstreams.iter().map(|(_, u)| u.held()).sum::<usize>();
        let replies_max = self.replies_max;
        let (mut worst, mut last) = (None, Vec::new());
        for (index, client) in &mut self.clients {
            if client.has_stopped_reading(replies_max) {
                client.reads_last = true;
                last.push(client.name_at(index));
            }
            let bytes = client.load() + client.input.len();
            held += bytes.saturating_sub(client.asked);
            if worst.is_none_or(|(most, _)| bytes > most) {
                worst = Some((bytes, client.name_at(index)));
            }
        }
        self.stats.buffer_bytes.set(held as i64);
        if held > self.budget {
            if let Some((_, id)) = worst.filter(|(bytes, _)| *bytes > client::LITTLE_BYTES) {
                self.cut_for_memory(id);
            }
        }
        for id in last {
            self.queue_client(id);
        }
    }

    /// Cuts a client for which too much is held.
    pub(super) fn cut_for_memory(&mut self, id: ClientId) {
        self.stats.clients_cut.add(1);
        self.cut(
            id,
            "buffers_max_bytes",
            "more is held for it than for any other",
        );
    }

    /// Cuts a client that reads its replies, or its messages, too slowly.
    pub(super) fn cut_for_output(&mut self, id: ClientId) {
        self.stats.clients_cut.add(1);
        self.cut(id, "client_output_max_bytes", "it leaves too much unread");
    }

    /// Once a second: takes back what silent clients do not need, and cuts those that are silent for too long.
    pub(super) fn rest_clients(&mut self) {
        let limit = self.settings.client_idle_timeout_s * SEC;
        let mut silent = Vec::new();
        for (index, client) in &mut self.clients {
            if client.is_active || client.may_be_silent() {
                client.active_at = self.now;
            }
            client.rest();
            if limit != 0 && self.now.saturating_sub(client.active_at) > limit {
                silent.push(client.name_at(index));
            }
        }
        for id in silent {
            self.stats.clients_idle.add(1);
            self.cut(id, "client_idle_timeout_s", "it said nothing");
        }
    }

    /// Cuts clients that take too long until they can send a request.
    pub(super) fn cut_strangers(&mut self) {
        while let Some(&(until, id)) = self.strangers.front() {
            if self.now < until {
                return;
            }
            self.strangers.pop_front();
            if self.client(id).is_some_and(|c| c.stream.is_agreeing()) {
                self.cut(id, "handshake_timeout_ms", "it did not begin in time");
            }
        }
    }

    /// Cuts a client, and says so; `limit` is the setting that has it so.
    pub(super) fn cut(&mut self, id: ClientId, limit: &str, why: &str) {
        let peer = self.client(id).map(|client| client.peer.clone());
        self.cuts.tell(&peer.unwrap_or_default(), limit, why);
        self.close_client(id);
    }

    /// Draining: a client that waits for nothing and has sent nothing is let go.
    pub(super) fn let_go(&mut self) {
        let idle: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|(_, c)| {
                let is_idle =
                    c.is_clear() && c.is_written() && c.transaction == client::Transaction::None;
                (is_idle && !c.is_held && c.input.is_empty())
                    || c.subscriptions > 0
                    || c.listening.is_some()
            })
            .map(|(index, c)| c.name_at(index))
            .collect();
        for id in idle {
            self.pump(id);
            if let Some(c) = self.client(id) {
                let is_idle = c.is_clear() && c.is_written() && c.input.is_empty();
                if is_idle || c.subscriptions > 0 || c.listening.is_some() {
                    self.close_client(id);
                }
            }
        }
    }
}
