//! What application threads and the tracker share, without a tracker.

use super::*;
use crate::connect::Refusal;
use crate::tracker::Opened;

/// An engine's shared part, and the queue its waker belongs to.
fn shared() -> (Shared<u32>, Poll) {
    let poll = Poll::new().unwrap();
    let waker = Waker::new(poll.registry(), tracker::WAKE).unwrap();
    let topology = Topology::standalone();
    let shared = Shared::new(Settings::default(), topology, waker, &Writes::new(1)).unwrap();
    (shared, poll)
}

#[test]
fn a_full_inbox_takes_what_nobody_would_say_again() {
    let (shared, _poll) = shared();
    while shared.tell(Message::Want { node: 0 }) {}
    assert_eq!(lock(&shared.inbox).len(), INBOX_MAX);
    let refusal = Refusal::Unreachable(String::new());
    let result = Box::new(Opened(Err(refusal)));
    let (node, attempt) = (0, 1);
    assert!(shared.tell(Message::Opened {
        node,
        attempt,
        result
    }));
    for message in [Message::Rest, Message::Topology, Message::Stop] {
        assert!(shared.tell(message));
    }
    assert!(!shared.tell(Message::Want { node: 0 }));
}

#[test]
fn refused_keys_are_remembered_within_bounds() {
    let (shared, _poll) = shared();
    let mut cached = lock(&shared.cached);
    cached.cache.source_up(SourceId(0));
    for hash in 0..=REMEMBERED_MAX as u64 {
        let key = hash.to_le_bytes();
        let token = cached.cache.begin(SourceId(0), &key, hash).unwrap();
        cached.on_refused(&token, 0);
        cached.on_fields(&token, hash, false, 0);
        assert!(cached.not_worth.len() <= REMEMBERED_MAX);
    }
}
