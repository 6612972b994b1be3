//! The index: a local catalogue of the archive's segments, kept in sled.
//!
//! Blocking and without tokio: callers on a runtime use `spawn_blocking`. The only
//! crate that knows sled.
//!
//! Invariants: the index is derived from the archive's footers, so deleting it loses
//! only time; a batch of segments is there with its stream's progress or not at all;
//! one process at a time has it open, and the others are told which one.

mod entry;
mod error;
mod index;
mod lock;
mod progress;

pub use error::IndexError;
pub use index::{Index, Stats};
pub use lock::Holder;
pub use progress::StreamProgress;
