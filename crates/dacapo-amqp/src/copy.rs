//! What a drill makes of a virtual host: exchanges, queues and bindings as somewhere else, and a
//! queue beside another one.
//!
//! Invariant: what was there before is left as it is, and what was made is known even if making it
//! stops half way, so that it can be removed.

use std::collections::BTreeSet;

use dacapo_bus::BusError;
use dacapo_event::{FieldTable, FieldValue};
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{
    AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable as AmqpTable, LongString,
};
use lapin::{Channel, ExchangeKind};

use crate::Broker;
use crate::connect::Session;
use crate::error::Doing;
use crate::target::name_of;
use crate::topology::look_up_exchange;

/// Things that one connection looks up and declares: each look-up may cost a channel, and a
/// connection has 2,047.
const THINGS_PER_CONNECTION: usize = 500;

/// What to declare.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Copied {
    /// Exchanges, declared first.
    pub exchanges: Vec<CopiedExchange>,
    /// Queues.
    pub queues: Vec<CopiedQueue>,
    /// Bindings, declared last.
    pub bindings: Vec<CopiedBinding>,
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq)]
pub struct CopiedExchange {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Whether clients may publish to it.
    pub internal: bool,
    /// Its arguments.
    pub arguments: FieldTable,
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq)]
pub struct CopiedQueue {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: FieldTable,
}

/// A binding.
#[derive(Debug, Clone, PartialEq)]
pub struct CopiedBinding {
    /// The exchange that it is of.
    pub source: String,
    /// Where it leads.
    pub to: BindTo,
    /// Its key.
    pub routing_key: String,
    /// Its arguments.
    pub arguments: FieldTable,
}

/// Where a binding leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindTo {
    /// To a queue.
    Queue(String),
    /// To an exchange.
    Exchange(String),
}

/// What a virtual host has before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nothing: it was made just now.
    Empty,
    /// Whatever others made.
    InUse,
}

/// What was made, and what was there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made {
    /// Exchanges that were made, or may have been.
    pub exchanges: Vec<String>,
    /// Queues that were made, or may have been.
    pub queues: Vec<String>,
    /// How many bindings were made.
    pub bindings: u64,
    /// How many bindings were left out, for an end of theirs was there before.
    pub unbound: u64,
    /// Exchanges and queues that were there, for people: "queue `orders`".
    pub found: BTreeSet<String>,
}

/// A queue as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Messages that wait in it.
    pub ready: u64,
    /// Its consumers.
    pub consumers: u64,
}

/// Declares what is not there yet; bindings only where both ends of them were made here, for a binding
/// hands on what is published to whoever has its other end. `made` says how far it came, also if it
/// fails or is dropped.
///
/// # Errors
/// No connection, no permission, or something that the broker does not take.
pub async fn declare_copy(
    broker: &Broker,
    copied: &Copied,
    place: Place,
    made: &mut Made,
) -> Result<(), BusError> {
    for some in copied.exchanges.chunks(THINGS_PER_CONNECTION) {
        let session = broker.connect().await?;
        let declared = exchanges(&session, some, place, made).await;
        session.close().await;
        declared?;
    }
    for some in copied.queues.chunks(THINGS_PER_CONNECTION) {
        let session = broker.connect().await?;
        let declared = queues(&session, some, place, made).await;
        session.close().await;
        declared?;
    }
    let session = broker.connect().await?;
    let bound = bindings(&session, &copied.bindings, place, made).await;
    session.close().await;
    bound
}

async fn exchanges(
    session: &Session,
    exchanges: &[CopiedExchange],
    place: Place,
    made: &mut Made,
) -> Result<(), BusError> {
    let channel = session.channel().await?;
    for exchange in exchanges {
        let name = name_of(&exchange.name, &session.peer)?;
        if place == Place::InUse {
            match look_up_exchange(session, &name).await {
                Ok(()) => {
                    made.found.insert(format!("exchange `{}`", exchange.name));
                    continue;
                }
                Err(BusError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let kind = match exchange.kind.as_str() {
            "direct" => ExchangeKind::Direct,
            "fanout" => ExchangeKind::Fanout,
            "headers" => ExchangeKind::Headers,
            "topic" => ExchangeKind::Topic,
            other => ExchangeKind::Custom(other.to_owned()),
        };
        let options = ExchangeDeclareOptions {
            durable: true,
            internal: exchange.internal,
            ..ExchangeDeclareOptions::default()
        };
        let arguments = table(&exchange.arguments, &session.peer)?;
        let declaring = channel.exchange_declare(name, kind, options, arguments);
        // Before the answer, which may never be waited for.
        made.exchanges.push(exchange.name.clone());
        let declared = session.ask(Doing::Declaring, declaring).await;
        forget_refused(&declared, &mut made.exchanges);
        declared?;
    }
    Ok(())
}

async fn queues(
    session: &Session,
    queues: &[CopiedQueue],
    place: Place,
    made: &mut Made,
) -> Result<(), BusError> {
    let channel = session.channel().await?;
    for queue in queues {
        if place == Place::InUse && look_up_queue(session, &queue.name).await?.is_some() {
            made.found.insert(format!("queue `{}`", queue.name));
            continue;
        }
        let arguments = table(&queue.arguments, &session.peer)?;
        // Before the answer, which may never be waited for.
        made.queues.push(queue.name.clone());
        let declared = declare_queue(session, &channel, &queue.name, arguments).await;
        forget_refused(&declared, &mut made.queues);
        declared?;
    }
    Ok(())
}

/// What was refused was not made: there may be another one of its name, which is not to be removed.
fn forget_refused<T>(declared: &Result<T, BusError>, made: &mut Vec<String>) {
    if matches!(declared, Err(error) if !error.is_transient()) {
        made.pop();
    }
}

/// Whether both ends of a binding were made here, or came with a virtual host that was made for it.
fn is_inside(binding: &CopiedBinding, place: Place, made: &Made) -> bool {
    let exchange = |name: &String| {
        made.exchanges.contains(name) || (place == Place::Empty && name.starts_with("amq."))
    };
    let leads_inside = match &binding.to {
        BindTo::Queue(queue) => made.queues.contains(queue),
        BindTo::Exchange(name) => exchange(name),
    };
    leads_inside && exchange(&binding.source)
}

async fn bindings(
    session: &Session,
    bindings: &[CopiedBinding],
    place: Place,
    made: &mut Made,
) -> Result<(), BusError> {
    let channel = session.channel().await?;
    for binding in bindings {
        if !is_inside(binding, place, made) {
            made.unbound += 1;
            continue;
        }
        let peer = &session.peer;
        let (source, key) = (name_of(&binding.source, peer)?, name_of(&binding.routing_key, peer)?);
        let arguments = table(&binding.arguments, peer)?;
        match &binding.to {
            BindTo::Queue(queue) => {
                let options = QueueBindOptions::default();
                let queue = name_of(queue, peer)?;
                let binding = channel.queue_bind(queue, source, key, options, arguments);
                session.ask(Doing::Declaring, binding).await?;
            }
            BindTo::Exchange(exchange) => {
                let options = ExchangeBindOptions::default();
                let exchange = name_of(exchange, peer)?;
                let binding = channel.exchange_bind(exchange, source, key, options, arguments);
                session.ask(Doing::Declaring, binding).await?;
            }
        }
        made.bindings += 1;
    }
    Ok(())
}

/// Declares a durable queue that will be bound beside another one.
///
/// # Errors
/// No connection, or no permission.
pub async fn declare_witness(broker: &Broker, queue: &str) -> Result<(), BusError> {
    let session = broker.connect().await?;
    let declared = async {
        let channel = session.channel().await?;
        declare_queue(&session, &channel, queue, AmqpTable::default()).await
    };
    let declared = declared.await;
    session.close().await;
    declared
}

/// Returns how a queue is, or nothing if it is not there.
///
/// # Errors
/// No connection, or no permission.
pub async fn queue_state(broker: &Broker, queue: &str) -> Result<Option<QueueState>, BusError> {
    let session = broker.connect().await?;
    let state = look_up_queue(&session, queue).await;
    session.close().await;
    state
}

/// Uses a channel of its own, which a refusal closes.
async fn look_up_queue(session: &Session, queue: &str) -> Result<Option<QueueState>, BusError> {
    let channel = session.channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = name_of(queue, &session.peer)?;
    let asking = channel.queue_declare(queue, passive, AmqpTable::default());
    match session.ask(Doing::Declaring, asking).await {
        Ok(queue) => Ok(Some(QueueState {
            ready: u64::from(queue.message_count()),
            consumers: u64::from(queue.consumer_count()),
        })),
        Err(BusError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn declare_queue(
    session: &Session,
    channel: &Channel,
    queue: &str,
    arguments: AmqpTable,
) -> Result<(), BusError> {
    let queue = name_of(queue, &session.peer)?;
    let declaring = channel.queue_declare(queue, QueueDeclareOptions::durable(), arguments);
    session.ask(Doing::Declaring, declaring).await.map(drop)
}

/// Returns arguments as lapin has them.
fn table(fields: &FieldTable, peer: &str) -> Result<AmqpTable, BusError> {
    let mut table = AmqpTable::default();
    for (name, value) in fields.iter() {
        table.insert(name_of(&name.to_str_lossy(), peer)?, self::value(value, peer)?);
    }
    Ok(table)
}

fn value(value: &FieldValue, peer: &str) -> Result<AMQPValue, BusError> {
    Ok(match value {
        FieldValue::Boolean(value) => AMQPValue::Boolean(*value),
        FieldValue::ShortShortInt(value) => AMQPValue::ShortShortInt(*value),
        FieldValue::ShortShortUInt(value) => AMQPValue::ShortShortUInt(*value),
        FieldValue::ShortInt(value) => AMQPValue::ShortInt(*value),
        FieldValue::ShortUInt(value) => AMQPValue::ShortUInt(*value),
        FieldValue::LongInt(value) => AMQPValue::LongInt(*value),
        FieldValue::LongUInt(value) => AMQPValue::LongUInt(*value),
        FieldValue::LongLongInt(value) => AMQPValue::LongLongInt(*value),
        FieldValue::Float(value) => AMQPValue::Float(*value),
        FieldValue::Double(value) => AMQPValue::Double(*value),
        FieldValue::Decimal { scale, value } => {
            AMQPValue::DecimalValue(DecimalValue { scale: *scale, value: *value })
        }
        FieldValue::LongString(bytes) => AMQPValue::LongString(LongString::from(bytes.to_vec())),
        FieldValue::Array(values) => {
            let mut array = FieldArray::default();
            for value in values {
                array.push(self::value(value, peer)?);
            }
            AMQPValue::FieldArray(array)
        }
        FieldValue::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        FieldValue::Table(fields) => AMQPValue::FieldTable(table(fields, peer)?),
        FieldValue::Void => AMQPValue::Void,
        FieldValue::ByteArray(bytes) => AMQPValue::ByteArray(ByteArray::from(bytes.to_vec())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bindings_between_what_was_made_are_inside() {
        let made = Made {
            exchanges: vec!["own".to_owned()],
            queues: vec!["mine".to_owned()],
            ..Made::default()
        };
        let check = |source: &str, to: BindTo, place, expected: bool| {
            let binding = CopiedBinding {
                source: source.to_owned(),
                to,
                routing_key: String::new(),
                arguments: FieldTable::new(),
            };
            assert_eq!(is_inside(&binding, place, &made), expected, "{binding:?} {place:?}");
        };
        let queue = |name: &str| BindTo::Queue(name.to_owned());
        let exchange = |name: &str| BindTo::Exchange(name.to_owned());
        check("own", queue("mine"), Place::InUse, true);
        check("own", queue("foreign"), Place::InUse, false);
        check("foreign", queue("mine"), Place::InUse, false);
        check("own", exchange("foreign"), Place::InUse, false);
        check("amq.topic", queue("mine"), Place::InUse, false);
        check("amq.topic", queue("mine"), Place::Empty, true);
        check("own", exchange("amq.fanout"), Place::Empty, true);
    }

    #[test]
    fn what_was_refused_is_not_removed_and_what_may_have_been_made_is() {
        let peer = "h:5672/".to_owned();
        let refused = BusError::Refused {
            peer: peer.clone(),
            reason: "inequivalent arg".to_owned(),
            hint: String::new(),
        };
        let lost = BusError::Disconnected { peer, reason: "reset".to_owned() };
        let after = |error: BusError| {
            let mut made = vec!["q".to_owned()];
            forget_refused(&Err::<(), _>(error), &mut made);
            made.len()
        };
        assert_eq!((after(refused), after(lost)), (0, 1));
    }
}
