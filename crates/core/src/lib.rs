//! The pure heart of keyheat: counting, judging and caching, without a clock, a thread or a socket.
//!
//! Every decision keyheat makes about a key is made here, by values that are told everything: what
//! was accessed, when (`now` is an argument everywhere), what a server has pushed. So each of them
//! runs the same in the proxy, in a Python client, in a test that plays a day in a second, and has a
//! slow exact twin it is tested against.
//!
//! # Layout
//!
//! In the order in which an access meets them:
//!
//! - [`hash`]: the one hash of a key that all processes agree on.
//! - [`window`]: how often each key was read and written lately, in bounded memory, each answer
//!   with a hard lower and upper bound.
//! - [`summary`]: a window in a few bytes, to be sent away and merged with others.
//! - [`rule`]: which keys, how hot, what to do.
//! - [`detect`]: reporters nominate, a detector sums and judges: cold, hot, cooling.
//! - [`hotset`]: the versioned verdict that is handed out.
//! - [`expiry`]: what the keys of a business entity get, for a while.
//! - [`fence`]: writes seen by this process void what was read before them.
//! - [`proof`]: how long ago it was certain that no invalidation is missing.
//! - [`cache`]: the values of hot keys, served only inside that proof.
//! - [`overload`]: when a node is left alone, and how much it is sent at once.

use std::fmt;

pub mod cache;
pub mod detect;
pub mod expiry;
pub mod fence;
pub mod hash;
pub mod hotset;
pub mod lockmarks;
pub mod overload;
pub mod proof;
pub mod rule;
pub mod summary;
pub mod window;

/// A moment, in nanoseconds of a clock that never goes back and that counts suspended time.
///
/// Only differences mean anything, so any origin will do, as long as one structure always sees the
/// same clock.
pub type Nanos = u64;

/// Settings that contradict themselves or exceed what a structure can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    /// The setting that is wrong, as it is spelled in the settings struct.
    pub setting: &'static str,
    /// What would be accepted instead.
    pub accepted: &'static str,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "setting `{}` is out of range: {}",
            self.setting, self.accepted
        )
    }
}

impl std::error::Error for SettingsError {}

/// A span of time as [`Nanos`], saturating where a `Duration` is longer than 584 years.
pub(crate) fn nanos(span: std::time::Duration) -> Nanos {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
