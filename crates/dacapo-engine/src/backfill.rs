//! Gives a queue all history and then the live stream, with nothing missing in between.
//!
//! What lives here: what a backfill is ([`Description`]), how far it has come ([`Standing`], kept in
//! a [`Journal`]), what comes next ([`next()`], pure), and passing on what was held ([`held`]). What
//! does not: queues and bindings on a broker, the rounds themselves (each a replay like any other,
//! [`run`](crate::run)), anything printed. `docs/architecture.md`, “Backfilling”, has the order of
//! the steps and why nothing can fall between them.
//!
//! Invariants: a step is done before the journal says so, and can be done again; nothing is dropped
//! from what is held unless history has an event of the same id and content; a message is acked only
//! after the target has it and the journal counts it.

use std::fmt;

use dacapo_event::barrier::BarrierId;
use dacapo_event::{Digest, Timestamp};

mod description;
mod journal;
mod marks;
mod next;
mod receipt;
mod remembered;
mod standing;
mod state;

pub mod held;

pub use description::{Bound, Description, MARGIN_DEFAULT};
pub use journal::Journal;
pub use marks::{Mark, mark_message};
pub use next::{ANSWER_FRESH, Facts, Step, next};
pub use receipt::Receipt;
pub use remembered::{Remembered, remember};
pub use standing::{Counts, Happened, Past, Played, Round, Stage, Standing};
pub use state::{Backfills, Locked};

/// The name of a backfill: sorts by when it began.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackfillId(String);

/// Which of an attempt's barriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// Before the holding queue is bound.
    First,
    /// After it.
    Second,
    /// After the second, to the archivers' parking queues: what expired on its way to the second
    /// comes by way of these.
    Parked,
}

impl BackfillId {
    /// Returns the id of a backfill of `queue` that begins `now`; `salt` tells apart two that begin
    /// together.
    pub fn new(now: Timestamp, queue: &str, salt: u32) -> Self {
        let digest = Digest::of(format!("{} {queue} {salt}", now.as_micros()).as_bytes());
        let began = now.to_jiff().strftime("%Y%m%d-%H%M%S%3f");
        BackfillId(format!("{began}-{}", &digest.to_string()[..4]))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the queue that holds live events for `queue` meanwhile.
    pub fn holding_queue(&self, queue: &str) -> String {
        format!("{queue}.holding.{self}")
    }

    /// Returns the name of the exchange through which held events reach the target.
    pub fn exchange(&self) -> String {
        // Under the name of replays' exchanges, so that it needs no permission that they do not.
        format!("dacapo.replay.backfill-{self}")
    }

    /// Returns the id of a barrier to the archiver's queue with this number. Each queue has its own,
    /// so that an answer says whose it is whatever its stream is called.
    pub fn barrier(&self, attempt: u64, barrier: Barrier, queue: usize) -> BarrierId {
        let which = match barrier {
            Barrier::First => 1,
            Barrier::Second => 2,
            Barrier::Parked => 3,
        };
        let text = format!("backfill-{self}-{attempt}.{which}-{queue}");
        text.parse().expect("an id, three numbers and dashes are a barrier's id")
    }
}

impl fmt::Display for BackfillId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
