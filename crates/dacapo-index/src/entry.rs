//! What is stored: keys and values, and their conversion. The only place that knows them.
//!
//! ```text
//! v                            format version
//! p stream                     progress of a stream
//! s stream 00 first            segment; the sequence big-endian, so that keys sort as segments do
//! ```

use dacapo_archive::store::ObjectKey;
use dacapo_archive::{SegmentSummary, Tally};
use dacapo_event::{Digest, Sequence, StreamName, Timestamp};
use prost::Message as _;

use crate::StreamProgress;

/// The format of keys and values; counted up when either changes.
pub(crate) const VERSION: u32 = 2;

/// The format before: it lacks what compaction added, which reads as zero, so that an index of it
/// only has to be brought up to date.
pub(crate) const VERSION_BEFORE: u32 = 1;

/// Key of the version.
pub(crate) const VERSION_KEY: &[u8] = b"v";
/// Prefix of all streams' progress.
pub(crate) const PROGRESS: &[u8] = b"p";
/// Prefix of all segments.
pub(crate) const SEGMENTS: &[u8] = b"s";

/// Returns the key of a stream's progress.
pub(crate) fn progress_key(stream: &StreamName) -> Vec<u8> {
    [PROGRESS, stream.as_str().as_bytes()].concat()
}

/// Returns the prefix of a stream's segments. No stream name holds the byte 0.
pub(crate) fn segments_prefix(stream: &StreamName) -> Vec<u8> {
    [SEGMENTS, stream.as_str().as_bytes(), &[0]].concat()
}

/// Returns the key of a segment.
pub(crate) fn segment_key(stream: &StreamName, first: Sequence) -> Vec<u8> {
    [segments_prefix(stream).as_slice(), &first.to_be_bytes()].concat()
}

/// Returns the name of the stream in a segment's key.
pub(crate) fn stream_of(key: &[u8]) -> &[u8] {
    let name = key.strip_prefix(SEGMENTS).unwrap_or(key);
    name.split(|byte| *byte == 0).next().unwrap_or(name)
}

#[derive(Clone, PartialEq, prost::Message)]
struct SegmentEntry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(uint64, tag = "2")]
    size: u64,
    #[prost(string, tag = "3")]
    stream: String,
    #[prost(uint64, tag = "4")]
    first: u64,
    /// Sequences after the first.
    #[prost(uint64, tag = "5")]
    more: u64,
    #[prost(sint64, tag = "6")]
    time_min: i64,
    /// The other times are told from this or from `archived_min`, which is shorter.
    #[prost(sint64, tag = "7")]
    time_span: i64,
    #[prost(sint64, tag = "8")]
    archived_min: i64,
    #[prost(sint64, tag = "9")]
    archived_span: i64,
    #[prost(uint64, tag = "10")]
    body_bytes: u64,
    #[prost(message, required, tag = "11")]
    by_type: TallyEntry,
    #[prost(message, required, tag = "12")]
    by_routing_key: TallyEntry,
    #[prost(message, required, tag = "13")]
    by_exchange: TallyEntry,
    #[prost(bytes = "vec", tag = "14")]
    digest: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "15")]
    previous: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "16")]
    source_mark: Option<Vec<u8>>,
    #[prost(uint64, tag = "17")]
    dropped: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TallyEntry {
    #[prost(string, repeated, tag = "1")]
    texts: Vec<String>,
    #[prost(uint64, repeated, tag = "2")]
    counts: Vec<u64>,
    #[prost(uint64, tag = "3")]
    other: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProgressEntry {
    #[prost(uint64, tag = "1")]
    last: u64,
    #[prost(uint64, tag = "2")]
    segments: u64,
    #[prost(uint64, tag = "3")]
    events: u64,
    #[prost(string, tag = "4")]
    last_key: String,
    #[prost(uint64, tag = "5")]
    dropped: u64,
    /// 0 for none: sequences begin at 1.
    #[prost(uint64, tag = "6")]
    compacted: u64,
}

/// Returns the value of a segment.
pub(crate) fn encode_segment(summary: &SegmentSummary) -> Vec<u8> {
    let digest = |digest: &Digest| digest.as_bytes().to_vec();
    let span = |from: Timestamp, to: Timestamp| to.as_micros() - from.as_micros();
    let entry = SegmentEntry {
        key: summary.key.to_string(),
        size: summary.size,
        stream: summary.stream.to_string(),
        first: summary.first,
        more: summary.last - summary.first,
        time_min: summary.time_min.as_micros(),
        time_span: span(summary.time_min, summary.time_max),
        archived_min: summary.archived_min.as_micros(),
        archived_span: span(summary.archived_min, summary.archived_max),
        body_bytes: summary.body_bytes,
        by_type: encode_tally(&summary.by_type),
        by_routing_key: encode_tally(&summary.by_routing_key),
        by_exchange: encode_tally(&summary.by_exchange),
        digest: digest(&summary.digest),
        previous: summary.previous.as_ref().map(digest),
        source_mark: summary.source_mark.as_ref().map(digest),
        dropped: summary.dropped,
    };
    entry.encode_to_vec()
}

/// Returns the segment that a value means, or what is wrong with it.
pub(crate) fn decode_segment(value: &[u8]) -> Result<SegmentSummary, String> {
    let entry = SegmentEntry::decode(value).map_err(|error| error.to_string())?;
    let time = |micros: i64, span: i64| Timestamp::from_micros(micros.saturating_add(span));
    Ok(SegmentSummary {
        key: object_key(&entry.key)?,
        size: entry.size,
        stream: entry.stream.parse().map_err(|error| format!("{error}"))?,
        first: entry.first,
        last: entry.first.checked_add(entry.more).ok_or("a sequence is out of range")?,
        dropped: match entry.dropped <= entry.more {
            true => entry.dropped,
            false => return Err("more was dropped than there was".to_owned()),
        },
        time_min: time(entry.time_min, 0),
        time_max: time(entry.time_min, entry.time_span),
        archived_min: time(entry.archived_min, 0),
        archived_max: time(entry.archived_min, entry.archived_span),
        body_bytes: entry.body_bytes,
        by_type: decode_tally(entry.by_type),
        by_routing_key: decode_tally(entry.by_routing_key),
        by_exchange: decode_tally(entry.by_exchange),
        digest: digest(entry.digest)?,
        previous: entry.previous.map(digest).transpose()?,
        source_mark: entry.source_mark.map(digest).transpose()?,
    })
}

/// Returns the value of a stream's progress.
pub(crate) fn encode_progress(progress: &StreamProgress) -> Vec<u8> {
    let entry = ProgressEntry {
        last: progress.last,
        segments: progress.segments,
        events: progress.events,
        last_key: progress.last_key.to_string(),
        dropped: progress.dropped,
        compacted: progress.compacted.unwrap_or(0),
    };
    entry.encode_to_vec()
}

/// Returns the progress that a key and its value mean, or what is wrong with them.
pub(crate) fn decode_progress(key: &[u8], value: &[u8]) -> Result<StreamProgress, String> {
    let entry = ProgressEntry::decode(value).map_err(|error| error.to_string())?;
    let name = key.strip_prefix(PROGRESS).and_then(|name| std::str::from_utf8(name).ok());
    let stream = name.ok_or("a stream's name is not text")?;
    Ok(StreamProgress {
        stream: stream.parse().map_err(|error| format!("{error}"))?,
        last: entry.last,
        segments: entry.segments,
        events: entry.events,
        last_key: object_key(&entry.last_key)?,
        dropped: entry.dropped,
        compacted: (entry.compacted > 0).then_some(entry.compacted),
    })
}

fn encode_tally(tally: &Tally) -> TallyEntry {
    TallyEntry {
        texts: tally.counts.keys().cloned().collect(),
        counts: tally.counts.values().copied().collect(),
        other: tally.other,
    }
}

fn decode_tally(entry: TallyEntry) -> Tally {
    Tally { counts: entry.texts.into_iter().zip(entry.counts).collect(), other: entry.other }
}

fn digest(bytes: Vec<u8>) -> Result<Digest, String> {
    let bytes = bytes.try_into().map_err(|_| "a digest does not have 32 bytes")?;
    Ok(Digest::from_bytes(bytes))
}

fn object_key(text: &str) -> Result<ObjectKey, String> {
    text.parse().map_err(|error| format!("{error}"))
}
