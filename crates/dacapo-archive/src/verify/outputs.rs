//! Checks the outputs of compaction: their entries, their bytes, their chain, and that they were
//! made of what the stream's own chain says there was.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use dacapo_event::{Sequence, StreamName};
use futures::stream::LocalBoxStream;
use futures::{StreamExt, TryStreamExt};

use super::{Finding, MISSING, Report, SEGMENTS_AT_ONCE, problem_of, segment};
use crate::chain::{self, ChainEntry};
use crate::compaction::{self, CompactionEntry, Input};
use crate::store::{ObjectKey, Store};
use crate::{ArchiveError, Segment, layout};

/// The outputs of a stream, gone along beside its chain.
pub(super) struct Outputs<'a> {
    store: &'a Arc<dyn Store>,
    stream: &'a StreamName,
    reads: LocalBoxStream<'a, Result<Output, ArchiveError>>,
    /// Whether `reads` came to its end.
    ended: bool,
    /// The entry that was read last.
    key: Option<ObjectKey>,
    /// What it says, if it was readable.
    before: Option<ChainEntry>,
    /// What its output was made of, by first sequence, if it is sound.
    inputs: BTreeMap<Sequence, Input>,
    /// Where the outputs end, sound or not.
    last: Sequence,
}

impl<'a> Outputs<'a> {
    /// Reads nothing yet.
    pub(super) fn of(store: &'a Arc<dyn Store>, stream: &'a StreamName) -> Self {
        Outputs {
            store,
            stream,
            reads: reads(store, stream, None),
            ended: false,
            key: None,
            before: None,
            inputs: BTreeMap::new(),
            last: 0,
        }
    }

    /// Returns whether a sound output was made of this very segment and holds what was in it; one
    /// that was made of another one at its place is a problem.
    ///
    /// To be asked of one entry after the other in order of sequence. `checked` is told the size
    /// of each output that is come by.
    pub(super) async fn stand_for(
        &mut self,
        entry: &ChainEntry,
        is_there: bool,
        report: &mut Report,
        checked: &mut dyn FnMut(u64),
    ) -> Result<bool, ArchiveError> {
        self.reach(entry.first, report, checked).await?;
        if !is_there && self.ended && self.last < entry.first {
            // A compaction that runs meanwhile may have deleted it after these were listed.
            self.reads = reads(self.store, self.stream, self.key.clone());
            self.ended = false;
            self.reach(entry.first, report, checked).await?;
        }
        let (Some(output), Some(input)) = (&self.before, self.inputs.get(&entry.first)) else {
            return Ok(false);
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
        Ok(same && !is_itself)
    }

    /// Checks the outputs up to that which holds this sequence.
    async fn reach(
        &mut self,
        sequence: Sequence,
        report: &mut Report,
        checked: &mut dyn FnMut(u64),
    ) -> Result<(), ArchiveError> {
        while !self.ended && self.last < sequence {
            match self.reads.try_next().await? {
                Some(output) => self.take(output, report, checked),
                None => self.ended = true,
            }
        }
        Ok(())
    }

    fn take(&mut self, output: Output, report: &mut Report, checked: &mut dyn FnMut(u64)) {
        let Output { key, entry, made, findings } = output;
        report.problems.extend(findings);
        let is_first = self.key.replace(key.clone()).is_none();
        self.inputs.clear();
        let before = self.before.take();
        let Some(entry) = entry else { return };
        let output = entry.output;
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
        if layout::parse_compacted(&output.segment).is_some() {
            report.bytes += output.size;
            checked(output.size);
        }
        if let Some((inputs, dropped)) = made {
            report.dropped += dropped;
            self.inputs = inputs.into_iter().map(|input| (input.first, input)).collect();
        }
        self.last = self.last.max(output.last);
        self.before = Some(output);
    }

    /// Checks what is left of them, and returns where they end.
    pub(super) async fn rest(
        &mut self,
        report: &mut Report,
        checked: &mut dyn FnMut(u64),
    ) -> Result<Sequence, ArchiveError> {
        self.reach(Sequence::MAX, report, checked).await?;
        Ok(self.last)
    }

    /// Looks for those that no entry names: of them the `missing` segments may have been made.
    pub(super) async fn check_unnamed(
        self,
        missing: &[(Sequence, Sequence)],
        report: &mut Report,
    ) -> Result<(), ArchiveError> {
        let prefix = layout::compacted_of(self.stream);
        let listed = chain::list_placed(&**self.store, prefix, None, layout::parse_compacted);
        let entries = listed.map(|listed| async {
            let (object, first) = listed?;
            let entry = compaction::exact_entry(&**self.store, self.stream, first).await;
            Ok::<_, ArchiveError>((object, first, entry))
        });
        let mut entries = pin!(entries.buffered(SEGMENTS_AT_ONCE));
        while let Some((object, first, entry)) = entries.try_next().await? {
            match entry {
                Ok(Some(entry)) if entry.output.segment == object.key => {
                    report.check_size(&object, &entry.output);
                    continue;
                }
                Ok(_) => report.note(
                    &object.key,
                    "is an output of a compaction that was stopped or overtaken; it stands for \
                     nothing",
                ),
                Err(ArchiveError::Store(error)) => return Err(error.into()),
                Err(_) => {
                    let problem = "is named by nothing now: its compaction entry is damaged";
                    report.problem(&object.key, None, problem);
                }
            }
            if let Some(sequences) = missing.iter().find(|(begins, _)| *begins == first) {
                let problem = format!("{MISSING}, or a segment is that {} was made of", object.key);
                let entry = layout::compaction_entry(self.stream, first);
                report.problem(entry, Some(*sequences), problem);
            }
        }
        Ok(())
    }
}

/// Reads the outputs of a stream in order of sequence, of those entries that come after `after`.
fn reads<'a>(
    store: &'a Arc<dyn Store>,
    stream: &'a StreamName,
    after: Option<ObjectKey>,
) -> LocalBoxStream<'a, Result<Output, ArchiveError>> {
    let prefix = layout::compactions_of(stream);
    let listed = chain::list_placed(&**store, prefix, after, layout::parse_compaction_entry);
    let reads = listed.map(move |listed| async move { read(store, stream, listed?.1).await });
    reads.buffered(SEGMENTS_AT_ONCE).boxed_local()
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
    let key_of_output = &named.segment;
    let found =
        |problem: String| Finding::of(key_of_output, Some((named.first, named.last)), problem);
    if entry.is_taken_over() {
        // Its bytes are checked in the stream's own chain.
        output.made = Some((vec![Input::of(named)], 0));
    } else {
        match segment::check(store, stream, named).await? {
            Some(problem) => output.findings.push(found(problem)),
            None => {
                let opened =
                    Segment::open(Arc::clone(store), key_of_output, Some(named.size)).await?;
                match opened.compaction() {
                    Some(made) => {
                        let dropped = made.dropped.len() as u64;
                        output.made = Some((made.inputs.clone(), dropped));
                    }
                    None => {
                        output.findings.push(found("does not say what it was made of".to_owned()));
                    }
                }
            }
        }
    }
    output.entry = Some(entry);
    Ok(output)
}
