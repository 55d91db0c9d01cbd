//! Copies of hot keys on the other primaries of a Cluster: names, scripts, and who makes them.
//!
//! The algorithm, and why no copy older than an acknowledged write is left, is told in
//! `python/keyheat/mitigate/_copies_core.py`, whose copies are the same keys: proxies and protected clients
//! share them. What differs is where the parts run. Here the *maker*, a thread, owns keys and makes their
//! copies ([`maker`]); the shards read copies, and void them before a write is answered (`shard/copies.rs`).
//!
//! # Layout
//! - [`names`]: where copies lie and what they are called
//! - [`scripts`]: the server's side
//! - [`maker`]: the owner's rounds

pub(crate) mod maker;
pub(crate) mod names;
pub mod scripts;
