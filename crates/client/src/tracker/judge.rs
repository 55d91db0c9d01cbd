//! Judging what is hot, from the counts of this process alone.
//!
//! A key is nominated when it has part of what makes it hot, so at that moment it is usually not hot yet.
//! For a while after a nomination is therefore judged every few milliseconds, as often as a small part of
//! one core allows; else every tenth of a second.

use std::time::Duration;

use keyheat_core::detect::{Detector, DetectorSettings, ShardReport};
use keyheat_core::hash::ByHash;
use keyheat_core::Nanos;
use keyheat_net::clock::{self, MS};
use keyheat_net::lock;

use crate::engine::{HotPlan, Shared};
use crate::settings::Settings;

/// How often is judged without being asked.
const TICK: Nanos = 100 * MS;
/// After a nomination is judged at least so often…
const LOOK_EVERY: Nanos = 5 * MS;
/// …for so long…
const LOOK_FOR: Nanos = 200 * MS;
/// …unless judging takes more than one part in so many of the time.
const LOOK_COST: u64 = 50;
/// Caching pays where a key is read this many times for each write, and then keeps being cached
/// down to a third less: each write costs an invalidation, a registration and a read.
const READS_PER_WRITE: f64 = 3.0;

pub(super) struct Judge {
    detector: Detector,
    window: Duration,
    next_tick: Nanos,
    next_look: Nanos,
    look_until: Nanos,
    plans: ByHash<HotPlan>,
    is_idle: bool,
}

impl Judge {
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let window = Duration::from_millis(settings.window_ms);
        let detector = DetectorSettings {
            window,
            max_hot_keys: settings.hot_keys_max,
            ..DetectorSettings::default()
        };
        Ok(Self {
            detector: Detector::new(settings.rule_set()?, detector),
            window,
            next_tick: 0,
            next_look: Nanos::MAX,
            look_until: 0,
            plans: ByHash::default(),
            is_idle: false,
        })
    }

    /// When the next tick is due; `None` while there is no traffic and nothing is hot.
    pub fn next(&self) -> Option<Nanos> {
        (!self.is_idle).then_some(self.next_tick.min(self.next_look))
    }

    /// Returns whether the key is new to the detector, so that judging is worth while at once.
    pub fn nominate(&mut self, key: &[u8], key_hash: u64, node: u32, now: Nanos) -> bool {
        let is_new = self.detector.nominate(key, key_hash, node, now);
        if is_new {
            self.look_until = now + LOOK_FOR;
            self.is_idle = false;
        }
        is_new
    }

    pub fn set_nodes(&mut self, node_of: impl Fn(&[u8]) -> Option<u32>) {
        self.detector.set_nodes(node_of);
    }

    pub fn run<V: Clone>(&mut self, shared: &Shared<V>, is_urgent: bool, now: Nanos) {
        if now < self.next_tick.min(self.next_look) && !is_urgent {
            return;
        }
        let is_tick = now >= self.next_tick;
        if is_tick {
            self.next_tick = now + TICK;
        }
        let candidates = self.detector.candidates();
        let mut reports = Vec::with_capacity(shared.counting.len());
        let mut is_idle = true;
        for (reporter, counting) in shared.counting.iter().enumerate() {
            let mut counting = lock(counting);
            let window = &mut counting.window;
            let nodes = window.nodes(now);
            is_idle &= nodes.is_empty();
            let keys = candidates.iter().map(|&h| (h, window.estimate(h, now)));
            reports.push(ShardReport {
                reporter: reporter as u32,
                keys: keys.collect(),
                totals: nodes.iter().map(|&n| (n, window.totals(n, now))).collect(),
                error: window.error(now),
            });
            if is_tick {
                let nominator = shared.nominator();
                window.tune_check_steps(now, |totals| nominator.check_steps(totals, self.window));
                counting.nominated.clear();
            }
        }
        self.detector.judge(&reports, now);
        self.publish(shared);
        self.is_idle = is_idle && self.plans.is_empty();
        let done = clock::now();
        self.next_look = if done < self.look_until {
            done + LOOK_EVERY.max(done.saturating_sub(now) * LOOK_COST)
        } else {
            Nanos::MAX
        };
    }

    fn publish<V: Clone>(&mut self, shared: &Shared<V>) {
        let set = self.detector.hot_set();
        let old = shared.hot();
        if set.is_empty() && old.set.is_empty() {
            return;
        }
        let mut plans = ByHash::default();
        for key in set.iter() {
            let was = self.plans.get(&key.key_hash).copied();
            if was.is_none() {
                shared.stats.became_hot.add(1);
            }
            let margin = match was {
                Some(was) if was.local_cache => READS_PER_WRITE,
                _ => READS_PER_WRITE * 1.5,
            };
            let is_paying = key.heat.reads_per_s >= margin * key.heat.writes_per_s;
            let plan = HotPlan {
                local_cache: key.plan.local_cache && is_paying,
                coalesce: key.plan.coalesce,
                copies: key.plan.copies,
                replica_reads: key.plan.replica_reads,
            };
            plans.insert(key.key_hash, plan);
        }
        self.plans.clone_from(&plans);
        shared.publish(set, plans);
    }
}
