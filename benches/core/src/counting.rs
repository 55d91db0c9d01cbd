//! What a counted access costs, beside an update of an exact `HashMap<u64, u32>`.
//!
//! Ours includes hashing a key of 24 bytes, the slices turning, and the looks that the default rules
//! ask for, at keys not nominated within the last second. The map is given the hash for nothing, is warm and fully grown, and has no window. Both
//! read their input in order. A pair is one pass of each over the same accesses, in turns of who goes
//! first; the ratio is of pairs.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::time::{Duration, Instant};

use keyheat_core::detect::Nominator;
use keyheat_core::hash::KeyHasher;
use keyheat_core::rule::RuleSet;
use keyheat_core::window::{Access, Window, WindowSettings};
use serde_json::json;

use crate::report::{Report, Spread};
use crate::traces::{Inputs, Stream};

const PAIRS: usize = 12;
const SECOND: Duration = Duration::from_secs(1);
const MAX_BYTES: usize = 8 << 20;
const MAX_RATIO: f64 = 1.5;

/// A hasher that takes a hash as it is: the least an exact map can cost.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

struct Row {
    stream: &'static str,
    per_slice: u64,
    ours: Spread,
    map: Spread,
    bare_map: Spread,
    ratio: Spread,
    memory: usize,
}

pub fn run(inputs: &Inputs, report: &mut Report) -> Result<(), Box<dyn Error>> {
    let mut rows = Vec::new();
    for stream in [&inputs.zipf, &inputs.uniform]
        .into_iter()
        .chain(&inputs.traces)
    {
        for per_slice in [10_000, 100_000] {
            rows.push(measure(
                stream,
                per_slice,
                if inputs.is_small { 500_000 } else { 2_000_000 },
            )?);
        }
    }
    let table: Vec<Vec<String>> = rows.iter().map(in_words).collect();
    let json: Vec<_> = rows.iter().map(in_json).collect();
    let head = [
        "stream",
        "accesses a slice",
        "counted access, ns",
        "HashMap, ns",
        "HashMap without hashing, ns",
        "ratio to HashMap",
        "memory, MiB",
    ];
    report.table("counting", "A counted access", &head, &table, json!(json));
    for row in &rows {
        let target = format!(
            "counted access ≤ {MAX_RATIO} × HashMap: {}, {} a slice",
            row.stream, row.per_slice
        );
        report.target(target, row.ratio.to_string(), row.ratio.median <= MAX_RATIO);
    }
    let most = rows.iter().map(|row| row.memory).max().unwrap_or(0);
    report.target(
        "memory ≤ 8 MiB",
        format!("{:.2} MiB", mib(most)),
        most <= MAX_BYTES,
    );
    Ok(())
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn in_words(row: &Row) -> Vec<String> {
    let memory = format!("{:.2}", mib(row.memory));
    let (ours, map, bare_map) = (
        row.ours.to_string(),
        row.map.to_string(),
        row.bare_map.to_string(),
    );
    let (stream, per_slice) = (row.stream.to_owned(), row.per_slice.to_string());
    vec![
        stream,
        per_slice,
        ours,
        map,
        bare_map,
        row.ratio.to_string(),
        memory,
    ]
}

fn in_json(row: &Row) -> serde_json::Value {
    json!({
        "stream": row.stream,
        "accesses_per_slice": row.per_slice,
        "counted_access_ns": row.ours.json(),
        "hashmap_ns": row.map.json(),
        "hashmap_without_hashing_ns": row.bare_map.json(),
        "ratio": row.ratio.json(),
        "memory_bytes": row.memory,
        "pairs": PAIRS,
    })
}

/// A key of 24 bytes.
fn name(key: u64) -> [u8; 24] {
    let mut name = *b"keyheat:bench:\0\0\0\0\0\0\0\0:k";
    name[14..22].copy_from_slice(&key.to_le_bytes());
    name
}

fn measure(stream: &Stream, per_slice: u64, len: usize) -> Result<Row, Box<dyn Error>> {
    let accesses = &stream.accesses[..len.min(stream.accesses.len())];
    let hasher = KeyHasher::new(7);
    let named: Vec<([u8; 24], u64)> = accesses.iter().map(|a| (name(a.key), a.bytes)).collect();
    let hashes: Vec<u64> = named.iter().map(|(name, _)| hasher.hash(name)).collect();
    let mut counted = Counted::new(per_slice)?;
    let mut map: HashMap<u64, u32> = HashMap::new();
    let mut bare_map: HashMap<u64, u32, BuildHasherDefault<AsItIs>> = HashMap::default();
    // One pass to warm up; the map has all its keys after it.
    counted.pass(&named, hasher);
    for hash in &hashes {
        *map.entry(*hash).or_default() += 1;
        *bare_map.entry(*hash).or_default() += 1;
    }
    let mut ns: [Vec<f64>; 3] = Default::default();
    for pair in 0..PAIRS {
        for turn in 0..3 {
            let who = (pair + turn) % 3;
            let start = Instant::now();
            match who {
                0 => counted.pass(&named, hasher),
                1 => hashes
                    .iter()
                    .for_each(|hash| *map.entry(*hash).or_default() += 1),
                _ => hashes
                    .iter()
                    .for_each(|hash| *bare_map.entry(*hash).or_default() += 1),
            }
            ns[who].push(start.elapsed().as_nanos() as f64 / hashes.len() as f64);
        }
    }
    black_box((&map, &bare_map));
    let ratios = ns[0]
        .iter()
        .zip(&ns[1])
        .map(|(ours, map)| ours / map)
        .collect();
    let [ours, map, bare_map] = ns.map(Spread::of);
    let memory = counted.window.memory_bytes();
    Ok(Row {
        stream: stream.name,
        per_slice,
        ours,
        map,
        bare_map,
        ratio: Spread::of(ratios),
        memory,
    })
}

/// A window as a shard of the proxy runs it.
struct Counted {
    window: Window,
    nominator: Nominator,
    now: u64,
    per_access_ns: u64,
    next_tune: u64,
    /// Nominated within the last second: no need to look at them again.
    nominated: HashSet<u64, BuildHasherDefault<AsItIs>>,
}

impl Counted {
    fn new(per_slice: u64) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            window: Window::new(WindowSettings::default())?,
            nominator: Nominator::new(&RuleSet::default(), 1),
            now: 0,
            per_access_ns: 100_000_000 / per_slice,
            next_tune: 0,
            nominated: HashSet::default(),
        })
    }

    fn pass(&mut self, accesses: &[([u8; 24], u64)], hasher: KeyHasher) {
        for (name, bytes) in accesses {
            let hash = hasher.hash(name);
            self.now += self.per_access_ns;
            let is_due = self.window.record(hash, 0, Access::Read, *bytes, self.now);
            if is_due && !self.nominated.contains(&hash) {
                let counts = self.window.estimate(hash, self.now);
                let node = self.window.totals(0, self.now);
                if self.nominator.should_nominate(&counts, &node, SECOND) {
                    self.nominated.insert(hash);
                }
            }
            if self.now >= self.next_tune {
                self.next_tune = self.now + 100_000_000;
                if self.now / 1_000_000_000 != self.next_tune / 1_000_000_000 {
                    self.nominated.clear();
                }
                let nominator = &self.nominator;
                self.window
                    .tune_check_steps(self.now, |totals| nominator.check_steps(totals, SECOND));
            }
        }
        black_box(self.nominated.len());
    }
}
