//! The bus in memory passes the suites, and what they do not ask of every bus.

use std::num::NonZeroUsize;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_event::Properties;

use super::faulty::{Fault, Faulty, Noticed};
use super::*;
use crate::conformance::{self, Fidelity, SinkHarness, SourceHarness};
use crate::{Connect, Parked, Source as _, Subscribe};

fn short(text: &'static str) -> ShortStr {
    ShortStr::from_static(text)
}

fn message(exchange: &'static str, key: &'static str, body: &'static str) -> Message {
    Message {
        exchange: short(exchange),
        routing_key: short(key),
        body: Bytes::from_static(body.as_bytes()),
        ..Message::default()
    }
}

fn prefetch(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

/// Takes all that waits in a queue.
async fn drain(bus: &MemoryBus, queue: &str) -> Vec<Message> {
    let mut source = bus.consume(queue, NonZeroUsize::MAX).unwrap();
    let mut messages = Vec::new();
    while bus.depth(queue) != Some(0) {
        let delivery = source.next().await.unwrap().unwrap();
        source.ack(delivery.tag).await.unwrap();
        messages.push(delivery.message);
    }
    messages
}

struct Bus(MemoryBus);

#[async_trait]
impl SinkHarness for Bus {
    async fn target(&self) -> Box<dyn Connect> {
        self.0.delete_queue("q");
        self.0.declare_queue("q", QueueOptions::default());
        Box::new(self.0.to_queue("q", "dacapo.replay.1"))
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Message
    }

    async fn arrived(&self) -> Vec<Message> {
        drain(&self.0, "q").await
    }

    async fn delete_queue(&self) {
        self.0.delete_queue("q");
    }
}

#[async_trait]
impl SourceHarness for Bus {
    async fn queue(&self, prefetch: NonZeroUsize) -> Box<dyn Subscribe> {
        self.0.delete_queue("q");
        self.0.declare_exchange("shop", ExchangeKind::Topic).unwrap();
        let bindings = vec![("shop".to_owned(), short("#"))];
        let subscription = self.0.subscription("q", QueueOptions::default(), bindings, prefetch);
        // Published before the first source is opened must not be lost.
        drop(subscription.open().await.unwrap());
        Box::new(subscription)
    }

    fn exchange(&self) -> ShortStr {
        short("shop")
    }

    async fn publish(&self, message: Message) {
        assert_eq!(self.0.publish(message).unwrap(), Outcome::Confirmed);
    }
}

#[tokio::test]
async fn it_passes_the_suite_of_sinks() {
    conformance::check_sink(&Bus(MemoryBus::new())).await;
}

#[tokio::test]
async fn it_passes_the_suite_of_sources() {
    conformance::check_source(&Bus(MemoryBus::new())).await;
}

struct BehindAWrapper(Bus);

#[async_trait]
impl SinkHarness for BehindAWrapper {
    async fn target(&self) -> Box<dyn Connect> {
        self.0.target().await;
        let inner = self.0.0.to_queue("q", "dacapo.replay.1");
        Box::new(Faulty::new(inner, Vec::new(), Duration::from_millis(1)))
    }

    fn fidelity(&self) -> Fidelity {
        self.0.fidelity()
    }

    async fn arrived(&self) -> Vec<Message> {
        self.0.arrived().await
    }

    async fn delete_queue(&self) {
        self.0.delete_queue().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_faulty_wrapper_without_faults_passes_the_suite_of_sinks() {
    conformance::check_sink(&BehindAWrapper(Bus(MemoryBus::new()))).await;
}

#[tokio::test(start_paused = true)]
async fn faults_strike_where_the_script_says() {
    let bus = MemoryBus::new();
    bus.declare_queue("q", QueueOptions::default());
    let script = vec![
        Fault::RefuseOpen { nth: 1 },
        Fault::Nack { nth: 2 },
        Fault::Lose { after: 4, noticed: Noticed::Later },
        Fault::Block { after: 3, asked: 1 },
    ];
    let target = Faulty::new(bus.to_queue("q", "x"), script, Duration::from_millis(5));
    assert!(target.open().await.err().unwrap().is_transient());
    let mut sink = target.open().await.unwrap();
    let batch = ["a", "b", "c"].map(|body| message("", "k", body));
    sink.send(&batch).await.unwrap();
    let answered = sink.outcomes().await.unwrap();
    assert_eq!(answered, [Outcome::Confirmed, Outcome::Nacked, Outcome::Confirmed]);
    assert!(sink.state().await.unwrap().blocked);
    assert!(!sink.state().await.unwrap().blocked);
    sink.send(&["d", "e"].map(|body| message("", "k", body))).await.unwrap();
    assert!(sink.outcomes().await.unwrap_err().is_transient());
    let bodies: Vec<Bytes> = drain(&bus, "q").await.into_iter().map(|m| m.body).collect();
    assert_eq!(bodies, ["a", "c", "d"], "the nacked one and what followed the loss did not arrive");
    assert_eq!(target.sent(), 4);
}

#[tokio::test]
async fn each_kind_of_exchange_chooses_its_queues_once() {
    let bus = MemoryBus::new();
    for queue in ["a", "b"] {
        bus.declare_queue(queue, QueueOptions::default());
    }
    bus.declare_exchange("direct", ExchangeKind::Direct).unwrap();
    bus.declare_exchange("topic", ExchangeKind::Topic).unwrap();
    bus.declare_exchange("fanout", ExchangeKind::Fanout).unwrap();
    bus.bind("a", "direct", &short("k")).unwrap();
    bus.bind("a", "topic", &short("orders.*")).unwrap();
    bus.bind("a", "topic", &short("#.placed")).unwrap();
    bus.bind("b", "topic", &short("#")).unwrap();
    bus.bind("b", "fanout", &short("ignored")).unwrap();
    let returned = Outcome::Returned { reason: "312 NO_ROUTE".to_owned() };
    let check = |exchange, key, outcome: &Outcome, depths: [u64; 2]| {
        assert_eq!(bus.publish(message(exchange, key, "")).unwrap(), *outcome, "{exchange} {key}");
        assert_eq!([bus.depth("a").unwrap(), bus.depth("b").unwrap()], depths, "{exchange} {key}");
    };
    check("direct", "k", &Outcome::Confirmed, [1, 0]);
    check("direct", "K", &returned, [1, 0]);
    check("topic", "orders.placed", &Outcome::Confirmed, [2, 1]);
    check("topic", "paid", &Outcome::Confirmed, [2, 2]);
    check("fanout", "any", &Outcome::Confirmed, [2, 3]);
    check("", "a", &Outcome::Confirmed, [3, 3]);
    check("", "nowhere", &returned, [3, 3]);
    assert!(matches!(bus.publish(message("gone", "k", "")), Err(BusError::NotFound { .. })));
}

#[test]
fn an_exchange_keeps_its_kind() {
    let bus = MemoryBus::new();
    bus.declare_exchange("x", ExchangeKind::Direct).unwrap();
    bus.declare_exchange("x", ExchangeKind::Direct).unwrap();
    let refused = bus.declare_exchange("x", ExchangeKind::Topic).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the bus in memory refused: exchange `x` exists as Direct; choose another name"
    );
}

#[tokio::test]
async fn a_full_queue_nacks_and_the_others_have_the_message() {
    let bus = MemoryBus::new();
    bus.declare_queue("small", QueueOptions { length_max: 1, ..QueueOptions::default() });
    bus.declare_queue("large", QueueOptions::default());
    bus.declare_exchange("x", ExchangeKind::Fanout).unwrap();
    bus.bind("small", "x", &short("")).unwrap();
    bus.bind("large", "x", &short("")).unwrap();
    assert_eq!(bus.publish(message("x", "", "1")).unwrap(), Outcome::Confirmed);
    assert_eq!(bus.publish(message("x", "", "2")).unwrap(), Outcome::Nacked);
    assert_eq!((bus.depth("small"), bus.depth("large")), (Some(1), Some(2)));
    drain(&bus, "small").await;
    assert_eq!(bus.publish(message("x", "", "3")).unwrap(), Outcome::Confirmed);
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_is_parked_with_its_properties_and_redelivered_as_parked() {
    let bus = MemoryBus::new();
    bus.declare_queue("q", QueueOptions { expired: Expired::Parked, ..QueueOptions::default() });
    let properties = Properties { expiration: Some(short("1000")), ..Properties::default() };
    let mortal = Message { properties, ..message("", "q", "mortal") };
    bus.publish(mortal.clone()).unwrap();
    bus.publish(message("", "q", "lasting")).unwrap();
    tokio::time::advance(Duration::from_millis(1_001)).await;

    let expected = Some(Parked { reason: "expired".to_owned() });
    let mut source = bus.consume("q", prefetch(10)).unwrap();
    let first = source.next().await.unwrap().unwrap();
    assert_eq!((first.parked, first.message), (expected.clone(), mortal));
    assert_eq!(source.next().await.unwrap().unwrap().message.body, "lasting");
    drop(source);
    let mut again = bus.consume("q", prefetch(10)).unwrap();
    assert_eq!(again.next().await.unwrap().unwrap().parked, expected);
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_is_gone_where_nothing_is_parked() {
    let bus = MemoryBus::new();
    bus.declare_queue("q", QueueOptions::default());
    let properties = Properties { expiration: Some(short("10")), ..Properties::default() };
    bus.publish(Message { properties, ..message("", "q", "mortal") }).unwrap();
    bus.publish(message("", "q", "lasting")).unwrap();
    tokio::time::advance(Duration::from_millis(11)).await;
    let mut source = bus.consume("q", prefetch(10)).unwrap();
    assert_eq!(source.next().await.unwrap().unwrap().message.body, "lasting");
}

#[tokio::test]
async fn a_message_can_be_parked_by_hand() {
    let bus = MemoryBus::new();
    bus.declare_queue("q", QueueOptions::default());
    assert!(!bus.park_oldest("q", "delivery_limit"));
    bus.publish(message("", "q", "a")).unwrap();
    assert!(bus.park_oldest("q", "delivery_limit"));
    assert_eq!(bus.depth("q"), Some(0));
    let mut source = bus.consume("q", prefetch(1)).unwrap();
    let parked = source.next().await.unwrap().unwrap().parked.unwrap();
    assert_eq!(parked.reason, "delivery_limit");
}

#[tokio::test]
async fn a_waiting_source_wakes_for_a_message_and_fails_when_its_queue_is_deleted() {
    let bus = MemoryBus::new();
    bus.declare_queue("q", QueueOptions::default());
    let mut source = bus.consume("q", prefetch(1)).unwrap();
    let publish = async {
        bus.publish(message("", "q", "late")).unwrap();
    };
    let (delivery, ()) = tokio::join!(source.next(), publish);
    assert_eq!(delivery.unwrap().unwrap().message.body, "late");
    source.ack(1).await.unwrap();
    let delete = async {
        bus.delete_queue("q");
        bus.declare_queue("q", QueueOptions::default());
    };
    let (gone, ()) = tokio::join!(source.next(), delete);
    assert!(matches!(gone, Err(BusError::NotFound { .. })), "{gone:?}");
}

#[tokio::test]
async fn targets_rewrite_what_they_must_and_need_what_they_lead_to() {
    let bus = MemoryBus::new();
    bus.declare_queue("orders", QueueOptions::default());
    bus.declare_exchange("shop", ExchangeKind::Fanout).unwrap();
    bus.bind("orders", "shop", &short("")).unwrap();
    let sent = message("shop", "orders.placed", "a");
    let targets = [
        (bus.to_queue("orders", "own"), ("own", "orders.placed")),
        (bus.to_queue_by_default_exchange("orders"), ("", "orders")),
        (bus.to_exchange("shop", RoutingKey::Rewritten(short("again"))), ("shop", "again")),
        (bus.to_exchange("shop", RoutingKey::Original), ("shop", "orders.placed")),
        (bus.to_original(), ("shop", "orders.placed")),
    ];
    for (target, (exchange, key)) in targets {
        target.open().await.unwrap().send(std::slice::from_ref(&sent)).await.unwrap();
        let arrived = drain(&bus, "orders").await;
        assert_eq!(arrived, [message(exchange, key, "a")], "{target:?}");
        target.dismantle().await.unwrap();
    }
    assert!(matches!(bus.publish(message("own", "", "")), Err(BusError::NotFound { .. })));
    for gone in [bus.to_queue("gone", "own"), bus.to_queue_by_default_exchange("gone")] {
        assert!(matches!(gone.open().await.err(), Some(BusError::NotFound { .. })), "{gone:?}");
    }
}
