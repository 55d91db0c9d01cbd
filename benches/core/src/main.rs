//! What the core costs and how right it is, measured.
//!
//! ```text
//! cargo run --release -p keyheat-bench-core -- [--small] [--data DIR]
//! ```
//!
//! Prints tables and writes them to `benches/results/core.md` and `core.json`. `DIR` (default
//! `../shared/data`) holds real traces; without them the parts that need them are left out by name.
//! `--small` takes about a tenth of the accesses.
//!
//! # Layout
//!
//! - `traces`: the real inputs and the made ones.
//! - `counting`: what a counted access costs beside an exact map.
//! - `accuracy`: recall, precision and bounds beside exact sliding counts.
//! - `caching`: what a hit costs; hit ratios beside `policies`, small versions of other caches.
//! - `report`: tables, and the targets they are held to.

use std::error::Error;
use std::path::PathBuf;

mod accuracy;
mod caching;
mod counting;
mod policies;
mod report;
mod traces;

use report::Report;
use traces::Inputs;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut is_small, mut data) = (false, PathBuf::from("../shared/data"));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--small" => is_small = true,
            "--data" => data = args.next().ok_or("--data needs a directory")?.into(),
            _ => return Err(format!("`{arg}` is not known; use [--small] [--data DIR]").into()),
        }
    }
    let inputs = Inputs::load(&data, is_small)?;
    let mut report = Report::new(is_small, inputs.missing.clone());
    counting::run(&inputs, &mut report)?;
    accuracy::run(&inputs, &mut report)?;
    caching::run(&inputs, &mut report)?;
    report.write("benches/results")?;
    Ok(())
}
