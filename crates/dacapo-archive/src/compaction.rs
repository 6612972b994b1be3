//! What compaction leaves behind: which segments an output was made of, which repeats it dropped,
//! and the write-once entries that make outputs part of the archive.
//!
//! The outputs of a stream are a second, coarser chain over the same sequences. They cover a
//! prefix of the stream without a hole: each entry begins where the one before ends, so that two
//! compactors contend for one write-once key, as two writers do. Only reading is here; making
//! outputs and deleting inputs is [`crate::compact`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{Digest, Sequence, StreamName, Timestamp};
use serde::{Deserialize, Serialize};

use crate::chain::{self, ChainEntry, ChainEntryJson};
use crate::store::{ObjectKey, Store};
use crate::{ArchiveError, Segment, layout};

/// The most segments in one output: their list in its footer, which every reader fetches, stays
/// near 130 KB.
pub(crate) const INPUTS_MAX: usize = 1_000;

/// The most repeats that one output leaves out, for the list in its footer: 600 KB. More stay.
pub(crate) const DROPPED_MAX: usize = 10_000;

/// How an output came to be; kept in its footer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compaction {
    /// The segments that it was made of, in order of sequence and without a hole.
    pub inputs: Vec<Input>,
    /// The exact repeats that were left out, in order of sequence.
    pub dropped: Vec<Repeat>,
}

/// A segment that went into an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its first sequence.
    pub first: Sequence,
    /// Its last sequence.
    pub last: Sequence,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its digest.
    #[serde(with = "digest_text")]
    pub digest: Digest,
    /// The hour that it was filed under; its date is that of the output. Outputs of before it was
    /// kept have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour: Option<u8>,
}

/// An event that is not in an output, because the same event is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// The sequence of the event that was left out.
    pub sequence: Sequence,
    /// The sequence of the event that has the same id and the same content, and stayed.
    pub repeat_of: Sequence,
}

/// Makes an output part of the archive, in the place of the segments that it was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactionEntry {
    /// The output; its `previous` is the digest of the stream's output before it. A segment that
    /// was large enough is its own output.
    pub output: ChainEntry,
    /// When the output was made: its inputs stay for a grace period after that.
    pub compacted_at: Timestamp,
}

#[derive(Clone, Serialize, Deserialize)]
struct CompactionEntryJson {
    #[serde(flatten)]
    output: ChainEntryJson,
    compacted_at: String,
    checksum: String,
}

impl CompactionEntryJson {
    /// Returns the CRC-32 of the object with an empty checksum: nothing else confirms when its
    /// inputs may go.
    fn computed_checksum(&self) -> String {
        let without = CompactionEntryJson { checksum: String::new(), ..self.clone() };
        format!("{:08x}", crc32fast::hash(&chain::to_json(&without)))
    }
}

mod digest_text {
    use super::Digest;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl Input {
    /// Returns what an output says of this segment, once it is one of its inputs.
    pub(crate) fn of(entry: &ChainEntry) -> Self {
        Input {
            first: entry.first,
            last: entry.last,
            bytes: entry.size,
            digest: entry.digest,
            hour: layout::hour_of(&entry.segment),
        }
    }

    /// Returns the key that it had as an input of this output; nothing if that is not known.
    pub(crate) fn key_within(&self, output: &ChainEntry) -> Option<ObjectKey> {
        match self.hour {
            Some(hour) => layout::input_of(&output.segment, hour, self.first),
            None if self.first == output.first => layout::first_input_of(&output.segment),
            None => None,
        }
    }

    /// Returns whether this chain entry is its own, as an input of this output, as far as the
    /// output tells: of what was before it, nothing.
    pub(crate) fn is_of(&self, entry: &ChainEntry, output: &ChainEntry) -> bool {
        let is_in_place = match self.key_within(output) {
            Some(key) => entry.segment == key,
            None => {
                let stream = layout::stream_of(&output.segment);
                stream.is_some_and(|stream| {
                    layout::parse_segment(&entry.segment) == Some((stream, self.first))
                })
            }
        };
        let said = (entry.first, entry.last, entry.size, entry.digest);
        said == (self.first, self.last, self.bytes, self.digest) && is_in_place
    }
}

impl Compaction {
    /// Returns what is wrong with it as that of an output over these sequences.
    pub(crate) fn problem(&self, first: Sequence, last: Sequence) -> Option<&'static str> {
        let mut next = Some(first);
        for input in &self.inputs {
            if Some(input.first) != next || input.last < input.first {
                return Some("its inputs do not follow each other");
            }
            next = input.last.checked_add(1);
            if input.hour.is_some_and(|hour| hour >= layout::HOURS) {
                return Some("its inputs were filed under an hour that no day has");
            }
        }
        if self.inputs.last().is_none_or(|input| input.last != last) {
            return Some("its inputs are not its sequences");
        }
        let rising = self.dropped.windows(2).all(|pair| pair[0].sequence < pair[1].sequence);
        let within = |repeat: &Repeat| {
            first <= repeat.repeat_of
                && repeat.repeat_of < repeat.sequence
                && repeat.sequence <= last
                && !self.has_dropped(repeat.repeat_of)
        };
        match rising && self.dropped.iter().all(within) {
            true => None,
            false => Some("the repeats that it dropped cannot be right"),
        }
    }

    /// Returns whether the event of this sequence was left out.
    pub fn has_dropped(&self, sequence: Sequence) -> bool {
        self.repeat_of(sequence).is_some()
    }

    /// Returns the sequence of the event that stayed, if that of this sequence was left out.
    pub fn repeat_of(&self, sequence: Sequence) -> Option<Sequence> {
        let at = self.dropped.binary_search_by_key(&sequence, |repeat| repeat.sequence).ok()?;
        Some(self.dropped[at].repeat_of)
    }

    /// Returns the input that begins with this sequence.
    pub fn input(&self, first: Sequence) -> Option<&Input> {
        let at = self.inputs.binary_search_by_key(&first, |input| input.first).ok()?;
        Some(&self.inputs[at])
    }
}

/// Returns the sequence of a row of an output that begins with `first`.
pub(crate) fn sequence_of(dropped: &[Repeat], first: Sequence, row: u64) -> Sequence {
    // Up to the n-th one dropped there are so many rows; the sum only rises.
    let rows_before = |at: usize| dropped[at].sequence - first - at as u64;
    let (mut low, mut high) = (0, dropped.len());
    while low < high {
        let middle = low.midpoint(high);
        match rows_before(middle) <= row {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    first.saturating_add(row).saturating_add(low as u64)
}

/// Returns how many rows of an output that begins with `first` come before this sequence.
pub(crate) fn rows_before(dropped: &[Repeat], first: Sequence, sequence: Sequence) -> u64 {
    let gone = dropped.partition_point(|repeat| repeat.sequence < sequence);
    sequence.saturating_sub(first).saturating_sub(gone as u64)
}

impl CompactionEntry {
    pub(crate) fn to_bytes(&self) -> Bytes {
        let mut json = CompactionEntryJson {
            output: self.output.to_json(),
            compacted_at: self.compacted_at.to_string(),
            checksum: String::new(),
        };
        json.checksum = json.computed_checksum();
        chain::to_json(&json)
    }

    /// Returns the entry that these bytes are, if they are the very bytes that a compaction puts.
    ///
    /// # Errors
    /// They are not an entry, or one of a newer format, or were changed without changing what
    /// they mean.
    pub(crate) fn from_exact_bytes(key: &ObjectKey, bytes: &[u8]) -> Result<Self, ArchiveError> {
        let entry = Self::from_bytes(key, bytes)?;
        chain::check_exact(key, bytes, &chain::from_json::<CompactionEntryJson>(key, bytes)?)?;
        Ok(entry)
    }

    fn from_bytes(key: &ObjectKey, bytes: &[u8]) -> Result<Self, ArchiveError> {
        let json: CompactionEntryJson = chain::from_json(key, bytes)?;
        let agrees = json.checksum == json.computed_checksum();
        chain::check_guarded(key, bytes, &json, json.output.format, agrees)?;
        Ok(CompactionEntry {
            output: ChainEntry::from_json(key, json.output)?,
            compacted_at: json
                .compacted_at
                .parse()
                .map_err(|_| ArchiveError::damaged(key, "its `compacted_at` is not readable"))?,
        })
    }

    /// Returns this entry if it is that of an output of this stream that begins at `first`.
    ///
    /// # Errors
    /// As [`ChainEntry::at`].
    pub(crate) fn at(self, stream: &StreamName, first: Sequence) -> Result<Self, ArchiveError> {
        let key = layout::compaction_entry(stream, first);
        let output = &self.output;
        output.check_begins(&key, first)?;
        let is_named = self.is_taken_over() || layout::is_named_by(&output.segment, &output.digest);
        let place = layout::parse_any_segment(&output.segment);
        if !is_named || place.is_none_or(|place| place != (stream.clone(), first)) {
            return Err(output.names_nothing(&key));
        }
        Ok(self)
    }

    /// Returns whether the output is one of the stream's own segments, which was large enough.
    pub fn is_taken_over(&self) -> bool {
        layout::parse_segment(&self.output.segment).is_some()
    }
}

/// Returns the compaction entry at a sequence, or nothing if there is none.
///
/// # Errors
/// The store fails, or the entry is not readable, or that of another place.
pub async fn entry(
    store: &dyn Store,
    stream: &StreamName,
    first: Sequence,
) -> Result<Option<CompactionEntry>, ArchiveError> {
    read_entry(store, stream, first, CompactionEntry::from_bytes).await
}

/// Returns the entry as [`entry`] does, if it is the very bytes that a compaction puts.
///
/// # Errors
/// As [`entry`], or the bytes were changed without changing what they mean.
pub(crate) async fn exact_entry(
    store: &dyn Store,
    stream: &StreamName,
    first: Sequence,
) -> Result<Option<CompactionEntry>, ArchiveError> {
    read_entry(store, stream, first, CompactionEntry::from_exact_bytes).await
}

async fn read_entry(
    store: &dyn Store,
    stream: &StreamName,
    first: Sequence,
    read: fn(&ObjectKey, &[u8]) -> Result<CompactionEntry, ArchiveError>,
) -> Result<Option<CompactionEntry>, ArchiveError> {
    let key = layout::compaction_entry(stream, first);
    match chain::get_if_there(store, &key).await? {
        Some(bytes) => read(&key, &bytes)?.at(stream, first).map(Some),
        None => Ok(None),
    }
}

/// Returns the first sequences of all compaction entries of a stream, rising.
///
/// # Errors
/// The store fails.
pub async fn entries_of(
    store: &dyn Store,
    stream: &StreamName,
) -> Result<Vec<Sequence>, ArchiveError> {
    let objects = chain::list_all(store, &layout::compactions_of(stream), None).await?;
    let first = |key: &ObjectKey| Some(layout::parse_compaction_entry(key)?.1);
    Ok(objects.iter().filter_map(|object| first(&object.key)).collect())
}

/// Returns the first sequences of the compaction entries of all streams, rising. Of a stream with
/// many, those before `known` of it may be left out. One listing while there are not many.
///
/// # Errors
/// The store fails.
pub async fn entries(
    store: &dyn Store,
    known: impl Fn(&StreamName) -> Option<Sequence>,
) -> Result<BTreeMap<StreamName, Vec<Sequence>>, ArchiveError> {
    let mut found: BTreeMap<StreamName, Vec<Sequence>> = BTreeMap::new();
    let mut after: Option<ObjectKey> = None;
    loop {
        let page = store.list(layout::COMPACTIONS, after.as_ref()).await?;
        let mut next = None;
        for object in page.objects {
            if let Some((stream, first)) = layout::parse_compaction_entry(&object.key) {
                let before = known(&stream).and_then(|known| known.checked_sub(1));
                let skip_to = before.filter(|before| *before > first);
                next = skip_to.map(|before| layout::compaction_entry(&stream, before));
                found.entry(stream).or_default().push(first);
            } else {
                next = None;
            }
            next = next.or(Some(object.key));
        }
        if !page.more || next.is_none() {
            return Ok(found);
        }
        after = next;
    }
}

/// Returns the output that holds the events of a segment now, and what it says of that segment;
/// nothing if there is none, or if it was made of another segment.
///
/// # Errors
/// The store fails, or the entry or the output is damaged.
pub async fn successor(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    first: Sequence,
    digest: &Digest,
) -> Result<Option<(Segment, Input)>, ArchiveError> {
    let entries = entries_of(&**store, stream).await?;
    let covering = entries.partition_point(|entry| *entry <= first).checked_sub(1);
    let Some(at) = covering else { return Ok(None) };
    let found = output(store, stream, entries[at], first).await?;
    let Some(segment) = found else { return Ok(None) };
    let input = segment.compaction().and_then(|compaction| compaction.input(first)).copied();
    Ok(input.filter(|input| input.digest == *digest).map(|input| (segment, input)))
}

/// Opens the output of a compaction entry; nothing if there is no entry, the output ends before
/// `sequence`, or it is one of the stream's own segments.
async fn output(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    first: Sequence,
    sequence: Sequence,
) -> Result<Option<Segment>, ArchiveError> {
    let Some(entry) = entry(&**store, stream, first).await? else { return Ok(None) };
    if entry.output.last < sequence || entry.is_taken_over() {
        return Ok(None);
    }
    let output = &entry.output;
    let segment = Segment::open(Arc::clone(store), &output.segment, Some(output.size)).await?;
    if ChainEntry::of(segment.summary()) != *output {
        return Err(ArchiveError::damaged(
            &output.segment,
            "its footer and its compaction entry contradict each other",
        ));
    }
    Ok(Some(segment))
}

/// Returns of which event each of these is an exact repeat that compaction left out, if it is one.
///
/// # Errors
/// As [`successor`].
pub async fn repeats(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    sequences: &BTreeSet<Sequence>,
) -> Result<BTreeMap<Sequence, Sequence>, ArchiveError> {
    let mut repeats = BTreeMap::new();
    let entries = entries_of(&**store, stream).await?;
    let mut left = sequences.iter().peekable();
    while let Some(sequence) = left.peek() {
        let after = entries.partition_point(|entry| entry <= sequence);
        // Those before the next entry are of one output.
        let within = |sequence: &&Sequence| entries.get(after).is_none_or(|next| *sequence < next);
        let sequences: Vec<Sequence> =
            std::iter::from_fn(|| left.next_if(within)).copied().collect();
        let Some(at) = after.checked_sub(1) else { continue };
        let Some(first) = sequences.first() else { continue };
        let Some(segment) = output(store, stream, entries[at], *first).await? else { continue };
        let Some(compaction) = segment.compaction() else { continue };
        let repeat_of = |sequence: &Sequence| Some((*sequence, compaction.repeat_of(*sequence)?));
        repeats.extend(sequences.iter().filter_map(repeat_of));
    }
    Ok(repeats)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_and_sequences_are_told_from_each_other(
            first in 1_u64..50,
            count in 1_u64..40,
            dropped in proptest::collection::btree_set(1_u64..40, 0..30),
        ) {
            let dropped: Vec<Repeat> = dropped
                .into_iter()
                .filter(|offset| *offset < count)
                .map(|offset| Repeat { sequence: first + offset, repeat_of: first })
                .collect();
            let gone: Vec<Sequence> = dropped.iter().map(|repeat| repeat.sequence).collect();
            let rows: Vec<Sequence> =
                (first..first + count).filter(|sequence| !gone.contains(sequence)).collect();
            for (row, sequence) in rows.iter().enumerate() {
                prop_assert_eq!(sequence_of(&dropped, first, row as u64), *sequence);
            }
            for sequence in 0..first + count + 2 {
                let expected = rows.iter().filter(|row| **row < sequence).count() as u64;
                // Past the end there are no more rows, whatever the number says.
                let found = rows_before(&dropped, first, sequence).min(rows.len() as u64);
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_list_of_inputs_or_repeats_that_cannot_be_right_is_refused() {
        let input =
            |first, last| Input { first, last, bytes: 9, digest: Digest::of(b"x"), hour: None };
        let repeat = |sequence, repeat_of| Repeat { sequence, repeat_of };
        let check = |inputs: &[Input], dropped: &[Repeat], sound: bool| {
            let compaction = Compaction { inputs: inputs.to_vec(), dropped: dropped.to_vec() };
            assert_eq!(compaction.problem(5, 9).is_none(), sound, "{compaction:?}");
        };
        let whole = [input(5, 7), input(8, 9)];
        check(&whole, &[], true);
        check(&whole, &[repeat(6, 5), repeat(9, 5)], true);
        check(&[], &[], false);
        check(&whole[1..], &[], false);
        check(&whole[..1], &[], false);
        check(&[input(5, 7), input(7, 9)], &[], false);
        check(&[input(5, 4), input(5, 9)], &[], false);
        check(&[Input { hour: Some(23), ..input(5, 9) }], &[], true);
        check(&[Input { hour: Some(24), ..input(5, 9) }], &[], false);
        check(&whole, &[repeat(5, 5)], false);
        check(&whole, &[repeat(6, 4)], false);
        check(&whole, &[repeat(10, 5)], false);
        check(&whole, &[repeat(7, 5), repeat(6, 5)], false);
        check(&whole, &[repeat(6, 5), repeat(7, 6)], false);
    }
}
