//! Detection in two phases: reporters nominate, the detector polls, sums and judges.
//!
//! # What it is
//!
//! Traffic is seen in parts: by the shards of a proxy, later by whole processes. A reporter *nominates*
//! a key the moment its own counts say that the key may be hot overall ([`Nominator`], with the proof
//! that none is missed). The detector keeps the nominated keys as *candidates*, asks every reporter
//! for the counts of just those ([`Detector::candidates`]), sums them and moves each candidate through
//! cold, hot and cooling ([`Detector::judge`]). The result is a new [`HotSet`].
//!
//! Refused: sending each reporter's top keys. A key that is hot overall may be in no top list; in
//! simulation a tenth to nearly half of a hot key's count was lost that way. Full summaries lose
//! nothing and cost as much for ten thousand cold keys as for the hot ones.
//!
//! # Bounds
//!
//! Counts are sums of bounds, so they are bounds. Verdicts use the upper one: a key at its enter level
//! is always found, and one that is found has at least the level minus the sum of the reporters'
//! errors, which is told with its heat. A reporter that does not mention a candidate is taken to have
//! counted up to its error of it.
//!
//! # How a candidate enters and leaves
//!
//! It enters by nomination, if a rule matches it and there is room. A cold one leaves when nobody has
//! nominated it for two windows, or, when little room is left, if it is among the coldest: each poll
//! leaves a quarter of the places free. Hot and cooling keys stay. Where more keys are hot than
//! `max_hot_keys`, the hottest are kept, with a little preference for those that already were.
//!
//! Two keys with one hash: the first to be nominated is the candidate and answers for the counts of
//! both; the other is ignored. Nothing downstream trusts a hash where it could serve a wrong value.
//!
//! Cost: a poll is linear in candidates × reporters. Concurrency: none; one owner.

mod nominate;
mod state;

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

pub use nominate::Nominator;

use crate::hash::ByHash;
use crate::hotset::{Heat, HotKey, HotSet, HotState};
use crate::rule::{Level, Rule, RuleSet};
use crate::window::{Counts, ErrorBound, Totals};
use crate::{nanos, Nanos};
use nominate::{of_counts, of_totals};
use state::State;

/// Windows without a nomination after which a cold candidate is dropped.
const CANDIDATE_WINDOWS: u64 = 2;
/// How much hotter a newcomer must be to take a place in a full hot set.
const INCUMBENT_BONUS: f64 = 1.25;

/// How a [`Detector`] works and how large it may grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetectorSettings {
    /// The reporters' window; rates are counts over this.
    pub window: Duration,
    /// The most keys in the hot set.
    pub max_hot_keys: usize,
    /// The most keys under consideration; at least twice `max_hot_keys` are allowed.
    pub max_candidates: usize,
}

impl Default for DetectorSettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(1),
            max_hot_keys: 1000,
            max_candidates: 8192,
        }
    }
}

/// What one reporter answers to one poll.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardReport {
    /// Who reports.
    pub reporter: u32,
    /// Its exact traffic of each node in the window.
    pub totals: Vec<(u32, Totals)>,
    /// Its counts of the candidates; one it has never seen may be left out.
    pub keys: Vec<(u64, Counts)>,
    /// What it may have missed of a key that is left out.
    pub error: ErrorBound,
}

#[derive(Debug)]
struct Candidate {
    key: Box<[u8]>,
    key_hash: u64,
    node: u32,
    /// Index into the rules.
    rule: usize,
    state: State,
    nominated_at: Nanos,
    /// Sums of the poll being judged.
    counts: Counts,
    /// Errors of the reporters that are in `counts` already.
    error_counted: ErrorBound,
    last_report: Option<usize>,
    /// How many times its enter level the key had, at the last judging.
    excess: f64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Detector {
    rules: RuleSet,
    settings: DetectorSettings,
    candidates: ByHash<Candidate>,
    hot_set: Arc<HotSet>,
}

impl Detector {
    /// A detector without candidates, whose hot set is empty.
    pub fn new(rules: RuleSet, settings: DetectorSettings) -> Self {
        let max_candidates = settings
            .max_candidates
            .max(settings.max_hot_keys.saturating_mul(2))
            .max(4);
        Self {
            rules,
            settings: DetectorSettings {
                max_candidates,
                ..settings
            },
            candidates: ByHash::default(),
            hot_set: Arc::default(),
        }
    }

    /// Replaces the rules. What is hot by the new ones is decided at the next judging; a key no rule
    /// matches any more leaves then.
    pub fn set_rules(&mut self, rules: RuleSet) {
        self.rules = rules;
        let rules = &self.rules;
        self.candidates
            .retain(|_, candidate| match rules.index_of(&candidate.key) {
                Some(rule) => {
                    candidate.rule = rule;
                    true
                }
                None => false,
            });
    }

    /// Makes a key a candidate.
    ///
    /// Args: `node` the upstream node that owns it now.
    ///
    /// Returns true for a new candidate, so that a poll is worth making soon; false for one already
    /// known, one no rule matches, and where there is no room until the next judging.
    pub fn nominate(&mut self, key: &[u8], key_hash: u64, node: u32, now: Nanos) -> bool {
        if let Some(known) = self.candidates.get_mut(&key_hash) {
            if *known.key == *key {
                known.node = node;
                known.nominated_at = known.nominated_at.max(now);
            }
            return false;
        }
        let Some(rule) = self.rules.index_of(key) else {
            return false;
        };
        if self.candidates.len() >= self.settings.max_candidates {
            return false;
        }
        let candidate = Candidate {
            key: key.into(),
            key_hash,
            node,
            rule,
            state: State::Cold,
            nominated_at: now,
            counts: Counts::default(),
            error_counted: ErrorBound::default(),
            last_report: None,
            excess: 0.0,
        };
        self.candidates.insert(key_hash, candidate);
        true
    }

    /// The topology changed: `node_of` says where each candidate lives now. `None` leaves it as it is.
    pub fn set_nodes(&mut self, mut node_of: impl FnMut(&[u8]) -> Option<u32>) {
        for candidate in self.candidates.values_mut() {
            candidate.node = node_of(&candidate.key).unwrap_or(candidate.node);
        }
    }

    /// The hashes every reporter is to be asked for, in no order.
    pub fn candidates(&self) -> Vec<u64> {
        self.candidates.keys().copied().collect()
    }

    /// Sums the reports of one poll, one of each reporter, and moves every candidate to its state.
    ///
    /// Returns true when membership, a plan, a rule or a node changed, so that the version grew.
    pub fn judge(&mut self, reports: &[ShardReport], now: Nanos) -> bool {
        self.sum(reports);
        let totals = sum_totals(reports);
        let window_s = self.settings.window.as_secs_f64();
        for candidate in self.candidates.values_mut() {
            let Some(rule) = self.rules.rules().get(candidate.rule) else {
                continue;
            };
            let node = totals
                .get(&u64::from(candidate.node))
                .copied()
                .unwrap_or_default();
            let load = Load {
                counts: &candidate.counts,
                node: &node,
                window_s,
            };
            candidate.excess = load.excess(rule);
            let is_entered = load.passes(rule, Level::is_entered);
            let is_held = load.passes(rule, Level::is_held);
            candidate.state = candidate.state.next(is_entered, is_held, rule, now);
        }
        self.keep_the_hottest();
        self.age(now);
        self.publish(&totals)
    }

    /// The hot set as of the last judging. Its heats are fresh even where its version is old.
    pub fn hot_set(&self) -> Arc<HotSet> {
        Arc::clone(&self.hot_set)
    }

    /// Fills in every candidate's counts.
    fn sum(&mut self, reports: &[ShardReport]) {
        let mut error = ErrorBound::default();
        reports.iter().for_each(|report| error += report.error);
        for candidate in self.candidates.values_mut() {
            candidate.counts = Counts::default();
            candidate.error_counted = ErrorBound::default();
            candidate.last_report = None;
        }
        for (index, report) in reports.iter().enumerate() {
            for (hash, counts) in &report.keys {
                let Some(candidate) = self.candidates.get_mut(hash) else {
                    continue;
                };
                if candidate.last_report.replace(index) == Some(index) {
                    continue; // the same key twice in one report
                }
                candidate.counts += *counts;
                candidate.error_counted += report.error;
            }
        }
        for candidate in self.candidates.values_mut() {
            let left_out = ErrorBound {
                ops: error.ops.saturating_sub(candidate.error_counted.ops),
                bytes: error.bytes.saturating_sub(candidate.error_counted.bytes),
            };
            candidate.counts += Counts::untracked(left_out);
        }
    }

    /// Where too many are hot, sends the least hot back to cold.
    fn keep_the_hottest(&mut self) {
        let mut hot: Vec<(Reverse<Rank>, u64)> = Vec::new();
        for candidate in self
            .candidates
            .values()
            .filter(|candidate| !candidate.state.is_cold())
        {
            let was_hot = self.hot_set.get(candidate.key_hash).is_some();
            let bonus = if was_hot { INCUMBENT_BONUS } else { 1.0 };
            hot.push((Reverse(Rank(candidate.excess * bonus)), candidate.key_hash));
        }
        if hot.len() <= self.settings.max_hot_keys {
            return;
        }
        hot.sort_unstable();
        for (_, hash) in hot.drain(self.settings.max_hot_keys..) {
            if let Some(candidate) = self.candidates.get_mut(&hash) {
                candidate.state = State::Cold;
            }
        }
    }

    /// Drops cold candidates that are old, or the coldest where room is short.
    fn age(&mut self, now: Nanos) {
        let keep_ns = nanos(self.settings.window).saturating_mul(CANDIDATE_WINDOWS);
        self.candidates.retain(|_, candidate| {
            !candidate.state.is_cold() || now.saturating_sub(candidate.nominated_at) <= keep_ns
        });
        let room_from = self.settings.max_candidates / 4 * 3;
        if self.candidates.len() <= room_from {
            return;
        }
        let cold = self
            .candidates
            .values()
            .filter(|candidate| candidate.state.is_cold());
        let mut cold: Vec<(Rank, u64)> = cold.map(|key| (Rank(key.excess), key.key_hash)).collect();
        cold.sort_unstable();
        for (_, hash) in cold.into_iter().take(self.candidates.len() - room_from) {
            self.candidates.remove(&hash);
        }
    }

    /// Builds the new hot set; returns whether its version had to grow.
    fn publish(&mut self, totals: &ByHash<Totals>) -> bool {
        let hot = self
            .candidates
            .values()
            .filter(|candidate| !candidate.state.is_cold());
        let mut hot: Vec<&Candidate> = hot.collect();
        hot.sort_unstable_by_key(|candidate| (Reverse(Rank(candidate.excess)), candidate.key_hash));
        let keys = hot
            .into_iter()
            .filter_map(|candidate| self.hot_key(candidate, totals))
            .collect();
        let mut next = HotSet::new(self.hot_set.version, keys);
        let has_changed = !next.is_same_verdict(&self.hot_set);
        next.version += u64::from(has_changed);
        self.hot_set = Arc::new(next);
        has_changed
    }

    fn hot_key(&self, candidate: &Candidate, totals: &ByHash<Totals>) -> Option<Arc<HotKey>> {
        let rule = self.rules.rules().get(candidate.rule)?;
        let (since, state) = match candidate.state {
            State::Cold => return None,
            State::Hot { since } => (since, HotState::Hot),
            State::Cooling { since, .. } => (since, HotState::Cooling),
        };
        let node = totals
            .get(&u64::from(candidate.node))
            .copied()
            .unwrap_or_default();
        let window_s = self.settings.window.as_secs_f64();
        let load = Load {
            counts: &candidate.counts,
            node: &node,
            window_s,
        };
        Some(Arc::new(HotKey {
            key: candidate.key.clone(),
            key_hash: candidate.key_hash,
            node: candidate.node,
            heat: load.heat(),
            rule: Arc::clone(&rule.name),
            plan: rule.plan,
            since,
            state,
        }))
    }
}

fn sum_totals(reports: &[ShardReport]) -> ByHash<Totals> {
    let mut totals: ByHash<Totals> = ByHash::default();
    for (node, of_node) in reports.iter().flat_map(|report| &report.totals) {
        *totals.entry(u64::from(*node)).or_default() += *of_node;
    }
    totals
}

/// One key's summed counts beside those of its node.
struct Load<'a> {
    counts: &'a Counts,
    node: &'a Totals,
    window_s: f64,
}

impl Load<'_> {
    fn rate_and_share(&self, level: &Level) -> (f64, f64) {
        let count = of_counts(self.counts, level.metric);
        let total = of_totals(self.node, level.metric);
        (count as f64 / self.window_s, share(count, total))
    }

    fn passes(&self, rule: &Rule, is_passed: impl Fn(&Level, f64, f64) -> bool) -> bool {
        rule.levels.iter().any(|level| {
            let (per_s, share) = self.rate_and_share(level);
            is_passed(level, per_s, share)
        })
    }

    /// How many times its enter level the key has, by the level it is furthest above.
    fn excess(&self, rule: &Rule) -> f64 {
        let of_level = |level: &Level| {
            let (per_s, share) = self.rate_and_share(level);
            let by_rate = if level.enter_per_s > 0.0 {
                per_s / level.enter_per_s
            } else {
                f64::INFINITY
            };
            let by_share = if level.enter_share > 0.0 {
                share / level.enter_share
            } else {
                f64::INFINITY
            };
            by_rate.min(by_share)
        };
        rule.levels.iter().map(of_level).fold(0.0, f64::max)
    }

    fn heat(&self) -> Heat {
        let per_s = |count: u64| count as f64 / self.window_s;
        Heat {
            reads_per_s: per_s(self.counts.reads.upper),
            writes_per_s: per_s(self.counts.writes.upper),
            bytes_per_s: per_s(self.counts.bytes.upper),
            share: share(self.counts.ops.upper, self.node.ops()),
            bytes_share: share(self.counts.bytes.upper, self.node.bytes),
            error_per_s: per_s(self.counts.ops.width()),
        }
    }
}

/// A part of a total, 0 to 1. Of a node without traffic nothing is a share.
fn share(count: u64, total: u64) -> f64 {
    if total == 0 {
        0.0
    } else {
        (count as f64 / total as f64).min(1.0)
    }
}

/// A heat to sort by.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rank(f64);

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
