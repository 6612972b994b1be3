//! What a target is like, asked without changing anything.

use dacapo_bus::BusError;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::Broker;
use crate::error::Doing;
use crate::target::{AmqpTarget, name_of};
use crate::topology::look_up_exchange;
use crate::wire;

/// A target as it was when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFacts {
    /// Host, port and virtual host.
    pub peer: String,
    /// The broker's name for itself, for example `RabbitMQ`.
    pub product: String,
    /// Its version, for example `3.10.8`.
    pub version: String,
    /// Whether the queue or exchange is there; true for a target that is neither.
    pub exists: bool,
    /// Messages ready in the queue; absent where the target is not one queue.
    pub depth: Option<u64>,
    /// Consumers of the queue; absent where the target is not one queue.
    pub consumers: Option<u64>,
}

/// Asks what a target is like. Nothing is declared and nothing is published.
///
/// # Errors
/// No connection, or no permission. A queue or exchange that is not there is a fact, not an
/// error.
pub async fn inspect(broker: &Broker, target: &AmqpTarget) -> Result<TargetFacts, BusError> {
    let product = wire::product(broker).await?;
    let session = broker.connect().await?;
    let mut facts = TargetFacts {
        peer: session.peer.clone(),
        product: product.name,
        version: product.version,
        exists: true,
        depth: None,
        consumers: None,
    };
    let found = match target {
        AmqpTarget::Queue { queue, .. } => {
            let channel = session.channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = name_of(queue, &session.peer)?;
            let asking = channel.queue_declare(queue, passive, FieldTable::default());
            session.ask(Doing::Declaring, asking).await.map(|queue| {
                facts.depth = Some(u64::from(queue.message_count()));
                facts.consumers = Some(u64::from(queue.consumer_count()));
            })
        }
        AmqpTarget::Exchange { exchange, .. } if !exchange.is_empty() => {
            look_up_exchange(&session, &name_of(exchange, &session.peer)?).await
        }
        AmqpTarget::Exchange { .. } | AmqpTarget::Original => Ok(()),
    };
    session.close().await;
    match found {
        Ok(()) => Ok(facts),
        Err(BusError::NotFound { .. }) => Ok(TargetFacts { exists: false, ..facts }),
        Err(error) => Err(error),
    }
}
