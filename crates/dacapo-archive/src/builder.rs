//! Builds one segment in memory: events in, the bytes of a Parquet object out.
//!
//! Pure but for CPU time. Memory is bounded by one row group of events plus what is
//! encoded so far, and the caller decides when that is enough.
//!
//! Invariant: what is sealed here, [`crate::Segment::open`] takes.

use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{Digest, Event, FieldTable, Sequence, StreamName, Timestamp, wire};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};

use crate::compaction::{Compaction, Input, Repeat};
use crate::schema::{BODY_PAGE_BYTES, schema, writer_properties};
use crate::segment::limits::{EVENT_ATTRIBUTE_BYTES_MAX, EVENT_BODY_BYTES_MAX, ROW_GROUPS_MAX};
use crate::store::ObjectKey;
use crate::summary::{SegmentSummary, Tally};
use crate::{ArchiveError, columns, footer, layout};

/// A row group is closed when its events weigh this much: it is what a reader may have to hold
/// decoded. Sixteen of them fit the memory budget of 200 MB with room for the rest.
const ROW_GROUP_BYTES: usize = 8 * 1024 * 1024;

/// A row group is closed at this many events, however small: bounds the columns beside the body.
const ROW_GROUP_ROWS: usize = 16 * 1024;

/// Row groups at which a segment should be finished: a caller that asks between batches has still
/// room for one of half a gigabyte.
const ROW_GROUPS_FULL: usize = ROW_GROUPS_MAX - 64;

/// A finished segment, not yet in any store.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The object.
    pub bytes: Bytes,
    /// What its footer says.
    pub summary: SegmentSummary,
}

/// Collects a run of one stream into a segment.
pub struct SegmentBuilder {
    writer: SerializedFileWriter<Vec<u8>>,
    stream: StreamName,
    first: Sequence,
    next: Sequence,
    group: Vec<Event>,
    group_bytes: usize,
    /// At which a row group is closed.
    group_bytes_max: usize,
    dropped: Vec<Repeat>,
    totals: Totals,
}

struct Totals {
    time: Span,
    archived: Span,
    body_bytes: u64,
    by_type: Tally,
    by_routing_key: Tally,
    by_exchange: Tally,
}

#[derive(Clone, Copy)]
struct Span {
    min: Timestamp,
    max: Timestamp,
}

impl Span {
    const EMPTY: Span = Span { min: Timestamp::MAX, max: Timestamp::MIN };

    fn add(&mut self, at: Timestamp) {
        self.min = self.min.min(at);
        self.max = self.max.max(at);
    }
}

impl SegmentBuilder {
    /// Begins a segment whose first event will have the sequence `first`.
    pub fn new(stream: StreamName, first: Sequence) -> Self {
        let writer = SerializedFileWriter::new(Vec::new(), schema(), Arc::new(writer_properties()))
            .expect("a writer into memory with a fixed schema");
        SegmentBuilder {
            writer,
            stream,
            first,
            next: first,
            group: Vec::new(),
            group_bytes: 0,
            group_bytes_max: ROW_GROUP_BYTES,
            dropped: Vec::new(),
            totals: Totals {
                time: Span::EMPTY,
                archived: Span::EMPTY,
                body_bytes: 0,
                by_type: Tally::default(),
                by_routing_key: Tally::default(),
                by_exchange: Tally::default(),
            },
        }
    }

    /// As [`SegmentBuilder::new`], with row groups closed at so many bytes.
    #[cfg(test)]
    pub(crate) fn with_row_groups_of(stream: StreamName, first: Sequence, bytes: usize) -> Self {
        SegmentBuilder { group_bytes_max: bytes, ..Self::new(stream, first) }
    }

    /// Adds the next event; now and then encodes and compresses a row group (some 50 ms of CPU).
    ///
    /// # Errors
    /// `Unwritable` if its sequence is not [`SegmentBuilder::next`], if it is larger than any message
    /// or line of an import is, or long after [`SegmentBuilder::is_full`]. It was not added.
    pub fn push(&mut self, event: Event) -> Result<(), ArchiveError> {
        let unwritable =
            |reason: String| ArchiveError::Unwritable { sequence: event.sequence, reason };
        if event.sequence != self.next || i64::try_from(event.sequence).is_err() {
            return Err(unwritable(format!("the next sequence is {}", self.next)));
        }
        if self.group.is_empty() && self.writer.flushed_row_groups().len() == ROW_GROUPS_MAX {
            return Err(unwritable(format!("its segment has {ROW_GROUPS_MAX} row groups")));
        }
        let (body, weight) = (event.message.body.len(), event.weight());
        if body > EVENT_BODY_BYTES_MAX {
            return Err(unwritable(format!("its body has {body} bytes")));
        }
        if weight - body > EVENT_ATTRIBUTE_BYTES_MAX {
            let bytes = attribute_bytes(&event);
            if bytes > EVENT_ATTRIBUTE_BYTES_MAX {
                return Err(unwritable(format!(
                    "its attributes and properties have {bytes} bytes"
                )));
            }
        }
        self.next += 1;
        let totals = &mut self.totals;
        totals.time.add(event.time);
        totals.archived.add(event.archived_at);
        totals.body_bytes += event.message.body.len() as u64;
        totals.by_type.add(&event.kind);
        totals.by_routing_key.add(&event.message.routing_key.to_str_lossy());
        totals.by_exchange.add(&event.message.exchange.to_str_lossy());
        self.group_bytes += weight;
        self.group.push(event);
        if self.group_bytes >= self.group_bytes_max || self.group.len() >= ROW_GROUP_ROWS {
            self.close_row_group()?;
        }
        Ok(())
    }

    /// Leaves the next event out, because the event of the sequence `repeat_of`, which was added,
    /// is the same. Only an output of compaction may lack events ([`SegmentBuilder::seal_compacted`]).
    ///
    /// # Panics
    /// That event was not added.
    pub fn drop_repeat(&mut self, repeat_of: Sequence) {
        let there = (self.first..self.next).contains(&repeat_of);
        assert!(there, "what is repeated came before");
        self.dropped.push(Repeat { sequence: self.next, repeat_of });
        self.next += 1;
    }

    /// Returns whether the segment should be finished, whatever its size: a reader takes no more
    /// than 1,024 row groups, which large events that compress well fill before many bytes.
    pub fn is_full(&self) -> bool {
        self.writer.flushed_row_groups().len() >= ROW_GROUPS_FULL
    }

    /// Returns how many repeats were left out.
    pub fn dropped(&self) -> usize {
        self.dropped.len()
    }

    /// Returns the sequence that the next event must have.
    pub fn next(&self) -> Sequence {
        self.next
    }

    /// Returns how many events were added.
    pub fn events(&self) -> u64 {
        self.next - self.first - self.dropped.len() as u64
    }

    /// Returns about how many bytes the object has so far: the row groups encoded and, not yet
    /// compressed, the open one.
    pub fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.group_bytes
    }

    /// Finishes the segment: encodes what is left, and seals it with its digest.
    ///
    /// `previous` is the digest of the stream's segment before it, `partition` the moment whose
    /// date and hour it is filed under, `source_mark` the digest of an import's input so far.
    ///
    /// # Panics
    /// No event was added, or one was left out.
    pub fn seal(
        self,
        previous: Option<Digest>,
        partition: Timestamp,
        source_mark: Option<Digest>,
    ) -> Result<Sealed, ArchiveError> {
        assert!(self.dropped.is_empty(), "only compaction leaves events out");
        let key = layout::segment(&self.stream, partition, self.first);
        self.finish(key, previous, source_mark, None)
    }

    /// Finishes an output of compaction: as [`SegmentBuilder::seal`], with the segments that it was
    /// made of and the repeats that were left out. Its key is made of that of its first input.
    ///
    /// # Errors
    /// As [`SegmentBuilder::push`]; the first input's key is not that of a segment.
    ///
    /// # Panics
    /// No event was added.
    pub fn seal_compacted(
        mut self,
        previous: Option<Digest>,
        first_input: &ObjectKey,
        inputs: Vec<Input>,
        source_mark: Option<Digest>,
    ) -> Result<Sealed, ArchiveError> {
        let compaction = Compaction { inputs, dropped: std::mem::take(&mut self.dropped) };
        let mut sealed =
            self.finish(first_input.clone(), previous, source_mark, Some(&compaction))?;
        let key = layout::compacted(first_input, &sealed.summary.digest);
        sealed.summary.key =
            key.ok_or_else(|| ArchiveError::damaged(first_input, "it is not named as a segment"))?;
        Ok(sealed)
    }

    fn finish(
        mut self,
        key: ObjectKey,
        previous: Option<Digest>,
        source_mark: Option<Digest>,
        compaction: Option<&Compaction>,
    ) -> Result<Sealed, ArchiveError> {
        assert!(self.next > self.first, "a segment has at least one event");
        self.close_row_group()?;
        let mut summary = SegmentSummary {
            key,
            size: 0,
            stream: self.stream,
            first: self.first,
            last: self.next - 1,
            dropped: compaction.map_or(0, |made| made.dropped.len() as u64),
            time_min: self.totals.time.min,
            time_max: self.totals.time.max,
            archived_min: self.totals.archived.min,
            archived_max: self.totals.archived.max,
            body_bytes: self.totals.body_bytes,
            by_type: self.totals.by_type,
            by_routing_key: self.totals.by_routing_key,
            by_exchange: self.totals.by_exchange,
            digest: Digest::from_bytes([0; 32]),
            previous,
            source_mark,
        };
        for pair in footer::encode(&summary, compaction) {
            self.writer.append_key_value_metadata(pair);
        }
        let mut object =
            self.writer.into_inner().map_err(|error| unencodable(summary.last, &error))?;
        summary.digest = footer::seal(&mut object);
        summary.size = object.len() as u64;
        Ok(Sealed { bytes: object.into(), summary })
    }

    fn close_row_group(&mut self) -> Result<(), ArchiveError> {
        let Some(last) = self.group.last().map(|event| event.sequence) else { return Ok(()) };
        let events = std::mem::take(&mut self.group);
        self.group_bytes = 0;
        let mut write = || {
            let mut group = self.writer.next_row_group()?;
            write_columns(&mut group, &events)?;
            group.close().map(drop)
        };
        write().map_err(|error| unencodable(last, &error))
    }
}

/// Returns how many bytes the event has beside its body.
fn attribute_bytes(event: &Event) -> usize {
    event.id.len()
        + event.kind.len()
        + event.key.as_ref().map_or(0, String::len)
        + event.message.exchange.as_bytes().len()
        + event.message.routing_key.as_bytes().len()
        + wire::encode_properties(&event.message).len()
}

fn unencodable(sequence: Sequence, error: &ParquetError) -> ArchiveError {
    ArchiveError::Unwritable { sequence, reason: error.to_string() }
}

type Written = Result<(), ParquetError>;

/// Writes all columns of a row group, in the order of the schema.
fn write_columns(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, events: &[Event]) -> Written {
    numbers(group, events, |event| event.sequence.cast_signed())?;
    numbers(group, events, |event| event.archived_at.as_micros())?;
    numbers(group, events, |event| event.time.as_micros())?;
    texts(group, events, |event| text(&event.id))?;
    texts(group, events, |event| text(&event.kind))?;
    optional_texts(group, events, |event| event.key.as_deref().map(text))?;
    texts(group, events, |event| text(&event.message.exchange.to_str_lossy()))?;
    texts(group, events, |event| text(&event.message.routing_key.to_str_lossy()))?;
    optional_texts(group, events, |event| {
        event.message.properties.content_type.as_ref().map(|value| text(&value.to_str_lossy()))
    })?;
    headers(group, events)?;
    let properties: Vec<ByteArray> =
        events.iter().map(|event| wire::encode_properties(&event.message).into()).collect();
    column::<ByteArrayType>(group, &properties, None, None)?;
    bodies(group, events)?;
    let checksums: Vec<i32> = events
        .iter()
        .zip(&properties)
        .map(|(event, properties)| columns::checksum(event, properties.data()).cast_signed())
        .collect();
    column::<Int32Type>(group, &checksums, None, None)
}

fn text(text: &str) -> ByteArray {
    ByteArray::from(text.as_bytes().to_vec())
}

fn numbers(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    events: &[Event],
    of: impl Fn(&Event) -> i64,
) -> Written {
    let values: Vec<i64> = events.iter().map(of).collect();
    column::<Int64Type>(group, &values, None, None)
}

fn texts(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    events: &[Event],
    of: impl Fn(&Event) -> ByteArray,
) -> Written {
    let values: Vec<ByteArray> = events.iter().map(of).collect();
    column::<ByteArrayType>(group, &values, None, None)
}

fn optional_texts(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    events: &[Event],
    of: impl Fn(&Event) -> Option<ByteArray>,
) -> Written {
    let all: Vec<Option<ByteArray>> = events.iter().map(of).collect();
    let defined: Vec<i16> = all.iter().map(|value| i16::from(value.is_some())).collect();
    let values: Vec<ByteArray> = all.into_iter().flatten().collect();
    column::<ByteArrayType>(group, &values, Some(&defined), None)
}

/// The readable headers: a map of text to text, repeated and nullable levels written by hand
/// (Parquet format specification, "Nested Encoding" and "Maps").
fn headers(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, events: &[Event]) -> Written {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let (mut defined, mut repeated) = (Vec::new(), Vec::new());
    let empty = FieldTable::new();
    for event in events {
        let table = event.message.properties.headers.as_ref().unwrap_or(&empty);
        if table.is_empty() {
            defined.push(0);
            repeated.push(0);
        }
        for (position, (name, value)) in table.iter().enumerate() {
            defined.push(1);
            repeated.push(i16::from(position > 0));
            keys.push(text(&name.to_str_lossy()));
            values.push(text(&value.to_text_lossy()));
        }
    }
    column::<ByteArrayType>(group, &keys, Some(&defined), Some(&repeated))?;
    // A value is optional under its key: one level deeper where it is there, and it always is.
    let value_defined: Vec<i16> = defined.iter().map(|level| level * 2).collect();
    column::<ByteArrayType>(group, &values, Some(&value_defined), Some(&repeated))
}

/// Writes bodies in portions of about a page, because the writer looks at the size of a page only
/// between portions.
fn bodies(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, events: &[Event]) -> Written {
    let mut writer = group.next_column()?.expect("the schema has this column");
    let mut rest = events;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            bytes += event.message.body.len();
            bytes <= BODY_PAGE_BYTES
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (portion, after) = rest.split_at(count);
        let values: Vec<ByteArray> =
            portion.iter().map(|event| event.message.body.clone().into()).collect();
        writer.typed::<ByteArrayType>().write_batch(&values, None, None)?;
        rest = after;
    }
    writer.close()
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> Written {
    let mut writer = group.next_column()?.expect("the schema has this column");
    writer.typed::<T>().write_batch(values, defined, repeated)?;
    writer.close()
}
