//! Passwords and keys that a command is given, and whether something that it wrote tells one: as
//! it is, percent-encoded (in part, too), escaped, in base64 at any alignment, in hexadecimal, or
//! as a list of bytes.
//!
//! The harness looks at everything that every command of the suite writes ([`crate::dacapo`]).

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use anyhow::{Context, Result};
use regex::bytes::Regex;

use crate::environment;

/// Shorter ones (`guest`) occur where nothing is told.
const SECRET_BYTES_MIN: usize = 6;

/// Variables that are a secret as they stand; all of them are looked for whoever sets them.
const SECRET_VARIABLES: [&str; 3] =
    ["DACAPO_AMQP_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// Flags whose value is a file with a secret, and their names in the configuration.
const SECRET_FILES: [(&str, &str); 3] = [
    ("--amqp-password-file", "amqp_password_file"),
    ("--amqp-key", "amqp_key"),
    // The key that signs reports of drills; never in a configuration.
    ("--key", "key"),
];

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Secrets by where they came from, and the files that hold them on purpose.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    known: BTreeMap<Vec<u8>, Known>,
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
struct Known {
    from: String,
    pattern: Arc<Regex>,
}

/// A secret that was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Where it came from, for example `DACAPO_AMQP`.
    pub from: String,
    /// How it was written, for example `base64`.
    pub form: &'static str,
    /// At which byte.
    pub at: usize,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told { from, form, at } = self;
        write!(f, "the secret of {from} is told at byte {at}, as {form}")
    }
}

impl Secrets {
    /// Returns those of the servers under test.
    pub fn of_suite() -> Self {
        let names = [environment::AMQP, environment::AMQPS, environment::MANAGEMENT];
        let mut secrets = Secrets::default();
        for name in names.into_iter().chain(SECRET_VARIABLES) {
            if let Some(value) = environment::get(name) {
                secrets.add_variable(name, &value);
            }
        }
        secrets
    }

    /// Adds those of a command that is started in `folder`: in its arguments, in the files that
    /// these name, and in its configuration.
    pub fn add_command(&mut self, folder: &Path, args: &[&OsStr]) {
        let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let mut config = folder.join("dacapo.toml");
        for (number, arg) in args.iter().enumerate() {
            self.add_url(arg, arg);
            let (flag, value) = match arg.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (arg.as_ref(), args.get(number + 1).map(AsRef::as_ref)),
            };
            let Some(value) = value else { continue };
            if SECRET_FILES.iter().any(|(name, _)| *name == flag) {
                self.add_file(&folder.join(value));
            } else if flag == "--config" {
                config = folder.join(value);
            }
        }
        self.add_configuration(folder, &config);
    }

    /// Adds what a variable holds.
    pub fn add_variable(&mut self, name: &str, value: &str) {
        if SECRET_VARIABLES.contains(&name) {
            self.add(name, value.as_bytes());
        } else if name == "DACAPO_CONFIG" {
            self.add_configuration(Path::new("/"), Path::new(value));
        } else {
            self.add_url(name, value);
        }
    }

    /// Adds the password in `scheme://user:password@place`, malformed ones included.
    fn add_url(&mut self, from: &str, text: &str) {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let Some((login, _)) = rest.rsplit_once('@') else { return };
        let Some((_, password)) = login.split_once(':') else { return };
        let from = from.split("://").next().unwrap_or(from);
        self.add(from, &percent_decoded(password));
    }

    /// Adds a file that is a secret: a password, or a key in PEM, of which each line is one.
    fn add_file(&mut self, path: &Path) {
        let Ok(text) = fs::read_to_string(path) else { return };
        if text.contains("BEGIN CERTIFICATE") {
            // Given in the place of a key by mistake.
            return;
        }
        let from = path.display().to_string();
        for line in text.lines().filter(|line| !line.starts_with("-----")) {
            self.add(&from, line.trim_end().as_bytes());
        }
        self.files.push(path.to_owned());
    }

    fn add_configuration(&mut self, folder: &Path, path: &Path) {
        let Ok(text) = fs::read_to_string(path) else { return };
        self.files.push(path.to_owned());
        let from = path.display().to_string();
        let values = text.lines().filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            Some((name.trim(), value.trim().trim_matches(['"', '\''])))
        });
        for (name, value) in values {
            if name == "amqp_password" {
                self.add(&from, value.as_bytes());
            } else if SECRET_FILES.iter().any(|(_, key)| *key == name) {
                self.add_file(&folder.join(value));
            } else {
                self.add_url(&from, value);
            }
        }
    }

    /// Adds one; one that is too short to be told from words is left out.
    pub fn add(&mut self, from: &str, secret: &[u8]) {
        if secret.len() < SECRET_BYTES_MIN || self.known.contains_key(secret) {
            return;
        }
        let known = Known { from: format!("`{from}`"), pattern: pattern(secret) };
        self.known.insert(secret.to_owned(), known);
    }

    /// Adds all that another one knows.
    pub fn add_all(&mut self, other: &Secrets) {
        self.known.extend(other.known.clone());
        self.files.extend(other.files.clone());
    }

    /// Returns the first secret that these bytes tell.
    pub fn told(&self, bytes: &[u8]) -> Option<Told> {
        self.known.values().find_map(|known| {
            let captures = known.pattern.captures(bytes)?;
            let form = ["text", "base64", "hexadecimal", "bytes"];
            let form = form.into_iter().find(|form| captures.name(form).is_some())?;
            Some(Told { from: known.from.clone(), form, at: captures.get(0)?.start() })
        })
    }

    /// Returns the files below `folder` that tell a secret, other than those that hold it on
    /// purpose: `inputs`, and the files that it was read from.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn told_by_files(&self, folder: &Path, inputs: &[PathBuf]) -> Result<Vec<(PathBuf, Told)>> {
        let mut told = Vec::new();
        let mut left = vec![folder.to_owned()];
        while let Some(path) = left.pop() {
            let failed = || format!("failed to read `{}`", path.display());
            let kind = fs::symlink_metadata(&path).with_context(failed)?.file_type();
            if kind.is_dir() {
                for entry in fs::read_dir(&path).with_context(failed)? {
                    left.push(entry.with_context(failed)?.path());
                }
            } else if kind.is_file() && !inputs.contains(&path) && !self.files.contains(&path) {
                let bytes = fs::read(&path).with_context(failed)?;
                told.extend(self.told(&bytes).map(|found| (path, found)));
            }
        }
        Ok(told)
    }
}

/// Returns the pattern of a secret in all of its forms. Making one takes milliseconds, and the
/// same few are looked for in every command.
fn pattern(secret: &[u8]) -> Arc<Regex> {
    static MADE: LazyLock<Mutex<HashMap<Vec<u8>, Arc<Regex>>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pattern) = made.get(secret) {
        return Arc::clone(pattern);
    }
    let each = |form: &dyn Fn(u8) -> String, between: &str| {
        secret.iter().map(|byte| form(*byte)).collect::<Vec<_>>().join(between)
    };
    let text = each(&|byte| format!(r"(?:\\?\x{byte:02x}|(?i:(?:%|\\x|\\u00){byte:02x}))"), "");
    let hexadecimal = each(&|byte| format!("(?i:{byte:02x})"), "[ :]?");
    let bytes = each(&|byte| byte.to_string(), r",\s*");
    let base64 = (0..3).map(|before| base64_part(secret, before)).collect::<Vec<_>>().join("|");
    let all = format!(
        "(?-u)(?P<text>{text})|(?P<base64>{base64})|(?P<hexadecimal>{hexadecimal})|(?P<bytes>{bytes})"
    );
    let pattern = Arc::new(Regex::new(&all).expect("it is made of escapes"));
    made.insert(secret.to_owned(), Arc::clone(&pattern));
    pattern
}

/// Returns the pattern of the characters that depend on the secret alone, in the base64 of a text
/// in which `before` bytes (modulo 3) come before it.
fn base64_part(secret: &[u8], before: usize) -> String {
    let bits: Vec<bool> = std::iter::repeat_n(0, before)
        .chain(secret.iter().copied())
        .flat_map(|byte: u8| (0..8).rev().map(move |bit| byte >> bit & 1 == 1))
        .collect();
    bits.chunks_exact(6)
        .skip((before * 8).div_ceil(6))
        .map(|six| six.iter().fold(0, |index, bit| index << 1 | usize::from(*bit)))
        .map(|index| match BASE64[index] {
            // The alphabet for URLs, and the standard one within a URL.
            b'+' => r"(?:[-+]|(?i:%2b))".to_owned(),
            b'/' => r"(?:[/_]|(?i:%2f))".to_owned(),
            letter => char::from(letter).to_string(),
        })
        .collect()
}

/// Returns text with `%XX` resolved where that is one.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                rest = &after[2..];
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests;
