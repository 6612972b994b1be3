//! Decides how many messages may go now, or when to ask again.
//!
//! governor does the limiting, on a clock of ours: it follows tokio's (which tests can pause), and
//! while a rate ramps up it runs slower than time does, so that a constant rate on it is the
//! rising one in time.

use std::num::NonZeroU32;
use std::time::Duration;

use dacapo_event::Timestamp;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use crate::{Pace, Speed};

/// A bucket holds a 25th of a second's worth (40 ms) and one more: the most that a second can
/// exceed its rate by is 4 %, and a task that was held up for 30 ms still catches up.
const BURSTS_PER_SECOND: u32 = 25;

/// Messages are let go in quarters of a bucket (10 ms worth), so that a timer that fires a
/// millisecond late finds room for what it missed.
const QUANTA_PER_BURST: u32 = 4;

/// Bytes are counted in units of which a second has about a million: governor counts whole
/// nanoseconds for each, and so errs by a thousandth at most.
const BYTE_UNITS_PER_SECOND: u64 = 1_000_000;

/// tokio's timer counts milliseconds; asking again sooner would only spin.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// The longest wait before the due time is looked at again: far ahead of any timer's limit.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

/// The answer to how many messages may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admit {
    /// So many, at least one.
    Now(usize),
    /// None before this moment.
    At(Instant),
}

/// What the pace needs to know of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    pub(crate) time: Timestamp,
    pub(crate) bytes: u64,
}

/// The pace of one run.
#[derive(Debug)]
pub(crate) struct Pacer {
    clock: RampClock,
    events: Option<Bucket>,
    bytes: Option<ByteBucket>,
    timing: Option<Timing>,
}

impl Pacer {
    /// Returns the pace of a run that begins `now`, when the ramp begins too.
    pub(crate) fn new(pace: &Pace, now: Instant) -> Self {
        let clock = RampClock { origin: now, ramp: pace.ramp.unwrap_or_default() };
        let events = pace.rate.map(|rate| {
            // Rounded up: a rate is never exceeded for want of a fraction of a nanosecond.
            let period = Duration::from_nanos(NANOS_PER_SECOND.div_ceil(u64::from(rate.get())));
            Bucket::new(clock, period, rate.get())
        });
        let bytes = pace.byte_rate.map(|rate| ByteBucket::new(clock, rate.get()));
        let timing = pace.speed.map(|speed| Timing { speed, anchor: None, held: None });
        Pacer { clock, events, bytes, timing }
    }

    /// Notes that publishing is held up on purpose from `now` on: the original timing then waits
    /// too, instead of catching up all at once.
    pub(crate) fn hold(&mut self, now: Instant) {
        if let Some(timing) = &mut self.timing {
            timing.held.get_or_insert(now);
        }
    }

    /// Returns how many of `next` may go; they then count as gone. `next` is not empty.
    pub(crate) fn admit(&mut self, now: Instant, next: impl Iterator<Item = Due> + Clone) -> Admit {
        let mut count = next.clone().count();
        if let Some(timing) = &mut self.timing {
            match timing.due(now, next.clone()) {
                Admit::Now(due) => count = due,
                wait @ Admit::At(_) => return wait,
            }
        }
        if let Some(bytes) = &mut self.bytes {
            match bytes.pay(next.clone().take(count)) {
                Ok(paid) => count = paid,
                Err(earliest) => return self.wait(now, earliest),
            }
        }
        if let Some(events) = &self.events {
            match events.take(u32::try_from(count).unwrap_or(u32::MAX)) {
                Ok(taken) => count = taken as usize,
                Err(earliest) => return self.wait(now, earliest),
            }
        }
        if let Some(bytes) = &mut self.bytes {
            bytes.spend(next.take(count));
        }
        Admit::Now(count)
    }

    fn wait(&self, now: Instant, earliest: Duration) -> Admit {
        Admit::At(self.clock.instant_of(earliest).clamp(now + TIMER_GRAIN, now + WAIT_MAX))
    }
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// tokio's time since the run began, slowed while the rate ramps up: after `t` of a ramp of `r` it
/// shows `t²/2r`, whose slope rises evenly from 0 to 1.
#[derive(Debug, Clone, Copy)]
struct RampClock {
    origin: Instant,
    ramp: Duration,
}

impl RampClock {
    /// Returns the moment at which this clock shows `shown`.
    fn instant_of(&self, shown: Duration) -> Instant {
        let elapsed = if shown >= self.ramp / 2 {
            shown + self.ramp / 2
        } else {
            Duration::from_secs_f64((2.0 * shown.as_secs_f64() * self.ramp.as_secs_f64()).sqrt())
        };
        self.origin + elapsed
    }
}

impl Clock for RampClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        let elapsed = self.origin.elapsed();
        if elapsed >= self.ramp {
            elapsed - self.ramp / 2
        } else {
            let seconds = elapsed.as_secs_f64();
            Duration::from_secs_f64(seconds * seconds / (2.0 * self.ramp.as_secs_f64()))
        }
    }
}

/// One limit of governor's.
#[derive(Debug)]
struct Bucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, RampClock, NoOpMiddleware<Duration>>,
    burst: NonZeroU32,
    quantum: u32,
}

impl Bucket {
    fn new(clock: RampClock, period: Duration, per_second: u32) -> Self {
        let burst = NonZeroU32::MIN.saturating_add(per_second / BURSTS_PER_SECOND);
        let quota = Quota::with_period(period).expect("a period is at least a nanosecond");
        let limiter = RateLimiter::direct_with_clock(quota.allow_burst(burst), clock);
        let bucket = Bucket { limiter, burst, quantum: (burst.get() / QUANTA_PER_BURST).max(1) };
        if !clock.ramp.is_zero() {
            // A ramp begins at zero, not with a full bucket.
            bucket.take(burst.get()).expect("a new bucket is full");
        }
        bucket
    }

    /// Takes up to `wanted` at once, or says when a quantum (or all, if fewer) can be had, in the
    /// clock's time.
    fn take(&self, wanted: u32) -> Result<u32, Duration> {
        let most = wanted.min(self.burst.get());
        self.take_exactly(most).or_else(|_| self.take_exactly(most.min(self.quantum)))
    }

    fn take_exactly(&self, count: u32) -> Result<u32, Duration> {
        let Some(cells) = NonZeroU32::new(count) else { return Ok(0) };
        match self.limiter.check_n(cells).expect("no more than the bucket holds is asked for") {
            Ok(()) => Ok(count),
            Err(not_until) => Err(not_until.earliest_possible()),
        }
    }
}

/// A limit on bytes: messages are paid for before they go, a large one little by little.
#[derive(Debug)]
struct ByteBucket {
    bucket: Bucket,
    /// Bytes to the unit that the bucket counts.
    unit: u64,
    /// Bytes paid for messages that did not go yet.
    paid: u64,
}

impl ByteBucket {
    fn new(clock: RampClock, rate: u64) -> Self {
        let unit = rate.div_ceil(BYTE_UNITS_PER_SECOND);
        let period = u128::from(unit) * u128::from(NANOS_PER_SECOND);
        let period = u64::try_from(period.div_ceil(u128::from(rate)));
        let period =
            Duration::from_nanos(period.expect("at most a second: a unit is at most the rate"));
        let per_second = u32::try_from(rate / unit).expect("at most a million");
        ByteBucket { bucket: Bucket::new(clock, period, per_second), unit, paid: 0 }
    }

    /// Pays for the first messages of `next`, a quantum's worth or at least one, and returns how
    /// many; or says when to go on paying.
    fn pay(&mut self, next: impl Iterator<Item = Due>) -> Result<usize, Duration> {
        let quantum = u64::from(self.bucket.quantum) * self.unit;
        let (mut count, mut needed) = (0, 0);
        for due in next {
            if count > 0 && needed + due.bytes > quantum {
                break;
            }
            count += 1;
            needed += due.bytes;
        }
        while self.paid < needed {
            let units = (needed - self.paid).div_ceil(self.unit);
            let taken = self.bucket.take(u32::try_from(units).unwrap_or(u32::MAX))?;
            self.paid += u64::from(taken) * self.unit;
        }
        Ok(count)
    }

    fn spend(&mut self, gone: impl Iterator<Item = Due>) {
        self.paid -= gone.map(|due| due.bytes).sum::<u64>();
    }
}

/// The original timing.
#[derive(Debug)]
struct Timing {
    speed: Speed,
    /// The first event's time, and when it was due.
    anchor: Option<(Timestamp, Instant)>,
    /// Since when publishing is held up on purpose.
    held: Option<Instant>,
}

impl Timing {
    fn due(&mut self, now: Instant, next: impl Iterator<Item = Due>) -> Admit {
        if let (Some(since), Some((_, anchor))) = (self.held.take(), &mut self.anchor) {
            *anchor += now.saturating_duration_since(since);
        }
        let mut count = 0;
        for Due { time, .. } in next {
            let (first, anchor) = *self.anchor.get_or_insert((time, now));
            // A time before the first event's is due at once: order counts for more.
            let due = anchor.checked_add(self.speed.scale(time.since(first)));
            let due = due.unwrap_or(now + WAIT_MAX);
            if due > now {
                return if count > 0 {
                    Admit::Now(count)
                } else {
                    Admit::At(due.min(now + WAIT_MAX))
                };
            }
            count += 1;
        }
        Admit::Now(count)
    }
}

#[cfg(test)]
mod tests;
