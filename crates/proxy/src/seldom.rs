//! What clients can have logged is logged seldom, or they would fill a disk.

use keyheat_core::Nanos;
use keyheat_net::clock::{self, SEC};

/// One line a second at most.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    next: Nanos,
}

impl Seldom {
    /// Whether a line may be logged now.
    pub fn may_tell(&mut self) -> bool {
        let now = clock::now();
        let may = now >= self.next;
        if may {
            self.next = now + SEC;
        }
        may
    }
}
