//! Checks the outputs of compaction: their entries, their bytes, their chain, and that they were
//! made of what the stream's own chain says there was.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

use dacapo_event::{Sequence, StreamName};
use futures::{StreamExt, TryStreamExt};

use super::segment::{self, Checked};
use super::stream::Committed;
use super::{DISAPPEARED, ENTRIES_AT_ONCE, End, MISSING, Report, damage_of};
use crate::chain::{self, ChainEntry};
use crate::compaction::{self, CompactionEntry, Input};
use crate::store::{ObjectKey, Store};
use crate::{ArchiveError, layout};

/// What is kept of a stream's outputs while they are gone along, beside its chain.
pub(super) struct Outputs<'a> {
    stream: &'a StreamName,
    end: End,
    /// What the output at the end was made of, by first sequence, if it is sound.
    inputs: BTreeMap<Sequence, Input>,
    /// Where the outputs end that are sound.
    last: Sequence,
    /// The first sequences of those that are not.
    wrong: BTreeSet<Sequence>,
    /// The last entry that was readable.
    key: Option<ObjectKey>,
}

impl<'a> Outputs<'a> {
    pub(super) fn of(stream: &'a StreamName) -> Self {
        Outputs {
            stream,
            end: End::Start,
            inputs: BTreeMap::new(),
            last: 0,
            wrong: BTreeSet::new(),
            key: None,
        }
    }

    /// Comes by the next output; `checked` is told its size.
    ///
    /// An entry within the output before it is a problem and changes nothing: that one still stands
    /// for what it was made of.
    pub(super) fn take(
        &mut self,
        read: OutputRead,
        report: &mut Report,
        checked: &mut dyn FnMut(u64),
    ) {
        let first = read.first;
        let key = layout::compaction_entry(self.stream, first);
        let (expected, previous) = match &self.end {
            End::Start => (Some(1), None),
            End::At(before) => (Some(before.last.saturating_add(1)), Some(before.digest)),
            End::Unknown => (None, None),
        };
        let within = expected.filter(|expected| first < *expected);
        let (output, found) = match read.found {
            Ok(found) => found,
            Err(problem) => {
                report.problem(&key, None, problem);
                self.wrong.insert(first);
                if within.is_none() {
                    self.end = End::Unknown;
                    self.inputs.clear();
                }
                return;
            }
        };
        let sequences = Some((first, output.last));
        report.outputs += 1;
        if let Made::Missing | Made::Wrong(_) = found {
            self.wrong.insert(first);
        }
        if layout::parse_compacted(&output.segment).is_some() && !matches!(found, Made::Missing) {
            report.bytes = report.bytes.saturating_add(output.size);
            checked(output.size);
        }
        if let Some(expected) = within {
            let problem = format!("begins before the output before it ends, at {}", expected - 1);
            report.problem(&key, sequences, problem);
            return;
        }
        match expected {
            Some(expected) if first > expected => {
                let missing = Some((expected, first - 1));
                report.problem(layout::compaction_entry(self.stream, expected), missing, MISSING);
            }
            Some(_) if output.previous != previous => {
                report.problem(&key, sequences, "does not continue the output before it");
            }
            Some(_) | None => {}
        }
        self.inputs.clear();
        match found {
            Made::Of { inputs, dropped } => {
                report.dropped += dropped;
                self.last = self.last.max(output.last);
                self.inputs = inputs.into_iter().map(|input| (input.first, input)).collect();
            }
            Made::Missing => report.problem(&output.segment, sequences, MISSING),
            Made::Wrong(problem) => report.problem(&output.segment, sequences, problem),
        }
        self.key = Some(key);
        self.end = End::At(output);
    }

    /// Returns whether the output that was come by last is sound, was made of this very segment,
    /// and holds what was in it; one that was made of another one at its place is a problem.
    pub(super) fn stand_for(&self, entry: &ChainEntry, report: &mut Report) -> bool {
        let (End::At(output), Some(input)) = (&self.end, self.inputs.get(&entry.first)) else {
            return false;
        };
        let is_itself = layout::parse_segment(&output.segment).is_some();
        let same = match is_itself {
            true => Input::of(entry) == *input && entry.segment == output.segment,
            false => input.is_of(entry, output),
        };
        if !same {
            let problem = format!(
                "was made of another segment at sequence {} than the chain names",
                entry.first
            );
            report.problem(&output.segment, Some((entry.first, entry.last)), problem);
        }
        // A segment that was taken over as it is stands for nothing but itself.
        same && !is_itself
    }

    /// Returns where those end that are sound.
    pub(super) fn last(&self) -> Sequence {
        self.last
    }

    /// Goes along those that a compaction made since they were listed, for segments that it deleted
    /// meanwhile; returns those of the `missing` that none of them stands for.
    pub(super) async fn made_since(
        &mut self,
        store: &Arc<dyn Store>,
        mut missing: Vec<Committed>,
        report: &mut Report,
        checked: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Vec<Committed>, ArchiveError> {
        let (stream, prefix) = (self.stream, layout::compactions_of(self.stream));
        let after = self.key.clone();
        let listed = chain::list_placed(&**store, prefix, after, layout::parse_compaction_entry);
        let mut reads =
            pin!(listed.and_then(|(_, first)| async move { read(store, stream, first).await }));
        while !missing.is_empty()
            && let Some(output) = reads.try_next().await?
        {
            // One that is not readable comes after the last that is, and was told.
            if self.wrong.contains(&output.first) {
                continue;
            }
            self.take(output, report, checked);
            missing.retain(|missing| {
                let stands_for = self.stand_for(&missing.entry, report);
                report.compacted += u64::from(stands_for);
                !stands_for
            });
        }
        Ok(missing)
    }

    /// Looks for those that no entry names (of them the `missing` segments may have been made), and
    /// for those of another size than their entry gives.
    pub(super) async fn check_unnamed(
        &self,
        store: &dyn Store,
        missing: &[Committed],
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        let (stream, prefix) = (self.stream, layout::compacted_of(self.stream));
        let listed = chain::list_placed(store, prefix, None, layout::parse_compacted);
        let entries = listed.map(|listed| async {
            let (object, first) = listed?;
            let entry = compaction::exact_entry(store, stream, first).await;
            Ok::<_, ArchiveError>((object, first, entry))
        });
        let mut entries = pin!(entries.buffered(ENTRIES_AT_ONCE));
        while let Some((object, first, entry)) = entries.try_next().await? {
            match entry {
                Ok(Some(entry)) if entry.output.segment == object.key => {
                    if !self.wrong.contains(&first) {
                        report.check_size(&object, &entry.output);
                    }
                }
                Ok(entry) => {
                    report.note(
                        &object.key,
                        "is an output of a compaction that was stopped or overtaken; it stands \
                         for nothing",
                    );
                    let at = missing.binary_search_by_key(&first, |missing| missing.entry.first);
                    if let (None, Ok(at)) = (entry, at) {
                        let problem =
                            format!("{MISSING}, or a segment is that {} was made of", object.key);
                        report.problem(
                            layout::compaction_entry(stream, first),
                            Some(missing[at].sequences()),
                            problem,
                        );
                    }
                }
                Err(error) => {
                    let problem = damage_of(error)?;
                    let problem = format!(
                        "is named by nothing now: its compaction entry is damaged ({problem})"
                    );
                    report.problem(&object.key, None, problem);
                }
            }
        }
        Ok(())
    }
}

/// What was read of one output.
pub(super) struct OutputRead {
    first: Sequence,
    /// What its entry says of it and what it was found to be, or what is wrong with the entry.
    found: Result<(ChainEntry, Made), String>,
}

/// What an output was found to be.
enum Made {
    /// Sound, and made of these.
    Of { inputs: Vec<Input>, dropped: u64 },
    /// Not there.
    Missing,
    /// Not what its entry says.
    Wrong(String),
}

/// Reads the compaction entry at this sequence and the output that it names, and compares them.
pub(super) async fn read(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    first: Sequence,
) -> Result<OutputRead, ArchiveError> {
    let found = match compaction::exact_entry(&**store, stream, first).await {
        Ok(Some(entry)) => {
            let made = made(store, stream, &entry).await?;
            Ok((entry.output, made))
        }
        Ok(None) => Err(DISAPPEARED.to_owned()),
        Err(error) => Err(damage_of(error)?),
    };
    Ok(OutputRead { first, found })
}

async fn made(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    entry: &CompactionEntry,
) -> Result<Made, ArchiveError> {
    if entry.is_taken_over() {
        // Its bytes are checked in the stream's own chain.
        return Ok(Made::Of { inputs: vec![Input::of(&entry.output)], dropped: 0 });
    }
    Ok(match segment::check(store, stream, &entry.output).await? {
        Checked::Sound(output) => match output.compaction() {
            Some(made) => {
                Made::Of { inputs: made.inputs.clone(), dropped: made.dropped.len() as u64 }
            }
            None => Made::Wrong("does not say what it was made of".to_owned()),
        },
        Checked::Missing => Made::Missing,
        Checked::Wrong(problem) => Made::Wrong(problem),
    })
}
