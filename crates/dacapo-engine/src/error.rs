//! What can stop the engine, by what the operator can do about it.

use dacapo_archive::ArchiveError;
use dacapo_bus::BusError;
use dacapo_filter::{FilterError, WhereError};
use dacapo_index::IndexError;
use thiserror::Error;

/// The engine did not do what it was asked.
#[derive(Debug, Error)]
pub enum EngineError {
    /// Reading the archive failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The index failed; it is derived and may be deleted.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bus failed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The selection is not one.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The expression of `--where` failed on an event. The cause is in the message, not a source.
    #[error("{0}; or leave such events out and count them with `--where-errors skip`")]
    Where(WhereError),
    /// The archive is no longer what the plan was made of.
    #[error(
        "the archive is not what the plan or the index says: `{segment}` {how}; run `dacapo archive verify`, and if it was meant to change, `dacapo index rebuild` and make a new plan"
    )]
    ArchiveChanged {
        /// The planned segment.
        segment: String,
        /// What became of it.
        how: String,
    },
    /// A file of the state directory could not be read or written.
    #[error("failed to {action} `{path}` in the state directory (--state)")]
    State {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the state directory, or a plan, is not readable.
    #[error("`{path}` is not readable: {problem}")]
    Unreadable {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such replay.
    #[error("there is no replay `{id}` in `{state}`; `dacapo replays ls` lists those there are")]
    NoSuchReplay {
        /// The id asked for.
        id: String,
        /// The state directory.
        state: String,
    },
    /// Another process runs this replay.
    #[error(
        "replay `{id}` is running already{holder}; pause or cancel it with `dacapo replays`, or wait"
    )]
    Locked {
        /// The replay.
        id: String,
        /// ` in process N`, if it is known.
        holder: String,
    },
    /// The replay is not in a state in which this can be done.
    #[error("replay `{id}` is {state}; {hint}")]
    WrongState {
        /// The replay.
        id: String,
        /// Its state.
        state: String,
        /// The next step.
        hint: String,
    },
    /// There is no such backfill.
    #[error("there is no backfill `{id}` in `{state}`; `dacapo backfill ls` lists those there are")]
    NoSuchBackfill {
        /// The id asked for.
        id: String,
        /// The state directory.
        state: String,
    },
    /// Another process runs this backfill.
    #[error(
        "backfill `{id}` is running already{holder}; end that process in order (SIGINT or SIGTERM), or wait"
    )]
    BackfillLocked {
        /// The backfill.
        id: String,
        /// ` in process N`, if it is known.
        holder: String,
    },
    /// The backfill is not in a state in which this can be done.
    #[error("backfill `{id}` is {state}; {hint}")]
    BackfillState {
        /// The backfill.
        id: String,
        /// Its state.
        state: String,
        /// The next step.
        hint: String,
    },
    /// The bus was lost and did not come back.
    #[error(
        "gave up after {attempts} attempts without progress; `dacapo replay resume` goes on when the target is back"
    )]
    GaveUp {
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        source: BusError,
    },
    /// A depth limit was asked for and the target has no depth.
    #[error(
        "the target is not one queue, so it has no depth to keep below; leave --max-queue-depth out"
    )]
    DepthUnknown,
    /// The target refused events, which were recorded and passed over; all others are confirmed.
    #[error(
        "the target refused {events} events, which were passed over; they are in `{path}`: mend \
         {target} and try them again with `dacapo replay --rejects {path}`"
    )]
    PassedOver {
        /// How many.
        events: u64,
        /// The reject file.
        path: String,
        /// Where they were to go.
        target: String,
    },
    /// An event of a reject file is not in the archive as it was.
    #[error(
        "event `{event}` of `{path}` {how}; run `dacapo archive verify`, or take its line out of a \
         copy of the file"
    )]
    RejectGone {
        /// The event's id.
        event: String,
        /// The reject file.
        path: String,
        /// What became of it, and where it should be.
        how: String,
    },
    /// The target refused an event.
    #[error("event `{event}` was refused by the target: {reason}; {hint}")]
    Rejected {
        /// The event's id.
        event: String,
        /// The broker's words.
        reason: String,
        /// The next step.
        hint: String,
    },
}

impl From<WhereError> for EngineError {
    fn from(error: WhereError) -> Self {
        EngineError::Where(error)
    }
}
