//! Publishing to the bus in memory.

use std::collections::VecDeque;

use async_trait::async_trait;
use dacapo_event::{Message, ShortStr};

use super::broker::no_queue;
use super::{ExchangeKind, MemoryBus};
use crate::{BusError, Connect, Outcome, Sink, TargetState};

/// Where messages go on a bus in memory.
#[derive(Debug, Clone)]
pub struct MemoryTarget {
    bus: MemoryBus,
    route: Route,
}

#[derive(Debug, Clone)]
enum Route {
    OwnExchange { queue: String, exchange: String },
    DefaultExchange { queue: String },
    Exchange { exchange: String, key: RoutingKey },
    Original,
}

/// What becomes of a message's routing key on its way to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutingKey {
    /// It stays as it was.
    Original,
    /// It becomes this.
    Rewritten(ShortStr),
}

/// A publisher on a bus in memory.
#[derive(Debug)]
struct MemorySink {
    bus: MemoryBus,
    /// Replaces the message's exchange.
    exchange: Option<ShortStr>,
    /// Replaces the message's routing key.
    routing_key: Option<ShortStr>,
    queue: Option<String>,
    outcomes: VecDeque<Outcome>,
}

impl MemoryBus {
    /// Returns the way to one queue alone, through `exchange`, which is declared for this purpose
    /// and deleted by `dismantle`. Routing keys arrive as they were.
    pub fn to_queue(&self, queue: &str, exchange: &str) -> MemoryTarget {
        let (queue, exchange) = (queue.to_owned(), exchange.to_owned());
        MemoryTarget { bus: self.clone(), route: Route::OwnExchange { queue, exchange } }
    }

    /// Returns the way to one queue alone through the default exchange: the routing key becomes
    /// the queue's name, and nothing is declared.
    pub fn to_queue_by_default_exchange(&self, queue: &str) -> MemoryTarget {
        MemoryTarget {
            bus: self.clone(),
            route: Route::DefaultExchange { queue: queue.to_owned() },
        }
    }

    /// Returns the way to an exchange that is there.
    pub fn to_exchange(&self, exchange: &str, key: RoutingKey) -> MemoryTarget {
        let exchange = exchange.to_owned();
        MemoryTarget { bus: self.clone(), route: Route::Exchange { exchange, key } }
    }

    /// Returns the way to each message's own exchange.
    pub fn to_original(&self) -> MemoryTarget {
        MemoryTarget { bus: self.clone(), route: Route::Original }
    }
}

#[async_trait]
impl Connect for MemoryTarget {
    async fn open(&self) -> Result<Box<dyn Sink>, BusError> {
        let (exchange, routing_key, queue) = match &self.route {
            Route::OwnExchange { queue, exchange } => {
                self.bus.depth(queue).ok_or_else(|| no_queue(queue))?;
                self.bus.declare_exchange(exchange, ExchangeKind::Fanout)?;
                self.bus.bind(queue, exchange, &ShortStr::default())?;
                (Some(short(exchange)?), None, Some(queue.clone()))
            }
            Route::DefaultExchange { queue } => {
                self.bus.depth(queue).ok_or_else(|| no_queue(queue))?;
                (Some(ShortStr::default()), Some(short(queue)?), Some(queue.clone()))
            }
            Route::Exchange { exchange, key } => {
                let key = match key {
                    RoutingKey::Original => None,
                    RoutingKey::Rewritten(key) => Some(key.clone()),
                };
                (Some(short(exchange)?), key, None)
            }
            Route::Original => (None, None, None),
        };
        let bus = self.bus.clone();
        Ok(Box::new(MemorySink { bus, exchange, routing_key, queue, outcomes: VecDeque::new() }))
    }

    async fn dismantle(&self) -> Result<(), BusError> {
        if let Route::OwnExchange { exchange, .. } = &self.route {
            self.bus.delete_exchange(exchange);
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for MemorySink {
    async fn send(&mut self, messages: &[Message]) -> Result<(), BusError> {
        // Nothing else here waits, and a long replay must not starve its neighbours.
        tokio::task::coop::consume_budget().await;
        for message in messages {
            let mut message = message.clone();
            if let Some(exchange) = &self.exchange {
                message.exchange = exchange.clone();
            }
            if let Some(routing_key) = &self.routing_key {
                message.routing_key = routing_key.clone();
            }
            let outcome = self.bus.publish(message)?;
            self.outcomes.push_back(outcome);
        }
        Ok(())
    }

    async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError> {
        if self.outcomes.is_empty() {
            std::future::pending::<()>().await;
        }
        Ok(self.outcomes.drain(..).collect())
    }

    async fn state(&mut self) -> Result<TargetState, BusError> {
        let depth = match &self.queue {
            Some(queue) => Some(self.bus.depth(queue).ok_or_else(|| no_queue(queue))?),
            None => None,
        };
        Ok(TargetState { depth, blocked: false })
    }

    async fn close(&mut self) -> Result<(), BusError> {
        Ok(())
    }
}

fn short(name: &str) -> Result<ShortStr, BusError> {
    ShortStr::try_from(name).map_err(|error| BusError::Unsendable { reason: error.to_string() })
}
