//! Connections: over TCP, encrypted or not, or over a Unix socket.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use keyheat_net::tls;

use mio::event::Source;
use mio::{Interest, Registry, Token};

use crate::headed::Headed;
use crate::shard::keep_alive;
use crate::tls::Encrypted;

/// A connection, of a client or upstream.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
    Tls(Box<Encrypted>),
    /// One that is not the client's yet; nothing is read or written before.
    Headed(Box<Headed>),
}

impl Stream {
    /// Begins to connect.
    ///
    /// Args: `tls` whom to believe and the name connected to, where it is to be encrypted.
    ///
    /// # Errors
    /// What is known at once.
    pub fn connect(addr: SocketAddr, tls: Option<(&tls::Client, &str)>) -> io::Result<Self> {
        let stream = mio::net::TcpStream::connect(addr)?;
        match tls {
            None => Ok(Self::Tcp(stream)),
            Some((client, name)) => {
                let begun = client.begin(stream.into(), name);
                Ok(Self::encrypted(begun.map_err(io::Error::other)?))
            }
        }
    }

    pub(crate) fn encrypted(stream: tls::Stream) -> Self {
        Self::Tls(Box::new(Encrypted::new(stream)))
    }

    /// Sets what an upstream connection has set: see there.
    pub fn prepare_upstream(&self, set: impl Fn(socket2::SockRef<'_>)) {
        match self {
            Self::Tcp(stream) => set(stream.into()),
            Self::Tls(stream) => set(stream.socket().into()),
            Self::Unix(_) | Self::Headed(_) => {}
        }
    }

    /// Whether a connection that was begun is there, and its ends agree on how to go on.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn is_there(&mut self) -> io::Result<bool> {
        let (failed, peer) = match self {
            Self::Unix(_) | Self::Headed(_) => return Ok(true),
            Self::Tcp(stream) => (stream.take_error(), stream.peer_addr()),
            Self::Tls(stream) => (stream.socket().take_error(), stream.socket().peer_addr()),
        };
        if let Ok(Some(e)) | Err(e) = failed {
            return Err(e);
        }
        match (peer, self) {
            (Ok(_), Self::Tls(stream)) => stream.agree(),
            (Ok(_), _) => Ok(true),
            (Err(e), _) if e.kind() == io::ErrorKind::NotConnected => Ok(false),
            (Err(e), _) => Err(e),
        }
    }

    /// Goes on agreeing with the other end as far as can be now; whether that is done.
    ///
    /// # Errors
    /// Why the two do not agree.
    pub fn agree(&mut self) -> io::Result<bool> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Ok(true),
            Self::Tls(stream) => stream.agree(),
            Self::Headed(_) => Ok(false),
        }
    }

    /// Whether the two ends have yet to agree on how to go on.
    pub fn is_agreeing(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::Tls(stream) => stream.is_agreeing(),
            Self::Headed(_) => true,
        }
    }

    /// Whether something that was written has not left yet, so that the next event must `flush` it.
    #[inline]
    pub fn holds(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Headed(_) => false,
            Self::Tls(stream) => stream.holds(),
        }
    }

    /// Whether there may be more to read after a read of `n` bytes into `room`, though no event will say so.
    #[inline]
    pub fn may_have_more(&self, n: usize, room: usize) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Headed(_) => n == room,
            Self::Tls(stream) => n == room || stream.has_more(),
        }
    }

    /// Says that nothing more will come; what the other end sends can still be read.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tls(stream) => stream.finish(),
            Self::Headed(_) => Ok(()), // nothing was said
        }
    }

    /// Has a client whose machine vanished noticed after `silence`, and small replies leave at once.
    pub fn prepare(&self, silence: Duration) {
        match self {
            Self::Tcp(stream) => {
                let _ = stream.set_nodelay(true);
                keep_alive(stream, silence);
            }
            Self::Tls(stream) => {
                let _ = stream.socket().set_nodelay(true);
                keep_alive(stream.socket(), silence);
            }
            Self::Headed(headed) => {
                if let Some(stream) = headed.socket() {
                    let _ = stream.set_nodelay(true);
                    keep_alive(stream, silence);
                }
            }
            Self::Unix(_) => {}
        }
    }
}

impl Stream {
    /// The address at which a client has reached us over TCP.
    pub fn local_tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Tls(stream) => stream.socket().local_addr().ok(),
            Self::Headed(headed) => headed.socket()?.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Where a client has reached us, as `CLIENT LIST` has it.
    pub fn local(&self) -> String {
        let unknown = || "?:0".to_owned();
        match self {
            Self::Unix(stream) => {
                let address = stream.local_addr().ok();
                let path = address.as_ref().and_then(|a| a.as_pathname());
                path.map_or_else(unknown, |path| format!("{}:0", path.display()))
            }
            _ => self
                .local_tcp()
                .map_or_else(unknown, |address| address.to_string()),
        }
    }

    /// Whether it is over a Unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// Its number in this process.
    pub fn number(&self) -> i32 {
        match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
            Self::Tls(stream) => stream.socket().as_raw_fd(),
            Self::Headed(headed) => headed.socket().map_or(-1, AsRawFd::as_raw_fd),
        }
    }
}

impl Read for Stream {
    #[inline]
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
            Self::Headed(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Stream {
    #[inline]
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
            Self::Tls(stream) => stream.write(buf),
            Self::Headed(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Headed(_) => Ok(()), // nothing is held back
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl Source for Stream {
    fn register(&mut self, to: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.register(to, token, interest),
            Self::Unix(stream) => stream.register(to, token, interest),
            Self::Tls(stream) => stream.register(to, token, interest),
            Self::Headed(stream) => stream.register(to, token, interest),
        }
    }

    fn reregister(&mut self, to: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.reregister(to, token, interest),
            Self::Unix(stream) => stream.reregister(to, token, interest),
            Self::Tls(stream) => stream.reregister(to, token, interest),
            Self::Headed(stream) => stream.reregister(to, token, interest),
        }
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.deregister(from),
            Self::Unix(stream) => stream.deregister(from),
            Self::Tls(stream) => stream.deregister(from),
            Self::Headed(stream) => stream.deregister(from),
        }
    }
}
