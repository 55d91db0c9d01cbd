//! Rules: which keys, how hot, what to do.
//!
//! A rule names keys by a [`Pattern`], says when one is hot by [`Level`]s, and what then happens by a
//! [`Plan`]. The first rule whose pattern matches a key is the key's rule; no other is asked.
//!
//! A level has two conditions, and both must hold: an absolute rate and a share of the traffic of the
//! key's node. The rate alone is wrong on a quiet node, where a few requests are noise; a share alone
//! is wrong there too, and a rate alone misses what is hot for a small node. Each has an *enter* and
//! an *exit* figure: a key enters at the first and stays while it is at or above the second, so that
//! one near the threshold does not come and go. A key is hot when *any* of its rule's levels passes.

mod glob;
pub mod spec;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Which keys a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// This key alone.
    Exact(Box<[u8]>),
    /// Keys that begin so.
    Prefix(Box<[u8]>),
    /// Keys that match as in the server's `KEYS`: `*`, `?`, `[a-z]`, `[^x]`, `\`.
    Glob(Box<[u8]>),
    /// Every key.
    Any,
}

impl Pattern {
    /// Whether `key` is one of the pattern's keys.
    pub fn is_match(&self, key: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => **exact == *key,
            Self::Prefix(prefix) => key.starts_with(prefix),
            Self::Glob(pattern) => glob::is_match(pattern, key),
            Self::Any => true,
        }
    }
}

/// What a level measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Reads and writes.
    Ops,
    /// Reads.
    Reads,
    /// Writes.
    Writes,
    /// Bytes moved, either way.
    Bytes,
}

/// How hot is hot, in one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// What is measured.
    pub metric: Metric,
    /// A key becomes hot at this rate or above…
    pub enter_per_s: f64,
    /// …and stays hot at this rate or above.
    pub exit_per_s: f64,
    /// A key becomes hot with this share of its node's traffic in the metric or above; 0: any share.
    pub enter_share: f64,
    /// The share with which it stays hot.
    pub exit_share: f64,
}

impl Level {
    /// A level at which keys enter, left at half of it.
    pub fn new(metric: Metric, enter_per_s: f64, enter_share: f64) -> Self {
        Self {
            metric,
            enter_per_s,
            exit_per_s: enter_per_s / 2.0,
            enter_share,
            exit_share: enter_share / 2.0,
        }
    }

    /// Whether a key with this rate and share becomes hot.
    pub fn is_entered(&self, per_s: f64, share: f64) -> bool {
        per_s >= self.enter_per_s && share >= self.enter_share
    }

    /// Whether a hot key with this rate and share stays hot.
    pub fn is_held(&self, per_s: f64, share: f64) -> bool {
        per_s >= self.exit_per_s && share >= self.exit_share
    }

    fn validate(&self) -> Result<(), &'static str> {
        let numbers = [
            self.enter_per_s,
            self.exit_per_s,
            self.enter_share,
            self.exit_share,
        ];
        if numbers
            .iter()
            .any(|number| !number.is_finite() || *number < 0.0)
        {
            return Err("rates and shares are finite numbers, zero or more");
        }
        if self.exit_per_s > self.enter_per_s || self.exit_share > self.enter_share {
            return Err("an exit figure is at most its enter figure");
        }
        if self.enter_share > 1.0 {
            return Err("a share is at most 1");
        }
        if self.enter_per_s == 0.0 && self.enter_share == 0.0 {
            return Err("a level asks for a rate, a share or both; with neither every key is hot");
        }
        Ok(())
    }
}

/// One thing that can be done about a hot key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Remedy {
    /// Serve reads from the local cache.
    LocalCache,
    /// Let callers share a read that is under way.
    Coalesce,
    /// Keep copies on the other primaries of a Cluster, and spread the reads over them.
    Copies,
    /// Read from replicas that are fresh enough.
    ReplicaReads,
}

/// The remedies switched on for a hot key. The default switches nothing on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Plan {
    /// Reads are served from the local cache, within its staleness bound.
    pub local_cache: bool,
    /// Callers share a read that is under way. (A proxy does so for what it caches, asked or not.)
    pub coalesce: bool,
    /// Reads that go to the server are spread over copies.
    pub copies: bool,
    /// Reads that go to the server go to replicas.
    pub replica_reads: bool,
}

impl Plan {
    /// A plan of these remedies.
    pub fn of(remedies: &[Remedy]) -> Self {
        let mut plan = Self::default();
        for remedy in remedies {
            match remedy {
                Remedy::LocalCache => plan.local_cache = true,
                Remedy::Coalesce => plan.coalesce = true,
                Remedy::Copies => plan.copies = true,
                Remedy::ReplicaReads => plan.replica_reads = true,
            }
        }
        plan
    }
}

/// Which keys, how hot, what to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// What the rule is called in logs, metrics and the hot set.
    pub name: Arc<str>,
    /// Which keys it is about.
    pub pattern: Pattern,
    /// A key is hot when any of these is passed.
    pub levels: Vec<Level>,
    /// A key that became hot is in the hot set at least this long.
    pub min_hot: Duration,
    /// A key below its exit level stays in the hot set this much longer.
    pub cooling: Duration,
    /// What is done while a key is in the hot set.
    pub plan: Plan,
}

/// What is wrong with a rule, or with a set of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleError {
    /// The rule's name, or its position where the name is the trouble.
    pub rule: String,
    /// What would be accepted.
    pub reason: &'static str,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule `{}`: {}", self.rule, self.reason)
    }
}

impl std::error::Error for RuleError {}

/// Rules in the order in which they are asked.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleSet {
    rules: Arc<[Rule]>,
}

impl Default for RuleSet {
    /// One rule for every key: at least 100 operations a second and 1 % of its node's operations, or
    /// at least 1 MiB a second and 5 % of its node's bytes; left at half of that; at least one second,
    /// and three seconds of cooling; then cached locally.
    ///
    /// The floors are there because a hundred counts scatter by a tenth by chance alone: below them a
    /// share says little.
    fn default() -> Self {
        const MIB: f64 = 1024.0 * 1024.0;
        let rule = Rule {
            name: Arc::from("default"),
            pattern: Pattern::Any,
            levels: vec![
                Level::new(Metric::Ops, 100.0, 0.01),
                Level::new(Metric::Bytes, MIB, 0.05),
            ],
            min_hot: Duration::from_secs(1),
            cooling: Duration::from_secs(3),
            plan: Plan::of(&[Remedy::LocalCache, Remedy::Coalesce]),
        };
        Self {
            rules: Arc::from([rule]),
        }
    }
}

impl RuleSet {
    /// A set of these rules, asked in this order.
    ///
    /// # Errors
    /// The first rule that cannot be meant: no levels, numbers that make no sense, a name that is
    /// empty or taken. An empty set is accepted: nothing is ever hot.
    pub fn new(rules: Vec<Rule>) -> Result<Self, RuleError> {
        for (index, rule) in rules.iter().enumerate() {
            let refuse = |reason| {
                Err(RuleError {
                    rule: rule.name.to_string(),
                    reason,
                })
            };
            if rule.name.is_empty() {
                return Err(RuleError {
                    rule: format!("#{}", index + 1),
                    reason: "a rule has a name",
                });
            }
            if rules[..index]
                .iter()
                .any(|earlier| earlier.name == rule.name)
            {
                return refuse("the name is taken by an earlier rule");
            }
            if rule.levels.is_empty() {
                return refuse("a rule has at least one level");
            }
            if let Some(reason) = rule.levels.iter().find_map(|level| level.validate().err()) {
                return refuse(reason);
            }
        }
        Ok(Self {
            rules: rules.into(),
        })
    }

    /// The rule of a key: the first whose pattern matches.
    pub fn rule_of(&self, key: &[u8]) -> Option<&Rule> {
        self.index_of(key).map(|index| &self.rules[index])
    }

    /// The rules, in the order in which they are asked.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub(crate) fn index_of(&self, key: &[u8]) -> Option<usize> {
        self.rules
            .iter()
            .position(|rule| rule.pattern.is_match(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, level: Level) -> Rule {
        Rule {
            name: name.into(),
            pattern: Pattern::Any,
            levels: vec![level],
            min_hot: Duration::ZERO,
            cooling: Duration::ZERO,
            plan: Plan::default(),
        }
    }

    fn ops() -> Level {
        Level::new(Metric::Ops, 10.0, 0.1)
    }

    #[test]
    fn the_default_rules_are_valid() {
        assert!(RuleSet::new(RuleSet::default().rules().to_vec()).is_ok());
    }

    #[test]
    fn the_first_matching_rule_is_the_keys_rule() {
        let mut first = rule("first", ops());
        first.pattern = Pattern::Prefix(b"item:"[..].into());
        let rules = RuleSet::new(vec![first, rule("second", ops())]).unwrap();
        assert_eq!(&*rules.rule_of(b"item:1").unwrap().name, "first");
        assert_eq!(&*rules.rule_of(b"user:1").unwrap().name, "second");
    }

    #[test]
    fn a_key_no_rule_matches_has_none() {
        let mut exact = rule("exact", ops());
        exact.pattern = Pattern::Exact(b"a"[..].into());
        assert!(RuleSet::new(vec![exact]).unwrap().rule_of(b"b").is_none());
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        let wrong = [
            Level {
                exit_per_s: 11.0,
                ..ops()
            },
            Level {
                exit_share: 0.2,
                ..ops()
            },
            Level {
                enter_share: 1.1,
                ..ops()
            },
            Level {
                enter_per_s: f64::NAN,
                ..ops()
            },
            Level {
                enter_per_s: f64::INFINITY,
                ..ops()
            },
            Level {
                exit_per_s: -1.0,
                ..ops()
            },
            Level::new(Metric::Ops, 0.0, 0.0),
        ];
        for level in wrong {
            assert!(
                RuleSet::new(vec![rule("wrong", level)]).is_err(),
                "{level:?}"
            );
        }
        assert!(RuleSet::new(vec![rule("", ops())]).is_err());
        assert!(RuleSet::new(vec![rule("twice", ops()), rule("twice", ops())]).is_err());
        assert!(RuleSet::new(vec![Rule {
            levels: vec![],
            ..rule("no level", ops())
        }])
        .is_err());
    }
}
