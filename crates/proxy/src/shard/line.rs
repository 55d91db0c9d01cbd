//! Requests in line for a node that is crowded, and those that are turned back.
//!
//! What it is: congestion control per node. At most as many requests as its limit are on their way to a node on
//! the connections that clients share; the next ones wait in line; what finds the line full, or waits too long
//! in it, is turned back with an error that says it was not sent. The limit follows how long the node takes to
//! answer (`keyheat_core::overload::gradient`).
//!
//! Why: a node that is given more than it can do does less than it could, everybody waits, and clients give up
//! on answers that come all the same. Writes and reads are treated alike: which of the two is dearer is not
//! known here, and a client whose writes pass and whose reads do not has no order to rely on.
//!
//! Shape: the line is the tail of what a connection holds anyway (`Upstream::pending`, and its bytes in `out`):
//! only as much of it is written as the limit allows. So order is kept, a request costs nothing for having
//! waited, and what is lost with the connection is known not to have run. With several connections (protocol,
//! database, user) each has its share of the limit; what may wait is summed up over them.
//!
//! - The line has at most `congestion_queue_max` places, and while the limit is below its ceiling no more than
//!   the node has lately answered within `congestion_queue_timeout_ms`: who would wait in vain is told at once.
//! - A client that has requests on their way is not turned back when the line is full: it is not read until
//!   they are answered. So a bulk load slows down instead of failing.
//! - Sessions (pinned connections), reads from replicas and what the proxy asks for itself are not limited.
//!
//! The error begins with `OVERLOAD`. Not `BUSY`: lettuce makes the same exception of it as of `BUSYGROUP`, which
//! programs that create consumer groups take for success; and who knows it may send `SCRIPT KILL`. Not
//! `TRYAGAIN`, `CLUSTERDOWN` or `LOADING`: clients (redis-py and ioredis for Clusters, go-redis) send those
//! again by themselves within milliseconds, which is the last thing a crowded node needs. An unknown word is
//! the plain error of a command to all of them (redis-py `ResponseError`, ioredis `ReplyError`, lettuce
//! `RedisCommandExecutionException`), text and all, and the connection stays.
//!
//! Bound: limit and line are per shard and node. Cost: the comparison of [`Shard::is_at_gate`] per request, one
//! per write to a connection; while there is a line, a walk over what is on its way per write.
//!
//! Source: the Python client's `Shedder`; holding readers back is TCP's way, and Envoy's.

use keyheat_core::Nanos;

use super::upstream::{Owner, Pending, Role, Upstream};
use super::Shard;
use keyheat_net::clock::MS;

impl Upstream {
    /// Up to where its first `count` requests go.
    #[cold]
    pub fn end_of(&self, count: usize) -> usize {
        let lengths = self.pending.iter().take(count).map(|p| p.len);
        self.acked + lengths.sum::<usize>()
    }

    /// Takes requests out of the line that have waited since before `until`.
    fn take_late(&mut self, until: Nanos) -> Vec<(Pending, Vec<u8>)> {
        let mut at = self.acked;
        let is_sent = |pending: &&Pending| {
            let is_sent = at < self.sent;
            if is_sent {
                at += pending.len;
            }
            is_sent
        };
        let sent = self.pending.iter().take_while(is_sent).count();
        let line = self.pending.split_off(sent);
        let bytes = self.out.split_off(at.max(self.sent));
        let mut rest = &bytes[..];
        let mut taken = Vec::new();
        let mut is_behind_asking = false;
        for pending in line {
            let (frame, tail) = rest.split_at(pending.len.min(rest.len()));
            rest = tail;
            let is_a_clients = matches!(pending.owner, Owner::Client(_) | Owner::Part { .. });
            if is_a_clients && !is_behind_asking && pending.sent_at <= until {
                taken.push((pending, frame.to_vec()));
            } else {
                self.out.extend_from_slice(frame);
                self.pending.push_back(pending);
            }
            is_behind_asking = pending.owner == Owner::Nobody;
        }
        taken
    }
}

impl Shard {
    /// Whether a request must wait for those of its client that are on their way, instead of being turned back.
    pub(super) fn must_wait(&mut self, id: super::client::ClientId, node: u32) -> bool {
        if !self.nodes[node as usize].is_full {
            return false;
        }
        let is_clear = self.client(id).is_none_or(|c| c.is_clear());
        self.note_turned_back(node, u64::from(is_clear));
        !is_clear
    }

    pub(super) fn too_many(&self, node: u32, under_way: usize) -> String {
        format!(
            "OVERLOAD keyheat: upstream {} is crowded: {under_way} requests are on their way there or in \
             line; this one was not sent, try again later",
            self.node_name(node)
        )
    }

    /// Turns those back who have waited too long for a node, or all who wait.
    pub(super) fn turn_back_late(&mut self, node: u32, patience: Nanos, text: &str) {
        let until = self.now.saturating_sub(patience);
        let mut late = Vec::new();
        for (_, up) in &mut self.upstreams {
            if up.node == node && up.role == Role::Shared && up.has_line {
                late.append(&mut up.take_late(until));
            }
        }
        for (pending, frame) in late {
            self.settle_access(&pending, node, 0, &frame);
            self.note_turned_back(node, 1);
            self.give_up(&pending, &frame, text);
        }
    }

    /// On every tick: nobody waits for longer than the settings say.
    pub(super) fn look_after_line(&mut self, node: u32) {
        let patience = self.overload.queue_timeout;
        let mut has_line = false;
        for place in 0..self.nodes[node as usize].shared.len() {
            let index = self.nodes[node as usize].shared[place].3;
            if self
                .upstreams
                .get(index as usize)
                .is_some_and(|up| up.has_line)
            {
                // The limit may have grown.
                self.mark_upstream(index);
                has_line = true;
            }
        }
        if !has_line {
            return;
        }
        let text = format!(
            "OVERLOAD keyheat: upstream {} is crowded: this request has waited {} ms in line and was not \
             sent, try again later",
            self.node_name(node),
            patience / MS
        );
        self.turn_back_late(node, patience, &text);
    }
}
