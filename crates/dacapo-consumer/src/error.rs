//! Why a consumer gave up, by what its operator can do.

use dacapo_bus::BusError;
use thiserror::Error;

/// The consumer cannot go on; everything that it had not acked is delivered again to the next.
#[derive(Debug, Error)]
pub enum ConsumerError {
    /// The bus refuses the queue in a way that a new connection would meet again. (A lost connection
    /// is no error: the consumer comes back by itself.)
    #[error("failed to consume queue `{queue}`")]
    Refused {
        /// The queue.
        queue: String,
        /// Why.
        source: BusError,
    },
    /// The bus refuses the way to the queue of dead letters, so no event may be taken.
    #[error("failed to reach where dead letters of queue `{queue}` go")]
    DeadLettersRefused {
        /// The queue whose dead letters they are.
        queue: String,
        /// Why.
        source: BusError,
    },
    /// A dead letter reached no queue, so the event was not acked.
    #[error(
        "failed to bury event `{id}`: the dead letter was returned ({reason}); declare the queue of \
         dead letters and start again"
    )]
    NoDeadLetterQueue {
        /// The event.
        id: String,
        /// The broker's words.
        reason: String,
    },
    /// The bus takes no dead letter of this event, not even one with its body alone.
    #[error("failed to bury event `{id}`; take it off the head of the queue by hand")]
    Unburiable {
        /// The event.
        id: String,
        /// Why.
        source: BusError,
    },
}
