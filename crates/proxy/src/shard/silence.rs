//! Nodes that go silent: noticed, asked over a new connection, and left or believed again.
//!
//! A server answers all its connections or none. So once it has answered the set-up of a new one, and still says
//! nothing on an old one a moment later, the old one leads nowhere (a packet filter has forgotten it), and is closed.

use keyheat_core::overload::breaker::State;
use keyheat_core::Nanos;

use super::guard::Cause;
use super::upstream::{Owner, Role, Stage, Step};
use super::users::SERVICE;
use super::Shard;
use keyheat_net::clock::MS;

/// A node has answered on a new connection: so much later it must have answered on the old ones too.
const GRACE: Nanos = 200 * MS;

impl Shard {
    /// A shared connection to a node on which something is asked, and nothing is said.
    pub(super) fn silent(&self, node: u32) -> Option<u32> {
        let is_silent = |index: &u32| {
            let up = self.upstreams.get(*index as usize);
            up.filter(|up| up.stage == Stage::Ready).is_some_and(|up| {
                let asked_at = up.pending.front().map_or(self.now, |p| p.sent_at);
                let since = asked_at.max(up.heard_at);
                self.now.saturating_sub(since) > self.overload.silence
            })
        };
        let shared = self.nodes[node as usize].shared.iter();
        let mut indexes = shared.map(|&(_, _, _, index)| index);
        indexes.find(is_silent)
    }

    pub(super) fn look_for_silence(&mut self, node: u32) {
        let silent = self.silent(node);
        let guard = &mut self.nodes[node as usize].guard;
        match (guard.breaker.state(), silent) {
            (State::Closed | State::Recovering, Some(_)) => {
                let why = format!(
                    "has answered nothing for {} ms",
                    self.settings.breaker_silence_ms
                );
                self.fail(node, Cause::Silent, &why);
                self.want_look();
            }
            (State::HalfOpen, Some(index)) => match guard.answered_at {
                0 => self.probe(node),
                at if self.now > at + GRACE => {
                    self.close_upstream(index, "it answers elsewhere, and nothing here");
                }
                _ => {}
            },
            (State::Open | State::HalfOpen, None) if guard.cause == Cause::Silent => {
                // Its connection was lost or has answered: now it is to be seen what it does.
                guard.cause = Cause::Failing;
            }
            _ => {}
        }
    }

    /// Asks a node over a new connection whether it is there: its set-up is the question.
    fn probe(&mut self, node: u32) {
        let prober = self.nodes[node as usize].guard.prober;
        if prober.is_some_and(|(index, generation)| self.is_there(index, generation)) {
            return;
        }
        let (protocol, db) = self.usual();
        let opened = self
            .dial(node, Role::Pinned(None), protocol, db, SERVICE)
            .ok();
        if let Some(index) = opened {
            // One that runs a script lets connections come, and answers nothing on them but BUSY.
            let up = &mut self.upstreams[index as usize];
            up.ask(&[b"PING"], Owner::Setup(Step::Probe), self.now);
            up.setup_end = up.out.len();
        }
        let named = opened.map(|index| (index, self.upstreams[index as usize].generation));
        self.nodes[node as usize].guard.prober = named;
    }

    /// A node that was asked whether it is there runs a script: so do its old connections lead there.
    pub(super) fn on_busy(&mut self, node: u32, index: u32) {
        self.upstreams[index as usize].is_dropped = true;
        self.close_upstream(index, "it is busy with a script");
        self.nodes[node as usize].guard.prober = None;
        self.fail(node, Cause::Silent, "is busy with a script");
    }
}
