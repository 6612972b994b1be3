//! The footer's key-value metadata: a [`SegmentSummary`] as text, and the digest of the
//! object within the object itself.
//!
//! The digest is SHA-256 of the whole object with the 64 digits of the digest zeroed
//! (ASCII `0`). It is the last key-value pair, and what follows it in the footer
//! is fixed text, so its place is after the last occurrence of its key in the object
//! whatever names the events bring along.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use parquet::file::metadata::KeyValue;
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::compaction::{Compaction, DROPPED_MAX, INPUTS_MAX, Input, Repeat};
use crate::store::ObjectKey;
use crate::summary::{SegmentSummary, Tally};
use crate::{ArchiveError, FORMAT_VERSION, chain};
use dacapo_event::{Digest, Hasher, Timestamp};

/// The version of a segment as its writer makes it, which every reader knows.
const SEGMENT_VERSION: u32 = 1;

const DIGEST_KEY: &str = "dacapo.digest";
const DIGEST_DIGITS: usize = 64;
/// Between the key and its value Thrift's compact protocol puts a field header and a length.
const DIGEST_GAP: usize = 2;

/// Returns the pairs of a footer, the digest last and zeroed.
pub(crate) fn encode(summary: &SegmentSummary, compaction: Option<&Compaction>) -> Vec<KeyValue> {
    let pair = |key: &str, value: String| KeyValue::new(format!("dacapo.{key}"), value);
    // What only a reader of outputs understands is refused by older ones, by its version.
    let version = if compaction.is_some() { FORMAT_VERSION } else { SEGMENT_VERSION };
    let mut pairs = vec![
        pair("format", version.to_string()),
        pair("stream", summary.stream.to_string()),
        pair("first_sequence", summary.first.to_string()),
        pair("last_sequence", summary.last.to_string()),
        pair("time_min_us", summary.time_min.as_micros().to_string()),
        pair("time_max_us", summary.time_max.as_micros().to_string()),
        pair("archived_min_us", summary.archived_min.as_micros().to_string()),
        pair("archived_max_us", summary.archived_max.as_micros().to_string()),
        pair("body_bytes", summary.body_bytes.to_string()),
        pair("by_type", encode_tally(&summary.by_type)),
        pair("by_routing_key", encode_tally(&summary.by_routing_key)),
        pair("by_exchange", encode_tally(&summary.by_exchange)),
    ];
    pairs.extend(summary.previous.map(|digest| pair("previous", digest.to_string())));
    pairs.extend(summary.source_mark.map(|digest| pair("source_mark", digest.to_string())));
    if let Some(compaction) = compaction {
        pairs.push(pair("inputs", json!(compaction.inputs).to_string()));
        pairs.push(pair("dropped", json!(compaction.dropped).to_string()));
    }
    pairs.push(KeyValue::new(DIGEST_KEY.to_owned(), "0".repeat(DIGEST_DIGITS)));
    pairs
}

/// Returns what the pairs of the object's footer mean: the summary, and for an output of compaction
/// how it was made.
///
/// # Errors
/// A pair is missing, not readable or longer than a writer makes it, or the format is newer than this code.
pub(crate) fn decode(
    key: &ObjectKey,
    size: u64,
    pairs: &[KeyValue],
) -> Result<(SegmentSummary, Option<Compaction>), ArchiveError> {
    let fields = Fields { key, pairs };
    let version: u32 = fields.parse("format")?;
    if version > FORMAT_VERSION {
        return Err(ArchiveError::NewerFormat {
            key: key.to_string(),
            version,
            supported: FORMAT_VERSION,
        });
    }
    let time = |name: &str| fields.parse(name).map(Timestamp::from_micros);
    let compaction = match fields.json_if_there("inputs")? {
        None => None,
        Some(AtMost::<Input, INPUTS_MAX>(inputs)) => {
            let dropped = fields.json_if_there("dropped")?;
            let AtMost::<Repeat, DROPPED_MAX>(dropped) =
                dropped.ok_or_else(|| fields.damaged("dropped"))?;
            Some(Compaction { inputs, dropped })
        }
    };
    let summary = SegmentSummary {
        key: key.clone(),
        size,
        stream: fields.parse("stream")?,
        first: fields.parse("first_sequence")?,
        last: fields.parse("last_sequence")?,
        dropped: compaction.as_ref().map_or(0, |compaction| compaction.dropped.len() as u64),
        time_min: time("time_min_us")?,
        time_max: time("time_max_us")?,
        archived_min: time("archived_min_us")?,
        archived_max: time("archived_max_us")?,
        body_bytes: fields.parse("body_bytes")?,
        by_type: fields.tally("by_type")?,
        by_routing_key: fields.tally("by_routing_key")?,
        by_exchange: fields.tally("by_exchange")?,
        digest: fields.parse("digest")?,
        previous: fields.parse_if_there("previous")?,
        source_mark: fields.parse_if_there("source_mark")?,
    };
    if summary.first == 0 || summary.last < summary.first || chain::sequence(summary.last).is_none()
    {
        return Err(fields.damaged("first_sequence"));
    }
    let problem = compaction.as_ref().and_then(|made| made.problem(summary.first, summary.last));
    if let Some(problem) = problem {
        return Err(ArchiveError::damaged(key, problem));
    }
    Ok((summary, compaction))
}

struct Fields<'a> {
    key: &'a ObjectKey,
    pairs: &'a [KeyValue],
}

impl Fields<'_> {
    fn damaged(&self, name: &str) -> ArchiveError {
        ArchiveError::damaged(
            self.key,
            format!("`dacapo.{name}` in its footer is missing or not readable"),
        )
    }

    fn find(&self, name: &str) -> Option<&str> {
        let of_name = |pair: &&KeyValue| pair.key.strip_prefix("dacapo.") == Some(name);
        self.pairs.iter().find(of_name)?.value.as_deref()
    }

    fn parse<T: std::str::FromStr>(&self, name: &str) -> Result<T, ArchiveError> {
        self.parse_if_there(name)?.ok_or_else(|| self.damaged(name))
    }

    fn parse_if_there<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ArchiveError> {
        self.find(name).map(|text| text.parse().map_err(|_| self.damaged(name))).transpose()
    }

    fn json_if_there<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ArchiveError> {
        let decode = |text| serde_json::from_str(text).map_err(|_| self.damaged(name));
        self.find(name).map(decode).transpose()
    }

    fn tally(&self, name: &str) -> Result<Tally, ArchiveError> {
        let TallyJson { counts: Counts(counts), other } =
            self.json_if_there(name)?.ok_or_else(|| self.damaged(name))?;
        Ok(Tally { counts, other })
    }
}

/// A tally as it is in a footer.
#[derive(Deserialize)]
struct TallyJson {
    counts: Counts,
    other: u64,
}

/// Counts by a text, of which no more are taken than a writer tells apart: a footer has room for a
/// million.
struct Counts(BTreeMap<String, u64>);

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit;

        impl<'de> Visitor<'de> for Visit {
            type Value = Counts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("at most 1,000 counts by texts of at most 1,024 bytes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Counts, A::Error> {
                let mut counts = BTreeMap::new();
                while let Some((text, count)) = map.next_entry::<String, u64>()? {
                    if text.len() > Tally::TEXT_BYTES_MAX || counts.len() == Tally::DISTINCT_MAX {
                        return Err(A::Error::custom("more than a writer tells apart"));
                    }
                    counts.insert(text, count);
                }
                Ok(Counts(counts))
            }
        }

        from.deserialize_map(Visit)
    }
}

/// A list of at most `MAX` elements.
struct AtMost<T, const MAX: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for AtMost<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visit<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Visit<T, MAX> {
            type Value = AtMost<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = list.next_element()? {
                    if elements.len() == MAX {
                        return Err(A::Error::custom("more than a writer puts there"));
                    }
                    elements.push(element);
                }
                Ok(AtMost(elements))
            }
        }

        from.deserialize_seq(Visit(PhantomData))
    }
}

fn encode_tally(tally: &Tally) -> String {
    json!({ "counts": tally.counts, "other": tally.other }).to_string()
}

/// Computes the digest of a finished object whose digest is still zeroed, writes it into its
/// place, and returns it.
///
/// # Panics
/// The object was not written with [`encode`].
pub(crate) fn seal(object: &mut [u8]) -> Digest {
    let place = digest_place(object).expect("the footer was just written with a digest");
    let digest = Digest::of(object);
    object[place..place + DIGEST_DIGITS].copy_from_slice(digest.to_string().as_bytes());
    digest
}

/// Bytes at the end of an object that hold its digest: what follows the digest in a footer is fixed
/// text of some 200 bytes.
pub(crate) const DIGEST_TAIL_BYTES: usize = 4 * 1024;

/// Computes the digest that an object should have from its bytes, piece by piece, so that no more
/// than a piece has to be held.
pub(crate) struct ObjectHasher {
    hasher: Hasher,
    /// Where the next piece begins.
    offset: u64,
    /// Where the digits begin.
    place: u64,
}

impl ObjectHasher {
    /// Begins with the end of an object of `size` bytes: its last [`DIGEST_TAIL_BYTES`], or all of
    /// it. Returns nothing if there is no place for a digest in it.
    pub(crate) fn new(size: u64, tail: &[u8]) -> Option<Self> {
        let tail_start = size.checked_sub(tail.len() as u64)?;
        let place = tail_start + digest_place(tail)? as u64;
        Some(ObjectHasher { hasher: Hasher::default(), offset: 0, place })
    }

    /// Takes the next piece, in order from the first byte.
    pub(crate) fn update(&mut self, piece: &[u8]) {
        let end = self.offset + piece.len() as u64;
        let within = |at: u64| {
            usize::try_from(at.clamp(self.offset, end) - self.offset).expect("within the piece")
        };
        let (from, to) = (within(self.place), within(self.place + DIGEST_DIGITS as u64));
        self.hasher.update(&piece[..from]);
        self.hasher.update(&[b'0'; DIGEST_DIGITS][..to - from]);
        self.hasher.update(&piece[to..]);
        self.offset = end;
    }

    /// Returns the digest of all that was taken.
    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

/// Returns the digest that an object should have, or nothing if there is no place for one in it.
pub(crate) fn digest_of(object: &[u8]) -> Option<Digest> {
    let tail = &object[object.len().saturating_sub(DIGEST_TAIL_BYTES)..];
    let mut hasher = ObjectHasher::new(object.len() as u64, tail)?;
    hasher.update(object);
    Some(hasher.finish())
}

fn digest_place(object: &[u8]) -> Option<usize> {
    let key = DIGEST_KEY.as_bytes();
    let place =
        object.windows(key.len()).rposition(|window| window == key)? + key.len() + DIGEST_GAP;
    let digits = object.get(place..place + DIGEST_DIGITS)?;
    digits.iter().all(u8::is_ascii_hexdigit).then_some(place)
}
