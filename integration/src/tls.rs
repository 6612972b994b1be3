//! An authority and a server certificate of its own, made anew by `openssl` for each run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Longer than any run of the tests, short enough to be of no use to anybody later.
const DAYS_VALID: &str = "2";

/// Files of a server on localhost that speaks TLS.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
    /// The server's certificate for `localhost` and 127.0.0.1, PEM.
    pub certificate: PathBuf,
    /// The server's key, PEM.
    pub key: PathBuf,
}

/// Makes certificates in `folder`.
///
/// # Errors
/// `openssl` (3.0 or later) is missing or fails.
pub fn certificates(folder: &Path) -> Result<Certificates> {
    let certificates = Certificates {
        authority: folder.join("ca.pem"),
        certificate: folder.join("server.pem"),
        key: folder.join("server.key"),
    };
    let authority_key = folder.join("ca.key");
    request(&certificates.authority, &authority_key, "/CN=dacapo tests", &[])?;
    // Not an authority itself: TLS clients refuse an authority's certificate for a server.
    let mut signed = Signed { authority: &certificates.authority, key: &authority_key }.args()?;
    signed.extend(["-addext", "basicConstraints=critical,CA:FALSE"].map(str::to_owned));
    signed.extend(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"].map(str::to_owned));
    request(&certificates.certificate, &certificates.key, "/CN=localhost", &signed)?;
    Ok(certificates)
}

/// What keeps a client from trusting a server's certificate, though it knows the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It is no longer valid.
    Expired,
    /// It is for another host.
    OtherHost,
}

/// Makes certificates in `folder`; that of the server, which is on localhost, is flawed.
///
/// # Errors
/// `openssl` (3.0 or later) is missing or fails.
pub fn flawed(folder: &Path, flaw: Flaw) -> Result<Certificates> {
    let (days, host) = match flaw {
        Flaw::Expired => ("-1", "localhost"),
        Flaw::OtherHost => (DAYS_VALID, "rabbit.example"),
    };
    let certificates = certificates(folder)?;
    let request = folder.join("flawed.csr");
    let (subject, names) = (format!("/CN={host}"), format!("subjectAltName=DNS:{host}"));
    // In two steps, because `openssl req` alone takes no time in the past.
    openssl(
        Command::new("openssl")
            .args(["req", "-new", "-subj", &subject, "-addext", &names])
            .arg("-key")
            .arg(&certificates.key)
            .arg("-out")
            .arg(&request),
    )?;
    openssl(
        Command::new("openssl")
            .args(["x509", "-req", "-days", days, "-copy_extensions", "copyall"])
            .arg("-in")
            .arg(&request)
            .arg("-CA")
            .arg(&certificates.authority)
            .arg("-CAkey")
            .arg(folder.join("ca.key"))
            .arg("-out")
            .arg(&certificates.certificate),
    )?;
    Ok(certificates)
}

struct Signed<'a> {
    authority: &'a Path,
    key: &'a Path,
}

impl Signed<'_> {
    fn args(&self) -> Result<Vec<String>> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("path is not UTF-8");
        Ok(vec!["-CA".to_owned(), text(self.authority)?, "-CAkey".to_owned(), text(self.key)?])
    }
}

fn request(certificate: &Path, key: &Path, subject: &str, more: &[String]) -> Result<()> {
    openssl(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", DAYS_VALID, "-subj", subject])
            .arg("-out")
            .arg(certificate)
            .arg("-keyout")
            .arg(key)
            .args(more),
    )
}

fn openssl(command: &mut Command) -> Result<()> {
    let output = command.output().context("failed to run `openssl`; run ./integration/test")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {stderr}");
    Ok(())
}
