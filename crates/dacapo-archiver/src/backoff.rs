//! How long to wait before trying again.

use std::time::Duration;

/// Waits that double up to a bound.
///
/// No jitter: one archiver waits for one store or bus, so there is no herd to spread.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// The first wait: a hiccup of a load balancer is over by then.
    pub(crate) const FIRST: Duration = Duration::from_millis(200);
    /// The longest wait: an outage's end is noticed within half the usual age of a segment.
    pub(crate) const LONGEST: Duration = Duration::from_secs(30);

    pub(crate) const fn new() -> Self {
        Backoff { next: Self::FIRST }
    }

    /// Returns how long to wait now; the next wait is twice as long.
    pub(crate) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(Self::LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_bounded() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..10).map(|_| backoff.wait().as_millis()).collect();
        let expected = [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000];
        assert_eq!(waits, expected);
    }
}
