//! Who is upstream: which nodes there are, which slots they own, and what they can do.
//!
//! Asked on connections of its own, in a thread of its own, with a time limit on every step, so
//! that a server that hangs delays nothing but the next look. A shard that meets `MOVED`, a lost
//! connection or a heartbeat that is refused asks for a look at once; looks are rate-limited.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use keyheat_resp::reply::{parse, Value};
use keyheat_resp::{encode, Limits};

use crate::settings::{Mode, Settings};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// All nodes ever seen, by id.
    pub nodes: Vec<Node>,
    /// Owner of each slot; empty for a standalone server.
    pub slots: Vec<u32>,
    /// Ids of the primaries, in order of name.
    pub primaries: Vec<u32>,
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

/// Looks at the upstream again and again.
#[derive(Debug)]
pub struct Watcher {
    settings: Settings,
    registry: Registry,
}

impl Watcher {
    /// A watcher that has not looked yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            registry: Registry::default(),
        }
    }

    /// Looks once, at the nodes known last and then at the configured addresses.
    ///
    /// # Errors
    /// What went wrong at each address, in one line.
    pub fn look(&mut self) -> Result<Topology, String> {
        let mut failures = Vec::new();
        let known: Vec<String> = self
            .registry
            .nodes
            .iter()
            .filter(|n| n.is_primary)
            .map(|n| n.name.clone())
            .collect();
        let seeds = self.settings.upstream.addresses.clone();
        let mut asked = std::collections::HashSet::new();
        for address in known.into_iter().chain(seeds) {
            if !asked.insert(address.clone()) {
                continue;
            }
            match self.look_at(&address) {
                Ok(topology) => return Ok(topology),
                Err(e) => failures.push(format!("{address}: {e}")),
            }
        }
        Err(failures.join("; "))
    }

    fn look_at(&mut self, address: &str) -> Result<Topology, String> {
        let addr = resolve(address)?;
        let timeout = Duration::from_millis(self.settings.connect_timeout_ms);
        let mut conn = Connection::open(addr, timeout)?;
        let server = self.identify(&mut conn)?;
        let wants_cluster = match self.settings.upstream.mode {
            Mode::Auto => server.is_cluster,
            Mode::Standalone => false,
            Mode::Cluster if !server.is_cluster => {
                return Err("is not a Cluster, and upstream.mode says cluster".into())
            }
            Mode::Cluster => true,
        };
        if !wants_cluster {
            let id = self.registry.id(address, addr);
            self.registry.set_primaries(&[id]);
            return Ok(Topology {
                nodes: self.registry.nodes.clone(),
                slots: Vec::new(),
                primaries: vec![id],
                server: ServerInfo {
                    is_cluster: false,
                    ..server
                },
            });
        }
        let reply = conn.call(&[b"CLUSTER", b"SLOTS"])?;
        self.cluster(address, addr, &reply, server)
    }

    fn identify(&self, conn: &mut Connection) -> Result<ServerInfo, String> {
        let up = &self.settings.upstream;
        if let Some(password) = &up.password {
            let user = up.username.as_deref().unwrap_or("default");
            let auth: Vec<&[u8]> = if up.username.is_some() {
                vec![b"AUTH", user.as_bytes(), password.as_bytes()]
            } else {
                vec![b"AUTH", password.as_bytes()]
            };
            if let Value::Error(e) = conn.call(&auth)? {
                return Err(format!("refused AUTH: {}", text(&e)));
            }
        }
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
                        Some(("redis_mode" | "server_mode", v)) => {
                            info.is_cluster |= v == "cluster"
                        }
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

    fn cluster(
        &mut self,
        address: &str,
        addr: SocketAddr,
        reply: &Value,
        server: ServerInfo,
    ) -> Result<Topology, String> {
        let Value::Array(ranges) = reply else {
            return Err(match reply {
                Value::Error(e) => text(e),
                _ => "gave no CLUSTER SLOTS".into(),
            });
        };
        let mut slots = vec![NO_NODE; SLOTS];
        let mut primaries = Vec::new();
        let mut resolved: HashMap<String, u32> = HashMap::new();
        for range in ranges {
            let Value::Array(range) = range else { continue };
            let (Some(Value::Int(first)), Some(Value::Int(last)), Some(Value::Array(primary))) =
                (range.first(), range.get(1), range.get(2))
            else {
                continue;
            };
            let (host, port) = match (primary.first(), primary.get(1)) {
                (Some(Value::Bulk(h)), Some(Value::Int(p))) => (text(h), *p),
                // No host: the node we asked, as clients of a Cluster are told to read it.
                (Some(Value::Null), Some(Value::Int(p))) => (String::new(), *p),
                _ => continue,
            };
            let host = if host.is_empty() || host == "?" {
                host_of(address).to_owned()
            } else {
                host
            };
            let name = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            let id = match resolved.get(&name) {
                Some(&id) => id,
                None => {
                    let node_addr = if name == address {
                        addr
                    } else {
                        resolve(&name)?
                    };
                    let id = self.registry.id(&name, node_addr);
                    resolved.insert(name, id);
                    primaries.push(id);
                    id
                }
            };
            let first = (*first).clamp(0, SLOTS as i64 - 1) as usize;
            let last = (*last).clamp(0, SLOTS as i64 - 1) as usize;
            for slot in slots.iter_mut().take(last + 1).skip(first) {
                *slot = id;
            }
        }
        if primaries.is_empty() {
            return Err("is a Cluster in which no node owns a slot yet".into());
        }
        self.registry.set_primaries(&primaries);
        primaries.sort_by(|a, b| {
            let name = |id: &u32| self.registry.nodes[*id as usize].name.as_str();
            name(a).cmp(name(b))
        });
        Ok(Topology {
            nodes: self.registry.nodes.clone(),
            slots,
            primaries,
            server,
        })
    }
}

fn host_of(address: &str) -> &str {
    address
        .rsplit_once(':')
        .map_or(address, |(h, _)| h)
        .trim_start_matches('[')
        .trim_end_matches(']')
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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

/// A blocking connection with a limit on every step, for the little that control asks.
struct Connection {
    stream: TcpStream,
    buf: Vec<u8>,
    timeout: Duration,
}

impl Connection {
    fn open(addr: SocketAddr, timeout: Duration) -> Result<Self, String> {
        let stream = TcpStream::connect_timeout(&addr, timeout).map_err(|e| e.to_string())?;
        let set = |r: std::io::Result<()>| r.map_err(|e| e.to_string());
        set(stream.set_read_timeout(Some(timeout)))?;
        set(stream.set_write_timeout(Some(timeout)))?;
        set(stream.set_nodelay(true))?;
        Ok(Self {
            stream,
            buf: Vec::new(),
            timeout,
        })
    }

    fn call(&mut self, args: &[&[u8]]) -> Result<Value, String> {
        let mut out = Vec::new();
        encode::command(&mut out, args);
        self.stream.write_all(&out).map_err(|e| e.to_string())?;
        let limits = Limits::default();
        let until = Instant::now() + self.timeout;
        let mut chunk = [0u8; 16 * 1024];
        loop {
            match parse(&self.buf, &limits) {
                Ok(Some((value, used))) => {
                    self.buf.drain(..used);
                    return Ok(value);
                }
                Ok(None) => {}
                Err(_) => return Err("does not answer like a Redis or Valkey server".into()),
            }
            if Instant::now() >= until || self.buf.len() > 16 << 20 {
                return Err("did not answer in time".into());
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("closed the connection".into()),
                Ok(n) => self.buf.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err("did not answer in time".into())
                }
                Err(e) => return Err(e.to_string()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
            vec![info.clone(), commands.clone(), slots],
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
        watcher.look_at(&address).unwrap();
        assert_eq!(primaries(&watcher), ["127.0.0.1:7001"]);
        let failure = watcher.look_at(&address).unwrap_err();
        assert!(failure.contains("CLUSTERDOWN"), "{failure}");
        assert_eq!(primaries(&watcher), ["127.0.0.1:7001"]);
    }
}
