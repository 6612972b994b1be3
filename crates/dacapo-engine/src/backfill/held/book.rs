//! What becomes of each delivery of a holding queue, and what is settled. Plain and synchronous, but
//! for the line that the journal gets before an ack.

use std::collections::VecDeque;

use dacapo_bus::{Delivery, DeliveryTag};
use dacapo_event::marking::{self, mark_held};
use dacapo_event::{ShortStr, Timestamp};
use dacapo_republish::Outgoing;

use super::Forwarder;
use crate::EngineError;
use crate::backfill::Journal;
use crate::backfill::marks::{Mark, mark_of};
use crate::backfill::standing::{Past, Stage, Standing};

/// The deliveries that are neither settled nor given up, in order.
pub(in crate::backfill) struct Book<'a> {
    forwarder: &'a Forwarder<'a>,
    standing: &'a mut Standing,
    journal: &'a mut Journal,
    name: ShortStr,
    noted: VecDeque<Noted>,
    /// Which source the deliveries are of; tags of an earlier one cannot be acked.
    generation: u64,
    /// The number of the last delivery, over all sources.
    serial: u64,
    /// Messages that wait to be handed over.
    batch: Vec<Outgoing<u64>>,
    batch_bytes: usize,
    /// Which marks have been delivered; those passed are in the standing.
    pub(super) seen: Past,
    /// How many deliveries this run has settled.
    pub(super) settled: u64,
    /// What the publisher may have sent twice and out of order by itself, as far as it is counted.
    publishers: (u64, u64),
    /// When the last message that was passed on happened.
    pub(super) reached: Option<Timestamp>,
}

struct Noted {
    serial: u64,
    generation: u64,
    tag: DeliveryTag,
    fate: Fate,
}

/// What becomes of a delivery.
enum Fate {
    Forwarded {
        bytes: u64,
        time: Timestamp,
        again: Again,
        is_replay: bool,
        is_parked: bool,
    },
    /// History has it.
    Dropped,
    /// The target got it live.
    CameLive,
    Passed(Mark),
    /// A mark that lost its place, and stands where it says something as well.
    PassedOver,
    /// A mark that lost its place, and is to be published again before it is acked.
    Displaced,
}

/// Whether a message may have been passed on, or played, before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    No,
    Maybe,
}

impl<'a> Book<'a> {
    pub(in crate::backfill) fn new(
        forwarder: &'a Forwarder<'a>,
        standing: &'a mut Standing,
        journal: &'a mut Journal,
    ) -> Self {
        Book {
            name: forwarder.name(),
            forwarder,
            seen: standing.past,
            standing,
            journal,
            noted: VecDeque::new(),
            generation: 0,
            serial: 0,
            batch: Vec::new(),
            batch_bytes: 0,
            settled: 0,
            publishers: (0, 0),
            reached: None,
        }
    }

    pub(super) fn batch_len(&self) -> usize {
        self.batch.len()
    }

    pub(super) fn batch_bytes(&self) -> usize {
        self.batch_bytes
    }

    pub(super) fn take_batch(&mut self) -> Vec<Outgoing<u64>> {
        self.batch_bytes = 0;
        std::mem::take(&mut self.batch)
    }

    /// Returns how many deliveries are on their way.
    pub(super) fn noted_len(&self) -> usize {
        self.noted.len()
    }

    /// Returns whether the first delivery needs no publisher to be settled.
    pub(in crate::backfill) fn has_settled(&self) -> bool {
        let waits = |fate: &Fate| matches!(fate, Fate::Forwarded { .. } | Fate::Displaced);
        self.noted.front().is_some_and(|noted| !waits(&noted.fate))
    }

    /// Counts what the publisher may have sent twice and out of order by itself in this run: that
    /// comes from no second delivery.
    pub(super) fn note_publishers(&mut self, possible_repeats: u64, reordered: u64) {
        let counts = &mut self.standing.counts;
        counts.passed_again += possible_repeats.saturating_sub(self.publishers.0);
        counts.reordered += reordered.saturating_sub(self.publishers.1);
        self.publishers = (possible_repeats, reordered);
    }

    /// Returns what a mark says where it is. One that was taken out of its place says nothing, but for
    /// the one that only makes more messages count.
    fn fate_of(&mut self, mark: Mark, is_displaced: bool) -> Fate {
        if !is_displaced || mark == Mark::Open {
            self.seen = self.seen.max(mark.past());
            return Fate::Passed(mark);
        }
        let stands = self.seen >= mark.past() || self.forwarder.marked_again.contains(&mark);
        if stands { Fate::PassedOver } else { Fate::Displaced }
    }

    /// Decides what becomes of a delivery; returns a mark that is to be published again.
    pub(in crate::backfill) fn deliver(&mut self, delivery: Delivery) -> Option<Mark> {
        let Delivery { tag, redelivered, parked, message } = delivery;
        self.serial += 1;
        let remembered = self.forwarder.remembered;
        // What expired comes out of its place, so that no mark says anything of it.
        let is_parked = parked.is_some();
        let is_displaced = parked.is_some_and(|parked| parked.is_displaced());
        self.standing.may_expire |= is_displaced || message.properties.expiration.is_some();
        let mark = mark_of(self.forwarder.id, &message);
        let fate = match mark {
            Some(mark) => self.fate_of(mark, is_displaced),
            None if self.seen == Past::Closed && !is_parked => Fate::CameLive,
            None if (self.seen == Past::Nothing || is_parked) && remembered.has(&message) => {
                Fate::Dropped
            }
            None => {
                let late = is_parked && self.seen >= Past::History;
                let again = if redelivered || late { Again::Maybe } else { Again::No };
                let is_replay = marking::is_replayed(&message);
                let bytes = message.body.len() as u64;
                self.batch_bytes += message.weight();
                let outgoing = self.outgoing(message);
                let time = outgoing.time;
                self.batch.push(outgoing);
                Fate::Forwarded { bytes, time, again, is_replay, is_parked }
            }
        };
        let again = mark.filter(|_| matches!(fate, Fate::Displaced));
        let (serial, generation) = (self.serial, self.generation);
        self.noted.push_back(Noted { serial, generation, tag, fate });
        again
    }

    fn outgoing(&self, message: dacapo_event::Message) -> Outgoing<u64> {
        let read = self.forwarder.rules.read(&message);
        let time = read.time.unwrap_or_else(self.forwarder.clock);
        let priority = self.forwarder.priority;
        let message = mark_held(message, read.id.as_deref(), read.time, &self.name, priority);
        let id = read.id.unwrap_or_else(|| format!("held message {}", self.serial));
        Outgoing { position: self.serial, id, time, message }
    }

    /// Takes out what is settled if everything that was published up to `serial` is confirmed; counts
    /// it, writes that down, and returns what may be acked. Then there may be more, which begins with a
    /// mark.
    pub(in crate::backfill) fn settle(
        &mut self,
        serial: u64,
    ) -> Result<Option<DeliveryTag>, EngineError> {
        let (before, mut tag, mut is_marked) = (self.settled, None, false);
        while let Some(first) = self.noted.front() {
            if matches!(first.fate, Fate::Forwarded { .. }) && first.serial > serial {
                break;
            }
            // Acked before it is there again, it would be gone if the process was killed.
            if matches!(first.fate, Fate::Displaced) {
                break;
            }
            // By itself: were the ack lost, what came before a mark that is written down as passed would
            // not be dropped when it comes again.
            if matches!(first.fate, Fate::Passed(_)) && tag.is_some() {
                break;
            }
            let Some(noted) = self.noted.pop_front() else { break };
            is_marked |= matches!(noted.fate, Fate::Passed(_));
            self.count(&noted.fate);
            self.settled += 1;
            if noted.generation == self.generation {
                tag = Some(noted.tag);
            }
        }
        match self.settled > before {
            // Once it is acked, nothing but the journal tells that it was passed.
            true if is_marked => self.journal.write(self.standing)?,
            true => self.journal.checkpoint(self.standing)?,
            false => {}
        }
        Ok(tag)
    }

    fn count(&mut self, fate: &Fate) {
        let is_bound = self.standing.stage == Stage::Draining;
        let past = &mut self.standing.past;
        let counts = &mut self.standing.counts;
        match fate {
            Fate::Passed(mark) => *past = (*past).max(mark.past()),
            Fate::Dropped => counts.dropped += 1,
            Fate::CameLive => counts.came_live += 1,
            Fate::PassedOver | Fate::Displaced => {}
            Fate::Forwarded { bytes, time, again, is_replay, is_parked } => {
                self.reached = Some(*time);
                counts.forwarded += 1;
                counts.forwarded_bytes += bytes;
                counts.replays += u64::from(*is_replay);
                counts.passed_again += u64::from(*again == Again::Maybe);
                counts.live_as_well += u64::from(*past >= Past::Opened);
                counts.reordered += u64::from(is_bound || *is_parked);
            }
        }
    }

    /// Notes that the source is gone: what was not handed over comes again from the next one, and so
    /// does what was and is not acked.
    pub(super) fn lose(&mut self) {
        let first_waiting = self.batch.first().map_or(u64::MAX, |outgoing| outgoing.position);
        self.batch.clear();
        self.batch_bytes = 0;
        self.noted.retain(|noted| {
            matches!(noted.fate, Fate::Forwarded { .. }) && noted.serial < first_waiting
        });
        self.generation += 1;
        self.seen = self.standing.past;
    }
}
