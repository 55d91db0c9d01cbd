//! What a window answers with: counts between bounds, exact totals, and the error's own bound.

use std::ops::AddAssign;

/// Whether an access read or wrote its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// The key's value was read.
    Read,
    /// The key's value was changed.
    Write,
}

/// A number known to lie between two others, both included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bound {
    /// The truth is not below this.
    pub lower: u64,
    /// The truth is not above this.
    pub upper: u64,
}

impl Bound {
    /// A number that is known exactly.
    pub fn exact(value: u64) -> Self {
        Self {
            lower: value,
            upper: value,
        }
    }

    /// How far the truth may be from either end.
    pub fn width(&self) -> u64 {
        self.upper.saturating_sub(self.lower)
    }
}

impl AddAssign for Bound {
    fn add_assign(&mut self, other: Self) {
        self.lower = self.lower.saturating_add(other.lower);
        self.upper = self.upper.saturating_add(other.upper);
    }
}

/// One key's load in a window.
///
/// `ops` is not the sum of the other two: what was missed of a key's accesses was missed once,
/// though nobody knows whether they were reads or writes, so its bound is the tighter one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads of the key.
    pub reads: Bound,
    /// Writes of the key.
    pub writes: Bound,
    /// Reads and writes together.
    pub ops: Bound,
    /// Bytes moved for the key, either way.
    pub bytes: Bound,
}

impl Counts {
    /// What is known of a key that a summary with this error does not hold.
    pub fn untracked(error: ErrorBound) -> Self {
        let ops = Bound {
            lower: 0,
            upper: error.ops,
        };
        Self {
            reads: ops,
            writes: ops,
            ops,
            bytes: Bound {
                lower: 0,
                upper: error.bytes,
            },
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.ops += other.ops;
        self.bytes += other.bytes;
    }
}

/// Exact traffic of a node, or of all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Reads of any key.
    pub reads: u64,
    /// Writes of any key.
    pub writes: u64,
    /// Bytes moved, either way.
    pub bytes: u64,
}

impl Totals {
    /// Reads and writes together.
    pub fn ops(&self) -> u64 {
        self.reads.saturating_add(self.writes)
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.reads = self.reads.saturating_add(other.reads);
        self.writes = self.writes.saturating_add(other.writes);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// The most that can have been missed of any one key: what an untracked key may at most have.
///
/// It is worked out after the fact, from what was really dropped, and is usually far below what the
/// design guarantees in advance. Zero means that every count is exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErrorBound {
    /// Accesses.
    pub ops: u64,
    /// Bytes.
    pub bytes: u64,
}

impl AddAssign for ErrorBound {
    fn add_assign(&mut self, other: Self) {
        self.ops = self.ops.saturating_add(other.ops);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}
