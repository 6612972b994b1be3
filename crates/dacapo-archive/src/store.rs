//! The seam to where objects are kept: [`Store`].
//!
//! Implementations: [`memory::MemoryStore`], [`file::FileStore`], and `dacapo-s3`.
//! All pass one suite, `conformance` (a feature). Limits and counting are wrappers
//! ([`metered::Metered`]), not flags inside.
//!
//! Invariant: [`Store::put_new`] is write-once. Two writers of different bytes to one key never
//! both see [`Put::Created`], and nobody ever reads a part of an object.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_event::ParseError;
use thiserror::Error;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod file;
pub mod memory;
pub mod metered;
pub mod overlay;

/// The key of an object under the archive's prefix: `/`-separated, relative, without `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(String);

/// Which bytes of an object are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// All of them.
    Full,
    /// From the first offset up to but not including the second; never empty.
    Span(u64, u64),
    /// The last so many, or all if the object is smaller.
    Suffix(u64),
}

/// What a listing tells of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its key.
    pub key: ObjectKey,
    /// Its size in bytes.
    pub size: u64,
}

/// A piece of a listing, in the order of the keys' bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// The objects; may be fewer than the store's page size.
    pub objects: Vec<ObjectMeta>,
    /// Whether to ask again, after the last of `objects`.
    pub more: bool,
}

/// How a write-once put ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is durable and it is this one.
    Created,
    /// The key was taken by other bytes; what is there was not touched.
    Exists,
}

/// Keeps objects by key, durably.
///
/// Every method may be called concurrently. Every future may be dropped: a put whose future was
/// dropped may or may not have happened, but never in part.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Creates the object if the key is free; when it returns `Created` the object is durable
    /// (file: synced with its directory entry; S3: acknowledged).
    ///
    /// A taken key is read back, and it is `Created` when the bytes are `bytes`: so a put whose
    /// outcome was unclear can be tried again, by the implementation and by the caller.
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError>;

    /// Creates or replaces the object atomically and durably. The last writer wins.
    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError>;

    /// Returns the bytes of the range.
    ///
    /// # Errors
    /// `NotFound`; `Span` beyond the object's end is `Permanent`, never a short answer.
    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError>;

    /// Returns objects whose keys begin with `prefix` and, if `after` is given, sort after it.
    /// At most 1,000; `prefix` is matched as text (it need not end at a `/`).
    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError>;

    /// Deletes the object; one that is not there is no error. Only probes and compaction
    /// delete.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// Returns where this is, for messages: `file:///var/archive`, `s3://bucket/prefix`. No secrets.
    fn location(&self) -> String;
}

/// A store could not do what it was asked; the variants are what a caller can do about it.
///
/// Each message names the object and ends with the next step where there is one.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The object is not there.
    #[error("`{key}` does not exist in {location}")]
    NotFound {
        /// The object.
        key: String,
        /// The store.
        location: String,
    },
    /// The whole place is not there: no such directory or bucket.
    #[error("{location} does not exist; {hint}")]
    NoSuchStore {
        /// The store.
        location: String,
        /// The next step.
        hint: String,
    },
    /// The credentials do not allow it.
    #[error(
        "access to `{key}` in {location} was refused ({reason}); check the credentials and the policy"
    )]
    Denied {
        /// The object, or the prefix of a listing.
        key: String,
        /// The store.
        location: String,
        /// The server's words.
        reason: String,
    },
    /// The object lies in cold storage and must be restored before it can be read.
    #[error(
        "`{key}` in {location} is in cold storage ({class}); restore it (for example `aws s3api restore-object`) and try again"
    )]
    Cold {
        /// The object.
        key: String,
        /// The store.
        location: String,
        /// The storage class.
        class: String,
    },
    /// It may work later: time-outs, resets, 5xx, SlowDown, no space left.
    #[error("{location} did not take or give `{key}`: {reason}")]
    Unavailable {
        /// The object.
        key: String,
        /// The store.
        location: String,
        /// What happened.
        reason: String,
    },
    /// It will not work by trying again.
    #[error("`{key}` in {location}: {reason}")]
    Permanent {
        /// The object.
        key: String,
        /// The store.
        location: String,
        /// What happened.
        reason: String,
    },
}

impl StoreError {
    /// Returns whether trying the same again later can succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Unavailable { .. })
    }
}

impl ObjectKey {
    /// The most bytes S3 allows a key; leaves no room for a prefix on purpose unused by us.
    pub const BYTES_MAX: usize = 900;

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ObjectKey {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let sound = !text.is_empty()
            && text.len() <= Self::BYTES_MAX
            && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
            && !text.contains(['\0', '\\']);
        if sound {
            Ok(ObjectKey(text.to_owned()))
        } else {
            Err(ParseError::new(
                text,
                "an object key (relative, `/`-separated, no empty, `.` or `..` part)",
            ))
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
