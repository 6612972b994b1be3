//! Remembered in a folder of this machine, by sled; every record is flushed before it is told, and
//! nothing is told that is not. Flushed, it outlasts the process, and not always a loss of power: sled
//! 0.34 asks the system to write (`sync_file_range`) and not the disk.
//!
//! Ids and keys are kept as digests, so that an entry has one size whatever it is named, each with
//! its age; beside them the digests by age, so that the oldest is found. One batch writes them all.

use std::fs::{File, TryLockError};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dacapo_event::Digest;
use sled::{Batch, Db, IVec};

use super::{Forgetting, ProcessedStore, Retention, StoreError};
use crate::order::{Known, Position};

/// sled's cache; what is asked for are recent ids, and a repeat is rare.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// The file that sled locks.
const SLED_FILE: &str = "db";

/// How often its lock is tried, and how long between: sled holds it for a moment after it was dropped
/// or its process has died.
const LOCK_ATTEMPTS_MAX: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// How many entries one record takes out at the most, where the retention has become smaller.
const FORGOTTEN_MAX: usize = 1_000;

/// Which entries are meant: the first bytes of the keys in sled, by digest and by age.
#[derive(Debug, Clone, Copy)]
struct Kind {
    named: u8,
    aged: u8,
}

const IDS: Kind = Kind { named: b'i', aged: b'I' };
const KEYS: Kind = Kind { named: b'k', aged: b'K' };

/// A [`ProcessedStore`] in a folder, which one process has at a time.
#[derive(Debug, Clone)]
pub struct SledStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    db: Db,
    retention: Retention,
    /// Held while something is recorded, so that what is read for a record stays true.
    counts: Mutex<Counts>,
    /// Whether something may be recorded that is not flushed; it is before anything is told of it.
    dirty: AtomicBool,
    forgetting: Forgetting,
}

/// What sled would have to walk through all entries for.
#[derive(Debug, Clone, Copy)]
struct Counts {
    /// The highest there is.
    age: u64,
    ids: usize,
    keys: usize,
}

impl SledStore {
    /// Opens the store in `folder`, making it if it is not there. A retention that is smaller than
    /// before is reached step by step, with each record.
    ///
    /// # Errors
    /// Another process has it, or it cannot be read.
    pub async fn open(folder: PathBuf, retention: Retention) -> Result<Self, StoreError> {
        for _ in 0..LOCK_ATTEMPTS_MAX {
            if !is_locked(&folder).map_err(|error| failed("open", &folder, error))? {
                break;
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        let inner = blocking(move || Inner::open(folder, retention)).await?;
        Ok(SledStore(Arc::new(inner)))
    }
}

#[async_trait]
impl ProcessedStore for SledStore {
    async fn recall(&self, id: &str, key: Option<&str>) -> Result<Known, StoreError> {
        let (inner, id, key) = (Arc::clone(&self.0), digest(id), key.map(digest));
        let recalling =
            move || inner.recall(id, key).map_err(|error| failed("read", &inner.folder, error));
        blocking(recalling).await
    }

    async fn record(&self, id: &str, place: Option<(&str, Position)>) -> Result<(), StoreError> {
        let place = place.map(|(key, position)| (digest(key), position));
        let (inner, id) = (Arc::clone(&self.0), digest(id));
        let recording =
            move || inner.record(id, place).map_err(|error| failed("write", &inner.folder, error));
        blocking(recording).await
    }
}

impl Inner {
    fn open(folder: PathBuf, retention: Retention) -> Result<Self, StoreError> {
        let config =
            sled::Config::new().path(&folder).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let opening = || -> sled::Result<(Db, Counts)> {
            let db = config.open()?;
            let mut counts = Counts { age: 0, ids: 0, keys: 0 };
            for (kind, count) in [(IDS, &mut counts.ids), (KEYS, &mut counts.keys)] {
                for aged in db.scan_prefix([kind.aged]).keys() {
                    counts.age = counts.age.max(age_in(&aged?[1..]));
                    *count += 1;
                }
            }
            Ok((db, counts))
        };
        let (db, counts) = opening().map_err(|error| failed("open", &folder, error))?;
        let (counts, dirty) = (Mutex::new(counts), AtomicBool::new(false));
        Ok(Inner { folder, db, retention, counts, dirty, forgetting: Forgetting::default() })
    }

    fn recall(&self, id: Digest, key: Option<Digest>) -> sled::Result<Known> {
        let handled = self.db.contains_key(named(IDS, &id))?;
        let newest = match key {
            Some(key) => self.newest(&key)?,
            None => None,
        };
        // After it was read: what was recorded before that had set this.
        if self.dirty.load(Ordering::Acquire) {
            let _recording = self.counts.lock().expect("nothing panics while it holds this lock");
            self.flush()?;
        }
        Ok(Known { handled, newest })
    }

    fn newest(&self, key: &Digest) -> sled::Result<Option<Position>> {
        Ok(self.db.get(named(KEYS, key))?.as_ref().and_then(position))
    }

    fn record(&self, id: Digest, place: Option<(Digest, Position)>) -> sled::Result<()> {
        let mut counts = self.counts.lock().expect("nothing panics while it holds this lock");
        let Counts { age, ids, keys } = *counts;
        let mut after = Counts { age: age + 1, ids, keys };
        let mut batch = Batch::default();
        let none = Position(0);
        after.ids = self.put(&mut batch, IDS, &id, after.age, none, (ids, self.retention.ids))?;
        if let Some((key, position)) = place {
            let known = self.newest(&key)?;
            let newest = known.map_or(position, |newest| newest.max(position));
            let room = (keys, self.retention.keys);
            after.keys = self.put(&mut batch, KEYS, &key, after.age, newest, room)?;
            if after.keys < keys + usize::from(known.is_none()) {
                self.forgetting.warn();
            }
        }
        self.dirty.store(true, Ordering::Release);
        self.db.apply_batch(batch)?;
        *counts = after;
        self.flush()
    }

    /// Called by whoever holds the counts, so that nothing is recorded meanwhile.
    fn flush(&self) -> sled::Result<()> {
        self.db.flush()?;
        self.dirty.store(false, Ordering::Release);
        Ok(())
    }

    /// Adds to a batch that an entry is put as the newest, and the oldest are taken out for which there
    /// is no room; returns how many there are then.
    fn put(
        &self,
        batch: &mut Batch,
        kind: Kind,
        name: &Digest,
        age: u64,
        position: Position,
        (count, most): (usize, NonZeroUsize),
    ) -> sled::Result<usize> {
        let before = self.db.get(named(kind, name))?;
        let mut count = count + usize::from(before.is_none());
        if let Some(before) = before {
            batch.remove(aged(kind, age_in(&before)));
        }
        let value = [age.to_be_bytes(), position.0.to_be_bytes()].concat();
        batch.insert(named(kind, name), value);
        batch.insert(aged(kind, age), name.as_bytes());
        let too_many = count.saturating_sub(most.get()).min(FORGOTTEN_MAX);
        // One of the oldest may be the entry itself as it was, which is no longer.
        let oldest = self.db.scan_prefix([kind.aged]).filter(|aged| {
            aged.as_ref().map_or(true, |(_, digest)| digest.as_ref() != name.as_bytes())
        });
        for oldest in oldest.take(too_many) {
            let (aged, digest) = oldest?;
            let mut named = vec![kind.named];
            named.extend_from_slice(&digest);
            batch.remove(named);
            batch.remove(aged);
            count -= 1;
        }
        Ok(count)
    }
}

/// An entry's key in sled.
fn named(kind: Kind, name: &Digest) -> Vec<u8> {
    [&[kind.named][..], name.as_bytes()].concat()
}

/// The key in sled of what was recorded at this age; they sort as ages do.
fn aged(kind: Kind, age: u64) -> Vec<u8> {
    [&[kind.aged][..], &age.to_be_bytes()].concat()
}

/// Returns the age at the start of an entry; an entry that is too short for one is the oldest.
fn age_in(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Returns the position at the end of an entry.
fn position(entry: &IVec) -> Option<Position> {
    entry.last_chunk().map(|bytes| Position(i64::from_be_bytes(*bytes)))
}

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn is_locked(folder: &Path) -> io::Result<bool> {
    let file = match File::open(folder.join(SLED_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Runs what may wait for a disk away from the runtime's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it is not cancelled, and does not panic")
}

fn failed(
    action: &'static str,
    folder: &Path,
    source: impl std::error::Error + Send + Sync + 'static,
) -> StoreError {
    StoreError { action, store: folder.display().to_string(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::retention;

    /// As after a batch that was applied and a flush that failed.
    #[tokio::test]
    async fn what_may_not_be_flushed_is_before_it_is_told() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = SledStore::open(folder.path().to_owned(), retention(9, 9)).await.unwrap();
        store.record("e-1", None).await.unwrap();
        assert!(!store.0.dirty.load(Ordering::Acquire), "a record is flushed");
        store.0.dirty.store(true, Ordering::Release);
        assert!(store.recall("e-1", None).await.unwrap().handled);
        assert!(!store.0.dirty.load(Ordering::Acquire));
    }
}
