//! A read on behalf of others, and the waiting for one.

use std::sync::{Arc, Mutex, PoisonError};

use keyheat_client::engine::now;
use keyheat_client::{Flight, Query};
use keyheat_resp::command::Cacheable;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::kept::{Kept, Value};
use super::miss;

/// A read that goes to the server for the cache, for those who joined, or both.
#[pyclass(frozen)]
pub struct Lead {
    lead: Mutex<Option<keyheat_client::Lead<Value>>>,
    key: Box<[u8]>,
    key_hash: u64,
    variant: u64,
    line: Box<[u8]>,
    options: Option<Py<PyDict>>,
}

impl Lead {
    pub fn new(
        lead: keyheat_client::Lead<Value>,
        query: &Query<'_>,
        options: Option<Py<PyDict>>,
    ) -> Self {
        Self {
            lead: Mutex::new(Some(lead)),
            key: query.key.into(),
            key_hash: query.key_hash,
            variant: query.variant,
            line: query.line.into(),
            options,
        }
    }

    fn take(&self) -> Option<keyheat_client::Lead<Value>> {
        self.lead
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

#[pymethods]
impl Lead {
    /// Whether the value will be kept, if it is good.
    #[getter]
    fn is_fill(&self) -> bool {
        let lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        lead.as_ref().is_some_and(keyheat_client::Lead::is_fill)
    }

    /// The key that is read.
    #[getter]
    fn key(&self) -> &[u8] {
        &self.key
    }

    /// Host and port of the node that the value must come from.
    #[getter]
    fn node(&self) -> Option<(String, u16)> {
        let lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        let node = lead.as_ref()?.node()?;
        Some((node.host, node.port))
    }

    /// The `run_id` of the server process that the value must come from; `None` where this is no fill.
    #[getter]
    fn process(&self) -> Option<String> {
        let lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        lead.as_ref()?.process().map(str::to_owned)
    }

    /// The value does not certainly come from there: it is not kept.
    fn disown(&self) {
        let mut lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lead) = lead.as_mut() {
            lead.disown();
        }
    }

    /// Hands in what the server said.
    fn end(&self, py: Python<'_>, reply: &Bound<'_, PyAny>) {
        let Some(lead) = self.take() else {
            return;
        };
        let options = self.options.as_ref().map(|options| options.bind(py));
        let kept = Kept::new(reply, options);
        let query = Query {
            key: &self.key,
            key_hash: self.key_hash,
            variant: self.variant,
            line: &self.line,
            cacheable: Cacheable::Yes,
            fields: &[],
        };
        for on_end in lead.end(&query, kept, now()) {
            on_end();
        }
    }

    /// There was no reply: whoever joined looks after himself.
    fn fail(&self) {
        drop(self.take());
    }
}

/// Somebody else's read under way.
#[pyclass(frozen)]
pub struct Join {
    flight: Arc<Flight<Value>>,
}

impl Join {
    pub fn new(flight: Arc<Flight<Value>>) -> Self {
        Self { flight }
    }

    fn give(py: Python<'_>, value: Option<Value>) -> PyResult<Py<PyAny>> {
        match value.and_then(|kept| kept.give(py)) {
            Some(value) => Ok(value),
            None => miss(py),
        }
    }
}

#[pymethods]
impl Join {
    /// The value, or `MISS` where there is none, or none yet.
    fn value(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Self::give(py, self.flight.landed().flatten())
    }

    /// Has `callback` called when the read has ended, by the thread that ends it; at once if it has.
    fn on_end(&self, callback: Py<PyAny>) {
        self.flight.on_end(Box::new(move || {
            let called = Python::try_attach(|py| callback.call0(py).map(drop));
            if let Some(Err(e)) = called {
                tracing::debug!("a waiter could not be told: {e}");
            }
        }));
    }
}
