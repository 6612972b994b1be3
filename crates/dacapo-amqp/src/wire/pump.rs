//! The consumer's connection, on a thread of its own.
//!
//! A thread, as lapin has one: heartbeats must be answered while the caller waits for a store
//! that is down, and the broker closes a connection that does not read for 15 seconds
//! (`tcp_listen_options.send_timeout`), so deliveries are taken in but for short pauses. How many can
//! wait is bounded by the prefetch, and how much memory they take by [`crate::appetite`]. The thread
//! ends when the [`Consumer`] is dropped or the connection is.
//!
//! A parking queue is consumed on the same channel, so that one numbering of deliveries and one
//! cumulative ack cover both.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use dacapo_bus::{BusError, Delivery, DeliveryTag};
use dacapo_event::ShortStr;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Malformed;
use super::arriving::Arriving;
use super::frame::{BODY, Frame, HEADER, HEARTBEAT, METHOD, put_short, take_short};
use super::link::{CONSUMING, Link, Method, method_of, methods};
use super::thread::{self, report, until};
use crate::Broker;
use crate::appetite::{Appetite, Excess, Waiting};
use crate::connect::{ANSWER_DEADLINE, CONNECT_DEADLINE};
use crate::error::{Doing, lost};

/// The channel that consumes.
const DELIVERIES: u16 = 1;
/// The channel that asks for depths, so that its failures are its own.
const QUESTIONS: u16 = 2;

/// Consumer tags; the second marks what was parked.
const MAIN: &[u8] = b"main";
const PARKED: &[u8] = b"parked";

/// Orders that may wait: the source has one caller, who waits for each.
const ORDERS: usize = 8;

/// How long nothing is read at the most while too much waits: well below the 15 seconds after which
/// the broker gives the connection up, and longer than a segment takes to be put.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// The queue to consume and the one it parks in, if it does.
#[derive(Debug, Clone)]
pub(crate) struct Queues {
    pub(crate) main: ShortStr,
    pub(crate) parked: Option<ShortStr>,
}

impl Queues {
    /// Returns each with the tag of its consumer; the main one last, so that both are answered for
    /// before its deliveries come.
    fn tagged(&self) -> impl Iterator<Item = (&ShortStr, &'static [u8])> {
        let parked = self.parked.iter().map(|parked| (parked, PARKED));
        parked.chain(std::iter::once((&self.main, MAIN)))
    }

    fn count(&self) -> u8 {
        1 + u8::from(self.parked.is_some())
    }
}

/// What the source asks of the connection.
#[derive(Debug)]
pub(crate) enum Order {
    /// Ack up to and including this delivery; answered when it is on its way.
    Ack(DeliveryTag, oneshot::Sender<()>),
    /// How many messages are ready in the queues.
    Depth(oneshot::Sender<u64>),
    /// End in order.
    Close,
}

/// The source's end of a consuming connection.
pub(crate) struct Consumer {
    pub(crate) deliveries: mpsc::Receiver<Delivery>,
    /// The prefetch that it consumes with.
    pub(crate) prefetch: NonZeroU16,
    /// What waits in `deliveries`; whoever takes one says so.
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) orders: mpsc::Sender<Order>,
    /// How the connection ended.
    pub(crate) ended: oneshot::Receiver<Result<(), BusError>>,
    pub(crate) peer: String,
}

/// Connects and consumes the queues, each with the prefetch of `appetite`.
pub(crate) async fn start(
    broker: Broker,
    queues: Queues,
    appetite: Arc<Appetite>,
) -> Result<Consumer, BusError> {
    let peer = broker.peer();
    let prefetch = appetite.prefetch();
    let waiting = Arc::new(appetite.nothing_waiting());
    let intake = Waited { appetite, waiting: Arc::clone(&waiting) };
    let (end, ended) = oneshot::channel();
    let (orders, order_queue) = mpsc::channel(ORDERS);
    // Both consumers' prefetch: the broker has no more than that under way.
    let (sender, deliveries) = mpsc::channel(2 * usize::from(prefetch.get()));

    let wait_opened = thread::spawn("dacapo-consumer", peer.clone(), async move |opened| {
        match Pump::open(&broker, queues, sender, intake).await {
            Ok(mut pump) => {
                pump.opened = Some(opened);
                let outcome = pump.run(order_queue).await;
                match pump.opened {
                    Some(opened) => report(opened, outcome),
                    None => report(end, outcome),
                }
            }
            Err(error) => report(opened, Err(error)),
        }
    })?;
    // Given up, the orders are dropped, and the thread ends.
    tokio::time::timeout(CONNECT_DEADLINE + ANSWER_DEADLINE, wait_opened)
        .await
        .map_err(|_| {
            let reason = format!(
                "consuming was not answered within {ANSWER_DEADLINE:?}; if that goes on, the queue \
                 has no leader (`rabbitmq-queues quorum_status`)"
            );
            lost(&peer, reason)
        })?
        .map_err(|_| lost(&peer, "its thread ended"))??;
    Ok(Consumer { deliveries, waiting, prefetch, orders, ended, peer })
}

struct Pump {
    link: Link,
    queues: Queues,
    /// Absent once a source with another prefetch would do better: what else comes is dropped, and
    /// delivered again to that one.
    deliveries: Option<mpsc::Sender<Delivery>>,
    /// Who waits for the broker to answer each `basic.consume`; none once it has.
    opened: Option<oneshot::Sender<Result<(), BusError>>>,
    /// How many of them it has not answered.
    answers_left: u8,
    arriving: Option<Arriving>,
    questions: VecDeque<Question>,
    delivered: DeliveryTag,
    acked: DeliveryTag,
    /// Whether the last delivery of the main queue had been delivered before. A quorum queue delivers
    /// what was returned first, and puts what is returned again behind it: consuming anew among them
    /// would change their order.
    redelivering: bool,
    waited: Waited,
    /// Too much waits, and so nothing is read until there is room, or at the most until then.
    pause_ends: Option<Instant>,
}

/// What bounds the deliveries that wait.
struct Waited {
    appetite: Arc<Appetite>,
    waiting: Arc<Waiting>,
}

/// A depth that was asked for; each queue answers.
struct Question {
    reply: oneshot::Sender<u64>,
    ready: u64,
    answers_left: u8,
}

/// Whether the pump goes on.
enum Next {
    GoOn,
    End,
}

impl Pump {
    async fn open(
        broker: &Broker,
        queues: Queues,
        deliveries: mpsc::Sender<Delivery>,
        waited: Waited,
    ) -> Result<Pump, BusError> {
        let prefetch = waited.appetite.prefetch();
        let mut link = Link::open(broker, CONSUMING).await?;
        for channel in [DELIVERIES, QUESTIONS] {
            link.outbox.method(channel, methods::CHANNEL_OPEN, |to| put_short(to, b""));
        }
        link.outbox.method(DELIVERIES, methods::BASIC_QOS, |to| {
            to.put_u32(0);
            to.put_u16(prefetch.get());
            to.put_u8(0);
        });
        // In one write: the broker handles both before those of a standby that starts at the
        // same moment, so one consumer is active on both queues.
        for (queue, tag) in queues.tagged() {
            link.outbox.method(DELIVERIES, methods::BASIC_CONSUME, |to| {
                to.put_u16(0);
                put_short(to, queue.as_bytes());
                put_short(to, tag);
                to.put_u8(0);
                to.put_u32(0);
            });
        }
        link.flush().await?;
        Ok(Pump {
            link,
            answers_left: queues.count(),
            queues,
            deliveries: Some(deliveries),
            opened: None,
            arriving: None,
            questions: VecDeque::new(),
            delivered: 0,
            acked: 0,
            redelivering: false,
            waited,
            pause_ends: None,
        })
    }

    /// Serves the connection until it ends: in order, or with an error.
    async fn run(&mut self, mut orders: mpsc::Receiver<Order>) -> Result<(), BusError> {
        let mut beats = tokio::time::interval(self.link.heartbeat / 2);
        loop {
            let event = tokio::select! {
                biased;
                order = orders.recv() => Event::Order(order),
                filled = self.link.fill(), if self.pause_ends.is_none() => Event::Filled(filled),
                () = self.waited.waiting.has_room(), if self.pause_ends.is_some() => Event::Room,
                () = until(self.pause_ends) => Event::PausedTooLong,
                at = beats.tick() => Event::Beat(at),
            };
            match event {
                Event::Order(order) => {
                    if let Next::End = self.carry_out(order).await? {
                        return Ok(());
                    }
                }
                Event::Filled(filled) => {
                    filled?;
                    while let Some(frame) = self.link.arrived()? {
                        self.take(frame)?;
                    }
                }
                Event::Room => self.end_pause(),
                Event::PausedTooLong => self.paused_too_long(),
                Event::Beat(at) => self.beat(at).await?,
            }
        }
    }

    /// Carries out an order; none left means that the source was dropped.
    async fn carry_out(&mut self, order: Option<Order>) -> Result<Next, BusError> {
        match order {
            None => return Ok(Next::End),
            Some(Order::Close) => {
                self.link.close().await?;
                return Ok(Next::End);
            }
            Some(Order::Ack(tag, done)) => {
                // A caller that gave up waiting may order it again; to the broker that is an
                // error.
                if tag > self.acked {
                    self.link.outbox.method(DELIVERIES, methods::BASIC_ACK, |to| {
                        to.put_u64(tag);
                        // Multiple.
                        to.put_u8(1);
                    });
                    self.link.flush().await?;
                    self.acked = tag;
                }
                report(done, ());
                let Waited { appetite, waiting } = &self.waited;
                if self.deliveries.is_some()
                    && !self.redelivering
                    && let Some(prefetch) = appetite.too_little(waiting, self.acked)
                {
                    tracing::info!(prefetch, "deliveries are small; consuming more at once");
                    self.hand_out_no_more();
                }
            }
            Some(Order::Depth(reply)) => {
                for (queue, _) in self.queues.tagged() {
                    self.link.outbox.method(QUESTIONS, methods::QUEUE_DECLARE, |to| {
                        to.put_u16(0);
                        put_short(to, queue.as_bytes());
                        // Passive.
                        to.put_u8(1);
                        to.put_u32(0);
                    });
                }
                self.link.flush().await?;
                let answers_left = self.queues.count();
                self.questions.push_back(Question { reply, ready: 0, answers_left });
            }
        }
        Ok(Next::GoOn)
    }

    async fn beat(&mut self, now: Instant) -> Result<(), BusError> {
        if self.pause_ends.is_none() {
            self.link.check_heard(now)?;
        }
        self.link.outbox.heartbeat();
        self.link.flush().await
    }

    fn take(&mut self, frame: Frame) -> Result<(), BusError> {
        match frame.kind {
            HEARTBEAT => Ok(()),
            METHOD => {
                let method = method_of(frame.payload).map_err(|Malformed| self.link.garbled())?;
                self.take_method(method)
            }
            HEADER => self.take_header(frame.payload),
            BODY => self.take_body(frame.payload),
            _ => Err(self.link.garbled()),
        }
    }

    fn take_method(&mut self, method: Method) -> Result<(), BusError> {
        let garbled = |Malformed| self.link.garbled();
        match method.number {
            methods::BASIC_DELIVER => {
                self.arriving = Some(Arriving::new(method.arguments, PARKED).map_err(garbled)?);
            }
            methods::BASIC_CONSUME_OK => {
                self.answers_left = self.answers_left.saturating_sub(1);
                if self.answers_left == 0
                    && let Some(opened) = self.opened.take()
                {
                    report(opened, Ok(()));
                }
            }
            methods::QUEUE_DECLARE_OK => {
                let ready = ready(method.arguments).map_err(garbled)?;
                self.answer(ready);
            }
            methods::CHANNEL_OPEN_OK | methods::BASIC_QOS_OK => {}
            methods::BASIC_CANCEL => {
                let mut arguments = method.arguments;
                let tag = take_short(&mut arguments).map_err(garbled)?;
                return Err(self.cancelled(&tag));
            }
            _ => return Err(self.link.close_said(method, Doing::Consuming)),
        }
        Ok(())
    }

    fn answer(&mut self, ready: u64) {
        let Some(question) = self.questions.front_mut() else { return };
        question.ready += ready;
        question.answers_left -= 1;
        if question.answers_left == 0
            && let Some(question) = self.questions.pop_front()
        {
            report(question.reply, question.ready);
        }
    }

    /// Returns what it means that the broker ends a consumer of its own accord.
    fn cancelled(&self, tag: &ShortStr) -> BusError {
        let parked = self.queues.parked.as_ref().filter(|_| tag.as_bytes() == PARKED);
        let queue = parked.unwrap_or(&self.queues.main);
        BusError::NotFound {
            thing: format!("queue `{queue}`"),
            peer: self.link.peer.clone(),
            hint: "it was deleted or lost while it was consumed, and with it what was not acked; \
                   start again to declare it anew, and look for a gap"
                .to_owned(),
        }
    }

    fn take_header(&mut self, payload: Bytes) -> Result<(), BusError> {
        let arriving = self.arriving.as_mut().ok_or(Malformed);
        let taken = arriving.and_then(|arriving| arriving.take_header(payload));
        taken.map_err(|Malformed| self.link.garbled())?;
        self.deliver_if_whole()
    }

    fn take_body(&mut self, payload: Bytes) -> Result<(), BusError> {
        let arriving = self.arriving.as_mut().ok_or(Malformed);
        let taken = arriving.and_then(|arriving| arriving.take_body(payload));
        taken.map_err(|Malformed| self.link.garbled())?;
        self.deliver_if_whole()
    }

    fn deliver_if_whole(&mut self) -> Result<(), BusError> {
        let Some(whole) = self.arriving.take_if(|arriving| arriving.is_whole()) else {
            return Ok(());
        };
        let delivery = whole.into_delivery(&self.queues.main);
        self.delivered = delivery.tag;
        if delivery.parked.is_none() {
            self.redelivering = delivery.redelivered;
        }
        let Some(deliveries) = &self.deliveries else { return Ok(()) };
        let Waited { appetite, waiting } = &self.waited;
        waiting.add(&delivery.message);
        match deliveries.try_send(delivery) {
            // Closed: the source was dropped, and the order queue says so next.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(lost(&self.link.peer, "it delivered more than the prefetch allows"));
            }
        }
        match appetite.excess(waiting) {
            None => {}
            // While it is opened nobody takes any, and the broker's answer is waited for.
            Some(Excess::Pause) if self.opened.is_none() => {
                self.pause_ends.get_or_insert_with(|| Instant::now() + PAUSE_MAX);
            }
            Some(Excess::Pause | Excess::StepDown) => self.step_down(),
        }
        Ok(())
    }

    fn end_pause(&mut self) {
        if self.pause_ends.take().is_some() {
            self.link.listen_anew();
        }
    }

    fn paused_too_long(&mut self) {
        let Waited { appetite, waiting } = &self.waited;
        match appetite.excess(waiting) {
            Some(_) => self.step_down(),
            None => self.end_pause(),
        }
    }

    fn step_down(&mut self) {
        let Waited { appetite, waiting } = &self.waited;
        let prefetch = appetite.step_down(waiting, self.delivered - self.acked);
        tracing::warn!(
            prefetch,
            "more deliveries wait than memory allows for; consuming fewer at once"
        );
        self.hand_out_no_more();
    }

    /// Lets the source be opened anew, with the prefetch that was chosen.
    fn hand_out_no_more(&mut self) {
        self.end_pause();
        self.waited.waiting.end();
        self.deliveries = None;
    }
}

enum Event {
    Order(Option<Order>),
    Filled(Result<(), BusError>),
    Room,
    PausedTooLong,
    Beat(Instant),
}

fn ready(mut from: Bytes) -> Result<u64, Malformed> {
    let _queue = take_short(&mut from)?;
    Ok(u64::from(from.try_get_u32()?))
}
