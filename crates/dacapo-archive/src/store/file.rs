//! A [`Store`] in a directory: a key is the path of a file below it.
//!
//! A put writes a temporary file, syncs it, and gives it its name with `link(2)`, which fails if
//! the name is taken: write-once without a lock, whatever other processes do. Then the
//! directories are synced, and only then does the put return. Nobody can see a part of an object,
//! because an object gets its name after its bytes.
//!
//! Invariants: symbolic links below the root are never followed; the root is the directory that was
//! opened and no other of its name, so that an unmounted disk is an error and neither an empty
//! archive nor written beneath; temporary files are in a directory that no listing shows.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::durable::{
    create_directory, create_durably, holds, open_object, sync_directory, sync_parent,
};
use self::failure::{WHOLE, failed, is_absent, location_of, no_such_store};
use super::memory::resolve;
use super::{ByteRange, ListPage, ObjectKey, Put, Store, StoreError};

mod durable;
mod failure;
mod listing;
#[cfg(test)]
mod tests;

/// Where temporary files are, below the root: on the same file system, because `link(2)` and
/// `rename(2)` do not cross one. No key may begin with it.
const TEMPORARY: &str = ".dacapo-tmp";

/// How old a temporary file must be to be taken for the remains of a killed writer. No put lasts
/// that long; were one to, it would fail and be tried again.
const REMAINS_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How many names for a temporary file are tried; each is taken only by the remains of a killed
/// process with the same id, or one on another machine.
const TEMPORARY_NAMES_MAX: u32 = 1_000;

/// How many directories are remembered as synced before the memory starts anew: a few years of
/// hours. Forgetting costs a sync.
const SYNCED_DIRECTORIES_MAX: usize = 32_768;

/// Keeps objects as files below a directory.
#[derive(Debug, Clone)]
pub struct FileStore {
    root: Arc<Root>,
}

#[derive(Debug)]
struct Root {
    /// Absolute and free of symbolic links.
    path: PathBuf,
    /// Its device and inode when it was opened.
    identity: (u64, u64),
    /// Directories whose own entries, up to the root, this process has synced.
    synced: Mutex<HashSet<PathBuf>>,
    /// Tells the temporary files of two stores apart whose processes have the same id: two
    /// containers that share a volume, for example.
    salt: u64,
    next_temporary: AtomicU64,
}

impl FileStore {
    /// Opens the store in a directory that must exist; writes nothing until asked to.
    ///
    /// # Errors
    /// `NoSuchStore` if there is no such directory, or what the system says of it.
    pub async fn open(path: impl Into<PathBuf>) -> Result<FileStore, StoreError> {
        let path = path.into();
        blocking(location_of(&path), move || Root::open(&path)).await.map(FileStore::new)
    }

    /// Opens the store in a directory, creating it (durably, with those above it) if it is not
    /// there, and removes temporary files that a killed writer left more than a day ago.
    ///
    /// # Errors
    /// `Denied`, `Unavailable` (no space) or `Permanent` (a file is in the way), in the system's
    /// words.
    pub async fn create(path: impl Into<PathBuf>) -> Result<FileStore, StoreError> {
        let path = path.into();
        blocking(location_of(&path), move || Root::create(&path)).await.map(FileStore::new)
    }

    fn new(root: Root) -> Self {
        FileStore { root: Arc::new(root) }
    }

    /// Runs an operation where it may block; it is carried through even if the future is dropped.
    async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Root) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let root = Arc::clone(&self.root);
        let checked = move || if root.is_there() { operation(&root) } else { Err(root.gone()) };
        blocking(self.location(), checked).await
    }
}

#[async_trait]
impl Store for FileStore {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        let key = key.clone();
        self.run(move |root| root.put_new(&key, &bytes)).await
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        let key = key.clone();
        self.run(move |root| root.replace(&key, &bytes)).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        let key = key.clone();
        self.run(move |root| root.get(&key, range)).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        self.run(move |root| {
            let page = listing::list(&root.path, &prefix, after.as_ref());
            let named = if prefix.is_empty() { WHOLE } else { &prefix };
            page.map_err(|error| root.failed(named, error))
        })
        .await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.run(move |root| root.delete(&key)).await
    }

    fn location(&self) -> String {
        location_of(&self.root.path)
    }
}

impl Root {
    fn open(path: &Path) -> Result<Root, StoreError> {
        let location = location_of(path);
        let absolute = fs::canonicalize(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => no_such_store(location.clone()),
            _ => failed(WHOLE, location.clone(), &error),
        })?;
        let metadata =
            fs::metadata(&absolute).map_err(|error| failed(WHOLE, location.clone(), &error))?;
        if !metadata.is_dir() {
            let hint = "a file is there; give the path of a directory".to_owned();
            return Err(StoreError::NoSuchStore { location, hint });
        }
        Ok(Root {
            path: absolute,
            identity: (metadata.dev(), metadata.ino()),
            synced: Mutex::default(),
            salt: RandomState::new().hash_one(path),
            next_temporary: AtomicU64::new(0),
        })
    }

    fn create(path: &Path) -> Result<Root, StoreError> {
        create_durably(path).map_err(|error| failed(WHOLE, location_of(path), &error))?;
        let root = Root::open(path)?;
        root.remove_remains().map_err(|error| root.failed(TEMPORARY, error))?;
        Ok(root)
    }

    fn put_new(&self, key: &ObjectKey, bytes: &[u8]) -> Result<Put, StoreError> {
        let put = || {
            let path = self.path_of(key)?;
            self.make_parents(key)?;
            let temporary = self.write_temporary(bytes)?;
            let linked = fs::hard_link(&temporary.path, &path);
            let put = match linked {
                Ok(()) => Put::Created,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let there = open_object(&path)?;
                    // Its writer may not have come to the syncs, and who is told that the object
                    // is there will rely on it.
                    there.sync_all()?;
                    if holds(&there, bytes)? { Put::Created } else { Put::Exists }
                }
                Err(error) => return Err(error),
            };
            sync_parent(&path)?;
            Ok(put)
        };
        put().map_err(|error| self.failed_put(key, error))
    }

    fn replace(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), StoreError> {
        let replace = || {
            let path = self.path_of(key)?;
            self.make_parents(key)?;
            let temporary = self.write_temporary(bytes)?;
            fs::rename(&temporary.path, &path)?;
            temporary.leave();
            sync_parent(&path)
        };
        replace().map_err(|error| self.failed_put(key, error))
    }

    fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        let failed = |error| self.failed(key.as_str(), error);
        let opened = self.path_of(key).and_then(|path| open_object(&path));
        let file = opened.map_err(|error| match is_absent(&error) {
            true => failed(io::Error::from(ErrorKind::NotFound)),
            false => failed(error),
        })?;
        let size = file.metadata().map_err(failed)?.len();
        let span = resolve(range, size).map_err(|reason| StoreError::Permanent {
            key: key.to_string(),
            location: location_of(&self.path),
            reason,
        })?;
        let length = usize::try_from(span.end - span.start)
            .map_err(|_| failed(io::Error::from(ErrorKind::FileTooLarge)))?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, span.start).map_err(failed)?;
        Ok(bytes.into())
    }

    fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let delete = || {
            let path = self.path_of(key)?;
            fs::remove_file(&path)?;
            sync_parent(&path)
        };
        match delete() {
            Err(error) if is_absent(&error) && self.is_there() => Ok(()),
            outcome => outcome.map_err(|error| self.failed(key.as_str(), error)),
        }
    }

    /// Returns the path of an object after looking at every directory on the way to it.
    ///
    /// Looking first is no defence against someone who changes directories at this moment; it
    /// keeps an archive from reaching out of its root by accident.
    fn path_of(&self, key: &ObjectKey) -> io::Result<PathBuf> {
        let mut path = self.path.clone();
        for (depth, part) in key.as_str().split('/').enumerate() {
            if depth == 0 && part == TEMPORARY {
                let reason = format!("`{TEMPORARY}` is where this store keeps temporary files");
                return Err(io::Error::new(ErrorKind::InvalidInput, reason));
            }
            path.push(part);
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_symlink() => {
                    let reason =
                        format!("`{}` is a symbolic link, and none is followed", path.display());
                    return Err(io::Error::other(reason));
                }
                Err(error) if !is_absent(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(path)
    }

    /// Creates the directories above an object and syncs their entries, from the root down.
    ///
    /// A directory that is already there is synced too, once by each process: who created it may
    /// have been killed, or may not have come to it yet.
    fn make_parents(&self, key: &ObjectKey) -> io::Result<()> {
        let mut directory = self.path.clone();
        let Some((parents, _)) = key.as_str().rsplit_once('/') else { return Ok(()) };
        for part in parents.split('/') {
            let above = directory.clone();
            directory.push(part);
            let created = create_directory(&directory)?;
            if created || !self.synced().contains(&directory) {
                sync_directory(&above)?;
                let mut synced = self.synced();
                if synced.len() >= SYNCED_DIRECTORIES_MAX {
                    synced.clear();
                }
                synced.insert(directory.clone());
            }
        }
        Ok(())
    }

    fn synced(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.synced.lock().expect("nothing panics while it holds this lock")
    }

    /// Returns a new file that holds `bytes`, synced, where no listing shows it.
    fn write_temporary(&self, bytes: &[u8]) -> io::Result<Temporary> {
        let (temporary, mut file) = self.create_temporary()?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(temporary)
    }

    fn create_temporary(&self) -> io::Result<(Temporary, File)> {
        let directory = self.path.join(TEMPORARY);
        create_directory(&directory)?;
        for _ in 0..TEMPORARY_NAMES_MAX {
            let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
            let path =
                directory.join(format!("{}-{:016x}-{number}", std::process::id(), self.salt));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                file => return Ok((Temporary { path, is_there: true }, file?)),
            }
        }
        let reason = format!("no free name in `{}`; remove what is in it", directory.display());
        Err(io::Error::other(reason))
    }

    /// Removes old temporary files. Their age is taken against a file made now, by the clock of
    /// the file system that dated them.
    fn remove_remains(&self) -> io::Result<()> {
        let (_probe, file) = self.create_temporary()?;
        let now = file.metadata()?.modified()?;
        for entry in fs::read_dir(self.path.join(TEMPORARY))? {
            let entry = entry?;
            let modified = match entry.metadata().and_then(|metadata| metadata.modified()) {
                Ok(modified) => modified,
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(error),
            };
            let is_old = now.duration_since(modified).is_ok_and(|age| age >= REMAINS_AGE);
            if is_old {
                match fs::remove_file(entry.path()) {
                    Err(error) if !is_absent(&error) => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    fn is_there(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }

    fn gone(&self) -> StoreError {
        no_such_store(location_of(&self.path))
    }

    fn failed(&self, key: &str, error: io::Error) -> StoreError {
        if is_absent(&error) && !self.is_there() {
            return self.gone();
        }
        failed(key, location_of(&self.path), &error)
    }

    fn failed_put(&self, key: &ObjectKey, error: io::Error) -> StoreError {
        match self.failed(key.as_str(), error) {
            // To a writer this says that a directory or the temporary file went away meanwhile.
            StoreError::NotFound { key, location } => {
                let reason = "it was removed while it was written".to_owned();
                StoreError::Unavailable { key, location, reason }
            }
            error => error,
        }
    }
}

/// A file that is removed when its writer is done with it; an object linked to it stays.
struct Temporary {
    path: PathBuf,
    is_there: bool,
}

impl Temporary {
    /// Notes that it was renamed, so that whoever has its name by now keeps it.
    fn leave(mut self) {
        self.is_there = false;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_there {
            return;
        }
        match fs::remove_file(&self.path) {
            // Somebody has cleared the directory.
            Err(error) if !is_absent(&error) => {
                tracing::warn!(path = %self.path.display(), %error, "temporary file is left");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Runs what may block on the runtime's threads for that, and awaits it.
async fn blocking<T: Send + 'static>(
    location: String,
    operation: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(operation).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(StoreError::Unavailable {
                key: WHOLE.to_owned(),
                location,
                reason: error.to_string(),
            }),
        },
    }
}
