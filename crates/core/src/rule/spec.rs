//! Rules as an operator writes them, in JSON or TOML.

use std::time::Duration;

use serde::Deserialize;

use super::{Level, Metric, Pattern, Plan, Remedy, Rule, RuleSet};

/// One rule, as written by an operator.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
    /// The remedies: `local_cache`, `coalesce`, `copies`, `replica_reads`.
    #[serde(default)]
    pub plan: Vec<RemedySettings>,
    /// Reads per second of each hot key that a proxy lets through upstream; 0 for all.
    #[serde(default)]
    pub reads_per_s_max: u32,
    /// Reads of each hot key that a proxy has on their way at once; 0 for any number.
    #[serde(default)]
    pub concurrency_max: u32,
}

/// Which keys a rule is about.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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

impl MatchSettings {
    /// As keys are held against it.
    ///
    /// # Errors
    /// A sentence that names the key that is wrong.
    pub fn pattern(&self) -> Result<Pattern, String> {
        Ok(match self {
            Self::Any(true) => Pattern::Any,
            Self::Any(false) => return Err("match.any accepts true only".into()),
            Self::Exact(s) => Pattern::Exact(s.as_bytes().into()),
            Self::Prefix(s) => Pattern::Prefix(s.as_bytes().into()),
            Self::Glob(s) => Pattern::Glob(s.as_bytes().into()),
        })
    }
}

/// A remedy a rule may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemedySettings {
    /// Answer reads from memory.
    LocalCache,
    /// Let callers share a read that is under way.
    Coalesce,
    /// Spread reads over copies on the other primaries of a Cluster.
    Copies,
    /// Read from replicas.
    ReplicaReads,
}

/// What a level measures.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Deserialize)]
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

/// The rules as the detector takes them.
///
/// # Errors
/// A sentence that names the rule and what is wrong with it.
pub fn rule_set(rules: &[RuleSettings]) -> Result<RuleSet, String> {
    let rules = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    RuleSet::new(rules).map_err(|e| format!("rules: {e}"))
}

fn rule(r: &RuleSettings) -> Result<Rule, String> {
    let pattern = r.pattern.pattern();
    let pattern = pattern.map_err(|why| format!("rule {:?}: {why}", r.name))?;
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
    let remedies = r.plan.iter().map(|remedy| match remedy {
        RemedySettings::LocalCache => Remedy::LocalCache,
        RemedySettings::Coalesce => Remedy::Coalesce,
        RemedySettings::Copies => Remedy::Copies,
        RemedySettings::ReplicaReads => Remedy::ReplicaReads,
    });
    let plan = Plan::of(&remedies.collect::<Vec<_>>());
    Ok(Rule {
        name: r.name.as_str().into(),
        pattern,
        levels: levels.collect(),
        min_hot: Duration::from_millis(r.min_hot_ms),
        cooling: Duration::from_millis(r.cooling_ms),
        plan,
    })
}
