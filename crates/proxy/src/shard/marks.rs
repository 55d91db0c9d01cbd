//! Answers that are timed: some of those of each connection, whatever else is on it.

use keyheat_core::Nanos;

/// Answers of a connection that are timed at once.
const MARKS: usize = 8;

/// Places in what is sent on a connection, and when they were sent: their answers are timed.
#[derive(Default)]
pub(super) struct Marks {
    ring: [(usize, Nanos); MARKS],
    first: usize,
    count: usize,
}

impl Marks {
    /// All up to `end` was sent by now.
    #[inline]
    pub fn set(&mut self, end: usize, now: Nanos) {
        if self.count < MARKS {
            self.ring[(self.first + self.count) % MARKS] = (end, now);
            self.count += 1;
        }
    }

    /// How long the oldest mark took, where it is answered.
    #[inline]
    pub fn take(&mut self, acked: usize, now: Nanos) -> Option<Nanos> {
        let (end, at) = self.ring[self.first];
        if self.count == 0 || end > acked {
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
        marks.set(10, 1);
        marks.set(20, 2);
        assert_eq!(marks.take(9, 5), None);
        assert_eq!(marks.take(10, 5), Some(4));
        marks.shift(10);
        assert_eq!(marks.take(9, 6), None);
        assert_eq!(marks.take(10, 6), Some(4));
        for i in 0..20 {
            marks.set(i, 0);
        }
        assert_eq!((0..20).filter_map(|_| marks.take(100, 1)).count(), MARKS);
    }
}
