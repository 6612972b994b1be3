//! Checks the outputs of compaction: their entries, their bytes, their chain, and that they were
//! made of what the stream's own chain says there was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dacapo_event::{Sequence, StreamName};
use futures::{StreamExt, stream};

use super::{Finding, MISSING, Report, SEGMENTS_AT_ONCE, check_segment, problem_of};
use crate::chain::ChainEntry;
use crate::compaction::{self, CompactionEntry, Input};
use crate::store::{ObjectKey, ObjectMeta, Store};
use crate::{ArchiveError, Segment, layout};

/// What the sound outputs of a stream stand for.
#[derive(Default)]
pub(super) struct Outputs {
    /// The segments that they were made of, by first sequence, and which output it was.
    inputs: BTreeMap<Sequence, (Input, Arc<ChainEntry>)>,
    /// Those that no entry names, by first sequence.
    unnamed: BTreeMap<Sequence, ObjectKey>,
    /// Where they end, sound or not.
    last: Sequence,
}

impl Outputs {
    /// Checks all outputs of a stream; `checked` is told the size of each.
    pub(super) async fn check(
        store: &Arc<dyn Store>,
        stream: &StreamName,
        firsts: &[Sequence],
        objects: &[ObjectMeta],
        report: &mut Report,
        mut checked: impl FnMut(u64),
    ) -> Result<Self, ArchiveError> {
        let sizes: BTreeMap<&ObjectKey, u64> = objects.iter().map(|o| (&o.key, o.size)).collect();
        let mut outputs = Outputs::default();
        let (mut named, mut unreadable) = (BTreeSet::new(), BTreeSet::new());
        let mut before: Option<ChainEntry> = None;
        let mut reads = stream::iter(firsts)
            .map(|first| read(store, stream, *first, &sizes))
            .buffered(SEGMENTS_AT_ONCE);
        let mut at_start = true;
        while let Some(output) = reads.next().await {
            let Output { key, entry, made, findings } = output?;
            report.problems.extend(findings);
            let Some(entry) = entry else {
                unreadable.extend(layout::parse_compaction_entry(&key).map(|(_, first)| first));
                before = None;
                at_start = false;
                continue;
            };
            let output = entry.output;
            let expected = before.as_ref().map_or(1, |before| before.last.saturating_add(1));
            let known = before.is_some() || at_start;
            let sequences = Some((output.first, output.last));
            if known && output.first > expected {
                let missing = Some((expected, output.first - 1));
                report.problem(layout::compaction_entry(stream, expected), missing, MISSING);
            } else if known && output.first < expected {
                let problem =
                    format!("begins before the output before it ends, at {}", expected - 1);
                report.problem(&key, sequences, problem);
            } else if known && output.previous != before.as_ref().map(|before| before.digest) {
                report.problem(&key, sequences, "does not continue the output before it");
            }
            at_start = false;
            named.insert(output.segment.clone());
            report.outputs += 1;
            if layout::parse_compacted(&output.segment).is_some() {
                report.bytes += output.size;
                checked(output.size);
            }
            if let Some((inputs, dropped)) = made {
                report.dropped += dropped;
                let of = Arc::new(output.clone());
                let inputs = inputs.into_iter();
                outputs.inputs.extend(inputs.map(|input| (input.first, (input, Arc::clone(&of)))));
            }
            outputs.last = outputs.last.max(output.last);
            before = Some(output);
        }
        for object in objects.iter().filter(|object| !named.contains(&object.key)) {
            let place = layout::parse_compacted(&object.key);
            let first = place.map(|(_, first)| first);
            if first.is_some_and(|first| unreadable.contains(&first)) {
                let problem = "is named by nothing now: its compaction entry is damaged";
                report.problem(&object.key, None, problem);
            } else {
                let note = "is an output of a compaction that was stopped or overtaken; it stands \
                            for nothing";
                report.note(&object.key, note);
            }
            outputs.unnamed.extend(first.map(|first| (first, object.key.clone())));
        }
        Ok(outputs)
    }

    /// Returns whether a sound output was made of this very segment and holds what was in it; one
    /// that was made of another one at its place is a problem.
    pub(super) fn stand_for(&self, entry: &ChainEntry, report: &mut Report) -> bool {
        let Some((input, output)) = self.inputs.get(&entry.first) else { return false };
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

    /// Looks for what else may be gone if a segment is and nothing stands for it.
    pub(super) fn check_unnamed(
        &self,
        stream: &StreamName,
        missing: &ChainEntry,
        report: &mut Report,
    ) {
        let Some(output) = self.unnamed.get(&missing.first) else { return };
        let problem = format!("{MISSING}, or a segment is that {output} was made of");
        let sequences = Some((missing.first, missing.last));
        report.problem(layout::compaction_entry(stream, missing.first), sequences, problem);
    }

    /// Holds where the outputs end against where the chain does.
    pub(super) fn check_end(&self, stream: &StreamName, end: Sequence, report: &mut Report) {
        if self.last > end {
            let problem = format!("end at sequence {}, but the chain ends at {end}", self.last);
            report.problem(layout::compactions_of(stream), Some((end + 1, self.last)), problem);
        }
    }
}

/// What was read of one output.
struct Output {
    /// Of its entry.
    key: ObjectKey,
    entry: Option<CompactionEntry>,
    /// What it was made of and how many repeats were left out, if it is sound.
    made: Option<(Vec<Input>, u64)>,
    findings: Vec<Finding>,
}

async fn read(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    first: Sequence,
    sizes: &BTreeMap<&ObjectKey, u64>,
) -> Result<Output, ArchiveError> {
    let key = layout::compaction_entry(stream, first);
    let mut output = Output { key: key.clone(), entry: None, made: None, findings: Vec::new() };
    let unknown = |problem: String| Finding::of(&key, None, problem);
    let entry = match compaction::exact_entry(&**store, stream, first).await {
        Ok(Some(entry)) if entry.output.first == first && entry.output.last >= first => entry,
        Ok(_) => {
            output.findings.push(unknown("is the entry of another place".to_owned()));
            return Ok(output);
        }
        Err(ArchiveError::Store(error)) => return Err(error.into()),
        Err(error) => {
            output.findings.push(unknown(problem_of(&error)));
            return Ok(output);
        }
    };
    let named = &entry.output;
    let segment = &named.segment;
    let found = |problem: String| Finding::of(segment, Some((named.first, named.last)), problem);
    if entry.is_taken_over() {
        // Its bytes are checked in the stream's own chain.
        output.made = Some((vec![Input::of(named)], 0));
    } else {
        match sizes.get(segment) {
            None => output.findings.push(found(MISSING.to_owned())),
            Some(size) if *size != named.size => {
                let problem = format!("has {size} bytes, was written with {}", named.size);
                output.findings.push(found(problem));
            }
            Some(_) => match check_segment(store, stream, named).await? {
                Some(problem) => output.findings.push(found(problem)),
                None => {
                    let opened =
                        Segment::open(Arc::clone(store), segment, Some(named.size)).await?;
                    match opened.compaction() {
                        Some(made) => {
                            let dropped = made.dropped.len() as u64;
                            output.made = Some((made.inputs.clone(), dropped));
                        }
                        None => {
                            let problem = "does not say what it was made of".to_owned();
                            output.findings.push(found(problem));
                        }
                    }
                }
            },
        }
    }
    output.entry = Some(entry);
    Ok(output)
}
