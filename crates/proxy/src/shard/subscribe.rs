//! Subscriptions, on an upstream connection that nothing else of the client uses.
//!
//! What comes on it answers no request: it is passed on between replies.

use keyheat_resp::reply::{parse, Value};
use keyheat_resp::{encode, Limits};

use super::client::ClientId;
use super::serve::{Flow, Request};
use super::upstream::{Owner, Pending, Role};
use super::Shard;

/// Marks the end of the confirmations of a subscription command.
const MARKER: &[u8] = b"keyheat:confirmed";

impl Shard {
    pub(super) fn subscribe(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let is_cluster = self.topology.as_ref().is_some_and(|t| t.is_cluster());
        let name = request.arg(0).to_ascii_lowercase();
        if is_cluster && matches!(name.as_slice(), b"ssubscribe" | b"sunsubscribe") {
            self.stats.refused.add(1);
            let text = "ERR keyheat: shard channels are not supported before a Cluster yet";
            return self.refuse(id, text);
        }
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if !client.is_clear() {
            return Flow::Wait;
        }
        let protocol = client.protocol;
        let index = match client.subscriber {
            Some(index) => index,
            None => {
                let opened = self
                    .some_node(id)
                    .and_then(|node| self.open(node, Role::Subscriber(id), protocol, 0));
                match opened {
                    Ok(index) => index,
                    Err(text) => return self.refuse_upstream(id, &text),
                }
            }
        };
        if let Some(client) = self.client(id) {
            client.subscriber = Some(index);
            // The confirmations are as many as there are channels, which only the server knows. A
            // PING behind the command tells when all have come; until then the client waits.
            client.is_subscribing = true;
            client.is_held = true;
        }
        let mut frame = request.frame.to_vec();
        encode::command(&mut frame, &[b"PING", MARKER]);
        // What comes back answers no slot; the bytes are forgotten with the next settling.
        let pending = Pending::new(Owner::Nobody, frame.len(), self.now);
        self.upstreams[index as usize].send(&frame, pending);
        self.mark_upstream(index);
        Flow::Next
    }

    /// Something came on the connection of a client's subscriptions.
    pub(super) fn on_message_for(&mut self, id: ClientId, frame: &[u8]) {
        self.forget_sent(id);
        self.mark_client(id);
        let Some(client) = self.client(id) else {
            return;
        };
        if is_marker(frame) {
            client.is_subscribing = false;
            if client.subscriptions == 0 {
                if let Some(index) = client.subscriber.take() {
                    self.unpin_and_close(index, "its last subscription has ended");
                }
            }
            return;
        }
        if let Some(left) = confirmation(frame) {
            client.subscriptions = left;
        }
        client.push(frame);
    }

    /// Subscription commands have no reply of their own to be forgotten with.
    pub(super) fn forget_sent(&mut self, id: ClientId) {
        let Some(index) = self.client(id).and_then(|c| c.subscriber) else {
            return;
        };
        if let Some(up) = self.upstreams.get_mut(index as usize) {
            while let Some(pending) = up.pending.front() {
                if up.acked + pending.len > up.sent {
                    break;
                }
                up.acked += pending.len;
                up.pending.pop_front();
            }
        }
    }
}

/// For `subscribe` and the like: how many subscriptions are left.
fn confirmation(frame: &[u8]) -> Option<i64> {
    // Messages are the many; they are told by their first word, without being taken apart.
    let head = frame.get(..32.min(frame.len()))?;
    let is_message = head.windows(8).any(|w| w == b"message\r");
    if is_message {
        return None;
    }
    let Ok(Some((Value::Array(items) | Value::Push(items), _))) = parse(frame, &Limits::default())
    else {
        return None;
    };
    match (items.first(), items.get(2)) {
        (Some(Value::Bulk(kind)), Some(Value::Int(left))) if kind.ends_with(b"subscribe") => {
            Some(*left)
        }
        _ => None,
    }
}

/// Whether this is the answer to the PING behind a subscription command.
fn is_marker(frame: &[u8]) -> bool {
    let is_answer = frame.starts_with(b"$") || frame.starts_with(b"*2\r\n$4\r\npong\r\n");
    is_answer
        && frame
            .strip_suffix(b"\r\n")
            .is_some_and(|f| f.ends_with(MARKER))
}
