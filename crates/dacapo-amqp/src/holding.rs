//! The queues and bindings of a backfill: its target, and the queue that holds live events for it.
//!
//! Each of these can be done again, whatever a killed process has done of it.

use dacapo_bus::BusError;
use dacapo_bus::broker::parked_queue;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::connect::Session;
use crate::error::Doing;
use crate::target::name_of;
use crate::topology::{self, Binding, look_up_exchange};
use crate::{Broker, queue_state, temporary};

/// Argument of a holding queue, by which it is told from an archiver's; RabbitMQ keeps arguments
/// that it does not know, and passes over them.
const HOLDING: &str = "x-dacapo-holding";

/// Whether a queue was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was, and is as it was.
    There,
    /// It was not, and is now.
    Made,
}

/// Makes sure that a service's queue is there: one that is stays as it is, else it is made as
/// [`declare_service`](crate::declare_service) makes it, so that a service that declares it so can
/// take it over.
///
/// # Errors
/// No connection, or no permission.
pub async fn ensure_queue(broker: &Broker, queue: &str) -> Result<Found, BusError> {
    if queue_state(broker, queue).await?.is_some() {
        return Ok(Found::There);
    }
    let session = broker.connect().await?;
    let declared = declare(&session, queue, topology::service_arguments()).await;
    session.close().await;
    declared.map(|()| Found::Made)
}

/// Declares a holding queue and its parking queue: like an archiver's, so that neither an expiration
/// nor a delivery limit loses what is held, and one process at a time gets it.
///
/// # Errors
/// No connection, no permission, or a queue of that name with other settings.
pub async fn declare_holding(broker: &Broker, holding: &str) -> Result<(), BusError> {
    let peer = broker.peer();
    let parked = name_of(&parked_queue(holding), &peer)?;
    let mut aside = topology::parked_arguments();
    aside.insert(HOLDING.into(), AMQPValue::Boolean(true));
    let mut main = topology::main_arguments(&parked);
    main.insert(HOLDING.into(), AMQPValue::Boolean(true));
    let session = broker.connect().await?;
    let declared = async {
        // The parking queue first, so that nothing is dead-lettered to where no queue is.
        declare(&session, parked.as_str(), aside).await?;
        declare(&session, holding, main).await
    };
    let declared = declared.await;
    session.close().await;
    declared
}

/// Deletes a holding queue with its parking queue and all that is in them, and the exchange through
/// which it was passed on; what is not there is no error.
///
/// # Errors
/// No connection, or no permission.
pub async fn remove_holding(
    broker: &Broker,
    holding: &str,
    exchange: &str,
) -> Result<(), BusError> {
    let queues = [holding.to_owned(), parked_queue(holding)];
    temporary::remove(broker, &queues, &[exchange.to_owned()]).await
}

/// Binds a queue; bindings that are there already are no error.
///
/// # Errors
/// No connection, no permission, or an exchange or queue that is not there; then some may be bound.
pub async fn bind(broker: &Broker, queue: &str, bindings: &[Binding]) -> Result<(), BusError> {
    let session = broker.connect().await?;
    let bound = bind_in(&session, queue, bindings).await;
    session.close().await;
    bound
}

async fn bind_in(session: &Session, queue: &str, bindings: &[Binding]) -> Result<(), BusError> {
    for binding in bindings {
        look_up_exchange(session, &name_of(&binding.exchange, &session.peer)?).await?;
    }
    let channel = session.channel().await?;
    for binding in bindings {
        let binding = channel.queue_bind(
            name_of(queue, &session.peer)?,
            name_of(&binding.exchange, &session.peer)?,
            name_of(&binding.pattern, &session.peer)?,
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        session.ask(Doing::Declaring, binding).await?;
    }
    Ok(())
}

/// Takes bindings of a queue away; those that are not there are no error.
///
/// # Errors
/// No connection, or no permission.
pub async fn unbind(broker: &Broker, queue: &str, bindings: &[Binding]) -> Result<(), BusError> {
    let session = broker.connect().await?;
    let unbound = async {
        for binding in bindings {
            let channel = session.channel().await?;
            let unbinding = channel.queue_unbind(
                name_of(queue, &session.peer)?,
                name_of(&binding.exchange, &session.peer)?,
                name_of(&binding.pattern, &session.peer)?,
                FieldTable::default(),
            );
            match session.ask(Doing::Declaring, unbinding).await {
                Ok(()) | Err(BusError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    let unbound = unbound.await;
    session.close().await;
    unbound
}

async fn declare(session: &Session, queue: &str, arguments: FieldTable) -> Result<(), BusError> {
    let channel = session.channel().await?;
    let name = name_of(queue, &session.peer)?;
    let declaring = channel.queue_declare(name, QueueDeclareOptions::durable(), arguments);
    session.ask(Doing::Declaring, declaring).await.map(drop)
}
