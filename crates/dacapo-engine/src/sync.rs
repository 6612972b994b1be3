//! Brings the index up to date with the archive: lists only what can be new, reads
//! footers and not bodies, and knows when it is complete.
//!
//! Complete means that every stream is contiguous up to its head. The archive is
//! believed, the index is not: a stream whose end differs is indexed again.

use std::collections::BTreeMap;
use std::sync::Arc;

use dacapo_archive::chain::{self, Head};
use dacapo_archive::store::{ObjectMeta, Store, StoreError};
use dacapo_archive::{ArchiveError, Segment, SegmentSummary, layout};
use dacapo_event::{Sequence, StreamName};
use dacapo_index::Index;
use futures::{StreamExt, stream};

use crate::EngineError;
use crate::survey::Gap;

/// Footers read at once: hides the latency of a store.
const FOOTERS_AT_ONCE: usize = 8;

/// Summaries written to the index at once.
const BATCH_SEGMENTS: usize = 256;

/// Said of a head that is not there, although its stream is.
const HEAD_GONE: &str =
    "it is gone, but not the segments of its stream; run `dacapo archive verify`";

/// What a sync did, and what it found missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Segments that are new in the index.
    pub added: u64,
    /// Streams whose index was thrown away because the archive differs.
    pub restarted: u64,
    /// Sequences that no readable segment holds.
    pub gaps: Vec<Gap>,
    /// Objects that could not be read, by key, and why.
    pub unreadable: Vec<(String, String)>,
}

impl SyncReport {
    /// Returns whether the index knows every event up to every head.
    pub fn is_complete(&self) -> bool {
        self.gaps.is_empty() && self.unreadable.is_empty()
    }
}

/// How far a sync has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Footers read of the stream at hand.
    pub done: u64,
    /// Footers to read of the stream at hand.
    pub all: u64,
}

/// Brings the index up to date.
///
/// The index is blocking and is read and written in place: some milliseconds for each batch, a
/// second for a stream of 100,000 segments with a gap. Nothing but this sync is to run on its task;
/// every command does it before anything else.
///
/// # Errors
/// The store or the index fails. A damaged segment, or a stream without its head, is in the report
/// instead.
pub async fn sync(
    store: &Arc<dyn Store>,
    index: &Index,
    mut progress: impl FnMut(Progress),
) -> Result<SyncReport, EngineError> {
    let mut report = SyncReport::default();
    let mut heads = chain::heads(&**store).await?;
    for head in chain::headless(&**store, &heads).await? {
        // What the stream has is indexed; that its end cannot be proven is told.
        report.unreadable.push((layout::head(&head.stream).to_string(), HEAD_GONE.to_owned()));
        heads.push(head);
    }
    let mut known: BTreeMap<StreamName, SegmentSummary> = BTreeMap::new();
    for stream in index.streams()? {
        let in_archive = heads.iter().any(|head| head.stream == stream.stream);
        let first = layout::parse_segment(&stream.last_key).map_or(0, |(_, first)| first);
        match index.segment(&stream.stream, first)? {
            Some(last) if in_archive => drop(known.insert(stream.stream, last)),
            _ => {
                index.remove_stream(&stream.stream)?;
                report.restarted += 1;
            }
        }
    }
    for head in heads {
        let last = known.remove(&head.stream);
        sync_stream(store, index, &head, last, &mut report, &mut progress).await?;
    }
    index.flush()?;
    Ok(report)
}

async fn sync_stream(
    store: &Arc<dyn Store>,
    index: &Index,
    head: &Head,
    mut last: Option<SegmentSummary>,
    report: &mut SyncReport,
    progress: &mut impl FnMut(Progress),
) -> Result<(), EngineError> {
    if let Some(known) = &last
        && contradicts(&**store, known, head).await?
    {
        index.remove_stream(&head.stream)?;
        report.restarted += 1;
        last = None;
    }
    let contiguous = index.progress(&head.stream)?.is_some_and(|known| known.is_contiguous());
    let after = match &last {
        Some(last) if contiguous && last.last >= head.last => return Ok(()),
        Some(last) if contiguous => Some(last.first),
        // A segment that could not be read before may have been mended.
        Some(_) => last_before_gap(index, &head.stream)?,
        None => None,
    };
    let mut listed = chain::committed(&**store, &head.stream, after).await?;
    if !contiguous {
        listed = unknown_of(listed, index, &head.stream)?;
    }
    let all = listed.len() as u64;
    let mut done = 0;
    let mut batch = Vec::new();
    let mut footers = stream::iter(listed)
        .map(|(object, first)| footer(store, &head.stream, object, first))
        .buffered(FOOTERS_AT_ONCE);
    while let Some(footer) = footers.next().await {
        match footer? {
            Ok(summary) => batch.push(summary),
            Err(unreadable) => report.unreadable.push(unreadable),
        }
        done += 1;
        progress(Progress { done, all });
        if batch.len() == BATCH_SEGMENTS {
            report.added += batch.len() as u64;
            index.insert_segments(&std::mem::take(&mut batch))?;
        }
    }
    report.added += batch.len() as u64;
    index.insert_segments(&batch)?;
    gaps_of(index, head, report)
}

/// Returns the first sequence of the last segment before a stream's first gap.
fn last_before_gap(index: &Index, stream: &StreamName) -> Result<Option<Sequence>, EngineError> {
    let mut before = None;
    let mut next = 1;
    for summary in index.segments_of(stream) {
        let summary = summary?;
        if summary.first > next {
            break;
        }
        before = Some(summary.first);
        next = summary.last + 1;
    }
    Ok(before)
}

/// Returns those segments that the index does not have as they are listed.
fn unknown_of(
    listed: Vec<(ObjectMeta, Sequence)>,
    index: &Index,
    stream: &StreamName,
) -> Result<Vec<(ObjectMeta, Sequence)>, EngineError> {
    let mut unknown = Vec::new();
    for (object, first) in listed {
        let known = index.segment(stream, first)?;
        if known.is_none_or(|known| known.key != object.key || known.size != object.size) {
            unknown.push((object, first));
        }
    }
    Ok(unknown)
}

/// Reads one footer; a damaged one is not an error of the sync.
async fn footer(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    object: ObjectMeta,
    first: Sequence,
) -> Result<Result<SegmentSummary, (String, String)>, EngineError> {
    let unreadable = |problem: String| Ok(Err((object.key.to_string(), problem)));
    let opened = Segment::open(Arc::clone(store), &object.key, Some(object.size)).await;
    match opened {
        Ok(segment) if segment.summary().stream == *stream && segment.summary().first == first => {
            Ok(Ok(segment.summary().clone()))
        }
        Ok(_) => unreadable("its footer is of another segment".to_owned()),
        Err(ArchiveError::Damaged { .. }) if object.size == 0 => {
            unreadable("it is empty or gone".to_owned())
        }
        Err(
            error @ (ArchiveError::Damaged { .. }
            | ArchiveError::NewerFormat { .. }
            | ArchiveError::Store(StoreError::NotFound { .. })),
        ) => unreadable(error.to_string()),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether the archive's stream is not the one that the index knows the beginning of.
async fn contradicts(
    store: &dyn Store,
    known: &SegmentSummary,
    head: &Head,
) -> Result<bool, EngineError> {
    if known.last == head.last {
        return Ok(known.digest != head.digest);
    }
    // The index may be ahead of a head that was read just before it moved, or of another archive.
    Ok(!still_committed(store, known).await?)
}

/// Returns whether the chain has this very segment.
async fn still_committed(store: &dyn Store, known: &SegmentSummary) -> Result<bool, EngineError> {
    let entry = chain::entry(store, &known.stream, known.first).await?;
    Ok(entry.is_some_and(|entry| entry.digest == known.digest))
}

/// Adds the sequences that the index misses up to the head.
fn gaps_of(index: &Index, head: &Head, report: &mut SyncReport) -> Result<(), EngineError> {
    let progress = index.progress(&head.stream)?;
    if progress.is_some_and(|known| known.is_contiguous() && known.last >= head.last) {
        return Ok(());
    }
    let mut next = 1;
    let mut gap = |first, last| {
        report.gaps.push(Gap { stream: head.stream.clone(), first, last });
    };
    for summary in index.segments_of(&head.stream) {
        let summary = summary?;
        if summary.first > next {
            gap(next, summary.first - 1);
        }
        next = next.max(summary.last + 1);
    }
    if next <= head.last {
        gap(next, head.last);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
