//! Whose word on a certificate is believed, read the way OpenSSL reads it.
//!
//! OpenSSL looks a certificate up in a directory by a name made of a hash, and sees nothing else there;
//! so nothing else is read here. And unless told that a part of a chain will do, it wants every chain to
//! end at a certificate that signed itself: others that it is given help to get there, no more. A library
//! for browsers takes each of them for an end of its own.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use rustls::RootCertStore;

/// Where the certificates are that are believed.
#[derive(Debug, Clone, Default)]
pub struct Authorities {
    /// Files of certificates in PEM.
    pub files: Vec<PathBuf>,
    /// Directories as `openssl rehash` leaves them.
    pub directories: Vec<PathBuf>,
    /// Certificates in PEM.
    pub pem: Vec<u8>,
    /// Certificates in DER, one after the other.
    pub der: Vec<u8>,
    /// Whether a chain may end at one of these that did not sign itself (`X509_V_FLAG_PARTIAL_CHAIN`).
    pub is_partial_chain_enough: bool,
}

/// The same, read.
#[derive(Debug)]
pub(super) struct Known {
    /// Where a chain may end.
    pub roots: RootCertStore,
    /// What may stand between.
    pub between: Vec<CertificateDer<'static>>,
    /// Those of the roots that are whole certificates.
    pub whole: Vec<CertificateDer<'static>>,
}

impl Authorities {
    pub(super) fn read(&self) -> Result<Known, String> {
        let mut known = Known {
            roots: RootCertStore::empty(),
            between: Vec::new(),
            whole: Vec::new(),
        };
        for certificate in self.certificates()? {
            if self.is_partial_chain_enough || signed_itself(&certificate) {
                // One that cannot be read proves nothing, and is no reason to doubt the others.
                if known.roots.add(certificate.clone()).is_ok() {
                    known.whole.push(certificate);
                }
            } else {
                known.between.push(certificate);
            }
        }
        Ok(known)
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let mut found = Vec::new();
        for path in &self.files {
            found.extend(certificates_of(path)?);
        }
        for path in &self.directories {
            let bad = |e| format!("the CA directory {} cannot be read: {e}", path.display());
            for entry in std::fs::read_dir(path).map_err(bad)? {
                let entry = entry.map_err(bad)?;
                if is_hash_name(&entry.file_name().to_string_lossy()) {
                    // A link that leads nowhere is what `rehash` leaves behind.
                    found.extend(certificates_of(&entry.path()).unwrap_or_default());
                }
            }
        }
        for certificate in CertificateDer::pem_slice_iter(&self.pem) {
            found.push(certificate.map_err(|e| format!("the CA data cannot be read: {e}"))?);
        }
        let mut rest = self.der.as_slice();
        while !rest.is_empty() {
            let (_, _, len) = element(rest).ok_or("the CA data cannot be read: it is no DER")?;
            let (certificate, after) = rest.split_at(len);
            found.push(CertificateDer::from(certificate.to_vec()));
            rest = after;
        }
        Ok(found)
    }
}

fn certificates_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| format!("the CA file {} cannot be read: {e}", path.display()))
}

/// Whether it is a name OpenSSL looks for: eight hexadecimal digits, a dot, and a number.
fn is_hash_name(name: &str) -> bool {
    let Some((hash, number)) = name.split_once('.') else {
        return false;
    };
    let is_hash = hash.len() == 8 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// Whether issuer and subject of a certificate are the same.
///
/// That is all there is to ask: whether it has signed itself in truth matters to nobody who believes it.
fn signed_itself(certificate: &[u8]) -> bool {
    issuer_and_subject(certificate).is_some_and(|(issuer, subject)| issuer == subject)
}

/// `Certificate`, in it `TBSCertificate`: version (none in the first), serial number, algorithm, issuer,
/// validity, subject (RFC 5280, section 4.1).
fn issuer_and_subject(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(certificate)?;
    let (_, mut rest, _) = element(certificate)?;
    if rest.first() == Some(&VERSION) {
        rest = after(rest)?;
    }
    let (_, issuer, _) = element({
        rest = after(after(rest)?)?;
        rest
    })?;
    let (_, subject, _) = element(after(after(rest)?)?)?;
    Some((issuer, subject))
}

fn after(der: &[u8]) -> Option<&[u8]> {
    let (_, _, len) = element(der)?;
    der.get(len..)
}

/// The first element: its tag, what it holds, and its length altogether.
fn element(der: &[u8]) -> Option<(u8, &[u8], usize)> {
    const LONG: u8 = 0x80;
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (header, len) = if first < LONG {
        (2, usize::from(first))
    } else {
        let count = usize::from(first & !LONG);
        if !(1..=4).contains(&count) {
            return None;
        }
        let bytes = rest.get(..count)?;
        let len = bytes.iter().try_fold(0_usize, |len, b| {
            Some(len.checked_mul(256)? | usize::from(*b))
        })?;
        (2 + count, len)
    };
    let end = header.checked_add(len)?;
    Some((tag, der.get(header..end)?, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_made_of_a_hash_are_read() {
        assert!(is_hash_name("0a1b2c3d.0") && is_hash_name("ffffffff.12"));
        for name in [
            "ca.pem",
            "0a1b2c3d.r0",
            "0a1b2c3d.",
            "0a1b2c3d",
            "0a1b2c3.0",
        ] {
            assert!(!is_hash_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_cut_short_is_no_element() {
        assert_eq!(element(&[0x30, 2, 1, 2, 9]), Some((0x30, &[1, 2][..], 4)));
        assert_eq!(element(&[0x30, 0x81, 1, 7]), Some((0x30, &[7][..], 4)));
        for der in [
            &[0x30][..],
            &[0x30, 2, 1],
            &[0x30, 0x80],
            &[0x30, 0x82, 1],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x30, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ] {
            assert_eq!(element(der), None, "{der:?}");
        }
    }
}
