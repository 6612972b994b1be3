//! Rebuilds what an archive can prove of itself: chain entries, compaction entries and heads.
//!
//! Evidence is gathered first, `proof` and `outputs` decide as plain functions, and then each
//! object is mended on its own, so that a repair that is killed is finished by the next one.
//!
//! Invariants: nothing is deleted; before an object is replaced, its bytes are copied to
//! `damaged/`; an object that is no longer what was judged is left alone; nothing is rebuilt but
//! from a segment or output whose bytes agree with its own digest and whose place other objects
//! prove.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{Clock, Sequence, StreamName, Timestamp};
use futures::TryStreamExt;

use crate::chain::{self, ChainEntry, Head};
use crate::compaction::CompactionEntry;
use crate::store::{ObjectKey, Put, Store};
use crate::{ArchiveError, layout};

use self::gather::{Found, Known, Legible, Times};

mod gather;
mod outputs;
mod proof;

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
    /// Segments, outputs and their entries judged.
    pub objects: u64,
    /// Segments, outputs and their entries listed in all.
    pub objects_all: u64,
}

/// Mends the archive in `store`; over a [`crate::store::overlay::Overlay`] it changes nothing and
/// tells what it would do.
///
/// Afterwards [`crate::verify::verify`] says what could not be mended. An archiver may run
/// meanwhile, because what a writer puts in the same place is the same or is left alone.
///
/// A stream with an object of a newer format is left to a newer dacapo. Safe to drop at any point,
/// and to run again.
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
        let mut judged = || {
            so_far.objects += 1;
            progress(so_far);
        };
        let known = match Known::gather(&store, &name, &mut judged).await {
            Err(ArchiveError::NewerFormat { .. }) => continue,
            known => known?,
        };
        Repair { store: &*store, name: &name, known: &known, clock }.run(&mut report).await?;
    }
    Ok(report)
}

/// Returns all streams of which there is anything, and how many objects there are but for heads.
async fn streams(store: &dyn Store) -> Result<(BTreeSet<StreamName>, u64), ArchiveError> {
    let (mut streams, mut objects) = (BTreeSet::new(), 0);
    for prefix in layout::OF_STREAMS {
        let mut listed = pin!(chain::list(store, prefix.to_owned(), None));
        while let Some(object) = listed.try_next().await? {
            let name = layout::stream_of(&object.key);
            objects += u64::from(name.is_some() && prefix != layout::HEADS);
            streams.extend(name);
        }
    }
    Ok((streams, objects))
}

/// The repair of one stream.
struct Repair<'a> {
    store: &'a dyn Store,
    name: &'a StreamName,
    known: &'a Known,
    clock: Clock,
}

impl Repair<'_> {
    async fn run(&self, report: &mut Report) -> Result<(), ArchiveError> {
        let known = self.known;
        let rebuilt = proof::rebuilt(&known.chain());
        let confirmed = known.entries.values().filter(|listed| listed.confirmed);
        let confirmed = confirmed.filter_map(|listed| listed.entry.as_ref());
        let proven = proof::in_one_chain(confirmed.chain(&rebuilt));
        for entry in &rebuilt {
            self.mend_entry(entry, report).await?;
        }
        for output in outputs::rebuilt(&known.outputs(&proven)) {
            self.mend_compaction_entry(output, report).await?;
        }
        self.mend_head(&proven, report).await?;

        let of_segment = |(first, entry): (&Sequence, &&ChainEntry)| {
            Some((*first, known.facts.get(&entry.digest)?.times))
        };
        let mut times = known.output_times.clone();
        times.extend(proven.iter().filter_map(of_segment));
        report.times.insert(self.name.clone(), times);
        Ok(())
    }

    async fn mend_entry(
        &self,
        entry: &ChainEntry,
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        let key = layout::chain_entry(self.name, entry.first);
        let judged = self.known.entry_bytes.get(&entry.first);
        let what = match self.known.segments.contains(&entry.segment) {
            true => format!("rebuilt from the footer of {}", entry.segment),
            false => format!("rebuilt from the output that was made of {}", entry.segment),
        };
        let sequences = (entry.first, entry.last);
        self.put(key, judged, entry.to_bytes(), what, sequences, report).await
    }

    /// Puts a compaction entry as of now, so that what was merged stays for a whole grace period.
    async fn mend_compaction_entry(
        &self,
        output: ChainEntry,
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        let key = layout::compaction_entry(self.name, output.first);
        let judged = self.known.output_bytes.get(&output.first);
        let what = format!("rebuilt from the footer of {}", output.segment);
        let sequences = (output.first, output.last);
        let entry = CompactionEntry { output, compacted_at: (self.clock)() };
        self.put(key, judged, entry.to_bytes(), what, sequences, report).await
    }

    async fn mend_head(
        &self,
        proven: &BTreeMap<Sequence, &ChainEntry>,
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        let known = self.known;
        let readable = known
            .entries
            .iter()
            .filter_map(|(first, listed)| Some((*first, listed.entry.as_ref()?)));
        let mut entries: BTreeMap<Sequence, &ChainEntry> = readable.collect();
        entries.extend(proven);
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
        // What an import needs to go on is only in the segment, or in the output made of it.
        let facts = known.facts.get(&end.digest);
        let (Some(facts), Some(_)) = (facts, proven.get(&end.first)) else { return Ok(()) };
        let head = Head {
            stream: self.name.clone(),
            last: end.last,
            digest: end.digest,
            segment: end.segment.clone(),
            moved_at: (self.clock)(),
            source_mark: facts.source_mark,
        };
        let judged = known.head.as_ref().map(|(bytes, _)| bytes);
        let (key, sequences) = (layout::head(self.name), (1, end.last));
        self.put(key, judged, head.to_bytes(), what.to_owned(), sequences, report).await
    }

    async fn put(
        &self,
        key: ObjectKey,
        judged: Option<&Bytes>,
        bytes: Bytes,
        what: String,
        sequences: (Sequence, Sequence),
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        if let Some(kept) = put_instead(self.store, &key, judged, bytes).await? {
            report.mended.push(Mended { key, what, sequences, kept });
        }
        Ok(())
    }
}

/// Returns whether a damaged head may say rightly that the stream went on past its chain's end:
/// then it is the only trace of the tail, and stays.
fn may_be_ahead(bytes: &[u8], end: &ChainEntry) -> bool {
    let legible = Legible::of(bytes);
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
