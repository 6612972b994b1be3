//! The confirm window: what is published and not answered for, and what comes next.
//!
//! Plain and synchronous. Outcomes come in order of sending, so the last contiguous confirm is the
//! front of a queue. After a refusal the answers to what followed it are still taken, because they
//! say what will be a repeat; then everything from the front on is sent again.

use std::collections::VecDeque;
use std::num::{NonZeroU64, NonZeroUsize};
use std::ops::Range;

use dacapo_bus::Outcome;
use dacapo_event::{Message, Timestamp};

use crate::Totals;
use crate::pacer::Due;
use crate::rejects::Verdict;

/// One message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing<P> {
    /// What the journal needs to know when everything up to here is confirmed.
    pub position: P,
    /// The event's id, for messages.
    pub id: String,
    /// The event's time, for the original timing.
    pub time: Timestamp,
    /// What is published.
    pub message: Message,
}

/// How much may be published beyond the last written checkpoint: the most that a crash repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowLimits {
    /// Messages; 1 is strict order.
    pub messages: NonZeroUsize,
    /// Bytes of bodies and properties; one message larger than that goes alone.
    pub bytes: NonZeroU64,
}

impl Default for WindowLimits {
    /// 2,000 messages: at 20,000/s a tenth of a second, more than any round trip to a broker in
    /// reach. 32 MiB: that many of the largest usual events (16 KiB).
    fn default() -> Self {
        WindowLimits {
            messages: NonZeroUsize::new(2_000).expect("not zero"),
            bytes: NonZeroU64::new(32 * 1024 * 1024).expect("not zero"),
        }
    }
}

/// A batch smaller than this is not worth a call while confirms are on their way.
const BATCH_MIN: usize = 64;

/// Why the front was not taken, once all answers are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    Nacked,
    Returned { reason: String },
}

/// What became of the front, when it is dealt with for good.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Settled<P> {
    Confirmed(P),
    /// It was returned, and such events are passed over.
    Returned {
        rejected: Rejected<P>,
        reason: String,
    },
}

/// An event that was taken out of the window without being confirmed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rejected<P> {
    pub(crate) position: P,
    pub(crate) id: String,
}

/// What is published and not confirmed, and what waits behind it, in order.
#[derive(Debug)]
pub(crate) struct Window<P> {
    limits: WindowLimits,
    /// The first `sent` are on the bus (in this attempt), the rest wait.
    messages: VecDeque<Message>,
    notes: VecDeque<Note<P>>,
    sent: usize,
    sent_bytes: u64,
    /// Bytes of all bodies and properties that are here.
    bytes: u64,
    /// How many of `sent` are answered for: none, unless the front was refused.
    answered: usize,
    refusal: Option<Refusal>,
    /// Whether one of the answered was refused and never taken before: what follows is early.
    hole: bool,
    /// How many may be out at once: fewer than the limit for a while after a nack, so that a full
    /// queue does not get, and turn round, a whole window at every attempt.
    allowed: usize,
    /// How many are still to be sent one by one, to find one that cannot be sent.
    singly: usize,
}

#[derive(Debug)]
struct Note<P> {
    position: P,
    id: String,
    time: Timestamp,
    /// Bytes of its body and properties, which are not counted again at each step.
    weight: u64,
    /// Whether the bus has confirmed it, although an earlier one was refused.
    taken: bool,
    /// Whether it is counted as delivered before an earlier one.
    early: bool,
}

impl<P> Window<P> {
    pub(crate) fn new(limits: WindowLimits) -> Self {
        Window {
            limits,
            messages: VecDeque::new(),
            notes: VecDeque::new(),
            sent: 0,
            sent_bytes: 0,
            bytes: 0,
            answered: 0,
            refusal: None,
            hole: false,
            allowed: limits.messages.get(),
            singly: 0,
        }
    }

    /// Adds what comes after everything that is here.
    pub(crate) fn push(&mut self, batch: Vec<Outgoing<P>>) {
        for Outgoing { position, id, time, message } in batch {
            let weight = message.content_weight() as u64;
            self.bytes += weight;
            self.messages.push_back(message);
            self.notes.push_back(Note { position, id, time, weight, taken: false, early: false });
        }
    }

    /// Returns whether everything was confirmed.
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns how many were not sent in this attempt.
    pub(crate) fn pending(&self) -> usize {
        self.messages.len() - self.sent
    }

    /// Returns the bytes of the bodies and properties that were not sent in this attempt.
    pub(crate) fn pending_bytes(&self) -> u64 {
        self.bytes - self.sent_bytes
    }

    /// Returns how many outcomes are to come.
    pub(crate) fn unanswered(&self) -> usize {
        self.sent - self.answered
    }

    /// Returns whether the front was refused and nothing more is to be sent until that is settled.
    pub(crate) fn is_refused(&self) -> bool {
        self.refusal.is_some()
    }

    /// Returns how many of the pending may be sent now, at most `most`.
    pub(crate) fn sendable(&self, most: usize) -> usize {
        if self.is_refused() {
            return 0;
        }
        let allowed = if self.singly > 0 { 1 } else { self.allowed };
        let room = allowed.saturating_sub(self.sent);
        let bytes_max = self.limits.bytes.get();
        // With confirms on their way, a little patience makes one larger call of many small ones.
        let short =
            room < BATCH_MIN.min(allowed.div_ceil(4)) || self.sent_bytes > bytes_max / 4 * 3;
        if self.sent > 0 && short {
            return 0;
        }
        let most = most.min(room).min(self.pending());
        let mut bytes = self.sent_bytes;
        let fits = |note: &&Note<P>| {
            bytes += note.weight;
            bytes <= bytes_max
        };
        let count = self.notes.range(self.sent..self.sent + most).take_while(fits).count();
        if count == 0 && self.sent == 0 { most.min(1) } else { count }
    }

    /// Returns what the pace needs to know of the next `count`.
    pub(crate) fn next(&self, count: usize) -> impl Iterator<Item = Due> + Clone {
        let range = self.sent..self.sent + count;
        let times = self.notes.range(range.clone()).map(|note| note.time);
        let sizes = self.messages.range(range).map(|message| message.body.len() as u64);
        times.zip(sizes).map(|(time, bytes)| Due { time, bytes })
    }

    /// Counts up to `count` of the pending as published, as many as lie side by side, and returns
    /// where they are. They count before the call that sends them: it may fail half-way.
    pub(crate) fn publish(&mut self, count: usize, totals: &mut Totals) -> Range<usize> {
        let wrap = self.messages.as_slices().0.len();
        let end = self.sent + count;
        let end = if self.sent < wrap { end.min(wrap) } else { end };
        let range = self.sent..end;
        self.sent_bytes += self.notes.range(range.clone()).map(|note| note.weight).sum::<u64>();
        self.sent = end;
        totals.published += range.len() as u64;
        range
    }

    /// Returns the messages of a range that [`Window::publish`] returned.
    pub(crate) fn slice(&self, range: Range<usize>) -> &[Message] {
        let (front, back) = self.messages.as_slices();
        if range.start < front.len() {
            &front[range]
        } else {
            &back[range.start - front.len()..range.end - front.len()]
        }
    }

    /// Takes the next outcome; returns what it settles of the front, if it does. `returned` says
    /// what is to be done about a message that comes back: one that is passed over holds up nothing
    /// behind it, and so costs no repeats.
    ///
    /// # Panics
    /// Nothing is unanswered: a sink answers once for each message.
    pub(crate) fn answer(
        &mut self,
        outcome: Outcome,
        returned: Verdict,
        totals: &mut Totals,
    ) -> Option<Settled<P>> {
        assert!(self.unanswered() > 0, "a sink answers once for each message");
        match (outcome, self.is_refused()) {
            (Outcome::Confirmed, false) => return Some(Settled::Confirmed(self.confirm(totals))),
            (Outcome::Returned { reason }, false) if returned == Verdict::Skip => {
                totals.refused += 1;
                let (rejected, _) = self.take_sent();
                return Some(Settled::Returned { rejected, reason });
            }
            (Outcome::Confirmed, true) => {
                totals.possible_repeats += 1;
                self.mark_early(self.answered, totals);
                self.notes[self.answered].taken = true;
            }
            (refused, _) => {
                totals.refused += 1;
                self.hole |= !self.notes[self.answered].taken;
                self.refusal.get_or_insert(match refused {
                    Outcome::Returned { reason } => Refusal::Returned { reason },
                    _ => Refusal::Nacked,
                });
            }
        }
        self.answered += 1;
        None
    }

    fn confirm(&mut self, totals: &mut Totals) -> P {
        let (front, message) = self.take_sent();
        self.allowed = self.limits.messages.get().min(self.allowed + 1);
        totals.confirmed += 1;
        totals.bytes += message.body.len() as u64;
        front.position
    }

    /// Takes the front out, which was sent and is answered for.
    fn take_sent(&mut self) -> (Rejected<P>, Message) {
        self.sent -= 1;
        self.sent_bytes -= self.notes.front().map_or(0, |note| note.weight);
        self.take_front()
    }

    /// Takes the front out.
    fn take_front(&mut self) -> (Rejected<P>, Message) {
        let message = self.messages.pop_front().expect("a front that is asked for is here");
        let note = self.notes.pop_front().expect("each message has a note");
        self.singly = self.singly.saturating_sub(1);
        self.bytes -= note.weight;
        (Rejected { position: note.position, id: note.id }, message)
    }

    /// Takes the front out for good: the bus will not take it. Nothing may be on its way.
    ///
    /// # Panics
    /// Something is on its way, or nothing is here.
    pub(crate) fn reject_front(&mut self) -> Rejected<P> {
        assert_eq!(self.sent, 0, "what is on its way is answered for, or lost, before");
        self.take_front().0
    }

    fn mark_early(&mut self, index: usize, totals: &mut Totals) {
        let note = &mut self.notes[index];
        if self.hole && !note.taken && !note.early {
            note.early = true;
            totals.reordered += 1;
        }
    }

    /// Notes that no outcome comes any more: the unanswered may be on the bus, and are pending
    /// again.
    pub(crate) fn lose(&mut self, totals: &mut Totals) {
        totals.possible_repeats += self.unanswered() as u64;
        for index in self.answered..self.sent {
            self.mark_early(index, totals);
        }
        self.rewind();
    }

    /// Returns why the front was refused, once no outcome is to come; everything is pending again.
    pub(crate) fn take_refusal(&mut self) -> Option<Refusal> {
        if self.unanswered() > 0 {
            return None;
        }
        let refusal = self.refusal.take()?;
        self.rewind();
        self.allowed = 1;
        Some(refusal)
    }

    /// Notes that the only message out was not accepted by the sink itself, and so is not on the
    /// bus.
    pub(crate) fn refuse_unsent(&mut self, totals: &mut Totals) {
        totals.refused += self.unanswered() as u64;
        self.rewind();
    }

    fn rewind(&mut self) {
        self.sent = 0;
        self.sent_bytes = 0;
        self.answered = 0;
        self.hole = false;
    }

    /// From now on sends what was just sent one by one: one of them cannot be sent, and the sink
    /// did not say which.
    pub(crate) fn send_singly(&mut self) {
        self.singly = self.sent;
    }

    /// Returns the first event that is not dealt with, if there is one.
    pub(crate) fn front(&self) -> Option<(&P, &str)> {
        self.notes.front().map(|note| (&note.position, &*note.id))
    }

    /// Returns the id of the first event that is not confirmed.
    pub(crate) fn front_id(&self) -> &str {
        self.notes.front().map_or("", |note| &note.id)
    }
}

#[cfg(test)]
mod tests;
