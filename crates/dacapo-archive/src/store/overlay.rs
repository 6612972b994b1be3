//! A [`Store`] that shows what another would be after changes that are only held here: for dry
//! runs.
//!
//! Memory is that of what is put, so it is for small objects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;

use super::memory::{PAGE_OBJECTS_MAX, resolve};
use super::{ByteRange, ListPage, ObjectKey, ObjectMeta, Put, Store, StoreError};

/// Holds changes over a store that is only read.
#[derive(Debug)]
pub struct Overlay {
    below: Arc<dyn Store>,
    /// What was put; nothing for what was deleted.
    changes: Mutex<BTreeMap<ObjectKey, Option<Bytes>>>,
}

impl Overlay {
    /// Returns one without changes.
    pub fn new(below: Arc<dyn Store>) -> Self {
        Overlay { below, changes: Mutex::default() }
    }

    fn changes(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Option<Bytes>>> {
        self.changes.lock().expect("nothing panics while it holds this lock")
    }

    fn not_found(&self, key: &ObjectKey) -> StoreError {
        StoreError::NotFound { key: key.to_string(), location: self.location() }
    }
}

#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
#[async_trait]
impl Store for Overlay {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        let below = match self.below.get(key, ByteRange::Full).await {
            Ok(bytes) => Some(bytes),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        // The lock is held from the last look to the put, so that one of several wins.
        let mut changes = self.changes();
        match changes.get(key).unwrap_or(&below) {
            Some(there) if *there == bytes => Ok(Put::Created),
            Some(_) => Ok(Put::Exists),
            None => {
                changes.insert(key.clone(), Some(bytes));
                Ok(Put::Created)
            }
        }
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.changes().insert(key.clone(), Some(bytes));
        Ok(())
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        let change = self.changes().get(key).cloned();
        let whole = match change {
            None => return self.below.get(key, range).await,
            Some(None) => return Err(self.not_found(key)),
            Some(Some(whole)) => whole,
        };
        match resolve(range, whole.len() as u64) {
            Ok(span) => Ok(whole.slice(span.start as usize..span.end as usize)),
            Err(reason) => {
                let (key, location) = (key.to_string(), self.location());
                Err(StoreError::Permanent { key, location, reason })
            }
        }
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        let page = self.below.list(prefix, after).await?;
        // What sorts after the page belongs to the next one.
        let end = page.objects.last().filter(|_| page.more).map(|object| object.key.clone());
        let mut objects: BTreeMap<ObjectKey, u64> =
            page.objects.into_iter().map(|object| (object.key, object.size)).collect();
        for (key, change) in &*self.changes() {
            let is_in_page = key.as_str().starts_with(prefix)
                && after.is_none_or(|after| key > after)
                && end.as_ref().is_none_or(|end| key <= end);
            match change {
                Some(bytes) if is_in_page => drop(objects.insert(key.clone(), bytes.len() as u64)),
                Some(_) => {}
                None => drop(objects.remove(key)),
            }
        }
        let more = page.more || objects.len() > PAGE_OBJECTS_MAX;
        let objects = objects.into_iter().take(PAGE_OBJECTS_MAX);
        let objects = objects.map(|(key, size)| ObjectMeta { key, size }).collect();
        Ok(ListPage { objects, more })
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.changes().insert(key.clone(), None);
        Ok(())
    }

    fn location(&self) -> String {
        self.below.location()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::check_store;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn conforms() {
        check_store(Arc::new(Overlay::new(Arc::new(MemoryStore::new())))).await;
    }

    #[tokio::test]
    async fn what_is_below_shows_through_and_stays_as_it_was() {
        let below: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let [a, b, c]: [ObjectKey; 3] = ["a", "b", "c"].map(|key| key.parse().unwrap());
        let bytes = Bytes::from_static;
        for key in [&a, &b] {
            below.put_new(key, bytes(b"below")).await.unwrap();
        }
        let overlay = Overlay::new(Arc::clone(&below));
        overlay.delete(&a).await.unwrap();
        overlay.replace(&b, bytes(b"changed")).await.unwrap();
        assert_eq!(overlay.put_new(&c, bytes(b"new")).await.unwrap(), Put::Created);
        let listed = overlay.list("", None).await.unwrap().objects;
        let listed: Vec<_> =
            listed.iter().map(|object| (object.key.as_str(), object.size)).collect();
        assert_eq!(listed, [("b", 7), ("c", 3)]);
        assert_eq!(overlay.get(&b, ByteRange::Full).await.unwrap(), "changed");
        assert_eq!(below.get(&b, ByteRange::Full).await.unwrap(), "below");
        assert_eq!(below.list("", None).await.unwrap().objects.len(), 2);
    }
}
