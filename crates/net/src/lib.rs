//! What the proxy and the client both need of the operating system: the clock.

pub mod clock;
