//! A private etcd of one member, from Debian's package.
//!
//! It can be killed and started again on the same data and ports, and be given little room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{Process, Signal, signal};
use crate::tls::{self, Certificates};
use crate::{http, ports, wait};

/// A start takes a second; a machine that also compiles takes longer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// etcd's own quota, where none is given.
pub const QUOTA_BYTES: u64 = 2 * 1024 * 1024 * 1024;

/// Whether clients come over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// They do not.
    Plain,
    /// They do, with a certificate of the authority that signed the member's own.
    Tls,
}

/// A member on 127.0.0.1; ended when dropped.
#[derive(Debug)]
pub struct Etcd {
    folder: PathBuf,
    settings: Settings,
    server: Process,
}

#[derive(Debug, Clone)]
struct Settings {
    client: u16,
    peer: u16,
    metrics: u16,
    quota_bytes: u64,
    /// Absent where clients come without TLS.
    certificates: Option<Certificates>,
}

impl Etcd {
    /// Starts a member with its data and log in `folder`, and returns when it takes requests.
    ///
    /// # Errors
    /// The program is missing, or the member does not start; the message says where its log is.
    pub fn start(folder: &Path) -> Result<Self> {
        Etcd::start_with(folder, QUOTA_BYTES, Transport::Plain)
    }

    /// Starts a member as [`Etcd::start`] does, with so much room for its data.
    ///
    /// # Errors
    /// As [`Etcd::start`].
    pub fn start_with(folder: &Path, quota_bytes: u64, transport: Transport) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        let certificates = match transport {
            Transport::Plain => None,
            Transport::Tls => Some(tls::certificates(folder)?),
        };
        let (client, peer, metrics) = (ports::free()?, ports::free()?, ports::free()?);
        let settings = Settings { client, peer, metrics, quota_bytes, certificates };
        let mut server = start_server(folder, &settings)?;
        await_health(&mut server, folder, &settings)?;
        Ok(Etcd { folder: folder.to_owned(), settings, server })
    }

    /// Returns its URL for clients.
    pub fn endpoint(&self) -> String {
        self.settings.endpoint()
    }

    /// Returns the folder of its authority and certificates, if it has any.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the value of one of its metrics.
    ///
    /// # Errors
    /// It does not answer, or has no such metric.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = http::get(&self.settings.metrics_address(), "/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("there is no metric `{name}`"))?
            .parse()
            .with_context(|| format!("`{name}` is no number"))
    }

    /// Returns how much memory it has, in bytes.
    ///
    /// # Errors
    /// As [`Etcd::metric`].
    pub fn resident_bytes(&self) -> Result<f64> {
        self.metric("process_resident_memory_bytes")
    }

    /// Ends it at once; it stays down until [`Etcd::start_again`].
    ///
    /// # Errors
    /// It is not gone within a deadline.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// Halts it where it is (connections stay open, nothing is answered), until [`Etcd::thaw`].
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> Result<()> {
        signal(self.server.pid(), Signal::Stop)
    }

    /// Lets a halted member go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> Result<()> {
        signal(self.server.pid(), Signal::Continue)
    }

    /// Starts it on the same data and ports after [`Etcd::kill`].
    ///
    /// # Errors
    /// It still runs, or does not start.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.server.ended()?.is_some(), "the member still runs; `kill` it first");
        self.server = start_server(&self.folder, &self.settings)?;
        await_health(&mut self.server, &self.folder, &self.settings)
    }
}

impl Settings {
    fn endpoint(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client)
    }

    fn metrics_address(&self) -> String {
        format!("127.0.0.1:{}", self.metrics)
    }
}

fn start_server(folder: &Path, settings: &Settings) -> Result<Process> {
    let (client, peer) = (settings.endpoint(), format!("http://127.0.0.1:{}", settings.peer));
    let mut command = Command::new("etcd");
    command
        .current_dir(folder)
        .args(["--name", "tests", "--data-dir", "data"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("tests={peer}")])
        // Without TLS and open to anybody here, so that its health can be asked for.
        .args(["--listen-metrics-urls", &format!("http://{}", settings.metrics_address())])
        .args(["--quota-backend-bytes", &settings.quota_bytes.to_string()]);
    if let Some(certificates) = &settings.certificates {
        command
            .arg("--client-cert-auth")
            .arg("--trusted-ca-file")
            .arg(&certificates.authority)
            .arg("--cert-file")
            .arg(&certificates.certificate)
            .arg("--key-file")
            .arg(&certificates.key);
    }
    if std::env::consts::ARCH == "aarch64" {
        // It runs there, and wants to be told that one knows that 3.4 is not tested on it.
        command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
    }
    Process::start(&mut command, &folder.join("etcd.log"))
}

fn await_health(server: &mut Process, folder: &Path, settings: &Settings) -> Result<()> {
    let what = format!("etcd is healthy (log in `{}`)", folder.display());
    wait::until(&what, START_DEADLINE, || {
        if let Some(status) = server.ended()? {
            bail!("etcd ended with {status}; its log is in `{}`", folder.display());
        }
        // A member without room for writes is not healthy either, and takes requests.
        let leads = http::get(&settings.metrics_address(), "/metrics")
            .is_ok_and(|(_, text)| text.lines().any(|line| line == "etcd_server_has_leader 1"));
        Ok(leads.then_some(()))
    })
}
