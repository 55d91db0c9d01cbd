//! An engine, and how it survives a fork.
//!
//! A forked child has none of its parent's threads, shares its sockets, and may find its locks taken
//! for ever. So the child touches nothing of the parent's engine but what is read without a lock
//! (settings, switches, topology): it leaves it where it is and starts one of its own, empty, at the
//! first command. A counter that `pthread_atfork` raises tells, whoever forks: `os.fork`,
//! `multiprocessing`, or a server written in C.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyheat_client::engine::{now, Shared};
use keyheat_client::{Connector, Dialed, Node, Refusal, Settings, Topology, Writes};
use keyheat_core::hotset::HotState;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use serde_json::json;

use super::dial::Answer;
use super::kept::Value;

static FORKS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Relaxed);
}

/// How many forks lie between the process that loaded this module and this one.
#[inline]
pub fn forks() -> u64 {
    FORKS.load(Relaxed)
}

/// Has every fork of this process counted, in the child.
pub fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler does nothing but add to an atomic, which is allowed between fork and exec.
        let refused = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
        if refused != 0 {
            tracing::warn!("forks go unnoticed: pthread_atfork failed with {refused}");
        }
    });
}

/// An engine with the fork it was started in.
struct Running {
    forks: u64,
    engine: keyheat_client::Engine<Value>,
}

/// What runs behind one or more protected clients of one deployment.
#[pyclass(frozen)]
pub struct Engine {
    current: ArcSwap<Running>,
    settings: Settings,
    connector: Arc<PyConnector>,
}

/// Has Python open connections.
struct PyConnector {
    dial: Py<PyAny>,
}

impl Connector for PyConnector {
    fn dial(&self, node: &Node, timeout: Duration) -> Result<Dialed, Refusal> {
        let dialed = Python::try_attach(|py| {
            let args = (node.host.as_str(), node.port, timeout.as_secs_f64());
            let answer = self.dial.call1(py, args)?;
            Answer::read(answer.bind(py))
        });
        match dialed {
            // The interpreter is not held: what is left may take its time.
            Some(Ok(answer)) => answer.dialed(timeout),
            Some(Err(e)) => Err(Refusal::Unreachable(e.to_string())),
            None => Err(Refusal::Unreachable(
                "the interpreter is shutting down".into(),
            )),
        }
    }
}

/// What this process has written through any of its protected clients.
fn writes() -> &'static Writes {
    static WRITES: OnceLock<Writes> = OnceLock::new();
    WRITES.get_or_init(|| Writes::new(seed()))
}

/// A seed for key hashes that nobody can guess.
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(now());
    hasher.finish()
}

impl Engine {
    fn run(
        settings: &Settings,
        connector: &Arc<PyConnector>,
        topology: Topology,
    ) -> PyResult<Running> {
        let connector: Arc<dyn Connector> = Arc::<PyConnector>::clone(connector);
        let forks = FORKS.load(Relaxed);
        let engine = keyheat_client::Engine::start(settings.clone(), topology, connector, writes());
        let engine = engine.map_err(PyRuntimeError::new_err)?;
        Ok(Running { forks, engine })
    }

    /// The engine of this process.
    #[inline]
    pub fn with<T>(&self, f: impl FnOnce(&Arc<Shared<Value>>) -> T) -> PyResult<T> {
        let current = self.current.load();
        if current.forks == FORKS.load(Relaxed) {
            return Ok(f(current.engine.shared()));
        }
        drop(current);
        self.renew()?;
        Ok(f(self.current.load().engine.shared()))
    }

    #[cold]
    fn renew(&self) -> PyResult<()> {
        let old = self.current.load_full();
        let parent = old.engine.shared();
        let topology = (*parent.topology()).clone();
        let new = Self::run(&self.settings, &self.connector, topology)?;
        let own = new.engine.shared();
        let switches = parent.switches.named().into_iter();
        for ((_, theirs), (_, ours)) in switches.zip(own.switches.named()) {
            ours.store(theirs.load(Relaxed), Relaxed);
        }
        // Never dropped: its locks may be taken, its thread is not there.
        std::mem::forget(self.current.swap(Arc::new(new)));
        std::mem::forget(old);
        Ok(())
    }
}

#[pymethods]
impl Engine {
    #[new]
    fn new(settings_json: &str, dial: Py<PyAny>, is_cluster: bool) -> PyResult<Self> {
        let settings = Settings::from_json(settings_json).map_err(PyValueError::new_err)?;
        let connector = Arc::new(PyConnector { dial });
        let topology = if is_cluster {
            Topology::cluster()
        } else {
            Topology::standalone()
        };
        Ok(Self {
            current: ArcSwap::from_pointee(Self::run(&settings, &connector, topology)?),
            settings,
            connector,
        })
    }

    /// Switches a remedy on or off: any that `Switches` names.
    fn set_switch(&self, name: &str, on: bool) -> PyResult<()> {
        self.with(|shared| {
            switch_of(shared, name)?.store(on, Relaxed);
            if name == "local_cache" && !on {
                shared.clear();
            }
            Ok(())
        })?
    }

    /// Whether a remedy is on.
    fn switch(&self, name: &str) -> PyResult<bool> {
        self.with(|shared| switch_of(shared, name).map(|switch| switch.load(Relaxed)))?
    }

    /// Says who owns which slots: `(first, last, host, port)`, ends included.
    fn set_owners(&self, owners: Vec<(u16, u16, String, u16)>) -> PyResult<()> {
        self.with(|shared| {
            shared.change_topology(|topology| {
                for (first, last, host, port) in owners {
                    topology.set_owner(first, last, &Node { host, port });
                }
            });
        })
    }

    /// Breaks a promise on purpose, for tests of the checkers: `missing-fence`, `deaf`.
    fn _plant(&self, bug: &str) -> PyResult<()> {
        if self.with(|shared| shared.plant(bug))? {
            return Ok(());
        }
        Err(PyValueError::new_err("accepted: missing-fence, deaf"))
    }

    /// Closes the connections; they are opened again when a hot key is asked for.
    fn rest(&self) -> PyResult<()> {
        self.with(|shared| shared.rest())
    }

    /// Drops every cached value.
    fn clear(&self) -> PyResult<()> {
        self.with(|shared| shared.clear())
    }

    /// What was counted, as JSON.
    fn stats(&self) -> PyResult<String> {
        self.with(|shared| {
            let mut stats: serde_json::Map<_, _> = shared
                .stats
                .pairs()
                .into_iter()
                .map(|(name, count)| (name.to_owned(), json!(count)))
                .collect();
            let (entries, bytes) = shared.cached_size();
            let hot = shared.hot();
            stats.insert("hot_keys".into(), json!(hot.set.len()));
            stats.insert("cached_entries".into(), json!(entries));
            stats.insert("cached_bytes".into(), json!(bytes));
            let bound_ms = shared.bound().as_secs_f64() * 1e3;
            stats.insert("max_staleness_ms".into(), json!(bound_ms));
            let beat_ms = shared.beat_interval().as_secs_f64() * 1e3;
            stats.insert("heartbeat_ms".into(), json!(beat_ms));
            stats.insert("not_caching".into(), json!(shared.refusals()));
            serde_json::Value::Object(stats).to_string()
        })
    }

    /// The hot keys, the hottest first, as JSON.
    fn hot(&self) -> PyResult<String> {
        self.with(|shared| {
            let hot = shared.hot();
            let keys = hot.set.iter().map(|key| hot_json(shared, key));
            json!({
                "version": hot.set.version,
                "now_ns": now(),
                "keys": keys.collect::<Vec<_>>(),
            })
            .to_string()
        })
    }

    /// What is known of one key, as JSON.
    fn explain(&self, key: &[u8]) -> PyResult<String> {
        self.with(|shared| {
            let hash = shared.hash(key);
            let hot = shared.hot();
            let mut told = match hot.set.get(hash) {
                Some(found) if *found.key == *key => hot_json(shared, found),
                _ => json!({"is_hot": false}),
            };
            let age = shared.proof_age(key, now());
            told["proof_age_ms"] = json!(age.map(|ns| ns as f64 / 1e6));
            told["is_lock"] = json!(shared.is_lock(hash, now()));
            told["not_caching"] = json!(shared.refusals());
            told.to_string()
        })
    }

    /// Ends the engine's thread.
    fn stop(&self, py: Python<'_>, timeout_s: f64) -> PyResult<()> {
        let timeout = Duration::try_from_secs_f64(timeout_s)
            .map_err(|_| PyValueError::new_err("timeout_s: a number of seconds, 0 or more"))?;
        let current = self.current.load_full();
        if current.forks == FORKS.load(Relaxed) {
            py.detach(|| current.engine.stop(timeout));
        } else {
            std::mem::forget(current); // the parent's
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let current = self.current.load_full();
        if current.forks != FORKS.load(Relaxed) {
            // The parent's, so it is never taken down. One reference more than there are owners.
            std::mem::forget(current);
        }
    }
}

fn switch_of<'a>(shared: &'a Shared<Value>, name: &str) -> PyResult<&'a AtomicBool> {
    let found = shared
        .switches
        .named()
        .into_iter()
        .find(|(known, _)| *known == name);
    found
        .map(|(_, switch)| switch)
        .ok_or_else(|| PyValueError::new_err(format!("no switch {name:?}")))
}

fn hot_json(shared: &Shared<Value>, key: &keyheat_core::hotset::HotKey) -> serde_json::Value {
    let saved = shared.saved(key.key_hash);
    let plan = shared.plan(key.key_hash);
    let mut remedies = Vec::new();
    if plan.local_cache && shared.switches.local_cache.load(Relaxed) {
        remedies.push("local_cache");
    }
    if plan.coalesce && shared.switches.coalesce.load(Relaxed) {
        remedies.push("coalesce");
    }
    let routing = shared.routing(key.key_hash, now());
    if routing.copies {
        remedies.push("copies");
    }
    if routing.replica_reads {
        remedies.push("replica_reads");
    }
    // A lock is left alone, and so is everything in shadow mode.
    let is_lock = shared.is_lock(key.key_hash, now());
    if is_lock || shared.switches.shadow.load(Relaxed) {
        remedies.clear();
    }
    let now = now();
    json!({
        "is_hot": true,
        "key": &*key.key,
        "state": match key.state { HotState::Hot => "hot", HotState::Cooling => "cooling" },
        "rule": &*key.rule,
        "plan": remedies,
        "reads_per_s": key.heat.reads_per_s,
        "writes_per_s": key.heat.writes_per_s,
        "bytes_per_s": key.heat.bytes_per_s,
        "share": key.heat.share,
        "bytes_share": key.heat.bytes_share,
        "error_per_s": key.heat.error_per_s,
        "since_ns": key.since,
        "since_s": now.saturating_sub(key.since) as f64 / 1e9,
        "node": key.node,
        "local_hits": saved.hits,
        "joins": saved.joins,
        "first_local_hit_ns": (saved.first_at > 0).then_some(saved.first_at),
    })
}
