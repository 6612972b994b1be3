//! The facts a plan is made of, gathered just before: what the index knows of each
//! segment, what only reading can tell, and how the target is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dacapo_archive::store::{ObjectKey, Store};
use dacapo_archive::{ColumnSet, SegmentSummary};
use dacapo_event::{Digest, Event, Sequence, StreamName, Timestamp};
use dacapo_filter::{Bounds, Count, Place, Selection, TextFacts, Verdict};
use futures::{StreamExt, TryStreamExt, stream};

use crate::EngineError;
use crate::scan::{Scan, SegmentToRead};

/// Segments counted at once by an exact survey: hides the store's latency. Each may hold a body of
/// any size, three times while it is decoded, and once more as JSON.
pub(crate) const COUNTED_AT_ONCE: usize = 2;

/// What one body batch of a count may decode to.
pub(crate) const COUNT_BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// The most exchanges that are named: 1,000 of 255 bytes are 250 KB, and more than any platform has
/// that names them by hand.
pub(crate) const EXCHANGES_MAX: usize = 1_000;

/// Whether to read what the index cannot decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only the index: fast, some counts are estimates.
    Index,
    /// Read columns, and bodies if the expression needs them, until every count is exact.
    Exact,
}

/// The facts. Of a segment only what a plan needs is kept: an archive may have a million.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// Where the archive is.
    pub archive: String,
    /// Segments that may hold selected events, by stream and then sequence.
    pub segments: Vec<SurveyedSegment>,
    /// Their selected events by type, as far as types were told apart.
    pub by_type: BTreeMap<String, u64>,
    /// Whether `by_type` is complete and what reading would find.
    pub by_type_exact: bool,
    /// Those exchanges that their events came from and the selection asks for, as far as they are
    /// named.
    pub exchanges: BTreeSet<String>,
    /// Whether these are all.
    pub exchanges_exact: bool,
    /// Size of all segments of the archive: what a full scan would read.
    pub archive_bytes: u64,
    /// How many segments the archive has.
    pub archive_segments: u64,
    /// Sequences that are missing from streams.
    pub gaps: Vec<Gap>,
    /// How the target is.
    pub target: TargetFacts,
    /// When the survey was made.
    pub now: Timestamp,
}

/// One segment that may hold selected events.
#[derive(Debug, Clone, PartialEq)]
pub struct SurveyedSegment {
    /// The stream it is of.
    pub stream: StreamName,
    /// Where it is.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
    /// Its first sequence.
    pub first: Sequence,
    /// Its last sequence.
    pub last: Sequence,
    /// The earliest time it holds.
    pub time_min: Timestamp,
    /// How many events it holds.
    pub events: u64,
    /// Bytes of all their bodies.
    pub body_bytes: u64,
    /// How many of its events are selected; an estimate if not `exact`.
    pub selected: u64,
    /// Whether `selected` is the number that reading would find.
    pub exact: bool,
    /// No more than this many are selected, in any case.
    pub at_most: u64,
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
    let mut survey = Survey {
        archive: store.location(),
        segments: Vec::new(),
        by_type: BTreeMap::new(),
        by_type_exact: true,
        exchanges: BTreeSet::new(),
        exchanges_exact: true,
        archive_bytes: 0,
        archive_segments: 0,
        gaps: Vec::new(),
        target,
        now,
    };
    let mut whole = Whole::default();
    let candidates = summaries.filter_map(|summary| match summary {
        Ok(summary) => {
            whole.add(&summary);
            Candidate::of(summary, selection).map(Ok)
        }
        Err(error) => Some(Err(error)),
    });
    let mut counted = stream::iter(candidates)
        .map(|candidate| async {
            match depth {
                Depth::Index => candidate,
                Depth::Exact => candidate?.count(Arc::clone(&store), selection).await,
            }
        })
        .buffered(COUNTED_AT_ONCE);
    while let Some(candidate) = counted.try_next().await? {
        if candidate.count.at_most > 0 {
            survey.add(candidate, selection);
        }
    }
    drop(counted);
    if depth == Depth::Exact {
        for end in [End::First, End::Last] {
            survey.settle(end, &store, selection).await?;
        }
    }
    let Whole { bytes, segments, gaps, end: _ } = whole;
    Ok(Survey { archive_bytes: bytes, archive_segments: segments, gaps, ..survey })
}

/// What is known of the archive as a whole.
#[derive(Default)]
struct Whole {
    bytes: u64,
    segments: u64,
    gaps: Vec<Gap>,
    /// The stream and last sequence of the segment that came last.
    end: Option<(StreamName, Sequence)>,
}

impl Whole {
    fn add(&mut self, summary: &SegmentSummary) {
        self.bytes += summary.size;
        self.segments += 1;
        let next = match &self.end {
            Some((stream, last)) if *stream == summary.stream => last.saturating_add(1),
            _ => 1,
        };
        if summary.first > next {
            let stream = summary.stream.clone();
            self.gaps.push(Gap { stream, first: next, last: summary.first - 1 });
        }
        self.end = Some((summary.stream.clone(), summary.last));
    }
}

/// A segment that may hold selected events, with all that is known of it.
struct Candidate {
    summary: SegmentSummary,
    count: Count,
    times: (Timestamp, Timestamp),
    times_exact: bool,
}

impl Candidate {
    fn of(summary: SegmentSummary, selection: &Selection) -> Option<Self> {
        let bounds = bounds(&summary);
        if selection.prune(&bounds) == Verdict::None {
            return None;
        }
        let count = selection.count(&bounds);
        let times = (summary.time_min, summary.time_max);
        let times_exact = count.exact && count.events == summary.events();
        Some(Candidate { summary, count, times, times_exact })
    }

    /// Reads what is not known exactly of the counts.
    async fn count(
        mut self,
        store: Arc<dyn Store>,
        selection: &Arc<Selection>,
    ) -> Result<Self, EngineError> {
        if self.count.exact && self.count.by_type_exact {
            return Ok(self);
        }
        let SegmentSummary { key, size, digest, .. } = &self.summary;
        let wanted = SegmentToRead { key: key.clone(), size: *size, digest: *digest };
        let Found { by_type, times } = look(store, &wanted, selection).await?;
        let events = by_type.values().sum();
        self.count = Count { events, exact: true, at_most: events, by_type, by_type_exact: true };
        self.times = times.unwrap_or(self.times);
        self.times_exact = true;
        Ok(self)
    }
}

/// What reading finds in a segment.
struct Found {
    by_type: BTreeMap<String, u64>,
    /// Of the first and the last, if there is one.
    times: Option<(Timestamp, Timestamp)>,
}

async fn look(
    store: Arc<dyn Store>,
    wanted: &SegmentToRead,
    selection: &Arc<Selection>,
) -> Result<Found, EngineError> {
    let scan = Scan::open(store, wanted, Arc::clone(selection), 0, COUNT_BATCH_BYTES).await?;
    let mut found = Found { by_type: BTreeMap::new(), times: None };
    let each = |event: &Event| {
        *found.by_type.entry(event.kind.clone()).or_default() += 1;
        let (min, max) = found.times.unwrap_or((event.time, event.time));
        found.times = Some((min.min(event.time), max.max(event.time)));
    };
    scan.count(ColumnSet::NONE, each).await?;
    Ok(found)
}

/// The first or the last of the selected events by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    First,
    Last,
}

impl End {
    fn of(self, (first, last): (Timestamp, Timestamp)) -> Timestamp {
        match self {
            End::First => first,
            End::Last => last,
        }
    }

    /// Returns whether no time within the one bound can be nearer to this end than the other time.
    fn is_settled(self, bound: Timestamp, known: Timestamp) -> bool {
        match self {
            End::First => bound >= known,
            End::Last => bound <= known,
        }
    }
}

impl Survey {
    /// Reads segments until one of those that were read or are selected whole has the event at this
    /// end, and no bound of another is beyond it: of a range of time mostly none, whatever the number
    /// of segments.
    async fn settle(
        &mut self,
        end: End,
        store: &Arc<dyn Store>,
        selection: &Arc<Selection>,
    ) -> Result<(), EngineError> {
        let segments = &mut self.segments;
        let exact = segments.iter().filter(|segment| segment.times_exact);
        let ends = exact.map(|segment| end.of(segment.times));
        let mut known = match end {
            End::First => ends.min(),
            End::Last => ends.max(),
        };
        let mut open: Vec<_> = segments.iter_mut().filter(|segment| !segment.times_exact).collect();
        open.sort_by_key(|segment| end.of(segment.times));
        if end == End::Last {
            open.reverse();
        }
        for segment in open {
            if known.is_some_and(|known| end.is_settled(end.of(segment.times), known)) {
                break;
            }
            let SurveyedSegment { key, size, digest, .. } = &*segment;
            let wanted = SegmentToRead { key: key.clone(), size: *size, digest: *digest };
            let Some(times) = look(Arc::clone(store), &wanted, selection).await?.times else {
                continue;
            };
            (segment.times, segment.times_exact) = (times, true);
            let at = end.of(times);
            known = Some(match (known, end) {
                (Some(known), End::First) => known.min(at),
                (Some(known), End::Last) => known.max(at),
                (None, _) => at,
            });
        }
        Ok(())
    }

    fn add(&mut self, candidate: Candidate, selection: &Selection) {
        let Candidate { summary, count, times, times_exact } = candidate;
        for (kind, events) in count.by_type {
            *self.by_type.entry(kind).or_default() += events;
        }
        self.by_type_exact &= count.by_type_exact;
        let names = summary.by_exchange.counts.keys();
        for name in names.filter(|name| selection.wants_exchange(name)) {
            if !self.exchanges.contains(name) {
                match self.exchanges.len() < EXCHANGES_MAX {
                    true => drop(self.exchanges.insert(name.clone())),
                    false => self.exchanges_exact = false,
                }
            }
        }
        self.exchanges_exact &= summary.by_exchange.other == 0;
        self.segments.push(SurveyedSegment {
            events: summary.events(),
            stream: summary.stream,
            key: summary.key,
            size: summary.size,
            digest: summary.digest,
            first: summary.first,
            last: summary.last,
            time_min: summary.time_min,
            body_bytes: summary.body_bytes,
            selected: count.events,
            exact: count.exact,
            at_most: count.at_most,
            times,
            times_exact,
        });
    }
}

/// Returns what a footer tells of its events.
pub fn bounds(summary: &SegmentSummary) -> Bounds<'_> {
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
