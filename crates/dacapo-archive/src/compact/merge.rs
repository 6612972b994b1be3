//! Makes outputs: which segments go together, which events are repeats, put and commit.
//!
//! Goes on from where the last output ends, without a hole, so that two compactors contend for the
//! same write-once key and the one that comes too late begins again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;

use dacapo_event::{Digest, Event, Sequence, StreamName, Timestamp};
use futures::{StreamExt, stream};

use super::{
    Events, Mode, Options, READS_AT_ONCE, TAKEN_OVER_FROM, Work, is_of_one_object, open_proven,
};
use crate::chain::{self, ChainEntry};
use crate::compaction::{self, CompactionEntry, DROPPED_MAX, INPUTS_MAX, Input};
use crate::segment::limits::ROW_GROUPS_MAX;
use crate::store::memory::MemoryStore;
use crate::store::{ObjectKey, Put, Store};
use crate::{ArchiveError, Sealed, Segment, SegmentBuilder, SegmentSummary, layout};

/// The most row groups in the inputs of one output. Written anew, within the events of one of them
/// at most three end: one full by its rows, one by its bytes, and one with its last event, which may
/// be large. So an output has no more than a reader takes.
const INPUT_ROW_GROUPS_MAX: usize = (ROW_GROUPS_MAX - 1) / 3;

/// What is remembered of an event takes at the most, to find repeats: 40 bytes and one of the table,
/// which is made at once for all events of an output and then at least seven sixteenths full.
const REMEMBERED_BYTES: u64 = 94;

/// How often a compaction begins again because another one was faster.
const OVERTAKEN_MAX: usize = 3;

/// A segment that may be merged.
struct Candidate {
    entry: ChainEntry,
    summary: SegmentSummary,
    row_groups: usize,
}

/// Segments that become one output.
#[derive(Default)]
struct Group {
    inputs: Vec<Candidate>,
    bytes: u64,
    events: u64,
    row_groups: usize,
}

impl Group {
    /// Returns whether an output is not made better by waiting for this segment: it would grow too
    /// large, or lie under the date of another day.
    fn is_full_before(&self, next: &Candidate, options: &Options) -> bool {
        let Some(first) = self.inputs.first() else { return false };
        let output_bytes = options.output_bytes.min(options.memory.output_max());
        let events_max = options.memory.repeats() / REMEMBERED_BYTES;
        let large = |candidate: &Candidate| is_taken_over(candidate.entry.size, output_bytes);
        layout::date_of(&first.entry.segment) != layout::date_of(&next.entry.segment)
            || self.bytes + next.entry.size > output_bytes
            || self.events + next.summary.events() > events_max
            || self.inputs.len() == INPUTS_MAX
            || self.row_groups + next.row_groups > INPUT_ROW_GROUPS_MAX
            || large(first)
            || large(next)
    }

    /// Returns whether nothing more comes for this output when segments are merged up to that moment:
    /// the day that it is filed under is over by then. Outputs are never merged again, so that one
    /// that is made too early leaves two for its day.
    fn is_over(&self, oldest: Timestamp) -> bool {
        let date = self.inputs.first().and_then(|input| layout::date_of(&input.entry.segment));
        date.is_some_and(|date| date < oldest.date_and_hour().0.as_str())
    }

    fn push(&mut self, next: Candidate) {
        self.bytes += next.entry.size;
        self.events += next.summary.events();
        self.row_groups += next.row_groups;
        self.inputs.push(next);
    }

    /// Returns a group of its first so many inputs.
    fn up_to(self, count: usize) -> Self {
        let mut group = Group::default();
        self.inputs.into_iter().take(count).for_each(|input| group.push(input));
        group
    }
}

/// Returns whether a segment is large enough to be its own output.
fn is_taken_over(bytes: u64, output_bytes: u64) -> bool {
    bytes >= output_bytes / TAKEN_OVER_FROM
}

/// What is merged next, and where the outputs end before it.
struct Merging {
    group: Group,
    end: End,
}

/// Where a stream's outputs end.
#[derive(Clone, Copy, Default)]
struct End {
    last: Sequence,
    digest: Option<Digest>,
}

impl Work<'_> {
    /// Makes all outputs that can be made now.
    pub(super) async fn merge(&mut self) -> Result<(), ArchiveError> {
        let end = self.end().await?.last;
        let segments = layout::segments_of(&self.head.stream);
        for object in chain::list_all(&**self.store, &segments, None).await? {
            let first = layout::parse_segment(&object.key).map_or(0, |(_, first)| first);
            self.listed(if first > end { object.size } else { 0 });
        }
        let mut overtaken = 0;
        loop {
            match self.merge_from_end().await {
                Err(ArchiveError::Fenced { .. }) if overtaken < OVERTAKEN_MAX => overtaken += 1,
                // Another compaction makes the outputs of this stream.
                Err(ArchiveError::Fenced { .. }) => return Ok(()),
                ended => return ended,
            }
        }
    }

    /// Merges what comes after the last output, up to what is young or damaged.
    async fn merge_from_end(&mut self) -> Result<(), ArchiveError> {
        let mut merging = Merging { group: Group::default(), end: self.end().await? };
        let ended = self.merge_all(&mut merging).await;
        // Damage holds up what comes after it alone.
        if ended.as_ref().is_err_and(|error| !is_of_one_object(error)) {
            return ended;
        }
        if merging.group.inputs.len() > 1 && merging.group.is_over(self.oldest()) {
            self.finish(merging.group, merging.end).await?;
        }
        ended
    }

    async fn merge_all(&mut self, merging: &mut Merging) -> Result<(), ArchiveError> {
        let name = &self.head.stream;
        let after = layout::chain_entry(name, merging.end.last);
        let listed = chain::list_all(&**self.store, &layout::chain_of(name), Some(&after)).await?;
        let firsts: Vec<Sequence> = listed
            .iter()
            .filter_map(|object| Some(layout::parse_chain_entry(&object.key)?.1))
            .filter(|first| *first < self.head.last)
            .collect();
        drop(listed);
        let (store, oldest) = (self.store, self.oldest());
        let mut candidates = stream::iter(firsts)
            .map(|first| async move {
                let entry = chain_entry(&**store, name, first).await?;
                let opened = Segment::open(store.clone(), &entry.segment, Some(entry.size)).await;
                let found = opened.map(|segment| (segment.summary().clone(), segment.row_groups()));
                Ok::<_, ArchiveError>((entry, found))
            })
            .buffered(READS_AT_ONCE);
        let mut next_first = merging.end.last + 1;
        while let Some(candidate) = candidates.next().await {
            let (entry, found) = candidate?;
            // The segment that the head names is the writer's, and so is all after it.
            if entry.last >= self.head.last {
                break;
            }
            if entry.first != next_first {
                let key = layout::chain_entry(name, entry.first);
                let problem =
                    format!("sequences {next_first} to {} before it are missing", entry.first - 1);
                return Err(ArchiveError::damaged(key, problem));
            }
            next_first = entry.last + 1;
            let (summary, row_groups) = found?;
            let candidate = Candidate { entry, summary, row_groups };
            if ChainEntry::of(&candidate.summary) != candidate.entry {
                let problem = "its footer and its chain entry contradict each other";
                return Err(ArchiveError::damaged(&candidate.entry.segment, problem));
            }
            if candidate.summary.archived_max > oldest {
                break;
            }
            if merging.group.is_full_before(&candidate, self.options) {
                let group = std::mem::take(&mut merging.group);
                merging.end = self.finish(group, merging.end).await?;
            }
            merging.group.push(candidate);
        }
        Ok(())
    }

    /// Returns the moment up to which segments are merged.
    fn oldest(&self) -> Timestamp {
        (self.options.clock)().minus(self.options.older_than)
    }

    async fn end(&self) -> Result<End, ArchiveError> {
        let name = &self.head.stream;
        let Some(first) = compaction::entries_of(&**self.store, name).await?.pop() else {
            return Ok(End::default());
        };
        let entry = compaction::entry(&**self.store, name, first).await?;
        let key = layout::compaction_entry(name, first);
        let entry = entry.ok_or_else(|| ArchiveError::damaged(&key, "it disappeared"))?;
        Ok(End { last: entry.output.last, digest: Some(entry.output.digest) })
    }

    /// Makes one output of a group and commits it; returns where the outputs end then.
    async fn finish(&mut self, group: Group, end: End) -> Result<End, ArchiveError> {
        let (Some(first), Some(last)) = (group.inputs.first(), group.inputs.last()) else {
            return Ok(end);
        };
        if self.options.mode == Mode::DryRun {
            let last = last.entry.last;
            if group.inputs.len() == 1 {
                self.report.taken_over += 1;
            } else {
                self.report.merged += group.inputs.len() as u64;
                self.report.merged_bytes += group.bytes;
                self.report.outputs += 1;
            }
            self.looked_at(group.bytes);
            return Ok(End { last, digest: None });
        }
        if group.inputs.len() == 1 {
            let output = ChainEntry { previous: end.digest, ..first.entry.clone() };
            self.commit(&output).await?;
            self.report.taken_over += 1;
            self.looked_at(group.bytes);
            return Ok(End { last: output.last, digest: Some(output.digest) });
        }
        let (first, source_mark) = (first.entry.segment.clone(), last.summary.source_mark);
        let builder = match self.filled(&group).await {
            Ok(builder) => builder,
            // What comes before the damage is merged.
            Err((at, error)) if at > 1 && is_of_one_object(&error) => {
                Box::pin(self.finish(group.up_to(at), end)).await?;
                return Err(error);
            }
            Err((_, error)) => return Err(error),
        };
        let dropped = builder.dropped() as u64;
        let inputs = group.inputs.iter().map(|input| Input::of(&input.entry));
        let sealed = builder.seal_compacted(end.digest, &first, inputs.collect(), source_mark)?;
        check_readable(&sealed).await?;
        let output = ChainEntry::of(&sealed.summary);
        self.put_output(&output.segment, sealed.bytes).await?;
        self.commit(&output).await?;
        self.report.merged += group.inputs.len() as u64;
        self.report.merged_bytes += group.bytes;
        self.report.outputs += 1;
        self.report.output_bytes += output.size;
        self.report.dropped += dropped;
        Ok(End { last: output.last, digest: Some(output.digest) })
    }

    /// Reads all inputs and puts their events together, without exact repeats.
    ///
    /// # Errors
    /// Says which input it is.
    async fn filled(&mut self, group: &Group) -> Result<SegmentBuilder, (usize, ArchiveError)> {
        let name = self.head.stream.clone();
        let mut filling = Filling {
            builder: SegmentBuilder::new(name.clone(), group.inputs[0].entry.first),
            stream: name,
            seen: HashMap::with_capacity(usize::try_from(group.events).unwrap_or(0)),
        };
        for (at, input) in group.inputs.iter().enumerate() {
            filling = filling.take(self.store, &input.entry).await.map_err(|error| (at, error))?;
            self.looked_at(input.entry.size);
        }
        Ok(filling.builder)
    }

    async fn put_output(&self, key: &ObjectKey, bytes: bytes::Bytes) -> Result<(), ArchiveError> {
        match self.store.put_new(key, bytes).await? {
            Put::Created => Ok(()),
            Put::Exists => Err(ArchiveError::damaged(key, "another object has this digest's name")),
        }
    }

    /// Makes an output part of the archive.
    async fn commit(&self, output: &ChainEntry) -> Result<(), ArchiveError> {
        let compacted_at = (self.options.clock)();
        let entry = CompactionEntry { output: output.clone(), compacted_at };
        let key = layout::compaction_entry(&self.head.stream, output.first);
        match self.store.put_new(&key, entry.to_bytes()).await? {
            Put::Created => Ok(()),
            Put::Exists => Err(ArchiveError::Fenced {
                stream: self.head.stream.to_string(),
                sequence: output.first,
            }),
        }
    }
}

/// Makes sure that readers take an output, before it takes the place of anything.
async fn check_readable(sealed: &Sealed) -> Result<(), ArchiveError> {
    let key = &sealed.summary.key;
    let not_put = |problem: &dyn fmt::Display| {
        ArchiveError::damaged(key, format!("it was made, but not put: {problem}"))
    };
    let memory = Arc::new(MemoryStore::new());
    memory.put_new(key, sealed.bytes.clone()).await?;
    let opened = Segment::open(memory, key, Some(sealed.bytes.len() as u64)).await;
    match opened.map_err(|error| not_put(&error))?.summary() == &sealed.summary {
        true => Ok(()),
        false => Err(not_put(&"it says something else than it was made to")),
    }
}

/// One output that is being filled.
struct Filling {
    builder: SegmentBuilder,
    stream: StreamName,
    /// The first event of each identity.
    seen: HashMap<Digest, Sequence>,
}

impl Filling {
    /// Adds all events of a segment.
    async fn take(self, store: &Arc<dyn Store>, input: &ChainEntry) -> Result<Self, ArchiveError> {
        let mut filling = self;
        let mut events = Events::of(open_proven(store, input).await?);
        while let Some(part) = events.part().await? {
            // Encoding a row group takes a while.
            let added = tokio::task::spawn_blocking(move || filling.add(part));
            filling = added.await.map_err(|_| {
                ArchiveError::damaged(&input.segment, "its events could not be encoded")
            })??;
        }
        Ok(filling)
    }

    fn add(mut self, events: Vec<Event>) -> Result<Self, ArchiveError> {
        for event in events {
            if event.has_own_id(&self.stream) {
                match self.seen.entry(event.identity()) {
                    Entry::Vacant(place) => drop(place.insert(event.sequence)),
                    Entry::Occupied(first)
                        if event.sequence == self.builder.next()
                            && self.builder.dropped() < DROPPED_MAX =>
                    {
                        self.builder.drop_repeat(*first.get());
                        continue;
                    }
                    Entry::Occupied(_) => {}
                }
            }
            self.builder.push(event)?;
        }
        Ok(self)
    }
}

/// Returns a chain entry that was listed.
async fn chain_entry(
    store: &dyn Store,
    stream: &StreamName,
    first: Sequence,
) -> Result<ChainEntry, ArchiveError> {
    let key = layout::chain_entry(stream, first);
    let entry = chain::entry(store, stream, first).await?;
    entry.ok_or_else(|| ArchiveError::damaged(&key, "it disappeared"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dacapo_event::{MemoryBudget, Message};

    use super::*;

    #[test]
    fn what_an_archiver_filled_is_not_rewritten() {
        let (full, output) = (MemoryBudget::DEFAULT.segment(), MemoryBudget::DEFAULT.output());
        // The last of its events may have been large, or compressed well.
        for bytes in [full + 1_000_000, full - 100_000, full * 3 / 4, full / 2] {
            assert!(is_taken_over(bytes, output), "{bytes}");
        }
        assert!(!is_taken_over(full / 2 - 1, output));
    }

    /// A segment of one event.
    fn sealed() -> Sealed {
        let mut builder = SegmentBuilder::new("shop".parse().unwrap(), 1);
        let event = Event {
            sequence: 1,
            archived_at: Timestamp::from_secs(1),
            time: Timestamp::from_secs(1),
            id: "e".to_owned(),
            kind: "t".to_owned(),
            key: None,
            message: Message::default(),
        };
        builder.push(event).unwrap();
        builder.seal(None, Timestamp::from_secs(1), None).unwrap()
    }

    /// Returns the group that is full before one more input of so many bytes and events.
    fn full(bytes: u64, events: u64, memory: MemoryBudget) -> Group {
        let options = Options {
            streams: Vec::new(),
            older_than: Duration::ZERO,
            grace: Duration::ZERO,
            output_bytes: u64::MAX,
            memory,
            mode: Mode::Apply,
            clock: || Timestamp::EPOCH,
        };
        let summary = SegmentSummary { size: bytes, last: events, ..sealed().summary };
        let next = || {
            let (entry, summary) = (ChainEntry::of(&summary), summary.clone());
            Candidate { entry, summary, row_groups: 1 }
        };
        let mut group = Group::default();
        while !group.is_full_before(&next(), &options) {
            group.push(next());
        }
        group
    }

    #[test]
    fn an_output_takes_no_more_than_its_shares_of_the_budget() {
        for memory in [MemoryBudget::DEFAULT, MemoryBudget::new(MemoryBudget::MIN_BYTES).unwrap()] {
            let large = full(1_000_000, 10, memory);
            assert!(
                large.inputs.len() > 1 && large.bytes <= memory.output_max(),
                "{}",
                large.bytes
            );
            let many = full(1_000, 10_000, memory);
            let seen = HashMap::<Digest, Sequence>::with_capacity(many.events as usize);
            // A control byte for each place beside the entry.
            let remembered = seen.capacity() as u64 * 8 / 7 * 41;
            assert!(many.inputs.len() > 1 && remembered <= memory.repeats(), "{remembered}");
        }
    }

    #[tokio::test]
    async fn an_output_that_readers_refuse_is_not_put() {
        let sealed = sealed();
        check_readable(&sealed).await.unwrap();
        let mut bytes = sealed.bytes.to_vec();
        let last = bytes.len() - 10;
        bytes[last - 200..last].fill(0xff);
        let refused = Sealed { bytes: bytes.into(), ..sealed.clone() };
        let error = check_readable(&refused).await.unwrap_err().to_string();
        assert!(error.contains("it was made, but not put"), "{error}");
        let mut other = sealed;
        other.summary.body_bytes += 1;
        let error = check_readable(&other).await.unwrap_err().to_string();
        assert!(error.contains("it says something else"), "{error}");
    }
}
