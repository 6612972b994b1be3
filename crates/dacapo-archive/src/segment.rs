//! Reads one segment: its footer first, then only the pages that are asked for.
//!
//! Async here only waits for bytes; [`crate::columns`] decodes them, on a blocking
//! thread. Memory is that of the pages asked for, so the caller bounds it by the rows
//! it asks for ([`Segment::batches`]).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use dacapo_event::{Event, Sequence, Timestamp};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::Statistics;

use crate::columns::{self, Decoder, Fetched};
use crate::compaction::{self, Compaction, Repeat};
use crate::schema::{Column, schema};
use crate::store::{ObjectKey, Store};
use crate::{ArchiveError, ColumnSet, Rows, SegmentSummary, footer};

use self::object::Object;
pub(crate) use self::object::size_of as object_size;

pub(crate) mod limits;
mod object;
pub(crate) mod pages;
mod thrift;

/// Two wanted ranges closer than this are fetched as one: a request to S3 costs more than bytes.
const GAP_BYTES_MAX: u64 = 32 * 1024;

/// Requests under way at once for one read; more brings nothing from one server.
const REQUESTS_AT_ONCE: usize = 4;

/// One segment, open for reading.
#[derive(Debug, Clone)]
pub struct Segment {
    object: Object,
    summary: Arc<SegmentSummary>,
    compaction: Option<Arc<Compaction>>,
    metadata: Arc<ParquetMetaData>,
}

/// Pages of some rows of a row group, as they are stored, and how far they are decoded.
pub struct Pages(Box<Decoder>);

/// What the statistics of a row group say, without reading it.
#[derive(Debug, Clone, PartialEq)]
pub struct RowGroupFacts {
    /// How many rows it has.
    pub rows: usize,
    /// First and last sequence.
    pub sequence: (u64, u64),
    /// Earliest and latest `time`, if known.
    pub time: Option<(Timestamp, Timestamp)>,
    /// Range of `type`.
    pub kind: Option<TextRange>,
    /// Range of `exchange`.
    pub exchange: Option<TextRange>,
    /// Range of `routing_key`.
    pub routing_key: Option<TextRange>,
    /// Range of `key`; absent also when no row has one.
    pub key: Option<TextRange>,
    /// Range of `id`.
    pub id: Option<TextRange>,
    /// Bytes of its columns other than the body, as stored.
    pub attribute_bytes: u64,
    /// Bytes of its bodies, as stored.
    pub body_bytes: u64,
}

/// The least and greatest text of a column, as bytes; a bound may have been cut to a prefix, and
/// then was lowered or raised so that it still is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRange {
    /// Not greater than any value.
    pub min: Vec<u8>,
    /// Not less than any value.
    pub max: Vec<u8>,
}

/// A column that pages and bloom filters are sought by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrunedBy {
    /// `time`
    Time,
    /// `type`
    Type,
    /// `key`
    Key,
    /// `id`
    Id,
    /// `exchange`
    Exchange,
    /// `routing_key`
    RoutingKey,
}

impl PrunedBy {
    fn column(self) -> Column {
        match self {
            PrunedBy::Time => Column::Time,
            PrunedBy::Type => Column::Type,
            PrunedBy::Key => Column::Key,
            PrunedBy::Id => Column::Id,
            PrunedBy::Exchange => Column::Exchange,
            PrunedBy::RoutingKey => Column::RoutingKey,
        }
    }
}

/// The bloom filter of one column of one row group.
#[derive(Debug)]
pub struct Bloom(Sbbf);

impl Bloom {
    /// Returns whether the column may hold this text; false is certain.
    pub fn may_contain(&self, text: &str) -> bool {
        self.0.check(text)
    }
}

/// What the page index says of one page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PageBounds<'a> {
    /// Earliest and latest time.
    Time(Timestamp, Timestamp),
    /// Least and greatest text, as in [`TextRange`].
    Text(&'a [u8], &'a [u8]),
    /// Every value is absent.
    AllAbsent,
}

impl Segment {
    /// A segment of no more bytes is read as a whole by the request that opens it, and held while
    /// it is open. That is the least that a reader of many streams grants each of them; segments of
    /// a quiet stream, a minute's events, are smaller.
    pub const ONE_REQUEST_BYTES: u64 = 32 * 1024;

    /// Reads footer and page index, in one request if `size` is known and the footer is not large.
    /// Of a small object that request brings everything.
    ///
    /// # Errors
    /// The object is not there, not a segment, damaged where the footer shows it, or newer.
    pub async fn open(
        store: Arc<dyn Store>,
        key: &ObjectKey,
        size: Option<u64>,
    ) -> Result<Self, ArchiveError> {
        let size = match size {
            Some(size) => size,
            None => object::size_of(&*store, key).await?,
        };
        let accept = |metadata: &ParquetMetaData| {
            let pairs = metadata.file_metadata().key_value_metadata();
            let pairs = pairs.map_or(&[][..], Vec::as_slice);
            if pairs.is_empty() {
                return Err(ArchiveError::damaged(key, "it is Parquet, but no segment of dacapo"));
            }
            let (summary, compaction) = footer::decode(key, size, pairs)?;
            check_shape(key, &summary, metadata)?;
            Ok((summary, compaction))
        };
        let (object, metadata, (summary, compaction)) =
            object::open(store, key, size, accept).await?;
        check_page_index(key, &metadata)?;
        Ok(Segment {
            object,
            summary: Arc::new(summary),
            compaction: compaction.map(Arc::new),
            metadata: Arc::new(metadata),
        })
    }

    /// Returns what the footer says.
    pub fn summary(&self) -> &SegmentSummary {
        &self.summary
    }

    /// Returns how it was made, if it is an output of compaction.
    pub fn compaction(&self) -> Option<&Compaction> {
        self.compaction.as_deref()
    }

    /// Returns the sequence of the event in a row, counted from 0 over all row groups.
    pub fn sequence_at(&self, row: u64) -> Sequence {
        compaction::sequence_of(self.dropped(), self.summary.first, row)
    }

    /// Returns how many rows come before that of a sequence, which need not be there; past the last
    /// sequence it may be more than there are.
    pub fn rows_before(&self, sequence: Sequence) -> u64 {
        compaction::rows_before(self.dropped(), self.summary.first, sequence)
    }

    fn dropped(&self) -> &[Repeat] {
        self.compaction().map_or(&[], |compaction| &compaction.dropped)
    }

    /// Returns how many row groups there are.
    pub fn row_groups(&self) -> usize {
        self.metadata.num_row_groups()
    }

    /// Returns what the statistics of a row group say.
    pub fn facts(&self, group: usize) -> RowGroupFacts {
        let meta = self.metadata.row_group(group);
        let stored =
            |column: usize| u64::try_from(meta.column(column).compressed_size()).unwrap_or(0);
        let body = Column::Body.index();
        let statistics = |column: Column| meta.column(column.index()).statistics();
        let range = |column: Column| text_range(statistics(column)?);
        RowGroupFacts {
            rows: usize::try_from(meta.num_rows()).unwrap_or(0),
            sequence: number_range(statistics(Column::Sequence))
                .map_or((self.summary.first, self.summary.last), |(min, max)| {
                    (min.cast_unsigned(), max.cast_unsigned())
                }),
            time: number_range(statistics(Column::Time))
                .map(|(min, max)| (Timestamp::from_micros(min), Timestamp::from_micros(max))),
            kind: range(Column::Type),
            exchange: range(Column::Exchange),
            routing_key: range(Column::RoutingKey),
            key: range(Column::Key),
            id: range(Column::Id),
            attribute_bytes: (0..Column::COUNT).filter(|at| *at != body).map(stored).sum(),
            body_bytes: stored(body),
        }
    }

    /// Returns the rows in pages of which `keep` says that they may matter; all rows if the
    /// segment has no page index for the column.
    pub fn rows_in_pages(
        &self,
        group: usize,
        by: PrunedBy,
        keep: &dyn Fn(PageBounds<'_>) -> bool,
    ) -> Rows {
        let total = usize::try_from(self.metadata.row_group(group).num_rows()).unwrap_or(0);
        let index = self.metadata.page_index_for_row_group(group);
        let column = by.column().index();
        let (Some(offsets), Some(bounds)) =
            (index.offset_index(column), index.column_index(column))
        else {
            return Rows::all(total);
        };
        let pages = offsets.page_locations();
        let mut rows = Rows::default();
        for (at, page) in pages.iter().enumerate() {
            let first = usize::try_from(page.first_row_index).unwrap_or(0);
            let next = pages
                .get(at + 1)
                .map_or(total, |next| usize::try_from(next.first_row_index).unwrap_or(total));
            if page_bounds(bounds, at).is_none_or(keep) {
                rows.extend_to(first..next.min(total));
            }
        }
        rows
    }

    /// Returns the bloom filter of a column in a row group, or nothing if it has none. One request.
    ///
    /// # Errors
    /// The store fails, or the filter is not readable.
    pub async fn bloom(&self, group: usize, by: PrunedBy) -> Result<Option<Bloom>, ArchiveError> {
        let chunk = self.metadata.row_group(group).column(by.column().index());
        let (Some(offset), Some(length)) =
            (chunk.bloom_filter_offset(), chunk.bloom_filter_length())
        else {
            return Ok(None);
        };
        let damaged = || self.damaged("a bloom filter lies outside the object");
        let start = u64::try_from(offset).map_err(|_| damaged())?;
        let length = u64::try_from(length).map_err(|_| damaged())?;
        let end = start.checked_add(length).ok_or_else(damaged)?;
        if length == 0 || length > limits::BLOOM_BYTES_MAX || end > self.summary.size {
            return Err(damaged());
        }
        let bytes = self.object.get(start..end).await?;
        let filter = Sbbf::from_bytes(&bytes).map_err(|error| self.damaged(error))?;
        Ok(Some(Bloom(filter)))
    }

    /// Splits `rows` so that the pages of each part's bodies decode to about `bytes` at most (a
    /// page is never split, and holds at least one body).
    pub fn batches(&self, group: usize, rows: &Rows, bytes: u64) -> Vec<Rows> {
        let index = self.metadata.page_index_for_row_group(group);
        let Some(offsets) = index.offset_index(Column::Body.index()) else {
            return vec![rows.clone()];
        };
        let total = usize::try_from(self.metadata.row_group(group).num_rows()).unwrap_or(0);
        // Pages of bodies are about alike, so a page's share of the stored bytes is its share of
        // the decoded ones; the exact sizes are only written together with statistics.
        let chunk = self.metadata.row_group(group).column(Column::Body.index());
        let expansion = chunk.uncompressed_size() as f64 / chunk.compressed_size().max(1) as f64;
        let pages = offsets.page_locations();
        let (mut batches, mut batch, mut held) = (Vec::new(), Rows::default(), 0);
        for (at, page) in pages.iter().enumerate() {
            let first = usize::try_from(page.first_row_index).unwrap_or(0);
            let next = pages
                .get(at + 1)
                .map_or(total, |next| usize::try_from(next.first_row_index).unwrap_or(total));
            let mut span = Rows::default();
            span.extend_to(first..next);
            let wanted = rows.intersect(&span);
            if wanted.is_empty() {
                continue;
            }
            let size = (f64::from(page.compressed_page_size) * expansion) as u64;
            if held + size > bytes && !batch.is_empty() {
                batches.push(std::mem::take(&mut batch));
                held = 0;
            }
            held += size;
            wanted.ranges().iter().for_each(|range| batch.extend_to(range.clone()));
        }
        if !batch.is_empty() {
            batches.push(batch);
        }
        batches
    }

    /// Reads `columns` of `rows`: returns one event for each row, in order, with the rest blank.
    ///
    /// With [`ColumnSet::ALL`] every event is held against its checksum.
    ///
    /// # Errors
    /// The store fails, or the bytes are not what was written (`Damaged`).
    pub async fn read(
        &self,
        group: usize,
        rows: &Rows,
        columns: ColumnSet,
    ) -> Result<Vec<Event>, ArchiveError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let spans = self.spans(group, rows, columns)?;
        let pages = self.fetch(group, rows, columns, spans).await?;
        let (events, _) = self.decode(pages, rows).await?;
        Ok(events)
    }

    /// Fetches what [`Segment::read`] fetches for `rows`, so that parts of them are decoded one after
    /// the other at the price of one; nothing if it is more than `bytes_max` bytes as stored.
    ///
    /// # Errors
    /// The store fails, or a column lies outside the object (`Damaged`).
    pub async fn pages(
        &self,
        group: usize,
        rows: &Rows,
        columns: ColumnSet,
        bytes_max: u64,
    ) -> Result<Option<Pages>, ArchiveError> {
        let spans = self.spans(group, rows, columns)?;
        let bytes: u64 = spans.iter().map(|span| span.end - span.start).sum();
        match bytes <= bytes_max {
            true => self.fetch(group, rows, columns, spans).await.map(Some),
            false => Ok(None),
        }
    }

    /// Decodes `rows`, some of those that `pages` of this segment were fetched for: returns what
    /// [`Segment::read`] returns, and the pages for the rest. They must all come after those that
    /// were decoded before.
    ///
    /// A call that fails or is dropped takes the pages with it.
    ///
    /// # Errors
    /// The bytes are not what was written (`Damaged`).
    pub async fn decode(
        &self,
        pages: Pages,
        rows: &Rows,
    ) -> Result<(Vec<Event>, Pages), ArchiveError> {
        let (Pages(mut decoder), rows) = (pages, rows.clone());
        let decode = move || decoder.next(&rows).map(|events| (events, Pages(decoder)));
        tokio::task::spawn_blocking(decode)
            .await
            .map_err(|_| self.damaged("its pages could not be decoded"))?
            .map_err(|error: ParquetError| self.damaged(error))
    }

    /// Returns what is to be fetched for some rows: sorted, disjoint, inside the object.
    fn spans(
        &self,
        group: usize,
        rows: &Rows,
        columns: ColumnSet,
    ) -> Result<Vec<Range<u64>>, ArchiveError> {
        let mut wanted = Vec::new();
        for column in COLUMNS.into_iter().filter(|column| columns.has(*column)) {
            let ranges = columns::ranges(&self.metadata, group, column.index(), rows);
            wanted.extend(ranges.map_err(|error| self.damaged(error))?);
        }
        let spans = coalesce(wanted, GAP_BYTES_MAX);
        match spans.last().is_some_and(|span| span.end > self.summary.size) {
            true => Err(self.damaged("a column lies outside the object")),
            false => Ok(spans),
        }
    }

    async fn fetch(
        &self,
        group: usize,
        rows: &Rows,
        columns: ColumnSet,
        spans: Vec<Range<u64>>,
    ) -> Result<Pages, ArchiveError> {
        let get = |span: Range<u64>| async move {
            let start = span.start;
            Ok::<(u64, Bytes), ArchiveError>((start, self.object.get(span).await?))
        };
        let ranges = stream::iter(spans).map(get).buffered(REQUESTS_AT_ONCE).try_collect().await?;
        let fetched = Fetched::new(self.summary.size, ranges);
        let metadata = Arc::clone(&self.metadata);
        Ok(Pages(Box::new(Decoder::new(metadata, group, rows.clone(), columns, fetched))))
    }

    fn damaged(&self, problem: impl ToString) -> ArchiveError {
        ArchiveError::damaged(&self.summary.key, problem)
    }
}

/// The leaf columns by index.
const COLUMNS: [Column; Column::COUNT] = [
    Column::Sequence,
    Column::ArchivedAt,
    Column::Time,
    Column::Id,
    Column::Type,
    Column::Key,
    Column::Exchange,
    Column::RoutingKey,
    Column::ContentType,
    Column::HeaderKey,
    Column::HeaderValue,
    Column::Properties,
    Column::Body,
    Column::Checksum,
];

/// Refuses a footer whose parts contradict each other or claim more than a writer ever makes.
fn check_shape(
    key: &ObjectKey,
    summary: &SegmentSummary,
    metadata: &ParquetMetaData,
) -> Result<(), ArchiveError> {
    let expected = parquet::schema::types::SchemaDescriptor::new(schema());
    let found = metadata.file_metadata().schema_descr();
    let same = found.num_columns() == expected.num_columns()
        && (0..expected.num_columns()).all(|at| {
            let (a, b) = (found.column(at), expected.column(at));
            a.path() == b.path()
                && a.physical_type() == b.physical_type()
                && a.max_def_level() == b.max_def_level()
                && a.max_rep_level() == b.max_rep_level()
        });
    if !same {
        return Err(ArchiveError::damaged(key, "its columns are not those of this format version"));
    }
    limits::check_row_groups(summary, metadata)
        .map_err(|problem| ArchiveError::damaged(key, problem))
}

/// Refuses a page index that does not fit the row groups.
fn check_page_index(key: &ObjectKey, metadata: &ParquetMetaData) -> Result<(), ArchiveError> {
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let index = metadata.page_index_for_row_group(number);
        for column in 0..Column::COUNT {
            let Some(offsets) = index.offset_index(column) else { continue };
            limits::check_pages(group, column, offsets)
                .map_err(|problem| ArchiveError::damaged(key, problem))?;
        }
    }
    Ok(())
}

/// Sorts ranges and joins those that overlap or lie closer than `gap`.
fn coalesce(mut ranges: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}

fn number_range(statistics: Option<&Statistics>) -> Option<(i64, i64)> {
    match statistics? {
        Statistics::Int64(values) => Some((*values.min_opt()?, *values.max_opt()?)),
        _ => None,
    }
}

fn text_range(statistics: &Statistics) -> Option<TextRange> {
    let (min, max) = (statistics.min_bytes_opt()?, statistics.max_bytes_opt()?);
    Some(TextRange { min: min.to_vec(), max: max.to_vec() })
}

fn page_bounds(index: &ColumnIndexMetaData, page: usize) -> Option<PageBounds<'_>> {
    if u64::try_from(page).is_ok_and(|page| page >= index.num_pages()) {
        return None;
    }
    if index.is_null_page(page) {
        return Some(PageBounds::AllAbsent);
    }
    match index {
        ColumnIndexMetaData::INT64(times) => Some(PageBounds::Time(
            Timestamp::from_micros(*times.min_value(page)?),
            Timestamp::from_micros(*times.max_value(page)?),
        )),
        ColumnIndexMetaData::BYTE_ARRAY(texts) => {
            Some(PageBounds::Text(texts.min_value(page)?, texts.max_value(page)?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
