//! RESP2 and RESP3 without I/O: where a request or a reply begins and ends, which keys a command
//! names, and which slot a key belongs to.
//!
//! The crate reads bytes that others received and appends bytes that others send. It holds no
//! socket, no buffer and no clock, and nothing in it panics, whatever the bytes.
//!
//! # Layout
//!
//! In the order that explains it:
//!
//! - [`request`]: frames what a client sends: multibulk and inline requests, pipelined and split
//!   anywhere. Arguments are ranges of the caller's buffer.
//! - [`command`]: what a request means before it is run: its keys, whether it writes, whether its
//!   answer may be cached, whether it needs a connection of its own. The table is generated from
//!   real servers and lies in `data/`.
//! - [`slot`]: the Cluster slot of a key.
//! - [`reply`]: frames what a server sends, as a stream ([`reply::ReplyScanner`]) or as owned
//!   values ([`reply::parse`]).
//! - [`tracking`]: what is said on a connection that tracks keys.
//! - [`number`]: numbers as the server reads them.
//! - [`encode`]: appends requests and replies to a buffer.
//! - [`Limits`] and [`ProtocolError`]: how much is accepted, and what is said when it is too much.
//!
//! # Cost
//!
//! Every byte is looked at once, however the input is split: both parsers remember how far they
//! came, and the content of a bulk is skipped rather than read. The ordinary request allocates
//! nothing once a parser has seen as many arguments before.

pub mod command;
pub mod encode;
mod error;
mod limits;
pub mod number;
pub mod reply;
pub mod request;
pub mod slot;
pub mod tracking;

pub use encode::Protocol;
pub use error::{ErrorKind, ProtocolError};
pub use limits::Limits;
