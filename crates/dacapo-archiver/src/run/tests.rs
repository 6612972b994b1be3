//! The archiver on the bus and store in memory, with every fault between them.
//!
//! Time is paused: it moves only when nothing else can happen.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_archive::store::memory::MemoryStore;
use dacapo_archive::{SegmentBuilder, StreamWriter};
use dacapo_bus::memory::{MemoryBus, QueueOptions};
use dacapo_bus::{BusError, Delivery, DeliveryTag, Source};
use dacapo_event::{Event, Message, Properties, ShortStr, Timestamp, marking};
use prometheus_client::registry::Registry;

use super::*;
use crate::metrics::Health;
use crate::testing::{FaultyStore, Side, archived, noon, segments, sound, stream};

const QUEUE: &str = "archive";
const SECOND: Duration = Duration::from_secs(1);

fn config(deliveries: u64) -> ArchiverConfig {
    ArchiverConfig {
        stream: stream(),
        rules: AttributeRules::default(),
        roll: RollPolicy {
            deliveries: NonZeroU64::new(deliveries).unwrap(),
            ..RollPolicy::default()
        },
        clock: noon,
        write_once: WriteOnce::Proven,
    }
}

fn metrics() -> Metrics {
    Metrics::register(&mut Registry::default(), noon)
}

/// A bus that knows how many events of [`publish`] went in.
#[derive(Clone)]
struct Bus {
    bus: MemoryBus,
    published: Arc<AtomicUsize>,
}

impl std::ops::Deref for Bus {
    type Target = MemoryBus;

    fn deref(&self) -> &MemoryBus {
        &self.bus
    }
}

fn bus() -> Bus {
    let bus = MemoryBus::new();
    bus.declare_queue(QUEUE, QueueOptions::default());
    Bus { bus, published: Arc::default() }
}

fn subscription(bus: &MemoryBus) -> impl Subscribe + use<> {
    let prefetch = NonZeroUsize::new(1_000).unwrap();
    bus.subscription(QUEUE, QueueOptions::default(), Vec::new(), prefetch)
}

fn message(id: &str) -> Message {
    Message {
        routing_key: ShortStr::from_static(QUEUE),
        properties: Properties {
            message_id: Some(ShortStr::try_from(id).unwrap()),
            ..Properties::default()
        },
        body: Bytes::from(format!("{{\"id\":\"{id}\"}}")),
        ..Message::default()
    }
}

/// Publishes `e-1` to `e-N`.
fn publish(bus: &Bus, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        bus.published.fetch_add(1, Ordering::SeqCst);
        bus.publish(message(&format!("e-{number}"))).unwrap();
    }
}

fn ids(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.id.as_str()).collect()
}

fn expected(numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
    numbers.map(|number| format!("e-{number}")).collect()
}

/// Waits until nothing waits and nothing is unacked.
async fn drained(bus: &MemoryBus) {
    until(|| bus.depth(QUEUE) == Some(0) && bus.unacked(QUEUE) == Some(0)).await;
}

/// Waits for the condition, an hour of paused time at the most.
async fn until(mut condition: impl FnMut() -> bool) {
    for _ in 0..3_600 {
        if condition() {
            return;
        }
        tokio::time::sleep(SECOND).await;
    }
    panic!("the condition did not become true");
}

/// A store that asserts at every call that what was acked is durable. All events are of [`publish`].
fn watched(inner: &Arc<MemoryStore>, bus: &Bus) -> FaultyStore {
    let (seen, bus) = (Arc::clone(inner), bus.clone());
    let mut store = FaultyStore::new(Arc::clone(inner));
    store.hook = Some(Box::new(move |_, _| {
        let (seen, bus) = (Arc::clone(&seen), bus.clone());
        Box::pin(async move { assert_acked_is_durable(&seen, &bus).await })
    }));
    store
}

async fn assert_acked_is_durable(store: &Arc<MemoryStore>, bus: &Bus) {
    let kept = bus.depth(QUEUE).unwrap() + bus.unacked(QUEUE).unwrap();
    let acked = bus.published.load(Ordering::SeqCst) - usize::try_from(kept).unwrap();
    let durable = archived(store).await;
    for id in expected(1..=acked as u64) {
        assert!(durable.iter().any(|event| event.id == id), "{id} was acked and is not durable");
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_store_call_every_event_is_archived_and_none_acked_before() {
    const EVENTS: usize = 8;
    let mut kills = 0;
    for nth in 1.. {
        let mut reached = false;
        for side in [Side::Before, Side::After] {
            let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
            publish(&bus, 1..=EVENTS as u64);
            let mut store = watched(&inner, &bus);
            store.kill = Some((nth, side));
            let store = Arc::new(store);
            let (first, metrics) = (subscription(&bus), metrics());
            let killed = tokio::select! {
                ended = run(config(3), store.clone(), &first, &metrics, drained(&bus)) => {
                    ended.unwrap();
                    false
                }
                () = store.killed.notified() => true,
            };
            reached |= killed;
            assert_acked_is_durable(&inner, &bus).await;

            let second = Arc::new(watched(&inner, &bus));
            let again = subscription(&bus);
            run(config(3), second, &again, &metrics, drained(&bus)).await.unwrap();
            let events = sound(&inner).await;
            for id in expected(1..=EVENTS as u64) {
                assert!(ids(&events).contains(&id.as_str()), "{id} after {nth} {side:?}");
            }
            assert!(events.len() <= EVENTS + 3, "at most one segment twice, after {nth} {side:?}");
        }
        if !reached {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 12, "probe, opening and three segments are more than {kills} calls");
}

#[tokio::test(start_paused = true)]
async fn any_one_failing_call_costs_nothing() {
    const EVENTS: usize = 8;
    for nth in 6.. {
        let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
        publish(&bus, 1..=EVENTS as u64);
        let mut store = watched(&inner, &bus);
        store.fail = Some(nth);
        let store = Arc::new(store);
        let metrics = metrics();
        run(config(3), store.clone(), &subscription(&bus), &metrics, drained(&bus)).await.unwrap();
        assert_eq!(ids(&sound(&inner).await), expected(1..=EVENTS as u64), "call {nth}");
        if store.calls.load(Ordering::SeqCst) < nth {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_nothing_is_acked_and_taking_stops_and_it_resumes_by_itself() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let store = Arc::new(watched(&inner, &bus));
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        until(|| metrics.health() == Health::Ok).await;
        store.down.store(true, Ordering::SeqCst);
        publish(&bus, 1..=50);
        tokio::time::sleep(300 * SECOND).await;
        assert_eq!(bus.unacked(QUEUE), Some(10), "one segment filled and none acked");
        assert_eq!(bus.depth(QUEUE), Some(40));
        assert_ne!(metrics.health(), Health::Ok);
        store.down.store(false, Ordering::SeqCst);
        drained(&bus).await;
        assert_eq!(metrics.health(), Health::Ok);
    };
    run(config(10), store.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!(ids(&sound(&inner).await), expected(1..=50));
}

#[tokio::test(start_paused = true)]
async fn in_a_long_outage_the_queue_has_its_messages_back_and_nothing_is_archived_twice() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let store = Arc::new(watched(&inner, &bus));
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        publish(&bus, 1..=4);
        drained(&bus).await;
        store.down.store(true, Ordering::SeqCst);
        publish(&bus, 5..=6);
        tokio::time::sleep(14 * 60 * SECOND).await;
        assert_eq!(bus.unacked(QUEUE), Some(2));
        tokio::time::sleep(2 * 60 * SECOND).await;
        assert_eq!((bus.unacked(QUEUE), bus.depth(QUEUE)), (Some(0), Some(2)));
        tokio::time::sleep(3_600 * SECOND).await;
        assert_eq!((bus.unacked(QUEUE), bus.depth(QUEUE)), (Some(0), Some(2)));
        store.down.store(false, Ordering::SeqCst);
        drained(&bus).await;
    };
    run(config(10), store.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!(ids(&sound(&inner).await), expected(1..=6));
}

#[tokio::test(start_paused = true)]
async fn stopped_while_the_store_is_down_it_says_that_nothing_is_lost() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let store = Arc::new(watched(&inner, &bus));
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        until(|| metrics.health() == Health::Ok).await;
        store.down.store(true, Ordering::SeqCst);
        publish(&bus, 1..=2);
        until(|| bus.unacked(QUEUE) == Some(2)).await;
    };
    let error = run(config(10), store.clone(), &subscription, &metrics, story).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "stopped with 2 deliveries not archived (memory: did not take or give `heads/shop.json`: \
         the script says so); nothing is lost, the queue delivers them again to the next archiver"
    );
    assert_eq!((bus.unacked(QUEUE), bus.depth(QUEUE)), (Some(0), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_at_the_start_is_an_error() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    store.down.store(true, Ordering::SeqCst);
    let bus = bus();
    let ended = run(config(10), store, &subscription(&bus), &metrics(), drained(&bus)).await;
    assert!(matches!(ended, Err(ArchiverError::Archive(ArchiveError::Store(_)))));
}

/// Extends the stream behind the archiver's back, filed under an hour that is `later`.
async fn rival_appends(store: &Arc<MemoryStore>, later: Duration) {
    let mut writer = StreamWriter::open(store.clone(), stream(), noon).await.unwrap();
    let mut builder = SegmentBuilder::new(stream(), writer.next());
    let rules = AttributeRules::default();
    builder.push(rules.event(message("rival"), &stream(), writer.next(), noon())).unwrap();
    let sealed = builder.seal(writer.tip(), noon().plus(later), None).unwrap();
    writer.append(&sealed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn overtaken_by_another_archiver_it_acks_nothing_and_begins_again_at_the_new_end() {
    for later in [Duration::ZERO, 3_600 * SECOND] {
        for overtaken_at in ["segments/", "chain/"] {
            let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
            publish(&bus, 1..=4);
            let mut store = FaultyStore::new(Arc::clone(&inner));
            let (seen, bus_seen, times) = (Arc::clone(&inner), bus.clone(), AtomicUsize::new(0));
            store.hook = Some(Box::new(move |operation, key| {
                let strikes = operation == "put_new"
                    && key.starts_with(overtaken_at)
                    && times.fetch_add(1, Ordering::SeqCst) < 2;
                let (seen, bus) = (Arc::clone(&seen), bus_seen.clone());
                Box::pin(async move {
                    if strikes {
                        rival_appends(&seen, later).await;
                        assert_eq!(bus.unacked(QUEUE), Some(4));
                    }
                })
            }));
            let (subscription, metrics) = (subscription(&bus), metrics());
            let ran = run(config(4), Arc::new(store), &subscription, &metrics, drained(&bus));
            ran.await.unwrap();
            let events = sound(&inner).await;
            let rivals = ids(&events).iter().filter(|id| **id == "rival").count();
            assert!(rivals > 0, "the rival was there");
            let ours: Vec<&str> = ids(&events).into_iter().filter(|id| *id != "rival").collect();
            assert_eq!(ours, expected(1..=4), "{overtaken_at} {later:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hot_standby_takes_over_where_the_first_was_killed() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let active = Arc::new(watched(&inner, &bus));
    let standby = Arc::new(watched(&inner, &bus));
    let (first, second) = (subscription(&bus), subscription(&bus));
    let (first_metrics, second_metrics) = (metrics(), metrics());
    let one = async {
        let never = std::future::pending();
        tokio::select! {
            ended = run(config(3), active, &first, &first_metrics, never) => panic!("{ended:?}"),
            () = until(|| bus.depth(QUEUE) == Some(0) && bus.unacked(QUEUE) == Some(2)) => {}
        }
    };
    let two = async {
        until(|| first_metrics.health() == Health::Ok).await;
        run(config(3), standby, &second, &second_metrics, async {
            until(|| second_metrics.health() == Health::Ok).await;
            publish(&bus, 1..=8);
            until(|| first_metrics.health() == Health::Ok && bus.depth(QUEUE) == Some(0)).await;
            publish(&bus, 9..=9);
            drained(&bus).await;
        })
        .await
        .unwrap()
    };
    let ((), totals) = tokio::join!(one, two);
    assert_eq!(totals.events, 3);
    assert_eq!(ids(&sound(&inner).await), expected(1..=9));
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_loses_nothing() {
    /// A bus whose sources are lost after some deliveries.
    struct Lossy(MemoryBus, AtomicUsize);
    struct LossySource(Box<dyn Source>, u64);

    #[async_trait]
    impl Subscribe for Lossy {
        async fn open(&self) -> Result<Box<dyn Source>, BusError> {
            // The first opening and one in the middle are refused.
            match self.1.fetch_add(1, Ordering::SeqCst) {
                0 | 3 => Err(lost()),
                _ => Ok(Box::new(LossySource(subscription(&self.0).open().await?, 5))),
            }
        }
    }

    fn lost() -> BusError {
        BusError::Disconnected { peer: "here".to_owned(), reason: "test".to_owned() }
    }

    #[async_trait]
    impl Source for LossySource {
        async fn next(&mut self) -> Result<Option<Delivery>, BusError> {
            if self.1 == 0 {
                return Err(lost());
            }
            let next = self.0.next().await;
            self.1 -= 1;
            next
        }
        async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
            self.0.ack(tag).await
        }
        async fn depth(&mut self) -> Result<u64, BusError> {
            self.0.depth().await
        }
        async fn close(&mut self) -> Result<(), BusError> {
            self.0.close().await
        }
    }

    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    publish(&bus, 1..=12);
    let store = Arc::new(watched(&inner, &bus));
    let lossy = Lossy(bus.bus.clone(), AtomicUsize::new(0));
    run(config(2), store, &lossy, &metrics(), drained(&bus)).await.unwrap();
    let events = sound(&inner).await;
    for id in expected(1..=12) {
        assert!(ids(&events).contains(&id.as_str()), "{id}");
    }
    assert!(lossy.1.load(Ordering::SeqCst) > 4, "it was opened again and again");
}

#[tokio::test(start_paused = true)]
async fn segments_are_rolled_by_deliveries_by_age_and_by_bytes() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        publish(&bus, 1..=7);
        until(|| bus.depth(QUEUE) == Some(0)).await;
        tokio::time::sleep(RollPolicy::AGE - 10 * SECOND).await;
        assert_eq!(bus.unacked(QUEUE), Some(1), "3 and 3 by number, one is young");
        tokio::time::sleep(20 * SECOND).await;
        assert_eq!(bus.unacked(QUEUE), Some(0), "it was old enough");
    };
    let totals = run(config(3), inner.clone(), &subscription, &metrics, story).await.unwrap();
    let sizes: Vec<usize> = segments(&inner).await.iter().map(Vec::len).collect();
    assert_eq!(sizes, [3, 3, 1]);
    assert_eq!((totals.events, totals.segments), (7, 3));

    let by_bytes = ArchiverConfig {
        roll: RollPolicy { bytes: 4_000, ..RollPolicy::default() },
        ..config(1_000)
    };
    let story = async {
        publish(&bus, 8..=30);
        tokio::time::sleep(5 * SECOND).await;
        assert!(bus.unacked(QUEUE) < Some(23), "full ones are durable long before they are old");
    };
    run(by_bytes, inner.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!(ids(&sound(&inner).await), expected(1..=30));
    assert!(segments(&inner).await.len() > 4);
}

#[tokio::test(start_paused = true)]
async fn replayed_events_are_not_archived_again_and_forged_ones_are() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let (subscription, metrics) = (subscription(&bus), metrics());
    let original = AttributeRules::default().event(message("e-1"), &stream(), 1, Timestamp::EPOCH);
    let replayed =
        marking::mark(&original, &ShortStr::from_static("r-1"), marking::Priority::Neutralise);
    let forged = Message { body: Bytes::from_static(b"other"), ..replayed.clone() };
    let story = async {
        bus.publish(replayed.clone()).unwrap();
        bus.publish(forged).unwrap();
        bus.publish(replayed.clone()).unwrap();
        drained(&bus).await;
        bus.publish(replayed).unwrap();
        drained(&bus).await;
    };
    let totals = run(config(100), inner.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!((totals.events, totals.skipped, totals.segments), (1, 3, 1));
    assert_eq!(sound(&inner).await[0].message.body, Bytes::from_static(b"other"));
}

#[tokio::test(start_paused = true)]
async fn parked_messages_are_archived_and_counted() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    publish(&bus, 1..=3);
    assert!(bus.park_oldest(QUEUE, "delivery_limit"));
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry, noon);
    let subscription = subscription(&bus);
    let ran = run(config(100), inner.clone(), &subscription, &metrics, drained(&bus));
    assert_eq!(ran.await.unwrap().parked, 1);
    assert_eq!(sound(&inner).await.len(), 3);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("dacapo_archiver_parked_total{reason=\"delivery_limit\"} 1"), "{text}");
    assert!(text.contains("dacapo_archiver_unacked 0"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_moved_while_the_archiver_waited_is_continued_at_its_new_end() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        until(|| metrics.health() == Health::Ok).await;
        rival_appends(&inner, Duration::ZERO).await;
        publish(&bus, 1..=1);
        drained(&bus).await;
    };
    run(config(10), inner.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!(ids(&sound(&inner).await), ["rival", "e-1"]);
}
