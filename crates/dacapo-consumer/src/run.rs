//! The loop of a consumer: one event at a time is taken, handled, retried or buried, and acked last.
//!
//! Waits and I/O only; what to do after a failure is decided in `retry`, what an event is in
//! `delivery`. The bus's connections answer heartbeats on threads of their own, so a handler may
//! take its time: up to a deadline, and all waits together until the bus would want its deliveries
//! back (`held`).

mod burial;
mod held;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Duration;

use dacapo_bus::{BusError, Connect, Source, Subscribe};
use dacapo_event::Clock;
use dacapo_event::attributes::{AttributeRules, Place};
use futures::FutureExt;
use futures::future::Shared;
use tokio::time::Instant;
use tracing::Instrument;

use crate::dead_letter::{Death, told};
use crate::delivery::{self, Delivery};
use crate::error::ConsumerError;
use crate::handler::{Failure, Handled, Handler};
use crate::metrics::{Metrics, Outcome};
use crate::retry::{Backoff, Budget, Next, Retry};
use burial::DeadLetters;
use held::{HOLD_MAX, Held};

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
    /// How long one attempt may take; after that the handler is dropped where it waits, and its event
    /// is [`Failure::Unavailable`]. A few times what the slowest event takes, and at most ten minutes:
    /// what is held for longer than `consumer_timeout`, RabbitMQ takes back.
    pub handle_deadline: Duration,
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
    /// for its next attempt goes back, too.) A connection that is lost is opened anew, and so is one
    /// whose deliveries were held for 15 minutes, by an outage or a slow handler: RabbitMQ would end
    /// it after 30.
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
    /// It is acked, then counted.
    Ack(Outcome),
    /// It goes back to the queue.
    Leave(Ended),
}

#[derive(Debug, PartialEq, Eq)]
enum Waited {
    /// It is time for another attempt.
    Over,
    /// There is none on this connection.
    Ends(Ended),
}

impl<F: Future<Output = ()> + Send> Run<'_, F> {
    async fn until_shut_down(&mut self) -> Result<(), ConsumerError> {
        let mut backoff = Backoff::new(&self.consumer.settings.retry);
        loop {
            match self.serve_a_connection(&mut backoff).await {
                Ok(Ended::ShutDown) => return Ok(()),
                Ok(Ended::ToBeReopened) => {}
                Err(
                    ConsumerError::Refused { source, .. }
                    | ConsumerError::DeadLettersRefused { source, .. },
                ) if source.is_transient() => {
                    self.consumer.metrics.reconnections.inc();
                    let wait = backoff.wait();
                    tracing::warn!(error = %source, ?wait, "the connection is lost; opening another");
                    if self.is_shut_down_within(wait).await {
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
            consumer.source.open().await.map_err(|source| refused(consumer, source))
        };
        let opened = tokio::select! {
            biased;
            () = self.shutdown.clone() => return Ok(Ended::ShutDown),
            opened = opening => opened,
        };
        let mut source = opened?;
        tracing::info!(queue = consumer.settings.queue, "consuming");
        let ended = self.serve(&mut *source, backoff).await;
        consumer.metrics.in_flight.set(0);
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
        let consumer = self.consumer;
        let mut held = Held::new(source.prefetch(), Instant::now());
        loop {
            let asked = Instant::now();
            let next = tokio::select! {
                biased;
                () = self.shutdown.clone() => return Ok(Ended::ShutDown),
                next = source.next() => next,
            };
            let Some(delivery) = next.map_err(|error| refused(consumer, error))? else {
                return Ok(Ended::ToBeReopened);
            };
            held.delivered(asked, Instant::now());
            let tag = delivery.tag;
            consumer.metrics.in_flight.set(1);
            let outcome = match self.settle(delivery, &held).await? {
                Settled::Ack(outcome) => outcome,
                Settled::Leave(ended) => return Ok(ended),
            };
            source.ack(tag).await.map_err(|error| refused(consumer, error))?;
            held.acked(Instant::now());
            consumer.metrics.count(outcome);
            consumer.metrics.in_flight.set(0);
            backoff.reset();
            if is_due(&held) {
                return Ok(Ended::ToBeReopened);
            }
        }
    }

    async fn settle(
        &mut self,
        delivery: dacapo_bus::Delivery,
        held: &Held,
    ) -> Result<Settled, ConsumerError> {
        let Settings { attributes, position, .. } = &self.consumer.settings;
        match delivery::read(delivery, attributes, position, (self.consumer.clock)()) {
            Ok(delivery) => {
                let span = tracing::info_span!("event", id = delivery.id, kind = delivery.kind);
                self.handle(delivery, held).instrument(span).await
            }
            Err(unfit) => {
                let death = Death { id: None, reason: unfit.reason.to_owned(), attempts: 0 };
                self.bury(&death, &unfit.message, Outcome::dead(None), held).await
            }
        }
    }

    async fn handle(
        &mut self,
        mut delivery: Delivery,
        held: &Held,
    ) -> Result<Settled, ConsumerError> {
        let Consumer { settings, metrics, .. } = self.consumer;
        let mut budget = Budget::new(&settings.retry);
        loop {
            let failure = match self.attempt(&delivery).await {
                Ok(handled) => return Ok(Settled::Ack(Outcome::handled(handled, &delivery))),
                Err(failure) => failure,
            };
            let cause = told(failure.cause());
            match budget.after(&failure) {
                Next::Again(wait) => {
                    tracing::warn!(cause, attempt = delivery.attempt, ?wait, "trying again");
                    if let Waited::Ends(ended) = self.pause(wait, held).await {
                        return Ok(Settled::Leave(ended));
                    }
                    delivery.attempt = delivery.attempt.saturating_add(1);
                    metrics.retries.inc();
                }
                Next::GiveUp => {
                    let (id, attempts) = (Some(delivery.id.clone()), delivery.attempt);
                    let death = Death { id, reason: cause, attempts };
                    let outcome = Outcome::dead(Some(&delivery));
                    return self.bury(&death, &delivery.message, outcome, held).await;
                }
            }
        }
    }

    /// Lets the handler try an event once.
    async fn attempt(&mut self, delivery: &Delivery) -> Result<Handled, Failure> {
        let deadline = self.consumer.settings.handle_deadline;
        let handling = self.handler.handle(delivery);
        tokio::time::timeout(deadline, handling).await.unwrap_or_else(|_| {
            Err(Failure::unavailable(format!("the handler has not answered within {deadline:?}")))
        })
    }

    /// Publishes a dead letter; it is acked only once the bus has it. What stands in the way for a
    /// while is waited for: without a place for dead letters no event may be given up.
    async fn bury(
        &mut self,
        death: &Death,
        message: &dacapo_event::Message,
        outcome: Outcome,
        held: &Held,
    ) -> Result<Settled, ConsumerError> {
        tracing::error!(reason = death.reason, attempts = death.attempts, "becomes a dead letter");
        let mut backoff = Backoff::new(&self.consumer.settings.retry);
        loop {
            let buried = tokio::select! {
                biased;
                () = self.shutdown.clone() => return Ok(Settled::Leave(Ended::ShutDown)),
                buried = self.letters.bury(death, message) => buried?,
            };
            let Some(hindrance) = buried else { return Ok(Settled::Ack(outcome)) };
            let wait = backoff.wait();
            tracing::warn!(hindrance, ?wait, "the dead letter is not taken; trying again");
            if let Waited::Ends(ended) = self.pause(wait, held).await {
                return Ok(Settled::Leave(ended));
            }
        }
    }

    /// Waits for the next attempt, which there is none of once the deliveries were held for too long:
    /// they go back to the queue, and come again at once.
    async fn pause(&mut self, wait: Duration, held: &Held) -> Waited {
        if self.is_shut_down_within(wait).await {
            Waited::Ends(Ended::ShutDown)
        } else if is_due(held) {
            Waited::Ends(Ended::ToBeReopened)
        } else {
            Waited::Over
        }
    }

    /// Holds nothing of `self`, so that the handler and the sink need not be shared between threads.
    fn is_shut_down_within(&self, wait: Duration) -> impl Future<Output = bool> + Send + use<F> {
        let shutdown = self.shutdown.clone();
        async move {
            tokio::select! {
                biased;
                () = shutdown => true,
                () = tokio::time::sleep(wait) => false,
            }
        }
    }
}

/// Returns whether what is held goes back to the queue now, and says so.
fn is_due(held: &Held) -> bool {
    let is_due = held.too_long(Instant::now());
    if is_due {
        tracing::info!(?HOLD_MAX, "deliveries go back to the queue, to come again at once");
    }
    is_due
}

fn refused(consumer: &Consumer, source: BusError) -> ConsumerError {
    ConsumerError::Refused { queue: consumer.settings.queue.clone(), source }
}
