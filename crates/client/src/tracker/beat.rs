//! Heartbeats: when a server is asked whether it is still what it was, and what the answers can hold.
//!
//! # Heartbeats must not become the hot spot
//!
//! A server tells how many clients track it. Where their heartbeats would take more than
//! [`BEAT_BUDGET`] of it, the interval grows with their number, and the staleness bound with it if the
//! settings allow; if not, the bound stays and the statistics say so. It grows no further than
//! [`WIDEST`]: past that nothing is cached from the node, and `not_caching` says why.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use keyheat_core::cache::SourceId;
use keyheat_core::Nanos;
use keyheat_net::clock::{MS, SEC};
use keyheat_net::lock;

use super::{NodeState, Tracker, STUCK};
use crate::connect::Refusal;
use crate::settings::Settings;

/// A heartbeat costs a server about this much processor time, most of it to notice one more connection.
const BEAT_COST: Nanos = 25_000;
/// The part of a server's core that all heartbeats together may take: one in so many.
const BEAT_BUDGET: u64 = 50;
/// Heartbeats go on so long after the last lookup.
const BEAT_ON: Nanos = SEC;
/// How often a server is asked how many clients track it.
const CENSUS_EVERY: Nanos = 10 * SEC;
/// The bound is widened for many clients up to this.
const WIDEST: Nanos = 10 * SEC;

impl<V: Clone + Send + Sync + 'static> Tracker<V> {
    /// So many clients track a node: its heartbeats are spaced by that, or it is cached from no longer.
    pub(super) fn on_census(&mut self, number: u32, clients: u32) {
        let pace = pace(&self.shared.settings, clients);
        let Some(state) = self.nodes.get_mut(&number) else {
            return;
        };
        state.tracking_clients = clients;
        let was_crowded = std::mem::replace(&mut state.is_crowded, pace.is_none());
        if was_crowded != state.is_crowded {
            let source = SourceId(number);
            let mut cached = lock(&self.shared.cached);
            if pace.is_some() {
                cached.cache.source_up(source);
            } else {
                // The connection stays, to be asked again: opening one costs a server more.
                cached.cache.source_down(source);
            }
            cached.forget_fields();
        }
        match pace {
            Some(_) if was_crowded => self.unrefuse(number),
            Some(_) => {}
            None => self.refuse(
                number,
                &format!(
                    "{clients} clients track it: heartbeats that do not burden it would make \
                     values older than {} s",
                    WIDEST / SEC
                ),
            ),
        }
        self.set_bound();
    }

    /// The interval between two heartbeats to a node with so many tracking clients.
    pub(super) fn interval(&self, clients: u32) -> Nanos {
        pace(&self.shared.settings, clients).map_or(WIDEST, |pace| pace.interval)
    }

    /// Widens the bound to what the slowest heartbeat can hold, or takes it back.
    pub(super) fn set_bound(&self) {
        let states = self.nodes.values().filter(|state| !state.is_crowded);
        let clients = states.map(|state| state.tracking_clients).max();
        let Some(pace) = pace(&self.shared.settings, clients.unwrap_or(0)) else {
            return;
        };
        self.shared.beat_ns.store(pace.interval, Relaxed);
        if self.shared.bound_ns.swap(pace.bound, Relaxed) != pace.bound {
            let mut cached = lock(&self.shared.cached);
            let bound = Duration::from_nanos(pace.bound);
            cached.cache.set_max_staleness(bound);
        }
    }

    /// Asks every tracking connection with something cached whether it is still what it was.
    pub(super) fn beat(&mut self, now: Nanos) {
        if now < self.next_beat {
            return;
        }
        self.account(now);
        let is_wanted = now.saturating_sub(self.shared.wanted_at.load(Relaxed)) <= BEAT_ON;
        let numbers: Vec<u32> = self.nodes.keys().copied().collect();
        let mut next = None;
        for number in numbers {
            if self.is_stuck(number, now) {
                let why = Refusal::Unreachable("heartbeats were not answered".into());
                self.lose(number, &why, now);
                continue;
            }
            let probes = {
                let cached = lock(&self.shared.cached);
                let source = SourceId(number);
                if cached.cache.is_idle(source) || !is_wanted {
                    None
                } else {
                    Some(self.probes(&cached.cache, source))
                }
            };
            let clients = self.nodes.get(&number).map_or(0, |s| s.tracking_clients);
            let interval = self.interval(clients);
            let Some(state) = self.nodes.get_mut(&number) else {
                continue;
            };
            let Some(conn) = state.conn.as_mut() else {
                continue;
            };
            if now >= state.next_census {
                state.next_census = now + CENSUS_EVERY;
                conn.ask_census(now);
            }
            let Some(probes) = probes else {
                continue;
            };
            if now.saturating_sub(conn.beaten_at) >= interval - interval / 8 {
                conn.beat(&probes, now);
                self.shared.stats.heartbeats.add(1);
            }
            next = Some(next.unwrap_or(Nanos::MAX).min(conn.beaten_at + interval));
        }
        // A connection that is asked something must be seen to be stuck, beats or not.
        if next.is_none() && self.nodes.values().any(NodeState::is_waiting) {
            next = Some(now + STUCK / 4);
        }
        self.next_beat = next.map_or(0, |next| next.max(now + MS));
    }

    /// The keys a heartbeat has to ask for: one of each cached slot, and each that is cached as missing
    /// (while its slot is on the way, other keys of it are still there).
    fn probes(
        &self,
        cache: &keyheat_core::cache::LocalCache<V>,
        source: SourceId,
    ) -> Vec<Box<[u8]>> {
        let mut probes: Vec<Box<[u8]>> = Vec::new();
        if !self.shared.topology().is_cluster() {
            return probes;
        }
        let mut slots = hashbrown::HashSet::new();
        cache.for_each_registered(source, |key, found| {
            if slots.insert(keyheat_resp::slot::slot(key)) || found.is_missing {
                probes.push(key.into());
            }
        });
        probes
    }

    fn is_stuck(&self, number: u32, now: Nanos) -> bool {
        let bound = 10 * self.shared.bound_ns.load(Relaxed);
        let conn = self.nodes.get(&number).and_then(|s| s.conn.as_ref());
        conn.is_some_and(|conn| conn.waiting_for(now) > STUCK.max(bound.min(10 * SEC)))
    }

    /// Adds up for how long something was cached, and for how long of it without a proof.
    fn account(&mut self, now: Nanos) {
        let past = now.saturating_sub(self.accounted_at);
        self.accounted_at = now;
        let is_wanted = now.saturating_sub(self.shared.wanted_at.load(Relaxed)) <= BEAT_ON;
        let cached = lock(&self.shared.cached);
        if cached.cache.is_empty() || !is_wanted {
            return;
        }
        self.shared.stats.cached_ns.add(past);
        let is_unproved = |number: &u32| {
            let source = SourceId(*number);
            !cached.cache.is_idle(source) && !cached.cache.is_proved(source, now)
        };
        if self.nodes.keys().any(is_unproved) {
            self.shared.stats.unproved_ns.add(past);
        }
    }
}

/// How often a node is asked, and the staleness bound that this can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    pub interval: Nanos,
    pub bound: Nanos,
}

/// The pace for a node that so many clients track; `None` where it would be too slow to be of use.
pub(super) fn pace(settings: &Settings, clients: u32) -> Option<Pace> {
    let set = settings.max_staleness_ms * MS;
    let wanted = set / 4;
    let interval = if settings.may_widen {
        wanted.max(u64::from(clients) * BEAT_COST * BEAT_BUDGET)
    } else {
        wanted
    };
    // One beat on its way, and half an interval to spare.
    let bound = set.max(interval + interval / 2);
    (bound <= set.max(WIDEST)).then_some(Pace { interval, bound })
}
