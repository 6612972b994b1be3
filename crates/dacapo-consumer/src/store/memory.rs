//! Remembered as long as the process lives: for tests, and for services that keep their state in
//! memory, too, and are rebuilt by a replay at each start.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use async_trait::async_trait;
use dacapo_event::Digest;

use super::{Forgetting, ProcessedStore, Retention, StoreError};
use crate::order::{Known, Position};

/// A [`ProcessedStore`] in memory; takes some 150 bytes for each id and key.
#[derive(Debug)]
pub struct MemoryStore(Mutex<Remembered>);

#[derive(Debug)]
struct Remembered {
    ids: Recent<()>,
    keys: Recent<Position>,
    forgetting: Forgetting,
}

/// The most recent entries, by the digest of their names.
#[derive(Debug)]
struct Recent<V> {
    most: usize,
    age: u64,
    entries: HashMap<Digest, (u64, V)>,
    by_age: BTreeMap<u64, Digest>,
}

impl MemoryStore {
    /// Returns an empty store.
    pub fn new(retention: Retention) -> Self {
        let ids = Recent::new(retention.ids.get());
        let keys = Recent::new(retention.keys.get());
        MemoryStore(Mutex::new(Remembered { ids, keys, forgetting: Forgetting::default() }))
    }
}

#[async_trait]
impl ProcessedStore for MemoryStore {
    async fn recall(&self, id: &str, key: Option<&str>) -> Result<Known, StoreError> {
        let remembered = self.0.lock().expect("nothing panics while it holds this lock");
        let handled = remembered.ids.get(&digest(id)).is_some();
        let newest = key.and_then(|key| remembered.keys.get(&digest(key)));
        Ok(Known { handled, newest })
    }

    async fn record(&self, id: &str, place: Option<(&str, Position)>) -> Result<(), StoreError> {
        let mut remembered = self.0.lock().expect("nothing panics while it holds this lock");
        remembered.ids.put(digest(id), ());
        if let Some((key, position)) = place {
            let key = digest(key);
            let newest = remembered.keys.get(&key).map_or(position, |newest| newest.max(position));
            if remembered.keys.put(key, newest) {
                remembered.forgetting.warn();
            }
        }
        Ok(())
    }
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

impl<V: Copy> Recent<V> {
    fn new(most: usize) -> Self {
        Recent { most, age: 0, entries: HashMap::new(), by_age: BTreeMap::new() }
    }

    fn get(&self, name: &Digest) -> Option<V> {
        self.entries.get(name).map(|(_, value)| *value)
    }

    /// Puts an entry as the newest; returns whether another was forgotten for it.
    fn put(&mut self, name: Digest, value: V) -> bool {
        self.age += 1;
        if let Some((age, _)) = self.entries.insert(name, (self.age, value)) {
            self.by_age.remove(&age);
        }
        self.by_age.insert(self.age, name);
        let forgotten = (self.by_age.len() > self.most).then(|| self.by_age.pop_first()).flatten();
        forgotten.is_some_and(|(_, oldest)| self.entries.remove(&oldest).is_some())
    }
}
