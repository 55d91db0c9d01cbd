//! `stale_on_error_ms`: a read of a hot key whose node cannot answer gets the last reply that was proved.
//!
//! It is the only thing that relaxes the staleness bound, and it is off unless asked for. It speaks where the
//! client would get an error of the proxy: breaker open, node crowded, connection lost, nobody to connect to; and
//! to reads that were sent to a node before it was found to be silent. An error of the node itself is the node's
//! answer and is passed on.
//!
//! Who never gets one: whoever is inside `MULTI` or after `WATCH`, has connections of its own (`CLIENT
//! TRACKING`), asks for another database than the cache's, or has an unanswered write before the read; nobody,
//! once a write of the key went through this proxy since the reply was read (the write epochs tell, as for every
//! local answer; a write that was turned back counts as well, since whether it ran was not to be known when it
//! was noted); and with `read_your_writes = "global"` nothing is ever kept. With `auth = "pass_through"` a user
//! must have been allowed the line within the staleness bound, as for every local answer; while the node
//! cannot say so, that ends soon.
//!
//! The replies are copies of what the local cache took in, in an eighth of `cache_bytes` that it then does without.

use keyheat_core::cache::{Token, Ttl};
use keyheat_core::overload::stale::{Kept, StaleStore};
use keyheat_core::Nanos;
use keyheat_resp::encode;

use super::client::{ClientId, Ticket};
use super::fill::{variant, Fill};
use super::serve::Flow;
use super::upstream::{Owner, Pending};
use super::users::SERVICE;
use super::Shard;
use crate::requests::Way;
use crate::settings::Settings;
use keyheat_net::clock::MS;

/// What is kept for stale answers, and what is left of a shard's share for the cache.
pub(super) fn divide(bytes: usize, settings: &Settings) -> (StaleStore, usize) {
    let share = match settings.stale_on_error_ms {
        0 => 0,
        _ => bytes / 8,
    };
    (StaleStore::new(share), bytes - share)
}

impl Shard {
    /// Keeps what the cache has just taken in.
    pub(super) fn keep_for_errors(&mut self, fill: &Fill, token: &Token, reply: &[u8], ttl: Ttl) {
        if self.settings.stale_on_error_ms == 0 {
            return;
        }
        let variant = variant(fill.protocol, fill.db);
        let kept = Kept {
            command: &fill.frame,
            variant,
            reply,
            token: token.clone(),
            read_at: fill.read_sent_at.unwrap_or(0),
            expires_at: match ttl {
                Ttl::None => Nanos::MAX,
                Ttl::At(at) => at,
            },
        };
        self.stale.put(fill.identity, kept);
    }

    /// On every tick, and before a proof is dropped: what still stands is as fresh as the proof.
    pub(super) fn renew_stale(&mut self) {
        if self.stale.bytes() == 0 {
            return;
        }
        let (cache, now) = (&self.cache, self.now);
        self.stale.renew(|token| {
            let stands = !cache.is_void(token) && cache.is_registered(token);
            let age = cache.proof_age(token.source(), now).filter(|_| stands);
            age.map(|age| now.saturating_sub(age))
        });
    }

    /// What a client may be answered in place of an error.
    #[cold]
    fn stale_reply(&mut self, id: ClientId, frame: &[u8], flags: u8) -> Option<Vec<u8>> {
        const NOT: u8 = Pending::WRITE | Pending::WRITES_ALL | Pending::MANY_KEYS;
        let max_age = self.settings.stale_on_error_ms * MS;
        if max_age == 0 || flags & Pending::HAS_KEY == 0 || flags & NOT != 0 || !self.cache_on {
            return None;
        }
        let client = self.client(id)?;
        let (protocol, db, user) = (client.protocol, client.db, client.user);
        if !client.may_read_elsewhere() {
            return None;
        }
        if db != self.settings.upstream.db || (user != SERVICE && !self.is_permitted(user, frame)) {
            return None;
        }
        let variant = variant(protocol, db);
        let name = self.hasher.hash(frame) ^ variant;
        let found = self.stale.get(name, (frame, variant), self.now, max_age);
        let (reply, token) = found?;
        if self.cache.is_overwritten(token) {
            return None;
        }
        let (reply, node) = (reply.to_vec(), token.source().0);
        self.stats.stale_answers.add(1);
        self.nodes[node as usize].guard.stale_answers += 1;
        Some(reply)
    }

    /// Answers a request that was not sent.
    pub(super) fn refuse_or_stale(
        &mut self,
        id: ClientId,
        frame: &[u8],
        flags: u8,
        text: &str,
    ) -> Flow {
        let Some(reply) = self.stale_reply(id, frame, flags) else {
            return self.refuse_upstream(id, text);
        };
        self.taken.way = Way::Stale;
        if let Some(client) = self.client(id) {
            client.reply(|out| out.extend_from_slice(&reply));
        }
        Flow::Next
    }

    /// Answers a request that its node will not.
    pub(super) fn give_up(&mut self, pending: &Pending, frame: &[u8], text: &str) {
        let mut error = Vec::new();
        encode::error(&mut error, text);
        match pending.owner {
            Owner::Client(ticket) if self.pass_stale(ticket, frame, pending.flags) => return,
            Owner::Fill(number) if !self.passes_through() => return self.fail_fill(number, text),
            _ => {}
        }
        // What the proxy asks for itself is nobody's error.
        if matches!(pending.owner, Owner::Client(_) | Owner::Part { .. }) {
            self.stats.upstream_errors.add(1);
        }
        self.give(pending, &error);
    }

    /// Reads that were sent to a node that went silent, and need not be waited for. Their replies, should they
    /// come, are nobody's then.
    pub(super) fn answer_sent_from_stale(&mut self, node: u32) {
        if self.settings.stale_on_error_ms == 0 {
            return;
        }
        let shared = self.nodes[node as usize].shared.clone();
        for (_, _, _, index) in shared {
            let Some(up) = self
                .upstreams
                .get(index as usize)
                .filter(|up| up.streamed == 0)
            else {
                continue;
            };
            let mut at = up.acked;
            let mut sent = Vec::new();
            for (place, pending) in up.pending.iter().enumerate() {
                let frame = up.out.get(at..at + pending.len).unwrap_or_default();
                at += pending.len;
                match pending.owner {
                    Owner::Client(_) => sent.push((place, *pending, frame.to_vec())),
                    Owner::Fill(_) => sent.push((place, *pending, Vec::new())),
                    _ => {}
                }
            }
            for (place, pending, frame) in sent {
                match pending.owner {
                    Owner::Client(ticket) if self.pass_stale(ticket, &frame, pending.flags) => {
                        let up = self.upstreams.get_mut(index as usize);
                        if let Some(pending) = up.and_then(|up| up.pending.get_mut(place)) {
                            pending.owner = Owner::Nobody;
                        }
                    }
                    Owner::Fill(number) => self.answer_waiters_from_stale(number),
                    _ => {}
                }
            }
        }
    }

    fn answer_waiters_from_stale(&mut self, number: u64) {
        let Some(fill) = self.fills.get_mut(&number) else {
            return;
        };
        let (frame, waiters) = (fill.frame.clone(), std::mem::take(&mut fill.waiters));
        let is_left = |ticket: &Ticket| !self.pass_stale(*ticket, &frame, Pending::HAS_KEY);
        let left: Vec<Ticket> = waiters.into_iter().filter(is_left).collect();
        if let Some(fill) = self.fills.get_mut(&number) {
            fill.waiters = left;
        }
    }

    /// Whether a request that waits was answered with what is kept.
    fn pass_stale(&mut self, ticket: Ticket, frame: &[u8], flags: u8) -> bool {
        let Some(reply) = self.stale_reply(ticket.client, frame, flags) else {
            return false;
        };
        self.pass_on(ticket.client, ticket.seq, &reply, true);
        true
    }

    /// The read of a fill will not be answered.
    fn fail_fill(&mut self, number: u64, text: &str) {
        let Some(fill) = self.forget_fill(number) else {
            return;
        };
        for ticket in &fill.waiters {
            let mut pending = Pending::new(Owner::Client(*ticket), fill.frame.len(), self.now);
            pending.flags = Pending::HAS_KEY;
            self.give_up(&pending, &fill.frame, text);
        }
    }
}
