//! When a segment is finished: a pure function of what was taken and the time.

use std::num::{NonZeroU16, NonZeroU64};
use std::time::Duration;

use dacapo_event::MemoryBudget;
use tokio::time::Instant;

/// When the segment being filled is sealed and put: at whichever limit is reached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollPolicy {
    /// Bytes of the object, as far as they are encoded.
    pub bytes: usize,
    /// Time since its first delivery; cut to [`RollPolicy::AGE_MAX`].
    pub age: Duration,
    /// Deliveries taken and not acked, replayed ones among them.
    ///
    /// Must be below the prefetch of the source, or the bus stops delivering before it is reached
    /// and only `age` finishes a segment.
    pub deliveries: NonZeroU64,
}

impl RollPolicy {
    /// The share of the default budget. Large enough that requests cost nothing beside the bytes and
    /// a scan reads few footers (60 GB are some 1,000 objects of compressed JSON); small enough that
    /// one in flight and one being filled, each with a body of 16 MiB more, fit the budget.
    pub const BYTES: usize = MemoryBudget::DEFAULT.segment() as usize;

    /// What a platform can lose with its broker: events younger than this may be on the bus only.
    pub const AGE: Duration = Duration::from_secs(60);

    /// Far below RabbitMQ's `consumer_timeout` of 30 minutes, and below the time after which
    /// deliveries are given back.
    pub const AGE_MAX: Duration = Duration::from_secs(600);

    /// The prefetch to consume with: just under the 65,535 that AMQP can say.
    pub const PREFETCH: u16 = 60_000;

    /// Half the prefetch, so that the next segment fills while the last one is put.
    pub const DELIVERIES: NonZeroU64 =
        NonZeroU64::new(Self::PREFETCH as u64 / 2).expect("the prefetch is not that small");

    /// Returns the defaults for a source with this prefetch.
    pub fn for_prefetch(prefetch: u16) -> Self {
        RollPolicy::default().within(NonZeroU16::new(prefetch))
    }

    /// Returns the policy for a source that has this prefetch: with no more than half of it in a
    /// segment.
    pub(crate) fn within(self, prefetch: Option<NonZeroU16>) -> Self {
        let half = |prefetch: NonZeroU16| NonZeroU64::new(u64::from(prefetch.get()) / 2);
        let half = prefetch.map(|prefetch| half(prefetch).unwrap_or(NonZeroU64::MIN));
        let deliveries = half.map_or(self.deliveries, |half| half.min(self.deliveries));
        RollPolicy { deliveries, ..self }
    }
}

impl Default for RollPolicy {
    fn default() -> Self {
        RollPolicy { bytes: Self::BYTES, age: Self::AGE, deliveries: Self::DELIVERIES }
    }
}

/// What is in the segment being filled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Deliveries taken, replayed ones among them.
    pub(crate) deliveries: u64,
    /// About how many bytes the object has so far.
    pub(crate) bytes: usize,
    /// When the first delivery was taken.
    pub(crate) since: Option<Instant>,
}

/// What to do with the segment being filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Roll {
    /// It is empty.
    Empty,
    /// Take more, but seal it at this moment, which is in the future.
    At(Instant),
    /// It is old enough; until it is sealed there is room for more.
    Old,
    /// It is full: seal it and take no more until then.
    Full,
}

/// Decides.
pub(crate) fn decide(policy: &RollPolicy, filled: &Filled, now: Instant) -> Roll {
    let Some(since) = filled.since else { return Roll::Empty };
    let due = since + policy.age.min(RollPolicy::AGE_MAX);
    if filled.bytes >= policy.bytes || filled.deliveries >= policy.deliveries.get() {
        Roll::Full
    } else if now >= due {
        Roll::Old
    } else {
        Roll::At(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Checks what is decided under 1,000 bytes, 60 s and 10 deliveries.
    #[track_caller]
    fn check(deliveries: u64, bytes: usize, age: Duration, expected: fn(Instant) -> Roll) {
        let deliveries_max = NonZeroU64::new(10).unwrap();
        let policy = RollPolicy { bytes: 1_000, age: 60 * SECOND, deliveries: deliveries_max };
        let since = Instant::now();
        let filled = Filled { deliveries, bytes, since: (deliveries > 0).then_some(since) };
        assert_eq!(decide(&policy, &filled, since + age), expected(since));
    }

    #[test]
    fn each_limit_is_exact() {
        check(0, 0, 90 * SECOND, |_| Roll::Empty);
        check(1, 10, SECOND, |since| Roll::At(since + 60 * SECOND));
        check(9, 999, 59 * SECOND, |since| Roll::At(since + 60 * SECOND));
        check(1, 10, 60 * SECOND, |_| Roll::Old);
        check(1, 1_000, SECOND, |_| Roll::Full);
        check(10, 10, SECOND, |_| Roll::Full);
        check(10, 10, 90 * SECOND, |_| Roll::Full);
    }

    #[test]
    fn an_age_that_would_near_the_consumer_timeout_is_cut() {
        let policy = RollPolicy { age: 3_600 * SECOND, ..RollPolicy::default() };
        let since = Instant::now();
        let filled = Filled { deliveries: 1, bytes: 1, since: Some(since) };
        assert_eq!(decide(&policy, &filled, since + RollPolicy::AGE_MAX), Roll::Old);
    }

    #[test]
    fn a_prefetch_of_one_still_rolls() {
        assert_eq!(RollPolicy::for_prefetch(1).deliveries.get(), 1);
        assert_eq!(RollPolicy::for_prefetch(RollPolicy::PREFETCH), RollPolicy::default());
    }
}
