//! The journal of a replay: append-only, a checksum on every line, believed up to the
//! first line that is torn.
//!
//! ```text
//! 8 hexadecimal digits of CRC-32, a space, one JSON object, a newline
//! ```
//!
//! A checkpoint is written with one `write` call, so that `kill -9` cannot lose one that
//! was written; it is synced once a second, so that a power cut loses at most that.
//!
//! A long replay writes many: when they have grown large, the journal is replaced by one that
//! says the same in two lines, as durably and atomically as everything else in the state.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dacapo_event::Timestamp;
use dacapo_republish::{NackRetries, OnReject};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::EngineError;
use crate::merge::Positions;
use crate::state::{failed, sync_dir};

/// How often the journal is synced to disk while checkpoints are written.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// A longer line is not ours: 1,000 streams come to 150 KB.
const LINE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A journal that grew by so much is replaced by a short one: some 100,000 checkpoints, which are
/// read again in a fraction of a second.
const GROWN_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// How a replay stands, as its journal tells it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// What the last record says.
    pub phase: Phase,
    /// When the replay first began.
    pub began_at: Option<Timestamp>,
    /// The last checkpoint: for each stream, the last sequence up to which all is confirmed, or
    /// recorded as rejected.
    pub positions: Positions,
    /// Counts over all runs.
    pub counts: Counts,
    /// What the last run did about events that the target refused.
    pub on_reject: OnReject,
    /// Whether the next event is one that the target refused; it was recorded and not passed over.
    pub at_reject: bool,
    /// How often it tried one again that was nacked.
    pub nack_retries: NackRetries,
}

/// What the last record of a journal says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was written yet.
    #[default]
    New,
    /// A run began and has not ended: it runs now, or was killed.
    Running,
    /// A run ended before all was confirmed and can be resumed.
    Interrupted,
    /// The target refused an event; it can be resumed once the cause is mended.
    Rejected,
    /// All selected events are confirmed, or recorded as rejected and passed over.
    Completed,
    /// It was ended for good by its operator.
    Cancelled,
}

/// Counts of a replay over all its runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Events confirmed, with every one before them confirmed or passed over.
    pub confirmed: u64,
    /// Events that the target refused and that were recorded and passed over.
    #[serde(rename = "passed_over", default)]
    pub rejected: u64,
    /// Messages that may have reached the target more than once.
    pub possible_repeats: u64,
    /// Events whose first delivery may have come before that of an earlier one.
    pub reordered: u64,
    /// Events of the segments read that the expression failed on and that were left out.
    pub where_skipped: u64,
    /// Bytes of bodies confirmed.
    pub bytes: u64,
    /// Bytes read from the archive.
    pub bytes_read: u64,
    /// Requests to the archive.
    pub requests: u64,
    /// Seconds of all runs.
    pub seconds: f64,
    /// How many runs there were.
    pub runs: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    /// A run begins; `runs` is how many there were before it, `rejects_max` how many rejected
    /// events it passes over if it does not stop at the first, `nack_retries` how often it tries an
    /// event again that is nacked, if not as often as by default.
    Began {
        at: String,
        runs: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rejects_max: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nack_retries: Option<u32>,
    },
    Checkpoint {
        counts: Counts,
        positions: BTreeMap<String, u64>,
    },
    Ended {
        at: String,
        phase: String,
        counts: Counts,
        positions: BTreeMap<String, u64>,
    },
}

/// The journal of one replay, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    synced: Instant,
    began_at: Option<Timestamp>,
    runs: u64,
    on_reject: OnReject,
    nack_retries: NackRetries,
    grown: u64,
    grown_max: u64,
}

impl Journal {
    /// Opens a journal, creating it if it is not there, and returns how the replay stands. What
    /// follows the first torn line is cut off.
    ///
    /// # Errors
    /// The file cannot be read or written, or a newer version wrote it.
    pub fn open(path: &Path) -> Result<(Self, Standing), EngineError> {
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(|error| failed("open", path, error))?;
        let (standing, sound) = read_from(&file, path)?;
        let cut = file.set_len(sound).and_then(|()| file.seek(SeekFrom::Start(sound)));
        cut.map_err(|error| failed("write", path, error))?;
        if sound == 0 {
            sync_dir(path.parent().unwrap_or(path))?;
        }
        let journal = Journal {
            path: path.to_owned(),
            file,
            synced: Instant::now(),
            began_at: standing.began_at,
            runs: standing.counts.runs,
            on_reject: standing.on_reject,
            nack_retries: standing.nack_retries,
            grown: sound,
            grown_max: GROWN_BYTES_MAX,
        };
        Ok((journal, standing))
    }

    /// Returns how a replay stands, without changing its journal; another process may be writing.
    ///
    /// # Errors
    /// The file cannot be read, or a newer version wrote it.
    pub fn read(path: &Path) -> Result<Standing, EngineError> {
        match File::open(path) {
            Ok(file) => read_from(&file, path).map(|(standing, _)| standing),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Standing::default()),
            Err(error) => Err(failed("read", path, error)),
        }
    }

    /// Notes that a run begins, what it does about rejects, and how soon a nack makes one. Durable
    /// when it returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn began(
        &mut self,
        at: Timestamp,
        on_reject: OnReject,
        nack_retries: NackRetries,
    ) -> Result<(), EngineError> {
        (self.on_reject, self.nack_retries) = (on_reject, nack_retries);
        self.append(&self.beginning(at, self.runs))?;
        self.began_at.get_or_insert(at);
        self.runs = self.runs.saturating_add(1);
        self.sync()
    }

    /// Writes a checkpoint; safe from `kill -9` when it returns, from a power cut within a second.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn checkpoint(
        &mut self,
        counts: &Counts,
        positions: &Positions,
    ) -> Result<(), EngineError> {
        let record = Record::Checkpoint { counts: *counts, positions: to_wire(positions) };
        if self.grown >= self.grown_max {
            return self.replace(&record);
        }
        self.append(&record)?;
        if self.synced.elapsed() >= SYNC_INTERVAL {
            self.sync()?;
        }
        Ok(())
    }

    /// Replaces the journal of a run under way by one that begins with this checkpoint. Whoever
    /// reads meanwhile, or after a crash, finds the old one or the new one.
    fn replace(&mut self, checkpoint: &Record) -> Result<(), EngineError> {
        let temporary = self.path.with_extension("tmp");
        let at = self.began_at.unwrap_or(Timestamp::EPOCH);
        let began = self.beginning(at, self.runs.saturating_sub(1));
        let lines = line(&began) + &line(checkpoint);
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

    /// Notes how a run ended. Durable when it returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn ended(
        &mut self,
        at: Timestamp,
        phase: Phase,
        counts: &Counts,
        positions: &Positions,
    ) -> Result<(), EngineError> {
        self.append(&Record::Ended {
            at: at.to_string(),
            phase: phase.as_str().to_owned(),
            counts: *counts,
            positions: to_wire(positions),
        })?;
        self.sync()
    }

    fn beginning(&self, at: Timestamp, runs: u64) -> Record {
        let nack_retries = (self.nack_retries != NackRetries::DEFAULT).then_some(self.nack_retries);
        Record::Began {
            at: at.to_string(),
            runs,
            rejects_max: rejects_max(self.on_reject),
            nack_retries: nack_retries.map(NackRetries::get),
        }
    }

    fn append(&mut self, record: &Record) -> Result<(), EngineError> {
        let line = line(record);
        self.grown += line.len() as u64;
        self.file.write_all(line.as_bytes()).map_err(|error| failed("write", &self.path, error))
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        self.synced = Instant::now();
        self.file.sync_data().map_err(|error| failed("sync", &self.path, error))
    }
}

impl Phase {
    /// Returns the word for it in receipts and listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::New => "new",
            Phase::Running => "running",
            Phase::Interrupted => "interrupted",
            Phase::Rejected => "rejected",
            Phase::Completed => "completed",
            Phase::Cancelled => "cancelled",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Phase::Interrupted, Phase::Rejected, Phase::Completed, Phase::Cancelled]
            .into_iter()
            .find(|phase| phase.as_str() == word)
    }

    /// Returns whether a replay in this phase can go on.
    pub fn is_resumable(self) -> bool {
        matches!(self, Phase::New | Phase::Running | Phase::Interrupted | Phase::Rejected)
    }
}

fn rejects_max(on_reject: OnReject) -> Option<u64> {
    match on_reject {
        OnReject::Stop => None,
        OnReject::Skip { most } => Some(most),
    }
}

fn to_wire(positions: &Positions) -> BTreeMap<String, u64> {
    positions.iter().map(|(stream, sequence)| (stream.to_string(), *sequence)).collect()
}

fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).expect("text and numbers become JSON");
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

/// Reads records up to the first that is torn; returns the length of what is sound.
fn read_from(file: &File, path: &Path) -> Result<(Standing, u64), EngineError> {
    let mut reader = BufReader::new(file);
    let (mut standing, mut sound) = (Standing::default(), 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        read.map_err(|error| failed("read", path, error))?;
        let Some(json) = sound_json(&line) else { return Ok((standing, sound)) };
        // Cutting off what was written by somebody who knows more would lose checkpoints.
        let record = serde_json::from_slice(json).map_err(|error| EngineError::Unreadable {
            path: path.display().to_string(),
            problem: format!("a record is not known ({error}); use a newer dacapo"),
        })?;
        sound += line.len() as u64;
        match record {
            Record::Began { at, runs, rejects_max, nack_retries } => {
                standing.nack_retries = nack_retries.and_then(NackRetries::new).unwrap_or_default();
                standing.on_reject =
                    rejects_max.map_or(OnReject::Stop, |most| OnReject::Skip { most });
                standing.began_at = standing.began_at.or_else(|| at.parse().ok());
                standing.phase = Phase::Running;
                standing.at_reject = false;
                standing.counts.runs = runs.saturating_add(1);
            }
            Record::Checkpoint { counts, positions } => standing.take(counts, positions),
            Record::Ended { phase, counts, positions, .. } => {
                standing.take(counts, positions);
                standing.phase = Phase::parse(&phase).unwrap_or(Phase::Interrupted);
                // One that is cancelled there stands there for good.
                standing.at_reject |= standing.phase == Phase::Rejected;
            }
        }
    }
}

impl Standing {
    /// Returns how many events the target refused: those passed over, and the one it stands at.
    pub fn rejected(&self) -> u64 {
        self.counts.rejected.saturating_add(u64::from(self.at_reject))
    }

    fn take(&mut self, counts: Counts, positions: BTreeMap<String, u64>) {
        self.counts = Counts { runs: self.counts.runs, ..counts };
        let known = positions.into_iter().filter_map(|(name, at)| Some((name.parse().ok()?, at)));
        self.positions.extend(known);
    }
}

/// Returns the JSON of a line that is whole.
fn sound_json(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (crc, json) = (line.get(..8)?, line.get(9..)?);
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    (crc32fast::hash(json) == crc).then_some(json)
}

#[cfg(test)]
mod tests;
