//! The archiver, which makes every delivery of a [`dacapo_bus::Source`] durable before it acks
//! it, and the import of JSON lines.
//!
//! What lives here: when a segment is rolled ([`RollPolicy`]), what is done in which order
//! ([`run`]), what is measured ([`Metrics`]), and how a line becomes an event ([`mod@import`]).
//! What does not: the format of segments and how they are committed (`dacapo-archive`), any bus.
//!
//! Invariants: a delivery is acked only after the segment that holds its event was put and
//! committed; memory is bounded by one segment being put, one being filled, and two batches of
//! events; a sequence is given out only by the stream's own writer.

mod backoff;
mod core;
mod encode;
mod error;
mod metrics;
mod put;
mod roll;
mod run;
mod session;

pub mod import;

#[cfg(test)]
mod testing;

pub use error::{ArchiverError, ImportError};
pub use metrics::{Health, Metrics};
pub use roll::RollPolicy;
pub use run::{ArchiverConfig, Totals, WriteOnce, run};
