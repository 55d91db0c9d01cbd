//! A stream of TLS waits where its socket would, and loses nothing.

#![allow(clippy::unwrap_used)] // helpers are tests too

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread::{spawn, JoinHandle};
use std::time::{Duration, Instant};

use keyheat_net::tls::{Authorities, Check, Client, Failure, Settings, Stream};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

const CERTIFICATE: &[u8] = include_bytes!("data/self-signed.pem");
const KEY: &[u8] = include_bytes!("data/self-signed.key");
const CHAIN: &[u8] = include_bytes!("data/chain.pem");
const TIMEOUT: Duration = Duration::from_secs(20);
const MUCH: usize = 8 << 20;

type Served = StreamOwned<ServerConnection, TcpStream>;

fn served(what: impl FnOnce(Served) + Send + 'static) -> (TcpStream, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let thread = spawn(move || {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()],
                PrivateKeyDer::from_pem_slice(KEY).unwrap(),
            )
            .unwrap();
        let session = ServerConnection::new(Arc::new(config)).unwrap();
        what(StreamOwned::new(session, listener.accept().unwrap().0));
    });
    (socket, thread)
}

fn client(check: Check, pem: &[u8], is_tls13_only: bool) -> Client {
    let authorities = Authorities {
        pem: pem.to_vec(),
        ..Authorities::default()
    };
    Client::new(&Settings {
        check,
        authorities,
        identity: None,
        is_tls13_only,
    })
    .unwrap()
}

fn connected(socket: TcpStream) -> Stream {
    let stream = client(Check::Nothing, b"", false)
        .connect(socket, "localhost", TIMEOUT)
        .unwrap();
    stream.socket().set_nonblocking(true).unwrap();
    stream
}

/// Repeats until it no longer says `WouldBlock`; the pause is that of a wait for events.
fn waited<T>(mut act: impl FnMut() -> std::io::Result<T>) -> T {
    let until = Instant::now() + TIMEOUT;
    loop {
        match act() {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < until, "nothing happens");
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done.unwrap(),
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[test]
fn a_read_waits_for_nothing_and_gets_everything() {
    let (go, wait): (Sender<()>, Receiver<()>) = channel();
    let (socket, server) = served(move |mut stream| {
        stream.flush().unwrap();
        wait.recv().unwrap();
        stream.write_all(&pattern(MUCH)).unwrap();
        stream.flush().unwrap();
        wait.recv().unwrap();
    });
    let mut stream = connected(socket);
    let mut piece = [0; 1000];
    let error = stream.read(&mut piece).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    go.send(()).unwrap();
    let mut got = Vec::new();
    while got.len() < MUCH {
        let n = waited(|| stream.read(&mut piece));
        assert_ne!(n, 0);
        got.extend_from_slice(&piece[..n]);
    }
    assert!(got == pattern(MUCH));
    let error = stream.read(&mut piece).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    go.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn what_is_already_decrypted_is_read_without_the_socket() {
    let (go, wait): (Sender<()>, Receiver<()>) = channel();
    let (socket, server) = served(move |mut stream| {
        stream.write_all(&pattern(1000)).unwrap();
        stream.flush().unwrap();
        wait.recv().unwrap();
    });
    let mut stream = connected(socket);
    let mut piece = [0; 10];
    assert_eq!(waited(|| stream.read(&mut piece)), 10);
    for _ in 1..100 {
        assert_eq!(stream.read(&mut piece).unwrap(), 10);
    }
    assert!(stream.read(&mut piece).is_err());
    go.send(()).unwrap();
    server.join().unwrap();
}

#[test]
fn a_write_waits_where_the_socket_would_and_flush_sends_the_rest() {
    let (go, wait): (Sender<()>, Receiver<()>) = channel();
    let (socket, server) = served(move |mut stream| {
        stream.flush().unwrap();
        wait.recv().unwrap();
        let mut got = vec![0; MUCH];
        stream.read_exact(&mut got).unwrap();
        assert!(got == pattern(MUCH));
        stream.write_all(b"all").unwrap();
        stream.flush().unwrap();
    });
    let mut stream = connected(socket);
    let all = pattern(MUCH);
    let mut at = 0;
    // Nobody reads there: in the end this end is full, and holds some of it back.
    let error = loop {
        match stream.write(&all[at..]) {
            Ok(n) => {
                assert!(n > 0 && at + n < MUCH, "{n}");
                at += n;
            }
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(stream.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    go.send(()).unwrap();
    while at < MUCH {
        at += waited(|| stream.write(&all[at..]));
    }
    waited(|| stream.flush());
    let mut answer = [0; 3];
    assert_eq!(waited(|| stream.read(&mut answer)), 3);
    assert_eq!(&answer, b"all");
    server.join().unwrap();
}

#[test]
fn a_server_that_hangs_up_without_farewell_is_at_its_end() {
    let (socket, server) = served(|mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.flush().unwrap();
    });
    let mut stream = connected(socket);
    let mut piece = [0; 10];
    assert_eq!(waited(|| stream.read(&mut piece)), 3);
    assert_eq!(waited(|| stream.read(&mut piece)), 0);
    server.join().unwrap();
}

#[test]
fn a_server_nobody_vouches_for_is_refused() {
    let (socket, server) = served(|mut stream| drop(stream.flush()));
    let told = client(Check::Chain, CHAIN, true).connect(socket, "localhost", TIMEOUT);
    assert!(matches!(told, Err(Failure::Refused(_))), "{told:?}");
    server.join().unwrap();
}

#[test]
fn what_speaks_no_tls_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut other = listener.accept().unwrap().0;
    other.write_all(b"-ERR unknown command\r\n").unwrap();
    let told = client(Check::Nothing, b"", false).connect(socket, "localhost", TIMEOUT);
    let why = "the server does not speak TLS".to_owned();
    assert_eq!(told.err(), Some(Failure::Refused(why)));
}

#[test]
fn a_server_that_is_silent_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let timeout = Duration::from_millis(50);
    let told = client(Check::Nothing, b"", false).connect(socket, "localhost", timeout);
    let why = "TLS was not agreed on in time".to_owned();
    assert_eq!(told.err(), Some(Failure::Broken(why)));
}

#[test]
fn a_file_that_cannot_be_used_is_named() {
    let authorities = Authorities {
        files: vec![Path::new("/nowhere/ca.pem").into()],
        ..Authorities::default()
    };
    let told = Client::new(&Settings {
        check: Check::Chain,
        authorities,
        identity: None,
        is_tls13_only: false,
    });
    assert!(told.unwrap_err().contains("/nowhere/ca.pem"));
}
