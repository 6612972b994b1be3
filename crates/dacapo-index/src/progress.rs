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
    /// How many exact repeats compaction left out of its segments.
    pub dropped: u64,
    /// First sequence of the last compaction entry up to which every entry is taken into account.
    pub compacted: Option<Sequence>,
}

impl StreamProgress {
    /// Returns whether every sequence from 1 to `last` is in a known segment. Segments never
    /// overlap, so counting the sequences is enough.
    pub fn is_contiguous(&self) -> bool {
        self.events + self.dropped == self.last
    }
}

/// Returns a stream's progress with one more segment, in place of those replaced.
pub(crate) fn advanced(
    progress: Option<StreamProgress>,
    segment: &SegmentSummary,
    replaced: &[SegmentSummary],
) -> StreamProgress {
    let mut progress = progress.unwrap_or_else(|| StreamProgress {
        stream: segment.stream.clone(),
        last: 0,
        segments: 0,
        events: 0,
        last_key: segment.key.clone(),
        dropped: 0,
        compacted: None,
    });
    let mut was_last = false;
    for replaced in replaced {
        progress.segments = progress.segments.saturating_sub(1);
        progress.events = progress.events.saturating_sub(replaced.events());
        progress.dropped = progress.dropped.saturating_sub(replaced.dropped);
        was_last |= replaced.last == progress.last;
    }
    progress.segments += 1;
    progress.events += segment.events();
    progress.dropped += segment.dropped;
    if was_last || segment.last >= progress.last {
        progress.last = segment.last;
        progress.last_key = segment.key.clone();
    }
    progress
}
