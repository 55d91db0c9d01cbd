//! `/healthz`, `/livez`, `/metrics` and `/api/hot`.
//!
//! `/healthz` says whether the proxy can serve, its upstream included; `/livez` whether a start anew would help.
//!
//! Served in a thread of its own: a slow reader of metrics never waits for, or delays, the data.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, AUTHORIZATION, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{json, Value};
use tokio::sync::oneshot;

use crate::control::Shared;
use crate::metrics::metrics;
use crate::settings::ReadYourWrites;
use crate::shard::same;
use crate::stats::sums;
use keyheat_net::{clock, lock};

/// The largest feed, and how long it may take to come.
const FEED_MAX: usize = 8 << 20;
const FEED_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Serves until `stop` is dropped or fired.
pub(crate) fn serve(
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    stop: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let accept = async {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    continue;
                };
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(move |r| {
                        let shared = Arc::clone(&shared);
                        async move { Ok::<_, Infallible>(answer_any(r, &shared).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .timer(hyper_util::rt::TokioTimer::new())
                        .header_read_timeout(std::time::Duration::from_secs(5))
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        };
        tokio::select! {
            () = accept => {}
            _ = stop => {}
        }
        Ok(())
    })
}

async fn answer_any(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    if request.method() == Method::PUT && request.uri().path() == "/api/hot" {
        return take_feed(request, shared).await;
    }
    answer(&request, shared)
}

/// `PUT /api/hot`: somebody says what is hot.
async fn take_feed(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let text = |status, text: &str| reply(status, "text/plain", format!("{text}\n"));
    let settings = shared.settings.load_full();
    let Some(token) = &settings.feed_token else {
        return text(
            StatusCode::FORBIDDEN,
            "nothing is taken here: feed_token_file is not set",
        );
    };
    let shown = request.headers().get(AUTHORIZATION);
    let shown = shown.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if !shown.is_some_and(|shown| same(shown, token.as_bytes())) {
        return text(
            StatusCode::UNAUTHORIZED,
            "the token is not the one expected",
        );
    }
    let body = Limited::new(request.into_body(), FEED_MAX).collect();
    let Ok(Ok(body)) = tokio::time::timeout(FEED_TIMEOUT, body).await else {
        return text(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the feed is larger than 8 MiB, or did not come in 10 s",
        );
    };
    let body = body.to_bytes();
    let fed = std::str::from_utf8(&body)
        .map_err(|e| e.to_string())
        .and_then(|json| crate::control::feed(shared, json));
    match fed {
        Ok(()) => text(StatusCode::OK, "taken"),
        Err(why) => text(StatusCode::BAD_REQUEST, &why),
    }
}

fn answer(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return reply(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "GET only\n".into(),
        );
    }
    match request.uri().path() {
        "/healthz" => {
            let (is_well, body) = health(shared);
            let status = if is_well {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            reply(status, "application/json", body.to_string())
        }
        "/livez" => {
            let dead = shared.shards_dead.load(Relaxed);
            let status = if dead == 0 {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            reply(
                status,
                "application/json",
                json!({ "shards_dead": dead }).to_string(),
            )
        }
        "/metrics" => reply(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            metrics(shared),
        ),
        "/api/hot" => reply(StatusCode::OK, "application/json", hot(shared).to_string()),
        _ => reply(
            StatusCode::NOT_FOUND,
            "text/plain",
            "there are /healthz, /livez, /metrics and /api/hot\n".into(),
        ),
    }
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Whether the proxy has an upstream to serve from.
pub(crate) fn health(shared: &Shared) -> (bool, Value) {
    let mut failure = lock(&shared.topology_error).clone();
    let parts: Vec<&str> = lock(&shared.parts_dead).iter().copied().collect();
    if !parts.is_empty() {
        let parts = parts.join(", ");
        failure = format!("died of a bug, and started again in a moment: {parts}");
    }
    let dead = shared.shards_dead.load(Relaxed);
    if dead > 0 {
        failure = format!("{dead} shards have died; start the proxy anew");
    }
    let topology = shared.topology.load();
    let is_well = topology.is_some() && failure.is_empty();
    let body = json!({
        "status": if is_well { "ok" } else { "failing" },
        "reason": if failure.is_empty() { Value::Null } else { failure.into() },
        "primaries": topology.as_ref().map_or(0, |t| t.primaries.len()),
        "uptime_s": shared.started.elapsed().as_secs(),
    });
    (is_well, body)
}

/// The hot set as `/api/hot` gives it.
pub(crate) fn hot(shared: &Shared) -> Value {
    let now = clock::now();
    let hot = shared.hot.load();
    let topology = shared.topology.load();
    let mut keys: Vec<_> = hot.set.iter().collect();
    keys.sort_by(|a, b| {
        let heat = |k: &keyheat_core::hotset::HotKey| k.heat.reads_per_s + k.heat.writes_per_s;
        heat(b).total_cmp(&heat(a))
    });
    let keys: Vec<Value> = keys
        .into_iter()
        .map(|k| {
            let hits = hot.hits.get(&k.key_hash).copied().unwrap_or_default();
            let (shown, base64) = show(shared, &k.key, k.key_hash);
            let node = topology
                .as_ref()
                .and_then(|t| t.nodes.get(k.node as usize))
                .map(|n| n.name.clone());
            let plan = hot.plans.get(&k.key_hash);
            let remedies = [
                ("local_cache", plan.is_some_and(|p| p.local_cache)),
                ("copies", plan.is_some_and(|p| p.copies)),
                ("replica_reads", plan.is_some_and(|p| p.replica_reads)),
            ];
            let plan: Vec<&str> = remedies.iter().filter(|r| r.1).map(|r| r.0).collect();
            json!({
                "key": shown,
                "key_base64": base64,
                "node": node,
                "reads_per_s": known(k.heat.reads_per_s),
                "writes_per_s": round(k.heat.writes_per_s),
                "bytes_per_s": round(k.heat.bytes_per_s),
                "share": k.heat.share,
                "bytes_share": k.heat.bytes_share,
                "error_per_s": round(k.heat.error_per_s),
                "since_ns": k.since,
                "since_s": now.saturating_sub(k.since) as f64 / 1e9,
                "state": match k.state {
                    keyheat_core::hotset::HotState::Hot => "hot",
                    _ => "cooling",
                },
                "rule": &*k.rule,
                "plan": plan,
                "local_hits": hits.count,
                "local_hits_per_s": round(hits.per_s),
                "first_local_hit_ns": hits.first_ns,
            })
        })
        .collect();
    json!({
        "version": hot.set.version,
        "now_ns": now,
        "max_staleness_ms": shared.settings.load().max_staleness_ms,
        "local_cache": cache_state(shared),
        "keys": keys,
    })
}

pub(crate) fn cache_state(shared: &Shared) -> Value {
    let refusals = lock(&shared.refusals);
    let reason = if shared.settings.load().read_your_writes == ReadYourWrites::Global {
        Some("switched off: read_your_writes is 'global'".to_owned())
    } else if !shared.settings.load().may_cache() {
        Some("switched off: max_staleness_ms is 0 or counting is off".to_owned())
    } else if !shared.cache_on.load(Relaxed) {
        Some("switched off".to_owned())
    } else if refusals.is_empty() {
        None
    } else {
        let distinct: BTreeSet<&str> = refusals.values().map(String::as_str).collect();
        Some(distinct.into_iter().collect::<Vec<_>>().join("; "))
    };
    json!({ "on": reason.is_none(), "reason": reason })
}

/// A rate as it is shown: null where nobody has said it.
fn known(per_s: f64) -> Option<f64> {
    (per_s < f64::MAX).then(|| round(per_s))
}

fn round(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

/// A key as it may be shown: text and base64, or only its hash where keys are redacted.
fn show(shared: &Shared, key: &[u8], hash: u64) -> (String, Option<String>) {
    if shared.settings.load().redact_keys {
        return (format!("redacted:{hash:016x}"), None);
    }
    (String::from_utf8_lossy(key).into_owned(), Some(base64(key)))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let n = chunk.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            if i <= chunk.len() {
                out.push(DIGITS[(n >> (18 - 6 * i)) as usize & 63] as char);
            } else {
                out.push('=');
            }
        }
    }
    out
}

/// The counters as JSON.
pub(crate) fn stats(shared: &Shared) -> Value {
    let sums = sums(&shared.stats)
        .into_iter()
        .map(|(name, _, _, value)| (name.to_owned(), json!(value)));
    Value::Object(sums.collect())
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_pads() {
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"f"), "Zg==");
        assert_eq!(base64(b"fo"), "Zm8=");
        assert_eq!(base64(b"foo"), "Zm9v");
        assert_eq!(base64(b"foobar"), "Zm9vYmFy");
    }
}
