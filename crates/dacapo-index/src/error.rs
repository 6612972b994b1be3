//! What can go wrong with an index, by what the caller can do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// The index could not be opened or used. The archive is not affected.
#[derive(Debug, Error)]
pub enum IndexError {
    /// Another process has it open.
    #[error("index `{path}` is in use by {holder}; wait for it or use --index DIR")]
    Busy {
        /// The index.
        path: PathBuf,
        /// The process, its command and since when, as far as it said.
        holder: String,
    },
    /// Its files are not what they should be.
    #[error(
        "index `{path}` is damaged ({reason}); make it anew with `dacapo index rebuild`, which loses nothing but time"
    )]
    Damaged {
        /// The index.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// It was written by another version of this program.
    #[error(
        "index `{path}` has format {found}, and this version reads {known}; make it anew with `dacapo index rebuild`, which loses nothing but time"
    )]
    OtherVersion {
        /// The index.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The format of this version.
        known: u32,
    },
    /// A segment shares sequences with one that is there already.
    #[error(
        "segment `{segment}` overlaps `{other}`, which is in index `{path}`; look at the archive with `dacapo archive verify`, then `dacapo index rebuild`"
    )]
    Overlap {
        /// The index.
        path: PathBuf,
        /// The segment to insert.
        segment: String,
        /// The segment that is there.
        other: String,
    },
    /// The file system refused.
    #[error("failed to {action} index `{path}` (--index)")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The index.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}
