//! The bytes of one segment: what was read to find the footer is not read again.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parquet::DecodeResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    FooterTail, ParquetMetaData, ParquetMetaDataPushDecoder, ParquetMetaDataReader,
};

use super::limits::{self, PageIndex};
use super::thrift::Refused;
use super::{GAP_BYTES_MAX, Segment, coalesce};
use crate::ArchiveError;
use crate::store::{ByteRange, ObjectKey, Store, StoreError};

/// Read from the end of a segment in the first request, beside a share of its size: footer and page
/// index of one row group are some 4 KB, and a platform's types and routing keys come to that.
const TAIL_BYTES_MIN: u64 = 8 * 1024;

/// The share of a segment's size: each further row group, 8 MiB of bodies that are stored as a fifth
/// of that or more, has some 2.7 KB at the end.
const TAIL_SHARE: u64 = 512;

/// No more is read of the end of a huge object before its footer says how large that is.
const TAIL_BYTES_MAX: u64 = 1024 * 1024;

/// The most of the end that is kept.
const KEPT_BYTES: u64 = Segment::ONE_REQUEST_BYTES;

/// One object and its end.
#[derive(Debug, Clone)]
pub(super) struct Object {
    store: Arc<dyn Store>,
    key: ObjectKey,
    /// Where the part that is kept begins; it ends with the object.
    kept_from: u64,
    kept: Bytes,
}

impl Object {
    fn new(store: Arc<dyn Store>, key: ObjectKey, size: u64, tail_start: u64, tail: Bytes) -> Self {
        let (kept_from, kept) = match tail.len() as u64 <= KEPT_BYTES {
            true => (tail_start, tail),
            // A part of it would hold the memory of all of it.
            false => (size, Bytes::new()),
        };
        Object { store, key, kept_from, kept }
    }

    /// Returns these bytes of the object, asking for those that are not there yet.
    ///
    /// # Errors
    /// The store fails, or the object ends before them.
    pub(super) async fn get(&self, span: Range<u64>) -> Result<Bytes, ArchiveError> {
        let end = self.kept_from + self.kept.len() as u64;
        if span.end <= self.kept_from || span.end > end || span.start >= span.end {
            return Ok(self.ask(span).await?);
        }
        let kept = |from: u64| {
            let at = |offset: u64| usize::try_from(offset - self.kept_from).unwrap_or(usize::MAX);
            self.kept.slice(at(from)..at(span.end))
        };
        if span.start >= self.kept_from {
            return Ok(kept(span.start));
        }
        let before = self.ask(span.start..self.kept_from).await?;
        let rest = kept(self.kept_from);
        let mut joined = BytesMut::with_capacity(before.len() + rest.len());
        joined.extend_from_slice(&before);
        joined.extend_from_slice(&rest);
        Ok(joined.freeze())
    }

    async fn ask(&self, span: Range<u64>) -> Result<Bytes, StoreError> {
        self.store.get(&self.key, ByteRange::Span(span.start, span.end)).await
    }
}

/// Returns the size of an object, from a listing.
///
/// # Errors
/// It is not there.
pub(crate) async fn size_of(store: &dyn Store, key: &ObjectKey) -> Result<u64, ArchiveError> {
    let page = store.list(key.as_str(), None).await?;
    let found = page.objects.iter().find(|object| object.key == *key);
    found.map(|object| object.size).ok_or_else(|| {
        StoreError::NotFound { key: key.to_string(), location: store.location() }.into()
    })
}

/// Reads the end of an object and decodes the footer there, then the page index, unless `accept`
/// refuses the footer. Returns what that makes of it, too.
///
/// # Errors
/// The object is not there, its footer is not readable, or `accept` fails.
pub(super) async fn open<T>(
    store: Arc<dyn Store>,
    key: &ObjectKey,
    size: u64,
    accept: impl FnOnce(&ParquetMetaData) -> Result<T, ArchiveError>,
) -> Result<(Object, ParquetMetaData, T), ArchiveError> {
    let damaged = |error: ParquetError| {
        ArchiveError::damaged(key, format!("it is no readable Parquet file: {error}"))
    };
    let refused = |problem: Refused| damaged(ParquetError::General(problem.to_owned()));
    if size == 0 {
        return Err(ArchiveError::damaged(key, "it is empty"));
    }
    let tail = store.get(key, ByteRange::Suffix(tail_bytes(size))).await?;
    let tail_start = size.saturating_sub(tail.len() as u64);
    let end = End { key, size, store: &*store, tail_start, tail: &tail };

    let metadata = end.footer().await?;
    let accepted = accept(&metadata)?;
    let mut index = PageIndex::of(&metadata).map_err(refused)?;
    let mut decoder =
        ParquetMetaDataPushDecoder::try_new_with_metadata(size, metadata).map_err(damaged)?;
    loop {
        match decoder.try_decode().map_err(damaged)? {
            DecodeResult::Data(metadata) => {
                let object = Object::new(store, key.clone(), size, tail_start, tail);
                return Ok((object, metadata, accepted));
            }
            DecodeResult::NeedsData(ranges) => {
                for range in coalesce(ranges, GAP_BYTES_MAX) {
                    let bytes = end.get(range.clone(), limits::PAGE_INDEX_BYTES_MAX).await?;
                    index.check(range.start, &bytes).map_err(refused)?;
                    decoder.push_range(range, bytes).map_err(damaged)?;
                }
            }
            DecodeResult::Finished => {
                return Err(ArchiveError::damaged(key, "its footer ends early"));
            }
        }
    }
}

/// Returns how much of an object's end holds its footer and page index, most likely.
fn tail_bytes(size: u64) -> u64 {
    if size <= Segment::ONE_REQUEST_BYTES {
        return size;
    }
    (TAIL_BYTES_MIN + size / TAIL_SHARE).min(TAIL_BYTES_MAX)
}

/// The end of an object, of which `tail` was read.
struct End<'a> {
    key: &'a ObjectKey,
    size: u64,
    store: &'a dyn Store,
    tail_start: u64,
    tail: &'a Bytes,
}

impl End<'_> {
    /// Returns the footer, once it is known that it claims nothing absurd.
    async fn footer(&self) -> Result<ParquetMetaData, ArchiveError> {
        /// Before the footer's length and the magic, at the very end.
        const LAST_BYTES: usize = 8;
        let unreadable = |problem: &dyn std::fmt::Display| {
            ArchiveError::damaged(self.key, format!("it is no readable Parquet file: {problem}"))
        };
        let last: [u8; LAST_BYTES] = self
            .tail
            .last_chunk()
            .copied()
            .ok_or_else(|| unreadable(&"it has less than eight bytes"))?;
        let last = FooterTail::try_new(&last).map_err(|error| unreadable(&error))?;
        if last.is_encrypted_footer() {
            return Err(unreadable(&"it is encrypted"));
        }
        let footer_end = self.size - LAST_BYTES as u64;
        let start = footer_end
            .checked_sub(last.metadata_length() as u64)
            .ok_or_else(|| unreadable(&"its footer claims more bytes than it has"))?;
        let bytes = self.get(start..footer_end, limits::FOOTER_BYTES_MAX).await?;
        limits::check_footer(&bytes).map_err(|problem| unreadable(&problem))?;
        ParquetMetaDataReader::decode_metadata(&bytes).map_err(|error| unreadable(&error))
    }

    async fn get(&self, range: Range<u64>, bytes_max: u64) -> Result<Bytes, ArchiveError> {
        if range.end > self.size || range.end - range.start > bytes_max {
            return Err(ArchiveError::damaged(self.key, "its footer claims an absurd size"));
        }
        match range.start.checked_sub(self.tail_start) {
            Some(skip) => {
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
                Ok(self.tail.slice(at(skip)..at(range.end - self.tail_start)))
            }
            None => Ok(self.store.get(self.key, ByteRange::Span(range.start, range.end)).await?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::metered::Metered;

    /// Checks what a span costs of an object of a hundred bytes whose last thirty are kept.
    #[track_caller]
    fn check(span: Range<u64>, requests: u64, bytes: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let whole: Bytes = (0..100).collect();
            let metered = Arc::new(Metered::new(Arc::new(MemoryStore::new())));
            let key: ObjectKey = "a/b".parse().unwrap();
            metered.put_new(&key, whole.clone()).await.unwrap();
            let store = Arc::clone(&metered) as Arc<dyn Store>;
            let object = Object::new(store, key, 100, 70, whole.slice(70..));
            let found = object.get(span.clone()).await.unwrap();
            let expected = usize::try_from(span.start).unwrap()..usize::try_from(span.end).unwrap();
            assert_eq!(found, whole.slice(expected), "{span:?}");
            let totals = metered.totals();
            assert_eq!((totals.requests, totals.bytes), (requests, bytes), "{span:?}");
        });
    }

    #[test]
    fn what_is_kept_is_not_asked_for_again() {
        check(0..70, 1, 70);
        check(70..100, 0, 0);
        check(80..90, 0, 0);
        check(60..71, 1, 10);
        check(0..100, 1, 70);
    }
}
