//! What the proxy and the client both need of the outside: the clock, and streams that are encrypted.

pub mod clock;
pub mod tls;
