//! How often and how patiently to try again.
//!
//! Delays have no jitter: one replay is one publisher, and there is no herd to spread out.

use std::time::Duration;

/// The first delay: longer than a broker's own hiccup, shorter than an operator's patience.
const DELAY_MIN: Duration = Duration::from_millis(100);

/// The longest delay: a broker that is back is noticed within this.
const DELAY_MAX: Duration = Duration::from_secs(10);

/// How often in a row, without one confirm, a connection may be lost or refused. With the delays
/// above that is about five and a half minutes: a broker's restart, or a cluster's failover.
pub(crate) const LOSSES_MAX: u32 = 40;

/// How often in a row one message may be nacked before it is rejected: as long, so that a full
/// queue has time to drain.
pub(crate) const NACKS_MAX: u32 = 40;

/// What is left of the budgets; both are refilled by any progress.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    losses: u32,
    nacks: u32,
}

/// The budget is used up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Retry {
    /// Notes a lost or refused connection; returns how long to wait.
    pub(crate) fn lost(&mut self) -> Result<Duration, Exhausted> {
        Self::again(&mut self.losses, LOSSES_MAX)
    }

    /// Notes a nack of the first unconfirmed message; returns how long to wait.
    pub(crate) fn nacked(&mut self) -> Result<Duration, Exhausted> {
        Self::again(&mut self.nacks, NACKS_MAX)
    }

    /// Notes that a message was confirmed.
    pub(crate) fn progressed(&mut self) {
        *self = Retry::default();
    }

    fn again(count: &mut u32, most: u32) -> Result<Duration, Exhausted> {
        if *count + 1 >= most {
            return Err(Exhausted);
        }
        let delay = DELAY_MIN.saturating_mul(2_u32.saturating_pow(*count)).min(DELAY_MAX);
        *count += 1;
        Ok(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_the_budget_ends() {
        let mut retry = Retry::default();
        let delays: Vec<u64> = (1..LOSSES_MAX)
            .map(|_| u64::try_from(retry.lost().unwrap().as_millis()).unwrap())
            .collect();
        assert_eq!(delays[..8], [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000]);
        assert!(delays[8..].iter().all(|delay| *delay == 10_000));
        assert_eq!(retry.lost(), Err(Exhausted));
        assert!(retry.nacked().is_ok(), "nacks have their own budget");
        retry.progressed();
        assert_eq!(retry.lost(), Ok(DELAY_MIN));
    }
}
