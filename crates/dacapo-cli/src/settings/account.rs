//! What proves to the broker who connects, and to us who it is: a password, certificates and a key,
//! mostly in files; these are refused with what is wrong with them before anything is connected to.
//! No message quotes what is in them.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use dacapo_amqp::{ClientIdentity, Tls};

use crate::exit::Failure;

/// A bundle of every authority there is has some 250 KB; more is another file.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The right of whoever is neither the owner nor of the group to read a file.
const OTHERS_READ: u32 = 0o004;

/// Where password, certificates and key are.
#[derive(Clone)]
pub struct Account {
    /// From the environment; wins.
    pub password: Option<String>,
    pub password_file: Option<PathBuf>,
    /// Comes last.
    pub password_in_config: Option<String>,
    pub authorities: Option<PathBuf>,
    pub certificates: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// Leaves the passwords out.
impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").finish_non_exhaustive()
    }
}

impl Account {
    /// Returns the password, if there is one beside the URL, and what TLS needs, as the files are now.
    pub fn read(&self) -> anyhow::Result<(Option<String>, Tls)> {
        let password = match (&self.password, &self.password_file) {
            (Some(password), _) => Some(password.clone()),
            (None, Some(path)) => Some(password(path)?),
            (None, None) => self.password_in_config.clone(),
        };
        let authorities = self.authorities.as_deref().map(certificates).transpose()?;
        let identity = match (&self.certificates, &self.key) {
            (Some(path), Some(of)) => {
                Some(ClientIdentity { certificates: certificates(path)?, key: key(of)? })
            }
            (None, None) => None,
            _ => {
                let problem =
                    "a client certificate needs its key: give both amqp_cert and amqp_key";
                return Err(Failure::configuration(problem).into());
            }
        };
        Ok((password, Tls { authorities, identity }))
    }

    /// Returns the same without a password: that of another broker is in its URL.
    #[must_use]
    pub fn without_password(&self) -> Self {
        let (password, password_file, password_in_config) = (None, None, None);
        Account { password, password_file, password_in_config, ..self.clone() }
    }

    /// Returns the files with a secret that every user of this machine can read.
    pub fn exposed(&self) -> impl Iterator<Item = &Path> {
        let secret = [&self.password_file, &self.key].into_iter().flatten();
        secret
            .map(PathBuf::as_path)
            .filter(|path| path.metadata().is_ok_and(|about| about.mode() & OTHERS_READ != 0))
    }
}

/// Returns a file's text without the end of its line.
fn password(path: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(read(path)?).map_err(|_| wrong(path, "is not UTF-8"))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(wrong(path, "has no password in it").into()),
        password => Ok(password.to_owned()),
    }
}

/// Returns certificates in PEM form.
fn certificates(path: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Ok(text);
    }
    if text.contains("PRIVATE KEY-----") {
        return Err(wrong(path, "is a private key where a certificate was asked for").into());
    }
    let problem = "has no certificate in PEM form (`-----BEGIN CERTIFICATE-----`); if it is one in \
                   DER form, convert it with `openssl x509 -inform der`";
    Err(wrong(path, problem).into())
}

/// Returns a private key in PEM form.
fn key(path: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    // PKCS #8 says it in its first line, the older forms in a header of their own.
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        let problem = "is encrypted, and there is no place to give its password: decrypt it with \
                       `openssl pkey` into a file that only its owner can read";
        return Err(wrong(path, problem).into());
    }
    if text.contains("PRIVATE KEY-----") {
        return Ok(text);
    }
    if text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(wrong(path, "is a certificate where its private key was asked for").into());
    }
    let problem = "has no private key in PEM form (`-----BEGIN PRIVATE KEY-----`); if it is one in \
                   DER form, convert it with `openssl pkey -inform der`";
    Err(wrong(path, problem).into())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| Failure::file("read", path, &error))?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(wrong(path, "is too large for a password, key or certificate").into()),
        false => Ok(bytes),
    }
}

fn wrong(path: &Path, problem: &str) -> Failure {
    Failure::configuration(format!("`{}` {problem}", path.display()))
}
