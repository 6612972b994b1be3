//! Columns of a row group, from bytes that were fetched before. Plain: no I/O, no async.
//!
//! Invariant: nothing read from a segment is trusted; a value that does not fit is
//! an error, and a row is complete only if its checksum agrees.

use std::ops::Range;

use bytes::{Buf, Bytes};
use dacapo_event::Event;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::{ChunkReader, Length};

use crate::Rows;

pub(crate) use self::decoder::Decoder;

mod decoder;

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

/// Returns the rows of a page, by the index that [`crate::segment::limits`] has checked.
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
