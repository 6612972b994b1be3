//! Where things lie under the archive's prefix.
//!
//! ```text
//! segments/stream=S/date=2026-11-23/hour=08/00000000000000000001.parquet   Hive-partitioned
//! chain/S/00000000000000000001.json    write-once: commits the segment that begins there
//! heads/S.json                         mutable: how far the stream goes
//! probe/…                              left behind only by a writer killed while it probed
//! ```
//!
//! Keys of one stream sort by time and then by sequence, and sequences are written
//! with 20 digits so that their text sorts as their numbers do.

use dacapo_event::{Sequence, StreamName, Timestamp};

use crate::store::ObjectKey;

/// Prefix of all segments.
pub const SEGMENTS: &str = "segments/";
/// Prefix of all chain entries.
pub const CHAIN: &str = "chain/";
/// Prefix of all heads.
pub const HEADS: &str = "heads/";

/// Returns the key of the segment whose first event is `first`, in the partition of `partition`.
pub fn segment(stream: &StreamName, partition: Timestamp, first: Sequence) -> ObjectKey {
    let (date, hour) = partition.date_and_hour();
    key(format!("{SEGMENTS}stream={stream}/date={date}/hour={hour}/{first:020}.parquet"))
}

/// Returns the prefix of a stream's segments.
pub fn segments_of(stream: &StreamName) -> String {
    format!("{SEGMENTS}stream={stream}/")
}

/// Returns the key of the chain entry of the segment whose first event is `first`.
pub fn chain_entry(stream: &StreamName, first: Sequence) -> ObjectKey {
    key(format!("{CHAIN}{stream}/{first:020}.json"))
}

/// Returns the prefix of a stream's chain entries.
pub fn chain_of(stream: &StreamName) -> String {
    format!("{CHAIN}{stream}/")
}

/// Returns a key that sorts after every chain entry of a stream and before the next stream's.
pub fn end_of_chain(stream: &StreamName) -> ObjectKey {
    key(format!("{CHAIN}{stream}/~"))
}

/// Returns the key of a stream's head.
pub fn head(stream: &StreamName) -> ObjectKey {
    key(format!("{HEADS}{stream}.json"))
}

/// Returns the stream and first sequence of a segment's key, or nothing if it is not one.
pub fn parse_segment(key: &ObjectKey) -> Option<(StreamName, Sequence)> {
    let mut parts = key.as_str().strip_prefix(SEGMENTS)?.split('/');
    let stream = parts.next()?.strip_prefix("stream=")?.parse().ok()?;
    parts.next()?.strip_prefix("date=")?;
    parts.next()?.strip_prefix("hour=")?;
    let first = parse_sequence(parts.next()?.strip_suffix(".parquet")?)?;
    parts.next().is_none().then_some((stream, first))
}

/// Returns the stream and first sequence of a chain entry's key, or nothing if it is not one.
pub fn parse_chain_entry(key: &ObjectKey) -> Option<(StreamName, Sequence)> {
    let (stream, file) = key.as_str().strip_prefix(CHAIN)?.split_once('/')?;
    Some((stream.parse().ok()?, parse_sequence(file.strip_suffix(".json")?)?))
}

/// Returns the stream of a head's key, or nothing if it is not one.
pub fn parse_head(key: &ObjectKey) -> Option<StreamName> {
    key.as_str().strip_prefix(HEADS)?.strip_suffix(".json")?.parse().ok()
}

fn parse_sequence(digits: &str) -> Option<Sequence> {
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

fn key(text: String) -> ObjectKey {
    text.parse().expect("built of a valid stream name, digits and fixed text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        let stream: StreamName = "shop.v1".parse().unwrap();
        let at = "2026-11-23T08:59:59Z".parse().unwrap();
        let segment = segment(&stream, at, 17);
        assert_eq!(
            segment.as_str(),
            "segments/stream=shop.v1/date=2026-11-23/hour=08/00000000000000000017.parquet"
        );
        assert_eq!(parse_segment(&segment), Some((stream.clone(), 17)));
        assert_eq!(parse_chain_entry(&chain_entry(&stream, 17)), Some((stream.clone(), 17)));
        assert_eq!(parse_head(&head(&stream)), Some(stream));
    }

    #[test]
    fn other_objects_are_not_taken_for_ours() {
        for text in [
            "segments/readme.txt",
            "segments/stream=a/date=x/hour=y/1.parquet",
            "chain/a/x.json",
            "heads/a",
        ] {
            let key: ObjectKey = text.parse().unwrap();
            assert_eq!(parse_segment(&key), None, "{text}");
            assert_eq!(parse_chain_entry(&key), None, "{text}");
            assert_eq!(parse_head(&key), None, "{text}");
        }
    }
}
