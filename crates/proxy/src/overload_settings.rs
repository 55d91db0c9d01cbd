//! Settings of what is done about nodes that fail or are crowded, checked and as the shards take them.

use keyheat_core::overload::breaker::BreakerSettings;
use keyheat_core::Nanos;
use keyheat_net::clock::{MS, SEC};

use crate::hotview::ReadLimits;
use crate::settings::Settings;

/// What a shard goes by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overload {
    /// Whether requests are counted and turned back; without, only failed connections make a pause.
    pub has_breaker: bool,
    pub breaker: BreakerSettings,
    pub slow: Nanos,
    pub silence: Nanos,
    /// Whether what is on its way to a node is limited.
    pub has_congestion: bool,
    /// The least and the most that is on its way at once.
    pub limits: (u32, u32),
    queue_max: usize,
    pub queue_timeout: Nanos,
}

impl Overload {
    pub fn of(s: &Settings) -> Self {
        let breaker = BreakerSettings {
            window: s.breaker_window_ms * MS,
            calls_min: s.breaker_calls_min,
            error_rate: s.breaker_error_rate,
            slow_rate: s.breaker_slow_rate,
            open: s.breaker_open_ms * MS,
            open_max: s.breaker_open_max_ms * MS,
            probes_at_once: s.breaker_probes_at_once,
            probes_needed: s.breaker_probes_needed,
            // One that takes so long has found out.
            probe_timeout: s.breaker_silence_ms * MS,
            recovery: if s.breaker {
                s.breaker_recovery_ms * MS
            } else {
                0
            },
        };
        Self {
            has_breaker: s.breaker,
            breaker,
            slow: s.breaker_slow_ms * MS,
            silence: s.breaker_silence_ms * MS,
            has_congestion: s.congestion,
            limits: (s.congestion_limit_min, s.congestion_limit_max),
            queue_max: s.congestion_queue_max as usize,
            queue_timeout: s.congestion_queue_timeout_ms * MS,
        }
    }

    /// How many may wait in line: all that would be answered in time.
    ///
    /// Args: `rate` answers per second of late.
    pub fn line(&self, limit: usize, rate: f64) -> usize {
        if limit >= self.limits.1 as usize {
            // It is not crowded; a burst from idleness must not be judged by what was before.
            return self.queue_max;
        }
        let in_time = rate * self.queue_timeout as f64 / SEC as f64;
        self.queue_max.min((in_time as usize).max(limit))
    }
}

impl Settings {
    /// Limits of the rules that have any.
    pub(crate) fn read_limits(&self) -> Vec<ReadLimits> {
        let rules = self.rules.iter().flatten();
        let limited = rules.filter(|rule| rule.reads_per_s_max + rule.concurrency_max > 0);
        limited
            .map(|rule| ReadLimits {
                rule: rule.name.as_str().into(),
                reads_per_s_max: rule.reads_per_s_max,
                concurrency_max: rule.concurrency_max,
            })
            .collect()
    }

    /// Checks the settings of this file.
    ///
    /// # Errors
    /// A sentence that names the setting and what it accepts.
    pub(crate) fn check_overload(&self) -> Result<(), String> {
        let times = [
            ("breaker_window_ms", self.breaker_window_ms, 100),
            ("breaker_slow_ms", self.breaker_slow_ms, 1),
            ("breaker_silence_ms", self.breaker_silence_ms, 200),
            ("breaker_open_ms", self.breaker_open_ms, 1),
            ("breaker_open_max_ms", self.breaker_open_max_ms, 1),
            ("breaker_recovery_ms", self.breaker_recovery_ms, 0),
            (
                "congestion_queue_timeout_ms",
                self.congestion_queue_timeout_ms,
                1,
            ),
        ];
        for (name, value, min) in times {
            if !(min..=600_000).contains(&value) {
                return Err(format!("{name}: {min} to 600000"));
            }
        }
        let counts = [
            ("breaker_calls_min", self.breaker_calls_min),
            ("breaker_probes_at_once", self.breaker_probes_at_once),
            ("breaker_probes_needed", self.breaker_probes_needed),
            ("congestion_limit_min", self.congestion_limit_min),
            ("congestion_limit_max", self.congestion_limit_max),
        ];
        for (name, value) in counts {
            if !(1..=1_000_000).contains(&value) {
                return Err(format!("{name}: 1 to 1000000"));
            }
        }
        if self.stale_on_error_ms > 86_400_000 {
            return Err("stale_on_error_ms: 0 (never) to 86400000 (a day)".into());
        }
        if self.congestion_queue_max > 1_000_000 {
            return Err("congestion_queue_max: 0 to 1000000".into());
        }
        if self.congestion_limit_max < self.congestion_limit_min {
            return Err("congestion_limit_max: not below congestion_limit_min".into());
        }
        if self.breaker_open_max_ms < self.breaker_open_ms {
            return Err("breaker_open_max_ms: not below breaker_open_ms".into());
        }
        if !(0.001..=1.0).contains(&self.breaker_error_rate) {
            return Err("breaker_error_rate: 0.001 to 1".into());
        }
        if !(0.001..=f64::MAX).contains(&self.breaker_slow_rate) {
            return Err("breaker_slow_rate: 0.001 and more (above 1: never)".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_settings_of_the_breaker_are_refused_by_name() {
        for (text, name) in [
            (r#"{"breaker_error_rate":0}"#, "breaker_error_rate"),
            (r#"{"breaker_error_rate":1.1}"#, "breaker_error_rate"),
            (r#"{"breaker_slow_rate":0}"#, "breaker_slow_rate"),
            (r#"{"breaker_window_ms":1}"#, "breaker_window_ms"),
            (r#"{"breaker_calls_min":0}"#, "breaker_calls_min"),
            (r#"{"congestion_limit_min":5000}"#, "congestion_limit_max"),
            (r#"{"congestion_queue_timeout_ms":0}"#, "congestion_queue"),
            (r#"{"breaker_open_ms":3000}"#, "breaker_open_max_ms"),
        ] {
            let error = Settings::from_json(text).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
