//! Limits that a rule sets for each of its hot keys: reads per second that go upstream, and reads at once.
//!
//! What it is: `reads_per_s_max` and `concurrency_max` of the key's rule, asked for a read of a hot key that was
//! not answered from memory. A read over them is answered with the last proved value where that is allowed
//! (`stale_on_error_ms`), else with an error that names the rule. It counts as an access all the same: a key
//! must not cool because it is held down.
//!
//! Writes are never limited, so neither are keys used as locks: what takes and frees a lock is a write (`SET
//! NX`, a script). Nor are sessions, clients with connections of their own, and the reads that fill the local
//! cache, which share one read anyway. A read of several keys is one of each, and is turned back as a whole where
//! one of them is over its limit; for `concurrency_max` it is on its way as a read of its first key.
//!
//! *Error.* The limits are per proxy and divided evenly over its shards, where the system deals clients out: a
//! key whose readers all meet one of *s* shards gets a share of 1/s of its limit. Shares of `concurrency_max` are
//! rounded up, so at most s − 1 reads more than it says. A second's share of reads may pass at once.
//!
//! Cost: nothing where no rule has limits; else one look-up per read of a hot key that goes upstream, and with
//! `concurrency_max` a walk over what is on its way to the key's node. Nothing is kept that could leak: what is
//! on its way is counted where it lies.

use keyheat_core::Nanos;
use keyheat_resp::command::Command;
use keyheat_resp::slot;

use super::client::ClientId;
use super::serve::{Flow, Keys, Request};
use super::upstream::{Pending, Role};
use super::Shard;
use crate::hotview::ReadLimits;
use keyheat_net::clock::SEC;

/// Reads that may still pass, as of a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    left: f64,
    at: Nanos,
}

impl Bucket {
    /// Whether there are so many reads in it, or it is full. It fills up within a second.
    fn has(&mut self, count: u32, now: Nanos, per_s: f64) -> bool {
        let more = per_s * now.saturating_sub(self.at) as f64 / SEC as f64;
        let most = per_s.max(1.0);
        // No more than a second's worth is owed.
        self.left = (self.left.max(-most) + more).min(most);
        self.at = now;
        self.left >= f64::from(count).min(most)
    }

    /// Takes so many reads out; what there is not is owed.
    fn take(&mut self, count: u32) {
        self.left -= f64::from(count);
    }
}

impl Shard {
    /// Turns a read of a hot key back that is over its rule's limits. `None`: it goes on its way.
    pub(super) fn limit_read(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        keys: &Keys,
        node: u32,
    ) -> Option<Flow> {
        let hot = std::sync::Arc::clone(&self.hot);
        let limits = hot.limits_of(keys.hash)?;
        if self.client(id).is_none_or(|c| !c.may_read_locally()) {
            return None;
        }
        let Some(over) = self.over(limits, keys.hash, 1, node) else {
            self.take_reads(keys.hash, 1);
            return None;
        };
        self.note_turned_back(node, 1);
        self.count_local(keys.hash, node, request.frame.len() as u64);
        let text = too_often(limits, &over);
        Some(self.refuse_or_stale(id, request.frame, Pending::HAS_KEY, &text))
    }

    /// As `limit_read`, for a read of several keys, which may lie on several nodes.
    pub(super) fn limit_read_of_many(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: &Command,
    ) -> Option<Flow> {
        if self.client(id).is_none_or(|c| !c.may_read_locally()) {
            return None;
        }
        let hot = std::sync::Arc::clone(&self.hot);
        let mut limited: Vec<(u64, u16, u32, &ReadLimits)> = Vec::new();
        let _ = command.for_each_key(
            request.argc(),
            |i| request.arg(i),
            |i| {
                let key = request.arg(i);
                let hash = self.hasher.hash(key);
                if let Some(named) = limited.iter_mut().find(|(known, ..)| *known == hash) {
                    named.2 += 1;
                } else if let Some(limits) = hot.limits_of(hash) {
                    limited.push((hash, slot::slot(key), 1, limits));
                }
            },
        );
        for &(hash, slot, count, limits) in &limited {
            let node = self.owner(slot).ok()?;
            if let Some(over) = self.over(limits, hash, count, node) {
                self.note_turned_back(node, 1);
                self.count_local(hash, node, request.frame.len() as u64);
                return Some(self.refuse_upstream(id, &too_often(limits, &over)));
            }
        }
        for (hash, _, count, _) in limited {
            self.take_reads(hash, count);
        }
        None
    }

    fn take_reads(&mut self, key_hash: u64, count: u32) {
        if let Some(bucket) = self.buckets.get_mut(&key_hash) {
            bucket.take(count);
        }
    }

    /// Which limit so many reads of the key would be over.
    fn over(
        &mut self,
        limits: &ReadLimits,
        key_hash: u64,
        count: u32,
        node: u32,
    ) -> Option<String> {
        let shards = self.settings.shard_count().max(1);
        let at_once = limits.concurrency_max as usize;
        if at_once > 0 && self.reads_under_way(key_hash, node) >= at_once.div_ceil(shards) {
            return Some(format!("{at_once} reads at once (concurrency_max)"));
        }
        if limits.reads_per_s_max == 0 {
            return None;
        }
        let (now, per_s) = (self.now, f64::from(limits.reads_per_s_max) / shards as f64);
        let full = Bucket {
            left: per_s.max(1.0),
            at: now,
        };
        let bucket = self.buckets.entry(key_hash).or_insert(full);
        let is_over = !bucket.has(count, now, per_s);
        let max = limits.reads_per_s_max;
        is_over.then(|| format!("{max} reads per second (reads_per_s_max)"))
    }

    fn reads_under_way(&self, key_hash: u64, node: u32) -> usize {
        const KINDS: u8 = Pending::HAS_KEY | Pending::WRITE;
        let is_one = |p: &&Pending| p.key_hash == key_hash && p.flags & KINDS == Pending::HAS_KEY;
        let shared = self
            .upstreams
            .iter()
            .filter(|(_, up)| up.primary == node && matches!(up.role, Role::Shared | Role::Reader));
        shared
            .map(|(_, up)| up.pending.iter().filter(is_one).count())
            .sum()
    }
}

fn too_often(limits: &ReadLimits, over: &str) -> String {
    format!(
        "OVERLOAD keyheat: rule '{}' lets each of its hot keys have {over}; this read was not sent, try \
         again later",
        limits.rule
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bucket: &mut Bucket, now: Nanos, per_s: f64) -> bool {
        let has_one = bucket.has(1, now, per_s);
        if has_one {
            bucket.take(1);
        }
        has_one
    }

    #[test]
    fn a_bucket_lets_its_rate_pass() {
        let mut bucket = Bucket { left: 5.0, at: 0 };
        let mut passed = 0;
        for tenth in 0..50 {
            for _ in 0..10 {
                passed += u32::from(read(&mut bucket, tenth * SEC / 10, 5.0));
            }
        }
        assert!((28..=30).contains(&passed), "{passed}");
        let mut less_than_one = Bucket { left: 1.0, at: 0 };
        assert!(read(&mut less_than_one, 0, 0.5));
        assert!(!read(&mut less_than_one, SEC, 0.5));
        assert!(read(&mut less_than_one, 2 * SEC, 0.5));
    }
}
