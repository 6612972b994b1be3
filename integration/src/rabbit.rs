//! A private RabbitMQ node, with an `epmd` of its own.
//!
//! It can be killed and started again on the same data and ports, so that tests can take the
//! broker away at the worst moment.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{Process, Signal, signal};
use crate::tls::{self, Certificates, Flaw};
use crate::{ports, wait};

/// Of Debian's package; the scripts in the path would switch to the user `rabbitmq`.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// A start takes 4 to 8 s on two idle cores; a machine that also compiles takes longer.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// An orderly stop flushes queues; seconds, not minutes.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long one probe of the port may wait for the broker's greeting.
const GREETING_DEADLINE: Duration = Duration::from_secs(2);
/// What every node's password begins with: characters that URLs have an encoding for, so that a
/// password that is told is found in whatever form ([`crate::secrets`]).
const PASSWORD_START: &str = "s3cr+t/p@ss%:word-";
/// First bytes of `connection.start`: a method frame on channel 0, and after its size class 10,
/// method 10.
const GREETING_BYTES: usize = 11;

/// Who every node knows from the start, and who may do everything.
const USER: &str = "guest";

/// What a node does with the certificates of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificates {
    /// It asks for none.
    Ignored,
    /// It refuses whoever has none that its own authority signed, and lets log in with it, as
    /// the user that is its common name (`EXTERNAL`).
    Required,
}

/// A node on 127.0.0.1; ended when dropped.
#[derive(Debug)]
pub struct Rabbit {
    folder: PathBuf,
    ports: Ports,
    certificates: Certificates,
    password: String,
    // Declared before `epmd`, so that the node ends first.
    node: Process,
    _epmd: Process,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    amqp: u16,
    amqps: u16,
    management: u16,
    management_tls: u16,
    distribution: u16,
    epmd: u16,
}

impl Rabbit {
    /// Starts a node with its data and logs in `folder`, and returns when it takes connections.
    ///
    /// # Errors
    /// A program is missing, or the node does not start; the message says where its log is.
    pub fn start(folder: &Path) -> Result<Self> {
        Rabbit::start_with(folder, ClientCertificates::Ignored)
    }

    /// Starts a node as [`Rabbit::start`] does, that treats clients over TLS like this. Its
    /// certificates are those of [`tls::certificates`] in `folder`.
    ///
    /// # Errors
    /// As [`Rabbit::start`].
    pub fn start_with(folder: &Path, clients: ClientCertificates) -> Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to create `{}`", folder.display()))?;
        let ports = Ports {
            amqp: ports::free()?,
            amqps: ports::free()?,
            management: ports::free()?,
            management_tls: ports::free()?,
            distribution: ports::free()?,
            epmd: ports::free()?,
        };
        let certificates = tls::certificates(folder)?;
        let password = format!("{PASSWORD_START}{}", random_word());
        write_configuration(folder, ports, &certificates, &password, clients)?;
        let epmd = Process::start(
            Command::new("epmd")
                .args(["-address", "127.0.0.1", "-port"])
                .arg(ports.epmd.to_string()),
            &folder.join("epmd.log"),
        )?;
        let mut node = start_node(folder, ports)?;
        await_greeting(&mut node, folder, ports.amqp)?;
        Ok(Rabbit { folder: folder.to_owned(), ports, certificates, password, node, _epmd: epmd })
    }

    /// Returns its URL for the virtual host `/`.
    pub fn amqp_url(&self) -> String {
        self.amqp_url_as(USER, &self.password)
    }

    /// Returns its URL for the virtual host `/` and another account.
    pub fn amqp_url_as(&self, user: &str, password: &str) -> String {
        let (user, password) = (percent_encoded(user), percent_encoded(password));
        format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// Returns its URL over TLS.
    pub fn amqps_url(&self) -> String {
        let password = percent_encoded(&self.password);
        format!("amqps://{USER}:{password}@localhost:{}/%2f", self.ports.amqps)
    }

    /// Returns its URL over TLS for whoever a client certificate is for.
    pub fn amqps_url_external(&self) -> String {
        format!("amqps://localhost:{}/%2f?auth_mechanism=external", self.ports.amqps)
    }

    /// Gives it another certificate, from the next connection on.
    ///
    /// # Errors
    /// `openssl` or `rabbitmqctl` fails.
    pub fn change_certificate(&self, flaw: Option<Flaw>) -> Result<()> {
        tls::server(&self.folder, flaw)?;
        self.ctl(&["eval", "ssl:clear_pem_cache()."]).map(drop)
    }

    /// Returns the authority that signed its certificate.
    pub fn authority(&self) -> &Path {
        &self.certificates.authority
    }

    /// Returns the URL of its management plugin.
    pub fn management_url(&self) -> String {
        let password = percent_encoded(&self.password);
        format!("http://{USER}:{password}@127.0.0.1:{}", self.ports.management)
    }

    /// Returns the URL of its management plugin over TLS.
    pub fn management_tls_url(&self) -> String {
        let password = percent_encoded(&self.password);
        format!("https://{USER}:{password}@localhost:{}", self.ports.management_tls)
    }

    /// Returns its AMQP port, for a proxy in front of it.
    pub fn port(&self) -> u16 {
        self.ports.amqp
    }

    /// Returns its process, which is another one after each start.
    pub fn pid(&self) -> u32 {
        self.node.pid()
    }

    /// Ends it at once, as a power cut would; it stays down until [`Rabbit::start_again`].
    ///
    /// # Errors
    /// It is not gone within a deadline.
    pub fn kill(&mut self) -> Result<()> {
        self.node.kill()
    }

    /// Stops it in order; it stays down until [`Rabbit::start_again`].
    ///
    /// # Errors
    /// It has not ended within a deadline.
    pub fn stop(&mut self) -> Result<()> {
        self.node.terminate(STOP_DEADLINE).map(drop)
    }

    /// Halts it where it is (connections stay open, nothing is answered), until
    /// [`Rabbit::thaw`].
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> Result<()> {
        signal(self.node.pid(), Signal::Stop)
    }

    /// Lets a halted node go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self) -> Result<()> {
        signal(self.node.pid(), Signal::Continue)
    }

    /// Starts it on the same data and ports after [`Rabbit::kill`] or [`Rabbit::stop`]; returns
    /// when it takes connections. A quorum queue may report depth 0 for some 2 s more.
    ///
    /// # Errors
    /// It still runs, or does not start.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.node.ended()?.is_some(), "the node still runs; `kill` or `stop` it first");
        self.node = start_node(&self.folder, self.ports)?;
        await_greeting(&mut self.node, &self.folder, self.ports.amqp)
    }

    /// Runs `rabbitmqctl` on it and returns its stdout.
    ///
    /// # Errors
    /// The command failed; the message holds its words.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(format!("{PROGRAMS}/rabbitmqctl"));
        let output = set_environment(&mut command, &self.folder, self.ports)
            .args(args)
            .output()
            .context("failed to run `rabbitmqctl`")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`rabbitmqctl {}` failed: {stderr}", args.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn write_configuration(
    folder: &Path,
    ports: Ports,
    certificates: &Certificates,
    password: &str,
    clients: ClientCertificates,
) -> Result<()> {
    let Ports { amqp, amqps, management, management_tls, .. } = ports;
    let authority = certificates.authority.display();
    let certificate = certificates.certificate.display();
    let key = certificates.key.display();
    let (clients, plugins) = match clients {
        ClientCertificates::Ignored => ("ssl_options.verify = verify_none\n", ""),
        ClientCertificates::Required => (
            "ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = true\n\
             auth_mechanisms.1 = PLAIN\n\
             auth_mechanisms.2 = EXTERNAL\n\
             ssl_cert_login_from = common_name\n",
            ",rabbitmq_auth_mechanism_ssl",
        ),
    };
    // Limits far from what tests reach, so that the machine's own state raises no alarm.
    let configuration = format!(
        "listeners.tcp.1 = 127.0.0.1:{amqp}\n\
         listeners.ssl.1 = 127.0.0.1:{amqps}\n\
         ssl_options.cacertfile = {authority}\n\
         ssl_options.certfile = {certificate}\n\
         ssl_options.keyfile = {key}\n\
         {clients}\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {management}\n\
         management.ssl.ip = 127.0.0.1\n\
         management.ssl.port = {management_tls}\n\
         management.ssl.cacertfile = {authority}\n\
         management.ssl.certfile = {certificate}\n\
         management.ssl.keyfile = {key}\n\
         default_user = {USER}\n\
         default_pass = {password}\n\
         loopback_users.{USER} = true\n\
         disk_free_limit.absolute = 50MB\n\
         vm_memory_high_watermark.absolute = 2GB\n\
         log.console = false\n"
    );
    let cookie = folder.join(".erlang.cookie");
    for (path, text) in [
        (folder.join("rabbitmq.conf"), configuration.as_str()),
        (folder.join("enabled_plugins"), &format!("[rabbitmq_management{plugins}].\n")),
        (cookie.clone(), &random_word()),
    ] {
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    // Erlang refuses a cookie that others may read.
    fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400))
        .context("failed to protect the cookie")
}

/// Returns a word that other users of the machine do not know, for it admits to the node; and that
/// nothing else contains.
fn random_word() -> String {
    use std::hash::{BuildHasher, RandomState};
    let word = || RandomState::new().hash_one("word");
    format!("{:016x}{:016x}", word(), word())
}

fn percent_encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}

fn set_environment<'c>(command: &'c mut Command, folder: &Path, ports: Ports) -> &'c mut Command {
    const LOOPBACK: &str = "-kernel inet_dist_use_interface {127,0,0,1}";
    command
        .env("HOME", folder)
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", ports.epmd.to_string())
        .env("RABBITMQ_NODENAME", format!("dacapo-{}@localhost", ports.amqp))
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", ports.amqp.to_string())
        .env("RABBITMQ_DIST_PORT", ports.distribution.to_string())
        .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .env("RABBITMQ_PID_FILE", folder.join("pid"))
        .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
        .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", LOOPBACK)
        .env("RABBITMQ_CTL_ERL_ARGS", LOOPBACK)
}

fn start_node(folder: &Path, ports: Ports) -> Result<Process> {
    let mut command = Command::new(format!("{PROGRAMS}/rabbitmq-server"));
    set_environment(&mut command, folder, ports)
        // The script then becomes the node instead of waiting for it: one pid to signal.
        .env("RUNNING_UNDER_SYSTEMD", "true");
    Process::start(&mut command, &folder.join("node.log"))
}

fn await_greeting(node: &mut Process, folder: &Path, port: u16) -> Result<()> {
    let what = format!("RabbitMQ answers on port {port} (logs in `{}`)", folder.display());
    wait::until(&what, START_DEADLINE, || {
        if let Some(status) = node.ended()? {
            bail!("RabbitMQ ended with {status}; its logs are in `{}`", folder.display());
        }
        Ok(greets(port).unwrap_or(false).then_some(()))
    })
}

/// Returns whether the port answers the protocol header with `connection.start`: it listens
/// earlier than that, and then closes what connects.
fn greets(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(GREETING_DEADLINE))?;
    stream.write_all(b"AMQP\x00\x00\x09\x01")?;
    let mut frame = [0; GREETING_BYTES];
    stream.read_exact(&mut frame)?;
    Ok(frame[..3] == [1, 0, 0] && frame[7..] == [0, 10, 0, 10])
}
