//! What is shown of each upstream node: its breaker, its limit, what is on its way and in line.
//!
//! A shard writes its view into a table of its own every tick, and the time of a proof when there is a new one,
//! under a lock that only a scrape contends for; nothing is done per request. Nodes are numbered alike in all shards, and get their names here.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};

use keyheat_core::overload::breaker::State;
use keyheat_core::Nanos;
use keyheat_net::{clock, lock};

use crate::metrics::{label, write_head};
use crate::topology::Topology;

/// A node as one shard sees it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NodeReport {
    pub state: State,
    pub opened: u64,
    pub limit: u64,
    pub in_flight: u64,
    pub queued: u64,
    pub turned_back: u64,
    pub stale_answers: u64,
    /// The newest proof of freshness, while anything is cached from the node.
    pub proved_at: Option<Nanos>,
}

/// One table per shard, by number of node.
pub(crate) type Reports = Arc<Mutex<Vec<NodeReport>>>;

const STATES: [(State, &str); 4] = [
    (State::Closed, "closed"),
    (State::Open, "open"),
    (State::HalfOpen, "half_open"),
    (State::Recovering, "recovering"),
];

/// Name, help, whether it only grows, and what of a report it sums up.
type Series = (&'static str, &'static str, bool, fn(&NodeReport) -> u64);

const SERIES: [Series; 6] = [
    (
        "node_breaker_opened_total",
        "Times a breaker of the node has opened, all shards together.",
        true,
        |r| r.opened,
    ),
    (
        "node_limit",
        "Requests that may be on their way to the node on shared connections, all shards together.",
        false,
        |r| r.limit,
    ),
    (
        "node_in_flight",
        "Requests on their way to the node on shared connections.",
        false,
        |r| r.in_flight,
    ),
    (
        "node_queued",
        "Requests in line for the node.",
        false,
        |r| r.queued,
    ),
    (
        "node_turned_back_total",
        "Requests for the node answered at once to protect it.",
        true,
        |r| r.turned_back,
    ),
    (
        "node_stale_answers_total",
        "Reads answered with the last proved value because the node could not answer.",
        true,
        |r| r.stale_answers,
    ),
];

/// Adds the series of all nodes, in Prometheus' text format.
pub(crate) fn write_metrics(out: &mut String, shards: &[Reports], topology: Option<&Topology>) {
    let Some(topology) = topology else {
        return;
    };
    let shards: Vec<Vec<NodeReport>> = shards.iter().map(|reports| lock(reports).clone()).collect();
    let seen = |node: usize| shards.iter().filter_map(move |reports| reports.get(node));
    let names: Vec<String> = topology.nodes.iter().map(|n| label(&n.name)).collect();
    let name = "node_breaker_shards";
    write_head(
        out,
        name,
        "Shards whose breaker of the node is in a state.",
        "gauge",
    );
    for (node, label) in names.iter().enumerate() {
        for (state, word) in STATES {
            let count = seen(node).filter(|r| r.state == state).count();
            let _ = writeln!(
                out,
                "keyheat_{name}{{node=\"{label}\",state=\"{word}\"}} {count}"
            );
        }
    }
    for (name, help, is_counter, value) in SERIES {
        let kind = if is_counter { "counter" } else { "gauge" };
        write_head(out, name, help, kind);
        for (node, label) in names.iter().enumerate() {
            let sum: u64 = seen(node).map(value).sum();
            let _ = writeln!(out, "keyheat_{name}{{node=\"{label}\"}} {sum}");
        }
    }
    let name = "node_proof_age_seconds";
    write_head(
        out,
        name,
        "Age of the proof of freshness by which the node's keys are answered locally; of all shards the oldest.",
        "gauge",
    );
    let now = clock::now();
    for (node, label) in names.iter().enumerate() {
        if let Some(oldest) = seen(node).filter_map(|r| r.proved_at).min() {
            let age = now.saturating_sub(oldest) as f64 / 1e9;
            let _ = writeln!(out, "keyheat_{name}{{node=\"{label}\"}} {age:.6}");
        }
    }
}
