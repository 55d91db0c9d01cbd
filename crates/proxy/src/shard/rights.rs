//! What the proxy does itself, done only for users who may (`auth = "pass_through"`).
//!
//! `CLIENT KILL` and its like reach no server, `MULTI` reaches one only with the first key, and `WAIT` by the proxy's
//! own account, so no server applies the user's rights to them. It is asked: by the user's own connection, a line of
//! the same command that does nothing (`CLIENT KILL` of a client that there is not; `MULTI`, and `DISCARD` after it).
//! `NOPERM` is what the client gets, in the server's words, and it stands in the server's `ACL LOG` too.
//!
//! `ACL DRYRUN`, by which answers from memory are judged (`users`), would need a right of the proxy's own account,
//! and without it everybody would have to be refused.
//!
//! A yes holds as long as one of `ACL DRYRUN` does: for the staleness bound from when it was asked. While it is in use
//! it is asked for anew at half of that, beside the requests. Who finds none waits for one, all of a user together.
//! A no is not kept. A yes to `MULTI` holds for longer, as the server is sent the `MULTI` of each transaction: a minute,
//! or until it refuses one. So it is seldom asked, and seldom seen in `MONITOR`.
//!
//! Not asked for, as nothing of others is seen or changed by it: `PING`, `ECHO`, `CLIENT SETINFO` (drivers send it with
//! the first command of every connection), `SELECT` of the database that is chosen, `EXEC` of nothing.

use keyheat_core::Nanos;
use keyheat_net::clock::SEC;

use super::client::ClientId;
use super::serve::Flow;
use super::upstream::{Owner, Pending, Role};
use super::Shard;
use crate::requests::Way;

/// No client has it.
const NO_CLIENT: &[u8] = b"9223372036854775807";
/// Commands, and lines of them that do nothing.
const LINES: [(&str, &[&[u8]]); 13] = [
    ("multi", &[b"MULTI"]),
    ("client|list", &[b"CLIENT", b"LIST", b"ID", NO_CLIENT]),
    ("client|kill", &[b"CLIENT", b"KILL", b"ID", NO_CLIENT]),
    ("client|unblock", &[b"CLIENT", b"UNBLOCK", NO_CLIENT]),
    ("client|no-evict", &[b"CLIENT", b"NO-EVICT", b"?"]),
    ("client|reply", &[b"CLIENT", b"REPLY", b"?"]),
    ("client|capa", &[b"CLIENT", b"CAPA", b"?"]),
    ("client|setname", &[b"CLIENT", b"SETNAME", b"no name"]),
    ("client|getname", &[b"CLIENT", b"GETNAME"]),
    ("client|info", &[b"CLIENT", b"INFO"]),
    ("client|id", &[b"CLIENT", b"ID"]),
    ("wait", &[b"WAIT", b"0", b"0"]),
    ("waitaof", &[b"WAITAOF", b"0", b"0", b"0"]),
];
/// The place of `MULTI` among them.
const MULTI: u8 = 0;
/// How long a yes to it holds.
const MULTI_BOUND: Nanos = 60 * SEC;
/// The `DISCARD` behind it.
const DISCARD: u8 = LINES.len() as u8;

/// Whether a user may.
#[derive(Debug)]
pub(super) struct Right {
    /// The place of the command in the table.
    place: u8,
    /// When the question was sent to which the server said yes.
    said_at: Option<Nanos>,
    is_asked: bool,
    waiting: Vec<ClientId>,
}

/// What a client waits for that asks for what its user may not, perhaps.
#[derive(Debug)]
pub(super) struct Verdict {
    /// The number of its request: another one has another verdict.
    request: u64,
    said: Said,
}

#[derive(Debug)]
enum Said {
    Nothing,
    May,
    MayNot(Vec<u8>),
    /// The server could not be asked.
    Lost(Vec<u8>),
}

impl Verdict {
    pub fn is_awaited(&self) -> bool {
        matches!(self.said, Said::Nothing)
    }
}

impl Shard {
    /// What becomes of a request for `command`, which passes no server; `None` where the client's user may.
    pub(super) fn unless_allowed(&mut self, id: ClientId, command: &str) -> Option<Flow> {
        if !self.passes_through() {
            return None;
        }
        let place = LINES.iter().position(|(name, _)| *name == command)? as u8;
        let client = self.client(id)?;
        let (user, request, is_clear) = (client.user, client.deeds.requests, client.is_clear());
        // It is counted anew each time it is looked at.
        let verdict = client.verdict.take();
        match verdict.filter(|v| v.request + 1 == request).map(|v| v.said) {
            Some(Said::May) => return None,
            // Whoever has a node for it will hear what is wrong with that.
            Some(Said::Lost(_)) if place == MULTI => return None,
            Some(Said::MayNot(error) | Said::Lost(error)) => {
                self.taken.way = Way::Error;
                return Some(self.say(id, |out| out.extend_from_slice(&error)));
            }
            Some(Said::Nothing) | None => {}
        }
        let now = self.now;
        let bound = match place {
            MULTI => MULTI_BOUND,
            _ => self.permit_bound(),
        };
        let right = self.right(user, place)?;
        let age = right.said_at.map(|at| now.saturating_sub(at));
        let is_asked = right.is_asked;
        if age.is_some_and(|age| age < bound) {
            if !is_asked && age.is_some_and(|age| age > bound / 2) {
                let _ = self.ask_right(id, user, place);
            }
            return None;
        }
        if !is_clear {
            return Some(Flow::Wait);
        }
        if !is_asked {
            match self.ask_right(id, user, place) {
                Ok(()) => {}
                Err(_) if place == MULTI => return None,
                Err(text) => return Some(self.refuse_upstream(id, &text)),
            }
        }
        self.right(user, place)?.waiting.push(id);
        let said = Said::Nothing;
        self.client(id)?.verdict = Some(Verdict { request, said }.into());
        Some(Flow::Wait)
    }

    fn right(&mut self, user: u32, place: u8) -> Option<&mut Right> {
        let rights = &mut self.users.get_mut(user as usize)?.rights;
        if let Some(at) = rights.iter().position(|r| r.place == place) {
            return rights.get_mut(at);
        }
        rights.push(Right {
            place,
            said_at: None,
            is_asked: false,
            waiting: Vec::new(),
        });
        rights.last_mut()
    }

    fn ask_right(&mut self, id: ClientId, user: u32, place: u8) -> Result<(), String> {
        let Some(client) = self.client(id) else {
            return Ok(());
        };
        let (protocol, db) = (client.protocol, client.db);
        let node = self.some_node(id)?;
        let index = if place == MULTI || self.notice.is_paused(self.now) {
            let index = self.pinned(node, id, protocol, db)?;
            // Whoever asked may leave before it is answered.
            self.upstreams[index as usize].role = Role::Pinned(None);
            index
        } else {
            self.shared_as(node, protocol, db, user)?
        };
        let line = LINES[place as usize].1;
        self.upstreams[index as usize].ask(line, Owner::Right { user, place }, self.now);
        self.mark_upstream(index);
        if let Some(right) = self.right(user, place) {
            right.is_asked = true;
        }
        Ok(())
    }

    /// The server has answered whether a user may.
    pub(super) fn on_right(&mut self, index: u32, pending: &Pending, reply: &[u8]) {
        let Owner::Right { user, place } = pending.owner else {
            return;
        };
        let is_error = reply.starts_with(b"-");
        let Some(up) = self.upstreams.get_mut(index as usize) else {
            return;
        };
        if place == MULTI && !is_error {
            let discard = Owner::Right {
                user,
                place: DISCARD,
            };
            up.ask(&[b"DISCARD"], discard, self.now);
            self.mark_upstream(index);
        } else if place == DISCARD && is_error {
            return self.unpin_and_close(index, "its transaction was only to ask a right");
        } else if up.role == Role::Pinned(None) {
            self.release(index);
        }
        let may_not = reply.starts_with(b"-NOPERM") || reply.starts_with(b"-NOAUTH");
        self.settle_right(user, place, (!may_not).then_some(pending.sent_at), || {
            if may_not {
                Said::MayNot(reply.to_vec())
            } else {
                Said::May
            }
        });
    }

    /// The server has refused a user's `MULTI`.
    pub(super) fn forget_multi(&mut self, user: u32) {
        if let Some(right) = self.right(user, MULTI) {
            right.said_at = None;
        }
    }

    /// The connection was lost before the server could say.
    pub(super) fn on_right_lost(&mut self, user: u32, place: u8, error: &[u8]) {
        self.settle_right(user, place, None, || Said::Lost(error.to_vec()));
    }

    fn settle_right(
        &mut self,
        user: u32,
        place: u8,
        said_at: Option<Nanos>,
        said: impl Fn() -> Said,
    ) {
        let user = self.users.get_mut(user as usize);
        let right = user.and_then(|u| u.rights.iter_mut().find(|r| r.place == place));
        let Some(right) = right else {
            return;
        };
        right.is_asked = false;
        right.said_at = said_at;
        for id in std::mem::take(&mut right.waiting) {
            let verdict = self.client(id).and_then(|c| c.verdict.as_mut());
            if let Some(verdict) = verdict.filter(|v| v.is_awaited()) {
                verdict.said = said();
            }
            self.mark_client(id);
        }
    }
}
