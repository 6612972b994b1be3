//! How a command ended, as an exit status. The numbers are documented in `dacapo --help`
//! and in docs/operations.md, and do not change.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use dacapo_archive::ArchiveError;
use dacapo_archive::store::StoreError;
use dacapo_archiver::{ArchiverError, ImportError};
use dacapo_bus::BusError;
use dacapo_drill::DrillError;
use dacapo_engine::EngineError;
use dacapo_event::ParseError;
use dacapo_filter::{FilterError, WhereError};
use dacapo_index::IndexError;

use crate::output::Output;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Failed for a reason without a number of its own.
    Failed = 1,
    /// A flag or its value is wrong; clap uses the same number.
    Usage = 2,
    /// A file, URL or directory of the configuration is wrong.
    Configuration = 3,
    /// The archive is damaged, or not what it was.
    Damaged = 4,
    /// The target refused.
    Refused = 5,
    /// Interrupted; can be resumed.
    Resumable = 6,
    /// Another process has what is needed.
    Busy = 7,
    /// The store or the broker does not answer.
    Unavailable = 8,
    /// The input of an import, of `emit` or of `drill verify` is not what it should be.
    Input = 9,
    /// A drill missed a target.
    Missed = 10,
}

/// An error of this crate, with the status that it leads to.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// Something about the configuration.
    pub fn configuration(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Configuration, message: message.into() }
    }

    /// A file that cannot be read or written; `action` is the verb.
    pub fn file(action: &str, path: &Path, error: &std::io::Error) -> Self {
        Failure::configuration(format!("failed to {action} `{}`: {error}", path.display()))
    }

    /// Something about how the command was used.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Usage, message: message.into() }
    }

    /// Something about the archive.
    pub fn damaged(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Damaged, message: message.into() }
    }

    /// Something about a server that does not answer.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Unavailable, message: message.into() }
    }

    /// Something about an input file.
    pub fn input(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Input, message: message.into() }
    }

    /// Something about the target.
    pub fn refused(message: impl Into<String>) -> Self {
        Failure { exit: Exit::Refused, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Reports an error, if there is one, and returns the status.
pub fn status(outcome: anyhow::Result<Exit>, output: &Output) -> ExitCode {
    let exit = match outcome {
        Ok(exit) => exit,
        Err(error) => {
            let exit = classify(&error);
            output.error(&error, exit);
            exit
        }
    };
    ExitCode::from(exit as u8)
}

/// Prints what the command line came to that is no command: help, the version, or what is wrong
/// with it (for scripts, too, if one asked), and returns the status.
pub fn unparsed(answer: &clap::Error) -> ExitCode {
    if !answer.use_stderr() {
        // A reader that has gone away (`| head`) is no error.
        drop(answer.print());
        return ExitCode::from(Exit::Success as u8);
    }
    // It quotes what was typed, and that may be a broker's URL in the wrong place.
    let text = without_logins(&answer.to_string());
    if std::env::args_os().any(|arg| arg == "--json") {
        let problem = text.trim().strip_prefix("error: ").unwrap_or(&text).trim().to_owned();
        return status(Err(Failure::usage(problem).into()), &Output::new(true));
    }
    Output::new(false).talk(text.trim_end());
    ExitCode::from(Exit::Usage as u8)
}

/// Returns text with `user:password` left out of whatever looks like an address.
fn without_logins(text: &str) -> String {
    let shorten = |word: &str| {
        let (login, address) = word.rsplit_once('@')?;
        login.contains(':').then(|| {
            let start = login.find("://").map_or("", |at| &login[..at + "://".len()]);
            format!("{start}…@{address}")
        })
    };
    text.split_inclusive(char::is_whitespace)
        .map(|word| shorten(word).unwrap_or_else(|| word.to_owned()))
        .collect()
}

/// Returns the status of an error: that of the innermost cause that has one.
pub fn classify(error: &anyhow::Error) -> Exit {
    error.chain().rev().find_map(of_cause).unwrap_or(Exit::Failed)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if cause.is::<ParseError>() || cause.is::<FilterError>() || cause.is::<WhereError>() {
        return Some(Exit::Usage);
    }
    if let Some(error) = cause.downcast_ref::<EngineError>() {
        return of_engine(error);
    }
    if let Some(error) = cause.downcast_ref::<ArchiverError>() {
        return match error {
            ArchiverError::Archive(error) => of_archive(error),
            ArchiverError::Bus(error) => Some(of_bus(error)),
            ArchiverError::NotDrained { .. } => Some(Exit::Unavailable),
        };
    }
    if let Some(error) = cause.downcast_ref::<ImportError>() {
        return match error {
            ImportError::Archive(error) => of_archive(error),
            ImportError::BadLine { .. }
            | ImportError::Read { .. }
            | ImportError::Changed { .. }
            | ImportError::NotAnImport { .. } => Some(Exit::Input),
            ImportError::Reject { .. } => Some(Exit::Configuration),
        };
    }
    if let Some(error) = cause.downcast_ref::<ArchiveError>() {
        return of_archive(error);
    }
    if let Some(error) = cause.downcast_ref::<StoreError>() {
        return Some(of_store(error));
    }
    if let Some(error) = cause.downcast_ref::<BusError>() {
        return Some(of_bus(error));
    }
    if let Some(error) = cause.downcast_ref::<DrillError>() {
        return Some(match error {
            DrillError::Description { .. } => Exit::Usage,
            DrillError::Definitions { .. } | DrillError::Key { .. } => Exit::Configuration,
            DrillError::Report { .. } | DrillError::BadSignature => Exit::Input,
        });
    }
    cause.downcast_ref::<IndexError>().and_then(of_index)
}

/// Returns the status of an engine's error.
pub fn of_engine_error(error: &EngineError) -> Exit {
    of_engine(error).unwrap_or(Exit::Failed)
}

fn of_engine(error: &EngineError) -> Option<Exit> {
    match error {
        EngineError::Archive(error) => of_archive(error),
        EngineError::Index(error) => of_index(error),
        EngineError::Bus(error) => Some(of_bus(error)),
        EngineError::Filter(_) | EngineError::Where(_) => Some(Exit::Usage),
        EngineError::ArchiveChanged { .. } => Some(Exit::Damaged),
        EngineError::State { .. } | EngineError::Unreadable { .. } => Some(Exit::Configuration),
        EngineError::NoSuchReplay { .. } | EngineError::WrongState { .. } => Some(Exit::Usage),
        EngineError::NoSuchBackfill { .. } | EngineError::BackfillState { .. } => Some(Exit::Usage),
        EngineError::Locked { .. } | EngineError::BackfillLocked { .. } => Some(Exit::Busy),
        EngineError::GaveUp { .. } => Some(Exit::Unavailable),
        EngineError::DepthUnknown => Some(Exit::Usage),
        EngineError::Rejected { .. } | EngineError::PassedOver { .. } => Some(Exit::Refused),
        EngineError::RejectGone { .. } => Some(Exit::Damaged),
    }
}

fn of_archive(error: &ArchiveError) -> Option<Exit> {
    match error {
        ArchiveError::Store(error) => Some(of_store(error)),
        ArchiveError::Damaged { .. } | ArchiveError::NewerFormat { .. } => Some(Exit::Damaged),
        ArchiveError::NotWriteOnce { .. } => Some(Exit::Configuration),
        ArchiveError::Fenced { .. } => Some(Exit::Busy),
        ArchiveError::Unwritable { .. } => None,
    }
}

fn of_store(error: &StoreError) -> Exit {
    match error {
        StoreError::NotFound { .. } => Exit::Damaged,
        StoreError::NoSuchStore { .. } | StoreError::Denied { .. } => Exit::Configuration,
        StoreError::Cold { .. } | StoreError::Unavailable { .. } => Exit::Unavailable,
        StoreError::Permanent { .. } => Exit::Failed,
    }
}

fn of_bus(error: &BusError) -> Exit {
    match error {
        BusError::Disconnected { .. } => Exit::Unavailable,
        BusError::NotFound { .. } | BusError::Refused { .. } => Exit::Refused,
        BusError::Unsendable { .. } | BusError::TooLarge { .. } => Exit::Refused,
        BusError::File { .. } => Exit::Configuration,
    }
}

fn of_index(error: &IndexError) -> Option<Exit> {
    match error {
        IndexError::Busy { .. } => Some(Exit::Busy),
        _ => Some(Exit::Configuration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_in_what_was_typed_is_not_repeated() {
        for (typed, told) in [
            (
                "unexpected argument 'amqp://u:p@ss@h/v' found",
                "unexpected argument 'amqp://…@h/v' found",
            ),
            ("'u:sesame@h'\n\n", "…@h'\n\n"),
            ("'s3://bucket/prefix' a@b a: b\n", "'s3://bucket/prefix' a@b a: b\n"),
        ] {
            assert_eq!(without_logins(typed), told);
        }
    }
}
