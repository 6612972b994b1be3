//! Checks one segment, or one output of compaction, against the entry that names it.

use std::sync::Arc;

use dacapo_event::{Digest, StreamName};

use super::{MISSING, problem_of};
use crate::chain::ChainEntry;
use crate::footer::{self, ObjectHasher};
use crate::store::{ByteRange, ObjectKey, Store, StoreError};
use crate::{ArchiveError, Segment, layout};

/// Of a segment this much is held at a time: few requests, and memory that does not depend on how
/// large segments are.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// Returns what is wrong with the segment that an entry names: [`MISSING`] if it is not there.
pub(super) async fn check(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    entry: &ChainEntry,
) -> Result<Option<String>, ArchiveError> {
    match digest_of(&**store, &entry.segment, entry.size).await {
        Ok(Some(digest)) if digest == entry.digest => {}
        Ok(_) => {
            let differs = "its bytes are not those that were written (digest differs)";
            return explain(&**store, entry, differs.to_owned()).await.map(Some);
        }
        Err(StoreError::NotFound { .. }) => return Ok(Some(MISSING.to_owned())),
        Err(error @ StoreError::Cold { .. }) => return Ok(Some(error.to_string())),
        // As of what ends before its size.
        Err(error @ StoreError::Permanent { .. }) => {
            return explain(&**store, entry, error.to_string()).await.map(Some);
        }
        Err(error) => return Err(error.into()),
    }
    match Segment::open(Arc::clone(store), &entry.segment, Some(entry.size)).await {
        Ok(segment) => {
            let summary = segment.summary();
            let place = layout::parse_any_segment(&entry.segment);
            let same = ChainEntry::of(summary) == *entry
                && summary.stream == *stream
                && place == Some((stream.clone(), entry.first));
            Ok((!same).then(|| "its footer and its entry contradict each other".to_owned()))
        }
        // Deleted by a compaction since.
        Err(ArchiveError::Store(StoreError::NotFound { .. })) => Ok(Some(MISSING.to_owned())),
        Err(ArchiveError::Store(error)) => Err(error.into()),
        Err(error) => Ok(Some(problem_of(&error))),
    }
}

/// Returns the size of the object as the reason why it is not what its entry says, if it is one.
async fn explain(
    store: &dyn Store,
    entry: &ChainEntry,
    problem: String,
) -> Result<String, ArchiveError> {
    let listed = store.list(entry.segment.as_str(), None).await?.objects;
    let size = listed.iter().find(|object| object.key == entry.segment).map(|object| object.size);
    Ok(size.and_then(|size| size_differs(size, entry)).unwrap_or(problem))
}

/// Says so if an object has another size than its entry gives.
pub(super) fn size_differs(size: u64, entry: &ChainEntry) -> Option<String> {
    (size != entry.size).then(|| format!("has {size} bytes, was written with {}", entry.size))
}

/// Returns the digest that an object of this size should have; nothing if there is no place for
/// one in it. Holds one piece of it at a time.
pub(crate) async fn digest_of(
    store: &dyn Store,
    key: &ObjectKey,
    size: u64,
) -> Result<Option<Digest>, StoreError> {
    if size == 0 {
        return Ok(None);
    }
    let tail = ByteRange::Suffix(size.min(footer::DIGEST_TAIL_BYTES as u64));
    let tail = store.get(key, tail).await?;
    let Some(mut hasher) = ObjectHasher::new(size, &tail) else { return Ok(None) };
    let mut offset = 0;
    while offset < size {
        let end = size.min(offset + PIECE_BYTES);
        let piece = store.get(key, ByteRange::Span(offset, end)).await?;
        if piece.len() as u64 != end - offset {
            return Ok(None);
        }
        let hash = move || {
            hasher.update(&piece);
            hasher
        };
        hasher = match tokio::task::spawn_blocking(hash).await {
            Ok(hasher) => hasher,
            Err(_) => return Ok(None),
        };
        offset = end;
    }
    Ok(Some(hasher.finish()))
}
