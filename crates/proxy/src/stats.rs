//! Counters of the data plane: one block per shard, written by that shard only, read by the
//! control side. Relaxed order is enough: they are sums, nothing is decided on them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::requests::Requests;

/// A counter that only its own shard writes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. The single writer needs no atomic addition.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A level that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Moves the level.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The level now.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// Sets the level.
    pub fn set(&self, n: i64) {
        self.0.store(n, Relaxed);
    }
}

macro_rules! stats {
    ($($kind:ident $name:ident $help:literal)*) => {
        /// The counters of one shard.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct ShardStats {
            $(#[doc = $help] pub $name: $kind,)*
        }

        /// Sums over shards: `(name, is_counter, help, value)`.
        #[must_use]
        pub fn sums(shards: &[std::sync::Arc<ShardStats>])
            -> Vec<(&'static str, bool, &'static str, i64)> {
            vec![$((
                stringify!($name),
                stringify!($kind) != "Gauge",
                $help,
                shards.iter().map(|s| s.$name.get() as i64).sum(),
            ),)*]
        }
    };
}

stats! {
    Requests requests "Requests received from clients."
    Counter local_hits "Reads answered from the local cache."
    Counter stale_answers "Reads answered with the last proved value because their node could not answer."
    Counter fills "Upstream reads made to fill the local cache."
    Counter fill_joins "Reads that waited for a fill already under way."
    Counter fills_stored "Fills whose value was stored."
    Counter fills_void "Fills dropped by their fence."
    Counter hot_reads "Cacheable reads of keys that are hot and planned to be cached."
    Counter lapsed "Hot reads sent upstream because the proof of freshness had lapsed."
    Counter hot_reads_upstream "Hot reads sent upstream for any reason (fills, joins excluded)."
    Counter forwarded "Requests sent upstream."
    Counter replica_reads "Reads sent to a replica."
    Counter replica_reads_again "Reads sent to the primary because a replica did not answer them."
    Counter copy_reads "Reads answered by a copy."
    Counter copy_misses "Reads that asked a copy in vain, and then the original."
    Counter copy_voidings "Writes before whose reply copies were deleted."
    Counter copies_waited_out "Writes whose reply had to wait until copies had expired."
    Counter expiries_lengthened "Writes sent with a longer expiry than was written (longer_expiry)."
    Counter redirects "MOVED and ASK answers followed."
    Counter upstream_errors "Requests answered with an error of the proxy because an upstream failed."
    Counter turned_back "Requests answered with an error at once to protect an upstream."
    Counter refused "Requests refused because they are not supported."
    Counter protocol_errors "Clients cut for breaking the protocol."
    Counter invalidations "Keys invalidated by a push."
    Counter heartbeats "Heartbeats sent on tracking connections."
    Counter registrations "Keys registered on tracking connections."
    Counter tracking_lost "Tracking connections lost."
    Counter clients_total "Clients accepted."
    Counter clients_cut "Clients cut because they did not read their replies."
    Counter clients_idle "Clients cut because they said nothing for client_idle_timeout_s."
    Gauge clients "Clients connected now."
    Gauge upstreams "Upstream connections open now."
    Gauge cache_bytes "Bytes in the local cache."
    Gauge cache_entries "Entries in the local cache."
    Gauge buffer_bytes "Bytes of requests and replies held."
}
