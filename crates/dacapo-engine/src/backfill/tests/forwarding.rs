//! Passing on what is held, over the bus in memory.

use std::num::{NonZeroU16, NonZeroUsize};
use std::sync::Arc;

use async_trait::async_trait;
use dacapo_bus::memory::{ExchangeKind, MemoryBus, MemorySubscription, QueueOptions};
use dacapo_bus::{AskedDepth, BusError, Connect, Delivery, DeliveryTag, Parked, Source, Subscribe};
use dacapo_event::{Clock, Event, Message, Properties, ShortStr};
use dacapo_filter::Selection;
use dacapo_republish::{Config, Control, Progress};
use tokio::sync::watch;

use super::*;
use crate::backfill::held::book::Book;
use crate::backfill::held::{DRAIN_QUIET, Ended, Forwarder, Holding, Until};
use crate::backfill::standing::Past;
use crate::merge::Positions;
use crate::survey::Depth;
use crate::testing::{Archive, clock, event};
use dacapo_event::MemoryBudget;

const PREFETCH: NonZeroUsize = NonZeroUsize::new(20).unwrap();

/// A holding queue and a target queue.
struct Stage {
    bus: MemoryBus,
    dir: tempfile::TempDir,
    standing: Standing,
    remembered: Remembered,
}

impl Stage {
    fn new(stage: super::Stage) -> Self {
        let bus = MemoryBus::new();
        bus.declare_exchange("shop", ExchangeKind::Topic).unwrap();
        for queue in ["holding", "loyalty"] {
            bus.declare_queue(queue, QueueOptions::default());
        }
        bus.bind("holding", "shop", &ShortStr::from_static("#")).unwrap();
        Stage {
            bus,
            dir: tempdir().unwrap(),
            standing: Standing { stage, ..Standing::default() },
            remembered: Remembered::default(),
        }
    }

    fn publish(&self, numbers: std::ops::Range<u64>) {
        numbers.for_each(|n| drop(self.bus.publish(live(n)).unwrap()));
    }

    fn mark(&self, mark: Mark) {
        let mark = mark_message(&id(), mark, ShortStr::from_static("holding"));
        self.bus.publish(mark).unwrap();
    }

    fn subscription(&self) -> MemorySubscription {
        self.bus.subscription("holding", QueueOptions::default(), Vec::new(), PREFETCH)
    }

    async fn forward(&mut self, until: Until, control: Control) -> Result<Ended, EngineError> {
        let target = self.bus.to_queue("loyalty", "own");
        self.forward_to(&target, until, control).await
    }

    async fn forward_to(
        &mut self,
        target: &dyn Connect,
        until: Until,
        control: Control,
    ) -> Result<Ended, EngineError> {
        let source = self.subscription();
        self.forward_from(&source, target, until, control).await
    }

    async fn forward_from(
        &mut self,
        source: &dyn Subscribe,
        target: &dyn Connect,
        until: Until,
        control: Control,
    ) -> Result<Ended, EngineError> {
        let id = id();
        let forwarder = Forwarder {
            id: &id,
            source,
            target,
            rules: &AttributeRules::default(),
            remembered: &self.remembered,
            marked_again: &[],
            quiet: DRAIN_QUIET,
            priority: Priority::Neutralise,
            config: Config::default(),
            clock: clock as Clock,
        };
        let (mut journal, _) = Journal::open(&self.dir.path().join("journal")).unwrap();
        let (_keep, control) = watch::channel(control);
        let (progress, _) = watch::channel(Progress::default());
        let (holding, _) = watch::channel(Holding::default());
        let standing = &mut self.standing;
        forwarder.run(until, standing, &mut journal, control, &progress, &holding).await
    }

    /// Returns the ids that the target queue has.
    async fn arrived(&self) -> Vec<String> {
        let depth = self.bus.depth("loyalty").unwrap() as usize;
        let mut source = self.bus.consume("loyalty", NonZeroUsize::MAX).unwrap();
        let mut ids = Vec::new();
        for _ in 0..depth {
            let message = source.next().await.unwrap().unwrap().message;
            assert!(message.properties.header("x-dacapo-replay").is_some());
            ids.push(message.properties.message_id.unwrap_or_default().to_string());
        }
        ids
    }
}

fn live(n: u64) -> Message {
    let id = ShortStr::try_from(format!("e-{n}")).unwrap();
    let properties = Properties { message_id: Some(id), ..Properties::default() };
    Message { properties, ..event(n, at(n)).message }
}

fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("e-{n}")).collect()
}

/// History with these events, all of them between the barriers.
async fn remembered(events: Vec<Event>) -> Remembered {
    let archive = Archive::of(vec![events], 4).await;
    let plan = archive.plan(SelectionSpec::default(), Depth::Index).await;
    let all = Selection::compile(SelectionSpec::default()).unwrap();
    let store = Arc::clone(&archive.store);
    remember(store, &plan, all, MemoryBudget::DEFAULT, |_| {}).await.unwrap()
}

fn archived(n: u64) -> Event {
    Event { message: live(n), ..event(n, at(n)) }
}

#[tokio::test(start_paused = true)]
async fn what_history_has_is_dropped_before_its_mark_and_kept_after_it() {
    let mut stage = Stage::new(super::Stage::Held);
    let without_id = Event { id: "s0:3".to_owned(), ..archived(9) };
    stage.remembered = remembered(vec![archived(0), archived(1), without_id]).await;
    assert_eq!((stage.remembered.events, stage.remembered.not_remembered), (3, 1));
    stage.publish(0..4);
    stage.publish(9..10);
    stage.mark(Mark::History);
    stage.publish(1..2);
    let ended = stage.forward(Until::LittleHeld, Control::Run).await.unwrap();
    assert_eq!((ended, stage.standing.past), (Ended::Done, Past::History));
    assert_eq!(stage.arrived().await, ids([2, 3, 9, 1]));
    let counts = stage.standing.counts;
    assert_eq!((counts.dropped, counts.forwarded, counts.possible_repeats()), (2, 4, 0));
    assert_eq!((stage.bus.depth("holding"), stage.bus.unacked("holding")), (Some(0), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn what_came_live_is_dropped_and_what_may_have_is_counted() {
    let mut stage = Stage::new(super::Stage::Draining);
    stage.standing.past = Past::History;
    stage.publish(0..3);
    stage.mark(Mark::Open);
    stage.publish(3..5);
    stage.mark(Mark::Open);
    stage.publish(5..6);
    stage.mark(Mark::Close);
    stage.publish(6..9);
    let ended = stage.forward(Until::Closed, Control::Run).await.unwrap();
    assert_eq!((ended, stage.standing.past), (Ended::Done, Past::Closed));
    assert_eq!(stage.arrived().await, ids(0..6));
    let counts = stage.standing.counts;
    assert_eq!((counts.live_as_well, counts.reordered, counts.came_live), (3, 6, 3));
    assert_eq!(stage.bus.depth("holding"), Some(0));
}

/// A mark that the broker dead-letters says nothing where it comes: it is published again, and only then
/// acked.
#[tokio::test(start_paused = true)]
async fn a_mark_that_lost_its_place_is_published_again() {
    let mut stage = Stage::new(super::Stage::Held);
    stage.remembered = remembered(vec![archived(1)]).await;
    let mut standing = Standing { stage: super::Stage::Held, ..Standing::default() };
    let path = stage.dir.path().join("journal");
    let (mut journal, _) = Journal::open(&path).unwrap();
    let (source, id) = (stage.subscription(), id());
    let target = stage.bus.to_queue("loyalty", "own");
    let (marked_again, rules) = ([Mark::History], AttributeRules::default());
    let forwarder = |marked_again| Forwarder {
        id: &id,
        source: &source,
        target: &target,
        rules: &rules,
        remembered: &stage.remembered,
        marked_again,
        quiet: DRAIN_QUIET,
        priority: Priority::Neutralise,
        config: Config::default(),
        clock: clock as Clock,
    };
    let displaced = |tag| Delivery {
        tag,
        redelivered: false,
        parked: Some(Parked { reason: "expired".to_owned() }),
        message: mark_message(&id, Mark::History, ShortStr::from_static("holding")),
    };
    let event = |tag, n| Delivery { tag, redelivered: false, parked: None, message: live(n) };

    let first = forwarder(&[]);
    let mut book = Book::new(&first, &mut standing, &mut journal);
    assert_eq!(book.deliver(displaced(1)), Some(Mark::History));
    book.deliver(event(2, 1));
    assert_eq!((book.has_settled(), book.settle(0).unwrap()), (false, None));
    drop(book);
    assert_eq!(standing.past, Past::Nothing);

    let second = forwarder(&marked_again);
    let mut book = Book::new(&second, &mut standing, &mut journal);
    assert_eq!(book.deliver(displaced(1)), None);
    book.deliver(event(2, 1));
    assert_eq!(book.settle(0).unwrap(), Some(2));
    drop(book);
    assert_eq!((standing.past, standing.counts.dropped), (Past::Nothing, 1));

    // In its place it is written down by itself, once what came before it can be acked.
    let mut book = Book::new(&second, &mut standing, &mut journal);
    let whole = mark_message(&id, Mark::History, ShortStr::from_static("holding"));
    book.deliver(event(1, 1));
    book.deliver(Delivery { tag: 2, redelivered: false, parked: None, message: whole });
    assert_eq!(book.settle(0).unwrap(), Some(1));
    assert_eq!(Journal::read(&path).unwrap().past, Past::Nothing);
    assert_eq!(book.settle(0).unwrap(), Some(2));
    assert_eq!(Journal::read(&path).unwrap().past, Past::History);
    assert_eq!(book.settle(0).unwrap(), None);
}

/// A way to a queue whose sources hand out a few deliveries and then are to be opened anew.
struct Anew(MemorySubscription);

struct Few {
    source: Box<dyn Source>,
    left: u64,
}

#[async_trait]
impl Subscribe for Anew {
    async fn open(&self) -> Result<Box<dyn Source>, BusError> {
        Ok(Box::new(Few { source: self.0.open().await?, left: 7 }))
    }
}

#[async_trait]
impl Source for Few {
    async fn next(&mut self) -> Result<Option<Delivery>, BusError> {
        if self.left == 0 {
            return Ok(None);
        }
        let delivery = self.source.next().await?;
        self.left -= 1;
        Ok(delivery)
    }

    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
        self.source.ack(tag).await
    }

    fn prefetch(&self) -> Option<NonZeroU16> {
        self.source.prefetch()
    }

    async fn depth(&mut self) -> Result<u64, BusError> {
        self.source.depth().await
    }

    fn ask_depth(&mut self) -> AskedDepth {
        self.source.ask_depth()
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.source.close().await
    }
}

/// What it had delivered was passed on again by the next one.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_to_be_opened_anew_costs_no_repeat() {
    let mut stage = Stage::new(super::Stage::Held);
    stage.remembered = remembered((0..10).map(archived).collect()).await;
    stage.publish(0..30);
    stage.mark(Mark::History);
    let (source, target) = (Anew(stage.subscription()), stage.bus.to_queue("loyalty", "own"));
    let ended = stage.forward_from(&source, &target, Until::LittleHeld, Control::Run).await;
    assert_eq!(ended.unwrap(), Ended::Done);
    assert_eq!(stage.arrived().await, ids(10..30));
    let counts = &stage.standing.counts;
    assert_eq!((counts.dropped, counts.forwarded, counts.passed_again), (10, 20, 0));
}

/// Nothing but marks and repeats, and more than the prefetch: they are acked without any confirm, and
/// not one by one, which made a backfill of a busy bus slower than the bus.
#[tokio::test(start_paused = true)]
async fn a_long_run_of_repeats_does_not_stand_still() {
    let mut stage = Stage::new(super::Stage::Held);
    stage.remembered = remembered((0..100).map(archived).collect()).await;
    stage.publish(0..100);
    stage.mark(Mark::History);
    assert_eq!(stage.forward(Until::LittleHeld, Control::Run).await.unwrap(), Ended::Done);
    assert_eq!((stage.standing.counts.dropped, stage.arrived().await.len()), (100, 0));
    let journal = std::fs::read_to_string(stage.dir.path().join("journal")).unwrap();
    let lines = journal.lines().count();
    assert!((6..=10).contains(&lines), "{lines} lines for five times the prefetch");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_stops_and_what_was_not_passed_on_is_still_held() {
    let mut stage = Stage::new(super::Stage::Held);
    stage.publish(0..3);
    stage.mark(Mark::History);
    let nowhere = stage.bus.to_exchange("shop", dacapo_bus::memory::RoutingKey::Original);
    stage.bus.delete_exchange("shop");
    stage.bus.declare_exchange("shop", ExchangeKind::Topic).unwrap();
    let error = stage.forward_to(&nowhere, Until::LittleHeld, Control::Run).await.unwrap_err();
    let words = error.to_string();
    assert!(words.contains("e-0") && words.contains("dacapo backfill resume"), "{words}");
    assert_eq!(stage.bus.depth("holding"), Some(4), "given back, the mark among them");
    assert_eq!(stage.forward(Until::LittleHeld, Control::Run).await.unwrap(), Ended::Done);
    assert_eq!(stage.arrived().await, ids(0..3));
    // They had been delivered before, so they count as possible repeats.
    assert_eq!(stage.standing.counts.passed_again, 3);
}

#[tokio::test(start_paused = true)]
async fn told_to_stop_it_goes_on_where_it_was() {
    let mut stage = Stage::new(super::Stage::Held);
    stage.publish(0..50);
    stage.mark(Mark::History);
    assert_eq!(stage.forward(Until::LittleHeld, Control::Stop).await.unwrap(), Ended::Interrupted);
    assert_eq!(stage.forward(Until::LittleHeld, Control::Run).await.unwrap(), Ended::Done);
    let arrived = stage.arrived().await;
    let distinct: std::collections::BTreeSet<_> = arrived.iter().collect();
    assert_eq!(distinct.len(), 50);
    assert!((arrived.len() - 50) as u64 <= stage.standing.counts.possible_repeats());
}

#[test]
fn runs_of_streams_are_those_after_the_first_barrier() {
    let mut standing = Standing::default();
    let ends = |pairs: &[(&str, u64)]| -> Positions { positions(pairs) };
    standing.apply(Happened::Near(at(0), ends(&[("a", 5), ("import", 7)])));
    standing.apply(Happened::FirstAnswered(ends(&[("a", 8)])));
    standing.positions = ends(&[("a", 12), ("import", 9), ("new", 2)]);
    let between: Vec<_> = standing
        .between_barriers()
        .into_iter()
        .map(|range| (range.stream.to_string(), range.after, range.until))
        .collect();
    let expected = [("a", 8, 12), ("import", 7, 9), ("new", 0, 2)];
    assert_eq!(between, expected.map(|(stream, after, until)| (stream.to_owned(), after, until)));
}
