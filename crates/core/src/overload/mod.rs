//! What keeps a failing or crowded node from taking everybody else along; pure, time is an argument.
//!
//! - [`breaker`]: whether anything is sent to a node at all
//! - [`gradient`]: how much may be on its way there at once
//! - [`stale`]: what is answered from while it cannot

pub mod breaker;
pub mod gradient;
mod outcomes;
pub mod stale;
