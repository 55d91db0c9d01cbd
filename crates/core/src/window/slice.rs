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
//! Let c be the slice's `byte_weight`; the weight of an access is c + bytes. For a key, let *missed* be
//! its accesses that no counter holds. A watermark has three parts, each a bound on what is missed of
//! any one key: weight D, accesses A, bytes B.
//!
//! - Of a key in the table, at most the watermark when it entered is missed.
//! - Of a key not in the table, at most the watermark now.
//!
//! Both hold at the start, when all parts are 0. A key enters under the watermark then in force. A
//! purge drops keys whose counted plus missed weight is at most d, so D = d holds for them; A becomes
//! the most that any of them may have had, counted plus missed, or stays if that is less; B likewise.
//! As accesses that weigh at most d are at most d/c and have at most d bytes, A ≤ ⌊d/c⌋ and B ≤ d. Hence
//!
//! ```text
//! ops ≤ true ops ≤ ops + A          bytes ≤ true bytes ≤ bytes + B
//! ```
//!
//! with A and B of the key's entry, and 0 … A, 0 … B of now for a key that is not there. Reads and
//! writes each have the bound of ops. A key that entered before the first purge is exact, as all truly
//! hot keys are in practice.
//!
//! In advance: let W be the weight of the whole slice and k = ¾·2^L the entries at a purge. The
//! excess over D, Σ (counted + missed at entry − D) over the table, grows by exactly the weight of
//! each access and is never negative; a purge that lifts D by δ takes at least δ from each of the k/2
//! heaviest. So D·k/2 ≤ W, and
//!
//! ```text
//! D ≤ 2.667 · W / 2^L      with L = capacity_log2,
//! ```
//!
//! however many keys there are. c is fixed at the first purge, to the mean size of the accesses so far;
//! before it nothing is missed, so c means nothing. With n accesses of mean size m in the whole slice,
//! A ≤ D/c ≤ 2.667/2^L · n·(1 + m/c): where sizes are steady, twice 2.667/2^L of the accesses; where
//! their mean grows r-fold after the first purge, (1 + r)/2 times that. A itself usually stays at half.
//!
//! # Cost
//!
//! One probe for a key that is there. A purge is linear in the table and frees half of it, so it
//! costs a constant per newly seen key. The table starts small and doubles up to 2^L slots of 32
//! bytes.

use super::{Access, Counts, ErrorBound};
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

/// The most that may be missed of one key, in three measures.
#[derive(Debug, Clone, Copy, Default)]
struct Watermark {
    weight: u64,
    ops: u64,
    bytes: u64,
}

impl Slot {
    #[inline]
    pub(super) fn ops(&self) -> u64 {
        u64::from(self.reads) + u64::from(self.writes)
    }
}

/// Working space for purges, one for all slices: the entries and what each weighs.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    entries: Vec<Slot>,
    weights: Vec<u64>,
    sorted: Vec<u64>,
}

impl Scratch {
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Slot>()
            + (self.weights.capacity() + self.sorted.capacity()) * size_of::<u64>()
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
    /// What one access weighs, in bytes; fixed by the first purge.
    byte_weight: u64,
    /// Never empty; the first is zero, the last is that of now. Each part only ever grows.
    watermarks: Vec<Watermark>,
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
            watermarks: vec![Watermark::default()],
        }
    }

    /// Forgets everything in constant time.
    pub(super) fn start(&mut self) {
        self.next_stamp();
        self.watermarks.truncate(1);
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
        // One multiplication carries every bit upwards, where the index is taken from.
        (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
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

    /// Asks the processor for the place of a key, to be counted soon.
    ///
    /// Each access lands on a cold place of a large table; fetched a few accesses ahead, it is there
    /// when it is counted.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        #[cfg(target_arch = "x86_64")]
        if let Some(slot) = self.slots.get(self.home(hash) & (self.slots.len() - 1)) {
            // SAFETY: a prefetch reads nothing and cannot fault; the address is one of a live slot.
            unsafe {
                use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
                _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(slot).cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = hash;
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

    /// Drops the lighter half and lifts the watermark to what may be missed of those dropped.
    #[cold]
    fn purge(&mut self, scratch: &mut Scratch) {
        if self.watermarks.len() == 1 {
            self.byte_weight = self.mean_size().max(1);
        }
        let len = self.gather(scratch);
        scratch.sorted.clear();
        scratch.sorted.extend_from_slice(&scratch.weights[..len]);
        let (_, &mut cut, _) = scratch.sorted.select_nth_unstable(len / 2);
        let mut watermark = self.watermark();
        let mut kept = 0;
        for index in 0..len {
            let slot = scratch.entries[index];
            let is_kept = scratch.weights[index] > cut;
            let missed = self.missed(&slot);
            let (ops, bytes) = (
                slot.ops().saturating_add(missed.ops),
                slot.bytes.saturating_add(missed.bytes),
            );
            watermark.ops = watermark.ops.max(if is_kept { 0 } else { ops });
            watermark.bytes = watermark.bytes.max(if is_kept { 0 } else { bytes });
            scratch.entries[kept] = slot;
            kept += usize::from(is_kept);
        }
        watermark.weight = cut;
        watermark.ops = watermark.ops.min(cut / self.byte_weight);
        watermark.bytes = watermark.bytes.min(cut);
        let survivors = &mut scratch.entries[..kept];
        if self.watermarks.len() >= MAX_WATERMARKS {
            self.thin_watermarks(survivors);
        }
        self.watermarks.push(watermark);
        self.next_stamp();
        for survivor in survivors {
            let (index, _) = self.probe(survivor.hash);
            self.slots[index] = Slot {
                stamp: self.stamp,
                ..*survivor
            };
        }
        self.len = kept;
    }

    /// Copies the entries and their weights out; returns how many there are.
    ///
    /// Here and in the purge itself, every slot is written and only the count depends on whether it is
    /// to stay: a branch that goes either way by chance would cost more than all the rest.
    fn gather(&self, scratch: &mut Scratch) -> usize {
        scratch.entries.resize(self.slots.len(), Slot::default());
        scratch.weights.resize(self.slots.len(), 0);
        let mut len = 0;
        for slot in &self.slots {
            scratch.entries[len] = *slot;
            scratch.weights[len] = self.weight(slot);
            len += usize::from(slot.stamp == self.stamp);
        }
        len
    }

    /// The mean size of the accesses counted in the table.
    fn mean_size(&self) -> u64 {
        let sums = self.entries().fold((0_u64, 0_u64), |(ops, bytes), slot| {
            (
                ops.saturating_add(slot.ops()),
                bytes.saturating_add(slot.bytes),
            )
        });
        sums.1.checked_div(sums.0).unwrap_or(0)
    }

    /// A key's counted and missed weight; products and sums saturate rather than wrap.
    fn weight(&self, slot: &Slot) -> u64 {
        let counted = slot
            .ops()
            .saturating_mul(self.byte_weight)
            .saturating_add(slot.bytes);
        counted.saturating_add(self.missed(slot).weight)
    }

    /// What may be missed of a key in the table.
    fn missed(&self, slot: &Slot) -> Watermark {
        // A stale slot may hold any index; the last watermark is the widest.
        let index = (slot.entered as usize).min(self.watermarks.len() - 1);
        self.watermarks[index]
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

    fn watermark(&self) -> Watermark {
        self.watermarks.last().copied().unwrap_or_default()
    }

    /// What a key that is not in the table may at most have in this slice.
    pub(super) fn error(&self) -> ErrorBound {
        let Watermark { ops, bytes, .. } = self.watermark();
        ErrorBound { ops, bytes }
    }

    pub(super) fn counts(&self, hash: u64) -> Counts {
        match self.probe(hash) {
            (index, true) => self.counts_of(&self.slots[index]),
            (_, false) => Counts::untracked(self.error()),
        }
    }

    fn counts_of(&self, slot: &Slot) -> Counts {
        let missed = self.missed(slot);
        let (reads, writes) = (u64::from(slot.reads), u64::from(slot.writes));
        // A counter that has saturated may stand for any number.
        let is_full = slot.reads == u32::MAX || slot.writes == u32::MAX;
        let bound = |lower: u64| Bound {
            lower,
            upper: if is_full {
                u64::MAX
            } else {
                lower.saturating_add(missed.ops)
            },
        };
        Counts {
            reads: bound(reads),
            writes: bound(writes),
            ops: bound(reads + writes),
            bytes: Bound {
                lower: slot.bytes,
                upper: slot.bytes.saturating_add(missed.bytes),
            },
        }
    }

    /// The keys in the table, in no order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter(|slot| slot.stamp == self.stamp)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
            + self.watermarks.capacity() * size_of::<Watermark>()
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
        slice.start();
        assert_eq!(slice.counts(1), Counts::default());
        assert_eq!(slice.entries().count(), 0);
    }

    #[test]
    fn stamps_that_come_round_again_find_no_old_key() {
        let mut slice = Slice::new(4);
        count(&mut slice, 1, 10); // under stamp 1
        slice.stamp = u32::MAX;
        slice.len = 0;
        slice.start();
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
        slice.start();
        let mut weight = 0;
        for access in 0..50_000_u64 {
            count(&mut slice, access % 997, 0);
            // Without bytes an access weighs one.
            weight += 1;
            let watermark = slice.watermark();
            assert!(watermark.weight as f64 <= 2.667 * weight as f64 / 64.0);
            assert!(watermark.ops <= watermark.weight);
        }
        assert!(slice.watermark().ops > 0);
    }

    #[test]
    fn thinned_watermarks_only_widen_bounds() {
        let mut slice = Slice::new(4);
        slice.start();
        let watermark = |ops| Watermark {
            ops,
            ..Watermark::default()
        };
        slice.watermarks = (0..7).map(|index| watermark(index * 10)).collect();
        let mut survivors: Vec<Slot> = (0..7)
            .map(|entered| Slot {
                entered,
                ..Slot::default()
            })
            .collect();
        slice.thin_watermarks(&mut survivors);
        let kept: Vec<u64> = slice
            .watermarks
            .iter()
            .map(|watermark| watermark.ops)
            .collect();
        assert_eq!(kept, [0, 20, 40, 60]);
        for (index, slot) in survivors.iter().enumerate() {
            assert!(slice.watermarks[slot.entered as usize].ops >= index as u64 * 10);
        }
    }
}
