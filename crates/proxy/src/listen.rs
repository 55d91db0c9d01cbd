//! Accepting clients, and dealing them out to the shards in turn.
//!
//! One thread accepts for all. `SO_REUSEPORT` would let the kernel deal by hash, which with tens
//! of clients leaves one core with a third more of them than another; in turn is even. Between
//! processes it is what there is (`reuse_port`). The listeners are closed as soon as a drain begins,
//! or the kernel would go on dealing to a proxy that takes nobody.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use crate::control::{ShardHandle, Shared};
use crate::listener::{Arrival, Listener};
use crate::parts;
use crate::seldom::Seldom;
use crate::shard::ToShard;

const STOP: Token = Token(usize::MAX);

/// Accepts until told to stop.
pub(crate) struct Acceptor {
    waker: Waker,
    is_stopped: Arc<AtomicBool>,
    pub thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    pub fn start(
        mut listeners: Vec<Listener>,
        shards: Vec<ShardHandle>,
        shared: Arc<Shared>,
    ) -> std::io::Result<Self> {
        let mut poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), STOP)?;
        for (number, listener) in listeners.iter_mut().enumerate() {
            listener.register(poll.registry(), Token(number))?;
        }
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_stopped);
        let thread = std::thread::Builder::new()
            .name("keyheat-accept".into())
            .spawn(move || {
                parts::keep_running("accept", &shared.parts_dead, |_| {
                    let accepted = run(&listeners, &mut poll, &shards, &shared, &stopped);
                    accepted.map_err(|e| e.to_string())
                });
            })?;
        Ok(Self {
            waker,
            is_stopped,
            thread: Some(thread),
        })
    }

    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        let _ = self.waker.wake();
    }
}

fn run(
    listeners: &[Listener],
    poll: &mut Poll,
    shards: &[ShardHandle],
    shared: &Shared,
    is_stopped: &AtomicBool,
) -> std::io::Result<()> {
    let mut events = Events::with_capacity(8);
    let mut turn = 0;
    let mut cut = Seldom::default();
    // After a failure (no file descriptors left, say) the event does not come again; nor does that of clients
    // who came before a start anew.
    let mut retry = Some(Duration::ZERO);
    loop {
        if let Err(e) = poll.poll(&mut events, retry) {
            if e.kind() != std::io::ErrorKind::Interrupted {
                return Err(e);
            }
        }
        retry = None;
        for listener in listeners {
            if !accept_all(listener, shards, shared, is_stopped, &mut turn, &mut cut) {
                retry = Some(Duration::from_millis(100));
            }
        }
        if is_stopped.load(Ordering::Acquire) {
            return Ok(());
        }
    }
}

/// Accepts whoever waits. Returns false if that failed, and is to be tried again.
fn accept_all(
    listener: &Listener,
    shards: &[ShardHandle],
    shared: &Shared,
    is_stopped: &AtomicBool,
    turn: &mut usize,
    cut: &mut Seldom,
) -> bool {
    while !is_stopped.load(Ordering::Acquire) {
        match listener.accept() {
            Ok(Arrival::Stranger(peer)) => {
                let why = "it is in none of the networks that may connect";
                cut.tell(&peer.to_string(), "proxy_protocol_trusted", why);
            }
            Ok(Arrival::Client(mut stream, peer)) => {
                let clients: i64 = shared.stats.iter().map(|s| s.clients.get()).sum();
                if clients >= shared.settings.load().clients_max as i64 {
                    cut.tell(&peer, "clients_max", "as many as may are connected");
                    let _ = stream.write(b"-ERR max number of clients reached\r\n");
                    continue;
                }
                let mut message = ToShard::Client(stream, peer);
                // A shard that has died (a bug) must not swallow its share of the clients.
                for _ in 0..shards.len() {
                    *turn += 1;
                    match shards[*turn % shards.len()].tell(message) {
                        Ok(()) => break,
                        Err(returned) => message = returned,
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(e) => {
                tracing::warn!("cannot accept a client: {e}");
                return false;
            }
        }
    }
    true
}
