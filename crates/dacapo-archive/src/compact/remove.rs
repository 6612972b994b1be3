//! Deletes segments that were merged, once the grace period has passed and the output was held
//! against them; and outputs that never became part of the archive.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dacapo_event::{Digest, Event, Sequence};
use futures::{StreamExt, TryStreamExt, stream};

use super::{Events, Mode, READS_AT_ONCE, Work, finding, open_proven};
use crate::chain::{self, ChainEntry};
use crate::compaction::{self, Compaction, CompactionEntry};
use crate::store::ObjectKey;
use crate::verify::Finding;
use crate::{ArchiveError, layout};

impl Work<'_> {
    /// Deletes what may go now. An output that is not what it should be keeps its inputs, and is
    /// among `problems`.
    pub(super) async fn remove(&mut self, problems: &mut Vec<Finding>) -> Result<(), ArchiveError> {
        let name = self.head.stream.clone();
        let firsts = compaction::entries_of(&**self.store, &name).await?;
        if firsts.is_empty() {
            return Ok(());
        }
        let covering = |first: Sequence| {
            firsts.partition_point(|entry| *entry <= first).checked_sub(1).map(|at| firsts[at])
        };
        let mut left: BTreeMap<Sequence, BTreeSet<ObjectKey>> = BTreeMap::new();
        for object in chain::list_all(&**self.store, &layout::segments_of(&name), None).await? {
            let first = layout::parse_segment(&object.key).map(|(_, first)| first);
            if let Some(entry) = first.and_then(covering) {
                left.entry(entry).or_default().insert(object.key);
            }
        }
        let mut outputs: BTreeMap<Sequence, Vec<ObjectKey>> = BTreeMap::new();
        for object in chain::list_all(&**self.store, &layout::compacted_of(&name), None).await? {
            if let Some((_, first)) = layout::parse_compacted(&object.key) {
                outputs.entry(first).or_default().push(object.key);
            }
        }
        for (first, keys) in left {
            // It was taken over, and stays: to ask each time would cost a request for each, for ever.
            let begins = |key: &ObjectKey| layout::parse_segment(key).map(|(_, first)| first);
            if !outputs.contains_key(&first) && keys.iter().map(begins).eq([Some(first)]) {
                continue;
            }
            match self.remove_inputs_of(first, &keys).await {
                Ok(()) => {}
                Err(error) => problems.push(finding(error)?),
            }
        }
        self.remove_leftovers(&firsts, outputs).await
    }

    /// Deletes those inputs of one output that are still there, if it is time.
    async fn remove_inputs_of(
        &mut self,
        first: Sequence,
        there: &BTreeSet<ObjectKey>,
    ) -> Result<(), ArchiveError> {
        let name = &self.head.stream;
        let Some(entry) = compaction::entry(&**self.store, name, first).await? else {
            return Ok(());
        };
        if entry.is_taken_over() || entry.output.last >= self.head.last {
            return Ok(());
        }
        let beginning = there.iter().filter_map(|key| Some(layout::parse_segment(key)?.1));
        let beginning: BTreeSet<Sequence> =
            beginning.filter(|first| *first <= entry.output.last).collect();
        if (self.options.clock)().since(entry.compacted_at) < self.options.grace {
            self.report.waiting += beginning.len() as u64;
            return Ok(());
        }
        let mut inputs: Vec<ChainEntry> = stream::iter(beginning)
            .map(|first| chain::entry(&**self.store, name, first))
            .buffered(READS_AT_ONCE)
            .try_filter_map(|entry| async move { Ok(entry) })
            .try_collect()
            .await?;
        inputs.retain(|input| there.contains(&input.segment));
        if inputs.is_empty() {
            return Ok(());
        }
        let bytes: u64 = inputs.iter().map(|input| input.size).sum();
        self.listed(bytes + entry.output.size);
        if self.options.mode == Mode::Apply {
            self.check(&entry, &inputs).await?;
            for input in &inputs {
                self.store.delete(&input.segment).await?;
                self.report.deleted += 1;
                self.report.deleted_bytes += input.size;
            }
        } else {
            self.report.deleted += inputs.len() as u64;
            self.report.deleted_bytes += bytes;
        }
        self.looked_at(bytes + entry.output.size);
        Ok(())
    }

    /// Reads a whole output and holds it against the chain, and against every input that is still
    /// there, event by event.
    async fn check(
        &self,
        entry: &CompactionEntry,
        there: &[ChainEntry],
    ) -> Result<(), ArchiveError> {
        let key = &entry.output.segment;
        let output = open_proven(self.store, &entry.output).await?;
        let Some(made) = output.compaction().cloned() else {
            return Err(ArchiveError::damaged(key, "it is no output of compaction"));
        };
        let name = &self.head.stream;
        let mut pairs = stream::iter(&made.inputs)
            .map(|input| async move {
                Ok::<_, ArchiveError>((
                    input,
                    chain::entry(&**self.store, name, input.first).await?,
                ))
            })
            .buffered(READS_AT_ONCE);
        while let Some(pair) = pairs.next().await {
            let (input, chained) = pair?;
            let same = chained.is_some_and(|chained| input.is_of(&chained, &entry.output));
            if !same {
                let problem = format!(
                    "it says it was made of sequences {} to {}, which the chain does not",
                    input.first, input.last
                );
                return Err(ArchiveError::damaged(key, problem));
            }
        }
        let mut comparison = Comparison::new(Events::of(output), &made);
        for input in &made.inputs {
            match there.iter().find(|entry| entry.first == input.first) {
                Some(there) => {
                    let segment = open_proven(self.store, there).await?;
                    comparison.hold_against(key, segment).await?;
                }
                None => comparison.pass(input.last).await?,
            }
        }
        match comparison.ahead().await? {
            None => Ok(()),
            Some(event) => Err(comparison_failed(key, event.sequence)),
        }
    }

    /// Deletes outputs at places that another output has taken for good. One at the end may be about
    /// to be committed.
    async fn remove_leftovers(
        &mut self,
        firsts: &[Sequence],
        outputs: BTreeMap<Sequence, Vec<ObjectKey>>,
    ) -> Result<(), ArchiveError> {
        if self.options.mode == Mode::DryRun {
            return Ok(());
        }
        let name = &self.head.stream;
        for (first, keys) in outputs {
            if keys.len() == 1 && firsts.binary_search(&first).is_ok() {
                continue;
            }
            let covering = firsts.partition_point(|entry| *entry <= first).checked_sub(1);
            let Some(covering) = covering.map(|at| firsts[at]) else { continue };
            let Some(entry) = compaction::entry(&**self.store, name, covering).await? else {
                continue;
            };
            if entry.output.last < first {
                continue;
            }
            for key in keys.iter().filter(|key| **key != entry.output.segment) {
                self.store.delete(key).await?;
                self.report.leftovers += 1;
            }
        }
        Ok(())
    }
}

/// An output on one side, its inputs one after the other on the other.
struct Comparison<'a> {
    output: Events,
    next: Option<Event>,
    made: &'a Compaction,
    /// Identity of each event that another one is said to repeat, once it was met.
    repeated: HashMap<Sequence, Option<Digest>>,
}

impl<'a> Comparison<'a> {
    fn new(output: Events, made: &'a Compaction) -> Self {
        let repeated = made.dropped.iter().map(|repeat| (repeat.repeat_of, None)).collect();
        Comparison { output, next: None, made, repeated }
    }

    /// Returns the next event of the output without taking it.
    async fn ahead(&mut self) -> Result<Option<&Event>, ArchiveError> {
        if self.next.is_none() {
            self.next = self.output.next().await?;
        }
        Ok(self.next.as_ref())
    }

    async fn take(&mut self) -> Result<Option<Event>, ArchiveError> {
        let next = match self.next.take() {
            Some(event) => Some(event),
            None => self.output.next().await?,
        };
        if let Some(event) = &next
            && let Some(identity) = self.repeated.get_mut(&event.sequence)
        {
            *identity = Some(event.identity());
        }
        Ok(next)
    }

    /// Compares the events of an input with those of the output at the same sequences.
    async fn hold_against(
        &mut self,
        output: &ObjectKey,
        input: crate::Segment,
    ) -> Result<(), ArchiveError> {
        let stream = input.summary().stream.clone();
        let mut events = Events::of(input);
        while let Some(event) = events.next().await? {
            let found = self.made.dropped.binary_search_by_key(&event.sequence, |at| at.sequence);
            let same = match found {
                Ok(at) => {
                    let first = self.repeated.get(&self.made.dropped[at].repeat_of);
                    event.has_own_id(&stream) && first == Some(&Some(event.identity()))
                }
                Err(_) => {
                    let kept = self.take().await?;
                    kept.is_some_and(|kept| {
                        let place = |event: &Event| (event.sequence, event.archived_at);
                        place(&kept) == place(&event) && kept.identity() == event.identity()
                    })
                }
            };
            if !same {
                return Err(comparison_failed(output, event.sequence));
            }
        }
        Ok(())
    }

    /// Reads past the events of an input that is gone.
    async fn pass(&mut self, last: Sequence) -> Result<(), ArchiveError> {
        while self.ahead().await?.is_some_and(|event| event.sequence <= last) {
            self.take().await?;
        }
        Ok(())
    }
}

fn comparison_failed(output: &ObjectKey, sequence: Sequence) -> ArchiveError {
    let problem = format!(
        "its event {sequence} is not that of the segments that it was made of, which stay therefore"
    );
    ArchiveError::damaged(output, problem)
}
