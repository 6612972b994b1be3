//! Who has the index open.
//!
//! sled takes a lock of its own, but does not say who holds it, and lets go of it a
//! moment after it was closed. Ours is taken first and given back last.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use dacapo_event::Timestamp;

use crate::IndexError;

/// Our lock file, beside sled's directory.
const FILE: &str = "lock";

/// The most of a lock file that is read: a process id, a command line and a time.
const HOLDER_BYTES_MAX: u64 = 4 * 1024;

/// How often to look whether sled has let go of its files, and how long to wait in between: two
/// seconds in all, where it takes some milliseconds.
pub(crate) const ATTEMPTS_MAX: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// Who opens the index: told to a second process that wants it meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The command, for example `dacapo plan`; without secrets.
    pub command: String,
    /// Since when.
    pub since: Timestamp,
}

/// The lock, held until dropped or released.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock of the index in `dir`, which exists.
    ///
    /// # Errors
    /// `Busy` with the holder, if another handle has it.
    pub(crate) fn take(dir: &Path, holder: &Holder) -> Result<Self, IndexError> {
        let failed = |source| IndexError::Io { action: "lock", path: dir.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(FILE))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(IndexError::Busy { path: dir.to_owned(), holder: describe(&file) });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let text =
            format!("{}\n{}\n{}\n", std::process::id(), one_line(&holder.command), holder.since);
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(failed)?;
        Ok(Lock(file))
    }

    /// Gives the lock back, leaving no name behind.
    pub(crate) fn release(self, dir: &Path) -> Result<(), IndexError> {
        let failed = |source| IndexError::Io { action: "unlock", path: dir.to_owned(), source };
        self.0.set_len(0).map_err(failed)?;
        self.0.unlock().map_err(failed)
    }
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Says who wrote the lock file; it may be between taking the lock and writing.
fn describe(file: &File) -> String {
    let mut text = String::new();
    let read = file.take(HOLDER_BYTES_MAX).read_to_string(&mut text);
    let lines: Vec<&str> = text.lines().collect();
    match (read, lines.as_slice()) {
        (Ok(_), [pid, command, since]) => format!("process {pid} (`{command}`) since {since}"),
        _ => "another process".to_owned(),
    }
}

/// Waits a moment before another look at a lock that sled holds.
#[expect(
    clippy::disallowed_methods,
    reason = "sled's threads let go of a file lock without telling anyone; it can only be polled, and the polls are bounded"
)]
pub(crate) fn pause() {
    std::thread::sleep(PAUSE);
}
