//! Accepting clients, and dealing them out to the shards in turn.
//!
//! One thread accepts for all. `SO_REUSEPORT` would let the kernel deal by hash, which with tens
//! of clients leaves one core with a third more of them than another; in turn is even.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};

use crate::control::{ShardHandle, Shared};
use crate::parts;
use crate::shard::ToShard;

const LISTENER: Token = Token(0);
const STOP: Token = Token(1);

/// Accepts until told to stop.
pub(crate) struct Acceptor {
    address: SocketAddr,
    waker: Waker,
    is_stopped: Arc<AtomicBool>,
    pub thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    pub fn start(
        listener: TcpListener,
        shards: Vec<ShardHandle>,
        shared: Arc<Shared>,
    ) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let mut poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), STOP)?;
        let mut listener = mio::net::TcpListener::from_std(listener);
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&is_stopped);
        let thread = std::thread::Builder::new()
            .name("keyheat-accept".into())
            .spawn(move || {
                parts::keep_running("accept", &shared.parts_dead, |_| {
                    let accepted = run(&listener, &mut poll, &shards, &shared, &stopped);
                    accepted.map_err(|e| e.to_string())
                });
            })?;
        Ok(Self {
            address,
            waker,
            is_stopped,
            thread: Some(thread),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        let _ = self.waker.wake();
    }
}

fn run(
    listener: &mio::net::TcpListener,
    poll: &mut Poll,
    shards: &[ShardHandle],
    shared: &Shared,
    is_stopped: &AtomicBool,
) -> std::io::Result<()> {
    let mut events = Events::with_capacity(8);
    let mut turn = 0;
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
        loop {
            if is_stopped.load(Ordering::Acquire) {
                return Ok(());
            }
            match listener.accept() {
                Ok((stream, peer)) => {
                    let stream = std::net::TcpStream::from(stream);
                    let clients: i64 = shared.stats.iter().map(|s| s.clients.get()).sum();
                    if clients >= shared.settings.clients_max as i64 {
                        let _ = (&stream).write_all(b"-ERR max number of clients reached\r\n");
                        continue;
                    }
                    let _ = stream.set_nodelay(true);
                    let mut message = ToShard::Client(stream, peer.to_string());
                    // A shard that has died (a bug) must not swallow its share of the clients.
                    for _ in 0..shards.len() {
                        turn += 1;
                        match shards[turn % shards.len()].tell(message) {
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
                    retry = Some(Duration::from_millis(100));
                    break;
                }
            }
        }
    }
}
