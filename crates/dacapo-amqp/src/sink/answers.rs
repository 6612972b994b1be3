//! Which message each confirm and each return is for.
//!
//! Lapin hands a returned message out with whichever confirm it resolves next, and resolves those
//! of one cumulative ack in the order of a hash map. A return is therefore matched by content.
//! It is always handed out no later than the last confirm of the messages up to its own, so once
//! all of a prefix is confirmed and everything resolved has been looked at, every return for that
//! prefix is known.
//!
//! Invariant: outcomes come in order of sending, and none says confirmed while a return for it
//! may be unseen.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use dacapo_bus::Outcome;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use futures::{FutureExt, StreamExt};

/// What the client library says to one confirm.
#[derive(Debug)]
pub(super) struct Answer<R> {
    pub(super) acked: bool,
    /// A returned message, of this confirm or of another.
    pub(super) returned: Option<R>,
}

/// What became of one message.
#[derive(Debug)]
pub(super) struct Settled<R> {
    acked: bool,
    returned: Option<R>,
}

impl<R> Settled<R> {
    pub(super) fn outcome(self, reason: impl Fn(&R) -> String) -> Outcome {
        match self {
            Settled { returned: Some(returned), .. } => {
                Outcome::Returned { reason: reason(&returned) }
            }
            Settled { acked: true, .. } => Outcome::Confirmed,
            Settled { acked: false, .. } => Outcome::Nacked,
        }
    }
}

/// What is known of a run of messages, or why nothing is.
pub(super) type Settling<R, E> = Result<Vec<Settled<R>>, Unclaimed<R, E>>;

/// Why nothing can be said.
#[derive(Debug)]
pub(super) enum Unclaimed<R, E> {
    /// The client library failed.
    Failed(E),
    /// A message came back that none of those sent is like.
    Unknown(R),
}

/// Messages that were sent and not all answered for: `S` is what was sent, `R` what may be
/// returned, `F` resolves to the answer.
pub(super) struct Answers<S, R, F> {
    slots: VecDeque<Slot<S, R>>,
    /// The number of the first slot.
    first: u64,
    waiting: FuturesUnordered<Numbered<F>>,
    bell: Arc<Bell>,
}

struct Slot<S, R> {
    sent: S,
    acked: Option<bool>,
    returned: Option<R>,
}

/// A future with the number of its slot.
struct Numbered<F>(u64, F);

impl<F: Future + Unpin> Future for Numbered<F> {
    type Output = (u64, F::Output);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let number = self.0;
        self.1.poll_unpin(context).map(|output| (number, output))
    }
}

/// Remembers that it was rung: `FuturesUnordered` may pause with work left, and then rings.
#[derive(Default)]
struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}

impl<S, R, E, F> Answers<S, R, F>
where
    F: Future<Output = Result<Answer<R>, E>> + Unpin,
{
    pub(super) fn new() -> Self {
        Answers {
            slots: VecDeque::new(),
            first: 0,
            waiting: FuturesUnordered::new(),
            bell: Arc::default(),
        }
    }

    /// Adds a message that was just sent.
    pub(super) fn push(&mut self, sent: S, answer: F) {
        self.waiting.push(Numbered(self.first + self.slots.len() as u64, answer));
        self.slots.push_back(Slot { sent, acked: None, returned: None });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Waits until the oldest message is settled and returns it with those after it that are.
    /// `is_returned` tells whether a return is of what was sent, exactly or nearly.
    ///
    /// Cancel-safe: nothing is taken out before it is returned.
    pub(super) async fn settled(
        &mut self,
        is_returned: impl Fn(&S, &R, bool) -> bool,
    ) -> Settling<R, E> {
        std::future::poll_fn(|context| self.poll_settled(context, &is_returned)).await
    }

    fn poll_settled(
        &mut self,
        context: &mut Context<'_>,
        is_returned: &impl Fn(&S, &R, bool) -> bool,
    ) -> Poll<Settling<R, E>> {
        self.bell.task.register(context.waker());
        let waker = Waker::from(self.bell.clone());
        let mut context = Context::from_waker(&waker);
        loop {
            self.bell.rung.store(false, Ordering::SeqCst);
            match self.waiting.poll_next_unpin(&mut context) {
                Poll::Ready(Some((number, answer))) => {
                    self.note(number, answer.map_err(Unclaimed::Failed)?, is_returned)?;
                }
                Poll::Ready(None) => break,
                // Everything that was resolved when this call began has been looked at, unless
                // the bell says that the set only paused.
                Poll::Pending if !self.bell.rung.load(Ordering::SeqCst) => break,
                Poll::Pending => {}
            }
        }
        let settled: Vec<_> = std::iter::from_fn(|| self.pop_settled()).collect();
        if settled.is_empty() { Poll::Pending } else { Poll::Ready(Ok(settled)) }
    }

    fn note(
        &mut self,
        number: u64,
        answer: Answer<R>,
        is_returned: &impl Fn(&S, &R, bool) -> bool,
    ) -> Result<(), Unclaimed<R, E>> {
        if let Some(returned) = answer.returned {
            let find = |exactly: bool| {
                self.slots.iter().position(|slot| {
                    slot.returned.is_none() && is_returned(&slot.sent, &returned, exactly)
                })
            };
            match find(true).or_else(|| find(false)) {
                Some(at) => self.slots[at].returned = Some(returned),
                None => return Err(Unclaimed::Unknown(returned)),
            }
        }
        let at = usize::try_from(number - self.first).expect("a slot in memory");
        self.slots[at].acked = Some(answer.acked);
        Ok(())
    }

    fn pop_settled(&mut self) -> Option<Settled<R>> {
        let acked = self.slots.front()?.acked?;
        let slot = self.slots.pop_front()?;
        self.first += 1;
        Some(Settled { acked, returned: slot.returned })
    }
}

#[cfg(test)]
mod tests {
    use futures::TryFutureExt;
    use futures::channel::oneshot::{Receiver, Sender, channel};
    use futures::future::MapErr;

    use super::*;

    type Wait = Receiver<Answer<&'static str>>;
    type Lost = fn(futures::channel::oneshot::Canceled) -> &'static str;

    struct Sending {
        answers: Answers<&'static str, &'static str, MapErr<Wait, Lost>>,
        senders: Vec<Option<Sender<Answer<&'static str>>>>,
    }

    fn sending(messages: &[&'static str]) -> Sending {
        let mut answers = Answers::new();
        let mut senders = Vec::new();
        for message in messages {
            let (sender, receiver) = channel();
            senders.push(Some(sender));
            answers.push(*message, receiver.map_err((|_| "gone") as Lost));
        }
        Sending { answers, senders }
    }

    impl Sending {
        fn resolve(&mut self, number: usize, acked: bool, returned: Option<&'static str>) {
            let sender = self.senders[number].take().unwrap();
            assert!(sender.send(Answer { acked, returned }).is_ok());
        }

        fn now(&mut self) -> Option<Vec<String>> {
            let settled = self.answers.settled(|sent, returned, _| sent == returned);
            let outcomes = settled.now_or_never()?.unwrap();
            Some(
                outcomes
                    .into_iter()
                    .map(|settled| match settled.outcome(|reason| (*reason).to_owned()) {
                        Outcome::Confirmed => "+".to_owned(),
                        Outcome::Nacked => "-".to_owned(),
                        Outcome::Returned { reason } => reason,
                    })
                    .collect(),
            )
        }
    }

    #[test]
    fn outcomes_come_in_order_of_sending_and_all_that_are_known() {
        let mut sending = sending(&["a", "b", "c"]);
        assert_eq!(sending.now(), None);
        sending.resolve(1, true, None);
        assert_eq!(sending.now(), None);
        sending.resolve(0, false, None);
        assert_eq!(sending.now().unwrap(), ["-", "+"]);
        sending.resolve(2, true, None);
        assert_eq!(sending.now().unwrap(), ["+"]);
        assert_eq!(sending.now(), None);
    }

    #[test]
    fn a_return_that_came_with_a_later_confirm_is_still_its_own() {
        let mut sending = sending(&["a", "unroutable", "c"]);
        sending.resolve(2, true, Some("unroutable"));
        sending.resolve(1, true, None);
        sending.resolve(0, true, None);
        assert_eq!(sending.now().unwrap(), ["+", "unroutable", "+"]);
    }

    #[test]
    fn two_returns_that_were_swapped_find_their_messages() {
        let mut sending = sending(&["x", "y"]);
        sending.resolve(1, true, Some("x"));
        assert_eq!(sending.now(), None);
        sending.resolve(0, true, Some("y"));
        assert_eq!(sending.now().unwrap(), ["x", "y"]);
    }

    #[test]
    fn a_return_of_nothing_that_was_sent_is_an_error_not_a_confirm() {
        let mut sending = sending(&["a"]);
        sending.resolve(0, true, Some("b"));
        let settled = sending.answers.settled(|sent, returned, _| sent == returned);
        assert!(matches!(settled.now_or_never().unwrap(), Err(Unclaimed::Unknown("b"))));
    }

    #[test]
    fn a_lost_connection_is_no_confirm() {
        let mut sending = sending(&["a", "b"]);
        sending.resolve(1, true, None);
        sending.senders[0] = None;
        let settled = sending.answers.settled(|sent, returned, _| sent == returned);
        assert!(matches!(settled.now_or_never().unwrap(), Err(Unclaimed::Failed("gone"))));
    }
}
