//! What the file system is asked to do, so that it is done when it says so.
//!
//! A file is durable when it is synced and when the entries of its name, and of the directories
//! on the way to it, are.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Opens the file of an object; a directory of that name is no object.
pub(super) fn open_object(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(ErrorKind::IsADirectory.into()) }
}

/// Returns whether the file holds exactly `bytes`.
pub(super) fn holds(file: &File, bytes: &[u8]) -> io::Result<bool> {
    const PIECE_BYTES: usize = 256 * 1024;
    if file.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut piece = vec![0; PIECE_BYTES.min(bytes.len())];
    for (at, expected) in bytes.chunks(PIECE_BYTES).enumerate() {
        let there = &mut piece[..expected.len()];
        file.read_exact_at(there, (at * PIECE_BYTES) as u64)?;
        if there != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns whether the directory is new; one that is there is no error.
pub(super) fn create_directory(path: &Path) -> io::Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if path.is_dir() {
                Ok(false)
            } else {
                Err(ErrorKind::NotADirectory.into())
            }
        }
        Err(error) => Err(error),
    }
}

/// Creates a directory and those above it that are missing, and syncs the entry of each.
pub(super) fn create_durably(path: &Path) -> io::Result<()> {
    let absolute = std::path::absolute(path)?;
    let missing: Vec<&Path> = absolute.ancestors().take_while(|path| !path.exists()).collect();
    for directory in missing.into_iter().rev() {
        create_directory(directory)?;
        sync_parent(directory)?;
    }
    Ok(())
}

pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(path.parent().expect("an absolute path below a root has a parent"))
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
