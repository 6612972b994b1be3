//! How many deliveries to ask for at once, learned from how large they are.
//!
//! AMQP bounds what is delivered and not acked by number alone, and RabbitMQ drops a consumer that
//! does not read for 15 seconds. So a prefetch that is right for bodies of 4 KB could fill the
//! memory with larger ones while a store is slow. A consumer whose waiting deliveries grow past
//! their bound therefore gives all of them back and consumes again with a smaller prefetch; after
//! many small ones it grows again. Each such step costs a reconnection and no event.

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use dacapo_event::Message;

/// A prefetch is raised after so many times as many acked deliveries: what a step costs, at most a
/// prefetch of repeated deliveries, stays a small part of the work.
const CALM_TIMES: u64 = 16;

/// A prefetch is raised by this factor.
const GROWTH: u16 = 4;

/// A prefetch is raised only if never more than this part of the bound was waiting.
const CALM_PART: u64 = 8;

/// The prefetch of a queue's consumers, from one connection to the next.
#[derive(Debug)]
pub(crate) struct Appetite {
    most: NonZeroU16,
    now: AtomicU16,
    waiting_bytes_max: u64,
}

/// What one connection has delivered and nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    bytes: AtomicU64,
    peak: AtomicU64,
}

impl Appetite {
    /// Begins with a prefetch, which is also the most there will be.
    pub(crate) fn new(most: NonZeroU16, waiting_bytes_max: u64) -> Self {
        Appetite { most, now: AtomicU16::new(most.get()), waiting_bytes_max }
    }

    /// Returns the prefetch to consume with.
    pub(crate) fn prefetch(&self) -> NonZeroU16 {
        NonZeroU16::new(self.now.load(Ordering::Relaxed)).unwrap_or(NonZeroU16::MIN)
    }

    /// Returns the prefetch to consume with instead, if more waits than may: `held` deliveries are
    /// not acked.
    pub(crate) fn too_much(&self, waiting: &Waiting, held: u64) -> Option<NonZeroU16> {
        let now = self.prefetch();
        if now == NonZeroU16::MIN || waiting.bytes() <= self.waiting_bytes_max {
            return None;
        }
        let half = u16::try_from(held / 2).unwrap_or(u16::MAX).min(now.get() / 2);
        Some(self.set(half.max(1)))
    }

    /// Returns the prefetch to consume with instead, if it was small for long enough: this
    /// connection has acked so many deliveries.
    pub(crate) fn too_little(&self, waiting: &Waiting, acked: u64) -> Option<NonZeroU16> {
        let now = self.prefetch();
        let calm = waiting.peak() <= self.waiting_bytes_max / CALM_PART
            && acked >= u64::from(now.get()) * CALM_TIMES;
        (calm && now < self.most)
            .then(|| self.set(now.get().saturating_mul(GROWTH).min(self.most.get())))
    }

    fn set(&self, prefetch: u16) -> NonZeroU16 {
        self.now.store(prefetch, Ordering::Relaxed);
        self.prefetch()
    }
}

impl Waiting {
    /// Counts a message that waits from now on.
    pub(crate) fn add(&self, message: &Message) {
        let before = self.bytes.fetch_add(weight(message), Ordering::Relaxed);
        self.peak.fetch_max(before + weight(message), Ordering::Relaxed);
    }

    /// Counts one that does not wait any more.
    pub(crate) fn remove(&self, message: &Message) {
        self.bytes.fetch_sub(weight(message), Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

/// Returns about how many bytes a message takes: its body, and properties with a few headers.
fn weight(message: &Message) -> u64 {
    const FIXED_BYTES: u64 = 512;
    FIXED_BYTES + message.body.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 1_000_000;

    fn appetite(most: u16) -> Appetite {
        Appetite::new(NonZeroU16::new(most).unwrap(), MAX)
    }

    fn waiting(bytes: usize) -> Waiting {
        let waiting = Waiting::default();
        waiting.add(&Message { body: vec![0; bytes].into(), ..Message::default() });
        waiting
    }

    fn number(prefetch: Option<NonZeroU16>) -> Option<u16> {
        prefetch.map(NonZeroU16::get)
    }

    #[test]
    fn large_deliveries_make_it_smaller_down_to_one() {
        let appetite = appetite(1_000);
        assert_eq!(appetite.too_much(&waiting(MAX as usize - 600), 900), None);
        let large = waiting(2 * MAX as usize);
        assert_eq!(number(appetite.too_much(&large, 40)), Some(20));
        assert_eq!(number(appetite.too_much(&large, 20)), Some(10));
        assert_eq!(number(appetite.too_much(&large, 1)), Some(1));
        assert_eq!(appetite.too_much(&large, 1), None, "one at a time has to fit");
    }

    #[test]
    fn many_small_ones_make_it_larger_up_to_what_was_asked_for() {
        let appetite = appetite(1_000);
        appetite.set(100);
        let calm = waiting(10);
        assert_eq!(appetite.too_little(&calm, 1_599), None);
        assert_eq!(number(appetite.too_little(&calm, 1_600)), Some(400));
        assert_eq!(number(appetite.too_little(&calm, 6_400)), Some(1_000));
        assert_eq!(appetite.too_little(&calm, u64::MAX), None);
    }

    #[test]
    fn it_does_not_grow_where_much_was_waiting() {
        let appetite = appetite(1_000);
        appetite.set(100);
        let once_much = waiting(MAX as usize / 2);
        once_much.remove(&Message { body: vec![0; MAX as usize / 2].into(), ..Message::default() });
        assert_eq!(once_much.bytes(), 0);
        assert_eq!(appetite.too_little(&once_much, 1_000_000), None);
    }
}
