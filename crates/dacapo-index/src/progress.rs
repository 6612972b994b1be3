//! How far each stream is known, and how that moves with its segments.

use dacapo_archive::SegmentSummary;
use dacapo_archive::store::ObjectKey;
use dacapo_event::{Sequence, StreamName};

/// How far the index knows a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamProgress {
    /// The stream.
    pub stream: StreamName,
    /// Greatest sequence of its segments.
    pub last: Sequence,
    /// How many segments it has.
    pub segments: u64,
    /// How many events they hold.
    pub events: u64,
    /// Key of the segment that ends with `last`.
    pub last_key: ObjectKey,
}

impl StreamProgress {
    /// Returns whether every sequence from 1 to `last` is in a known segment. Segments never
    /// overlap, so counting the events is enough.
    pub fn is_contiguous(&self) -> bool {
        self.events == self.last
    }
}

/// Returns a stream's progress with one more segment, in place of the one replaced.
pub(crate) fn advanced(
    progress: Option<StreamProgress>,
    segment: &SegmentSummary,
    replaced: Option<&SegmentSummary>,
) -> StreamProgress {
    let mut progress = progress.unwrap_or_else(|| StreamProgress {
        stream: segment.stream.clone(),
        last: 0,
        segments: 0,
        events: 0,
        last_key: segment.key.clone(),
    });
    progress.segments += u64::from(replaced.is_none());
    progress.events += segment.events();
    progress.events = progress.events.saturating_sub(replaced.map_or(0, SegmentSummary::events));
    let was_last = replaced.is_some_and(|replaced| replaced.last == progress.last);
    if was_last || segment.last >= progress.last {
        progress.last = segment.last;
        progress.last_key = segment.key.clone();
    }
    progress
}
