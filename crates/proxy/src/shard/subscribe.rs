//! Subscriptions, on an upstream connection that nothing else of the client uses.
//!
//! What comes on it answers no request: it is passed on between replies. Shard channels before a Cluster
//! have one connection per node (`shard_channels`), and so has `MONITOR`, whose lines come from all
//! primaries in one stream: behind this address there is one server, and that is what it does.

use keyheat_resp::reply::{parse, Value};
use keyheat_resp::{encode, Limits, Protocol};

use super::client::ClientId;
use super::serve::{Flow, Request};
use super::upstream::{Owner, Pending, Role};
use super::Shard;
use crate::notice::parts_of;

pub(super) use super::shard_channels::{Astray, Listening};

/// Marks the end of the confirmations of a subscription command.
const MARKER: &[u8] = b"keyheat:confirmed";

/// How it ends where the user may not say PING; the second one by servers before 7.0.
const REFUSED: [&[u8]; 2] = [
    b" run the 'ping' command\r\n",
    b" run the 'ping' command or its subcommand\r\n",
];

/// What the proxy says first on a connection, as `MONITOR` shows it; of a client it would be answered here.
const GREETING: [&[u8]; 3] = [
    b"\"HELLO\" \"3\"",
    b"\"CLIENT\" \"SETNAME\" \"keyheat\"",
    b"\"CLIENT\" \"ID\"",
];

fn is_greeting(said: &[u8]) -> bool {
    GREETING.iter().any(|words| said.starts_with(words))
}

/// What a confirmation says: which command's, of which channel, and how many are left.
pub(super) struct Confirmed {
    pub kind: Vec<u8>,
    pub channel: Option<Vec<u8>>,
    pub left: i64,
}

impl Shard {
    pub(super) fn subscribe(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let is_cluster = self.is_cluster();
        let is_shard = request.arg(0)[0].eq_ignore_ascii_case(&b's')
            && !request.arg(0).eq_ignore_ascii_case(b"subscribe");
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if !client.is_clear() {
            return Flow::Wait;
        }
        if is_cluster && is_shard {
            return self.shard_subscribe(id, request);
        }
        let (protocol, user) = (client.protocol, client.user);
        let index = match client.subscriber {
            Some(index) => index,
            None => {
                let opened = self
                    .some_node(id)
                    .and_then(|node| self.open(node, Role::Subscriber(id), protocol, 0, user));
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
        self.send_unanswered(index, request.frame, true);
        if is_cluster {
            if let Err(text) = self.subscribe_elsewhere(id, request) {
                // In part it would be silently less than what was asked for.
                self.cut_session(id, u32::MAX);
                return self.refuse_upstream(id, &text);
            }
        }
        Flow::Next
    }

    /// Sends what answers no slot; its bytes are forgotten with the next message.
    pub(super) fn send_unanswered(&mut self, index: u32, frame: &[u8], is_marked: bool) {
        let mut frame = frame.to_vec();
        if is_marked {
            encode::command(&mut frame, &[b"PING", MARKER]);
        }
        let pending = Pending::new(Owner::Nobody, frame.len(), self.now);
        self.upstreams[index as usize].send(&frame, pending);
        self.mark_upstream(index);
    }

    /// Something came on a connection of a client's subscriptions.
    pub(super) fn on_message_for(&mut self, id: ClientId, index: u32, frame: &[u8]) {
        self.forget_sent(index);
        self.mark_client(id);
        let budget = self.budget;
        let Some(client) = self.client(id) else {
            return;
        };
        if client.subscriber == Some(index) {
            self.on_subscribed(id, frame);
        } else {
            self.on_listened(id, index, frame);
        }
        // Nobody waits for its reader here: who does not read what it asked to hear is cut.
        if self.client(id).is_some_and(|c| c.load() > budget) {
            self.cut_for_memory(id);
        }
    }

    fn on_subscribed(&mut self, id: ClientId, frame: &[u8]) {
        let Some(client) = self.client(id) else {
            return;
        };
        if is_marker(frame) {
            client.is_subscribing = false;
            if client.counts == [0, 0] {
                if let Some(index) = client.subscriber.take() {
                    self.unpin_and_close(index, "its last subscription has ended");
                }
                self.end_echoes(id);
            }
            return;
        }
        if let Some(confirmed) = confirmation(frame) {
            let place = usize::from(confirmed.is_of_shard());
            client.counts[place] = confirmed.left;
            client.count_subscriptions();
        }
        client.push_published(frame);
        let backlog = client.backlog();
        if backlog > self.output_max {
            self.cut_for_output(id);
        }
    }

    /// Subscription commands have no reply of their own to be forgotten with.
    fn forget_sent(&mut self, index: u32) {
        if let Some(up) = self.upstreams.get_mut(index as usize) {
            while let Some(pending) = up.pending.front() {
                let is_sent = up.acked + pending.len <= up.sent;
                if !is_sent || matches!(pending.owner, Owner::Setup(_)) {
                    break;
                }
                up.acked += pending.len;
                up.pending.pop_front();
            }
        }
    }

    /// `MONITOR`: what every primary serves, in one stream.
    pub(super) fn monitor(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if !client.is_clear() {
            return Flow::Wait;
        }
        let (protocol, user) = (client.protocol, client.user);
        if client.listening.as_ref().is_some_and(|l| l.is_monitor) {
            return Flow::Next; // the server has nothing to say to a second one either
        }
        let primaries = match &self.topology {
            Some(t) => t.primaries.clone(),
            None => match self.owner(0) {
                Ok(node) => vec![node],
                Err(text) => return self.refuse_upstream(id, &text),
            },
        };
        let mut opened = Vec::new();
        for node in primaries {
            match self.open(node, Role::Subscriber(id), protocol, 0, user) {
                Ok(index) => opened.push((node, index)),
                Err(text) => {
                    for (_, index) in opened {
                        self.unpin_and_close(index, "another primary cannot be reached");
                    }
                    return self.refuse_upstream(id, &text);
                }
            }
        }
        let indexes: Vec<u32> = opened.iter().map(|(_, index)| *index).collect();
        let monitoring = self.notice.monitor();
        if let Some(client) = self.client(id) {
            let seq = client.open_slot(0);
            client.is_held = true;
            let listening = client.listening.get_or_insert_default();
            listening.is_monitor = true;
            listening.monitoring = Some(monitoring);
            listening.monitors_starting = indexes.len();
            listening.monitor_seq = seq;
            listening.connections.append(&mut opened);
        }
        for index in indexes {
            self.send_unanswered(index, request.frame, false);
        }
        Flow::Next
    }

    /// A line of `MONITOR`, or the answer to it. What the proxy says for itself is nobody's business.
    pub(super) fn on_monitored(&mut self, id: ClientId, frame: &[u8]) {
        let is_own = parts_of(frame)
            .is_some_and(|(address, said)| is_greeting(said) || self.notice.is_own(address));
        let Some(client) = self.client(id) else {
            return;
        };
        let Some(listening) = &mut client.listening else {
            return;
        };
        if listening.monitors_starting == 0 {
            if !is_own {
                client.push(frame);
            }
            return;
        }
        let seq = listening.monitor_seq;
        if frame[0] == b'-' {
            let listening = client.listening.take();
            client.deliver(seq, frame, true);
            for (_, index) in listening.map(|l| l.connections).unwrap_or_default() {
                self.unpin_and_close(index, "MONITOR was refused");
            }
        } else if frame == b"+OK\r\n" {
            listening.monitors_starting -= 1;
            if listening.monitors_starting == 0 {
                client.deliver(seq, frame, true);
            }
        }
    }
}

impl Confirmed {
    pub fn is_of_shard(&self) -> bool {
        matches!(self.kind.as_slice(), b"ssubscribe" | b"sunsubscribe")
    }

    /// As the server would say it, with another number.
    pub fn write(&self, out: &mut Vec<u8>, protocol: Protocol, left: i64) {
        encode::push_header(out, 3, protocol);
        encode::bulk(out, &self.kind);
        match &self.channel {
            Some(channel) => encode::bulk(out, channel),
            None => encode::null(out, protocol),
        }
        encode::integer(out, left);
    }
}

/// For `subscribe` and the like: what they say.
pub(super) fn confirmation(frame: &[u8]) -> Option<Confirmed> {
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
    let mut items = items.into_iter();
    match (items.next(), items.next(), items.next()) {
        (Some(Value::Bulk(kind)), Some(channel), Some(Value::Int(left)))
            if kind.ends_with(b"subscribe") =>
        {
            let channel = match channel {
                Value::Bulk(channel) => Some(channel),
                _ => None,
            };
            Some(Confirmed {
                kind,
                channel,
                left,
            })
        }
        _ => None,
    }
}

/// Whether this is the answer to the PING behind a subscription command. A user may have no right to it, and
/// is told nothing of that: nobody else says PING there.
pub(super) fn is_marker(frame: &[u8]) -> bool {
    if frame.starts_with(b"-NOPERM ") {
        return REFUSED.iter().any(|end| frame.ends_with(end));
    }
    let is_answer = frame.starts_with(b"$") || frame.starts_with(b"*2\r\n$4\r\npong\r\n");
    is_answer
        && frame
            .strip_suffix(b"\r\n")
            .is_some_and(|f| f.ends_with(MARKER))
}
