//! Who is upstream: which nodes there are, which slots they own, and what they can do.
//!
//! Asked on connections of its own, in a thread of its own, with a time limit on every step, so
//! that a server that hangs delays nothing but the next look. A shard that meets `MOVED`, a lost
//! connection or a heartbeat that is refused asks for a look at once; looks are rate-limited.
//!
//! # Layout
//! - [`look`]: a look at a server, at several of which one is the primary, at a Cluster
//! - [`sentinel`]: who the primary is, by the Sentinels
//! - [`connection`]: what they ask on

mod connection;
mod look;
mod sentinel;

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};

pub(crate) use connection::Connection;
pub use look::Watcher;

/// Slots of a Cluster.
pub const SLOTS: usize = 16_384;
/// No node owns the slot.
pub const NO_NODE: u32 = u32::MAX;

/// One upstream node. Its id is its place in [`Topology::nodes`] and never changes while the
/// proxy runs: later topologies only add nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `host:port` as the server names it.
    pub name: String,
    /// Where to connect.
    pub addr: SocketAddr,
    /// Whether it owns slots now.
    pub is_primary: bool,
}

/// What the upstream looked like at the last successful look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// All nodes ever seen, by id.
    pub nodes: Vec<Node>,
    /// Owner of each slot; empty for a standalone server.
    pub slots: Vec<u32>,
    /// Ids of the primaries, in order of name.
    pub primaries: Vec<u32>,
    /// Ids of the replicas of each node, by its id; shorter where the last ones have none.
    pub replicas: Vec<Vec<u32>>,
    /// What the server says of itself.
    pub server: ServerInfo,
}

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerInfo {
    /// `valkey` or `redis`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Whether it speaks RESP3.
    pub has_resp3: bool,
    /// Whether fields of a hash can expire on their own there.
    pub has_field_expiry: bool,
    /// Whether it is a Cluster.
    pub is_cluster: bool,
}

impl ServerInfo {
    /// Whether its version is an earlier one than this; one that says none is taken for new.
    pub fn is_before(&self, major: u32) -> bool {
        let first = self.version.split('.').next();
        first
            .and_then(|v| v.parse::<u32>().ok())
            .is_some_and(|v| v < major)
    }
}

impl Topology {
    /// The node that owns `slot`, if any does.
    #[must_use]
    pub fn owner(&self, slot: u16) -> Option<u32> {
        if self.slots.is_empty() {
            return self.primaries.first().copied();
        }
        match self.slots[usize::from(slot) % SLOTS] {
            NO_NODE => None,
            node => Some(node),
        }
    }

    /// Whether this is a Cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        !self.slots.is_empty()
    }

    /// The replicas of a primary.
    #[must_use]
    pub fn replicas_of(&self, node: u32) -> &[u32] {
        self.replicas.get(node as usize).map_or(&[], Vec::as_slice)
    }

    /// The primary that a node is a replica of, if it is one.
    #[must_use]
    pub fn primary_of(&self, node: u32) -> Option<u32> {
        let is_its = |&primary: &u32| self.replicas_of(primary).contains(&node);
        self.primaries.iter().copied().find(is_its)
    }

    /// Whether requests would go elsewhere under `other`.
    #[must_use]
    pub fn routes_differ(&self, other: &Self) -> bool {
        self.slots != other.slots || self.primaries != other.primaries
    }
}

/// Keeps node ids stable from look to look.
#[derive(Debug, Default)]
struct Registry {
    nodes: Vec<Node>,
    by_name: HashMap<String, u32>,
}

impl Registry {
    fn id(&mut self, name: &str, addr: SocketAddr) -> u32 {
        if let Some(&id) = self.by_name.get(name) {
            self.nodes[id as usize].addr = addr;
            return id;
        }
        let id = self.nodes.len() as u32;
        self.nodes.push(Node {
            name: name.to_owned(),
            addr,
            is_primary: false,
        });
        self.by_name.insert(name.to_owned(), id);
        id
    }

    /// Says who owns slots now. Only for a look that succeeded: the next one begins at these nodes.
    fn set_primaries(&mut self, primaries: &[u32]) {
        for (id, node) in self.nodes.iter_mut().enumerate() {
            node.is_primary = primaries.contains(&(id as u32));
        }
    }
}

/// Finds the address of `host:port`.
///
/// # Errors
/// What the resolver said.
pub fn resolve(address: &str) -> Result<SocketAddr, String> {
    address
        .to_socket_addrs()
        .map_err(|e| e.to_string())?
        .next()
        .ok_or_else(|| "has no address".to_owned())
}

/// The host of `host:port`, without the brackets of IPv6.
pub(crate) fn host_of(address: &str) -> &str {
    address
        .rsplit_once(':')
        .map_or(address, |(h, _)| h)
        .trim_start_matches('[')
        .trim_end_matches(']')
}

/// `host:port`, with brackets round an IPv6 address.
fn join(host: &str, port: i64) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
