//! How segments are committed to their stream: chain entries and heads.
//!
//! Two small JSON objects, read and written only here. A chain entry is write-once and
//! commits the segment that begins at its sequence; the head is mutable and says how
//! far the stream goes, so that a lost tail shows.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use bytes::Bytes;
use dacapo_event::{Digest, Sequence, StreamName, Timestamp};
use futures::{Stream, TryStreamExt, stream};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::store::{ByteRange, ObjectKey, ObjectMeta, Store, StoreError};
use crate::{ArchiveError, SegmentSummary, layout};

/// Commits one segment to its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainEntry {
    /// The segment.
    pub segment: ObjectKey,
    /// Its size in bytes.
    pub size: u64,
    /// Its first sequence.
    pub first: Sequence,
    /// Its last sequence.
    pub last: Sequence,
    /// Its digest.
    pub digest: Digest,
    /// The digest of the segment before it.
    pub previous: Option<Digest>,
}

/// How far a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The stream.
    pub stream: StreamName,
    /// The last sequence that is durable.
    pub last: Sequence,
    /// Digest of the last segment.
    pub digest: Digest,
    /// Key of the last segment.
    pub segment: ObjectKey,
    /// When the head was moved.
    pub moved_at: Timestamp,
    /// Import only: digest of the input up to the last event.
    pub source_mark: Option<Digest>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ChainEntryJson {
    pub(crate) format: u32,
    segment: String,
    bytes: u64,
    first_sequence: u64,
    last_sequence: u64,
    digest: String,
    previous: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct HeadJson {
    format: u32,
    stream: String,
    last_sequence: u64,
    digest: String,
    segment: String,
    moved_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_mark: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
}

impl HeadJson {
    /// Returns the CRC-32 of the object without its checksum: unlike an entry, a head says things
    /// that nothing else can confirm.
    fn computed_checksum(&self) -> String {
        let without = HeadJson { checksum: None, ..self.clone() };
        format!("{:08x}", crc32fast::hash(&to_json(&without)))
    }
}

/// A chain entry or head is smaller: two keys of up to 900 bytes, and some digests. No more is read
/// of what lies in its place.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// Version of the JSON objects; they change less often than the segment format.
pub(crate) const JSON_FORMAT: u32 = 1;

impl ChainEntry {
    /// Returns the entry that commits this segment.
    pub fn of(summary: &SegmentSummary) -> Self {
        ChainEntry {
            segment: summary.key.clone(),
            size: summary.size,
            first: summary.first,
            last: summary.last,
            digest: summary.digest,
            previous: summary.previous,
        }
    }

    pub(crate) fn to_bytes(&self) -> Bytes {
        to_json(&self.to_json())
    }

    pub(crate) fn to_json(&self) -> ChainEntryJson {
        ChainEntryJson {
            format: JSON_FORMAT,
            segment: self.segment.to_string(),
            bytes: self.size,
            first_sequence: self.first,
            last_sequence: self.last,
            digest: self.digest.to_string(),
            previous: self.previous.map(|digest| digest.to_string()),
        }
    }

    /// Returns the entry that these bytes are, if they are the very bytes that a writer puts.
    ///
    /// # Errors
    /// They are not an entry, or one of a newer format, or were changed without changing what
    /// they mean.
    pub(crate) fn from_exact_bytes(key: &ObjectKey, bytes: &[u8]) -> Result<Self, ArchiveError> {
        let json = from_json::<ChainEntryJson>(key, bytes)?;
        if json.format > JSON_FORMAT && has_form_of(bytes, &json) {
            // Nothing else guards this number; an entry of another version has another form.
            let problem =
                format!("its `format` is {}, but it has the form of {JSON_FORMAT}", json.format);
            return Err(ArchiveError::damaged(key, problem));
        }
        let entry = Self::from_json(key, json.clone())?;
        check_exact(key, bytes, &json)?;
        Ok(entry)
    }

    fn from_bytes(key: &ObjectKey, bytes: &[u8]) -> Result<Self, ArchiveError> {
        Self::from_json(key, from_json(key, bytes)?)
    }

    /// Returns this entry if it is that of a segment of this stream that begins at `first`.
    ///
    /// # Errors
    /// It is damaged: it is the entry of another place, or names its segment by a key that no
    /// segment of its place is given.
    pub(crate) fn at(self, stream: &StreamName, first: Sequence) -> Result<Self, ArchiveError> {
        let key = layout::chain_entry(stream, first);
        self.check_begins(&key, first)?;
        let place = layout::parse_segment(&self.segment);
        if place.is_none_or(|place| place != (stream.clone(), first)) {
            return Err(self.names_nothing(&key));
        }
        Ok(self)
    }

    pub(crate) fn check_begins(
        &self,
        key: &ObjectKey,
        first: Sequence,
    ) -> Result<(), ArchiveError> {
        if first > 0 && self.first == first && self.last >= first {
            return Ok(());
        }
        let problem = format!("it is the entry of sequences {} to {}", self.first, self.last);
        Err(ArchiveError::damaged(key, problem))
    }

    pub(crate) fn names_nothing(&self, key: &ObjectKey) -> ArchiveError {
        let problem = format!("it names {}, where nothing of its place can be", self.segment);
        ArchiveError::damaged(key, problem)
    }

    pub(crate) fn from_json(key: &ObjectKey, json: ChainEntryJson) -> Result<Self, ArchiveError> {
        let unreadable =
            |what: &str| ArchiveError::damaged(key, format!("its `{what}` is not readable"));
        check_format(key, json.format)?;
        Ok(ChainEntry {
            segment: json.segment.parse().map_err(|_| unreadable("segment"))?,
            size: json.bytes,
            first: sequence(json.first_sequence).ok_or_else(|| unreadable("first_sequence"))?,
            last: sequence(json.last_sequence).ok_or_else(|| unreadable("last_sequence"))?,
            digest: json.digest.parse().map_err(|_| unreadable("digest"))?,
            previous: json
                .previous
                .map(|text| text.parse())
                .transpose()
                .map_err(|_| unreadable("previous"))?,
        })
    }
}

impl Head {
    /// Returns the head as the object that it is kept in.
    pub fn to_bytes(&self) -> Bytes {
        let mut json = HeadJson {
            format: JSON_FORMAT,
            stream: self.stream.to_string(),
            last_sequence: self.last,
            digest: self.digest.to_string(),
            segment: self.segment.to_string(),
            moved_at: self.moved_at.to_string(),
            source_mark: self.source_mark.map(|digest| digest.to_string()),
            checksum: None,
        };
        json.checksum = Some(json.computed_checksum());
        to_json(&json)
    }

    /// Returns the head that these bytes are, if they are the very bytes that a writer puts.
    ///
    /// # Errors
    /// As [`Head::from_bytes`], or they were changed without changing what they mean.
    pub(crate) fn from_exact_bytes(key: &ObjectKey, bytes: &[u8]) -> Result<Self, ArchiveError> {
        let head = Self::from_bytes(key, bytes)?;
        check_exact(key, bytes, &from_json::<HeadJson>(key, bytes)?)?;
        Ok(head)
    }

    /// Returns the head that these bytes of the object `key` are.
    ///
    /// # Errors
    /// They are not a head, or one of a newer format, or not what its checksum says.
    pub fn from_bytes(key: &ObjectKey, bytes: &[u8]) -> Result<Self, ArchiveError> {
        let json: HeadJson = from_json(key, bytes)?;
        // Heads of before there were checksums have none.
        let agrees =
            json.checksum.as_ref().is_none_or(|checksum| *checksum == json.computed_checksum());
        check_guarded(key, bytes, &json, json.format, agrees)?;
        let unreadable =
            |what: &str| ArchiveError::damaged(key, format!("its `{what}` is not readable"));
        Ok(Head {
            stream: json.stream.parse().map_err(|_| unreadable("stream"))?,
            last: sequence(json.last_sequence).ok_or_else(|| unreadable("last_sequence"))?,
            digest: json.digest.parse().map_err(|_| unreadable("digest"))?,
            segment: json.segment.parse().map_err(|_| unreadable("segment"))?,
            moved_at: json.moved_at.parse().map_err(|_| unreadable("moved_at"))?,
            source_mark: json
                .source_mark
                .map(|text| text.parse())
                .transpose()
                .map_err(|_| unreadable("source_mark"))?,
        })
    }
}

/// Returns a sequence that a writer can have given, so that one can be added to it: the column of
/// sequences is signed.
pub(crate) fn sequence(number: u64) -> Option<Sequence> {
    i64::try_from(number).is_ok().then_some(number)
}

pub(crate) fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec_pretty(value).expect("text and numbers become JSON").into()
}

pub(crate) fn from_json<T: DeserializeOwned>(
    key: &ObjectKey,
    bytes: &[u8],
) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|error| ArchiveError::damaged(key, error))
}

/// Returns whether an object has the very members that were read of it.
fn has_form_of(bytes: &[u8], json: &impl Serialize) -> bool {
    let there = serde_json::from_slice::<serde_json::Value>(bytes);
    there.is_ok_and(|there| serde_json::to_value(json).is_ok_and(|read| read == there))
}

pub(crate) fn check_exact(
    key: &ObjectKey,
    bytes: &[u8],
    json: &impl Serialize,
) -> Result<(), ArchiveError> {
    if to_json(json) == bytes {
        return Ok(());
    }
    Err(ArchiveError::damaged(
        key,
        "its bytes are not those that were written, though they mean the same",
    ))
}

pub(crate) fn check_format(key: &ObjectKey, version: u32) -> Result<(), ArchiveError> {
    if version == 0 {
        return Err(ArchiveError::damaged(key, "its `format` is 0, which no version has"));
    }
    if version > JSON_FORMAT {
        return Err(ArchiveError::NewerFormat {
            key: key.to_string(),
            version,
            supported: JSON_FORMAT,
        });
    }
    Ok(())
}

/// Checks the version and the checksum of an object: one of a newer version has another form, and
/// its checksum is not known here.
///
/// # Errors
/// It is of a newer version, or its checksum does not agree with it.
pub(crate) fn check_guarded(
    key: &ObjectKey,
    bytes: &[u8],
    json: &impl Serialize,
    version: u32,
    checksum_agrees: bool,
) -> Result<(), ArchiveError> {
    if !checksum_agrees && !has_form_of(bytes, json) {
        check_format(key, version)?;
    }
    match checksum_agrees {
        true => check_format(key, version),
        false => Err(ArchiveError::damaged(key, "its checksum does not agree with it")),
    }
}

/// Returns the heads of all streams, by name.
///
/// # Errors
/// The store fails, or a head is not readable.
pub async fn heads(store: &dyn Store) -> Result<Vec<Head>, ArchiveError> {
    let mut heads = Vec::new();
    for object in list_all(store, layout::HEADS, None).await? {
        if layout::parse_head(&object.key).is_some() {
            let bytes = record(store, &object.key).await?;
            heads.push(Head::from_bytes(&object.key, &bytes)?);
        }
    }
    Ok(heads)
}

/// Returns what the heads would say of streams that have a chain and are not among `heads`: their
/// head was removed, or their first writer was killed before it made one.
///
/// # Errors
/// The store fails, or the last entry of such a chain is not readable.
pub async fn headless(store: &dyn Store, heads: &[Head]) -> Result<Vec<Head>, ArchiveError> {
    let mut found = Vec::new();
    for stream in chained(store).await? {
        if !heads.iter().any(|head| head.stream == stream) {
            found.extend(head_of_chain(store, &stream).await?);
        }
    }
    Ok(found)
}

/// Returns the names of all streams that have a head or a chain.
///
/// # Errors
/// The store fails.
pub async fn streams(store: &dyn Store) -> Result<BTreeSet<StreamName>, ArchiveError> {
    let heads = list_all(store, layout::HEADS, None).await?;
    let mut streams = chained(store).await?;
    streams.extend(heads.iter().filter_map(|object| layout::parse_head(&object.key)));
    Ok(streams)
}

/// Returns the names of the streams that have a chain. One listing for short chains together, one
/// more for each long chain.
async fn chained(store: &dyn Store) -> Result<BTreeSet<StreamName>, ArchiveError> {
    let mut streams = BTreeSet::new();
    let mut after: Option<ObjectKey> = None;
    loop {
        let page = store.list(layout::CHAIN, after.as_ref()).await?;
        let mut last = None;
        for object in &page.objects {
            // Where a stream goes on past this page, the next one begins after it.
            last = Some(object.key.clone());
            if let Some((stream, _)) = layout::parse_chain_entry(&object.key) {
                last = Some(layout::end_of_chain(&stream));
                streams.insert(stream);
            }
        }
        if !page.more || last.is_none() {
            return Ok(streams);
        }
        after = last;
    }
}

/// Returns the head that the end of a chain makes, unless there is a head by now.
async fn head_of_chain(
    store: &dyn Store,
    stream: &StreamName,
) -> Result<Option<Head>, ArchiveError> {
    let entries = list_all(store, &layout::chain_of(stream), None).await?;
    let firsts = entries.iter().rev().map(|object| layout::parse_chain_entry(&object.key));
    let Some((_, first)) = firsts.flatten().next() else { return Ok(None) };
    let Some(end) = entry(store, stream, first).await? else { return Ok(None) };
    if head(store, stream).await?.is_some() {
        return Ok(None);
    }
    Ok(Some(Head {
        stream: stream.clone(),
        last: end.last,
        digest: end.digest,
        segment: end.segment,
        moved_at: Timestamp::EPOCH,
        source_mark: None,
    }))
}

/// Returns the head of a stream, or nothing if it has none yet.
///
/// # Errors
/// The store fails, or the head is not readable.
pub async fn head(store: &dyn Store, stream: &StreamName) -> Result<Option<Head>, ArchiveError> {
    let key = layout::head(stream);
    match get_if_there(store, &key).await? {
        Some(bytes) => Head::from_bytes(&key, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Returns the chain entry at a sequence, or nothing if there is none.
///
/// # Errors
/// The store fails, or the entry is not readable, or that of another place.
pub async fn entry(
    store: &dyn Store,
    stream: &StreamName,
    first: Sequence,
) -> Result<Option<ChainEntry>, ArchiveError> {
    read_entry(store, stream, first, ChainEntry::from_bytes).await
}

/// Returns the entry as [`entry`] does, if it is the very bytes that a writer puts.
///
/// # Errors
/// As [`entry`], or the bytes were changed without changing what they mean.
pub(crate) async fn exact_entry(
    store: &dyn Store,
    stream: &StreamName,
    first: Sequence,
) -> Result<Option<ChainEntry>, ArchiveError> {
    read_entry(store, stream, first, ChainEntry::from_exact_bytes).await
}

async fn read_entry(
    store: &dyn Store,
    stream: &StreamName,
    first: Sequence,
    read: fn(&ObjectKey, &[u8]) -> Result<ChainEntry, ArchiveError>,
) -> Result<Option<ChainEntry>, ArchiveError> {
    let key = layout::chain_entry(stream, first);
    match get_if_there(store, &key).await? {
        Some(bytes) => read(&key, &bytes)?.at(stream, first).map(Some),
        None => Ok(None),
    }
}

/// Returns the bytes of an object that should be small, or nothing if it is not there.
pub(crate) async fn get_if_there(
    store: &dyn Store,
    key: &ObjectKey,
) -> Result<Option<Bytes>, ArchiveError> {
    match record(store, key).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ArchiveError::Store(StoreError::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the bytes of an object that should be small.
pub(crate) async fn record(store: &dyn Store, key: &ObjectKey) -> Result<Bytes, ArchiveError> {
    let bytes = store.get(key, ByteRange::Suffix(RECORD_BYTES_MAX)).await?;
    if bytes.len() as u64 == RECORD_BYTES_MAX {
        return Err(ArchiveError::damaged(key, "it is larger than any chain entry or head"));
    }
    Ok(bytes)
}

/// Returns the segments of a stream that are committed and begin after `after`, in order of
/// sequence, as (object, first sequence).
///
/// Lists chain entries and segments; reads an entry only where two segments begin at the same
/// sequence (a writer was overtaken) or none does. A committed segment that is not there is
/// given with size 0 under the key in its entry, so that opening it names it.
///
/// # Errors
/// The store fails, or an entry that had to be read is not readable.
pub async fn committed(
    store: &dyn Store,
    stream: &StreamName,
    after: Option<Sequence>,
) -> Result<Vec<(ObjectMeta, Sequence)>, ArchiveError> {
    let cursor = after.map(|sequence| layout::chain_entry(stream, sequence));
    let entries = list_placed(store, layout::chain_of(stream), cursor, layout::parse_chain_entry);
    let firsts: Vec<Sequence> = entries.map_ok(|(_, first)| first).try_collect().await?;
    if firsts.is_empty() {
        return Ok(Vec::new());
    }
    let mut segments: BTreeMap<Sequence, Vec<ObjectMeta>> = BTreeMap::new();
    let listed = list_placed(store, layout::segments_of(stream), None, layout::parse_segment);
    let mut listed = pin!(listed);
    while let Some((object, first)) = listed.try_next().await? {
        segments.entry(first).or_default().push(object);
    }
    let mut committed = Vec::with_capacity(firsts.len());
    for first in firsts {
        let mut candidates = segments.remove(&first).unwrap_or_default();
        let object = match (candidates.len(), candidates.pop()) {
            (1, Some(only)) => only,
            (_, last) => {
                let entry = entry(store, stream, first).await?;
                let Some(entry) = entry else { continue };
                let named = candidates.into_iter().chain(last).find(|o| o.key == entry.segment);
                named.unwrap_or(ObjectMeta { key: entry.segment, size: 0 })
            }
        };
        committed.push((object, first));
    }
    Ok(committed)
}

/// Returns all objects under a prefix that come after `after`, in order of their keys.
///
/// # Errors
/// The store fails.
pub async fn list_all(
    store: &dyn Store,
    prefix: &str,
    after: Option<&ObjectKey>,
) -> Result<Vec<ObjectMeta>, ArchiveError> {
    list(store, prefix.to_owned(), after.cloned()).try_collect().await
}

/// Lists the objects under a prefix that come after `after`, in order of their keys, and holds one
/// page of them at a time; ends after an error of the store.
pub(crate) fn list(
    store: &dyn Store,
    prefix: String,
    after: Option<ObjectKey>,
) -> impl Stream<Item = Result<ObjectMeta, ArchiveError>> {
    let pages = stream::try_unfold(Some((prefix, after)), move |place| async move {
        let Some((prefix, after)) = place else { return Ok::<_, ArchiveError>(None) };
        let page = store.list(&prefix, after.as_ref()).await?;
        let last = page.objects.last().map(|object| object.key.clone());
        let place = last.filter(|_| page.more).map(|last| (prefix, Some(last)));
        Ok(Some((stream::iter(page.objects.into_iter().map(Ok)), place)))
    });
    pages.try_flatten()
}

/// As [`list`], but only what `place` knows, and each with its first sequence.
pub(crate) fn list_placed(
    store: &dyn Store,
    prefix: String,
    after: Option<ObjectKey>,
    place: fn(&ObjectKey) -> Option<(StreamName, Sequence)>,
) -> impl Stream<Item = Result<(ObjectMeta, Sequence), ArchiveError>> {
    list(store, prefix, after).try_filter_map(move |object| async move {
        Ok(place(&object.key).map(|(_, first)| (object, first)))
    })
}

#[cfg(test)]
mod tests;
