//! What can stop the archiver or an import, by what the caller can do about it.

use dacapo_archive::ArchiveError;
use dacapo_bus::BusError;
use dacapo_event::Sequence;
use thiserror::Error;

/// The archiver ended before it was asked to, or could not end in order.
#[derive(Debug, Error)]
pub enum ArchiverError {
    /// The store cannot be used, or the archive is damaged where the stream must go on.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The bus refuses what is configured.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The time to end in order was over before the last segment was durable.
    #[error(
        "stopped with {unacked} deliveries not archived ({reason}); nothing is lost, the queue delivers them again to the next archiver"
    )]
    NotDrained {
        /// Deliveries that were not acked.
        unacked: u64,
        /// What it waited for.
        reason: String,
    },
}

/// An import did not come to its end. What it had made durable stays, and running it again goes
/// on after it.
#[derive(Debug, Error)]
pub enum ImportError {
    /// A line is not an event.
    #[error(
        "line {line} of `{input}` is not an event: {problem}, in `{start}`; correct it, or keep such lines aside with `--skip-bad`"
    )]
    BadLine {
        /// The file.
        input: String,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
        /// How it begins.
        start: String,
    },
    /// The input could not be read or decompressed.
    #[error(
        "failed to read `{input}` after line {line}; see that the file is whole and run the import again, it goes on where it ended"
    )]
    Read {
        /// The file.
        input: String,
        /// The last line that was read.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The stream was made from another input, or with another mapping.
    #[error(
        "stream `{stream}` holds {already} events that are not the first {already} of `{input}`: the input or the mapping of fields has changed; import it as another stream (`--name`)"
    )]
    Changed {
        /// The file.
        input: String,
        /// The stream.
        stream: String,
        /// How many events the stream has.
        already: Sequence,
    },
    /// The stream is not one that an import made.
    #[error("stream `{stream}` was not made by an import; choose another name (`--name`)")]
    NotAnImport {
        /// The stream.
        stream: String,
    },
    /// A rejected line could not be kept.
    #[error("failed to write the rejected line {line} of `{input}`")]
    Reject {
        /// The file.
        input: String,
        /// The line, from 1.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The archive did not take a segment.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}
