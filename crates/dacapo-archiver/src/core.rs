//! Decides what the archiver does next: synchronous, without I/O.
//!
//! One session on one source is one [`Core`]. The session feeds it what happened and carries out
//! the steps that it returns.
//!
//! Invariants: [`Step::Ack`] is returned only after the append of every event up to its tag was
//! reported; at most one segment is in flight and one is being filled.

use std::sync::Arc;
use std::time::Duration;

use dacapo_bus::{Delivery, DeliveryTag};
use dacapo_event::attributes::AttributeRules;
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
    ack: Option<Run>,
}

/// Deliveries in order, up to a tag.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    deliveries: u64,
    last_tag: DeliveryTag,
    since: Option<Instant>,
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
            ack: None,
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
        self.ack = self.in_flight.take();
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
            && decide(&self.policy, &self.filled(), now) != Roll::Full
    }

    /// Returns how many deliveries were taken and not acked.
    pub(crate) fn unacked(&self) -> u64 {
        let runs = [Some(self.filling), self.in_flight, self.ack];
        runs.iter().flatten().map(|run| run.deliveries).sum()
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
        if let Some(run) = self.ack.take() {
            return Some(Step::Ack(run.last_tag));
        }
        if let Some(finished) = self.finished.take() {
            return Some(Step::Append(finished));
        }
        if self.oldest().is_some_and(|oldest| now >= oldest + HOLD_MAX) {
            return Some(Step::GiveBack);
        }
        if self.events > 0 {
            self.step_of_segment(now)
        } else if self.in_flight.is_some() {
            None
        } else if self.filling.deliveries > 0 {
            // Nothing but replayed events, and nothing before them is waiting to be durable.
            self.rolls(now).then(|| Step::Ack(std::mem::take(&mut self.filling).last_tag))
        } else {
            (self.intake == Open::Stopping).then_some(Step::Stop)
        }
    }

    fn step_of_segment(&mut self, now: Instant) -> Option<Step> {
        let (next, previous) = match self.end {
            End::Unknown => {
                self.end = End::Asked;
                return Some(Step::Open);
            }
            End::Asked => return None,
            End::Known { next, previous } => (next, previous),
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
        self.in_flight = Some(std::mem::take(&mut self.filling));
        self.events = 0;
        Some(Step::Seal(encode, previous))
    }

    fn rolls(&self, now: Instant) -> bool {
        self.intake == Open::Stopping
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
        self.in_flight.and_then(|run| run.since).or(self.filling.since)
    }
}

#[cfg(test)]
mod tests;
