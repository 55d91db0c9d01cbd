//! Threads that must not end: one that dies of a bug is named, and run again after a pause.
//!
//! Shards are not run again: their clients are cut, and what they held is not known. `control`, `watch` and
//! `accept` hold nothing that anybody waits for, so running them again is safe; while one is not running,
//! `/healthz` names it.

use std::collections::BTreeSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Mutex;
use std::time::Duration;

use keyheat_net::lock;

/// How long a part that has died is left dead: a bug met at once again must not take a core.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a part until it ends by itself.
///
/// Args: `dead` gets its name while it is not running, for `/healthz`; `run` is told whether it is the first
/// time, and fails where the part cannot go on.
pub(crate) fn keep_running(
    name: &'static str,
    dead: &Mutex<BTreeSet<&'static str>>,
    mut run: impl FnMut(bool) -> Result<(), String>,
) {
    let mut is_first = true;
    loop {
        let ended = catch_unwind(AssertUnwindSafe(|| run(is_first)));
        let why = match ended {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(_) => "it panicked".to_owned(),
        };
        tracing::error!("{name} has died, and is started again: {why}");
        lock(dead).insert(name);
        std::thread::sleep(PAUSE);
        lock(dead).remove(name);
        is_first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_dies_is_named_and_run_again() {
        let dead = Mutex::default();
        let mut runs = Vec::new();
        std::thread::scope(|scope| {
            let part = scope.spawn(|| {
                keep_running("part", &dead, |is_first| {
                    runs.push(is_first);
                    assert!(runs.len() != 1, "planted");
                    Ok(())
                });
            });
            while !lock(&dead).contains("part") {
                assert!(!part.is_finished());
                std::thread::yield_now();
            }
        });
        assert_eq!(runs, [true, false]);
        assert!(lock(&dead).is_empty());
    }
}
