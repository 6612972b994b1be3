//! The source on a real RabbitMQ: the suite of every source, and that nothing a publisher can
//! send is lost or stops the rest.

use std::num::{NonZeroU16, NonZeroUsize};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_amqp::{AmqpQueue, AmqpSubscribe, Binding, BlindSpot, Broker, blind_spots};
use dacapo_bus::broker::parked_queue;
use dacapo_bus::conformance::{DEADLINE, SourceHarness, check_source, full_message};
use dacapo_bus::{BusError, Delivery, Parked, Source, Subscribe};
use dacapo_event::{FieldTable, FieldValue, MemoryBudget, Message, Properties, ShortStr};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::Rabbit;
use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable as Arguments};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::amqp_direct::{Direct, broker, broker_at};
use super::{services, witness};

mod waiting;

fn short(text: &str) -> ShortStr {
    ShortStr::try_from(text).expect("at most 255 bytes")
}

fn everything(exchange: &str) -> Vec<Binding> {
    vec![exchange.parse().expect("an exchange's name")]
}

fn subscribe(queue: &str, exchange: &str, prefetch: u16) -> AmqpSubscribe {
    subscribe_at(broker(), queue, everything(exchange), prefetch)
}

fn subscribe_at(
    broker: Broker,
    queue: &str,
    bindings: Vec<Binding>,
    prefetch: u16,
) -> AmqpSubscribe {
    let prefetch = NonZeroU16::new(prefetch).expect("at least one");
    AmqpSubscribe::new(broker, queue, bindings, prefetch, MemoryBudget::DEFAULT.waiting())
}

async fn next(source: &mut dyn Source) -> Delivery {
    let delivery = tokio::time::timeout(DEADLINE, source.next()).await;
    delivery.expect("a delivery in time").expect("the source delivers").expect("it is open")
}

/// Returns the error that a source ends with.
async fn end(source: &mut dyn Source) -> BusError {
    tokio::time::timeout(DEADLINE, source.next())
        .await
        .expect("an end in time")
        .expect_err("an error at the end")
}

async fn refusal(subscribe: &AmqpSubscribe) -> BusError {
    match subscribe.open().await {
        Ok(_) => panic!("{subscribe:?} was opened"),
        Err(error) => error,
    }
}

/// An exchange and an archiver's queue of the test's own.
struct Setting {
    direct: Direct,
    exchange: String,
    queue: String,
}

impl Setting {
    async fn new(kind: ExchangeKind) -> Self {
        let direct = Direct::connect().await;
        let (exchange, queue) = (services::unique("source-x"), services::unique("source-q"));
        direct.declare_exchange(&exchange, kind).await;
        Setting { direct, exchange, queue }
    }

    fn subscribe(&self) -> AmqpSubscribe {
        subscribe(&self.queue, &self.exchange, 100)
    }

    fn message(&self, body: &str) -> Message {
        Message {
            exchange: short(&self.exchange),
            routing_key: short("k"),
            body: Bytes::copy_from_slice(body.as_bytes()),
            ..Message::default()
        }
    }

    /// Publishes through raw frames, which need not be text.
    fn publish_raw(&self, routing_key: &Value, properties: &Value) {
        let publish = json!({
            "op": "publish",
            "exchange": self.exchange,
            "routing_key": routing_key,
            "properties": properties,
            "body": "raw",
        });
        let published = tokio::task::block_in_place(|| witness::on_broker(publish));
        assert_eq!(published, json!({ "outcome": "ack", "returned": null }));
    }

    async fn remove(self) {
        self.direct.delete_queue(&self.queue).await;
        self.direct.delete_queue(&parked_queue(&self.queue)).await;
        self.direct.delete_exchange(&self.exchange).await;
    }
}

struct Harness {
    direct: Direct,
    exchange: String,
    queue: Mutex<Option<String>>,
    kind: Kind,
}

/// Whose source is checked. A service's declares nothing, so an archiver's does it before.
#[derive(Clone, Copy)]
enum Kind {
    Archiver,
    Service,
}

impl Harness {
    async fn forget(&self, queue: Option<String>) {
        if let Some(queue) = queue {
            self.direct.delete_queue(&queue).await;
            self.direct.delete_queue(&parked_queue(&queue)).await;
        }
    }
}

#[async_trait]
impl SourceHarness for Harness {
    async fn queue(&self, prefetch: NonZeroUsize) -> Box<dyn Subscribe> {
        let queue = services::unique("source-q");
        let before = self.queue.lock().await.replace(queue.clone());
        self.forget(before).await;
        let subscribe = subscribe(
            &queue,
            &self.exchange,
            prefetch.get().try_into().expect("a prefetch of 16 bits"),
        );
        // The queue must be there before the first publish.
        subscribe
            .open()
            .await
            .expect("the queue is declared")
            .close()
            .await
            .expect("closes in order");
        match self.kind {
            Kind::Archiver => Box::new(subscribe),
            Kind::Service => Box::new(service(&queue, prefetch)),
        }
    }

    fn exchange(&self) -> ShortStr {
        short(&self.exchange)
    }

    async fn publish(&self, message: Message) {
        self.direct.publish(&message).await;
    }
}

/// Returns a way to a queue alone, as a service consumes it.
fn service(queue: &str, prefetch: NonZeroUsize) -> AmqpQueue {
    let prefetch = u16::try_from(prefetch.get()).ok().and_then(NonZeroU16::new);
    let prefetch = prefetch.expect("a prefetch of 16 bits");
    AmqpQueue::new(broker(), queue, prefetch, MemoryBudget::DEFAULT.waiting())
        .expect("a short name")
}

async fn check(kind: Kind) {
    let direct = Direct::connect().await;
    let exchange = services::unique("source-x");
    direct.declare_exchange(&exchange, ExchangeKind::Topic).await;
    let harness = Harness { direct, exchange, queue: Mutex::new(None), kind };
    check_source(&harness).await;
    harness.forget(harness.queue.lock().await.take()).await;
    harness.direct.delete_exchange(&harness.exchange).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    check(Kind::Archiver).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_source_conforms() {
    check(Kind::Service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_queue_that_is_not_there_is_named() {
    let queue = services::unique("source-q");
    let error = match service(&queue, NonZeroUsize::MIN).open().await {
        Ok(_) => panic!("`{queue}` was opened"),
        Err(error) => error.to_string(),
    };
    assert!(error.starts_with(&format!("queue `{queue}` does not exist on ")), "{error}");
}

/// While no archiver runs, an event's own expiration takes it out of the queue; it comes through
/// the parking queue, with everything as it was published.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_event_comes_as_it_was_published() {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let subscribe = setting.subscribe();
    subscribe.open().await.unwrap().close().await.unwrap();

    let exchange = short(&setting.exchange);
    let mut full = full_message(&exchange);
    full.properties.expiration = Some(short("1"));
    let cc = FieldValue::Array(vec![FieldValue::text("copy.one"), FieldValue::text("copy.two")]);
    let death: FieldTable = [
        (short("queue"), FieldValue::text("elsewhere")),
        (short("reason"), FieldValue::text("rejected")),
        (short("exchange"), FieldValue::text("before")),
        (short("count"), FieldValue::LongLongInt(1)),
        (short("routing-keys"), FieldValue::Array(vec![FieldValue::text("k")])),
        (short("time"), FieldValue::Timestamp(1_700_000_000)),
    ]
    .into_iter()
    .collect();
    let deaths = FieldValue::Array(vec![FieldValue::Table(death)]);
    let headers = full.properties.headers.as_mut().unwrap();
    headers.push(short("CC"), cc);
    headers.push(short("x-death"), deaths);
    let bare = Message {
        properties: Properties { expiration: Some(short("1")), ..Properties::default() },
        ..setting.message("bare")
    };
    for message in [&full, &bare] {
        setting.direct.publish(message).await;
    }

    let mut source = subscribe.open().await.unwrap();
    for published in [full, bare] {
        let delivery = next(&mut *source).await;
        assert_eq!(delivery.parked, Some(Parked { reason: "expired".to_owned() }));
        assert_eq!(delivery.message, published);
    }
    // One ack covers what came from either queue.
    setting.direct.publish(&setting.message("after")).await;
    let after = next(&mut *source).await;
    assert_eq!((after.tag, after.parked), (3, None));
    source.ack(3).await.unwrap();
    source.close().await.unwrap();

    let mut successor = subscribe.open().await.unwrap();
    assert_eq!(successor.depth().await.unwrap(), 0);
    setting.direct.publish(&setting.message("last")).await;
    assert_eq!(next(&mut *successor).await.message.body, "last");
    successor.close().await.unwrap();
    setting.remove().await;
}

/// RabbitMQ passes on what is no UTF-8; lapin closes the connection over it.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_not_text_is_delivered_in_its_place() {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let mut source = setting.subscribe().open().await.unwrap();
    let bytes = json!({ "hex": "636166e9" });
    setting.direct.publish(&setting.message("before")).await;
    setting.publish_raw(&bytes, &json!({}));
    setting.publish_raw(&json!("k"), &json!({ "message_id": bytes, "type": bytes }));
    setting.publish_raw(&json!("k"), &json!({ "headers": [[bytes, "S", bytes]] }));
    setting.direct.publish(&setting.message("after")).await;

    let cafe = ShortStr::new(&b"caf\xe9"[..]).unwrap();
    let unreadable = Some(Parked { reason: "unreadable".to_owned() });
    assert_eq!(next(&mut *source).await.parked, None);
    let key = next(&mut *source).await;
    assert_eq!(key.message.routing_key, cafe);
    let property = next(&mut *source).await;
    assert_eq!(property.message.properties.message_id, Some(cafe.clone()));
    assert_eq!(property.message.properties.kind, Some(cafe.clone()));
    let header = next(&mut *source).await;
    let value = FieldValue::LongString(Bytes::from_static(b"caf\xe9"));
    assert_eq!(header.message.properties.headers, Some([(cafe, value)].into_iter().collect()));
    for delivery in [key, property, header] {
        assert_eq!(delivery.parked, unreadable);
        assert_eq!(delivery.message.body, "raw");
    }
    let after = next(&mut *source).await;
    assert_eq!((after.tag, after.parked, after.message.body), (5, None, Bytes::from("after")));
    source.ack(5).await.unwrap();
    source.close().await.unwrap();
    setting.remove().await;
}

/// A table nested as deep as a frame holds would overflow the stack of a parser that recurses.
#[tokio::test(flavor = "multi_thread")]
async fn a_deeply_nested_header_table_does_not_stop_the_rest() {
    const LEVELS: usize = 60;
    let setting = Setting::new(ExchangeKind::Topic).await;
    let mut source = setting.subscribe().open().await.unwrap();
    let mut nested = json!([]);
    for _ in 0..LEVELS {
        nested = json!([["t", "F", nested]]);
    }
    setting.publish_raw(&json!("k"), &json!({ "headers": nested }));
    setting.direct.publish(&setting.message("after")).await;
    let deep = next(&mut *source).await;
    assert_eq!(deep.message.body, "raw");
    let message = deep.message;
    let column = dacapo_event::wire::encode_properties(&message);
    let back = dacapo_event::wire::decode_message(
        message.exchange.clone(),
        message.routing_key.clone(),
        &column,
        message.body.clone(),
    );
    assert_eq!(back.unwrap(), message, "the archive can hold it");
    assert_eq!(next(&mut *source).await.message.body, "after");
    source.close().await.unwrap();
    setting.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_witness_publishes_every_field_type_and_none_is_changed() {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let mut source = setting.subscribe().open().await.unwrap();
    setting.publish_raw(
        &json!("k"),
        &json!({
            "content_type": "text/plain",
            "headers": [
                ["A", "A", [["t", true], ["A", []], ["F", []]]],
                ["B", "B", 255],
                ["D", "D", [255, u32::MAX]],
                ["F", "F", [["n", "F", [["m", "V", null]]]]],
                ["I", "I", i32::MIN],
                ["S", "S", { "hex": "c328" }],
                ["T", "T", u64::MAX],
                ["V", "V", null],
                ["b", "b", -128],
                ["d", "d", "7fefffffffffffff"],
                ["f", "f", "80000000"],
                ["i", "i", u32::MAX],
                ["l", "l", i64::MIN],
                ["s", "s", -32768],
                ["t", "t", false],
                ["u", "u", 65535],
                ["x", "x", { "hex": "00ff" }]
            ],
            "delivery_mode": 1,
            "timestamp": u64::MAX,
        }),
    );
    let Delivery { message, parked, redelivered, .. } = next(&mut *source).await;
    assert_eq!((parked, redelivered), (None, false));
    let table = |fields: &[(&str, FieldValue)]| -> FieldTable {
        fields.iter().map(|(name, value)| (short(name), value.clone())).collect()
    };
    let inner = table(&[("n", FieldValue::Table(table(&[("m", FieldValue::Void)])))]);
    let array = vec![
        FieldValue::Boolean(true),
        FieldValue::Array(vec![]),
        FieldValue::Table(FieldTable::new()),
    ];
    let headers = table(&[
        ("A", FieldValue::Array(array)),
        ("B", FieldValue::ShortShortUInt(255)),
        ("D", FieldValue::Decimal { scale: 255, value: u32::MAX }),
        ("F", FieldValue::Table(inner)),
        ("I", FieldValue::LongInt(i32::MIN)),
        ("S", FieldValue::LongString(Bytes::from_static(b"\xc3\x28"))),
        ("T", FieldValue::Timestamp(u64::MAX)),
        ("V", FieldValue::Void),
        ("b", FieldValue::ShortShortInt(-128)),
        ("d", FieldValue::Double(f64::MAX)),
        ("f", FieldValue::Float(-0.0)),
        ("i", FieldValue::LongUInt(u32::MAX)),
        ("l", FieldValue::LongLongInt(i64::MIN)),
        ("s", FieldValue::ShortInt(i16::MIN)),
        ("t", FieldValue::Boolean(false)),
        ("u", FieldValue::ShortUInt(u16::MAX)),
        ("x", FieldValue::ByteArray(Bytes::from_static(b"\x00\xff"))),
    ]);
    let properties = Properties {
        content_type: Some(short("text/plain")),
        headers: Some(headers),
        delivery_mode: Some(1.into()),
        timestamp: Some(u64::MAX),
        ..Properties::default()
    };
    assert_eq!(message, Message { properties, ..setting.message("raw") });
    source.close().await.unwrap();
    setting.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_while_it_is_consumed_is_an_error_not_silence() {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let mut source = setting.subscribe().open().await.unwrap();
    setting.direct.delete_queue(&setting.queue).await;
    let error = end(&mut *source).await;
    let BusError::NotFound { thing, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*thing, format!("queue `{}`", setting.queue));
    assert!(source.ack(1).await.is_ok(), "there is nothing to ack");
    assert!(source.depth().await.is_err());
    setting.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_settings_is_refused_and_says_which() {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let mut arguments = Arguments::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    setting.direct.declare_queue(&setting.queue, arguments).await;
    let error = refusal(&setting.subscribe()).await;
    assert!(matches!(error, BusError::Refused { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("inequivalent arg 'x-") && text.contains(&setting.queue), "{text}");
    assert!(text.contains("delete it"), "{text}");
    setting.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_not_there_is_named_and_nothing_is_declared() {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let missing = services::unique("source-nowhere");
    let bindings = [everything(&setting.exchange), everything(&missing)].concat();
    let subscribe = subscribe_at(broker(), &setting.queue, bindings.clone(), 1);
    let error = refusal(&subscribe).await;
    assert!(error.to_string().starts_with(&format!("exchange `{missing}` does not exist on")));
    let error = blind_spots(&broker(), &bindings).await.unwrap_err();
    assert!(matches!(error, BusError::NotFound { .. }), "{error:?}");
    let passive = json!({ "op": "declare_queue", "queue": setting.queue, "passive": true });
    let asked =
        tokio::task::block_in_place(|| witness::raw_amqp(&services::amqp(), &[passive]).unwrap());
    assert!(asked[0]["error"].as_str().unwrap().starts_with("404"), "{}", asked[0]);
    setting.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_on_a_direct_exchange_is_a_blind_spot() {
    let direct = Setting::new(ExchangeKind::Direct).await;
    let topic = Setting::new(ExchangeKind::Topic).await;
    let binding = |text: String| text.parse::<Binding>().unwrap();
    let wildcard = binding(direct.exchange.clone());
    let bindings = [
        wildcard.clone(),
        binding(format!("{}=one.key", direct.exchange)),
        binding(topic.exchange.clone()),
        binding("amq.headers".to_owned()),
    ];
    let spots = blind_spots(&broker(), &bindings).await.unwrap();
    assert_eq!(
        spots,
        [
            BlindSpot::DefaultExchange,
            BlindSpot::OtherExchanges,
            BlindSpot::WildcardOnDirect(wildcard)
        ]
    );
    assert!(spots[2].to_string().contains(&direct.exchange));
    direct.remove().await;
    topic.remove().await;
}

/// The caller may wait long for its store; the connection must live through it.
#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_go_on_while_nobody_asks_for_deliveries() {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let url = format!("{}?heartbeat=1", services::amqp());
    let bindings = everything(&setting.exchange);
    let subscribe = subscribe_at(broker_at(&url), &setting.queue, bindings, 10);
    let mut source = subscribe.open().await.unwrap();
    setting.direct.publish(&setting.message("x")).await;
    let first = next(&mut *source).await;
    // The broker ends a connection after two heartbeats without a byte.
    tokio::time::sleep(Duration::from_secs(5)).await;
    source.ack(first.tag).await.unwrap();
    setting.direct.publish(&setting.message("y")).await;
    let second = next(&mut *source).await;
    assert_eq!((second.tag, second.redelivered), (2, false), "it is the same connection");
    source.close().await.unwrap();
    setting.remove().await;
}

/// Needs a broker of its own, which it may kill and halt.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_broker_is_noticed_and_what_was_not_acked_comes_again() {
    let folder = RunFolder::create().unwrap();
    let mut rabbit =
        tokio::task::block_in_place(|| Rabbit::start(&folder.path().join("rabbit")).unwrap());
    let url = rabbit.amqp_url();
    let on_rabbit = |operation: Value| {
        let results =
            tokio::task::block_in_place(|| witness::raw_amqp(&url, &[operation]).unwrap());
        assert_eq!(results[0].get("error"), None, "{results:?}");
    };
    on_rabbit(json!({ "op": "declare_exchange", "exchange": "x" }));
    let broker = broker_at(&format!("{url}?heartbeat=1"));
    let subscribe = subscribe_at(broker, "q", everything("x"), 10);
    let mut source = subscribe.open().await.unwrap();
    for body in ["one", "two", "three"] {
        on_rabbit(json!({
            "op": "publish", "exchange": "x", "body": body, "properties": { "delivery_mode": 2 },
        }));
    }
    for _ in 0..3 {
        next(&mut *source).await;
    }
    source.ack(1).await.unwrap();
    // The ack is on its way; an answer on the same connection says that it has arrived.
    source.depth().await.unwrap();

    // RabbitMQ 3.10 writes down that a quorum queue exists some 5 s after it was declared; one
    // that is younger when the node is killed never has a leader again.
    let write_down = ["eval", "[dets:sync(Table) || Table <- dets:all()]."];
    tokio::task::block_in_place(|| rabbit.ctl(&write_down).unwrap());
    tokio::task::block_in_place(|| rabbit.kill().unwrap());
    let error = end(&mut *source).await;
    assert!(error.is_transient(), "{error:?}");
    assert!(refusal(&subscribe).await.is_transient());

    tokio::task::block_in_place(|| rabbit.start_again().unwrap());
    let mut successor = tokio::time::timeout(DEADLINE, async {
        loop {
            match subscribe.open().await {
                Ok(source) => return source,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
    .expect("open again in time");
    let again = next(&mut *successor).await;
    // An ack that was not yet on disk when the broker was killed is no ack.
    let again = if again.message.body == "one" { next(&mut *successor).await } else { again };
    assert_eq!(again.message.body, "two");
    assert_eq!(next(&mut *successor).await.message.body, "three");

    rabbit.freeze().unwrap();
    let error = end(&mut *successor).await;
    rabbit.thaw().unwrap();
    assert!(error.is_transient() && error.to_string().contains("heartbeat"), "{error}");
}
