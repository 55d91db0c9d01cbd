//! What Python's dialer hands over: a connection that is ready, or for TLS one that is merely connected
//! with the client's settings beside it, and the rest is done here, without the interpreter.

use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use keyheat_client::{Dialed, Login, Refusal};
use keyheat_net::tls::{Authorities, Check, Client, Failure, Identity, Settings};
use pyo3::prelude::*;

/// What the dialer says.
pub enum Answer {
    /// A connection that is authenticated.
    Fd(OwnedFd),
    /// One that is only connected.
    Tls(OwnedFd, Box<Handover>),
    /// There is none.
    No(Refusal),
}

impl Answer {
    pub fn read(answer: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (kind, fd, rest): (String, i32, Bound<'_, PyAny>) = answer.extract()?;
        // SAFETY: Python has detached the descriptor from its socket, so it is ours alone.
        let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
        match kind.as_str() {
            "fd" => Ok(Self::Fd(own(fd))),
            "tls" => {
                let fd = own(fd); // first: it is closed if the rest cannot be read
                Ok(Self::Tls(fd, Box::new(rest.extract()?)))
            }
            "refused" => Ok(Self::No(Refusal::Refused(rest.extract()?))),
            _ => Ok(Self::No(Refusal::Unreachable(rest.extract()?))),
        }
    }

    /// Does what is left; may block.
    pub fn dialed(self, timeout: Duration) -> Result<Dialed, Refusal> {
        match self {
            Self::Fd(fd) => Ok(Dialed::Fd(fd)),
            Self::Tls(fd, handover) => handover.connect(fd, timeout),
            Self::No(refusal) => Err(refusal),
        }
    }
}

/// `keyheat.client.tls.Handover`.
#[derive(FromPyObject)]
pub struct Handover {
    server_name: String,
    terms: Terms,
    credentials: Option<(Vec<u8>, Vec<u8>)>,
    database: u32,
}

/// `keyheat.client.tls.Terms`.
#[derive(FromPyObject)]
struct Terms {
    checks_chain: bool,
    checks_name: bool,
    ca_files: Vec<PathBuf>,
    ca_directories: Vec<PathBuf>,
    ca_pem: Vec<u8>,
    ca_der: Vec<u8>,
    is_partial_chain_enough: bool,
    identity: Option<(PathBuf, PathBuf)>,
    is_tls13_only: bool,
}

impl Handover {
    /// Agrees with the server at the other end of the socket.
    fn connect(self, socket: OwnedFd, timeout: Duration) -> Result<Dialed, Refusal> {
        let refused = |why| Refusal::Refused(format!("TLS: {why}"));
        let client = Client::new(&self.terms.settings()).map_err(refused)?;
        let socket = TcpStream::from(socket);
        let stream = client
            .connect(socket, &self.server_name, timeout)
            .map_err(|failure| match failure {
                Failure::Broken(why) => Refusal::Unreachable(format!("TLS: {why}")),
                Failure::Refused(why) => refused(why),
            })?;
        let login = Login {
            credentials: self.credentials,
            database: self.database,
        };
        Ok(Dialed::Fresh(Box::new(stream), login))
    }
}

impl Terms {
    fn settings(self) -> Settings {
        Settings {
            check: match (self.checks_chain, self.checks_name) {
                (false, _) => Check::Nothing,
                (true, false) => Check::Chain,
                (true, true) => Check::ChainAndName,
            },
            authorities: Authorities {
                files: self.ca_files,
                directories: self.ca_directories,
                pem: self.ca_pem,
                der: self.ca_der,
                is_partial_chain_enough: self.is_partial_chain_enough,
            },
            identity: self
                .identity
                .map(|(certificate, key)| Identity { certificate, key }),
            is_tls13_only: self.is_tls13_only,
        }
    }
}
