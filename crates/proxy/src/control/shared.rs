//! What control shares with the API, the acceptor and the maker of copies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use keyheat_core::hash::{ByHash, KeyHasher};
use keyheat_core::hotset::HotSet;
use keyheat_core::lockmarks::LockMarks;
use keyheat_net::{clock, lock};

use crate::feed::{Feed, Feeds};
use crate::hotview::HotPlan;
use crate::node_stats::Reports;
use crate::notice::Notice;
use crate::settings::{HotSetFrom, Settings};
use crate::stats::ShardStats;
use crate::tls::Credentials;
use crate::topology::Topology;

/// What the API shows of one hot key's local answers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HitRate {
    pub count: u64,
    pub per_s: f64,
    pub first_ns: Option<u64>,
}

/// A hot set and what was answered locally for it.
#[derive(Default)]
pub(crate) struct HotNow {
    pub set: Arc<HotSet>,
    pub hits: ByHash<HitRate>,
    pub plans: ByHash<HotPlan>,
}

/// What the maker of copies has done.
#[derive(Debug, Default)]
pub(crate) struct CopyCounts {
    /// Keys whose copies this process makes.
    pub owned: AtomicU64,
    pub placed: AtomicU64,
    pub failures: AtomicU64,
}

/// What control shares with the API.
pub(crate) struct Shared {
    /// As they are now: some may change.
    pub settings: ArcSwap<Settings>,
    /// What TLS takes, as it was read last.
    pub credentials: Arc<ArcSwap<Credentials>>,
    pub stats: Vec<Arc<ShardStats>>,
    pub node_stats: Vec<Reports>,
    pub hot: ArcSwap<HotNow>,
    pub topology: ArcSwapOption<Topology>,
    pub topology_error: Mutex<String>,
    pub cache_on: AtomicBool,
    /// Why nothing is cached from a node, by shard and node.
    pub refusals: Mutex<BTreeMap<(usize, u32), String>>,
    pub hasher: KeyHasher,
    /// What is hot by others' word, where that is listened to.
    pub feeds: Mutex<Feeds>,
    /// Keys that are locks: nothing is done for them.
    pub locks: Arc<LockMarks>,
    pub copies: CopyCounts,
    pub notice: Arc<Notice>,
    pub shards_dead: AtomicUsize,
    /// Threads that have died of a bug and are not running again yet, by name.
    pub parts_dead: Mutex<BTreeSet<&'static str>>,
    pub started: Instant,
}

/// Takes what a source says to be hot.
///
/// # Errors
/// The proxy counts by itself, or a sentence about what is wrong with the feed.
pub(crate) fn feed(shared: &Shared, json: &str) -> Result<(), String> {
    let settings = shared.settings.load();
    if settings.hot_set != HotSetFrom::Fed {
        return Err("hot_set: this proxy counts by itself; 'fed' would have it listen".into());
    }
    let feed = Feed::from_json(json, settings.hot_keys_max)?;
    lock(&shared.feeds).take(feed, clock::now())
}
