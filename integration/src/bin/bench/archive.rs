//! An archive to be measured, and the commands that work on it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::events;
use crate::timed::{self, Cost};

/// An archive of events of one size, and what it was made of.
pub(crate) struct Archive {
    /// What it is called in the report.
    pub(crate) size: &'static str,
    /// Where all of its files are.
    pub(crate) folder: PathBuf,
    pub(crate) events: u64,
    /// Of all bodies.
    pub(crate) body_bytes: u64,
}

impl Archive {
    pub(crate) fn make(
        folder: &Path,
        size: &'static str,
        events: u64,
        body_bytes: usize,
    ) -> Result<Self> {
        let folder = folder.join(size.replace(' ', "-"));
        fs::create_dir_all(&folder)?;
        let key = |number: u64| format!("order-{}", number / 4);
        let input = folder.join("events.ndjson");
        let body_bytes = events::generate(&input, 0..events, body_bytes, key)?;
        let archive = Archive { size, folder, events, body_bytes };
        archive.import("events.ndjson", &archive.path("archive"))?;
        // Is not a part of whichever command comes first.
        archive.dacapo(&["index", "sync"])?;
        Ok(archive)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Runs a command on the archive.
    pub(crate) fn dacapo(&self, args: &[&str]) -> Result<Cost> {
        self.dacapo_on(&self.path("archive"), args)
    }

    /// Runs a command on another archive.
    pub(crate) fn dacapo_on(&self, archive: &str, args: &[&str]) -> Result<Cost> {
        let args: Vec<&str> = args.iter().copied().chain(["--archive", archive]).collect();
        timed::run(&timed::dacapo()?, &args, &self.folder)
    }

    /// Returns what the last command said, as JSON.
    pub(crate) fn said(&self) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.folder.join("output"))?)?)
    }

    pub(crate) fn import(&self, input: &str, archive: &str) -> Result<Cost> {
        self.dacapo_on(archive, &["archive", "import", &self.path(input), "--name", "history"])
    }

    /// Runs one of this program's own sides of a pair.
    pub(crate) fn inside(&self, args: &[&str]) -> Result<Cost> {
        timed::run(&std::env::current_exe()?, args, &self.folder)
    }

    /// Returns how many times smaller the archive is than the bodies in it.
    pub(crate) fn compression(&self) -> Result<f64> {
        Ok(self.body_bytes as f64 / bytes_in(&self.folder.join("archive"))? as f64)
    }
}

/// Returns the bytes of all files in a folder and those in it.
pub(crate) fn bytes_in(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => bytes_in(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}
