//! Tracking connections: what is announced on them, and the heartbeats that prove freshness.
//!
//! A heartbeat asks `ROLE`, and in a Cluster `EXISTS` of one key for each slot that is cached and of
//! each key that is cached as missing (while its slot is on the way, other keys are still there); any
//! answer but that of the primary that owns the slot drops all that was cached from there. The promise
//! itself, and why it holds, is told in `keyheat_core::proof`.
//!
//! A connection that is lost is opened anew after a pause, which doubles until a heartbeat was answered well:
//! one that opens and is lost at its first question has proved nothing. An error that stays until somebody
//! changes something is believed for longer ([`REFUSED_FOR`]), and never for ever.

use keyheat_core::Nanos;
use keyheat_resp::reply::{parse, Value};
use keyheat_resp::tracking::{invalidation, trouble, Invalidation, Trouble};
use keyheat_resp::{slot, Limits};

use super::upstream::{Owner, Pending, Role, Stage, Upstream};
use super::Shard;
use crate::control::ToControl;
use keyheat_net::clock::{MS, SEC};

/// Heartbeats on their way at once; past that the connection is stuck.
const BEATS_MAX: u32 = 64;
/// After this long without an answer the tracking connection is opened anew.
const STUCK: Nanos = SEC;
/// How long a refusal is believed.
const REFUSED_FOR: Nanos = 10 * SEC;

impl Shard {
    pub(super) fn on_push(&mut self, index: u32, frame: &[u8]) {
        let source = Self::source(self.upstreams[index as usize].node);
        let Ok(Some((Value::Push(parts), _))) = parse(frame, &Limits::default()) else {
            return;
        };
        let named = invalidation(&parts);
        match named {
            Some(Invalidation::Keys(keys)) => {
                for key in keys {
                    self.stats.invalidations.add(1);
                    let hash = self.hasher.hash(key);
                    self.cache.invalidate(source, hash, key);
                }
            }
            Some(Invalidation::All) => self.cache.invalidate_all(source),
            None => {}
        }
    }

    pub(super) fn on_tracking_ready(&mut self, index: u32) {
        let node = self.upstreams[index as usize].node;
        self.cache.source_up(Self::source(node));
        if !self.nodes[node as usize].is_refused_open {
            self.unrefuse(node);
        }
    }

    pub(super) fn on_tracking_lost(&mut self, node: u32, why: &str) {
        self.renew_stale();
        self.cache.source_down(Self::source(node));
        let state = &mut self.nodes[node as usize];
        state.tracking = None;
        state.track_backoff = (state.track_backoff * 2).clamp(20 * MS, 2 * SEC);
        state.track_after = (self.now + state.track_backoff).max(state.refused_until);
        if state.refused_until <= self.now {
            self.stats.tracking_lost.add(1);
            tracing::debug!(upstream = %self.node_name(node), "tracking connection ended: {why}");
        }
        let waiting: Vec<u64> = self
            .fills
            .iter()
            .filter(|(_, f)| f.waits_for(node))
            .map(|(n, _)| *n)
            .collect();
        for number in waiting {
            self.abandon(number);
        }
    }

    /// The server said no to what tracking needs. Returns whether it is an error that stays.
    ///
    /// Args: `error` without the leading `-`.
    pub(super) fn on_refused(&mut self, node: u32, error: &[u8]) -> bool {
        let is_refused = trouble(error) == Trouble::Refused;
        if is_refused {
            let said = String::from_utf8_lossy(error);
            self.refuse_tracking(node, said.trim_end());
        }
        is_refused
    }

    /// The server does not let us track: nothing of it is cached, and it is asked again after a while.
    pub(super) fn refuse_tracking(&mut self, node: u32, why: &str) {
        let name = self.node_name(node).to_owned();
        let state = &mut self.nodes[node as usize];
        let tracking = state
            .tracking
            .and_then(|index| self.upstreams.get(index as usize));
        state.is_refused_open = tracking.is_some_and(|up| up.stage == Stage::Ready);
        state.refused_until = self.now + REFUSED_FOR;
        state.track_after = state.refused_until;
        state.is_refusal_told = true;
        let why = format!("upstream {name} refused tracking: {why}");
        let told = ToControl::NoTracking(self.index, node, why);
        let _ = self.control.send(told);
    }

    /// A whole heartbeat was answered well.
    fn on_proved(&mut self, node: u32, sent_at: Nanos) {
        self.cache.proved(Self::source(node), sent_at);
        self.report_proof(node);
        self.nodes[node as usize].track_backoff = 0;
        self.unrefuse(node);
    }

    /// Nothing is refused by the node any more, or it is of no interest.
    pub(super) fn unrefuse(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        state.is_refused_open = false;
        if std::mem::take(&mut state.is_refusal_told) {
            let _ = self.control.send(ToControl::Tracking(self.index, node));
        }
    }

    /// Whether what was asked on a tracking connection has gone unanswered for so long that it must be
    /// opened anew, whether anything is cached from it or not.
    pub(super) fn is_hung(&self, up: &Upstream) -> bool {
        if up.role != Role::Tracking || up.stage != Stage::Ready {
            return false;
        }
        let oldest = up.pending.front();
        let age = oldest.map_or(0, |p| self.now.saturating_sub(p.sent_at));
        age > STUCK.max(10 * self.settings.max_staleness_ms * MS)
    }

    /// Asks every tracking connection with something cached whether it is still what it was.
    pub(super) fn beat(&mut self) {
        let is_cluster = self.is_cluster();
        let (missing, hasher) = (&self.missing, &self.hasher);
        let mut is_any = false;
        for (node, state) in self.nodes.iter().enumerate() {
            let source = Self::source(node as u32);
            let Some(index) = state.tracking else {
                continue;
            };
            if self.cache.is_idle(source) {
                continue;
            }
            is_any = true;
            let Some(up) = self.upstreams.get_mut(index as usize) else {
                continue;
            };
            if up.stage != Stage::Ready {
                continue;
            }
            if up.beats_in_flight >= BEATS_MAX {
                continue;
            }
            let mut probes: Vec<Vec<u8>> = Vec::new();
            if is_cluster {
                let mut slots = hashbrown::HashSet::new();
                self.cache.for_each_registered(source, |key, _| {
                    let is_missing = missing.contains_key(&hasher.hash(key));
                    if slots.insert(slot::slot(key)) || is_missing {
                        probes.push(key.to_vec());
                    }
                });
            }
            let beat = |is_role, is_last| Owner::Beat { is_role, is_last };
            let owner = beat(true, probes.is_empty());
            up.ask(&[b"ROLE"], owner, self.now);
            for (i, key) in probes.iter().enumerate() {
                let owner = beat(false, i + 1 == probes.len());
                up.ask(&[b"EXISTS", key], owner, self.now);
            }
            up.beats_in_flight += 1;
            self.stats.heartbeats.add(1);
            if !up.is_dirty {
                up.is_dirty = true;
                self.dirty_upstreams.push((index, up.generation));
            }
        }
        self.next_beat = if is_any {
            self.now + self.beat_every
        } else {
            0
        };
    }

    pub(super) fn on_beat(
        &mut self,
        index: u32,
        pending: &Pending,
        is_role: bool,
        is_last: bool,
        frame: &[u8],
    ) {
        let is_good = if is_role {
            super::replies::is_primary(frame)
        } else {
            frame[0] == b':'
        };
        let up = &mut self.upstreams[index as usize];
        up.is_beat_good = is_good && (is_role || up.is_beat_good);
        let (is_whole, node) = (up.is_beat_good, up.node);
        if is_last {
            up.beats_in_flight = up.beats_in_flight.saturating_sub(1);
        }
        if !is_good {
            let error = frame.strip_prefix(b"-").unwrap_or_default();
            if !(frame[0] == b'-' && self.on_refused(node, error)) {
                self.want_look();
            }
            return self.close_upstream(index, "it no longer owns what was cached from it");
        }
        if is_last && is_whole {
            self.on_proved(node, pending.sent_at);
        }
    }
}
