//! The end of a TLS connection at which clients arrive.
//!
//! Clients keep tickets, so that one that comes again costs no signature and one that is away costs no memory
//! here. Tickets are sealed with a key that is made with each [`Server`],
//! and changes by itself: after certificates or the CA of clients were read anew, old tickets open nothing.

use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore, ServerConfig, ServerConnection};

use super::{read, Identity, Stream};

/// What clients are shown, and what is asked of them.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// Our own certificate and its key.
    pub identity: Identity,
    /// A file of certificates: a client must show one that these vouch for. None: any client may come.
    pub client_authorities: Option<PathBuf>,
}

/// Takes clients by one set of settings, as they were read when it was made.
#[derive(Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
}

impl Server {
    /// Reads what the settings name.
    ///
    /// # Errors
    /// A sentence about a file that cannot be used.
    pub fn new(settings: &ServerSettings) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let identity = read(&settings.identity, "the server's", &provider)?;
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(|e| e.to_string())?;
        let config = match &settings.client_authorities {
            None => config.with_no_client_auth(),
            Some(path) => {
                let bad = |e: &dyn std::fmt::Display| {
                    format!(
                        "the clients' CA file {} cannot be used: {e}",
                        path.display()
                    )
                };
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_file_iter(path).map_err(|e| bad(&e))? {
                    let certificate = certificate.map_err(|e| bad(&e))?;
                    roots.add(certificate).map_err(|e| bad(&e))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .build()
                    .map_err(|e| bad(&e))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let mut config = config.with_cert_resolver(identity);
        config.ticketer = ring::Ticketer::new().map_err(|e| e.to_string())?;
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// A stream over the socket of a client, which does not block. The two agree while it is read and
    /// written.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn begin(&self, socket: TcpStream) -> Result<Stream, String> {
        let session = ServerConnection::new(Arc::clone(&self.config)).map_err(|e| e.to_string())?;
        Ok(Stream::begun(socket, session.into()))
    }
}

/// What went wrong, for somebody who does not know rustls.
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidMessage(_) => "the client does not speak TLS".into(),
        Error::NoCertificatesPresented => "the client shows no certificate".into(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the client's certificate is issued by no CA that is trusted here".into()
        }
        Error::AlertReceived(alert) => format!("the client refuses: {alert:?}"),
        other => other.to_string(),
    }
}
