//! Where the demo takes place: the bus in memory, or exchanges and queues of its own on a
//! RabbitMQ.

use std::num::NonZeroU16;

use dacapo_amqp::{AmqpConnect, AmqpSubscribe, AmqpTarget, Binding, Broker, Via, inspect};
use dacapo_bus::broker::parked_queue;
use dacapo_bus::memory::{ExchangeKind, MemoryBus, QueueOptions, RoutingKey};
use dacapo_bus::{BusError, Connect, Subscribe};
use dacapo_engine::survey::TargetFacts;
use dacapo_event::{MemoryBudget, ShortStr};

/// Who has a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Orders,
    Mailer,
    Archiver,
}

/// The bus of the demo, with the names of what is its own there.
#[derive(Debug)]
pub(crate) struct Bus {
    kind: Kind,
    /// What precedes every name; empty in memory.
    prefix: String,
}

#[derive(Debug)]
enum Kind {
    Memory(MemoryBus),
    RabbitMq(Broker),
}

impl Bus {
    /// Returns a bus in this process.
    pub(crate) fn in_memory() -> Self {
        Bus { kind: Kind::Memory(MemoryBus::new()), prefix: String::new() }
    }

    /// Returns a broker, on which everything of the demo is named `name.…`.
    pub(crate) fn on(broker: Broker, name: &str) -> Self {
        Bus { kind: Kind::RabbitMq(broker), prefix: format!("{name}.") }
    }

    /// Returns where it is, in words.
    pub(crate) fn place(&self) -> String {
        match &self.kind {
            Kind::Memory(_) => "a bus in memory".to_owned(),
            Kind::RabbitMq(broker) => format!("RabbitMQ on {}", broker.url.peer()),
        }
    }

    /// Returns the exchange that the shop publishes to.
    pub(crate) fn exchange(&self) -> String {
        format!("{}shop", self.prefix)
    }

    /// Returns somebody's queue.
    pub(crate) fn queue(&self, role: Role) -> String {
        let name = match role {
            Role::Orders => "orders",
            Role::Mailer => "mailer",
            Role::Archiver => "archive",
        };
        format!("{}{name}", self.prefix)
    }

    /// Declares the exchange and the archiver's queue, so that nothing is published before it.
    pub(crate) async fn set_up(&self) -> Result<(), BusError> {
        match &self.kind {
            Kind::Memory(bus) => bus.declare_exchange(&self.exchange(), ExchangeKind::Topic)?,
            Kind::RabbitMq(broker) => dacapo_amqp::declare_topic(broker, &self.exchange()).await?,
        }
        let mut source = self.subscription(Role::Archiver, NonZeroU16::MIN).open().await?;
        source.close().await
    }

    /// Returns what opens somebody's queue, declaring and binding it.
    pub(crate) fn subscription(&self, role: Role, prefetch: NonZeroU16) -> Box<dyn Subscribe> {
        let patterns: &[&'static str] = match role {
            Role::Orders => &["orders.#"],
            Role::Mailer => &["orders.placed.*", "orders.shipped.*"],
            Role::Archiver => &["#"],
        };
        let (queue, exchange) = (self.queue(role), self.exchange());
        match &self.kind {
            Kind::Memory(bus) => {
                let bind =
                    |pattern: &&'static str| (exchange.clone(), ShortStr::from_static(pattern));
                let bindings = patterns.iter().map(bind).collect();
                let options = QueueOptions::default();
                Box::new(bus.subscription(&queue, options, bindings, prefetch.into()))
            }
            Kind::RabbitMq(broker) => {
                let bind = |pattern: &&'static str| Binding {
                    exchange: exchange.clone(),
                    pattern: (*pattern).to_owned(),
                };
                let bindings = patterns.iter().map(bind).collect();
                let waiting = MemoryBudget::DEFAULT.waiting();
                Box::new(AmqpSubscribe::new(broker.clone(), queue, bindings, prefetch, waiting))
            }
        }
    }

    /// Returns the way to everyone: the shop's exchange.
    pub(crate) fn to_everyone(&self) -> Box<dyn Connect> {
        let exchange = self.exchange();
        match &self.kind {
            Kind::Memory(bus) => Box::new(bus.to_exchange(&exchange, RoutingKey::Original)),
            Kind::RabbitMq(broker) => {
                let target = AmqpTarget::Exchange { exchange, routing_key: None };
                Box::new(AmqpConnect { broker: broker.clone(), target })
            }
        }
    }

    /// Returns the way to one queue alone.
    pub(crate) fn to_queue_of(&self, role: Role) -> Box<dyn Connect> {
        let (queue, name) = (self.queue(role), self.replay_exchange());
        match &self.kind {
            Kind::Memory(bus) => Box::new(bus.to_queue(&queue, &name)),
            Kind::RabbitMq(broker) => {
                let target = AmqpTarget::Queue { queue, via: Via::OwnExchange { name } };
                Box::new(AmqpConnect { broker: broker.clone(), target })
            }
        }
    }

    /// Asks how somebody's queue is. Who consumes from it is not asked of a bus in memory.
    pub(crate) async fn facts(&self, role: Role) -> Result<TargetFacts, BusError> {
        let queue = self.queue(role);
        let (exists, depth, consumers) = match &self.kind {
            Kind::Memory(bus) => {
                let depth = bus.depth(&queue);
                (depth.is_some(), depth, None)
            }
            Kind::RabbitMq(broker) => {
                let target = AmqpTarget::Queue { queue, via: Via::DefaultExchange };
                let facts = inspect(broker, &target).await?;
                (facts.exists, facts.depth, facts.consumers)
            }
        };
        Ok(TargetFacts { exists: Some(exists), depth, consumers, warnings: Vec::new() })
    }

    /// Deletes everything that is the demo's own; nothing of it being there is no error.
    pub(crate) async fn remove(&self) -> Result<(), BusError> {
        let Kind::RabbitMq(broker) = &self.kind else { return Ok(()) };
        let roles = [Role::Orders, Role::Mailer, Role::Archiver];
        let queues: Vec<String> = roles
            .into_iter()
            .map(|role| self.queue(role))
            // The parking queue last, so that nothing is dead-lettered to where no queue is.
            .flat_map(|queue| [queue.clone(), parked_queue(&queue)])
            .collect();
        dacapo_amqp::remove(broker, &queues, &[self.exchange(), self.replay_exchange()]).await
    }

    fn replay_exchange(&self) -> String {
        format!("{}replay", self.prefix)
    }
}
