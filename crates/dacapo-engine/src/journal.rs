//! The journal of a replay: append-only `lines`.
//!
//! A long replay writes many: when they have grown large, the journal is replaced by one that
//! says the same in two lines, as durably and atomically as everything else in the state.

use std::collections::BTreeMap;
use std::path::Path;

use dacapo_event::Timestamp;
use dacapo_republish::{NackRetries, OnReject};
use serde::{Deserialize, Serialize};

use crate::EngineError;
use crate::lines::Lines;
use crate::merge::Positions;

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
    lines: Lines,
    began_at: Option<Timestamp>,
    runs: u64,
    on_reject: OnReject,
    nack_retries: NackRetries,
}

impl Journal {
    /// Opens a journal, creating it if it is not there, and returns how the replay stands. What
    /// follows the first torn line is cut off.
    ///
    /// # Errors
    /// The file cannot be read or written, or a newer version wrote it.
    pub fn open(path: &Path) -> Result<(Self, Standing), EngineError> {
        let mut standing = Standing::default();
        let lines = Lines::open(path, |json| standing.read(json))?;
        let journal = Journal {
            lines,
            began_at: standing.began_at,
            runs: standing.counts.runs,
            on_reject: standing.on_reject,
            nack_retries: standing.nack_retries,
        };
        Ok((journal, standing))
    }

    /// Returns how a replay stands, without changing its journal; another process may be writing.
    ///
    /// # Errors
    /// The file cannot be read, or a newer version wrote it.
    pub fn read(path: &Path) -> Result<Standing, EngineError> {
        let mut standing = Standing::default();
        Lines::read(path, |json| standing.read(json))?;
        Ok(standing)
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
        self.lines.append(&self.beginning(at, self.runs))?;
        self.began_at.get_or_insert(at);
        self.runs = self.runs.saturating_add(1);
        self.lines.sync()
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
        if self.lines.is_grown() {
            let at = self.began_at.unwrap_or(Timestamp::EPOCH);
            let began = self.beginning(at, self.runs.saturating_sub(1));
            return self.lines.replace(&[&began, &record]);
        }
        self.lines.append(&record)?;
        self.lines.sync_at_times()
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
        self.lines.append(&Record::Ended {
            at: at.to_string(),
            phase: phase.as_str().to_owned(),
            counts: *counts,
            positions: to_wire(positions),
        })?;
        self.lines.sync()
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

impl Standing {
    /// Returns how many events the target refused: those passed over, and the one it stands at.
    pub fn rejected(&self) -> u64 {
        self.counts.rejected.saturating_add(u64::from(self.at_reject))
    }

    /// Takes one record.
    fn read(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        match serde_json::from_slice(json)? {
            Record::Began { at, runs, rejects_max, nack_retries } => {
                self.nack_retries = nack_retries.and_then(NackRetries::new).unwrap_or_default();
                self.on_reject = rejects_max.map_or(OnReject::Stop, |most| OnReject::Skip { most });
                self.began_at = self.began_at.or_else(|| at.parse().ok());
                self.phase = Phase::Running;
                self.at_reject = false;
                self.counts.runs = runs.saturating_add(1);
            }
            Record::Checkpoint { counts, positions } => self.take(counts, positions),
            Record::Ended { phase, counts, positions, .. } => {
                self.take(counts, positions);
                self.phase = Phase::parse(&phase).unwrap_or(Phase::Interrupted);
                // One that is cancelled there stands there for good.
                self.at_reject |= self.phase == Phase::Rejected;
            }
        }
        Ok(())
    }

    fn take(&mut self, counts: Counts, positions: BTreeMap<String, u64>) {
        self.counts = Counts { runs: self.counts.runs, ..counts };
        let known = positions.into_iter().filter_map(|(name, at)| Some((name.parse().ok()?, at)));
        self.positions.extend(known);
    }
}

#[cfg(test)]
mod tests;
