//! What the proxy and the client both need of the outside: the clock, locks, and streams that are encrypted.

pub mod clock;
mod lock;
pub mod tls;

pub use lock::lock;
