//! Brings the index up to date with the archive: lists only what can be new, reads
//! footers and not bodies, and knows when it is complete.
//!
//! Complete means that every stream is contiguous up to its head. The archive is
//! believed, the index is not: a stream whose end differs is indexed again.

use std::collections::BTreeMap;
use std::sync::Arc;

use dacapo_archive::chain::{self, Head};
use dacapo_archive::store::{ObjectMeta, Store};
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

/// What a sync did, and what it found missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Segments that are new in the index.
    pub added: u64,
    /// Streams whose index was thrown away because the archive differs.
    pub restarted: u64,
    /// Sequences that no readable segment holds.
    pub gaps: Vec<Gap>,
    /// Segments that could not be read, and why.
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
/// The index is blocking and small batches are written to it in place; run this where a few
/// milliseconds of disk do not matter.
///
/// # Errors
/// The store or the index fails. A damaged segment is in the report instead.
pub async fn sync(
    store: &Arc<dyn Store>,
    index: &Index,
    mut progress: impl FnMut(Progress),
) -> Result<SyncReport, EngineError> {
    let mut report = SyncReport::default();
    let heads = chain::heads(&**store).await?;
    let mut known: BTreeMap<StreamName, SegmentSummary> = BTreeMap::new();
    for progress in index.streams()? {
        let in_archive = heads.iter().any(|head| head.stream == progress.stream);
        let first = layout::parse_segment(&progress.last_key).map_or(0, |(_, first)| first);
        match index.segment(&progress.stream, first)? {
            Some(last) if in_archive => drop(known.insert(progress.stream, last)),
            _ => {
                index.remove_stream(&progress.stream)?;
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
        && contradicts(store, known, head).await?
    {
        index.remove_stream(&head.stream)?;
        report.restarted += 1;
        last = None;
    }
    if last.as_ref().is_some_and(|last| last.last >= head.last) {
        gaps_of(index, head, report)?;
        return Ok(());
    }
    let after = last.as_ref().map(|last| last.first);
    let listed = chain::committed(&**store, &head.stream, after).await?;
    let all = listed.len() as u64;
    let mut done = 0;
    let mut batch = Vec::new();
    let mut footers = stream::iter(listed)
        .map(|(object, first)| footer(store, object, first))
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

/// Reads one footer; a damaged one is not an error of the sync.
async fn footer(
    store: &Arc<dyn Store>,
    object: ObjectMeta,
    first: Sequence,
) -> Result<Result<SegmentSummary, (String, String)>, EngineError> {
    let opened = Segment::open(Arc::clone(store), &object.key, Some(object.size)).await;
    match opened {
        Ok(segment) if segment.summary().first == first => Ok(Ok(segment.summary().clone())),
        Ok(_) => Ok(Err((object.key.to_string(), "its footer is of another segment".to_owned()))),
        Err(error @ (ArchiveError::Damaged { .. } | ArchiveError::NewerFormat { .. })) => {
            Ok(Err((object.key.to_string(), error.to_string())))
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns whether the archive's stream is not the one that the index knows the beginning of.
async fn contradicts(
    store: &Arc<dyn Store>,
    known: &SegmentSummary,
    head: &Head,
) -> Result<bool, EngineError> {
    if known.last == head.last {
        return Ok(known.digest != head.digest);
    }
    // The index may be ahead of a head that was read just before it moved, or of another archive.
    let entry = chain::entry(&**store, &head.stream, known.first).await?;
    Ok(entry.is_none_or(|entry| entry.digest != known.digest))
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
