//! A small AMQP 0-9-1 consumer that takes bytes as they are.
//!
//! It knows the handshake, `basic.consume`, deliveries, cumulative acks, passive declares and
//! heartbeats, and nothing else. Its stream, TLS included, comes from lapin's connector.
//!
//! Why it is here: RabbitMQ passes on short strings that are not UTF-8 and tables nested as deep
//! as a frame holds. Lapin's parser closes the connection on the first, with every delivery in
//! flight unread, and recurses on its thread's stack on the second. Nothing that a publisher can
//! send may stop the archive.
//!
//! Not here: publishing and declaring, which lapin does.

mod arriving;
mod frame;
mod link;
mod properties;
mod pump;
mod table;

pub(crate) use link::Product;
pub(crate) use properties::encoded_len;
pub(crate) use pump::{Consumer, Order, Queues, start};

use link::Link;

use crate::Broker;
use dacapo_bus::BusError;

/// Connects, reads what the broker says it is, and closes.
pub(crate) async fn product(broker: &Broker) -> Result<Product, BusError> {
    let mut link = Link::open(broker).await?;
    if let Err(error) = link.close().await {
        tracing::debug!(%error, "not closed in order");
    }
    Ok(link.product)
}

/// Bytes end before the value does, or are no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<bytes::TryGetError> for Malformed {
    fn from(_: bytes::TryGetError) -> Self {
        Malformed
    }
}

#[cfg(test)]
mod hostile;
