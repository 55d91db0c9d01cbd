//! The native module `keyheat._keyheat`: converts, releases the GIL, maps errors; no logic.
//!
//! # Layout
//!
//! - [`proxy`]: a proxy in threads of this process.
//! - [`client`]: what stands between an application and its client library.

mod client;
mod logs;
mod proxy;

use pyo3::prelude::*;

/// Nanoseconds of `CLOCK_BOOTTIME`, the clock of `since_ns`.
#[pyfunction]
fn now_ns() -> u64 {
    keyheat_net::clock::now()
}

/// The Cluster slot of a key, 0 to 16383.
#[pyfunction]
fn slot(key: &[u8]) -> u16 {
    keyheat_resp::slot::slot(key)
}

/// The server's side of copies, by name: one text for proxies and clients, which share copies.
#[pyfunction]
fn copies_script(name: &str) -> PyResult<&'static str> {
    use keyheat_proxy::copies::scripts;
    match name {
        "lease" => Ok(scripts::LEASE),
        "move" => Ok(scripts::MOVE),
        "place" => Ok(scripts::PLACE),
        "fence" => Ok(scripts::FENCE),
        _ => Err(pyo3::exceptions::PyKeyError::new_err(name.to_owned())),
    }
}

/// The version of the native module.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[pymodule]
fn _keyheat(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<proxy::Proxy>()?;
    client::add_to(m)?;
    m.add_function(wrap_pyfunction!(now_ns, m)?)?;
    m.add_function(wrap_pyfunction!(slot, m)?)?;
    m.add_function(wrap_pyfunction!(copies_script, m)?)?;
    m.add_function(wrap_pyfunction!(version, m)?)?;
    Ok(())
}
