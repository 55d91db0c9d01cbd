//! One attempt to connect, on a thread of its own, whose end the tracker hears of whatever happens.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use super::{Message, Opened};
use crate::connect::{self, Connector, Refusal};
use crate::engine::Shared;
use crate::topology::Node;

/// An attempt under way. Dropped (done, unwound by a panic, or never begun) it tells the tracker, which
/// otherwise would wait for it for ever.
pub(super) struct Dial<V> {
    shared: Arc<Shared<V>>,
    connector: Option<Arc<dyn Connector>>,
    number: u32,
    attempt: u64,
    result: Option<Opened>,
}

impl<V> Dial<V> {
    pub fn new(
        shared: Arc<Shared<V>>,
        connector: Arc<dyn Connector>,
        number: u32,
        attempt: u64,
    ) -> Self {
        shared.dialling.fetch_add(1, Relaxed);
        Self {
            shared,
            connector: Some(connector),
            number,
            attempt,
            result: None,
        }
    }

    /// Connects; blocks.
    pub fn run(mut self, node: &Node) {
        let timeout = Duration::from_millis(self.shared.settings.connect_timeout_ms);
        if let Some(connector) = &self.connector {
            self.result = Some(Opened(connect::open(&**connector, node, timeout)));
        }
    }
}

impl<V> Drop for Dial<V> {
    fn drop(&mut self) {
        drop(self.connector.take()); // the language's own, while it is still there
        let died = || {
            Opened(Err(Refusal::Unreachable(
                "the attempt to connect died".into(),
            )))
        };
        let result = Box::new(self.result.take().unwrap_or_else(died));
        self.shared.dialling.fetch_sub(1, Relaxed);
        self.shared.tell(Message::Opened {
            node: self.number,
            attempt: self.attempt,
            result,
        });
    }
}
