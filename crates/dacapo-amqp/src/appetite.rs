//! How many deliveries to ask for at once, learned from how large they are.
//!
//! AMQP bounds what is delivered and not acked by number alone, and RabbitMQ drops a consumer that
//! does not read for 15 seconds. So a prefetch that is right for bodies of 4 KB could fill the
//! memory with larger ones while a store is slow. A consumer whose waiting deliveries grow past
//! their bound therefore hands out no more than these, drops what else comes, and is opened anew with
//! a smaller prefetch once they are acked.
//!
//! It begins with as many as fit if they are events of 4 KB: after an outage a full queue is what an
//! archiver finds, and what was delivered for nothing the broker has to put back.
//!
//! Whether it may grow is judged over and over, by one stretch of deliveries after the other,
//! so that what was once large is forgotten. Each step costs a reconnection, no event and no repeat.

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use dacapo_event::Message;

/// A stretch is at least so many times as many deliveries as the prefetch while nothing was too large:
/// an archiver of small events makes small segments until its prefetch has grown.
const PATIENCE_FIRST: u16 = 2;

/// And so many times at least after a step down: what a step costs, at most a prefetch of repeated
/// deliveries, stays a small part of the work.
const PATIENCE_MIN: u16 = 16;

/// And at most so many times: where steps up are taken back again and again, they are a thousandth
/// of the work.
const PATIENCE_MAX: u16 = 1_024;

/// What a delivery is taken to weigh before any has come: a body of 4 KB and what it has beside it.
const WEIGHT_ASSUMED: u64 = 5 * 1024;

/// A prefetch is raised by this factor at the most.
const GROWTH_MAX: u64 = 4;

/// A single body counts as at most this part of the bound when it is judged whether a prefetch may
/// grow: one has to fit beside any number of small ones, and several at once speak against it.
const SINGLE_PART: u64 = 16;

/// The prefetch of a queue's consumers, from one connection to the next.
#[derive(Debug)]
pub(crate) struct Appetite {
    most: NonZeroU16,
    now: AtomicU16,
    /// How many times the prefetch a stretch is: four times as many after a step down, half as many
    /// after a step up.
    patience: AtomicU16,
    waiting_bytes_max: u64,
}

/// What one connection has delivered and nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    bytes: AtomicU64,
    /// What counts of a single body in `tempered`.
    single_max: u64,
    /// The same bytes, but of a single body no more than `single_max`.
    tempered: AtomicU64,
    /// The most of `tempered` in this stretch.
    peak: AtomicU64,
    /// How many deliveries were acked when this stretch began.
    began: AtomicU64,
    /// Whether the connection hands out no more than this: another prefetch is to be consumed with.
    last: AtomicBool,
}

impl Appetite {
    /// Begins with `most`, more than which it will never be, or with what fits of events of 4 KB.
    pub(crate) fn new(most: NonZeroU16, waiting_bytes_max: u64) -> Self {
        let fits = u16::try_from(waiting_bytes_max / WEIGHT_ASSUMED).unwrap_or(u16::MAX);
        Appetite {
            most,
            now: AtomicU16::new(fits.clamp(1, most.get())),
            patience: AtomicU16::new(PATIENCE_FIRST),
            waiting_bytes_max,
        }
    }

    /// Returns the prefetch to consume with.
    pub(crate) fn prefetch(&self) -> NonZeroU16 {
        NonZeroU16::new(self.now.load(Ordering::Relaxed)).unwrap_or(NonZeroU16::MIN)
    }

    /// Returns what waits on a new connection: nothing.
    pub(crate) fn nothing_waiting(&self) -> Waiting {
        Waiting {
            bytes: AtomicU64::new(0),
            single_max: self.waiting_bytes_max / SINGLE_PART,
            tempered: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            began: AtomicU64::new(0),
            last: AtomicBool::new(false),
        }
    }

    /// Returns the prefetch to consume with instead, if more waits than may: `held` deliveries are
    /// not acked.
    pub(crate) fn too_much(&self, waiting: &Waiting, held: u64) -> Option<NonZeroU16> {
        let now = self.prefetch();
        if now == NonZeroU16::MIN || waiting.bytes() <= self.waiting_bytes_max {
            return None;
        }
        let half = u16::try_from(held / 2).unwrap_or(u16::MAX).min(now.get() / 2);
        let patience = self.patience().saturating_mul(4).clamp(PATIENCE_MIN, PATIENCE_MAX);
        Some(self.step(half.max(1), patience))
    }

    /// Returns the prefetch to consume with instead, if it was too small for a whole stretch: this
    /// connection has acked so many deliveries.
    pub(crate) fn too_little(&self, waiting: &Waiting, acked: u64) -> Option<NonZeroU16> {
        let now = self.prefetch();
        let stretch = u64::from(now.get()) * u64::from(self.patience());
        if now == self.most || acked - waiting.began() < stretch {
            return None;
        }
        // So much more at once that it would still be half of what may wait.
        let growth = (self.waiting_bytes_max / 2 / waiting.peak().max(1)).min(GROWTH_MAX);
        if growth < 2 {
            waiting.begin_stretch(acked);
            return None;
        }
        let prefetch = u64::from(now.get()) * growth;
        let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX).min(self.most.get());
        // Once something was too large it stays above the least for that.
        let patience = self.patience();
        Some(self.step(prefetch, (patience / 2).max(patience.min(PATIENCE_MIN))))
    }

    fn patience(&self) -> u16 {
        self.patience.load(Ordering::Relaxed)
    }

    fn step(&self, prefetch: u16, patience: u16) -> NonZeroU16 {
        self.now.store(prefetch, Ordering::Relaxed);
        self.patience.store(patience, Ordering::Relaxed);
        self.prefetch()
    }
}

/// Counted up and judged by the connection, counted down by whoever takes a delivery.
impl Waiting {
    /// Counts a message that waits from now on.
    pub(crate) fn add(&self, message: &Message) {
        let bytes = message.weight() as u64;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let bytes = bytes.min(self.single_max);
        let before = self.tempered.fetch_add(bytes, Ordering::Relaxed);
        self.peak.fetch_max(before + bytes, Ordering::Relaxed);
    }

    /// Counts one that does not wait any more.
    pub(crate) fn remove(&self, message: &Message) {
        let bytes = message.weight() as u64;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.tempered.fetch_sub(bytes.min(self.single_max), Ordering::Relaxed);
    }

    /// Notes that nothing is handed out any more but what waits.
    pub(crate) fn end(&self) {
        self.last.store(true, Ordering::Release);
    }

    /// Returns whether nothing is handed out any more but what waits.
    pub(crate) fn is_last(&self) -> bool {
        self.last.load(Ordering::Acquire)
    }

    fn begin_stretch(&self, acked: u64) {
        self.began.store(acked, Ordering::Relaxed);
        self.peak.store(self.tempered.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    fn began(&self) -> u64 {
        self.began.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dacapo_event::{FieldTable, FieldValue, Properties, ShortStr};

    use super::*;

    const MAX: u64 = 1_000_000;

    fn appetite(most: u16, now: u16) -> Appetite {
        let appetite = Appetite::new(NonZeroU16::new(most).unwrap(), MAX);
        appetite.step(now, PATIENCE_MIN);
        appetite
    }

    fn of(bytes: u64) -> Message {
        static ZEROS: [u8; 2 * MAX as usize] = [0; 2 * MAX as usize];
        Message { body: Bytes::from_static(&ZEROS[..bytes as usize]), ..Message::default() }
    }

    fn waiting(appetite: &Appetite, bodies: &[u64]) -> Waiting {
        let waiting = appetite.nothing_waiting();
        bodies.iter().for_each(|bytes| waiting.add(&of(*bytes)));
        waiting
    }

    fn number(prefetch: Option<NonZeroU16>) -> Option<u16> {
        prefetch.map(NonZeroU16::get)
    }

    /// A queue that is never empty and a store that keeps up: prefetch after prefetch is delivered,
    /// taken and acked, until so many were. Returns the steps.
    fn consume(appetite: &Appetite, deliveries: u64, body: impl Fn(u64) -> u64) -> Vec<u16> {
        let (mut steps, mut total) = (Vec::new(), 0);
        while total < deliveries {
            let (waiting, mut acked) = (appetite.nothing_waiting(), 0);
            let step = loop {
                let prefetch = u64::from(appetite.prefetch().get());
                let bodies: Vec<Message> =
                    (0..prefetch).map(|nth| of(body(total + acked + nth))).collect();
                let mut held = 0;
                let step = bodies.iter().find_map(|message| {
                    held += 1;
                    waiting.add(message);
                    appetite.too_much(&waiting, held)
                });
                if step.is_some() || total + acked >= deliveries {
                    break step;
                }
                bodies.iter().for_each(|message| waiting.remove(message));
                acked += prefetch;
                if let Some(step) = appetite.too_little(&waiting, acked) {
                    break Some(step);
                }
            };
            total += acked.max(1);
            steps.extend(number(step));
        }
        steps
    }

    #[test]
    fn it_begins_with_what_fits_and_grows_to_what_was_asked_for_where_little_waits() {
        #[track_caller]
        fn check(most: u16, waiting_bytes_max: u64, expected: u16) {
            let most = NonZeroU16::new(most).unwrap();
            assert_eq!(Appetite::new(most, waiting_bytes_max).prefetch().get(), expected);
        }
        check(60_000, 32 * 1024 * 1024, 6_553);
        check(1_000, 32 * 1024 * 1024, 1_000);
        check(60_000, 1_000, 1);
        check(u16::MAX, u64::MAX, u16::MAX);

        // Soon: until then an archiver's segments are no larger than its prefetch.
        let appetite = Appetite::new(NonZeroU16::new(600).unwrap(), MAX);
        assert_eq!(consume(&appetite, 3 * 195, |_| 4), [600], "from 195");
        assert_eq!(appetite.prefetch().get(), 600);
    }

    /// A full queue of events of 4 KB and an archiver that is slower than the broker: a prefetch of
    /// them was sent, and most of it put back, at each start.
    #[test]
    fn a_full_queue_of_events_of_4_kb_is_taken_without_a_step_down() {
        let appetite = Appetite::new(NonZeroU16::new(60_000).unwrap(), 32 * MAX);
        let steps = consume(&appetite, 100_000, |_| 4_000);
        assert!(steps.is_empty(), "{steps:?}");
    }

    /// Headers counted for nothing: bodies that are empty may come with a megabyte of them.
    #[test]
    fn large_headers_make_it_smaller_too() {
        let appetite = appetite(1_000, 1_000);
        let field = |n: u32| (ShortStr::try_from(&*n.to_string()).unwrap(), FieldValue::Void);
        let headers: FieldTable = (0..10_000).map(field).collect();
        let properties = Properties { headers: Some(headers), ..Properties::default() };
        let message = Message { properties, ..Message::default() };
        let waiting = appetite.nothing_waiting();
        waiting.add(&message);
        waiting.add(&message);
        assert_eq!(number(appetite.too_much(&waiting, 2)), Some(1));
        waiting.remove(&message);
        waiting.remove(&message);
        assert_eq!(waiting.bytes(), 0);
    }

    #[test]
    fn large_deliveries_make_it_smaller_down_to_one() {
        let appetite = appetite(1_000, 1_000);
        assert_eq!(appetite.too_much(&waiting(&appetite, &[MAX - 600]), 900), None);
        let large = waiting(&appetite, &[2 * MAX]);
        assert_eq!(number(appetite.too_much(&large, 40)), Some(20));
        assert_eq!(number(appetite.too_much(&large, 20)), Some(10));
        assert_eq!(number(appetite.too_much(&large, 1)), Some(1));
        assert_eq!(appetite.too_much(&large, 1), None, "one at a time has to fit");
    }

    #[test]
    fn many_small_ones_make_it_larger_up_to_what_was_asked_for() {
        let appetite = appetite(1_000, 100);
        let calm = waiting(&appetite, &[10]);
        assert_eq!(appetite.too_little(&calm, 1_599), None);
        assert_eq!(number(appetite.too_little(&calm, 1_600)), Some(400));
        assert_eq!(number(appetite.too_little(&calm, 6_400)), Some(1_000));
        assert_eq!(appetite.too_little(&calm, u64::MAX), None);
    }

    /// A burst of large ones after every few steps up, and each costs a prefetch of repeats.
    #[test]
    fn after_a_step_down_no_stretch_is_as_short_as_the_first() {
        let appetite = Appetite::new(NonZeroU16::new(1_000).unwrap(), MAX);
        assert_eq!(appetite.patience(), PATIENCE_FIRST);
        let large = waiting(&appetite, &[2 * MAX]);
        assert!(appetite.too_much(&large, 4).is_some());
        let calm = waiting(&appetite, &[4]);
        while appetite.too_little(&calm, u64::MAX).is_some() {
            assert!(appetite.patience() >= PATIENCE_MIN, "{}", appetite.patience());
        }
        assert_eq!(appetite.prefetch().get(), 1_000);
    }

    #[test]
    fn it_grows_by_as_much_as_half_of_what_may_wait_allows() {
        #[track_caller]
        fn check(waiting_once: u64, expected: Option<u16>) {
            let appetite = appetite(1_000, 100);
            let bodies = vec![10_000 - 512; waiting_once as usize / 10_000];
            let waiting = waiting(&appetite, &bodies);
            bodies.iter().for_each(|bytes| waiting.remove(&of(*bytes)));
            assert_eq!(number(appetite.too_little(&waiting, 1_600)), expected);
        }
        check(120_000, Some(400));
        check(160_000, Some(300));
        check(250_000, Some(200));
        check(260_000, None);
    }

    /// The peak was that of the whole connection, which may live for weeks.
    #[test]
    fn a_stretch_in_which_much_waited_is_forgotten_after_it() {
        let appetite = appetite(1_000, 100);
        let bodies = vec![10_000; 50];
        let waiting = waiting(&appetite, &bodies);
        bodies.iter().for_each(|bytes| waiting.remove(&of(*bytes)));
        assert_eq!(appetite.too_little(&waiting, 1_600), None);
        assert_eq!(appetite.too_little(&waiting, 3_199), None);
        assert_eq!(number(appetite.too_little(&waiting, 3_200)), Some(400));
    }

    /// The peak was that of the whole connection: one large body kept the prefetch small for ever.
    #[test]
    fn after_large_bodies_small_ones_bring_it_back_to_the_full() {
        let appetite = appetite(60_000, 60_000);
        let steps = consume(&appetite, 3, |_| MAX / 2);
        assert_eq!(steps.last(), Some(&1), "{steps:?}");
        // Once more a large one comes first on the new connection.
        let small = |nth| if nth == 0 { MAX / 2 } else { 4 };
        let steps = consume(&appetite, 100_000, small);
        assert_eq!(steps, [4, 16, 64, 256, 768], "more would be more than half of the bound");
        let calm = waiting(&appetite, &[4]);
        assert_eq!(number(appetite.too_little(&calm, u64::MAX)), Some(3_072));
    }

    #[test]
    fn a_large_one_now_and_then_leaves_a_prefetch_that_fits_them() {
        let appetite = appetite(1_000, 1);
        let steps = consume(&appetite, 100_000, |nth| if nth % 50 == 7 { MAX / 2 } else { 4 });
        let settled = appetite.prefetch().get();
        assert!((16..=128).contains(&settled), "{settled}: {steps:?}");
    }

    #[test]
    fn nothing_but_large_ones_seldom_make_it_try_more() {
        let appetite = appetite(1_000, 1);
        let steps = consume(&appetite, 10_000, |_| MAX * 3 / 4);
        assert_eq!(appetite.prefetch().get(), 1);
        assert!(steps.len() < 40, "{steps:?}");
    }
}
