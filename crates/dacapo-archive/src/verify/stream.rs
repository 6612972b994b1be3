//! Goes along the chain of one stream, and then through its segments for those that no entry names.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use dacapo_event::{Digest, Sequence, StreamName};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::outputs::Outputs;
use super::{Finding, MISSING, Report, SEGMENTS_AT_ONCE, Survey, problem_of, segment};
use crate::chain::{self, ChainEntry, Head};
use crate::store::{ObjectKey, Store};
use crate::{ArchiveError, layout};

/// Checks all of a stream; `checked` is told the size of each segment and output.
pub(super) async fn check(
    store: &Arc<dyn Store>,
    survey: &Survey,
    name: &StreamName,
    expected: &[Head],
    report: &mut Report,
    checked: &mut dyn FnMut(u64),
) -> Result<(), ArchiveError> {
    let head = survey.heads.get(name);
    let expected: Vec<&Head> = expected.iter().filter(|kept| kept.stream == *name).collect();
    let wanted: BTreeSet<(Sequence, Digest)> =
        head.into_iter().chain(expected.iter().copied()).map(end_of).collect();
    let mut chain = Chain { name, head, end: End::Start, last: 0, grown: 0, held: BTreeSet::new() };
    let mut outputs = Outputs::of(store, name);
    let mut missing = Vec::new();
    let mut reads = pin!(
        entries(store, name, head.map(|head| head.last))
            .map(|listed| async { read(store, name, listed?).await })
            .buffered(SEGMENTS_AT_ONCE)
    );
    while let Some(EntryRead { key, entry, is_there, findings }) = reads.try_next().await? {
        report.problems.extend(findings);
        let Some(entry) = entry else {
            chain.end = End::Unknown;
            continue;
        };
        chain.check_link(&key, &entry, report);
        report.segments += 1;
        report.events = report.events.saturating_add(entry.last - entry.first).saturating_add(1);
        let stands_for = outputs.stand_for(&entry, is_there, report, checked).await?;
        if is_there {
            report.bytes += entry.size;
            checked(entry.size);
        } else if stands_for {
            report.compacted += 1;
        } else {
            report.problems.push(named(&entry, &key, MISSING));
            missing.push((entry.first, entry.last));
        }
        if wanted.contains(&(entry.last, entry.digest)) {
            chain.held.insert((entry.last, entry.digest));
        }
        chain.last = chain.last.max(entry.last);
        chain.end = End::At(entry);
    }
    let compacted = outputs.rest(report, checked).await?;
    chain.check_outputs(&**store, compacted, report).await?;
    outputs.check_unnamed(&missing, report).await?;
    chain.check_unnamed(&**store, report).await?;
    chain.check_heads(survey, &expected, report);
    Ok(())
}

/// A chain entry's key, its first sequence, and how far it goes if it cannot be read: to the next
/// one, or to where the head says.
type Listed = (ObjectKey, Sequence, Option<Sequence>);

/// Lists the chain entries of a stream.
fn entries<'a>(
    store: &'a Arc<dyn Store>,
    name: &StreamName,
    end: Option<Sequence>,
) -> impl Stream<Item = Result<Listed, ArchiveError>> + 'a {
    let listed =
        chain::list_placed(&**store, layout::chain_of(name), None, layout::parse_chain_entry);
    stream::unfold(Box::pin(listed.peekable()), move |mut listed| async move {
        let entry = listed.next().await?;
        let until = match listed.as_mut().peek().await {
            Some(Ok((_, next))) => Some(next.saturating_sub(1)),
            _ => end,
        };
        Some((entry.map(|(object, first)| (object.key, first, until)), listed))
    })
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
struct EntryRead {
    key: ObjectKey,
    entry: Option<ChainEntry>,
    /// Whether the segment is there, sound or not; one that is not may have been compacted.
    is_there: bool,
    findings: Vec<Finding>,
}

/// Says what is wrong with a segment, and which entry names it: one that was changed may name a
/// segment that never was.
fn named(entry: &ChainEntry, key: &ObjectKey, problem: &str) -> Finding {
    let problem = format!("{problem} (its chain entry is {key})");
    Finding::of(&entry.segment, Some((entry.first, entry.last)), problem)
}

/// Reads one chain entry and the segment that it names, and compares them.
async fn read(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    (key, first, until): Listed,
) -> Result<EntryRead, ArchiveError> {
    let unreadable = |problem: String| {
        let problem = format!("{problem}; the chain cannot be followed past it");
        let sequences = until.filter(|until| *until >= first).map(|until| (first, until));
        vec![Finding::of(&key, sequences, problem)]
    };
    let findings = match chain::get_if_there(&**store, &key).await? {
        None => unreadable("disappeared while it was read".to_owned()),
        Some(bytes) => match ChainEntry::from_exact_bytes(&key, &bytes) {
            Ok(entry) if entry.first == first && entry.last >= first => {
                let problem = segment::check(store, stream, &entry).await?;
                let is_there = problem.as_deref() != Some(MISSING);
                let problem = problem.filter(|_| is_there);
                let findings = problem.map(|problem| named(&entry, &key, &problem));
                let findings = findings.into_iter().collect();
                return Ok(EntryRead { key, entry: Some(entry), is_there, findings });
            }
            Ok(entry) => {
                unreadable(format!("is the entry of sequences {} to {}", entry.first, entry.last))
            }
            Err(error) => unreadable(problem_of(&error)),
        },
    };
    Ok(EntryRead { key, entry: None, is_there: false, findings })
}

fn end_of(head: &Head) -> (Sequence, Digest) {
    (head.last, head.digest)
}

/// What is kept of a chain while it is gone along.
struct Chain<'a> {
    name: &'a StreamName,
    head: Option<&'a Head>,
    end: End,
    last: Sequence,
    /// Where it has come to since, if a writer went on.
    grown: Sequence,
    /// Those ends of segments that a head names.
    held: BTreeSet<(Sequence, Digest)>,
}

impl Chain<'_> {
    fn check_link(&self, key: &ObjectKey, entry: &ChainEntry, report: &mut Report) {
        if self.head.is_some_and(|head| head.last == entry.last && head.segment != entry.segment) {
            let problem = format!("names another segment than {key} does");
            report.problem(layout::head(self.name), None, problem);
        }
        let (expected, digest) = match &self.end {
            End::Start => (1, None),
            End::At(before) => (before.last.saturating_add(1), Some(before.digest)),
            End::Unknown => return,
        };
        if entry.first > expected {
            let gap = (expected, entry.first - 1);
            report.problem(layout::chain_entry(self.name, expected), Some(gap), MISSING);
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

    /// Returns whether a sequence is beyond the end of the chain, also as it is by now; the next one
    /// is not.
    async fn is_beyond(
        &mut self,
        store: &dyn Store,
        sequence: Sequence,
    ) -> Result<bool, ArchiveError> {
        self.grown = self.grown.max(self.last);
        while self.grown.saturating_add(1) < sequence {
            match chain::entry(store, self.name, self.grown + 1).await {
                Ok(Some(entry)) if entry.last > self.grown => self.grown = entry.last,
                Err(ArchiveError::Store(error)) => return Err(error.into()),
                Ok(_) | Err(_) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Holds where the outputs of compaction end against where the chain does.
    async fn check_outputs(
        &mut self,
        store: &dyn Store,
        compacted: Sequence,
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        if self.is_beyond(store, compacted.saturating_add(1)).await? {
            let end = self.last;
            let problem = format!("end at sequence {compacted}, but the chain ends at {end}");
            let beyond = Some((end.saturating_add(1), compacted));
            report.problem(layout::compactions_of(self.name), beyond, problem);
        }
        Ok(())
    }

    /// Looks for segments that no entry names, and for those of another size than theirs gives:
    /// what was appended to a segment is in none of the places that its entry leads to.
    async fn check_unnamed(
        &mut self,
        store: &dyn Store,
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        let (name, prefix) = (self.name, layout::segments_of(self.name));
        let listed = chain::list_placed(store, prefix, None, layout::parse_segment);
        let entries = listed.map(|listed| async {
            let (object, first) = listed?;
            let entry = chain::entry(store, name, first).await;
            Ok::<_, ArchiveError>((object, first, entry))
        });
        let mut entries = pin!(entries.buffered(SEGMENTS_AT_ONCE));
        while let Some((object, first, entry)) = entries.try_next().await? {
            match entry {
                Ok(Some(entry)) if entry.segment == object.key => {
                    report.check_size(&object, &entry);
                }
                Err(ArchiveError::Store(error)) => return Err(error.into()),
                // A writer puts no segment before the one before it is committed.
                Ok(_) | Err(_) if self.is_beyond(store, first).await? => {
                    let end = self.last;
                    let problem = format!(
                        "begins at {first}, but the chain ends at {end}: chain entries are gone"
                    );
                    report.problem(&object.key, None, problem);
                }
                // A writer that is at work.
                Ok(_) | Err(_) if first > self.last && self.grown > self.last => {}
                Ok(_) => report.note(
                    &object.key,
                    "was put but never committed (its writer was stopped or overtaken); its \
                     events were delivered again",
                ),
                Err(_) => report.note(&object.key, "is named by nothing that can be read"),
            }
        }
        Ok(())
    }

    fn check_heads(&self, survey: &Survey, expected: &[&Head], report: &mut Report) {
        let key = layout::head(self.name);
        let end = self.last;
        match self.head {
            Some(head) if head.last > end => {
                let lost = format!(
                    "says sequence {}, but the chain ends at {end}: the tail is gone",
                    head.last
                );
                report.problem(&key, Some((end.saturating_add(1), head.last)), lost);
            }
            Some(head) if !self.held.contains(&end_of(head)) => {
                let problem =
                    format!("names a segment ending at {} that is not in the chain", head.last);
                report.problem(&key, None, problem);
            }
            Some(head) if head.last < end => {
                report.note(
                    &key,
                    format!(
                        "is behind its chain ({} of {end}); the next writer moves it",
                        head.last
                    ),
                );
            }
            None if end > 0 && !survey.damaged_heads.contains(self.name) => {
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
        for kept in expected {
            if !self.held.contains(&end_of(kept)) {
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
}
