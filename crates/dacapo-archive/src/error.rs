//! What can be wrong with an archive, by what the caller can do about it.

use dacapo_event::Sequence;
use thiserror::Error;

use crate::store::StoreError;

/// An archive operation did not succeed. Each message names the object.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The store did not do what it was asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is there but is not what it should be; run `dacapo archive verify`.
    #[error("`{key}` is damaged: {problem}; run `dacapo archive verify` to see what else is")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A newer dacapo wrote this.
    #[error(
        "`{key}` has format version {version}, this dacapo reads up to {supported}; use a newer dacapo"
    )]
    NewerFormat {
        /// The object.
        key: String,
        /// Its version.
        version: u32,
        /// The newest version that this code reads.
        supported: u32,
    },
    /// Another writer has extended the stream: start again from its new end.
    #[error(
        "stream `{stream}` was extended by another writer at sequence {sequence}; only one at a time can write it, run this again when the other has ended"
    )]
    Fenced {
        /// The stream.
        stream: String,
        /// Where the other writer's segment begins.
        sequence: Sequence,
    },
    /// The store overwrites objects that should be write-once.
    #[error(
        "{location} ignores If-None-Match, so two archivers could overwrite each other; use a server that honours it, or `--single-writer` if there is only ever one"
    )]
    NotWriteOnce {
        /// The store.
        location: String,
    },
    /// An event cannot be kept: the caller broke the contract of [`crate::SegmentBuilder::push`].
    #[error("event {sequence} cannot be written: {reason}")]
    Unwritable {
        /// The event.
        sequence: Sequence,
        /// Why.
        reason: String,
    },
}

impl ArchiveError {
    /// Returns whether trying the same again later can succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, ArchiveError::Store(error) if error.is_transient())
    }

    pub(crate) fn damaged(key: impl ToString, problem: impl ToString) -> Self {
        ArchiveError::Damaged { key: key.to_string(), problem: problem.to_string() }
    }
}
