//! Checks one segment, or one output of compaction, against the entry that names it.

use std::sync::Arc;

use dacapo_event::{Digest, StreamName};

use super::damage_of;
use crate::chain::ChainEntry;
use crate::footer::{self, ObjectHasher};
use crate::store::{ByteRange, ObjectKey, Store, StoreError};
use crate::{ArchiveError, Segment};

/// Of a segment this much is held at a time: few requests, and memory that does not depend on how
/// large segments are.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;

/// What an object was found to be.
pub(super) enum Checked {
    /// What its entry says.
    Sound(Segment),
    /// Not there.
    Missing,
    /// Something else; with what is wrong.
    Wrong(String),
}

/// Reads the object that an entry names, and compares them.
///
/// # Errors
/// The store fails in a way that says nothing about the object.
pub(super) async fn check(
    store: &Arc<dyn Store>,
    stream: &StreamName,
    entry: &ChainEntry,
) -> Result<Checked, ArchiveError> {
    match digest_of(&**store, &entry.segment, entry.size).await {
        Ok(Some(digest)) if digest == entry.digest => {}
        Ok(_) => {
            let differs = "its bytes are not those that were written (digest differs)".to_owned();
            return Ok(match size_of(&**store, &entry.segment).await? {
                Some(size) => Checked::Wrong(size_differs(size, entry).unwrap_or(differs)),
                None => Checked::Missing,
            });
        }
        Err(StoreError::NotFound { .. }) => return Ok(Checked::Missing),
        Err(error) => {
            let problem = damage_of(error.into())?;
            // As of what ends before its size.
            let size = size_of(&**store, &entry.segment).await?;
            let size_differs = size.and_then(|size| size_differs(size, entry));
            return Ok(Checked::Wrong(size_differs.unwrap_or(problem)));
        }
    }
    match Segment::open(Arc::clone(store), &entry.segment, Some(entry.size)).await {
        Ok(segment) => {
            let summary = segment.summary();
            if ChainEntry::of(summary) == *entry && summary.stream == *stream {
                return Ok(Checked::Sound(segment));
            }
            Ok(Checked::Wrong("its footer and its entry contradict each other".to_owned()))
        }
        // Deleted by a compaction since.
        Err(ArchiveError::Store(StoreError::NotFound { .. })) => Ok(Checked::Missing),
        Err(error) => damage_of(error).map(Checked::Wrong),
    }
}

/// Returns the size of an object; nothing if none is listed.
async fn size_of(store: &dyn Store, key: &ObjectKey) -> Result<Option<u64>, StoreError> {
    let listed = store.list(key.as_str(), None).await?.objects;
    Ok(listed.into_iter().find(|object| object.key == *key).map(|object| object.size))
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
