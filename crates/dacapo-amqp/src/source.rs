//! Sources: an archiver's queue with its parking queue, or one queue that is there already, consumed
//! as they are.

use std::num::NonZeroU16;
use std::sync::Arc;

use async_trait::async_trait;
use dacapo_bus::broker::parked_queue;
use dacapo_bus::{AskedDepth, BusError, Delivery, DeliveryTag, Source, Subscribe};
use dacapo_event::{EventError, ShortStr};
use tokio::sync::oneshot;

use crate::Broker;
use crate::appetite::Appetite;
use crate::connect::ANSWER_DEADLINE;
use crate::error::lost;
use crate::topology::{self, Binding};
use crate::wire::{self, Consumer, Order, Queues};

/// Opens sources on one queue and its parking queue, declaring both and the bindings.
///
/// Both are quorum queues with one active consumer, so a second source is a hot standby. What
/// expires in the first or is taken out by a policy is dead-lettered into the second, and comes
/// out of the same source with everything as it was published.
#[derive(Debug, Clone)]
pub struct AmqpSubscribe {
    broker: Broker,
    queue: String,
    bindings: Vec<Binding>,
    appetite: Arc<Appetite>,
}

impl AmqpSubscribe {
    /// Returns a way to `queue`, the archiver's own, with `bindings` (those that are there already
    /// stay) and at most `prefetch` messages of it, and as many of its parking queue, delivered and
    /// not acked. No more than `waiting_bytes_max` of them wait in memory to be taken, or one. If they
    /// are larger, the broker keeps the rest for some seconds; where that does not do, a source hands
    /// out these only, and the next one has a smaller prefetch. So deliveries have to be taken while
    /// the answer to [`Source::depth`] is waited for ([`Source::ask_depth`]), or it comes late.
    pub fn new(
        broker: Broker,
        queue: impl Into<String>,
        bindings: Vec<Binding>,
        prefetch: NonZeroU16,
        waiting_bytes_max: u64,
    ) -> Self {
        let appetite = Arc::new(Appetite::pausing(prefetch, waiting_bytes_max));
        AmqpSubscribe { broker, queue: queue.into(), bindings, appetite }
    }

    /// Returns where and as whom it connects.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Returns the same way, what was learned of its deliveries included, with another password or
    /// other certificates.
    pub fn at(&self, broker: Broker) -> Self {
        AmqpSubscribe { broker, ..self.clone() }
    }
}

#[async_trait]
impl Subscribe for AmqpSubscribe {
    async fn open(&self) -> Result<Box<dyn Source>, BusError> {
        let queues = topology::declare(&self.broker, &self.queue, &self.bindings).await?;
        open(&self.broker, queues, &self.appetite).await
    }
}

/// Opens sources on one queue of a service's, as it is: nothing is declared, whoever else consumes it
/// has a share, and its order is the broker's.
#[derive(Debug, Clone)]
pub struct AmqpQueue {
    broker: Broker,
    queue: ShortStr,
    parked: Option<ShortStr>,
    appetite: Arc<Appetite>,
}

impl AmqpQueue {
    /// Returns a way to `queue`, with at most `prefetch` messages of it delivered and not acked, and
    /// as [`AmqpSubscribe::new`] no more than `waiting_bytes_max` of them in memory, or one.
    ///
    /// # Errors
    /// The name has more than 255 bytes.
    pub fn new(
        broker: Broker,
        queue: &str,
        prefetch: NonZeroU16,
        waiting_bytes_max: u64,
    ) -> Result<Self, EventError> {
        let appetite = Arc::new(Appetite::new(prefetch, waiting_bytes_max));
        Ok(AmqpQueue { broker, queue: ShortStr::try_from(queue)?, parked: None, appetite })
    }

    /// Returns the same way, with the queue in which this one parks: what comes from there has
    /// everything as it was published.
    ///
    /// # Errors
    /// The name has more than 255 bytes.
    pub fn with_parking(self) -> Result<Self, EventError> {
        let parked = parked_queue(&self.queue.to_str_lossy());
        Ok(AmqpQueue { parked: Some(ShortStr::try_from(parked)?), ..self })
    }
}

#[async_trait]
impl Subscribe for AmqpQueue {
    async fn open(&self) -> Result<Box<dyn Source>, BusError> {
        let queues = Queues { main: self.queue.clone(), parked: self.parked.clone() };
        open(&self.broker, queues, &self.appetite).await
    }
}

async fn open(
    broker: &Broker,
    queues: Queues,
    appetite: &Arc<Appetite>,
) -> Result<Box<dyn Source>, BusError> {
    let consumer = wire::start(broker.clone(), queues, Arc::clone(appetite)).await?;
    Ok(Box::new(AmqpSource { consumer, delivered: 0, acked: 0, end: End::NotYet }))
}

struct AmqpSource {
    consumer: Consumer,
    /// The last delivery handed out.
    delivered: DeliveryTag,
    /// The last delivery acked.
    acked: DeliveryTag,
    end: End,
}

/// How the connection ended, as far as it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    InOrder,
    Lost,
}

#[async_trait]
impl Source for AmqpSource {
    async fn next(&mut self) -> Result<Option<Delivery>, BusError> {
        match self.end {
            End::NotYet => {}
            End::InOrder => return Ok(None),
            End::Lost => return Err(lost(&self.consumer.peer, "it was lost before")),
        }
        let delivery = tokio::select! {
            biased;
            // First: what waits from a connection that is gone cannot be acked and comes again.
            end = &mut self.consumer.ended => Err(end),
            delivery = self.consumer.deliveries.recv() => match delivery {
                Some(delivery) => Ok(delivery),
                None if self.consumer.waiting.is_last() => return Ok(None),
                None => Err((&mut self.consumer.ended).await),
            },
        };
        match delivery {
            Ok(delivery) => {
                self.consumer.waiting.remove(&delivery.message);
                self.delivered = delivery.tag;
                Ok(Some(delivery))
            }
            Err(end) => self.ended(end).map(|()| None),
        }
    }

    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
        // To the broker, 0 means all there is, a tag acked before is an error, and one not
        // handed out yet would lose that message.
        let tag = tag.min(self.delivered);
        if tag <= self.acked {
            return Ok(());
        }
        self.ask(|done| Order::Ack(tag, done)).await?;
        self.acked = tag;
        Ok(())
    }

    fn prefetch(&self) -> Option<NonZeroU16> {
        Some(self.consumer.prefetch)
    }

    async fn depth(&mut self) -> Result<u64, BusError> {
        self.ask(Order::Depth).await
    }

    fn ask_depth(&mut self) -> AskedDepth {
        let orders = self.consumer.orders.clone();
        let (reply, answer) = oneshot::channel();
        Box::pin(async move {
            orders.send(Order::Depth(reply)).await.ok()?;
            drop(orders);
            answer.await.ok()
        })
    }

    async fn close(&mut self) -> Result<(), BusError> {
        // If the order cannot be given, the connection has ended already and says how.
        if self.end == End::NotYet {
            let ordered = self.consumer.orders.send(Order::Close).await;
            tracing::trace!(ordered = ordered.is_ok(), "closing the consumer");
            let end = (&mut self.consumer.ended).await;
            return self.ended(end);
        }
        Ok(())
    }
}

impl AmqpSource {
    /// Gives an order and waits for its answer.
    async fn ask<T>(
        &mut self,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> Result<T, BusError> {
        if self.end != End::NotYet {
            return Err(lost(&self.consumer.peer, "it is closed"));
        }
        let (reply, answer) = oneshot::channel();
        let asking = async {
            self.consumer.orders.send(order(reply)).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(ANSWER_DEADLINE, asking).await {
            Ok(Some(answer)) => Ok(answer),
            // The connection's thread has ended, and says why.
            Ok(None) => {
                let end = (&mut self.consumer.ended).await;
                self.ended(end)?;
                Err(lost(&self.consumer.peer, "it is closed"))
            }
            Err(_) => {
                Err(lost(&self.consumer.peer, format!("no answer within {ANSWER_DEADLINE:?}")))
            }
        }
    }

    fn ended(
        &mut self,
        end: Result<Result<(), BusError>, oneshot::error::RecvError>,
    ) -> Result<(), BusError> {
        let end = end.unwrap_or_else(|_| Err(lost(&self.consumer.peer, "its thread ended")));
        self.end = if end.is_ok() { End::InOrder } else { End::Lost };
        end
    }
}
