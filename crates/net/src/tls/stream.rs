//! A TLS stream that behaves as its socket does.
//!
//! Reads and writes wait exactly if the socket would. Whoever waits for events that come once per change
//! must read until `WouldBlock`: bytes of one record may be read from the socket in one go and asked for
//! in several. `write` takes bytes only while none of those it took before are still here, so what is
//! held is bounded by what the session buffers; `flush` says `WouldBlock` until all are gone.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use rustls::Connection;

use super::{explain, server, Failure};

/// See the module's description.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    session: Connection,
}

impl Stream {
    /// One whose ends agree while it is read and written.
    pub(super) fn begun(socket: TcpStream, session: Connection) -> Self {
        Self { socket, session }
    }

    /// Goes on agreeing as far as the socket lets it; whether that is done. Until then nothing that is
    /// written leaves.
    ///
    /// # Errors
    /// Why the two do not agree.
    pub fn agree(&mut self) -> io::Result<bool> {
        while self.session.is_handshaking() {
            match self.step() {
                Err(e) if is_passing(&e) => return Ok(false),
                done => done?,
            }
        }
        Ok(true)
    }

    /// Whether the two have not agreed yet.
    #[must_use]
    pub fn is_agreeing(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Whether something that was taken has not left yet: `flush` when the socket takes more.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.session.wants_write()
    }

    /// Says that nothing more will come, as far as the socket takes it.
    pub fn farewell(&mut self) {
        self.session.send_close_notify();
        let _ = self.push();
    }

    /// Has both ends agree, waiting at most until then.
    pub(super) fn agreed(
        socket: TcpStream,
        session: Connection,
        until: Instant,
    ) -> Result<Self, Failure> {
        let mut stream = Self { socket, session };
        let broken = |e: io::Error| Failure::Broken(e.to_string());
        stream.socket.set_nonblocking(false).map_err(broken)?;
        while stream.session.is_handshaking() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(too_late());
            }
            // Each time anew, or a server that sends a byte now and then would keep us for ever.
            let left = Some(left.max(Duration::from_millis(1)));
            stream.socket.set_read_timeout(left).map_err(broken)?;
            stream.socket.set_write_timeout(left).map_err(broken)?;
            stream.step().map_err(|e| match e.kind() {
                ErrorKind::InvalidData => Failure::Refused(e.to_string()),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => too_late(),
                _ => Failure::Broken(e.to_string()),
            })?;
        }
        // What is left to say goes out with the first request, or now.
        match stream.push() {
            Err(e) if !is_passing(&e) => Err(broken(e)),
            _ => Ok(stream),
        }
    }

    /// The socket beneath, for its descriptor and its timeouts; what is read or written there is lost
    /// to the stream.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn step(&mut self) -> io::Result<()> {
        self.push()?;
        if self.session.is_handshaking() && self.pull()? == 0 {
            let why = match self.session {
                Connection::Client(_) => "the server hung up before TLS was agreed on",
                Connection::Server(_) => "the client hung up before TLS was agreed on",
            };
            return Err(io::Error::new(ErrorKind::UnexpectedEof, why));
        }
        Ok(())
    }

    /// Sends what the session has to send.
    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads once from the socket; 0 at its end.
    fn pull(&mut self) -> io::Result<usize> {
        let read = loop {
            match self.session.read_tls(&mut self.socket) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        let processed = self.session.process_new_packets();
        // An answer to what was read, or word of why nothing more will be.
        let pushed = self.push();
        if let Err(e) = processed {
            let why = match self.session {
                Connection::Client(_) => explain(&e),
                Connection::Server(_) => server::explain(&e),
            };
            return Err(io::Error::new(ErrorKind::InvalidData, why));
        }
        match pushed {
            Err(e) if !is_passing(&e) => Err(e),
            _ => Ok(read),
        }
    }
}

fn too_late() -> Failure {
    Failure::Broken("TLS was not agreed on in time".into())
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(into) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // Servers hang up without the farewell TLS has for it. Nobody is deceived: what is
                // spoken here says how long each of its messages is.
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            self.pull()?;
        }
    }
}

impl Write for Stream {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if from.is_empty() {
            return Ok(0);
        }
        self.push()?;
        let taken = self.session.writer().write(from)?;
        if taken == 0 {
            // Not agreed yet, and no room for more until then.
            return Err(ErrorKind::WouldBlock.into());
        }
        match self.push() {
            Err(e) if !is_passing(&e) => Err(e),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}
