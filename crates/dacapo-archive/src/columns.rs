//! Decodes columns of a row group from bytes that were fetched before. Plain functions:
//! no I/O, no async.
//!
//! Invariant: nothing read from a segment is trusted; a value that does not fit is
//! an error, and a row is complete only if its checksum agrees.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use dacapo_event::{Event, Message, ShortStr, Timestamp, wire};
use parquet::basic::Type;
use parquet::column::reader::{ColumnReaderImpl, get_column_reader, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use crate::schema::Column;
use crate::segment::limits::{self, Allowance};
use crate::segment::pages::Sound;
use crate::{ColumnSet, Rows};

/// Some byte ranges of an object, as if it were all there.
#[derive(Debug)]
pub(crate) struct Fetched {
    size: u64,
    ranges: Vec<(u64, Bytes)>,
}

impl Fetched {
    /// Takes ranges (first offset, bytes) sorted by offset and disjoint.
    pub(crate) fn new(size: u64, ranges: Vec<(u64, Bytes)>) -> Self {
        Fetched { size, ranges }
    }

    fn from(&self, start: u64) -> Result<Bytes> {
        let after = self.ranges.partition_point(|(offset, _)| *offset <= start);
        let found = after.checked_sub(1).map(|at| &self.ranges[at]).and_then(|(offset, bytes)| {
            let skip = usize::try_from(start - offset).ok()?;
            (skip < bytes.len()).then(|| bytes.slice(skip..))
        });
        found.ok_or_else(|| {
            ParquetError::General(format!("offset {start} points outside its column"))
        })
    }
}

impl Length for Fetched {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Fetched {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::General(format!("page at {start} runs past its column")));
        }
        Ok(bytes.slice(..length))
    }
}

/// Returns the byte ranges of one column that decoding `rows` needs: the dictionary, if there is
/// one, and the pages that hold a wanted row. Sorted, disjoint.
pub(crate) fn ranges(
    metadata: &ParquetMetaData,
    group: usize,
    column: usize,
    rows: &Rows,
) -> Result<Vec<Range<u64>>> {
    let (start, length) = chunk_range(metadata, group, column)?;
    let index = metadata.page_index_for_row_group(group);
    let Some(offsets) = index.offset_index(column) else {
        return Ok(std::iter::once(start..start + length).collect());
    };
    let mut wanted: Vec<Range<u64>> = Vec::new();
    let pages = offsets.page_locations();
    let total = metadata.row_group(group).num_rows();
    for (at, page) in pages.iter().enumerate() {
        let from = page.offset.cast_unsigned();
        let to = from + u64::from(page.compressed_page_size.cast_unsigned());
        if at == 0 && from > start {
            wanted.push(start..from);
        }
        if rows.touches(&rows_of(pages, at, total)) {
            match wanted.last_mut() {
                Some(last) if last.end == from => last.end = to,
                _ => wanted.push(from..to),
            }
        }
    }
    Ok(wanted)
}

/// Returns the rows of a page, by the index that [`limits`] has checked.
fn rows_of(pages: &[PageLocation], at: usize, total: i64) -> Range<usize> {
    let number = |row: i64| usize::try_from(row).unwrap_or(0);
    let next = pages.get(at + 1).map_or(total, |next| next.first_row_index);
    number(pages[at].first_row_index)..number(next)
}

fn chunk_range(metadata: &ParquetMetaData, group: usize, column: usize) -> Result<(u64, u64)> {
    let chunk = metadata.row_group(group).column(column);
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    match (u64::try_from(start), u64::try_from(chunk.compressed_size())) {
        (Ok(start), Ok(length)) if start.checked_add(length).is_some() => Ok((start, length)),
        _ => Err(ParquetError::General(format!(
            "column `{}` lies outside its object",
            chunk.column_path()
        ))),
    }
}

/// An event with nothing filled in.
pub(crate) fn blank() -> Event {
    Event {
        sequence: 0,
        archived_at: Timestamp::EPOCH,
        time: Timestamp::EPOCH,
        id: String::new(),
        kind: String::new(),
        key: None,
        message: Message::default(),
    }
}

/// Decodes `columns` of `rows` into `events`, one for each row in order.
///
/// With [`ColumnSet::ALL`] every row is held against its checksum.
pub(crate) fn fill(
    metadata: &ParquetMetaData,
    group: usize,
    rows: &Rows,
    columns: ColumnSet,
    fetched: &Arc<Fetched>,
    events: &mut [Event],
) -> Result<()> {
    let source = Decoder { metadata, group, rows, fetched };
    let allowance = &mut Allowance::of_a_read();
    if columns.has(Column::Sequence) {
        source.numbers(Column::Sequence, events, |event, n| event.sequence = n.cast_unsigned())?;
    }
    if columns.has(Column::ArchivedAt) {
        source.numbers(Column::ArchivedAt, events, |event, n| {
            event.archived_at = Timestamp::from_micros(n);
        })?;
    }
    if columns.has(Column::Time) {
        source.numbers(Column::Time, events, |event, n| event.time = Timestamp::from_micros(n))?;
    }
    if columns.has(Column::Id) {
        source.texts(Column::Id, events, allowance, |event, text| event.id = text)?;
    }
    if columns.has(Column::Type) {
        source.texts(Column::Type, events, allowance, |event, text| event.kind = text)?;
    }
    if columns.has(Column::Key) {
        source.keys(events, allowance)?;
    }
    if columns.has(Column::Exchange) {
        source.shorts(Column::Exchange, events, allowance, |event, text| {
            event.message.exchange = text;
        })?;
    }
    if columns.has(Column::RoutingKey) {
        source.shorts(Column::RoutingKey, events, allowance, |event, text| {
            event.message.routing_key = text;
        })?;
    }
    let mut encoded = Vec::new();
    if columns.has(Column::Properties) {
        encoded = source.required::<ByteArrayType>(Column::Properties)?;
        for (event, properties) in events.iter_mut().zip(&encoded) {
            allowance.take(Column::Properties, properties.len())?;
            let Message { exchange, routing_key, body, .. } = std::mem::take(&mut event.message);
            event.message = wire::decode_message(exchange, routing_key, properties.data(), body)
                .map_err(|error| ParquetError::General(error.to_string()))?;
        }
    }
    if columns.has(Column::Body) {
        let bodies = source.required::<ByteArrayType>(Column::Body)?;
        let keep = match source.wants_most(Column::Body) {
            true => Bytes::from_owner::<ByteArray>,
            // A copy, so that a few wanted bodies do not keep their pages in memory.
            false => |body: ByteArray| Bytes::copy_from_slice(body.data()),
        };
        for (event, body) in events.iter_mut().zip(bodies) {
            allowance.take(Column::Body, body.len())?;
            event.message.body = keep(body);
        }
    }
    if columns.has(Column::Checksum) {
        let checksums = source.required::<Int32Type>(Column::Checksum)?;
        for ((event, properties), expected) in events.iter().zip(&encoded).zip(checksums) {
            if checksum(event, properties.data()) != expected.cast_unsigned() {
                return Err(ParquetError::General(format!(
                    "event {} is not what was written (its checksum differs)",
                    event.sequence
                )));
            }
        }
    }
    Ok(())
}

/// Returns the CRC-32 (IEEE 802.3) of an event: of every column but the readable duplicates, in
/// the order of the schema, each text with its length (4 bytes, little-endian) before it.
///
/// Guards a replay, which reads only some pages, where the digest guards the whole object.
pub(crate) fn checksum(event: &Event, properties: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&event.sequence.to_le_bytes());
    crc.update(&event.archived_at.as_micros().to_le_bytes());
    crc.update(&event.time.as_micros().to_le_bytes());
    let mut framed = |bytes: &[u8]| {
        crc.update(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        crc.update(bytes);
    };
    framed(event.id.as_bytes());
    framed(event.kind.as_bytes());
    framed(event.key.as_deref().unwrap_or("\0").as_bytes());
    framed(event.message.exchange.as_bytes());
    framed(event.message.routing_key.as_bytes());
    framed(properties);
    framed(&event.message.body);
    crc.finalize()
}

struct Decoder<'a> {
    metadata: &'a ParquetMetaData,
    group: usize,
    rows: &'a Rows,
    fetched: &'a Arc<Fetched>,
}

impl Decoder<'_> {
    fn reader<T: DataType>(&self, column: Column) -> Result<ColumnReaderImpl<T>> {
        let group = self.metadata.row_group(self.group);
        let chunk = group.column(column.index());
        let index = self.metadata.page_index_for_row_group(self.group);
        let pages =
            index.offset_index(column.index()).map(|offsets| offsets.page_locations().clone());
        self.check_pages(column)?;
        let total = usize::try_from(group.num_rows()).unwrap_or(0);
        let pages = SerializedPageReader::new(Arc::clone(self.fetched), chunk, total, pages)?;
        let descriptor = chunk.column_descr_ptr();
        let texts = descriptor.physical_type() == Type::BYTE_ARRAY;
        let pages = Sound::new(pages, texts, descriptor.max_def_level() > 0);
        Ok(get_typed_column_reader(get_column_reader(descriptor, Box::new(pages))))
    }

    /// Returns whether nearly all rows of the pages that hold a wanted row are wanted: 7 of 8, so
    /// that a value which keeps its page keeps little that nobody asked for.
    fn wants_most(&self, column: Column) -> bool {
        let index = self.metadata.page_index_for_row_group(self.group);
        let total = self.metadata.row_group(self.group).num_rows();
        let touched: usize = match index.offset_index(column.index()) {
            Some(offsets) => {
                let pages = offsets.page_locations();
                let all = (0..pages.len()).map(|at| rows_of(pages, at, total));
                all.filter(|rows| self.rows.touches(rows)).map(|rows| rows.len()).sum()
            }
            None => usize::try_from(total).unwrap_or(usize::MAX),
        };
        self.rows.len() >= touched - touched / 8
    }

    /// Checks what the headers of the wanted pages claim.
    fn check_pages(&self, column: Column) -> Result<()> {
        let mut decoded = 0;
        let mut check = |bytes: &[u8]| {
            limits::check_page(bytes, column, &mut decoded).map_err(|problem| {
                ParquetError::General(format!("a page of column {column:?}: {problem}"))
            })
        };
        let page = |from: u64, to: u64| {
            let length = usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX);
            self.fetched.get_bytes(from, length)
        };
        let (start, length) = chunk_range(self.metadata, self.group, column.index())?;
        let index = self.metadata.page_index_for_row_group(self.group);
        let Some(offsets) = index.offset_index(column.index()) else {
            let mut rest = page(start, start + length)?;
            while !rest.is_empty() {
                let length = check(&rest)?;
                rest.advance(length);
            }
            return Ok(());
        };
        let pages = offsets.page_locations();
        let first = pages.first().map_or(start, |page| page.offset.cast_unsigned());
        if first > start {
            check(&page(start, first)?)?;
        }
        for (at, location) in pages.iter().enumerate() {
            let rows = rows_of(pages, at, self.metadata.row_group(self.group).num_rows());
            if self.rows.touches(&rows) {
                let from = location.offset.cast_unsigned();
                let size = u64::from(location.compressed_page_size.cast_unsigned());
                check(&page(from, from + size)?)?;
            }
        }
        Ok(())
    }

    /// Reads the wanted rows of a column; `defined` says for an optional one which are there.
    fn read<T: DataType>(&self, column: Column, defined: &mut Vec<i16>) -> Result<Vec<T::T>> {
        let mut reader = self.reader::<T>(column)?;
        let mut values = Vec::with_capacity(self.rows.len());
        let mut at = 0;
        for range in self.rows.ranges() {
            let skipped = reader.skip_records(range.start - at)?;
            let mut left = range.len();
            while left > 0 {
                let (records, _, _) =
                    reader.read_records(left, Some(defined), None, &mut values)?;
                if records == 0 {
                    break;
                }
                left -= records;
            }
            if skipped != range.start - at || left > 0 {
                return Err(ParquetError::General(format!("column {column:?} has too few rows")));
            }
            at = range.end;
        }
        Ok(values)
    }

    fn required<T: DataType>(&self, column: Column) -> Result<Vec<T::T>> {
        let values = self.read::<T>(column, &mut Vec::new())?;
        if values.len() != self.rows.len() {
            return Err(ParquetError::General(format!("column {column:?} has too few values")));
        }
        Ok(values)
    }

    fn numbers(
        &self,
        column: Column,
        events: &mut [Event],
        set: impl Fn(&mut Event, i64),
    ) -> Result<()> {
        let values = self.required::<Int64Type>(column)?;
        events.iter_mut().zip(values).for_each(|(event, value)| set(event, value));
        Ok(())
    }

    fn texts(
        &self,
        column: Column,
        events: &mut [Event],
        allowance: &mut Allowance,
        set: impl Fn(&mut Event, String),
    ) -> Result<()> {
        for (event, value) in events.iter_mut().zip(self.required::<ByteArrayType>(column)?) {
            allowance.take(column, value.len())?;
            set(event, utf8(&value)?);
        }
        Ok(())
    }

    /// Sets short strings for as long as their exact bytes are not known; equal ones that follow one
    /// another are one.
    ///
    /// The lossy text of 255 bytes may be longer than AMQP allows; then it is left blank, and the
    /// bytes come with the properties.
    fn shorts(
        &self,
        column: Column,
        events: &mut [Event],
        allowance: &mut Allowance,
        set: impl Fn(&mut Event, ShortStr),
    ) -> Result<()> {
        let mut last: Option<(ByteArray, ShortStr)> = None;
        for (event, value) in events.iter_mut().zip(self.required::<ByteArrayType>(column)?) {
            allowance.take(column, value.len())?;
            if last.as_ref().is_none_or(|(before, _)| before.data() != value.data()) {
                let text = ShortStr::try_from(value.as_utf8()?).unwrap_or_default();
                last = Some((value, text));
            }
            set(event, last.as_ref().map(|(_, text)| text.clone()).unwrap_or_default());
        }
        Ok(())
    }

    fn keys(&self, events: &mut [Event], allowance: &mut Allowance) -> Result<()> {
        let mut defined = Vec::new();
        let mut values = self.read::<ByteArrayType>(Column::Key, &mut defined)?.into_iter();
        if defined.len() != events.len() {
            return Err(ParquetError::General("column Key has too few rows".to_owned()));
        }
        for (event, defined) in events.iter_mut().zip(defined) {
            event.key = match defined {
                0 => None,
                _ => values.next().map(|value| utf8(&value)).transpose()?,
            };
            allowance.take(Column::Key, event.key.as_ref().map_or(0, String::len))?;
        }
        Ok(())
    }
}

fn utf8(value: &ByteArray) -> Result<String> {
    value.as_utf8().map(str::to_owned)
}
