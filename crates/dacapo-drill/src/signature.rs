//! Ed25519 over the exact bytes of a report; the only user of the library that does it.
//!
//! Keys are in the forms that `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write,
//! and a signature is its 64 bytes, so that `openssl pkeyutl -verify -rawin` checks it as well.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use dacapo_event::Digest;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

use crate::DrillError;

/// The bytes before the key in the one form that a public Ed25519 key has in DER (RFC 8410).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Signs reports. `Debug` leaves the key out.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().fingerprint())
    }
}

/// Checks the signatures of reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl SigningKey {
    /// Returns the key of a PEM file.
    ///
    /// # Errors
    /// It holds no private Ed25519 key, or one that is encrypted.
    pub fn from_pem(pem: &[u8]) -> Result<Self, DrillError> {
        let problem = "this is no private Ed25519 key in PEM form that is not encrypted; `openssl \
                       genpkey -algorithm ed25519 -out drill.key` makes one";
        let refused = || DrillError::Key { problem };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| refused())?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| refused())?;
        Ok(SigningKey(pair))
    }

    /// Signs bytes.
    pub fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.0.sign(bytes).as_ref().to_vec()
    }

    /// Returns what checks its signatures.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key().as_ref().to_vec())
    }
}

impl PublicKey {
    /// Returns the key of a PEM file.
    ///
    /// # Errors
    /// It holds no public Ed25519 key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, DrillError> {
        let problem = "this is no public Ed25519 key in PEM form; `openssl pkey -in drill.key -pubout \
                       -out drill.pub` makes it of the private one";
        let refused = || DrillError::Key { problem };
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| refused())?;
        let key = der.as_ref().strip_prefix(&SPKI_PREFIX).ok_or_else(refused)?;
        if key.len() != 32 {
            return Err(refused());
        }
        Ok(PublicKey(key.to_vec()))
    }

    /// Returns what reports call it: the SHA-256 of its 32 bytes.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// Checks that this key signed these bytes.
    ///
    /// # Errors
    /// `BadSignature` if not.
    pub fn check(&self, bytes: &[u8], signature: &[u8]) -> Result<(), DrillError> {
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(bytes, signature).map_err(|_| DrillError::BadSignature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by openssl for this test; it has signed nothing else.
    const PRIVATE: &[u8] = b"-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIId5NoAiqvu1wUQwtev1GM/X7GEDoKCxwM/uq3FnaVBp\n\
        -----END PRIVATE KEY-----\n";
    const PUBLIC: &[u8] = b"-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAkSfFlarya2q5XK6wvPUNFs3EJdZpD5kG4gvLnPLQIpo=\n\
        -----END PUBLIC KEY-----\n";
    /// `openssl pkeyutl -sign -rawin` of [`SIGNED`]; Ed25519 has one signature for one text.
    const BY_OPENSSL: &str = "963b1812b3e284d0c6ea4d410cdfd9874e64768c5c173e7b6c946ba234dafecf047d505aa1322dd81265430bd6df620a708794ab2803992120dc543c4ed69d0e";
    const SIGNED: &[u8] = b"a report";

    #[test]
    fn it_signs_as_openssl_does() {
        let key = SigningKey::from_pem(PRIVATE).unwrap();
        let signature: String = key.sign(SIGNED).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(signature, BY_OPENSSL);
        assert_eq!(key.public(), PublicKey::from_pem(PUBLIC).unwrap());
    }

    #[test]
    fn every_flipped_byte_is_refused() {
        let key = SigningKey::from_pem(PRIVATE).unwrap();
        let (public, signature) = (key.public(), key.sign(SIGNED));
        public.check(SIGNED, &signature).unwrap();
        for at in 0..SIGNED.len() {
            let mut changed = SIGNED.to_vec();
            changed[at] ^= 1;
            assert_eq!(public.check(&changed, &signature), Err(DrillError::BadSignature), "{at}");
        }
        for at in 0..signature.len() {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert_eq!(public.check(SIGNED, &changed), Err(DrillError::BadSignature), "{at}");
        }
        for length in [0, 63] {
            let cut = public.check(SIGNED, &signature[..length]);
            assert_eq!(cut, Err(DrillError::BadSignature), "{length}");
        }
        let mut other = public.0.clone();
        other[0] ^= 1;
        assert!(PublicKey(other).check(SIGNED, &signature).is_err());
    }

    #[test]
    fn what_is_no_key_is_refused_without_quoting_it() {
        for pem in [
            &b""[..],
            b"sesame",
            PUBLIC,
            b"-----BEGIN PRIVATE KEY-----\nc2VzYW1l\n-----END PRIVATE KEY-----\n",
        ] {
            let error = SigningKey::from_pem(pem).unwrap_err().to_string();
            assert!(error.contains("openssl genpkey") && !error.contains("sesame"), "{error}");
        }
        assert!(PublicKey::from_pem(PRIVATE).unwrap_err().to_string().contains("-pubout"));
        let key = SigningKey::from_pem(PRIVATE).unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", key.public().fingerprint()));
    }
}
