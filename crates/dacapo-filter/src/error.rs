//! The crate's errors: a selection that cannot be meant, and an event it cannot be decided for.

use dacapo_event::{ParseError, Timestamp};
use thiserror::Error;

/// A selection was refused before any event was read; the person who typed it can mend it.
#[derive(Debug, Error)]
pub enum FilterError {
    /// The range of time ends before it begins, or holds nothing.
    #[error("the time range is the wrong way round: from {from} is not before to {to}; swap them")]
    TimeRange {
        /// Where it begins.
        from: Timestamp,
        /// Where it ends; this moment is not part of it.
        to: Timestamp,
    },
    /// A topic pattern is not one.
    #[error("routing key pattern {0}")]
    RoutingKey(ParseError),
    /// The expression is not CEL, or names what is not there.
    #[error(
        "where expression, line {line}, column {column}: {reason}\n{source_line}\n{caret:>column$}",
        caret = '^'
    )]
    Where {
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// What is wrong.
        reason: String,
        /// The line of the expression.
        source_line: String,
    },
    /// The expression as a whole is refused.
    #[error("where expression: {reason}")]
    WhereWhole {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The descriptor set does not describe the message it should.
    #[error("descriptor set: {reason}")]
    Descriptors {
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// The where expression could not be evaluated on one event: a field is missing, or of a type
/// that the expression does not expect.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("where expression failed on event `{event}`: {message}")]
pub struct WhereError {
    /// The event's id.
    pub event: String,
    /// Why.
    pub message: String,
}
