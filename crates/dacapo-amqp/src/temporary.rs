//! Exchanges and queues that are made for one purpose and taken away again, as `dacapo demo` does.

use dacapo_bus::BusError;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use crate::Broker;
use crate::connect::Session;
use crate::error::Doing;
use crate::target::name_of;

/// Declares a durable topic exchange; one that is there already is left as it is.
///
/// # Errors
/// No connection, no permission, or an exchange of that name with other settings.
pub async fn declare_topic(broker: &Broker, exchange: &str) -> Result<(), BusError> {
    let name = name_of(exchange, &broker.peer())?;
    let session = broker.connect().await?;
    let declared = declare_in(&session, name).await;
    session.close().await;
    declared
}

async fn declare_in(session: &Session, name: lapin::types::ShortString) -> Result<(), BusError> {
    let channel = session.channel().await?;
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declaring =
        channel.exchange_declare(name, ExchangeKind::Topic, options, FieldTable::default());
    session.ask(Doing::Declaring, declaring).await
}

/// Deletes queues with all that is in them, and exchanges; what is not there is no error.
///
/// # Errors
/// No connection, or no permission. Everything is tried; the first failure is returned.
pub async fn remove(
    broker: &Broker,
    queues: &[String],
    exchanges: &[String],
) -> Result<(), BusError> {
    let session = broker.connect().await?;
    let mut removed = Ok(());
    for queue in queues {
        removed = removed.and(remove_queue(&session, queue).await);
    }
    for exchange in exchanges {
        removed = removed.and(remove_exchange(&session, exchange).await);
    }
    session.close().await;
    removed
}

/// Uses a channel of its own, which a refusal closes.
async fn remove_queue(session: &Session, queue: &str) -> Result<(), BusError> {
    let name = name_of(queue, &session.peer)?;
    let channel = session.channel().await?;
    let deleting = channel.queue_delete(name, QueueDeleteOptions::default());
    gone(session.ask(Doing::Declaring, deleting).await.map(drop))
}

/// Uses a channel of its own, which a refusal closes.
async fn remove_exchange(session: &Session, exchange: &str) -> Result<(), BusError> {
    let name = name_of(exchange, &session.peer)?;
    let channel = session.channel().await?;
    let deleting = channel.exchange_delete(name, ExchangeDeleteOptions::default());
    gone(session.ask(Doing::Declaring, deleting).await)
}

fn gone(deleted: Result<(), BusError>) -> Result<(), BusError> {
    match deleted {
        Err(BusError::NotFound { .. }) => Ok(()),
        other => other,
    }
}
