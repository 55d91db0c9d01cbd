//! Clients that were told why they are let go, until they have heard it.
//!
//! A socket that is closed with something unread is reset, and a reset takes away from the other side what it has not
//! read yet: a client in the middle of a long request would learn that its connection broke, and not why. So the
//! proxy ends its own side first, and what still comes is thrown away until the client ends too. Of the client
//! itself nothing is kept meanwhile; it counts for `clients_max`.

use std::io::{ErrorKind, Read};

use mio::{Interest, Token};

use super::client::ClientId;
use super::{Shard, KIND_BITS, KIND_LINGERING};
use crate::stream::Stream;
use keyheat_core::Nanos;
use keyheat_net::clock::SEC;

/// So long, so much and so many at once, and no more: whoever breaks the protocol is owed an answer, not service.
const LINGER: Nanos = SEC;
const BYTES_MAX: usize = 64 << 20;
const LINGERING_MAX: usize = 64;
/// Reads of one of them in one turn of the loop.
const READS_MAX: usize = 8;

/// One of them.
pub(super) struct Lingering {
    stream: Stream,
    until: Nanos,
    /// Bytes that are still taken.
    left: usize,
}

impl Shard {
    /// Lets a client go that has its last reply, as soon as it has heard it.
    pub(super) fn let_linger(&mut self, id: ClientId) {
        let may = !self.is_draining && self.lingering.len() < LINGERING_MAX;
        if !may || self.client(id).is_none_or(|c| c.has_ended) {
            return self.close_client(id);
        }
        let Some(mut client) = self.take_client(id) else {
            return;
        };
        if client.stream.finish().is_err() {
            return self.hang_up(client.stream);
        }
        let index = self.lingering.insert(Lingering {
            stream: client.stream,
            until: self.now + LINGER,
            left: BYTES_MAX,
        });
        self.watch_lingering(index);
    }

    /// Has the next event come, also of what is there already.
    fn watch_lingering(&mut self, index: usize) {
        let token = Token(index << KIND_BITS | KIND_LINGERING);
        let stream = &mut self.lingering[index].stream;
        let registry = self.poll.registry();
        if registry
            .reregister(stream, token, Interest::READABLE)
            .is_err()
        {
            self.end_lingering(index);
        }
    }

    /// Throws away what has come.
    pub(super) fn on_lingering(&mut self, index: usize) {
        for _ in 0..READS_MAX {
            let Some(lingering) = self.lingering.get_mut(index) else {
                return;
            };
            match lingering.stream.read(&mut self.scratch) {
                Ok(n) if n > 0 && n < lingering.left => lingering.left -= n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => return self.end_lingering(index),
            }
        }
        self.watch_lingering(index);
    }

    /// Ends those that take too long.
    pub(super) fn end_late_lingering(&mut self) {
        let is_late = |l: &Lingering| self.is_draining || self.now >= l.until;
        let late: Vec<usize> = self
            .lingering
            .iter()
            .filter(|(_, l)| is_late(l))
            .map(|(index, _)| index)
            .collect();
        for index in late {
            self.end_lingering(index);
        }
    }

    fn end_lingering(&mut self, index: usize) {
        let lingering = self.lingering.remove(index);
        self.hang_up(lingering.stream);
    }
}
