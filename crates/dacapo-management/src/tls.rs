//! Who the plugin must prove to be over `https://`, and what is said when it does not.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use crate::ManagementError;

/// Certificates for `https://`, in PEM form; with none of them the system's authorities are trusted
/// and no certificate is shown. `Debug` leaves the key out.
#[derive(Clone, Copy, Default)]
pub struct Certificates<'a> {
    /// Authorities to trust besides the system's.
    pub authorities: Option<&'a str>,
    /// What to show a plugin that asks for a client certificate: the certificate, with those between
    /// it and the authority, and its private key.
    pub identity: Option<(&'a str, &'a str)>,
}

impl fmt::Debug for Certificates<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

/// Makes connections over TLS. `Debug` tells nothing.
#[derive(Clone)]
pub(crate) struct Tls(TlsConnector);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// # Errors
    /// A certificate or key cannot be read, or there is no authority to trust.
    pub(crate) fn new(certificates: Certificates<'_>) -> Result<Self, ManagementError> {
        let mut trusted = RootCertStore::empty();
        // What the system has and rustls cannot read is no reason not to trust the rest.
        trusted.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(pem) = certificates.authorities {
            for authority in read(pem)? {
                trusted.add(authority).map_err(unusable)?;
            }
        }
        if trusted.is_empty() {
            return Err(ManagementError::Certificates {
                problem: "no authority is trusted: name a CA file (--amqp-ca), or install the \
                          system's authorities (`ca-certificates`)"
                    .to_owned(),
            });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(trusted);
        let config = match certificates.identity {
            None => config.with_no_client_auth(),
            Some((certificates, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(unusable)?;
                config.with_client_auth_cert(read(certificates)?, key).map_err(unusable)?
            }
        };
        Ok(Tls(TlsConnector::from(Arc::new(config))))
    }

    /// Proves who is at the other end of a connection.
    pub(crate) async fn shake_hands(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.0.connect(name, stream).await
    }
}

fn read(pem: &str) -> Result<Vec<CertificateDer<'static>>, ManagementError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(unusable)
}

/// The libraries' errors say what is wrong, and quote nothing.
fn unusable(error: impl fmt::Display) -> ManagementError {
    let problem = format!("the certificates for https:// cannot be used: {error}");
    ManagementError::Certificates { problem }
}

/// Returns what to do about a failed handshake; nothing if it is not TLS that failed.
pub(crate) fn next_step(error: &io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "renew its certificate, or set this machine's clock if that is wrong",
        Error::InvalidCertificate(_) => {
            "trust its authority with a CA file (--amqp-ca), or use the host name that is in its \
             certificate"
        }
        Error::AlertReceived(_) => {
            "it refuses the client certificate (--amqp-cert, --amqp-key), or asks for one"
        }
        _ => "check that the port speaks TLS: RabbitMQ's own for https:// is 15671",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_or_key_is_refused_without_quoting_it() {
        let broken = "-----BEGIN CERTIFICATE-----\nc2VzYW1l\n-----END CERTIFICATE-----\n";
        let check = |certificates: Certificates<'_>| {
            let error = Tls::new(certificates).unwrap_err().to_string();
            assert!(error.contains("cannot be used"), "{error}");
            assert!(!error.contains("sesame") && !error.contains("c2VzYW1l"), "{error}");
        };
        check(Certificates { authorities: Some(broken), identity: None });
        check(Certificates { authorities: None, identity: Some((broken, "no key: sesame")) });
    }

    #[test]
    fn what_is_wrong_decides_the_next_step() {
        let step = |error: Error| next_step(&io::Error::new(io::ErrorKind::InvalidData, error));
        let flawed = |flaw| step(Error::InvalidCertificate(flaw)).unwrap();
        assert!(flawed(CertificateError::Expired).contains("renew"));
        assert!(flawed(CertificateError::UnknownIssuer).contains("--amqp-ca"));
        assert!(flawed(CertificateError::NotValidForName).contains("host name"));
        assert!(step(Error::HandshakeNotComplete).unwrap().contains("15671"));
        assert_eq!(next_step(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }
}
