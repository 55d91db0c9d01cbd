//! Clients that are let go: when too much is held for them, and when the proxy drains.

use super::client::{self, ClientId};
use super::{Shard, BACKLOG_SOFT_BYTES};
use keyheat_net::clock::SEC;

impl Shard {
    /// Keeps what is held for clients and upstreams within its budget: past it, the client for which most
    /// is held (replies it does not read, requests a server does not take) is cut, as the server would.
    pub(super) fn bound_buffers(&mut self) {
        let mut held: usize = self.jobs.iter().map(|(_, j)| j.held()).sum();
        // Requests on their way are counted where they lie: their clients may have left.
        held += self.upstreams.iter().map(|(_, u)| u.held()).sum::<usize>();
        let mut worst = None;
        for (index, client) in &self.clients {
            let bytes = client.load() + client.input.len();
            held += bytes.saturating_sub(client.asked);
            if worst.is_none_or(|(most, _)| bytes > most) {
                worst = Some((bytes, client.name_at(index)));
            }
        }
        self.stats.buffer_bytes.set(held as i64);
        if held > self.budget {
            if let Some((_, id)) = worst.filter(|(bytes, _)| *bytes > BACKLOG_SOFT_BYTES) {
                self.cut_for_memory(id);
            }
        }
    }

    /// Cuts a client for which too much is held.
    pub(super) fn cut_for_memory(&mut self, id: ClientId) {
        if let Some(client) = self.client(id) {
            tracing::warn!(
                client = %client.peer, bytes = client.load(),
                "cut a client for which too much is held: buffers_max_bytes is reached"
            );
        }
        self.stats.clients_cut.add(1);
        self.close_client(id);
    }

    /// How much a client may leave unread.
    pub(super) fn output_max(&self) -> usize {
        match self.settings.client_output_max_bytes {
            0 => usize::MAX,
            max => max,
        }
    }

    /// Cuts a client that reads its replies, or its messages, too slowly.
    pub(super) fn cut_for_output(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else {
            return;
        };
        let (peer, bytes) = (client.peer.clone(), client.backlog());
        if self.troubles.may_tell() {
            tracing::warn!(
                client = %peer, bytes,
                "cut: it leaves too much unread: client_output_max_bytes is reached"
            );
        }
        self.stats.clients_cut.add(1);
        self.close_client(id);
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
                silent.push((client.name_at(index), client.peer.clone()));
            }
        }
        for (id, peer) in silent {
            if self.troubles.may_tell() {
                tracing::info!(client = %peer, "cut: it was idle for client_idle_timeout_s");
            }
            self.stats.clients_idle.add(1);
            self.close_client(id);
        }
    }

    /// Cuts clients that take too long until they can send a request.
    pub(super) fn cut_strangers(&mut self) {
        while let Some(&(until, id)) = self.strangers.front() {
            if self.now < until {
                return;
            }
            self.strangers.pop_front();
            let Some(client) = self.client(id).filter(|c| c.stream.is_agreeing()) else {
                continue;
            };
            let peer = client.peer.clone();
            if self.troubles.may_tell() {
                tracing::warn!(client = %peer, "cut: it did not begin within handshake_timeout_ms");
            }
            self.close_client(id);
        }
    }

    /// Draining: a client that waits for nothing and has sent nothing is let go.
    pub(super) fn let_go(&mut self) {
        let idle: Vec<ClientId> = self
            .clients
            .iter()
            .filter(|(_, c)| {
                let is_idle =
                    c.is_clear() && c.backlog() == 0 && c.transaction == client::Transaction::None;
                (is_idle && !c.is_held && c.input.is_empty())
                    || c.subscriptions > 0
                    || c.listening.is_some()
            })
            .map(|(index, c)| c.name_at(index))
            .collect();
        for id in idle {
            self.pump(id);
            if let Some(c) = self.client(id) {
                let is_idle = c.is_clear() && c.backlog() == 0 && c.input.is_empty();
                if is_idle || c.subscriptions > 0 || c.listening.is_some() {
                    self.close_client(id);
                }
            }
        }
    }
}
