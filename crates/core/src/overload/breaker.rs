//! Circuit breaker of one node: what keeps failing is left alone until a probe succeeds.
//!
//! ```text
//! closed ──too many failed or slow──▶ open ──pause over──▶ half-open
//!   ▲                                  ▲                     │  │
//!   │                                  └─── a probe failed ──┘  │
//!   └── ramp over ── recovering ◀──── enough probes succeeded ──┘
//!                        └── too many failed or slow ──▶ open (longer)
//! ```
//!
//! *What it is.* Without it each request to a node that is failing waits for nothing, and those who wait pile
//! up. It is the one of the Python client (`mitigate/breaker.py`), with the same words.
//!
//! *Closed.* Outcomes are counted over a sliding window. It opens when at least `calls_min` calls ended and
//! the share of failed ones reaches `error_rate`, or at least `calls_min` times were taken and the share of
//! slow ones reaches `slow_rate`. What needs no counting (nobody listens there; nothing at all is answered)
//! opens it at once: [`Breaker::fail`].
//!
//! *Open.* The pause doubles with each opening in a row, up to `open_max`, give or take a fifth: a fleet that
//! lost a node together must not come back together.
//!
//! *Half-open.* At most `probes_at_once` calls are under way; one that never ends is held to be lost after
//! `probe_timeout`. `probes_needed` answers end it, one failure opens again.
//!
//! *Recovering.* The share of calls let through grows in a straight line from a tenth to all over
//! `recovery`, or over the time for which the node was failing where that was less: what was away for a blink
//! has lost nothing. It is by count, not by chance. Departure from the client's: as long as fewer than
//! [`TRICKLE`] calls are under way all pass, since so few harm no node, and a quiet one has no errors.
//!
//! Cost: nothing per call while closed; the caller adds up and tells now and then. Source: M. Nygard, *Release
//! It!* (2007); window and slow rate as in Resilience4j; the ramp is "slow start" in Envoy.

use super::outcomes::Outcomes;
use crate::Nanos;

pub use super::outcomes::Sums;

/// So many calls under way harm no node that has just come back.
pub const TRICKLE: usize = 16;
const RECOVERY_FROM: f64 = 0.1;
const JITTER: f64 = 0.2;

/// When a breaker opens, and how it closes again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerSettings {
    /// Over which outcomes are counted.
    pub window: Nanos,
    /// Fewer than this within the window never open it.
    pub calls_min: u32,
    /// Share of failed calls that opens it.
    pub error_rate: f64,
    /// Share of slow answers that opens it; above 1 they never do.
    pub slow_rate: f64,
    /// The first pause.
    pub open: Nanos,
    /// The longest.
    pub open_max: Nanos,
    /// Calls let through at the same time while half-open.
    pub probes_at_once: u32,
    /// Answers in a row before calls pass again.
    pub probes_needed: u32,
    /// A probe that has not ended by then is held to be lost.
    pub probe_timeout: Nanos,
    /// Until all calls pass again.
    pub recovery: Nanos,
}

/// Where a breaker is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// All calls pass.
    #[default]
    Closed,
    /// None does.
    Open,
    /// A few do, to find out.
    HalfOpen,
    /// A share does, that grows.
    Recovering,
}

/// See the module's description.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    state: State,
    /// End of the pause.
    until: Nanos,
    /// When the first of the openings in a row was.
    failing_since: Nanos,
    /// Start of the recovery, and its length.
    since: Nanos,
    ramp: Nanos,
    in_a_row: u32,
    window: Outcomes,
    probes: u32,
    probed_at: Nanos,
    succeeded: u32,
    credit: f64,
    /// How often it has opened.
    pub opened: u64,
}

impl Breaker {
    /// Where it is, as of the last call of a method that is told the time.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Time passes. Returns whether something changed.
    pub fn advance(&mut self, now: Nanos) -> bool {
        match self.state {
            State::Open if now >= self.until => self.enter(State::HalfOpen),
            State::Recovering if now >= self.since + self.ramp => {
                self.in_a_row = 0;
                self.enter(State::Closed);
            }
            _ => return false,
        }
        true
    }

    /// Openings without a whole recovery between them.
    #[must_use]
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// When the first of the openings in a row was.
    #[must_use]
    pub fn failing_since(&self) -> Nanos {
        self.failing_since
    }

    /// Until the next try; 0 unless open.
    #[must_use]
    pub fn retry_after(&self, now: Nanos) -> Nanos {
        match self.state {
            State::Open => self.until.saturating_sub(now),
            _ => 0,
        }
    }

    /// What was counted within the window.
    #[must_use]
    pub fn counted(&self, now: Nanos, settings: &BreakerSettings) -> Sums {
        self.window.sums(now, settings.window)
    }

    /// Whether a call may begin.
    ///
    /// Args: `under_way` calls at the node now.
    pub fn admit(&mut self, now: Nanos, under_way: usize, settings: &BreakerSettings) -> bool {
        self.advance(now);
        match self.state {
            State::Closed => true,
            State::Open => false,
            State::HalfOpen => {
                if now >= self.probed_at + settings.probe_timeout {
                    self.probes = 0;
                }
                if self.probes >= settings.probes_at_once {
                    return false;
                }
                self.probes += 1;
                self.probed_at = now;
                true
            }
            State::Recovering => {
                let share = (now - self.since) as f64 / self.ramp.max(1) as f64;
                self.credit += share.max(RECOVERY_FROM);
                if self.credit >= 1.0 {
                    self.credit -= 1.0;
                    return true;
                }
                under_way < TRICKLE
            }
        }
    }

    /// Calls have ended. Returns whether it has opened.
    ///
    /// Args: `chance` uniform in [0, 1), for the jitter.
    pub fn note(
        &mut self,
        now: Nanos,
        ended: Sums,
        chance: f64,
        settings: &BreakerSettings,
    ) -> bool {
        let is_failing = match self.state {
            // What was on its way when it opened says nothing new.
            State::Open => false,
            State::HalfOpen => ended.failures > 0 || ended.slow > 0,
            State::Closed | State::Recovering => {
                self.window.add(now, settings.window, ended);
                let sums = self.window.sums(now, settings.window);
                let is_most = |some: u32, of: u32, rate: f64| {
                    of >= settings.calls_min && f64::from(some) >= f64::from(of) * rate
                };
                is_most(sums.failures, sums.calls, settings.error_rate)
                    || is_most(sums.slow, sums.timed, settings.slow_rate)
            }
        };
        if is_failing {
            self.open(now, chance, settings);
        } else if self.state == State::HalfOpen {
            self.note_probes(now, ended.calls, settings);
        }
        is_failing
    }

    /// Probes were answered well.
    fn note_probes(&mut self, now: Nanos, answered: u32, settings: &BreakerSettings) {
        // More may have ended than probes: what was on its way before, and was answered well.
        self.probes = self.probes.saturating_sub(answered);
        self.succeeded = self.succeeded.saturating_add(answered);
        if self.succeeded >= settings.probes_needed {
            self.recover(now, settings);
        }
    }

    /// The node has failed beyond doubt. Returns whether it has opened by that.
    pub fn fail(&mut self, now: Nanos, chance: f64, settings: &BreakerSettings) -> bool {
        // Several connections fail together: that is one failure.
        if self.state == State::Open {
            return false;
        }
        self.open(now, chance, settings);
        true
    }

    /// The node works beyond doubt.
    pub fn prove(&mut self, now: Nanos, settings: &BreakerSettings) {
        if matches!(self.state, State::Open | State::HalfOpen) {
            self.recover(now, settings);
        }
    }

    fn recover(&mut self, now: Nanos, settings: &BreakerSettings) {
        self.window = Outcomes::default();
        self.since = now;
        self.ramp = settings
            .recovery
            .min(now.saturating_sub(self.failing_since));
        self.enter(State::Recovering);
        self.advance(now);
    }

    fn open(&mut self, now: Nanos, chance: f64, settings: &BreakerSettings) {
        if self.in_a_row == 0 {
            self.failing_since = now;
        }
        let doubled = settings.open.saturating_mul(1 << self.in_a_row.min(24));
        let pause = doubled.min(settings.open_max) as f64;
        self.until = now + (pause * (1.0 + JITTER * (2.0 * chance - 1.0))) as Nanos;
        self.in_a_row += 1;
        self.opened += 1;
        self.enter(State::Open);
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.probes = 0;
        self.probed_at = 0;
        self.succeeded = 0;
        self.credit = 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    fn settings() -> BreakerSettings {
        BreakerSettings {
            window: 1_000 * MS,
            calls_min: 10,
            error_rate: 0.5,
            slow_rate: 0.8,
            open: 100 * MS,
            open_max: 350 * MS,
            probes_at_once: 2,
            probes_needed: 3,
            probe_timeout: 1_000 * MS,
            recovery: 1_000 * MS,
        }
    }

    fn ended(calls: u32, failures: u32) -> Sums {
        Sums {
            calls,
            failures,
            ..Sums::default()
        }
    }

    fn note(breaker: &mut Breaker, now: Nanos, calls: u32, failures: u32) -> bool {
        breaker.note(now, ended(calls, failures), 0.5, &settings())
    }

    #[test]
    fn few_calls_never_open_it_and_half_of_many_do() {
        let mut breaker = Breaker::default();
        assert!(!note(&mut breaker, 0, 9, 9));
        let mut breaker = Breaker::default();
        assert!(!note(&mut breaker, 0, 10, 4));
        assert!(note(&mut breaker, 1, 2, 2));
        assert_eq!(breaker.state(), State::Open);
        assert!(!breaker.admit(2, 0, &settings()));
        assert_eq!(breaker.retry_after(1), 100 * MS);
    }

    #[test]
    fn slow_answers_open_it() {
        let mut breaker = Breaker::default();
        let slow = |slow| Sums {
            timed: 10,
            slow,
            ..Sums::default()
        };
        assert!(!breaker.note(0, slow(7), 0.5, &settings()));
        assert!(breaker.note(1, slow(10), 0.5, &settings()));
    }

    #[test]
    fn the_pause_doubles_to_its_cap_and_is_jittered() {
        let mut breaker = Breaker::default();
        let mut now = 0;
        for pause in [100, 200, 350, 350] {
            assert!(breaker.fail(now, 0.5, &settings()));
            assert!(!breaker.fail(now, 0.5, &settings()), "one failure");
            assert_eq!(breaker.retry_after(now), pause * MS);
            now += pause * MS;
            assert!(breaker.admit(now, 0, &settings()));
        }
        let mut early = Breaker::default();
        early.fail(0, 0.0, &settings());
        assert_eq!(early.retry_after(0), 80 * MS);
    }

    #[test]
    fn probes_are_bounded_and_one_that_is_lost_is_given_up() {
        let mut breaker = Breaker::default();
        breaker.fail(0, 0.5, &settings());
        let now = 100 * MS;
        assert!(breaker.admit(now, 0, &settings()));
        assert!(breaker.admit(now, 0, &settings()));
        assert!(!breaker.admit(now, 0, &settings()));
        note(&mut breaker, now, 1, 0);
        assert!(breaker.admit(now, 0, &settings()));
        assert!(!breaker.admit(now, 0, &settings()));
        assert!(breaker.admit(now + 1_000 * MS, 0, &settings()));
        assert!(note(&mut breaker, now, 1, 1));
        assert_eq!(breaker.state(), State::Open);
    }

    #[test]
    fn the_share_that_passes_grows_to_all() {
        let mut breaker = Breaker::default();
        breaker.fail(0, 0.5, &settings());
        let now = 2_000 * MS;
        breaker.advance(now);
        note(&mut breaker, now, 3, 0);
        assert_eq!(breaker.state(), State::Recovering);
        let mut passed = |at: Nanos| {
            (0..100)
                .filter(|_| breaker.admit(at, TRICKLE, &settings()))
                .count()
        };
        assert!((9..=10).contains(&passed(now)));
        assert!((49..=51).contains(&passed(now + 500 * MS)));
        assert_eq!(passed(now + 1_000 * MS), 100);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn few_calls_pass_while_it_recovers_and_a_blink_needs_no_ramp() {
        let mut breaker = Breaker::default();
        breaker.fail(0, 0.5, &settings());
        breaker.advance(2_000 * MS);
        note(&mut breaker, 2_000 * MS, 3, 0);
        assert!(breaker.admit(2_000 * MS, TRICKLE - 1, &settings()));
        let mut blink = Breaker::default();
        blink.fail(0, 0.5, &settings());
        blink.prove(30 * MS, &settings());
        assert!(!blink.admit(31 * MS, TRICKLE, &settings()));
        assert!(blink.admit(60 * MS, TRICKLE, &settings()));
        assert_eq!(blink.state(), State::Closed);
    }
}
