//! The reject file of a replay: which events its target refused, and why.
//!
//! One JSON object a line, in order of publishing. A line refers to the archive, which has the
//! event; the file holds no body. Each line carries a checksum of itself, so that a line that was
//! torn or changed is not taken for another event.
//!
//! Invariant: a line is on disk before a checkpoint passes its event. The reverse is made true when
//! a replay is taken up again: lines of events that no checkpoint has passed are cut off, because
//! these events are tried again. So the file says exactly what was passed over, and at its end,
//! while the replay stands there or if it was cancelled there, the event that stopped it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use dacapo_event::{Digest, Sequence, StreamName, Timestamp};
use dacapo_republish::RejectKind;

use crate::EngineError;
use crate::journal::Standing;
use crate::state::{failed, sync_dir};

mod again;
mod wire;

pub use again::{LeftOut, ToTryAgain, read};

/// How many events a replay passes over if no other limit is asked for: more than the strays of any
/// archive, far fewer than a wrong routing key or a missing queue refuses. That is to be mended, not
/// passed over.
pub const PASSED_OVER_MAX_DEFAULT: NonZeroU64 = NonZeroU64::new(1_000).expect("not zero");

/// The most events that may be passed over, or be tried again from one file: their places are kept
/// in memory (10 MB), and in the plan.
pub const REJECTS_MAX: u64 = 100_000;

/// A longer line is not ours: seven texts of [`TEXT_BYTES_MAX`], each byte of them escaped.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Longer texts are shortened: what a person needs to recognise an event.
const TEXT_BYTES_MAX: usize = 1_024;

/// An event that the target refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The replay that it was refused to.
    pub replay: String,
    /// Where the archive is that has it.
    pub archive: String,
    /// Its stream.
    pub stream: StreamName,
    /// Its place there.
    pub sequence: Sequence,
    /// Its id.
    pub id: String,
    /// When it happened.
    pub time: Timestamp,
    /// Its type.
    pub event_type: String,
    /// The exchange that it was first published to, readable.
    pub exchange: String,
    /// The routing key that it was first published with, readable.
    pub routing_key: String,
    /// The digest of its body.
    pub body_digest: Digest,
    /// Why it was refused.
    pub kind: RejectKind,
    /// The target's words.
    pub reason: String,
}

/// The reject file of one replay, open for appending.
#[derive(Debug)]
pub struct RejectFile {
    path: PathBuf,
    /// Absent as long as nothing was rejected.
    file: Option<File>,
}

impl RejectFile {
    /// Opens the file of a replay that stands so, and cuts off what its checkpoint has not passed.
    /// It need not be there.
    ///
    /// # Errors
    /// The file cannot be read or written, or lacks events that were passed over.
    pub fn open(path: &Path, standing: &Standing) -> Result<Self, EngineError> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                check_passed_over(path, 0, standing)?;
                return Ok(RejectFile { path: path.to_owned(), file: None });
            }
            Err(error) => return Err(failed("open", path, error)),
        };
        let (events, sound) = passed(&file, path, standing)?;
        check_passed_over(path, events, standing)?;
        let cut = file
            .set_len(sound)
            .and_then(|()| file.sync_all())
            .and_then(|()| file.seek(SeekFrom::Start(sound)));
        cut.map_err(|error| failed("write", path, error))?;
        Ok(RejectFile { path: path.to_owned(), file: Some(file) })
    }

    /// Appends an event. Durable when it returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, rejected: &Rejected) -> Result<(), EngineError> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let created = OpenOptions::new().write(true).create_new(true).open(&self.path);
                let created = created.map_err(|error| failed("create", &self.path, error))?;
                sync_dir(self.path.parent().unwrap_or(&self.path))?;
                self.file.insert(created)
            }
        };
        let line = wire::line(rejected);
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        written.map_err(|error| failed("write", &self.path, error))
    }
}

/// Returns how many events at the beginning of the file the checkpoint has passed, and the length
/// of their lines.
fn passed(file: &File, path: &Path, standing: &Standing) -> Result<(u64, u64), EngineError> {
    let mut lines = Lines::of(file, path);
    let (mut events, mut sound) = (0, 0);
    while let Some(line) = lines.next()? {
        let Ok(rejected) = wire::parse(line) else { break };
        if standing.positions.get(&rejected.stream).is_none_or(|at| rejected.sequence > *at) {
            break;
        }
        events += 1;
        sound += line.len() as u64;
    }
    Ok((events, sound))
}

/// Without its lines nobody knows which events were passed over.
fn check_passed_over(path: &Path, events: u64, standing: &Standing) -> Result<(), EngineError> {
    let expected = standing.counts.rejected;
    if events == expected {
        return Ok(());
    }
    Err(EngineError::Unreadable {
        path: path.display().to_string(),
        problem: format!(
            "it has {events} of the {expected} events that were passed over; put it back as it was, \
             or begin a new replay"
        ),
    })
}

/// The lines of a file, one at a time, each bounded.
struct Lines<'a> {
    reader: BufReader<&'a File>,
    path: &'a Path,
    line: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn of(file: &'a File, path: &'a Path) -> Self {
        Lines { reader: BufReader::new(file), path, line: Vec::new() }
    }

    /// Returns the next line with its newline, or what is left of one; nothing at the end.
    fn next(&mut self) -> Result<Option<&[u8]>, EngineError> {
        self.line.clear();
        let read = self.reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
        read.map_err(|error| failed("read", self.path, error))?;
        Ok((!self.line.is_empty()).then_some(&self.line))
    }
}

/// Returns text that may not be UTF-8 so that a person can read all of it: `\xff` for such a byte.
pub(crate) fn readable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.push_str(&chunk.invalid().escape_ascii().to_string());
    }
    text
}

/// Returns the text as it is written: shortened if it is long.
fn shortened(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests;
