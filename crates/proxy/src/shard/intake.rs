//! Requests in: reading a client, request by request.

use std::io::{ErrorKind, Read};

use keyheat_net::clock;
use keyheat_resp::request::{Parse, RequestParser};
use keyheat_resp::{encode, ProtocolError};
use mio::event::Event;

use super::client::{Client, ClientId, Wants};
use super::serve::{Flow, Request};
use super::users::NOBODY;
use super::{Shard, WAITING_MAX};

/// Bytes that are taken from a client that waits in a blocking command.
const AHEAD_MAX: usize = 16 << 20;

/// What is taken from a client that has not said who it is: enough for AUTH and HELLO.
const STRANGER: keyheat_resp::Limits = keyheat_resp::Limits {
    bulk_max_bytes: 16 * 1024,
    args_max: 10,
    inline_max_bytes: 16 * 1024,
    request_max_bytes: 64 * 1024,
    depth_max: 1,
};

/// The limits that hold for a client now.
pub(super) fn limits_of(client: &Client, request_max_bytes: usize) -> keyheat_resp::Limits {
    if client.is_authenticated {
        keyheat_resp::Limits {
            request_max_bytes,
            ..keyheat_resp::Limits::default()
        }
    } else {
        STRANGER
    }
}

impl Shard {
    pub(super) fn on_client(&mut self, index: usize, event: &Event) {
        let Some(client) = self.clients.get_mut(index) else {
            return;
        };
        let id = client.name_at(index);
        client.is_last |= event.is_read_closed();
        if event.is_writable() && !client.is_written() {
            self.mark_client(id);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.pump(id);
            if event.is_error() {
                // Its connection is no more. Who is held back is not read, and it would not be noticed.
                self.close_client(id);
            } else if event.is_read_closed() {
                // The end may lie behind data that filled the buffer, or behind a hold.
                self.on_half_closed(id);
            }
        }
    }

    fn on_half_closed(&mut self, id: ClientId) {
        let now = self.now;
        let Some(client) = self.client(id) else {
            return;
        };
        if client.waits_in_vain(now) {
            return self.close_client(id);
        }
        if !client.has_ended && !client.is_held {
            self.queue_client(id);
        }
        self.end_wait(id);
    }

    /// Serves what a client has sent, as far as may be now.
    pub(super) fn pump(&mut self, id: ClientId) {
        self.take_in(id);
        self.recount(id);
    }

    fn take_in(&mut self, id: ClientId) {
        let (has_looked, replies_max) = (self.has_looked, self.replies_max());
        let is_stranger = |c: &mut Client| c.stream.is_agreeing();
        if self.client(id).is_some_and(is_stranger) && !self.shake_hands(id) {
            return;
        }
        let Some(client) = self.client(id) else {
            return;
        };
        if !has_looked || client.is_held || client.is_closing {
            client.has_unread = true;
            if client.is_blocked && client.input.len() < AHEAD_MAX {
                // That it has left is heard only behind all that it has sent.
                self.read_ahead(id);
            }
            return;
        }
        if client.is_full(replies_max) {
            client.has_unread = true;
            if client.reads_last {
                self.read_ahead(id);
            }
            return;
        }
        client.has_unread = false;
        if client.input.is_empty() {
            self.read_fresh(id);
        } else {
            self.read_more(id);
        }
    }

    /// The usual case: nothing is left from before, so requests are served where they were read.
    fn read_fresh(&mut self, id: ClientId) {
        let mut scratch = std::mem::take(&mut self.scratch);
        if let Some(n) = self.read_client(id, &mut scratch) {
            let used = self.serve(id, &scratch[..n]);
            if let Some(client) = self.client(id) {
                client.input.extend_from_slice(&scratch[used..n]);
                if client.may_have_more(n, scratch.len()) {
                    self.queue_client(id);
                }
            }
        }
        self.scratch = scratch;
    }

    fn read_more(&mut self, id: ClientId) {
        let Some(client) = self.client(id) else {
            return;
        };
        // What a hold left behind comes first, and only then what is in the socket.
        let mut input = std::mem::take(&mut client.input);
        let mut served = client.input_served;
        served += self.serve(id, &input[served..]);
        let may_read = self.client(id).is_some_and(|c| !c.is_held && !c.has_unread);
        if may_read {
            let mut scratch = std::mem::take(&mut self.scratch);
            if let Some(n) = self.read_client(id, &mut scratch) {
                input.extend_from_slice(&scratch[..n]);
                served += self.serve(id, &input[served..]);
                let has_more = |c: &mut Client| c.may_have_more(n, scratch.len());
                if self.client(id).is_some_and(has_more) {
                    self.queue_client(id);
                }
            }
            self.scratch = scratch;
        }
        if let Some(client) = self.client(id) {
            client.keep_input(input, served);
        }
    }

    /// Takes what a client sends that does not read, or waits in a blocking command, to be served when it may be.
    fn read_ahead(&mut self, id: ClientId) {
        let mut scratch = std::mem::take(&mut self.scratch);
        if let Some(n) = self.read_client(id, &mut scratch) {
            let budget = self.budget;
            if let Some(client) = self.client(id) {
                client.input.extend_from_slice(&scratch[..n]);
                if client.load() + client.input.len() > budget {
                    self.cut_for_memory(id);
                } else if client.may_have_more(n, scratch.len()) {
                    self.queue_client(id);
                }
            }
        }
        self.scratch = scratch;
    }

    fn read_client(&mut self, id: ClientId, buf: &mut [u8]) -> Option<usize> {
        let client = self.client(id)?;
        match client.stream.read(buf) {
            Ok(0) => {
                client.has_ended = true;
                self.mark_client(id);
                None
            }
            Ok(n) => {
                // Local answers are judged at this instant: every request just read was sent
                // before it, so a proof that holds now holds for all of them.
                client.is_active = true;
                client.deeds.bytes_in += n as u64;
                let now = clock::now();
                client.deeds.active_at = now;
                self.now = now;
                Some(n)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(e) if e.kind() == ErrorKind::Interrupted => {
                self.queue_client(id);
                None
            }
            Err(_) => {
                self.close_client(id);
                None
            }
        }
    }

    /// Serves the requests in `buf`; returns how many bytes of it are done with.
    fn serve(&mut self, id: ClientId, buf: &[u8]) -> usize {
        let request_max = self.settings.request_max_bytes;
        let replies_max = self.replies_max();
        let Some(client) = self.client(id) else {
            return 0;
        };
        let limits = limits_of(client, request_max);
        let mut was_authenticated = client.is_authenticated;
        let mut parser = std::mem::replace(&mut client.parser, RequestParser::new(limits));
        let mut pos = 0;
        while pos < buf.len() {
            let Some(client) = self.client(id) else {
                break;
            };
            if client.is_closing {
                pos = buf.len();
                break;
            }
            if client.is_held {
                // The request just served must be answered before the next one is looked at.
                client.has_unread = true;
                break;
            }
            if client.is_full(replies_max) || client.waiting() > WAITING_MAX {
                client.has_unread = true;
                client.is_held |= client.waiting() > WAITING_MAX;
                self.mark_client(id);
                break;
            }
            match parser.parse(&buf[pos..]) {
                Ok(Parse::Complete { len }) => {
                    let frame = parser.frame(&buf[pos..]);
                    if parser.argc() > 0 {
                        let request = Request::new(frame, &parser);
                        let flow = match self.longer_expiry {
                            None => self.dispatch(id, &request),
                            Some(_) => self.dispatch_lengthened(id, &request),
                        };
                        if flow == Flow::Wait {
                            self.hold(id);
                            break;
                        }
                        self.stats.requests.count(self.taken);
                    }
                    pos += len;
                    if let Some(client) = self.client(id) {
                        if client.wants != Wants::All {
                            client.next_request();
                        }
                        if client.is_authenticated != was_authenticated {
                            was_authenticated = client.is_authenticated;
                            parser = RequestParser::new(limits_of(client, request_max));
                        }
                    }
                }
                Ok(Parse::Incomplete { .. }) => break,
                Err(_) if client.user == NOBODY && !client.is_tried => {
                    // Too much for a stranger, and perhaps it is none.
                    if self.authenticate(id, &[], None) == Flow::Wait {
                        self.hold(id);
                    }
                    break;
                }
                Err(e) => {
                    self.cut_for_protocol(id, e);
                    pos = buf.len();
                    break;
                }
            }
        }
        if let Some(client) = self.client(id) {
            client.parser = parser;
            if !client.out.is_empty() {
                self.mark_client(id);
            }
        }
        pos
    }

    /// Says what is wrong with a client's requests, and lets it go.
    fn cut_for_protocol(&mut self, id: ClientId, why: ProtocolError) {
        self.stats.protocol_errors.add(1);
        let max = self.settings.request_max_bytes;
        if let Some(client) = self.client(id) {
            let mut message = why.message();
            let peer = client.peer.clone();
            if why.kind == keyheat_resp::ErrorKind::TooBigRequest && client.is_authenticated {
                let text =
                    format!("ERR keyheat: the request is longer than request_max_bytes, {max}");
                message = text.into();
            }
            client.reply(|out| encode::error(out, &message));
            client.is_closing = true;
            client.may_still_send = true;
            self.cuts
                .tell(&peer, "protocol", message.trim_start_matches("ERR "));
        }
        self.mark_client(id);
    }

    /// Leaves the rest of a client's requests until everything before them is answered.
    fn hold(&mut self, id: ClientId) {
        if let Some(client) = self.client(id) {
            client.is_held = true;
            client.has_unread = true;
        }
        self.mark_client(id);
    }
}
