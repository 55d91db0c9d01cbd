//! Clients that are let go: when too much is held for them, and when the proxy drains.

use super::client::{self, ClientId, Taken};
use super::Shard;
use keyheat_net::clock::SEC;

impl Shard {
    /// Counts anew what a client takes.
    #[inline]
    pub(super) fn recount(&mut self, id: ClientId) {
        if let Some(client) = self.client(id) {
            let (now, before) = client.recount();
            self.count_taken(now, before);
        }
    }

    #[inline]
    pub(super) fn count_taken(&mut self, now: Taken, before: Taken) {
        let all = &mut self.taken_by_clients;
        all.memory = (all.memory + now.memory).saturating_sub(before.memory);
        all.awaited = (all.awaited + now.awaited).saturating_sub(before.awaited);
    }

    /// What one client may have to read before it is held back.
    #[inline]
    pub(super) fn replies_max(&self) -> usize {
        client::replies_soft_bytes(self.budget, self.output_max, self.taken_by_clients)
    }

    /// Whether so much has come for clients that it is to be written, and counted, before more does.
    #[inline]
    pub(super) fn is_swelling(&self) -> bool {
        self.swollen > self.budget / 16 || self.is_bursting()
    }

    /// Writes what has come for clients, and sees to it that not too much is left.
    #[cold]
    pub(super) fn relieve(&mut self) {
        self.flush_clients();
        if self.is_bursting() {
            self.bound_buffers();
        }
    }

    /// Whether clients are to be cut now, and not a tick later.
    #[inline]
    fn is_bursting(&self) -> bool {
        self.taken_by_clients.memory > self.budget + self.budget / 4
    }

    /// Keeps what is held for clients and upstreams within its budget: past it, the client for which most
    /// is held (replies it does not read, requests a server does not take) is cut, as the server would; well
    /// past it, as many as it takes.
    pub(super) fn bound_buffers(&mut self) {
        let mut apart: usize = self.voidings.values().map(|v| v.held()).sum();
        apart += self.copy_reads.values().map(|r| r.held()).sum::<usize>();
        apart += self.waiting_reads.iter().map(|r| r.held()).sum::<usize>();
        apart += self.parked.iter().map(|p| p.frame.len()).sum::<usize>();
        // Requests on their way are counted where they lie: their clients may have left.
        apart += self.upstreams.iter().map(|(_, u)| u.held()).sum::<usize>();
        if apart + self.taken_by_clients.memory > self.budget / 2 {
            self.give_back();
        }
        let held = apart + self.taken_by_clients.memory;
        self.stats.buffer_bytes.set(held as i64);
        if held > self.budget {
            self.cut_down();
        }
    }

    /// Gives back what is held for no use, and counts every client anew.
    fn give_back(&mut self) {
        let mut all = Taken::default();
        for (_, client) in &mut self.clients {
            client.give_back();
            let (now, _) = client.recount();
            all.memory += now.memory;
            all.awaited += now.awaited;
        }
        self.taken_by_clients = all;
    }

    /// Cuts clients for which most is held: one, where more is held than may be; as many as it takes, where they
    /// hold much more.
    fn cut_down(&mut self) {
        let clients = self.clients.iter();
        if !self.is_bursting() {
            let worst = clients.map(|(i, c)| (c.memory(), c.name_at(i)));
            let worst = worst.max_by_key(|(bytes, _)| *bytes);
            if let Some((_, id)) = worst.filter(|(bytes, _)| *bytes > client::LITTLE_BYTES) {
                self.cut_for_memory(id);
            }
            return;
        }
        // Only by what cutting gives back: requests that are on their way are not taken back. Not who takes less
        // than an even share: without those that take more, all fit.
        let least = client::REPLIES_SCARCE_BYTES.min(self.budget / self.clients.len().max(1));
        let mut all: Vec<(usize, ClientId)> = clients
            .map(|(i, c)| (c.memory().saturating_sub(c.asked), c.name_at(i)))
            .filter(|(bytes, _)| *bytes > least)
            .collect();
        all.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut over = self.taken_by_clients.memory.saturating_sub(self.budget);
        for (bytes, id) in all {
            if over == 0 {
                return;
            }
            self.cut_for_memory(id);
            over = over.saturating_sub(bytes);
        }
    }

    /// Sees to clients that are held back: those that do not read meanwhile are read ahead, and those that may
    /// go on do. Those that have left are let go, if what they wait for may never come.
    pub(super) fn look_after_held_back(&mut self) {
        let replies_max = self.replies_max();
        let (mut wanted, mut gone) = (Vec::new(), Vec::new());
        for (index, client) in &mut self.clients {
            let has_stopped = client.has_stopped_reading(replies_max);
            client.reads_last |= has_stopped;
            let may_go_on = client.has_unread && !client.is_held && !client.is_full(replies_max);
            if has_stopped || may_go_on {
                wanted.push(client.name_at(index));
            }
            if client.waits_in_vain(self.now) {
                gone.push(client.name_at(index));
            }
        }
        for id in wanted {
            self.queue_client(id);
        }
        for id in gone {
            self.close_client(id);
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
