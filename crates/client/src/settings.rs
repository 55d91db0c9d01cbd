//! What an engine is told at start: every setting has a safe default, a unit in its name, and a check
//! at load that names the setting and what it accepts.

use std::time::Duration;

use keyheat_core::cache::CacheSettings;
use keyheat_core::rule::spec::{self, RuleSettings};
use keyheat_core::rule::RuleSet;
use keyheat_core::window::WindowSettings;
use serde::Deserialize;

/// The settings of one engine, as JSON.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The bound on staleness of a locally served value; 0 switches the local cache off.
    pub max_staleness_ms: u64,
    /// Whether the bound may grow where so many clients track one node that their heartbeats would
    /// take more than their share of it.
    pub may_widen: bool,
    /// Memory of the local cache in bytes, what the language holds for the values included.
    pub cache_bytes: usize,
    /// The largest value that is cached, in bytes.
    pub cache_value_max_bytes: usize,
    /// Most replies in the local cache.
    pub cache_entries_max: usize,
    /// Whether every cacheable read is treated as one of a hot key, detection or not.
    pub every_key: bool,
    /// Whether a key that was set with `NX` is taken for a lock, and so never cached nor coalesced.
    pub nx_is_lock: bool,
    /// The rules; the documented defaults if absent.
    pub rules: Option<Vec<RuleSettings>>,
    /// Length of the sliding window in milliseconds.
    pub window_ms: u64,
    /// Most keys in the hot set.
    pub hot_keys_max: usize,
    /// How long opening a tracking connection may take, in milliseconds.
    pub connect_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_staleness_ms: 100,
            may_widen: true,
            cache_bytes: 64 << 20,
            cache_value_max_bytes: 1 << 20,
            cache_entries_max: 65_536,
            every_key: false,
            nx_is_lock: true,
            rules: None,
            window_ms: 1_000,
            hot_keys_max: 1_000,
            connect_timeout_ms: 2_000,
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
        for (name, value) in [
            ("cache_bytes", self.cache_bytes),
            ("cache_value_max_bytes", self.cache_value_max_bytes),
            ("cache_entries_max", self.cache_entries_max),
            ("hot_keys_max", self.hot_keys_max),
        ] {
            if value == 0 {
                return Err(format!("{name}: must be above 0"));
            }
        }
        if !(100..=600_000).contains(&self.window_ms) {
            return Err("window_ms: 100 to 600000".into());
        }
        if self.max_staleness_ms != 0 && !(5..=600_000).contains(&self.max_staleness_ms) {
            return Err("max_staleness_ms: 0 (no local cache) or 5 to 600000".into());
        }
        if !(1..=600_000).contains(&self.connect_timeout_ms) {
            return Err("connect_timeout_ms: 1 to 600000".into());
        }
        self.rule_set().map(|_| ())
    }

    /// The rules as the detector takes them.
    ///
    /// # Errors
    /// A sentence that names the rule and what is wrong with it.
    pub fn rule_set(&self) -> Result<RuleSet, String> {
        match &self.rules {
            Some(rules) => spec::rule_set(rules),
            None => Ok(RuleSet::default()),
        }
    }

    pub(crate) fn window(&self) -> Result<WindowSettings, String> {
        Ok(WindowSettings::for_rules(
            Duration::from_millis(self.window_ms),
            &self.rule_set()?,
        ))
    }

    pub(crate) fn cache(&self) -> CacheSettings {
        CacheSettings {
            max_bytes: self.cache_bytes,
            value_max_bytes: self.cache_value_max_bytes,
            max_staleness: Duration::from_millis(self.max_staleness_ms),
            max_entries: self.cache_entries_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_are_refused_by_name() {
        for (text, name) in [
            (r#"{"max_staleness_ms":3}"#, "max_staleness_ms"),
            (r#"{"cache_bytes":0}"#, "cache_bytes"),
            (r#"{"nonsense":0}"#, "nonsense"),
            (r#"{"window_ms":1}"#, "window_ms"),
        ] {
            let error = Settings::from_json(text).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        assert!(Settings::from_json("{}").is_ok());
    }
}
