//! An authority, and certificates of servers and clients that it signs, made anew by `openssl`
//! for each run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Longer than any run of the tests, short enough to be of no use to anybody later.
const DAYS_VALID: &str = "2";
/// What has ended, as a number of days from now.
const DAYS_EXPIRED: &str = "-1";

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

/// Files of a client that proves with a certificate who it is.
#[derive(Debug, Clone)]
pub struct Client {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// What keeps a peer from trusting a certificate, though it knows the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It is no longer valid.
    Expired,
    /// It is for another host.
    OtherHost,
}

/// Makes an authority and a server's certificate in `folder`.
///
/// # Errors
/// `openssl` (3.0 or later) is missing or fails.
pub fn certificates(folder: &Path) -> Result<Certificates> {
    fs::create_dir_all(folder)
        .with_context(|| format!("failed to create `{}`", folder.display()))?;
    openssl(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", DAYS_VALID, "-subj", "/CN=dacapo tests"])
            .arg("-out")
            .arg(folder.join("ca.pem"))
            .arg("-keyout")
            .arg(folder.join("ca.key")),
    )?;
    server(folder, None)
}

/// Makes the server's certificate in the folder of [`certificates`] anew, with a flaw or without
/// one.
///
/// # Errors
/// `openssl` (3.0 or later) is missing or fails.
pub fn server(folder: &Path, flaw: Option<Flaw>) -> Result<Certificates> {
    let (days, names) = match flaw {
        None => (DAYS_VALID, "DNS:localhost,IP:127.0.0.1"),
        Some(Flaw::Expired) => (DAYS_EXPIRED, "DNS:localhost,IP:127.0.0.1"),
        Some(Flaw::OtherHost) => (DAYS_VALID, "DNS:rabbit.example"),
    };
    let Client { certificate, key } = sign(folder, "server", "localhost", days, names)?;
    Ok(Certificates { authority: folder.join("ca.pem"), certificate, key })
}

/// Makes the certificate of a client with this common name in the folder of [`certificates`].
///
/// # Errors
/// `openssl` (3.0 or later) is missing or fails.
pub fn client(folder: &Path, name: &str) -> Result<Client> {
    sign(folder, name, name, DAYS_VALID, &format!("DNS:{name}"))
}

/// Makes one that is no longer valid.
///
/// # Errors
/// `openssl` (3.0 or later) is missing or fails.
pub fn expired_client(folder: &Path, name: &str) -> Result<Client> {
    sign(folder, &format!("{name}-expired"), name, DAYS_EXPIRED, &format!("DNS:{name}"))
}

/// Writes a client's key again, encrypted; returns where.
///
/// # Errors
/// `openssl` (3.0 or later) is missing or fails.
pub fn encrypted_key(client: &Client) -> Result<PathBuf> {
    let path = client.key.with_extension("encrypted.key");
    openssl(
        Command::new("openssl")
            .args(["pkey", "-aes256", "-passout", "pass:of the key"])
            .arg("-in")
            .arg(&client.key)
            .arg("-out")
            .arg(&path),
    )?;
    Ok(path)
}

/// Makes a key and a certificate for it, signed by the authority in `folder`, as `FILE.pem` and
/// `FILE.key`.
fn sign(folder: &Path, file: &str, name: &str, days: &str, names: &str) -> Result<Client> {
    let certificate = folder.join(format!("{file}.pem"));
    let key = folder.join(format!("{file}.key"));
    let request = folder.join(format!("{file}.csr"));
    // In two steps, because `openssl req` alone takes no time in the past.
    openssl(
        Command::new("openssl")
            .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-subj", &format!("/CN={name}")])
            // Not an authority itself: TLS clients refuse an authority's certificate for a server.
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-addext", &format!("subjectAltName={names}")])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&request),
    )?;
    openssl(
        Command::new("openssl")
            .args(["x509", "-req", "-days", days, "-copy_extensions", "copyall"])
            .arg("-in")
            .arg(&request)
            .arg("-CA")
            .arg(folder.join("ca.pem"))
            .arg("-CAkey")
            .arg(folder.join("ca.key"))
            .arg("-out")
            .arg(&certificate),
    )?;
    Ok(Client { certificate, key })
}

fn openssl(command: &mut Command) -> Result<()> {
    let output = command.output().context("failed to run `openssl`; run ./integration/test")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {stderr}");
    Ok(())
}
