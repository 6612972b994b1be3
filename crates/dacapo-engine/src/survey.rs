//! The facts a plan is made of, gathered just before: what the index knows of each
//! segment, what only reading can tell, and how the target is.

use std::collections::BTreeMap;
use std::sync::Arc;

use dacapo_archive::SegmentSummary;
use dacapo_archive::store::Store;
use dacapo_event::{Sequence, StreamName, Timestamp};
use dacapo_filter::{Bounds, Count, Place, Selection, TextFacts, Verdict};
use futures::{StreamExt, TryStreamExt, stream};

use crate::EngineError;
use crate::scan::{Scan, SegmentToRead};

/// Segments counted at once by an exact survey: hides the store's latency. Each may hold a body of
/// any size, three times while it is decoded, and once more as JSON.
const COUNTED_AT_ONCE: usize = 2;

/// What one body batch of a count may decode to.
const COUNT_BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// Whether to read what the index cannot decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only the index: fast, some counts are estimates.
    Index,
    /// Read columns, and bodies if the expression needs them, until every count is exact.
    Exact,
}

/// The facts.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// Where the archive is.
    pub archive: String,
    /// Segments that may hold selected events, by stream and then sequence.
    pub segments: Vec<SurveyedSegment>,
    /// Size of all segments of the archive: what a full scan would read.
    pub archive_bytes: u64,
    /// How many segments the archive has.
    pub archive_segments: u64,
    /// Sequences that are missing from streams that the selection reads.
    pub gaps: Vec<Gap>,
    /// How the target is.
    pub target: TargetFacts,
    /// When the survey was made.
    pub now: Timestamp,
}

/// One segment that may hold selected events.
#[derive(Debug, Clone, PartialEq)]
pub struct SurveyedSegment {
    /// What its footer says.
    pub summary: SegmentSummary,
    /// How many of its events are selected.
    pub count: Count,
    /// Earliest and latest time of the selected events, or bounds of them.
    pub times: (Timestamp, Timestamp),
    /// Whether `times` is exact: all events are selected, or the selected ones were read.
    pub times_exact: bool,
}

/// Sequences that should be in a stream and are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The stream.
    pub stream: StreamName,
    /// The first one missing.
    pub first: Sequence,
    /// The last one missing.
    pub last: Sequence,
}

/// How the target is, as whoever looked could tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetFacts {
    /// Whether it is there; unknown if nobody could look.
    pub exists: Option<bool>,
    /// Messages waiting in the queue.
    pub depth: Option<u64>,
    /// Consumers of the queue.
    pub consumers: Option<u64>,
    /// What the operator should know before replaying.
    pub warnings: Vec<String>,
}

/// Gathers the facts from the summaries that the index holds, in order of stream and sequence.
///
/// # Errors
/// The index fails; reading fails, or the expression fails on an event (`Depth::Exact`).
pub async fn survey(
    store: Arc<dyn Store>,
    summaries: impl Iterator<Item = Result<SegmentSummary, EngineError>>,
    selection: &Arc<Selection>,
    depth: Depth,
    target: TargetFacts,
    now: Timestamp,
) -> Result<Survey, EngineError> {
    let archive = store.location();
    let (mut archive_bytes, mut archive_segments) = (0, 0);
    let (mut candidates, mut gaps) = (Vec::new(), Vec::new());
    let mut expected: Option<(StreamName, Sequence)> = None;
    for summary in summaries {
        let summary = summary?;
        archive_bytes += summary.size;
        archive_segments += 1;
        let next = match &expected {
            Some((stream, next)) if *stream == summary.stream => *next,
            _ => 1,
        };
        if summary.first > next {
            gaps.push(Gap { stream: summary.stream.clone(), first: next, last: summary.first - 1 });
        }
        expected = Some((summary.stream.clone(), summary.last + 1));
        let bounds = bounds(&summary);
        if selection.prune(&bounds) != Verdict::None {
            let count = selection.count(&bounds);
            let times = (summary.time_min, summary.time_max);
            let times_exact = count.exact && count.events == summary.events();
            candidates.push(SurveyedSegment { summary, count, times, times_exact });
        }
    }
    let segments = match depth {
        Depth::Index => candidates,
        Depth::Exact => {
            stream::iter(candidates)
                .map(|segment| count_exactly(Arc::clone(&store), selection, segment))
                .buffered(COUNTED_AT_ONCE)
                .try_collect()
                .await?
        }
    };
    Ok(Survey { archive, segments, archive_bytes, archive_segments, gaps, target, now })
}

async fn count_exactly(
    store: Arc<dyn Store>,
    selection: &Arc<Selection>,
    mut segment: SurveyedSegment,
) -> Result<SurveyedSegment, EngineError> {
    let counted = segment.count.exact && segment.count.by_type_exact;
    if counted && (segment.times_exact || segment.count.events == 0) {
        return Ok(segment);
    }
    let wanted = SegmentToRead {
        key: segment.summary.key.clone(),
        size: segment.summary.size,
        digest: segment.summary.digest,
    };
    let scan = Scan::open(store, &wanted, Arc::clone(selection), 0, COUNT_BATCH_BYTES).await?;
    let mut by_type: BTreeMap<String, u64> = BTreeMap::new();
    let mut times: Option<(Timestamp, Timestamp)> = None;
    let events = scan
        .count(|event| {
            *by_type.entry(event.kind.clone()).or_default() += 1;
            let (min, max) = times.unwrap_or((event.time, event.time));
            times = Some((min.min(event.time), max.max(event.time)));
        })
        .await?;
    segment.count = Count { events, exact: true, at_most: events, by_type, by_type_exact: true };
    segment.times = times.unwrap_or(segment.times);
    segment.times_exact = true;
    Ok(segment)
}

fn bounds(summary: &SegmentSummary) -> Bounds<'_> {
    Bounds {
        place: Some(Place { stream: &summary.stream, first: summary.first, last: summary.last }),
        time: Some((summary.time_min, summary.time_max)),
        kind: TextFacts::counts(&summary.by_type.counts, summary.by_type.other),
        exchange: TextFacts::counts(&summary.by_exchange.counts, summary.by_exchange.other),
        routing_key: TextFacts::counts(
            &summary.by_routing_key.counts,
            summary.by_routing_key.other,
        ),
        ..Bounds::unknown(summary.events())
    }
}
