//! The archive: Parquet segments on a write-once store.
//!
//! What lives here: the segment format ([`SegmentBuilder`], [`Segment`]), how segments
//! are committed to their stream ([`StreamWriter`], [`chain`]), the [`store`] seam with
//! its file and memory implementations, [`verify`] and [`repair`]. What does not: which events are
//! wanted (`dacapo-filter`), where they came from, any clock.
//!
//! Invariants: the archive is ground truth; segments are immutable; a segment belongs to
//! the archive if and only if its chain entry names it.

mod builder;
mod columns;
mod error;
mod footer;
mod rows;
mod schema;
mod segment;
mod summary;
#[cfg(test)]
mod testing;
mod writer;

pub mod barrier;
pub mod chain;
pub mod compact;
pub mod compaction;
pub mod layout;
pub mod repair;
pub mod store;
pub mod verified;
pub mod verify;

pub use builder::{Sealed, SegmentBuilder};
pub use error::ArchiveError;
pub use rows::Rows;
pub use schema::{ColumnSet, FORMAT_VERSION};
pub use segment::{Bloom, PageBounds, Pages, PrunedBy, RowGroupFacts, Segment, TextRange};
pub use summary::{SegmentSummary, Tally};
pub use writer::{StreamWriter, probe_write_once};
