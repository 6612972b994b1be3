//! A [`Store`] that counts what is read through it, for receipts.
//!
//! Writing is passed on and not counted: receipts compare reading with a full scan.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{ByteRange, ListPage, ObjectKey, Put, Store, StoreError};

/// What was read through a [`Metered`] store so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadTotals {
    /// Gets and pages of listings asked for, failed ones included; retries inside the store are
    /// not seen.
    pub requests: u64,
    /// Bytes that gets returned.
    pub bytes: u64,
}

/// Passes everything on to another store and counts the reading.
#[derive(Debug)]
pub struct Metered {
    store: Arc<dyn Store>,
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Metered {
    /// Returns a store that reads and writes `store` and has counted nothing yet.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Metered { store, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Returns the totals at this moment; with reads under way the two may be of different moments.
    pub fn totals(&self) -> ReadTotals {
        ReadTotals {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for Metered {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        self.store.put_new(key, bytes).await
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.store.replace(key, bytes).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = self.store.get(key, range).await?;
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.store.list(prefix, after).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.store.delete(key).await
    }

    fn location(&self) -> String {
        self.store.location()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::check_store;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn conforms() {
        check_store(Arc::new(Metered::new(Arc::new(MemoryStore::new())))).await;
    }

    #[tokio::test]
    async fn counts_reading_and_only_reading() {
        let store = Metered::new(Arc::new(MemoryStore::new()));
        let key: ObjectKey = "a/b".parse().unwrap();
        store.put_new(&key, Bytes::from_static(b"0123456789")).await.unwrap();
        store.replace(&key, Bytes::from_static(b"0123456789")).await.unwrap();
        assert_eq!(store.totals(), ReadTotals::default());

        store.get(&key, ByteRange::Full).await.unwrap();
        store.get(&key, ByteRange::Suffix(3)).await.unwrap();
        store.get(&key, ByteRange::Span(5, 50)).await.unwrap_err();
        store.list("", None).await.unwrap();
        assert_eq!(store.totals(), ReadTotals { requests: 4, bytes: 13 });
    }
}
