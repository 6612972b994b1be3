//! The configuration file: `dacapo.toml`. Flags and environment win over it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::exit::Failure;

/// What the file may say; the names are those of the flags with `_` for `-`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `--archive`
    pub archive: Option<String>,
    /// `--index`
    pub index: Option<PathBuf>,
    /// `--state`
    pub state: Option<PathBuf>,
    /// `--memory`, as text: `"128Mi"`
    pub memory: Option<String>,
    /// `--amqp`
    pub amqp: Option<String>,
    /// The password, for a file that only its owner can read.
    pub amqp_password: Option<String>,
    /// `--amqp-password-file`
    pub amqp_password_file: Option<PathBuf>,
    /// `--amqp-ca`
    pub amqp_ca: Option<PathBuf>,
    /// `--amqp-cert`
    pub amqp_cert: Option<PathBuf>,
    /// `--amqp-key`
    pub amqp_key: Option<PathBuf>,
    /// `--management`
    pub management: Option<String>,
}

/// The file that is read if none is named.
const DEFAULT: &str = "dacapo.toml";

impl Config {
    /// Returns what the named file says, or `dacapo.toml` here, or nothing.
    pub fn load(named: Option<&Path>) -> anyhow::Result<Self> {
        let path = match named {
            Some(path) => path,
            None if Path::new(DEFAULT).exists() => Path::new(DEFAULT),
            None => return Ok(Config::default()),
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::configuration(format!("failed to read `{}`: {error}", path.display()))
        })?;
        // The parser's own message quotes the line, which may hold the password.
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let problem = error.message();
            Failure::configuration(format!("`{}` line {line}: {problem}", path.display())).into()
        })
    }
}
