//! Looks at a server, at several of which one is the primary, or at a Cluster.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyheat_net::tls;
use keyheat_resp::reply::Value;

use super::connection::Connection;
use super::sentinel::Heir;
use super::{host_of, join, resolve, text, Registry, ServerInfo, Topology, NO_NODE, SLOTS};
use crate::notice::Notice;
use crate::settings::{Mode, Settings};

/// How long each of several nodes is waited for before the others are asked.
const HURRY: Duration = Duration::from_millis(250);
/// A node that failed to answer a look is asked after the others for so long.
const FAILED_FOR: Duration = Duration::from_secs(5);

/// Looks at the upstream again and again.
#[derive(Debug)]
pub struct Watcher {
    pub(crate) settings: Settings,
    pub(super) registry: Registry,
    /// Replicas of the Cluster as it was last: they know who its primaries are, too.
    replicas: Vec<String>,
    failed: HashMap<String, Instant>,
    pub(super) heir: Option<Heir>,
    /// How connections are encrypted, where they are.
    pub(crate) tls: Option<Arc<tls::Client>>,
    pub(crate) notice: Arc<Notice>,
}

/// What a look at one address has found.
#[derive(Debug)]
pub(super) struct Found {
    pub slots: Vec<u32>,
    pub primaries: Vec<u32>,
    /// Primary and replica.
    pub replicas: Vec<(u32, u32)>,
    pub server: ServerInfo,
    /// Whether what it says may be outdated: another's word is better.
    pub is_doubtful: bool,
}

impl Watcher {
    /// A watcher that has not looked yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            registry: Registry::default(),
            replicas: Vec::new(),
            failed: HashMap::new(),
            heir: None,
            tls: None,
            notice: Arc::default(),
        }
    }

    /// Looks once: at the Sentinels, or at the nodes known last and then at the configured addresses.
    ///
    /// # Errors
    /// What went wrong at each address, in one line.
    pub fn look(&mut self) -> Result<Topology, String> {
        if self.settings.upstream.mode == Mode::Sentinel {
            let found = self.look_at_sentinels()?;
            return Ok(self.accept(found));
        }
        let candidates = self.candidates();
        if candidates.len() > 1 {
            // One that hangs must not hold up a failover that all others know of.
            if let Ok(found) = self.look_at_any(&candidates, HURRY) {
                return Ok(self.accept(found));
            }
        }
        let found = self.look_at_any(&candidates, Duration::MAX)?;
        Ok(self.accept(found))
    }

    /// What the first of these says whose word can be relied on.
    ///
    /// Args: `patience` with each of them.
    fn look_at_any(&mut self, addresses: &[String], patience: Duration) -> Result<Found, String> {
        let mut failures = Vec::new();
        let mut doubtful = None;
        for address in addresses {
            match self.look_at(address, patience) {
                Ok(found) if found.is_doubtful => {
                    doubtful.get_or_insert(found);
                }
                Ok(found) => return Ok(found),
                Err(e) => {
                    failures.push(format!("{address}: {e}"));
                    self.failed.insert(address.clone(), Instant::now());
                }
            }
        }
        doubtful.ok_or_else(|| failures.join("; "))
    }

    /// A node that a server has named: it may own no slot yet.
    pub fn meet(&mut self, address: &str) {
        if let Ok(addr) = resolve(address) {
            self.registry.id(address, addr);
        }
    }

    /// Whom to ask, those first who have not just failed to answer.
    fn candidates(&mut self) -> Vec<String> {
        self.failed.retain(|_, at| at.elapsed() < FAILED_FOR);
        let primaries = self.registry.nodes.iter().filter(|n| n.is_primary);
        let mut asked = HashSet::new();
        let mut all: Vec<String> = primaries
            .map(|n| n.name.clone())
            .chain(self.replicas.iter().cloned())
            .chain(self.settings.upstream.addresses.iter().cloned())
            .filter(|address| asked.insert(address.clone()))
            .collect();
        all.sort_by_key(|address| self.failed.contains_key(address));
        all
    }

    /// Takes what was found for the truth.
    pub(super) fn accept(&mut self, found: Found) -> Topology {
        let is_cluster = !found.slots.is_empty();
        self.registry.set_primaries(&found.primaries);
        let name = |id: u32| self.registry.nodes[id as usize].name.clone();
        let known = found.replicas.iter().filter(|_| is_cluster);
        self.replicas = known.map(|&(_, id)| name(id)).collect();
        let mut primaries = found.primaries;
        primaries.sort_by(|a, b| {
            let name = |id: &u32| self.registry.nodes[*id as usize].name.as_str();
            name(a).cmp(name(b))
        });
        let mut replicas = vec![Vec::new(); self.registry.nodes.len()];
        for (primary, replica) in found.replicas {
            let of: &mut Vec<u32> = &mut replicas[primary as usize];
            if !of.contains(&replica) {
                of.push(replica);
            }
        }
        for of in &mut replicas {
            of.sort_unstable();
        }
        Topology {
            nodes: self.registry.nodes.clone(),
            slots: found.slots,
            primaries,
            replicas,
            server: ServerInfo {
                is_cluster,
                ..found.server
            },
        }
    }

    pub(super) fn connect(&self, address: &str, patience: Duration) -> Result<Connection, String> {
        let mut conn = Connection::to(address, &self.settings, self.tls.as_deref(), patience)?;
        conn.talk(&self.notice);
        Ok(conn)
    }

    fn look_at(&mut self, address: &str, patience: Duration) -> Result<Found, String> {
        let mut conn = self.connect(address, patience)?;
        let server = identify(&mut conn)?;
        let wants_cluster = match self.settings.upstream.mode {
            Mode::Auto => server.is_cluster,
            Mode::Standalone | Mode::Sentinel => false,
            Mode::Cluster if !server.is_cluster => {
                return Err("is not a Cluster, and upstream.mode says cluster".into())
            }
            Mode::Cluster => true,
        };
        if !wants_cluster {
            return self.one_server(address, &mut conn, server);
        }
        let slots = conn.call(&[b"CLUSTER", b"SLOTS"])?;
        let mut found = self.cluster(address, &slots, server)?;
        // A node cut off from the others shows the Cluster as it was.
        if let Value::Bulk(info) | Value::Verbatim { text: info, .. } =
            conn.call(&[b"CLUSTER", b"INFO"])?
        {
            found.is_doubtful = text(&info).contains("cluster_state:fail");
        }
        Ok(found)
    }

    /// A server that is no Cluster. One that is itself a replica is taken for what it is only where none of
    /// the addresses is a primary.
    pub(super) fn one_server(
        &mut self,
        address: &str,
        conn: &mut Connection,
        server: ServerInfo,
    ) -> Result<Found, String> {
        let id = self.registry.id(address, resolve(address)?);
        let role = conn.call(&[b"ROLE"])?;
        let role = match &role {
            Value::Array(role) => role.as_slice(),
            // Not allowed to ask: it is taken for the primary, and reads stay there.
            _ => &[],
        };
        let is_replica = matches!(role.first(), Some(Value::Bulk(r)) if r.as_slice() == b"slave");
        let mut replicas = Vec::new();
        if let (false, Some(Value::Array(list))) = (is_replica, role.get(2)) {
            for replica in list {
                if let Some(name) = replica_name(replica) {
                    if let Ok(addr) = resolve(&name) {
                        replicas.push((id, self.registry.id(&name, addr)));
                    }
                }
            }
        }
        Ok(Found {
            slots: Vec::new(),
            primaries: vec![id],
            replicas,
            server,
            is_doubtful: is_replica,
        })
    }

    fn cluster(
        &mut self,
        address: &str,
        reply: &Value,
        server: ServerInfo,
    ) -> Result<Found, String> {
        let Value::Array(ranges) = reply else {
            return Err(match reply {
                Value::Error(e) => text(e),
                _ => "gave no CLUSTER SLOTS".into(),
            });
        };
        let mut found = Found {
            slots: vec![NO_NODE; SLOTS],
            primaries: Vec::new(),
            replicas: Vec::new(),
            server,
            is_doubtful: false,
        };
        let mut ids: HashMap<String, u32> = HashMap::new();
        for range in ranges {
            let Value::Array(range) = range else { continue };
            let (Some(Value::Int(first)), Some(Value::Int(last)), Some(primary)) =
                (range.first(), range.get(1), range.get(2))
            else {
                continue;
            };
            let Some(id) = self.node_of(address, primary, &mut ids)? else {
                continue;
            };
            if !found.primaries.contains(&id) {
                found.primaries.push(id);
            }
            for replica in &range[3..] {
                // One whose name cannot be resolved is not read from; the rest goes on.
                if let Ok(Some(replica)) = self.node_of(address, replica, &mut ids) {
                    found.replicas.push((id, replica));
                }
            }
            let first = (*first).clamp(0, SLOTS as i64 - 1) as usize;
            let last = (*last).clamp(0, SLOTS as i64 - 1) as usize;
            for slot in found.slots.iter_mut().take(last + 1).skip(first) {
                *slot = id;
            }
        }
        if found.primaries.is_empty() {
            return Err("is a Cluster in which no node owns a slot yet".into());
        }
        Ok(found)
    }

    /// A node of `CLUSTER SLOTS`; `None` where it is not said how to reach it.
    fn node_of(
        &mut self,
        asked: &str,
        node: &Value,
        ids: &mut HashMap<String, u32>,
    ) -> Result<Option<u32>, String> {
        let Value::Array(node) = node else {
            return Ok(None);
        };
        let (host, port) = match (node.first(), node.get(1)) {
            (Some(Value::Bulk(h)), Some(Value::Int(p))) => (text(h), *p),
            // No host: the node we asked, as clients of a Cluster are told to read it.
            (Some(Value::Null), Some(Value::Int(p))) => (String::new(), *p),
            _ => return Ok(None),
        };
        let host = if host.is_empty() || host == "?" {
            host_of(asked).to_owned()
        } else {
            host
        };
        let name = join(&host, port);
        if let Some(&id) = ids.get(&name) {
            return Ok(Some(id));
        }
        let id = self.registry.id(&name, resolve(&name)?);
        ids.insert(name, id);
        Ok(Some(id))
    }
}

/// `host:port` of a replica, as its primary's `ROLE` lists it.
fn replica_name(replica: &Value) -> Option<String> {
    let Value::Array(replica) = replica else {
        return None;
    };
    match (replica.first(), replica.get(1)) {
        (Some(Value::Bulk(host)), Some(Value::Bulk(port))) if !host.is_empty() => {
            Some(join(&text(host), text(port).parse().ok()?))
        }
        _ => None,
    }
}

/// What a server says of itself.
pub(super) fn identify(conn: &mut Connection) -> Result<ServerInfo, String> {
    let mut info = ServerInfo::default();
    match conn.call(&[b"INFO", b"server"])? {
        Value::Bulk(b) | Value::Verbatim { text: b, .. } => {
            for line in text(&b).lines() {
                match line.trim_end().split_once(':') {
                    Some(("redis_version", v)) if info.version.is_empty() => {
                        info.version = v.into();
                        if info.name.is_empty() {
                            info.name = "redis".into();
                        }
                    }
                    Some(("valkey_version", v)) => {
                        info.name = "valkey".into();
                        info.version = v.into();
                    }
                    Some(("server_name", v)) => info.name = v.into(),
                    Some(("redis_mode" | "server_mode", "sentinel")) => {
                        return Err(
                            "is a Sentinel: give the URL as redis+sentinel://host:port/service"
                                .into(),
                        )
                    }
                    Some(("redis_mode" | "server_mode", v)) => info.is_cluster |= v == "cluster",
                    _ => {}
                }
            }
        }
        // An account without INFO: HELLO below may still tell.
        Value::Error(e) if e.starts_with(b"NOPERM") => {}
        Value::Error(e) => return Err(text(&e)),
        _ => return Err("does not answer like a Redis or Valkey server".into()),
    }
    if let Value::Array(list) = conn.call(&[b"COMMAND", b"INFO", b"hello", b"hpttl"])? {
        let has = |i: usize| matches!(list.get(i), Some(Value::Array(a)) if !a.is_empty());
        info.has_resp3 = has(0);
        info.has_field_expiry = has(1);
    } else {
        // Not allowed to ask: assume both, and let the connections find out.
        info.has_resp3 = true;
        info.has_field_expiry = true;
    }
    if info.version.is_empty() {
        if let Value::Array(_) = conn.call(&[b"CLUSTER", b"SLOTS"])? {
            info.is_cluster = true;
        }
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Says what it is told to, reply by reply: one connection for each list.
    fn server(connections: Vec<Vec<String>>) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for replies in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for reply in replies {
                    let _ = stream.read(&mut [0; 4096]).unwrap();
                    stream.write_all(reply.as_bytes()).unwrap();
                }
            }
        });
        address
    }

    #[test]
    fn a_look_that_fails_forgets_no_primary() {
        let info = "$41\r\nredis_version:7.4.0\r\nredis_mode:cluster\r\n\r\n".to_owned();
        let commands = "*2\r\n*-1\r\n*-1\r\n".to_owned();
        let node = "*2\r\n$9\r\n127.0.0.1\r\n:7001\r\n";
        let slots = format!("*1\r\n*3\r\n:0\r\n:16383\r\n{node}");
        let refusal = "-CLUSTERDOWN the cluster is down\r\n".to_owned();
        let address = server(vec![
            vec![info.clone(), commands.clone(), slots, "+OK\r\n".to_owned()],
            vec![info.clone(), commands.clone(), refusal.clone()],
            vec![info, commands, refusal],
        ]);
        let settings = Settings {
            upstream: crate::settings::UpstreamSettings {
                addresses: vec![address.clone()],
                ..Default::default()
            },
            ..Settings::default()
        };
        let mut watcher = Watcher::new(settings);
        let primaries = |watcher: &Watcher| {
            let nodes = watcher.registry.nodes.iter();
            let primaries = nodes.filter(|node| node.is_primary);
            primaries.map(|node| node.name.clone()).collect::<Vec<_>>()
        };
        watcher.look().unwrap();
        assert_eq!(primaries(&watcher), ["127.0.0.1:7001"]);
        let failure = watcher.look().unwrap_err();
        assert!(failure.contains("CLUSTERDOWN"), "{failure}");
        assert_eq!(primaries(&watcher), ["127.0.0.1:7001"]);
    }
}
