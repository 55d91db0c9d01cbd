//! Calls, failures and slow answers over the last slices; a slice with a stale number counts as zero.

use crate::Nanos;

const SLICES: usize = 10;

/// What was seen within a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Calls that ended.
    pub calls: u32,
    /// Of those, failed ones.
    pub failures: u32,
    /// Answers whose time was taken.
    pub timed: u32,
    /// Of those, slow ones.
    pub slow: u32,
}

impl Sums {
    fn add(&mut self, more: Self) {
        self.calls = self.calls.saturating_add(more.calls);
        self.failures = self.failures.saturating_add(more.failures);
        self.timed = self.timed.saturating_add(more.timed);
        self.slow = self.slow.saturating_add(more.slow);
    }
}

/// The window.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcomes {
    slices: [(u64, Sums); SLICES],
}

impl Outcomes {
    pub fn add(&mut self, now: Nanos, window: Nanos, more: Sums) {
        let number = number(now, window);
        let slice = &mut self.slices[number as usize % SLICES];
        if slice.0 != number {
            *slice = (number, Sums::default());
        }
        slice.1.add(more);
    }

    pub fn sums(&self, now: Nanos, window: Nanos) -> Sums {
        let oldest = number(now, window).saturating_sub(SLICES as u64);
        let mut sums = Sums::default();
        let live = self.slices.iter().filter(|(number, _)| *number > oldest);
        live.for_each(|(_, slice)| sums.add(*slice));
        sums
    }
}

/// Slices are numbered from 1: 0 is one that was never used.
fn number(now: Nanos, window: Nanos) -> u64 {
    now / (window / SLICES as u64).max(1) + SLICES as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let mut outcomes = Outcomes::default();
        let one = Sums {
            calls: 1,
            ..Sums::default()
        };
        assert_eq!(outcomes.sums(0, 100).calls, 0);
        outcomes.add(0, 100, one);
        outcomes.add(50, 100, one);
        assert_eq!(outcomes.sums(50, 100).calls, 2);
        assert_eq!(outcomes.sums(99, 100).calls, 2);
        assert_eq!(outcomes.sums(100, 100).calls, 1);
        assert_eq!(outcomes.sums(500, 100).calls, 0);
        outcomes.add(100, 100, one);
        assert_eq!(outcomes.sums(100, 100).calls, 2);
    }
}
