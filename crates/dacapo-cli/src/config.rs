//! The configuration file: `dacapo.toml`. Flags and environment win over it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::exit::Failure;

/// What the file may say; the names are those of the flags with `_` for `-`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `--archive`
    #[serde(deserialize_with = "text")]
    pub archive: Option<String>,
    /// `--index`
    #[serde(deserialize_with = "text")]
    pub index: Option<PathBuf>,
    /// `--state`
    #[serde(deserialize_with = "text")]
    pub state: Option<PathBuf>,
    /// `--memory`, as text: `"128Mi"`
    #[serde(deserialize_with = "text")]
    pub memory: Option<String>,
    /// `--amqp`
    #[serde(deserialize_with = "text")]
    pub amqp: Option<String>,
    /// The password, for a file that only its owner can read.
    #[serde(deserialize_with = "text")]
    pub amqp_password: Option<String>,
    /// `--amqp-password-file`
    #[serde(deserialize_with = "text")]
    pub amqp_password_file: Option<PathBuf>,
    /// `--amqp-ca`
    #[serde(deserialize_with = "text")]
    pub amqp_ca: Option<PathBuf>,
    /// `--amqp-cert`
    #[serde(deserialize_with = "text")]
    pub amqp_cert: Option<PathBuf>,
    /// `--amqp-key`
    #[serde(deserialize_with = "text")]
    pub amqp_key: Option<PathBuf>,
    /// `--management`
    #[serde(deserialize_with = "text")]
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
        let text =
            std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))?;
        // The parser's own words quote the line, which may hold the password.
        toml::from_str(&text).map_err(|error| {
            let before = &text[..error.span().map_or(0, |span| span.start)];
            let line = 1 + before.matches('\n').count();
            let key = key_before(before).map_or(String::new(), |key| format!("`{key}`: "));
            let problem = error.message();
            Failure::configuration(format!("`{}` line {line}: {key}{problem}", path.display()))
                .into()
        })
    }
}

/// Returns the key of the value that begins where the text ends.
fn key_before(text: &str) -> Option<&str> {
    let (key, _) = text.rsplit('\n').next()?.split_once('=')?;
    let is_of_a_key = |c: char| c.is_ascii_lowercase() || c == '_';
    // Anything else is no key of ours, and may be a value in the wrong place.
    Some(key.trim()).filter(|key| key.chars().all(is_of_a_key))
}

/// Takes text, and says nothing of what else stands there: serde's own words quote a number, and a
/// password may look like one.
fn text<'de, D, T>(value: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: From<String>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected text in quotes")]
    enum Text {
        InQuotes(String),
    }
    let Text::InQuotes(text) = Text::deserialize(value)?;
    Ok(Some(text.into()))
}
