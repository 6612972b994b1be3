//! Passes on what the holding queue has: in order, confirmed, then acked.
//!
//! What becomes of each delivery is plain bookkeeping (`book`); the loop here only waits and carries
//! out. The target's side is `dacapo-republish`, as for a replay.
//!
//! Invariant: a delivery is acked only after the journal counts it, and counted only after the target
//! has it, or it is dropped with everything before it settled.

use std::future::{pending, ready};
use std::time::Duration;

use dacapo_bus::{BusError, Connect, Delivery, Source, Subscribe};
use dacapo_event::attributes::AttributeRules;
use dacapo_event::marking::Priority;
use dacapo_event::{Clock, ShortStr, Timestamp};
use dacapo_republish::{
    Config, Control, How, Progress, Reject, RejectKind, RepublishError, Totals, republish,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

use self::book::Book;
use super::standing::{Past, Standing};
use super::{BackfillId, Journal, Mark, Remembered};
use crate::EngineError;

pub(super) mod book;

/// So few waiting are little: half a second at 2,000/s. They are what a switch delivers late.
pub const LITTLE_HELD: u64 = 1_000;

/// The most messages handed over at once, as a replay does.
const BATCH_MAX: usize = 200;

/// Messages of so many bytes are handed over at once, whatever their number.
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Batches that lie ready for the publisher; what else is delivered waits at the source.
const BATCHES_AHEAD: usize = 1;

/// How often the depth of the holding queue is asked.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// After the last mark the rest is there if nothing came for so long, where nothing expires.
pub const DRAIN_QUIET: Duration = Duration::from_secs(2);

/// And where something may have: it comes through the parking queue, for which the broker takes
/// milliseconds, but tries again after three minutes if the parking queue did not take it (RabbitMQ's
/// `dead_letter_worker_publisher_confirm_timeout`, 180 s).
pub const EXPIRED_QUIET: Duration = Duration::from_secs(200);

/// How long opening a source may take, TLS and a slow name server included.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// The first and the longest delay before the source is opened anew, as for a replay's target.
const REOPEN_DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How often in a row the source may be lost without a delivery: with the delays above five and a
/// half minutes, as for a replay's target.
const LOSSES_MAX: u32 = 40;

/// Until when to pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// History's mark is passed, and little waits.
    LittleHeld,
    /// The last mark is passed, and nothing is left.
    Closed,
}

/// How passing on ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As far as it was to go.
    Done,
    /// It was told to stop.
    Interrupted,
    /// The broker took this mark out of its place, where it says nothing any more: it is to be
    /// published again, and then to be passed over where it is.
    Displaced(Mark),
}

/// What passes on.
pub struct Forwarder<'a> {
    /// The backfill.
    pub id: &'a BackfillId,
    /// The holding queue; its prefetch is the most that a kill repeats.
    pub source: &'a dyn Subscribe,
    /// The target queue.
    pub target: &'a dyn Connect,
    /// Where a message's id and time are.
    pub rules: &'a AttributeRules,
    /// What history has as well.
    pub remembered: &'a Remembered,
    /// Marks that were published again, because the first ones lost their place.
    pub marked_again: &'a [Mark],
    /// After how long without a delivery nothing comes any more, once the last mark is passed.
    pub quiet: Duration,
    /// What becomes of priorities.
    pub priority: Priority,
    /// How to publish.
    pub config: Config,
    /// Tells the time.
    pub clock: Clock,
}

/// What is shown of passing on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Holding {
    /// Messages that wait in the holding queue, when it was last asked.
    pub depth: u64,
    /// Messages passed on or dropped by this run.
    pub settled: u64,
    /// When the last one that was passed on happened, by its own word.
    pub reached: Option<Timestamp>,
}

/// What the publisher has told last.
#[derive(Debug, Clone, Default)]
struct Settled {
    /// The number of the last message up to which all are confirmed.
    serial: u64,
    /// What the publisher may have sent twice by itself, in this run.
    possible_repeats: u64,
    /// And out of order.
    reordered: u64,
}

/// Tells the feeding side what is settled. The durable record is the ack, which that side gives.
struct Teller {
    settled: watch::Sender<Settled>,
}

impl dacapo_republish::Journal<u64> for Teller {
    type Error = EngineError;

    fn settled(&mut self, last: &u64, totals: &Totals) -> Result<(), EngineError> {
        let Totals { possible_repeats, reordered, .. } = *totals;
        self.settled.send_replace(Settled { serial: *last, possible_repeats, reordered });
        Ok(())
    }

    fn rejected(&mut self, _: &Reject<'_, u64>) -> Result<(), EngineError> {
        // It stays in the holding queue, for it is not acked.
        Ok(())
    }
}

impl Forwarder<'_> {
    /// Passes on until it is as far as asked, `control` says stop, or something fails. What is
    /// settled is in `standing` and in the journal when it returns.
    ///
    /// # Errors
    /// The target refuses a message, a bus is lost for good, or the journal cannot be written.
    pub async fn run(
        &self,
        until: Until,
        standing: &mut Standing,
        journal: &mut Journal,
        control: watch::Receiver<Control>,
        progress: &watch::Sender<Progress>,
        holding: &watch::Sender<Holding>,
    ) -> Result<Ended, EngineError> {
        let (batches, input) = mpsc::channel(BATCHES_AHEAD);
        let (settled, told) = watch::channel(Settled::default());
        let publish = async {
            let mut teller = Teller { settled };
            let input = ReceiverStream::new(input);
            let config = &self.config;
            republish(self.target, input, config, &mut teller, control, progress).await
        };
        let mut feed = Feed {
            forwarder: self,
            until,
            book: Book::new(self, standing, journal),
            source: None,
            reopen_at: Some(Instant::now()),
            is_last: false,
            losses: 0,
            heard: Instant::now(),
            holding,
        };
        let (ended, fed) = tokio::join!(publish, feed.run(batches, told));
        let Totals { possible_repeats, reordered, .. } = ended.totals;
        feed.book.note_publishers(possible_repeats, reordered);
        drop(feed);
        journal.write(standing)?;
        let done = fed?;
        let error = match ended.how {
            How::Completed => return Ok(done),
            How::Interrupted => return Ok(Ended::Interrupted),
            How::Rejected { id, kind, reason } => self.rejected(id, kind, &reason),
            How::Failed(RepublishError::Bus(error)) => error.into(),
            How::Failed(RepublishError::Input(error) | RepublishError::Journal(error)) => error,
            How::Failed(RepublishError::GaveUp { attempts, source }) => {
                EngineError::GaveUp { attempts, source }
            }
            How::Failed(RepublishError::DepthUnknown) => EngineError::DepthUnknown,
        };
        Err(error)
    }

    fn rejected(&self, event: String, kind: RejectKind, reason: &str) -> EngineError {
        let hint = format!("mend the queue and go on with `dacapo backfill resume {}`", self.id);
        EngineError::Rejected { event, reason: format!("{kind}: {reason}"), hint }
    }

    /// Returns the name that marks what this backfill passes on.
    fn name(&self) -> ShortStr {
        ShortStr::try_from(self.id.as_str()).expect("an id is shorter than 255 bytes")
    }
}

/// The feeding side: takes deliveries, hands them to the publisher, acks what is settled.
struct Feed<'a> {
    forwarder: &'a Forwarder<'a>,
    until: Until,
    book: Book<'a>,
    source: Option<Box<dyn Source>>,
    /// Whether the source hands out no more, but still takes acks: it is to be opened anew once all
    /// that came from it is settled, so that nothing comes twice.
    is_last: bool,
    /// When to open the source, while there is none.
    reopen_at: Option<Instant>,
    losses: u32,
    /// When the last delivery came.
    heard: Instant,
    holding: &'a watch::Sender<Holding>,
}

/// What a wait ended with.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is moved once")]
enum Turn {
    Settled,
    Ended,
    Sent,
    Delivered(Result<Option<Delivery>, BusError>),
    Reopen,
    Look,
}

type Batch = Result<Vec<dacapo_republish::Outgoing<u64>>, EngineError>;

impl Feed<'_> {
    async fn run(
        &mut self,
        batches: mpsc::Sender<Batch>,
        mut told: watch::Receiver<Settled>,
    ) -> Result<Ended, EngineError> {
        let mut batches = Some(batches);
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut outcome = Ended::Interrupted;
        loop {
            if self.is_last && self.book.noted_len() == 0 {
                self.lost(None)?;
            }
            // Without more to come the publisher completes.
            if outcome != Ended::Interrupted && self.book.batch_len() == 0 {
                batches = None;
            }
            let wants = outcome == Ended::Interrupted
                && !self.is_last
                && self.book.batch_len() < BATCH_MAX
                && self.book.batch_bytes() < BATCH_BYTES_MAX
                && batches.is_some();
            let turn = tokio::select! {
                biased;
                changed = told.changed() => match changed {
                    Ok(()) => Turn::Settled,
                    Err(_) => Turn::Ended,
                },
                () = send(batches.as_ref(), &mut self.book) => Turn::Sent,
                delivery = next(self.source.as_mut()), if wants => Turn::Delivered(delivery),
                // After what lies ready at the source, so that many which history has are one line of
                // the journal and one ack.
                () = ready(()), if self.book.has_settled() => Turn::Settled,
                () = at(self.reopen_at) => Turn::Reopen,
                _ = looks.tick() => Turn::Look,
            };
            match turn {
                Turn::Settled => {
                    let settled = told.borrow_and_update().clone();
                    self.settle(&settled).await?;
                }
                Turn::Ended => break,
                // A publisher that has ended takes nothing more, and says why there.
                Turn::Sent if batches.as_ref().is_some_and(mpsc::Sender::is_closed) => {
                    batches = None;
                }
                Turn::Sent => {}
                Turn::Delivered(Ok(Some(delivery))) => {
                    (self.losses, self.heard) = (0, Instant::now());
                    if let Some(mark) = self.book.deliver(delivery) {
                        outcome = Ended::Displaced(mark);
                    }
                    if self.book.has_settled() && self.book.noted_len() >= BATCH_MAX {
                        let settled = told.borrow().clone();
                        self.settle(&settled).await?;
                    }
                }
                Turn::Delivered(Ok(None)) => self.is_last = true,
                Turn::Delivered(Err(error)) => self.lost(Some(error))?,
                Turn::Reopen => self.open().await?,
                Turn::Look => {
                    if self.look().await? && outcome == Ended::Interrupted {
                        outcome = Ended::Done;
                    }
                }
            }
        }
        let settled = told.borrow().clone();
        self.settle(&settled).await?;
        if let Some(mut source) = self.source.take()
            && let Err(error) = source.close().await
        {
            tracing::debug!(%error, "the holding queue's consumer did not close in order");
        }
        Ok(outcome)
    }

    /// Counts and acks what is settled.
    async fn settle(&mut self, settled: &Settled) -> Result<(), EngineError> {
        self.book.note_publishers(settled.possible_repeats, settled.reordered);
        while let Some(tag) = self.book.settle(settled.serial)? {
            if let Some(source) = &mut self.source
                && let Err(error) = source.ack(tag).await
            {
                return self.lost(Some(error));
            }
        }
        Ok(())
    }

    /// Asks how much waits; returns whether it is as far as it is to go.
    async fn look(&mut self) -> Result<bool, EngineError> {
        let Some(source) = &mut self.source else { return Ok(false) };
        let depth = match source.depth().await {
            Ok(depth) => depth,
            Err(error) => {
                self.lost(Some(error))?;
                return Ok(false);
            }
        };
        let Book { settled, reached, .. } = self.book;
        self.holding.send_replace(Holding { depth, settled, reached });
        Ok(match self.until {
            Until::LittleHeld => self.book.seen >= Past::History && depth <= LITTLE_HELD,
            Until::Closed => {
                let quiet = self.heard.elapsed() >= self.forwarder.quiet;
                self.book.seen == Past::Closed && depth == 0 && quiet && self.book.noted_len() == 0
            }
        })
    }

    /// Notes that the source is of no further use; nothing if it only wants to be opened anew.
    fn lost(&mut self, error: Option<BusError>) -> Result<(), EngineError> {
        (self.source, self.is_last) = (None, false);
        self.book.lose();
        let now = Instant::now();
        let Some(error) = error else {
            self.reopen_at = Some(now);
            return Ok(());
        };
        if !error.is_transient() {
            return Err(error.into());
        }
        self.losses += 1;
        if self.losses >= LOSSES_MAX {
            return Err(EngineError::GaveUp { attempts: LOSSES_MAX, source: error });
        }
        let (first, most) = REOPEN_DELAY;
        let delay = first.saturating_mul(2_u32.saturating_pow(self.losses - 1)).min(most);
        tracing::warn!(%error, ?delay, "the holding queue is consumed anew");
        self.reopen_at = Some(now + delay);
        Ok(())
    }

    async fn open(&mut self) -> Result<(), EngineError> {
        self.reopen_at = None;
        let opened = timeout(OPEN_DEADLINE, self.forwarder.source.open()).await;
        let opened = opened.unwrap_or_else(|_| {
            Err(BusError::Disconnected {
                peer: "the holding queue".to_owned(),
                reason: format!("it did not open within {} s", OPEN_DEADLINE.as_secs()),
            })
        });
        match opened {
            Ok(source) => {
                self.heard = Instant::now();
                self.source = Some(source);
            }
            Err(error) => self.lost(Some(error))?,
        }
        Ok(())
    }
}

/// Hands the batch over; pends while there is none, or nobody to take one. A publisher that has
/// ended gets none.
async fn send(batches: Option<&mpsc::Sender<Batch>>, book: &mut Book<'_>) {
    let (Some(batches), true) = (batches, book.batch_len() > 0) else { return pending().await };
    if let Ok(permit) = batches.reserve().await {
        permit.send(Ok(book.take_batch()));
    }
}

/// Waits for a delivery; pends while there is no source. Cancel-safe, as the source is.
async fn next(source: Option<&mut Box<dyn Source>>) -> Result<Option<Delivery>, BusError> {
    match source {
        Some(source) => source.next().await,
        None => pending().await,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}
