//! When the topology is looked at: now and then, when asked to, and often once something went wrong.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Shared, ToControl};
use crate::topology::Watcher;

/// How often the topology is looked at without cause.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Least time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(50);
/// After something went wrong upstream: looks are this close together, for so long.
const LOOK_EAGER: Duration = Duration::from_millis(100);
const EAGER_FOR: Duration = Duration::from_secs(10);
/// Longest time between two looks while none succeeds.
const LOOK_RETRY_MAX: Duration = Duration::from_secs(2);

/// Looks until nobody listens any more. `wanted` says when a look is wanted at once, and at whom.
pub(super) fn watch(
    watcher: &mut Watcher,
    shared: &Shared,
    wanted: &Receiver<Option<String>>,
    control: &Sender<ToControl>,
) {
    let mut retry = LOOK_MIN;
    let mut last_failure = String::new();
    let mut eager_until = Instant::now();
    loop {
        let looked = Instant::now();
        let is_eager = looked < eager_until;
        watcher.settings = (**shared.settings.load()).clone();
        watcher.tls.clone_from(&shared.credentials.load().client);
        let wait = match watcher.look() {
            Ok(topology) => {
                if control
                    .send(ToControl::Topology(Arc::new(topology)))
                    .is_err()
                {
                    return;
                }
                retry = LOOK_MIN;
                last_failure.clear();
                if is_eager {
                    LOOK_EAGER
                } else {
                    LOOK_EVERY
                }
            }
            Err(why) => {
                if why != last_failure {
                    tracing::warn!("upstream cannot be looked at: {why}");
                    last_failure.clone_from(&why);
                }
                if control.send(ToControl::NoTopology(why)).is_err() {
                    return;
                }
                let most = if is_eager { LOOK_EAGER } else { LOOK_RETRY_MAX };
                retry = (retry * 2).min(most);
                retry
            }
        };
        // Requests for a look are gathered, and never make more than one in `LOOK_MIN`.
        match wanted.recv_timeout(wait) {
            Ok(named) => {
                let mut named = named;
                // A failover takes the servers a while: the look that shows it is one of the next.
                eager_until = Instant::now() + EAGER_FOR;
                let early = LOOK_MIN.saturating_sub(looked.elapsed());
                std::thread::sleep(early);
                loop {
                    if let Some(address) = named {
                        watcher.meet(&address);
                    }
                    match wanted.try_recv() {
                        Ok(next) => named = next,
                        Err(_) => break,
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
