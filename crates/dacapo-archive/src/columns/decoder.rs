//! Rows of a row group into events, a part of them at a time.
//!
//! Invariant: each page is decoded once, however many parts its rows are in, so that a part may be
//! as small as the processor's cache likes it.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use dacapo_event::{Event, Message, ShortStr, Timestamp, wire};
use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use super::{Fetched, checksum, chunk_range, rows_of};
use crate::schema::Column;
use crate::segment::limits::{self, Allowance};
use crate::segment::pages::Sound;
use crate::{ColumnSet, Rows};

/// Decodes some columns of some rows of a row group, in order.
pub(crate) struct Decoder {
    metadata: Arc<ParquetMetaData>,
    group: usize,
    /// All that are to be decoded.
    rows: Rows,
    columns: ColumnSet,
    fetched: Arc<Fetched>,
    /// By index, of the columns that were begun.
    readers: [Option<ColumnReader>; Column::COUNT],
    /// The row that they are at.
    at: usize,
    /// What is left of what the row group may hold.
    allowance: Allowance,
}

/// A type of column that events have.
trait Typed: DataType {
    /// Returns the reader of a column of this type.
    fn of(reader: &mut ColumnReader) -> Option<&mut ColumnReaderImpl<Self>>
    where
        Self: Sized;
}

impl Typed for Int64Type {
    fn of(reader: &mut ColumnReader) -> Option<&mut ColumnReaderImpl<Self>> {
        if let ColumnReader::Int64ColumnReader(reader) = reader { Some(reader) } else { None }
    }
}

impl Typed for Int32Type {
    fn of(reader: &mut ColumnReader) -> Option<&mut ColumnReaderImpl<Self>> {
        if let ColumnReader::Int32ColumnReader(reader) = reader { Some(reader) } else { None }
    }
}

impl Typed for ByteArrayType {
    fn of(reader: &mut ColumnReader) -> Option<&mut ColumnReaderImpl<Self>> {
        if let ColumnReader::ByteArrayColumnReader(reader) = reader { Some(reader) } else { None }
    }
}

impl Decoder {
    /// Begins with nothing decoded; `fetched` holds the pages of these rows.
    pub(crate) fn new(
        metadata: Arc<ParquetMetaData>,
        group: usize,
        rows: Rows,
        columns: ColumnSet,
        fetched: Fetched,
    ) -> Self {
        Decoder {
            metadata,
            group,
            rows,
            columns,
            fetched: Arc::new(fetched),
            readers: [const { None }; Column::COUNT],
            at: 0,
            allowance: Allowance::of_a_row_group(),
        }
    }

    /// Decodes `part`, some of the rows that come after those decoded before: returns one event for
    /// each, in order, blank where no column was asked for.
    ///
    /// With [`ColumnSet::ALL`] every row is held against its checksum. After an error it stands
    /// nowhere, and is of no more use.
    pub(crate) fn next(&mut self, part: &Rows) -> Result<Vec<Event>> {
        let mut events = vec![blank(); part.len()];
        let columns = self.columns;
        if columns.has(Column::Sequence) {
            self.numbers(Column::Sequence, part, &mut events, |event, n| {
                event.sequence = n.cast_unsigned();
            })?;
        }
        if columns.has(Column::ArchivedAt) {
            self.numbers(Column::ArchivedAt, part, &mut events, |event, n| {
                event.archived_at = Timestamp::from_micros(n);
            })?;
        }
        if columns.has(Column::Time) {
            self.numbers(Column::Time, part, &mut events, |event, n| {
                event.time = Timestamp::from_micros(n);
            })?;
        }
        if columns.has(Column::Id) {
            self.texts(Column::Id, part, &mut events, |event, text| event.id = text)?;
        }
        if columns.has(Column::Type) {
            self.texts(Column::Type, part, &mut events, |event, text| event.kind = text)?;
        }
        if columns.has(Column::Key) {
            self.keys(part, &mut events)?;
        }
        if columns.has(Column::Exchange) {
            self.shorts(Column::Exchange, part, &mut events, |event, text| {
                event.message.exchange = text;
            })?;
        }
        if columns.has(Column::RoutingKey) {
            self.shorts(Column::RoutingKey, part, &mut events, |event, text| {
                event.message.routing_key = text;
            })?;
        }
        let mut encoded = Vec::new();
        if columns.has(Column::Properties) {
            encoded = self.required::<ByteArrayType>(Column::Properties, part)?;
            for (event, properties) in events.iter_mut().zip(&encoded) {
                self.allowance.take(Column::Properties, properties.len())?;
                let Message { exchange, routing_key, body, .. } =
                    std::mem::take(&mut event.message);
                event.message =
                    wire::decode_message(exchange, routing_key, properties.data(), body)
                        .map_err(|error| ParquetError::General(error.to_string()))?;
            }
        }
        if columns.has(Column::Body) {
            self.bodies(part, &mut events)?;
        }
        if columns.has(Column::Checksum) {
            let checksums = self.required::<Int32Type>(Column::Checksum, part)?;
            for ((event, properties), expected) in events.iter().zip(&encoded).zip(checksums) {
                if checksum(event, properties.data()) != expected.cast_unsigned() {
                    return Err(ParquetError::General(format!(
                        "event {} is not what was written (its checksum differs)",
                        event.sequence
                    )));
                }
            }
        }
        self.at = part.ranges().last().map_or(self.at, |range| range.end);
        Ok(events)
    }

    fn open(&self, column: Column) -> Result<ColumnReader> {
        self.check_pages(column)?;
        let group = self.metadata.row_group(self.group);
        let chunk = group.column(column.index());
        let index = self.metadata.page_index_for_row_group(self.group);
        let pages =
            index.offset_index(column.index()).map(|offsets| offsets.page_locations().clone());
        let total = usize::try_from(group.num_rows()).unwrap_or(0);
        let pages = SerializedPageReader::new(Arc::clone(&self.fetched), chunk, total, pages)?;
        let descriptor = chunk.column_descr_ptr();
        let texts = descriptor.physical_type() == Type::BYTE_ARRAY;
        let pages = Sound::new(pages, texts, descriptor.max_def_level() > 0);
        Ok(get_column_reader(descriptor, Box::new(pages)))
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
        let (start, length) = chunk_range(&self.metadata, self.group, column.index())?;
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

    /// Reads the rows of a part of a column; `defined` says for an optional one which are there.
    fn read<T: Typed>(
        &mut self,
        column: Column,
        part: &Rows,
        defined: &mut Vec<i16>,
    ) -> Result<Vec<T::T>> {
        if self.readers[column.index()].is_none() {
            self.readers[column.index()] = Some(self.open(column)?);
        }
        let reader = self.readers[column.index()].as_mut().and_then(T::of);
        let reader = reader.expect("a segment whose columns have other types is not opened");
        let mut values = Vec::with_capacity(part.len());
        let mut at = self.at;
        for range in part.ranges() {
            let before = range.start.checked_sub(at).expect("parts come in order");
            let skipped = reader.skip_records(before)?;
            let mut left = range.len();
            while left > 0 {
                let (records, _, _) =
                    reader.read_records(left, Some(defined), None, &mut values)?;
                if records == 0 {
                    break;
                }
                left -= records;
            }
            if skipped != before || left > 0 {
                return Err(ParquetError::General(format!("column {column:?} has too few rows")));
            }
            at = range.end;
        }
        Ok(values)
    }

    fn required<T: Typed>(&mut self, column: Column, part: &Rows) -> Result<Vec<T::T>> {
        let values = self.read::<T>(column, part, &mut Vec::new())?;
        if values.len() != part.len() {
            return Err(ParquetError::General(format!("column {column:?} has too few values")));
        }
        Ok(values)
    }

    fn numbers(
        &mut self,
        column: Column,
        part: &Rows,
        events: &mut [Event],
        set: impl Fn(&mut Event, i64),
    ) -> Result<()> {
        let values = self.required::<Int64Type>(column, part)?;
        events.iter_mut().zip(values).for_each(|(event, value)| set(event, value));
        Ok(())
    }

    fn texts(
        &mut self,
        column: Column,
        part: &Rows,
        events: &mut [Event],
        set: impl Fn(&mut Event, String),
    ) -> Result<()> {
        let values = self.required::<ByteArrayType>(column, part)?;
        for (event, value) in events.iter_mut().zip(values) {
            self.allowance.take(column, value.len())?;
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
        &mut self,
        column: Column,
        part: &Rows,
        events: &mut [Event],
        set: impl Fn(&mut Event, ShortStr),
    ) -> Result<()> {
        let mut last: Option<(ByteArray, ShortStr)> = None;
        let values = self.required::<ByteArrayType>(column, part)?;
        for (event, value) in events.iter_mut().zip(values) {
            self.allowance.take(column, value.len())?;
            if last.as_ref().is_none_or(|(before, _)| before.data() != value.data()) {
                let text = ShortStr::try_from(value.as_utf8()?).unwrap_or_default();
                last = Some((value, text));
            }
            set(event, last.as_ref().map(|(_, text)| text.clone()).unwrap_or_default());
        }
        Ok(())
    }

    fn keys(&mut self, part: &Rows, events: &mut [Event]) -> Result<()> {
        let mut defined = Vec::new();
        let mut values = self.read::<ByteArrayType>(Column::Key, part, &mut defined)?.into_iter();
        if defined.len() != events.len() {
            return Err(ParquetError::General("column Key has too few rows".to_owned()));
        }
        for (event, defined) in events.iter_mut().zip(defined) {
            event.key = match defined {
                0 => None,
                _ => values.next().map(|value| utf8(&value)).transpose()?,
            };
            self.allowance.take(Column::Key, event.key.as_ref().map_or(0, String::len))?;
        }
        Ok(())
    }

    fn bodies(&mut self, part: &Rows, events: &mut [Event]) -> Result<()> {
        let keep = match self.wants_most(Column::Body) {
            true => Bytes::from_owner::<ByteArray>,
            // A copy, so that a few wanted bodies do not keep their pages in memory.
            false => |body: ByteArray| Bytes::copy_from_slice(body.data()),
        };
        let bodies = self.required::<ByteArrayType>(Column::Body, part)?;
        for (event, body) in events.iter_mut().zip(bodies) {
            self.allowance.take(Column::Body, body.len())?;
            event.message.body = keep(body);
        }
        Ok(())
    }
}

/// An event with nothing filled in.
fn blank() -> Event {
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

fn utf8(value: &ByteArray) -> Result<String> {
    value.as_utf8().map(str::to_owned)
}
