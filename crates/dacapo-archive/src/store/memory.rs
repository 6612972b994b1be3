//! A [`Store`] in memory: for tests, for the demonstration, and as the plainest reading of the
//! contract (its bounds and its meaning of a range are used by the file store too).
//!
//! Nothing here outlives the process; "durable" means that the map was changed.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;

use super::{ByteRange, ListPage, ObjectKey, ObjectMeta, Put, Store, StoreError};

/// The most objects in one page of a listing: what S3 gives, so that all stores page alike.
pub(super) const PAGE_OBJECTS_MAX: usize = 1_000;

/// Keeps objects in a map; two stores share nothing.
#[derive(Debug, Default)]
pub struct MemoryStore {
    /// By the text of the key, because listings ask for ranges of texts.
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryStore {
    /// Returns an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().expect("nothing panics while it holds this lock")
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        let mut objects = self.objects();
        match objects.get(key.as_str()) {
            Some(there) if *there == bytes => Ok(Put::Created),
            Some(_) => Ok(Put::Exists),
            None => {
                objects.insert(key.to_string(), bytes);
                Ok(Put::Created)
            }
        }
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.objects().insert(key.to_string(), bytes);
        Ok(())
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        let (key, location) = (key.to_string(), self.location());
        let Some(whole) = self.objects().get(&key).cloned() else {
            return Err(StoreError::NotFound { key, location });
        };
        match resolve(range, whole.len() as u64) {
            Ok(span) => Ok(whole.slice(span.start as usize..span.end as usize)),
            Err(reason) => Err(StoreError::Permanent { key, location, reason }),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        let objects = self.objects();
        let from = match after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix),
        };
        let mut found = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, bytes)| ObjectMeta {
                key: key.parse().expect("only the texts of object keys are inserted"),
                size: bytes.len() as u64,
            });
        let page = found.by_ref().take(PAGE_OBJECTS_MAX).collect();
        Ok(ListPage { objects: page, more: found.next().is_some() })
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.objects().remove(key.as_str());
        Ok(())
    }

    fn location(&self) -> String {
        "memory:".to_owned()
    }
}

/// Returns which offsets of an object of `size` bytes are asked for, or why they cannot be given.
pub(super) fn resolve(range: ByteRange, size: u64) -> Result<Range<u64>, String> {
    match range {
        ByteRange::Full => Ok(0..size),
        ByteRange::Suffix(bytes) => Ok(size.saturating_sub(bytes)..size),
        ByteRange::Span(start, end) if start >= end => {
            Err(format!("the span {start}..{end} is empty"))
        }
        ByteRange::Span(start, end) if end > size => {
            Err(format!("bytes {start}..{end} were asked for and the object has {size}"))
        }
        ByteRange::Span(start, end) => Ok(start..end),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::conformance::check_store;

    #[tokio::test]
    async fn conforms() {
        check_store(Arc::new(MemoryStore::new())).await;
    }
}
