//! What is told of a run: while it goes on, and when it has ended.

use std::time::Duration;

use crate::{RejectKind, RepublishError};

/// Counts of one run.
///
/// When it has ended, `published = confirmed + refused + possible_repeats`. The checkpoint covers
/// `confirmed + rejected` events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages handed to the bus, each time counted.
    pub published: u64,
    /// Events confirmed, with every one before them confirmed or passed over.
    pub confirmed: u64,
    /// Events that the bus would not take and that were recorded and passed over; not the one that
    /// ended the run.
    pub rejected: u64,
    /// Times that the bus answered for a message with a nack or a return.
    pub refused: u64,
    /// Messages that may be on the bus and are published again, now or by a resumed replay: those
    /// without an answer when a connection was lost or the run ended, and those that followed a
    /// refused one and were taken.
    pub possible_repeats: u64,
    /// Events whose first delivery may have come before that of an earlier one, because the
    /// earlier one was refused at first. A refusal that was lost with its connection is not known
    /// and not counted.
    pub reordered: u64,
    /// Bytes of the bodies of confirmed events.
    pub bytes: u64,
    /// Times that publishing started again after a nack or a lost connection.
    pub retries: u64,
}

/// How a run is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The counts so far.
    pub totals: Totals,
    /// What it is doing.
    pub phase: Phase,
}

/// What a run is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Phase {
    /// Publishing, or waiting for confirms, input or its pace.
    #[default]
    Publishing,
    /// Paused by its operator.
    Paused,
    /// Waiting for a bus that has asked publishers to pause.
    Blocked,
    /// Waiting for the target queue to become shorter.
    TooDeep {
        /// Its length when last asked.
        depth: u64,
    },
    /// Waiting before it tries again.
    Retrying {
        /// Why.
        reason: String,
        /// How long it waits.
        delay: Duration,
    },
    /// Publishing nothing more, waiting for the last confirms.
    Finishing,
}

/// The end of a run.
#[derive(Debug)]
pub struct Ended<E, J> {
    /// How it ended.
    pub how: How<E, J>,
    /// The final counts.
    pub totals: Totals,
}

/// How a run ended. In every case the journal has the last contiguous confirm (but for a failure
/// of the journal itself).
#[derive(Debug)]
pub enum How<E, J> {
    /// Every message of the input is confirmed, or recorded as rejected.
    Completed,
    /// It was told to stop, and can be resumed.
    Interrupted,
    /// The bus would not take this event, which is recorded; everything before it is confirmed, or
    /// recorded and passed over.
    Rejected {
        /// The event's id.
        id: String,
        /// Why.
        kind: RejectKind,
        /// The bus's words.
        reason: String,
    },
    /// Something outside the messages failed.
    Failed(RepublishError<E, J>),
}
