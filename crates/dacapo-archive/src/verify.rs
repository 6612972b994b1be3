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
use crate::store::{ByteRange, ObjectKey, ObjectMeta, Store, StoreError};
use crate::{ArchiveError, Segment, footer, layout};

/// Segments read at once: hides a store's latency; two of the largest fit the memory budget.
const SEGMENTS_AT_ONCE: usize = 2;

/// What a verification found.
#[derive(Debug, Default)]
pub struct Report {
    /// Streams checked.
    pub streams: u64,
    /// Committed segments checked.
    pub segments: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of them.
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
        segments_all: inventory.segments.values().map(|of| of.len() as u64).sum(),
        bytes: 0,
        bytes_all: inventory.segments.values().flatten().map(|object| object.size).sum(),
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
            report.problem(layout::head(&head.stream), format!("stream `{}` is gone", head.stream));
        }
    }
    report.heads = inventory.heads.into_values().collect();
    Ok(report)
}

impl Report {
    fn problem(&mut self, key: impl ToString, problem: impl ToString) {
        self.problems.push(Finding { key: key.to_string(), problem: problem.to_string() });
    }

    fn note(&mut self, key: impl ToString, problem: impl ToString) {
        self.notes.push(Finding { key: key.to_string(), problem: problem.to_string() });
    }
}

/// All that the archive's prefix lists.
struct Inventory {
    heads: BTreeMap<StreamName, Head>,
    entries: BTreeMap<StreamName, Vec<(ObjectKey, Sequence)>>,
    segments: BTreeMap<StreamName, Vec<ObjectMeta>>,
}

impl Inventory {
    async fn take(store: &dyn Store, report: &mut Report) -> Result<Self, ArchiveError> {
        let mut inventory = Inventory {
            heads: BTreeMap::new(),
            entries: BTreeMap::new(),
            segments: BTreeMap::new(),
        };
        for object in chain::list_all(store, layout::HEADS, None).await? {
            let Some(stream) = layout::parse_head(&object.key) else {
                report.note(&object.key, "is no head; not ours");
                continue;
            };
            let bytes = store.get(&object.key, ByteRange::Full).await?;
            match Head::from_bytes(&object.key, &bytes) {
                Ok(head) if head.stream == stream => drop(inventory.heads.insert(stream, head)),
                Ok(head) => {
                    report.problem(&object.key, format!("is the head of `{}`", head.stream));
                }
                Err(error) => report.problem(&object.key, problem_of(&error)),
            }
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
        Ok(inventory)
    }

    fn streams(&self) -> BTreeSet<StreamName> {
        let names = self.heads.keys().chain(self.entries.keys()).chain(self.segments.keys());
        names.cloned().collect()
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
    let sizes: BTreeMap<&ObjectKey, u64> = segments.iter().map(|o| (&o.key, o.size)).collect();

    let mut committed = BTreeSet::new();
    let mut end: Option<ChainEntry> = None;
    let mut passed: Vec<(Sequence, Digest)> = Vec::new();
    let mut reads = stream::iter(entries)
        .map(|(key, first)| read_entry(store, name, key, *first, &sizes))
        .buffered(SEGMENTS_AT_ONCE);
    while let Some(read) = reads.next().await {
        let (key, entry, findings) = read?;
        findings.into_iter().for_each(|finding| report.problems.push(finding));
        let Some(entry) = entry else {
            report.problem(key, "the chain cannot be followed past this entry");
            end = None;
            continue;
        };
        check_link(end.as_ref(), &entry, passed.is_empty(), report);
        report.segments += 1;
        report.events += entry.last.saturating_sub(entry.first) + 1;
        report.bytes += entry.size;
        checked(entry.size);
        committed.insert(entry.segment.clone());
        passed.push((entry.last, entry.digest));
        end = Some(entry);
    }
    drop(reads);

    for object in segments.iter().filter(|object| !committed.contains(&object.key)) {
        report.note(
            &object.key,
            "was put but never committed (its writer was stopped or overtaken); its events were delivered again",
        );
    }
    check_heads(inventory.heads.get(name), name, &passed, expected, report);
    Ok(())
}

type EntryRead<'a> = (&'a ObjectKey, Option<ChainEntry>, Vec<Finding>);

/// Reads one chain entry and the segment that it names, and compares them.
async fn read_entry<'a>(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    key: &'a ObjectKey,
    first: Sequence,
    sizes: &BTreeMap<&ObjectKey, u64>,
) -> Result<EntryRead<'a>, ArchiveError> {
    let mut findings = Vec::new();
    let mut found = |key: &ObjectKey, problem: String| {
        findings.push(Finding { key: key.to_string(), problem });
    };
    let entry = match chain::entry(&**store, stream, first).await {
        Ok(Some(entry)) if entry.first == first && entry.last >= first => entry,
        Ok(Some(entry)) => {
            found(key, format!("is the entry of sequences {} to {}", entry.first, entry.last));
            return Ok((key, None, findings));
        }
        Ok(None) => {
            found(key, "disappeared while it was read".to_owned());
            return Ok((key, None, findings));
        }
        Err(ArchiveError::Store(error)) => return Err(error.into()),
        Err(error) => {
            found(key, problem_of(&error));
            return Ok((key, None, findings));
        }
    };
    match sizes.get(&entry.segment) {
        None => found(&entry.segment, "is missing".to_owned()),
        Some(size) if *size != entry.size => {
            found(&entry.segment, format!("has {size} bytes, was written with {}", entry.size));
        }
        Some(_) => {
            if let Some(problem) = check_segment(store, &entry).await? {
                found(&entry.segment, problem);
            }
        }
    }
    Ok((key, Some(entry), findings))
}

/// Returns what is wrong with a segment that has the right size.
async fn check_segment(
    store: &Arc<dyn Store>,
    entry: &ChainEntry,
) -> Result<Option<String>, ArchiveError> {
    let bytes = match store.get(&entry.segment, ByteRange::Full).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(Some("is missing".to_owned())),
        Err(error @ (StoreError::Cold { .. } | StoreError::Permanent { .. })) => {
            return Ok(Some(error.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    let hash = move || footer::digest_of(&bytes);
    let digest = tokio::task::spawn_blocking(hash).await.unwrap_or(None);
    if digest != Some(entry.digest) {
        return Ok(Some("its bytes are not those that were written (digest differs)".to_owned()));
    }
    match Segment::open(Arc::clone(store), &entry.segment, Some(entry.size)).await {
        Ok(segment) => {
            let summary = segment.summary();
            let same = ChainEntry::of(summary) == *entry;
            Ok((!same).then(|| "its footer and its chain entry contradict each other".to_owned()))
        }
        Err(ArchiveError::Store(error)) => Err(error.into()),
        Err(error) => Ok(Some(problem_of(&error))),
    }
}

fn check_link(
    before: Option<&ChainEntry>,
    entry: &ChainEntry,
    at_start: bool,
    report: &mut Report,
) {
    let expected = before.map_or(1, |before| before.last + 1);
    if (before.is_some() || at_start) && entry.first != expected {
        let missing = format!("sequences {expected} to {} before it are missing", entry.first - 1);
        report.problem(&entry.segment, missing);
    } else if before.is_some_and(|before| entry.previous != Some(before.digest)) {
        report.problem(
            &entry.segment,
            "does not continue the segment before it (the chain is broken)",
        );
    }
}

fn check_heads(
    head: Option<&Head>,
    stream: &StreamName,
    passed: &[(Sequence, Digest)],
    expected: &[Head],
    report: &mut Report,
) {
    let key = layout::head(stream);
    match (head, passed.last()) {
        (Some(head), None) => {
            report
                .problem(&key, format!("says sequence {}, but the stream has no chain", head.last));
        }
        (Some(head), Some((last, _))) if head.last > *last => {
            let lost = format!(
                "says sequence {}, but the chain ends at {last}: the tail is gone",
                head.last
            );
            report.problem(&key, lost);
        }
        (Some(head), Some(_)) if !passed.contains(&(head.last, head.digest)) => {
            report.problem(
                &key,
                format!("names a segment ending at {} that is not in the chain", head.last),
            );
        }
        (Some(head), Some((last, _))) if head.last < *last => {
            report.note(
                &key,
                format!("is behind its chain ({} of {last}); the next writer moves it", head.last),
            );
        }
        (Some(_), Some(_)) => {}
        (None, Some((last, _))) => {
            report.problem(
                &key,
                format!(
                    "is missing, and its chain ends at {last}: it was removed, or the first writer \
                     was killed; the next writer of the stream makes it"
                ),
            );
        }
        (None, None) => {}
    }
    for kept in expected.iter().filter(|kept| kept.stream == *stream) {
        if !passed.contains(&(kept.last, kept.digest)) {
            let rolled_back = format!(
                "the copy kept elsewhere says sequence {} with digest {}, which the chain does not hold: \
                 the stream was rolled back or rewritten",
                kept.last, kept.digest
            );
            report.problem(&key, rolled_back);
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
