//! `WAIT` and `WAITAOF`: how many replicas, or disks, have what this client has written.
//!
//! The server answers for the writes of the connection that asks, and a client's writes went over a shared
//! one, where the wait itself would hold everybody up. So it is asked on a connection of its own, behind a
//! *barrier*: a write that changes nothing (`FUNCTION RESTORE` of no functions), which the server puts into
//! its stream after everything that was answered before. A wait for the barrier is a wait for all of that:
//! it may take longer than the client's own writes would, never shorter. Without a barrier such a
//! connection has written nothing, and the server would answer at once, wrongly. Servers before 7.0 need
//! none: there every command counts as a write.
//!
//! If a connection to the node was lost after the client's last write there, the server behind it may be
//! another one, which never saw that write: a direct client would have lost its connection, and this one
//! gets an error. In a Cluster all nodes are asked to which the client has written, and the least counts.
//! The cost is some 60 bytes of the replication stream for each wait.

use keyheat_resp::command::Command;
use keyheat_resp::encode;

use super::client::ClientId;
use super::jobs::How;
use super::serve::{Flow, Request};
use super::users::SERVICE;
use super::Shard;

/// `FUNCTION DUMP` of a server without functions, in the oldest format that has them.
const NO_FUNCTIONS: &[u8] = b"\x0a\x00\x5d\x9b\x5c\x40\x0f\x7f\xa2\xda";

impl Shard {
    pub(super) fn wait_for_copies(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
    ) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if !client.is_clear() {
            return Flow::Wait;
        }
        let mut user = client.user;
        // Few users may write barriers. Where the proxy has an account, it waits by that, for users who may.
        if self.passes_through() && self.settings.upstream.password.is_some() {
            if let Some(flow) = command.and_then(|c| self.unless_allowed(id, c.name)) {
                return flow;
            }
            user = SERVICE;
        }
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let wrote = client.wrote.clone();
        let is_lost = std::mem::take(&mut client.is_write_lost)
            || wrote
                .iter()
                .any(|&(node, losses)| self.losses(node) != losses);
        if is_lost {
            if let Some(client) = self.client(id) {
                client.wrote.clear();
            }
            return self.refuse(
                id,
                "ERR keyheat: a connection upstream was lost after this client's last write, so \
                 nobody can say which replicas have it; write again, and wait then",
            );
        }
        let topology = self.topology.as_ref();
        let has_barrier = topology.is_some_and(|t| !t.server.is_before(7));
        let mut frames = Vec::new();
        let nodes = if wrote.is_empty() {
            match self.some_node(id) {
                Ok(node) => vec![node],
                Err(text) => return self.refuse_upstream(id, &text),
            }
        } else {
            let mut barrier = Vec::new();
            if has_barrier {
                let words: [&[u8]; 4] = [b"FUNCTION", b"RESTORE", NO_FUNCTIONS, b"APPEND"];
                encode::command(&mut barrier, &words);
            } else {
                encode::command(&mut barrier, &[b"PING"]);
            }
            frames.push(barrier);
            wrote.iter().map(|(node, _)| *node).collect()
        };
        frames.push(request.frame.to_vec());
        self.start_beside(id, user, How::Copies, &nodes, &frames)
    }

    fn losses(&self, node: u32) -> u32 {
        let is_gone = self.topology.as_ref().is_none_or(|t| {
            let is_primary = t.nodes.get(node as usize).is_some_and(|n| n.is_primary);
            !is_primary
        });
        if is_gone {
            return u32::MAX;
        }
        self.nodes.get(node as usize).map_or(0, |n| n.losses)
    }
}
