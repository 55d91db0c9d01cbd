//! TLS on both sides: what it takes, read from files, and a connection that is encrypted.
//!
//! The two ends agree inside the event loop, a step per event, so nobody who is slow at it keeps a shard.
//! What a step costs is the signature (about 0.1 ms with an elliptic key, 1 ms with RSA); how many of them a
//! turn takes is bounded in `shard::greet`, and how long a client may take in `shard::bounds`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use keyheat_net::tls::{
    Authorities, Check, Client, Identity, Server, ServerSettings, Settings as ClientSettings,
    Stream,
};
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::settings::{Settings, UpstreamTls, Verify};

/// What TLS takes on either side, as it was read last; `None` where there is no TLS.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    /// For clients that connect.
    pub server: Option<Arc<Server>>,
    /// For connections upstream.
    pub client: Option<Arc<Client>>,
}

impl Credentials {
    /// Reads what the settings name.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn read(settings: &Settings) -> Result<Self, String> {
        let mut read = Self::default();
        if let (Some(_), Some(certificate), Some(key)) = (
            &settings.tls_listen,
            &settings.tls_cert_file,
            &settings.tls_key_file,
        ) {
            let (certificate, key) = (certificate.clone(), key.clone());
            let server = Server::new(&ServerSettings {
                identity: Identity { certificate, key },
                client_authorities: settings.tls_client_ca_file.clone(),
            });
            read.server = Some(Arc::new(server.map_err(|e| format!("tls_listen: {e}"))?));
        }
        if let Some(tls) = &settings.upstream.tls {
            let client = client(tls).map_err(|e| format!("upstream over TLS: {e}"))?;
            read.client = Some(Arc::new(client));
        }
        Ok(read)
    }
}

fn client(tls: &UpstreamTls) -> Result<Client, String> {
    let identity = tls.cert_file.clone().map(|certificate| Identity {
        key: tls.key_file.clone().unwrap_or_else(|| certificate.clone()),
        certificate,
    });
    Client::new(&ClientSettings {
        check: match tls.verify {
            Verify::Full => Check::ChainAndName,
            Verify::Ca => Check::Chain,
            Verify::None => Check::Nothing,
        },
        authorities: Authorities {
            files: tls.ca_files.clone(),
            directories: tls.ca_directories.clone(),
            ..Authorities::default()
        },
        identity,
        is_tls13_only: false,
    })
}

/// An encrypted connection that a shard can use as it uses a socket.
#[derive(Debug)]
pub(crate) struct Encrypted {
    stream: Stream,
    /// The last read stopped short of something that no event will tell of: the end, or a failure.
    has_more: bool,
}

impl Encrypted {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            has_more: false,
        }
    }

    pub fn socket(&self) -> &std::net::TcpStream {
        self.stream.socket()
    }

    pub fn agree(&mut self) -> io::Result<bool> {
        self.stream.agree()
    }

    pub fn is_agreeing(&self) -> bool {
        self.stream.is_agreeing()
    }

    pub fn holds(&self) -> bool {
        self.stream.holds()
    }

    pub fn has_more(&self) -> bool {
        self.has_more
    }

    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.farewell();
        self.socket().shutdown(Shutdown::Write)
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        if !self.stream.is_agreeing() {
            self.stream.farewell();
        }
    }
}

impl Read for Encrypted {
    /// Fills the buffer as far as can be now: records are small, and a shard takes a buffer that is not
    /// full for a sign that nothing is left.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.has_more = false;
        let mut filled = 0;
        while filled < buf.len() {
            match self.stream.read(&mut buf[filled..]) {
                Ok(0) => {
                    self.has_more = filled > 0;
                    break;
                }
                Ok(n) => filled += n,
                Err(e) if filled == 0 => return Err(e),
                Err(e) => {
                    self.has_more = !matches!(e.kind(), ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        Ok(filled)
    }
}

impl Write for Encrypted {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Source for Encrypted {
    fn register(&mut self, to: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        SourceFd(&self.stream.as_raw_fd()).register(to, token, interest)
    }

    fn reregister(&mut self, to: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        SourceFd(&self.stream.as_raw_fd()).reregister(to, token, interest)
    }

    fn deregister(&mut self, from: &Registry) -> io::Result<()> {
        SourceFd(&self.stream.as_raw_fd()).deregister(from)
    }
}
