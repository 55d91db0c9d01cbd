//! Answers that are timed: some of those of each connection, whatever else is on it.

use keyheat_core::Nanos;
use keyheat_net::clock::MS;

/// Answers of a connection that are timed at once.
const MARKS: usize = 8;
/// Time between two of them: more would say no more.
const APART: Nanos = MS;

/// Places in what is sent on a connection, and when they were sent: their answers are timed.
#[derive(Default)]
pub(super) struct Marks {
    ring: [(usize, Nanos); MARKS],
    first: usize,
    count: usize,
    /// The next one is not set before.
    next: Nanos,
}

impl Marks {
    /// All up to `end` was sent by now.
    #[inline]
    pub fn set(&mut self, end: usize, now: Nanos) {
        if now >= self.next {
            self.set_anew(end, now);
        }
    }

    fn set_anew(&mut self, end: usize, now: Nanos) {
        self.next = now + APART;
        if self.count < MARKS {
            self.ring[(self.first + self.count) % MARKS] = (end, now);
            self.count += 1;
        }
    }

    /// How long the oldest mark took, where it is answered.
    #[inline]
    pub fn take(&mut self, acked: usize, now: Nanos) -> Option<Nanos> {
        if self.count == 0 {
            return None;
        }
        self.take_first(acked, now)
    }

    fn take_first(&mut self, acked: usize, now: Nanos) -> Option<Nanos> {
        let (end, at) = self.ring[self.first];
        if end > acked {
            return None;
        }
        self.first = (self.first + 1) % MARKS;
        self.count -= 1;
        Some(now.saturating_sub(at))
    }

    /// So many bytes were forgotten.
    pub fn shift(&mut self, bytes: usize) {
        for (end, _) in &mut self.ring {
            *end = end.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_time_what_was_answered() {
        let mut marks = Marks::default();
        assert_eq!(marks.take(100, 5), None);
        marks.set(10, MS);
        marks.set(15, MS + 1);
        marks.set(20, 2 * MS);
        assert_eq!(marks.take(9, 5 * MS), None);
        assert_eq!(marks.take(10, 5 * MS), Some(4 * MS));
        marks.shift(10);
        assert_eq!(marks.take(9, 6 * MS), None);
        assert_eq!(marks.take(10, 6 * MS), Some(4 * MS));
        for i in 3..23 {
            marks.set(i, i as u64 * MS);
        }
        let taken = (0..20).filter_map(|_| marks.take(100, 100 * MS));
        assert_eq!(taken.count(), MARKS);
    }
}
