//! The bus in memory: a small broker in this process, for `dacapo demo` and for tests.
//!
//! It has what dacapo asks of a bus and no more: exchanges (direct, topic, fanout and the default
//! one), queues with a maximum length that refuses (`reject-publish`), a parking queue, expiration
//! at the head of a queue, prefetch, cumulative acks, and redelivery in order. Every queue has a
//! single active consumer; further ones stand by, in order of arrival. Nothing is kept on disk.
//!
//! Faults are a wrapper (`faulty::Faulty`, with the feature `conformance`), not switches in here.
//!
//! Invariant: a message is in a queue before its outcome is [`Outcome::Confirmed`].

use std::sync::{Arc, Mutex, MutexGuard};

use dacapo_event::{Message, ShortStr};
use tokio::time::Instant;

use crate::{BusError, Outcome};

mod broker;
#[cfg(any(test, feature = "conformance"))]
pub mod faulty;
mod source;
mod target;

pub use source::{MemorySource, MemorySubscription};
pub use target::{MemoryTarget, RoutingKey};

use broker::Broker;

/// How this bus names itself in errors.
const PEER: &str = "the bus in memory";

/// A handle to one bus in memory; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryBus(Arc<Mutex<Broker>>);

/// How an exchange chooses queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Those bound with exactly the routing key.
    Direct,
    /// Those bound with a pattern that matches: `*` is one word, `#` any number of words.
    Topic,
    /// All that are bound.
    Fanout,
}

/// What a queue is declared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueOptions {
    /// The most messages that may wait; further ones are refused ([`Outcome::Nacked`]).
    pub length_max: usize,
    /// What becomes of a message that expired.
    pub expired: Expired,
}

/// What becomes of a message whose expiration has passed when it comes to the head of its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// It is gone.
    Dropped,
    /// It waits in the queue's parking queue, with its properties as they were.
    Parked,
}

impl QueueOptions {
    /// The most messages that wait in a queue unless the caller says otherwise: some GB of small
    /// events, the most that a demonstration in one process can mean.
    pub const LENGTH_MAX: usize = 1_000_000;
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions { length_max: Self::LENGTH_MAX, expired: Expired::Dropped }
    }
}

impl MemoryBus {
    /// Returns a new bus with only the default exchange.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares an exchange; declaring it again is no error.
    ///
    /// # Errors
    /// `Refused` if it exists with another kind, or if `name` is empty (the default exchange).
    pub fn declare_exchange(&self, name: &str, kind: ExchangeKind) -> Result<(), BusError> {
        self.lock().declare_exchange(name, kind)
    }

    /// Deletes an exchange and its bindings; one that is not there is no error.
    pub fn delete_exchange(&self, name: &str) {
        self.lock().delete_exchange(name);
    }

    /// Declares a queue; one that is there is left as it is.
    pub fn declare_queue(&self, name: &str, options: QueueOptions) {
        self.lock().declare_queue(name, options);
    }

    /// Deletes a queue with all that is in it, and its bindings; its sources fail with `NotFound`.
    /// One that is not there is no error.
    pub fn delete_queue(&self, name: &str) {
        self.lock().delete_queue(name);
    }

    /// Binds a queue to an exchange with a key or pattern; binding again is no error.
    ///
    /// # Errors
    /// `NotFound` if either is not there.
    pub fn bind(&self, queue: &str, exchange: &str, key: &ShortStr) -> Result<(), BusError> {
        self.lock().bind(queue, exchange, key)
    }

    /// Publishes a message to its exchange with its routing key.
    ///
    /// [`Outcome::Nacked`] means that at least one queue was full; others may have the message, as
    /// on RabbitMQ.
    ///
    /// # Errors
    /// `NotFound` if the exchange is not there.
    pub fn publish(&self, message: Message) -> Result<Outcome, BusError> {
        // Only a message that can expire needs to know the time.
        let now = message.properties.expiration.is_some().then(Instant::now);
        self.lock().publish(message, now)
    }

    /// Moves the oldest waiting message of a queue to its parking queue, as a broker does with one
    /// that was delivered too often; returns whether there was one.
    pub fn park_oldest(&self, queue: &str, reason: &str) -> bool {
        self.lock().park_oldest(queue, reason)
    }

    /// Returns how many messages wait in a queue, without those delivered and not acked and those
    /// parked; `None` if there is no such queue.
    pub fn depth(&self, queue: &str) -> Option<u64> {
        self.lock().depth(queue)
    }

    /// Returns how many messages a source has taken from the queue and not acked; `None` if there
    /// is no such queue.
    pub fn unacked(&self, queue: &str) -> Option<u64> {
        self.lock().unacked(queue)
    }

    fn lock(&self) -> MutexGuard<'_, Broker> {
        self.0.lock().expect("no code panics while it holds the broker")
    }
}

#[cfg(test)]
mod tests;
