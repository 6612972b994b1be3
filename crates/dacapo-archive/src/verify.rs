//! Checks an archive against itself: every segment, its digest, its place in the chain,
//! gaps in the sequences, the heads, and heads that were kept elsewhere.
//!
//! Reads everything, changes nothing, and goes on after each problem so that one run
//! names all of them.
//!
//! Goes along each stream in order of sequence and holds of each listing what the store gives at a
//! time (a page; a file store has the names of one directory besides), so that memory grows with
//! what is wrong and not with how many segments there are. Segments that were put after the survey
//! are not gone along, so that a writer at work does not keep a verification from its end.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dacapo_event::{Sequence, StreamName};
use futures::TryStreamExt;

use crate::chain::{self, ChainEntry, Head};
use crate::store::{ObjectMeta, Store, StoreError};
use crate::{ArchiveError, layout};

pub(crate) use self::segment::digest_of;

mod outputs;
mod places;
mod segment;
mod stream;

/// Segments and outputs read at once: hides a store's latency.
const SEGMENTS_AT_ONCE: usize = 4;

/// Entries of objects that were listed, read at once: they are small.
const ENTRIES_AT_ONCE: usize = 16;

/// How long a head may come after the first chain entry of its stream: a put on a slow store, tried
/// again.
const HEAD_PATIENCE: Duration = Duration::from_secs(2);

/// Said of what should be there and is not.
const MISSING: &str = "is missing";

/// How far a chain was followed.
enum End {
    /// Nothing was read yet.
    Start,
    /// To this entry.
    At(ChainEntry),
    /// The last entry was not readable.
    Unknown,
}

/// Said of what was listed and could not be read then.
const DISAPPEARED: &str = "disappeared while it was read";

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
    mut progress: impl FnMut(Progress) + Send,
) -> Result<Report, ArchiveError> {
    let mut report = Report::default();
    let survey = Survey::take(&*store, &mut report).await?;
    let mut so_far =
        Progress { segments: 0, segments_all: survey.objects, bytes: 0, bytes_all: survey.bytes };
    let mut checked = |size| {
        so_far.segments += 1;
        so_far.bytes = so_far.bytes.saturating_add(size);
        progress(so_far);
    };
    let mut headless_streams = Vec::new();
    for (name, surveyed) in &survey.streams {
        report.streams += 1;
        let headless = stream::check(&store, name, surveyed, expected, &mut report, &mut checked);
        if let Some(end) = headless.await? {
            headless_streams.push((name, end));
        }
    }
    check_headless(&*store, &headless_streams, &mut report).await?;
    for head in expected {
        if !survey.streams.contains_key(&head.stream) {
            let gone = format!("stream `{}` is gone", head.stream);
            report.problem(layout::head(&head.stream), Some((1, head.last)), gone);
        }
    }
    report.events = report.events.saturating_sub(report.dropped);
    report.heads = survey.streams.into_values().filter_map(|surveyed| surveyed.head).collect();
    Ok(report)
}

/// Asks again for the heads of streams that had none: that of a stream whose first writer is at work
/// comes right after its first chain entry.
async fn check_headless(
    store: &dyn Store,
    streams: &[(&StreamName, Sequence)],
    report: &mut Report,
) -> Result<(), ArchiveError> {
    if !streams.is_empty() {
        tokio::time::sleep(HEAD_PATIENCE).await;
    }
    for (name, end) in streams {
        let problem = match chain::head(store, name).await {
            Ok(Some(head)) if head.stream == **name => continue,
            Ok(Some(head)) => format!("is the head of `{}`", head.stream),
            Ok(None) => format!(
                "is missing, and its chain ends at {end}: it was removed, or the first writer was \
                 killed; the next writer of the stream makes it"
            ),
            Err(error) => damage_of(error)?,
        };
        report.problem(layout::head(name), None, problem);
    }
    Ok(())
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

    /// Holds the size of an object that is there against that in its entry.
    fn check_size(&mut self, object: &ObjectMeta, entry: &ChainEntry) {
        if let Some(problem) = segment::size_differs(object.size, entry) {
            self.problem(&object.key, Some((entry.first, entry.last)), problem);
        }
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

/// What there is under the archive's prefix: its streams, and how much is to be read.
#[derive(Default)]
struct Survey {
    streams: BTreeMap<StreamName, Surveyed>,
    /// Segments and outputs of compaction.
    objects: u64,
    /// Their bytes.
    bytes: u64,
}

/// What there is of one stream.
#[derive(Default)]
struct Surveyed {
    head: Option<Head>,
    /// Whether its head is there and was found to be damaged.
    has_damaged_head: bool,
    /// The first sequence of its last chain entry, and that of its last segment: what comes after
    /// them was put later.
    last_entry: Sequence,
    last_segment: Sequence,
}

impl Survey {
    /// Heads are read first, then chains are listed, then segments: what a running writer adds
    /// between makes each of them go further than the one before, never less far.
    async fn take(store: &dyn Store, report: &mut Report) -> Result<Self, ArchiveError> {
        let mut survey = Survey::default();
        survey.read_heads(store, report).await?;
        for (prefix, not_ours) in [
            (layout::CHAIN, "is no chain entry; not ours"),
            (layout::SEGMENTS, "is no segment; not ours"),
            (layout::COMPACTIONS, "is no compaction entry; not ours"),
            (layout::COMPACTED, "is no output of compaction; not ours"),
        ] {
            let mut listed = pin!(chain::list(store, prefix.to_owned(), None));
            while let Some(object) = listed.try_next().await? {
                match layout::stream_of(&object.key) {
                    Some(stream) => survey.count(stream, &object),
                    None => report.note(&object.key, not_ours),
                }
            }
        }
        Ok(survey)
    }

    fn count(&mut self, stream: StreamName, object: &ObjectMeta) {
        let surveyed = self.streams.entry(stream).or_default();
        if layout::parse_any_segment(&object.key).is_some() {
            self.objects += 1;
            self.bytes = self.bytes.saturating_add(object.size);
        }
        if let Some((_, first)) = layout::parse_chain_entry(&object.key) {
            surveyed.last_entry = surveyed.last_entry.max(first);
        }
        if let Some((_, first)) = layout::parse_segment(&object.key) {
            surveyed.last_segment = surveyed.last_segment.max(first);
        }
    }

    async fn read_heads(
        &mut self,
        store: &dyn Store,
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        let mut listed = pin!(chain::list(store, layout::HEADS.to_owned(), None));
        while let Some(object) = listed.try_next().await? {
            let Some(stream) = layout::parse_head(&object.key) else {
                report.note(&object.key, "is no head; not ours");
                continue;
            };
            let bytes = chain::get_if_there(store, &object.key).await;
            let read = bytes.and_then(|bytes| match bytes {
                Some(bytes) => Head::from_exact_bytes(&object.key, &bytes).map(Some),
                None => Ok(None),
            });
            let surveyed = self.streams.entry(stream.clone()).or_default();
            let problem = match read {
                Ok(Some(head)) if head.stream == stream => {
                    surveyed.head = Some(head);
                    continue;
                }
                Ok(Some(head)) => format!("is the head of `{}`", head.stream),
                // The chain says whether there should be one.
                Ok(None) => continue,
                Err(error) => damage_of(error)?,
            };
            report.problem(&object.key, None, problem);
            surveyed.has_damaged_head = true;
        }
        Ok(())
    }
}

/// Returns what is wrong with an object that could not be read, without its name, which the finding
/// has beside it.
///
/// # Errors
/// The store failed in a way that says nothing about the object.
fn damage_of(error: ArchiveError) -> Result<String, ArchiveError> {
    match error {
        ArchiveError::Store(StoreError::Permanent { reason, .. }) => Ok(reason),
        ArchiveError::Store(error @ StoreError::Cold { .. }) => Ok(error.to_string()),
        ArchiveError::Damaged { problem, .. } => Ok(problem),
        ArchiveError::NewerFormat { ref key, .. } => {
            let text = error.to_string();
            Ok(text.strip_prefix(&format!("`{key}` ")).unwrap_or(&text).to_owned())
        }
        other => Err(other),
    }
}

#[cfg(test)]
mod tests;
