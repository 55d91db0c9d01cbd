//! One protected client: each of its commands enters and leaves here.
//!
//! `enter` decides before a command is sent, `leave` counts it and notes what it changed when its reply
//! is there (or its failure). While nothing is hot `enter` does next to nothing: that a write voids what
//! was read before it is made sure of in `leave`, before the caller sees the reply.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use keyheat_client::engine::now;
use keyheat_client::{Query, Read};
use keyheat_core::window::Access as Counted;
use keyheat_resp::command::{Access, Cacheable};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use smallvec::SmallVec;

use super::args::{variant_of, Args, Encoding};
use super::engine::Engine;
use super::kept::{bury, wire_bytes};
use super::{miss, tickets};

/// See the module's description.
#[pyclass(frozen)]
pub struct Guard {
    engine: Py<Engine>,
    /// Client settings that change a decoded reply.
    variant: u64,
    encoding: Encoding,
    /// A transaction or WATCH is open on the client itself: reads go to the server.
    is_pinned: AtomicBool,
    /// The client's session is no longer what it was made with: reads go to the server for good.
    is_off: AtomicBool,
}

#[pymethods]
impl Guard {
    #[new]
    fn new(engine: Py<Engine>, variant: u64, encode: Py<PyAny>, is_utf8: bool) -> Self {
        Self {
            engine,
            variant,
            encoding: Encoding { is_utf8, encode },
            is_pinned: AtomicBool::new(false),
            is_off: AtomicBool::new(false),
        }
    }

    /// The engine behind it.
    #[getter]
    fn engine(&self, py: Python<'_>) -> Py<Engine> {
        self.engine.clone_ref(py)
    }

    /// Whether reads of this client may be answered from memory.
    #[getter]
    fn may_read_locally(&self) -> bool {
        !self.is_off.load(Relaxed) && !self.is_pinned.load(Relaxed)
    }

    /// Has every read of this client go to the server from now on.
    fn switch_off(&self) {
        self.is_off.store(true, Relaxed);
    }

    /// Decides about a command: `MISS` (send it), a value, a `Lead` or a `Join`.
    #[pyo3(signature = (args, options, /))]
    fn enter(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Py<PyAny>> {
        // Whatever goes wrong here is ours: the command goes to the server.
        match self.guarded(|| self.decide(py, args, options)) {
            Some(Ok(found)) => Ok(found),
            _ => miss(py),
        }
    }

    /// Counts a command whose reply is there, and voids what it may have changed.
    #[pyo3(signature = (args, reply, /))]
    fn leave(&self, py: Python<'_>, args: &Bound<'_, PyTuple>, reply: &Bound<'_, PyAny>) {
        bury(py);
        let name = self.guarded(|| self.note(args, wire_bytes(reply, 0)));
        if let Some(name) = name.flatten() {
            self.note_session(name);
        }
    }

    /// As `leave`, for a command that failed, so that its outcome may be unknown.
    #[pyo3(signature = (args, /))]
    fn failed(&self, args: &Bound<'_, PyTuple>) {
        self.guarded(|| self.note(args, 0));
    }

    /// As `leave`, for a command on a connection that is not the client's next one: in a pipeline, or not
    /// sent at all because another caller's read answered it.
    #[pyo3(signature = (args, reply, /))]
    fn count(&self, args: &Bound<'_, PyTuple>, reply: &Bound<'_, PyAny>) {
        self.guarded(|| self.note(args, wire_bytes(reply, 0)));
    }

    /// Voids what a command may change: for those that are sent together, before any is answered.
    #[pyo3(signature = (args, /))]
    fn void_for(&self, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        let Some(parsed) = Args::parse(args, &self.encoding) else {
            return Ok(());
        };
        if parsed.is_write() {
            self.engine
                .get()
                .with(|shared| Self::void(shared, &parsed))?;
        }
        Ok(())
    }
}

impl Guard {
    /// Runs `f`; a panic is told once and has this client read from the server from then on.
    fn guarded<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        if result.is_err() && !self.is_off.swap(true, Relaxed) {
            tracing::error!("a bug in keyheat; this client goes on without its local cache");
        }
        result.ok()
    }

    fn decide(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        options: &Bound<'_, PyDict>,
    ) -> PyResult<Py<PyAny>> {
        self.engine.get().with(|shared| {
            if !shared.has_hot_keys() {
                return miss(py);
            }
            let Some(parsed) = Args::parse(args, &self.encoding) else {
                return miss(py);
            };
            if parsed.is_write() {
                // Spares reads on their way from being kept in vain; the reply makes sure.
                Self::void(shared, &parsed);
                return miss(py);
            }
            let cacheable = parsed.cacheable();
            if cacheable == Cacheable::No || !self.may_read_locally() {
                return miss(py);
            }
            let (Some(key), Some(variant)) = (parsed.first_key(), variant_of(options)) else {
                return miss(py);
            };
            let mut line: SmallVec<[u8; 128]> = SmallVec::new();
            parsed.line(&mut line);
            let fields: SmallVec<[&[u8]; 4]> = if cacheable == Cacheable::HashFields {
                parsed.fields()
            } else {
                SmallVec::new()
            };
            let query = Query {
                key,
                key_hash: shared.hash(key),
                variant: self.variant ^ variant,
                line: &line,
                cacheable,
                fields: &fields,
            };
            let now = now();
            match shared.read(&query, now) {
                Read::Hit(kept) => {
                    let Some(value) = kept.give(py) else {
                        return miss(py);
                    };
                    let bytes = parsed.len_bytes() + wire_bytes(value.bind(py), 0);
                    shared.count(key, query.key_hash, Counted::Read, bytes, now);
                    drop(kept);
                    bury(py);
                    Ok(value)
                }
                Read::Upstream => miss(py),
                Read::Lead(lead) => {
                    let options = (variant != 0).then(|| options.clone().unbind());
                    let lead = tickets::Lead::new(lead, &query, options);
                    Ok(Py::new(py, lead)?.into_any())
                }
                Read::Join(flight) => Ok(Py::new(py, tickets::Join::new(flight))?.into_any()),
            }
        })?
    }

    fn void(shared: &keyheat_client::engine::Shared<super::kept::Value>, parsed: &Args<'_>) {
        if !parsed.for_each_written(|key| shared.wrote(shared.hash(key))) {
            shared.wrote_all();
        }
    }

    /// Returns the command's name, if it has one here.
    fn note(&self, args: &Bound<'_, PyTuple>, reply_bytes: u64) -> Option<&'static str> {
        // What cannot be parsed the client has refused.
        let parsed = Args::parse(args, &self.encoding)?;
        let _ = self.engine.get().with(|shared| {
            if parsed.is_write() {
                Self::void(shared, &parsed);
            }
            let (mut keys, now) = (0_u64, now());
            parsed.for_each_key(|_, _| keys += 1);
            let bytes = (parsed.len_bytes() + reply_bytes) / keys.max(1);
            parsed.for_each_key(|key, access| {
                let access = match access {
                    Access::Write => Counted::Write,
                    _ => Counted::Read,
                };
                shared.count(key, shared.hash(key), access, bytes, now);
            });
            shared.stats.commands.add(1);
        });
        Some(parsed.name())
    }

    /// Commands that change what the client's later commands mean.
    fn note_session(&self, name: &str) {
        match name {
            "multi" | "watch" => self.is_pinned.store(true, Relaxed),
            "exec" | "discard" | "unwatch" => self.is_pinned.store(false, Relaxed),
            "select" | "auth" | "hello" | "reset" | "client|tracking" | "client|reply" => {
                self.is_off.store(true, Relaxed);
            }
            _ => {}
        }
    }
}
