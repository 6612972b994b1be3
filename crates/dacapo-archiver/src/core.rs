//! Decides what the archiver does next: synchronous, without I/O.
//!
//! One session on one source is one [`Core`]. The session feeds it what happened and carries out
//! the steps that it returns.
//!
//! Invariants: [`Step::Ack`] is returned only after the append of every event up to its tag and the
//! answer to every barrier up to it was reported; a barrier is answered only after every event before
//! it is durable; at most one segment is in flight and one is being filled.

use std::sync::Arc;
use std::time::Duration;

use dacapo_bus::{Delivery, DeliveryTag};
use dacapo_event::attributes::AttributeRules;
use dacapo_event::barrier::{self, BarrierId};
use dacapo_event::{Digest, Sequence, StreamName, Timestamp, marking};
use tokio::time::Instant;

use crate::encode::{Draft, Encode, Encoded, Finished, Taken};
use crate::roll::{Filled, Roll, RollPolicy, decide};

/// A batch goes to the encoder at this weight: a few milliseconds of its CPU, so that handing it
/// over costs nothing beside it.
const BATCH_BYTES: usize = 2 * 1024 * 1024;

/// A batch goes to the encoder at this many events, however small: a fifth of a second at 20,000
/// events/s.
const BATCH_EVENTS: usize = 4_096;

/// No more deliveries are taken while so many barriers wait for an answer: each costs a put before
/// anything behind it is acked, and a backfill sends one or two.
const BARRIERS_MAX: usize = 16;

/// Deliveries are given back to the queue when the oldest was held this long: half of RabbitMQ's
/// default `consumer_timeout` (30 min), at which it would close the channel.
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(15 * 60);

/// What to do next.
pub(crate) enum Step {
    /// Find the end of the stream, then report it with [`Core::opened`].
    Open,
    /// Encode, then report with [`Core::encoded`].
    Encode(Encode),
    /// Encode and seal with this previous digest, then report with [`Core::encoded`].
    Seal(Encode, Option<Digest>),
    /// Make it durable, then report with [`Core::appended`].
    Append(Finished),
    /// Put the answer to this barrier, which comes after this sequence and before the next; then
    /// report with [`Core::answered`].
    Answer(BarrierId, Sequence),
    /// Ack everything up to this delivery.
    Ack(DeliveryTag),
    /// Close the source: deliveries were held for too long.
    GiveBack,
    /// Close the source: all is done.
    Stop,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    /// It will be archived.
    Event,
    /// It is a replay of an event that the archive has.
    Replayed,
    /// It is a barrier, which will be answered.
    Barrier,
    /// It is a barrier that the broker took out of its place in the queue: nobody could say what
    /// came before it.
    DisplacedBarrier,
}

pub(crate) struct Core {
    stream: StreamName,
    rules: Arc<AttributeRules>,
    policy: RollPolicy,
    intake: Open,
    end: End,
    encoder: Encoder,
    filling: Run,
    /// How many events of `filling` there are, encoded or in `batch`.
    events: u64,
    batch: Vec<Taken>,
    batch_bytes: usize,
    in_flight: Option<Run>,
    finished: Option<Finished>,
    /// Deliveries of which every event is durable.
    durable: Option<Run>,
    answering: bool,
}

/// Deliveries in order, up to a tag.
#[derive(Debug, Default)]
struct Run {
    deliveries: u64,
    last_tag: DeliveryTag,
    since: Option<Instant>,
    /// The barriers among them, the first last, and how many events of the run come before each;
    /// once it is sealed, the last sequence before each.
    barriers: Vec<(BarrierId, u64)>,
}

/// Whether deliveries are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Taking,
    Stopping,
}

/// What is known of the stream's end.
#[derive(Debug, Clone, Copy)]
enum End {
    Unknown,
    Asked,
    Known { next: Sequence, previous: Option<Digest> },
}

enum Encoder {
    Idle(Option<Draft>),
    Busy,
}

impl Core {
    pub(crate) fn new(stream: StreamName, rules: Arc<AttributeRules>, policy: RollPolicy) -> Self {
        Core {
            stream,
            rules,
            policy,
            intake: Open::Taking,
            end: End::Unknown,
            encoder: Encoder::Idle(None),
            filling: Run::default(),
            events: 0,
            batch: Vec::new(),
            batch_bytes: 0,
            in_flight: None,
            finished: None,
            durable: None,
            answering: false,
        }
    }

    /// Takes a delivery.
    pub(crate) fn delivered(
        &mut self,
        delivery: Delivery,
        archived_at: Timestamp,
        now: Instant,
    ) -> Intake {
        self.filling.deliveries += 1;
        self.filling.last_tag = delivery.tag;
        self.filling.since.get_or_insert(now);
        if let Some(barrier) = barrier::of(&delivery.message) {
            if delivery.parked.is_some_and(|parked| parked.is_displaced()) {
                return Intake::DisplacedBarrier;
            }
            self.filling.barriers.push((barrier, self.events));
            return Intake::Barrier;
        }
        if marking::is_replayed(&delivery.message) {
            return Intake::Replayed;
        }
        let taken = Taken { message: delivery.message, archived_at };
        self.events += 1;
        self.batch_bytes += taken.message.weight();
        self.batch.push(taken);
        Intake::Event
    }

    pub(crate) fn opened(&mut self, next: Sequence, previous: Option<Digest>) {
        self.end = End::Known { next, previous };
    }

    pub(crate) fn encoded(&mut self, encoded: Encoded) {
        match encoded {
            Encoded::Draft(draft) => self.encoder = Encoder::Idle(Some(draft)),
            Encoded::Finished(finished) => {
                let summary = &finished.sealed.summary;
                self.end = End::Known { next: summary.last + 1, previous: Some(summary.digest) };
                self.encoder = Encoder::Idle(None);
                self.finished = Some(finished);
            }
        }
    }

    pub(crate) fn appended(&mut self) {
        self.durable = self.in_flight.take();
    }

    pub(crate) fn answered(&mut self) {
        self.answering = false;
    }

    /// Takes no more deliveries, and seals what there is.
    pub(crate) fn stop(&mut self) {
        self.intake = Open::Stopping;
    }

    /// Returns whether there is room for another delivery.
    pub(crate) fn wants_delivery(&self, now: Instant) -> bool {
        self.intake == Open::Taking
            && self.batch_bytes < 2 * BATCH_BYTES
            && self.batch.len() < 2 * BATCH_EVENTS
            && self.filling.barriers.len() < BARRIERS_MAX
            && decide(&self.policy, &self.filled(), now) != Roll::Full
    }

    /// Returns how many deliveries were taken and not acked.
    pub(crate) fn unacked(&self) -> u64 {
        let runs = [Some(&self.filling), self.in_flight.as_ref(), self.durable.as_ref()];
        runs.into_iter().flatten().map(|run| run.deliveries).sum()
    }

    /// Returns when to ask for a step although nothing happened; always in the future, right after
    /// [`Core::step`] had none.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        let roll = match decide(&self.policy, &self.filled(), now) {
            Roll::At(due) => Some(due),
            Roll::Empty | Roll::Old | Roll::Full => None,
        };
        let held = self.oldest().map(|oldest| oldest + HOLD_MAX);
        roll.into_iter().chain(held).min()
    }

    /// Returns the next thing to do, if there is one.
    pub(crate) fn step(&mut self, now: Instant) -> Option<Step> {
        let held_too_long = self.oldest().is_some_and(|oldest| now >= oldest + HOLD_MAX);
        if let Some(run) = &mut self.durable {
            // The store is asked one thing at a time, so nothing is appended meanwhile.
            if self.answering {
                return held_too_long.then_some(Step::GiveBack);
            }
            if let Some((barrier, sequence)) = run.barriers.pop() {
                self.answering = true;
                return Some(Step::Answer(barrier, sequence));
            }
            let tag = run.last_tag;
            self.durable = None;
            return Some(Step::Ack(tag));
        }
        if let Some(finished) = self.finished.take() {
            return Some(Step::Append(finished));
        }
        if held_too_long {
            return Some(Step::GiveBack);
        }
        if self.events > 0 {
            self.step_of_segment(now)
        } else if self.in_flight.is_some() {
            None
        } else if self.filling.deliveries > 0 {
            self.step_without_events(now)
        } else {
            (self.intake == Open::Stopping).then_some(Step::Stop)
        }
    }

    /// Deals with nothing but replayed events and barriers; nothing before them is waiting to be
    /// durable.
    fn step_without_events(&mut self, now: Instant) -> Option<Step> {
        if !self.rolls(now) {
            return None;
        }
        if self.filling.barriers.is_empty() {
            return Some(Step::Ack(std::mem::take(&mut self.filling).last_tag));
        }
        let (next, _) = match self.end {
            End::Known { next, previous } => (next, previous),
            End::Unknown | End::Asked => return self.ask_for_the_end(),
        };
        self.durable = Some(std::mem::take(&mut self.filling).sealed_at(next));
        self.step(now)
    }

    fn ask_for_the_end(&mut self) -> Option<Step> {
        match std::mem::replace(&mut self.end, End::Asked) {
            End::Unknown => Some(Step::Open),
            End::Asked | End::Known { .. } => None,
        }
    }

    fn step_of_segment(&mut self, now: Instant) -> Option<Step> {
        let (next, previous) = match self.end {
            End::Known { next, previous } => (next, previous),
            End::Unknown | End::Asked => return self.ask_for_the_end(),
        };
        let seal = self.in_flight.is_none() && self.rolls(now);
        let full = self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_EVENTS;
        if !seal && !full {
            return None;
        }
        let draft = match std::mem::replace(&mut self.encoder, Encoder::Busy) {
            Encoder::Idle(draft) => draft,
            Encoder::Busy => return None,
        };
        self.batch_bytes = 0;
        let encode = Encode {
            stream: self.stream.clone(),
            rules: Arc::clone(&self.rules),
            draft,
            first: next,
            batch: std::mem::take(&mut self.batch),
        };
        if !seal {
            return Some(Step::Encode(encode));
        }
        self.in_flight = Some(std::mem::take(&mut self.filling).sealed_at(next));
        self.events = 0;
        Some(Step::Seal(encode, previous))
    }

    fn rolls(&self, now: Instant) -> bool {
        self.intake == Open::Stopping
            || !self.filling.barriers.is_empty()
            || matches!(decide(&self.policy, &self.filled(), now), Roll::Old | Roll::Full)
    }

    fn filled(&self) -> Filled {
        let encoded = match &self.encoder {
            Encoder::Idle(Some(draft)) => draft.bytes(),
            Encoder::Idle(None) | Encoder::Busy => 0,
        };
        Filled {
            deliveries: self.filling.deliveries,
            bytes: encoded + self.batch_bytes,
            since: self.filling.since,
        }
    }

    fn oldest(&self) -> Option<Instant> {
        let runs = [self.durable.as_ref(), self.in_flight.as_ref(), Some(&self.filling)];
        runs.into_iter().flatten().find_map(|run| run.since)
    }
}

impl Run {
    /// Gives the barriers their sequences, now that the first one of the run's events is known.
    fn sealed_at(mut self, first: Sequence) -> Self {
        for (_, before) in &mut self.barriers {
            *before += first - 1;
        }
        self.barriers.reverse();
        self
    }
}

#[cfg(test)]
mod tests;
