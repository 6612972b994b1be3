//! A confirming publisher: a connection on a thread of its own, and the sink's end of it.
//!
//! The sink encodes, the thread writes and reads at the same time: while the broker takes no
//! bytes, what it says is heard. Nothing of the thread's is shared; the ends talk over channels,
//! each of which is bounded. What is sent and not answered for is bounded by the caller, as the
//! trait says; of it the thread copies one write at a time.
//!
//! Invariant: what was not written when the publisher is dropped is never written. What the
//! operating system took by then may still arrive: whoever sends it again counts it as a repeat.

mod answers;
mod core;
mod publish;

use std::time::Duration;

use bytes::BufMut;
use dacapo_bus::{BusError, Outcome};
use dacapo_event::ShortStr;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use self::core::{Asker, Core, Standing};
use super::link::{Link, PUBLISHING, methods};
use super::thread::{self, report, until};
use crate::Broker;
use crate::connect::{ANSWER_DEADLINE, CLOSE_DEADLINE};
use crate::error::lost;
use crate::wire::frame::put_short;
pub(crate) use publish::{Publish, Unroutable};

/// The channel that publishes.
const PUBLISHES: u16 = 1;
/// The channel that asks for depths, so that its failures are its own.
const QUESTIONS: u16 = 2;

/// Orders that may wait: the thread takes each at once.
const ORDERS: usize = 4;

/// How long an outcome that is known may wait for others: too short to matter to a window or a
/// person.
const OUTCOME_HELD: Duration = Duration::from_millis(5);

/// What the sink asks of the thread.
enum Order {
    Publish(Vec<Publish>),
    /// How many messages are ready in a queue.
    Depth(ShortStr, Asker),
    /// End in order.
    Close,
}

/// How a connection ended.
struct Ended {
    /// Outcomes that nobody took before.
    settled: Vec<Outcome>,
    error: BusError,
}

/// The sink's end.
pub(crate) struct Publisher {
    orders: mpsc::Sender<Order>,
    outcomes: mpsc::Receiver<Vec<Outcome>>,
    standing: watch::Receiver<Standing>,
    /// Absent once it was heard.
    ended: Option<oneshot::Receiver<Ended>>,
    /// Outcomes that were known at the end, until they are taken.
    late: Vec<Outcome>,
    /// Why it ended, until that is told.
    error: Option<BusError>,
    pub(crate) peer: String,
    /// The agreed length of the longest frame.
    pub(crate) frame_max: u32,
}

impl Publisher {
    /// Connects, and asks for confirms.
    pub(crate) async fn open(broker: &Broker) -> Result<Self, BusError> {
        let peer = broker.peer();
        let (orders, order_queue) = mpsc::channel(ORDERS);
        // What is settled meanwhile is handed over together.
        let (settled, outcomes) = mpsc::channel(1);
        let (stands, standing) = watch::channel(Standing::Open);
        let (end, ended) = oneshot::channel();
        let broker = broker.clone();
        let wait_opened = thread::spawn("dacapo-publisher", peer.clone(), async move |opened| {
            let pump = match open_link(&broker).await {
                Ok(link) => {
                    report(opened, Ok(link.frame_max));
                    Pump { core: Core::new(link.peer.clone(), link.frame_max), link }
                }
                Err(error) => return report(opened, Err(error)),
            };
            pump.run(order_queue, settled, stands, end).await;
        })?;
        // Each wait in there has its deadline. Given up, the orders are dropped, and the thread ends.
        let frame_max = wait_opened.await.map_err(|_| lost(&peer, "its thread ended"))??;
        Ok(Publisher {
            orders,
            outcomes,
            standing,
            ended: Some(ended),
            late: Vec::new(),
            error: None,
            peer,
            frame_max,
        })
    }

    /// Hands messages over to be sent after all before them; waits while enough are on their way,
    /// but not while the broker blocks the connection.
    pub(crate) async fn publish(&mut self, messages: Vec<Publish>) -> Result<(), BusError> {
        let room = self.standing.wait_for(|standing| *standing != Standing::Full).await.is_ok();
        if !room || self.orders.send(Order::Publish(messages)).await.is_err() {
            return Err(self.reason().await);
        }
        Ok(())
    }

    /// Waits for the next outcomes; those that were known before the connection ended come before
    /// the error, whoever heard of the end first. Cancel-safe.
    pub(crate) async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError> {
        if let Some(outcomes) = self.outcomes.recv().await {
            return Ok(outcomes);
        }
        self.hear_end().await;
        match std::mem::take(&mut self.late) {
            late if late.is_empty() => Err(self.reason().await),
            late => Ok(late),
        }
    }

    /// Returns how many messages are ready in a queue, or nothing if the broker blocks the
    /// connection first. Cancel-safe.
    pub(crate) async fn depth(&mut self, queue: ShortStr) -> Result<Option<u64>, BusError> {
        let (asker, answer) = oneshot::channel();
        if self.orders.send(Order::Depth(queue, asker)).await.is_err() {
            return Err(self.reason().await);
        }
        let answer = tokio::select! {
            biased;
            Ok(_) = self.standing.wait_for(|standing| *standing == Standing::Blocked) => None,
            answer = answer => Some(answer),
        };
        match answer {
            None => Ok(None),
            Some(Ok(depth)) => depth.map(Some),
            Some(Err(_)) => Err(self.reason().await),
        }
    }

    /// Returns whether the connection has ended; [`Publisher::reason`] says why.
    pub(crate) fn has_ended(&self) -> bool {
        self.standing.has_changed().is_err()
    }

    pub(crate) fn is_blocked(&self) -> bool {
        *self.standing.borrow() == Standing::Blocked
    }

    /// Closes in order; a broker that does not answer in time finds the connection dropped.
    pub(crate) async fn close(&mut self) {
        let closing = async {
            if self.orders.send(Order::Close).await.is_ok() {
                self.hear_end().await;
            }
        };
        if tokio::time::timeout(CLOSE_DEADLINE, closing).await.is_err() {
            tracing::debug!("close was not answered");
        }
    }

    /// Waits for the end. Cancel-safe.
    async fn hear_end(&mut self) {
        let Some(ended) = &mut self.ended else { return };
        // It is dropped if the thread panicked.
        if let Ok(Ended { settled, error }) = ended.await {
            self.late = settled;
            self.error = Some(error);
        }
        self.ended = None;
    }

    /// Waits for the end, and returns why it came.
    pub(crate) async fn reason(&mut self) -> BusError {
        self.hear_end().await;
        self.error.take().unwrap_or_else(|| lost(&self.peer, "its connection has ended"))
    }
}

/// The thread's end.
struct Pump {
    link: Link,
    core: Core,
}

enum Event {
    Order(Option<Order>),
    Turned(Result<(), BusError>),
    Beat(Instant),
}

/// Why a connection that works is given up.
enum Done {
    /// It is closed in order.
    Closed,
    /// The sink was dropped.
    Dropped,
}

async fn open_link(broker: &Broker) -> Result<Link, BusError> {
    let mut link = Link::open(broker, PUBLISHING).await?;
    link.outbox.method(PUBLISHES, methods::CHANNEL_OPEN, |to| put_short(to, b""));
    link.outbox.method(PUBLISHES, methods::CONFIRM_SELECT, |to| to.put_u8(0));
    let asking = async {
        link.flush().await?;
        link.expect(methods::CHANNEL_OPEN_OK).await?;
        link.expect(methods::CONFIRM_SELECT_OK).await
    };
    match tokio::time::timeout(ANSWER_DEADLINE, asking).await {
        Ok(answered) => answered.map(|_| link),
        Err(_) => Err(lost(&link.peer, format!("no answer within {ANSWER_DEADLINE:?}"))),
    }
}

impl Pump {
    /// Serves the connection until it ends, and tells how.
    async fn run(
        mut self,
        orders: mpsc::Receiver<Order>,
        settled: mpsc::Sender<Vec<Outcome>>,
        stands: watch::Sender<Standing>,
        end: oneshot::Sender<Ended>,
    ) {
        let ended = self.serve(orders, &settled, &stands).await;
        if let Ok(Done::Closed) = ended
            && let Err(error) = self.link.close().await
        {
            tracing::debug!(%error, "not closed in order");
        }
        // What is not written yet must never be; the broker notices an end without a close.
        let whole = self.link.is_all_written();
        let orderly = match ended {
            Ok(Done::Dropped) => whole,
            // The broker closed the channel, perhaps, and the connection is left.
            Err(ref error) => whole && !error.is_transient(),
            Ok(Done::Closed) => false,
        };
        let error = match ended {
            Ok(_) => lost(&self.link.peer, "it was closed"),
            Err(error) => error,
        };
        report(end, Ended { settled: self.core.take_settled(), error });
        drop((settled, stands));
        if orderly && let Err(error) = self.link.close().await {
            tracing::debug!(%error, "not closed in order");
        }
    }

    async fn serve(
        &mut self,
        mut orders: mpsc::Receiver<Order>,
        settled: &mpsc::Sender<Vec<Outcome>>,
        stands: &watch::Sender<Standing>,
    ) -> Result<Done, BusError> {
        let mut beats = tokio::time::interval(self.link.heartbeat / 2);
        // When the oldest outcome that is known is to be handed over.
        let mut due: Option<Instant> = None;
        loop {
            self.core.fill(&mut self.link.outbox);
            let standing = self.core.standing();
            stands.send_if_modified(|old| std::mem::replace(old, standing) != standing);
            let hand_over =
                due.is_some_and(|due| self.core.has_settled_enough() || due <= Instant::now());
            let event = tokio::select! {
                biased;
                order = orders.recv() => Event::Order(order),
                Ok(room) = settled.reserve(), if hand_over => {
                    room.send(self.core.take_settled());
                    due = None;
                    continue;
                }
                () = until(due), if !hand_over => continue,
                turned = self.link.turn() => Event::Turned(turned),
                at = beats.tick() => Event::Beat(at),
            };
            match event {
                Event::Order(Some(Order::Publish(publishes))) => self.core.publish(publishes),
                Event::Order(Some(Order::Depth(queue, asker))) => {
                    self.core.ask(&queue, asker, &mut self.link.outbox);
                }
                Event::Order(Some(Order::Close)) => return Ok(Done::Closed),
                Event::Order(None) => return Ok(Done::Dropped),
                Event::Turned(turned) => {
                    turned?;
                    while let Some(frame) = self.link.arrived()? {
                        self.core.take(frame, &mut self.link.outbox)?;
                    }
                    if self.core.has_settled() {
                        due.get_or_insert_with(|| Instant::now() + OUTCOME_HELD);
                    }
                }
                Event::Beat(at) => self.beat(at)?,
            }
        }
    }

    fn beat(&mut self, now: Instant) -> Result<(), BusError> {
        self.link.check_heard(now)?;
        // What waits to be written tells the broker as much, once it takes it.
        if self.link.outbox.bytes().is_empty() {
            self.link.outbox.heartbeat();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
