//! The event loop alone: one thread that answers each request of a fixed length with a fixed reply,
//! written on `mio` and on `tokio`. What differs is what a task per connection costs.
//!
//! `keyheat-bench-loop mio|tokio PORT`, then any load of 64-byte `GET`s on that port; see
//! `docs/decisions/0001-mio-in-the-shards.md`.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

/// `GET hotkey` as `redis-benchmark` sends it.
const REQUEST: usize = b"*2\r\n$3\r\nGET\r\n$6\r\nhotkey\r\n".len();

fn reply() -> Vec<u8> {
    let mut reply = b"$64\r\n".to_vec();
    reply.extend_from_slice(&[b'x'; 64]);
    reply.extend_from_slice(b"\r\n");
    reply
}

fn on_mio(address: SocketAddr) -> std::io::Result<()> {
    use mio::net::TcpListener;
    use mio::{Events, Interest, Poll, Token};
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(address)?;
    poll.registry()
        .register(&mut listener, Token(usize::MAX - 1), Interest::READABLE)?;
    let mut clients = slab::Slab::new();
    let mut events = Events::with_capacity(1024);
    let (mut buf, reply, mut out) = (vec![0; 65536], reply(), Vec::new());
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == Token(usize::MAX - 1) {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let entry = clients.vacant_entry();
                    let both = Interest::READABLE | Interest::WRITABLE;
                    poll.registry()
                        .register(&mut stream, Token(entry.key()), both)?;
                    entry.insert(stream);
                }
                continue;
            }
            let Some(client) = clients.get_mut(event.token().0) else {
                continue;
            };
            if !event.is_readable() {
                continue;
            }
            match client.read(&mut buf) {
                Ok(0) => {
                    clients.remove(event.token().0);
                }
                Ok(n) => {
                    out.clear();
                    for _ in 0..n / REQUEST {
                        out.extend_from_slice(&reply);
                    }
                    client.write_all(&out)?;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    clients.remove(event.token().0);
                }
            }
        }
    }
}

fn on_tokio(address: SocketAddr) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(async move {
                let (mut buf, reply, mut out) = (vec![0; 65536], reply(), Vec::new());
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    out.clear();
                    for _ in 0..n / REQUEST {
                        out.extend_from_slice(&reply);
                    }
                    if stream.write_all(&out).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let port = words.get(2).and_then(|w| w.parse().ok()).unwrap_or(7399);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    match words.get(1).map(String::as_str) {
        Some("mio") => on_mio(address),
        Some("tokio") => on_tokio(address),
        _ => Err(std::io::Error::other(
            "usage: keyheat-bench-loop mio|tokio PORT",
        )),
    }
}
