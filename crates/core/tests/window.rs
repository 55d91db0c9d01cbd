//! The window against exact sliding counts, and summaries against the sum of what they were made of.

#![allow(clippy::unwrap_used)] // helpers are tests too

use std::collections::HashMap;
use std::time::Duration;

use keyheat_core::summary::Summary;
use keyheat_core::window::{Access, Counts, ErrorBound, Totals, Window, WindowSettings};
use proptest::prelude::*;

const SLICE: u64 = 100_000_000;
const SLICES: u64 = 10;

/// Every access, kept for ever.
#[derive(Default)]
struct Exact {
    accesses: Vec<(u64, u32, Access, u64, u64)>,
    newest_slice: u64,
}

impl Exact {
    fn record(&mut self, key: u64, node: u32, access: Access, bytes: u64, now: u64) {
        self.newest_slice = self.newest_slice.max(now / SLICE);
        self.accesses
            .push((key, node, access, bytes, self.newest_slice));
    }

    fn in_window(&self, now: u64) -> impl Iterator<Item = &(u64, u32, Access, u64, u64)> {
        let newest = self.newest_slice.max(now / SLICE);
        self.accesses
            .iter()
            .filter(move |access| access.4 + SLICES >= newest)
    }

    fn sums(
        &self,
        now: u64,
        name: impl Fn(&(u64, u32, Access, u64, u64)) -> u64,
    ) -> HashMap<u64, Totals> {
        let mut sums: HashMap<u64, Totals> = HashMap::new();
        for access in self.in_window(now) {
            let totals = sums.entry(name(access)).or_default();
            match access.2 {
                Access::Read => totals.reads += 1,
                Access::Write => totals.writes += 1,
            }
            totals.bytes += access.3;
        }
        sums
    }
}

fn holds(counts: &Counts, truth: &Totals) -> bool {
    let is_in =
        |bound: keyheat_core::window::Bound, value| bound.lower <= value && value <= bound.upper;
    is_in(counts.reads, truth.reads)
        && is_in(counts.writes, truth.writes)
        && is_in(counts.ops, truth.ops())
        && is_in(counts.bytes, truth.bytes)
}

#[derive(Debug, Clone)]
struct Play {
    key: u64,
    node: u32,
    is_write: bool,
    bytes: u64,
    later: u64,
    is_back: bool,
}

/// A few popular keys and a long tail; time mostly creeps, sometimes leaps, sometimes goes back.
fn plays() -> impl Strategy<Value = Vec<Play>> {
    let key = prop_oneof![3 => 0..4_u64, 5 => 0..400_u64];
    let bytes = prop_oneof![6 => 0..300_u64, 1 => 0..50_000_u64, 1 => Just(1_u64 << 40)];
    let later = prop_oneof![40 => 0..SLICE / 50, 4 => 0..SLICE * 2, 1 => 0..SLICE * 40];
    let play = (
        key,
        prop_oneof![Just(0_u32), Just(3), Just(70_000)],
        any::<bool>(),
        bytes,
        later,
        0..60_u8,
    );
    let play = play.prop_map(|(key, node, is_write, bytes, later, back)| Play {
        key: key << 40, // nothing in the low bits: a table must not rely on them
        node,
        is_write,
        bytes,
        later,
        is_back: back == 0,
    });
    prop::collection::vec(play, 1..900)
}

fn run(plays: &[Play], capacity_log2: u8) -> (Window, Exact, u64) {
    let settings = WindowSettings {
        capacity_log2,
        ..WindowSettings::default()
    };
    let (mut window, mut exact) = (Window::new(settings).unwrap(), Exact::default());
    let mut now = 0;
    for play in plays {
        now = if play.is_back {
            now - play.later.min(now)
        } else {
            now + play.later
        };
        let access = if play.is_write {
            Access::Write
        } else {
            Access::Read
        };
        window.record(play.key, play.node, access, play.bytes, now);
        exact.record(play.key, play.node, access, play.bytes, now);
    }
    (window, exact, now)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn bounds_hold_for_every_key_at_any_time(plays in plays(), log2 in 4_u8..9, later in 0..SLICE * 14) {
        let (window, exact, now) = run(&plays, log2);
        let now = now + later;
        let truth = exact.sums(now, |access| access.0);
        for key in (0..400).map(|key: u64| key << 40) {
            let truth = truth.get(&key).copied().unwrap_or_default();
            let counts = window.estimate(key, now);
            prop_assert!(holds(&counts, &truth), "{counts:?} does not hold {truth:?}");
            prop_assert!(counts.ops.width() <= window.error(now).ops);
            prop_assert!(counts.bytes.width() <= window.error(now).bytes);
        }
    }

    #[test]
    fn totals_are_exact(plays in plays(), later in 0..SLICE * 14) {
        let (window, exact, now) = run(&plays, 4);
        let now = now + later;
        let nodes = exact.sums(now, |access| u64::from(access.1));
        for node in [0, 3, 5, 70_000] {
            let truth = nodes.get(&u64::from(node)).copied().unwrap_or_default();
            prop_assert_eq!(window.totals(node, now), truth);
        }
        prop_assert_eq!(window.total(now), exact.sums(now, |_| 0).remove(&0).unwrap_or_default());
        let mut active: Vec<u32> = nodes.keys().map(|node| *node as u32).collect();
        active.sort_unstable();
        prop_assert_eq!(window.nodes(now), active);
    }

    #[test]
    fn heavy_misses_no_key_above_the_error(plays in plays(), log2 in 4_u8..9, min in 1_u64..40) {
        let (window, exact, now) = run(&plays, log2);
        let error = window.error(now);
        let (min_ops, min_bytes) = (error.ops + min, error.bytes + min * 4000);
        let heavy: HashMap<u64, Counts> = window.heavy(min_ops, min_bytes, now).into_iter().collect();
        for (key, truth) in exact.sums(now, |access| access.0) {
            if truth.ops() >= min_ops || truth.bytes >= min_bytes {
                prop_assert!(heavy.contains_key(&key), "missed {truth:?}");
            }
        }
        for (key, counts) in heavy {
            prop_assert_eq!(window.estimate(key, now), counts);
            prop_assert!(counts.ops.upper >= min_ops || counts.bytes.upper >= min_bytes);
        }
    }

    #[test]
    fn heavy_names_every_tracked_key_that_may_qualify(plays in plays(), min_ops in 0_u64..60) {
        let (window, _, now) = run(&plays, 4);
        let heavy: Vec<u64> = window.heavy(min_ops, u64::MAX, now).iter().map(|key| key.0).collect();
        for key in (0..400).map(|key: u64| key << 40) {
            // A tracked key is one whose lower bound is above zero.
            let counts = window.estimate(key, now);
            let may_qualify = counts.ops.lower > 0 && counts.ops.upper >= min_ops;
            prop_assert_eq!(heavy.contains(&key), may_qualify);
        }
    }

    #[test]
    fn merged_summaries_keep_their_bounds_in_any_order(
        parts in prop::collection::vec(plays(), 1..4),
        log2 in 4_u8..7,
        is_reversed: bool,
    ) {
        let mut truth: HashMap<u64, Totals> = HashMap::new();
        let mut summaries = Vec::new();
        for plays in &parts {
            let (window, exact, now) = run(plays, log2);
            for (key, totals) in exact.sums(now, |access| access.0) {
                *truth.entry(key).or_default() += totals;
            }
            summaries.push(Summary::decode(&window.summary(now).encode()).unwrap());
        }
        if is_reversed {
            summaries.reverse();
        }
        let mut merged = Summary::new(1 << log2, Totals::default(), ErrorBound::default(), []);
        summaries.iter().for_each(|summary| merged.merge(summary));
        prop_assert!(merged.keys().len() <= 1 << log2);
        for key in (0..400).map(|key: u64| key << 40) {
            let truth = truth.get(&key).copied().unwrap_or_default();
            prop_assert!(holds(&merged.get(key), &truth), "{:?} does not hold {truth:?}", merged.get(key));
        }
        let mut total = Totals::default();
        truth.values().for_each(|totals| total += *totals);
        prop_assert_eq!(merged.totals(), total);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let with_head = [b"khs\x01".to_vec(), bytes.clone()].concat();
        for bytes in [bytes, with_head] {
            if let Ok(summary) = Summary::decode(&bytes) {
                prop_assert_eq!(Summary::decode(&summary.encode()), Ok(summary));
            }
        }
    }
}

fn window() -> Window {
    Window::new(WindowSettings::default()).unwrap()
}

#[test]
fn a_window_after_a_long_silence_is_empty() {
    let mut window = window();
    window.record(1, 0, Access::Read, 10, 5);
    assert_eq!(window.estimate(1, SLICES * SLICE).ops.lower, 1);
    assert_eq!(window.estimate(1, (SLICES + 1) * SLICE), Counts::default());
    window.record(1, 0, Access::Write, 10, u64::MAX);
    assert_eq!(window.estimate(1, u64::MAX).reads.upper, 0);
    assert_eq!(window.estimate(1, u64::MAX).writes.lower, 1);
}

#[test]
fn a_clock_that_goes_back_counts_in_the_newest_slice() {
    let mut window = window();
    window.record(1, 0, Access::Read, 0, 50 * SLICE);
    window.record(1, 0, Access::Read, 0, 3);
    assert_eq!(window.estimate(1, 3).ops.lower, 2);
    assert_eq!(window.estimate(1, 61 * SLICE).ops.upper, 0);
}

#[test]
fn a_check_is_due_at_multiples_of_the_step() {
    let mut window = window();
    window.set_check_steps(5, u64::MAX); // rounded down to 4
    let due: Vec<bool> = (0..9)
        .map(|_| window.record(1, 0, Access::Read, 100, 0))
        .collect();
    assert_eq!(
        due,
        [false, false, false, true, false, false, false, true, false]
    );
    window.set_check_steps(u32::MAX, 1000); // rounded down to 512
    let due = (0..12)
        .filter(|_| window.record(2, 0, Access::Read, 100, 0))
        .count();
    assert_eq!(due, 2);
}

#[test]
fn a_quiet_node_has_steps_of_its_own() {
    let mut window = window();
    window.set_check_steps(1024, u64::MAX);
    window.record(1, 2, Access::Read, 0, 0);
    window.tune_check_steps(0, |totals| {
        if totals.reads == 1 {
            (1, u64::MAX)
        } else {
            (1024, u64::MAX)
        }
    });
    assert!(window.record(9, 2, Access::Read, 0, 0));
    assert!(!window.record(9, 1, Access::Read, 0, 0));
}

#[test]
fn a_window_never_set_up_for_checks_asks_for_none() {
    let mut window = window();
    assert!((0..100_000).all(|_| !window.record(1, 0, Access::Read, 1000, 0)));
}

#[test]
fn full_tables_stay_within_8_mib() {
    let mut window = window();
    for access in 0..1_500_000_u64 {
        window.record(
            access.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            0,
            Access::Read,
            64,
            access * 1000,
        );
    }
    assert!(
        window.error(1_500_000_000).ops > 0,
        "no table ever filled up"
    );
    assert!(
        window.memory_bytes() <= 8 << 20,
        "{} bytes",
        window.memory_bytes()
    );
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let wrong = [
        (
            WindowSettings {
                slices: 0,
                ..Default::default()
            },
            "slices",
        ),
        (
            WindowSettings {
                window: Duration::ZERO,
                ..Default::default()
            },
            "window",
        ),
        (
            WindowSettings {
                capacity_log2: 40,
                ..Default::default()
            },
            "capacity_log2",
        ),
    ];
    for (settings, setting) in wrong {
        assert_eq!(Window::new(settings).unwrap_err().setting, setting);
    }
}
