//! Who the primary is, by the Sentinels.
//!
//! All Sentinels are asked at once, and the one with the newest configuration is believed, if the server that
//! it names says of itself that it is a primary. Right after a failover either may be behind: a Sentinel that
//! was cut off names the old primary, and the new one is named before it has been promoted. Such a look
//! fails, and is repeated.
//!
//! The Sentinel that leads a failover says which replica it promotes (the flag `promoted`), and names it as the
//! primary once it has seen it be one, up to a second later: it asks once a second. The proxy asks that replica
//! itself, and goes by its answer as the Sentinel will. Should that Sentinel be silent before it has told the
//! others, the replica is kept to for a while: those others still name the old primary, and writes must not go
//! to and fro.

use std::time::{Duration, Instant};

use keyheat_net::tls;
use keyheat_resp::reply::Value;

use super::connection::Connection;
use super::look::{identify, Found, Watcher};
use super::{join, resolve, text};
use crate::settings::UpstreamSettings;

/// Who answers later than this is left out: a Sentinel or a primary that hangs must not hold up a failover.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// How long a promoted replica is kept to that no Sentinel speaks of.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// A replica that has become the primary, before its Sentinels say so.
#[derive(Debug)]
pub(super) struct Heir {
    name: String,
    /// The configuration that it was promoted from.
    epoch: u64,
    since: Instant,
}

/// What one Sentinel says.
#[derive(Debug, Clone)]
struct Word {
    epoch: u64,
    primary: String,
    replicas: Vec<String>,
    /// The replica that this Sentinel is making the primary.
    promoted: Option<String>,
}

impl Watcher {
    pub(super) fn look_at_sentinels(&mut self) -> Result<Found, String> {
        let (up, tls) = (&self.settings.upstream, self.tls.as_deref());
        let timeout = Duration::from_millis(self.settings.connect_timeout_ms).min(ANSWER_MAX);
        let said: Vec<(String, Result<Word, String>)> = std::thread::scope(|scope| {
            let asked: Vec<_> = up
                .addresses
                .iter()
                .map(|address| (address, scope.spawn(move || ask(address, up, timeout, tls))))
                .collect();
            asked
                .into_iter()
                .map(|(address, asked)| {
                    let word = asked.join().unwrap_or_else(|_| Err("died of a bug".into()));
                    (address.clone(), word)
                })
                .collect()
        });
        let words = said.iter().filter_map(|(_, word)| word.as_ref().ok());
        let Some(newest) = words.max_by_key(|word| word.epoch).cloned() else {
            let failures = said.iter().filter_map(|(address, word)| {
                let why = word.as_ref().err()?;
                Some(format!("Sentinel {address}: {why}"))
            });
            return Err(failures.collect::<Vec<_>>().join("; "));
        };
        let words = said.iter().filter_map(|(_, word)| word.as_ref().ok());
        let leading = words.filter(|word| word.epoch == newest.epoch);
        let mut heirs: Vec<String> = leading.filter_map(|word| word.promoted.clone()).collect();
        let kept = self.heir.take().filter(|heir| {
            heir.epoch >= newest.epoch && heir.since.elapsed() < KEPT_FOR && heirs.is_empty()
        });
        heirs.extend(kept.as_ref().map(|heir| heir.name.clone()));
        for name in heirs {
            if let Ok(found) = self.look_at_primary(&name, &newest) {
                self.heir = kept.or(Some(Heir {
                    name,
                    epoch: newest.epoch,
                    since: Instant::now(),
                }));
                return Ok(found);
            }
        }
        let primary = &newest.primary;
        let found = self.look_at_primary(primary, &newest);
        found.map_err(|why| format!("{primary}, the primary by the Sentinels: {why}"))
    }

    fn look_at_primary(&mut self, primary: &str, word: &Word) -> Result<Found, String> {
        let mut conn = self.connect(primary, ANSWER_MAX)?;
        let server = identify(&mut conn)?;
        let mut found = self.one_server(primary, &mut conn, server)?;
        if found.is_doubtful {
            return Err("says that it is a replica".into());
        }
        // By the Sentinels: they know which are down, and how replicas want to be called.
        let id = found.primaries[0];
        found.replicas.clear();
        for name in word.replicas.iter().filter(|name| *name != primary) {
            if let Ok(addr) = resolve(name) {
                found.replicas.push((id, self.registry.id(name, addr)));
            }
        }
        Ok(found)
    }
}

fn ask(
    address: &str,
    up: &UpstreamSettings,
    timeout: Duration,
    tls: Option<&tls::Client>,
) -> Result<Word, String> {
    let mut conn = Connection::open(address, timeout, tls)?;
    conn.authenticate(
        up.sentinel_username.as_deref(),
        up.sentinel_password.as_deref(),
    )?;
    let service = up.sentinel_service.as_deref().unwrap_or_default();
    let primary = match conn.call(&[b"SENTINEL", b"MASTER", service.as_bytes()])? {
        Value::Error(e) if e.starts_with(b"ERR No such master") => {
            return Err(format!("knows no service {service:?}"))
        }
        Value::Error(e) => return Err(text(&e)),
        reply => Fields::of(&reply).ok_or("does not answer like a Sentinel")?,
    };
    // In a failover this is the new primary before the description above is.
    let address = match conn.call(&[b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service.as_bytes()])? {
        Value::Array(address) => match &address[..] {
            [Value::Bulk(host), Value::Bulk(port)] => {
                text(port).parse().ok().map(|port| join(&text(host), port))
            }
            _ => None,
        },
        _ => None,
    };
    let replicas = match conn.call(&[b"SENTINEL", b"REPLICAS", service.as_bytes()])? {
        Value::Array(list) => list.iter().filter_map(Fields::of).collect(),
        _ => Vec::new(),
    };
    Ok(Word {
        epoch: primary
            .get("config-epoch")
            .and_then(|e| e.parse().ok())
            .unwrap_or(0),
        primary: address.ok_or("does not say where the primary is")?,
        promoted: replicas
            .iter()
            .find(|fields| fields.is("promoted"))
            .and_then(Fields::address),
        replicas: replicas
            .iter()
            .filter(|fields| !fields.is_down())
            .filter_map(Fields::address)
            .collect(),
    })
}

/// Names and values in turn, as Sentinels describe an instance.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn of(value: &Value) -> Option<Self> {
        let Value::Array(items) = value else {
            return None;
        };
        let word = |v: &Value| match v {
            Value::Bulk(b) => text(b),
            _ => String::new(),
        };
        let pairs = items.chunks_exact(2).map(|p| (word(&p[0]), word(&p[1])));
        Some(Self(pairs.collect()))
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    fn address(&self) -> Option<String> {
        let host = self.get("ip").filter(|host| !host.is_empty())?;
        Some(join(host, self.get("port")?.parse().ok()?))
    }

    fn is(&self, flag: &str) -> bool {
        self.get("flags")
            .is_some_and(|flags| flags.split(',').any(|f| f == flag))
    }

    fn is_down(&self) -> bool {
        self.get("flags").is_none()
            || ["s_down", "o_down", "disconnected"]
                .iter()
                .any(|flag| self.is(flag))
    }
}
