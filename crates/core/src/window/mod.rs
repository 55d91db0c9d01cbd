//! Sliding-window counts of reads, writes and bytes per key, in bounded memory.
//!
//! # What it is
//!
//! A ring of epoch-stamped frequent-keys tables: the window of W seconds is cut into S slices, each
//! slice has one `Slice` table, and one more is being filled. An answer sums the S full slices and
//! the partial one. No counter is ever reset and no sweep ever runs: each slice carries the number
//! of the time slice it was last used for and the stamp of its slots; a stale number or a stale stamp
//! means zero.
//!
//! Refused: one table whose keys each carry a ring of counters. Once a key is evicted from it, what
//! was forgotten is bounded by the minimum of *that* moment; when other keys' old slices expire the
//! minimum falls below it, and the key comes back undercounted. Slices forget as a whole, so their
//! errors expire with them.
//!
//! # What an answer means
//!
//! At `now`, the window is the slice that `now` lies in and the S before it: at least W, at most
//! W + W/S. It contains every true window of length W ending at `now`, so a key that reached a level in
//! it also reaches it here, and the over-report is at most one slice. Dividing by W gives a rate that
//! errs to the hot side by the same amount.
//!
//! The bounds of a slice (see there) add up: lower ≤ truth ≤ upper for every key and metric, whatever
//! the input, provided key hashes do not collide. The a-priori bound on an untracked key is
//! 2.667 / 2^`capacity_log2` of the window's accesses (twice that with values, at a steady mean size).
//! [`Window::error`] is the bound after the fact: zero where no slice ever filled up.
//!
//! No miss: a key with more than `error` in the window exceeds the error of some slice, so it is
//! tracked there, and [`Window::heavy`] names every key whose upper bound reaches what was asked for,
//! as long as that is above the error.
//!
//! # Time
//!
//! `now` may jump ahead by any amount: slices that were skipped are stale by their number, none is
//! visited. `now` going back is taken as no movement: such accesses count in the newest slice.
//!
//! # Cost
//!
//! A counted access is one probe in a table that fits the L2 cache, plus two sums. An estimate is
//! S + 1 probes. `heavy` reads S + 1 tables in order and estimates only keys that can qualify.
//! Memory is (S + 1) · 2^`capacity_log2` · 32 bytes, reached only under that many distinct keys.
//!
//! Concurrency: none. One window per shard; [`crate::detect`] sums them.

mod counts;
mod nodes;
mod slice;

use std::time::Duration;

pub use counts::{Access, Bound, Counts, ErrorBound, Totals};

use crate::rule::RuleSet;
use crate::summary::Summary;
use crate::{nanos, Nanos, SettingsError};
use nodes::Nodes;
use slice::{Scratch, Slice};

/// A slice number that no time has.
const NEVER: u64 = u64::MAX;
/// Nodes that can have check steps of their own.
const MAX_STEPPED_NODES: usize = 1024;

/// How a [`Window`] is cut and how large it may grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowSettings {
    /// Length of the window.
    pub window: Duration,
    /// Full slices in it.
    pub slices: u32,
    /// Binary logarithm of the slots of one slice's table.
    pub capacity_log2: u8,
}

impl Default for WindowSettings {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(1),
            slices: 10,
            capacity_log2: 13,
        }
    }
}

impl WindowSettings {
    /// A window with a table as small as the rules allow, for a small table stays in the processor's
    /// cache.
    ///
    /// Its error, at most `2 * 2.667 / 2^capacity_log2` of the accesses of the window when it overflows,
    /// is kept below three tenths of the smallest share that any rule asks for. A level that asks for a
    /// plain rate could be passed by any share: it takes the default table.
    pub fn for_rules(window: Duration, rules: &RuleSet) -> Self {
        const SMALLEST: u8 = 11;
        let default = Self::default();
        let levels = rules.rules().iter().flat_map(|rule| &rule.levels);
        let least = levels.fold(1.0_f64, |least, level| least.min(level.enter_share));
        let fits = |log2: u8| 2.0 * 2.667 / f64::from(1_u32 << log2) <= 0.3 * least;
        let capacity_log2 = (SMALLEST..default.capacity_log2).find(|&log2| fits(log2));
        Self {
            window,
            capacity_log2: capacity_log2.unwrap_or(default.capacity_log2),
            ..default
        }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// Names the setting and what is accepted.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let refuse = |setting, accepted| Err(SettingsError { setting, accepted });
        if !(1..=1000).contains(&self.slices) {
            return refuse("slices", "1 to 1000");
        }
        if self.window < Duration::from_millis(1) || self.window > Duration::from_secs(86_400) {
            return refuse("window", "1 ms to 1 day");
        }
        if !(4..=24).contains(&self.capacity_log2) {
            return refuse("capacity_log2", "4 to 24");
        }
        Ok(())
    }
}

/// When an access makes its key worth a look: at which multiples of its count in the slice.
///
/// Steps are powers of two, so that testing them takes no division.
#[derive(Debug, Clone, Copy)]
struct CheckSteps {
    ops_mask: u64,
    bytes_shift: u32,
    is_set: bool,
}

impl CheckSteps {
    const NEVER: Self = Self {
        ops_mask: u64::MAX,
        bytes_shift: 63,
        is_set: false,
    };

    fn new(ops: u32, bytes: u64) -> Self {
        Self {
            ops_mask: if ops == u32::MAX {
                u64::MAX
            } else {
                (1 << ops.max(1).ilog2()) - 1
            },
            bytes_shift: bytes.max(1).ilog2(),
            is_set: true,
        }
    }

    #[inline]
    fn is_due(self, step: slice::Step) -> bool {
        step.ops & self.ops_mask == 0
            || step.bytes_before >> self.bytes_shift != step.bytes >> self.bytes_shift
    }
}

#[derive(Debug)]
struct Block {
    /// Which slice of time the tables are of.
    epoch: u64,
    keys: Slice,
    nodes: Nodes,
}

/// See the module's description.
#[derive(Debug)]
pub struct Window {
    settings: WindowSettings,
    slice_ns: Nanos,
    blocks: Vec<Block>,
    current: usize,
    epoch: u64,
    /// Start of the current slice.
    start: Nanos,
    steps: CheckSteps,
    node_steps: Vec<CheckSteps>,
    scratch: Scratch,
}

impl Window {
    /// An empty window.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(settings: WindowSettings) -> Result<Self, SettingsError> {
        settings.validate()?;
        let slice_ns = (nanos(settings.window) / u64::from(settings.slices)).max(1);
        let block = |_| Block {
            epoch: NEVER,
            keys: Slice::new(settings.capacity_log2),
            nodes: Nodes::default(),
        };
        let mut window = Self {
            slice_ns,
            blocks: (0..=settings.slices).map(block).collect(),
            current: 0,
            epoch: 0,
            start: 0,
            steps: CheckSteps::NEVER,
            node_steps: Vec::new(),
            scratch: Scratch::default(),
            settings,
        };
        window.begin(0);
        Ok(window)
    }

    /// Announces that a key will be counted soon, a few accesses from now. Counts nothing.
    #[inline]
    pub fn prefetch(&self, key_hash: u64) {
        self.blocks[self.current].keys.prefetch(key_hash);
    }

    /// Counts one access, and says whether the key is worth a look.
    ///
    /// Args: `bytes` moved for the access, either way; `node` the upstream node that owns the key.
    ///
    /// Returns true when the key's count in the current slice crossed a multiple of a check step
    /// ([`Window::set_check_steps`]): the caller then estimates it and maybe nominates it. One it
    /// nominated a moment ago, or knows to be hot, it need not estimate again.
    #[inline]
    pub fn record(
        &mut self,
        key_hash: u64,
        node: u32,
        access: Access,
        bytes: u64,
        now: Nanos,
    ) -> bool {
        // One comparison for "later than this slice" and "earlier": the latter wraps to a huge number.
        if now.wrapping_sub(self.start) >= self.slice_ns {
            self.turn(now);
        }
        let block = &mut self.blocks[self.current];
        block.nodes.count(node, access, bytes);
        let step = block.keys.count(key_hash, access, bytes, &mut self.scratch);
        match self.node_steps.get(node as usize) {
            Some(steps) if steps.is_set => steps.is_due(step),
            _ => self.steps.is_due(step),
        }
    }

    #[cold]
    fn turn(&mut self, now: Nanos) {
        if now > self.start {
            self.begin(now / self.slice_ns);
        }
    }

    fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.start = epoch.saturating_mul(self.slice_ns);
        self.current = (epoch % self.blocks.len() as u64) as usize;
        let block = &mut self.blocks[self.current];
        block.epoch = epoch;
        block.keys.start();
        block.nodes.start();
    }

    /// Sets how often [`Window::record`] asks for a look at a key of any node: about every `ops`
    /// accesses or `bytes` bytes of one key in one slice, rounded down to a power of two. The greatest
    /// value of each type means never.
    pub fn set_check_steps(&mut self, ops: u32, bytes: u64) {
        self.steps = CheckSteps::new(ops, bytes);
    }

    /// Sets the check steps of one node, which then go before those of [`Window::set_check_steps`].
    ///
    /// A quiet node beside busy ones needs smaller steps, for fewer accesses are a large share of it.
    pub fn set_node_check_steps(&mut self, node: u32, ops: u32, bytes: u64) {
        let index = node as usize;
        if index >= MAX_STEPPED_NODES {
            return;
        }
        if index >= self.node_steps.len() {
            self.node_steps.resize(index + 1, CheckSteps::NEVER);
        }
        self.node_steps[index] = CheckSteps::new(ops, bytes);
    }

    /// Sets the check steps of every node that has traffic in the window from that traffic.
    ///
    /// Args: `steps` is usually `|totals| nominator.check_steps(totals, window)`. Call it once a slice.
    pub fn tune_check_steps(&mut self, now: Nanos, mut steps: impl FnMut(&Totals) -> (u32, u64)) {
        for node in self.nodes(now) {
            let (ops, bytes) = steps(&self.totals(node, now));
            self.set_node_check_steps(node, ops, bytes);
        }
    }

    /// The blocks that lie in the window at `now`.
    fn live(&self, now: Nanos) -> impl Iterator<Item = &Block> {
        let epoch = (now / self.slice_ns).max(self.epoch);
        let slices = u64::from(self.settings.slices);
        self.blocks
            .iter()
            .filter(move |block| block.epoch <= epoch && epoch - block.epoch <= slices)
    }

    /// What is known of one key's load in the window.
    pub fn estimate(&self, key_hash: u64, now: Nanos) -> Counts {
        let mut counts = Counts::default();
        self.live(now)
            .for_each(|block| counts += block.keys.counts(key_hash));
        counts
    }

    /// Exact traffic of one node in the window.
    pub fn totals(&self, node: u32, now: Nanos) -> Totals {
        let mut totals = Totals::default();
        self.live(now)
            .for_each(|block| totals += block.nodes.totals(node));
        totals
    }

    /// Exact traffic of all nodes in the window.
    pub fn total(&self, now: Nanos) -> Totals {
        let mut totals = Totals::default();
        self.live(now).for_each(|block| totals += block.nodes.sum());
        totals
    }

    /// The nodes that have traffic in the window, in ascending order.
    pub fn nodes(&self, now: Nanos) -> Vec<u32> {
        let mut nodes: Vec<u32> = self
            .live(now)
            .flat_map(|block| block.nodes.active())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// What a key that no slice tracks may at most have in the window.
    pub fn error(&self, now: Nanos) -> ErrorBound {
        let mut error = ErrorBound::default();
        self.live(now).for_each(|block| error += block.keys.error());
        error
    }

    /// Every tracked key whose upper bound reaches `min_ops` accesses or `min_bytes` bytes.
    ///
    /// A level at or below [`Window::error`] may also be reached by keys that no slice tracks; those
    /// cannot be named. The order is that of the hashes.
    pub fn heavy(&self, min_ops: u64, min_bytes: u64, now: Nanos) -> Vec<(u64, Counts)> {
        // Over the slices, what a key misses is at most `error`; the rest was counted, so one slice
        // counted at least an equal part of it. Entries below that part everywhere cannot qualify.
        let error = self.error(now);
        let slices = self.live(now).count().max(1) as u64;
        let part_ops = min_ops.saturating_sub(error.ops).div_ceil(slices);
        let part_bytes = min_bytes.saturating_sub(error.bytes).div_ceil(slices);
        let entries = self.live(now).flat_map(|block| block.keys.entries());
        let can_qualify = entries.filter(|slot| slot.ops() >= part_ops || slot.bytes >= part_bytes);
        let mut hashes: Vec<u64> = can_qualify.map(|slot| slot.hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let estimates = hashes
            .into_iter()
            .map(|hash| (hash, self.estimate(hash, now)));
        estimates
            .filter(|(_, c)| c.ops.upper >= min_ops || c.bytes.upper >= min_bytes)
            .collect()
    }

    /// Everything the window knows at `now`, to be sent away and merged.
    pub fn summary(&self, now: Nanos) -> Summary {
        let mut hashes: Vec<u64> = self
            .live(now)
            .flat_map(|block| block.keys.entries())
            .map(|slot| slot.hash)
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        let keys = hashes
            .into_iter()
            .map(|hash| (hash, self.estimate(hash, now)));
        Summary::new(
            1 << self.settings.capacity_log2,
            self.total(now),
            self.error(now),
            keys,
        )
    }

    /// Bytes allocated now.
    pub fn memory_bytes(&self) -> usize {
        let block = |block: &Block| block.keys.memory_bytes() + block.nodes.memory_bytes();
        self.blocks.iter().map(block).sum::<usize>()
            + self.blocks.capacity() * size_of::<Block>()
            + self.node_steps.capacity() * size_of::<CheckSteps>()
            + self.scratch.memory_bytes()
            + size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Level, Metric, Pattern, Plan, Rule};

    fn capacity(level: Level) -> u8 {
        let rule = Rule {
            name: "r".into(),
            pattern: Pattern::Any,
            levels: vec![level],
            min_hot: Duration::ZERO,
            cooling: Duration::ZERO,
            plan: Plan::default(),
        };
        let rules = RuleSet::new(vec![rule]).unwrap();
        WindowSettings::for_rules(Duration::from_secs(1), &rules).capacity_log2
    }

    #[test]
    fn the_table_is_as_large_as_the_smallest_share_needs() {
        let share = |share| capacity(Level::new(Metric::Ops, 0.0, share));
        let of_default = WindowSettings::for_rules(Duration::from_secs(1), &RuleSet::default());
        assert_eq!(of_default.capacity_log2, 11);
        assert_eq!(share(0.05), 11);
        assert_eq!(share(0.005), 12);
        assert_eq!(share(0.001), 13);
        assert_eq!(capacity(Level::new(Metric::Ops, 100.0, 0.0)), 13);
    }
}
