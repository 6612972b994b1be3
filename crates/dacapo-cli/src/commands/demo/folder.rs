//! The folder of a demo, and the commands to try on what it leaves there.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::Context;
use dacapo_event::{Hasher, Timestamp};

use crate::exit::Failure;

/// Variables that would win over the configuration file of a demo.
const VARIABLES: [&str; 3] = ["DACAPO_ARCHIVE", "DACAPO_INDEX", "DACAPO_STATE"];

/// A folder with everything of one demo.
#[derive(Debug)]
pub(crate) struct Folder {
    /// `dacapo-demo-` and eight digits: also what precedes its names on a broker.
    pub(crate) name: String,
    /// As it was given, or chosen.
    path: PathBuf,
}

impl Folder {
    /// Makes the folder that was asked for, or one of that name among the system's temporary ones.
    ///
    /// # Errors
    /// It is not empty, or cannot be made.
    pub(crate) fn make(wanted: Option<&Path>, name: &str) -> anyhow::Result<Self> {
        let path = wanted.map_or_else(|| std::env::temp_dir().join(name), Path::to_owned);
        let refused = |problem: String| {
            let hint = "give a new or empty folder with --dir";
            Failure::configuration(format!("`{}` {problem}; {hint}", path.display()))
        };
        if path.to_str().is_none() {
            return Err(refused("is not UTF-8".to_owned()).into());
        }
        let made = fs::create_dir_all(&path).and_then(|()| fs::read_dir(&path));
        let mut inside = made.map_err(|error| refused(format!("cannot be made: {error}")))?;
        if inside.next().is_some() {
            return Err(refused("is not empty".to_owned()).into());
        }
        Ok(Folder { name: name.to_owned(), path })
    }

    /// Returns where the archive is.
    pub(crate) fn archive(&self) -> PathBuf {
        self.path.join("archive")
    }

    /// Returns where the index is.
    pub(crate) fn index(&self) -> PathBuf {
        self.path.join("index")
    }

    /// Returns where the state is.
    pub(crate) fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Writes a configuration with which commands need no other flag.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn configure(&self) -> anyhow::Result<()> {
        let path = self.configuration();
        let whole = std::path::absolute(&self.path).context("failed to look up this directory")?;
        let mut text = String::from("# What `dacapo demo` left; all of it may be deleted.\n");
        for part in ["archive", "index", "state"] {
            // A JSON string is a basic string of TOML.
            let value = serde_json::json!(whole.join(part).display().to_string());
            text += &format!("{part} = {value}\n");
        }
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))
    }

    /// Returns commands to try, each with what it shows. They work as they are, in the directory
    /// in which the demo was started.
    pub(crate) fn commands(&self, order: &str, replay: &str) -> Vec<(&'static str, String)> {
        let program = program();
        let place = match variables_are_set() {
            true => [("archive", self.archive()), ("index", self.index()), ("state", self.state())]
                .map(|(flag, path)| format!("--{flag} {}", quoted(&path)))
                .join(" "),
            false => format!("--config {}", quoted(&self.configuration())),
        };
        let command = |shows, command: &str, flags: String| {
            let words = [&program, command, &flags, &place];
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            (shows, words.join(" "))
        };
        let cancelled = "--type order.cancelled --limit 5".to_owned();
        let large = "--type order.placed --where 'body.total > 400.0' --limit 5".to_owned();
        let to_file =
            format!("--type order.paid --to-file {}", quoted(&self.path.join("paid.ndjson")));
        vec![
            command("the first orders that were cancelled", "events", cancelled),
            command("orders of more than 400, by what is in their body", "events", large),
            command(
                "what a replay of one order would do",
                "plan",
                format!("--key {order} --exact"),
            ),
            command("all payments, as JSON lines in a file", "replay", to_file),
            command("what the replay of the demo did", "replays show", replay.to_owned()),
            command("is the archive whole?", "archive verify", String::new()),
        ]
    }

    fn configuration(&self) -> PathBuf {
        self.path.join("dacapo.toml")
    }
}

/// Returns the name of a demo that begins `now`.
pub(crate) fn name(now: Timestamp) -> String {
    let mut hasher = Hasher::default();
    hasher.update(&now.as_micros().to_le_bytes());
    hasher.update(&std::process::id().to_le_bytes());
    format!("dacapo-demo-{}", &hasher.finish().to_string()[..8])
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// Returns this program as it was typed.
fn program() -> String {
    let typed = std::env::args_os().next().map(PathBuf::from);
    typed.map_or_else(|| "dacapo".to_owned(), |typed| quoted(&typed))
}

#[expect(clippy::disallowed_methods, reason = "what would win over a file is told to nobody else")]
fn variables_are_set() -> bool {
    VARIABLES.iter().any(|name| std::env::var_os(name).is_some())
}

/// Returns a path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (path, expected) in [
            ("/tmp/dacapo-demo-1", "/tmp/dacapo-demo-1"),
            ("my demo", "'my demo'"),
            ("it's;$HOME", r"'it'\''s;$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }
}
