//! The engine inside a protected client: counts what the application asks for, finds its hot keys,
//! and keeps their values while it is proved that nothing was missed. No Python in here.
//!
//! # Layout
//!
//! In the order in which a command meets them:
//!
//! - [`settings`]: what an engine is told at start.
//! - [`engine`]: what application threads call: count, read, wrote. Never waits for a server.
//! - [`flight`]: a read on its way that others may join.
//! - [`tracker`]: the one thread behind it: tracking connections, heartbeats, judging.
//! - [`connect`]: opening a tracking connection, which may block and so has threads of its own.
//!
//! # Threads
//!
//! Application threads meet the tracker in three places, each locked for less than a microsecond: two
//! counting windows (whoever finds the first taken counts in the second), the cache, the tracker's
//! inbox. No lock is held while anything is sent, awaited or freed, and no thread but the tracker's
//! ever waits for the server because of us.

pub mod connect;
pub mod engine;
pub mod flight;
pub mod settings;
pub mod stats;
pub mod topology;
pub mod tracker;

pub use connect::{Connector, Dialed, Login, Refusal};
pub use engine::{Engine, Lead, Query, Read, Writes};
pub use flight::Flight;
pub use settings::Settings;
pub use topology::{Node, Topology};
