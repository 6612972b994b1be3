//! A drill: a restore as it would be done, somewhere else, with a report.
//!
//! What lives here is pure: the [`description`] (TOML, typed), the [`definitions`] that an isolated
//! environment is made of, the [`tally`] that counts on both sides of a replay, the [`report`] with
//! the [`verdict`] on it, the [`page`] that shows it, and its [`signature`]. What does not: brokers,
//! processes, clocks, files; the command line has these.
//!
//! Invariants: the verdict is a function of the measured facts alone, and what was not measured is
//! not met; the signature is over the bytes of the report, and the page is made of nothing but it;
//! no report holds a password.

mod error;

pub mod definitions;
pub mod description;
pub mod page;
pub mod report;
pub mod signature;
pub mod tally;
pub mod verdict;

pub use error::DrillError;
