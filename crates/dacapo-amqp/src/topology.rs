//! The queues and bindings of archivers and services, and what an archiver's cannot catch.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use dacapo_bus::BusError;
use dacapo_bus::broker::parked_queue;
use dacapo_event::ParseError;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::Broker;
use crate::connect::Session;
use crate::error::Doing;
use crate::target::{name_of, short_of};
use crate::wire::Queues;

/// A delivery limit that is never reached. Unread messages count one delivery with each lost
/// connection; RabbitMQ 4 would drop them after 20, and only RabbitMQ 4 knows -1 for "none". The
/// same value everywhere lets a broker be upgraded under its queues.
const DELIVERIES_MAX: i32 = i32::MAX;

/// Binds everything that an exchange routes.
const EVERYTHING: &str = "#";

/// One exchange to archive, and what of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange, which must be there.
    pub exchange: String,
    /// The binding key: for a topic exchange a pattern, for a direct one the exact routing key.
    pub pattern: String,
}

/// Parses `EXCHANGE` (everything) or `EXCHANGE=PATTERN`.
impl FromStr for Binding {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (exchange, pattern) = text.split_once('=').unwrap_or((text, EVERYTHING));
        if exchange.is_empty() || exchange.len() > 255 || pattern.len() > 255 {
            let expected = "an exchange to archive (`EXCHANGE` or `EXCHANGE=PATTERN`; the default \
                            exchange cannot be bound, and a name has at most 255 bytes)";
            return Err(ParseError::new(text, expected));
        }
        Ok(Binding { exchange: exchange.to_owned(), pattern: pattern.to_owned() })
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.exchange, self.pattern)
    }
}

/// Declares the queue, its parking queue and the bindings.
pub(crate) async fn declare(
    broker: &Broker,
    queue: &str,
    bindings: &[Binding],
) -> Result<Queues, BusError> {
    let peer = broker.peer();
    let parked = name_of(&parked_queue(queue), &peer)?;
    let main = name_of(queue, &peer)?;
    let queues = Queues { main: short_of(&main), parked: Some(short_of(&parked)) };

    let session = broker.connect().await?;
    let declared = declare_in(&session, &main, &parked, bindings).await;
    session.close().await;
    declared.map(|()| queues)
}

async fn declare_in(
    session: &Session,
    main: &ShortString,
    parked: &ShortString,
    bindings: &[Binding],
) -> Result<(), BusError> {
    // The parking queue first, so that nothing is dead-lettered to where no queue is.
    let queues = [(parked, parked_arguments()), (main, main_arguments(parked))];
    declare_and_bind(session, queues, main, bindings).await
}

/// Declares a service's queue with its bindings, and its queue of dead letters: quorum queues that
/// drop nothing but what expires or is too much by a message's own wish or a policy's. The first has
/// one active consumer, so that further ones stand by and order holds; the second refuses what a
/// policy leaves no room for, so that the service waits. Declaring them again is no error.
///
/// # Errors
/// No connection or no permission; an exchange that does not exist; or one of the queues is there
/// with other settings.
pub async fn declare_service(
    broker: &Broker,
    queue: &str,
    dead_letters: &str,
    bindings: &[Binding],
) -> Result<(), BusError> {
    let peer = broker.peer();
    let (queue, dead_letters) = (name_of(queue, &peer)?, name_of(dead_letters, &peer)?);
    let session = broker.connect().await?;
    let queues = [(&dead_letters, refusing(lasting_arguments())), (&queue, service_arguments())];
    let declared = declare_and_bind(&session, queues, &queue, bindings).await;
    session.close().await;
    declared
}

/// Declares queues in this order and binds `main`.
async fn declare_and_bind(
    session: &Session,
    queues: [(&ShortString, FieldTable); 2],
    main: &ShortString,
    bindings: &[Binding],
) -> Result<(), BusError> {
    // Before anything is declared: a mistyped exchange leaves nothing behind.
    for binding in bindings {
        look_up_exchange(session, &name_of(&binding.exchange, &session.peer)?).await?;
    }
    for (queue, arguments) in queues {
        let channel = session.channel().await?;
        let declaring =
            channel.queue_declare(queue.clone(), QueueDeclareOptions::durable(), arguments);
        session.ask(Doing::Declaring, declaring).await?;
    }
    let channel = session.channel().await?;
    for binding in bindings {
        let binding = channel.queue_bind(
            main.clone(),
            name_of(&binding.exchange, &session.peer)?,
            name_of(&binding.pattern, &session.peer)?,
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        session.ask(Doing::Declaring, binding).await?;
    }
    Ok(())
}

/// Returns the arguments of a queue that keeps what it has, however often it is delivered.
fn lasting_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments
        .insert("x-queue-type".into(), text("quorum"))
        .insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERIES_MAX));
    arguments
}

/// Returns the arguments of a service's queue, whoever makes it: declared with others, it would be
/// refused.
pub(crate) fn service_arguments() -> FieldTable {
    single(lasting_arguments())
}

/// Returns the arguments of both of an archiver's queues. Publishers' messages are refused rather
/// than old ones dropped if a policy limits the length: at-least-once dead-lettering asks for it,
/// and the head of an archive's queue is the last to give up.
fn common_arguments() -> FieldTable {
    refusing(single(lasting_arguments()))
}

/// Returns the arguments with one active consumer at a time.
fn single(mut arguments: FieldTable) -> FieldTable {
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    arguments
}

/// Returns the arguments with new messages refused rather than old ones dropped.
fn refusing(mut arguments: FieldTable) -> FieldTable {
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

pub(crate) fn parked_arguments() -> FieldTable {
    common_arguments()
}

/// What expires, by the message's own wish or a policy's, goes to the parking queue, and the
/// broker keeps it until that has it.
pub(crate) fn main_arguments(parked: &ShortString) -> FieldTable {
    let mut arguments = common_arguments();
    arguments
        .insert("x-dead-letter-exchange".into(), text(""))
        .insert("x-dead-letter-routing-key".into(), text(parked.as_str()))
        .insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Fails if the exchange is not there. Uses a channel of its own, which a refusal closes.
pub(crate) async fn look_up_exchange(
    session: &Session,
    exchange: &ShortString,
) -> Result<(), BusError> {
    let channel = session.channel().await?;
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let asking = channel.exchange_declare(
        exchange.clone(),
        ExchangeKind::Direct,
        options,
        FieldTable::default(),
    );
    session.ask(Doing::Declaring, asking).await
}

/// Something that is published and that an archiver with these bindings does not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlindSpot {
    /// Publishes to the default exchange go to a queue by its name; nothing can be bound there.
    DefaultExchange,
    /// Publishes to exchanges that route nothing to those bound.
    OtherExchanges,
    /// A direct exchange compares routing keys with the pattern letter by letter.
    WildcardOnDirect(Binding),
    /// The broker did not say what type the exchange has; a wildcard catches nothing on a direct
    /// one.
    TypeUnknown(Binding),
}

impl fmt::Display for BlindSpot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlindSpot::DefaultExchange => {
                f.write_str("what is published to the default exchange: nothing can be bound to it")
            }
            BlindSpot::OtherExchanges => {
                f.write_str("what is published to exchanges that are neither bound here nor route to one that is")
            }
            BlindSpot::WildcardOnDirect(Binding { exchange, pattern }) => write!(
                f,
                "exchange `{exchange}`: it is a direct exchange, which takes `{pattern}` literally; \
                 bind each routing key (`{exchange}=KEY`)"
            ),
            BlindSpot::TypeUnknown(Binding { exchange, pattern }) => write!(
                f,
                "exchange `{exchange}`, if it is a direct one: that would take `{pattern}` literally, \
                 and this user may not ask for its type"
            ),
        }
    }
}

/// Returns what an archiver with these bindings would not see.
///
/// An exchange's type has no query in AMQP: it is declared with another type, and the broker's
/// refusal names the true one. Only exchanges with a wildcard are asked, after it was made sure
/// that they exist.
///
/// # Errors
/// No connection, or an exchange that does not exist.
pub async fn blind_spots(
    broker: &Broker,
    bindings: &[Binding],
) -> Result<Vec<BlindSpot>, BusError> {
    let mut spots = vec![BlindSpot::DefaultExchange, BlindSpot::OtherExchanges];
    let session = broker.connect().await?;
    for binding in bindings {
        let exchange = name_of(&binding.exchange, &session.peer)?;
        look_up_exchange(&session, &exchange).await?;
        if !binding.pattern.contains(['#', '*']) {
            continue;
        }
        match exchange_type(&session, &exchange).await?.as_deref() {
            Some("direct") => spots.push(BlindSpot::WildcardOnDirect(binding.clone())),
            Some(_) => {}
            None => spots.push(BlindSpot::TypeUnknown(binding.clone())),
        }
    }
    session.close().await;
    Ok(spots)
}

/// Returns the type of each exchange that these bindings name, where the broker says it; the user must
/// be allowed to configure the exchange.
///
/// # Errors
/// No connection, or an exchange that does not exist.
pub async fn exchange_types(
    broker: &Broker,
    bindings: &[Binding],
) -> Result<BTreeMap<String, Option<String>>, BusError> {
    let session = broker.connect().await?;
    let asked = async {
        let mut types = BTreeMap::new();
        for Binding { exchange, .. } in bindings {
            if types.contains_key(exchange) {
                continue;
            }
            let name = name_of(exchange, &session.peer)?;
            look_up_exchange(&session, &name).await?;
            types.insert(exchange.clone(), exchange_type(&session, &name).await?);
        }
        Ok(types)
    };
    let asked = asked.await;
    session.close().await;
    asked
}

/// Returns the type of an exchange that exists, if the broker will say.
async fn exchange_type(
    session: &Session,
    exchange: &ShortString,
) -> Result<Option<String>, BusError> {
    match exchange.as_str() {
        "amq.direct" => return Ok(Some("direct".to_owned())),
        "amq.topic" | "amq.rabbitmq.trace" => return Ok(Some("topic".to_owned())),
        "amq.fanout" => return Ok(Some("fanout".to_owned())),
        "amq.headers" | "amq.match" => return Ok(Some("headers".to_owned())),
        _ => {}
    }
    let channel = session.channel().await?;
    // Should the exchange have vanished since it was looked up, this one goes with its last
    // binding.
    let options = ExchangeDeclareOptions { auto_delete: true, ..ExchangeDeclareOptions::default() };
    let asking = channel.exchange_declare(
        exchange.clone(),
        ExchangeKind::Headers,
        options,
        FieldTable::default(),
    );
    match session.ask(Doing::Declaring, asking).await {
        Ok(()) => Ok(Some("headers".to_owned())),
        Err(BusError::Refused { reason, .. }) => Ok(type_in(&reason)),
        Err(error) => Err(error),
    }
}

/// Returns the type in `inequivalent arg 'type' …: received 'headers' but current is 'topic'`; a
/// refusal for another argument means that the types are equal.
fn type_in(reason: &str) -> Option<String> {
    if reason.contains("inequivalent arg 'type'") {
        let after = reason.split_once("current is '")?.1;
        return Some(after.split_once('\'')?.0.to_owned());
    }
    reason.contains("inequivalent arg").then(|| "headers".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_everything_unless_it_says_what() {
        assert_eq!("shop".parse::<Binding>().unwrap().to_string(), "shop=#");
        assert_eq!("shop=a.*=b".parse::<Binding>().unwrap().pattern, "a.*=b");
        assert_eq!("shop=".parse::<Binding>().unwrap().pattern, "");
        assert!("=a".parse::<Binding>().is_err());
    }

    #[test]
    fn the_brokers_refusal_names_the_type() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'ex' in vhost '/': \
                    received 'headers' but current is 'topic'";
        assert_eq!(type_in(said).as_deref(), Some("topic"));
        let said = "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'ex' …";
        assert_eq!(type_in(said).as_deref(), Some("headers"));
        assert_eq!(type_in("ACCESS_REFUSED - access to exchange 'ex' …"), None);
    }
}
