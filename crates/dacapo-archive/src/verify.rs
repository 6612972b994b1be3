//! Checks an archive against itself: every segment, its digest, its place in the chain,
//! gaps in the sequences, the heads, and heads that were kept elsewhere.
//!
//! Reads everything, changes nothing, and goes on after each problem so that one run
//! names all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dacapo_event::{Digest, Sequence, StreamName};
use futures::{StreamExt, stream};

use crate::chain::{self, ChainEntry, Head};
use crate::footer::{self, ObjectHasher};
use crate::store::{ByteRange, ObjectKey, ObjectMeta, Store, StoreError};
use crate::{ArchiveError, Segment, layout};

use self::outputs::Outputs;

mod outputs;

/// Segments read at once: hides a store's latency.
const SEGMENTS_AT_ONCE: usize = 2;

/// Of a segment this much is held at a time: few requests, and memory that does not depend on how
/// large segments are.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// Said of what should be there and is not.
const MISSING: &str = "is missing";

/// What a verification found.
#[derive(Debug, Default)]
pub struct Report {
    /// Streams checked.
    pub streams: u64,
    /// Committed segments checked.
    pub segments: u64,
    /// Those of them that are gone, because an output of compaction took their place.
    pub compacted: u64,
    /// Outputs of compaction checked.
    pub outputs: u64,
    /// Exact repeats that compaction left out.
    pub dropped: u64,
    /// Events in them, but for those left out.
    pub events: u64,
    /// Bytes of the segments and outputs that are there.
    pub bytes: u64,
    /// What is wrong; empty for a sound archive.
    pub problems: Vec<Finding>,
    /// What is unusual but lost nothing, for example a segment that a killed writer left.
    pub notes: Vec<Finding>,
    /// The heads, to be kept elsewhere for a later verification.
    pub heads: Vec<Head>,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The object.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// The first and last sequence that it concerns, where that is known.
    pub sequences: Option<(Sequence, Sequence)>,
}

/// How far a verification has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Segments checked.
    pub segments: u64,
    /// Segments listed in all.
    pub segments_all: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes listed in all.
    pub bytes_all: u64,
}

/// Checks the whole archive.
///
/// `expected` are heads from an earlier verification, kept where whoever can change the archive
/// cannot change them; they show a rollback of segments and heads together.
///
/// # Errors
/// The store fails in a way that says nothing about the archive (unreachable, refused). What is
/// wrong with the archive itself is in the report.
pub async fn verify(
    store: Arc<dyn Store>,
    expected: &[Head],
    mut progress: impl FnMut(Progress),
) -> Result<Report, ArchiveError> {
    let mut report = Report::default();
    let inventory = Inventory::take(&*store, &mut report).await?;
    let mut so_far = Progress {
        segments: 0,
        segments_all: inventory.objects().count() as u64,
        bytes: 0,
        bytes_all: inventory.objects().map(|object| object.size).sum(),
    };
    for stream in inventory.streams() {
        report.streams += 1;
        check_stream(&store, &inventory, &stream, expected, &mut report, |size| {
            so_far.segments += 1;
            so_far.bytes += size;
            progress(so_far);
        })
        .await?;
    }
    for head in expected {
        if !inventory.streams().contains(&head.stream) {
            let gone = format!("stream `{}` is gone", head.stream);
            report.problem(layout::head(&head.stream), Some((1, head.last)), gone);
        }
    }
    report.events = report.events.saturating_sub(report.dropped);
    report.heads = inventory.heads.into_values().collect();
    Ok(report)
}

impl Report {
    fn problem(
        &mut self,
        key: impl ToString,
        sequences: Option<(Sequence, Sequence)>,
        problem: impl ToString,
    ) {
        self.problems.push(Finding::of(key, sequences, problem));
    }

    fn note(&mut self, key: impl ToString, problem: impl ToString) {
        self.notes.push(Finding::of(key, None, problem));
    }
}

impl Finding {
    pub(crate) fn of(
        key: impl ToString,
        sequences: Option<(Sequence, Sequence)>,
        problem: impl ToString,
    ) -> Self {
        Finding { key: key.to_string(), problem: problem.to_string(), sequences }
    }
}

/// All that the archive's prefix lists.
struct Inventory {
    heads: BTreeMap<StreamName, Head>,
    /// Streams whose head is there and was found to be damaged.
    damaged_heads: BTreeSet<StreamName>,
    entries: BTreeMap<StreamName, Vec<(ObjectKey, Sequence)>>,
    segments: BTreeMap<StreamName, Vec<ObjectMeta>>,
    compactions: BTreeMap<StreamName, Vec<Sequence>>,
    outputs: BTreeMap<StreamName, Vec<ObjectMeta>>,
}

impl Inventory {
    async fn take(store: &dyn Store, report: &mut Report) -> Result<Self, ArchiveError> {
        let mut inventory = Inventory {
            heads: BTreeMap::new(),
            damaged_heads: BTreeSet::new(),
            entries: BTreeMap::new(),
            segments: BTreeMap::new(),
            compactions: BTreeMap::new(),
            outputs: BTreeMap::new(),
        };
        for object in chain::list_all(store, layout::HEADS, None).await? {
            let Some(stream) = layout::parse_head(&object.key) else {
                report.note(&object.key, "is no head; not ours");
                continue;
            };
            let bytes = store.get(&object.key, ByteRange::Full).await?;
            let problem = match Head::from_exact_bytes(&object.key, &bytes) {
                Ok(head) if head.stream == stream => {
                    inventory.heads.insert(stream, head);
                    continue;
                }
                Ok(head) => format!("is the head of `{}`", head.stream),
                Err(error) => problem_of(&error),
            };
            report.problem(&object.key, None, problem);
            inventory.damaged_heads.insert(stream);
        }
        for object in chain::list_all(store, layout::CHAIN, None).await? {
            match layout::parse_chain_entry(&object.key) {
                Some((stream, first)) => {
                    inventory.entries.entry(stream).or_default().push((object.key, first));
                }
                None => report.note(&object.key, "is no chain entry; not ours"),
            }
        }
        for object in chain::list_all(store, layout::SEGMENTS, None).await? {
            match layout::parse_segment(&object.key) {
                Some((stream, _)) => inventory.segments.entry(stream).or_default().push(object),
                None => report.note(&object.key, "is no segment; not ours"),
            }
        }
        for object in chain::list_all(store, layout::COMPACTIONS, None).await? {
            match layout::parse_compaction_entry(&object.key) {
                Some((stream, first)) => {
                    inventory.compactions.entry(stream).or_default().push(first);
                }
                None => report.note(&object.key, "is no compaction entry; not ours"),
            }
        }
        for object in chain::list_all(store, layout::COMPACTED, None).await? {
            match layout::parse_compacted(&object.key) {
                Some((stream, _)) => inventory.outputs.entry(stream).or_default().push(object),
                None => report.note(&object.key, "is no output of compaction; not ours"),
            }
        }
        Ok(inventory)
    }

    fn streams(&self) -> BTreeSet<StreamName> {
        let names = self.heads.keys().chain(&self.damaged_heads);
        let names = names.chain(self.entries.keys()).chain(self.segments.keys());
        names.chain(self.compactions.keys()).chain(self.outputs.keys()).cloned().collect()
    }

    fn objects(&self) -> impl Iterator<Item = &ObjectMeta> {
        self.segments.values().chain(self.outputs.values()).flatten()
    }
}

async fn check_stream(
    store: &Arc<dyn Store>,
    inventory: &Inventory,
    name: &StreamName,
    expected: &[Head],
    report: &mut Report,
    mut checked: impl FnMut(u64),
) -> Result<(), ArchiveError> {
    let entries = inventory.entries.get(name).map_or(&[][..], Vec::as_slice);
    let segments = inventory.segments.get(name).map_or(&[][..], Vec::as_slice);
    let compactions = inventory.compactions.get(name).map_or(&[][..], Vec::as_slice);
    let objects = inventory.outputs.get(name).map_or(&[][..], Vec::as_slice);
    let outputs = Outputs::check(store, name, compactions, objects, report, &mut checked).await?;
    let sizes: BTreeMap<&ObjectKey, u64> = segments.iter().map(|o| (&o.key, o.size)).collect();

    let head = inventory.heads.get(name);
    let mut committed = BTreeSet::new();
    let mut end = End::Start;
    let mut passed: Vec<(Sequence, Digest)> = Vec::new();
    // How far an entry goes that cannot be read: to the next one, or to where the head says.
    let until = |at: usize| match entries.get(at + 1) {
        Some((_, next)) => Some(next.saturating_sub(1)),
        None => head.map(|head| head.last),
    };
    let mut reads = stream::iter(entries.iter().enumerate())
        .map(|(at, (key, first))| read_entry(store, name, key, (*first, until(at)), &sizes))
        .buffered(SEGMENTS_AT_ONCE);
    while let Some(read) = reads.next().await {
        let EntryRead { key, entry, is_there, findings } = read?;
        report.problems.extend(findings);
        let Some(entry) = entry else {
            end = End::Unknown;
            continue;
        };
        check_link(name, &end, key, &entry, report);
        if head.is_some_and(|head| head.last == entry.last && head.segment != entry.segment) {
            let problem = format!("names another segment than {key} does");
            report.problem(layout::head(name), None, problem);
        }
        report.segments += 1;
        report.events = report.events.saturating_add(entry.last - entry.first).saturating_add(1);
        let stands_for = outputs.stand_for(&entry, report);
        if is_there {
            report.bytes += entry.size;
            checked(entry.size);
        } else if stands_for {
            report.compacted += 1;
        } else {
            report.problems.push(missing(&entry, key));
            outputs.check_unnamed(name, &entry, report);
        }
        committed.insert(entry.segment.clone());
        passed.push((entry.last, entry.digest));
        end = End::At(entry);
    }
    drop(reads);

    let last = passed.iter().map(|(last, _)| *last).max().unwrap_or(0);
    outputs.check_end(name, last, report);
    for object in segments.iter().filter(|object| !committed.contains(&object.key)) {
        // A writer puts no segment before the one before it is committed.
        match layout::parse_segment(&object.key) {
            Some((_, first)) if first > last.saturating_add(1) => report.problem(
                &object.key,
                None,
                format!("begins at {first}, but the chain ends at {last}: chain entries are gone"),
            ),
            _ => report.note(
                &object.key,
                "was put but never committed (its writer was stopped or overtaken); its events were delivered again",
            ),
        }
    }
    check_heads(inventory, name, &passed, expected, report);
    Ok(())
}

/// Where the chain has come to.
enum End {
    /// Nothing was read yet.
    Start,
    /// This entry.
    At(ChainEntry),
    /// The last entry was not readable.
    Unknown,
}

/// What was read of a chain entry and its segment.
struct EntryRead<'a> {
    key: &'a ObjectKey,
    entry: Option<ChainEntry>,
    /// Whether the segment is there, sound or not; one that is not may have been compacted.
    is_there: bool,
    findings: Vec<Finding>,
}

/// Says of a segment that it is not there, and nothing stands for it.
fn missing(entry: &ChainEntry, key: &ObjectKey) -> Finding {
    named(entry, key, MISSING)
}

/// Says what is wrong with a segment, and which entry names it: one that was changed may name a
/// segment that never was.
fn named(entry: &ChainEntry, key: &ObjectKey, problem: &str) -> Finding {
    let problem = format!("{problem} (its chain entry is {key})");
    Finding::of(&entry.segment, Some((entry.first, entry.last)), problem)
}

/// Reads one chain entry and the segment that it names, and compares them.
async fn read_entry<'a>(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    key: &'a ObjectKey,
    (first, until): (Sequence, Option<Sequence>),
    sizes: &BTreeMap<&ObjectKey, u64>,
) -> Result<EntryRead<'a>, ArchiveError> {
    let unreadable = |problem: String| {
        let problem = format!("{problem}; the chain cannot be followed past it");
        let sequences = until.filter(|until| *until >= first).map(|until| (first, until));
        let findings = vec![Finding::of(key, sequences, problem)];
        Ok(EntryRead { key, entry: None, is_there: false, findings })
    };
    let Some(bytes) = chain::get_if_there(&**store, key).await? else {
        return unreadable("disappeared while it was read".to_owned());
    };
    let entry = match ChainEntry::from_exact_bytes(key, &bytes) {
        Ok(entry) if entry.first == first && entry.last >= first => entry,
        Ok(entry) => {
            let other = format!("is the entry of sequences {} to {}", entry.first, entry.last);
            return unreadable(other);
        }
        Err(error) => return unreadable(problem_of(&error)),
    };
    let problem = match sizes.get(&entry.segment) {
        None => Some(MISSING.to_owned()),
        Some(size) if *size != entry.size => {
            Some(format!("has {size} bytes, was written with {}", entry.size))
        }
        Some(_) => check_segment(store, stream, &entry).await?,
    };
    let is_there = problem.as_deref() != Some(MISSING);
    let problem = problem.filter(|_| is_there);
    let findings = problem.map(|problem| named(&entry, key, &problem)).into_iter().collect();
    Ok(EntryRead { key, entry: Some(entry), is_there, findings })
}

/// Returns what is wrong with a segment that has the right size.
async fn check_segment(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    entry: &ChainEntry,
) -> Result<Option<String>, ArchiveError> {
    let digest = match digest_of(&**store, &entry.segment, entry.size).await {
        Ok(digest) => digest,
        Err(StoreError::NotFound { .. }) => return Ok(Some(MISSING.to_owned())),
        Err(error @ (StoreError::Cold { .. } | StoreError::Permanent { .. })) => {
            return Ok(Some(error.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    if digest != Some(entry.digest) {
        return Ok(Some("its bytes are not those that were written (digest differs)".to_owned()));
    }
    match Segment::open(Arc::clone(store), &entry.segment, Some(entry.size)).await {
        Ok(segment) => {
            let summary = segment.summary();
            let place = layout::parse_any_segment(&entry.segment);
            let same = ChainEntry::of(summary) == *entry
                && summary.stream == *stream
                && place == Some((stream.clone(), entry.first));
            Ok((!same).then(|| "its footer and its entry contradict each other".to_owned()))
        }
        Err(ArchiveError::Store(error)) => Err(error.into()),
        Err(error) => Ok(Some(problem_of(&error))),
    }
}

/// Returns the digest that an object of this size should have; nothing if there is no place for
/// one in it. Holds one piece of it at a time.
pub(crate) async fn digest_of(
    store: &dyn Store,
    key: &ObjectKey,
    size: u64,
) -> Result<Option<Digest>, StoreError> {
    let tail = ByteRange::Suffix(size.min(footer::DIGEST_TAIL_BYTES as u64));
    let tail = store.get(key, tail).await?;
    let Some(mut hasher) = ObjectHasher::new(size, &tail) else { return Ok(None) };
    let mut offset = 0;
    while offset < size {
        let end = size.min(offset + PIECE_BYTES);
        let piece = store.get(key, ByteRange::Span(offset, end)).await?;
        if piece.len() as u64 != end - offset {
            return Ok(None);
        }
        let hash = move || {
            hasher.update(&piece);
            hasher
        };
        hasher = match tokio::task::spawn_blocking(hash).await {
            Ok(hasher) => hasher,
            Err(_) => return Ok(None),
        };
        offset = end;
    }
    Ok(Some(hasher.finish()))
}

fn check_link(
    stream: &StreamName,
    end: &End,
    key: &ObjectKey,
    entry: &ChainEntry,
    report: &mut Report,
) {
    let (expected, digest) = match end {
        End::Start => (1, None),
        End::At(before) => (before.last.saturating_add(1), Some(before.digest)),
        End::Unknown => return,
    };
    if entry.first > expected {
        let missing = (expected, entry.first - 1);
        report.problem(layout::chain_entry(stream, expected), Some(missing), "is missing");
    } else if entry.first < expected {
        let problem = format!("begins before the segment before it ends, at {}", expected - 1);
        report.problem(key, Some((entry.first, entry.last)), problem);
    } else if entry.previous != digest {
        let problem = format!(
            "does not continue the segment before it (the chain is broken; its chain entry is {key})"
        );
        report.problem(&entry.segment, Some((entry.first, entry.last)), problem);
    }
}

fn check_heads(
    inventory: &Inventory,
    stream: &StreamName,
    passed: &[(Sequence, Digest)],
    expected: &[Head],
    report: &mut Report,
) {
    let key = layout::head(stream);
    let end = passed.iter().map(|(last, _)| *last).max().unwrap_or(0);
    match inventory.heads.get(stream) {
        Some(head) if head.last > end => {
            let lost = format!(
                "says sequence {}, but the chain ends at {end}: the tail is gone",
                head.last
            );
            report.problem(&key, Some((end.saturating_add(1), head.last)), lost);
        }
        Some(head) if !passed.contains(&(head.last, head.digest)) => {
            let problem =
                format!("names a segment ending at {} that is not in the chain", head.last);
            report.problem(&key, None, problem);
        }
        Some(head) if head.last < end => {
            report.note(
                &key,
                format!("is behind its chain ({} of {end}); the next writer moves it", head.last),
            );
        }
        None if end > 0 && !inventory.damaged_heads.contains(stream) => {
            report.problem(
                &key,
                None,
                format!(
                    "is missing, and its chain ends at {end}: it was removed, or the first writer \
                     was killed; the next writer of the stream makes it"
                ),
            );
        }
        Some(_) | None => {}
    }
    for kept in expected.iter().filter(|kept| kept.stream == *stream) {
        if !passed.contains(&(kept.last, kept.digest)) {
            let rolled_back = format!(
                "the copy kept elsewhere says sequence {} with digest {}, which the chain does not hold: \
                 the stream was rolled back or rewritten",
                kept.last, kept.digest
            );
            let beyond = (kept.last > end).then_some((end.saturating_add(1), kept.last));
            report.problem(&key, beyond, rolled_back);
        }
    }
}

/// The problem without the name of the object, which the finding has beside it.
fn problem_of(error: &ArchiveError) -> String {
    match error {
        ArchiveError::Damaged { problem, .. } => problem.clone(),
        ArchiveError::NewerFormat { key, .. } => {
            let text = error.to_string();
            text.strip_prefix(&format!("`{key}` ")).unwrap_or(&text).to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
