//! Shard channels before a Cluster: one connection to each node that owns a slot of one.
//!
//! The count in a confirmation is the server's, of one connection; the client has one, so it is told the
//! sum. Where a slot moves, the old owner ends the subscriptions to its channels with `sunsubscribe`, which
//! a client of one server does not expect: the new owner is subscribed to in its stead, and the client is
//! told only if that does not come to be in time. Messages sent in between are lost, as shard channels
//! promise no more.

use keyheat_core::Nanos;
use keyheat_resp::{encode, slot};

use super::client::ClientId;
use super::redirect::redirect;
use super::serve::{Flow, Request};
use super::subscribe::{confirmation, is_marker, Confirmed};
use super::upstream::Role;
use super::Shard;
use crate::notice::Monitoring;
use keyheat_net::clock::SEC;

/// How long a channel's new owner is looked for.
const ASTRAY_MAX: Nanos = 3 * SEC;
/// Most times a command is sent to another node.
const TRIES_MAX: u8 = 3;

/// What a client hears on connections other than that of its `SUBSCRIBE`.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// Nodes, and the connection to each.
    pub connections: Vec<(u32, u32)>,
    /// Other primaries, of which only notifications are heard.
    pub echoes: Vec<(u32, u32)>,
    pub is_monitor: bool,
    /// Says so to all shards.
    pub monitoring: Option<Monitoring>,
    pub monitors_starting: usize,
    pub monitor_seq: u32,
    /// Shard channels, and the connection of each.
    channels: hashbrown::HashMap<Vec<u8>, u32>,
    /// The subscription command that is not confirmed yet, and how often it was sent.
    asked: Option<(Vec<u8>, u8)>,
    is_leaving: bool,
    confirming: u32,
    /// Channels that are subscribed to again without the client's knowing.
    returning: Vec<Vec<u8>>,
}

/// A channel whose slot has moved.
pub(super) struct Astray {
    client: ClientId,
    channel: Vec<u8>,
    /// The node it was at.
    from: u32,
    until: Nanos,
}

impl Shard {
    pub(super) fn shard_subscribe(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let is_leaving = request.arg(0).len() == b"sunsubscribe".len();
        let slots: Vec<u16> = (1..request.argc())
            .map(|i| slot::slot(request.arg(i)))
            .collect();
        if slots.windows(2).any(|pair| pair[0] != pair[1]) {
            return self.refuse(id, "CROSSSLOT Keys in request don't hash to the same slot");
        }
        let targets: Result<Vec<u32>, String> = match slots.first() {
            Some(slot) => self
                .owner(*slot)
                .and_then(|node| self.listener(id, node))
                .map(|index| vec![index]),
            None => Ok(self.subscribed_connections(id)),
        };
        let targets = match targets {
            Ok(targets) => targets,
            Err(text) => return self.refuse_upstream(id, &text),
        };
        self.astray.retain(|a| {
            let is_named = (1..request.argc()).any(|i| request.arg(i) == a.channel);
            !(is_leaving && a.client == id && (is_named || slots.is_empty()))
        });
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        if targets.is_empty() {
            let none = Confirmed {
                kind: b"sunsubscribe".to_vec(),
                channel: None,
                left: 0,
            };
            let (mut frame, left) = (Vec::new(), client.subscriptions);
            none.write(&mut frame, client.protocol, left - client.counts[0]);
            client.push(&frame);
            self.mark_client(id);
            return Flow::Next;
        }
        client.is_subscribing = true;
        client.is_held = true;
        let listening = client.listening.get_or_insert_default();
        listening.confirming = targets.len() as u32;
        listening.is_leaving = is_leaving;
        listening.asked = Some((request.frame.to_vec(), 0));
        for index in targets {
            self.send_unanswered(index, request.frame, true);
        }
        Flow::Next
    }

    /// The connection on which a client hears the shard channels of a node.
    fn listener(&mut self, id: ClientId, node: u32) -> Result<u32, String> {
        let Some(client) = self.client(id) else {
            return Err("ERR keyheat: the client has left".into());
        };
        let (protocol, user) = (client.protocol, client.user);
        let known = client.listening.as_ref().filter(|l| !l.is_monitor);
        let found = known.and_then(|l| l.connections.iter().find(|(n, _)| *n == node));
        if let Some((_, index)) = found {
            return Ok(*index);
        }
        let index = self.open(node, Role::Subscriber(id), protocol, 0, user)?;
        if let Some(client) = self.client(id) {
            let listening = client.listening.get_or_insert_default();
            listening.connections.push((node, index));
        }
        Ok(index)
    }

    fn subscribed_connections(&mut self, id: ClientId) -> Vec<u32> {
        let listening = self.client(id).and_then(|c| c.listening.as_ref());
        let mut all: Vec<u32> =
            listening.map_or_else(Vec::new, |l| l.channels.values().copied().collect());
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Something came on a connection of shard channels, or of `MONITOR`.
    pub(super) fn on_listened(&mut self, id: ClientId, index: u32, frame: &[u8]) {
        let Some(client) = self.client(id) else {
            return;
        };
        let Some(listening) = &mut client.listening else {
            return;
        };
        if listening.echoes.iter().any(|(_, i)| *i == index) {
            return self.on_echo(id, frame);
        }
        if listening.is_monitor
            && !listening.channels.values().any(|i| *i == index)
            && frame[0] != b'>'
        {
            return self.on_monitored(id, frame);
        }
        if is_marker(frame) {
            listening.confirming = listening.confirming.saturating_sub(1);
            if listening.confirming == 0 {
                listening.asked = None;
                client.is_subscribing = false;
                self.drop_silent_listeners(id);
            }
            return;
        }
        if frame[0] == b'-' {
            return self.on_channel_refused(id, index, frame);
        }
        match confirmation(frame) {
            Some(confirmed) => self.on_channel(id, index, &confirmed),
            None => client.push_published(frame),
        }
    }

    fn on_channel(&mut self, id: ClientId, index: u32, confirmed: &Confirmed) {
        let now = self.now;
        let Some(client) = self.client(id) else {
            return;
        };
        let Some(listening) = &mut client.listening else {
            return;
        };
        if let Some(channel) = &confirmed.channel {
            if confirmed.kind == b"ssubscribe" {
                listening.channels.insert(channel.clone(), index);
                if let Some(place) = listening.returning.iter().position(|c| c == channel) {
                    listening.returning.swap_remove(place);
                    return;
                }
            } else {
                let was_there = listening.channels.get(channel) == Some(&index);
                if was_there && !listening.is_leaving {
                    let found = listening.connections.iter().find(|(_, i)| *i == index);
                    let astray = Astray {
                        client: id,
                        channel: channel.clone(),
                        from: found.map_or(u32::MAX, |(node, _)| *node),
                        until: now + ASTRAY_MAX,
                    };
                    self.astray.push(astray);
                    return self.want_look();
                }
                listening.channels.remove(channel);
            }
        }
        let left = listening.channels.len() as i64;
        client.counts[1] = left;
        client.count_subscriptions();
        let mut frame = Vec::new();
        confirmed.write(&mut frame, client.protocol, left);
        client.push(&frame);
    }

    /// A node refused a subscription: perhaps the slot is another's by now.
    fn on_channel_refused(&mut self, id: ClientId, index: u32, frame: &[u8]) {
        let from = self.upstreams.get(index as usize).map_or(0, |u| u.node);
        let moved = redirect(frame, self.node_name(from));
        let known = moved
            .as_ref()
            .and_then(|(_, _, address)| self.node_named(address));
        if let (Some((false, slot, _)), Some(node)) = (&moved, known) {
            self.on_slot_moved(*slot, node);
        } else if moved.is_some() {
            self.want_look();
        }
        let asked = self
            .client(id)
            .and_then(|c| c.listening.as_mut())
            .and_then(|l| l.asked.as_mut());
        let Some((command, tries)) = asked else {
            // One of ours, for a channel that is astray: it is tried again there.
            return;
        };
        *tries += 1;
        let may = *tries <= TRIES_MAX;
        let command = command.clone();
        if let Some(node) = known.filter(|_| may) {
            if let Ok(index) = self.listener(id, node) {
                if let Some(listening) = self.client(id).and_then(|c| c.listening.as_mut()) {
                    listening.confirming += 1;
                }
                return self.send_unanswered(index, &command, true);
            }
        }
        if let Some(client) = self.client(id) {
            if moved.is_some() {
                let mut error = Vec::new();
                let text = "TRYAGAIN keyheat: the slot of this channel is moving; try again";
                encode::error(&mut error, text);
                client.push(&error);
            } else {
                client.push(frame);
            }
        }
    }

    /// Subscribes anew to channels whose slot has moved.
    pub(super) fn look_after_astray(&mut self) {
        for astray in std::mem::take(&mut self.astray) {
            let id = astray.client;
            if self.client(id).is_none() {
                continue;
            }
            if self.now > astray.until {
                self.tell_unsubscribed(id, astray.channel);
                continue;
            }
            let owner = self.owner(slot::slot(&astray.channel)).ok();
            let index = match owner.filter(|node| *node != astray.from) {
                Some(node) => self.listener(id, node).ok(),
                None => None,
            };
            let Some(index) = index else {
                self.want_look();
                self.astray.push(astray);
                continue;
            };
            let mut is_back = false;
            if let Some(listening) = self.client(id).and_then(|c| c.listening.as_mut()) {
                is_back = listening.channels.get(&astray.channel) == Some(&index);
                if !is_back && !listening.returning.contains(&astray.channel) {
                    listening.returning.push(astray.channel.clone());
                }
            }
            if !is_back {
                let mut frame = Vec::new();
                encode::command(&mut frame, &[b"SSUBSCRIBE", &astray.channel]);
                self.send_unanswered(index, &frame, false);
                self.astray.push(astray);
            }
        }
    }

    /// No owner of the channel's slot took the client: it hears what the old one said.
    fn tell_unsubscribed(&mut self, id: ClientId, channel: Vec<u8>) {
        if let Some(client) = self.client(id) {
            let Some(listening) = &mut client.listening else {
                return;
            };
            listening.channels.remove(&channel);
            listening.returning.retain(|c| *c != channel);
            let left = listening.channels.len() as i64;
            client.counts[1] = left;
            client.count_subscriptions();
            let said = Confirmed {
                kind: b"sunsubscribe".to_vec(),
                channel: Some(channel),
                left,
            };
            let mut frame = Vec::new();
            said.write(&mut frame, client.protocol, left);
            client.push(&frame);
        }
        self.mark_client(id);
    }

    /// Closes connections on which no channel of the client is any more.
    fn drop_silent_listeners(&mut self, id: ClientId) {
        let Some(listening) = self.client(id).and_then(|c| c.listening.as_mut()) else {
            return;
        };
        if listening.is_monitor || !listening.returning.is_empty() {
            return;
        }
        let channels = &listening.channels;
        let is_silent = |index: &u32| !channels.values().any(|i| i == index);
        let (silent, heard) = std::mem::take(&mut listening.connections)
            .into_iter()
            .partition(|(_, index)| is_silent(index));
        listening.connections = heard;
        let is_over = listening.connections.is_empty() && listening.echoes.is_empty();
        let silent: Vec<(u32, u32)> = silent;
        for (_, index) in silent {
            self.unpin_and_close(index, "its last shard channel was left");
        }
        if is_over {
            if let Some(client) = self.client(id) {
                client.listening = None;
            }
        }
    }
}
