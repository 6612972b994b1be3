//! Where a replay publishes.

use dacapo_bus::BusError;
use dacapo_event::{Message, ShortStr};
use lapin::types::ShortString;

use crate::error::refused;

/// Where messages go; decides the exchange and routing key that they are published with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AmqpTarget {
    /// One queue, and so one consumer.
    Queue {
        /// The queue, which must be there.
        queue: String,
        /// How it is reached.
        via: Via,
    },
    /// An exchange, and so everyone bound to it.
    Exchange {
        /// The exchange, which must be there.
        exchange: String,
        /// What replaces the original routing key, if anything.
        routing_key: Option<String>,
    },
    /// The exchange and routing key that each message was first published with.
    Original,
}

/// The way to one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// A fanout exchange of this replay's own, bound to the queue alone: the routing key arrives
    /// as it was. Declared by `open`, removed by `dismantle`.
    OwnExchange {
        /// Its name, for example `dacapo.replay.<id>`.
        name: String,
    },
    /// The default exchange, where nothing may be declared: the queue's name replaces the routing
    /// key.
    DefaultExchange,
}

impl AmqpTarget {
    /// Returns the queue of a target that is one.
    pub fn queue(&self) -> Option<&str> {
        match self {
            AmqpTarget::Queue { queue, .. } => Some(queue),
            AmqpTarget::Exchange { .. } | AmqpTarget::Original => None,
        }
    }
}

/// Where each message is published, checked once.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    /// Absent: the message's own.
    exchange: Option<ShortStr>,
    /// Absent: the message's own.
    routing_key: Option<ShortStr>,
}

impl Address {
    pub(crate) fn new(target: &AmqpTarget, peer: &str) -> Result<Self, BusError> {
        let short = |name: &str| name_of(name, peer).map(|name| short_of(&name));
        Ok(match target {
            AmqpTarget::Queue { via: Via::OwnExchange { name }, .. } => {
                Address { exchange: Some(short(name)?), routing_key: None }
            }
            AmqpTarget::Queue { queue, via: Via::DefaultExchange } => {
                Address { exchange: Some(short("")?), routing_key: Some(short(queue)?) }
            }
            AmqpTarget::Exchange { exchange, routing_key } => Address {
                exchange: Some(short(exchange)?),
                routing_key: routing_key.as_deref().map(short).transpose()?,
            },
            AmqpTarget::Original => Address { exchange: None, routing_key: None },
        })
    }

    /// Returns the exchange and the routing key that a message is published with.
    pub(crate) fn of<'a>(&'a self, message: &'a Message) -> (&'a ShortStr, &'a ShortStr) {
        let exchange = self.exchange.as_ref().unwrap_or(&message.exchange);
        let routing_key = self.routing_key.as_ref().unwrap_or(&message.routing_key);
        (exchange, routing_key)
    }
}

/// Returns a name in AMQP's form.
pub(crate) fn name_of(name: &str, peer: &str) -> Result<ShortString, BusError> {
    ShortString::try_new(name).map_err(|_| {
        let reason = format!("the name `{name}` has {} bytes", name.len());
        refused(peer, reason, "AMQP allows 255 bytes in a name; use a shorter one")
    })
}

/// Returns a name of lapin's as our own.
pub(crate) fn short_of(name: &ShortString) -> ShortStr {
    ShortStr::try_from(name.as_str()).expect("lapin holds short strings to 255 bytes")
}
