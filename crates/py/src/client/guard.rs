//! One protected client: each of its commands enters and leaves here.
//!
//! `enter` decides before a command is sent, `leave` counts it and notes what it changed when its reply
//! is there (or its failure). While nothing is hot `enter` does next to nothing: that a write voids what
//! was read before it is made sure of in `leave`, before the caller sees the reply.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

use keyheat_client::engine::{now, Shared};
use keyheat_client::{Query, Read};
use keyheat_core::window::Access as Counted;
use keyheat_resp::command::{Access, Cacheable};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use smallvec::SmallVec;

use super::args::{plain_bytes, variant_of, Args, Encoding};
use super::engine::{forks, Engine};
use super::kept::{bury, wire_bytes, Value};
use super::names::read_of_one_key;
use super::{miss, tickets};

/// A key, and what its plan says of reads that go to the server.
type Routed<'py> = (Bound<'py, PyBytes>, u8);

/// See the module's description.
#[pyclass(frozen)]
pub struct Guard {
    engine: Py<Engine>,
    /// The engine's inside, while this is still the process that the guard was made in.
    shared: Arc<Shared<Value>>,
    forks: u64,
    /// Client settings that change a decoded reply.
    variant: u64,
    pub(super) encoding: Encoding,
    /// The client's own class, as `protect` found it.
    pub(super) own: Py<PyAny>,
    /// A transaction or WATCH is open on the client itself: reads go to the server.
    is_pinned: AtomicBool,
    /// The client's session is no longer what it was made with: reads go to the server for good.
    is_off: AtomicBool,
}

#[pymethods]
impl Guard {
    #[new]
    fn new(
        engine: Py<Engine>,
        variant: u64,
        encode: Py<PyAny>,
        is_utf8: bool,
        own: Py<PyAny>,
    ) -> PyResult<Self> {
        let forks = forks();
        Ok(Self {
            shared: engine.get().with(Arc::clone)?,
            forks,
            engine,
            variant,
            own,
            encoding: Encoding { is_utf8, encode },
            is_pinned: AtomicBool::new(false),
            is_off: AtomicBool::new(false),
        })
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

    /// Whether any key is hot, so that `enter` can be of use.
    #[getter]
    pub(super) fn has_hot_keys(&self) -> bool {
        self.with(|shared| shared.has_hot_keys()).unwrap_or(false)
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
        let parsed = || Args::parse(args.iter_borrowed(), &self.encoding);
        let decided = || {
            self.decide(
                py,
                &parsed()?,
                || options.iter(),
                || options.clone().unbind(),
            )
        };
        match self.guarded(decided).flatten() {
            Some(found) => Ok(found),
            None => miss(py),
        }
    }

    /// Counts a command whose reply is there, and voids what it may have changed. Returns whether any key
    /// is hot, so that the next command should `enter`.
    #[pyo3(signature = (args, reply, /))]
    fn leave(&self, py: Python<'_>, args: &Bound<'_, PyTuple>, reply: &Bound<'_, PyAny>) -> bool {
        bury(py);
        let noted = self.guarded(|| self.note(args, wire_bytes(reply, 0), true));
        noted.unwrap_or(false)
    }

    /// As `leave`, for a command that failed, so that its outcome may be unknown.
    #[pyo3(signature = (args, /))]
    fn failed(&self, args: &Bound<'_, PyTuple>) {
        self.guarded(|| self.note(args, 0, false));
    }

    /// As `leave`, for a command on a connection that is not the client's next one: in a pipeline, or not
    /// sent at all because another caller's read answered it.
    #[pyo3(signature = (args, reply, /))]
    fn count(&self, args: &Bound<'_, PyTuple>, reply: &Bound<'_, PyAny>) {
        self.guarded(|| self.note(args, wire_bytes(reply, 0), false));
    }

    /// What a command touches: whether it may write, and each key with what its plan says of reads that go
    /// to the server, as bits (1 copies, 2 replica reads). A write without keys may change anything; a read
    /// of several keys, or one that belongs on the primary, touches none. `None`: nothing to be sent.
    #[pyo3(signature = (args, /))]
    fn route<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
    ) -> PyResult<Option<(bool, Vec<Routed<'py>>)>> {
        let Some(parsed) = Args::parse(args.iter_borrowed(), &self.encoding) else {
            return Ok(None);
        };
        self.engine.get().with(|shared| {
            let now = now();
            let routed = |key: &[u8]| {
                let routing = shared.routing(shared.hash(key), now);
                let bits = u8::from(routing.copies) | u8::from(routing.replica_reads) << 1;
                (PyBytes::new(py, key), bits)
            };
            let mut keys = Vec::new();
            // What was queued before `EXEC` is not known here.
            let is_write = parsed.is_write() || parsed.name() == "exec";
            if is_write {
                parsed.for_each_written(|key| keys.push(routed(key)));
            } else if self.may_read_locally() {
                keys.extend(parsed.only_key().map(|(key, _)| routed(key)));
            }
            Some((is_write, keys))
        })
    }

    /// The first key that a command names.
    #[pyo3(signature = (args, /))]
    fn first_key<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
    ) -> Option<Bound<'py, PyBytes>> {
        let parsed = Args::parse(args.iter_borrowed(), &self.encoding)?;
        let mut first = None;
        parsed.for_each_key(|key, _| {
            first.get_or_insert_with(|| PyBytes::new(py, key));
        });
        first
    }

    /// Whether a command may wait in the server on purpose.
    #[pyo3(signature = (args, /))]
    fn is_blocking(&self, args: &Bound<'_, PyTuple>) -> bool {
        Args::parse(args.iter_borrowed(), &self.encoding).is_some_and(|parsed| parsed.is_blocking())
    }

    /// Voids what a command may change: for those that are sent together, before any is answered.
    #[pyo3(signature = (args, /))]
    fn void_for(&self, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        let Some(parsed) = Args::parse(args.iter_borrowed(), &self.encoding) else {
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
    #[inline]
    fn with<T>(&self, f: impl FnOnce(&Arc<Shared<Value>>) -> T) -> PyResult<T> {
        if forks() == self.forks {
            return Ok(f(&self.shared));
        }
        self.engine.get().with(f)
    }

    /// Runs `f`; a panic is told once and has this client read from the server from then on.
    #[inline]
    pub(super) fn guarded<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        if result.is_err() && !self.is_off.swap(true, Relaxed) {
            tracing::error!("a bug in keyheat; this client goes on without its local cache");
        }
        result.ok()
    }

    /// What is to be done about a command other than sending it; `None` where there is nothing.
    ///
    /// Args: `options` of the call, to be looked at, and `kept_options` to be kept.
    pub(super) fn decide<'py, I>(
        &self,
        py: Python<'py>,
        parsed: &Args<'_>,
        options: impl FnOnce() -> I,
        kept_options: impl FnOnce() -> Py<PyDict>,
    ) -> Option<Py<PyAny>>
    where
        I: Iterator<Item = (Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    {
        let decided = self.with(|shared| {
            if !shared.has_hot_keys() {
                return None;
            }
            if parsed.is_write() {
                // Spares reads on their way from being kept in vain; the reply makes sure.
                Self::void(shared, parsed);
                return None;
            }
            let cacheable = parsed.cacheable();
            if cacheable == Cacheable::No || !self.may_read_locally() {
                return None;
            }
            let (key, _) = parsed.only_key()?;
            let key_hash = shared.hash(key);
            if !shared.is_wanted(key_hash) {
                return None;
            }
            let variant = variant_of(options())?;
            let mut line: SmallVec<[u8; 128]> = SmallVec::new();
            parsed.line(&mut line);
            let fields: SmallVec<[&[u8]; 4]> = if cacheable == Cacheable::HashFields {
                parsed.fields()
            } else {
                SmallVec::new()
            };
            let query = Query {
                key,
                key_hash,
                variant: self.variant ^ variant,
                line: &line,
                cacheable,
                fields: &fields,
            };
            let now = now();
            match shared.read(&query, now) {
                Read::Hit(kept) => {
                    let value = kept.give(py)?;
                    let bytes = parsed.len_bytes() + wire_bytes(value.bind(py), 0);
                    shared.count(key, query.key_hash, Counted::Read, bytes, now);
                    drop(kept);
                    bury(py);
                    Some(value)
                }
                Read::Upstream => None,
                Read::Lead(lead) => {
                    let options = (variant != 0).then(kept_options);
                    let lead = tickets::Lead::new(lead, &query, options);
                    Py::new(py, lead).ok().map(Py::into_any)
                }
                Read::Join(flight) => Py::new(py, tickets::Join::new(flight))
                    .ok()
                    .map(Py::into_any),
            }
        });
        decided.ok().flatten()
    }

    fn void(shared: &Shared<Value>, parsed: &Args<'_>) {
        if !parsed.for_each_written(|key| shared.wrote(shared.hash(key))) {
            shared.wrote_all();
        }
    }

    /// Counts a read of one key, which is what nearly every command is; `None` for any other.
    #[inline]
    pub(super) fn note_read<'a, 'py: 'a>(
        &self,
        mut args: impl Iterator<Item = Borrowed<'a, 'py, PyAny>>,
        reply_bytes: u64,
    ) -> Option<bool> {
        let name = read_of_one_key(args.next()?)?.name;
        let key = plain_bytes(args.next()?, &self.encoding)?;
        let mut bytes = (name.len() + key.len()) as u64 + reply_bytes;
        for item in args {
            bytes += plain_bytes(item, &self.encoding)?.len() as u64;
        }
        let noted = self.with(|shared| {
            shared.stats.commands.add(1);
            shared.count(key, shared.hash(key), Counted::Read, bytes, now());
            shared.has_hot_keys()
        });
        Some(noted.unwrap_or(false))
    }

    /// Returns whether any key is hot.
    fn note(&self, args: &Bound<'_, PyTuple>, reply_bytes: u64, is_own: bool) -> bool {
        if let Some(noted) = self.note_read(args.iter_borrowed(), reply_bytes) {
            return noted;
        }
        match Args::parse(args.iter_borrowed(), &self.encoding) {
            Some(parsed) => self.note_parsed(&parsed, reply_bytes, is_own),
            None => false, // the client has refused it
        }
    }

    /// Counts a command that was sent, and voids what it may have changed.
    #[inline]
    pub(super) fn note_parsed(&self, parsed: &Args<'_>, reply_bytes: u64, is_own: bool) -> bool {
        let has_hot_keys = self.with(|shared| {
            let is_write = parsed.is_write();
            shared.stats.commands.add(1);
            let bytes = parsed.len_bytes() + reply_bytes;
            if let Some((key, access)) = parsed.only_key() {
                let hash = shared.hash(key);
                if is_write {
                    shared.wrote(hash);
                    if parsed.sets_if_absent() {
                        shared.set_if_absent(hash, now());
                    }
                }
                shared.count(key, hash, counted(access), bytes, now());
            } else {
                if is_write {
                    Self::void(shared, parsed);
                }
                let (mut keys, now) = (0_u64, now());
                parsed.for_each_key(|_, _| keys += 1);
                parsed.for_each_key(|key, access| {
                    let bytes = bytes / keys.max(1);
                    shared.count(key, shared.hash(key), counted(access), bytes, now);
                });
                if parsed.name() == "exec" {
                    shared.wrote_all(); // what was queued is not known here
                }
                if keys == 0 || parsed.name() == "watch" {
                    self.note_session(parsed.name(), is_own);
                }
            }
            shared.has_hot_keys()
        });
        has_hot_keys.unwrap_or(false)
    }

    /// Commands that change what the client's later commands mean.
    fn note_session(&self, name: &str, is_own: bool) {
        if !is_own {
            return;
        }
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

fn counted(access: Access) -> Counted {
    match access {
        Access::Write => Counted::Write,
        _ => Counted::Read,
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if forks() != self.forks {
            // The parent's engine, which a child never takes down: one owner too many.
            std::mem::forget(Arc::clone(&self.shared));
        }
    }
}
