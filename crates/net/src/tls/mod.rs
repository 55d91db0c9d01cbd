//! TLS over a socket that somebody else waits for.
//!
//! What the proxy and the client need of it is a stream that reads, writes and says `WouldBlock`, as a
//! socket does: [`Stream`]. A [`Client`] makes them, by [`Settings`] that say whom to believe.
//!
//! # Why rustls
//!
//! A session of the language's own TLS library cannot leave it, and its socket cannot be read without
//! its interpreter. rustls needs neither, and with `ring` it builds with nothing but a C compiler.
//!
//! # Never weaker than what it stands in for
//!
//! These streams stand beside those of an OpenSSL client, and must not accept a server that one would
//! turn away. So [`Authorities`] are read the way OpenSSL reads them, a chain must end where OpenSSL
//! wants it to ([`verify`]), and what cannot be kept is the caller's to refuse. In some places it is
//! stricter: names are looked for in `subjectAltName` only, certificates must be of X.509 version 3, RSA
//! keys have 2048 to 8192 bits, there is nothing below TLS 1.2 and no cipher without forward secrecy.
//!
//! # Layout
//!
//! - [`authorities`]: whose word is believed, and how that is read.
//! - [`verify`]: whether a server's certificate is good.
//! - [`stream`]: the stream.
//! - [`server`]: the other end, for clients that connect here.

pub mod authorities;
pub mod server;
pub mod stream;
pub mod verify;

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, ClientConnection, InconsistentKeys};

pub use authorities::Authorities;
pub use server::{Server, ServerSettings};
pub use stream::Stream;
pub use verify::Check;

/// What a connection must hold to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is asked of the server's certificate.
    pub check: Check,
    /// Whose word is believed on it.
    pub authorities: Authorities,
    /// What is shown to a server that asks who connects.
    pub identity: Option<Identity>,
    /// Whether TLS 1.2 is not good enough.
    pub is_tls13_only: bool,
}

/// A certificate and its key, in PEM; both may lie in one file.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, and behind it those of its issuers.
    pub certificate: PathBuf,
    /// Its key, without a password.
    pub key: PathBuf,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It broke, or there was no answer in time: another attempt may go better.
    Broken(String),
    /// The two do not agree, or the settings cannot be used: another attempt will end the same.
    Refused(String),
}

/// Opens connections by one set of settings, as they were read when it was made.
#[derive(Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
}

impl Client {
    /// Reads what the settings name.
    ///
    /// # Errors
    /// A sentence about a file that cannot be used.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let versions: &[_] = if settings.is_tls13_only {
            &[&rustls::version::TLS13]
        } else {
            &[&rustls::version::TLS13, &rustls::version::TLS12]
        };
        let algorithms = provider.signature_verification_algorithms;
        let verifier = verify::Verifier::new(settings.check, &settings.authorities, algorithms)?;
        let identity = settings.identity.as_ref();
        let identity = identity.map(|it| read(it, "the client's", &provider));
        let identity = identity.transpose()?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|e| e.to_string())?
            .dangerous() // in name: `verify` says what is accepted
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match identity {
            Some(identity) => config.with_client_cert_resolver(identity),
            None => config.with_no_client_auth(),
        };
        Ok(Self {
            config: Arc::new(config),
        })
    }

    /// Agrees with the server at the other end of `socket`; waits for it at most until the timeout.
    ///
    /// # Errors
    /// Why the two do not agree.
    pub fn connect(
        &self,
        socket: TcpStream,
        server_name: &str,
        timeout: Duration,
    ) -> Result<Stream, Failure> {
        let until = Instant::now() + timeout;
        let session = self.session(server_name).map_err(Failure::Refused)?;
        Stream::agreed(socket, session.into(), until)
    }

    /// A stream over a socket that does not block, and need not be connected yet. The two agree while it is
    /// read and written, or by [`Stream::agree`].
    ///
    /// # Errors
    /// The name is none a certificate can have.
    pub fn begin(&self, socket: TcpStream, server_name: &str) -> Result<Stream, String> {
        let session = self.session(server_name)?;
        Ok(Stream::begun(socket, session.into()))
    }

    fn session(&self, server_name: &str) -> Result<ClientConnection, String> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| format!("{server_name:?} is no name a certificate can have"))?;
        ClientConnection::new(Arc::clone(&self.config), name).map_err(|e| explain(&e))
    }
}

/// Args: `whose` begins the sentence about a file that cannot be used.
fn read(
    identity: &Identity,
    whose: &str,
    provider: &CryptoProvider,
) -> Result<Arc<SingleCertAndKey>, String> {
    let bad = |path: &Path, what: &str, why: &dyn std::fmt::Display| {
        format!(
            "{whose} {what} cannot be read from {}: {why}",
            path.display()
        )
    };
    let path = &identity.certificate;
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| bad(path, "certificate", &e))?;
    if chain.is_empty() {
        return Err(bad(path, "certificate", &"there is none"));
    }
    let path = &identity.key;
    let key = PrivateKeyDer::from_pem_file(path)
        .map_err(|e| bad(path, "key (without a password)", &e))?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|e| bad(path, "key", &e))?;
    let both = CertifiedKey::new(chain, key);
    // Other errors are about certificates we cannot read; the server may, and it is the one to judge.
    if let Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = both.keys_match() {
        return Err(bad(path, "key", &"its certificate has another"));
    }
    Ok(Arc::new(SingleCertAndKey::from(both)))
}

/// What went wrong, for somebody who does not know rustls.
pub(crate) fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the server's certificate is issued by no CA that is trusted here".into()
        }
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string() == "UnsupportedCertVersion" =>
        {
            "the server's certificate is not of X.509 version 3, and no other can be verified"
                .into()
        }
        e if verify::is_ca(e) => {
            "the server's certificate is marked as a CA's, and not itself trusted here".into()
        }
        rustls::Error::InvalidMessage(_) => "the server does not speak TLS".into(),
        rustls::Error::AlertReceived(alert) => format!("the server refuses: {alert:?}"),
        other => other.to_string(),
    }
}
