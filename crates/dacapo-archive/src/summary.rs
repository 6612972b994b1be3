//! What the footer of a segment says of the whole segment.

use std::collections::BTreeMap;

use dacapo_event::{Digest, Sequence, StreamName, Timestamp};

use crate::store::ObjectKey;

/// What is known of a segment without reading its rows; all of it comes from the footer, but for
/// `key` and `size`.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentSummary {
    /// Where the segment is.
    pub key: ObjectKey,
    /// Size of the object in bytes.
    pub size: u64,
    /// The stream it is a run of.
    pub stream: StreamName,
    /// Sequence of its first event.
    pub first: Sequence,
    /// Sequence of its last event; every sequence between is there, but for those dropped.
    pub last: Sequence,
    /// How many exact repeats compaction left out; none in a segment as its writer made it.
    pub dropped: u64,
    /// Earliest `time` of its events.
    pub time_min: Timestamp,
    /// Latest `time` of its events.
    pub time_max: Timestamp,
    /// Earliest `archived_at` of its events.
    pub archived_min: Timestamp,
    /// Latest `archived_at` of its events.
    pub archived_max: Timestamp,
    /// Bytes of all bodies, uncompressed.
    pub body_bytes: u64,
    /// Events by `type`.
    pub by_type: Tally,
    /// Events by `routing_key` (lossy text).
    pub by_routing_key: Tally,
    /// Events by `exchange`.
    pub by_exchange: Tally,
    /// Digest of the object.
    pub digest: Digest,
    /// Digest of the stream's segment before it; absent for the first.
    pub previous: Option<Digest>,
    /// Import only: digest of the input up to and including the last event.
    pub source_mark: Option<Digest>,
}

impl SegmentSummary {
    /// Returns how many events it holds.
    pub fn events(&self) -> u64 {
        self.sequences() - self.dropped
    }

    /// Returns how many sequences it stands for: its events, and the repeats that were left out.
    pub fn sequences(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// Counts by a text, up to [`Tally::DISTINCT_MAX`] different ones of up to
/// [`Tally::TEXT_BYTES_MAX`] bytes; the rest are counted together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Counts of the texts that were told apart.
    pub counts: BTreeMap<String, u64>,
    /// Events whose text was too long or came after the limit was reached; in the latter case it may
    /// also be in `counts`.
    pub other: u64,
}

impl Tally {
    /// The most texts told apart in one segment: bounds the footer (1,000 of 255 bytes are 250 KB)
    /// where a platform puts ids into routing keys.
    pub const DISTINCT_MAX: usize = 1_000;

    /// A longer text is counted with the rest: a type that an import takes from its input may be
    /// megabytes long, and a thousand of them would make a footer that no reader takes.
    pub const TEXT_BYTES_MAX: usize = 1_024;

    /// Counts one more of `text`.
    pub fn add(&mut self, text: &str) {
        if let Some(count) = self.counts.get_mut(text) {
            *count += 1;
        } else if self.counts.len() < Self::DISTINCT_MAX && text.len() <= Self::TEXT_BYTES_MAX {
            self.counts.insert(text.to_owned(), 1);
        } else {
            self.other += 1;
        }
    }
}
