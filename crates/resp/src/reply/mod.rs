//! Replies: where each begins and ends, and, where that is wanted, what it says.
//!
//! [`ReplyScanner`] follows a stream of replies and passes the bytes on as they come: it keeps no
//! buffer, so a reply of any size streams through. [`parse`] builds an owned [`Value`], for
//! control traffic.
//!
//! Both read all types of RESP2 and RESP3. A push (`>`) is a frame of its own. An attribute (`|`)
//! and the reply it precedes are one frame. The streamed types of the RESP3 draft (`$?`, `*?`)
//! are errors: no server sends them.
//!
//! What one accepts the other accepts too: both read header lines by the same code.
//!
//! [`is_absent`] and [`has_null`] tell from a frame, without building anything, what an absent key answers.

mod absent;
mod header;
mod scan;
mod value;

pub use absent::{has_null, is_absent};
pub use scan::{ReplyScanner, Scan};
pub use value::{parse, Value};

#[cfg(test)]
mod tests;
