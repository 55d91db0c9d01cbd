//! The control side: looks at the upstream, judges what is hot, and tells the shards.
//!
//! Two threads. The *watcher* looks at the topology, which may block. *Control* takes the shards'
//! nominations, polls them for exact counts of the candidates at once and then every tick, lets
//! the detector judge, and publishes the verdicts. A nomination is judged within a few
//! milliseconds; the tick is for cooling and for what nobody nominated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use keyheat_core::detect::{Detector, DetectorSettings, ShardReport};
use keyheat_core::hash::{ByHash, KeyHasher};
use keyheat_core::hotset::HotSet;
use keyheat_core::lockmarks::LockMarks;
use keyheat_core::rule::RuleSet;
use keyheat_core::Nanos;
use keyheat_resp::slot;
use mio::Waker;

use crate::copies::maker::ToMaker;
use crate::copies::names::{Beside, PREFIX};
use crate::feed::{Feed, Feeds};
use crate::hotview::{CopiedKey, HotPlan, HotView, ReadLimits};
use crate::node_stats::Reports;
use crate::parts;
use crate::settings::{HotSetFrom, Settings};
use crate::shard::{Answer, Hits, PollReply, Question, ShardSettings, Ticket, ToShard};
use crate::stats::ShardStats;
use crate::tls::Credentials;
use crate::topology::{Topology, Watcher};
use keyheat_net::{clock, lock};

/// How often the detector judges without being asked.
const TICK: Duration = Duration::from_millis(100);
/// Nominations are gathered at least so long between two polls.
const POLL_EVERY: Duration = Duration::from_millis(2);
/// A shard that has not answered a poll by then is left out of it.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);
/// A shard that has not answered a client's question by then makes the answer an error.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the topology is looked at without cause.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Least time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(50);
/// After something went wrong upstream: looks are this close together, for so long.
const LOOK_EAGER: Duration = Duration::from_millis(100);
const EAGER_FOR: Duration = Duration::from_secs(10);
/// Longest time between two looks while none succeeds.
const LOOK_RETRY_MAX: Duration = Duration::from_secs(2);

/// What control is told.
pub(crate) enum ToControl {
    /// A shard saw this key pass its local share.
    Nominate {
        key: Vec<u8>,
        key_hash: u64,
        node: u32,
    },
    /// The topology may have changed.
    Look,
    /// A node was named that is not known, by its address.
    Meet(String),
    /// A look succeeded.
    Topology(Arc<Topology>),
    /// A look failed.
    NoTopology(String),
    /// A node does not let a shard track, and why.
    NoTracking(usize, u32, String),
    /// It does again.
    Tracking(usize, u32),
    /// Local answers on or off.
    LocalCache(bool),
    /// Settings have changed.
    Settings,
    /// A shard's client asks about the clients of all.
    Ask(usize, Ticket, Arc<Question>),
    /// Die of a bug.
    #[cfg(test)]
    Die,
    /// End.
    Stop,
}

/// A shard's inbox.
#[derive(Clone)]
pub(crate) struct ShardHandle {
    pub inbox: Sender<ToShard>,
    pub waker: Arc<Waker>,
}

impl ShardHandle {
    /// Returns the message where the shard is no more.
    pub fn tell(&self, message: ToShard) -> Result<(), ToShard> {
        self.inbox.send(message).map_err(|e| e.0)?;
        let _ = self.waker.wake();
        Ok(())
    }
}

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

/// A key that is copied, as control knows it.
struct Copied {
    key: CopiedKey,
    since: Nanos,
    cooled_at: Option<Nanos>,
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

/// What the settings make of their rules: asked for at every verdict, so it is kept.
struct Ruled {
    rules: RuleSet,
    may_copy: bool,
    limits: Vec<ReadLimits>,
}

impl Ruled {
    fn of(settings: &Settings) -> Self {
        Self {
            rules: settings.rule_set().unwrap_or_default(),
            may_copy: settings.copies && settings.may_copy(),
            limits: settings.read_limits(),
        }
    }
}

pub(crate) struct Control {
    shared: Arc<Shared>,
    /// What is judged by.
    settings: Arc<Settings>,
    ruled: Ruled,
    shards: Vec<ShardHandle>,
    inbox: Receiver<ToControl>,
    watcher: Sender<Option<String>>,
    detector: Detector,
    last_hits: ByHash<u64>,
    last_poll: Instant,
    sent_plans: ByHash<HotPlan>,
    maker: Sender<ToMaker>,
    copied: ByHash<Copied>,
    sent_copied: ByHash<CopiedKey>,
    sent_limits: Vec<ReadLimits>,
}

impl Control {
    /// Starts the watcher and returns control, ready to run.
    pub fn start(
        shared: Arc<Shared>,
        shards: Vec<ShardHandle>,
        sender: Sender<ToControl>,
        inbox: Receiver<ToControl>,
        maker: Sender<ToMaker>,
    ) -> Result<Self, String> {
        let detector = detector(&shared.settings.load())?;
        let (watcher, wanted) = channel();
        let mut watched = Watcher::new((**shared.settings.load()).clone());
        let told = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("keyheat-watch".into())
            .spawn(move || {
                parts::keep_running("watch", &told.parts_dead, |_| {
                    // What it knows survives: the numbers of the nodes must never change.
                    watch(&mut watched, &told, &wanted, &sender);
                    Ok(())
                });
            })
            .map_err(|e| e.to_string())?;
        let settings = shared.settings.load_full();
        Ok(Self {
            ruled: Ruled::of(&settings),
            settings,
            shared,
            shards,
            inbox,
            watcher,
            detector,
            last_hits: ByHash::default(),
            last_poll: Instant::now(),
            sent_plans: ByHash::default(),
            maker,
            copied: ByHash::default(),
            sent_copied: ByHash::default(),
            sent_limits: Vec::new(),
        })
    }

    /// Runs until told to stop, anew should it die of a bug.
    pub fn keep_running(mut self) {
        let shared = Arc::clone(&self.shared);
        parts::keep_running("control", &shared.parts_dead, |is_first| {
            if !is_first {
                self.begin_anew()?;
            }
            self.run();
            Ok(())
        });
    }

    /// Forgets what is being judged. Shards learn with the next verdict that nothing is hot.
    fn begin_anew(&mut self) -> Result<(), String> {
        self.settings = self.shared.settings.load_full();
        self.ruled = Ruled::of(&self.settings);
        self.detector = detector(&self.settings)?;
        self.last_hits = ByHash::default();
        if let Some(topology) = self.shared.topology.load_full() {
            self.detector
                .set_nodes(|key| topology.owner(slot::slot(key)));
        }
        Ok(())
    }

    fn run(&mut self) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let mut is_wanted = false;
            let wait = next_tick.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(wait) {
                Ok(message) => {
                    let mut next = Some(message);
                    while let Some(message) = next {
                        match self.take(message) {
                            Some(wanted) => is_wanted |= wanted,
                            None => return,
                        }
                        next = self.inbox.try_recv().ok();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let is_tick = Instant::now() >= next_tick;
            if is_tick {
                next_tick = Instant::now() + TICK;
            }
            if is_wanted || is_tick {
                let since = self.last_poll.elapsed();
                if !is_tick && since < POLL_EVERY {
                    std::thread::sleep(POLL_EVERY - since);
                }
                self.poll(is_tick);
            }
        }
    }

    /// Takes a message: `Some(true)` where a poll is wanted at once, `None` at the end.
    fn take(&mut self, message: ToControl) -> Option<bool> {
        match message {
            ToControl::Nominate {
                key,
                key_hash,
                node,
            } => {
                // What is ours is as hot as what it is for, and nobody is to be told.
                let is_ours = key.starts_with(PREFIX);
                let now = clock::now();
                return Some(!is_ours && self.detector.nominate(&key, key_hash, node, now));
            }
            ToControl::Look => {
                let _ = self.watcher.send(None);
            }
            ToControl::Meet(address) => {
                let _ = self.watcher.send(Some(address));
            }
            ToControl::Topology(topology) => self.on_topology(topology),
            ToControl::NoTopology(why) => {
                lock(&self.shared.topology_error).clone_from(&why);
                for shard in &self.shards {
                    let _ = shard.tell(ToShard::NoTopology(why.clone()));
                }
            }
            ToControl::NoTracking(shard, node, why) => {
                let mut refusals = lock(&self.shared.refusals);
                if !refusals.values().any(|known| *known == why) {
                    tracing::warn!("nothing of it is cached: {why}");
                }
                refusals.insert((shard, node), why);
            }
            ToControl::Tracking(shard, node) => {
                lock(&self.shared.refusals).remove(&(shard, node));
            }
            ToControl::LocalCache(on) => {
                self.shared.cache_on.store(on, Relaxed);
                for shard in &self.shards {
                    let _ = shard.tell(ToShard::LocalCache(on));
                }
            }
            ToControl::Settings => self.on_settings(),
            ToControl::Ask(shard, ticket, question) => {
                let answer = self.ask_all(&question);
                if let Some(shard) = self.shards.get(shard) {
                    let _ = shard.tell(ToShard::Answered(ticket, question, answer));
                }
            }
            #[cfg(test)]
            ToControl::Die => panic!("planted"),
            ToControl::Stop => return None,
        }
        Some(false)
    }

    /// Tells the shards, and judges by the new rules; what was hot is so again once it is nominated.
    fn on_settings(&mut self) {
        let settings = self.shared.settings.load_full();
        for shard in &self.shards {
            let _ = shard.tell(ToShard::Settings(ShardSettings {
                settings: Arc::clone(&settings),
                tls: self.shared.credentials.load().client.clone(),
            }));
        }
        self.ruled = Ruled::of(&settings);
        let old = std::mem::replace(&mut self.settings, Arc::clone(&settings));
        let is_same = old.rules == settings.rules
            && (old.window_ms, old.hot_keys_max) == (settings.window_ms, settings.hot_keys_max);
        if is_same {
            return;
        }
        if let Err(e) = self.begin_anew() {
            tracing::error!("the new rules cannot be judged by: {e}");
        }
    }

    /// What all shards say to a question; an error where one does not answer.
    fn ask_all(&self, question: &Arc<Question>) -> Result<Answer, String> {
        let (sender, answers) = channel();
        for shard in &self.shards {
            let _ = shard.tell(ToShard::Asked(Arc::clone(question), sender.clone()));
        }
        drop(sender);
        let until = Instant::now() + ASK_TIMEOUT;
        let mut all = Answer::default();
        for _ in &self.shards {
            let left = until.saturating_duration_since(Instant::now());
            match answers.recv_timeout(left) {
                Ok(answer) => all.add(answer),
                Err(_) => return Err("a shard did not answer; try again".into()),
            }
        }
        Ok(all)
    }

    fn on_topology(&mut self, topology: Arc<Topology>) {
        // Before the shards serve by it: who has had a reply finds `/healthz` well.
        let old = self.shared.topology.swap(Some(Arc::clone(&topology)));
        lock(&self.shared.topology_error).clear();
        // Shards hear of it even where nothing has changed: what one learnt from a redirect may
        // have been wrong.
        for shard in &self.shards {
            let _ = shard.tell(ToShard::Topology(Arc::clone(&topology)));
        }
        if old.as_ref().is_some_and(|old| **old == *topology) {
            return;
        }
        tracing::info!(
            server = %topology.server.name,
            version = %topology.server.version,
            primaries = topology.primaries.len(),
            cluster = topology.is_cluster(),
            "upstream looked at"
        );
        self.detector
            .set_nodes(|key| topology.owner(slot::slot(key)));
    }

    fn poll(&mut self, is_tick: bool) {
        let candidates: Arc<[u64]> = self.detector.candidates().into();
        let fed = self.fed_set();
        let is_quiet = candidates.is_empty() && fed.as_ref().is_none_or(|set| set.is_empty());
        if is_quiet && self.sent_plans.is_empty() && self.copied.is_empty() {
            return;
        }
        let (sender, replies) = channel();
        for shard in &self.shards {
            let _ = shard.tell(ToShard::Poll(Arc::clone(&candidates), sender.clone()));
        }
        drop(sender);
        let until = Instant::now() + POLL_TIMEOUT;
        let mut reports: Vec<ShardReport> = Vec::with_capacity(self.shards.len());
        let mut hits: ByHash<Hits> = ByHash::default();
        while reports.len() < self.shards.len() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(PollReply { report, hits: some }) = replies.recv_timeout(left) else {
                break;
            };
            reports.push(report);
            for (hash, h) in some {
                let sum = hits.entry(hash).or_default();
                sum.count += h.count;
                sum.first = if sum.first == 0 {
                    h.first
                } else {
                    sum.first.min(h.first)
                };
            }
        }
        if reports.is_empty() {
            return;
        }
        self.detector.judge(&reports, clock::now());
        self.last_poll = Instant::now();
        let set = fed.unwrap_or_else(|| self.detector.hot_set());
        self.publish(set, &hits, is_tick);
    }

    /// The hot set by others' word, where that is listened to.
    fn fed_set(&self) -> Option<Arc<HotSet>> {
        if self.settings.hot_set != HotSetFrom::Fed {
            return None;
        }
        let topology = self.shared.topology.load_full()?;
        let rules = &self.ruled.rules;
        let most = self.settings.hot_keys_max;
        let mut feeds = lock(&self.shared.feeds);
        Some(feeds.hot_set(rules, self.shared.hasher, &topology, most, clock::now()))
    }

    fn publish(&mut self, set: Arc<HotSet>, hits: &ByHash<Hits>, is_tick: bool) {
        let copied = self.copied_now(&set);
        let mut plans = ByHash::default();
        let limits = &self.ruled.limits;
        for key in set.iter() {
            let was = self.sent_plans.get(&key.key_hash).copied();
            let pays = self.pays(key.heat.reads_per_s, key.heat.writes_per_s, was);
            // A lock is for the primary alone to answer.
            let is_lock = self.shared.locks.contains(key.key_hash, clock::now());
            let plan = HotPlan {
                local_cache: key.plan.local_cache && pays && !is_lock,
                coalesce: key.plan.coalesce && !is_lock,
                replica_reads: key.plan.replica_reads && !is_lock,
                copies: copied
                    .get(&key.key_hash)
                    .is_some_and(|c| c.read_after.is_some()),
                limits: limits
                    .iter()
                    .position(|l| l.rule == key.rule && !is_lock)
                    .map(|p| p as u16),
            };
            plans.insert(key.key_hash, plan);
        }
        let is_other = plans != self.sent_plans || *limits != self.sent_limits;
        if is_other || copied != self.sent_copied {
            self.sent_copied.clone_from(&copied);
            self.sent_limits.clone_from(limits);
            let view = Arc::new(HotView {
                plans: plans.clone(),
                copied,
                limits: limits.clone(),
            });
            for shard in &self.shards {
                let _ = shard.tell(ToShard::Hot(Arc::clone(&view)));
            }
            self.sent_plans.clone_from(&plans);
        }
        let old = self.shared.hot.load();
        let rates = set.iter().map(|key| {
            let h = hits.get(&key.key_hash).copied().unwrap_or_default();
            let before = self.last_hits.get(&key.key_hash).copied().unwrap_or(0);
            let per_s = if is_tick {
                h.count.saturating_sub(before) as f64 / TICK.as_secs_f64()
            } else {
                old.hits.get(&key.key_hash).map_or(0.0, |r| r.per_s)
            };
            let rate = HitRate {
                count: h.count,
                per_s,
                first_ns: (h.first != 0).then_some(h.first),
            };
            (key.key_hash, rate)
        });
        let rates: ByHash<HitRate> = rates.collect();
        if is_tick {
            self.last_hits = rates.iter().map(|(&h, r)| (h, r.count)).collect();
        }
        self.shared.hot.store(Arc::new(HotNow {
            set,
            hits: rates,
            plans,
        }));
    }

    /// The keys that have copies, or may still have some; tells the maker.
    fn copied_now(&mut self, set: &HotSet) -> ByHash<CopiedKey> {
        let now = clock::now();
        let bound = self.settings.copies_max_staleness_ms * clock::MS;
        let is_cluster = self
            .shared
            .topology
            .load()
            .as_ref()
            .is_some_and(|t| t.is_cluster());
        let may = is_cluster && self.ruled.may_copy;
        let wanted: BTreeSet<u64> = set
            .iter()
            .filter(|key| may && key.plan.copies && !key.key.starts_with(PREFIX))
            .filter(|key| !self.shared.locks.contains(key.key_hash, now))
            .take(self.settings.copies_keys_max)
            .map(|key| key.key_hash)
            .collect();
        for key in set.iter().filter(|key| wanted.contains(&key.key_hash)) {
            let copied = self.copied.entry(key.key_hash).or_insert_with(|| {
                let beside = Beside::of(&key.key);
                let key = CopiedKey {
                    key: Arc::from(&key.key[..]),
                    lease: beside.lease.into(),
                    register: beside.register.into(),
                    read_after: None,
                };
                Copied {
                    key,
                    since: now,
                    cooled_at: None,
                }
            });
            copied.cooled_at = None;
            copied.key.read_after = Some(copied.since + bound);
        }
        for (hash, copied) in &mut self.copied {
            if !wanted.contains(hash) {
                copied.cooled_at.get_or_insert(now);
                copied.key.read_after = None;
            }
        }
        // Writes void the copies of a key that has cooled for as long as there may be any.
        let is_left = |copied: &Copied| copied.cooled_at.is_none_or(|at| now < at + bound);
        self.copied.retain(|_, copied| is_left(copied));
        let all: ByHash<CopiedKey> = self
            .copied
            .iter()
            .map(|(hash, copied)| (*hash, copied.key.clone()))
            .collect();
        if all != self.sent_copied {
            let hot = all.values().filter(|copied| copied.read_after.is_some());
            let keys = hot.map(|copied| Arc::clone(&copied.key)).collect();
            let _ = self.maker.send(ToMaker::Keys(keys));
        }
        all
    }

    /// Whether caching a key saves more than it costs: each write makes every shard read it anew,
    /// with up to three commands. Between the two levels it stays as it was.
    fn pays(&self, reads_per_s: f64, writes_per_s: f64, was: Option<HotPlan>) -> bool {
        let cost = 3.0 * self.shards.len() as f64 * writes_per_s;
        let margin = if was.is_some_and(|p| p.local_cache) {
            1.0
        } else {
            1.5
        };
        reads_per_s >= margin * cost
    }
}

fn detector(settings: &Settings) -> Result<Detector, String> {
    let limits = DetectorSettings {
        window: Duration::from_millis(settings.window_ms),
        max_hot_keys: settings.hot_keys_max,
        ..DetectorSettings::default()
    };
    Ok(Detector::new(settings.rule_set()?, limits))
}

fn watch(
    watcher: &mut Watcher,
    shared: &Shared,
    wanted: &Receiver<Option<String>>,
    control: &Sender<ToControl>,
) {
    let mut retry = LOOK_MIN;
    let mut last_failure = String::new();
    let mut eager_until = Instant::now();
    loop {
        let looked = Instant::now();
        let is_eager = looked < eager_until;
        watcher.settings = (**shared.settings.load()).clone();
        watcher.tls.clone_from(&shared.credentials.load().client);
        let wait = match watcher.look() {
            Ok(topology) => {
                if control
                    .send(ToControl::Topology(Arc::new(topology)))
                    .is_err()
                {
                    return;
                }
                retry = LOOK_MIN;
                last_failure.clear();
                if is_eager {
                    LOOK_EAGER
                } else {
                    LOOK_EVERY
                }
            }
            Err(why) => {
                if why != last_failure {
                    tracing::warn!("upstream cannot be looked at: {why}");
                    last_failure.clone_from(&why);
                }
                if control.send(ToControl::NoTopology(why)).is_err() {
                    return;
                }
                let most = if is_eager { LOOK_EAGER } else { LOOK_RETRY_MAX };
                retry = (retry * 2).min(most);
                retry
            }
        };
        // Requests for a look are gathered, and never make more than one in `LOOK_MIN`.
        match wanted.recv_timeout(wait) {
            Ok(named) => {
                let mut named = named;
                // A failover takes the servers a while: the look that shows it is one of the next.
                eager_until = Instant::now() + EAGER_FOR;
                let early = LOOK_MIN.saturating_sub(looked.elapsed());
                std::thread::sleep(early);
                loop {
                    if let Some(address) = named {
                        watcher.meet(&address);
                    }
                    match wanted.try_recv() {
                        Ok(next) => named = next,
                        Err(_) => break,
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
