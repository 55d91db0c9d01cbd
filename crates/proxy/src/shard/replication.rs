//! How far replicas are behind their primaries, as both say it.
//!
//! Every [`TICK`](super::TICK) each shard asks `INFO replication` of each primary and then, on the
//! connections that the reads use, of each of its replicas. A primary's answer is kept with the time at which
//! it was asked for: all that was answered before that time is within its offset. Once a replica with the
//! same replication id has reached that offset, it holds all that. So for each replica there is a time,
//! `fresh_at`, and the claim: *what it answers from now on contains every write that its primary had answered
//! before `fresh_at`*. It rests on no clock but ours and on no silence.
//!
//! Cost: one `INFO` per node, shard and tick.

use std::collections::VecDeque;

use keyheat_core::hash::KeyHasher;
use keyheat_core::Nanos;
use keyheat_resp::reply::{parse, Value};
use keyheat_resp::{Limits, Protocol};

use super::upstream::{Owner, Role, Upstream};
use super::users::SERVICE;
use super::Shard;
use keyheat_net::clock::MS;

/// Offsets of a primary that are remembered: of the last few seconds.
const SAMPLES: usize = 64;
/// A replica that answers nothing for so long is left: the bound on lag, within these.
const PATIENCE_MIN: Nanos = 250 * MS;
const PATIENCE_MAX: Nanos = 1_000 * MS;

/// What is known of a node's replication.
#[derive(Default)]
pub(super) struct Replication {
    /// As a primary: where it was, and when that was asked.
    samples: VecDeque<Sample>,
    /// As a primary: which replicas it has, as a hash.
    its_replicas: u64,
    /// What it said of itself last.
    was_primary: Option<bool>,
    /// As a replica: it holds all that was answered before this; 0 if nothing is known.
    pub fresh_at: Nanos,
    asked_at: Nanos,
    is_asking: bool,
    /// How long reads there take, smoothed.
    pub latency: Nanos,
    /// Users whom the node does not know, and until when that is believed.
    pub refused: Vec<(u32, Nanos)>,
    was_fit: bool,
}

impl Replication {
    /// Nothing that was learnt so far proves anything.
    pub fn prove_anew(&mut self) {
        self.fresh_at = 0;
        self.samples.clear();
    }
}

#[derive(Clone, Copy)]
struct Sample {
    asked_at: Nanos,
    at: Position,
}

/// A place in the history of a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    history: u64,
    offset: u64,
}

impl Position {
    /// Whether who has come to `other` has all that was written up to here.
    fn is_in(self, other: Self) -> bool {
        self.history == other.history && self.offset <= other.offset
    }
}

/// What a node says of its replication.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    is_primary: bool,
    is_linked: bool,
    at: Position,
    /// Which replicas it has and in which state, as a hash.
    its_replicas: u64,
}

impl Shard {
    /// Asks primaries and replicas how far they are.
    pub(super) fn look_at_replicas(&mut self) {
        if !self.asks_replicas {
            return;
        }
        let Some(topology) = self.topology.clone() else {
            return;
        };
        for &primary in &topology.primaries {
            let replicas = topology.replicas_of(primary);
            let (protocol, db) = self.usual();
            let opened = self.shared(primary, protocol, db);
            self.ask_replication(primary, opened);
            for &replica in replicas {
                // Connected before the first read wants it.
                let _ = self.reader(replica, primary, (protocol, db, SERVICE));
                self.tell_fitness(replica);
            }
        }
    }

    /// A read must see a write that no replica is known to have.
    pub(super) fn hurry(&mut self, primary: u32, at_most_every: Nanos) {
        let asked_at = self.nodes[primary as usize].replication.asked_at;
        if self.now >= asked_at + at_most_every {
            let (protocol, db) = self.usual();
            let opened = self.shared(primary, protocol, db);
            self.ask_replication(primary, opened);
        }
    }

    fn ask_replicas(&mut self, primary: u32) {
        let Some(topology) = self.topology.clone() else {
            return;
        };
        let (protocol, db) = self.usual();
        for &replica in topology.replicas_of(primary) {
            let opened = self.reader(replica, primary, (protocol, db, SERVICE));
            self.ask_replication(replica, opened);
        }
    }

    /// How most clients will want their connection: what is asked goes on one that is there anyway.
    pub(super) fn usual(&self) -> (Protocol, u32) {
        let has_resp3 = self.topology.as_ref().is_some_and(|t| t.server.has_resp3);
        let protocol = if has_resp3 {
            Protocol::Resp3
        } else {
            Protocol::Resp2
        };
        (protocol, self.settings.upstream.db)
    }

    fn ask_replication(&mut self, node: u32, opened: Result<u32, String>) {
        let replication = &mut self.nodes[node as usize].replication;
        let Ok(index) = opened else {
            return;
        };
        if replication.is_asking {
            return;
        }
        replication.is_asking = true;
        replication.asked_at = self.now;
        let up = &mut self.upstreams[index as usize];
        up.ask(&[b"INFO", b"replication"], Owner::Replication, self.now);
        self.mark_upstream(index);
    }

    pub(super) fn on_replication(&mut self, node: u32, sent_at: Nanos, frame: &[u8]) {
        self.nodes[node as usize].replication.is_asking = false;
        if sent_at < self.asks_since {
            return; // asked before writes were noted
        }
        let Some(report) = report(frame) else {
            return;
        };
        let primary = self.topology.as_ref().and_then(|t| t.primary_of(node));
        match (primary, report.is_primary) {
            (None, true) => {
                let replication = &mut self.nodes[node as usize].replication;
                if replication.samples.len() == SAMPLES {
                    replication.samples.pop_front();
                }
                replication.samples.push_back(Sample {
                    asked_at: sent_at,
                    at: report.at,
                });
                let is_other = replication.its_replicas != report.its_replicas;
                replication.its_replicas = report.its_replicas;
                if is_other {
                    self.want_look();
                }
                self.ask_replicas(node);
            }
            (Some(primary), false) if report.is_linked => {
                self.unlearn_latency(node, sent_at);
                let samples = &self.nodes[primary as usize].replication.samples;
                let reached = samples
                    .iter()
                    .rev()
                    .find(|sample| sample.at.is_in(report.at));
                let fresh_at = reached.map_or(0, |sample| sample.asked_at);
                let replication = &mut self.nodes[node as usize].replication;
                replication.fresh_at = replication.fresh_at.max(fresh_at);
                self.serve_waiting_reads();
            }
            (Some(_), false) => {}
            // It is not what it is taken for: told once, or a lone replica would be looked at for ever.
            (_, is_primary) => {
                let replication = &mut self.nodes[node as usize].replication;
                if replication.was_primary.replace(is_primary) != Some(is_primary) {
                    self.want_look();
                }
                return;
            }
        }
        self.nodes[node as usize].replication.was_primary = Some(report.is_primary);
    }

    /// What a node was asked of its replication will not be answered.
    pub(super) fn forget_question(&mut self, node: u32) {
        self.nodes[node as usize].replication.is_asking = false;
    }

    /// Whether a replica has not answered for so long that what it was asked is better asked elsewhere.
    pub(super) fn is_mute(&self, up: &Upstream) -> bool {
        let patience = match self.settings.replica_lag_max_ms {
            0 => PATIENCE_MAX,
            bound => (bound * MS).clamp(PATIENCE_MIN, PATIENCE_MAX),
        };
        let oldest = up.pending.front().map_or(self.now, |p| p.sent_at);
        let silent_since = oldest.max(up.heard_at);
        up.role == Role::Reader && self.now.saturating_sub(silent_since) > patience
    }

    /// Nothing that was known of a replica holds for what answers at its address next.
    pub(super) fn forget_replica(&mut self, node: u32) {
        self.nodes[node as usize].replication.fresh_at = 0;
    }

    /// Says, once for all shards, that a replica is read from, or no longer.
    fn tell_fitness(&mut self, node: u32) {
        let is_fit = self.is_fit(node, 0);
        let replication = &mut self.nodes[node as usize].replication;
        if std::mem::replace(&mut replication.was_fit, is_fit) == is_fit || self.index != 0 {
            return;
        }
        let lag_ms = self
            .now
            .saturating_sub(self.nodes[node as usize].replication.fresh_at)
            / MS;
        let replica = self.node_name(node);
        if is_fit {
            tracing::info!(replica, lag_ms, "reads may go to a replica");
        } else {
            tracing::warn!(
                replica,
                "a replica is not read from: it is down, loading, or too far behind"
            );
        }
    }

    /// Replicas that are none any more are left; what they were asked goes to the primary.
    pub(super) fn leave_replicas(&mut self) {
        let Some(topology) = &self.topology else {
            return;
        };
        let left: Vec<u32> = self
            .upstreams
            .iter()
            .filter(|(_, up)| {
                up.role == Role::Reader && topology.primary_of(up.node) != Some(up.primary)
            })
            .map(|(index, _)| index as u32)
            .collect();
        for index in left {
            self.close_upstream(index, "it is no longer a replica of the node it was");
        }
    }
}

/// Reads a reply to `INFO replication`.
fn report(frame: &[u8]) -> Option<Report> {
    let text = match parse(frame, &Limits::default()) {
        Ok(Some((Value::Bulk(text) | Value::Verbatim { text, .. }, _))) => text,
        _ => return None,
    };
    let text = std::str::from_utf8(&text).ok()?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim_end)
    };
    let is_primary = field("role")? == "master";
    let offset = if is_primary {
        field("master_repl_offset")
    } else {
        field("slave_repl_offset")
    };
    let hasher = KeyHasher::new(0);
    let id = field("master_replid")?;
    // `slave0:ip=…,port=…,state=…,offset=…,lag=…`, of which the first three say who there is.
    let its_replicas = text
        .lines()
        .filter(|line| line.starts_with("slave") && line.contains(":ip="))
        .filter_map(|line| line.split_once(",offset="))
        .fold(0, |all, (who, _)| all ^ hasher.hash(who.as_bytes()));
    Some(Report {
        its_replicas,
        is_primary,
        is_linked: field("master_link_status") == Some("up"),
        at: Position {
            history: hasher.hash(id.as_bytes()),
            offset: offset?.parse().ok()?,
        },
    })
}

#[cfg(test)]
mod tests {
    use keyheat_resp::encode;

    use super::*;

    fn bulk(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encode::bulk(&mut out, text.as_bytes());
        out
    }

    #[test]
    fn what_a_node_says_of_its_replication_is_read() {
        let primary = bulk(
            "# Replication\r\nrole:master\r\nconnected_slaves:1\r\nmaster_replid:abc\r\n\
             master_repl_offset:120\r\n",
        );
        let replica = bulk(
            "# Replication\r\nrole:slave\r\nmaster_link_status:up\r\nslave_read_repl_offset:110\r\n\
             slave_repl_offset:100\r\nmaster_replid:abc\r\nmaster_repl_offset:100\r\n",
        );
        let (primary, replica) = (report(&primary).unwrap(), report(&replica).unwrap());
        assert!(primary.is_primary && !replica.is_primary && replica.is_linked);
        assert_eq!((primary.at.offset, replica.at.offset), (120, 100));
        assert_eq!(primary.at.history, replica.at.history);
        assert_eq!(report(b"-NOPERM no\r\n"), None);
        assert_eq!(report(&bulk("role:master\r\n")), None);
    }
}
