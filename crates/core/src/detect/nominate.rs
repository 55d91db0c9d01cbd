//! Nomination: how a reporter that sees part of the traffic knows which keys to bring forward.
//!
//! # No key is missed by looking at parts
//!
//! Let n reporters see a node's traffic. Reporter i counts fᵢ of a key and Nᵢ of its node; f and N are
//! their sums. A level with `enter` T (in the window) and share s is reached when f ≥ T and f ≥ s·N.
//! Then for any 0 ≤ λ ≤ 1
//!
//! ```text
//! Σ fᵢ = f ≥ λ·T + (1−λ)·s·N = Σ (λ·T/n + (1−λ)·s·Nᵢ)
//! ```
//!
//! so some reporter has fᵢ ≥ λ·T/n + (1−λ)·s·Nᵢ: it nominates. λ is one half where a level has both a
//! rate and a share, one for a pure rate, zero for a pure share. Half of each is what keeps both ends
//! quiet: with the share alone, every second key of a reporter that is itself quiet would be brought
//! forward; with the rate alone, thousands of a busy one.
//!
//! A single hit is no evidence, so a *pure share* level also asks for two. That is the one condition
//! under which a key can be missed: when every reporter that has it in its share has seen it once, so
//! f ≤ n plus less than the share of the others. Give a share a rate of at least 2n per window beside
//! it, as the default rules do, and nothing is missed; the two hits then follow by themselves.
//!
//! The counts compared are upper bounds, so the summaries' error adds nominations and takes none.
//!
//! # Early enough
//!
//! A key is looked at when its count in the current slice crosses a multiple of a step, a sixteenth of
//! what is needed in the whole window. At a steady rate a key on the level does so in every one of ten
//! slices; a burst crosses the level at most a sixteenth of it late.

use std::time::Duration;

use crate::rule::{Level, Metric, RuleSet};
use crate::window::{Counts, Totals};

/// A level is looked at this many times on the way up.
const LOOKS: f64 = 16.0;
/// Accesses that a key cannot have in a window without two in one slice, for any window of up to so many
/// slices less one; the default has ten full ones and a partial one.
const ONES_MAX: f64 = 22.0;
/// Rounding in floating point must not turn an exact hit into a miss.
const ROUNDING: f64 = 1.0 - 1e-9;

/// A reporter's own rule of thumb, derived from the rules; see the module's description.
#[derive(Debug, Clone)]
pub struct Nominator {
    levels: Vec<Level>,
    reporters: f64,
}

impl Nominator {
    /// For one of `reporters` reporters whose counts a detector with these rules will sum.
    pub fn new(rules: &RuleSet, reporters: u32) -> Self {
        let levels = rules
            .rules()
            .iter()
            .flat_map(|rule| rule.levels.iter().copied())
            .collect();
        Self {
            levels,
            reporters: f64::from(reporters.max(1)),
        }
    }

    /// The check steps for a node that had `totals` in the window, for
    /// [`Window::tune_check_steps`](crate::window::Window::tune_check_steps).
    ///
    /// Returns accesses and bytes; the greatest value means that no level needs a look at that metric.
    pub fn check_steps(&self, totals: &Totals, window: Duration) -> (u32, u64) {
        let (mut ops, mut bytes) = (f64::INFINITY, f64::INFINITY);
        for level in &self.levels {
            let needed = self.needed(level, of_totals(totals, level.metric), window);
            let smallest = if level.metric == Metric::Bytes {
                &mut bytes
            } else {
                &mut ops
            };
            *smallest = smallest.min(needed / LOOKS);
        }
        // A key's first access in a slice is worth no look where what is needed cannot be made of ones: most
        // keys of a quiet node have no second, and a look costs ten times a count.
        let least = if ops * LOOKS >= ONES_MAX { 2 } else { 1 };
        // Casts of floats saturate: infinity becomes "never".
        ((ops as u32).max(least), (bytes as u64).max(1))
    }

    /// Whether a key with these local counts must be brought to the detector.
    ///
    /// Args: `node` the local traffic of the key's node in the same window.
    pub fn should_nominate(&self, counts: &Counts, node: &Totals, window: Duration) -> bool {
        self.levels.iter().any(|level| {
            let count = of_counts(counts, level.metric);
            let needed = self.needed(level, of_totals(node, level.metric), window);
            let is_evidence = level.enter_per_s > 0.0 || counts.ops.upper >= 2;
            count as f64 >= needed * ROUNDING && count > 0 && is_evidence
        })
    }

    /// The least that some reporter must have counted if the level is reached overall.
    fn needed(&self, level: &Level, node_total: u64, window: Duration) -> f64 {
        let by_rate = level.enter_per_s * window.as_secs_f64() / self.reporters;
        let by_share = level.enter_share * node_total as f64;
        match (level.enter_per_s > 0.0, level.enter_share > 0.0) {
            (true, true) => (by_rate + by_share) / 2.0,
            (true, false) => by_rate,
            _ => by_share,
        }
    }
}

/// The upper bound of one metric.
pub(super) fn of_counts(counts: &Counts, metric: Metric) -> u64 {
    match metric {
        Metric::Ops => counts.ops.upper,
        Metric::Reads => counts.reads.upper,
        Metric::Writes => counts.writes.upper,
        Metric::Bytes => counts.bytes.upper,
    }
}

pub(super) fn of_totals(totals: &Totals, metric: Metric) -> u64 {
    match metric {
        Metric::Ops => totals.ops(),
        Metric::Reads => totals.reads,
        Metric::Writes => totals.writes,
        Metric::Bytes => totals.bytes,
    }
}
