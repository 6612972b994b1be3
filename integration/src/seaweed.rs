//! A private S3 server: SeaweedFS, one process, from the venv.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::{Process, Signal, signal};
use crate::{http, ports, wait, witness};

/// A start takes a second or two; a machine that also compiles takes longer.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long one probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// The bucket that exists from the start.
pub const BUCKET: &str = "dacapo-test";
/// The access key it takes.
pub const ACCESS_KEY: &str = "dacapo-test";
/// The secret it takes; only this machine can reach the server. With characters that URLs have an
/// encoding for, so that it is found in whatever form it is told ([`crate::secrets`]).
pub const SECRET_KEY: &str = "wJalr+S3cret/of=dacapo-tests";
/// Any region will do, but requests are signed with one.
pub const REGION: &str = "us-east-1";

/// In the server's folder: who may do what, where not only [`ACCESS_KEY`] may do everything.
const IDENTITIES: &str = "identities.json";

/// The most entries of one folder that are asked for: more than a test puts there.
const FILER_ENTRIES_MAX: u32 = 100_000;

/// The bit of a mode that is a folder's, as Go tells it.
const FILER_FOLDER: u64 = 1 << 31;

/// A server on 127.0.0.1; ended when dropped.
#[derive(Debug)]
pub struct Seaweed {
    folder: PathBuf,
    ports: Ports,
    server: Process,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    master: u16,
    volume: u16,
    filer: u16,
    s3: u16,
    s3_grpc: u16,
    admin: u16,
}

impl Seaweed {
    /// Starts a server with its data and log in `folder`, and returns when [`BUCKET`] is there.
    ///
    /// # Errors
    /// The program is missing, or the server does not start; the message says where its log is.
    pub fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("data"))
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        let ports = Ports {
            master: ports::free()?,
            volume: ports::free()?,
            filer: ports::free()?,
            s3: ports::free()?,
            s3_grpc: ports::free()?,
            admin: ports::free()?,
        };
        let mut server = start_server(folder, ports)?;
        await_bucket(&mut server, folder, ports)?;
        Ok(Seaweed { folder: folder.to_owned(), ports, server })
    }

    /// Starts a server that knows these users besides [`ACCESS_KEY`], each with an access key of
    /// this name, [`SECRET_KEY`] as its secret, and this IAM policy.
    ///
    /// # Errors
    /// As [`Seaweed::start`].
    pub fn start_with_users(folder: &Path, users: &[(String, Value)]) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        let credentials = |key: &str| json!([{ "accessKey": key, "secretKey": SECRET_KEY }]);
        let mut identities = vec![json!({
            "name": ACCESS_KEY,
            "credentials": credentials(ACCESS_KEY),
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        })];
        identities.extend(users.iter().map(|(name, _)| {
            json!({ "name": name, "credentials": credentials(name), "policyNames": [name] })
        }));
        let policy = |(name, policy): &(String, Value)| json!({ "name": name, "content": policy.to_string() });
        let policies: Vec<Value> = users.iter().map(policy).collect();
        let text = json!({ "identities": identities, "policies": policies }).to_string();
        let path = folder.join(IDENTITIES);
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))?;
        Seaweed::start(folder)
    }

    /// Returns its URL, for `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.s3)
    }

    /// Returns its S3 port, for a proxy in front of it.
    pub fn port(&self) -> u16 {
        self.ports.s3
    }

    /// Reads the objects below a folder of a bucket for which `wanted` says so, with their keys
    /// (bucket included), as the server itself keeps them: past S3 and whoever fails it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn read_new(
        &self,
        folder: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        const BUCKETS: &str = "/buckets/";
        let address = format!("127.0.0.1:{}", self.ports.filer);
        let mut folders = vec![format!("{BUCKETS}{folder}")];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            let path = format!("{folder}/?limit={FILER_ENTRIES_MAX}");
            let (status, text) = http::get(&address, &path)?;
            if status == 404 {
                continue;
            }
            let listed: Value = serde_json::from_str(&text).context("a listing is JSON")?;
            for entry in listed["Entries"].as_array().into_iter().flatten() {
                let path = entry["FullPath"].as_str().context("an entry has a path")?.to_owned();
                let mode = entry["Mode"].as_u64().context("an entry has a mode")?;
                if mode & FILER_FOLDER != 0 {
                    folders.push(path);
                } else if wanted(path.trim_start_matches(BUCKETS)) {
                    let (status, bytes) = http::get_bytes(&address, &path)?;
                    ensure!(status == 200, "`{path}`: status {status}");
                    found.push((path.trim_start_matches(BUCKETS).to_owned(), bytes));
                }
            }
        }
        Ok(found)
    }

    /// Ends it at once; it stays down until [`Seaweed::start_again`].
    ///
    /// # Errors
    /// It is not gone within a deadline.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// Halts it where it is (connections stay open, nothing is answered), until
    /// [`Seaweed::thaw`].
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> Result<()> {
        signal(self.server.pid(), Signal::Stop)
    }

    /// Lets a halted server go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> Result<()> {
        signal(self.server.pid(), Signal::Continue)
    }

    /// Starts it on the same data and ports after [`Seaweed::kill`].
    ///
    /// # Errors
    /// It still runs, or does not start.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.server.ended()?.is_some(), "the server still runs; `kill` it first");
        self.server = start_server(&self.folder, self.ports)?;
        await_bucket(&mut self.server, &self.folder, self.ports)
    }
}

fn start_server(folder: &Path, ports: Ports) -> Result<Process> {
    let program = witness::python().with_file_name("weed");
    let mut command = Command::new(program);
    command
        .current_dir(folder)
        .env("HOME", folder)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        .args(["mini", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
        .arg(format!("-bucket={BUCKET}"))
        .arg(format!("-master.port={}", ports.master))
        .arg(format!("-volume.port={}", ports.volume))
        .arg(format!("-filer.port={}", ports.filer))
        .arg(format!("-s3.port={}", ports.s3))
        .arg(format!("-s3.port.grpc={}", ports.s3_grpc))
        // Without its page it still listens, by default on a fixed port.
        .arg(format!("-admin.port={}", ports.admin))
        // Its defaults call home and open further ports.
        .args(["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
        .args(["-webdav=false", "-admin.ui=false"])
        // Relative, because a socket's path has at most 107 bytes.
        .args(["-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock"]);
    if folder.join(IDENTITIES).exists() {
        command.arg(format!("-s3.config={IDENTITIES}"));
    }
    Process::start(&mut command, &folder.join("server.log"))
}

fn await_bucket(server: &mut Process, folder: &Path, ports: Ports) -> Result<()> {
    let what = format!("SeaweedFS has its bucket (log in `{}`)", folder.display());
    let bucket = format!("/buckets/{BUCKET}/");
    wait::until(&what, START_DEADLINE, || {
        if let Some(status) = server.ended()? {
            bail!("SeaweedFS ended with {status}; its log is in `{}`", folder.display());
        }
        // The filer shows buckets as folders to anybody; S3 itself asks for a signature, so any
        // answer of it will do.
        let there = status_of(ports.filer, &bucket).is_ok_and(|status| status == 200)
            && status_of(ports.s3, "/").is_ok();
        Ok(there.then_some(()))
    })
}

/// Returns the HTTP status of a GET.
fn status_of(port: u16, path: &str) -> Result<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PROBE_DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n")?;
    // "HTTP/1.1 200"
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    let status = std::str::from_utf8(&line)?.rsplit(' ').next().context("no status")?;
    Ok(status.parse()?)
}
