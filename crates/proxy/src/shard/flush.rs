//! Writing what a turn has gathered, and closing clients that are done.

use std::io::{ErrorKind, Write};

use super::client::{Client, ClientId, Taken};
use super::Shard;
use crate::stream::Stream;

impl Shard {
    /// Writes what the turn has gathered, until nothing is left to be tried: a failure on one side
    /// gives the other side more to write.
    pub(super) fn flush(&mut self) {
        while !self.dirty_upstreams.is_empty() || !self.dirty_clients.is_empty() {
            self.flush_once();
        }
    }

    fn flush_once(&mut self) {
        while let Some((index, generation)) = self.dirty_upstreams.pop() {
            if self.is_there(index, generation) {
                self.upstreams[index as usize].is_dirty = false;
                self.flush_upstream(index);
            }
        }
        self.flush_clients();
    }

    pub(super) fn flush_clients(&mut self) {
        self.swollen = 0;
        let mut dirty = std::mem::take(&mut self.dirty_clients);
        for id in dirty.drain(..) {
            if let Some(client) = self.client(id) {
                client.is_dirty = false;
                self.flush_client(id);
            }
        }
        if self.dirty_clients.is_empty() {
            self.dirty_clients = dirty;
        }
    }

    fn flush_client(&mut self, id: ClientId) {
        let replies_max = self.replies_max();
        let Some(client) = self.client(id) else {
            return;
        };
        while client.written < client.out.len() {
            match client.stream.write(&client.out[client.written..]) {
                Ok(0) => return self.close_client(id),
                Ok(n) => {
                    client.written += n;
                    client.deeds.bytes_out += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.close_client(id),
            }
        }
        if client.stream.holds() {
            match client.stream.flush() {
                Err(e) if e.kind() != ErrorKind::WouldBlock => return self.close_client(id),
                _ => {}
            }
        }
        client.reads_last &= !client.has_read();
        let had_stopped = client.has_unread;
        client.settle();
        // What is left in `input` behind a hold is still to be served.
        let has_rest = !client.input.is_empty() && client.has_unread;
        let is_over = client.is_closing || (client.has_ended && !has_rest);
        if client.is_clear() && is_over && client.is_written() {
            if client.may_still_send {
                return self.let_linger(id);
            }
            return self.close_client(id);
        }
        let may_go_on = !client.is_blocked
            && !client.releases_pinned
            && !client.is_subscribing
            && client.authenticating.is_none()
            && !client.verdict.as_ref().is_some_and(|v| v.is_awaited());
        let (now, before) = client.recount();
        if client.is_held && client.is_clear() && may_go_on {
            client.is_held = false;
            self.queue_client(id);
        } else if had_stopped && !client.is_held && !client.is_full(replies_max) {
            self.queue_client(id);
        }
        self.count_taken(now, before);
    }

    pub(super) fn close_client(&mut self, id: ClientId) {
        if let Some(client) = self.take_client(id) {
            self.hang_up(client.stream);
        }
    }

    /// Forgets a client, and leaves what it is connected by.
    pub(super) fn take_client(&mut self, id: ClientId) -> Option<Client> {
        self.client(id)?;
        // What its transaction wrote may yet come to be.
        self.void_written(id);
        let mut client = self.clients.remove(id.index as usize);
        if client.gathers() {
            self.forget_parts(id);
        }
        self.count_taken(Taken::default(), client.recount().1);
        self.leave_user(client.user);
        for index in client.connections() {
            self.unpin_and_close(index, "its client left");
        }
        Some(client)
    }

    /// Closes the connection of a client that is forgotten.
    pub(super) fn hang_up(&mut self, mut stream: Stream) {
        let _ = self.poll.registry().deregister(&mut stream);
        self.stats.clients.add(-1);
    }
}
