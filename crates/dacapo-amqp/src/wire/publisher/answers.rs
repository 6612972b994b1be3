//! Which message each confirm and each return is for.
//!
//! A confirm names its message by a number, counted from 1 on the channel; a return names none.
//! RabbitMQ sends a return before its message's own confirm, on the same channel, so a return is
//! matched by content with the messages that are not answered for, and once a message is answered
//! for, it was not returned unless that is known.
//!
//! Invariant: outcomes come in order of sending, one for each message; an answer that fits none
//! is an error, never a confirm.

use std::collections::VecDeque;

use dacapo_bus::Outcome;

use super::publish::{Likeness, Publish, Returned};

/// The number of a message on its channel.
pub(super) type Tag = u64;

/// What the broker says to a message that it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Ack,
    Nack,
}

/// Which messages an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// The one that it names.
    One,
    /// All up to it; those that were answered for before keep their answers.
    UpTo,
}

/// An answer that fits nothing that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfit(pub(super) String);

/// Messages that were sent and not all answered for.
#[derive(Debug)]
pub(super) struct Answers {
    slots: VecDeque<Slot>,
    /// The number of the first slot.
    first: Tag,
}

#[derive(Debug)]
struct Slot {
    sent: Publish,
    verdict: Option<Verdict>,
    /// The broker's words, if it came back.
    returned: Option<String>,
}

impl Answers {
    pub(super) fn new() -> Self {
        Answers { slots: VecDeque::new(), first: 1 }
    }

    /// Adds the next message that is sent.
    pub(super) fn sent(&mut self, sent: Publish) {
        self.slots.push_back(Slot { sent, verdict: None, returned: None });
    }

    /// Returns how many messages have no outcome.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns whether a body of this size can come back.
    pub(super) fn may_return(&self, size: usize) -> bool {
        self.slots.iter().any(|slot| slot.is_open() && slot.sent.body().len() == size)
    }

    /// Takes a message that came back.
    pub(super) fn returned(&mut self, returned: &Returned) -> Result<(), Unfit> {
        let find = |likeness| {
            self.slots
                .iter()
                .position(|slot| slot.is_open() && slot.sent.is_returned(returned, likeness))
        };
        let at = find(Likeness::Exact).or_else(|| find(Likeness::Near));
        let at = at.ok_or_else(|| unknown_return(returned))?;
        self.slots[at].returned = Some(returned.reason.clone());
        Ok(())
    }

    /// Takes an ack or a nack.
    pub(super) fn answered(
        &mut self,
        tag: Tag,
        reach: Reach,
        verdict: Verdict,
    ) -> Result<(), Unfit> {
        let named = tag.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let named =
            named.filter(|at| self.slots.get(*at).is_some_and(|slot| slot.verdict.is_none()));
        let Some(named) = named else {
            let said = format!("it answered for message {tag}, which does not wait for an answer");
            return Err(Unfit(said));
        };
        let begin = match reach {
            Reach::One => named,
            Reach::UpTo => 0,
        };
        for slot in self.slots.range_mut(begin..=named) {
            slot.verdict.get_or_insert(verdict);
        }
        Ok(())
    }

    /// Takes out the oldest message, if it is answered for, and returns what became of it.
    pub(super) fn settle(&mut self) -> Option<Outcome> {
        let verdict = self.slots.front()?.verdict?;
        let slot = self.slots.pop_front()?;
        self.first += 1;
        Some(match (slot.returned, verdict) {
            (Some(reason), _) => Outcome::Returned { reason },
            (None, Verdict::Ack) => Outcome::Confirmed,
            (None, Verdict::Nack) => Outcome::Nacked,
        })
    }
}

impl Slot {
    /// Whether it may still come back.
    fn is_open(&self) -> bool {
        self.verdict.is_none() && self.returned.is_none()
    }
}

fn unknown_return(returned: &Returned) -> Unfit {
    let key = &returned.routing_key;
    Unfit(format!("it returned a message with the routing key `{key}` that was not sent like this"))
}

#[cfg(test)]
mod tests;
