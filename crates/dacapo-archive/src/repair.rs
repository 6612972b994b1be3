//! Rebuilds what an archive can prove of itself: chain entries and heads.
//!
//! Evidence is gathered first, `proof` decides as a plain function, and then each object is
//! mended on its own, so that a repair that is killed is finished by the next one.
//!
//! Invariants: nothing is deleted; before an object is replaced, its bytes are copied to
//! `damaged/`; an object that is no longer what was judged is left alone; nothing is rebuilt but
//! from a segment whose bytes agree with its own digest and whose place other objects prove.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{Clock, Digest, Sequence, StreamName, Timestamp};
use futures::{StreamExt, TryStreamExt, stream};

use crate::chain::{self, ChainEntry, Head};
use crate::store::{ByteRange, ObjectKey, Put, Store, StoreError};
use crate::verify::digest_of;
use crate::{ArchiveError, Segment, SegmentSummary, layout};

use self::proof::{Evidence, Listed};

mod proof;

/// Chain entries and footers asked for at once: hides a store's latency.
const READS_AT_ONCE: usize = 8;

/// Copies of one damaged object kept at the most; each differs from the others. Only something
/// that damages the object again and again comes so far, and it is to be found, not outlasted.
const COPIES_MAX: u32 = 1_000;

/// What a repair did.
#[derive(Debug, Default)]
pub struct Report {
    /// Streams looked at.
    pub streams: u64,
    /// What was mended, in the order in which it was.
    pub mended: Vec<Mended>,
    times: BTreeMap<StreamName, BTreeMap<Sequence, Times>>,
}

/// One object that was rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// The object.
    pub key: ObjectKey,
    /// What was done.
    pub what: String,
    /// The sequences that it concerns.
    pub sequences: (Sequence, Sequence),
    /// Where the bytes are that were there before; absent if nothing was.
    pub kept: Option<ObjectKey>,
}

/// Earliest and latest time of a segment's events.
#[derive(Debug, Clone, Copy)]
struct Times {
    min: Timestamp,
    max: Timestamp,
}

/// A small object as it was found.
#[derive(Debug)]
enum Found<T> {
    Sound(T),
    Damaged,
}

/// A segment that agrees with its own digest and is where it says it belongs.
struct Sound {
    entry: ChainEntry,
    times: Times,
    source_mark: Option<Digest>,
}

/// Everything known of one stream.
#[derive(Default)]
struct Known {
    /// The head's bytes, and what they mean.
    head: Option<(Bytes, Found<Head>)>,
    /// The bytes of the entries, by the sequence in their key.
    bytes: BTreeMap<Sequence, Bytes>,
    entries: BTreeMap<Sequence, Listed>,
    /// Committed segments, and sound ones that nothing commits.
    segments: BTreeMap<ObjectKey, (Times, Option<Digest>)>,
    orphans: Vec<ChainEntry>,
}

impl Report {
    /// Returns the latest time before these sequences and the earliest one after them, of the
    /// segments around them that are there: about when the events of a hole happened.
    pub fn times_around(
        &self,
        stream: &StreamName,
        (first, last): (Sequence, Sequence),
    ) -> (Option<Timestamp>, Option<Timestamp>) {
        let Some(of_stream) = self.times.get(stream) else { return (None, None) };
        let before = of_stream.range(..first).next_back().map(|(_, times)| times.max);
        let after = of_stream.range(last.saturating_add(1)..).next().map(|(_, times)| times.min);
        (before, after)
    }
}

/// How far a repair has come in gathering what there is; the rest takes no time beside it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Chain entries and segments judged.
    pub objects: u64,
    /// Chain entries and segments listed in all.
    pub objects_all: u64,
}

/// Mends the archive in `store`; over a [`crate::store::overlay::Overlay`] it changes nothing and
/// tells what it would do.
///
/// Afterwards [`crate::verify::verify`] says what could not be mended. An archiver may run
/// meanwhile, because what a writer puts in the same place is the same or is left alone.
///
/// Safe to drop at any point, and to run again.
///
/// # Errors
/// The store fails.
pub async fn repair(
    store: Arc<dyn Store>,
    clock: Clock,
    mut progress: impl FnMut(Progress),
) -> Result<Report, ArchiveError> {
    let mut report = Report::default();
    let (streams, objects_all) = streams(&*store).await?;
    let mut so_far = Progress { objects: 0, objects_all };
    for name in streams {
        report.streams += 1;
        let known = gather(&store, &name, || {
            so_far.objects += 1;
            progress(so_far);
        })
        .await?;
        let rebuilt = proof::rebuilt(&known.evidence());
        for entry in &rebuilt {
            mend_entry(&*store, &name, &known, entry, &mut report).await?;
        }
        mend_head(&*store, &name, &known, &rebuilt, clock, &mut report).await?;
        let times = |entry: &ChainEntry| Some((entry.first, known.segments.get(&entry.segment)?.0));
        let listed = known.entries.values().filter(|listed| listed.confirmed);
        let entries = listed.filter_map(|listed| listed.entry.as_ref()).chain(&rebuilt);
        report.times.insert(name, entries.filter_map(times).collect());
    }
    Ok(report)
}

/// Returns all streams of which there is anything, and how many chain entries and segments there
/// are.
async fn streams(store: &dyn Store) -> Result<(BTreeSet<StreamName>, u64), ArchiveError> {
    let (mut streams, mut objects) = (BTreeSet::new(), 0);
    for prefix in [layout::HEADS, layout::CHAIN, layout::SEGMENTS] {
        for object in chain::list_all(store, prefix, None).await? {
            let key = &object.key;
            let entry_or_segment =
                layout::parse_chain_entry(key).or_else(|| layout::parse_segment(key));
            objects += u64::from(entry_or_segment.is_some());
            streams.extend(entry_or_segment.map(|(name, _)| name).or(layout::parse_head(key)));
        }
    }
    Ok((streams, objects))
}

/// Reads head, entries and footers of a stream, and whole segments where no entry agrees with them.
///
/// The head is read first and entries last: what a running writer adds between makes the end of
/// the chain later than the head says, never earlier.
async fn gather(
    store: &Arc<dyn Store>,
    name: &StreamName,
    mut judged: impl FnMut(),
) -> Result<Known, ArchiveError> {
    let mut known = Known::default();
    let key = layout::head(name);
    if let Some(bytes) = chain::get_if_there(&**store, &key).await? {
        let found = match Head::from_exact_bytes(&key, &bytes) {
            Ok(head) if head.stream == *name => Found::Sound(head),
            Ok(_) | Err(ArchiveError::Damaged { .. }) => Found::Damaged,
            Err(error) => return Err(error),
        };
        known.head = Some((bytes, found));
    }
    let segments = chain::list_all(&**store, &layout::segments_of(name), None).await?;
    let sizes: BTreeMap<&ObjectKey, u64> = segments.iter().map(|o| (&o.key, o.size)).collect();
    let listed = chain::list_all(&**store, &layout::chain_of(name), None).await?;
    let firsts = listed.iter().filter_map(|object| layout::parse_chain_entry(&object.key));
    let mut entries = stream::iter(firsts)
        .map(|(_, first)| read_entry(store, name, first, &sizes))
        .buffered(READS_AT_ONCE);
    while let Some((first, bytes, listed, sound)) = entries.try_next().await? {
        judged();
        if let (Some(entry), Some((times, mark))) = (&listed.entry, sound) {
            known.segments.insert(entry.segment.clone(), (times, mark));
        }
        known.bytes.insert(first, bytes);
        known.entries.insert(first, listed);
    }
    drop(entries);
    // One at a time: a whole segment is held.
    for object in &segments {
        if !known.segments.contains_key(&object.key)
            && let Some(sound) = examine(store, name, &object.key).await?
        {
            known.segments.insert(object.key.clone(), (sound.times, sound.source_mark));
            known.orphans.push(sound.entry);
        }
        judged();
    }
    Ok(known)
}

type EntryRead = (Sequence, Bytes, Listed, Option<(Times, Option<Digest>)>);

/// Reads an entry and, if it is one, the footer of its segment; the facts of the segment are there
/// if the two agree.
async fn read_entry(
    store: &Arc<dyn Store>,
    name: &StreamName,
    first: Sequence,
    sizes: &BTreeMap<&ObjectKey, u64>,
) -> Result<EntryRead, ArchiveError> {
    let key = layout::chain_entry(name, first);
    let bytes = store.get(&key, ByteRange::Full).await?;
    let entry = match ChainEntry::from_exact_bytes(&key, &bytes) {
        Ok(entry) if entry.first == first && first > 0 && entry.last >= first => entry,
        Ok(_) | Err(ArchiveError::Damaged { .. }) => {
            return Ok((first, bytes, Listed { entry: None, confirmed: false }, None));
        }
        Err(error) => return Err(error),
    };
    let segment = match Segment::open(Arc::clone(store), &entry.segment, Some(entry.size)).await {
        Ok(segment) => Some(segment),
        Err(error) if says_nothing(&error) => return Err(error),
        Err(_) => None,
    };
    // A segment that was put since the listing is not in it.
    let has_its_size = sizes.get(&entry.segment).is_none_or(|size| *size == entry.size);
    let agrees = |summary: &&SegmentSummary| {
        has_its_size && ChainEntry::of(summary) == entry && is_in_place(name, summary)
    };
    let facts = segment.as_ref().map(Segment::summary).filter(agrees).map(facts_of);
    let confirmed = facts.is_some();
    Ok((first, bytes, Listed { entry: Some(entry), confirmed }, facts))
}

/// Returns the segment if its bytes agree with its own digest and it lies where it belongs.
async fn examine(
    store: &Arc<dyn Store>,
    name: &StreamName,
    key: &ObjectKey,
) -> Result<Option<Sound>, ArchiveError> {
    let digest_and_size = async {
        let segment = Segment::open(Arc::clone(store), key, None).await?;
        let digest = digest_of(&**store, key, segment.summary().size).await?;
        Ok((segment, digest))
    };
    match digest_and_size.await {
        Ok((segment, digest)) => {
            let summary = segment.summary();
            let is_sound = digest == Some(summary.digest) && is_in_place(name, summary);
            let (times, source_mark) = facts_of(summary);
            let entry = ChainEntry::of(summary);
            Ok(is_sound.then_some(Sound { entry, times, source_mark }))
        }
        Err(error) if says_nothing(&error) => Err(error),
        Err(_) => Ok(None),
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
    summary.stream == *name
        && layout::parse_segment(&summary.key) == Some((name.clone(), summary.first))
}

fn facts_of(summary: &SegmentSummary) -> (Times, Option<Digest>) {
    (Times { min: summary.time_min, max: summary.time_max }, summary.source_mark)
}

impl Known {
    fn sound_head(&self) -> Option<&Head> {
        match &self.head {
            Some((_, Found::Sound(head))) => Some(head),
            _ => None,
        }
    }

    fn evidence(&self) -> Evidence<'_> {
        let head = self.sound_head().map(|head| (head.last, head.digest));
        let named = match &self.head {
            Some((bytes, Found::Damaged)) => legible(bytes).digest,
            _ => None,
        };
        Evidence { head, named, entries: &self.entries, orphans: &self.orphans }
    }
}

async fn mend_entry(
    store: &dyn Store,
    name: &StreamName,
    known: &Known,
    entry: &ChainEntry,
    report: &mut Report,
) -> Result<(), ArchiveError> {
    let key = layout::chain_entry(name, entry.first);
    let judged = known.bytes.get(&entry.first);
    let Some(kept) = put_instead(store, &key, judged, entry.to_bytes()).await? else {
        return Ok(());
    };
    let what = format!("rebuilt from the footer of {}", entry.segment);
    report.mended.push(Mended { key, what, sequences: (entry.first, entry.last), kept });
    Ok(())
}

async fn mend_head(
    store: &dyn Store,
    name: &StreamName,
    known: &Known,
    rebuilt: &[ChainEntry],
    clock: Clock,
    report: &mut Report,
) -> Result<(), ArchiveError> {
    let mut entries: BTreeMap<Sequence, &ChainEntry> = known
        .entries
        .iter()
        .filter_map(|(first, listed)| Some((*first, listed.entry.as_ref()?)))
        .collect();
    entries.extend(rebuilt.iter().map(|entry| (entry.first, entry)));
    let Some(end) = entries.values().max_by_key(|entry| entry.last) else { return Ok(()) };
    let what = match &known.head {
        None => "rebuilt from the end of the chain, it was missing",
        Some((bytes, Found::Damaged)) if may_be_ahead(bytes, end) => return Ok(()),
        Some((_, Found::Damaged)) => "rebuilt from the end of the chain, it was damaged",
        Some((_, Found::Sound(head))) => {
            let named =
                |entry: &&&ChainEntry| (entry.last, entry.digest) == (head.last, head.digest);
            match entries.values().find(named) {
                Some(entry) if entry.last < end.last => "moved to the end of the chain",
                Some(entry) if entry.segment != head.segment => {
                    "names the segment of its chain entry"
                }
                // It is right, or it tells of what is lost or was put in another's place.
                Some(_) | None => return Ok(()),
            }
        }
    };
    // What an import needs to go on is only in the segment.
    let Some((_, source_mark)) = known.segments.get(&end.segment) else { return Ok(()) };
    let head = Head {
        stream: name.clone(),
        last: end.last,
        digest: end.digest,
        segment: end.segment.clone(),
        moved_at: clock(),
        source_mark: *source_mark,
    };
    let key = layout::head(name);
    let judged = known.head.as_ref().map(|(bytes, _)| bytes);
    if let Some(kept) = put_instead(store, &key, judged, head.to_bytes()).await? {
        let sequences = (1, end.last);
        report.mended.push(Mended { key, what: what.to_owned(), sequences, kept });
    }
    Ok(())
}

/// What can still be read of a damaged head.
#[derive(Default)]
struct Legible {
    last: Option<Sequence>,
    digest: Option<Digest>,
}

fn legible(head: &[u8]) -> Legible {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(head) else {
        return Legible::default();
    };
    let digest = json["digest"].as_str().and_then(|text| text.parse().ok());
    Legible { last: json["last_sequence"].as_u64(), digest }
}

/// Returns whether a damaged head may say rightly that the stream went on past its chain's end:
/// then it is the only trace of the tail, and stays.
fn may_be_ahead(bytes: &[u8], end: &ChainEntry) -> bool {
    let legible = legible(bytes);
    legible.last.is_some_and(|last| last > end.last) && legible.digest != Some(end.digest)
}

/// Puts an object where `judged` is, or where nothing is; returns where the bytes before it were
/// copied to, or nothing if something else is there by now.
async fn put_instead(
    store: &dyn Store,
    key: &ObjectKey,
    judged: Option<&Bytes>,
    bytes: Bytes,
) -> Result<Option<Option<ObjectKey>>, ArchiveError> {
    let Some(judged) = judged else {
        return Ok((store.put_new(key, bytes).await? == Put::Created).then_some(None));
    };
    let kept = keep(store, key, judged).await?;
    // The last look: whoever wrote it meanwhile knows better.
    if chain::get_if_there(store, key).await?.as_ref() != Some(judged) {
        return Ok(None);
    }
    store.replace(key, bytes).await?;
    Ok(Some(Some(kept)))
}

/// Copies the bytes to a key of their own under `damaged/`; the same bytes are kept once.
async fn keep(
    store: &dyn Store,
    key: &ObjectKey,
    bytes: &Bytes,
) -> Result<ObjectKey, ArchiveError> {
    for copy in 1..=COPIES_MAX {
        let kept = layout::damaged(key, copy);
        if store.put_new(&kept, bytes.clone()).await? == Put::Created {
            return Ok(kept);
        }
    }
    let problem =
        format!("{COPIES_MAX} damaged versions of it are kept under `{}`", layout::DAMAGED);
    Err(ArchiveError::damaged(key, problem))
}

#[cfg(test)]
mod tests;
