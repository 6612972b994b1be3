//! Brings the index up to date with the archive: lists only what can be new, reads
//! footers and not bodies, and knows when it is complete. An output of compaction is taken in the
//! place of the segments that it was made of.
//!
//! Complete means that every stream is contiguous up to its head. The archive is
//! believed, the index is not: a stream whose end differs is indexed again.

use std::collections::BTreeMap;
use std::sync::Arc;

use dacapo_archive::chain::{self, ChainEntry, Head};
use dacapo_archive::compaction::{self, CompactionEntry};
use dacapo_archive::store::{ObjectMeta, Store, StoreError};
use dacapo_archive::{ArchiveError, Segment, SegmentSummary, layout};
use dacapo_event::{Sequence, StreamName};
use dacapo_index::{Index, IndexError};
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
    let streams = index.streams()?;
    let compacted: BTreeMap<StreamName, Sequence> = streams
        .iter()
        .filter_map(|progress| Some((progress.stream.clone(), progress.compacted?)))
        .collect();
    let compactions =
        compaction::entries(&**store, |stream| compacted.get(stream).copied()).await?;
    let mut known: BTreeMap<StreamName, SegmentSummary> = BTreeMap::new();
    for stream in streams {
        let in_archive = heads.iter().any(|head| head.stream == stream.stream);
        let first = layout::parse_any_segment(&stream.last_key).map_or(0, |(_, first)| first);
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
        let compactions = compactions.get(&head.stream).map_or(&[][..], Vec::as_slice);
        sync_stream(store, index, &head, last, compactions, &mut report, &mut progress).await?;
    }
    index.flush()?;
    Ok(report)
}

async fn sync_stream(
    store: &Arc<dyn Store>,
    index: &Index,
    head: &Head,
    last: Option<SegmentSummary>,
    compactions: &[Sequence],
    report: &mut SyncReport,
    progress: &mut impl FnMut(Progress),
) -> Result<(), EngineError> {
    if let Some(known) = &last
        && contradicts(&**store, known, head).await?
    {
        index.remove_stream(&head.stream)?;
        report.restarted += 1;
        // Of many, those that were known may have been left out.
        let all = compaction::entries_of(&**store, &head.stream).await?;
        take_outputs(store, index, &head.stream, &all, report).await?;
    } else {
        take_outputs(store, index, &head.stream, compactions, report).await?;
    }
    // An output may have taken the place of what was last.
    let known = index.progress(&head.stream)?;
    let contiguous = known.as_ref().is_some_and(|known| known.is_contiguous());
    let last = match &known {
        Some(known) => index.segment_at(&head.stream, known.last)?,
        None => None,
    };
    let after = match &last {
        Some(last) if contiguous && last.last >= head.last => return Ok(()),
        Some(last) if contiguous => Some(last.last),
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

/// Takes new outputs of compaction in the place of what they were made of; one that cannot be read
/// is reported, and the segments under it are taken as if it were not there. A stream of which an output that
/// was known is no longer in the archive is begun again.
async fn take_outputs(
    store: &Arc<dyn Store>,
    index: &Index,
    stream: &StreamName,
    listed: &[Sequence],
    report: &mut SyncReport,
) -> Result<(), EngineError> {
    let mut known = index.progress(stream)?.and_then(|known| known.compacted);
    let mut whole = None;
    let rolled_back = known.is_some_and(|known| listed.binary_search(&known).is_err());
    if rolled_back {
        index.remove_stream(stream)?;
        report.restarted += 1;
        known = None;
        // Of many, those that were known may have been left out.
        whole = Some(compaction::entries_of(&**store, stream).await?);
    }
    let firsts = whole.as_deref().unwrap_or(listed);
    let new = firsts.iter().copied().filter(|first| known.is_none_or(|known| *first > known));
    let mut outputs = stream::iter(new)
        .map(|first| output(store, index, stream, first))
        .buffered(FOOTERS_AT_ONCE);
    let mut all_read = true;
    while let Some(output) = outputs.next().await {
        match output? {
            Ok(Output { summary, known }) => {
                if !known {
                    match index.replace_covered(&summary) {
                        Ok(()) => report.added += 1,
                        // Its entry is not where the output before it ends.
                        Err(IndexError::Overlap { other, .. }) => {
                            all_read = false;
                            let problem = format!("it has events of `{other}`, too");
                            report.unreadable.push((summary.key.to_string(), problem));
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                if all_read {
                    index.set_compacted(stream, summary.first)?;
                }
            }
            Err(unreadable) => {
                all_read = false;
                report.unreadable.push(unreadable);
            }
        }
    }
    Ok(())
}

/// What a compaction entry names, and whether the index has it already.
struct Output {
    summary: SegmentSummary,
    known: bool,
}

/// Reads one compaction entry and the footer of its output, unless the index has it; what is
/// damaged is not an error of the sync.
async fn output(
    store: &Arc<dyn Store>,
    index: &Index,
    stream: &StreamName,
    first: Sequence,
) -> Result<Result<Output, (String, String)>, EngineError> {
    let key = layout::compaction_entry(stream, first).to_string();
    let entry = match compaction::entry(&**store, stream, first).await {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok(Err((key, "it disappeared".to_owned()))),
        Err(error @ (ArchiveError::Damaged { .. } | ArchiveError::NewerFormat { .. })) => {
            return Ok(Err((key, error.to_string())));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(summary) = index.segment(stream, first)?
        && summary.digest == entry.output.digest
    {
        return Ok(Ok(Output { summary, known: true }));
    }
    let object = ObjectMeta { key: entry.output.segment.clone(), size: entry.output.size };
    Ok(match footer(store, stream, object, first).await? {
        Ok(summary) if matches(&entry, &summary) => Ok(Output { summary, known: false }),
        Ok(summary) => Err((
            summary.key.to_string(),
            "its footer and its compaction entry contradict each other".to_owned(),
        )),
        Err(unreadable) => Err(unreadable),
    })
}

/// Returns whether this is the output that the entry names. One that was taken over keeps its place
/// in the chain of segments.
fn matches(entry: &CompactionEntry, summary: &SegmentSummary) -> bool {
    let found = ChainEntry::of(summary);
    let previous = match entry.is_taken_over() {
        true => found.previous,
        false => entry.output.previous,
    };
    ChainEntry { previous, ..entry.output.clone() } == found
}

/// Returns the last sequence before a stream's first gap.
fn last_before_gap(index: &Index, stream: &StreamName) -> Result<Option<Sequence>, EngineError> {
    let mut before = None;
    let mut next = 1;
    for summary in index.segments_of(stream) {
        let summary = summary?;
        if summary.first > next {
            break;
        }
        before = Some(summary.last);
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
        let known = index.segment_at(stream, first)?;
        let same = |known: SegmentSummary| {
            let is_output = layout::parse_compacted(&known.key).is_some();
            is_output || known.key == object.key && known.size == object.size
        };
        if !known.is_some_and(same) {
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

/// Returns whether the chain has this very segment, or the stream this very output; what a damaged
/// entry commits is neither.
async fn still_committed(store: &dyn Store, known: &SegmentSummary) -> Result<bool, EngineError> {
    let (stream, first) = (&known.stream, known.first);
    let entry = match layout::parse_compacted(&known.key).is_some() {
        true => {
            let entry = compaction::entry(store, stream, first).await;
            entry.map(|entry| entry.map(|entry| entry.output))
        }
        false => chain::entry(store, stream, first).await,
    };
    match entry {
        Ok(entry) => Ok(entry.is_some_and(|entry| entry.digest == known.digest)),
        Err(ArchiveError::Damaged { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
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
