//! Where things lie under the archive's prefix.
//!
//! ```text
//! segments/stream=S/date=2026-11-23/hour=08/00000000000000000001.parquet   Hive-partitioned
//! chain/S/00000000000000000001.json    write-once: commits the segment that begins there
//! heads/S.json                         mutable: how far the stream goes
//! definitions/vhost=V/…-….json         write-once: what the broker was made of since then
//! damaged/KEY.1                        what was at KEY before `archive repair` replaced it
//! verified.json                        mutable: when `archive verify` last found all sound
//! compacted/stream=S/date=…/hour=…/00000000000000000001-0123456789abcdef.parquet
//!                                      made of many segments; the digest keeps attempts apart
//! compactions/S/00000000000000000001.json   write-once: puts the output in their place
//! barriers/ID/S.json                   write-once: how far the stream had come at a barrier
//! probe/…                              left behind only by a writer killed while it probed
//! ```
//!
//! Keys of one stream sort by time and then by sequence, and sequences are written
//! with 20 digits so that their text sorts as their numbers do.

use dacapo_event::barrier::BarrierId;
use dacapo_event::{Digest, Sequence, StreamName, Timestamp, percent};

use crate::store::ObjectKey;

/// Prefix of all segments.
pub const SEGMENTS: &str = "segments/";
/// Prefix of all chain entries.
pub const CHAIN: &str = "chain/";
/// Prefix of all heads.
pub const HEADS: &str = "heads/";
/// Prefix of all definitions of brokers.
pub const DEFINITIONS: &str = "definitions/";

/// Prefix of the answers to barriers; not part of the archive.
pub const BARRIERS: &str = "barriers/";

/// Prefix of what `archive repair` replaced; not part of the archive.
pub const DAMAGED: &str = "damaged/";

/// Prefix of all outputs of compaction.
pub const COMPACTED: &str = "compacted/";
/// Prefix of all compaction entries.
pub const COMPACTIONS: &str = "compactions/";

/// Prefixes of all objects that are parts of streams.
pub const OF_STREAMS: [&str; 5] = [HEADS, CHAIN, SEGMENTS, COMPACTIONS, COMPACTED];

/// Hours of a day.
pub(crate) const HOURS: u8 = 24;

/// Digits of an output's digest in its key: two attempts at the same place never share one.
const DIGEST_DIGITS: usize = 16;

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

/// Returns the key of a stream's answer to a barrier.
pub fn barrier(id: &BarrierId, stream: &StreamName) -> ObjectKey {
    key(format!("{BARRIERS}{id}/{stream}.json"))
}

/// Returns the prefix of all answers to a barrier.
pub fn barriers_of(id: &BarrierId) -> String {
    format!("{BARRIERS}{id}/")
}

/// Returns the barrier and stream of an answer's key, or nothing if it is not one.
pub fn parse_barrier(key: &ObjectKey) -> Option<(BarrierId, StreamName)> {
    let (id, file) = key.as_str().strip_prefix(BARRIERS)?.split_once('/')?;
    Some((id.parse().ok()?, file.strip_suffix(".json")?.parse().ok()?))
}

/// Returns the key of the record of the last successful verification; not part of the archive.
pub fn verified() -> ObjectKey {
    key("verified.json".to_owned())
}

/// Returns the key of the `copy`th copy of an object that was damaged.
pub fn damaged(object: &ObjectKey, copy: u32) -> ObjectKey {
    key(format!("{DAMAGED}{object}.{copy}"))
}

/// Returns the key of the output whose first input has this key, in the same partition; nothing if
/// that is not the key of a segment.
pub fn compacted(first_input: &ObjectKey, digest: &Digest) -> Option<ObjectKey> {
    parse_segment(first_input)?;
    let place = first_input.as_str().strip_prefix(SEGMENTS)?.strip_suffix(".parquet")?;
    let digits = &digest.to_string()[..DIGEST_DIGITS];
    Some(key(format!("{COMPACTED}{place}-{digits}.parquet")))
}

/// Returns the prefix of a stream's outputs of compaction.
pub fn compacted_of(stream: &StreamName) -> String {
    format!("{COMPACTED}stream={stream}/")
}

/// Returns the key of the compaction entry of the output whose first sequence is `first`.
pub fn compaction_entry(stream: &StreamName, first: Sequence) -> ObjectKey {
    key(format!("{COMPACTIONS}{stream}/{first:020}.json"))
}

/// Returns the prefix of a stream's compaction entries.
pub fn compactions_of(stream: &StreamName) -> String {
    format!("{COMPACTIONS}{stream}/")
}

/// Returns the stream and first sequence of a segment's key, or nothing if it is not one.
pub fn parse_segment(key: &ObjectKey) -> Option<(StreamName, Sequence)> {
    let Partitioned { stream, name, .. } = parse_partitioned(key, SEGMENTS)?;
    Some((stream, parse_sequence(name)?))
}

/// Returns the stream and first sequence of an output's key, or nothing if it is not one.
pub fn parse_compacted(key: &ObjectKey) -> Option<(StreamName, Sequence)> {
    let Partitioned { stream, name, .. } = parse_partitioned(key, COMPACTED)?;
    let (first, digits) = name.split_once('-')?;
    let hexadecimal = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (digits.len() == DIGEST_DIGITS && hexadecimal).then_some(())?;
    Some((stream, parse_sequence(first)?))
}

/// Returns whether an output of this digest may have this key.
pub fn is_named_by(output: &ObjectKey, digest: &Digest) -> bool {
    let digits = &digest.to_string()[..DIGEST_DIGITS];
    parse_compacted(output).is_some() && output.as_str().ends_with(&format!("-{digits}.parquet"))
}

/// Returns the date that a segment is filed under, as text.
pub fn date_of(segment: &ObjectKey) -> Option<&str> {
    Some(parse_partitioned(segment, SEGMENTS)?.date)
}

/// Returns the hour that a segment is filed under.
pub fn hour_of(segment: &ObjectKey) -> Option<u8> {
    Some(parse_partitioned(segment, SEGMENTS)?.hour)
}

/// Returns the key of an input of an output, which is filed under the same date; nothing if that
/// is not the key of an output.
pub fn input_of(output: &ObjectKey, hour: u8, first: Sequence) -> Option<ObjectKey> {
    let Partitioned { stream, date, .. } = parse_partitioned(output, COMPACTED)?;
    Some(key(format!("{SEGMENTS}stream={stream}/date={date}/hour={hour:02}/{first:020}.parquet")))
}

/// Returns the key of the first input of an output; nothing if that is not the key of an output.
pub fn first_input_of(output: &ObjectKey) -> Option<ObjectKey> {
    parse_compacted(output)?;
    let place = output.as_str().strip_prefix(COMPACTED)?.strip_suffix(".parquet")?;
    let (place, _) = place.rsplit_once('-')?;
    Some(key(format!("{SEGMENTS}{place}.parquet")))
}

/// What the key of a segment or of an output consists of.
struct Partitioned<'a> {
    stream: StreamName,
    date: &'a str,
    hour: u8,
    /// Without the folders before it and the extension.
    name: &'a str,
}

/// Takes what is filed under a date and an hour as we write them, and nothing else.
fn parse_partitioned<'a>(key: &'a ObjectKey, prefix: &str) -> Option<Partitioned<'a>> {
    let mut parts = key.as_str().strip_prefix(prefix)?.split('/');
    let stream = parts.next()?.strip_prefix("stream=")?.parse().ok()?;
    let date = parts.next()?.strip_prefix("date=").filter(|date| is_date(date))?;
    let hour = parse_hour(parts.next()?.strip_prefix("hour=")?)?;
    let name = parts.next()?.strip_suffix(".parquet")?;
    parts.next().is_none().then_some(Partitioned { stream, date, hour, name })
}

/// Returns whether this is written as `2026-11-23`; there need not be such a day.
fn is_date(text: &str) -> bool {
    let is_in_place = |(place, byte): (usize, u8)| match place {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    text.len() == "2026-11-23".len() && text.bytes().enumerate().all(is_in_place)
}

fn parse_hour(digits: &str) -> Option<u8> {
    let is_ours = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
    let hour = is_ours.then(|| digits.parse().ok())?;
    hour.filter(|hour| *hour < HOURS)
}

/// Returns the stream and first sequence of the key of a segment or of an output.
pub fn parse_any_segment(key: &ObjectKey) -> Option<(StreamName, Sequence)> {
    parse_segment(key).or_else(|| parse_compacted(key))
}

/// Returns the stream and first sequence of a chain entry's key, or nothing if it is not one.
pub fn parse_chain_entry(key: &ObjectKey) -> Option<(StreamName, Sequence)> {
    parse_entry(key.as_str().strip_prefix(CHAIN)?)
}

/// Returns the stream and first sequence of a compaction entry's key, or nothing if it is not one.
pub fn parse_compaction_entry(key: &ObjectKey) -> Option<(StreamName, Sequence)> {
    parse_entry(key.as_str().strip_prefix(COMPACTIONS)?)
}

fn parse_entry(path: &str) -> Option<(StreamName, Sequence)> {
    let (stream, file) = path.split_once('/')?;
    Some((stream.parse().ok()?, parse_sequence(file.strip_suffix(".json")?)?))
}

/// Returns the stream of a head's key, or nothing if it is not one.
pub fn parse_head(key: &ObjectKey) -> Option<StreamName> {
    key.as_str().strip_prefix(HEADS)?.strip_suffix(".json")?.parse().ok()
}

/// Returns the stream that an object is a part of; nothing if it is no part of one.
pub fn stream_of(key: &ObjectKey) -> Option<StreamName> {
    let of_entry = || parse_chain_entry(key).or_else(|| parse_compaction_entry(key));
    let place = parse_any_segment(key).or_else(of_entry);
    place.map(|(stream, _)| stream).or_else(|| parse_head(key))
}

fn parse_sequence(digits: &str) -> Option<Sequence> {
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// An object with a broker's definitions: `definitions/vhost=V/20261124T030000000000Z-DIGEST.json`,
/// with the virtual host percent-encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDefinitions {
    /// Where it is.
    pub key: ObjectKey,
    /// The virtual host that they are of.
    pub vhost: String,
    /// When they were first seen.
    pub since: Timestamp,
    /// How the digest of the object begins.
    pub digest: String,
}

/// Digits of the digest in a name: enough to tell one change from another.
const DEFINITIONS_DIGITS: usize = 8;

/// How the time is written there: sorts as time does, to the microsecond.
const DEFINITIONS_TIME: &str = "%Y%m%dT%H%M%S%6fZ";

impl KeptDefinitions {
    /// Returns the object of definitions with this digest, first seen then.
    pub fn new(vhost: &str, since: Timestamp, digest: &Digest) -> Self {
        let digest = digest.to_string()[..DEFINITIONS_DIGITS].to_owned();
        let time = since.to_jiff().strftime(DEFINITIONS_TIME);
        let key = key(format!("{}{time}-{digest}.json", definitions_of(vhost)));
        KeptDefinitions { key, vhost: vhost.to_owned(), since, digest }
    }

    /// Returns what a key says, or nothing if it is not one of definitions.
    pub fn parse(key: &ObjectKey) -> Option<Self> {
        let (folder, file) = key.as_str().strip_prefix(DEFINITIONS)?.split_once('/')?;
        let vhost = percent::decode(folder.strip_prefix("vhost=")?)?;
        let (time, digest) = file.strip_suffix(".json")?.split_once('-')?;
        // As RFC 3339 has it.
        let part = |range| time.get(range);
        let (date, clock) = (part(0..8)?, part(9..21)?);
        let text = format!(
            "{}-{}-{}T{}:{}:{}.{}Z",
            date.get(0..4)?,
            date.get(4..6)?,
            date.get(6..8)?,
            clock.get(0..2)?,
            clock.get(2..4)?,
            clock.get(4..6)?,
            clock.get(6..12)?,
        );
        let since = text.parse().ok()?;
        Some(KeptDefinitions { key: key.clone(), vhost, since, digest: digest.to_owned() })
    }
}

/// Returns the prefix of the definitions of a virtual host.
pub fn definitions_of(vhost: &str) -> String {
    let mut encoded = String::with_capacity(vhost.len());
    for byte in vhost.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("{DEFINITIONS}vhost={encoded}/")
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
        let entry = compaction_entry(&stream, 17);
        assert_eq!(parse_compaction_entry(&entry), Some((stream.clone(), 17)));
        let output = compacted(&segment, &Digest::of(b"abc")).unwrap();
        assert_eq!(
            output.as_str(),
            "compacted/stream=shop.v1/date=2026-11-23/hour=08/00000000000000000017-ba7816bf8f01cfea.parquet"
        );
        assert_eq!(parse_compacted(&output), Some((stream.clone(), 17)));
        let named = [b"abc", b"abd"].map(|text| is_named_by(&output, &Digest::of(text)));
        assert_eq!((named, is_named_by(&segment, &Digest::of(b"abc"))), ([true, false], false));
        assert_eq!((parse_segment(&output), parse_compacted(&segment)), (None, None));
        assert_eq!(compacted(&output, &Digest::of(b"abc")), None);
        assert_eq!((date_of(&segment), hour_of(&segment)), (Some("2026-11-23"), Some(8)));
        assert_eq!(input_of(&output, 8, 17).as_ref(), Some(&segment));
        assert_eq!(first_input_of(&output).as_ref(), Some(&segment));
        for key in [&segment, &output, &entry, &chain_entry(&stream, 17), &head(&stream)] {
            assert_eq!(stream_of(key).as_ref(), Some(&stream), "{key}");
        }
        assert_eq!(parse_head(&head(&stream)), Some(stream));
    }

    #[test]
    fn definitions_are_read_back_and_sort_by_time() {
        let digest = Digest::of(b"x");
        let since = "2026-11-24T03:00:00.000001Z".parse().unwrap();
        let kept = KeptDefinitions::new("/shop é", since, &digest);
        let place = "definitions/vhost=%2Fshop%20%C3%A9/20261124T030000000001Z-";
        assert!(kept.key.as_str().starts_with(place), "{}", kept.key);
        assert_eq!(KeptDefinitions::parse(&kept.key), Some(kept.clone()));
        let later =
            KeptDefinitions::new("/shop é", "2026-11-24T03:00:01Z".parse().unwrap(), &digest);
        assert!(kept.key < later.key);
        for text in [
            "definitions/vhost=a/x.json",
            "definitions/vhost=a/20261124T03-1.json",
            "heads/a",
            "definitions/vhost=%2/20261124T030000000001Z-1.json",
            "definitions/a/20261124T030000000001Z-1.json",
        ] {
            assert_eq!(KeptDefinitions::parse(&text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn other_objects_are_not_taken_for_ours() {
        for text in [
            "segments/readme.txt",
            "segments/stream=a/date=2026-11-23/hour=08/1.parquet",
            "segments/stream=a/date=2026-11-23/hour=24/00000000000000000017.parquet",
            "segments/stream=a/date=2026-11-23/hour=8/00000000000000000017.parquet",
            "segments/stream=a/date=2026-11-2x/hour=08/00000000000000000017.parquet",
            "segments/stream=a/date=2026-11-234/hour=08/00000000000000000017.parquet",
            "compacted/stream=a/date=2026-11-23/hour=08/00000000000000000017.parquet",
            "compacted/stream=a/date=2026-11-23/hour=08/00000000000000000017-ba7816bf8f01cfeG.parquet",
            "compactions/a/17.json",
            "chain/a/x.json",
            "heads/a",
        ] {
            let key: ObjectKey = text.parse().unwrap();
            assert_eq!(parse_segment(&key), None, "{text}");
            assert_eq!(parse_chain_entry(&key), None, "{text}");
            assert_eq!(parse_compacted(&key), None, "{text}");
            assert_eq!(parse_compaction_entry(&key), None, "{text}");
            assert_eq!(parse_head(&key), None, "{text}");
        }
    }
}
