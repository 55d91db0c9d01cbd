//! What an engine counts about itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since start; each only grows.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Stats {
            /// Names and figures.
            pub fn pairs(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

stats! {
    /// Commands seen.
    commands,
    /// Cacheable reads of hot keys.
    hot_reads,
    /// Of these, answered from memory.
    local_hits,
    /// In shadow mode: those that would have been.
    shadow_hits,
    /// Reads whose value was stored.
    fills,
    /// Reads whose value came too late or did not fit.
    fills_refused,
    /// Reads that another caller's read answered.
    joins,
    /// Reads with a value at hand that was not proved fresh.
    lapsed,
    /// Keys registered for tracking.
    registrations,
    /// Invalidations received.
    invalidations,
    /// Heartbeats sent.
    heartbeats,
    /// Tracking connections opened.
    tracking_opened,
    /// Tracking connections lost.
    tracking_lost,
    /// Keys that became hot.
    became_hot,
    /// Nanoseconds in which something was cached…
    cached_ns,
    /// …and of these, without a live proof.
    unproved_ns,
}

/// A counter that many threads may raise.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
