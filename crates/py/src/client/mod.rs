//! What stands between an application and its client library.
//!
//! - [`args`]: a command as Python passes it.
//! - [`dial`]: what Python's dialer hands over, and TLS by the client's own settings.
//! - [`kept`]: decoded values that are kept, and given out without being shared.
//! - [`engine`]: an engine, and how it survives a fork.
//! - [`guard`]: one protected client: each of its commands enters and leaves here.
//! - [`local`]: the local cache as a plain object.
//! - [`method`]: the `execute_command` of a protected class, native because every command passes it.
//! - [`tickets`]: a read on behalf of others, and the waiting for one.

mod args;
mod dial;
mod engine;
mod guard;
mod kept;
mod local;
mod method;
mod names;
mod tickets;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// "Nothing here": as `None` may be a value, it cannot say so.
#[pyclass(frozen, name = "MissType")]
struct Miss;

#[pymethods]
impl Miss {
    #[allow(clippy::unused_self)]
    fn __repr__(&self) -> &'static str {
        "MISS"
    }

    #[allow(clippy::unused_self)]
    fn __bool__(&self) -> bool {
        false
    }
}

static MISS: PyOnceLock<Py<Miss>> = PyOnceLock::new();

fn miss(py: Python<'_>) -> PyResult<Py<PyAny>> {
    let miss = MISS.get_or_try_init(py, || Py::new(py, Miss))?;
    Ok(miss.clone_ref(py).into_any())
}

/// Adds the classes to the module.
pub fn add_to(m: &Bound<'_, PyModule>) -> PyResult<()> {
    engine::watch_forks();
    m.add("MISS", miss(m.py())?)?;
    m.add_class::<Miss>()?;
    m.add_class::<engine::Engine>()?;
    m.add_class::<guard::Guard>()?;
    m.add_class::<tickets::Lead>()?;
    m.add_class::<tickets::Join>()?;
    m.add_class::<local::LocalCache>()?;
    m.add_function(wrap_pyfunction!(method::install_execute_command, m)?)?;
    Ok(())
}
