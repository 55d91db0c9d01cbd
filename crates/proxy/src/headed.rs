//! A connection whose first bytes are a header of the PROXY protocol, until that has come.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use keyheat_net::tls;
use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::proxy_header::{parse, Found};
use crate::stream::Stream;

/// What is needed to go on once the header has come; taken out then.
#[derive(Debug)]
pub(crate) struct Headed(Option<Waiting>);

#[derive(Debug)]
struct Waiting {
    stream: TcpStream,
    /// What comes behind the header is encrypted.
    server: Option<Arc<tls::Server>>,
}

/// What a connection has become.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The header is not whole yet.
    Nothing,
    /// What follows is the client's, whose address this is if the header had one.
    Client(Stream, Option<SocketAddr>),
}

impl Headed {
    pub fn new(stream: TcpStream, server: Option<Arc<tls::Server>>) -> Self {
        Self(Some(Waiting { stream, server }))
    }

    pub fn socket(&self) -> Option<&TcpStream> {
        self.0.as_ref().map(|waiting| &waiting.stream)
    }

    /// Looks at what has come, and takes the header from the socket if it is whole.
    ///
    /// Args: `room` is where it is looked at.
    ///
    /// # Errors
    /// What is wrong with it, or that the peer has hung up.
    pub fn hear(&mut self, room: &mut [u8]) -> io::Result<Heard> {
        let Some(waiting) = &mut self.0 else {
            return Ok(Heard::Nothing);
        };
        let seen = match waiting.stream.peek(room) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => room.get(..n).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
            Err(e) => return Err(e),
        };
        let broken = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let Found::Header { len, client } = parse(seen).map_err(broken)? else {
            return Ok(Heard::Nothing);
        };
        let header = room.get_mut(..len).unwrap_or_default();
        // It lies in the socket's buffer as a whole.
        io::Read::read_exact(&mut waiting.stream, header)?;
        let Some(Waiting { stream, server }) = self.0.take() else {
            return Ok(Heard::Nothing);
        };
        let stream = match server {
            None => Stream::Tcp(stream),
            Some(server) => {
                Stream::encrypted(server.begin(stream.into()).map_err(io::Error::other)?)
            }
        };
        Ok(Heard::Client(stream, client))
    }
}

impl Source for Headed {
    fn register(&mut self, to: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match &mut self.0 {
            Some(waiting) => waiting.stream.register(to, token, interest),
            None => Ok(()),
        }
    }

    fn reregister(&mut self, to: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match &mut self.0 {
            Some(waiting) => waiting.stream.reregister(to, token, interest),
            None => Ok(()),
        }
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        match &mut self.0 {
            Some(waiting) => waiting.stream.deregister(from),
            None => Ok(()),
        }
    }
}
