//! The lock of a directory: held by the process that works on what is in it, and names it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use super::failed;
use crate::EngineError;

/// How often to try for a lock that others are only looking at. Each look takes microseconds, but a
/// busy machine may suspend whoever looks for some milliseconds; this is about a tenth of a second.
const LOOKS_MAX: u32 = 50_000;

/// The most that is read of a lock: a process id has 10 digits.
const PID_BYTES_MAX: u64 = 32;

/// A directory's lock; this process has it for as long as the value lives.
#[derive(Debug)]
pub(crate) struct DirLock(File);

/// Another process has the lock: it, as words for a message (` in process N`, or nothing if it has
/// not said so yet).
#[derive(Debug)]
pub(crate) struct HeldBy(pub(crate) String);

impl DirLock {
    /// Takes the lock of a directory; never waits.
    pub(crate) fn take(dir: &Path) -> Result<Result<Self, HeldBy>, EngineError> {
        let path = dir.join("lock");
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = open.map_err(|error| failed("open", &path, error))?;
        let mut looks = 0;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => looks += 1,
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path, error)),
            }
            // The lock is exclusive; what can be shared is only a look at whether there is one.
            if looks == LOOKS_MAX || lock.try_lock_shared().is_err() {
                return Ok(Err(HeldBy(named_in(&mut lock))));
            }
            lock.unlock().map_err(|error| failed("unlock", &path, error))?;
            std::thread::yield_now();
        }
        let write = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        write.map_err(|error| failed("write", &path, error))?;
        Ok(Ok(DirLock(lock)))
    }

    /// Returns who has the lock of a directory, if anybody has.
    pub(crate) fn holder(dir: &Path) -> Result<Option<HeldBy>, EngineError> {
        let path = dir.join("lock");
        let mut lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &path, error)),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(HeldBy(named_in(&mut lock)))),
            Err(TryLockError::Error(error)) => Err(failed("lock", &path, error)),
        }
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        // The name goes with the lock; a failure here only leaves a number behind that nobody
        // believes, because the lock itself is free.
        drop(self.0.set_len(0));
    }
}

/// Returns who holds a lock, as words for a message; nothing if it does not say.
fn named_in(lock: &mut File) -> String {
    let mut pid = String::new();
    match lock.rewind().and_then(|()| Read::take(&*lock, PID_BYTES_MAX).read_to_string(&mut pid)) {
        Ok(_) if !pid.trim().is_empty() => format!(" in process {}", pid.trim()),
        Ok(_) | Err(_) => String::new(),
    }
}
