//! The loop of a consumer: one event at a time is taken, handled, retried or buried, and acked last.
//!
//! Waits and I/O only; what to do after a failure is decided in `retry`, what an event is in
//! `delivery`. The bus's connections answer heartbeats on threads of their own, so a handler may
//! take its time.

mod burial;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Duration;

use dacapo_bus::{BusError, Connect, Source, Subscribe};
use dacapo_event::Clock;
use dacapo_event::attributes::{AttributeRules, Place};
use futures::FutureExt;
use futures::future::Shared;
use tracing::Instrument;

use crate::dead_letter::{Death, told};
use crate::delivery::{self, Delivery};
use crate::error::ConsumerError;
use crate::handler::Handler;
use crate::metrics::Metrics;
use crate::retry::{Backoff, Budget, Next, Retry};
use burial::DeadLetters;

/// How a consumer reads and tries events.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name of the queue, for dead letters and messages.
    pub queue: String,
    /// Where id, time, type and key of an event are; best the archiver's rules.
    pub attributes: AttributeRules,
    /// Where the platform's sequence number within a key is, if it has one; otherwise events of a key
    /// are in the order of their times.
    pub position: Vec<Place>,
    /// How often an event is tried.
    pub retry: Retry,
}

/// A consumer of one queue, put together by the service's `main`.
pub struct Consumer {
    /// How it reads and tries events.
    pub settings: Settings,
    /// The queue; its prefetch bounds how many deliveries wait here.
    pub source: Box<dyn Subscribe>,
    /// The queue of dead letters, or an exchange that leads to it.
    pub dead_letters: Box<dyn Connect>,
    /// What is told of it.
    pub metrics: Metrics,
    /// For events that say no time.
    pub clock: Clock,
}

impl Consumer {
    /// Consumes until `shutdown` is ready: then no further event is taken, the one in flight is
    /// finished and acked, and what else was delivered goes back to the queue. (An event that waits
    /// for its next attempt goes back, too.) A connection that is lost is opened anew.
    ///
    /// Cancelled instead, it loses nothing either: what was not acked is delivered again.
    ///
    /// # Errors
    /// The bus refuses for good, or a dead letter could not be delivered; the event in question was
    /// not acked.
    pub async fn run(
        &self,
        handler: &mut dyn Handler,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ConsumerError> {
        let letters = DeadLetters::new(&*self.dead_letters, &self.settings.queue);
        let mut run = Run { consumer: self, handler, letters, shutdown: shutdown.shared() };
        run.until_shut_down().await
    }
}

struct Run<'a, F: Future<Output = ()>> {
    consumer: &'a Consumer,
    handler: &'a mut dyn Handler,
    letters: DeadLetters<'a>,
    shutdown: Shared<F>,
}

/// How a connection ended, if not with an error.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    ShutDown,
    /// The source does better when it is opened anew.
    ToBeReopened,
}

/// What becomes of a delivery.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    Ack,
    /// Shutdown came first; it goes back to the queue.
    Leave,
}

#[derive(Debug, PartialEq, Eq)]
enum Waited {
    Over,
    ShutDown,
}

impl<F: Future<Output = ()> + Send> Run<'_, F> {
    async fn until_shut_down(&mut self) -> Result<(), ConsumerError> {
        let mut backoff = Backoff::new(&self.consumer.settings.retry);
        loop {
            match self.serve_a_connection(&mut backoff).await {
                Ok(Ended::ShutDown) => return Ok(()),
                Ok(Ended::ToBeReopened) => {}
                Err(ConsumerError::Refused { source, .. }) if source.is_transient() => {
                    self.consumer.metrics.reconnections.inc();
                    let wait = backoff.wait();
                    tracing::warn!(error = %source, ?wait, "the connection is lost; opening another");
                    if self.pause(wait).await == Waited::ShutDown {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn serve_a_connection(&mut self, backoff: &mut Backoff) -> Result<Ended, ConsumerError> {
        let consumer = self.consumer;
        let opening = async {
            // The queue of dead letters first: without one no event may be taken.
            self.letters.open().await?;
            consumer.source.open().await
        };
        let opened = tokio::select! {
            biased;
            () = self.shutdown.clone() => return Ok(Ended::ShutDown),
            opened = opening => opened,
        };
        let mut source = opened.map_err(|error| self.refused(error))?;
        tracing::info!(queue = consumer.settings.queue, "consuming");
        let ended = self.serve(&mut *source, backoff).await;
        if ended.is_ok()
            && let Err(error) = source.close().await
        {
            tracing::debug!(%error, "not closed in order");
        }
        ended
    }

    async fn serve(
        &mut self,
        source: &mut dyn Source,
        backoff: &mut Backoff,
    ) -> Result<Ended, ConsumerError> {
        loop {
            let next = tokio::select! {
                biased;
                () = self.shutdown.clone() => return Ok(Ended::ShutDown),
                next = source.next() => next,
            };
            let Some(delivery) = next.map_err(|error| self.refused(error))? else {
                return Ok(Ended::ToBeReopened);
            };
            let tag = delivery.tag;
            self.consumer.metrics.in_flight.set(1);
            let settled = self.settle(delivery).await;
            self.consumer.metrics.in_flight.set(0);
            match settled? {
                Settled::Ack => source.ack(tag).await.map_err(|error| self.refused(error))?,
                Settled::Leave => return Ok(Ended::ShutDown),
            }
            backoff.reset();
        }
    }

    async fn settle(&mut self, delivery: dacapo_bus::Delivery) -> Result<Settled, ConsumerError> {
        let Settings { attributes, position, .. } = &self.consumer.settings;
        match delivery::read(delivery, attributes, position, (self.consumer.clock)()) {
            Ok(delivery) => {
                let span = tracing::info_span!("event", id = delivery.id, kind = delivery.kind);
                self.handle(delivery).instrument(span).await
            }
            Err(unfit) => {
                let death = Death { id: None, reason: unfit.reason.to_owned(), attempts: 0 };
                let settled = self.bury(&death, &unfit.message).await?;
                if settled == Settled::Ack {
                    self.consumer.metrics.count_dead(None);
                }
                Ok(settled)
            }
        }
    }

    async fn handle(&mut self, mut delivery: Delivery) -> Result<Settled, ConsumerError> {
        let Consumer { settings, metrics, .. } = self.consumer;
        let mut budget = Budget::new(&settings.retry);
        loop {
            let failure = match self.handler.handle(&delivery).await {
                Ok(handled) => {
                    metrics.count_handled(handled, &delivery);
                    return Ok(Settled::Ack);
                }
                Err(failure) => failure,
            };
            let cause = told(failure.cause());
            match budget.after(&failure) {
                Next::Again(wait) => {
                    tracing::warn!(cause, attempt = delivery.attempt, ?wait, "trying again");
                    if self.pause(wait).await == Waited::ShutDown {
                        return Ok(Settled::Leave);
                    }
                    delivery.attempt = delivery.attempt.saturating_add(1);
                    metrics.retries.inc();
                }
                Next::GiveUp => {
                    let (id, attempts) = (Some(delivery.id.clone()), delivery.attempt);
                    let death = Death { id, reason: cause, attempts };
                    let settled = self.bury(&death, &delivery.message).await?;
                    if settled == Settled::Ack {
                        metrics.count_dead(Some(&delivery));
                    }
                    return Ok(settled);
                }
            }
        }
    }

    /// Publishes a dead letter; it is acked only once the bus has it. What stands in the way for a
    /// while is waited for: without a place for dead letters no event may be given up.
    async fn bury(
        &mut self,
        death: &Death,
        message: &dacapo_event::Message,
    ) -> Result<Settled, ConsumerError> {
        tracing::error!(reason = death.reason, attempts = death.attempts, "becomes a dead letter");
        let mut backoff = Backoff::new(&self.consumer.settings.retry);
        loop {
            let buried = tokio::select! {
                biased;
                () = self.shutdown.clone() => return Ok(Settled::Leave),
                buried = self.letters.bury(death, message) => buried?,
            };
            let Some(hindrance) = buried else { return Ok(Settled::Ack) };
            let wait = backoff.wait();
            tracing::warn!(hindrance, ?wait, "the dead letter is not taken; trying again");
            if self.pause(wait).await == Waited::ShutDown {
                return Ok(Settled::Leave);
            }
        }
    }

    /// Holds nothing of `self`, so that the handler and the sink need not be shared between threads.
    fn pause(&self, wait: Duration) -> impl Future<Output = Waited> + Send + use<F> {
        let shutdown = self.shutdown.clone();
        async move {
            tokio::select! {
                biased;
                () = shutdown => Waited::ShutDown,
                () = tokio::time::sleep(wait) => Waited::Over,
            }
        }
    }

    fn refused(&self, source: BusError) -> ConsumerError {
        ConsumerError::Refused { queue: self.consumer.settings.queue.clone(), source }
    }
}
