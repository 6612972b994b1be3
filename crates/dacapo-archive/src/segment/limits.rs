//! How much a segment may claim, looked at before anything is allocated for it.
//!
//! A segment is read by people who did not write it. Parquet's own decoder believes sizes and
//! counts; here they are held against what a writer of segments can ever make. The limits are
//! listed in `docs/limits.md`.
//!
//! Invariant: a segment that [`crate::SegmentBuilder`] made is never refused here. The builder holds
//! to what is said here of row groups and events.

use std::ops::Range;

use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::OffsetIndexMetaData;

use super::COLUMNS;
use super::thrift::{self, Found, Refused};
use crate::schema::Column;
use crate::{ColumnSet, SegmentSummary};

/// A footer that claims more than this is damaged or hostile: three full tallies of the longest
/// texts (escaped) come to two thirds, a thousand row groups to the rest.
pub(super) const FOOTER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The page index of a thousand row groups of many small events comes to two thirds of this. All
/// its parts together have no more, wherever they lie: many column chunks may name the same one.
pub(super) const PAGE_INDEX_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Elements of all lists in a footer: a row group has about 150, and each decodes to at most some
/// 600 bytes.
const FOOTER_ELEMENTS_MAX: usize = 256 * 1024;

/// Elements of all lists in the page index of one column chunk: five for each page, and a page has
/// at least one of [`ROWS_MAX`] rows.
const INDEX_ELEMENTS_MAX: usize = 5 * ROWS_MAX;

/// Elements of all lists in the whole page index, each of which decodes to at most 24 bytes: a
/// thousand row groups of fourteen columns with sixteen pages each, and some hundred pages of
/// bodies, come to 1.7 million.
const INDEX_ELEMENTS_ALL_MAX: usize = 2 * 1024 * 1024;

/// Columns and groups in the schema, which has 20; a library builds its tree by recursion.
const SCHEMA_ELEMENTS_MAX: usize = 64;

/// How deep structures nest: a footer takes seven levels.
pub(super) const THRIFT_DEPTH_MAX: usize = 16;

/// Row groups of a segment: a thousand of them hold 8 GiB of events.
pub(crate) const ROW_GROUPS_MAX: usize = 1_024;

/// What the body of an event may have: the largest that RabbitMQ can be configured to take. Less
/// would make an archive that holds an event which nobody can read.
pub(crate) const EVENT_BODY_BYTES_MAX: usize = 512 * 1024 * 1024;

/// What everything else of an event may have: an import's longest line.
pub(crate) const EVENT_ATTRIBUTE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A row group is closed at 8 MiB of events, and the last of them may be the largest there is; each
/// value has a length besides.
const ROW_GROUP_BYTES_BESIDE: u64 = 16 * 1024 * 1024;

/// Rows of a row group: four times as many as a writer puts there. A decoded row without its texts
/// takes some 600 bytes.
pub(super) const ROWS_MAX: usize = 64 * 1024;

/// What the bodies of a row group may decode to.
const BODY_BYTES_MAX: u64 = EVENT_BODY_BYTES_MAX as u64 + ROW_GROUP_BYTES_BESIDE;

/// What any other column of a row group, and all of them together, may decode to.
const ATTRIBUTE_BYTES_MAX: u64 = EVENT_ATTRIBUTE_BYTES_MAX as u64 + ROW_GROUP_BYTES_BESIDE;

/// What a bloom filter may have: the largest that Parquet's writers make.
pub(super) const BLOOM_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Checks the footer's bytes.
pub(super) fn check_footer(bytes: &[u8]) -> Result<(), Refused> {
    /// Field numbers of `FileMetaData` in parquet.thrift.
    const SCHEMA: i16 = 2;
    const ROW_GROUPS: i16 = 4;
    let mut visit = |path: &thrift::Path, found: Found| match (path, found) {
        ([SCHEMA], Found::List(count)) if count > SCHEMA_ELEMENTS_MAX => {
            Err("its schema has too many columns")
        }
        ([ROW_GROUPS], Found::List(count)) if count > ROW_GROUPS_MAX => {
            Err("it has too many row groups")
        }
        _ => Ok(()),
    };
    thrift::walk(bytes, FOOTER_ELEMENTS_MAX, &mut visit).map(drop)
}

/// The parts of a page index, as a footer says where they are.
pub(super) struct PageIndex {
    parts: Vec<Range<u64>>,
    elements_left: usize,
}

impl PageIndex {
    /// Returns what a footer says of the page index, unless its parts claim too much together.
    pub(super) fn of(metadata: &ParquetMetaData) -> Result<Self, Refused> {
        let chunks = metadata.row_groups().iter().flat_map(RowGroupMetaData::columns);
        let parts = chunks.flat_map(|chunk| {
            [
                (chunk.offset_index_offset(), chunk.offset_index_length()),
                (chunk.column_index_offset(), chunk.column_index_length()),
            ]
        });
        let range = |(offset, length): (Option<i64>, Option<i32>)| {
            let start = u64::try_from(offset?).ok()?;
            Some(start..start.checked_add(u64::try_from(length?).ok()?)?)
        };
        let parts: Vec<Range<u64>> = parts.filter_map(range).collect();
        let bytes = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.end - part.start));
        match bytes <= PAGE_INDEX_BYTES_MAX {
            true => Ok(PageIndex { parts, elements_left: INDEX_ELEMENTS_ALL_MAX }),
            false => Err("its page index claims an absurd size"),
        }
    }

    /// Checks those parts that are in `bytes`, which begin at `start` of the object.
    pub(super) fn check(&mut self, start: u64, bytes: &[u8]) -> Result<(), Refused> {
        let at = |offset: u64| usize::try_from(offset.checked_sub(start)?).ok();
        let left = &mut self.elements_left;
        let mut visit = |_: &thrift::Path, found: Found| {
            if let Found::List(count) = found {
                *left = left.checked_sub(count).ok_or("its page index has too many elements")?;
            }
            Ok(())
        };
        for part in &self.parts {
            let bytes = at(part.start).zip(at(part.end)).and_then(|(from, to)| bytes.get(from..to));
            if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                thrift::walk(bytes, INDEX_ELEMENTS_MAX, &mut visit)?;
            }
        }
        Ok(())
    }
}

/// Checks the row groups that a footer claims, against each other and against the summary.
pub(super) fn check_row_groups(
    summary: &SegmentSummary,
    metadata: &ParquetMetaData,
) -> Result<(), String> {
    let mut rows = 0_u64;
    for group in metadata.row_groups() {
        let count = usize::try_from(group.num_rows()).unwrap_or(usize::MAX);
        if count == 0 || count > ROWS_MAX {
            return Err(format!(
                "a row group claims {} rows (at most {ROWS_MAX} are read)",
                group.num_rows()
            ));
        }
        rows += count as u64;
        check_chunks(group, summary.size)?;
    }
    if rows != summary.events() {
        return Err(format!("it has {rows} rows for {} events", summary.events()));
    }
    Ok(())
}

fn check_chunks(group: &RowGroupMetaData, size: u64) -> Result<(), String> {
    for (column, chunk) in COLUMNS.into_iter().zip(group.columns()) {
        let name = chunk.column_path().string();
        let absurd = || format!("column `{name}` claims an absurd size");
        // The readable duplicates are for other tools, and never decoded here.
        let decoded = u64::try_from(chunk.uncompressed_size()).map_err(|_| absurd())?;
        if ColumnSet::ALL.has(column) && decoded > bytes_max(column) {
            return Err(absurd());
        }
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let (start, length) = (u64::try_from(start), u64::try_from(chunk.compressed_size()));
        let (Ok(start), Ok(length)) = (start, length) else { return Err(absurd()) };
        if start.checked_add(length).is_none_or(|end| end > size) {
            return Err(format!("column `{name}` lies outside its object"));
        }
        if !matches!(chunk.compression(), Compression::ZSTD(_) | Compression::UNCOMPRESSED) {
            return Err(format!("column `{name}` is not compressed with zstd"));
        }
    }
    Ok(())
}

/// Checks that the pages of a page index follow each other and cover the rows of their group.
pub(super) fn check_pages(
    group: &RowGroupMetaData,
    column: usize,
    offsets: &OffsetIndexMetaData,
) -> Result<(), String> {
    let chunk = group.column(column);
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let end = start + chunk.compressed_size();
    let (mut at, mut row) = (start, -1);
    for (number, page) in offsets.page_locations().iter().enumerate() {
        let fits = page.offset >= at
            && page.compressed_page_size > 0
            && i64::from(page.compressed_page_size) <= end - page.offset
            && page.first_row_index > row
            && (number > 0 || page.first_row_index == 0)
            && page.first_row_index < group.num_rows();
        if !fits {
            return Err(format!(
                "the page index of column `{}` does not fit it",
                chunk.column_path()
            ));
        }
        (at, row) = (page.offset + i64::from(page.compressed_page_size), page.first_row_index);
    }
    match row {
        -1 => Err(format!("the page index of column `{}` is empty", chunk.column_path())),
        _ => Ok(()),
    }
}

/// What a column of a row group may decode to.
fn bytes_max(column: Column) -> u64 {
    match column {
        Column::Body => BODY_BYTES_MAX,
        _ => ATTRIBUTE_BYTES_MAX,
    }
}

/// What one read may still copy out of its pages: many rows may share one entry of a dictionary.
#[derive(Debug)]
pub(crate) struct Allowance {
    attributes: u64,
    bodies: u64,
}

impl Allowance {
    /// Allows what a row group may hold.
    pub(crate) fn of_a_row_group() -> Self {
        Allowance { attributes: ATTRIBUTE_BYTES_MAX, bodies: BODY_BYTES_MAX }
    }

    /// Takes away the bytes of one value.
    pub(crate) fn take(&mut self, column: Column, bytes: usize) -> Result<(), ParquetError> {
        let left = match column {
            Column::Body => &mut self.bodies,
            _ => &mut self.attributes,
        };
        *left = left.checked_sub(bytes as u64).ok_or_else(|| {
            let problem = format!("its rows decode to more than {} bytes", bytes_max(column));
            ParquetError::General(problem)
        })?;
        Ok(())
    }
}

/// Checks the header of the page that `bytes` begin with, before it is decoded; returns the length
/// of the page, header included. `decoded` sums up the pages of one column.
pub(crate) fn check_page(
    bytes: &[u8],
    column: Column,
    decoded: &mut u64,
) -> Result<usize, Refused> {
    let header = PageHeader::read(bytes)?;
    let dictionary = match header.kind {
        DATA_PAGE => false,
        DICTIONARY_PAGE => true,
        _ => return Err("it is of a kind that segments do not have"),
    };
    if !ENCODINGS.contains(&header.encoding) {
        return Err("it is encoded in a way that segments are not");
    }
    *decoded = decoded.saturating_add(header.decoded);
    if *decoded > bytes_max(column) {
        return Err("it claims to decode to an absurd size");
    }
    // A value of a dictionary is a number, or a text with its length: four bytes at least.
    let values_max = if dictionary { header.decoded / 4 } else { ROWS_MAX as u64 };
    if header.values > values_max {
        return Err("it claims an absurd number of values");
    }
    let length = header.length.checked_add(header.stored).filter(|length| *length <= bytes.len());
    length.ok_or("it runs past its column")
}

/// Kinds of pages, and encodings, in parquet.thrift: only those that segments have.
const DATA_PAGE: i64 = 0;
const DICTIONARY_PAGE: i64 = 2;
const PLAIN: i64 = 0;
const PLAIN_DICTIONARY: i64 = 2;
const RLE_DICTIONARY: i64 = 8;
const ENCODINGS: [i64; 3] = [PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY];

struct PageHeader {
    length: usize,
    kind: i64,
    decoded: u64,
    stored: usize,
    values: u64,
    encoding: i64,
}

impl PageHeader {
    fn read(bytes: &[u8]) -> Result<Self, Refused> {
        /// Lists in a page header: none but in statistics of later versions.
        const ELEMENTS_MAX: usize = 64;
        let (mut kind, mut decoded, mut stored, mut values, mut encoding) = (-1, -1, -1, -1, -1);
        // Field numbers of `PageHeader`, `DataPageHeader` (5) and `DictionaryPageHeader` (7). A
        // field that is there twice counts as the larger: a library may take either.
        let mut visit = |path: &thrift::Path, found: Found| {
            let Found::Number(number) = found else { return Ok(()) };
            match path {
                [1] if kind != -1 && kind != number => return Err("it has two kinds"),
                [1] => kind = number,
                [2] => decoded = decoded.max(number),
                [3] => stored = stored.max(number),
                [5 | 7, 1] => values = values.max(number),
                [5 | 7, 2] if encoding != -1 && encoding != number => {
                    return Err("it has two encodings");
                }
                [5 | 7, 2] => encoding = number,
                _ => {}
            }
            Ok(())
        };
        let length = thrift::walk(bytes, ELEMENTS_MAX, &mut visit)?;
        let negative = "it claims a negative size";
        Ok(PageHeader {
            length,
            kind,
            decoded: u64::try_from(decoded).map_err(|_| negative)?,
            stored: usize::try_from(stored).map_err(|_| negative)?,
            values: u64::try_from(values).map_err(|_| "it claims a negative number of values")?,
            encoding,
        })
    }
}
