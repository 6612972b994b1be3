//! The loop over the bus in memory, with tokio's paused clock.

mod faults;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dacapo_bus::memory::faulty::{Fault, Faulty};
use dacapo_bus::memory::{MemoryBus, QueueOptions};
use dacapo_bus::{BusError, Connect, Outcome, Subscribe};
use dacapo_event::attributes::AttributeRules;
use dacapo_event::{FieldValue, Message, Properties, ShortStr, Timestamp};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Consumer, Settings};
use crate::store::MemoryStore;
use crate::store::conformance::retention;
use crate::{
    ConsumerError, Delivery, Effect, Failure, Handled, Handler, Metrics, Order, Remembering, Retry,
    Turn,
};

const QUEUE: &str = "orders";
const DEAD: &str = "orders.dead";

/// A bus with a queue and its queue of dead letters, and a consumer between them.
struct Setting {
    bus: MemoryBus,
    consumer: Consumer,
    registry: Registry,
}

impl Setting {
    fn new() -> Self {
        let bus = MemoryBus::new();
        for queue in [QUEUE, DEAD] {
            bus.declare_queue(queue, QueueOptions::default());
        }
        let letters = bus.to_queue_by_default_exchange(DEAD);
        Setting::with_letters(bus, Box::new(letters))
    }

    fn with_letters(bus: MemoryBus, dead_letters: Box<dyn Connect>) -> Self {
        let mut registry = Registry::default();
        let prefetch = NonZeroUsize::new(10).unwrap();
        let consumer = Consumer {
            settings: Settings {
                queue: QUEUE.to_owned(),
                attributes: AttributeRules {
                    key: vec!["header:key".parse().unwrap()],
                    ..AttributeRules::default()
                },
                position: Vec::new(),
                retry: Retry::default(),
                handle_deadline: Duration::from_secs(5 * 60),
            },
            source: Box::new(bus.subscription(QUEUE, QueueOptions::default(), vec![], prefetch)),
            dead_letters,
            metrics: Metrics::register(&mut registry),
            clock: || Timestamp::EPOCH,
        };
        Setting { bus, consumer, registry }
    }

    /// Publishes events: an id, and the second at which it happened.
    fn publish(&self, events: &[(&str, u64)]) {
        for (id, second) in events {
            assert_eq!(self.bus.publish(event(id, *second)).unwrap(), Outcome::Confirmed);
        }
    }

    /// Consumes until nothing is left to do, in a day of the paused clock at the most.
    async fn drain(&self, handler: &mut dyn Handler) -> Result<(), ConsumerError> {
        let drained = async {
            while self.bus.depth(QUEUE) != Some(0) || self.bus.unacked(QUEUE) != Some(0) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let day = Duration::from_secs(24 * 60 * 60);
        tokio::time::timeout(day, self.consumer.run(handler, drained)).await.expect("it drains")
    }

    /// Checks what the metrics tell, by the ends of their lines.
    #[track_caller]
    fn check_metrics(&self, expected: &[&str]) {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let mut counted: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.ends_with(" 0"))
            .map(|line| line.trim_start_matches("dacapo_consumer_"))
            .collect();
        counted.sort_unstable();
        assert_eq!(counted, expected);
    }

    /// Takes the dead letters: the id, reason and attempts of each.
    async fn dead_letters(&self) -> Vec<(String, String, String)> {
        let mut source = self.bus.consume(DEAD, NonZeroUsize::MAX).unwrap();
        let mut letters = Vec::new();
        for _ in 0..self.bus.depth(DEAD).unwrap() {
            use dacapo_bus::Source;
            let delivery = source.next().await.unwrap().unwrap();
            let header = |name: &str| {
                delivery.message.properties.header(name).map(FieldValue::to_text_lossy)
            };
            let text = |name: &str| header(&format!("x-dacapo-dead-{name}")).unwrap_or_default();
            letters.push((text("event-id"), text("reason"), text("attempts")));
        }
        letters
    }
}

fn event(id: &str, second: u64) -> Message {
    let key = (ShortStr::from_static("key"), FieldValue::text("k"));
    let properties = Properties {
        message_id: Some(ShortStr::try_from(id).unwrap()),
        timestamp: Some(1_700_000_000 + second),
        headers: Some([key].into_iter().collect()),
        ..Properties::default()
    };
    let routing_key = ShortStr::from_static(QUEUE);
    Message { routing_key, properties, body: id.to_owned().into(), ..Message::default() }
}

/// A service that writes down what it applies, and fails as it is told.
#[derive(Clone, Default)]
struct Ledger {
    applied: Arc<Mutex<Vec<(String, Turn)>>>,
    /// The failures to come, the next one last.
    failures: Arc<Mutex<Vec<Failure>>>,
    /// When each attempt was.
    attempts: Arc<Mutex<Vec<Instant>>>,
}

impl Ledger {
    fn failing(failures: Vec<Failure>) -> Self {
        Ledger { failures: Arc::new(Mutex::new(failures)), ..Ledger::default() }
    }

    fn applied(&self) -> Vec<(String, Turn)> {
        self.applied.lock().unwrap().clone()
    }

    fn ids(&self) -> Vec<String> {
        self.applied().into_iter().map(|(id, _)| id).collect()
    }

    fn remembering(&self, order: Order) -> Remembering<MemoryStore, Ledger> {
        Remembering::new(MemoryStore::new(retention(100, 100)), order, self.clone())
    }
}

#[async_trait]
impl Effect for Ledger {
    async fn apply(&mut self, delivery: &Delivery, turn: Turn) -> Result<(), Failure> {
        self.attempts.lock().unwrap().push(Instant::now());
        if let Some(failure) = self.failures.lock().unwrap().pop() {
            return Err(failure);
        }
        self.applied.lock().unwrap().push((delivery.id.clone(), turn));
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_comes_twice_is_handled_once() {
    let setting = Setting::new();
    setting.publish(&[("e-1", 1), ("e-2", 2), ("e-1", 1), ("e-2", 2)]);
    let ledger = Ledger::default();
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert_eq!(ledger.ids(), ["e-1", "e-2"]);
    setting.check_metrics(&[
        "events_total{outcome=\"handled\",origin=\"live\"} 2",
        "events_total{outcome=\"repeat\",origin=\"live\"} 2",
    ]);
}

#[tokio::test(start_paused = true)]
async fn of_a_replay_only_what_was_not_handled_is_handled_and_it_is_told_apart() {
    use dacapo_event::marking::{Priority, mark};

    let setting = Setting::new();
    setting.publish(&[("e-1", 1)]);
    for (sequence, id) in [(1, "e-1"), (2, "e-2")] {
        let stream = "s".parse().unwrap();
        let rules = &setting.consumer.settings.attributes;
        let event = rules.event(event(id, sequence), &stream, sequence, Timestamp::EPOCH);
        let replayed = mark(&event, &ShortStr::from_static("r-1"), Priority::Neutralise);
        assert_eq!(setting.bus.publish(replayed).unwrap(), Outcome::Confirmed);
    }
    let ledger = Ledger::default();
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert_eq!(ledger.ids(), ["e-1", "e-2"]);
    setting.check_metrics(&[
        "events_total{outcome=\"handled\",origin=\"live\"} 1",
        "events_total{outcome=\"handled\",origin=\"replay\"} 1",
        "events_total{outcome=\"repeat\",origin=\"replay\"} 1",
    ]);
}

/// Which is why the two are deleted together before a rebuild.
#[tokio::test(start_paused = true)]
async fn an_effect_that_is_lost_comes_back_only_with_an_empty_store() {
    let (setting, ledger) = (Setting::new(), Ledger::default());
    let events = [("e-1", 1), ("e-2", 2)];
    let mut handler = ledger.remembering(Order::Accept);
    setting.publish(&events);
    setting.drain(&mut handler).await.unwrap();

    ledger.applied.lock().unwrap().clear();
    setting.publish(&events);
    setting.drain(&mut handler).await.unwrap();
    assert_eq!(ledger.ids(), [""; 0], "the store still knows them");
    setting.publish(&events);
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert_eq!(ledger.ids(), ["e-1", "e-2"]);
}

#[tokio::test(start_paused = true)]
async fn an_older_event_is_accepted_dropped_or_handed_over_as_late() {
    for (order, expected) in [
        (
            Order::Accept,
            vec![("e-3", Turn::InOrder), ("e-1", Turn::InOrder), ("e-4", Turn::InOrder)],
        ),
        (Order::DropOlder, vec![("e-3", Turn::InOrder), ("e-4", Turn::InOrder)]),
        (
            Order::HandOver,
            vec![("e-3", Turn::InOrder), ("e-1", Turn::Late), ("e-4", Turn::InOrder)],
        ),
    ] {
        let setting = Setting::new();
        setting.publish(&[("e-3", 3), ("e-1", 1), ("e-4", 4)]);
        let ledger = Ledger::default();
        setting.drain(&mut ledger.remembering(order)).await.unwrap();
        let expected: Vec<_> =
            expected.iter().map(|(id, turn)| ((*id).to_owned(), *turn)).collect();
        assert_eq!(ledger.applied(), expected, "{order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_event_is_tried_again_after_growing_waits_before_any_other() {
    let setting = Setting::new();
    setting.publish(&[("e-1", 1), ("e-2", 2)]);
    let ledger = Ledger::failing(vec![Failure::retry("locked"), Failure::retry("locked")]);
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert_eq!(ledger.ids(), ["e-1", "e-2"]);
    let attempts = ledger.attempts.lock().unwrap();
    let waits: Vec<u128> = attempts.windows(2).map(|two| (two[1] - two[0]).as_millis()).collect();
    assert_eq!(waits, [200, 400, 0]);
    setting
        .check_metrics(&["events_total{outcome=\"handled\",origin=\"live\"} 2", "retries_total 2"]);
}

#[tokio::test(start_paused = true)]
async fn poison_becomes_a_dead_letter_with_its_reason_and_the_rest_flows() {
    let setting = Setting::new();
    setting.publish(&[("e-1", 1), ("e-2", 2), ("e-3", 3)]);
    let used_up = (0..5).map(|_| Failure::retry(std::io::Error::other("no answer")));
    let ledger = Ledger::failing(used_up.chain([Failure::poison("no JSON")]).collect());
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert_eq!(ledger.ids(), ["e-3"]);
    let letter = |id: &str, reason: &str, attempts: &str| {
        (id.to_owned(), reason.to_owned(), attempts.to_owned())
    };
    let expected = [letter("e-1", "no JSON", "1"), letter("e-2", "no answer", "5")];
    assert_eq!(setting.dead_letters().await, expected);
    setting.check_metrics(&[
        "events_total{outcome=\"dead_lettered\",origin=\"live\"} 2",
        "events_total{outcome=\"handled\",origin=\"live\"} 1",
        "retries_total 4",
    ]);
}

#[tokio::test(start_paused = true)]
async fn an_event_without_an_id_becomes_a_dead_letter() {
    let setting = Setting::new();
    let mut nameless = event("e-1", 1);
    nameless.properties.message_id = None;
    assert_eq!(setting.bus.publish(nameless).unwrap(), Outcome::Confirmed);
    let ledger = Ledger::default();
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert_eq!(ledger.ids(), [""; 0]);
    let letters = setting.dead_letters().await;
    assert!(
        matches!(&letters[..], [(id, reason, _)] if id.is_empty() && reason.starts_with("it has no id"))
    );
}

#[tokio::test(start_paused = true)]
async fn an_outage_however_long_makes_no_dead_letter() {
    let setting = Setting::new();
    setting.publish(&[("e-1", 1)]);
    let ledger = Ledger::failing((0..500).map(|_| Failure::unavailable("down")).collect());
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert_eq!(ledger.ids(), ["e-1"]);
    assert_eq!(setting.bus.depth(DEAD), Some(0));
}

/// Hangs at its first event, until it is dropped.
struct Hanging {
    attempts: u32,
}

#[async_trait]
impl Handler for Hanging {
    async fn handle(&mut self, _: &Delivery) -> Result<Handled, Failure> {
        self.attempts += 1;
        if self.attempts < 3 {
            std::future::pending::<()>().await;
        }
        Ok(Handled::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_is_dropped_at_its_deadline_and_called_again() {
    let setting = Setting::new();
    setting.publish(&[("e-1", 1)]);
    let (mut hanging, start) = (Hanging { attempts: 0 }, Instant::now());
    setting.drain(&mut hanging).await.unwrap();
    assert_eq!(hanging.attempts, 3);
    assert!(start.elapsed() >= Duration::from_secs(10 * 60), "{:?}", start.elapsed());
    setting
        .check_metrics(&["events_total{outcome=\"handled\",origin=\"live\"} 1", "retries_total 2"]);
}

/// A handler that says when it has begun, and ends when it is told to.
struct Slow {
    begun: Arc<Notify>,
    end: Arc<Notify>,
}

#[async_trait]
impl Handler for Slow {
    async fn handle(&mut self, _: &Delivery) -> Result<Handled, Failure> {
        self.begun.notify_one();
        self.end.notified().await;
        Ok(Handled::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn shutdown_finishes_and_acks_what_is_in_flight_and_takes_no_more() {
    let setting = Setting::new();
    setting.publish(&[("e-1", 1), ("e-2", 2)]);
    let (begun, end, shutdown) =
        (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let mut slow = Slow { begun: begun.clone(), end: end.clone() };
    let told = async {
        begun.notified().await;
        shutdown.notify_one();
        tokio::time::sleep(Duration::from_secs(60)).await;
        setting.check_metrics(&["in_flight 1"]);
        end.notify_one();
    };
    let (ended, ()) = tokio::join!(setting.consumer.run(&mut slow, shutdown.notified()), told);
    ended.unwrap();
    assert_eq!((setting.bus.depth(QUEUE), setting.bus.unacked(QUEUE)), (Some(1), Some(0)));
    setting.check_metrics(&["events_total{outcome=\"handled\",origin=\"live\"} 1"]);
}

/// A service may have other things to do, and spawn its consumer.
#[test]
fn a_running_consumer_may_move_between_threads() {
    fn check(_: impl Send) {}
    let (setting, mut handler) = (Setting::new(), Ledger::default().remembering(Order::Accept));
    check(setting.consumer.run(&mut handler, std::future::pending()));
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_the_next_attempt() {
    let setting = Setting::new();
    setting.publish(&[("e-1", 1)]);
    let ledger = Ledger::failing((0..100).map(|_| Failure::unavailable("down")).collect());
    let start = Instant::now();
    let shutdown = tokio::time::sleep(Duration::from_secs(5));
    setting.consumer.run(&mut ledger.remembering(Order::Accept), shutdown).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    assert_eq!(setting.bus.depth(QUEUE), Some(1), "it went back to the queue");
}
