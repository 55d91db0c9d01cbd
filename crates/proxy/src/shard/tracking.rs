//! Tracking connections: what is announced on them, and the heartbeats that prove freshness.
//!
//! A heartbeat asks `ROLE`, and in a Cluster `EXISTS` of one key for each slot that is cached and of
//! each key that is cached as missing (while its slot is on the way, other keys are still there); any
//! answer but that of the primary that owns the slot drops all that was cached from there. The promise
//! itself, and why it holds, is told in `keyheat_core::proof`.

use keyheat_core::Nanos;
use keyheat_resp::reply::{parse, Value};
use keyheat_resp::tracking::{invalidation, Invalidation};
use keyheat_resp::{slot, Limits};

use super::upstream::{Owner, Pending, Stage};
use super::Shard;
use crate::control::ToControl;
use keyheat_net::clock::{MS, SEC};

/// Heartbeats on their way at once; past that the connection is stuck.
const BEATS_MAX: u32 = 64;
/// After this long without an answer the tracking connection is opened anew.
const STUCK: Nanos = SEC;

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
        self.nodes[node as usize].track_backoff = 0;
        self.cache.source_up(Self::source(node));
    }

    pub(super) fn on_tracking_lost(&mut self, node: u32, why: &str) {
        self.cache.source_down(Self::source(node));
        let state = &mut self.nodes[node as usize];
        state.tracking = None;
        state.track_backoff = (state.track_backoff * 2).clamp(20 * MS, 2 * SEC);
        state.track_after = self.now + state.track_backoff;
        if state.refusal.is_none() {
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

    /// The server does not let us track: nothing of it is cached. Said once.
    pub(super) fn refuse_tracking(&mut self, node: u32, why: &str) {
        let name = self.node_name(node).to_owned();
        let state = &mut self.nodes[node as usize];
        if state.refusal.is_some() {
            return;
        }
        state.refusal = Some(why.to_owned());
        let why = format!("upstream {name} refused tracking: {why}");
        let _ = self.control.send(ToControl::NoTracking(why));
    }

    /// Asks every tracking connection with something cached whether it is still what it was.
    pub(super) fn beat(&mut self) {
        let is_cluster = self.topology.as_ref().is_some_and(|t| t.is_cluster());
        let (missing, hasher) = (&self.missing, &self.hasher);
        let mut is_any = false;
        let mut stuck = Vec::new();
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
            let age = up
                .pending
                .front()
                .map_or(0, |p| self.now.saturating_sub(p.sent_at));
            if age > STUCK.max(10 * self.settings.max_staleness_ms * MS) {
                stuck.push(index);
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
        for index in stuck {
            self.close_upstream(index, "heartbeats were not answered");
        }
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
            self.want_look();
            return self.close_upstream(index, "it no longer owns what was cached from it");
        }
        if is_last && is_whole {
            self.cache.proved(Self::source(node), pending.sent_at);
        }
    }
}
