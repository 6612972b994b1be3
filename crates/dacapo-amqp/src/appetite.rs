//! How many deliveries to ask for at once, learned from how large they are.
//!
//! AMQP bounds what is delivered and not acked by number alone, and RabbitMQ drops a consumer that
//! does not read for 15 seconds. So a prefetch that is right for bodies of 4 KB could fill the
//! memory with larger ones while a store is slow. A consumer whose waiting deliveries grow past
//! their bound therefore hands out no more than these, drops what else comes, and is opened anew with
//! a smaller prefetch once they are acked. An archiver's first does not read for a while, which holds
//! up in the broker what would not be too much there.
//!
//! It begins with as many as fit if they are events of 4 KB: after an outage a full queue is what an
//! archiver finds, and what was delivered for nothing the broker has to put back. An archiver, which
//! can pause, begins with some times as many, because a segment holds no more than half of them.
//!
//! Whether it may grow is judged over and over, by one stretch of deliveries after the other,
//! so that what was once large is forgotten. Each step costs a reconnection, no event and no repeat.

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use dacapo_event::Message;
use tokio::sync::Notify;

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

/// So many times what may wait is asked for at first where reading can pause.
const ASKED_PARTS: u64 = 4;

/// And so many times that is left in the broker's memory at the most while nobody reads: what is
/// delivered beyond what the socket takes stays there.
const LEFT_PARTS: u64 = 8;

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
    excess: Excess,
}

/// What to do about more deliveries than may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    /// Read no more, until some were taken.
    Pause,
    /// Consume with another prefetch ([`Appetite::step_down`]).
    StepDown,
}

/// What one connection has delivered and nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Waiting {
    bytes: AtomicU64,
    deliveries: AtomicU64,
    /// What `bytes` has to come down to for reading to go on after a pause.
    room_at: u64,
    /// Told when `bytes` comes down to `room_at`.
    room: Notify,
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
        Self::beginning(most, waiting_bytes_max, 1, Excess::StepDown)
    }

    /// Begins with some times as many, for one who takes deliveries even while he waits for an answer:
    /// there may be pauses in which none is read.
    pub(crate) fn pausing(most: NonZeroU16, waiting_bytes_max: u64) -> Self {
        Self::beginning(most, waiting_bytes_max, ASKED_PARTS, Excess::Pause)
    }

    fn beginning(most: NonZeroU16, waiting_bytes_max: u64, parts: u64, excess: Excess) -> Self {
        let asked = waiting_bytes_max.saturating_mul(parts) / WEIGHT_ASSUMED;
        let asked = u16::try_from(asked).unwrap_or(u16::MAX);
        Appetite {
            most,
            now: AtomicU16::new(asked.clamp(1, most.get())),
            patience: AtomicU16::new(PATIENCE_FIRST),
            waiting_bytes_max,
            excess,
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
            deliveries: AtomicU64::new(0),
            room_at: self.waiting_bytes_max / 4 * 3,
            room: Notify::new(),
            single_max: self.waiting_bytes_max / SINGLE_PART,
            tempered: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            began: AtomicU64::new(0),
            last: AtomicBool::new(false),
        }
    }

    /// Returns what to do if more waits than may.
    pub(crate) fn excess(&self, waiting: &Waiting) -> Option<Excess> {
        let (prefetch, bytes) = (self.prefetch(), waiting.bytes());
        if prefetch == NonZeroU16::MIN || bytes <= self.waiting_bytes_max {
            return None;
        }
        let mean = bytes / waiting.deliveries().max(1);
        let left = mean.saturating_mul(u64::from(prefetch.get()));
        match left > self.waiting_bytes_max.saturating_mul(LEFT_PARTS) {
            true => Some(Excess::StepDown),
            false => Some(self.excess),
        }
    }

    /// Returns the prefetch to consume with instead, now that more waits than may: `held` deliveries
    /// are not acked. It is no more than what waits, so that as many of that size fit.
    pub(crate) fn step_down(&self, waiting: &Waiting, held: u64) -> NonZeroU16 {
        let now = self.prefetch();
        let half = (held / 2).min(waiting.deliveries());
        let half = u16::try_from(half).unwrap_or(u16::MAX).min(now.get() / 2);
        let patience = self.patience().saturating_mul(4).clamp(PATIENCE_MIN, PATIENCE_MAX);
        self.step(half.max(1), patience)
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
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let bytes = bytes.min(self.single_max);
        let before = self.tempered.fetch_add(bytes, Ordering::Relaxed);
        self.peak.fetch_max(before + bytes, Ordering::Relaxed);
    }

    /// Counts one that does not wait any more.
    pub(crate) fn remove(&self, message: &Message) {
        let bytes = message.weight() as u64;
        self.deliveries.fetch_sub(1, Ordering::Relaxed);
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        if before > self.room_at && before - bytes <= self.room_at {
            self.room.notify_one();
        }
        self.tempered.fetch_sub(bytes.min(self.single_max), Ordering::Relaxed);
    }

    /// Waits until so little waits that there is room for more. Cancel-safe.
    pub(crate) async fn has_room(&self) {
        // What was told before anybody waited is kept, and may be out of date.
        while self.bytes() > self.room_at {
            self.room.notified().await;
        }
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
        self.bytes.load(Ordering::Acquire)
    }

    fn deliveries(&self) -> u64 {
        self.deliveries.load(Ordering::Relaxed)
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
                    // Nobody takes any, and so no pause ends.
                    appetite.excess(&waiting).map(|_| appetite.step_down(&waiting, held))
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
        fn check(most: u16, waiting_bytes_max: u64, expected: [u16; 2]) {
            let most = NonZeroU16::new(most).unwrap();
            let begun = [Appetite::new, Appetite::pausing]
                .map(|begin| begin(most, waiting_bytes_max).prefetch().get());
            assert_eq!(begun, expected);
        }
        check(60_000, 32 * 1024 * 1024, [6_553, 26_214]);
        check(1_000, 32 * 1024 * 1024, [1_000; 2]);
        check(60_000, 1_000, [1; 2]);
        check(u16::MAX, u64::MAX, [u16::MAX; 2]);

        // Soon: until then an archiver's segments are no larger than its prefetch.
        let appetite = appetite(600, 195);
        appetite.step(195, PATIENCE_FIRST);
        assert_eq!(consume(&appetite, 3 * 195, |_| 4), [600]);
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

    #[test]
    fn what_the_broker_can_hold_for_a_moment_it_holds_and_what_it_can_not_is_not_asked_for() {
        #[track_caller]
        fn check(appetite: &Appetite, weight: u64, expected: Excess) {
            let most = vec![weight - 512; (appetite.waiting_bytes_max / weight) as usize];
            let waiting = waiting(appetite, &most);
            assert_eq!(appetite.excess(&waiting), None, "as many as may");
            waiting.add(&of(weight - 512));
            assert_eq!(appetite.excess(&waiting), Some(expected));
        }
        let pausing = Appetite::pausing(NonZeroU16::new(60_000).unwrap(), MAX);
        assert_eq!(pausing.prefetch().get(), 781);
        check(&pausing, 5_000, Excess::Pause);
        // 7.8 and 8.1 times what may wait.
        check(&pausing, 10_000, Excess::Pause);
        check(&pausing, 10_400, Excess::StepDown);
        check(&appetite(1_000, 781), 5_000, Excess::StepDown);
    }

    #[tokio::test]
    async fn a_pause_ends_when_a_quarter_of_what_may_wait_was_taken() {
        let appetite = Appetite::pausing(NonZeroU16::new(60_000).unwrap(), MAX);
        let waiting = waiting(&appetite, &[5_000 - 512; 201]);
        let mut room = std::pin::pin!(waiting.has_room());
        for left in (150..201).rev() {
            assert!(futures::poll!(&mut room).is_pending(), "{left}");
            waiting.remove(&of(5_000 - 512));
        }
        assert!(futures::poll!(&mut room).is_ready());
        // Nor is one missed that came before anybody waited, nor one believed that is out of date.
        waiting.has_room().await;
        waiting.add(&of(5_000 - 512));
        assert!(futures::poll!(std::pin::pin!(waiting.has_room())).is_pending());
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
        assert_eq!(appetite.excess(&waiting), Some(Excess::StepDown));
        assert_eq!(appetite.step_down(&waiting, 2).get(), 1);
        waiting.remove(&message);
        waiting.remove(&message);
        assert_eq!(waiting.bytes(), 0);
    }

    #[test]
    fn large_deliveries_make_it_smaller_down_to_one() {
        let appetite = appetite(1_000, 1_000);
        assert_eq!(appetite.excess(&waiting(&appetite, &[MAX - 600])), None);
        let large = waiting(&appetite, &[MAX / 25; 30]);
        assert_eq!(appetite.excess(&large), Some(Excess::StepDown));
        assert_eq!(
            [80, 40, 20, 1].map(|held| appetite.step_down(&large, held).get()),
            [30, 15, 7, 1],
            "no more than wait, no more than half of what it was"
        );
        assert_eq!(appetite.excess(&large), None, "one at a time has to fit");
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
        assert_eq!(appetite.excess(&large), Some(Excess::StepDown));
        appetite.step_down(&large, 4);
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
