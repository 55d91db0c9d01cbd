//! The server's side of copies: short scripts, each on keys of one slot. Every one may be run twice.

/// Owner, lease in ms, the register's ttl, places → {1, version, server's ms} or {0}.
pub const LEASE: &str = include_str!("lease.lua");
/// The register's ttl, how long places count → {new version, places that may hold a copy}.
pub const MOVE: &str = include_str!("move.lua");
/// Version, digest, deadline, the fence's ttl, perhaps the value → 1 placed, 0 voided, -1 the value is needed.
pub const PLACE: &str = include_str!("place.lua");
/// Version, the fence's ttl → 1 the copy is gone, 0 it was already.
pub const FENCE: &str = include_str!("fence.lua");
/// Deletes a key that has a value.
pub const DELETE_IF: &str = include_str!("delete_if.lua");
