//! What is shown in Prometheus' text format.
//!
//! Made when it is asked for, in the thread that serves it. Series of hot keys come and go with them, so there are
//! few (`metrics_hot_keys`), and what a client puts into a key cannot break the page: a key that is no plain text
//! is shown in base64, a long one as its hash.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use keyheat_core::hotset::HotKey;

use crate::control::{HotNow, Shared};
use crate::http::{base64, cache_state};
use crate::stats::sums;
use crate::{node_stats, requests};

/// A longer key is shown as its hash.
const KEY_BYTES_MAX: usize = 256;

/// All series.
pub(crate) fn metrics(shared: &Shared) -> String {
    let mut out = String::new();
    for (name, is_counter, help, value) in sums(&shared.stats) {
        if !is_counter {
            write_one(&mut out, name, help, "gauge", value as f64);
        } else if name.ends_with("_total") {
            write_one(&mut out, name, help, "counter", value as f64);
        } else {
            let name = format!("{name}_total");
            write_one(&mut out, &name, help, "counter", value as f64);
        }
    }
    requests::write_metrics(&mut out, &shared.stats);
    let hot = shared.hot.load();
    let settings = shared.settings.load();
    let copies = &shared.copies;
    for (name, help, kind, value) in [
        (
            "hot_keys",
            "Keys in the hot set.",
            "gauge",
            hot.set.len() as f64,
        ),
        (
            "hot_set_version",
            "Version of the hot set.",
            "gauge",
            hot.set.version as f64,
        ),
        (
            "max_staleness_seconds",
            "The bound on staleness of a local answer.",
            "gauge",
            settings.max_staleness_ms as f64 / 1e3,
        ),
        (
            "local_cache_on",
            "1 if local answers are given.",
            "gauge",
            f64::from(u8::from(cache_state(shared)["on"] == true)),
        ),
        (
            "copies_owned",
            "Hot keys whose copies this process makes.",
            "gauge",
            copies.owned.load(Relaxed) as f64,
        ),
        (
            "copies_placed_total",
            "Copies made or renewed by this process.",
            "counter",
            copies.placed.load(Relaxed) as f64,
        ),
        (
            "copies_failures_total",
            "Rounds in which copies of a key could not be made.",
            "counter",
            copies.failures.load(Relaxed) as f64,
        ),
    ] {
        write_one(&mut out, name, help, kind, value);
    }
    write_hottest(
        &mut out,
        &hot,
        settings.metrics_hot_keys,
        settings.redact_keys,
    );
    let topology = shared.topology.load();
    node_stats::write_metrics(&mut out, &shared.node_stats, topology.as_deref());
    out
}

/// A series without labels.
fn write_one(out: &mut String, name: &str, help: &str, kind: &str, value: f64) {
    write_head(out, name, help, kind);
    let _ = writeln!(out, "keyheat_{name} {value}");
}

/// What stands before the lines of a series.
pub(crate) fn write_head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = write!(
        out,
        "# HELP keyheat_{name} {help}\n# TYPE keyheat_{name} {kind}\n"
    );
}

type Rate = fn(&HotKey, &HotNow) -> f64;

/// The series of the hottest keys.
fn write_hottest(out: &mut String, hot: &HotNow, most: usize, is_redacted: bool) {
    let mut keys: Vec<&HotKey> = hot.set.iter().map(|k| &**k).collect();
    let ops = |k: &HotKey| k.heat.reads_per_s + k.heat.writes_per_s;
    keys.sort_by(|a, b| ops(b).total_cmp(&ops(a)));
    keys.truncate(most);
    let series: [(&str, &str, Rate); 4] = [
        (
            "hot_key_reads_per_second",
            "Reads of one of the hottest keys.",
            |k, _| k.heat.reads_per_s,
        ),
        (
            "hot_key_writes_per_second",
            "Writes of one of the hottest keys.",
            |k, _| k.heat.writes_per_s,
        ),
        (
            "hot_key_bytes_per_second",
            "Bytes moved for one of the hottest keys.",
            |k, _| k.heat.bytes_per_s,
        ),
        (
            "hot_key_local_hits_per_second",
            "Reads of one of the hottest keys answered from the local cache.",
            |k, hot| hot.hits.get(&k.key_hash).map_or(0.0, |hits| hits.per_s),
        ),
    ];
    let labels: Vec<String> = keys
        .iter()
        .map(|k| label(&shown(&k.key, k.key_hash, is_redacted)))
        .collect();
    for (name, help, value) in series {
        write_head(out, name, help, "gauge");
        for (key, label) in keys.iter().zip(&labels) {
            let value = value(key, hot);
            // Nobody has said it: a fed set need not name every rate.
            if value < f64::MAX {
                let _ = writeln!(out, "keyheat_{name}{{key=\"{label}\"}} {value:.1}");
            }
        }
    }
}

/// A key as text. No two keys look alike, or a page would hold one series twice and be refused as a whole.
fn shown(key: &[u8], hash: u64, is_redacted: bool) -> String {
    if is_redacted {
        return format!("redacted:{hash:016x}");
    }
    if key.len() > KEY_BYTES_MAX {
        return format!("long:{hash:016x}");
    }
    let is_plain = |text: &&str| {
        let is_like_ours = text.starts_with("long:") || text.starts_with("base64:");
        !is_like_ours && !text.chars().any(char::is_control)
    };
    match std::str::from_utf8(key).ok().filter(is_plain) {
        Some(text) => text.to_owned(),
        None => format!("base64:{}", base64(key)),
    }
}

/// A label's value as it stands between quotes.
pub(crate) fn label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_leave_its_quotes() {
        assert_eq!(label("a\"} 1\nb\\"), "a\\\"} 1\\nb\\\\");
    }

    #[test]
    fn no_two_keys_are_shown_alike() {
        assert_eq!(shown("käse".as_bytes(), 1, false), "käse");
        assert_eq!(shown(b"\xff", 1, false), "base64:/w==");
        assert_eq!(shown(b"a\nb", 1, false), "base64:YQpi");
        assert_ne!(shown(b"base64:/w==", 2, false), "base64:/w==");
        assert_eq!(shown(&[b'x'; 257], 10, false), "long:000000000000000a");
        assert_ne!(
            shown(b"long:000000000000000a", 2, false),
            "long:000000000000000a"
        );
        assert_eq!(shown(b"secret", 10, true), "redacted:000000000000000a");
    }
}
