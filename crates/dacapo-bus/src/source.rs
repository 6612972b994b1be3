//! The seam for consuming: deliveries with an explicit, cumulative ack.

use std::num::NonZeroU16;
use std::pin::Pin;

use async_trait::async_trait;
use dacapo_event::Message;

use crate::BusError;

/// The number of a delivery on this source, from 1, in order of delivery.
pub type DeliveryTag = u64;

/// One message that the bus handed over and keeps until it is acked.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Its number on this source.
    pub tag: DeliveryTag,
    /// Whether the bus may have delivered it before.
    pub redelivered: bool,
    /// Present if it came by way of the parking queue.
    pub parked: Option<Parked>,
    /// The message as it was published: headers that the bus added are gone, and a parked one has
    /// its exchange, routing key and expiration back.
    pub message: Message,
}

/// Why a message was parked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// The bus's word: `expired`, `delivery_limit`, `rejected`, `maxlen`; or `unreadable`; or
    /// [`Parked::PUBLISHED`].
    pub reason: String,
}

impl Parked {
    /// The reason of a message that was published to the parking queue, and not set aside.
    pub const PUBLISHED: &str = "published";

    /// Returns whether the message was taken out of its place in another queue.
    pub fn is_displaced(&self) -> bool {
        self.reason != Self::PUBLISHED
    }
}

/// The answer to [`Source::ask_depth`], once it comes.
pub type AskedDepth = Pin<Box<dyn Future<Output = Option<u64>> + Send>>;

/// Delivers the messages of one queue and its parking queue.
///
/// A source is used by one task. After an error it is of no further use: what was not acked comes
/// again from a new one.
#[async_trait]
pub trait Source: Send {
    /// Waits for the next delivery; returns `None` when no more come: the source was closed in order,
    /// or it is to be opened anew because it would do better then. In the latter case what was
    /// delivered can still be acked, and a new source has the rest.
    ///
    /// Cancel-safe: a dropped call loses no delivery.
    async fn next(&mut self) -> Result<Option<Delivery>, BusError>;

    /// Acknowledges every delivery up to and including `tag`; the bus may then forget them.
    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError>;

    /// Returns how many deliveries the bus hands over at the most before the first is acked; nothing
    /// if there is no such bound. It stays the same while the source lives.
    fn prefetch(&self) -> Option<NonZeroU16>;

    /// Returns how many messages wait in the queue, without those delivered and not acked.
    async fn depth(&mut self) -> Result<u64, BusError>;

    /// Asks as [`Source::depth`] does, and returns at once: the answer can be waited for while
    /// deliveries are taken, behind which it may come. Nothing is the answer of a source that has
    /// ended; any other call says why.
    fn ask_depth(&mut self) -> AskedDepth;

    /// Stops deliveries and closes the connection in order; what was not acked is delivered again
    /// to the next consumer.
    async fn close(&mut self) -> Result<(), BusError>;
}

/// Opens a [`Source`] on one queue, as often as a connection is lost.
#[async_trait]
pub trait Subscribe: Send + Sync {
    /// Opens a new connection, declares the queues and bindings if they are not there, and
    /// begins to consume.
    async fn open(&self) -> Result<Box<dyn Source>, BusError>;
}
