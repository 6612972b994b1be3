//! How long the bus may have waited for the next ack: plain arithmetic on times that are told.
//!
//! RabbitMQ counts from when it delivered, which is not told; so a bound is kept. A delivery was made
//! after the connection was opened, after the ack that made room for it in the prefetch, and, if it
//! was waited for, about when it came.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::time::Duration;

use tokio::time::Instant;

/// Deliveries are given back to the queue when one may have been held this long: half of RabbitMQ's
/// default `consumer_timeout` (30 min), at which it would close the channel.
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(15 * 60);

/// What lies in memory is taken within this; what took longer has only just come.
const TAKEN_WITHIN: Duration = Duration::from_millis(100);

/// The deliveries of one connection, one of which is handled at a time.
#[derive(Debug)]
pub(super) struct Held {
    /// None of those held was delivered before.
    since: Instant,
    prefetch: Option<NonZeroU16>,
    /// When the latest acks were, at most as many as the prefetch.
    acks: VecDeque<Instant>,
}

impl Held {
    /// Begins with a connection that was opened now.
    pub(super) fn new(prefetch: Option<NonZeroU16>, now: Instant) -> Self {
        Held { since: now, prefetch, acks: VecDeque::new() }
    }

    /// Notes a delivery that was asked for at one time and came at the other.
    pub(super) fn delivered(&mut self, asked: Instant, now: Instant) {
        if now >= asked + TAKEN_WITHIN {
            self.since = now;
        }
    }

    /// Notes an ack, which lets the bus deliver one more.
    pub(super) fn acked(&mut self, now: Instant) {
        // Without a bound everything may have been delivered at once.
        let Some(prefetch) = self.prefetch else { return };
        self.acks.push_back(now);
        // The next to be handled was delivered after the ack that lies a prefetch before it.
        if self.acks.len() >= usize::from(prefetch.get())
            && let Some(room_made) = self.acks.pop_front()
        {
            self.since = self.since.max(room_made);
        }
    }

    /// Returns whether a delivery may have been held for too long.
    pub(super) fn too_long(&self, now: Instant) -> bool {
        now >= self.since + HOLD_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn held(prefetch: u16, start: Instant) -> Held {
        Held::new(NonZeroU16::new(prefetch), start)
    }

    #[test]
    fn what_came_with_the_opening_is_held_since_then_whatever_was_acked_before_it() {
        let start = Instant::now();
        let mut held = held(3, start);
        for minute in [5, 10] {
            held.acked(start + minute * MINUTE);
        }
        assert!(!held.too_long(start + 14 * MINUTE));
        assert!(held.too_long(start + 15 * MINUTE));
    }

    #[test]
    fn what_an_ack_made_room_for_is_held_since_that_ack() {
        let start = Instant::now();
        let mut held = held(3, start);
        for minute in [5, 10, 12] {
            held.acked(start + minute * MINUTE);
        }
        assert!(!held.too_long(start + 19 * MINUTE));
        assert!(held.too_long(start + 20 * MINUTE));
    }

    #[test]
    fn what_was_waited_for_is_held_since_it_came() {
        let start = Instant::now();
        let mut held = held(3, start);
        held.delivered(start, start + 60 * MINUTE);
        assert!(!held.too_long(start + 74 * MINUTE));
        held.delivered(start + 70 * MINUTE, start + 70 * MINUTE);
        assert!(held.too_long(start + 75 * MINUTE));
    }

    #[test]
    fn without_a_prefetch_everything_may_have_come_with_the_opening() {
        let start = Instant::now();
        let mut held = Held::new(None, start);
        held.acked(start + 10 * MINUTE);
        assert!(held.too_long(start + 15 * MINUTE));
    }
}
