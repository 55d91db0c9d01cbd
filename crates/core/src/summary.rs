//! A window in a few bytes: what one reporter knows, to be sent away and merged with others'.
//!
//! # Bound
//!
//! A summary holds keys with their [`Counts`] and one [`ErrorBound`] for all keys it does not hold.
//! Both are true for the traffic it was made from, and every operation keeps them true:
//!
//! - *Merge.* A key held by both gets the sum of both. A key held by one gets, from the other, the
//!   bounds of an unheld key: 0 … error. A key held by neither is below the sum of the errors.
//! - *Trim.* Only so many keys are kept. Those of the least weight are dropped, and the error is
//!   raised to the largest upper bound among them.
//!
//! So lower ≤ truth ≤ upper holds after any number of merges in any order. The order changes only
//! which keys near the cut are kept. Weight is operations times the mean size plus bytes, as in the
//! window, which keeps the error of a merge within the same share of the traffic as that of its parts
//! (Agarwal et al., *Mergeable Summaries*, 2012) up to the factor by which upper bounds exceed counts.
//!
//! # Bytes
//!
//! Version, capacity, totals, error, then the keys by ascending hash: eight bytes of hash and seven
//! variable-length numbers, mostly of one byte: about 15 bytes a key. `decode` takes bytes from
//! anywhere: it refuses what is too long, cut off, out of order or contradictory, and reserves no
//! more memory than the input is long.

use std::fmt;

use crate::window::{Bound, Counts, ErrorBound, Totals};

/// First bytes of every encoded summary; the last one is the version.
const MAGIC: [u8; 4] = *b"khs\x01";
/// No summary holds more keys than this, whatever its bytes say.
const MAX_CAPACITY: usize = 1 << 20;
/// The least bytes an encoded key can take.
const MIN_KEY_BYTES: usize = 8 + 7;

/// See the module's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    capacity: usize,
    totals: Totals,
    error: ErrorBound,
    /// By ascending hash, each hash once.
    keys: Vec<(u64, Counts)>,
}

/// Why bytes are not a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// They do not begin like a summary of a version known here.
    UnknownVersion,
    /// They end too early, or a number does not fit.
    Malformed,
    /// They claim more keys than any summary holds.
    TooLarge,
    /// Hashes out of order, a lower bound above its upper, or bytes left over.
    Contradictory,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownVersion => "not a summary, or of a version this build does not know",
            Self::Malformed => "the summary is cut off or a number in it does not fit",
            Self::TooLarge => "the summary claims more keys than any summary holds",
            Self::Contradictory => "the summary contradicts itself",
        })
    }
}

impl std::error::Error for DecodeError {}

impl Summary {
    /// A summary of at most `capacity` of `keys`.
    ///
    /// Args: `error` bounds every key that is not among `keys`. A hash that comes twice is summed.
    pub fn new(
        capacity: usize,
        totals: Totals,
        error: ErrorBound,
        keys: impl IntoIterator<Item = (u64, Counts)>,
    ) -> Self {
        let mut keys: Vec<(u64, Counts)> = keys.into_iter().collect();
        keys.sort_by_key(|(hash, _)| *hash);
        keys.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            if is_same {
                kept.1 += later.1;
            }
            is_same
        });
        let mut summary = Self {
            capacity: capacity.clamp(1, MAX_CAPACITY),
            totals,
            error,
            keys,
        };
        summary.trim();
        summary
    }

    /// Exact traffic of everything that was merged.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// What a key that is not held may at most have.
    pub fn error(&self) -> ErrorBound {
        self.error
    }

    /// The keys held, by ascending hash.
    pub fn keys(&self) -> &[(u64, Counts)] {
        &self.keys
    }

    /// What is known of one key.
    pub fn get(&self, key_hash: u64) -> Counts {
        match self.keys.binary_search_by_key(&key_hash, |(hash, _)| *hash) {
            Ok(index) => self.keys[index].1,
            Err(_) => Counts::untracked(self.error),
        }
    }

    /// Adds another reporter's summary to this one. The larger capacity stays.
    pub fn merge(&mut self, other: &Summary) {
        let mut merged = Vec::with_capacity(self.keys.len() + other.keys.len());
        let (mut ours, mut theirs) = (self.keys.iter().peekable(), other.keys.iter().peekable());
        loop {
            let next = match (ours.peek(), theirs.peek()) {
                (None, None) => break,
                (Some(a), Some(b)) => a.0.min(b.0),
                (Some(a), None) => a.0,
                (None, Some(b)) => b.0,
            };
            let ours = ours.next_if(|(hash, _)| *hash == next);
            let theirs = theirs.next_if(|(hash, _)| *hash == next);
            let mut counts = ours.map_or(Counts::untracked(self.error), |(_, counts)| *counts);
            counts += theirs.map_or(Counts::untracked(other.error), |(_, counts)| *counts);
            merged.push((next, counts));
        }
        self.keys = merged;
        self.totals += other.totals;
        self.error += other.error;
        self.capacity = self.capacity.max(other.capacity);
        self.trim();
    }

    /// Drops the lightest keys beyond the capacity and raises the error to what was dropped.
    fn trim(&mut self) {
        if self.keys.len() <= self.capacity {
            return;
        }
        let mean_size = self
            .totals
            .bytes
            .checked_div(self.totals.ops())
            .unwrap_or(0)
            .max(1);
        let weight = |counts: &Counts| {
            counts
                .ops
                .upper
                .saturating_mul(mean_size)
                .saturating_add(counts.bytes.upper)
        };
        self.keys
            .select_nth_unstable_by_key(self.capacity - 1, |(hash, counts)| {
                (std::cmp::Reverse(weight(counts)), *hash)
            });
        for (_, dropped) in self.keys.drain(self.capacity..) {
            self.error.ops = self.error.ops.max(dropped.ops.upper);
            self.error.bytes = self.error.bytes.max(dropped.bytes.upper);
        }
        self.keys.sort_unstable_by_key(|(hash, _)| *hash);
    }

    /// The summary as bytes; see the module's description.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.keys.len() * 20);
        out.extend_from_slice(&MAGIC);
        let head = [
            self.capacity as u64,
            self.totals.reads,
            self.totals.writes,
            self.totals.bytes,
        ];
        head.into_iter().for_each(|number| put(&mut out, number));
        put(&mut out, self.error.ops);
        put(&mut out, self.error.bytes);
        put(&mut out, self.keys.len() as u64);
        for (hash, counts) in &self.keys {
            out.extend_from_slice(&hash.to_le_bytes());
            put(&mut out, counts.reads.lower);
            put(&mut out, counts.writes.lower);
            put(&mut out, counts.bytes.lower);
            put(&mut out, counts.reads.width());
            put(&mut out, counts.writes.width());
            // The bounds of ops are nearly always the sum of the lowers and the width of reads.
            put(&mut out, counts.ops.upper);
            put(&mut out, counts.bytes.width());
        }
        out
    }

    /// The summary that [`Summary::encode`] made `bytes` of.
    ///
    /// # Errors
    /// Anything else is refused; see [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let rest = bytes
            .strip_prefix(&MAGIC)
            .ok_or(DecodeError::UnknownVersion)?;
        let mut reader = Reader { rest };
        let capacity = usize::try_from(reader.number()?).map_err(|_| DecodeError::TooLarge)?;
        let totals = Totals {
            reads: reader.number()?,
            writes: reader.number()?,
            bytes: reader.number()?,
        };
        let error = ErrorBound {
            ops: reader.number()?,
            bytes: reader.number()?,
        };
        let len = usize::try_from(reader.number()?).map_err(|_| DecodeError::TooLarge)?;
        if capacity > MAX_CAPACITY || len > capacity {
            return Err(DecodeError::TooLarge);
        }
        if len > reader.rest.len() / MIN_KEY_BYTES {
            return Err(DecodeError::Malformed);
        }
        let mut keys = Vec::with_capacity(len);
        for _ in 0..len {
            let key = reader.key()?;
            if keys.last().is_some_and(|(hash, _)| *hash >= key.0) {
                return Err(DecodeError::Contradictory);
            }
            keys.push(key);
        }
        if capacity == 0 || !reader.rest.is_empty() {
            return Err(DecodeError::Contradictory);
        }
        Ok(Self {
            capacity,
            totals,
            error,
            keys,
        })
    }
}

/// Seven bits a byte, the lowest first; the high bit says that more follow.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.rest.split_first().ok_or(DecodeError::Malformed)?;
        self.rest = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return Err(DecodeError::Malformed);
            }
            number |= part << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(DecodeError::Malformed)
    }

    fn key(&mut self) -> Result<(u64, Counts), DecodeError> {
        let (hash, rest) = self
            .rest
            .split_first_chunk::<8>()
            .ok_or(DecodeError::Malformed)?;
        self.rest = rest;
        let lowers = [self.number()?, self.number()?, self.number()?];
        let widths = [self.number()?, self.number()?];
        let (ops_upper, bytes_width) = (self.number()?, self.number()?);
        let bound = |lower: u64, width: u64| {
            let upper = lower.checked_add(width).ok_or(DecodeError::Contradictory)?;
            Ok(Bound { lower, upper })
        };
        let ops = Bound {
            lower: lowers[0].saturating_add(lowers[1]),
            upper: ops_upper,
        };
        if ops.lower > ops.upper {
            return Err(DecodeError::Contradictory);
        }
        let counts = Counts {
            reads: bound(lowers[0], widths[0])?,
            writes: bound(lowers[1], widths[1])?,
            ops,
            bytes: bound(lowers[2], bytes_width)?,
        };
        Ok((u64::from_le_bytes(*hash), counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(reads: u64, missed: u64) -> Counts {
        let reads = Bound {
            lower: reads,
            upper: reads + missed,
        };
        let writes = Bound {
            lower: 0,
            upper: missed,
        };
        Counts {
            reads,
            writes,
            ops: reads,
            bytes: Bound::exact(7),
        }
    }

    fn summary() -> Summary {
        let totals = Totals {
            reads: 1000,
            writes: 3,
            bytes: 70_000,
        };
        let error = ErrorBound { ops: 5, bytes: 300 };
        Summary::new(
            8,
            totals,
            error,
            [
                (9, counts(300, 0)),
                (u64::MAX, counts(40, 2)),
                (1, counts(2, 5)),
            ],
        )
    }

    #[test]
    fn bytes_come_back_as_they_went() {
        assert_eq!(Summary::decode(&summary().encode()), Ok(summary()));
    }

    #[test]
    fn bytes_cut_anywhere_are_refused() {
        let bytes = summary().encode();
        for end in 0..bytes.len() {
            assert!(Summary::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let mut bytes = summary().encode();
        bytes.push(0);
        assert_eq!(Summary::decode(&bytes), Err(DecodeError::Contradictory));
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let mut bytes = summary().encode();
        bytes[3] += 1;
        assert_eq!(Summary::decode(&bytes), Err(DecodeError::UnknownVersion));
    }

    #[test]
    fn a_claim_of_many_keys_reserves_no_memory() {
        let mut bytes = MAGIC.to_vec();
        for number in [MAX_CAPACITY as u64, 0, 0, 0, 0, 0, MAX_CAPACITY as u64] {
            put(&mut bytes, number);
        }
        assert_eq!(Summary::decode(&bytes), Err(DecodeError::Malformed));
    }

    #[test]
    fn a_trimmed_key_raises_the_error_to_its_upper_bound() {
        let trimmed = Summary::new(
            2,
            summary().totals(),
            ErrorBound::default(),
            summary().keys().to_vec(),
        );
        assert_eq!(trimmed.keys().len(), 2);
        assert_eq!(trimmed.error(), ErrorBound { ops: 7, bytes: 7 });
        assert_eq!(trimmed.get(1).ops, Bound { lower: 0, upper: 7 });
    }

    #[test]
    fn a_key_unknown_to_one_side_gets_that_sides_error() {
        let mut merged = summary();
        let error = ErrorBound { ops: 11, bytes: 0 };
        merged.merge(&Summary::new(8, Totals::default(), error, []));
        assert_eq!(
            merged.get(9).reads,
            Bound {
                lower: 300,
                upper: 311
            }
        );
        assert_eq!(merged.get(1234).ops.upper, 16);
    }
}
