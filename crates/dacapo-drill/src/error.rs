//! What can be wrong with what a drill is given, by what the operator can do about it.

use thiserror::Error;

/// A description, definitions, a report or a key is not what it should be. No message quotes a value
/// of a description, for it may be a password.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DrillError {
    /// The description of a drill is not one.
    #[error(
        "line {line} of the description: {problem}; `dacapo drill --example` prints one in full"
    )]
    Description {
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// The broker's definitions are not what they should be.
    #[error(
        "the definitions are not usable: {problem}; `rabbitmqctl export_definitions` and `dacapo archive definitions` write such"
    )]
    Definitions {
        /// What is wrong.
        problem: String,
    },
    /// A file is no report of a drill, or one that this version does not know.
    #[error("it is no report of a drill: {problem}")]
    Report {
        /// What is wrong.
        problem: String,
    },
    /// A key cannot be used.
    #[error("{problem}")]
    Key {
        /// What is wrong, and how to make one.
        problem: &'static str,
    },
    /// The signature is not that of this report by this key.
    #[error(
        "the signature does not fit: the report was changed after it was signed, or another key signed it; believe nothing in it"
    )]
    BadSignature,
}
