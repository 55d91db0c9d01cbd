//! Connections: over TCP, encrypted or not, or over a Unix socket; and where clients are accepted.

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use keyheat_net::tls;

use mio::event::Source;
use mio::{Interest, Registry, Token};

use crate::shard::keep_alive;
use crate::tls::{Credentials, Encrypted};

/// A connection, of a client or upstream.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(mio::net::TcpStream),
    Unix(mio::net::UnixStream),
    Tls(Box<Encrypted>),
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

    fn encrypted(stream: tls::Stream) -> Self {
        Self::Tls(Box::new(Encrypted::new(stream)))
    }

    /// Sets what an upstream connection has set: see there.
    pub fn prepare_upstream(&self, set: impl Fn(socket2::SockRef<'_>)) {
        match self {
            Self::Tcp(stream) => set(stream.into()),
            Self::Tls(stream) => set(stream.socket().into()),
            Self::Unix(_) => {}
        }
    }

    /// Whether a connection that was begun is there, and its ends agree on how to go on.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn is_there(&mut self) -> io::Result<bool> {
        let (failed, peer) = match self {
            Self::Unix(_) => return Ok(true),
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

    /// Whether the two ends have yet to agree on how to go on.
    pub fn is_agreeing(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::Tls(stream) => stream.is_agreeing(),
        }
    }

    /// Whether something that was written has not left yet, so that the next event must `flush` it.
    #[inline]
    pub fn holds(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::Tls(stream) => stream.holds(),
        }
    }

    /// Whether there may be more to read after a read of `n` bytes into `room`, though no event will say so.
    #[inline]
    pub fn may_have_more(&self, n: usize, room: usize) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => n == room,
            Self::Tls(stream) => n == room || stream.has_more(),
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
            Self::Unix(_) => {}
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
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => Ok(()), // nothing is held back
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
        }
    }

    fn reregister(&mut self, to: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.reregister(to, token, interest),
            Self::Unix(stream) => stream.reregister(to, token, interest),
            Self::Tls(stream) => stream.reregister(to, token, interest),
        }
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.deregister(from),
            Self::Unix(stream) => stream.deregister(from),
            Self::Tls(stream) => stream.deregister(from),
        }
    }
}

/// Where clients are accepted.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(mio::net::TcpListener),
    /// Its clients speak TLS, by the credentials that hold when they come.
    Tls(mio::net::TcpListener, Arc<ArcSwap<Credentials>>),
    Unix(UnixSocket),
}

impl Listener {
    /// A TCP address.
    ///
    /// # Errors
    /// It is taken, or not of this machine.
    pub fn tcp(listener: std::net::TcpListener) -> io::Result<(Self, SocketAddr)> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = mio::net::TcpListener::from_std(listener);
        Ok((Self::Tcp(listener), address))
    }

    /// The same for clients that speak TLS.
    pub fn over_tls(self, credentials: Arc<ArcSwap<Credentials>>) -> Self {
        match self {
            Self::Tcp(listener) => Self::Tls(listener, credentials),
            other => other,
        }
    }

    /// The next client, and what it is called.
    ///
    /// # Errors
    /// `WouldBlock` where nobody waits, and what accepting fails with.
    pub fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((Stream::Tcp(stream), peer.to_string()))
            }
            Self::Tls(listener, credentials) => {
                let (stream, peer) = listener.accept()?;
                let credentials = credentials.load();
                let Some(server) = &credentials.server else {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                };
                let begun = server.begin(stream.into()).map_err(io::Error::other)?;
                Ok((Stream::encrypted(begun), peer.to_string()))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.listener.accept()?;
                Ok((Stream::Unix(stream), format!("{}:0", socket.path.display())))
            }
        }
    }

    /// Has `registry` tell when somebody waits.
    ///
    /// # Errors
    /// The system refuses.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Self::Tcp(listener) | Self::Tls(listener, _) => {
                registry.register(listener, token, Interest::READABLE)
            }
            Self::Unix(socket) => {
                registry.register(&mut socket.listener, token, Interest::READABLE)
            }
        }
    }
}

/// A Unix socket with its file, which goes when this does.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    listener: mio::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the file: another process may have put its own there meanwhile.
    file: (u64, u64),
}

impl UnixSocket {
    /// Listens at a path. A socket that nobody listens at any more is replaced.
    ///
    /// Args: `mode` the file's permissions, which are what lets clients in.
    ///
    /// # Errors
    /// `AddrInUse` where somebody listens there, or something else lies there.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        if let Ok(found) = fs::symlink_metadata(path) {
            let is_left_over = found.file_type().is_socket()
                && std::os::unix::net::UnixStream::connect(path)
                    .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            if !is_left_over {
                return Err(io::ErrorKind::AddrInUse.into());
            }
        }
        // Under a name of its own until its permissions are right: nobody gets in before.
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let passing = PathBuf::from(name);
        let _ = fs::remove_file(&passing);
        let listener = std::os::unix::net::UnixListener::bind(&passing)?;
        let placed = fs::set_permissions(&passing, fs::Permissions::from_mode(mode))
            .and_then(|()| fs::metadata(&passing))
            .and_then(|about| fs::rename(&passing, path).map(|()| (about.dev(), about.ino())));
        let file = placed.inspect_err(|_| {
            let _ = fs::remove_file(&passing);
        })?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: mio::net::UnixListener::from_std(listener),
            path: path.to_owned(),
            file,
        })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("keyheat-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn a_socket_that_was_left_over_is_replaced_and_one_in_use_is_not() {
        let folder = folder("sockets");
        let path = folder.join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // its file stays
        let first = UnixSocket::bind(&path, 0o640).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let taken = UnixSocket::bind(&path, 0o600).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());
        fs::write(&path, "somebody's").unwrap();
        let taken = UnixSocket::bind(&path, 0o600).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let folder = folder("successor");
        let path = folder.join("s");
        let first = UnixSocket::bind(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let second = UnixSocket::bind(&path, 0o600).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        fs::remove_dir_all(&folder).unwrap();
    }
}
