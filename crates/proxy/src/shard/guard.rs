//! The guard of each upstream node: whether requests go there, and what is said where they do not.
//!
//! What it is: a circuit breaker per node (`keyheat_core::overload::breaker`), fed with what happens on the
//! connections that clients share. One mechanism for all that can be wrong with a node:
//!
//! - *It cannot be connected to*, or does not get through a connection's set-up: opens at once. Where a connection
//!   from before still stands (the server has as many clients as it may have), only new ones are not tried.
//! - *It answers nothing*: something asked on a shared connection has waited `breaker_silence_ms`, and no byte
//!   has come on it meanwhile: opens at once.
//! - *Too many requests fail*, or too many answers are slow, over a sliding window.
//!
//! What counts as a failure: `LOADING` (it cannot serve anything until it has loaded), `MASTERDOWN` (a replica
//! that may not serve what it has), `CLUSTERDOWN` (it serves no slot), `BUSY` (nothing runs until somebody ends
//! the script), and a connection that is lost while something is awaited on it. An open breaker says the same
//! word, so a client that knows what to do about `LOADING` loses nothing. All other errors are answers:
//! `WRONGTYPE`, `NOPERM`, `OOM`, and `READONLY` and `MOVED`, which the topology sees to.
//!
//! What many requests share is counted once: they lie on one connection, so one slow command (a script of two
//! seconds) makes all behind it slow, and a connection that is lost fails all of them. Hence a few answers
//! are timed, at most eight at once per connection, and a lost connection is one failure.
//!
//! Why per shard and not shared: a shard's connections fail on their own, what it sees it sees in one thread
//! without an atomic, and a node that is down costs each shard one attempt per pause. The price: each shard
//! finds out for itself, so `breaker_calls_min` counts per shard, and so do probes.
//!
//! A node that went silent is asked over a new connection, since what is asked on a silent one would only wait
//! as well. If it answers there and still not here, the silent connection is dead, and is closed. If it answers
//! here after all (the script has ended), that is as good as a probe.
//!
//! Sessions (pinned connections) are not turned back once they are open; no new one is opened during a pause.
//!
//! Cost: per request one comparison ([`Shard::is_at_gate`]); per read from a node a few additions; the rest on
//! the tick. Off-switch: `breaker = false`; then only failed connections make a pause, as every request would
//! try one otherwise.

use keyheat_core::overload::breaker::{Breaker, State, Sums};
use keyheat_core::overload::gradient::GradientLimit;
use keyheat_core::Nanos;

use super::upstream::{Role, Stage, Upstream};
use super::{Shard, TICK};
use keyheat_net::clock::{MS, SEC};

const TICKS_PER_S: f64 = (SEC / TICK) as f64;

/// Why a breaker is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Cause {
    #[default]
    Unreachable,
    Silent,
    Failing,
}

/// What a shard knows of how a node does.
#[derive(Default)]
pub(super) struct Guard {
    pub breaker: Breaker,
    pub cause: Cause,
    why: String,
    /// The word with which the node last refused.
    code: &'static str,
    /// Since the breaker was last told.
    calls: u32,
    failures: u32,
    times: u32,
    slow: u32,
    took: Nanos,
    peak: u32,
    pub limit: GradientLimit,
    /// Answers per second, smoothed.
    rate: f64,
    /// It is not closed: whatever is heard is looked at.
    is_watched: bool,
    /// When it answered on a new connection while it was left alone.
    pub answered_at: Nanos,
    /// Place and generation of the connection over which it is asked.
    pub prober: Option<(u32, u32)>,
    pub turned_back: u64,
    pub stale_answers: u64,
}

impl Shard {
    /// Whether a request may be sent to `node` on one of its shared connections.
    ///
    /// # Errors
    /// What its client is told.
    #[inline]
    pub(super) fn check_gate(&mut self, node: u32, index: u32) -> Result<(), String> {
        if self.is_at_gate(node, index) {
            return self.admit(node);
        }
        Ok(())
    }

    /// Whether one more request on a shared connection is to be looked at.
    #[inline]
    pub(super) fn is_at_gate(&self, node: u32, index: u32) -> bool {
        self.upstreams[index as usize].pending.len() >= self.nodes[node as usize].gate
    }

    /// As `check_gate`, before it is known on which connection; what is for a replica passes.
    pub(super) fn check_node(&mut self, node: u32) -> Result<(), String> {
        let topology = self.topology.as_ref();
        let is_replica = topology.is_some_and(|t| t.primary_of(node).is_some());
        if is_replica || self.under_way(node) < self.nodes[node as usize].gate {
            return Ok(());
        }
        self.admit(node)
    }

    /// As `check_gate`, wherever it would go.
    #[cold]
    pub(super) fn admit(&mut self, node: u32) -> Result<(), String> {
        let (now, under_way) = (self.now, self.under_way(node));
        let is_silent = self.silent(node).is_some();
        let has_way = self.has_way(node);
        let guard = &mut self.nodes[node as usize].guard;
        guard.breaker.advance(now);
        let is_half_open = guard.breaker.state() == State::HalfOpen;
        let settings = &self.overload.breaker;
        let may = !self.overload.has_breaker
            || has_way
            || !(is_half_open && is_silent) && guard.breaker.admit(now, under_way, settings);
        self.set_gate(node);
        let state = &mut self.nodes[node as usize];
        state.is_full = may && under_way >= state.room;
        if may && !state.is_full {
            return Ok(());
        }
        if !may {
            self.note_turned_back(node, 1);
            return Err(self.why_not(node));
        }
        Err(self.too_many(node, under_way))
    }

    /// Whether only new connections to a node fail (it has as many clients as it may have), and one that there
    /// was before still stands: the requests of those who share it go on. Not where that one is silent.
    fn has_way(&self, node: u32) -> bool {
        if self.overload.has_breaker && self.silent(node).is_some() {
            return false;
        }
        let state = &self.nodes[node as usize];
        let since = state.guard.breaker.failing_since();
        let shared = state.shared.iter();
        let mut found = shared.filter_map(|&(_, _, _, index)| self.upstreams.get(index as usize));
        state.guard.cause == Cause::Unreachable
            && found.any(|up| up.stage == Stage::Ready && up.opened_at < since)
    }

    pub(super) fn note_turned_back(&mut self, node: u32, count: u64) {
        self.stats.turned_back.add(count);
        self.nodes[node as usize].guard.turned_back += count;
    }

    /// Requests that are on their way to a node on shared connections, and in line.
    pub(super) fn under_way(&self, node: u32) -> usize {
        let shared = self.nodes[node as usize].shared.iter();
        let found = shared.filter_map(|&(_, _, _, index)| self.upstreams.get(index as usize));
        found.map(|up| up.pending.len()).sum()
    }

    /// Whether a connection to `node` may be opened now. One that is silent is asked over one of our own first,
    /// or whoever wants one waits for as long as its set-up may take.
    ///
    /// # Errors
    /// What a client is told who wants it.
    pub(super) fn check_pause(&mut self, node: u32) -> Result<(), String> {
        let guard = &mut self.nodes[node as usize].guard;
        guard.breaker.advance(self.now);
        let may = match guard.breaker.state() {
            State::Open => false,
            State::HalfOpen => !self.overload.has_breaker || self.silent(node).is_none(),
            _ => true,
        };
        if may {
            return Ok(());
        }
        self.nodes[node as usize].is_full = false;
        Err(self.why_not(node))
    }

    /// Whether nothing is sent to a node for now.
    pub(super) fn is_left_alone(&self, node: u32) -> bool {
        self.nodes[node as usize]
            .guard
            .breaker
            .retry_after(self.now)
            > 0
    }

    fn why_not(&self, node: u32) -> String {
        let guard = &self.nodes[node as usize].guard;
        let name = self.node_name(node);
        let (why, code) = (&guard.why, guard.code);
        let code = if guard.cause == Cause::Failing && !matches!(code, "" | "BUSY") {
            code
        } else {
            "ERR"
        };
        match guard.breaker.state() {
            State::Recovering => format!(
                "ERR keyheat: upstream {name} answers again, and gets only a share of the requests at \
                 first; try again"
            ),
            State::HalfOpen => {
                format!("{code} keyheat: upstream {name} {why}; it is being tried now")
            }
            _ => {
                let wait = guard.breaker.retry_after(self.now).div_ceil(MS);
                format!("{code} keyheat: upstream {name} {why}; next try in {wait} ms")
            }
        }
    }

    /// A node could not be connected to, or did not get through the set-up.
    pub(super) fn on_unreachable(&mut self, node: u32, why: &str) {
        self.fail(
            node,
            Cause::Unreachable,
            &format!("cannot be reached: {why}"),
        );
    }

    pub(super) fn fail(&mut self, node: u32, cause: Cause, why: &str) {
        let chance = self.random.draw();
        let guard = &mut self.nodes[node as usize].guard;
        let settings = &self.overload.breaker;
        if guard.breaker.fail(self.now, chance, settings) {
            self.on_opened(node, cause, why);
        }
    }

    fn on_opened(&mut self, node: u32, mut cause: Cause, why: &str) {
        // A node that hangs lets nobody in either: what it is waited for is that it answers.
        if cause == Cause::Unreachable && self.overload.has_breaker && self.silent(node).is_some() {
            cause = Cause::Silent;
        }
        let guard = &mut self.nodes[node as usize].guard;
        guard.cause = cause;
        why.clone_into(&mut guard.why);
        guard.answered_at = 0;
        let is_first = guard.breaker.in_a_row() == 1;
        let pause_ms = guard.breaker.retry_after(self.now) / MS;
        self.set_gate(node);
        if !self.has_way(node) {
            let text = self.why_not(node);
            self.turn_back_late(node, 0, &text);
        }
        if cause == Cause::Silent {
            self.join_no_more(node);
            self.answer_sent_from_stale(node);
        }
        // Shards find out together.
        if is_first && self.index == 0 {
            tracing::warn!(upstream = %self.node_name(node), pause_ms, "left alone: it {why}");
        }
    }

    /// A connection to a node got through its set-up.
    pub(super) fn on_node_answers(&mut self, node: u32, index: u32) {
        let generation = self.upstreams[index as usize].generation;
        let guard = &mut self.nodes[node as usize].guard;
        if guard.breaker.state() == State::Closed {
            return;
        }
        guard.answered_at = self.now;
        let is_prober = guard.prober == Some((index, generation));
        if guard.cause == Cause::Unreachable {
            guard.breaker.prove(self.now, &self.overload.breaker);
            self.on_proved_node(node);
        }
        if is_prober {
            self.nodes[node as usize].guard.prober = None;
            self.upstreams[index as usize].is_dropped = true;
            self.close_upstream(index, "no longer needed");
        }
    }

    /// The breaker may have been switched off: only what cannot be connected to is left alone any longer.
    pub(super) fn guard_as_told(&mut self) {
        if self.overload.has_breaker {
            return;
        }
        for node in 0..self.nodes.len() as u32 {
            let guard = &mut self.nodes[node as usize].guard;
            if guard.cause != Cause::Unreachable {
                guard.breaker.prove(self.now, &self.overload.breaker);
            }
            self.set_gate(node);
        }
    }

    fn on_proved_node(&mut self, node: u32) {
        self.set_gate(node);
        if self.index == 0 {
            tracing::info!(upstream = %self.node_name(node), "it answers again");
        }
    }

    /// A node refused a request with an error that says how it does.
    #[cold]
    pub(super) fn note_failure(&mut self, node: u32, error: &[u8]) {
        if let Some(code) = failure(error) {
            let guard = &mut self.nodes[node as usize].guard;
            guard.failures += 1;
            guard.code = code;
        }
    }

    /// A connection on which something was awaited is lost: one failure.
    pub(super) fn note_loss(&mut self, up: &Upstream) {
        let is_one = matches!(up.role, Role::Shared | Role::Reader) && up.stage == Stage::Ready;
        if is_one && !up.is_dropped && !up.pending.is_empty() {
            let guard = &mut self.nodes[up.node as usize].guard;
            guard.calls += 1;
            guard.failures += 1;
            guard.code = "";
        }
    }

    /// Something was read from a node.
    ///
    /// Args: `waited` requests that waited there for their answers before.
    #[inline]
    pub(super) fn note_read(&mut self, index: u32, waited: usize) {
        let now = self.now;
        let Some(up) = self.upstreams.get_mut(index as usize) else {
            return;
        };
        if !matches!(up.role, Role::Shared | Role::Reader) {
            return;
        }
        up.heard_at = now;
        let guard = &mut self.nodes[up.node as usize].guard;
        guard.calls += waited.saturating_sub(up.pending.len()) as u32;
        guard.peak = guard.peak.max(waited as u32);
        while let Some(took) = up.marks.take(up.acked, now) {
            guard.times += 1;
            guard.slow += u32::from(took > self.overload.slow);
            guard.took += took;
        }
        let has_line = up.has_line;
        if guard.is_watched {
            let node = up.node;
            self.on_heard(node);
        }
        if has_line {
            self.mark_upstream(index);
        }
    }

    /// A node that is not trusted has said something.
    #[cold]
    fn on_heard(&mut self, node: u32) {
        self.tell_breaker(node);
        if self.silent(node).is_none() {
            let guard = &mut self.nodes[node as usize].guard;
            let is_back = guard.cause == Cause::Silent
                && matches!(guard.breaker.state(), State::Open | State::HalfOpen);
            if is_back {
                guard.breaker.prove(self.now, &self.overload.breaker);
                self.on_proved_node(node);
            }
        }
        self.set_gate(node);
    }

    /// Tells breaker and limit what was added up.
    fn tell_breaker(&mut self, node: u32) {
        let bounds = self.overload.limits;
        let guard = &mut self.nodes[node as usize].guard;
        let (took, peak) = (
            std::mem::take(&mut guard.took),
            std::mem::take(&mut guard.peak),
        );
        let peak = peak.min(guard.limit.limit(bounds.0, bounds.1));
        guard.limit.note(self.now, guard.times, took, peak, bounds);
        let ended = Sums {
            calls: std::mem::take(&mut guard.calls),
            failures: std::mem::take(&mut guard.failures),
            timed: std::mem::take(&mut guard.times),
            slow: std::mem::take(&mut guard.slow),
        };
        if ended == Sums::default() || !self.overload.has_breaker {
            return;
        }
        let (now, chance) = (self.now, self.random.draw());
        let settings = self.overload.breaker;
        let guard = &mut self.nodes[node as usize].guard;
        let was = guard.breaker.state();
        if guard.breaker.note(now, ended, chance, &settings) {
            let why = guard.failing(&ended, now, &settings);
            self.on_opened(node, Cause::Failing, &why);
        } else if was == State::HalfOpen && guard.breaker.state() != was {
            self.on_proved_node(node);
        }
    }

    /// On every tick.
    pub(super) fn look_after_nodes(&mut self) {
        for node in 0..self.nodes.len() as u32 {
            let guard = &mut self.nodes[node as usize].guard;
            guard.rate += (f64::from(guard.calls) * TICKS_PER_S - guard.rate) / TICKS_PER_S;
            self.tell_breaker(node);
            self.nodes[node as usize].guard.breaker.advance(self.now);
            if self.overload.has_breaker {
                self.look_for_silence(node);
            }
            self.set_gate(node);
            self.look_after_line(node);
        }
        self.report_nodes();
    }

    /// From how many requests on their way each further one is looked at.
    pub(super) fn set_gate(&mut self, node: u32) {
        let overload = &self.overload;
        let state = &mut self.nodes[node as usize];
        let is_open = state.guard.breaker.state() != State::Closed;
        state.guard.is_watched = is_open;
        let connections = state.shared.len().max(1);
        if overload.has_congestion {
            let (min, max) = overload.limits;
            let limit = state.guard.limit.limit(min, max) as usize;
            state.window = limit.div_ceil(connections);
            state.room = limit + overload.line(limit, state.guard.rate);
        } else {
            (state.window, state.room) = (usize::MAX, usize::MAX);
        }
        state.gate = if is_open { 0 } else { state.room / connections };
    }
}

impl Guard {
    fn failing(
        &self,
        ended: &Sums,
        now: Nanos,
        settings: &keyheat_core::overload::breaker::BreakerSettings,
    ) -> String {
        let mut sums = self.breaker.counted(now, settings);
        if sums.calls + sums.timed == 0 {
            sums = *ended;
        }
        let last = match self.code {
            "" => String::new(),
            code => format!(" (lastly: {code})"),
        };
        format!(
            "is failing: of {} requests {} failed{last}, of {} answers {} were slow",
            sums.calls, sums.failures, sums.timed, sums.slow
        )
    }
}

/// The word of an error that says that the node cannot serve.
fn failure(error: &[u8]) -> Option<&'static str> {
    ["LOADING", "CLUSTERDOWN", "MASTERDOWN", "BUSY"]
        .into_iter()
        .find(|word| {
            let rest = error.get(1..).and_then(|e| e.strip_prefix(word.as_bytes()));
            // BUSYGROUP and BUSYKEY are answers.
            rest.is_some_and(|rest| rest.starts_with(b" "))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_about_the_node_are_failures() {
        assert_eq!(failure(b"-LOADING it loads\r\n"), Some("LOADING"));
        assert_eq!(failure(b"-BUSY a script\r\n"), Some("BUSY"));
        for answer in [
            &b"-BUSYGROUP Consumer Group name already exists\r\n"[..],
            b"-WRONGTYPE x\r\n",
            b"-READONLY x\r\n",
            b"-ERR LOADING\r\n",
            b"-",
        ] {
            assert_eq!(failure(answer), None);
        }
    }
}
