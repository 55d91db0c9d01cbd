//! One slice of the window: the frequent keys of a tenth of a second, in one open-addressing table.
//!
//! # What it is
//!
//! A Misra-Gries summary in the weighted form of Anderson et al. (*A High-Performance Algorithm for
//! Identifying Frequent Items in Data Streams*, 2017), for two weights at once. Keys are counted
//! until the table is three quarters full; then the lighter half is dropped and the weight at which
//! it was cut is remembered as the *watermark*. Nothing else is ever decremented or zeroed: a slot
//! whose stamp is not the slice's stamp is empty, whatever it holds, so starting a slice over is one
//! increment.
//!
//! Refused: a table for operations and one for bytes (twice the probes); Count-Min (cannot name
//! keys, scattered writes); HeavyKeeper (no bound, goes blind to late hot keys).
//!
//! # Bounds
//!
//! Let c be the slice's `byte_weight`, fixed while it lasts. The weight of an access is c + bytes.
//! For a key, let `missed` be the weight of its accesses that no counter holds.
//!
//! - A key in the table has `missed` ≤ w, the watermark when it entered.
//! - A key not in the table has `missed` ≤ D, the watermark now.
//!
//! Both hold at the start, with D = 0. A key enters with w = D. A purge drops a key only if its
//! counted weight + w ≤ d and sets D = d, so what is then missed of it is ≤ D; D never falls. Hence
//!
//! ```text
//! ops ≤ true ops ≤ ops + ⌊w/c⌋          bytes ≤ true bytes ≤ bytes + w
//! ```
//!
//! and 0 … ⌊D/c⌋, 0 … D for a key that is not there. Reads and writes each have the bound of ops.
//! A key that entered before the first purge is exact, as all truly hot keys are in practice.
//!
//! In advance: let W be the weight of the whole slice and k = ¾·2^L the entries at a purge. The
//! excess over D, Σ (counted + w − D) over the table, grows by exactly the weight of each access and
//! is never negative; a purge that lifts D by δ takes at least δ from each of the k/2 heaviest. So
//! D·k/2 ≤ W, and
//!
//! ```text
//! D ≤ 2.667 · W / 2^L      with L = capacity_log2,
//! ```
//!
//! however many keys there are. In operations, ⌊D/c⌋ ≤ 2.667/2^L · (n + bytes/c): with c at least
//! the mean size, twice 2.667/2^L of the slice's accesses n. c is the mean size of the slice before:
//! where the mean size grows r-fold from one slice to the next, that slice's bound is (1 + r)/2 of it.
//!
//! # Cost
//!
//! One probe for a key that is there. A purge is linear in the table and frees half of it, so it
//! costs a constant per newly seen key. The table starts small and doubles up to 2^L slots of 32
//! bytes.

use super::{Access, Counts, ErrorBound};
use crate::hash::spread;
use crate::window::counts::Bound;

/// Slots of a table that has never been full.
const FIRST_LOG2: u8 = 8;
/// Watermarks kept apart in one slice; past this, neighbours are merged.
const MAX_WATERMARKS: usize = 4096;

/// Two to a cache line. Empty unless `stamp` is the slice's.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Slot {
    pub(super) hash: u64,
    pub(super) bytes: u64,
    pub(super) reads: u32,
    pub(super) writes: u32,
    stamp: u32,
    /// Index of the watermark under which the key entered.
    entered: u32,
}

impl Slot {
    #[inline]
    pub(super) fn ops(&self) -> u64 {
        u64::from(self.reads) + u64::from(self.writes)
    }

    /// The counted weight; multiplication and sums saturate rather than wrap.
    fn weight(&self, byte_weight: u64) -> u64 {
        self.ops()
            .saturating_mul(byte_weight)
            .saturating_add(self.bytes)
    }
}

/// Working space for purges, one for all slices.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    weights: Vec<u64>,
    survivors: Vec<Slot>,
}

impl Scratch {
    pub(super) fn memory_bytes(&self) -> usize {
        self.weights.capacity() * size_of::<u64>() + self.survivors.capacity() * size_of::<Slot>()
    }
}

/// A key's counts in this slice before and after the access just counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) ops: u64,
    pub(super) bytes_before: u64,
    pub(super) bytes: u64,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Slice {
    slots: Vec<Slot>,
    stamp: u32,
    len: usize,
    max_log2: u8,
    shift: u32,
    byte_weight: u64,
    /// Never empty; the first is 0, the last is D.
    watermarks: Vec<u64>,
}

impl Slice {
    pub(super) fn new(max_log2: u8) -> Self {
        let log2 = FIRST_LOG2.min(max_log2);
        Self {
            slots: vec![Slot::default(); 1 << log2],
            stamp: 1,
            len: 0,
            max_log2,
            shift: 64 - u32::from(log2),
            byte_weight: 1,
            watermarks: vec![0],
        }
    }

    /// Forgets everything in constant time, and fixes the weight of one access until the next start.
    pub(super) fn start(&mut self, byte_weight: u64) {
        self.next_stamp();
        self.byte_weight = byte_weight.max(1);
        self.watermarks.clear();
        self.watermarks.push(0);
    }

    fn next_stamp(&mut self) {
        self.len = 0;
        self.stamp = match self.stamp.checked_add(1) {
            Some(stamp) => stamp,
            None => {
                // Once in 2^32 starts an old stamp would come round again, so that once is a sweep.
                self.slots.fill(Slot::default());
                1
            }
        };
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (spread(hash) >> self.shift) as usize
    }

    /// The slot that holds `hash`, or the empty one where it belongs.
    ///
    /// There is always an empty one: the table is at most three quarters full.
    #[inline]
    fn probe(&self, hash: u64) -> (usize, bool) {
        let mask = self.slots.len() - 1;
        let mut index = self.home(hash);
        loop {
            let slot = &self.slots[index & mask];
            if slot.stamp != self.stamp {
                return (index & mask, false);
            }
            if slot.hash == hash {
                return (index & mask, true);
            }
            index += 1;
        }
    }

    #[inline]
    pub(super) fn count(
        &mut self,
        hash: u64,
        access: Access,
        bytes: u64,
        scratch: &mut Scratch,
    ) -> Step {
        let (mut index, found) = self.probe(hash);
        if !found {
            index = self.enter(index, hash, scratch);
        }
        let slot = &mut self.slots[index];
        match access {
            Access::Read => slot.reads = slot.reads.saturating_add(1),
            Access::Write => slot.writes = slot.writes.saturating_add(1),
        }
        let bytes_before = slot.bytes;
        slot.bytes = slot.bytes.saturating_add(bytes);
        Step {
            ops: slot.ops(),
            bytes_before,
            bytes: slot.bytes,
        }
    }

    fn enter(&mut self, mut index: usize, hash: u64, scratch: &mut Scratch) -> usize {
        if self.len >= self.slots.len() / 4 * 3 {
            if self.slots.len() < 1 << self.max_log2 {
                self.grow();
            } else {
                self.purge(scratch);
            }
            index = self.probe(hash).0;
        }
        let entered = (self.watermarks.len() - 1) as u32;
        self.slots[index] = Slot {
            hash,
            stamp: self.stamp,
            entered,
            ..Slot::default()
        };
        self.len += 1;
        index
    }

    fn grow(&mut self) {
        let doubled = vec![Slot::default(); self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, doubled);
        self.shift -= 1;
        for slot in old.iter().filter(|slot| slot.stamp == self.stamp) {
            let (index, _) = self.probe(slot.hash);
            self.slots[index] = *slot;
        }
    }

    /// Drops the lighter half and lifts the watermark to the heaviest weight dropped.
    fn purge(&mut self, scratch: &mut Scratch) {
        let total = |slot: &Slot| {
            slot.weight(self.byte_weight)
                .saturating_add(self.watermarks[slot.entered as usize])
        };
        scratch.weights.clear();
        scratch.weights.extend(
            self.slots
                .iter()
                .filter(|slot| slot.stamp == self.stamp)
                .map(total),
        );
        let middle = scratch.weights.len() / 2;
        let (_, &mut cut, _) = scratch.weights.select_nth_unstable(middle);
        scratch.survivors.clear();
        scratch.survivors.extend(
            self.slots
                .iter()
                .filter(|slot| slot.stamp == self.stamp && total(slot) > cut),
        );
        if self.watermarks.len() >= MAX_WATERMARKS {
            self.thin_watermarks(&mut scratch.survivors);
        }
        self.watermarks.push(cut);
        self.next_stamp();
        for survivor in &scratch.survivors {
            let (index, _) = self.probe(survivor.hash);
            self.slots[index] = Slot {
                stamp: self.stamp,
                ..*survivor
            };
        }
        self.len = scratch.survivors.len();
    }

    /// Keeps every second watermark; a key whose own is gone takes the next higher, so its bound
    /// gets wider and stays true.
    fn thin_watermarks(&mut self, survivors: &mut [Slot]) {
        let last = self.watermarks.len() - 1;
        for slot in survivors.iter_mut() {
            slot.entered = slot.entered.div_ceil(2);
        }
        let thinned = (0..=last.div_ceil(2))
            .map(|new| self.watermarks[(new * 2).min(last)])
            .collect();
        self.watermarks = thinned;
    }

    /// The weight of one access, in bytes.
    pub(super) fn byte_weight(&self) -> u64 {
        self.byte_weight
    }

    fn watermark(&self) -> u64 {
        self.watermarks.last().copied().unwrap_or(0)
    }

    /// What a key that is not in the table may at most have in this slice.
    pub(super) fn error(&self) -> ErrorBound {
        let bytes = self.watermark();
        ErrorBound {
            ops: bytes / self.byte_weight,
            bytes,
        }
    }

    pub(super) fn counts(&self, hash: u64) -> Counts {
        match self.probe(hash) {
            (index, true) => self.counts_of(&self.slots[index]),
            (_, false) => Counts::untracked(self.error()),
        }
    }

    pub(super) fn counts_of(&self, slot: &Slot) -> Counts {
        let missed_bytes = self
            .watermarks
            .get(slot.entered as usize)
            .copied()
            .unwrap_or(0);
        let missed_ops = missed_bytes / self.byte_weight;
        let (reads, writes) = (u64::from(slot.reads), u64::from(slot.writes));
        // A counter that has saturated may stand for any number.
        let is_full = slot.reads == u32::MAX || slot.writes == u32::MAX;
        let bound = |lower: u64, missed: u64| Bound {
            lower,
            upper: if is_full {
                u64::MAX
            } else {
                lower.saturating_add(missed)
            },
        };
        Counts {
            reads: bound(reads, missed_ops),
            writes: bound(writes, missed_ops),
            ops: bound(reads + writes, missed_ops),
            bytes: Bound {
                lower: slot.bytes,
                upper: slot.bytes.saturating_add(missed_bytes),
            },
        }
    }

    /// The keys in the table, in no order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.stamp == self.stamp)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>() + self.watermarks.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(slice: &mut Slice, hash: u64, bytes: u64) -> Step {
        slice.count(hash, Access::Read, bytes, &mut Scratch::default())
    }

    #[test]
    fn a_slot_is_half_a_cache_line() {
        assert_eq!(size_of::<Slot>(), 32);
    }

    #[test]
    fn a_started_slice_holds_nothing_and_grows_no_more() {
        let mut slice = Slice::new(4);
        count(&mut slice, 1, 10);
        slice.start(64);
        assert_eq!(slice.counts(1), Counts::default());
        assert_eq!(slice.entries().count(), 0);
    }

    #[test]
    fn stamps_that_come_round_again_find_no_old_key() {
        let mut slice = Slice::new(4);
        count(&mut slice, 1, 10); // under stamp 1
        slice.stamp = u32::MAX;
        slice.len = 0;
        slice.start(64);
        assert_eq!(slice.stamp, 1);
        assert_eq!(slice.counts(1), Counts::default());
    }

    #[test]
    fn counters_saturate_and_say_so() {
        let mut slice = Slice::new(4);
        count(&mut slice, 1, u64::MAX);
        let index = slice.probe(1).0;
        slice.slots[index].reads = u32::MAX;
        count(&mut slice, 1, 1);
        let counts = slice.counts(1);
        assert_eq!(counts.reads.lower, u64::from(u32::MAX));
        assert_eq!(counts.reads.upper, u64::MAX);
        assert_eq!(counts.bytes.lower, u64::MAX);
    }

    #[test]
    fn the_watermark_stays_below_the_bound_claimed_in_advance() {
        let mut slice = Slice::new(6);
        slice.start(1);
        let mut weight = 0;
        for access in 0..50_000_u64 {
            count(&mut slice, access % 997, 0);
            weight += 1;
            assert!(slice.watermark() as f64 <= 2.667 * weight as f64 / 64.0);
        }
        assert!(slice.watermark() > 0);
    }

    #[test]
    fn thinned_watermarks_only_widen_bounds() {
        let mut slice = Slice::new(4);
        slice.start(1);
        slice.watermarks = (0..7).map(|index| index * 10).collect();
        let mut survivors: Vec<Slot> = (0..7)
            .map(|entered| Slot {
                entered,
                ..Slot::default()
            })
            .collect();
        slice.thin_watermarks(&mut survivors);
        assert_eq!(slice.watermarks, [0, 20, 40, 60]);
        for (index, slot) in survivors.iter().enumerate() {
            assert!(slice.watermarks[slot.entered as usize] >= index as u64 * 10);
        }
    }
}
