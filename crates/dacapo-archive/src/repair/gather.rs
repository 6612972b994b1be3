//! Reads what there is of one stream, before anything is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{Digest, Sequence, StreamName, Timestamp};
use futures::{StreamExt, TryStreamExt, stream};

use super::outputs::{self, ListedOutput, Output};
use super::proof::{self, Listed};
use crate::chain::{self, ChainEntry, Head};
use crate::compaction::{Compaction, CompactionEntry};
use crate::store::{ByteRange, ObjectKey, Store, StoreError};
use crate::verify::digest_of;
use crate::{ArchiveError, Segment, SegmentSummary, layout};

/// Entries and footers asked for at once: hides a store's latency.
const READS_AT_ONCE: usize = 8;

/// A small object as it was found.
#[derive(Debug)]
pub(super) enum Found<T> {
    Sound(T),
    Damaged,
}

/// What only a segment tells of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) times: Times,
    pub(super) source_mark: Option<Digest>,
}

/// Earliest and latest time of a segment's events.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) min: Timestamp,
    pub(super) max: Timestamp,
}

/// Everything known of one stream.
#[derive(Default)]
pub(super) struct Known {
    /// The head's bytes, and what they mean.
    pub(super) head: Option<(Bytes, Found<Head>)>,
    /// The bytes of the chain entries, by the sequence in their key.
    pub(super) entry_bytes: BTreeMap<Sequence, Bytes>,
    pub(super) entries: BTreeMap<Sequence, Listed>,
    /// The segments that are there.
    pub(super) segments: BTreeSet<ObjectKey>,
    /// Those whose footer says what their entry does.
    agreeing: BTreeSet<ObjectKey>,
    /// What entries of sound segments would say, of those that no confirmed entry names.
    orphans: Vec<ChainEntry>,
    /// Of segments whose footer is right, by digest; and of the last input of each output.
    pub(super) facts: BTreeMap<Digest, Facts>,
    /// The bytes of the compaction entries, by the sequence in their key.
    pub(super) output_bytes: BTreeMap<Sequence, Bytes>,
    listed_outputs: BTreeMap<Sequence, ListedOutput>,
    outputs: Vec<Output>,
    /// Of outputs, by first sequence.
    pub(super) output_times: BTreeMap<Sequence, Times>,
    /// What whole outputs tell of the chain entries of their inputs.
    recorded: Vec<ChainEntry>,
    /// Where outputs end that took the place of segments.
    merged: Vec<(Sequence, Digest)>,
}

impl Known {
    /// Reads head, entries and footers of a stream, and whole segments and outputs where no entry
    /// agrees with them.
    ///
    /// The head is read first, chain entries later, and outputs after these: what a running writer
    /// adds between makes the end of the chain later than the head says, never earlier, and what a
    /// running compaction deletes between is in an output. `judged` is called for each object but
    /// the head.
    ///
    /// # Errors
    /// The store fails, or there is an object of a newer format.
    pub(super) async fn gather(
        store: &Arc<dyn Store>,
        name: &StreamName,
        judged: &mut impl FnMut(),
    ) -> Result<Self, ArchiveError> {
        let mut known = Known::default();
        known.read_head(&**store, name).await?;
        known.read_chain(store, name, judged).await?;
        known.read_outputs(store, name, judged).await?;
        known.examine_segments(store, name, judged).await?;
        known.take_what_outputs_tell(store).await?;
        Ok(known)
    }

    /// Reads those segments as a whole that no entry agrees with, one at a time.
    async fn examine_segments(
        &mut self,
        store: &Arc<dyn Store>,
        name: &StreamName,
        judged: &mut impl FnMut(),
    ) -> Result<(), ArchiveError> {
        for key in &self.segments {
            if !self.agreeing.contains(key)
                && let Some(segment) = examine(store, name, key).await?
            {
                let summary = segment.summary();
                self.facts.insert(summary.digest, facts_of(summary));
                self.orphans.push(ChainEntry::of(summary));
            }
            judged();
        }
        Ok(())
    }

    async fn read_head(
        &mut self,
        store: &dyn Store,
        name: &StreamName,
    ) -> Result<(), ArchiveError> {
        let key = layout::head(name);
        if let Some(bytes) = chain::get_if_there(store, &key).await? {
            let found = match readable(Head::from_exact_bytes(&key, &bytes))? {
                Some(head) if head.stream == *name => Found::Sound(head),
                _ => Found::Damaged,
            };
            self.head = Some((bytes, found));
        }
        Ok(())
    }

    async fn read_chain(
        &mut self,
        store: &Arc<dyn Store>,
        name: &StreamName,
        judged: &mut impl FnMut(),
    ) -> Result<(), ArchiveError> {
        let segments = chain::list_all(&**store, &layout::segments_of(name), None).await?;
        let sizes: BTreeMap<ObjectKey, u64> =
            segments.into_iter().map(|object| (object.key, object.size)).collect();
        let listed = chain::list_all(&**store, &layout::chain_of(name), None).await?;
        let firsts = listed.iter().filter_map(|object| layout::parse_chain_entry(&object.key));
        let mut entries = stream::iter(firsts)
            .map(|(_, first)| read_entry(store, name, first, &sizes))
            .buffered(READS_AT_ONCE);
        while let Some((first, bytes, listed, facts)) = entries.try_next().await? {
            judged();
            if let (Some(entry), Some(facts)) = (&listed.entry, facts) {
                self.facts.insert(entry.digest, facts);
                self.agreeing.insert(entry.segment.clone());
            }
            self.entry_bytes.insert(first, bytes);
            self.entries.insert(first, listed);
        }
        drop(entries);
        self.segments = sizes.into_keys().collect();
        Ok(())
    }

    async fn read_outputs(
        &mut self,
        store: &Arc<dyn Store>,
        name: &StreamName,
        judged: &mut impl FnMut(),
    ) -> Result<(), ArchiveError> {
        let listed = chain::list_all(&**store, &layout::compactions_of(name), None).await?;
        let firsts = listed.iter().filter_map(|object| layout::parse_compaction_entry(&object.key));
        let mut entries = stream::iter(firsts)
            .map(|(_, first)| read_compaction_entry(store, name, first))
            .buffered(READS_AT_ONCE);
        let mut named = BTreeSet::new();
        while let Some((first, bytes, listed, output)) = entries.try_next().await? {
            judged();
            self.output_bytes.insert(first, bytes);
            self.listed_outputs.insert(first, listed);
            if let Some((output, facts)) = output {
                named.insert(output.entry.segment.clone());
                self.add(output, facts);
            }
        }
        drop(entries);
        for object in chain::list_all(&**store, &layout::compacted_of(name), None).await? {
            if !named.contains(&object.key)
                && let Some(segment) = examine(store, name, &object.key).await?
            {
                let facts = facts_of(segment.summary());
                let output = Output::of(&segment).map(|output| Output { is_whole: true, ..output });
                output.into_iter().for_each(|output| self.add(output, facts));
            }
            judged();
        }
        Ok(())
    }

    fn add(&mut self, output: Output, facts: Facts) {
        self.output_times.insert(output.entry.first, facts.times);
        // An output has the mark of its last input.
        if let Some(last_input) = output.last_input() {
            self.facts.entry(last_input).or_insert(facts);
        }
        self.outputs.push(output);
    }

    /// Confirms entries by what outputs tell of them; what they tell otherwise counts if the output
    /// is sound as a whole.
    async fn take_what_outputs_tell(&mut self, store: &Arc<dyn Store>) -> Result<(), ArchiveError> {
        let entries = self.entries.values().filter_map(|listed| listed.entry.as_ref());
        let ends = entries.chain(&self.orphans).map(|entry| (entry.last, entry.digest)).collect();
        let recorded = outputs::recorded(&self.outputs, &ends);
        for told in &recorded {
            match self.entries.get_mut(&told.entry.first) {
                Some(listed) if listed.entry.as_ref() == Some(&told.entry) => {
                    listed.confirmed = true;
                }
                _ => {
                    let output = &mut self.outputs[told.by];
                    let ChainEntry { segment, size, digest, .. } = &output.entry;
                    output.is_whole =
                        output.is_whole || has_digest(store, segment, *size, digest).await?;
                }
            }
        }
        let of_whole = recorded.into_iter().filter(|told| self.outputs[told.by].is_whole);
        self.recorded = of_whole.map(|told| told.entry).collect();
        let by_digest: BTreeMap<Digest, &Output> =
            self.outputs.iter().map(|output| (output.entry.digest, output)).collect();
        for listed in self.listed_outputs.values() {
            let Some(entry) = &listed.entry else { continue };
            let output = by_digest.get(&entry.digest).filter(|output| output.entry == *entry);
            let is_itself = layout::parse_segment(&entry.segment).is_some();
            let last = output.and_then(|output| output.last_input());
            let last = last.or(is_itself.then_some(entry.digest));
            self.merged.extend(last.map(|digest| (entry.last, digest)));
        }
        Ok(())
    }

    pub(super) fn sound_head(&self) -> Option<&Head> {
        match &self.head {
            Some((_, Found::Sound(head))) => Some(head),
            _ => None,
        }
    }

    pub(super) fn chain(&self) -> proof::Evidence<'_> {
        let head = self.sound_head().map(|head| (head.last, head.digest));
        let named = match &self.head {
            Some((bytes, Found::Damaged)) => Legible::of(bytes).digest,
            _ => None,
        };
        proof::Evidence {
            head,
            named,
            entries: &self.entries,
            orphans: &self.orphans,
            recorded: &self.recorded,
            merged: &self.merged,
        }
    }

    pub(super) fn outputs<'a>(
        &'a self,
        chain: &'a BTreeMap<Sequence, &'a ChainEntry>,
    ) -> outputs::Evidence<'a> {
        outputs::Evidence {
            listed: &self.listed_outputs,
            outputs: &self.outputs,
            chain,
            segments: &self.segments,
        }
    }
}

impl Output {
    /// Returns the output that a segment is; nothing if it is none. Its bytes are still to be read.
    fn of(segment: &Segment) -> Option<Self> {
        let made: Compaction = segment.compaction()?.clone();
        Some(Output { entry: ChainEntry::of(segment.summary()), made, is_whole: false })
    }
}

type EntryRead = (Sequence, Bytes, Listed, Option<Facts>);

/// Reads an entry and, if it is one, the footer of its segment; the facts of the segment are there
/// if the two agree.
async fn read_entry(
    store: &Arc<dyn Store>,
    name: &StreamName,
    first: Sequence,
    sizes: &BTreeMap<ObjectKey, u64>,
) -> Result<EntryRead, ArchiveError> {
    let key = layout::chain_entry(name, first);
    let bytes = store.get(&key, ByteRange::Full).await?;
    let read = ChainEntry::from_exact_bytes(&key, &bytes).and_then(|entry| entry.at(name, first));
    let Some(entry) = readable(read)? else {
        return Ok((first, bytes, Listed { entry: None, confirmed: false }, None));
    };
    let segment = open(store, &entry).await?;
    // A segment that was put since the listing is not in it.
    let has_its_size = sizes.get(&entry.segment).is_none_or(|size| *size == entry.size);
    let agrees = |summary: &&SegmentSummary| {
        has_its_size && ChainEntry::of(summary) == entry && is_in_place(name, summary)
    };
    let facts = segment.as_ref().map(Segment::summary).filter(agrees).map(facts_of);
    let confirmed = facts.is_some();
    Ok((first, bytes, Listed { entry: Some(entry), confirmed }, facts))
}

type CompactionEntryRead = (Sequence, Bytes, ListedOutput, Option<(Output, Facts)>);

/// Reads a compaction entry and, if it is one, the footer of its output, which is there if the two
/// agree.
async fn read_compaction_entry(
    store: &Arc<dyn Store>,
    name: &StreamName,
    first: Sequence,
) -> Result<CompactionEntryRead, ArchiveError> {
    let key = layout::compaction_entry(name, first);
    let bytes = store.get(&key, ByteRange::Full).await?;
    let read = CompactionEntry::from_exact_bytes(&key, &bytes);
    let Some(entry) = readable(read.and_then(|entry| Ok(entry.at(name, first)?.output)))? else {
        let named = Legible::of(&bytes).digest;
        return Ok((first, bytes, ListedOutput { entry: None, named }, None));
    };
    let mut output = None;
    if layout::parse_compacted(&entry.segment).is_some()
        && let Some(segment) = open(store, &entry).await?
        && ChainEntry::of(segment.summary()) == entry
        && is_in_place(name, segment.summary())
    {
        output = Output::of(&segment).map(|output| (output, facts_of(segment.summary())));
    }
    Ok((first, bytes, ListedOutput { entry: Some(entry), named: None }, output))
}

/// Returns what an object means, or nothing if it is damaged.
fn readable<T>(read: Result<T, ArchiveError>) -> Result<Option<T>, ArchiveError> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(ArchiveError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the segment that an entry names; nothing if that is not possible.
async fn open(store: &Arc<dyn Store>, entry: &ChainEntry) -> Result<Option<Segment>, ArchiveError> {
    match Segment::open(Arc::clone(store), &entry.segment, Some(entry.size)).await {
        Ok(segment) => Ok(Some(segment)),
        Err(error) if says_nothing(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Returns the segment or output if its bytes agree with its own digest and it lies where it
/// belongs.
async fn examine(
    store: &Arc<dyn Store>,
    name: &StreamName,
    key: &ObjectKey,
) -> Result<Option<Segment>, ArchiveError> {
    let segment = match Segment::open(Arc::clone(store), key, None).await {
        Ok(segment) => segment,
        Err(error) if says_nothing(&error) => return Err(error),
        Err(_) => return Ok(None),
    };
    let summary = segment.summary();
    let is_sound =
        is_in_place(name, summary) && has_digest(store, key, summary.size, &summary.digest).await?;
    Ok(is_sound.then_some(segment))
}

/// Reads a whole object, and returns whether it has this digest.
async fn has_digest(
    store: &Arc<dyn Store>,
    key: &ObjectKey,
    size: u64,
    digest: &Digest,
) -> Result<bool, ArchiveError> {
    match digest_of(&**store, key, size).await.map_err(ArchiveError::from) {
        Ok(found) => Ok(found.as_ref() == Some(digest)),
        Err(error) if says_nothing(&error) => Err(error),
        Err(_) => Ok(false),
    }
}

/// Returns whether an error tells of the store and not of the object.
fn says_nothing(error: &ArchiveError) -> bool {
    let of_the_object = |error: &StoreError| {
        matches!(
            error,
            StoreError::NotFound { .. } | StoreError::Cold { .. } | StoreError::Permanent { .. }
        )
    };
    match error {
        ArchiveError::Store(error) => !of_the_object(error),
        _ => false,
    }
}

fn is_in_place(name: &StreamName, summary: &SegmentSummary) -> bool {
    let place = Some((name.clone(), summary.first));
    let is_segment = layout::parse_segment(&summary.key).is_some();
    summary.stream == *name
        && layout::parse_any_segment(&summary.key) == place
        && (is_segment || layout::is_named_by(&summary.key, &summary.digest))
}

fn facts_of(summary: &SegmentSummary) -> Facts {
    let times = Times { min: summary.time_min, max: summary.time_max };
    Facts { times, source_mark: summary.source_mark }
}

/// What can still be read of a damaged head or entry.
#[derive(Default)]
pub(super) struct Legible {
    pub(super) last: Option<Sequence>,
    pub(super) digest: Option<Digest>,
}

impl Legible {
    pub(super) fn of(object: &[u8]) -> Self {
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(object) else {
            return Legible::default();
        };
        let digest = json["digest"].as_str().and_then(|text| text.parse().ok());
        Legible { last: json["last_sequence"].as_u64(), digest }
    }
}
