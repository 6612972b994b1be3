//! Files of lines with a checksum on each, appended to and believed up to the first that is torn:
//! what the journals of replays and of backfills are.
//!
//! ```text
//! 8 hexadecimal digits of CRC-32, a space, one JSON object, a newline
//! ```
//!
//! A line is written with one `write` call, so that `kill -9` cannot lose one that was written;
//! it is synced once a second or when it is asked, so that a power cut loses at most that.
//!
//! When a file has grown large, it is replaced by a short one that says the same, durably and
//! atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::EngineError;
use crate::state::{failed, sync_dir};

/// How often the file is synced to disk while lines are written.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// A longer line is not ours: 1,000 streams come to 150 KB.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A file that grew by so much is to be replaced by a short one: some 100,000 checkpoints, which
/// are read again in a fraction of a second.
const GROWN_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A file of lines, open for appending.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    file: File,
    synced: Instant,
    grown: u64,
    pub(crate) grown_max: u64,
}

impl Lines {
    /// Opens a file, creating it if it is not there, and gives the JSON of each line to `each`. What
    /// follows the first torn line is cut off.
    pub(crate) fn open(
        path: &Path,
        each: impl FnMut(&[u8]) -> Result<(), serde_json::Error>,
    ) -> Result<Self, EngineError> {
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(|error| failed("open", path, error))?;
        let sound = read_from(&file, path, each)?;
        let cut = file.set_len(sound).and_then(|()| file.seek(SeekFrom::Start(sound)));
        cut.map_err(|error| failed("write", path, error))?;
        if sound == 0 {
            sync_dir(path.parent().unwrap_or(path))?;
        }
        let path = path.to_owned();
        let synced = Instant::now();
        Ok(Lines { path, file, synced, grown: sound, grown_max: GROWN_BYTES_MAX })
    }

    /// Gives the JSON of each sound line to `each`; another process may be writing. A file that is
    /// not there has none.
    pub(crate) fn read(
        path: &Path,
        each: impl FnMut(&[u8]) -> Result<(), serde_json::Error>,
    ) -> Result<(), EngineError> {
        match File::open(path) {
            Ok(file) => read_from(&file, path, each).map(drop),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("read", path, error)),
        }
    }

    /// Returns whether the file is to be replaced by a short one.
    pub(crate) fn is_grown(&self) -> bool {
        self.grown >= self.grown_max
    }

    /// Appends a line; safe from `kill -9` when it returns.
    pub(crate) fn append(&mut self, record: &impl Serialize) -> Result<(), EngineError> {
        let line = line(record);
        self.grown += line.len() as u64;
        self.file.write_all(line.as_bytes()).map_err(|error| failed("write", &self.path, error))
    }

    /// Syncs what was appended, unless that was done a moment ago.
    pub(crate) fn sync_at_times(&mut self) -> Result<(), EngineError> {
        match self.synced.elapsed() >= SYNC_INTERVAL {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Makes what was appended durable.
    pub(crate) fn sync(&mut self) -> Result<(), EngineError> {
        self.synced = Instant::now();
        self.file.sync_data().map_err(|error| failed("sync", &self.path, error))
    }

    /// Replaces the file by one of these records. Whoever reads meanwhile, or after a crash, finds
    /// the old one or the new one.
    pub(crate) fn replace<R: Serialize>(&mut self, records: &[&R]) -> Result<(), EngineError> {
        let temporary = self.path.with_extension("tmp");
        let lines: String = records.iter().map(line).collect();
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(lines.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            Ok(file)
        };
        self.file = write().map_err(|error| failed("replace", &self.path, error))?;
        self.grown = lines.len() as u64;
        self.synced = Instant::now();
        sync_dir(self.path.parent().unwrap_or(&self.path))
    }
}

fn line(record: &impl Serialize) -> String {
    let json = serde_json::to_string(record).expect("text and numbers become JSON");
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

/// Reads up to the first line that is torn; returns the length of what is sound.
fn read_from(
    file: &File,
    path: &Path,
    mut each: impl FnMut(&[u8]) -> Result<(), serde_json::Error>,
) -> Result<u64, EngineError> {
    let mut reader = BufReader::new(file);
    let mut sound = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        read.map_err(|error| failed("read", path, error))?;
        let Some(json) = sound_json(&line) else { return Ok(sound) };
        // Cutting off what was written by somebody who knows more would lose it.
        each(json).map_err(|error| EngineError::Unreadable {
            path: path.display().to_string(),
            problem: format!("a record is not known ({error}); use a newer dacapo"),
        })?;
        sound += line.len() as u64;
    }
}

/// Returns the JSON of a line that is whole.
fn sound_json(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (crc, json) = (line.get(..8)?, line.get(9..)?);
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    (crc32fast::hash(json) == crc).then_some(json)
}
