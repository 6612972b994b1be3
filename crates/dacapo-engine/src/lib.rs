//! Request → survey → plan → run → journal → receipt.
//!
//! What lives here: bringing the index up to date ([`sync`]), reading selected events in
//! order ([`scan`], [`merge`]), deciding ([`plan`], [`preflight`] and [`blast`], pure), doing ([`run`]), and remembering
//! ([`state`], [`journal`], [`receipt`]). What does not: what a broker is, how bytes are
//! stored, anything printed.
//!
//! Invariants: the planner does no I/O and reads no clock; a checkpoint never passes the
//! last contiguous confirm; memory has one budget, whatever the number of streams.

mod error;

pub mod backfill;
pub mod blast;
pub mod export;
pub mod journal;
mod lines;
pub mod merge;
pub mod plan;
pub mod plan_json;
pub mod preflight;
pub mod receipt;
pub mod rejects;
pub mod request;
pub mod run;
pub mod scan;
pub mod state;
pub mod survey;
pub mod sync;

#[cfg(test)]
mod testing;

pub use error::EngineError;
