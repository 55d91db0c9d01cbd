//! What a local hit costs, and how many of a trace's accesses the value store answers.
//!
//! A hit is [`LocalCache::lookup`] with everything on: expiry, write epochs, a live proof. Hit ratios
//! are of the store alone, admission open, its capacity counted in entries like the others'. In use,
//! only hot keys are admitted, and they seldom fill it.

use std::error::Error;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyheat_core::cache::{
    CacheSettings, LocalCache, Lookup, Name, Query, SourceId, Ttl, ValueStore,
};
use keyheat_core::fence::WriteEpochs;
use keyheat_core::hash::KeyHasher;
use serde_json::json;

use crate::policies::{Lru, Policy, S3Fifo, Sieve, TwoQueues};
use crate::report::{Report, Spread};
use crate::traces::{Access, Inputs, Random};

const MAX_HIT_NS: f64 = 100.0;
/// How far below the best policy the hit ratio may be, in points.
const MAX_BELOW: f64 = 1.5;
const PASSES: usize = 15;

pub fn run(inputs: &Inputs, report: &mut Report) -> Result<(), Box<dyn Error>> {
    hits(report)?;
    ratios(inputs, report);
    Ok(())
}

fn hits(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let (mut rows, mut json) = (Vec::new(), Vec::new());
    for entries in [100, 1000, 10_000] {
        let (bare, hashed) = hit_ns(entries, 300_000)?;
        rows.push(vec![
            entries.to_string(),
            bare.to_string(),
            hashed.to_string(),
        ]);
        json.push(
            json!({ "entries": entries, "hit_ns": bare.json(), "with_key_hash_ns": hashed.json() }),
        );
        let target = format!("hit with expiry ≤ {MAX_HIT_NS} ns, {entries} entries");
        report.target(target, format!("{bare} ns"), bare.median <= MAX_HIT_NS);
    }
    let head = ["entries", "hit, ns", "with the key's hash, ns"];
    report.table(
        "hits",
        "A local hit (values of 64 B, with expiry)",
        &head,
        &rows,
        json!(json),
    );
    Ok(())
}

/// Nanoseconds a hit, without and with hashing the key.
fn hit_ns(entries: usize, lookups: usize) -> Result<(Spread, Spread), Box<dyn Error>> {
    let settings = CacheSettings {
        max_staleness: Duration::from_secs(1),
        ..CacheSettings::default()
    };
    let mut cache = LocalCache::new(settings, Arc::new(WriteEpochs::default()));
    let (hasher, source) = (KeyHasher::new(5), SourceId(0));
    cache.source_up(source);
    let keys: Vec<[u8; 24]> = (0..entries as u64).map(key).collect();
    for key in &keys {
        let (key_hash, command) = (hasher.hash(key), command(key));
        let query = Query {
            key,
            key_hash,
            variant: 2,
            command: &command,
        };
        let token = cache
            .begin(source, key, key_hash)
            .ok_or("no room for a group")?;
        cache.registered(&token, 0);
        cache.store(&token, &query, &[b'v'; 64], Ttl::At(1_000_000_000_000), 0);
    }
    // Commands lie one after the other, as they come in from a socket.
    let mut random = Random(9);
    let mut draw = || keys[random.below(entries as u64) as usize];
    let commands: Vec<([u8; 24], u64, [u8; 44])> = (0..lookups)
        .map(|_| draw())
        .map(|key| (key, hasher.hash(&key), command(&key)))
        .collect();
    let mut ns: [Vec<f64>; 2] = Default::default();
    let mut misses = 0;
    for pass in 0..PASSES * 2 {
        let start = Instant::now();
        for (key, key_hash, command) in &commands {
            let mut query = Query {
                key,
                key_hash: *key_hash,
                variant: 2,
                command,
            };
            if pass % 2 == 1 {
                query.key_hash = hasher.hash(black_box(key));
            }
            match cache.lookup(source, &query, 1000) {
                Lookup::Hit(value, ()) => {
                    black_box(value);
                }
                _ => misses += 1,
            }
        }
        ns[pass % 2].push(start.elapsed().as_nanos() as f64 / lookups as f64);
    }
    if misses > 0 {
        return Err(format!("{misses} lookups missed").into());
    }
    let [bare, hashed] = ns.map(Spread::of);
    Ok((bare, hashed))
}

fn key(number: u64) -> [u8; 24] {
    let mut key = *b"item:........:in_details";
    // Letters only, so that it looks like a key.
    for (place, byte) in key[5..13].iter_mut().enumerate() {
        *byte = b'a' + (number >> (place * 4)) as u8 % 16;
    }
    key
}

/// `GET key` as it comes in.
fn command(key: &[u8; 24]) -> [u8; 44] {
    let mut command = *b"*2\r\n$3\r\nGET\r\n$24\r\n????????????????????????\r\n";
    command[18..42].copy_from_slice(key);
    command
}

/// Our value store, filled at every miss.
struct Ours(ValueStore<()>);

impl Policy for Ours {
    fn access(&mut self, key: u64) -> bool {
        let command = key.to_le_bytes();
        let name = Name {
            source: 0,
            variant: 0,
            command: &command,
        };
        let hash = Random(key).next();
        let is_hit = self.0.get(hash, &name).is_some();
        if !is_hit {
            self.0.insert(hash, &name, 0, ((), 0), b"");
        }
        is_hit
    }
}

fn ratios(inputs: &Inputs, report: &mut Report) {
    let (mut rows, mut json) = (Vec::new(), Vec::new());
    let zipf = (inputs.zipf.name, &inputs.zipf.accesses);
    let traces = inputs
        .traces
        .iter()
        .map(|trace| (trace.name, &trace.accesses));
    for (name, accesses) in traces.chain([zipf]) {
        for entries in [100, 1000, 10_000] {
            let others = [
                ("LRU", ratio(&mut Lru::new(entries), accesses)),
                ("SIEVE", ratio(&mut Sieve::new(entries), accesses)),
                ("2Q", ratio(&mut TwoQueues::new(entries), accesses)),
                ("S3-FIFO", ratio(&mut S3Fifo::new(entries), accesses)),
            ];
            let ours = ratio(&mut Ours(ValueStore::new(1 << 30, entries)), accesses);
            let best = others.iter().map(|(_, ratio)| *ratio).fold(0.0, f64::max);
            let mut row = vec![name.to_owned(), entries.to_string()];
            row.extend(others.iter().map(|(_, ratio)| format!("{ratio:.2}")));
            row.extend([format!("{ours:.2}"), format!("{:+.2}", ours - best)]);
            rows.push(row);
            let others: serde_json::Map<_, _> = others
                .iter()
                .map(|(policy, ratio)| ((*policy).into(), json!(ratio)))
                .collect();
            json.push(
                json!({ "stream": name, "entries": entries, "percent": others, "ours": ours }),
            );
            if entries >= 1000 {
                let target =
                    format!("hit ratio within {MAX_BELOW} points of the best: {name}, {entries}");
                report.target(
                    target,
                    format!("{:+.2}", ours - best),
                    best - ours <= MAX_BELOW,
                );
            }
        }
    }
    let head = [
        "stream",
        "entries",
        "LRU",
        "SIEVE",
        "2Q",
        "S3-FIFO",
        "ours",
        "ours to the best",
    ];
    report.table(
        "hit_ratios",
        "Hit ratios, percent, admission open",
        &head,
        &rows,
        json!(json),
    );
}

fn ratio(policy: &mut impl Policy, accesses: &[Access]) -> f64 {
    let hits = accesses
        .iter()
        .filter(|access| policy.access(access.key))
        .count();
    hits as f64 * 100.0 / accesses.len().max(1) as f64
}
