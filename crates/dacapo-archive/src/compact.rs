//! Merges the small segments of each stream into large ones, drops exact repeats, and deletes what
//! was merged after a grace period.
//!
//! What lives here: which streams, and what was done ([`compact`]); making outputs is in `merge`,
//! deleting in `remove`. What does not: reading outputs ([`crate::compaction`]).
//!
//! Invariants: the chain entries stay, they are the proof of what there was; an output takes the
//! place of segments only by its write-once entry; a segment is deleted only after the output was
//! read back as a whole and held against it, event by event. Nothing is lost by a kill at any
//! instant: what was put without its entry is ignored, and what was not deleted is deleted later.

use std::sync::Arc;
use std::time::Duration;

use dacapo_event::{Clock, Digest, Event, MemoryBudget, StreamName};

use crate::chain::{self, ChainEntry, Head};
use crate::segment::object_size;
use crate::store::memory::MemoryStore;
use crate::store::{ByteRange, Store, StoreError};
use crate::verify::{self, Finding};
use crate::{ArchiveError, ColumnSet, Rows, Segment, footer, layout};

mod merge;
mod remove;

/// How long segments that were merged stay by default: longer than any replay that began before.
pub const GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How old all of a segment must be by default: what operators look at most is left alone, and
/// there is enough for a large output.
pub const OLDER_THAN: Duration = Duration::from_secs(24 * 60 * 60);

/// A segment of so large a part of an output, or larger, is its own output. By default an output is
/// as large as two segments that an archiver filled ([`MemoryBudget::output`]); those that it filled,
/// or half of them, are taken over as they are: merged, they would take their size again for the
/// grace period, to save half of the requests for their footers.
const TAKEN_OVER_FROM: u64 = 4;

/// Chain entries and footers read at once: hides the latency of a store.
const READS_AT_ONCE: usize = 8;

/// What to compact, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only these streams; all if there are none.
    pub streams: Vec<StreamName>,
    /// Only segments all of whose events were archived so long ago.
    pub older_than: Duration,
    /// How long segments stay after they were merged.
    pub grace: Duration,
    /// An output is finished at this size, about: [`MemoryBudget::output`] by default, and never
    /// more than [`MemoryBudget::output_max`].
    pub output_bytes: u64,
    /// What the output that is made and what is remembered of its events may take.
    pub memory: MemoryBudget,
    /// Whether anything is changed.
    pub mode: Mode,
    /// Tells the time.
    pub clock: Clock,
}

/// Whether anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Outputs are made, inputs deleted.
    Apply,
    /// It is only told what would be done; repeats are not looked for.
    DryRun,
}

/// What was done, and what is in the way.
#[derive(Debug, Default)]
pub struct Report {
    /// Each stream, by name.
    pub streams: Vec<StreamReport>,
    /// What is damaged, missing or cannot be read: a stream is compacted up to it, and deletes nothing
    /// that it touches. The other streams are compacted.
    pub problems: Vec<Finding>,
}

/// What was done to one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReport {
    /// The stream.
    pub stream: StreamName,
    /// Segments that were merged.
    pub merged: u64,
    /// Their bytes.
    pub merged_bytes: u64,
    /// Outputs that were made of them.
    pub outputs: u64,
    /// Their bytes; not known in a dry run.
    pub output_bytes: u64,
    /// Exact repeats that were left out of them.
    pub dropped: u64,
    /// Segments that are their own output, being large or alone on their day.
    pub taken_over: u64,
    /// Merged segments that were deleted after the grace period.
    pub deleted: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Merged segments that stay for the rest of the grace period.
    pub waiting: u64,
    /// Outputs without an entry that were deleted: a compaction was stopped or overtaken.
    pub leftovers: u64,
}

/// How far a compaction has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of segments that were looked at.
    pub bytes: u64,
    /// Bytes of all segments that were listed so far.
    pub bytes_all: u64,
}

/// Compacts an archive: in each stream first makes new outputs, then deletes what the grace period
/// of older ones has passed for.
///
/// Cancel-safe: run again, it goes on.
///
/// # Errors
/// The store fails as a whole. What is wrong with one stream is in the report, and the others are
/// compacted.
pub async fn compact(
    store: Arc<dyn Store>,
    options: &Options,
    mut progress: impl FnMut(Progress),
) -> Result<Report, ArchiveError> {
    let mut report = Report::default();
    let mut so_far = Progress::default();
    for stream in chain::streams(&*store).await? {
        if !options.streams.is_empty() && !options.streams.contains(&stream) {
            continue;
        }
        let problems = &mut report.problems;
        let head = match chain::head(&*store, &stream).await {
            Ok(Some(head)) if head.stream == stream => head,
            Ok(found) => {
                let problem = match found {
                    Some(other) => format!("is the head of `{}`", other.stream),
                    None => HEAD_GONE.to_owned(),
                };
                problems.push(Finding::of(layout::head(&stream), None, problem));
                continue;
            }
            Err(error) => {
                problems.push(finding(error)?);
                continue;
            }
        };
        let mut work = Work {
            store: &store,
            options,
            head: &head,
            report: StreamReport::of(stream),
            so_far: &mut so_far,
            progress: &mut progress,
        };
        // What can be deleted does not depend on what can be merged.
        let merged = work.merge().await;
        problems.extend(merged.err().map(finding).transpose()?);
        let removed = work.remove(problems).await;
        report.streams.push(work.report);
        report.problems.extend(removed.err().map(finding).transpose()?);
    }
    Ok(report)
}

const HEAD_GONE: &str =
    "is gone, so that nobody knows where the stream ends; `dacapo archive repair` makes it again";

/// Returns what is wrong with one object, and no reason to leave other streams as they are.
///
/// # Errors
/// The store fails as a whole.
fn finding(error: ArchiveError) -> Result<Finding, ArchiveError> {
    let (key, problem) = match error {
        ArchiveError::Damaged { key, problem } => (key, problem),
        ArchiveError::Store(StoreError::NotFound { key, .. }) => (key, MISSING.to_owned()),
        ArchiveError::Store(StoreError::Cold { key, class, .. }) => {
            (key, format!("it is in cold storage ({class}), and has to be restored to be read"))
        }
        ArchiveError::Store(StoreError::Permanent { key, reason, .. }) => (key, reason),
        ArchiveError::NewerFormat { ref key, .. } => (key.clone(), error.to_string()),
        error => return Err(error),
    };
    Ok(Finding::of(key, None, problem))
}

/// Returns whether [`finding`] makes a finding of this.
fn is_of_one_object(error: &ArchiveError) -> bool {
    matches!(
        error,
        ArchiveError::Damaged { .. }
            | ArchiveError::NewerFormat { .. }
            | ArchiveError::Store(
                StoreError::NotFound { .. }
                    | StoreError::Cold { .. }
                    | StoreError::Permanent { .. }
            )
    )
}

const MISSING: &str = "it is missing";

impl StreamReport {
    fn of(stream: StreamName) -> Self {
        StreamReport {
            stream,
            merged: 0,
            merged_bytes: 0,
            outputs: 0,
            output_bytes: 0,
            dropped: 0,
            taken_over: 0,
            deleted: 0,
            deleted_bytes: 0,
            waiting: 0,
            leftovers: 0,
        }
    }
}

/// The compaction of one stream.
struct Work<'a> {
    store: &'a Arc<dyn Store>,
    options: &'a Options,
    head: &'a Head,
    report: StreamReport,
    so_far: &'a mut Progress,
    progress: &'a mut dyn FnMut(Progress),
}

impl Work<'_> {
    fn listed(&mut self, bytes: u64) {
        self.so_far.bytes_all += bytes;
    }

    fn looked_at(&mut self, bytes: u64) {
        self.so_far.bytes += bytes;
        (self.progress)(*self.so_far);
    }
}

/// A segment up to this size is read by one request and held while it is merged; a larger one is
/// hashed in pieces first, and its events are then asked for a part at a time.
const HELD_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Opens a segment that an entry names, once all its bytes were seen to be those that were written.
///
/// # Errors
/// `Damaged`: it is missing or another. The store fails.
async fn open_proven(store: &Arc<dyn Store>, entry: &ChainEntry) -> Result<Segment, ArchiveError> {
    let (key, size) = (&entry.segment, entry.size);
    let damaged = |problem: &str| ArchiveError::damaged(key, problem);
    let is_gone = |error: ArchiveError| match error {
        ArchiveError::Store(StoreError::NotFound { .. }) => damaged(MISSING),
        error => error,
    };
    let (source, digest) = match size <= HELD_BYTES_MAX {
        true => held(store, entry).await.map_err(is_gone)?,
        false => {
            if object_size(&**store, key).await.map_err(is_gone)? != size {
                return Err(damaged(OTHER_SIZE));
            }
            let digest = verify::digest_of(&**store, key, size).await;
            (Arc::clone(store), digest.map_err(|error| is_gone(error.into()))?)
        }
    };
    if digest != Some(entry.digest) {
        return Err(damaged("its bytes are not those that were written (digest differs)"));
    }
    let segment = Segment::open(source, key, Some(size)).await.map_err(is_gone)?;
    match ChainEntry::of(segment.summary()) == *entry {
        true => Ok(segment),
        false => Err(damaged("its footer and its entry contradict each other")),
    }
}

const OTHER_SIZE: &str = "it has another size than when it was written";

/// Reads a whole segment into memory; returns where it is then, and the digest of its bytes.
async fn held(
    store: &Arc<dyn Store>,
    entry: &ChainEntry,
) -> Result<(Arc<dyn Store>, Option<Digest>), ArchiveError> {
    // One byte more than there should be tells a larger object, of which no more is read.
    let bytes = store.get(&entry.segment, ByteRange::Suffix(entry.size.saturating_add(1))).await?;
    if bytes.len() as u64 != entry.size {
        return Err(ArchiveError::damaged(&entry.segment, OTHER_SIZE));
    }
    let whole = bytes.clone();
    let digest = tokio::task::spawn_blocking(move || footer::digest_of(&whole));
    let digest = digest.await.unwrap_or(None);
    let memory = Arc::new(MemoryStore::new());
    memory.put_new(&entry.segment, bytes).await?;
    Ok((memory, digest))
}

/// Reads the events of a segment in order, a part of a row group at a time.
struct Events {
    segment: Segment,
    group: usize,
    parts: std::vec::IntoIter<(usize, Rows)>,
    ready: std::vec::IntoIter<Event>,
}

/// What is decoded of one segment at once.
const PART_BYTES: u64 = 4 * 1024 * 1024;

impl Events {
    fn of(segment: Segment) -> Self {
        Events { segment, group: 0, parts: Vec::new().into_iter(), ready: Vec::new().into_iter() }
    }

    /// Returns the next events, never none of them; nothing at the end.
    async fn part(&mut self) -> Result<Option<Vec<Event>>, ArchiveError> {
        loop {
            if let Some((group, rows)) = self.parts.next() {
                let events = self.segment.read(group, &rows, ColumnSet::ALL).await?;
                if !events.is_empty() {
                    return Ok(Some(events));
                }
                continue;
            }
            let group = self.group;
            if group == self.segment.row_groups() {
                return Ok(None);
            }
            self.group += 1;
            let rows = Rows::all(self.segment.facts(group).rows);
            let parts = self.segment.batches(group, &rows, PART_BYTES);
            self.parts =
                parts.into_iter().map(|rows| (group, rows)).collect::<Vec<_>>().into_iter();
        }
    }

    async fn next(&mut self) -> Result<Option<Event>, ArchiveError> {
        loop {
            if let Some(event) = self.ready.next() {
                return Ok(Some(event));
            }
            match self.part().await? {
                Some(events) => self.ready = events.into_iter(),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests;
