//! One order over all streams: by the running maximum of `time` within each stream, ties
//! by the stream's name.
//!
//! The order depends only on what is read, so a replay that goes on after a crash meets
//! the same events in the same order. Order within a stream always holds; a stream of
//! imported history comes before the live one that follows it in time.
//!
//! Memory: one batch for each stream that has been reached, out of one budget that they share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dacapo_archive::ArchiveError;
use dacapo_archive::store::{Store, StoreError};
use dacapo_event::{Event, MemoryBudget, Sequence, StreamName, Timestamp};
use dacapo_filter::Selection;

use crate::EngineError;
use crate::scan::{Found, Scan, SegmentToRead};

/// The least a stream holds at once, however many there are: a thousand streams still fit the
/// budget, at the price of decoding a page for each quarter of it.
const BATCH_BYTES_MIN: u64 = 32 * 1024;

/// The most a stream holds at once: half a row group of 4 KB events and what they take beside their
/// bodies, because decoding takes as much again. Where a row group cannot be fetched at once, a little
/// less would make three batches of it, and each decodes anew the pages of the other columns that it
/// shares with the next.
const BATCH_BYTES_MAX: u64 = 5 * 1024 * 1024;

/// The most events in one merged batch: keeps pauses and cancels prompt.
const MERGED_EVENTS_MAX: usize = 1_024;

/// A merged batch of this weight is closed: several of them lie between reading and publishing.
const MERGED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A stream to read: its segments in order, and the sequence to begin after.
#[derive(Debug, Clone)]
pub struct StreamToRead {
    /// Its name.
    pub name: StreamName,
    /// Its segments that may hold selected events, in order of sequence.
    pub segments: Vec<SegmentToRead>,
    /// The earliest `time` that any of them holds.
    pub time_min: Timestamp,
    /// Only events with a greater sequence are read.
    pub after: Sequence,
}

/// A selected event and the stream it is of.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    /// The stream.
    pub stream: StreamName,
    /// The event.
    pub event: Event,
    /// How many events of the stream, between the selected one before and this one, the expression
    /// failed on, which therefore were left out.
    pub skipped: u64,
}

/// The selected events of many streams, in one order.
pub struct Merge {
    store: Arc<dyn Store>,
    selection: Arc<Selection>,
    cursors: Vec<Cursor>,
    batch_bytes: u64,
    where_skipped: u64,
}

struct Cursor {
    name: StreamName,
    segments: VecDeque<SegmentToRead>,
    scan: Option<Scan>,
    batch: VecDeque<Found>,
    /// Left out at the end of segments read before, and not told with an event yet.
    skipped: u64,
    /// Running maximum of `time`: where this stream stands in the order.
    reached: Timestamp,
    after: Sequence,
    /// The segment that is read.
    reading: Option<SegmentToRead>,
    /// Sequence of the last event that was read.
    read_to: Sequence,
}

impl Merge {
    /// Begins to read; opens no segment yet. All streams together hold what `memory` grants to
    /// reading.
    pub fn new(
        store: Arc<dyn Store>,
        selection: Arc<Selection>,
        streams: impl IntoIterator<Item = StreamToRead>,
        memory: MemoryBudget,
    ) -> Self {
        let mut cursors: Vec<Cursor> = streams
            .into_iter()
            .map(|stream| Cursor {
                name: stream.name,
                segments: stream.segments.into(),
                scan: None,
                batch: VecDeque::new(),
                skipped: 0,
                reached: stream.time_min,
                after: stream.after,
                reading: None,
                read_to: stream.after,
            })
            .collect();
        cursors.sort_by(|a, b| a.name.cmp(&b.name));
        let share = memory.reading() / u64::try_from(cursors.len().max(1)).unwrap_or(u64::MAX);
        let batch_bytes = share.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX);
        Merge { store, selection, cursors, batch_bytes, where_skipped: 0 }
    }

    /// Returns the next events in order, never an empty batch; nothing at the end.
    ///
    /// Not cancel-safe: a dropped call loses its batch.
    ///
    /// # Errors
    /// As [`Scan::next`].
    pub async fn next(&mut self) -> Result<Option<Vec<Selected>>, EngineError> {
        let mut merged = Vec::new();
        let mut bytes = 0;
        let full = |events: usize, bytes| events >= MERGED_EVENTS_MAX || bytes >= MERGED_BYTES_MAX;
        while !full(merged.len(), bytes) {
            let Some(least) = self.least(None) else { break };
            if self.cursors[least].batch.is_empty() {
                // What is merged already need not wait for a read.
                if !merged.is_empty() {
                    break;
                }
                self.refill(least).await?;
                continue;
            }
            let bound = self.least(Some(least)).map(|next| (self.cursors[next].reached, next));
            let cursor = &mut self.cursors[least];
            while let Some(found) = cursor.batch.front()
                && !full(merged.len(), bytes)
            {
                cursor.reached = cursor.reached.max(found.event.time);
                if bound.is_some_and(|bound| (cursor.reached, least) > bound) {
                    break;
                }
                let Found { event, skipped } = cursor.batch.pop_front().expect("there is a front");
                let skipped = skipped + std::mem::take(&mut cursor.skipped);
                bytes += event.weight();
                self.where_skipped += skipped;
                merged.push(Selected { stream: cursor.name.clone(), event, skipped });
            }
        }
        Ok((!merged.is_empty()).then_some(merged))
    }

    /// Returns how many events up to the last one given the expression failed on, which were left
    /// out; at the end, those after it too.
    pub fn where_skipped(&self) -> u64 {
        let done = self.cursors.iter().filter(|cursor| cursor.is_done());
        self.where_skipped + done.map(|cursor| cursor.skipped).sum::<u64>()
    }

    /// Returns the stream but `without` that comes first, among those that have or may have
    /// events. The streams lie in order of name, so their place decides ties.
    fn least(&self, without: Option<usize>) -> Option<usize> {
        let all = self.cursors.iter().enumerate();
        all.filter(|(at, cursor)| Some(*at) != without && !cursor.is_done())
            .min_by_key(|(at, cursor)| (cursor.reached, *at))
            .map(|(at, _)| at)
    }

    async fn refill(&mut self, at: usize) -> Result<(), EngineError> {
        let cursor = &mut self.cursors[at];
        if let Some(scan) = &mut cursor.scan {
            let next = match scan.next().await {
                Err(EngineError::Archive(ArchiveError::Store(StoreError::NotFound { .. }))) => {
                    // Deleted while it was read, for compaction put an output in its place.
                    let read = cursor.reading.clone().expect("what is scanned was opened here");
                    let (store, selection) = (Arc::clone(&self.store), Arc::clone(&self.selection));
                    let again =
                        Scan::open(store, &read, selection, cursor.read_to, self.batch_bytes);
                    *scan = again.await?;
                    scan.next().await
                }
                next => next,
            };
            if let Some(found) = next? {
                cursor.read_to = found.last().map_or(cursor.read_to, |found| found.event.sequence);
                cursor.batch = found.into();
                // Standing moves with the first event, which may be far past the last one.
                let first = cursor.batch.front().map_or(cursor.reached, |found| found.event.time);
                cursor.reached = cursor.reached.max(first);
                return Ok(());
            }
            cursor.skipped += scan.skipped();
            cursor.scan = None;
        }
        if let Some(segment) = cursor.segments.pop_front() {
            let (store, selection) = (Arc::clone(&self.store), Arc::clone(&self.selection));
            let scan = Scan::open(store, &segment, selection, cursor.after, self.batch_bytes);
            cursor.scan = Some(scan.await?);
            cursor.reading = Some(segment);
        }
        Ok(())
    }
}

impl Cursor {
    fn is_done(&self) -> bool {
        self.batch.is_empty() && self.scan.is_none() && self.segments.is_empty()
    }
}

/// The last sequence of each stream up to which everything is dealt with.
pub type Positions = BTreeMap<StreamName, Sequence>;

#[cfg(test)]
mod tests;
