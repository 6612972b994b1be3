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

/// How often a message that is nacked is published again before it is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NackRetries(u32);

impl NackRetries {
    /// The most that may be asked for: with the delays above, a day.
    pub const MAX: u32 = 8_640;

    /// Unless told otherwise: as long as a lost connection is tried again, so that a full queue has
    /// time to drain.
    pub const DEFAULT: NackRetries = NackRetries(LOSSES_MAX - 1);

    /// Returns so many retries, if that is not more than [`NackRetries::MAX`].
    pub fn new(retries: u32) -> Option<Self> {
        (retries <= Self::MAX).then_some(NackRetries(retries))
    }

    /// Returns how many they are.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for NackRetries {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What is left of the budgets; both are refilled by any progress.
#[derive(Debug)]
pub(crate) struct Retry {
    losses: u32,
    nacks: u32,
    nack_retries: NackRetries,
}

/// The budget is used up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Retry {
    pub(crate) fn new(nack_retries: NackRetries) -> Self {
        Retry { losses: 0, nacks: 0, nack_retries }
    }

    /// Notes a lost or refused connection; returns how long to wait.
    pub(crate) fn lost(&mut self) -> Result<Duration, Exhausted> {
        Self::again(&mut self.losses, LOSSES_MAX - 1)
    }

    /// Notes a nack of the first unconfirmed message; returns how long to wait.
    pub(crate) fn nacked(&mut self) -> Result<Duration, Exhausted> {
        Self::again(&mut self.nacks, self.nack_retries.0)
    }

    /// Returns how often the first unconfirmed message was nacked once its budget is used up.
    pub(crate) fn nacks_max(&self) -> u32 {
        self.nack_retries.0 + 1
    }

    /// Notes that a message was confirmed.
    pub(crate) fn progressed(&mut self) {
        *self = Retry::new(self.nack_retries);
    }

    fn again(count: &mut u32, most: u32) -> Result<Duration, Exhausted> {
        if *count >= most {
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
        let mut retry = Retry::new(NackRetries::new(2).unwrap());
        let delays: Vec<u64> = (1..LOSSES_MAX)
            .map(|_| u64::try_from(retry.lost().unwrap().as_millis()).unwrap())
            .collect();
        assert_eq!(delays[..8], [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000]);
        assert!(delays[8..].iter().all(|delay| *delay == 10_000));
        assert_eq!(retry.lost(), Err(Exhausted));
        assert!(retry.nacked().is_ok(), "nacks have their own budget");
        assert!(retry.nacked().is_ok());
        assert_eq!(retry.nacked(), Err(Exhausted));
        retry.progressed();
        assert!(retry.nacked().is_ok());
        assert_eq!(retry.lost(), Ok(DELAY_MIN));
    }
}
