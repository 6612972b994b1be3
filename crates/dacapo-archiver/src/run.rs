//! The archiver from start to stop: checks the store, opens sessions for as long as it is wanted.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dacapo_archive::store::Store;
use dacapo_archive::{ArchiveError, chain, probe_write_once};
use dacapo_bus::Subscribe;
use dacapo_event::attributes::AttributeRules;
use dacapo_event::{Clock, StreamName};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::ArchiverError;
use crate::metrics::Metrics;
use crate::put::{Place, waits_out};
use crate::roll::RollPolicy;
use crate::session::{self, Context, Ended};

/// What the archiver is told.
#[derive(Debug, Clone)]
pub struct ArchiverConfig {
    /// The stream it extends; the same after every restart.
    pub stream: StreamName,
    /// Where events have their id, time, type and key.
    pub rules: AttributeRules,
    /// When a segment is finished.
    pub roll: RollPolicy,
    /// The wall clock.
    pub clock: Clock,
    /// Whether the store is held to keep writers apart.
    pub write_once: WriteOnce,
}

/// Whether the store is held to keep writers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOnce {
    /// A probe object proves it at the start.
    Proven,
    /// The operator promises that there is only ever one writer.
    SingleWriter,
}

/// What an archiver has done from start to stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events made durable.
    pub events: u64,
    /// Segments made durable.
    pub segments: u64,
    /// Bytes of these segments.
    pub bytes: u64,
    /// Deliveries that were replays of archived events.
    pub skipped: u64,
    /// Deliveries that came by way of the parking queue.
    pub parked: u64,
}

/// Archives every delivery of `bus` until `shutdown`, then makes durable and acks what it has.
///
/// It waits out a store or bus that is down for as long as it takes, holding no delivery for longer
/// than 15 minutes; the queue keeps what is not acked. When another archiver has extended the
/// stream, it drops what it holds and begins again at the new end.
///
/// Safe to drop at any point: what was not acked is delivered again, and the next archiver of the
/// stream finishes or ignores a half-written segment.
///
/// # Errors
/// The store cannot be used at the start; the bus refuses the first connection for good; the end of
/// the stream is damaged; or the last segment could not be made durable in the time to stop
/// (`NotDrained`).
pub async fn run(
    config: ArchiverConfig,
    store: Arc<dyn Store>,
    bus: &dyn Subscribe,
    metrics: &Metrics,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<Totals, ArchiverError> {
    let mut shutdown = pin!(shutdown);
    let mut totals = Totals::default();
    let context = Context {
        place: Place { store, stream: config.stream, clock: config.clock },
        rules: Arc::new(config.rules),
        roll: config.roll,
        metrics,
    };
    tokio::select! {
        checked = check_store(&context, config.write_once) => checked?,
        () = &mut shutdown => return Ok(totals),
    }
    let (mut backoff, mut consumed) = (Backoff::new(), false);
    loop {
        let opened = tokio::select! {
            opened = bus.open() => opened,
            () = &mut shutdown => return Ok(totals),
        };
        let began = Instant::now();
        let ended = match opened {
            Ok(source) => {
                consumed = true;
                metrics.connected();
                session::run(&context, source, shutdown.as_mut(), &mut totals).await?
            }
            // What worked before is expected to work again: a password may be in rotation.
            Err(error) if error.is_transient() || consumed => Ended::Lost(error),
            Err(error) => return Err(error.into()),
        };
        match ended {
            Ended::Stopped => {
                metrics.set_unacked(0);
                return Ok(totals);
            }
            // Routine: nothing is lost, nothing is wrong, and nothing has to be waited for.
            Ended::Renewed => continue,
            Ended::Lost(error) => metrics.disconnected(&error),
            Ended::Fenced(error) => {
                metrics.fenced();
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "another archiver was faster; what was not acked is delivered again"
                );
            }
            Ended::GaveBack => {
                metrics.paused("waiting for the store before consuming again");
                tracing::warn!("the store is down for too long; the queue has its messages back");
                tokio::select! {
                    answered = store_answers(&context) => answered?,
                    () = &mut shutdown => return Ok(totals),
                }
            }
        }
        if began.elapsed() >= Backoff::LONGEST {
            backoff = Backoff::new();
        }
        tokio::select! {
            () = between_sessions(&context, backoff.wait()) => {}
            () = &mut shutdown => return Ok(totals),
        }
    }
}

/// Waits, and meanwhile asks a store that failed whether it answers again: without a session
/// nobody else does, and its trouble would outlive it.
async fn between_sessions(context: &Context<'_>, wait: Duration) {
    let Context { place, metrics, .. } = context;
    let asked = async {
        if metrics.store_trouble().is_some()
            && chain::head(&*place.store, &place.stream).await.is_ok()
        {
            metrics.store_answers();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = asked => {}
    }
}

/// Proves the store write-once and finds how far the stream is durable.
async fn check_store(context: &Context<'_>, write_once: WriteOnce) -> Result<(), ArchiveError> {
    let Place { store, stream, clock } = &context.place;
    if write_once == WriteOnce::Proven {
        probe_write_once(&**store, *clock).await?;
    }
    if let Some(head) = chain::head(&**store, stream).await? {
        context.metrics.durable_at_start(head.moved_at);
    }
    Ok(())
}

/// Waits until the store answers.
async fn store_answers(context: &Context<'_>) -> Result<(), ArchiveError> {
    let mut backoff = Backoff::new();
    loop {
        match chain::head(&*context.place.store, &context.place.stream).await {
            Ok(_) => {
                context.metrics.store_answers();
                return Ok(());
            }
            Err(error) if waits_out(&error) => context.metrics.store_fails(&error),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

#[cfg(test)]
mod tests;
