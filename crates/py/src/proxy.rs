//! The proxy, as Python starts and asks it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keyheat_proxy::settings::Settings;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::logs;

/// A proxy in threads of this process.
#[pyclass]
pub struct Proxy {
    settings: Settings,
    running: Mutex<Option<keyheat_proxy::Proxy>>,
}

impl Proxy {
    fn with<T>(&self, f: impl FnOnce(&keyheat_proxy::Proxy) -> T) -> PyResult<T> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running
            .as_ref()
            .map(f)
            .ok_or_else(|| PyRuntimeError::new_err("the proxy is not running"))
    }
}

#[pymethods]
impl Proxy {
    #[new]
    fn new(settings_json: &str) -> PyResult<Self> {
        let settings = Settings::from_json(settings_json).map_err(PyValueError::new_err)?;
        keyheat_proxy::check(&settings).map_err(PyValueError::new_err)?;
        Ok(Self {
            settings,
            running: Mutex::new(None),
        })
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        logs::set_up(&self.settings.log, self.settings.log_format);
        let settings = self.settings.clone();
        let started = py
            .detach(|| keyheat_proxy::Proxy::start(settings))
            .map_err(to_python)?;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(())
    }

    #[getter]
    fn listen(&self) -> PyResult<String> {
        self.with(|p| p.listen_addr().map_or_else(String::new, |a| a.to_string()))
    }

    #[getter]
    fn tls_listen(&self) -> PyResult<Option<String>> {
        self.with(|p| p.tls_addr().map(|a| a.to_string()))
    }

    #[getter]
    fn http(&self) -> PyResult<Option<String>> {
        self.with(|p| p.http_addr().map(|a| a.to_string()))
    }

    fn hot(&self) -> PyResult<String> {
        self.with(keyheat_proxy::Proxy::hot)
    }

    fn stats(&self) -> PyResult<String> {
        self.with(keyheat_proxy::Proxy::stats)
    }

    fn metrics(&self) -> PyResult<String> {
        self.with(keyheat_proxy::Proxy::metrics)
    }

    /// Takes over what may change while running; the names of what may not.
    fn reload(&self, py: Python<'_>, settings_json: &str) -> PyResult<Vec<&'static str>> {
        let settings = Settings::from_json(settings_json).map_err(PyValueError::new_err)?;
        let (level, format) = (settings.log.clone(), settings.log_format);
        let kept = py
            .detach(|| self.with(|p| p.reload(settings)))?
            .map_err(PyValueError::new_err)?;
        logs::set_up(&level, format);
        Ok(kept)
    }

    /// A line of the log.
    #[staticmethod]
    fn log(level: &str, text: &str) {
        match level {
            "error" => tracing::error!("{text}"),
            "warn" => tracing::warn!("{text}"),
            _ => tracing::info!("{text}"),
        }
    }

    /// Is told what is hot.
    fn feed(&self, json: &str) -> PyResult<()> {
        self.with(|p| p.feed(json))?.map_err(PyValueError::new_err)
    }

    fn set_local_cache(&self, on: bool) -> PyResult<()> {
        self.with(|p| p.set_local_cache(on))
    }

    /// Why the upstream cannot be looked at; empty if it can.
    fn upstream_error(&self) -> PyResult<String> {
        self.with(keyheat_proxy::Proxy::topology_error)
    }

    fn drain(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let timeout = Duration::try_from_secs_f64(timeout_s)
            .map_err(|_| PyValueError::new_err("timeout_s: a number of seconds, 0 or more"))?;
        py.detach(|| self.with(|p| p.drain(timeout)))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| {
            let running = self
                .running
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            drop(running);
        });
    }
}

fn to_python(e: std::io::Error) -> PyErr {
    match e.raw_os_error() {
        Some(number) => PyOSError::new_err((number, e.to_string())),
        None => PyOSError::new_err(e.to_string()),
    }
}
