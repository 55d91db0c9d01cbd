//! `MOVED` and `ASK`: a request is sent on to the node that the answer names, and what the answer says
//! of the topology is learnt. A node that is not known yet is waited for, for a while.

use std::sync::Arc;

use keyheat_core::Nanos;
use keyheat_resp::{encode, Protocol};

use super::upstream::{Owner, Pending};
use super::{Parked, Shard};
use crate::control::ToControl;
use keyheat_net::clock::SEC;

/// Most times one request is sent on.
const REDIRECTS_MAX: u8 = 5;
/// How long a request waits for a node that the topology does not know yet.
const PARK: Nanos = SEC;

impl Shard {
    /// Follows `MOVED` and `ASK`. Returns false where the answer must go to the owner as it is.
    pub(super) fn follow(
        &mut self,
        pending: &Pending,
        from: u32,
        frame: &[u8],
        reply: &[u8],
    ) -> bool {
        let may = matches!(pending.owner, Owner::Client(_) | Owner::Part { .. })
            && !pending.has(Pending::RELEASES);
        let is_cluster = self.is_cluster();
        if !may || !is_cluster || pending.redirects >= REDIRECTS_MAX {
            return false;
        }
        let Some((is_ask, slot, address)) = redirect(reply, self.node_name(from)) else {
            return false;
        };
        let Some((protocol, db)) = self.speaks(pending) else {
            return false;
        };
        self.stats.redirects.add(1);
        let mut pending = *pending;
        pending.redirects += 1;
        let Some(node) = self.node_named(&address) else {
            // It may own no slot yet, and so be in nobody's list.
            let _ = self.control.send(ToControl::Meet(address));
            self.parked.push(Parked {
                until: self.now + PARK,
                frame: frame.to_vec(),
                pending,
                protocol,
                db,
                slot,
            });
            return true;
        };
        if !is_ask {
            self.on_slot_moved(slot, node);
        }
        self.send_on(node, protocol, db, frame, pending, is_ask);
        true
    }

    /// A redirect on a connection of one client's own. It is not followed: the session lives on
    /// that connection. But it is learnt from, and a transaction or a watch it concerns is spoilt.
    pub(super) fn learn(&mut self, pending: &Pending, from: u32, reply: &[u8]) {
        let Some((is_ask, slot, address)) = redirect(reply, self.node_name(from)) else {
            return;
        };
        let known = self.node_named(&address);
        match known.filter(|_| !is_ask) {
            Some(node) => self.on_slot_moved(slot, node),
            None => self.want_look(),
        }
        if let Owner::Client(ticket) = pending.owner {
            self.spoil_session(ticket.client);
        }
    }

    pub(super) fn node_named(&self, address: &str) -> Option<u32> {
        let nodes = &self.topology.as_ref()?.nodes;
        let found = nodes.iter().position(|n| n.name == address);
        found.map(|i| i as u32)
    }

    pub(super) fn on_slot_moved(&mut self, slot: u16, node: u32) {
        let is_new = self.topology.as_ref().is_some_and(|t| {
            let owner = t.slots.get(usize::from(slot));
            owner.is_some_and(|&owner| owner != node)
        });
        if !is_new {
            return;
        }
        self.want_look();
        if let Some(t) = &mut self.topology {
            let t = Arc::make_mut(t);
            if let Some(owner) = t.slots.get_mut(usize::from(slot)) {
                *owner = node;
            }
            // Until the look: it is nobody's replica any more.
            for replicas in &mut t.replicas {
                replicas.retain(|replica| *replica != node);
            }
            self.nodes[node as usize].demoted_at = None;
        }
        self.cache.clear();
    }

    pub(super) fn send_on(
        &mut self,
        node: u32,
        protocol: Protocol,
        db: u32,
        frame: &[u8],
        mut pending: Pending,
        is_ask: bool,
    ) {
        let opened = match pending.owner {
            Owner::Client(_) | Owner::Part { .. } => match self.asker(&pending) {
                Some(id) => {
                    if pending.has(Pending::WRITE | Pending::WRITES_ALL) {
                        self.note_write_to(id, node);
                    }
                    self.path(id, node, protocol, db)
                }
                None => return,
            },
            _ => self.shared(node, protocol, db),
        };
        let opened = opened.and_then(|index| self.check_gate(node, index).map(|()| index));
        match opened {
            Ok(index) => {
                let now = self.now;
                let up = &mut self.upstreams[index as usize];
                if is_ask {
                    up.ask(&[b"ASKING"], Owner::Nobody, now);
                }
                pending.len = frame.len();
                up.send(frame, pending);
                self.mark_upstream(index);
            }
            Err(text) => {
                self.settle_access(&pending, node, 0, frame);
                self.give_up(&pending, frame, &text);
            }
        }
    }

    /// How the owner of a request wants its reply; `None` where nobody is left to want it.
    pub(super) fn speaks(&mut self, pending: &Pending) -> Option<(Protocol, u32)> {
        let id = match pending.owner {
            Owner::Client(ticket) => ticket.client,
            Owner::Part { job, .. } => self.jobs.get(job as usize)?.ticket.client,
            _ => return None,
        };
        self.client(id).map(|c| (c.protocol, c.db))
    }

    pub(super) fn unpark(&mut self) {
        for parked in std::mem::take(&mut self.parked) {
            match self.owner(parked.slot) {
                Ok(node) => {
                    let p = parked;
                    self.send_on(node, p.protocol, p.db, &p.frame, p.pending, false);
                }
                Err(_) => self.parked.push(parked),
            }
        }
    }

    pub(super) fn expire_parked(&mut self) {
        let now = self.now;
        let (late, waiting) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition(|p| p.until <= now);
        self.parked = waiting;
        let late: Vec<Parked> = late;
        for p in late {
            let mut error = Vec::new();
            let text = format!(
                "TRYAGAIN keyheat: slot {} has moved to an unknown node",
                p.slot
            );
            encode::error(&mut error, &text);
            self.give(&p.pending, &error);
        }
        if !self.parked.is_empty() {
            self.want_look();
        }
    }
}

/// `MOVED 3999 127.0.0.1:6381` → (is it ASK, slot, address). A node that does not say a host means
/// its own; an IPv6 address comes without brackets.
pub(super) fn redirect(reply: &[u8], from: &str) -> Option<(bool, u16, String)> {
    let line = std::str::from_utf8(reply.strip_suffix(b"\r\n")?).ok()?;
    let mut words = line.split(' ');
    let is_ask = match words.next()? {
        "-MOVED" => false,
        "-ASK" => true,
        _ => return None,
    };
    let slot = words.next()?.parse().ok()?;
    let (host, port) = words.next()?.rsplit_once(':')?;
    let host = match host {
        "" | "?" => from.rsplit_once(':')?.0.to_owned(),
        h if h.contains(':') && !h.starts_with('[') => format!("[{h}]"),
        h => h.to_owned(),
    };
    Some((is_ask, slot, format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::redirect;

    #[test]
    fn redirects_are_read() {
        let from = "10.0.0.1:7000";
        let read = |reply: &[u8]| redirect(reply, from);
        assert_eq!(
            read(b"-MOVED 3999 127.0.0.1:6381\r\n"),
            Some((false, 3999, "127.0.0.1:6381".into()))
        );
        assert_eq!(read(b"-ASK 1 h:2\r\n"), Some((true, 1, "h:2".into())));
        assert_eq!(
            read(b"-MOVED 7 ::1:7001\r\n"),
            Some((false, 7, "[::1]:7001".into()))
        );
        assert_eq!(
            read(b"-MOVED 7 :7001\r\n"),
            Some((false, 7, "10.0.0.1:7001".into()))
        );
        assert_eq!(read(b"-ERR MOVED\r\n"), None);
    }
}
