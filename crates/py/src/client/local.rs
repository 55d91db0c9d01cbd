//! The local cache as a plain object: values by key, a bound in bytes, an age at which they go, counts.
//!
//! Nothing invalidates it but its owner and time: `protect` is what ties values to a server. The lock is
//! only ever held by a thread that holds the interpreter, for as long as a lookup takes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keyheat_client::engine::now;
use keyheat_core::cache::{Name, ValueStore};
use keyheat_core::hash::KeyHasher;
use keyheat_core::rule::RuleSet;
use keyheat_core::window::{Access, Window, WindowSettings};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::args::key_bytes;
use super::engine::seed;
use super::kept::{bury, Kept, Value};

/// The length of the window that `reads` looks back.
const WINDOW: Duration = Duration::from_secs(1);

struct Meta {
    expires_at: u64,
    value: Value,
}

struct Inner {
    store: ValueStore<Meta>,
    window: Window,
}

/// See the module's description.
#[pyclass(frozen)]
pub struct LocalCache {
    inner: Mutex<Inner>,
    hasher: KeyHasher,
    max_age_ns: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
}

impl LocalCache {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(key: &[u8]) -> Name<'_> {
    Name {
        source: 0,
        variant: 0,
        command: key,
    }
}

fn nanos(name: &str, seconds: f64) -> PyResult<u64> {
    if !seconds.is_finite() || seconds <= 0.0 {
        let why = format!("{name}: accepted: a number of seconds above 0");
        return Err(PyValueError::new_err(why));
    }
    // A cast from a float saturates.
    Ok((seconds * 1e9) as u64)
}

#[pymethods]
impl LocalCache {
    #[new]
    #[pyo3(signature = (*, max_bytes = 64 << 20, max_entries = 65_536, max_age_s = 1.0))]
    fn new(max_bytes: usize, max_entries: usize, max_age_s: f64) -> PyResult<Self> {
        if max_bytes == 0 || max_entries == 0 {
            let why = "max_bytes, max_entries: accepted: integers above 0";
            return Err(PyValueError::new_err(why));
        }
        let settings = WindowSettings::for_rules(WINDOW, &RuleSet::default());
        let window = Window::new(settings).map_err(|e| PyValueError::new_err(e.to_string()))?;
        Ok(Self {
            inner: Mutex::new(Inner {
                store: ValueStore::new(max_bytes, max_entries),
                window,
            }),
            hasher: KeyHasher::new(seed()),
            max_age_ns: nanos("max_age_s", max_age_s)?,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// The value of `key`, or `default`.
    #[pyo3(signature = (key, default = None, /))]
    fn get(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        default: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let raw = key_bytes(key.as_borrowed())
            .ok_or_else(|| PyTypeError::new_err("a key is a str or bytes"))?;
        let (hash, now) = (self.hasher.hash(raw), now());
        let found = {
            let mut inner = self.inner();
            let inner = &mut *inner;
            inner
                .window
                .record(hash, 0, Access::Read, raw.len() as u64, now);
            match inner.store.find(hash, &name(raw)) {
                Some(place) if inner.store.meta(place).is_some_and(|m| now < m.expires_at) => inner
                    .store
                    .hit(place)
                    .map(|(_, meta)| Value::clone(&meta.value)),
                Some(place) => {
                    inner.store.expire(place);
                    None
                }
                None => None,
            }
        };
        bury(py);
        if let Some(value) = found.as_ref().and_then(|kept| kept.give(py)) {
            self.hits.fetch_add(1, Relaxed);
            return Ok(value);
        }
        self.misses.fetch_add(1, Relaxed);
        Ok(default.unwrap_or_else(|| py.None()))
    }

    /// Keeps a copy of `value`. Returns whether it is kept: too large a value is not, nor one that could
    /// be changed by whoever gets it (anything but numbers, text, bytes, and lists, tuples, dicts and sets
    /// of them).
    #[pyo3(signature = (key, value, /, ttl_s = None))]
    fn set(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        ttl_s: Option<f64>,
    ) -> PyResult<bool> {
        let raw = key_bytes(key.as_borrowed())
            .ok_or_else(|| PyTypeError::new_err("a key is a str or bytes"))?;
        let hash = self.hasher.hash(raw);
        let age = match ttl_s {
            Some(seconds) => nanos("ttl_s", seconds)?.min(self.max_age_ns),
            None => self.max_age_ns,
        };
        bury(py);
        let Some((value, bytes)) = Kept::new(value, None) else {
            self.refused.fetch_add(1, Relaxed);
            self.inner().forget(hash, raw);
            return Ok(false);
        };
        let meta = Meta {
            expires_at: now().saturating_add(age),
            value,
        };
        let is_kept = self
            .inner()
            .store
            .insert(hash, &name(raw), 0, (meta, bytes), b"");
        if !is_kept {
            self.refused.fetch_add(1, Relaxed);
        }
        Ok(is_kept)
    }

    /// Drops the value of `key`. Returns whether there was one.
    #[pyo3(signature = (key, /))]
    fn delete(&self, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let raw = key_bytes(key.as_borrowed())
            .ok_or_else(|| PyTypeError::new_err("a key is a str or bytes"))?;
        Ok(self.inner().forget(self.hasher.hash(raw), raw))
    }

    /// Drops everything.
    fn clear(&self) {
        self.inner().store.remove_owner(0, true);
    }

    fn __len__(&self) -> usize {
        self.inner().store.len()
    }

    /// What was counted: `hits`, `misses`, `refused`, `entries`, `bytes`.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (entries, bytes) = {
            let inner = self.inner();
            (inner.store.len(), inner.store.bytes())
        };
        let stats = PyDict::new(py);
        stats.set_item("hits", self.hits.load(Relaxed))?;
        stats.set_item("misses", self.misses.load(Relaxed))?;
        stats.set_item("refused", self.refused.load(Relaxed))?;
        stats.set_item("entries", entries)?;
        stats.set_item("bytes", bytes)?;
        Ok(stats)
    }

    /// How often `key` was asked for in about the last second: at least, and at most.
    #[pyo3(signature = (key, /))]
    fn reads(&self, key: &Bound<'_, PyAny>) -> PyResult<(u64, u64)> {
        let raw = key_bytes(key.as_borrowed())
            .ok_or_else(|| PyTypeError::new_err("a key is a str or bytes"))?;
        let counts = self.inner().window.estimate(self.hasher.hash(raw), now());
        Ok((counts.reads.lower, counts.reads.upper))
    }
}

impl Inner {
    fn forget(&mut self, hash: u64, key: &[u8]) -> bool {
        match self.store.find(hash, &name(key)) {
            Some(place) => {
                self.store.expire(place);
                true
            }
            None => false,
        }
    }
}
