//! Where clients are accepted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::headed::Headed;
use crate::proxy_header::Network;
use crate::stream::Stream;
use crate::tls::Credentials;
use crate::topology;
use crate::unix_socket::UnixSocket;

/// Connections that may wait to be accepted; the system has a limit of its own.
const BACKLOG: i32 = 4096;

/// Listens at `host:port`.
///
/// Args: `sharing` whether other processes may listen there as well.
///
/// # Errors
/// The address is taken, or not of this machine.
pub(crate) fn bind(address: &str, sharing: Sharing) -> io::Result<std::net::TcpListener> {
    let address =
        topology::resolve(address).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    // What an ended process has left behind on the address is no reason not to have it.
    socket.set_reuse_address(true)?;
    if sharing == Sharing::Shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// This proxy's alone.
    Alone,
    /// Any process's of the same user that asks for the same (`SO_REUSEPORT`): the system deals clients out.
    Shared,
}

/// Where clients are accepted.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(Front),
    Unix(UnixSocket),
}

/// A TCP address, and what clients begin with there.
#[derive(Debug)]
pub(crate) struct Front {
    listener: mio::net::TcpListener,
    /// They speak TLS, by the credentials that hold when they come.
    tls: Option<Arc<ArcSwap<Credentials>>>,
    /// Balancers connect from these networks, and say for whom.
    balancers: Option<Vec<Network>>,
}

/// Somebody who has connected.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A client, and what it is called.
    Client(Stream, String),
    /// Somebody who may not connect here.
    Stranger(SocketAddr),
}

impl Front {
    /// Accepts at an address.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new(listener: std::net::TcpListener) -> io::Result<(Self, SocketAddr)> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let front = Self {
            listener: mio::net::TcpListener::from_std(listener),
            tls: None,
            balancers: None,
        };
        Ok((front, address))
    }

    /// Has clients speak TLS.
    pub fn over_tls(mut self, credentials: Arc<ArcSwap<Credentials>>) -> Self {
        self.tls = Some(credentials);
        self
    }

    /// Has balancers of these networks say for whom they connect, and lets nobody else in.
    pub fn behind(mut self, balancers: Option<Vec<Network>>) -> Self {
        self.balancers = balancers;
        self
    }

    fn accept(&self) -> io::Result<Arrival> {
        let (stream, peer) = self.listener.accept()?;
        let server = match &self.tls {
            None => None,
            Some(credentials) => match &credentials.load().server {
                Some(server) => Some(Arc::clone(server)),
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            },
        };
        let stream = match (&self.balancers, server) {
            (Some(networks), _) if !networks.iter().any(|n| n.has(peer.ip())) => {
                return Ok(Arrival::Stranger(peer));
            }
            (Some(_), server) => Stream::Headed(Box::new(Headed::new(stream, server))),
            (None, None) => Stream::Tcp(stream),
            (None, Some(server)) => {
                Stream::encrypted(server.begin(stream.into()).map_err(io::Error::other)?)
            }
        };
        Ok(Arrival::Client(stream, peer.to_string()))
    }
}

impl Listener {
    /// The next one who has connected.
    ///
    /// # Errors
    /// `WouldBlock` where nobody waits, and what accepting fails with.
    pub fn accept(&self) -> io::Result<Arrival> {
        match self {
            Self::Tcp(front) => front.accept(),
            Self::Unix(socket) => {
                let (stream, _) = socket.listener.accept()?;
                let name = format!("{}:0", socket.path.display());
                Ok(Arrival::Client(Stream::Unix(stream), name))
            }
        }
    }

    /// Has `registry` tell when somebody waits.
    ///
    /// # Errors
    /// The system refuses.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(front) => registry.register(&mut front.listener, token, Interest::READABLE),
            Self::Unix(socket) => {
                registry.register(&mut socket.listener, token, Interest::READABLE)
            }
        }
    }
}
