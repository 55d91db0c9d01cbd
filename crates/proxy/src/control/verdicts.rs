//! From a hot set to what is done for each key of it, told to the shards and shown by the API.

use std::collections::BTreeSet;
use std::sync::Arc;

use keyheat_core::hash::ByHash;
use keyheat_core::hotset::HotSet;
use keyheat_core::Nanos;
use keyheat_net::clock;

use super::{Control, HitRate, HotNow, TICK};
use crate::copies::maker::ToMaker;
use crate::copies::names::{Beside, PREFIX};
use crate::hotview::{CopiedKey, HotPlan, HotView};
use crate::shard::{Hits, ToShard};

/// A key that is copied, as control knows it.
pub(super) struct Copied {
    key: CopiedKey,
    since: Nanos,
    cooled_at: Option<Nanos>,
}

impl Control {
    pub(super) fn publish(&mut self, set: Arc<HotSet>, hits: &ByHash<Hits>, is_tick: bool) {
        let copied = self.copied_now(&set);
        let mut plans = ByHash::default();
        let limits = &self.ruled.limits;
        for key in set.iter() {
            let was = self.sent_plans.get(&key.key_hash).copied();
            let pays = self.pays(key.heat.reads_per_s, key.heat.writes_per_s, was);
            // A lock is for the primary alone to answer.
            let is_lock = self.shared.locks.contains(key.key_hash, clock::now());
            let plan = HotPlan {
                local_cache: key.plan.local_cache && pays && !is_lock,
                coalesce: key.plan.coalesce && !is_lock,
                replica_reads: key.plan.replica_reads && !is_lock,
                copies: copied
                    .get(&key.key_hash)
                    .is_some_and(|c| c.read_after.is_some()),
                limits: limits
                    .iter()
                    .position(|l| l.rule == key.rule && !is_lock)
                    .map(|p| p as u16),
            };
            plans.insert(key.key_hash, plan);
        }
        let is_other = plans != self.sent_plans || *limits != self.sent_limits;
        if is_other || copied != self.sent_copied {
            self.sent_copied.clone_from(&copied);
            self.sent_limits.clone_from(limits);
            let view = Arc::new(HotView {
                plans: plans.clone(),
                copied,
                limits: limits.clone(),
            });
            for shard in &self.shards {
                let _ = shard.tell(ToShard::Hot(Arc::clone(&view)));
            }
            self.sent_plans.clone_from(&plans);
        }
        let old = self.shared.hot.load();
        let rates = set.iter().map(|key| {
            let h = hits.get(&key.key_hash).copied().unwrap_or_default();
            let before = self.last_hits.get(&key.key_hash).copied().unwrap_or(0);
            let per_s = if is_tick {
                h.count.saturating_sub(before) as f64 / TICK.as_secs_f64()
            } else {
                old.hits.get(&key.key_hash).map_or(0.0, |r| r.per_s)
            };
            let rate = HitRate {
                count: h.count,
                per_s,
                first_ns: (h.first != 0).then_some(h.first),
            };
            (key.key_hash, rate)
        });
        let rates: ByHash<HitRate> = rates.collect();
        if is_tick {
            self.last_hits = rates.iter().map(|(&h, r)| (h, r.count)).collect();
        }
        self.shared.hot.store(Arc::new(HotNow {
            set,
            hits: rates,
            plans,
        }));
    }

    /// The keys that have copies, or may still have some; tells the maker.
    fn copied_now(&mut self, set: &HotSet) -> ByHash<CopiedKey> {
        let now = clock::now();
        let bound = self.settings.copies_max_staleness_ms * clock::MS;
        let is_cluster = self
            .shared
            .topology
            .load()
            .as_ref()
            .is_some_and(|t| t.is_cluster());
        let may = is_cluster && self.ruled.may_copy;
        let wanted: BTreeSet<u64> = set
            .iter()
            .filter(|key| may && key.plan.copies && !key.key.starts_with(PREFIX))
            .filter(|key| !self.shared.locks.contains(key.key_hash, now))
            .take(self.settings.copies_keys_max)
            .map(|key| key.key_hash)
            .collect();
        for key in set.iter().filter(|key| wanted.contains(&key.key_hash)) {
            let copied = self.copied.entry(key.key_hash).or_insert_with(|| {
                let beside = Beside::of(&key.key);
                let key = CopiedKey {
                    key: Arc::from(&key.key[..]),
                    lease: beside.lease.into(),
                    register: beside.register.into(),
                    read_after: None,
                };
                Copied {
                    key,
                    since: now,
                    cooled_at: None,
                }
            });
            copied.cooled_at = None;
            copied.key.read_after = Some(copied.since + bound);
        }
        for (hash, copied) in &mut self.copied {
            if !wanted.contains(hash) {
                copied.cooled_at.get_or_insert(now);
                copied.key.read_after = None;
            }
        }
        // Writes void the copies of a key that has cooled for as long as there may be any.
        let is_left = |copied: &Copied| copied.cooled_at.is_none_or(|at| now < at + bound);
        self.copied.retain(|_, copied| is_left(copied));
        let all: ByHash<CopiedKey> = self
            .copied
            .iter()
            .map(|(hash, copied)| (*hash, copied.key.clone()))
            .collect();
        if all != self.sent_copied {
            let hot = all.values().filter(|copied| copied.read_after.is_some());
            let keys = hot.map(|copied| Arc::clone(&copied.key)).collect();
            let _ = self.maker.send(ToMaker::Keys(keys));
        }
        all
    }

    /// Whether caching a key saves more than it costs: each write makes every shard read it anew,
    /// with up to three commands. Between the two levels it stays as it was.
    fn pays(&self, reads_per_s: f64, writes_per_s: f64, was: Option<HotPlan>) -> bool {
        let cost = 3.0 * self.shards.len() as f64 * writes_per_s;
        let margin = if was.is_some_and(|p| p.local_cache) {
            1.0
        } else {
            1.5
        };
        reads_per_s >= margin * cost
    }
}
