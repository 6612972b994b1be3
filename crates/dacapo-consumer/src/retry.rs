//! When to try an event again, and when to give it up: plain decisions, without a clock.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::handler::Failure;

/// How often and after which waits an event is tried.
///
/// The event at the head is waited for, so that order holds: all waits together are how long one
/// poisonous event holds up the others, and must stay well under 15 minutes, after which deliveries
/// go back to the queue, and attempts are counted anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts before it becomes a dead letter.
    pub attempts: NonZeroU32,
    /// The first wait; each further one is twice as long.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Retry {
    /// Five attempts hold others up for three seconds, which outlasts a lock or a failover of a
    /// dependency that is called; an outage is [`Failure::Unavailable`] and has no limit.
    const ATTEMPTS: NonZeroU32 = NonZeroU32::new(5).expect("it is not 0");
    /// A hiccup is over by then.
    const FIRST: Duration = Duration::from_millis(200);
    /// The end of an outage is noticed within what a person takes for at once.
    const LONGEST: Duration = Duration::from_secs(10);
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: Self::ATTEMPTS, first: Self::FIRST, longest: Self::LONGEST }
    }
}

/// Waits that double up to a bound.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(retry: &Retry) -> Self {
        Backoff { first: retry.first, longest: retry.longest, next: retry.first }
    }

    /// Returns how long to wait now.
    pub(crate) fn wait(&mut self) -> Duration {
        let wait = self.next.min(self.longest);
        self.next = wait.saturating_mul(2);
        wait
    }

    /// Begins anew, after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// What to do after a failure.
#[derive(Debug)]
pub(crate) enum Next {
    Again(Duration),
    GiveUp,
}

/// The attempts that one event has left.
#[derive(Debug)]
pub(crate) struct Budget {
    left: u32,
    waits: Backoff,
    /// Waits for what is not there have a backoff of their own, as they use up no attempt.
    outage: Backoff,
}

impl Budget {
    pub(crate) fn new(retry: &Retry) -> Self {
        let (waits, outage) = (Backoff::new(retry), Backoff::new(retry));
        Budget { left: retry.attempts.get(), waits, outage }
    }

    pub(crate) fn after(&mut self, failure: &Failure) -> Next {
        match failure {
            Failure::Poison(_) => Next::GiveUp,
            Failure::Unavailable(_) => Next::Again(self.outage.wait()),
            Failure::Retry(_) => {
                self.outage.reset();
                self.left = self.left.saturating_sub(1);
                if self.left == 0 { Next::GiveUp } else { Next::Again(self.waits.wait()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry {
        attempts: NonZeroU32::new(4).unwrap(),
        first: Duration::from_millis(100),
        longest: Duration::from_millis(300),
    };

    /// Returns the waits in milliseconds, with `None` for giving up.
    fn waits(failures: impl IntoIterator<Item = Failure>) -> Vec<Option<u128>> {
        let mut budget = Budget::new(&RETRY);
        let wait = |failure| match budget.after(&failure) {
            Next::Again(wait) => Some(wait.as_millis()),
            Next::GiveUp => None,
        };
        failures.into_iter().map(wait).collect()
    }

    #[test]
    fn retries_wait_twice_as_long_each_time_and_end() {
        let failures = (0..4).map(|_| Failure::retry("locked"));
        assert_eq!(waits(failures), [Some(100), Some(200), Some(300), None]);
    }

    #[test]
    fn poison_is_given_up_at_once() {
        assert_eq!(waits([Failure::poison("no JSON")]), [None]);
    }

    #[test]
    fn an_outage_uses_up_no_attempt() {
        let outage = (0..50).map(|_| Failure::unavailable("down"));
        let waited = waits(outage.chain((0..4).map(|_| Failure::retry("locked"))));
        assert_eq!(waited[..4], [Some(100), Some(200), Some(300), Some(300)]);
        assert_eq!(waited[50..], [Some(100), Some(200), Some(300), None]);
    }
}
