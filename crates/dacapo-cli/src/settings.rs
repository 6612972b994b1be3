//! What was meant: arguments, environment and file, resolved once. Only this travels.

mod account;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;

use dacapo_amqp::{AmqpUrl, Broker, Tls};
use dacapo_event::{Clock, Digest, MemoryBudget, Timestamp};
use dacapo_management::{Certificates, Management, ManagementError};
use dacapo_s3::S3Options;

use crate::args::{GlobalArgs, LOG_DEFAULT, LogFormat, parse_bytes};
use crate::config::Config;
use crate::exit::Failure;
use account::Account;

/// What every command works with.
#[derive(Debug, Clone)]
pub struct Settings {
    archive: Option<ArchiveUrl>,
    index: Option<PathBuf>,
    /// The state directory.
    pub state: PathBuf,
    amqp: Option<AmqpUrl>,
    account: Account,
    management: Option<Management>,
    /// What to log.
    pub log: String,
    /// How to log.
    pub log_format: LogFormat,
    /// The wall clock.
    pub clock: Clock,
    /// What events may take in memory.
    pub memory: MemoryBudget,
}

/// Where an archive is.
#[derive(Debug, Clone)]
pub enum ArchiveUrl {
    /// A directory.
    Directory(PathBuf),
    /// A bucket and prefix.
    S3(S3Options),
}

impl FromStr for ArchiveUrl {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let refused = || {
            Failure::configuration(format!(
                "`{text}` is not an archive: give a directory, `file:///dir` or `s3://bucket/prefix`"
            ))
        };
        // Who writes a key pair there would read its secret in every message.
        let login = text.split_once("://").and_then(|(_, place)| place.rsplit_once('@'));
        if login.is_some_and(|(login, _)| login.contains(':')) {
            let problem = "an archive's URL holds no credentials, so it is not shown here: give \
                           `s3://bucket/prefix`, and the credentials as for the AWS tools";
            return Err(Failure::configuration(problem).into());
        }
        if text.starts_with("s3://") {
            return Ok(ArchiveUrl::S3(S3Options::from_url(text).ok_or_else(refused)?));
        }
        let path = match text.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => path,
            Some(_) => return Err(refused().into()),
            None => text,
        };
        match path.is_empty() {
            true => Err(refused().into()),
            false => Ok(ArchiveUrl::Directory(PathBuf::from(path))),
        }
    }
}

impl Settings {
    /// Resolves flags over environment over file.
    pub fn resolve(args: &GlobalArgs) -> anyhow::Result<Self> {
        let config = Config::load(path(&args.config).as_deref())?;
        let archive = said(&args.archive).or(config.archive);
        let archive = archive.map(|text| text.parse()).transpose()?;
        let state = path(&args.state).or(config.state);
        let state = state.unwrap_or_else(|| home().join(".local/state/dacapo"));

        let amqp = said(&args.amqp).or(config.amqp);
        let amqp = amqp.map(|text| amqp_url(&text)).transpose()?;
        let account = Account {
            password: said(&args.amqp_password),
            password_file: args.amqp_password_file.clone().or(config.amqp_password_file),
            password_in_config: config.amqp_password,
            authorities: args.amqp_ca.clone().or(config.amqp_ca),
            certificates: args.amqp_cert.clone().or(config.amqp_cert),
            key: args.amqp_key.clone().or(config.amqp_key),
        };
        // Mistakes are told before anything is begun.
        let (_, tls) = account.read()?;
        let management = said(&args.management).or(config.management);
        let certificates = certificates(&tls);
        let management = management.map(|text| Management::new(&text, certificates)).transpose();
        let management = management.map_err(|error: ManagementError| {
            Failure::configuration(format!("--management (DACAPO_MANAGEMENT): {error}"))
        })?;
        Ok(Settings {
            archive,
            index: path(&args.index).or(config.index),
            state,
            amqp,
            account,
            management,
            log: match args.log.as_str() {
                "" => LOG_DEFAULT.to_owned(),
                log => log.to_owned(),
            },
            log_format: args.log_format,
            clock: wall_clock,
            memory: memory(said(&args.memory), config.memory)?,
        })
    }

    /// Logs what is unwise about the settings, once logging has begun.
    pub fn warn(&self) {
        for path in self.account.exposed() {
            tracing::warn!(
                file = %path.display(),
                "every user of this machine can read this secret; take that right away with `chmod o-r`"
            );
        }
    }

    /// Returns where the archive is.
    pub fn archive(&self) -> anyhow::Result<&ArchiveUrl> {
        self.archive.as_ref().ok_or_else(|| {
            let problem = "which archive? give --archive URL (or DACAPO_ARCHIVE, or `archive` in dacapo.toml)";
            Failure::configuration(problem).into()
        })
    }

    /// Returns where the index of the archive at `location` is: one for each archive, unless one
    /// was named.
    pub fn index_dir(&self, location: &str) -> PathBuf {
        let digest = Digest::of(location.as_bytes()).to_string();
        let default = || home().join(".cache/dacapo").join(format!("index-{}", &digest[..12]));
        self.index.clone().unwrap_or_else(default)
    }

    /// Returns the broker; `client` names the connection in its lists. Files with a password,
    /// certificates or a key are read each time.
    pub fn broker(&self, client: impl Into<String>) -> anyhow::Result<Broker> {
        let url = self.amqp.clone().ok_or_else(|| {
            let problem =
                "which broker? give --amqp URL (or DACAPO_AMQP, or `amqp` in dacapo.toml)";
            Failure::configuration(problem)
        })?;
        let (password, tls) = self.account.read()?;
        let url = match password {
            Some(password) => url.with_password(password),
            None => url,
        };
        Ok(Broker { url, tls, client_name: client.into() })
    }

    /// Returns the broker if one was named.
    pub fn broker_if_named(&self, client: impl Into<String>) -> anyhow::Result<Option<Broker>> {
        self.amqp.as_ref().map(|_| self.broker(client)).transpose()
    }

    /// Returns the broker's virtual host if a broker was named.
    pub fn vhost(&self) -> Option<&str> {
        self.amqp.as_ref().map(AmqpUrl::vhost)
    }

    /// Returns host, port and virtual host of the broker if one was named.
    pub fn peer(&self) -> Option<String> {
        self.amqp.as_ref().map(AmqpUrl::peer)
    }

    /// Returns the same settings in another virtual host of the broker.
    #[must_use]
    pub fn in_vhost(&self, vhost: &str) -> Self {
        let amqp = self.amqp.clone().map(|url| url.with_vhost(vhost));
        Settings { amqp, ..self.clone() }
    }

    /// Returns the same settings on another broker, whose password is in its URL if it has one; the
    /// certificates are the same.
    pub fn on_broker(&self, amqp: &str, management: Option<&str>) -> anyhow::Result<Self> {
        let account = self.account.without_password();
        let (_, tls) = account.read()?;
        let management = management.map(|text| Management::new(text, certificates(&tls)));
        let management = management.transpose().map_err(|error: ManagementError| {
            Failure::configuration(format!("`management` of the environment: {error}"))
        })?;
        Ok(Settings { amqp: Some(amqp_url(amqp)?), account, management, ..self.clone() })
    }

    /// Returns the broker's management plugin if one was named.
    pub fn management(&self) -> Option<&Management> {
        self.management.as_ref()
    }

    /// Returns the size at which a segment is finished, unless another was asked for.
    pub fn segment_bytes(&self, asked: Option<NonZeroU64>) -> usize {
        let bytes = asked.map_or(self.memory.segment(), NonZeroU64::get);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Returns what time it is.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

/// The management plugin is of the same broker, so that who vouches for one vouches for the other.
fn certificates(tls: &Tls) -> Certificates<'_> {
    let identity = tls.identity.as_ref();
    Certificates {
        authorities: tls.authorities.as_deref(),
        identity: identity.map(|shown| (shown.certificates.as_str(), shown.key.as_str())),
    }
}

/// A variable that is set to nothing says nothing: deployments pass such for what is not used.
fn said(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

/// As [`said`], of a path.
fn path(path: &Option<PathBuf>) -> Option<PathBuf> {
    path.clone().filter(|path| !path.as_os_str().is_empty())
}

fn memory(flag: Option<String>, file: Option<String>) -> anyhow::Result<MemoryBudget> {
    let of_flag = |error| Failure::usage(format!("--memory (DACAPO_MEMORY): {error}"));
    let of_file =
        |error| Failure::configuration(format!("`memory` in the configuration file: {error}"));
    let bytes = match (flag, file) {
        (Some(text), _) => parse_bytes(&text).map_err(of_flag)?,
        (None, Some(text)) => parse_bytes(&text).map_err(of_file)?,
        (None, None) => return Ok(MemoryBudget::DEFAULT),
    };
    MemoryBudget::new(bytes.get()).ok_or_else(|| {
        let least = MemoryBudget::MIN_BYTES / 1024 / 1024;
        let problem = format!("a memory of {bytes} bytes is too little: give at least {least}Mi");
        Failure::configuration(problem).into()
    })
}

/// The text may hold a password, so the error does not quote it.
fn amqp_url(text: &str) -> anyhow::Result<AmqpUrl> {
    text.parse().map_err(|_| {
        let problem = "the broker's URL is not one: `amqp://user:password@host:5672/vhost` or `amqps://…` \
                       (the virtual host `/` is `%2f` or left out)";
        Failure::configuration(problem).into()
    })
}

#[expect(clippy::disallowed_methods, reason = "the composition root is where the clock is read")]
fn wall_clock() -> Timestamp {
    match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
        Err(_) => Timestamp::EPOCH,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the composition root is where the environment is read"
)]
fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from)
}
