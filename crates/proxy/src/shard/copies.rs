//! Copies of hot keys at work: reads spread over them, and voided before a write is answered.
//!
//! A read of a copied key goes at random to the original or to one of its copies. A copy that is not there
//! answers as an absent key does; so a reply that says nothing is asked again of the original, and the place
//! is left alone for a while.
//!
//! A write of a copied key is answered only when no copy from before it is left: its reply is held back, the
//! key's version is moved beside the original, and the copies are deleted at every place that may hold one.
//! Where that fails, the reply waits until they have expired. That is decided when the reply comes, and what is
//! held back is found by its ticket, so it does not matter by which way it comes (a single write, a part of
//! `MSET`, `EXEC`, `BLPOP`).

use std::sync::atomic::Ordering::Relaxed;

use keyheat_core::Nanos;
use keyheat_resp::command::Command;
use keyheat_resp::reply::{is_absent, parse};
use keyheat_resp::{encode, slot, Limits, Protocol};

use super::client::{ClientId, Ticket};
use super::serve::{Flow, Keys, Request};
use super::upstream::{Owner, Pending};
use super::{count, Shard};
use crate::copies::{maker, names, scripts};
use crate::hotview::CopiedKey;
use crate::requests::Way;
use keyheat_net::clock::MS;

/// A place that had no copy is left alone for so long, twice as long each time, up to:
const MISS_FIRST: Nanos = 20 * MS;
const MISS_LONGEST: Nanos = 1_000 * MS;
/// A copy may take so long to answer; then the original is asked.
const ANSWER_MAX: Nanos = 250 * MS;
/// For so long no copies are read or voided where the account may not run scripts.
const REFUSED_FOR: Nanos = 10_000 * MS;
/// In place of a key's number: this is the answer of a fence.
const FENCE: u32 = u32::MAX;

/// A read that went to a copy.
pub(super) struct CopyRead {
    ticket: Ticket,
    frame: Box<[u8]>,
    key: Box<[u8]>,
    key_hash: u64,
    node: u32,
    place: u32,
    asked_at: Nanos,
}

impl CopyRead {
    /// Bytes that are held for it.
    pub fn held(&self) -> usize {
        self.frame.len() + self.key.len()
    }
}

/// Copies that are being deleted before a write is answered.
pub(super) struct Voiding {
    ticket: Ticket,
    reply: Vec<u8>,
    keys: Vec<CopiedKey>,
    waiting: u32,
    has_failed: bool,
    /// Then every copy from before the write has expired.
    until: Nanos,
}

impl Voiding {
    /// Bytes of the reply.
    pub fn held(&self) -> usize {
        self.reply.len()
    }
}

impl Shard {
    /// Whether reads of the key may go to copies now.
    #[inline]
    pub(super) fn has_copies(&self, key_hash: u64) -> bool {
        !self.hot.copied.is_empty()
            && self.now >= self.copies_off_until.load(Relaxed)
            && self
                .hot
                .copied
                .get(&key_hash)
                .is_some_and(|copied| copied.read_after.is_some_and(|after| self.now >= after))
    }

    /// Sends a read to a copy. `None`: it is the original's turn, or nothing a copy could answer.
    pub(super) fn read_from_copy(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: &'static Command,
        keys: &Keys,
        node: u32,
    ) -> Option<Flow> {
        let client = self.clients.get(id.index as usize)?;
        let may = keys.count == 1
            && client.may_read_elsewhere()
            && client.db == 0
            && may_ask_copy(command.name);
        if !may {
            return None;
        }
        let protocol = client.protocol;
        let place = self.draw_place(keys, request.arg(keys.first), node)?;
        let key = request.arg(keys.first);
        let name = names::copy(key, place);
        let there = self.owner(slot::slot(&name)).ok()?;
        let index = self.shared(there, protocol, 0).ok()?;
        let args: Vec<&[u8]> = (0..request.argc())
            .map(|i| {
                if i == keys.first {
                    &name
                } else {
                    request.arg(i)
                }
            })
            .collect();
        let client = self.clients.get_mut(id.index as usize)?;
        let seq = client.open_slot(request.frame.len());
        // A write behind it must not overtake it.
        client.note_fill(seq);
        let now = self.now;
        let read = CopyRead {
            ticket: Ticket { client: id, seq },
            frame: request.frame.into(),
            key: key.into(),
            key_hash: keys.hash,
            node,
            place,
            asked_at: now,
        };
        let number = self.next_number();
        self.taken.way = Way::Copy;
        self.copy_reads.insert(number, read);
        self.upstreams[index as usize].ask(&args, Owner::Copy(number), now);
        self.stats.forwarded.add(1);
        self.mark_upstream(index);
        Some(Flow::Next)
    }

    fn draw_place(&mut self, keys: &Keys, key: &[u8], node: u32) -> Option<u32> {
        let most = self.settings.copies_max;
        let places = names::places_of(&self.copy_places, node, slot::slot(key), most);
        let drawn = (self.random.draw() * (places.len() + 1) as f64) as usize;
        let place = *places.get(drawn)?;
        let missed = self.copy_misses.get(&miss_of(keys.hash, place));
        missed
            .is_none_or(|(until, _)| self.now >= *until)
            .then_some(place)
    }

    /// What is asked of a copy or of a fence gets a number of its own: an answer that comes late must not be
    /// taken for another's.
    fn next_number(&mut self) -> u32 {
        self.last_number = self.last_number.wrapping_add(1);
        self.last_number
    }

    /// Reads whose copy has not answered in time are asked of the original.
    pub(super) fn expire_copy_reads(&mut self) {
        let late: Vec<u32> = self
            .copy_reads
            .iter()
            .filter(|(_, read)| self.now >= read.asked_at + ANSWER_MAX)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            self.on_copy(number, b"-ERR too late\r\n");
        }
    }

    /// A copy has answered, or its node cannot.
    pub(super) fn on_copy(&mut self, number: u32, frame: &[u8]) {
        let Some(read) = self.copy_reads.remove(&number) else {
            return;
        };
        let miss = miss_of(read.key_hash, read.place);
        if says_something(frame) {
            self.copy_misses.remove(&miss);
            self.stats.copy_reads.add(1);
            self.count_local(
                read.key_hash,
                read.node,
                (frame.len() + read.frame.len()) as u64,
            );
            return self.pass_on(read.ticket.client, read.ticket.seq, frame, true);
        }
        let (_, wait) = self.copy_misses.get(&miss).copied().unwrap_or_default();
        let wait = (wait * 2).clamp(MISS_FIRST, MISS_LONGEST);
        if self.copy_misses.len() > 16_384 {
            self.copy_misses.clear();
        }
        self.copy_misses.insert(miss, (self.now + wait, wait));
        self.stats.copy_misses.add(1);
        self.forward_waiter(read.ticket, &read.frame, &read.key, read.key_hash);
    }

    /// Has the reply that has just come held back, if what it answers has written a key that is copied.
    ///
    /// The only place where that is decided, and early enough: only copies that may be there now can be stale. Of
    /// a reply that is passed on in pieces it is the last one that is held back, and without it there is no answer.
    #[cold]
    pub(super) fn hold_answer(&mut self, pending: &Pending, request: &[u8]) {
        let (ticket, is_session) = match pending.owner {
            Owner::Client(ticket) => (ticket, pending.has(Pending::RELEASES)),
            Owner::Part { job, .. } => match self.jobs.get(job as usize) {
                Some(job) => (job.ticket, job.is_wait),
                None => return,
            },
            _ => return,
        };
        if is_session {
            self.hold_reply_of_session(ticket);
        } else if pending.has(Pending::WRITE | Pending::WRITES_ALL) {
            self.hold_reply(ticket, request, pending);
        }
    }

    fn hold_reply(&mut self, ticket: Ticket, request: &[u8], pending: &Pending) {
        let copied = &self.hot.copied;
        let hashes: Vec<u64> = if pending.has(Pending::WRITES_ALL) {
            copied.keys().copied().collect()
        } else if pending.has(Pending::MANY_KEYS) {
            let keys = count::all_keys(&mut self.rescan, request);
            keys.iter().map(|key| self.hasher.hash(key)).collect()
        } else {
            vec![pending.key_hash]
        };
        self.hold_reply_of(ticket, hashes);
    }

    /// The same for what the transaction or the blocking command of a client writes.
    fn hold_reply_of_session(&mut self, ticket: Ticket) {
        let Some(client) = self.client(ticket.client) else {
            return;
        };
        let hashes: Vec<u64> = if client.writes_all {
            self.hot.copied.keys().copied().collect()
        } else {
            client.written_keys.clone()
        };
        self.hold_reply_of(ticket, hashes);
    }

    fn hold_reply_of(&mut self, ticket: Ticket, mut hashes: Vec<u64>) {
        let copied = &self.hot.copied;
        hashes.retain(|hash| copied.contains_key(hash));
        if hashes.is_empty() || self.now < self.copies_off_until.load(Relaxed) {
            return;
        }
        hashes.sort_unstable();
        hashes.dedup();
        let keys = self.held.entry(named(ticket)).or_default();
        for key in hashes.iter().filter_map(|hash| copied.get(hash)) {
            if !keys.iter().any(|known| known.key == key.key) {
                keys.push(key.clone());
            }
        }
    }

    /// A whole reply, or the end of one, that may be held back; false if it is not.
    #[cold]
    pub(super) fn keep_back(&mut self, ticket: Ticket, reply: &[u8]) -> bool {
        let Some(keys) = self.held.remove(&named(ticket)) else {
            return false;
        };
        if reply.len() > self.budget {
            self.cut_for_memory(ticket.client);
            return true;
        }
        self.void_copies(ticket, keys, reply);
        true
    }

    fn void_copies(&mut self, ticket: Ticket, keys: Vec<CopiedKey>, reply: &[u8]) {
        self.stats.copy_voidings.add(1);
        let bound = self.settings.copies_max_staleness_ms * MS;
        let number = self.next_number();
        let voiding = Voiding {
            ticket,
            reply: reply.to_vec(),
            keys: keys.clone(),
            waiting: keys.len() as u32,
            has_failed: false,
            until: self.now + bound,
        };
        self.voidings.insert(number, voiding);
        let keep = maker::keep_ms(&self.settings).to_string();
        for (place, copied) in keys.iter().enumerate() {
            let owner = Owner::Void {
                voiding: number,
                key: place as u32,
            };
            let keep = keep.as_bytes();
            let script = scripts::MOVE.as_bytes();
            let ask = [b"EVAL", script, b"1", &copied.register[..], keep, keep];
            self.ask_for_voiding(slot::slot(&copied.key), &ask, owner);
        }
    }

    fn ask_for_voiding(&mut self, slot: u16, ask: &[&[u8]], owner: Owner) {
        let opened = self
            .owner(slot)
            .and_then(|node| self.shared(node, Protocol::Resp2, 0));
        match opened {
            Ok(index) => {
                let now = self.now;
                self.upstreams[index as usize].ask(ask, owner, now);
                self.mark_upstream(index);
            }
            Err(_) => {
                if let Owner::Void { voiding, key } = owner {
                    self.on_void(voiding, key, b"-ERR not sent\r\n");
                }
            }
        }
    }

    /// The version of a key was moved, or a fence set.
    pub(super) fn on_void(&mut self, voiding: u32, key: u32, frame: &[u8]) {
        let is_error = frame.first() == Some(&b'-');
        let Some(found) = self.voidings.get_mut(&voiding) else {
            return;
        };
        found.waiting = found.waiting.saturating_sub(1);
        if is_error && is_refusal(frame) {
            // Nobody in this process reads a copy from now on, so nothing is to be waited for.
            found.until = self.now;
            let until = self.now + REFUSED_FOR;
            if self.copies_off_until.swap(until, Relaxed) < self.now {
                tracing::warn!("copies are not used: the account may not run what voids them");
            }
            return self.expire_voidings();
        }
        found.has_failed |= is_error;
        let copied = (key != FENCE).then(|| found.keys.get(key as usize).cloned());
        let moved = match parse(frame, &Limits::default()) {
            Ok(Some((answer, _))) if !is_error => maker::moved(&answer),
            _ => None,
        };
        match (copied.flatten(), moved) {
            (Some(copied), Some((version, places))) => {
                self.set_fences(voiding, &copied, &version, places);
            }
            (Some(_), None) => {
                if let Some(found) = self.voidings.get_mut(&voiding) {
                    found.has_failed = true;
                }
            }
            (None, _) => {}
        }
        if is_error {
            self.want_look();
        }
        self.end_voiding(voiding);
    }

    fn set_fences(&mut self, voiding: u32, copied: &CopiedKey, version: &[u8], noted: Vec<u32>) {
        // Where copies lie now besides what the register says, for it may have been flushed or evicted.
        let mut places = noted;
        let slot = slot::slot(&copied.key);
        if let Ok(own) = self.owner(slot) {
            let most = self.settings.copies_max;
            places.extend(names::places_of(&self.copy_places, own, slot, most));
        }
        places.sort_unstable();
        places.dedup();
        if let Some(found) = self.voidings.get_mut(&voiding) {
            found.waiting += places.len() as u32;
        }
        let keep = maker::keep_ms(&self.settings).to_string();
        for place in places {
            let copy = names::copy(&copied.key, place);
            let fence = names::fence(&copied.key, place);
            let owner = Owner::Void {
                voiding,
                key: FENCE,
            };
            let script = scripts::FENCE.as_bytes();
            let ask = [
                b"EVAL",
                script,
                b"2",
                &copy,
                &fence,
                version,
                keep.as_bytes(),
            ];
            self.ask_for_voiding(slot::slot(&copy), &ask, owner);
        }
    }

    fn end_voiding(&mut self, number: u32) {
        let is_over = self
            .voidings
            .get(&number)
            .is_some_and(|v| v.waiting == 0 && (!v.has_failed || self.now >= v.until));
        if is_over {
            if let Some(voiding) = self.voidings.remove(&number) {
                let ticket = voiding.ticket;
                self.pass_on(ticket.client, ticket.seq, &voiding.reply, true);
            }
        }
    }

    /// Replies whose copies could not be deleted are given once those have expired.
    pub(super) fn expire_voidings(&mut self) {
        let now = self.now;
        let late: Vec<u32> = self
            .voidings
            .iter()
            .filter(|(_, v)| now >= v.until)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            if let Some(voiding) = self.voidings.get_mut(&number) {
                voiding.waiting = 0;
                self.stats.copies_waited_out.add(1);
            }
            self.end_voiding(number);
        }
    }

    /// Asks all primaries how many keys they hold, and how many of those are ours.
    pub(super) fn sizes(&self, request: &Request<'_>) -> Vec<(u32, Vec<u8>, u64, u8)> {
        let mut sends = Vec::new();
        for copied in self.hot.copied.values() {
            let slot = slot::slot(&copied.key);
            let mut names: Vec<(u16, [Vec<u8>; 2])> =
                vec![(slot, [copied.lease.to_vec(), copied.register.to_vec()])];
            for (_, place) in &self.copy_places {
                let copy = names::copy(&copied.key, *place);
                let fence = names::fence(&copied.key, *place);
                names.push((slot::slot(&copy), [copy, fence]));
            }
            for (slot, [one, other]) in names {
                if let Ok(node) = self.owner(slot) {
                    let mut frame = Vec::new();
                    encode::command(&mut frame, &[b"EXISTS", &one, &other]);
                    sends.push((node, frame, 0, 0));
                }
            }
        }
        let primaries = self.topology.as_ref().map(|t| t.primaries.clone());
        for node in primaries.unwrap_or_default() {
            sends.push((node, request.frame.to_vec(), 0, 0));
        }
        sends
    }
}

fn named(ticket: Ticket) -> (u32, u32, u32) {
    (ticket.client.index, ticket.client.generation, ticket.seq)
}

fn miss_of(key_hash: u64, place: u32) -> u64 {
    key_hash ^ (u64::from(place) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Whether an error stays until somebody changes something.
fn is_refusal(error: &[u8]) -> bool {
    error.starts_with(b"-NOPERM") || error.starts_with(b"-ERR unknown command")
}

/// Whether a copy may be asked: deterministic reads of one key that do not ask about the key itself, for a
/// copy is another key with another expiry.
fn may_ask_copy(name: &str) -> bool {
    matches!(
        name,
        "get"
            | "strlen"
            | "getrange"
            | "substr"
            | "getbit"
            | "bitcount"
            | "exists"
            | "hget"
            | "hmget"
            | "hgetall"
            | "hlen"
            | "hkeys"
            | "hvals"
            | "hexists"
            | "hstrlen"
            | "lrange"
            | "lindex"
            | "llen"
            | "smembers"
            | "sismember"
            | "smismember"
            | "scard"
            | "srandmember"
            | "zrange"
            | "zrevrange"
            | "zrangebyscore"
            | "zrevrangebyscore"
            | "zrangebylex"
            | "zrevrangebylex"
            | "zscore"
            | "zmscore"
            | "zcard"
            | "zcount"
            | "zlexcount"
            | "zrank"
            | "zrevrank"
            | "xrange"
            | "xrevrange"
            | "xlen"
            | "geopos"
            | "geodist"
            | "geosearch"
    )
}

/// Whether a reply proves that its key exists.
fn says_something(frame: &[u8]) -> bool {
    !matches!(frame.first(), Some(b'-' | b'!')) && !is_absent(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_that_says_something_proves_a_copy() {
        for frame in [
            &b"$-1\r\n"[..],
            b"_\r\n",
            b":0\r\n",
            b"*0\r\n",
            b"*1\r\n$-1\r\n",
            b"-ERR x\r\n",
            b"$0\r\n\r\n",
        ] {
            assert!(!says_something(frame), "{frame:?}");
        }
        for frame in [
            &b"$1\r\nv\r\n"[..],
            b":7\r\n",
            b"*2\r\n$-1\r\n$1\r\nv\r\n",
            b"+OK\r\n",
        ] {
            assert!(says_something(frame), "{frame:?}");
        }
    }
}
