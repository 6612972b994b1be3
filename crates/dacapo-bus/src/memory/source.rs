//! Consuming from the bus in memory.

use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};
use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use dacapo_event::ShortStr;
use tokio::sync::Notify;

use super::broker::{ConsumerId, no_queue};
use super::{MemoryBus, QueueOptions};
use crate::{AskedDepth, BusError, Delivery, DeliveryTag, Source, Subscribe};

/// Opens sources on one queue of a bus in memory, declaring the queue and its bindings if they are
/// not there.
#[derive(Debug, Clone)]
pub struct MemorySubscription {
    bus: MemoryBus,
    queue: String,
    options: QueueOptions,
    bindings: Vec<(String, ShortStr)>,
    prefetch: NonZeroUsize,
}

/// A consumer on one queue of a bus in memory. Dropping it gives back what was not acked.
#[derive(Debug)]
pub struct MemorySource {
    bus: MemoryBus,
    queue: String,
    id: ConsumerId,
    wake: Arc<Notify>,
    prefetch: NonZeroUsize,
    delivered: DeliveryTag,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Consuming,
    Closed,
}

impl MemoryBus {
    /// Returns what opens sources on `queue`, bound to each exchange with its key or pattern, with
    /// at most `prefetch` messages unacked.
    pub fn subscription(
        &self,
        queue: &str,
        options: QueueOptions,
        bindings: Vec<(String, ShortStr)>,
        prefetch: NonZeroUsize,
    ) -> MemorySubscription {
        MemorySubscription {
            bus: self.clone(),
            queue: queue.to_owned(),
            options,
            bindings,
            prefetch,
        }
    }

    /// Consumes from a queue that is there, with at most `prefetch` messages unacked.
    ///
    /// # Errors
    /// `NotFound` if there is no such queue.
    pub fn consume(&self, queue: &str, prefetch: NonZeroUsize) -> Result<MemorySource, BusError> {
        let (id, wake) = self.lock().attach(queue)?;
        Ok(MemorySource {
            bus: self.clone(),
            queue: queue.to_owned(),
            id,
            wake,
            prefetch,
            delivered: 0,
            state: State::Consuming,
        })
    }
}

#[async_trait]
impl Subscribe for MemorySubscription {
    async fn open(&self) -> Result<Box<dyn Source>, BusError> {
        self.bus.declare_queue(&self.queue, self.options);
        for (exchange, key) in &self.bindings {
            self.bus.bind(&self.queue, exchange, key)?;
        }
        Ok(Box::new(self.bus.consume(&self.queue, self.prefetch)?))
    }
}

impl MemorySource {
    fn take(&mut self) -> Result<Option<Delivery>, BusError> {
        let tag = self.delivered + 1;
        let taken = self.bus.lock().take(&self.queue, self.id, tag, self.prefetch.get())?;
        Ok(taken.map(|taken| {
            self.delivered = tag;
            Delivery {
                tag,
                redelivered: taken.redelivered,
                parked: taken.parked,
                // The bus keeps its copy until the ack.
                message: (*taken.message).clone(),
            }
        }))
    }

    fn detach(&mut self) {
        if self.state == State::Consuming {
            self.state = State::Closed;
            self.bus.lock().detach(&self.queue, self.id);
        }
    }
}

#[async_trait]
impl Source for MemorySource {
    async fn next(&mut self) -> Result<Option<Delivery>, BusError> {
        // A full queue would otherwise keep this task running and starve its neighbours.
        tokio::task::coop::consume_budget().await;
        let wake = self.wake.clone();
        loop {
            if self.state == State::Closed {
                return Ok(None);
            }
            // Listening begins before looking, so that nothing falls between.
            let mut woken = pin!(wake.notified());
            woken.as_mut().enable();
            if let Some(delivery) = self.take()? {
                return Ok(Some(delivery));
            }
            woken.await;
        }
    }

    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
        self.bus.lock().ack(&self.queue, self.id, tag)
    }

    fn prefetch(&self) -> Option<NonZeroU16> {
        NonZeroU16::try_from(NonZeroU64::try_from(self.prefetch).ok()?).ok()
    }

    async fn depth(&mut self) -> Result<u64, BusError> {
        self.bus.depth(&self.queue).ok_or_else(|| no_queue(&self.queue))
    }

    fn ask_depth(&mut self) -> AskedDepth {
        Box::pin(std::future::ready(self.bus.depth(&self.queue)))
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.detach();
        Ok(())
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        self.detach();
    }
}
