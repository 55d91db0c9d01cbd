//! A read on its way to the server, that other callers of the process may wait for.
//!
//! Who may join, and why that breaks no promise: a flight begun at f delivers a value that was read at
//! the server after f. A caller who asks at t may take it if t − f is within the staleness bound, for
//! then no write acknowledged before t − bound came after the value was read; and only if this process
//! has written the key neither since f nor with its outcome open (the stamp still holds), so that a
//! caller always sees what was written before it asked.
//!
//! A flight ends once: with a value, or without one when its leader failed or went away. Those who
//! waited then look after themselves.

use std::sync::Mutex;

use keyheat_core::fence::EpochStamp;
use keyheat_core::Nanos;
use keyheat_net::lock;

/// Called when a flight has ended, by whoever ended it.
pub type OnEnd = Box<dyn FnOnce() + Send>;

enum State<V> {
    Aloft(Vec<OnEnd>),
    Landed(Option<V>),
}

/// See the module's description.
pub struct Flight<V> {
    pub(crate) identity: u64,
    pub(crate) variant: u64,
    pub(crate) line: Box<[u8]>,
    pub(crate) begun_at: Nanos,
    pub(crate) stamp: EpochStamp,
    state: Mutex<State<V>>,
}

impl<V> std::fmt::Debug for Flight<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}

impl<V: Clone> Flight<V> {
    pub(crate) fn new(
        identity: u64,
        variant: u64,
        line: &[u8],
        begun_at: Nanos,
        stamp: EpochStamp,
    ) -> Self {
        Self {
            identity,
            variant,
            line: line.into(),
            begun_at,
            stamp,
            state: Mutex::new(State::Aloft(Vec::new())),
        }
    }

    /// Whether it has ended, and with what.
    pub fn landed(&self) -> Option<Option<V>> {
        match &*lock(&self.state) {
            State::Aloft(_) => None,
            State::Landed(value) => Some(value.clone()),
        }
    }

    /// Has `on_end` called at the end; at once if that has come.
    pub fn on_end(&self, on_end: OnEnd) {
        {
            if let State::Aloft(waiting) = &mut *lock(&self.state) {
                waiting.push(on_end);
                return;
            }
        }
        on_end();
    }

    /// Ends it. What was to be called is returned, to be called without any lock held.
    pub(crate) fn land(&self, value: Option<V>) -> Vec<OnEnd> {
        let mut state = lock(&self.state);
        let State::Aloft(waiting) = &mut *state else {
            return Vec::new();
        };
        let waiting = std::mem::take(waiting);
        *state = State::Landed(value);
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyheat_core::fence::WriteEpochs;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{mpsc, Arc};
    use std::time::Duration;

    fn flight() -> Arc<Flight<u32>> {
        let stamp = WriteEpochs::new(1).stamp(0);
        Arc::new(Flight::new(1, 2, b"line", 0, stamp))
    }

    #[test]
    fn those_who_wait_get_the_value() {
        let flight = flight();
        let (end, ended) = mpsc::channel();
        flight.on_end(Box::new(move || {
            let _ = end.send(());
        }));
        let leader = Arc::clone(&flight);
        let landing =
            std::thread::spawn(move || leader.land(Some(7)).into_iter().for_each(|f| f()));
        ended.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(flight.landed(), Some(Some(7)));
        landing.join().unwrap();
    }

    #[test]
    fn there_is_no_value_before_the_end() {
        assert_eq!(flight().landed(), None);
    }

    #[test]
    fn it_ends_once_and_calls_everybody_once() {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let call = || -> OnEnd {
            Box::new(|| {
                CALLS.fetch_add(1, Ordering::SeqCst);
            })
        };
        let flight = flight();
        flight.on_end(call());
        flight.land(None).into_iter().for_each(|f| f());
        assert!(flight.land(Some(1)).is_empty());
        flight.on_end(call());
        assert_eq!(CALLS.load(Ordering::SeqCst), 2);
        assert_eq!(flight.landed(), Some(None));
    }
}
