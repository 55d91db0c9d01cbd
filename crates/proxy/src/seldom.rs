//! What clients can have logged is logged seldom, or they would fill a disk.

use keyheat_core::Nanos;
use keyheat_net::clock::{self, SEC};

/// One line a second at most; the next one says how many were left out.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    next: Nanos,
    untold: u64,
}

impl Seldom {
    /// A client is cut, or turned away.
    ///
    /// Args: `limit` is the setting that has it so.
    pub fn tell(&mut self, client: &str, limit: &str, why: &str) {
        let now = clock::now();
        if now < self.next {
            self.untold += 1;
            return;
        }
        self.next = now + SEC;
        let untold = std::mem::take(&mut self.untold);
        tracing::warn!(client, limit, untold, "a client was cut: {why}");
    }
}
