//! The archiver on the bus and store in memory.
//!
//! Time is paused: it moves only when nothing else can happen.

use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_archive::store::memory::MemoryStore;
use dacapo_archive::{SegmentBuilder, StreamWriter};
use dacapo_bus::memory::{MemoryBus, QueueOptions};
use dacapo_bus::{AskedDepth, BusError, Delivery, DeliveryTag, Source};
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

mod barriers;
mod faults;

/// Sources that hand out so many deliveries and then are to be opened anew, and may not say how deep
/// their queue is.
struct Renewing {
    inner: MemoryBus,
    deliveries: u64,
    says_depth: bool,
    opened: Arc<AtomicUsize>,
}

struct RenewingSource {
    inner: Box<dyn Source>,
    left: u64,
    says_depth: bool,
}

#[async_trait]
impl Subscribe for Renewing {
    async fn open(&self) -> Result<Box<dyn Source>, BusError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let inner = subscription(&self.inner).open().await?;
        let Renewing { deliveries, says_depth, .. } = *self;
        Ok(Box::new(RenewingSource { inner, left: deliveries, says_depth }))
    }
}

#[async_trait]
impl Source for RenewingSource {
    async fn next(&mut self) -> Result<Option<Delivery>, BusError> {
        if self.left == 0 {
            return Ok(None);
        }
        let delivery = self.inner.next().await?;
        self.left -= 1;
        Ok(delivery)
    }

    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
        self.inner.ack(tag).await
    }

    fn prefetch(&self) -> Option<NonZeroU16> {
        self.inner.prefetch()
    }

    async fn depth(&mut self) -> Result<u64, BusError> {
        self.inner.depth().await
    }

    fn ask_depth(&mut self) -> AskedDepth {
        match self.says_depth {
            true => self.inner.ask_depth(),
            false => Box::pin(std::future::pending()),
        }
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.inner.close().await
    }
}

/// A step of the prefetch counted as a lost bus: waits that double, a failing health, and the
/// segment in flight archived twice.
#[tokio::test(start_paused = true)]
async fn a_source_that_is_opened_anew_costs_no_wait_no_repeat_and_no_alarm() {
    let (bus, store) = (bus(), Arc::new(MemoryStore::new()));
    let opened = Arc::new(AtomicUsize::new(0));
    let renewing = Renewing {
        inner: bus.bus.clone(),
        deliveries: 7,
        says_depth: true,
        opened: Arc::clone(&opened),
    };
    publish(&bus, 1..=98);
    // Each put takes a while, so that one is in flight when the source is at its end.
    let slow = FaultyStore {
        hook: Some(Box::new(|operation, _| {
            Box::pin(async move {
                if operation == "put_new" {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        })),
        ..FaultyStore::new(Arc::clone(&store))
    };
    let (metrics, started) = (metrics(), Instant::now());
    let done = async {
        until(|| {
            assert!(
                opened.load(Ordering::SeqCst) == 0 || metrics.health() == Health::Ok,
                "{}",
                metrics.health()
            );
            bus.depth(QUEUE) == Some(0) && bus.unacked(QUEUE) == Some(0)
        })
        .await;
    };
    let totals = run(config(4), Arc::new(slow), &renewing, &metrics, done).await.unwrap();
    assert_eq!(totals.events, 98);
    assert_eq!(ids(&sound(&store).await), expected(1..=98));
    assert_eq!(opened.load(Ordering::SeqCst), 15);
    assert!(started.elapsed() < 5 * SECOND, "{:?}", started.elapsed());
}

/// No delivery was taken before the answer, which comes behind those that are on their way.
#[tokio::test(start_paused = true)]
async fn a_depth_that_is_not_told_holds_up_no_event_and_in_the_end_costs_the_source() {
    let (bus, store) = (bus(), Arc::new(MemoryStore::new()));
    let opened = Arc::new(AtomicUsize::new(0));
    let mute = Renewing {
        inner: bus.bus.clone(),
        deliveries: u64::MAX,
        says_depth: false,
        opened: Arc::clone(&opened),
    };
    publish(&bus, 1..=20);
    let (metrics, started) = (metrics(), Instant::now());
    let story = async {
        drained(&bus).await;
        assert!(started.elapsed() < 30 * SECOND, "{:?}", started.elapsed());
        assert_eq!(opened.load(Ordering::SeqCst), 1);
        until(|| opened.load(Ordering::SeqCst) == 2).await;
        assert!(started.elapsed() >= 30 * SECOND, "{:?}", started.elapsed());
    };
    let totals = run(config(4), store, &mute, &metrics, story).await.unwrap();
    assert_eq!(totals.events, 20);
}
