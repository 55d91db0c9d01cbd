//! Limits that a rule sets for each of its hot keys: reads per second that go upstream, and reads at once.
//!
//! What it is: `reads_per_s_max` and `concurrency_max` of the key's rule, asked for a read of a hot key that was
//! not answered from memory. A read over them is answered with the last proved value where that is allowed
//! (`stale_on_error_ms`), else with an error that names the rule. It counts as an access all the same: a key
//! must not cool because it is held down.
//!
//! Writes are never limited, so neither are keys used as locks: what takes and frees a lock is a write (`SET
//! NX`, a script). Nor are sessions, clients with connections of their own, reads of several keys at once, and
//! the reads that fill the local cache, which share one read anyway.
//!
//! *Error.* The limits are per proxy and divided evenly over its shards, where the system deals clients out: a
//! key whose readers all meet one of *s* shards gets a share of 1/s of its limit. Shares of `concurrency_max` are
//! rounded up, so at most s − 1 reads more than it says. A second's share of reads may pass at once.
//!
//! Cost: nothing where no rule has limits; else one look-up per read of a hot key that goes upstream, and with
//! `concurrency_max` a walk over what is on its way to the key's node. Nothing is kept that could leak: what is
//! on its way is counted where it lies.

use keyheat_core::Nanos;

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
    /// Takes one read out, if there is one. It fills up within a second.
    fn take(&mut self, now: Nanos, per_s: f64) -> bool {
        let more = per_s * now.saturating_sub(self.at) as f64 / SEC as f64;
        self.left = (self.left + more).min(per_s.max(1.0));
        self.at = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
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
        let over = self.over(limits, keys.hash, node)?;
        let text = format!(
            "OVERLOAD keyheat: rule '{}' lets each of its hot keys have {over}; this read was not sent, try \
             again later",
            limits.rule
        );
        self.note_turned_back(node, 1);
        self.count_local(keys.hash, node, request.frame.len() as u64);
        Some(self.refuse_or_stale(id, request.frame, Pending::HAS_KEY, &text))
    }

    /// Which limit a read of the key would be over.
    fn over(&mut self, limits: &ReadLimits, key_hash: u64, node: u32) -> Option<String> {
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
        let is_over = !bucket.take(now, per_s);
        let max = limits.reads_per_s_max;
        is_over.then(|| format!("{max} reads per second (reads_per_s_max)"))
    }

    fn reads_under_way(&self, key_hash: u64, node: u32) -> usize {
        const KINDS: u8 = Pending::HAS_KEY | Pending::WRITE | Pending::MANY_KEYS;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_its_rate_pass() {
        let mut bucket = Bucket { left: 5.0, at: 0 };
        let mut passed = 0;
        for tenth in 0..50 {
            for _ in 0..10 {
                passed += u32::from(bucket.take(tenth * SEC / 10, 5.0));
            }
        }
        assert!((28..=30).contains(&passed), "{passed}");
        let mut less_than_one = Bucket { left: 1.0, at: 0 };
        assert!(less_than_one.take(0, 0.5));
        assert!(!less_than_one.take(SEC, 0.5));
        assert!(less_than_one.take(2 * SEC, 0.5));
    }
}
