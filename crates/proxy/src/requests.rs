//! Requests by what they are and how they were answered.
//!
//! One counter per pair and shard, and one increment per request: the number of requests is their sum. The way is
//! the one a request was put on when it was taken up; what went wrong on it later is in counters of its own
//! (`copy_misses`, `replica_reads_again`, `upstream_errors`).

use std::fmt::Write as _;
use std::sync::Arc;

use crate::stats::{Counter, ShardStats};

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Transaction,
    Blocking,
    Pubsub,
    Server,
    Connection,
    Other,
}

/// On which way it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Upstream,
    LocalCache,
    Shared,
    Copy,
    Replica,
    Stale,
    Proxy,
    Error,
}

const KINDS: [(Kind, &str); 8] = [
    (Kind::Read, "read"),
    (Kind::Write, "write"),
    (Kind::Transaction, "transaction"),
    (Kind::Blocking, "blocking"),
    (Kind::Pubsub, "pubsub"),
    (Kind::Server, "server"),
    (Kind::Connection, "connection"),
    (Kind::Other, "other"),
];

const WAYS: [(Way, &str); 8] = [
    (Way::Upstream, "upstream"),
    (Way::LocalCache, "local_cache"),
    (Way::Shared, "shared_read"),
    (Way::Copy, "copy"),
    (Way::Replica, "replica"),
    (Way::Stale, "stale"),
    (Way::Proxy, "proxy"),
    (Way::Error, "error"),
];

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub kind: Kind,
    pub way: Way,
}

/// The counters of one shard.
#[derive(Debug, Default)]
pub struct Requests([[Counter; WAYS.len()]; KINDS.len()]);

impl Requests {
    /// Counts a request.
    pub(crate) fn count(&self, taken: Taken) {
        self.of(taken.kind, taken.way).add(1);
    }

    fn of(&self, kind: Kind, way: Way) -> &Counter {
        &self.0[kind as usize][way as usize]
    }

    /// All requests so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.iter().flatten().map(Counter::get).sum()
    }
}

/// Adds the series, in Prometheus' text format: of the pairs that have occurred.
pub(crate) fn write_metrics(out: &mut String, shards: &[Arc<ShardStats>]) {
    let name = "keyheat_requests_by_class_total";
    let _ = write!(
        out,
        "# HELP {name} Requests by what they are and how they were answered.\n# TYPE {name} counter\n"
    );
    for (kind, class) in KINDS {
        for (way, answered) in WAYS {
            let counts = shards.iter().map(|s| s.requests.of(kind, way).get());
            let sum: u64 = counts.sum();
            if sum > 0 {
                let _ = writeln!(
                    out,
                    "{name}{{class=\"{class}\",answered=\"{answered}\"}} {sum}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_way_stands_at_its_place() {
        assert!(KINDS.iter().enumerate().all(|(i, k)| k.0 as usize == i));
        assert!(WAYS.iter().enumerate().all(|(i, w)| w.0 as usize == i));
    }
}
