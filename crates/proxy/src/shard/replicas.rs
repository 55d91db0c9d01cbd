//! Reads from replicas: which replica is fit, and what happens when it turns out not to be.
//!
//! A replica is *fit* for a read while `fresh_at` (see `replication`) is within the bound on lag, judged at the instant at which
//! the read is sent, and not before the last write that the read must see (`own_writes`). One that is down,
//! is loading or has lost its primary is not fit, because nothing new is learnt of it. Among the fit ones it is
//! drawn, with weights by latency, requests on their way and lag; none is left without any, or its latency
//! would never be learnt anew.
//!
//! What is not fit after all (its connection is lost, it answers `LOADING`, `BUSY` or `MOVED`) costs no error: the
//! read is sent to the primary. Reads only ever come here, so nothing is done twice.
//!
//! Cost: a read that found no fit replica because of a write just before
//! has them asked at once, at most every [`HURRY`]; it goes to the primary itself. Departure from the usual
//! way (`ROLE` behind each write and in front of each read): nobody pays for what is not read.

use keyheat_core::Nanos;
use keyheat_resp::command::Command;
use keyheat_resp::reply::{has_null, is_absent};
use keyheat_resp::{encode, slot, Protocol};

use super::client::{ClientId, Ticket};
use super::serve::{Flow, Keys, Request};
use super::upstream::{Owner, Pending, Role};
use super::{count, Shard};
use crate::requests::Way;
use crate::settings::{ReadFrom, ReadYourWrites};
use keyheat_net::clock::MS;

/// Least time between two looks at one primary.
const HURRY: Nanos = 5 * MS;
/// The same where every read has to wait for it.
const HURRY_GLOBAL: Nanos = MS;
/// A read waits so long for a replica; then it goes to the primary.
const WAIT_MAX: Nanos = 50 * MS;
/// How long a user whom a replica does not know is not tried there.
const REFUSED_FOR: Nanos = 10_000 * MS;
/// After replica reads are switched on: by then every shard notes what is written.
const SETTLE: Nanos = 1_000 * MS;
/// Faster than this is all the same.
const LATENCY_MIN: Nanos = 50_000;
/// Replicas of one primary that are considered.
const CANDIDATES: usize = 16;

/// How a reply is wanted, from which database, and with whose rights.
type Wanted = (Protocol, u32, u32);

/// A read that waits for a replica which has come far enough.
pub(super) struct WaitingRead {
    primary: u32,
    needed: Nanos,
    frame: Box<[u8]>,
    pending: Pending,
}

impl WaitingRead {
    /// Bytes that are held for it.
    pub fn held(&self) -> usize {
        self.frame.len()
    }
}

impl Shard {
    /// Whether a read may go to a replica at all.
    #[inline]
    pub(super) fn may_ask_replica(&self, key_hash: u64) -> bool {
        self.asks_replicas
            && match self.settings.read_from {
                ReadFrom::PreferReplica | ReadFrom::Replica => true,
                ReadFrom::HotOnly => self.hot.contains(key_hash),
                ReadFrom::Primary => self.hot.reads_replicas(key_hash),
            }
    }

    /// The settings say anew whether reads may go to replicas.
    pub(super) fn read_from_replicas_as_told(&mut self) {
        let is_wanted = self.settings.reads_replicas();
        if is_wanted && !self.asks_replicas {
            // Writes were not noted meanwhile: what is not learnt from now on proves nothing.
            for state in &mut self.nodes {
                state.replication.prove_anew();
            }
            // The other shards are told at about the same time, and note writes from then on.
            self.asks_since = self.now + SETTLE;
        }
        self.asks_replicas = is_wanted;
    }

    /// Sends a read to a replica. `None`: it goes to the primary.
    pub(super) fn read_from_replica(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        command: &'static Command,
        keys: &Keys,
        primary: u32,
    ) -> Option<Flow> {
        let client = self.clients.get(id.index as usize)?;
        let is_script = matches!(command.name, "eval_ro" | "evalsha_ro" | "fcall_ro");
        if is_script || !client.may_read_elsewhere() {
            return None;
        }
        let wanted = (client.protocol, client.db, client.user);
        if self.settings.read_your_writes == ReadYourWrites::Global {
            let replicas = self.topology.as_ref()?.replicas_of(primary);
            if !replicas.iter().any(|&node| self.is_fit(node, 0)) {
                return self.without_replica(id, primary);
            }
            return Some(self.wait_for_replica(id, request, keys, primary));
        }
        if self.locks.contains(keys.hash, self.now) {
            return None;
        }
        let needed = self.needed(request, command, keys);
        let Some(index) = self.replica(primary, needed, wanted) else {
            return self.without_replica(id, primary);
        };
        let pending = self.pending_read(id, request, keys)?;
        self.send_to_replica(index, request.frame, pending);
        Some(Flow::Next)
    }

    /// What is to be known of a read of a client while it is on its way.
    fn pending_read(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        keys: &Keys,
    ) -> Option<Pending> {
        let client = self.clients.get_mut(id.index as usize)?;
        let seq = client.open_slot(request.frame.len());
        // A write behind it must not overtake it.
        client.note_fill(seq);
        self.taken.way = Way::Replica;
        let owner = Owner::Client(Ticket { client: id, seq });
        let mut pending = Pending::new(owner, request.frame.len(), self.now);
        pending.key_hash = keys.hash;
        pending.flags = Pending::HAS_KEY | Pending::COUNT;
        if keys.count > 1 {
            pending.flags |= Pending::MANY_KEYS;
        }
        Some(pending)
    }

    fn send_to_replica(&mut self, index: u32, frame: &[u8], pending: Pending) {
        self.upstreams[index as usize].send(frame, pending);
        self.stats.forwarded.add(1);
        self.stats.replica_reads.add(1);
        self.mark_upstream(index);
    }

    /// A read that must see everybody's writes waits until a replica is known to hold all that was answered
    /// before now.
    fn wait_for_replica(
        &mut self,
        id: ClientId,
        request: &Request<'_>,
        keys: &Keys,
        primary: u32,
    ) -> Flow {
        let Some(pending) = self.pending_read(id, request, keys) else {
            return Flow::Next;
        };
        self.waiting_reads.push(WaitingRead {
            primary,
            needed: self.now,
            frame: request.frame.into(),
            pending,
        });
        self.hurry(primary, HURRY_GLOBAL);
        Flow::Next
    }

    /// Sends the reads that wait to replicas that have come far enough; those that have waited too long go to
    /// the primary.
    pub(super) fn serve_waiting_reads(&mut self) {
        for read in std::mem::take(&mut self.waiting_reads) {
            let asker = self.asker(&read.pending);
            let Some(client) = asker.and_then(|id| self.client(id)) else {
                continue;
            };
            let wanted = (client.protocol, client.db, client.user);
            let opened = self.replica(read.primary, read.needed, wanted);
            if let Some(index) = opened {
                self.send_to_replica(index, &read.frame, read.pending);
            } else if self.now < read.needed + WAIT_MAX {
                self.hurry(read.primary, HURRY_GLOBAL);
                self.waiting_reads.push(read);
            } else if !self.read_from_primary(&read.pending, &read.frame, false) {
                let text = self.no_replica(read.primary);
                let mut error = Vec::new();
                encode::error(&mut error, &text);
                self.stats.upstream_errors.add(1);
                self.give(&read.pending, &error);
            }
        }
    }

    fn without_replica(&mut self, id: ClientId, primary: u32) -> Option<Flow> {
        let is_error = self.settings.read_from == ReadFrom::Replica;
        is_error.then(|| self.refuse_without_replica(id, primary))
    }

    pub(super) fn refuse_without_replica(&mut self, id: ClientId, primary: u32) -> Flow {
        let text = self.no_replica(primary);
        self.refuse_upstream(id, &text)
    }

    fn no_replica(&self, primary: u32) -> String {
        let name = self.node_name(primary);
        format!(
            "ERR keyheat: no replica of {name} is fit to answer (down, loading, or too far behind), and \
             read_from is 'replica'"
        )
    }

    /// The replica for one part of a read that is split over slots, where there is a fit one.
    ///
    /// Args: `keys` of the part.
    pub(super) fn replica_for_part(
        &mut self,
        id: ClientId,
        keys: &[&[u8]],
        primary: u32,
    ) -> Option<u32> {
        let client = self.clients.get(id.index as usize)?;
        if !client.may_read_elsewhere() {
            return None;
        }
        if self.settings.read_your_writes == ReadYourWrites::Global {
            return None;
        }
        let user = client.user;
        let hashes = keys.iter().map(|key| self.hasher.hash(key));
        let needed = hashes.map(|hash| self.last_write(hash)).max().unwrap_or(0);
        self.choose_replica(primary, needed, user)
    }

    /// A connection to a replica that is fit for a read which must see all that was written before `needed`.
    fn replica(&mut self, primary: u32, needed: Nanos, wanted: Wanted) -> Option<u32> {
        let node = self.choose_replica(primary, needed, wanted.2)?;
        self.reader(node, primary, wanted).ok()
    }

    /// The time of the last write that a read must see.
    fn needed(&self, request: &Request<'_>, command: &'static Command, keys: &Keys) -> Nanos {
        if keys.count <= 1 {
            return self.last_write(keys.hash);
        }
        let mut needed = 0;
        let _ = command.for_each_key(
            request.argc(),
            |i| request.arg(i),
            |i| needed = needed.max(self.last_write(self.hasher.hash(request.arg(i)))),
        );
        needed
    }

    fn last_write(&self, key_hash: u64) -> Nanos {
        let tables = match self.settings.read_your_writes {
            ReadYourWrites::None => return 0,
            ReadYourWrites::Connection => &self.own_writes[self.index..=self.index],
            ReadYourWrites::Proxy => &self.own_writes[..],
            ReadYourWrites::Global => return self.now,
        };
        tables.iter().map(|t| t.last(key_hash)).max().unwrap_or(0)
    }

    fn choose_replica(&mut self, primary: u32, needed: Nanos, user: u32) -> Option<u32> {
        let topology = self.topology.as_ref()?;
        let mut fit = [(0, 0.0); CANDIDATES];
        let mut count = 0;
        let mut sum = 0.0;
        for &node in topology.replicas_of(primary).iter().take(CANDIDATES) {
            if self.is_fit(node, needed) && !self.is_refused(node, user) {
                sum += self.weight(node);
                fit[count] = (node, sum);
                count += 1;
            }
        }
        if count == 0 && needed > 0 {
            self.hurry(primary, HURRY);
        }
        let fit = &fit[..count];
        let drawn = self.random.draw() * sum;
        let found = fit.iter().find(|(_, up_to)| drawn < *up_to);
        found.or(fit.last()).map(|(node, _)| *node)
    }

    pub(super) fn is_fit(&self, node: u32, needed: Nanos) -> bool {
        let state = &self.nodes[node as usize];
        let fresh_at = state.replication.fresh_at;
        let bound = self.settings.replica_lag_max_ms * MS;
        fresh_at != 0
            && fresh_at >= needed
            && (bound == 0 || self.now.saturating_sub(fresh_at) <= bound)
            && !self.is_left_alone(node)
    }

    /// Whether a replica did not know the user just now: users are not replicated.
    fn is_refused(&self, node: u32, user: u32) -> bool {
        let refused = &self.nodes[node as usize].replication.refused;
        let is_now = |(who, until): &(u32, Nanos)| *who == user && *until > self.now;
        refused.iter().any(is_now)
    }

    /// A replica does not know a user; the primary may.
    pub(super) fn refuse_at_replica(&mut self, node: u32, user: u32) {
        let now = self.now;
        let refused = &mut self.nodes[node as usize].replication.refused;
        refused.retain(|(who, until)| *who != user && *until > now);
        refused.push((user, now + REFUSED_FOR));
    }

    /// The share of reads that a replica is to get, in no unit: less where they take long, where many are on
    /// their way, and where it lags.
    fn weight(&self, node: u32) -> f64 {
        let state = &self.nodes[node as usize];
        let on_their_way: usize = state
            .readers
            .iter()
            .filter_map(|&(_, _, _, index)| self.upstreams.get(index as usize))
            .map(|up| up.pending.len())
            .sum();
        let lag = self.now.saturating_sub(state.replication.fresh_at) as f64;
        let bound = (self.settings.replica_lag_max_ms * MS).max(1) as f64;
        let latency = state.replication.latency.max(LATENCY_MIN) as f64;
        1.0 / (latency * (1 + on_their_way) as f64 * (1.0 + lag / bound))
    }

    /// The connection on which reads of all clients of a user go to a replica.
    pub(super) fn reader(
        &mut self,
        node: u32,
        primary: u32,
        wanted: Wanted,
    ) -> Result<u32, String> {
        let (protocol, db, user) = wanted;
        let readers = &self.nodes[node as usize].readers;
        let found = readers.iter().find(|(p, d, u, _)| (*p, *d, *u) == wanted);
        if let Some(&(_, _, _, index)) = found {
            return Ok(index);
        }
        let index = self.open(node, Role::Reader, protocol, db, user)?;
        self.upstreams[index as usize].primary = primary;
        let readers = &mut self.nodes[node as usize].readers;
        readers.push((protocol, db, user, index));
        Ok(index)
    }

    /// A read that a replica did not answer goes to the primary.
    ///
    /// Args: `is_sure` to go there even where reads are to go to replicas only.
    pub(super) fn read_from_primary(
        &mut self,
        pending: &Pending,
        frame: &[u8],
        is_sure: bool,
    ) -> bool {
        let is_read = matches!(pending.owner, Owner::Client(_) | Owner::Part { .. })
            && !pending.has(Pending::WRITE | Pending::WRITES_ALL);
        if !is_read || (self.settings.read_from == ReadFrom::Replica && !is_sure) {
            return false;
        }
        let Some((protocol, db)) = self.speaks(pending) else {
            return false;
        };
        let key = count::all_keys(&mut self.rescan, frame).into_iter().next();
        let Some(node) = key.and_then(|key| self.owner(slot::slot(&key)).ok()) else {
            return false;
        };
        self.stats.replica_reads_again.add(1);
        let mut pending = *pending;
        pending.redirects += 1;
        pending.sent_at = self.now;
        self.send_on(node, protocol, db, frame, pending, false);
        true
    }

    /// Whether a replica's answer may come of its not knowing that the key's slot moves to another node: it
    /// has what the source has, and what has moved is gone there. Only an answer that says something is taken.
    pub(super) fn is_unsure(&self, pending: &Pending, frame: &[u8]) -> bool {
        let is_cluster = self.is_cluster();
        is_cluster && pending.has(Pending::HAS_KEY) && lacks_something(pending, frame)
    }

    /// How long a read took there.
    pub(super) fn note_latency(&mut self, node: u32, sent_at: Nanos) {
        let took = self.now.saturating_sub(sent_at);
        let latency = &mut self.nodes[node as usize].replication.latency;
        *latency = if *latency == 0 {
            took
        } else {
            *latency - *latency / 8 + took / 8
        };
    }

    /// A replica that was slow for a moment has few reads to show that it no longer is: what it is asked of its
    /// replication shows it as well. (As that costs a server more than a read, it never speaks against one.)
    pub(super) fn unlearn_latency(&mut self, node: u32, sent_at: Nanos) {
        if self.now.saturating_sub(sent_at) < self.nodes[node as usize].replication.latency {
            self.note_latency(node, sent_at);
        }
    }
}

/// Whether a replica's error says that it cannot answer now, which the primary may.
pub(super) fn is_unfit(error: &[u8]) -> bool {
    // Users are not replicated: what they may is for the primary to say. A script that keeps it busy is somebody
    // else's, for none is sent to replicas.
    const UNFIT: [&[u8]; 10] = [
        b"-NOPERM",
        b"-NOAUTH",
        b"-BUSY ",
        b"-LOADING",
        b"-MASTERDOWN",
        b"-MOVED",
        b"-ASK",
        b"-CLUSTERDOWN",
        b"-READONLY",
        b"-TRYAGAIN",
    ];
    UNFIT.iter().any(|start| error.starts_with(start))
}

/// Whether a reply is what an absent key gives, or holds that for one of several.
fn lacks_something(pending: &Pending, frame: &[u8]) -> bool {
    match frame.first() {
        Some(b':') if pending.has(Pending::MANY_KEYS) => true,
        Some(b'*') if pending.has(Pending::MANY_KEYS) => has_null(frame),
        _ => is_absent(frame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_an_absent_key_gives_is_told() {
        let mut pending = Pending::new(Owner::Nobody, 0, 0);
        for frame in [
            &b"$-1\r\n"[..],
            b"_\r\n",
            b":0\r\n",
            b"*0\r\n",
            b"*1\r\n$-1\r\n",
            b"$0\r\n\r\n",
        ] {
            assert!(lacks_something(&pending, frame), "{frame:?}");
        }
        let some = b"*2\r\n$1\r\nv\r\n$-1\r\n";
        for frame in [&b"$1\r\nv\r\n"[..], b":3\r\n", &some[..], b"+string\r\n"] {
            assert!(!lacks_something(&pending, frame), "{frame:?}");
        }
        pending.flags = Pending::MANY_KEYS;
        assert!(lacks_something(&pending, some));
    }
}
