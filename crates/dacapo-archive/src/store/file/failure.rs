//! What the system's errors mean to who uses the store.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::store::StoreError;

/// How the store itself is named where a message names an object.
pub(super) const WHOLE: &str = ".";

/// Returns whether the error says that no object has this path.
pub(super) fn is_absent(error: &io::Error) -> bool {
    use ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory)
}

pub(super) fn location_of(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    format!("file://{}", absolute.display())
}

pub(super) fn no_such_store(location: String) -> StoreError {
    let hint = "check the path and whether its disk is mounted; writing to it for the first time \
                creates it";
    StoreError::NoSuchStore { location, hint: hint.to_owned() }
}

pub(super) fn failed(key: &str, location: String, error: &io::Error) -> StoreError {
    let (key, reason) = (key.to_owned(), error.to_string());
    match error.kind() {
        ErrorKind::NotFound => StoreError::NotFound { key, location },
        ErrorKind::PermissionDenied => StoreError::Denied { key, location, reason },
        // What a person or a moment may put right without anything being changed here.
        ErrorKind::StorageFull
        | ErrorKind::QuotaExceeded
        | ErrorKind::Interrupted
        | ErrorKind::ResourceBusy
        | ErrorKind::TimedOut
        | ErrorKind::StaleNetworkFileHandle
        | ErrorKind::OutOfMemory => StoreError::Unavailable { key, location, reason },
        ErrorKind::NotADirectory => {
            let reason = "a part of its path is an object, or not a directory".to_owned();
            StoreError::Permanent { key, location, reason }
        }
        ErrorKind::IsADirectory => {
            let reason = "a directory has its name".to_owned();
            StoreError::Permanent { key, location, reason }
        }
        _ if is_out_of_descriptors(error) => StoreError::Unavailable { key, location, reason },
        _ => StoreError::Permanent { key, location, reason },
    }
}

/// `ErrorKind` has no stable name for these two.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}
