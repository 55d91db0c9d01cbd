//! Cold, hot, cooling: the states of one key, and what moves it.
//!
//! ```text
//! cold ──enter──▶ hot ──below exit──▶ cooling ──cooled, and hot for its minimum──▶ cold
//!                  ▲                     │
//!                  └───────enter─────────┘
//! ```
//!
//! Enter and exit differ (hysteresis), and leaving takes time (cooling), because what a plan sets up
//! for a key is dear to take down and set up again; on a real trace the two together took away nine in
//! ten of the re-entries. A cooling key that comes back above its exit level but not above its enter
//! level goes on cooling: it has to show that it is hot, not that it was.

use crate::rule::Rule;
use crate::{nanos, Nanos};

/// Where one candidate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Cold,
    Hot { since: Nanos },
    Cooling { since: Nanos, from: Nanos },
}

impl State {
    pub(super) fn is_cold(self) -> bool {
        self == Self::Cold
    }

    /// The state after one look. `is_entered`: some level is reached; `is_held`: some exit level is.
    pub(super) fn next(self, is_entered: bool, is_held: bool, rule: &Rule, now: Nanos) -> Self {
        match self {
            Self::Cold if is_entered => Self::Hot { since: now },
            Self::Cold => Self::Cold,
            Self::Hot { since } | Self::Cooling { since, .. } if is_entered => Self::Hot { since },
            Self::Hot { since } if is_held => Self::Hot { since },
            Self::Hot { since } => cool(since, now, rule, now),
            Self::Cooling { since, from } => cool(since, from, rule, now),
        }
    }
}

fn cool(since: Nanos, from: Nanos, rule: &Rule, now: Nanos) -> State {
    let has_cooled = now.saturating_sub(from) >= nanos(rule.cooling);
    let has_been_hot = now.saturating_sub(since) >= nanos(rule.min_hot);
    if has_cooled && has_been_hot {
        State::Cold
    } else {
        State::Cooling { since, from }
    }
}
