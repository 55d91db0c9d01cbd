//! Recall, precision and bounds beside exact sliding counts, at every tick of 100 ms.
//!
//! A tick is the moment a slice begins: the window is then exactly the ten slices before it. A key is
//! hot if it has at least 0.1 % of the window's accesses (or bytes); it is reported if its upper bound
//! says so. On the traces a slice has few enough keys to be exact; the made stream overflows it.

use std::collections::{HashMap, VecDeque};
use std::error::Error;

use keyheat_core::hash::KeyHasher;
use keyheat_core::window::{Access as Kind, Counts, Window, WindowSettings};
use serde_json::json;

use crate::report::Report;
use crate::traces::{Access, Inputs, Random};

const SLICE: u64 = 100_000_000;
const SLICES: usize = 10;
const SHARE: f64 = 0.001;
/// Keys of the made stream that have about the share.
const NEAR: u64 = 50;
const MIN_PRECISION: f64 = 0.99;

#[derive(Default)]
struct Score {
    ticks: usize,
    found: u64,
    missed: u64,
    wrong: u64,
    violations: u64,
    /// The largest a-posteriori error, as a share of the window.
    error: f64,
}

impl Score {
    fn recall(&self) -> f64 {
        part(self.found, self.missed)
    }

    fn precision(&self) -> f64 {
        part(self.found, self.wrong)
    }
}

/// The part of what is right; all of it where there is nothing.
fn part(right: u64, other: u64) -> f64 {
    if other == 0 {
        1.0
    } else {
        right as f64 / (right + other) as f64
    }
}

pub fn run(inputs: &Inputs, report: &mut Report) -> Result<(), Box<dyn Error>> {
    let near = near_the_share(if inputs.is_small {
        1_500_000
    } else {
        4_000_000
    });
    let mut streams: Vec<(&str, &[Access], usize)> = inputs
        .traces
        .iter()
        .map(|trace| (trace.name, &trace.accesses[..], 10_000))
        .collect();
    streams.push((inputs.zipf.name, &inputs.zipf.accesses, 100_000));
    streams.push(("uniform, 10^7 keys, and 50 near 0.1 %", &near, 100_000));
    let (mut rows, mut json) = (Vec::new(), Vec::new());
    for (name, accesses, per_slice) in streams {
        for (metric, score) in ["ops", "bytes"]
            .into_iter()
            .zip(judge(accesses, per_slice)?)
        {
            let per_tick =
                |number: u64| format!("{:.2}", number as f64 / score.ticks.max(1) as f64);
            rows.push(vec![
                name.to_owned(),
                metric.to_owned(),
                score.ticks.to_string(),
                per_tick(score.found + score.missed),
                format!("{:.5}", score.recall()),
                format!("{:.5}", score.precision()),
                score.violations.to_string(),
                format!("{:.4} %", score.error * 100.0),
            ]);
            json.push(json!({
                "stream": name, "metric": metric, "accesses_per_slice": per_slice, "ticks": score.ticks,
                "hot": score.found + score.missed, "missed": score.missed, "wrong": score.wrong,
                "recall": score.recall(), "precision": score.precision(),
                "violations": score.violations, "max_error": score.error,
            }));
            let target =
                format!("recall 1, precision ≥ {MIN_PRECISION}, bounds hold: {name}, {metric}");
            let measured = format!(
                "{:.5}, {:.5}, {} violations",
                score.recall(),
                score.precision(),
                score.violations
            );
            let is_right = score.missed == 0 && score.violations == 0;
            report.target(
                target,
                measured,
                is_right && score.precision() >= MIN_PRECISION,
            );
        }
    }
    let head = [
        "stream",
        "metric",
        "ticks",
        "hot a tick",
        "recall",
        "precision",
        "violations",
        "largest error",
    ];
    report.table(
        "accuracy",
        "Beside exact sliding counts, at 0.1 %",
        &head,
        &rows,
        json!(json),
    );
    Ok(())
}

/// Uniform traffic over ten million keys, and fifty that have 0.08 to 0.12 % of it each.
fn near_the_share(len: usize) -> Vec<Access> {
    let mut random = Random(11);
    let shares: Vec<f64> = (0..NEAR)
        .map(|key| SHARE * (0.8 + 0.4 * key as f64 / (NEAR - 1) as f64))
        .collect();
    let all: f64 = shares.iter().sum();
    let mut draw = || {
        let mut at = random.part();
        let key = if at < all {
            shares.iter().position(|share| {
                at -= share;
                at < 0.0
            })
        } else {
            None
        };
        match key {
            Some(key) => Access {
                key: u64::MAX - key as u64,
                bytes: 500,
            },
            None => Access {
                key: random.below(10_000_000),
                bytes: 1 + random.below(1000),
            },
        }
    };
    (0..len).map(|_| draw()).collect()
}

/// Exact counts of the last ten slices.
#[derive(Default)]
struct Exact {
    slices: VecDeque<HashMap<u64, (u64, u64)>>,
    window: HashMap<u64, (u64, u64)>,
    ops: u64,
    bytes: u64,
}

impl Exact {
    fn slide(&mut self, slice: HashMap<u64, (u64, u64)>) {
        for (key, (ops, bytes)) in &slice {
            let sum = self.window.entry(*key).or_default();
            (sum.0, sum.1) = (sum.0 + ops, sum.1 + bytes);
            (self.ops, self.bytes) = (self.ops + ops, self.bytes + bytes);
        }
        self.slices.push_back(slice);
        if self.slices.len() <= SLICES {
            return;
        }
        for (key, (ops, bytes)) in self.slices.pop_front().unwrap_or_default() {
            (self.ops, self.bytes) = (self.ops - ops, self.bytes - bytes);
            if let Some(sum) = self.window.get_mut(&key) {
                (sum.0, sum.1) = (sum.0 - ops, sum.1 - bytes);
                if sum.0 == 0 {
                    self.window.remove(&key);
                }
            }
        }
    }
}

/// Plays a stream; returns how ops and bytes were judged.
fn judge(accesses: &[Access], per_slice: usize) -> Result<[Score; 2], Box<dyn Error>> {
    let hasher = KeyHasher::new(3);
    let mut window = Window::new(WindowSettings::default())?;
    let (mut exact, mut scores) = (Exact::default(), [Score::default(), Score::default()]);
    for (tick, slice) in (1_u64..).zip(accesses.chunks_exact(per_slice)) {
        let mut counts: HashMap<u64, (u64, u64)> = HashMap::new();
        for (index, access) in (0_u64..).zip(slice) {
            let hash = hasher.hash(&access.key.to_le_bytes());
            let now = tick * SLICE + index * SLICE / per_slice as u64;
            window.record(hash, 0, Kind::Read, access.bytes, now);
            let sum = counts.entry(hash).or_default();
            (sum.0, sum.1) = (sum.0 + 1, sum.1 + access.bytes);
        }
        exact.slide(counts);
        look(&window, &exact, (tick + 1) * SLICE, &mut scores);
    }
    Ok(scores)
}

fn look(window: &Window, exact: &Exact, now: u64, [ops, bytes]: &mut [Score; 2]) {
    let least = |total: u64| ((total as f64 * SHARE).ceil() as u64).max(1);
    let (min_ops, min_bytes) = (least(exact.ops), least(exact.bytes));
    let error = window.error(now);
    let of_ops = window.heavy(min_ops, u64::MAX, now);
    let of_bytes = window.heavy(u64::MAX, min_bytes, now);
    compare(ops, &of_ops, exact, |sums| sums.0 >= min_ops);
    compare(bytes, &of_bytes, exact, |sums| sums.1 >= min_bytes);
    ops.error = ops.error.max(error.ops as f64 / exact.ops as f64);
    bytes.error = bytes.error.max(error.bytes as f64 / exact.bytes as f64);
    // Bounds are looked at for every key of the window once in ten ticks, hot or not.
    if ops.ticks % 10 == 0 {
        for (hash, sums) in &exact.window {
            let counts = window.estimate(*hash, now);
            ops.violations += u64::from(!holds(&counts, *sums).0);
            bytes.violations += u64::from(!holds(&counts, *sums).1);
        }
    }
}

fn compare(
    score: &mut Score,
    reported: &[(u64, Counts)],
    exact: &Exact,
    is_hot: impl Fn(&(u64, u64)) -> bool,
) {
    score.ticks += 1;
    let hot = exact.window.values().filter(|sums| is_hot(sums)).count() as u64;
    let mut found = 0;
    for (hash, counts) in reported {
        let sums = exact.window.get(hash).copied().unwrap_or_default();
        found += u64::from(is_hot(&sums));
        let (ops_hold, bytes_hold) = holds(counts, sums);
        score.violations += u64::from(!ops_hold || !bytes_hold);
    }
    score.found += found;
    score.missed += hot - found;
    score.wrong += reported.len() as u64 - found;
}

fn holds(counts: &Counts, (ops, bytes): (u64, u64)) -> (bool, bool) {
    (
        counts.ops.lower <= ops && ops <= counts.ops.upper,
        counts.bytes.lower <= bytes && bytes <= counts.bytes.upper,
    )
}
