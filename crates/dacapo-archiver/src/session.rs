//! One session on one source: from its opening to its end, by order or by accident.
//!
//! `select!` only turns what happens into an [`Input`]; [`Core`] decides; here it is carried out.

use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use dacapo_archive::{ArchiveError, StreamWriter, chain};
use dacapo_bus::{BusError, Delivery, DeliveryTag, Source};
use dacapo_event::attributes::AttributeRules;
use dacapo_event::barrier::BarrierId;
use dacapo_event::{Sequence, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, MissedTickBehavior};

use crate::core::{Core, Intake, Step};
use crate::encode::{Encoded, Finished};
use crate::error::ArchiverError;
use crate::metrics::Metrics;
use crate::put::Place;
use crate::roll::RollPolicy;
use crate::run::Totals;

/// How often the depth of the queue is asked: several times between two scrapes of Prometheus.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// A bus that does not answer a small request for so long is taken for lost: twice the heartbeat
/// that RabbitMQ's clients usually agree on would be longer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// After being asked to stop, the last segment must be durable within this: Kubernetes kills 30 s
/// after it asked.
const DRAIN_MAX: Duration = Duration::from_secs(25);

/// A source that does not close within this is dropped, which closes it too.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// Parked deliveries that are logged for each segment; all are counted. A flood of expired
/// messages must not drown the log.
const PARKED_LOGGED_MAX: u64 = 10;

/// What sessions have in common.
pub(crate) struct Context<'a> {
    pub(crate) place: Place,
    pub(crate) rules: Arc<AttributeRules>,
    pub(crate) roll: RollPolicy,
    pub(crate) metrics: &'a Metrics,
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was asked to, and all is durable and acked.
    Stopped,
    /// The source is to be opened anew; all that it delivered is durable and acked.
    Renewed,
    /// The bus is gone.
    Lost(BusError),
    /// Another archiver has extended the stream.
    Fenced(ArchiveError),
    /// The store was down for too long; the queue has its deliveries back.
    GaveBack,
}

#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and a box would be an allocation for each delivery"
)]
enum Input {
    Stop,
    Delivered(Result<Option<Delivery>, BusError>),
    Encoded(Result<Encoded, ArchiveError>),
    Opened(Result<StreamWriter, ArchiveError>),
    Appended(Result<(StreamWriter, Finished), ArchiveError>),
    Answered(BarrierId, Sequence, Result<(), ArchiveError>),
    /// How deep the queue is, if the bus says so in time and has not ended; it was asked after so many
    /// deliveries.
    Deep(u64, Result<Option<u64>, Elapsed>),
    Peeked(Result<Option<Timestamp>, ArchiveError>),
    Due,
    Poll,
}

type Busy<'a> = Pin<Box<dyn Future<Output = Input> + Send + 'a>>;

struct Session<'a> {
    context: &'a Context<'a>,
    source: Box<dyn Source>,
    core: Core,
    totals: &'a mut Totals,
    writer: Option<StreamWriter>,
    /// Opening the stream, or appending to it.
    storing: Option<Busy<'a>>,
    encoding: Option<JoinHandle<Result<Encoded, ArchiveError>>>,
    /// Asking how deep the queue is.
    asking: Option<Busy<'a>>,
    /// Reading the head, while nothing else is asked of the store.
    peeking: Option<Busy<'a>>,
    stop_by: Option<Instant>,
    deliveries: u64,
    parked_logged: u64,
}

/// Runs a session until it ends; the source is closed when this returns.
///
/// # Errors
/// What a new session would not mend.
pub(crate) async fn run(
    context: &Context<'_>,
    source: Box<dyn Source>,
    shutdown: Pin<&mut (impl Future<Output = ()> + Send)>,
    totals: &mut Totals,
) -> Result<Ended, ArchiverError> {
    let roll = context.roll.within(source.prefetch());
    let mut session = Session {
        context,
        source,
        core: Core::new(context.place.stream.clone(), Arc::clone(&context.rules), roll),
        totals,
        writer: None,
        storing: None,
        encoding: None,
        asking: None,
        peeking: None,
        stop_by: None,
        deliveries: 0,
        parked_logged: 0,
    };
    let ended = match session.until_end(shutdown).await {
        Ok(ended) => session.ended(ended),
        Err(error) => Err(error),
    };
    if !matches!(ended, Ok(Ended::Lost(_))) {
        // A source that cannot be closed in order is closed by being dropped.
        match tokio::time::timeout(CLOSE_MAX, session.source.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = &error as &dyn std::error::Error, "closing"),
            Err(_) => tracing::debug!("the source did not close in time"),
        }
    }
    ended
}

impl<'a> Session<'a> {
    async fn until_end(
        &mut self,
        mut shutdown: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<Ended, ArchiverError> {
        let mut poll = tokio::time::interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alarm = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            let now = Instant::now();
            if self.stop_by.is_some_and(|by| now >= by) {
                return Err(self.not_drained());
            }
            while let Some(step) = self.core.step(now) {
                if let Some(ended) = self.carry_out(step).await? {
                    return Ok(ended);
                }
            }
            self.context.metrics.set_unacked(self.core.unacked());
            let deadline = self.core.deadline(now).into_iter().chain(self.stop_by).min();
            if let Some(deadline) = deadline
                && alarm.deadline() != deadline
            {
                alarm.as_mut().reset(deadline);
            }
            let wants = self.core.wants_delivery(now);
            let input = tokio::select! {
                biased;
                () = &mut shutdown, if self.stop_by.is_none() => Input::Stop,
                input = busy(&mut self.storing) => input,
                encoded = encoding(&mut self.encoding) => Input::Encoded(encoded),
                input = busy(&mut self.asking) => input,
                input = busy(&mut self.peeking) => input,
                _ = poll.tick() => Input::Poll,
                () = &mut alarm, if deadline.is_some() => Input::Due,
                delivery = self.source.next(), if wants => Input::Delivered(delivery),
            };
            if let Some(ended) = self.handle(input).await? {
                return Ok(ended);
            }
        }
    }

    async fn handle(&mut self, input: Input) -> Result<Option<Ended>, ArchiverError> {
        match input {
            Input::Stop => {
                self.stop_by = Some(Instant::now() + DRAIN_MAX);
                self.core.stop();
            }
            Input::Delivered(Ok(Some(delivery))) => self.deliver(delivery),
            // One that has delivered nothing would do no better when it is opened anew at once.
            Input::Delivered(Ok(None)) if self.deliveries == 0 => {
                return Ok(Some(Ended::Lost(lost("the broker closed the consumer"))));
            }
            Input::Delivered(Ok(None)) => self.core.stop(),
            Input::Delivered(Err(error)) => return Ok(Some(Ended::Lost(error))),
            Input::Encoded(encoded) => self.core.encoded(encoded?),
            Input::Opened(opened) => {
                let writer = opened?;
                self.core.opened(writer.next(), writer.tip());
                self.writer = Some(writer);
            }
            Input::Appended(Ok((writer, finished))) => {
                self.writer = Some(writer);
                self.core.appended();
                self.note_durable(&finished);
            }
            Input::Appended(Err(error @ ArchiveError::Fenced { .. })) => {
                return Ok(Some(Ended::Fenced(error)));
            }
            Input::Appended(Err(error)) => return Err(error.into()),
            Input::Answered(barrier, sequence, answered) => {
                answered?;
                tracing::info!(%barrier, sequence, "a barrier is reached");
                self.core.answered();
                self.context.metrics.answered_a_barrier();
            }
            Input::Peeked(Ok(moved_at)) => {
                // Of a store that is being written to, the writing says more than this reading.
                if self.storing.is_none() {
                    self.context.metrics.store_answers();
                }
                if let Some(moved_at) = moved_at {
                    self.context.metrics.durable_until(moved_at);
                }
            }
            // A standby's trouble with the store shows when it is needed; one that is known stays.
            Input::Peeked(Err(_)) => {}
            Input::Due => {}
            Input::Poll => self.ask_depth(),
            Input::Deep(_, Ok(Some(depth))) => self.note_depth(depth),
            Input::Deep(_, Ok(None)) => return Ok(Some(Ended::Lost(self.reason().await))),
            // The answer is behind deliveries, of which some came.
            Input::Deep(before, Err(_)) if self.deliveries > before => {}
            Input::Deep(_, Err(Elapsed { .. })) => return Ok(Some(Ended::Lost(no_answer()))),
        }
        Ok(None)
    }

    async fn carry_out(&mut self, step: Step) -> Result<Option<Ended>, ArchiverError> {
        let Context { place, metrics, .. } = self.context;
        match step {
            Step::Open => {
                self.storing =
                    Some(Box::pin(
                        async move { Input::Opened(place.open_patiently(metrics).await) },
                    ));
            }
            Step::Encode(encode) => self.encoding = Some(encode.start()),
            Step::Seal(encode, previous) => {
                self.parked_logged = 0;
                self.encoding = Some(encode.start_sealing(previous));
            }
            Step::Append(finished) => {
                let writer = self.writer.take().expect("the core opens before it seals");
                self.storing = Some(Box::pin(async move {
                    let sealed = &finished.sealed;
                    let appended = place.append_patiently(writer, sealed, metrics).await;
                    Input::Appended(appended.map(|writer| (writer, finished)))
                }));
            }
            Step::Answer(barrier, sequence) => {
                self.storing = Some(Box::pin(async move {
                    let answered = place.answer_patiently(&barrier, sequence, metrics).await;
                    Input::Answered(barrier, sequence, answered)
                }));
            }
            Step::Ack(tag) => return Ok(self.ack(tag).await.err().map(Ended::Lost)),
            Step::GiveBack => return Ok(Some(Ended::GaveBack)),
            Step::Stop if self.stop_by.is_none() => return Ok(Some(Ended::Renewed)),
            Step::Stop => return Ok(Some(Ended::Stopped)),
        }
        Ok(None)
    }

    fn deliver(&mut self, delivery: Delivery) {
        let metrics = self.context.metrics;
        self.deliveries += 1;
        if self.deliveries == 1 {
            metrics.took_a_delivery();
        }
        if let Some(parked) = &delivery.parked {
            let reason = metrics.parked(parked);
            self.totals.parked += 1;
            self.parked_logged += 1;
            if self.parked_logged <= PARKED_LOGGED_MAX {
                tracing::warn!(
                    reason,
                    exchange = %delivery.message.exchange,
                    routing_key = %delivery.message.routing_key,
                    "archiving a message that the broker had set aside"
                );
            }
        }
        let archived_at = (self.context.place.clock)();
        match self.core.delivered(delivery, archived_at, Instant::now()) {
            Intake::Event | Intake::Barrier => {}
            Intake::Replayed => {
                metrics.skipped();
                self.totals.skipped += 1;
            }
            Intake::DisplacedBarrier => {
                metrics.dropped_a_barrier();
                if self.parked_logged <= PARKED_LOGGED_MAX {
                    tracing::warn!("a barrier lost its place in the queue and is not answered");
                }
            }
        }
    }

    fn note_durable(&mut self, finished: &Finished) {
        let summary = &finished.sealed.summary;
        let metrics = self.context.metrics;
        metrics.segment_is_durable(summary.events(), summary.body_bytes, summary.size);
        metrics.durable_until(finished.newest);
        self.totals.segments += 1;
        self.totals.events += summary.events();
        self.totals.bytes += summary.size;
        tracing::info!(
            segment = %summary.key,
            events = summary.events(),
            bytes = summary.size,
            "a segment is durable"
        );
    }

    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
        answered(self.source.ack(tag)).await
    }

    /// Asks how deep the queue is, unless it is asked already. Deliveries are taken meanwhile: behind
    /// them the answer may come, and none is read while too many wait.
    fn ask_depth(&mut self) {
        if self.asking.is_none() {
            let answer = tokio::time::timeout(ANSWER_MAX, self.source.ask_depth());
            let deliveries = self.deliveries;
            self.asking = Some(Box::pin(async move { Input::Deep(deliveries, answer.await) }));
        }
    }

    /// Returns why the source has ended.
    async fn reason(&mut self) -> BusError {
        match answered(self.source.depth()).await {
            Err(error) => error,
            Ok(_) => lost("the bus did not say how deep the queue is"),
        }
    }

    /// Notes how deep the queue is. A hot standby also looks how far the active archiver has come,
    /// so that its lag is the platform's. A store that failed an earlier session is asked until it
    /// answers, for this one may never have anything to put.
    fn note_depth(&mut self, depth: u64) {
        let Context { place, metrics, .. } = self.context;
        metrics.set_queue_depth(depth);
        let stands_by = self.deliveries == 0 && depth > 0;
        let is_in_doubt = self.storing.is_none() && metrics.store_trouble().is_some();
        if (stands_by || is_in_doubt) && self.peeking.is_none() {
            self.peeking = Some(Box::pin(async move {
                let head = chain::head(&*place.store, &place.stream).await;
                Input::Peeked(head.map(|head| head.map(|head| head.moved_at)))
            }));
        }
    }

    /// An accident after being asked to stop is the end all the same: there is no time for another
    /// session.
    fn ended(&self, ended: Ended) -> Result<Ended, ArchiverError> {
        let unacked = self.core.unacked();
        let reason = match &ended {
            Ended::Stopped | Ended::Renewed => return Ok(ended),
            _ if self.stop_by.is_none() => return Ok(ended),
            _ if unacked == 0 => return Ok(Ended::Stopped),
            Ended::Lost(error) => crate::metrics::chain(error),
            Ended::Fenced(error) => crate::metrics::chain(error),
            Ended::GaveBack => return Err(self.not_drained()),
        };
        Err(ArchiverError::NotDrained { unacked, reason })
    }

    fn not_drained(&self) -> ArchiverError {
        let trouble = self.context.metrics.store_trouble();
        let waited_for = || format!("a segment was not durable within {DRAIN_MAX:?}");
        ArchiverError::NotDrained {
            unacked: self.core.unacked(),
            reason: trouble.unwrap_or_else(waited_for),
        }
    }
}

/// Waits for the work in the slot and empties it; for ever if there is none.
async fn busy(slot: &mut Option<Busy<'_>>) -> Input {
    let Some(work) = slot else { return pending().await };
    let input = work.await;
    *slot = None;
    input
}

async fn encoding(
    slot: &mut Option<JoinHandle<Result<Encoded, ArchiveError>>>,
) -> Result<Encoded, ArchiveError> {
    let Some(work) = slot else { return pending().await };
    let encoded = work.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    *slot = None;
    encoded
}

async fn answered<T>(asked: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
    match tokio::time::timeout(ANSWER_MAX, asked).await {
        Ok(answer) => answer,
        Err(Elapsed { .. }) => Err(no_answer()),
    }
}

fn no_answer() -> BusError {
    lost(&format!("no answer within {ANSWER_MAX:?}"))
}

fn lost(reason: &str) -> BusError {
    BusError::Disconnected { peer: "the broker".to_owned(), reason: reason.to_owned() }
}
