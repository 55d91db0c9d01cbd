//! What a proxy is told at start: every setting has a safe default, a unit in its name, and a
//! check at load that names the setting and what it accepts.

use std::time::Duration;

use keyheat_core::rule::{Level, Metric, Pattern, Plan, Rule, RuleSet};
use keyheat_core::window::WindowSettings;
use serde::Deserialize;

/// The settings of one proxy, as JSON (see `docs/settings.md`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where clients connect: `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Where `/healthz`, `/metrics` and `/api/hot` are served; none if absent.
    pub http: Option<String>,
    /// The server or Cluster behind the proxy.
    pub upstream: UpstreamSettings,
    /// Data-plane threads; 0 is one per core.
    pub shards: usize,
    /// The bound on staleness of a locally served value; 0 switches the local cache off.
    pub max_staleness_ms: u64,
    /// Whether hot keys are answered locally.
    pub local_cache: bool,
    /// Memory of the local cache in bytes, all shards together.
    pub cache_bytes: usize,
    /// The largest reply that is cached, in bytes.
    pub cache_value_max_bytes: usize,
    /// Whether accesses are counted; without, nothing is ever found hot.
    pub counting: bool,
    /// The rules; the documented defaults if absent.
    pub rules: Option<Vec<RuleSettings>>,
    /// Length of the sliding window in milliseconds.
    pub window_ms: u64,
    /// Most keys in the hot set.
    pub hot_keys_max: usize,
    /// Show keys as hashes in every API, metric and log line.
    pub redact_keys: bool,
    /// Bytes of requests and replies held for clients and upstreams, all shards together.
    pub buffers_max_bytes: usize,
    /// Most clients connected at once.
    pub clients_max: usize,
    /// How long connecting to an upstream may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// `error`, `warn`, `info` or `debug`.
    pub log: String,
}

/// The server or Cluster behind the proxy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamSettings {
    /// `auto` asks the server; `standalone` and `cluster` insist.
    pub mode: Mode,
    /// `host:port` of the server, or of some nodes of the Cluster.
    pub addresses: Vec<String>,
    /// The database that a client starts in.
    pub db: u32,
    /// ACL user of the proxy's own account.
    pub username: Option<String>,
    /// Password of the proxy's own account. Clients must then authenticate with the same.
    pub password: Option<String>,
}

/// What kind of deployment the upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Ask the server.
    Auto,
    /// One server.
    Standalone,
    /// A Cluster.
    Cluster,
}

/// One rule, as written by an operator.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// Its name, shown beside every key it finds.
    pub name: String,
    /// Which keys.
    #[serde(rename = "match")]
    pub pattern: MatchSettings,
    /// How hot: any level that is passed makes the key hot.
    pub levels: Vec<LevelSettings>,
    /// A hot key stays hot at least so long, in milliseconds.
    #[serde(default = "default_min_hot_ms")]
    pub min_hot_ms: u64,
    /// How long a key stays in the hot set after it fell below its exit levels, in milliseconds.
    #[serde(default = "default_cooling_ms")]
    pub cooling_ms: u64,
    /// The remedies: `local_cache`.
    #[serde(default)]
    pub plan: Vec<RemedySettings>,
}

/// Which keys a rule is about.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum MatchSettings {
    /// Every key (`true`).
    Any(bool),
    /// One key.
    Exact(String),
    /// Keys that begin so.
    Prefix(String),
    /// Keys that match a Redis glob.
    Glob(String),
}

/// A remedy a rule may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemedySettings {
    /// Answer reads from the proxy's memory.
    LocalCache,
}

/// What a level measures.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricSettings {
    /// Reads and writes.
    Ops,
    /// Reads.
    Reads,
    /// Writes.
    Writes,
    /// Bytes of requests and replies.
    Bytes,
}

/// One level of a rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelSettings {
    /// What is measured.
    pub metric: MetricSettings,
    /// At or above, the key becomes hot; 0 leaves it to the share.
    #[serde(default)]
    pub enter_per_s: f64,
    /// Below, it begins to cool; half of the enter level if absent.
    pub exit_per_s: Option<f64>,
    /// Share of its node's traffic, 0 to 1, that it must have as well.
    #[serde(default)]
    pub enter_share: f64,
    /// Below this share it begins to cool; half of the enter share if absent.
    pub exit_share: Option<f64>,
}

fn default_min_hot_ms() -> u64 {
    1_000
}

fn default_cooling_ms() -> u64 {
    3_000
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:6380".into(),
            http: None,
            upstream: UpstreamSettings::default(),
            shards: 0,
            max_staleness_ms: 100,
            local_cache: true,
            cache_bytes: 64 << 20,
            cache_value_max_bytes: 1 << 20,
            counting: true,
            rules: None,
            window_ms: 1_000,
            hot_keys_max: 1_000,
            redact_keys: false,
            buffers_max_bytes: 1 << 30,
            clients_max: 10_000,
            connect_timeout_ms: 1_000,
            log: "info".into(),
        }
    }
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            addresses: vec!["127.0.0.1:6379".into()],
            db: 0,
            username: None,
            password: None,
        }
    }
}

impl Settings {
    /// Reads and checks settings.
    ///
    /// # Errors
    /// A sentence that names the setting and what it accepts.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let settings: Self = serde_json::from_str(text).map_err(|e| format!("settings: {e}"))?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), String> {
        if self.upstream.addresses.is_empty() {
            return Err("upstream.addresses: name at least one host:port".into());
        }
        for (name, value) in [
            ("cache_bytes", self.cache_bytes),
            ("cache_value_max_bytes", self.cache_value_max_bytes),
            ("buffers_max_bytes", self.buffers_max_bytes),
            ("clients_max", self.clients_max),
            ("hot_keys_max", self.hot_keys_max),
        ] {
            if value == 0 {
                return Err(format!("{name}: must be above 0"));
            }
        }
        if self.shards > 1024 {
            return Err("shards: 0 (one per core) to 1024".into());
        }
        if !(100..=600_000).contains(&self.window_ms) {
            return Err("window_ms: 100 to 600000".into());
        }
        if self.max_staleness_ms != 0 && !(5..=600_000).contains(&self.max_staleness_ms) {
            return Err("max_staleness_ms: 0 (no local cache) or 5 to 600000".into());
        }
        if self.connect_timeout_ms == 0 {
            return Err("connect_timeout_ms: must be above 0".into());
        }
        if !["error", "warn", "info", "debug"].contains(&self.log.as_str()) {
            return Err("log: error, warn, info or debug".into());
        }
        self.rule_set().map(|_| ())
    }

    /// The rules as the detector takes them.
    ///
    /// # Errors
    /// A sentence that names the rule and what is wrong with it.
    pub fn rule_set(&self) -> Result<RuleSet, String> {
        let Some(rules) = &self.rules else {
            return Ok(RuleSet::default());
        };
        let rules = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
        RuleSet::new(rules).map_err(|e| format!("rules: {e}"))
    }

    /// How a shard counts.
    ///
    /// The table of a slice is as small as the rules allow, for a small table stays in the processor's
    /// cache: its error, at most `2 * 2.667 / 2^capacity_log2` of the accesses of the window when it
    /// overflows (`keyheat_core::window`), is kept below three tenths of the smallest share that any
    /// rule asks for. A level that asks for a plain rate could be passed by any share: it takes the
    /// largest table.
    ///
    /// # Errors
    /// As [`Settings::rule_set`].
    pub fn window(&self) -> Result<WindowSettings, String> {
        const SMALLEST: u8 = 11;
        let default = WindowSettings::default();
        let rules = self.rule_set()?;
        let shares = rules.rules().iter().flat_map(|r| &r.levels);
        let least = shares.fold(1.0_f64, |least, l| least.min(l.enter_share));
        let fits = |log2: u8| 2.0 * 2.667 / f64::from(1_u32 << log2) <= 0.3 * least;
        let capacity_log2 = (SMALLEST..default.capacity_log2).find(|&log2| fits(log2));
        Ok(WindowSettings {
            window: Duration::from_millis(self.window_ms),
            capacity_log2: capacity_log2.unwrap_or(default.capacity_log2),
            ..default
        })
    }

    /// The number of data-plane threads to start.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        match self.shards {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// Whether the settings allow local answers at all.
    #[must_use]
    pub fn may_cache(&self) -> bool {
        self.max_staleness_ms > 0 && self.counting
    }
}

fn rule(r: &RuleSettings) -> Result<Rule, String> {
    let pattern = match &r.pattern {
        MatchSettings::Any(true) => Pattern::Any,
        MatchSettings::Any(false) => {
            return Err(format!("rule {:?}: match.any accepts true only", r.name))
        }
        MatchSettings::Exact(s) => Pattern::Exact(s.as_bytes().into()),
        MatchSettings::Prefix(s) => Pattern::Prefix(s.as_bytes().into()),
        MatchSettings::Glob(s) => Pattern::Glob(s.as_bytes().into()),
    };
    let levels = r.levels.iter().map(|l| Level {
        metric: match l.metric {
            MetricSettings::Ops => Metric::Ops,
            MetricSettings::Reads => Metric::Reads,
            MetricSettings::Writes => Metric::Writes,
            MetricSettings::Bytes => Metric::Bytes,
        },
        enter_per_s: l.enter_per_s,
        exit_per_s: l.exit_per_s.unwrap_or(l.enter_per_s / 2.0),
        enter_share: l.enter_share,
        exit_share: l.exit_share.unwrap_or(l.enter_share / 2.0),
    });
    let mut plan = Plan::default();
    plan.local_cache = r.plan.contains(&RemedySettings::LocalCache);
    Ok(Rule {
        name: r.name.as_str().into(),
        pattern,
        levels: levels.collect(),
        min_hot: Duration::from_millis(r.min_hot_ms),
        cooling: Duration::from_millis(r.cooling_ms),
        plan,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(level: &str) -> u8 {
        let rules =
            format!(r#"{{"rules":[{{"name":"r","match":{{"any":true}},"levels":[{level}]}}]}}"#);
        Settings::from_json(&rules)
            .unwrap()
            .window()
            .unwrap()
            .capacity_log2
    }

    #[test]
    fn the_table_is_as_large_as_the_smallest_share_needs() {
        assert_eq!(Settings::default().window().unwrap().capacity_log2, 11);
        assert_eq!(capacity(r#"{"metric":"ops","enter_share":0.05}"#), 11);
        assert_eq!(capacity(r#"{"metric":"ops","enter_share":0.005}"#), 12);
        assert_eq!(capacity(r#"{"metric":"ops","enter_share":0.001}"#), 13);
        assert_eq!(capacity(r#"{"metric":"ops","enter_per_s":100}"#), 13);
    }

    #[test]
    fn bad_settings_are_refused_by_name() {
        for (text, name) in [
            (r#"{"max_staleness_ms":3}"#, "max_staleness_ms"),
            (r#"{"cache_bytes":0}"#, "cache_bytes"),
            (r#"{"nonsense":0}"#, "nonsense"),
            (r#"{"upstream":{"addresses":[]}}"#, "upstream.addresses"),
        ] {
            let error = Settings::from_json(text).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
