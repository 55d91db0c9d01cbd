//! Keyspace notifications before a Cluster: every node tells only of its own keys.
//!
//! A published message reaches all nodes, so one connection hears it; a notification does not leave its node.
//! A client that subscribes to `__keyspace@…` or `__keyevent@…`, or to a pattern that may match them, is
//! therefore subscribed at the other primaries too. There only notifications are passed on: everything else
//! came on the first connection already. A primary that joins later is heard from the next subscription on.

use keyheat_resp::reply::{parse, Value};
use keyheat_resp::{encode, Limits};

use super::client::ClientId;
use super::serve::Request;
use super::upstream::Role;
use super::Shard;

const NOTIFICATIONS: &[u8] = b"__key";

impl Shard {
    /// Says a subscription command at the other primaries too, as far as it is about notifications.
    pub(super) fn subscribe_elsewhere(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
    ) -> Result<(), String> {
        let is_ending = request
            .arg(0)
            .to_ascii_lowercase()
            .windows(2)
            .any(|w| w == b"un");
        let has_pattern = request.arg(0)[0].eq_ignore_ascii_case(&b'p');
        let about = (1..request.argc()).map(|i| request.arg(i));
        let about: Vec<&[u8]> = about
            .filter(|name| may_be_told(name, has_pattern))
            .collect();
        if about.is_empty() && !(is_ending && request.argc() == 1) {
            return Ok(());
        }
        let first = self.client(id).and_then(|c| c.subscriber);
        let first = first
            .and_then(|index| self.upstreams.get(index as usize))
            .map(|u| u.node);
        let primaries = self
            .topology
            .as_ref()
            .map_or_else(Vec::new, |t| t.primaries.clone());
        let mut frame = Vec::new();
        let mut words = vec![request.arg(0)];
        words.extend(about);
        encode::command(&mut frame, &words);
        for node in primaries.into_iter().filter(|node| Some(*node) != first) {
            let listening = self.client(id).and_then(|c| c.listening.as_ref());
            let known = listening.and_then(|l| l.echoes.iter().find(|(n, _)| *n == node));
            let index = match known {
                Some((_, index)) => *index,
                None if is_ending => continue,
                None => {
                    let Some(client) = self.client(id) else {
                        return Ok(());
                    };
                    let (protocol, user) = (client.protocol, client.user);
                    let index = self.open(node, Role::Subscriber(id), protocol, 0, user)?;
                    if let Some(client) = self.client(id) {
                        let listening = client.listening.get_or_insert_default();
                        listening.echoes.push((node, index));
                    }
                    index
                }
            };
            self.send_unanswered(index, &frame, false);
        }
        Ok(())
    }

    /// Something came from one of the other primaries: a notification, or what was heard before.
    pub(super) fn on_echo(&mut self, id: ClientId, frame: &[u8]) {
        let Ok(Some((Value::Array(items) | Value::Push(items), _))) =
            parse(frame, &Limits::default())
        else {
            return;
        };
        let channel = match items.first() {
            Some(Value::Bulk(kind)) if kind == b"message" => items.get(1),
            Some(Value::Bulk(kind)) if kind == b"pmessage" => items.get(2),
            _ => None,
        };
        if matches!(channel, Some(Value::Bulk(name)) if name.starts_with(NOTIFICATIONS)) {
            if let Some(client) = self.client(id) {
                client.push(frame);
            }
        }
    }

    /// Nothing is subscribed to any more.
    pub(super) fn end_echoes(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else {
            return;
        };
        let Some(listening) = &mut client.listening else {
            return;
        };
        let echoes = std::mem::take(&mut listening.echoes);
        if listening.connections.is_empty() {
            client.listening = None;
        }
        for (_, index) in echoes {
            self.unpin_and_close(index, "its last subscription has ended");
        }
    }
}

/// Whether notifications may come under a name: what is before the first wildcard fits them.
fn may_be_told(name: &[u8], is_pattern: bool) -> bool {
    let wild = name.iter().position(|b| is_pattern && b"*?[\\".contains(b));
    let plain = &name[..wild.unwrap_or(name.len())];
    plain.starts_with(NOTIFICATIONS) || (wild.is_some() && NOTIFICATIONS.starts_with(plain))
}

#[cfg(test)]
mod tests {
    use super::may_be_told;

    #[test]
    fn names_under_which_notifications_may_come_are_told() {
        for (name, is_pattern, may) in [
            (&b"__keyspace@0__:k"[..], false, true),
            (b"__keyevent@0__:*", true, true),
            (b"*", true, true),
            (b"__k?y*", true, true),
            (b"*", false, false),
            (b"news", false, false),
            (b"news.*", true, false),
        ] {
            assert_eq!(may_be_told(name, is_pattern), may, "{name:?}");
        }
    }
}
