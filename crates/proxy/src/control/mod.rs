//! The control side: looks at the upstream, judges what is hot, and tells the shards.
//!
//! Two threads. The *watcher* looks at the topology, which may block. *Control* takes the shards'
//! nominations, polls them for exact counts of the candidates at once and then every tick, lets
//! the detector judge, and publishes the verdicts. A nomination is judged within a few
//! milliseconds; the tick is for cooling and for what nobody nominated.
//!
//! # Layout
//! - [`shared`]: what the API, the acceptor and the maker of copies see
//! - [`verdicts`]: from a hot set to what is done for each key
//! - [`watch`]: when the topology is looked at

mod shared;
mod verdicts;
mod watch;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyheat_core::detect::{Detector, DetectorSettings, ShardReport};
use keyheat_core::hash::ByHash;
use keyheat_core::hotset::HotSet;
use keyheat_core::rule::RuleSet;
use keyheat_net::{clock, lock};
use keyheat_resp::slot;
use mio::Waker;

use crate::copies::maker::ToMaker;
use crate::copies::names::PREFIX;
use crate::hotview::{CopiedKey, HotPlan, ReadLimits};
use crate::parts;
use crate::settings::{HotSetFrom, Settings};
use crate::shard::{Answer, Hits, PollReply, Question, ShardSettings, Ticket, ToShard};
use crate::topology::{Topology, Watcher};

pub(crate) use shared::{feed, HitRate, HotNow, Shared};
use verdicts::Copied;
use watch::watch;

/// How often the detector judges without being asked.
const TICK: Duration = Duration::from_millis(100);
/// Nominations are gathered at least so long between two polls.
const POLL_EVERY: Duration = Duration::from_millis(2);
/// A shard that has not answered a poll by then is left out of it.
const POLL_TIMEOUT: Duration = Duration::from_millis(50);
/// A shard that has not answered a client's question by then makes the answer an error.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
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
        watched.notice = Arc::clone(&shared.notice);
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
}

fn detector(settings: &Settings) -> Result<Detector, String> {
    let limits = DetectorSettings {
        window: Duration::from_millis(settings.window_ms),
        max_hot_keys: settings.hot_keys_max,
        ..DetectorSettings::default()
    };
    Ok(Detector::new(settings.rule_set()?, limits))
}
