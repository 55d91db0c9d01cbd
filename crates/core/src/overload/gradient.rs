//! A limit on what is on its way to a node at once, which follows how long the node takes.
//!
//! Times of answers are summed up over windows (100 ms and ten of them, or a second). At the end of each,
//!
//! ```text
//! calm     = max(tolerance * baseline, CALM)
//! gradient = clamp(calm / mean, 0.5, 1)
//! limit    = limit + sqrt(limit)                  where the gradient is 1
//! limit    = limit + (limit * gradient - limit)/2 where it is not
//! ```
//!
//! within `min` and `max`. `baseline` is the time without a queue: it follows a faster window at once and a
//! slower one by a hundredth per window, so a node that became slower for good is accepted in the end.
//!
//! *Why this one.* The node's capacity need not be known, and no time has to be called bad beforehand. It
//! is the one of the Python client (`mitigate/gradient.py`, after Netflix' `Gradient2Limit`). Departures:
//! below [`CALM`] nothing is called crowded, because pipelines make a healthy server's times vary a
//! hundredfold; it grows by its whole root, since what is over it waits in line here and is not lost; a
//! window that is not over half of the limit lets it fall to twice what was used, not further.
//!
//! *Bound.* One window costs at most a quarter of the limit: a single slow command (a script of two seconds)
//! is one window, whatever waited behind it.
//!
//! Cost: nothing per call; the caller takes one time now and then.

use crate::Nanos;

const MS: Nanos = 1_000_000;
const WINDOW: Nanos = 100 * MS;
const WINDOW_MAX: Nanos = 1_000 * MS;
const TIMES_MIN: u32 = 10;
const TOLERANCE: f64 = 2.0;
const DRIFT: f64 = 0.01;
const GRADIENT_MIN: f64 = 0.5;
/// A node that answers within this is not crowded.
pub const CALM: Nanos = 20 * MS;

/// The limit; see the module's description.
#[derive(Debug, Clone, Default)]
pub struct GradientLimit {
    /// 0 until it is first used: then it starts at its ceiling.
    limit: f64,
    /// 0 while unknown.
    baseline: f64,
    window_from: Nanos,
    times: u32,
    sum: Nanos,
    peak: u32,
}

impl GradientLimit {
    /// What may be on its way now.
    #[must_use]
    pub fn limit(&self, min: u32, max: u32) -> u32 {
        match self.limit as u32 {
            0 => max,
            limit => limit.clamp(min, max),
        }
    }

    /// Takes in what was seen since the last time.
    ///
    /// Args: `times` how many were taken; `sum` of them; `peak` most that was on its way.
    pub fn note(&mut self, now: Nanos, times: u32, sum: Nanos, peak: u32, (min, max): (u32, u32)) {
        if self.times == 0 {
            self.window_from = now;
        }
        self.times += times;
        self.sum += sum;
        self.peak = self.peak.max(peak);
        let age = now.saturating_sub(self.window_from);
        let is_over = self.times >= TIMES_MIN && age >= WINDOW;
        if is_over || (self.times > 0 && age >= WINDOW_MAX) {
            self.close(f64::from(min), f64::from(max));
            (self.times, self.sum, self.peak) = (0, 0, 0);
        }
    }

    fn close(&mut self, min: f64, max: f64) {
        let mean = (self.sum as f64 / f64::from(self.times)).max(1.0);
        if self.baseline == 0.0 || mean < self.baseline {
            self.baseline = mean;
        } else {
            self.baseline += (mean - self.baseline) * DRIFT;
        }
        if self.limit < 1.0 {
            self.limit = max;
        }
        let calm = (TOLERANCE * self.baseline).max(CALM as f64);
        let gradient = (calm / mean).clamp(GRADIENT_MIN, 1.0);
        let used = f64::from(self.peak) * 2.0;
        let is_used = used > self.limit;
        let wanted = match (gradient < 1.0, is_used) {
            (true, true) => self.limit * (1.0 + gradient) / 2.0,
            // What is not used is not what makes it slow.
            (true, false) => (self.limit * (1.0 + gradient) / 2.0).max(used),
            (false, true) => self.limit + self.limit.sqrt(),
            (false, false) => self.limit,
        };
        self.limit = wanted.clamp(min, max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (u32, u32) = (8, 1_000);

    fn windows(limit: &mut GradientLimit, from: Nanos, count: u64, took: Nanos, peak: u32) -> u32 {
        for i in 0..count {
            let at = from + i * 2 * WINDOW;
            limit.note(at, 10, 10 * took, peak, BOUNDS);
            limit.note(at + WINDOW, 0, 0, 0, BOUNDS);
        }
        limit.limit(BOUNDS.0, BOUNDS.1)
    }

    #[test]
    fn it_starts_at_its_ceiling_and_stays_there_while_the_node_is_quick() {
        let mut limit = GradientLimit::default();
        assert_eq!(limit.limit(8, 1_000), 1_000);
        assert_eq!(windows(&mut limit, 0, 10, MS / 10, 900), 1_000);
        assert_eq!(windows(&mut limit, 1 << 40, 10, CALM - 1, 900), 1_000);
    }

    #[test]
    fn it_falls_while_the_node_is_slow_to_its_floor_and_grows_back() {
        let mut limit = GradientLimit::default();
        windows(&mut limit, 0, 1, MS, 900);
        let fallen = windows(&mut limit, 1 << 40, 4, 500 * MS, 1_000);
        assert!((300..330).contains(&fallen), "{fallen}");
        assert_eq!(windows(&mut limit, 2 << 40, 30, 500 * MS, 1_000), 8);
        let grown = windows(&mut limit, 3 << 40, 10, MS, 1_000);
        assert!((40..80).contains(&grown), "{grown}");
        assert_eq!(windows(&mut limit, 4 << 40, 100, MS, 1_000), 1_000);
    }

    #[test]
    fn one_slow_command_costs_a_quarter_at_most() {
        let mut limit = GradientLimit::default();
        windows(&mut limit, 0, 10, MS, 900);
        assert_eq!(windows(&mut limit, 1 << 40, 1, 2_000 * MS, 900), 750);
        assert!(windows(&mut limit, 2 << 40, 10, MS, 900) > 990);
    }

    #[test]
    fn what_is_not_used_is_not_taken_away_nor_given() {
        let mut limit = GradientLimit::default();
        windows(&mut limit, 0, 1, MS, 1);
        assert_eq!(windows(&mut limit, 1 << 40, 50, 100 * MS, 100), 200);
        assert_eq!(windows(&mut limit, 2 << 40, 50, MS, 100), 200);
    }
}
