//! The crate's errors: what text or bytes were refused, and why.

use thiserror::Error;

/// A text that a person or a configuration gave is not of the form asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{input}` is not {expected}")]
pub struct ParseError {
    /// What was given, shortened to a readable length.
    pub input: String,
    /// What would have been accepted, with an example.
    pub expected: String,
}

impl ParseError {
    /// Returns an error that quotes at most the first 80 characters of `input`.
    pub fn new(input: &str, expected: impl Into<String>) -> Self {
        const QUOTED_CHARS_MAX: usize = 80;
        let mut quoted: String = input.chars().take(QUOTED_CHARS_MAX).collect();
        if quoted.len() < input.len() {
            quoted.push('…');
        }
        ParseError { input: quoted, expected: expected.into() }
    }
}

/// An event could not be converted from or to one of its wire forms.
#[derive(Debug, Error)]
pub enum EventError {
    /// The protobuf bytes are not a `Properties` message, or hold a value out of AMQP's range.
    #[error("properties are not readable: {reason}")]
    Properties {
        /// What was wrong.
        reason: String,
    },
    /// A body is not an envelope.
    #[error("body is not an envelope: {reason}")]
    Envelope {
        /// What was wrong.
        reason: String,
    },
    /// A text is longer than the 255 bytes that AMQP allows a short string.
    #[error("`{start}…` has {bytes} bytes; AMQP allows 255 in a short string")]
    ShortStringTooLong {
        /// How it begins.
        start: String,
        /// Its length.
        bytes: usize,
    },
    /// A JSON line is not an event.
    #[error("{0}")]
    Json(String),
}
