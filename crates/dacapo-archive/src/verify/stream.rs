//! Goes along the chain of one stream, and then through its segments for those that no entry names.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use dacapo_event::{Digest, Sequence, StreamName};
use futures::{StreamExt, TryStreamExt, future};

use super::outputs::{self, OutputRead, Outputs};
use super::places::{Place, places};
use super::segment::{self, Checked};
use super::{
    DISAPPEARED, ENTRIES_AT_ONCE, End, Finding, MISSING, Report, SEGMENTS_AT_ONCE, Surveyed,
    damage_of,
};
use crate::chain::{self, ChainEntry, Head};
use crate::store::{ObjectKey, Store};
use crate::{ArchiveError, layout};

/// Checks all of a stream; `checked` is told the size of each segment and output. Returns where its
/// chain ends if there was no head of it, for the caller to ask again.
pub(super) async fn check(
    store: &Arc<dyn Store>,
    name: &StreamName,
    surveyed: &Surveyed,
    expected: &[Head],
    report: &mut Report,
    checked: &mut (dyn FnMut(u64) + Send),
) -> Result<Option<Sequence>, ArchiveError> {
    let expected: Vec<&Head> = expected.iter().filter(|kept| kept.stream == *name).collect();
    let mut chain = Chain::of(name, surveyed, &expected);
    let mut outputs = Outputs::of(name);
    let mut missing = Vec::new();
    let mut reads = pin!(
        places(store, name, surveyed)
            .map(|place| async { read(store, name, place?).await })
            .buffered(SEGMENTS_AT_ONCE)
    );
    while let Some(read) = reads.try_next().await? {
        match read {
            Read::Output(output) => outputs.take(output, report, checked),
            Read::Segment(read) => {
                let Some((committed, found)) = chain.take(read, report) else { continue };
                let stands_for = outputs.stand_for(&committed.entry, report);
                match found {
                    Checked::Missing if stands_for => report.compacted += 1,
                    Checked::Missing => missing.push(committed),
                    Checked::Sound(_) | Checked::Wrong(_) => {
                        report.bytes = report.bytes.saturating_add(committed.entry.size);
                        checked(committed.entry.size);
                    }
                }
            }
        }
    }
    let missing = outputs.made_since(store, missing, report, checked).await?;
    report.problems.extend(missing.iter().map(|committed| committed.finding(MISSING)));
    chain.check_outputs(&**store, outputs.last(), report).await?;
    outputs.check_unnamed(&**store, &missing, report).await?;
    chain.check_unnamed(&**store, report).await?;
    chain.check_heads(&expected, report);
    let is_headless = surveyed.head.is_none() && !surveyed.has_damaged_head && chain.last > 0;
    Ok(is_headless.then_some(chain.last))
}

/// What was read at a place.
enum Read {
    Output(OutputRead),
    Segment(SegmentRead),
}

async fn read(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    place: Place,
) -> Result<Read, ArchiveError> {
    match place {
        Place::Output(first) => outputs::read(store, stream, first).await.map(Read::Output),
        Place::Segment(first, until) => {
            read_segment(store, stream, first, until).await.map(Read::Segment)
        }
    }
}

/// What was read of a chain entry and the segment that it names.
struct SegmentRead {
    /// Of the entry.
    key: ObjectKey,
    /// The entry and what its segment is, or what is wrong with the entry.
    found: Result<(ChainEntry, Checked), String>,
    /// Which sequences it concerns if it cannot be read.
    sequences: Option<(Sequence, Sequence)>,
}

/// Reads one chain entry and the segment that it names, and compares them.
async fn read_segment(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    first: Sequence,
    until: Option<Sequence>,
) -> Result<SegmentRead, ArchiveError> {
    let found = match chain::exact_entry(&**store, stream, first).await {
        Ok(Some(entry)) => {
            let found = segment::check(store, stream, &entry).await?;
            Ok((entry, found))
        }
        Ok(None) => Err(DISAPPEARED.to_owned()),
        Err(error) => Err(damage_of(error)?),
    };
    let key = layout::chain_entry(stream, first);
    Ok(SegmentRead { key, found, sequences: until.map(|until| (first, until)) })
}

/// A segment, as its chain entry tells of it.
pub(super) struct Committed {
    /// Of the entry.
    key: ObjectKey,
    pub(super) entry: ChainEntry,
}

impl Committed {
    pub(super) fn sequences(&self) -> (Sequence, Sequence) {
        (self.entry.first, self.entry.last)
    }

    /// Says what is wrong with the segment, and which entry names it: one that was changed may name
    /// a segment that never was.
    fn finding(&self, problem: &str) -> Finding {
        let problem = format!("{problem} (its chain entry is {})", self.key);
        Finding::of(&self.entry.segment, Some(self.sequences()), problem)
    }
}

/// A segment's end, as a head tells of it.
type EndOf = (Sequence, Digest);

fn end_of(head: &Head) -> EndOf {
    (head.last, head.digest)
}

/// What is kept of a chain while it is gone along.
struct Chain<'a> {
    name: &'a StreamName,
    surveyed: &'a Surveyed,
    end: End,
    last: Sequence,
    /// Where it has come to since, if a writer went on.
    grown: Sequence,
    /// The ends of segments that heads name, and those of them that were come by.
    wanted: BTreeSet<EndOf>,
    held: BTreeSet<EndOf>,
    /// The first sequences of segments that are not what their entries say.
    wrong: BTreeSet<Sequence>,
}

impl<'a> Chain<'a> {
    fn of(name: &'a StreamName, surveyed: &'a Surveyed, expected: &[&Head]) -> Self {
        let heads = surveyed.head.iter().chain(expected.iter().copied());
        Chain {
            name,
            surveyed,
            end: End::Start,
            last: 0,
            grown: 0,
            wanted: heads.map(end_of).collect(),
            held: BTreeSet::new(),
            wrong: BTreeSet::new(),
        }
    }

    /// Comes by the next entry; returns it and what its segment is, if it is readable.
    fn take(&mut self, read: SegmentRead, report: &mut Report) -> Option<(Committed, Checked)> {
        let SegmentRead { key, found, sequences } = read;
        let (entry, found) = match found {
            Ok(found) => found,
            Err(problem) => {
                let problem = format!("{problem}; the chain cannot be followed past it");
                report.problem(&key, sequences, problem);
                self.end = End::Unknown;
                return None;
            }
        };
        self.check_link(&key, &entry, report);
        report.segments += 1;
        report.events = report.events.saturating_add(entry.last - entry.first).saturating_add(1);
        let end = (entry.last, entry.digest);
        if self.wanted.contains(&end) {
            self.held.insert(end);
        }
        self.last = self.last.max(entry.last);
        self.end = End::At(entry.clone());
        let committed = Committed { key, entry };
        if let Checked::Wrong(problem) = &found {
            report.problems.push(committed.finding(problem));
            self.wrong.insert(committed.entry.first);
        }
        Some((committed, found))
    }

    fn check_link(&self, key: &ObjectKey, entry: &ChainEntry, report: &mut Report) {
        let names_another = |head: &Head| head.last == entry.last && head.segment != entry.segment;
        if self.surveyed.head.as_ref().is_some_and(names_another) {
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
                Ok(Some(entry)) => self.grown = entry.last,
                Ok(None) => return Ok(true),
                Err(error) => {
                    damage_of(error)?;
                    return Ok(true);
                }
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
        let last = self.surveyed.last_segment;
        let listed = chain::list_placed(store, prefix, None, layout::parse_segment)
            .try_filter(move |(_, first)| future::ready(*first <= last));
        let entries = listed.map(|listed| async {
            let (object, first) = listed?;
            let entry = chain::entry(store, name, first).await;
            Ok::<_, ArchiveError>((object, first, entry))
        });
        let mut entries = pin!(entries.buffered(ENTRIES_AT_ONCE));
        while let Some((object, first, entry)) = entries.try_next().await? {
            let entry = match entry {
                Ok(Some(entry)) if entry.segment == object.key => {
                    if !self.wrong.contains(&first) {
                        report.check_size(&object, &entry);
                    }
                    continue;
                }
                Ok(entry) => Ok(entry),
                Err(error) => Err(damage_of(error)?),
            };
            // A writer puts no segment before the one before it is committed.
            if self.is_beyond(store, first).await? {
                let end = self.last;
                let problem = format!(
                    "begins at {first}, but the chain ends at {end}: chain entries are gone"
                );
                report.problem(&object.key, None, problem);
                continue;
            }
            match entry {
                // Put since the survey, or never listed: not come by.
                Err(damage) if first > self.surveyed.last_entry => {
                    report.problem(layout::chain_entry(name, first), None, damage);
                }
                Err(_) => report.note(&object.key, "is named by nothing that can be read"),
                // A writer that is at work.
                Ok(None) if self.grown > self.last && first == self.grown.saturating_add(1) => {}
                Ok(_) => report.note(
                    &object.key,
                    "was put but never committed (its writer was stopped or overtaken); its \
                     events were delivered again",
                ),
            }
        }
        Ok(())
    }

    fn check_heads(&self, expected: &[&Head], report: &mut Report) {
        let key = layout::head(self.name);
        let end = self.last;
        match &self.surveyed.head {
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
