//! The proxy: any client in front, a server or a Cluster behind, hot keys found and answered here.
//!
//! # Layout
//!
//! In the order that explains it:
//!
//! - [`settings`]: what a proxy is told at start
//! - `shard`: the data plane; event loops, from the bytes of a request to its reply
//! - [`topology`]: who is upstream
//! - `control`: from counts to verdicts, and back to the shards
//! - `http`, `metrics`: what is shown
//! - `reload`: settings that change while it runs
//! - `parts`: threads that are run again should they die; `cores`: how many there are for shards
//! - `listen`, `listener`, `unix_socket`: clients accepted; `headed`, `proxy_header`: from balancers
//! - `stream`, `tls`: connections, encrypted or not; `random`: what is drawn
//! - [`stats`], `requests`, `node_stats`, [`hotview`]: what they share
//!
//! # Life of a GET
//!
//! `shard::serve` reads it and finds its key; `shard::fill` answers it from memory if the key is
//! hot and the proof of freshness holds; otherwise `shard::forward` has a connection to the node
//! of its slot, and `shard::replies` brings the answer back to the client's slot and counts it.

mod control;
pub mod copies;
mod cores;
pub mod expiry_settings;
pub mod feed;
mod headed;
pub mod hotview;
mod http;
mod listen;
mod listener;
mod metrics;
mod node_stats;
mod notice;
mod overload_settings;
mod own_writes;
mod parts;
mod proxy_header;
mod random;
mod reload;
mod requests;
mod seldom;
pub mod settings;
mod shard;
pub mod stats;
mod stream;
mod tls;
pub mod topology;
mod unix_socket;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use keyheat_core::detect::Nominator;
use keyheat_core::fence::WriteEpochs;
use keyheat_core::hash::KeyHasher;
use keyheat_net::lock;
use mio::{Poll, Waker};

use control::{Control, ShardHandle, Shared, ToControl};
use copies::maker::Maker;
use listen::Acceptor;
use listener::{bind, Front, Listener, Sharing};
use node_stats::Reports;
use own_writes::WriteTimes;
use settings::Settings;
use shard::{Shard, ShardParts, ToShard};
use stats::ShardStats;
use tls::Credentials;
use unix_socket::UnixSocket;

/// A running proxy. Dropping it ends it.
pub struct Proxy {
    shared: Arc<Shared>,
    shards: Vec<ShardHandle>,
    control: Sender<ToControl>,
    listen_addr: Option<SocketAddr>,
    tls_addr: Option<SocketAddr>,
    acceptor: Acceptor,
    http: Option<(SocketAddr, tokio::sync::oneshot::Sender<()>)>,
    threads: Vec<JoinHandle<()>>,
}

/// Whether a proxy can be started with these settings, as far as can be known without starting one: what
/// they name is read.
///
/// # Errors
/// A sentence that names the setting and the file.
pub fn check(settings: &Settings) -> Result<(), String> {
    Credentials::read(settings).map(|_| ())
}

impl Proxy {
    /// Binds and starts. The upstream need not be there yet.
    ///
    /// # Errors
    /// `AddrInUse` and the like where an address cannot be had.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        let settings = Arc::new(settings);
        let credentials = Credentials::read(&settings).map_err(std::io::Error::other)?;
        let credentials = Arc::new(ArcSwap::from_pointee(credentials));
        let (listeners, listen_addr, tls_addr) = listeners(&settings, &credentials)?;
        let http = settings.http.as_deref();
        let http = http.map(|a| bind(a, Sharing::Alone)).transpose()?;
        let rules = settings.rule_set().map_err(std::io::Error::other)?;
        let count = settings.shard_count().max(1);
        let stats: Vec<_> = (0..count)
            .map(|_| Arc::new(ShardStats::default()))
            .collect();
        let hasher = KeyHasher::new(seed());
        let shared = Arc::new(Shared {
            settings: ArcSwap::new(Arc::clone(&settings)),
            credentials,
            stats: stats.clone(),
            node_stats: stats.iter().map(|_| Reports::default()).collect(),
            hot: ArcSwap::default(),
            topology: ArcSwapOption::empty(),
            topology_error: Mutex::new("not looked at yet".into()),
            cache_on: AtomicBool::new(settings.local_cache),
            refusals: Mutex::default(),
            hasher,
            feeds: Mutex::default(),
            locks: Arc::default(),
            copies: Default::default(),
            notice: Arc::default(),
            shards_dead: AtomicUsize::new(0),
            parts_dead: Mutex::default(),
            started: Instant::now(),
        });
        let (control, control_inbox) = channel();
        let epochs = Arc::new(WriteEpochs::default());
        let copies_off_until = Arc::new(AtomicU64::new(0));
        let own_writes: Arc<[WriteTimes]> = (0..count).map(|_| WriteTimes::default()).collect();
        let next_client_id = Arc::new(AtomicU64::new(1));
        let mut threads = Vec::new();
        let mut shards = Vec::new();
        for (index, stats) in stats.into_iter().enumerate() {
            let poll = Poll::new()?;
            let waker = Arc::new(Waker::new(poll.registry(), shard::WAKER)?);
            let (inbox, messages) = channel();
            let parts = ShardParts {
                index,
                settings: Arc::clone(&settings),
                tls: shared.credentials.load().client.clone(),
                poll,
                inbox: messages,
                control: control.clone(),
                stats,
                node_stats: Arc::clone(&shared.node_stats[index]),
                epochs: Arc::clone(&epochs),
                own_writes: Arc::clone(&own_writes),
                locks: Arc::clone(&shared.locks),
                copies_off_until: Arc::clone(&copies_off_until),
                notice: Arc::clone(&shared.notice),
                hasher,
                nominator: Nominator::new(&rules, count as u32),
                next_client_id: Arc::clone(&next_client_id),
            };
            let shard = Shard::new(parts).map_err(std::io::Error::other)?;
            let told = Arc::clone(&shared);
            threads.push(spawn(&format!("keyheat-shard-{index}"), move || {
                let run = std::panic::AssertUnwindSafe(|| shard.run());
                if std::panic::catch_unwind(run).is_err() {
                    tracing::error!("shard {index} has died of a bug; its clients are cut");
                    told.shards_dead
                        .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            })?);
            shards.push(ShardHandle { inbox, waker });
        }
        // It lives as long as control does, and removes the copies when that ends.
        let (maker, maker_inbox) = channel();
        let told = Arc::clone(&shared);
        threads.push(spawn("keyheat-copies", move || {
            parts::keep_running("copies", &told.parts_dead, |_| {
                Maker::run(Arc::clone(&told), seed(), &maker_inbox);
                Ok(())
            });
        })?);
        let running = Control::start(
            Arc::clone(&shared),
            shards.clone(),
            control.clone(),
            control_inbox,
            maker,
        )
        .map_err(std::io::Error::other)?;
        threads.push(spawn("keyheat-control", move || running.keep_running())?);
        let acceptor = Acceptor::start(listeners, shards.clone(), Arc::clone(&shared))?;
        let http = match http {
            None => None,
            Some(listener) => {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                let (stop, stopped) = tokio::sync::oneshot::channel();
                let shared = Arc::clone(&shared);
                threads.push(spawn("keyheat-http", move || {
                    if let Err(e) = http::serve(listener, shared, stopped) {
                        tracing::error!("http ended: {e}");
                    }
                })?);
                Some((address, stop))
            }
        };
        Ok(Self {
            shared,
            shards,
            control,
            listen_addr,
            tls_addr,
            acceptor,
            http,
            threads,
        })
    }

    /// Where clients connect.
    #[must_use]
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.listen_addr
    }

    /// Where clients that speak TLS connect.
    #[must_use]
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.tls_addr
    }

    /// Where the API is served.
    #[must_use]
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|(address, _)| *address)
    }

    /// The hot set as JSON, as `/api/hot` gives it.
    #[must_use]
    pub fn hot(&self) -> String {
        http::hot(&self.shared).to_string()
    }

    /// The counters as JSON.
    #[must_use]
    pub fn stats(&self) -> String {
        http::stats(&self.shared).to_string()
    }

    /// The counters in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        metrics::metrics(&self.shared)
    }

    /// Switches local answers on or off, while running.
    pub fn set_local_cache(&self, on: bool) {
        let _ = self.control.send(ToControl::LocalCache(on));
    }

    /// Is told what is hot; see [`feed`].
    ///
    /// # Errors
    /// The proxy counts by itself, or a sentence about what is wrong with the feed.
    pub fn feed(&self, json: &str) -> Result<(), String> {
        control::feed(&self.shared, json)
    }

    /// Stops accepting, and lets each client go once all it has asked is answered. True if that
    /// was so for all within `timeout`.
    #[must_use]
    pub fn drain(&self, timeout: Duration) -> bool {
        self.acceptor.stop();
        for shard in &self.shards {
            let _ = shard.tell(ToShard::Drain);
        }
        let until = Instant::now() + timeout;
        while Instant::now() < until {
            let left: i64 = self.shared.stats.iter().map(|s| s.clients.get()).sum();
            if left <= 0 {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }

    /// Ends everything now.
    pub fn stop(&mut self) {
        self.acceptor.stop();
        self.threads.extend(self.acceptor.thread.take());
        for shard in &self.shards {
            let _ = shard.tell(ToShard::Stop);
        }
        let _ = self.control.send(ToControl::Stop);
        if let Some((_, stop)) = self.http.take() {
            let _ = stop.send(());
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }

    /// Who is upstream now, if that is known.
    #[must_use]
    pub fn topology(&self) -> Option<Arc<topology::Topology>> {
        self.shared.topology.load_full()
    }

    /// Why the upstream could not be looked at; empty if it could.
    #[must_use]
    pub fn topology_error(&self) -> String {
        lock(&self.shared.topology_error).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where clients connect, with the addresses of the plain listener and of the one for TLS.
fn listeners(
    settings: &Settings,
    credentials: &Arc<ArcSwap<Credentials>>,
) -> std::io::Result<(Vec<Listener>, Option<SocketAddr>, Option<SocketAddr>)> {
    let sharing = if settings.reuse_port {
        Sharing::Shared
    } else {
        Sharing::Alone
    };
    let (mut listeners, mut listen_addr, mut tls_addr) = (Vec::new(), None, None);
    if let Some(address) = &settings.listen {
        let (front, bound) = Front::new(bind(address, sharing)?)?;
        listeners.push(Listener::Tcp(front.behind(settings.balancers())));
        listen_addr = Some(bound);
    }
    if let Some(address) = &settings.tls_listen {
        let (front, bound) = Front::new(bind(address, sharing)?)?;
        let front = front.over_tls(Arc::clone(credentials));
        listeners.push(Listener::Tcp(front.behind(settings.balancers())));
        tls_addr = Some(bound);
    }
    if let Some(path) = &settings.unix_socket {
        let mode = settings.unix_socket_mode().map_err(std::io::Error::other)?;
        let socket = UnixSocket::bind(path, mode)
            .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        listeners.push(Listener::Unix(socket));
    }
    Ok((listeners, listen_addr, tls_addr))
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(run)
}

/// A secret for the key hash, so that nobody can craft keys that collide.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let state = std::collections::hash_map::RandomState::new();
    let mut hasher = state.build_hasher();
    hasher.write_u64(keyheat_net::clock::now());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthz_names_a_part_that_died_and_it_is_run_again() {
        let settings = Settings {
            listen: Some("127.0.0.1:0".into()),
            shards: 1,
            ..Settings::default()
        };
        let proxy = Proxy::start(settings).unwrap();
        let is_dead = || lock(&proxy.shared.parts_dead).contains("control");
        let until = Instant::now() + Duration::from_secs(20);
        let wait = |is_done: &dyn Fn() -> bool| {
            while !is_done() {
                assert!(Instant::now() < until);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        proxy.control.send(ToControl::Die).unwrap();
        wait(&is_dead);
        let (is_well, body) = http::health(&proxy.shared);
        assert!(!is_well);
        assert!(body.to_string().contains("control"), "{body}");
        wait(&|| !is_dead());
        // It takes messages again.
        proxy.set_local_cache(false);
        let cache_on = || {
            proxy
                .shared
                .cache_on
                .load(std::sync::atomic::Ordering::Relaxed)
        };
        wait(&|| !cache_on());
    }
}
