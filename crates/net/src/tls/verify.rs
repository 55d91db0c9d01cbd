//! Whether a server's certificate is good, as an OpenSSL client would have it.
//!
//! The chain is webpki's to verify. Two things differ from what rustls does by itself: a name may be
//! left unchecked, as clients of databases often have it; and a server may show a certificate that is
//! itself among those believed, which webpki turns away where it is marked as a CA's. Many a server has
//! just that: the one certificate that `openssl req -x509` makes is marked so.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::authorities::{Authorities, Known};

/// What is asked of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Nothing: whoever answers is believed.
    Nothing,
    /// That somebody who is believed has issued it.
    Chain,
    /// That, and that it is for the name connected to.
    ChainAndName,
}

#[derive(Debug)]
pub(super) struct Verifier {
    check: Check,
    known: Known,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub fn new(
        check: Check,
        authorities: &Authorities,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, String> {
        let known = match check {
            Check::Nothing => Authorities::default().read()?,
            _ => authorities.read()?,
        };
        Ok(Self {
            check,
            known,
            algorithms,
        })
    }

    fn verify_chain(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(shown)?;
        let ours = self.known.between.iter().cloned();
        let between: Vec<_> = between.iter().cloned().chain(ours).collect();
        let (roots, algorithms) = (&self.known.roots, self.algorithms.all);
        match verify_server_cert_signed_by_trust_anchor(&parsed, roots, &between, now, algorithms) {
            // Found only after its validity was found good: a test holds webpki to that.
            Err(error) if is_ca(&error) && self.known.whole.contains(shown) => Ok(()),
            verified => verified,
        }
    }
}

/// Whether a certificate is turned away for being a CA's.
pub(super) fn is_ca(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            other.to_string() == "CaUsedAsEndEntity"
        }
        _ => false,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check != Check::Nothing {
            self.verify_chain(shown, between, now)?;
        }
        if self.check == Check::ChainAndName {
            verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.check == Check::Nothing {
            // Anybody may show any certificate, so a signature by its key says nothing either; and the
            // certificates of such servers are often too old or too odd for webpki to read.
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, shown, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.check == Check::Nothing {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, shown, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::pem::PemObject;

    use super::*;

    const SELF_SIGNED: &[u8] = include_bytes!("../../tests/data/self-signed.pem");
    const CHAIN: &[u8] = include_bytes!("../../tests/data/chain.pem");
    const WHILE_VALID: u64 = 1_800_000_000;
    const BEFORE: u64 = 1_000_000_000;
    const AFTER: u64 = 8_000_000_000;

    fn verifier(check: Check, pem: &[u8], is_partial_chain_enough: bool) -> Verifier {
        let authorities = Authorities {
            pem: pem.to_vec(),
            is_partial_chain_enough,
            ..Authorities::default()
        };
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        Verifier::new(check, &authorities, algorithms).unwrap()
    }

    fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .unwrap()
    }

    fn verified(verifier: &Verifier, shown: &CertificateDer<'_>, name: &str, at: u64) -> String {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
        match verifier.verify_server_cert(shown, &[], &name, &[], now) {
            Ok(_) => "good".into(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_certificate_that_is_believed_itself_is_good_while_it_is_valid() {
        let shown = &certificates(SELF_SIGNED)[0];
        let verifier = verifier(Check::ChainAndName, SELF_SIGNED, false);
        let at = |at| verified(&verifier, shown, "localhost", at);
        assert_eq!(at(WHILE_VALID), "good");
        assert!(at(BEFORE).contains("not valid yet"), "{}", at(BEFORE));
        assert!(at(AFTER).contains("expired"), "{}", at(AFTER));
    }

    #[test]
    fn nobody_else_may_show_a_ca_certificate() {
        let shown = &certificates(SELF_SIGNED)[0];
        let verifier = verifier(Check::Chain, CHAIN, true);
        assert_ne!(verified(&verifier, shown, "localhost", WHILE_VALID), "good");
    }

    #[test]
    fn a_name_is_checked_where_it_is_asked_for() {
        let shown = &certificates(SELF_SIGNED)[0];
        for (check, name, is_good) in [
            (Check::ChainAndName, "localhost", true),
            (Check::ChainAndName, "127.0.0.1", true),
            (Check::ChainAndName, "elsewhere", false),
            (Check::Chain, "elsewhere", true),
            (Check::Nothing, "elsewhere", true),
        ] {
            let verifier = verifier(check, SELF_SIGNED, false);
            let told = verified(&verifier, shown, name, WHILE_VALID);
            assert_eq!(told == "good", is_good, "{check:?} {name}: {told}");
        }
    }

    #[test]
    fn a_chain_ends_at_a_certificate_that_signed_itself() {
        // In this order: the server's, that of its issuer, that of the issuer's issuer.
        let [shown, issuer, root] = &certificates(CHAIN)[..] else {
            panic!("three certificates");
        };
        let told = |known: &[&CertificateDer<'_>], is_partial| {
            let authorities = Authorities {
                der: known.iter().flat_map(|each| each.to_vec()).collect(),
                is_partial_chain_enough: is_partial,
                ..Authorities::default()
            };
            let algorithms =
                rustls::crypto::ring::default_provider().signature_verification_algorithms;
            let verifier = Verifier::new(Check::ChainAndName, &authorities, algorithms).unwrap();
            verified(&verifier, shown, "localhost", WHILE_VALID)
        };
        assert_eq!(told(&[issuer, root], false), "good");
        assert_ne!(told(&[issuer], false), "good");
        assert_eq!(told(&[issuer], true), "good");
        assert_ne!(told(&[root], false), "good"); // nobody shows the one between
    }

    #[test]
    fn asked_for_nothing_nothing_is_read() {
        let shown = CertificateDer::from(vec![1, 2, 3]);
        let nothing = verifier(Check::Nothing, b"", false);
        assert_eq!(verified(&nothing, &shown, "localhost", AFTER), "good");
        let chain = verifier(Check::Chain, SELF_SIGNED, false);
        assert_ne!(verified(&chain, &shown, "localhost", WHILE_VALID), "good");
    }
}
