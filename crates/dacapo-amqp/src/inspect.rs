//! What a target is like, asked without changing anything.

use std::collections::BTreeSet;

use dacapo_bus::BusError;
use lapin::options::{
    BasicGetOptions, ExchangeDeleteOptions, ExchangeUnbindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{FieldTable, ShortString};

use crate::Broker;
use crate::connect::Session;
use crate::error::Doing;
use crate::target::{AmqpTarget, Via, name_of};
use crate::topology::{Binding, look_up_exchange};
use crate::wire;

/// An exchange that is never there, named like those of replays.
const NOT_THERE: &str = "dacapo.replay.permissions";

/// RabbitMQ's name for the default exchange where it speaks of permissions.
const DEFAULT_EXCHANGE: &str = "amq.default";

/// The most exchanges that a replay to the original ones asks about beforehand: each takes a round
/// trip and a channel.
const EXCHANGES_MAX: usize = 100;

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

/// Returns what a broker calls its cluster, whatever address it is reached by; nothing if it does not
/// say.
///
/// # Errors
/// No connection, or the virtual host refused.
pub async fn cluster(broker: &Broker) -> Result<Option<String>, BusError> {
    let product = wire::product(broker).await?;
    Ok(Some(product.cluster).filter(|name| !name.is_empty()))
}

/// What a broker has against a replay before anything is published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objections {
    /// What it would refuse the user, in its words.
    pub denied: Vec<String>,
    /// Exchanges of [`AmqpTarget::Original`] that are not there.
    pub missing: BTreeSet<String>,
    /// Those that it was not asked about, because there are so many.
    pub unasked: BTreeSet<String>,
}

/// Returns what the broker has against a replay to this target; `exchanges` are those of
/// [`AmqpTarget::Original`].
///
/// Nothing is published or changed: bindings and an exchange that are not there are taken away, for
/// which the broker looks at the same permissions first. Topic permissions show only in publishing.
///
/// # Errors
/// No connection, or the virtual host refused.
pub async fn objections(
    broker: &Broker,
    target: &AmqpTarget,
    exchanges: &BTreeSet<String>,
) -> Result<Objections, BusError> {
    let session = broker.connect().await?;
    let objections = match target {
        AmqpTarget::Queue { queue, via: Via::OwnExchange { .. } } => {
            denied_own_exchange(&session, queue).await.map(Objections::denied)
        }
        AmqpTarget::Queue { via: Via::DefaultExchange, .. } => {
            denied_writing(&session, [""]).await.map(Objections::denied)
        }
        AmqpTarget::Exchange { exchange, .. } => {
            denied_writing(&session, [exchange.as_str()]).await.map(Objections::denied)
        }
        AmqpTarget::Original => to_original(&session, exchanges).await,
    };
    session.close().await;
    objections
}

/// Returns what the broker would refuse a backfill of `queue`, in its words: to play to it and bind
/// it, to make, bind and consume a holding queue whose name is `queue` and more, and to publish to
/// queues through the default exchange. Nothing is published or changed.
///
/// # Errors
/// No connection, or the virtual host refused.
pub async fn backfill_objections(
    broker: &Broker,
    queue: &str,
    bindings: &[Binding],
) -> Result<Vec<String>, BusError> {
    let session = broker.connect().await?;
    let objections = async {
        let mut denied = BTreeSet::from_iter(denied_own_exchange(&session, queue).await?);
        denied.extend(denied_writing(&session, [""]).await?);
        denied.extend(denied_holding(&session, queue, bindings).await?);
        Ok(denied.into_iter().collect())
    };
    let objections = objections.await;
    session.close().await;
    objections
}

/// To delete a holding queue, unbind it, and take a message from it. None has this name.
async fn denied_holding(
    session: &Session,
    queue: &str,
    bindings: &[Binding],
) -> Result<Vec<String>, BusError> {
    let holding = name_of(&format!("{queue}.holding.permissions"), &session.peer)?;
    let channel = session.channel().await?;
    let deleting = channel.queue_delete(holding.clone(), QueueDeleteOptions::default());
    let mut denied = Vec::new();
    denied.extend(refusal(session.ask(Doing::Declaring, deleting).await)?);
    for Binding { exchange, .. } in bindings {
        let channel = session.channel().await?;
        let exchange = name_of(exchange, &session.peer)?;
        let table = FieldTable::default();
        let unbinding = channel.queue_unbind(holding.clone(), exchange, NOT_THERE.into(), table);
        denied.extend(refusal(session.ask(Doing::Declaring, unbinding).await)?);
    }
    let channel = session.channel().await?;
    let getting = channel.basic_get(holding, BasicGetOptions::default());
    denied.extend(refusal(session.ask(Doing::Consuming, getting).await)?);
    Ok(denied)
}

impl Objections {
    fn denied(denied: Vec<String>) -> Self {
        Objections { denied, ..Objections::default() }
    }
}

/// What is not there, and what may not be published to.
async fn to_original(
    session: &Session,
    exchanges: &BTreeSet<String>,
) -> Result<Objections, BusError> {
    let mut objections = Objections {
        unasked: exchanges.iter().skip(EXCHANGES_MAX).cloned().collect(),
        ..Objections::default()
    };
    let mut there = Vec::new();
    for exchange in exchanges.iter().take(EXCHANGES_MAX) {
        let found = match exchange.is_empty() {
            true => Ok(()),
            false => look_up_exchange(session, &name_of(exchange, &session.peer)?).await,
        };
        match found {
            Ok(()) => there.push(exchange.as_str()),
            Err(BusError::NotFound { .. }) => drop(objections.missing.insert(exchange.clone())),
            Err(error) => return Err(error),
        }
    }
    objections.denied = denied_writing(session, there).await?;
    Ok(objections)
}

/// To declare an exchange, bind the queue to it, publish to it, and delete it.
async fn denied_own_exchange(session: &Session, queue: &str) -> Result<Vec<String>, BusError> {
    let name = || ShortString::from(NOT_THERE);
    let channel = session.channel().await?;
    let options = ExchangeDeleteOptions { if_unused: true, ..ExchangeDeleteOptions::default() };
    let deleting = channel.exchange_delete(name(), options);
    let mut denied = BTreeSet::new();
    denied.extend(refusal(session.ask(Doing::Declaring, deleting).await)?);
    let channel = session.channel().await?;
    let queue = name_of(queue, &session.peer)?;
    let unbinding = channel.queue_unbind(queue, name(), "".into(), FieldTable::default());
    denied.extend(refusal(session.ask(Doing::Declaring, unbinding).await)?);
    denied.extend(unbind(session, name()).await?);
    Ok(denied.into_iter().collect())
}

/// To publish to exchanges.
async fn denied_writing(
    session: &Session,
    exchanges: impl IntoIterator<Item = &str>,
) -> Result<Vec<String>, BusError> {
    let mut denied = Vec::new();
    for exchange in exchanges {
        let named = if exchange.is_empty() { DEFAULT_EXCHANGE } else { exchange };
        let refused = unbind(session, name_of(exchange, &session.peer)?).await?;
        // What is asked after it, to read from the exchange that is not there, does not matter.
        denied.extend(refused.filter(|reason| reason.contains(&format!("'{named}'"))));
    }
    Ok(denied)
}

/// Takes the binding of an exchange to one that is not there away.
async fn unbind(session: &Session, to: ShortString) -> Result<Option<String>, BusError> {
    let channel = session.channel().await?;
    let unbinding = channel.exchange_unbind(
        to,
        NOT_THERE.into(),
        "".into(),
        ExchangeUnbindOptions::default(),
        FieldTable::default(),
    );
    refusal(session.ask(Doing::Declaring, unbinding).await)
}

/// Returns the broker's words if it lacks a permission; anything else it says is what was expected.
fn refusal<T>(answer: Result<T, BusError>) -> Result<Option<String>, BusError> {
    match answer {
        Err(BusError::Refused { reason, .. }) if reason.starts_with("ACCESS_REFUSED") => {
            Ok(Some(reason))
        }
        Ok(_) | Err(BusError::Refused { .. } | BusError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
