//! Counting accesses, nominating keys, and answering the detector's polls.

use std::time::Duration;

use keyheat_core::detect::ShardReport;
use keyheat_core::window::Access;
use keyheat_resp::command;
use keyheat_resp::request::{Parse, RequestParser};

use super::upstream::Pending;
use super::{PollReply, Shard};
use crate::control::ToControl;

impl Shard {
    /// Counts the access that a request was, to each of its keys.
    #[inline]
    pub(super) fn record(&mut self, pending: &Pending, node: u32, bytes: u64, request: &[u8]) {
        if !self.counts {
            return;
        }
        let access = if pending.has(Pending::WRITE) {
            Access::Write
        } else {
            Access::Read
        };
        if pending.has(Pending::MANY_KEYS) {
            return self.record_many(node, access, bytes, request);
        }
        let hash = pending.key_hash;
        if self.window.record(hash, node, access, bytes, self.now) && self.is_new(hash, node) {
            // Rare: only now is the key itself looked for.
            if let Some(key) = all_keys(&mut self.rescan, request).into_iter().next() {
                self.nominate(key, hash, node);
            }
        }
    }

    #[cold]
    pub(super) fn record_many(&mut self, node: u32, access: Access, bytes: u64, request: &[u8]) {
        let keys = all_keys(&mut self.rescan, request);
        let share = bytes / keys.len().max(1) as u64;
        for key in keys {
            let hash = self.hasher.hash(&key);
            if self.window.record(hash, node, access, share, self.now) && self.is_new(hash, node) {
                self.nominate(key, hash, node);
            }
        }
    }

    pub(super) fn report(&mut self, hashes: &[u64]) -> PollReply {
        let now = self.now;
        let nodes = 0..self.nodes.len() as u32;
        let keys = hashes
            .iter()
            .map(|&h| (h, self.window.estimate(h, now)))
            .collect();
        PollReply {
            report: ShardReport {
                reporter: self.index as u32,
                totals: nodes.map(|n| (n, self.window.totals(n, now))).collect(),
                keys,
                error: self.window.error(now),
            },
            hits: self.hits.iter().map(|(&h, &hits)| (h, hits)).collect(),
        }
    }

    /// Counts a read of a hot key that was answered here.
    pub(super) fn count_local(&mut self, key_hash: u64, node: u32, bytes: u64) {
        if self.counts {
            // It is hot already: there is nothing to nominate.
            self.window
                .record(key_hash, node, Access::Read, bytes, self.now);
        }
    }

    /// Whether a key that is due for a look passes its local share and was not nominated just now.
    #[cold]
    pub(super) fn is_new(&self, key_hash: u64, node: u32) -> bool {
        if self.hot.contains(key_hash) || self.nominated.contains_key(&key_hash) {
            return false;
        }
        let counts = self.window.estimate(key_hash, self.now);
        let totals = self.window.totals(node, self.now);
        let window = Duration::from_millis(self.settings.window_ms);
        self.nominator.should_nominate(&counts, &totals, window)
    }

    pub(super) fn nominate(&mut self, key: Vec<u8>, key_hash: u64, node: u32) {
        self.nominated.insert(key_hash, ());
        let _ = self.control.send(ToControl::Nominate {
            key,
            key_hash,
            node,
        });
    }
}

/// The keys of a request that was sent.
pub(super) fn all_keys(parser: &mut RequestParser, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let Ok(Parse::Complete { .. }) = parser.parse(frame) else {
        *parser = RequestParser::new(keyheat_resp::Limits::default());
        return keys;
    };
    let arg = |i| parser.arg(frame, i);
    if let Some(command) = command::lookup(arg(0)) {
        let spec = command.sub(arg(1)).unwrap_or(command);
        let _ = spec.for_each_key(parser.argc(), arg, |i| keys.push(arg(i).to_vec()));
    }
    keys
}
