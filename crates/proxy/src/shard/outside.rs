//! What cannot be part of a transaction, and why.

use super::client::{ClientId, Transaction};
use super::serve::{Flow, Request};
use super::upstream::Pending;
use super::Shard;
use crate::requests::Way;

impl Shard {
    /// `EXEC` with arguments: an error, which ends transaction and watch.
    pub(super) fn exec_with_arguments(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if client.transaction == Transaction::None && !client.is_clear() {
            return Flow::Wait;
        }
        if client.pinned.is_some() {
            return self.on_pinned(id, request.frame, Pending::RELEASES);
        }
        self.taken.way = Way::Error;
        self.drop_transaction(id, |out| {
            out.extend_from_slice(
                b"-EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' \
                  command\r\n",
            );
        })
    }
}
