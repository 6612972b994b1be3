//! A small AMQP 0-9-1 client that takes and gives bytes as they are: a consumer and a publisher.
//!
//! It knows the handshake, `basic.consume`, deliveries and cumulative acks; `basic.publish`,
//! confirms and returns; passive declares and heartbeats, and nothing else. Its stream, TLS
//! included, comes from lapin's connector.
//!
//! Why it is here: RabbitMQ passes on short strings that are not UTF-8 and tables nested as deep
//! as a frame holds. Lapin's parser closes the connection on the first, with every delivery in
//! flight unread, and recurses on its thread's stack on the second. Nothing that a publisher can
//! send may stop the archive. And a replay must not cost more than the broker that it feeds.
//!
//! Not here: declaring what is not there, which lapin does.

mod arriving;
mod content;
mod frame;
mod link;
mod properties;
mod publisher;
mod pump;
mod table;
mod thread;

pub(crate) use link::Product;
pub(crate) use publisher::{Publish, Publisher, Unroutable};
pub(crate) use pump::{Consumer, Order, Queues, start};

use link::{CONSUMING, Link};

use crate::Broker;
use dacapo_bus::BusError;

/// Connects, reads what the broker says it is, and closes.
pub(crate) async fn product(broker: &Broker) -> Result<Product, BusError> {
    let mut link = Link::open(broker, CONSUMING).await?;
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
