//! The staleness proof: until when it is certain that no invalidation is missing.
//!
//! # What is promised
//!
//! *A read served locally, and started at time t, never returns a value that was overwritten by a
//! write acknowledged before t − `max_staleness`, measured against the primary that the server
//! itself still lets serve.* A split brain adds the server's own window (the node timeout of a
//! Cluster; without bound under Sentinel unless `min-replicas-to-write` is set).
//!
//! # Why it holds
//!
//! One connection per primary has server-assisted tracking switched on. For a key read there the
//! server remembers this connection, and at the first write of the key it queues an invalidation
//! for it *before* it queues the writer's reply. Replies and invalidations to one connection stay in
//! order.
//!
//! A request is sent on that connection at local time s, and its reply arrives. A write that was
//! acknowledged before s was executed before the request was, so its invalidation stands in the
//! connection's queue before the request's reply; the reply is here, therefore the invalidation was
//! here earlier. If everything that arrived before the reply has been applied, then no entry that is
//! left holds a value that was overwritten by a write acknowledged before s. That is a *proof as of
//! s*.
//!
//! A read starts at t and is judged at that instant: it is served locally only if t − s ≤
//! `max_staleness` for the newest s. Any write acknowledged before t − `max_staleness` was
//! acknowledged before s, so its entry is gone. ∎
//!
//! # What the caller owes
//!
//! - s is read before the request is handed to the socket. Later is wrong by the time in between.
//! - [`Proof::proved`] is called after everything that arrived before the reply was applied, in
//!   *every* shard that serves from this connection.
//! - The clock never goes back and counts the time the machine was suspended.
//! - The request proves that the node still serves: `ROLE`, and in a Cluster a keyed read of each
//!   cached slot. `PING` proves only that something answers. On MOVED or ASK everything of that slot is
//!   dropped before the proof is reported, for it proves the other slots only. On CLUSTERDOWN, LOADING or
//!   a replica's ROLE: no proof, and the generation is dropped.
//! - After a reconnect [`Proof::lapse`] is called and nothing of the old connection is kept.
//!
//! Nothing else counts as evidence: not the absence of an error, not a connection that looks open. A
//! half-open connection sends no invalidation and no reply either, so the proof runs out by itself.
//!
//! A proof that lapses keeps its entries: the next reply on the same connection makes them servable
//! again, for whatever was overwritten meanwhile was invalidated before that reply.

use std::time::Duration;

use crate::{nanos, Nanos};

/// The newest proof of one tracking connection.
#[derive(Debug, Clone)]
pub struct Proof {
    max_staleness: Nanos,
    as_of: Option<Nanos>,
}

impl Proof {
    /// No proof yet. A `max_staleness` of zero means that nothing is ever served locally.
    pub fn new(max_staleness: Duration) -> Self {
        Self {
            max_staleness: nanos(max_staleness),
            as_of: None,
        }
    }

    /// Changes the bound, from the next read on. The evidence stays.
    pub fn set_max_staleness(&mut self, max_staleness: Duration) {
        self.max_staleness = nanos(max_staleness);
    }

    /// A reply to a request sent at `sent_at` arrived, and all before it is applied.
    ///
    /// Replies may be reported out of order: the newest counts.
    pub fn proved(&mut self, sent_at: Nanos) {
        self.as_of = self.as_of.max(Some(sent_at));
    }

    /// Whether a read that starts at `now` may be served locally.
    #[inline]
    pub fn is_live(&self, now: Nanos) -> bool {
        // `now` may lie a little before the newest request when the two were read on two threads.
        self.max_staleness > 0
            && self
                .as_of
                .is_some_and(|as_of| now.saturating_sub(as_of) <= self.max_staleness)
    }

    /// Forgets the proof: the connection is gone, or the node no longer serves.
    pub fn lapse(&mut self) {
        self.as_of = None;
    }

    /// How old the newest proof is.
    pub fn age(&self, now: Nanos) -> Option<Nanos> {
        self.as_of.map(|as_of| now.saturating_sub(as_of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Proof {
        Proof::new(Duration::from_nanos(100))
    }

    #[test]
    fn nothing_is_proved_at_first() {
        assert!(!proof().is_live(0));
        assert_eq!(proof().age(5), None);
    }

    #[test]
    fn a_proof_counts_from_the_sending_and_ends_after_the_bound() {
        let mut proof = proof();
        proof.proved(1000);
        assert!(proof.is_live(1100));
        assert!(!proof.is_live(1101));
        assert_eq!(proof.age(1101), Some(101));
    }

    #[test]
    fn an_older_reply_never_takes_a_newer_proof_back() {
        let mut proof = proof();
        proof.proved(1000);
        proof.proved(500);
        assert!(proof.is_live(1100));
    }

    #[test]
    fn a_lapsed_proof_needs_a_new_reply() {
        let mut proof = proof();
        proof.proved(1000);
        proof.lapse();
        assert!(!proof.is_live(1000));
        proof.proved(1001);
        assert!(proof.is_live(1001));
    }

    #[test]
    fn a_bound_of_zero_switches_local_serving_off() {
        let mut proof = Proof::new(Duration::ZERO);
        proof.proved(1000);
        assert!(!proof.is_live(1000));
    }
}
