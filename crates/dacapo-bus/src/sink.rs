//! The seam for publishing: messages go out in order, and each is answered for.

use async_trait::async_trait;
use dacapo_event::Message;

use crate::BusError;

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The bus has it in at least one queue, durably where the queue is durable.
    Confirmed,
    /// The bus refused it for now (a full queue with `reject-publish`, an internal error).
    Nacked,
    /// No queue was there to take it.
    Returned {
        /// The bus's words, for example `312 NO_ROUTE`.
        reason: String,
    },
}

/// What the target looks like now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetState {
    /// Messages ready in the target queue; absent where the target is not one queue.
    pub depth: Option<u64>,
    /// Whether the bus has asked publishers to pause.
    pub blocked: bool,
}

/// Publishes messages in order, each as it is (exchange, routing key, properties, body), and
/// reports what became of each, in the same order.
///
/// A sink is used by one task. After an error it is of no further use: open a new one and publish
/// again from the first message without an outcome.
#[async_trait]
pub trait Sink: Send {
    /// Hands the messages to the bus in order; returns when all are on their way, not when they
    /// are confirmed. The caller bounds how many are unanswered.
    ///
    /// Not cancel-safe: a dropped call may have sent a part.
    async fn send(&mut self, messages: &[Message]) -> Result<(), BusError>;

    /// Waits for the outcome of the oldest message that has none yet and returns it, together with
    /// those after it that are already known, in order of sending. Never empty.
    ///
    /// Cancel-safe: a dropped call loses no outcome. Pends for ever if nothing is unanswered.
    async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError>;

    /// Asks how the target is. Cheap enough for ten times a second.
    ///
    /// Cancel-safe, and never waits for a bus that is blocked: that is what it has to report.
    async fn state(&mut self) -> Result<TargetState, BusError>;

    /// Returns the outcomes that are left to come, then closes the connection in order.
    async fn close(&mut self) -> Result<(), BusError>;
}

/// Opens a [`Sink`] to one target, as often as a connection is lost.
#[async_trait]
pub trait Connect: Send + Sync {
    /// Opens a new connection, declaring what this target needs of its own.
    async fn open(&self) -> Result<Box<dyn Sink>, BusError>;

    /// Removes what `open` declared, once the replay has ended for good. Idempotent.
    async fn dismantle(&self) -> Result<(), BusError>;
}
