//! Settings that change while the proxy runs, without a connection being cut.
//!
//! What may change is taken over as a whole or not at all: everything is read and checked first, and only then
//! told to the threads. What may not (addresses, threads, the sizes of what is allocated at the start, the
//! staleness bound that is promised) keeps its value, and is named.

use std::sync::Arc;

use crate::control::ToControl;
use crate::settings::Settings;
use crate::tls::Credentials;
use crate::Proxy;

macro_rules! taken_over {
    (may change: $($live:ident)*; stay: $($fixed:ident)*) => {
        /// The settings that hold from now on, and the names of those that would take a start anew.
        fn merge(old: &Settings, new: Settings) -> (Settings, Vec<&'static str>) {
            // Every setting is named: one that is added must be put on one of the lists.
            let Settings { $($live,)* $($fixed,)* } = new;
            let mut kept = Vec::new();
            $(if old.$fixed != $fixed {
                kept.push(stringify!($fixed));
            })*
            let merged = Settings { $($live,)* $($fixed: old.$fixed.clone(),)* };
            (merged, kept)
        }

        /// The names on the lists, which `docs/settings.md` tells too.
        #[cfg(test)]
        const LISTS: [&[&str]; 2] = [&[$(stringify!($live)),*], &[$(stringify!($fixed)),*]];
    };
}

taken_over!(
    may change:
    tls_cert_file tls_key_file tls_client_ca_file handshake_timeout_ms
    local_cache nx_is_lock rules longer_expiry longer_expiry_factor_max longer_expiry_max_s window_ms hot_keys_max
    redact_keys metrics_hot_keys buffers_max_bytes clients_max
    client_idle_timeout_s client_output_max_bytes request_max_bytes
    connect_timeout_ms upstream_timeout_ms
    copies copies_max copies_value_max_bytes copies_keys_max
    replica_reads read_from read_your_writes replica_lag_max_ms
    breaker breaker_window_ms breaker_calls_min breaker_error_rate breaker_slow_ms breaker_slow_rate
    breaker_silence_ms breaker_open_ms breaker_open_max_ms breaker_probes_at_once breaker_probes_needed
    breaker_recovery_ms
    congestion congestion_limit_max congestion_limit_min congestion_queue_max congestion_queue_timeout_ms
    log log_format;
    stay:
    auth announce listen reuse_port tls_listen proxy_protocol proxy_protocol_trusted unix_socket unix_socket_mode http upstream shards
    max_staleness_ms stale_on_error_ms cache_bytes cache_value_max_bytes counting hot_set feed_token
    copies_max_staleness_ms copies_clock_skew_ms
);

impl Proxy {
    /// Takes over what may change while running; returns the names of the settings that may not, and would.
    ///
    /// # Errors
    /// A sentence that names the setting; then nothing has changed.
    pub fn reload(&self, settings: Settings) -> Result<Vec<&'static str>, String> {
        let old = self.shared.settings.load_full();
        let (settings, kept) = merge(&old, settings);
        settings.check()?;
        let credentials = Credentials::read(&settings)?;
        let settings = Arc::new(settings);
        self.shared.credentials.store(Arc::new(credentials));
        self.shared.settings.store(Arc::clone(&settings));
        let _ = self.control.send(ToControl::Settings);
        if old.local_cache != settings.local_cache {
            self.set_local_cache(settings.local_cache);
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_change_keeps_its_value_and_is_named() {
        let old = Settings::default();
        let new = Settings {
            shards: 7,
            clients_max: 3,
            max_staleness_ms: 50,
            ..Settings::default()
        };
        let (merged, kept) = merge(&old, new);
        assert_eq!(kept, ["shards", "max_staleness_ms"]);
        assert_eq!((merged.shards, merged.clients_max), (0, 3));
        assert_eq!(merge(&old, old.clone()).1, Vec::<&str>::new());
    }

    #[test]
    fn the_documentation_lists_what_changes() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
        let page = std::fs::read_to_string(page).unwrap();
        let from = page.find("These change:").unwrap();
        let list = page[from..].split("\n\n").nth(1).unwrap();
        let said: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        let is_said = |name: &str| {
            let is = |said: &&str| match said.strip_suffix('…') {
                Some(start) => name.starts_with(start),
                None => name == *said,
            };
            said.iter().any(is)
        };
        let [live, fixed] = LISTS;
        let untold: Vec<_> = live.iter().filter(|name| !is_said(name)).collect();
        let wrong: Vec<_> = fixed.iter().filter(|name| is_said(name)).collect();
        assert!(
            untold.is_empty() && wrong.is_empty(),
            "{untold:?} {wrong:?}"
        );
        let is_there = |said: &str| {
            live.iter()
                .any(|n| n.starts_with(said.trim_end_matches('…')))
        };
        // What the proxy's threads are not told of is changed by whoever starts them.
        let stray: Vec<_> = said.iter().filter(|said| !is_there(said)).collect();
        assert_eq!(stray, [&"drain_timeout_s"]);
    }
}
