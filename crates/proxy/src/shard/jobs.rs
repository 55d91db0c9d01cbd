//! Requests that concern several nodes: split, sent, and their replies made one.
//!
//! What is split is no longer one step: another client may see some keys of an `MSET` written and
//! others not yet. That is what a Cluster gives its own clients, and it is said in
//! `docs/commands.md`.

use keyheat_resp::command::Command;
use keyheat_resp::reply::{parse, ReplyScanner, Value};
use keyheat_resp::{encode, slot, Limits};

use super::classify::{Class, Merge};
use super::client::{ClientId, Ticket};
use super::serve::{writes, Flow, Request};
use super::upstream::{Owner, Pending, Role};
use super::{newest, Shard};
use crate::copies::names;
use crate::notice::Pause;
use crate::settings::{ReadFrom, ReadYourWrites};

/// A part of a reply that says how it went, and is of use without the client too (`CLIENT PAUSE`), is no longer.
const STATUS_BYTES: usize = 64;

/// Cursors of SCAN carry the node's place in their last digits.
const SCAN_NODES: u64 = 1024;

/// A request that was split.
pub(super) struct Job {
    pub ticket: Ticket,
    /// The client waits in it.
    pub is_wait: bool,
    merge: How,
    waiting: usize,
    parts: Vec<Vec<u8>>,
}

pub(super) enum How {
    Merge(Merge),
    /// `DBSIZE`: how many keys of ours there are, and last, by so many nodes, how many in all.
    Sizes(usize),
    /// `SLOWLOG GET`, `ACL LOG`: as many entries, the newest first.
    Newest(usize),
    /// `CLIENT PAUSE`, `CLIENT UNPAUSE`.
    Pause(Pause),
    /// `WAIT`: barriers, and numbers of which the least counts.
    Copies,
    /// For each key of an MGET: its part, and its place there.
    Places(Vec<(u32, u32)>),
    /// SCAN at the node with this place, of so many.
    Scan {
        place: u64,
        nodes: u64,
    },
}

impl Job {
    /// Bytes of the parts that have come.
    pub fn held(&self) -> usize {
        self.parts.iter().map(Vec::len).sum()
    }
}

impl Shard {
    /// Splits a request whose keys lie in several slots, one part per slot.
    pub(super) fn split(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: &'static Command,
        merge: Merge,
    ) -> Flow {
        let step = if command.name == "mset" { 2 } else { 1 };
        if (request.argc() - 1) % step != 0 {
            return self.refuse(id, "ERR wrong number of arguments for 'mset' command");
        }
        let mut by_slot: hashbrown::HashMap<u16, u32> = hashbrown::HashMap::new();
        let mut parts: Vec<(u16, Vec<&[u8]>)> = Vec::new();
        let mut places = Vec::new();
        for i in (1..request.argc()).step_by(step) {
            let slot = slot::slot(request.arg(i));
            let part = *by_slot.entry(slot).or_insert_with(|| {
                parts.push((slot, vec![request.arg(0)]));
                parts.len() as u32 - 1
            });
            let args = &mut parts[part as usize].1;
            places.push((part, (args.len() - 1) as u32 / step as u32));
            args.extend((i..i + step).map(|j| request.arg(j)));
        }
        let mut sends = Vec::with_capacity(parts.len());
        let is_write = writes(command);
        for (slot, args) in parts {
            let node = match self.owner(slot) {
                Ok(node) => node,
                Err(text) => return self.refuse_upstream(id, &text),
            };
            let key_hash = self.hasher.hash(args[1]);
            let mut flags = Pending::HAS_KEY | Pending::COUNT;
            if args.len() > 1 + step {
                flags |= Pending::MANY_KEYS;
            }
            let mut node = node;
            if !is_write && self.may_ask_replica(key_hash) {
                match self.replica_for_part(id, &args[1..], node) {
                    Some(replica) => node = replica,
                    // Parts do not wait for a replica: they are asked of the primary.
                    None if self.settings.read_your_writes == ReadYourWrites::Global => {}
                    None if self.settings.read_from == ReadFrom::Replica => {
                        return self.refuse_without_replica(id, node)
                    }
                    None => {}
                }
            }
            if is_write {
                flags |= Pending::WRITE;
                for key in args[1..].iter().step_by(step) {
                    self.epochs.bump(self.hasher.hash(key));
                }
            }
            let mut frame = Vec::new();
            encode::command(&mut frame, &args);
            sends.push((node, frame, key_hash, flags));
        }
        let how = if merge.is_per_key() {
            How::Places(places)
        } else {
            How::Merge(merge)
        };
        self.start_job(id, how, sends, false)
    }

    /// Sends a request to every primary.
    pub(super) fn all_nodes(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: Option<&'static Command>,
        class: Class,
    ) -> Flow {
        let (merge, is_beside) = match class {
            Class::AllNodes(merge) => (merge, false),
            Class::Beside(merge) => (merge, true),
            _ => return Flow::Next,
        };
        let primaries = match &self.topology {
            Some(t) => t.primaries.clone(),
            None => match self.owner(0) {
                Err(text) => return self.refuse_upstream(id, &text),
                Ok(node) => vec![node],
            },
        };
        let mut flags = 0;
        if command.is_none_or(writes) {
            flags |= Pending::WRITES_ALL;
            self.epochs.bump_all();
        }
        if let ([node], false) = (&primaries[..], is_beside) {
            let node = *node;
            return self.send_for(id, request.frame, node, 0, flags);
        }
        if command.is_some_and(|c| c.name == "dbsize") && !self.hot.copied.is_empty() {
            let sends = self.sizes(request);
            return self.start_job(id, How::Sizes(primaries.len()), sends, false);
        }
        let sends = primaries
            .iter()
            .map(|&n| (n, request.frame.to_vec(), 0, flags))
            .collect();
        let how = match merge {
            Merge::Newest => How::Newest(newest::wanted(request.arg(2))),
            Merge::Pause => How::Pause(Pause::of(request.arg(2), request.arg(3), self.now)),
            _ => How::Merge(merge),
        };
        self.start_job(id, how, sends, is_beside)
    }

    /// Walks the primaries one after the other; the cursor says where.
    pub(super) fn scan(&mut self, id: ClientId, request: &Request<'_>) -> Flow {
        let primaries = match &self.topology {
            Some(t) => t.primaries.clone(),
            None => Vec::new(),
        };
        if primaries.len() <= 1 {
            return match self.some_node(id) {
                Ok(node) => self.send_for(id, request.frame, node, 0, 0),
                Err(text) => self.refuse_upstream(id, &text),
            };
        }
        let cursor = std::str::from_utf8(request.arg(1))
            .ok()
            .and_then(|s| s.parse::<u64>().ok());
        let Some(cursor) = cursor else {
            return self.refuse(id, "ERR invalid cursor");
        };
        let place = cursor % SCAN_NODES;
        let Some(&node) = primaries.get(place as usize) else {
            return self.refuse(id, "ERR invalid cursor");
        };
        let text = (cursor / SCAN_NODES).to_string();
        let mut args: Vec<&[u8]> = (0..request.argc()).map(|i| request.arg(i)).collect();
        args[1] = text.as_bytes();
        let mut frame = Vec::new();
        encode::command(&mut frame, &args);
        let how = How::Scan {
            place,
            nodes: primaries.len() as u64,
        };
        self.start_job(id, how, vec![(node, frame, 0, 0)], false)
    }

    fn start_job(
        &mut self,
        id: ClientId,
        merge: How,
        sends: Vec<(u32, Vec<u8>, u64, u8)>,
        is_beside: bool,
    ) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let (protocol, db, user) = (client.protocol, client.db, client.user);
        if client.own.is_none() && !is_beside {
            // All of it or nothing: no part is sent where another would be turned back.
            for &(node, ..) in &sends {
                match self.check_node(node) {
                    Ok(()) => {}
                    Err(_) if self.must_wait(id, node) => return Flow::Wait,
                    Err(text) => return self.refuse_upstream(id, &text),
                }
            }
        }
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let seq = client.open_slot(sends.iter().map(|s| s.1.len()).sum());
        let is_write = |flags: u8| flags & (Pending::WRITE | Pending::WRITES_ALL) != 0;
        if sends.iter().any(|s| is_write(s.3)) {
            client.note_write(seq);
        }
        let job = self.jobs.insert(Job {
            ticket: Ticket { client: id, seq },
            is_wait: false,
            merge,
            waiting: sends.len(),
            parts: vec![Vec::new(); sends.len()],
        }) as u32;
        for (part, (node, frame, key_hash, flags)) in sends.into_iter().enumerate() {
            let part = part as u32;
            let opened = match self.topology.as_ref().and_then(|t| t.primary_of(node)) {
                _ if is_beside => self.open(node, Role::Pinned(None), protocol, db, user),
                None => self.path(id, node, protocol, db),
                // The list of replicas may lag behind a redirect: a write goes to the owner alone.
                Some(_) if is_write(flags) => self.path(id, node, protocol, db),
                Some(primary) => {
                    // A write behind it must not overtake it.
                    if let Some(client) = self.client(id) {
                        client.note_fill(seq);
                    }
                    self.stats.replica_reads.add(1);
                    self.reader(node, primary, (protocol, db, user))
                }
            };
            match opened {
                Ok(index) => {
                    let owner = Owner::Part { job, part };
                    let mut pending = Pending::new(owner, frame.len(), self.now);
                    pending.key_hash = key_hash;
                    pending.flags = flags;
                    self.upstreams[index as usize].send(&frame, pending);
                    self.stats.forwarded.add(1);
                    self.mark_upstream(index);
                    if is_write(flags) {
                        self.note_write_to(id, node);
                    }
                }
                Err(text) => {
                    self.stats.upstream_errors.add(1);
                    let mut error = Vec::new();
                    encode::error(&mut error, &text);
                    self.on_part(job, part, &error);
                }
            }
        }
        Flow::Next
    }

    /// Sends requests to nodes on connections that are this client's alone until they have answered, by the
    /// rights of `user`.
    pub(super) fn start_beside(
        &mut self,
        id: ClientId,
        user: u32,
        how: How,
        nodes: &[u32],
        frames: &[Vec<u8>],
    ) -> Flow {
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let (protocol, db) = (client.protocol, client.db);
        let mut indexes = Vec::with_capacity(nodes.len());
        for &node in nodes {
            match self.pinned_as(node, id, protocol, db, user) {
                Ok(index) => indexes.push(index),
                Err(text) => {
                    indexes.into_iter().for_each(|index| self.release(index));
                    return self.refuse_upstream(id, &text);
                }
            }
        }
        let now = self.now;
        let Some(client) = self.client(id) else {
            return Flow::Next;
        };
        let seq = client.open_slot(0);
        client.is_held = true;
        client.block(now);
        let count = indexes.len() * frames.len();
        let job = self.jobs.insert(Job {
            ticket: Ticket { client: id, seq },
            is_wait: true,
            merge: how,
            waiting: count,
            parts: vec![Vec::new(); count],
        }) as u32;
        let mut part = 0;
        for index in indexes {
            let now = self.now;
            let up = &mut self.upstreams[index as usize];
            for frame in frames {
                let owner = Owner::Part { job, part };
                up.send(frame, Pending::new(owner, frame.len(), now));
                part += 1;
            }
            self.stats.forwarded.add(frames.len() as u64);
            self.mark_upstream(index);
            if let Some(client) = self.client(id) {
                client.beside.push(index);
            }
        }
        Flow::Next
    }

    /// A connection that a client had for one request has answered it.
    pub(super) fn end_beside(&mut self, id: ClientId, index: u32) {
        let is_beside = self.client(id).is_some_and(|client| {
            let place = client.beside.iter().position(|i| *i == index);
            place
                .map(|place| client.beside.swap_remove(place))
                .is_some()
        });
        if is_beside {
            self.release(index);
        }
    }

    /// What has come for a client that is gone is given back; the rest of it is not kept when it comes.
    pub(super) fn forget_parts(&mut self, id: ClientId) {
        for (_, job) in &mut self.jobs {
            if job.ticket.client == id {
                let parts = job.parts.iter_mut();
                parts
                    .filter(|p| p.len() > STATUS_BYTES)
                    .for_each(|p| *p = Vec::new());
            }
        }
    }

    pub(super) fn on_part(&mut self, job: u32, part: u32, frame: &[u8]) {
        let Some(found) = self.jobs.get(job as usize) else {
            return;
        };
        let id = found.ticket.client;
        let is_there = self.client(id).map(|c| c.gather(frame.len())).is_some();
        self.recount(id);
        let Some(found) = self.jobs.get_mut(job as usize) else {
            return;
        };
        if let Some(place) = found.parts.get_mut(part as usize) {
            if is_there || frame.len() <= STATUS_BYTES {
                *place = frame.to_vec();
            }
        }
        found.waiting = found.waiting.saturating_sub(1);
        if found.waiting > 0 {
            return;
        }
        let job = self.jobs.remove(job as usize);
        let ticket = job.ticket;
        let (is_wait, held) = (job.is_wait, job.held());
        let pause = match &job.merge {
            How::Pause(pause) => Some(*pause),
            _ => None,
        };
        let reply = merge(job);
        if let Some(pause) = pause.filter(|_| reply == b"+OK\r\n") {
            self.notice.pause(pause);
        }
        if is_wait {
            // What it wrote (BLPOP …) is voided again with its reply, as a session's is.
            self.void_written(ticket.client);
        }
        if let Some(client) = self.client(ticket.client) {
            client.is_blocked &= !is_wait;
            client.has_gathered(held);
        }
        self.pass_on(ticket.client, ticket.seq, &reply, true);
    }
}

/// Makes one reply of the parts. An error of any part is the reply.
fn merge(job: Job) -> Vec<u8> {
    if matches!(job.merge, How::Merge(Merge::AnyOk)) {
        let good = job.parts.iter().find(|p| p.first() == Some(&b'+'));
        return good.or(job.parts.first()).cloned().unwrap_or_default();
    }
    if let Some(error) = job
        .parts
        .iter()
        .find(|p| matches!(p.first(), Some(b'-' | b'!')))
    {
        return error.clone();
    }
    let merged = match &job.merge {
        How::Places(places) => merge_elements(places, &job.parts),
        How::Scan { place, nodes } => merge_scan(*place, *nodes, &job.parts[0]),
        How::Merge(Merge::Sum) => {
            let sum = job.parts.iter().filter_map(|p| integer(p)).sum();
            let mut out = Vec::new();
            encode::integer(&mut out, sum);
            Some(out)
        }
        How::Sizes(nodes) => Some(merge_sizes(*nodes, &job.parts)),
        How::Copies => merge_copies(&job.parts),
        How::Newest(count) => newest::merge(&job.parts, *count),
        How::Merge(Merge::Concat) => merge_concat(&job.parts),
        How::Merge(Merge::Union) => merge_union(&job.parts),
        How::Merge(Merge::Counts) => merge_counts(&job.parts),
        How::Merge(Merge::Least) => merge_least(&job.parts),
        How::Merge(Merge::NotNull) => merge_not_null(&job.parts),
        How::Pause(_) | How::Merge(_) => job.parts.first().cloned(),
    };
    merged.unwrap_or_else(|| {
        let mut out = Vec::new();
        encode::error(
            &mut out,
            "ERR keyheat: the parts of the reply do not fit together",
        );
        out
    })
}

fn integer(frame: &[u8]) -> Option<i64> {
    let line = frame.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// The elements of an array, as they stand.
pub(super) fn elements(frame: &[u8]) -> Option<Vec<&[u8]>> {
    let end = frame.windows(2).position(|w| w == b"\r\n")? + 2;
    let line = frame.get(1..end - 2)?;
    let count: usize = std::str::from_utf8(line).ok()?.parse().ok()?;
    let mut rest = &frame[end..];
    let mut scanner = ReplyScanner::new(Limits::default());
    let mut found = Vec::with_capacity(count.min(4096));
    for _ in 0..count {
        let scan = scanner.scan(rest).ok().filter(|s| s.complete)?;
        let (element, tail) = rest.split_at(scan.consumed);
        found.push(element);
        rest = tail;
    }
    Some(found)
}

fn merge_elements(places: &[(u32, u32)], parts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let parts: Vec<Vec<&[u8]>> = parts.iter().map(|p| elements(p)).collect::<Option<_>>()?;
    let mut out = Vec::new();
    encode::array_header(&mut out, places.len());
    for &(part, place) in places {
        out.extend_from_slice(parts.get(part as usize)?.get(place as usize)?);
    }
    Some(out)
}

/// The name of a key, of ours or not, as it stands in a reply.
fn name_in(element: &[u8]) -> &[u8] {
    let start = element.windows(2).position(|w| w == b"\r\n");
    start
        .and_then(|at| element.get(at + 2..)?.strip_suffix(b"\r\n"))
        .unwrap_or_default()
}

fn is_ours(element: &[u8]) -> bool {
    name_in(element).starts_with(names::PREFIX)
}

/// One that is not null. Copies are nobody's business: for one of them stands what it is a copy of.
fn merge_not_null(parts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let is_null = |p: &&Vec<u8>| matches!(p.as_slice(), b"$-1\r\n" | b"_\r\n");
    let named = |p: &&Vec<u8>| !is_null(p);
    let found = parts.iter().filter(named).find(|p| !is_ours(p));
    let found = found.or(parts.iter().find(named)).or(parts.first())?;
    match names::original(name_in(found)) {
        None => Some(found.clone()),
        Some(original) => {
            let mut out = Vec::new();
            encode::bulk(&mut out, original);
            Some(out)
        }
    }
}

fn merge_sizes(nodes: usize, parts: &[Vec<u8>]) -> Vec<u8> {
    let (ours, all) = parts.split_at(parts.len().saturating_sub(nodes));
    let sum = |parts: &[Vec<u8>]| -> i64 { parts.iter().filter_map(|p| integer(p)).sum() };
    let mut out = Vec::new();
    encode::integer(&mut out, (sum(all) - sum(ours)).max(0));
    out
}

/// All names but those of copies.
fn merge_concat(parts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let parts: Vec<Vec<&[u8]>> = parts.iter().map(|p| elements(p)).collect::<Option<_>>()?;
    let names = parts
        .into_iter()
        .flatten()
        .filter(|e| !is_ours(e))
        .collect();
    Some(array(names))
}

fn array(elements: Vec<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    encode::array_header(&mut out, elements.len());
    for element in elements {
        out.extend_from_slice(element);
    }
    out
}

fn merge_union(parts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let parts: Vec<Vec<&[u8]>> = parts.iter().map(|p| elements(p)).collect::<Option<_>>()?;
    let mut seen = hashbrown::HashSet::new();
    let all = parts.iter().flatten().copied();
    let once: Vec<&[u8]> = all.filter(|element| seen.insert(*element)).collect();
    let mut out = Vec::new();
    encode::array_header(&mut out, once.len());
    out.extend(once.into_iter().flatten());
    Some(out)
}

fn merge_counts(parts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let parts: Vec<Vec<&[u8]>> = parts.iter().map(|p| elements(p)).collect::<Option<_>>()?;
    let first = parts.first()?;
    let mut out = Vec::new();
    encode::array_header(&mut out, first.len());
    for (i, name) in first.iter().enumerate() {
        if i % 2 == 0 {
            out.extend_from_slice(name);
            continue;
        }
        let counts = parts.iter().map(|p| integer(p.get(i)?));
        encode::integer(&mut out, counts.collect::<Option<Vec<i64>>>()?.iter().sum());
    }
    Some(out)
}

fn merge_least(parts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let parts: Vec<Vec<&[u8]>> = parts.iter().map(|p| elements(p)).collect::<Option<_>>()?;
    let mut out = Vec::new();
    let count = parts.first()?.len();
    encode::array_header(&mut out, count);
    for i in 0..count {
        let least = parts.iter().filter_map(|p| integer(p.get(i)?)).min()?;
        encode::integer(&mut out, least);
    }
    Some(out)
}

/// What the least copied of the nodes says, barriers left out.
fn merge_copies(parts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let said: Vec<Vec<u8>> = parts.iter().filter(|p| p[..1] != *b"+").cloned().collect();
    if said.first()?.starts_with(b"*") {
        return merge_least(&said);
    }
    let least = said.iter().filter_map(|p| integer(p)).min()?;
    let mut out = Vec::new();
    encode::integer(&mut out, least);
    Some(out)
}

fn merge_scan(place: u64, nodes: u64, part: &[u8]) -> Option<Vec<u8>> {
    let parts = elements(part)?;
    let [cursor, keys] = parts[..] else {
        return None;
    };
    let Ok(Some((Value::Bulk(cursor), _))) = parse(cursor, &Limits::default()) else {
        return None;
    };
    let cursor: u64 = std::str::from_utf8(&cursor).ok()?.parse().ok()?;
    let next = match cursor {
        0 if place + 1 >= nodes => 0,
        0 => place + 1,
        _ => cursor.checked_mul(SCAN_NODES)? + place,
    };
    let mut out = Vec::new();
    encode::array_header(&mut out, 2);
    encode::bulk(&mut out, next.to_string().as_bytes());
    let names = elements(keys)?
        .into_iter()
        .filter(|e| !is_ours(e))
        .collect();
    out.extend_from_slice(&array(names));
    Some(out)
}
