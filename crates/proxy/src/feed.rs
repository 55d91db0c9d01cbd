//! The hot set from outside: what is hot is told by whoever knows it, and the proxy does not count.
//!
//! One interface for all of them: a *feed* is the whole hot set of one source, and replaces what that source
//! said before. It holds until its time to live is over; a source that falls silent is forgotten then, and
//! its keys are served as any others (fail open). What a key gets is for the proxy's own rules to say, by the
//! key's name: a source says what is hot, never what is done. Today feeds come by `PUT /api/hot` and from the
//! program that started the proxy; the node agent and the configuration center will use the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyheat_core::hash::KeyHasher;
use keyheat_core::hotset::{Heat, HotKey, HotSet, HotState};
use keyheat_core::rule::RuleSet;
use keyheat_core::Nanos;
use keyheat_net::clock::MS;
use keyheat_resp::slot;
use serde::Deserialize;

use crate::topology::Topology;

/// Sources that are listened to.
const SOURCES_MAX: usize = 64;
const SOURCE_NAME_MAX: usize = 128;
const KEY_MAX: usize = 64 * 1024;

/// The hot set of one source.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feed {
    /// Who says so; its next feed replaces this one.
    pub source: String,
    /// How long it holds, in milliseconds.
    pub ttl_ms: u64,
    /// The keys, the hottest first.
    pub keys: Vec<FedKey>,
}

/// A key that is hot.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedKey {
    /// The key.
    pub key: String,
    /// Reads of it per second, if that is known.
    #[serde(default)]
    pub reads_per_s: Option<f64>,
    /// Writes of it per second, if that is known.
    #[serde(default)]
    pub writes_per_s: f64,
}

impl Feed {
    /// Reads and checks a feed.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn from_json(text: &str, keys_max: usize) -> Result<Self, String> {
        let feed: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if feed.source.is_empty() || feed.source.len() > SOURCE_NAME_MAX {
            return Err(format!("source: 1 to {SOURCE_NAME_MAX} bytes"));
        }
        if !(100..=600_000).contains(&feed.ttl_ms) {
            return Err("ttl_ms: 100 to 600000".into());
        }
        if feed.keys.len() > keys_max {
            return Err(format!("keys: {keys_max} at most (hot_keys_max)"));
        }
        let is_bad = |x: f64| !x.is_finite() || x < 0.0;
        for fed in &feed.keys {
            if fed.key.len() > KEY_MAX {
                return Err(format!("keys: {KEY_MAX} bytes at most each"));
            }
            if fed.reads_per_s.is_some_and(is_bad) || is_bad(fed.writes_per_s) {
                return Err("keys: reads_per_s and writes_per_s: 0 and more".into());
            }
        }
        Ok(feed)
    }
}

/// What all sources have said.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    by_source: BTreeMap<String, (Feed, Nanos)>,
    set: Arc<HotSet>,
}

impl Feeds {
    /// A source has spoken.
    ///
    /// # Errors
    /// There are too many sources.
    pub fn take(&mut self, feed: Feed, now: Nanos) -> Result<(), String> {
        self.by_source.retain(|_, (_, until)| *until > now);
        if self.by_source.len() >= SOURCES_MAX && !self.by_source.contains_key(&feed.source) {
            return Err(format!("{SOURCES_MAX} sources are listened to already"));
        }
        let until = now + feed.ttl_ms * MS;
        self.by_source.insert(feed.source.clone(), (feed, until));
        Ok(())
    }

    /// The hot set by all that still holds; the version moves where something is to be done otherwise.
    pub fn hot_set(
        &mut self,
        rules: &RuleSet,
        hasher: KeyHasher,
        topology: &Topology,
        keys_max: usize,
        now: Nanos,
    ) -> Arc<HotSet> {
        self.by_source.retain(|_, (_, until)| *until > now);
        let mut keys: Vec<Arc<HotKey>> = Vec::new();
        let mut known = hashbrown::HashSet::new();
        for fed in self.by_source.values().flat_map(|(feed, _)| &feed.keys) {
            let name = fed.key.as_bytes();
            let key_hash = hasher.hash(name);
            let Some(rule) = rules.rule_of(name) else {
                continue;
            };
            if keys.len() >= keys_max || !known.insert(key_hash) {
                continue;
            }
            let since = self.set.get(key_hash).map_or(now, |key| key.since);
            keys.push(Arc::new(HotKey {
                key: name.into(),
                key_hash,
                node: topology.owner(slot::slot(name)).unwrap_or(0),
                heat: Heat {
                    // Not told is as much as it takes.
                    reads_per_s: fed.reads_per_s.unwrap_or(f64::MAX),
                    writes_per_s: fed.writes_per_s,
                    ..Heat::default()
                },
                rule: Arc::from(&*rule.name),
                plan: rule.plan,
                since,
                state: HotState::Hot,
            }));
        }
        let mut set = HotSet::new(self.set.version, keys);
        if !set.is_same_verdict(&self.set) {
            set.version += 1;
        }
        self.set = Arc::new(set);
        Arc::clone(&self.set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(source: &str, keys: &[&str]) -> Feed {
        let keys: Vec<_> = keys
            .iter()
            .map(|key| serde_json::json!({ "key": key }))
            .collect();
        let text = serde_json::json!({ "source": source, "ttl_ms": 1_000, "keys": keys });
        Feed::from_json(&text.to_string(), 10).unwrap()
    }

    fn names(feeds: &mut Feeds, now: Nanos) -> (u64, Vec<String>) {
        let topology = Topology::default();
        let set = feeds.hot_set(&RuleSet::default(), KeyHasher::new(1), &topology, 3, now);
        let names = set
            .iter()
            .map(|key| String::from_utf8_lossy(&key.key).into_owned());
        (set.version, names.collect())
    }

    #[test]
    fn a_feed_replaces_that_of_its_source_and_ends_with_its_time() {
        let mut feeds = Feeds::default();
        feeds.take(feed("a", &["k", "l"]), 0).unwrap();
        feeds.take(feed("b", &["l", "m", "n"]), 500 * MS).unwrap();
        let (version, keys) = names(&mut feeds, 600 * MS);
        assert_eq!(keys, ["k", "l", "m"]); // three at most
        feeds.take(feed("b", &["m"]), 600 * MS).unwrap();
        assert_eq!(names(&mut feeds, 700 * MS), (version, keys));
        assert_eq!(names(&mut feeds, 1_100 * MS).1, ["m"]);
        let (last, none) = names(&mut feeds, 1_700 * MS);
        assert!(none.is_empty() && last > version);
    }

    #[test]
    fn a_feed_that_makes_no_sense_is_refused_by_name() {
        for (text, name) in [
            (r#"{"source":"","ttl_ms":1000,"keys":[]}"#, "source"),
            (r#"{"source":"a","ttl_ms":1,"keys":[]}"#, "ttl_ms"),
            (
                r#"{"source":"a","ttl_ms":1000,"keys":[{"key":"k"},{"key":"l"}]}"#,
                "keys",
            ),
            (
                r#"{"source":"a","ttl_ms":1000,"keys":[{"key":"k","writes_per_s":-1}]}"#,
                "writes",
            ),
            (r#"{"source":"a","ttl_ms":1000,"keys":[],"more":1}"#, "more"),
            ("nonsense", "expected"),
        ] {
            let error = Feed::from_json(text, 1).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
