//! The detector against a plain state machine, and nomination against the sum over reporters.

#![allow(clippy::unwrap_used)] // helpers are tests too

use std::time::Duration;

use keyheat_core::detect::{Detector, DetectorSettings, Nominator, ShardReport};
use keyheat_core::hotset::HotState;
use keyheat_core::rule::{Level, Metric, Pattern, Plan, Remedy, Rule, RuleSet};
use keyheat_core::window::{Access, Bound, Counts, ErrorBound, Totals, Window, WindowSettings};
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const TICK: u64 = 100 * MS;
const SECOND: Duration = Duration::from_secs(1);

fn rule(name: &str, pattern: Pattern, level: Level) -> Rule {
    let plan = Plan::of(&[Remedy::LocalCache]);
    let cooling = Duration::from_millis(300);
    Rule {
        name: name.into(),
        pattern,
        levels: vec![level],
        min_hot: Duration::from_millis(500),
        cooling,
        plan,
    }
}

fn detector(max_hot_keys: usize) -> Detector {
    let level = Level::new(Metric::Ops, 100.0, 0.1);
    let rules = RuleSet::new(vec![rule("all", Pattern::Any, level)]).unwrap();
    Detector::new(
        rules,
        DetectorSettings {
            window: SECOND,
            max_hot_keys,
            max_candidates: 64,
        },
    )
}

fn reads(reads: u64) -> Counts {
    let reads = Bound::exact(reads);
    Counts {
        reads,
        ops: reads,
        ..Counts::default()
    }
}

fn report(total: u64, keys: &[(u64, u64)]) -> ShardReport {
    ShardReport {
        reporter: 0,
        totals: vec![(
            0,
            Totals {
                reads: total,
                ..Totals::default()
            },
        )],
        keys: keys
            .iter()
            .map(|(key, count)| (*key, reads(*count)))
            .collect(),
        error: ErrorBound::default(),
    }
}

fn name(key: u64) -> Vec<u8> {
    format!("key:{key}").into_bytes()
}

/// One key's life by the book: enter at 100/s and a tenth, hold at half, 300 ms of cooling, 500 ms hot.
#[derive(Clone, Copy)]
enum Naive {
    Cold,
    Hot(u64),
    Cooling(u64, u64),
}

impl Naive {
    fn look(&mut self, count: u64, total: u64, now: u64) {
        let enters = count >= 100 && count * 10 >= total && total > 0;
        let holds = count >= 50 && count * 20 >= total && total > 0;
        if let (Self::Hot(since), false) = (*self, holds) {
            *self = Self::Cooling(since, now);
        }
        match *self {
            Self::Cold if enters => *self = Self::Hot(now),
            Self::Cooling(since, _) if enters => *self = Self::Hot(since),
            Self::Cooling(since, from) if now - from >= 300 * MS && now - since >= 500 * MS => {
                *self = Self::Cold;
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn states_are_those_of_the_plain_machine(
        looks in prop::collection::vec((0..260_u64, prop::sample::select(vec![0_u64, 400, 1000, 2000])), 1..60),
    ) {
        let (mut detector, mut naive) = (detector(10), Naive::Cold);
        let mut version = 0;
        for (tick, (count, total)) in (1..).zip(looks) {
            let now = tick * TICK;
            detector.nominate(&name(1), 1, 0, now);
            let was_hot = !matches!(naive, Naive::Cold);
            naive.look(count, total, now);
            let has_changed = detector.judge(&[report(total, &[(1, count)])], now);
            let hot_set = detector.hot_set();
            let seen = hot_set.get(1).map(|key| (key.state, key.since));
            let expected = match naive {
                Naive::Cold => None,
                Naive::Hot(since) => Some((HotState::Hot, since)),
                Naive::Cooling(since, _) => Some((HotState::Cooling, since)),
            };
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(has_changed, was_hot == matches!(naive, Naive::Cold));
            version += u64::from(has_changed);
            prop_assert_eq!(hot_set.version, version);
        }
    }

    /// However a key's traffic is dealt out, someone who sees enough of it brings it forward, even
    /// where the level is exactly what the key has.
    #[test]
    fn a_key_at_its_level_is_nominated_by_someone(
        parts in prop::collection::vec((0..80_u64, 0..3000_u64), 1..7),
        of_rate in prop::sample::select(vec![0.0, 0.5, 1.0]),
        of_share in prop::sample::select(vec![0.0, 0.5, 1.0]),
    ) {
        let count: u64 = parts.iter().map(|part| part.0).sum();
        let total: u64 = parts.iter().map(|part| part.0 + part.1).sum();
        prop_assume!(count > 0 && (of_rate > 0.0 || of_share > 0.0));
        // A share without a rate asks for two hits at one reporter.
        prop_assume!(of_rate > 0.0 || parts.iter().all(|part| part.0 >= 2));
        let (enter_per_s, share) = (count as f64 * of_rate, count as f64 / total as f64 * of_share);
        let rules = RuleSet::new(vec![rule("all", Pattern::Any, Level::new(Metric::Reads, enter_per_s, share))]);
        let nominator = Nominator::new(&rules.unwrap(), parts.len() as u32);
        let is_nominated = parts.iter().any(|(count, others)| {
            let totals = Totals { reads: count + others, ..Totals::default() };
            nominator.should_nominate(&reads(*count), &totals, SECOND)
        });
        prop_assert!(is_nominated, "{count} of {total} went unseen");
    }
}

/// The whole way: dealt out over shards, counted, checked, nominated, polled, judged.
#[test]
fn a_key_at_its_level_is_found_through_shards_and_a_cold_one_is_not() {
    let rules = RuleSet::default();
    let (shards, now_end) = (4_u64, 2_000 * MS);
    let nominator = Nominator::new(&rules, shards as u32);
    let mut detector = Detector::new(rules, DetectorSettings::default());
    let mut windows: Vec<Window> = (0..shards)
        .map(|_| Window::new(WindowSettings::default()).unwrap())
        .collect();
    let mut found_at = None;
    for access in 0..40_000_u64 {
        let now = access * now_end / 40_000; // 20,000 a second
                                             // After half a second every fiftieth access is of key 0: 400 a second, 2 %.
        let key = if access > 10_000 && access % 50 == 0 {
            0
        } else {
            1 + access % 5000
        };
        let (shard, bytes) = (
            (access / 7 % shards) as usize,
            if key == 0 { 1 } else { 100 },
        );
        let window = &mut windows[shard];
        if access % 2000 == 0 {
            window.tune_check_steps(now, |totals| nominator.check_steps(totals, SECOND));
        }
        if window.record(key, 0, Access::Read, bytes, now) {
            let counts = window.estimate(key, now);
            if nominator.should_nominate(&counts, &window.totals(0, now), SECOND) {
                detector.nominate(&name(key), key, 0, now);
            }
        }
        if access % 2000 == 1999 {
            let reports: Vec<ShardReport> = (0..)
                .zip(&windows)
                .map(|(reporter, window)| ShardReport {
                    reporter,
                    totals: vec![(0, window.totals(0, now))],
                    keys: detector
                        .candidates()
                        .iter()
                        .map(|key| (*key, window.estimate(*key, now)))
                        .collect(),
                    error: window.error(now),
                })
                .collect();
            detector.judge(&reports, now);
            let hot_set = detector.hot_set();
            assert!(hot_set.iter().all(|key| key.key_hash == 0), "{hot_set:?}");
            found_at = found_at.or(hot_set.get(0).map(|_| now));
        }
    }
    // 200 of 20,000 are reached half a second after it began.
    let found_at = found_at.unwrap();
    assert!(
        (1000 * MS..1200 * MS).contains(&found_at),
        "found at {found_at}"
    );
}

#[test]
fn a_reporter_that_leaves_a_candidate_out_may_have_missed_up_to_its_error() {
    let mut detector = detector(10);
    detector.nominate(&name(1), 1, 0, 0);
    let mut silent = report(0, &[]);
    silent.error.ops = 60;
    assert!(!detector.judge(&[report(500, &[(1, 39)]), silent.clone()], TICK));
    assert!(detector.judge(&[report(500, &[(1, 40)]), silent], TICK));
    let heat = detector.hot_set().get(1).unwrap().heat;
    assert_eq!(
        (heat.reads_per_s, heat.error_per_s, heat.share),
        (100.0, 60.0, 0.2)
    );
}

#[test]
fn a_key_twice_in_one_report_counts_once() {
    let mut detector = detector(10);
    detector.nominate(&name(1), 1, 0, 0);
    assert!(!detector.judge(&[report(500, &[(1, 60), (1, 60)])], TICK));
}

#[test]
fn only_the_hottest_stay_when_too_many_are_hot() {
    let mut detector = detector(3);
    let keys: Vec<(u64, u64)> = (0..8).map(|key| (key, 100 + key * 50)).collect();
    keys.iter()
        .for_each(|(key, _)| assert!(detector.nominate(&name(*key), *key, 0, 0)));
    assert!(detector.judge(&[report(1000, &keys)], TICK));
    let hottest: Vec<u64> = detector.hot_set().iter().map(|key| key.key_hash).collect();
    assert_eq!(hottest, [7, 6, 5]);
    assert!(!detector.judge(&[report(1000, &keys)], 2 * TICK));
}

#[test]
fn a_slightly_hotter_newcomer_takes_no_place_in_a_full_hot_set() {
    let mut detector = detector(1);
    detector.nominate(&name(1), 1, 0, 0);
    detector.nominate(&name(2), 2, 0, 0);
    detector.judge(&[report(1000, &[(1, 200), (2, 150)])], TICK);
    assert!(!detector.judge(&[report(1000, &[(1, 200), (2, 220)])], 2 * TICK));
    assert!(detector.judge(&[report(1000, &[(1, 200), (2, 300)])], 3 * TICK));
    assert!(detector.hot_set().get(2).is_some());
}

#[test]
fn candidates_are_bounded_and_the_coldest_make_room() {
    let mut detector = detector(4);
    let nominated = (0..500)
        .filter(|key| detector.nominate(&name(*key), *key, 0, 0))
        .count();
    assert_eq!(nominated, 64);
    detector.judge(&[report(1000, &[(7, 500), (8, 90)])], TICK);
    let left = detector.candidates();
    assert_eq!(left.len(), 48);
    assert!(left.contains(&7) && left.contains(&8));
    assert!(detector.nominate(&name(1000), 1000, 0, TICK));
}

#[test]
fn a_cold_candidate_nobody_nominates_ages_out() {
    let mut detector = detector(4);
    detector.nominate(&name(1), 1, 0, 0);
    detector.judge(&[], 20 * TICK);
    assert_eq!(detector.candidates(), [1]);
    detector.judge(&[], 21 * TICK);
    assert!(detector.candidates().is_empty());
}

#[test]
fn new_rules_change_the_plan_and_drop_what_no_rule_matches() {
    let mut detector = detector(4);
    detector.nominate(&name(1), 1, 0, 0);
    detector.nominate(&name(2), 2, 0, 0);
    let counts = [report(1000, &[(1, 500), (2, 400)])];
    assert!(detector.judge(&counts, TICK));
    let exact = Pattern::Exact(name(1).into());
    let watch_only = Rule {
        plan: Plan::default(),
        ..rule("watch", exact, Level::new(Metric::Ops, 10.0, 0.0))
    };
    detector.set_rules(RuleSet::new(vec![watch_only]).unwrap());
    assert!(detector.judge(&counts, 2 * TICK));
    let hot_set = detector.hot_set();
    assert_eq!(hot_set.len(), 1);
    assert!(!hot_set.get(1).unwrap().plan.local_cache);
    assert_eq!(&*hot_set.get(1).unwrap().rule, "watch");
}

#[test]
fn a_key_that_moves_is_judged_by_its_new_node() {
    let mut detector = detector(4);
    detector.nominate(&name(1), 1, 0, 0);
    let mut reports = [report(1000, &[(1, 500)])];
    reports[0].totals.push((
        5,
        Totals {
            reads: 100_000,
            ..Totals::default()
        },
    ));
    assert!(detector.judge(&reports, TICK));
    detector.set_nodes(|key| (key == name(1)).then_some(5));
    assert!(
        detector.judge(&reports, 2 * TICK),
        "a new node is a new version"
    );
    let key = detector.hot_set().get(1).cloned().unwrap();
    assert_eq!((key.node, key.state), (5, HotState::Cooling));
}

#[test]
fn another_key_with_the_same_hash_is_ignored() {
    let mut detector = detector(4);
    assert!(detector.nominate(b"first", 1, 0, 0));
    assert!(!detector.nominate(b"second", 1, 9, 0));
    detector.judge(&[report(1000, &[(1, 500)])], TICK);
    assert_eq!(&*detector.hot_set().get(1).unwrap().key, b"first");
    assert_eq!(detector.hot_set().get(1).unwrap().node, 0);
}

#[test]
fn heats_are_fresh_where_the_version_is_old() {
    let mut detector = detector(4);
    detector.nominate(&name(1), 1, 0, 0);
    detector.judge(&[report(1000, &[(1, 500)])], TICK);
    assert!(!detector.judge(&[report(1000, &[(1, 600)])], 2 * TICK));
    let hot_set = detector.hot_set();
    assert_eq!(
        (hot_set.version, hot_set.get(1).unwrap().heat.reads_per_s),
        (1, 600.0)
    );
}

#[test]
fn check_steps_follow_the_smallest_level_that_can_matter() {
    let nominator = Nominator::new(&RuleSet::default(), 2);
    let quiet = nominator.check_steps(&Totals::default(), SECOND);
    let busy = Totals {
        reads: 100_000,
        writes: 0,
        bytes: 100 << 20,
    };
    let busy = nominator.check_steps(&busy, SECOND);
    assert_eq!(quiet.0, 2); // half of 50 over 16 is one, but 25 cannot be made of ones
    assert_eq!(busy.0, 32); // half of 50 and half of 1000, over 16
    assert!(busy.1 > quiet.1);
    let none = Nominator::new(&RuleSet::new(vec![]).unwrap(), 2);
    assert_eq!(
        none.check_steps(&Totals::default(), SECOND),
        (u32::MAX, u64::MAX)
    );
}
