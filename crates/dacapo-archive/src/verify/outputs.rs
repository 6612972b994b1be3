//! Checks the outputs of compaction: their entries, their bytes, their chain, and that they were
//! made of what the stream's own chain says there was.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

use dacapo_event::{Sequence, StreamName};
use futures::{StreamExt, TryStreamExt};

use super::segment::{self, Checked, Kind};
use super::stream::Committed;
use super::{DISAPPEARED, ENTRIES_AT_ONCE, Finding, MISSING, Report, damage};
use crate::chain::{self, ChainEntry};
use crate::compaction::{self, CompactionEntry, Input};
use crate::store::{ObjectKey, Store};
use crate::{ArchiveError, layout};

/// What is kept of a stream's outputs while they are gone along, beside its chain.
pub(super) struct Outputs<'a> {
    stream: &'a StreamName,
    /// The entry that was come by last.
    key: Option<ObjectKey>,
    /// What it says, if it was readable.
    before: Option<ChainEntry>,
    /// What its output was made of, by first sequence, if it is sound.
    inputs: BTreeMap<Sequence, Input>,
    /// Where the outputs end that are sound.
    last: Sequence,
    /// The first sequences of those that are not.
    wrong: BTreeSet<Sequence>,
}

impl<'a> Outputs<'a> {
    pub(super) fn of(stream: &'a StreamName) -> Self {
        Outputs {
            stream,
            key: None,
            before: None,
            inputs: BTreeMap::new(),
            last: 0,
            wrong: BTreeSet::new(),
        }
    }

    /// Comes by the next output; `checked` is told its size.
    pub(super) fn take(
        &mut self,
        output: OutputRead,
        report: &mut Report,
        checked: &mut dyn FnMut(u64),
    ) {
        let OutputRead { key, first, entry, made, findings } = output;
        if !findings.is_empty() {
            self.wrong.insert(first);
        }
        report.problems.extend(findings);
        let is_first = self.key.replace(key.clone()).is_none();
        self.inputs.clear();
        let before = self.before.take();
        let Some(CompactionEntry { output, .. }) = entry else { return };
        let expected = before.as_ref().map_or(1, |before| before.last.saturating_add(1));
        let known = before.is_some() || is_first;
        let sequences = Some((output.first, output.last));
        if known && output.first > expected {
            let missing = Some((expected, output.first - 1));
            report.problem(layout::compaction_entry(self.stream, expected), missing, MISSING);
        } else if known && output.first < expected {
            let problem = format!("begins before the output before it ends, at {}", expected - 1);
            report.problem(&key, sequences, problem);
        } else if known && output.previous != before.as_ref().map(|before| before.digest) {
            report.problem(&key, sequences, "does not continue the output before it");
        }
        report.outputs += 1;
        if let Some((inputs, dropped)) = made {
            report.dropped += dropped;
            self.inputs = inputs.into_iter().map(|input| (input.first, input)).collect();
            self.last = self.last.max(output.last);
        }
        if layout::parse_compacted(&output.segment).is_some() {
            report.bytes = report.bytes.saturating_add(output.size);
            checked(output.size);
        }
        self.before = Some(output);
    }

    /// Returns whether the output that was come by last is sound, was made of this very segment,
    /// and holds what was in it; one that was made of another one at its place is a problem.
    pub(super) fn stand_for(&self, entry: &ChainEntry, report: &mut Report) -> bool {
        let (Some(output), Some(input)) = (&self.before, self.inputs.get(&entry.first)) else {
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
            self.take(output, report, checked);
            missing.retain(|missing| {
                let stands_for = self.stand_for(&missing.entry, report);
                report.compacted += u64::from(stands_for);
                !stands_for
            });
        }
        Ok(missing)
    }

    /// Looks for those that no entry names: of them the `missing` segments may have been made.
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
                    continue;
                }
                Ok(_) => report.note(
                    &object.key,
                    "is an output of a compaction that was stopped or overtaken; it stands for \
                     nothing",
                ),
                Err(error) => {
                    let damage = damage(error)?;
                    let problem = format!(
                        "is named by nothing now: its compaction entry is damaged ({damage})"
                    );
                    report.problem(&object.key, None, problem);
                }
            }
            if let Ok(at) = missing.binary_search_by_key(&first, |missing| missing.entry.first) {
                let problem = format!("{MISSING}, or a segment is that {} was made of", object.key);
                let entry = layout::compaction_entry(stream, first);
                report.problem(entry, Some(missing[at].sequences()), problem);
            }
        }
        Ok(())
    }
}

/// What was read of one output.
pub(super) struct OutputRead {
    /// Of its entry.
    key: ObjectKey,
    first: Sequence,
    entry: Option<CompactionEntry>,
    /// What it was made of and how many repeats were left out, if it is sound.
    made: Option<(Vec<Input>, u64)>,
    findings: Vec<Finding>,
}

/// Reads the compaction entry at this sequence and the output that it names, and compares them.
pub(super) async fn read(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    first: Sequence,
) -> Result<OutputRead, ArchiveError> {
    let key = layout::compaction_entry(stream, first);
    let read =
        |entry, made, findings| OutputRead { key: key.clone(), first, entry, made, findings };
    let unreadable = |problem: String| read(None, None, vec![Finding::of(&key, None, problem)]);
    let entry = match compaction::exact_entry(&**store, stream, first).await {
        Ok(Some(entry)) => entry,
        Ok(None) => return Ok(unreadable(DISAPPEARED.to_owned())),
        Err(error) => return damage(error).map(unreadable),
    };
    let named = &entry.output;
    if entry.is_taken_over() {
        // Its bytes are checked in the stream's own chain.
        let made = (vec![Input::of(named)], 0);
        return Ok(read(Some(entry), Some(made), Vec::new()));
    }
    let problem = match segment::check(store, stream, named, Kind::Output).await? {
        Checked::Sound(output) => match output.compaction() {
            Some(made) => {
                let made = (made.inputs.clone(), made.dropped.len() as u64);
                return Ok(read(Some(entry), Some(made), Vec::new()));
            }
            None => "does not say what it was made of".to_owned(),
        },
        Checked::Missing => MISSING.to_owned(),
        Checked::Wrong(problem) => problem,
    };
    let finding = Finding::of(&named.segment, Some((named.first, named.last)), problem);
    Ok(read(Some(entry), None, vec![finding]))
}
