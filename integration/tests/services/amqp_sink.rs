//! The sink on a real RabbitMQ: the suite of every sink, and what only a broker can show.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_amqp::{AmqpConnect, AmqpTarget, Broker, TargetFacts, Tls, Via, inspect};
use dacapo_bus::conformance::{DEADLINE, Fidelity, SinkHarness, check_sink, full_message};
use dacapo_bus::{BusError, Connect, Outcome, Sink};
use dacapo_event::{FieldTable, FieldValue, Message, Properties, ShortStr};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::Rabbit;
use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldTable as Arguments};
use serde_json::json;
use tokio::sync::Mutex;

use super::amqp_direct::{Direct, broker, broker_at};
use super::{services, witness};

fn short(text: &str) -> ShortStr {
    ShortStr::try_from(text).expect("at most 255 bytes")
}

fn to_queue(queue: &str) -> AmqpTarget {
    let via = Via::OwnExchange { name: services::unique("dacapo.replay") };
    AmqpTarget::Queue { queue: queue.to_owned(), via }
}

fn connect(target: AmqpTarget) -> AmqpConnect {
    AmqpConnect { broker: broker(), target }
}

fn message(exchange: &str, routing_key: &str, body: &str) -> Message {
    Message {
        exchange: short(exchange),
        routing_key: short(routing_key),
        body: Bytes::copy_from_slice(body.as_bytes()),
        ..Message::default()
    }
}

async fn publish(sink: &mut dyn Sink, messages: &[Message]) -> Result<Vec<Outcome>, BusError> {
    sink.send(messages).await?;
    let mut outcomes = Vec::new();
    while outcomes.len() < messages.len() {
        let more = tokio::time::timeout(DEADLINE, sink.outcomes()).await;
        outcomes.extend(more.expect("the broker answers")?);
    }
    Ok(outcomes)
}

/// Returns the refusal to open a sink.
async fn refusal(connect: AmqpConnect) -> BusError {
    match connect.open().await {
        Ok(_) => panic!("{connect:?} was opened"),
        Err(error) => error,
    }
}

struct Harness {
    direct: Direct,
    queue: Mutex<Option<String>>,
}

impl Harness {
    async fn queue(&self) -> String {
        self.queue.lock().await.clone().expect("a target was asked for")
    }
}

#[async_trait]
impl SinkHarness for Harness {
    async fn target(&self) -> Box<dyn Connect> {
        let queue = services::unique("sink");
        self.direct.declare_queue(&queue, Arguments::default()).await;
        if let Some(before) = self.queue.lock().await.replace(queue.clone()) {
            self.direct.delete_queue(&before).await;
        }
        Box::new(connect(to_queue(&queue)))
    }

    fn fidelity(&self) -> Fidelity {
        Fidelity::Message
    }

    async fn arrived(&self) -> Vec<Message> {
        self.direct.take_all(&self.queue().await).await
    }

    async fn delete_queue(&self) {
        self.direct.delete_queue(&self.queue().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let harness = Harness { direct: Direct::connect().await, queue: Mutex::new(None) };
    check_sink(&harness).await;
    harness.delete_queue().await;
}

/// A return names no message; each must still be its own message's.
#[tokio::test(flavor = "multi_thread")]
async fn among_many_confirmed_only_the_unroutable_are_returned() {
    let direct = Direct::connect().await;
    let (exchange, queue) = (services::unique("sink-x"), services::unique("sink-q"));
    direct.declare_exchange(&exchange, ExchangeKind::Topic).await;
    let mut arguments = Arguments::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    direct.declare_queue(&queue, arguments).await;
    direct.bind(&queue, &exchange, "a.#").await;

    let target = AmqpTarget::Exchange { exchange: exchange.clone(), routing_key: None };
    let mut sink = connect(target).open().await.unwrap();
    let routable = |number: usize| number % 7 != 3 && number % 11 != 5;
    let messages: Vec<Message> = (0..2_000)
        .map(|number| {
            let key = if routable(number) { "a.b" } else { "nowhere" };
            message(&exchange, key, &number.to_string())
        })
        .collect();
    let outcomes = publish(&mut *sink, &messages).await.unwrap();
    for (number, outcome) in outcomes.iter().enumerate() {
        let expected = if routable(number) {
            Outcome::Confirmed
        } else {
            Outcome::Returned { reason: "312 NO_ROUTE".to_owned() }
        };
        assert_eq!(*outcome, expected, "message {number}");
    }
    let arrived = direct.take_all(&queue).await;
    assert_eq!(arrived.len(), (0..2_000).filter(|number| routable(*number)).count());
    sink.close().await.unwrap();
    direct.delete_queue(&queue).await;
    direct.delete_exchange(&exchange).await;
}

/// A catch-all policy gave the replay's own exchange an alternate one, which took what the target
/// queue, deleted and declared anew meanwhile, did not get; and the broker confirmed it.
#[tokio::test(flavor = "multi_thread")]
async fn no_policy_gives_a_replays_own_exchange_an_alternate_that_hides_a_lost_binding() {
    let Some(management) = services::management() else { return };
    let direct = Direct::connect().await;
    let (target, hiding) = (services::unique("sink-q"), services::unique("sink-unrouted"));
    direct.declare_exchange(&hiding, ExchangeKind::Fanout).await;
    direct.declare_queue(&hiding, Arguments::default()).await;
    direct.bind(&hiding, &hiding, "").await;
    direct.declare_queue(&target, Arguments::default()).await;
    let own = services::unique("dacapo.replay");
    let policy = json!({
        "pattern": format!("^{own}$"), "apply-to": "exchanges",
        "definition": { "alternate-exchange": hiding },
    });
    let path = format!("policies/%2F/{hiding}");
    witness::management(&management, &json!([["PUT", path, policy]])).unwrap();

    // Left behind by a version whose exchange had no argument, as a resumed replay finds it.
    direct.declare_exchange(&own, ExchangeKind::Fanout).await;
    let via = Via::OwnExchange { name: own.clone() };
    let connect = connect(AmqpTarget::Queue { queue: target.clone(), via });
    let mut sink = connect.open().await.unwrap();
    let messages = [message("shop", "orders.placed", "1")];
    assert_eq!(publish(&mut *sink, &messages).await.unwrap(), [Outcome::Confirmed]);
    direct.delete_queue(&target).await;
    direct.declare_queue(&target, Arguments::default()).await;
    let returned = Outcome::Returned { reason: "312 NO_ROUTE".to_owned() };
    assert_eq!(publish(&mut *sink, &messages).await.unwrap(), [returned]);
    // Resumed, it finds its exchange as it declared it, and binds it again.
    let mut resumed = connect.open().await.unwrap();
    assert_eq!(publish(&mut *resumed, &messages).await.unwrap(), [Outcome::Confirmed]);
    for mut sink in [sink, resumed] {
        sink.close().await.unwrap();
    }
    connect.dismantle().await.unwrap();
    assert_eq!(direct.take_all(&hiding).await, []);
    witness::management(&management, &json!([["DELETE", path, null]])).unwrap();
    for queue in [&target, &hiding] {
        direct.delete_queue(queue).await;
    }
    direct.delete_exchange(&hiding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_that_refuses_is_a_nack() {
    let direct = Direct::connect().await;
    let queue = services::unique("sink-full");
    let mut arguments = Arguments::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(2));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    direct.declare_queue(&queue, arguments).await;
    let target = connect(to_queue(&queue));
    let mut sink = target.open().await.unwrap();
    let mut outcomes = Vec::new();
    for number in 0..4 {
        let one = [message("shop", "k", &number.to_string())];
        outcomes.extend(publish(&mut *sink, &one).await.unwrap());
    }
    assert_eq!(outcomes[..2], [Outcome::Confirmed, Outcome::Confirmed]);
    assert_eq!(outcomes[2..], [Outcome::Nacked, Outcome::Nacked]);
    sink.close().await.unwrap();
    target.dismantle().await.unwrap();
    direct.delete_queue(&queue).await;
}

/// The raw client of the witnesses, which shares no code with lapin, agrees.
#[tokio::test(flavor = "multi_thread")]
async fn a_witness_sees_every_property_and_field_type() {
    let queue = tokio::task::block_in_place(|| witness::Queue::new("sink-witness"));
    let target = connect(to_queue(queue.name()));
    let mut sink = target.open().await.unwrap();
    let sent = full_message(&short("shop"));
    assert_eq!(publish(&mut *sink, &[sent]).await.unwrap(), [Outcome::Confirmed]);
    sink.close().await.unwrap();
    let seen = tokio::task::block_in_place(|| queue.take(2));
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["routing_key"], "orders.placed");
    assert_eq!(
        seen[0]["properties"],
        json!({
            "content_type": "application/json",
            "content_encoding": "identity",
            "headers": [
                ["array", "A", [["t", false], ["S", "a"]]],
                ["boolean", "t", true],
                ["bytes", "x", "\u{1}\u{2}\u{3}"],
                ["decimal", "D", [2, 12345]],
                ["f32", "f", "3fc00000"],
                ["f64", "d", "bfb999999999999a"],
                ["i16", "s", -32768],
                ["i32", "I", i32::MIN],
                ["i64", "l", i64::MIN],
                ["i8", "b", -128],
                ["not text", "S", { "hex": "ff00" }],
                ["table", "F", [["deeper", "F", [["x", "V", null]]], ["inner", "I", -4]]],
                ["text", "S", "Grüße"],
                ["time", "T", 1_700_000_000],
                ["u16", "u", 65535],
                ["u32", "i", u32::MAX],
                ["u8", "B", 255],
                ["void", "V", null]
            ],
            "delivery_mode": 2,
            "priority": 7,
            "correlation_id": "c-1",
            "reply_to": "replies",
            "expiration": "3600000",
            "message_id": "m-1",
            "timestamp": 1_700_000_000,
            "type": "order.placed",
            "app_id": "shop",
            "cluster_id": "k",
        })
    );
    target.dismantle().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_decides_exchange_and_routing_key() {
    let direct = Direct::connect().await;
    let (exchange, queue) = (services::unique("sink-x"), services::unique("sink-q"));
    direct.declare_exchange(&exchange, ExchangeKind::Topic).await;
    direct.declare_queue(&queue, Arguments::default()).await;
    direct.bind(&queue, &exchange, "#").await;
    let via_default = AmqpTarget::Queue { queue: queue.clone(), via: Via::DefaultExchange };
    let rewritten =
        AmqpTarget::Exchange { exchange: exchange.clone(), routing_key: Some("other".to_owned()) };
    for (target, published_to, arrived_from, arrived_with) in [
        (via_default, "gone", "", queue.as_str()),
        (rewritten, "gone", exchange.as_str(), "other"),
        (AmqpTarget::Original, exchange.as_str(), exchange.as_str(), "orders.placed"),
    ] {
        let target = connect(target);
        let mut sink = target.open().await.unwrap();
        let one = [message(published_to, "orders.placed", "x")];
        assert_eq!(publish(&mut *sink, &one).await.unwrap(), [Outcome::Confirmed]);
        sink.close().await.unwrap();
        target.dismantle().await.unwrap();
        let arrived = direct.take_all(&queue).await;
        assert_eq!(arrived.len(), 1);
        assert_eq!(arrived[0].exchange, short(arrived_from));
        assert_eq!(arrived[0].routing_key, short(arrived_with));
    }
    direct.delete_queue(&queue).await;
    direct.delete_exchange(&exchange).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_queue_means_one_queue_and_nothing_is_left_behind() {
    let direct = Direct::connect().await;
    let (queue, bystander) = (services::unique("sink-q"), services::unique("sink-other"));
    let exchange = services::unique("sink-x");
    direct.declare_exchange(&exchange, ExchangeKind::Fanout).await;
    for queue in [&queue, &bystander] {
        direct.declare_queue(queue, Arguments::default()).await;
        direct.bind(queue, &exchange, "").await;
    }
    let target = to_queue(&queue);
    let own = match &target {
        AmqpTarget::Queue { via: Via::OwnExchange { name }, .. } => name.clone(),
        other => panic!("{other:?}"),
    };
    let as_exchange = AmqpTarget::Exchange { exchange: own, routing_key: None };
    let replay = connect(target);
    let mut sink = replay.open().await.unwrap();
    assert!(inspect(&broker(), &as_exchange).await.unwrap().exists);
    publish(&mut *sink, &[message(&exchange, "k", "x")]).await.unwrap();
    sink.close().await.unwrap();
    replay.dismantle().await.unwrap();
    assert!(!inspect(&broker(), &as_exchange).await.unwrap().exists);
    assert_eq!(direct.take_all(&queue).await.len(), 1);
    assert_eq!(direct.take_all(&bystander).await, []);
    direct.delete_queue(&queue).await;
    direct.delete_queue(&bystander).await;
    direct.delete_exchange(&exchange).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_there_is_named() {
    let name = services::unique("nowhere");
    let as_exchange = AmqpTarget::Exchange { exchange: name.clone(), routing_key: None };
    for (target, thing) in [(to_queue(&name), "queue"), (as_exchange, "exchange")] {
        let facts = inspect(&broker(), &target).await.unwrap();
        assert!(!facts.exists, "{facts:?}");
        let error = refusal(connect(target)).await;
        assert!(matches!(error, BusError::NotFound { .. }), "{error:?}");
        assert!(error.to_string().starts_with(&format!("{thing} `{name}` does not exist on")));
    }

    // An original exchange shows only when it is published to.
    let mut sink = connect(AmqpTarget::Original).open().await.unwrap();
    let many: Vec<Message> = (0..300).map(|n| message(&name, "k", &n.to_string())).collect();
    let error = publish(&mut *sink, &many).await.unwrap_err();
    let BusError::NotFound { thing, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*thing, format!("exchange `{name}`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_is_like_is_asked_without_changing_it() {
    let direct = Direct::connect().await;
    let queue = services::unique("sink-facts");
    direct.declare_queue(&queue, Arguments::default()).await;
    direct.publish(&message("", &queue, "x")).await;
    let target = to_queue(&queue);
    let facts = inspect(&broker(), &target).await.unwrap();
    let TargetFacts { product, version, .. } = facts.clone();
    assert_eq!(product, "RabbitMQ");
    assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
    let peer = broker().url.peer();
    let (depth, consumers) = (Some(1), Some(0));
    assert_eq!(facts, TargetFacts { peer, product, version, exists: true, depth, consumers });
    direct.delete_queue(&queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsendable_message_says_what_is_wrong_and_the_sink_goes_on() {
    let direct = Direct::connect().await;
    let queue = services::unique("sink-unsendable");
    direct.declare_queue(&queue, Arguments::default()).await;
    let target = connect(to_queue(&queue));
    let mut sink = target.open().await.unwrap();

    let long = FieldValue::LongString(vec![b'x'; 200_000].into());
    for (value, words) in [(FieldValue::Double(f64::NAN), "not a number"), (long, "frame_max")] {
        let headers: FieldTable = [(short("x"), value)].into_iter().collect();
        let properties = Properties { headers: Some(headers), ..Properties::default() };
        let bad = Message { properties, ..message("shop", "k", "x") };
        let error = sink.send(&[message("shop", "k", "before"), bad]).await.unwrap_err();
        assert!(matches!(error, BusError::Unsendable { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    let good = publish(&mut *sink, &[message("shop", "k", "good")]).await.unwrap();
    assert_eq!(good, [Outcome::Confirmed]);
    assert_eq!(direct.take_all(&queue).await.len(), 1, "nothing of a refused batch was sent");
    sink.close().await.unwrap();
    target.dismantle().await.unwrap();
    direct.delete_queue(&queue).await;
}

/// AMQP says that they are UTF-8, and RabbitMQ takes and gives them as they are.
#[tokio::test(flavor = "multi_thread")]
async fn short_strings_that_are_not_text_arrive_and_come_back_byte_for_byte() {
    let direct = Direct::connect().await;
    let (exchange, queue) = (services::unique("sink-x"), services::unique("sink-q"));
    direct.declare_exchange(&exchange, ExchangeKind::Fanout).await;
    let target = AmqpTarget::Exchange { exchange: exchange.clone(), routing_key: None };
    let mut sink = connect(target).open().await.unwrap();
    let cafe = ShortStr::new(&b"caf\xe9"[..]).unwrap();
    let headers = [(cafe.clone(), FieldValue::LongInt(1))].into_iter().collect();
    let properties =
        Properties { headers: Some(headers), app_id: Some(cafe.clone()), ..Properties::default() };
    let sent = Message { routing_key: cafe, properties, ..message(&exchange, "", "x") };
    let returned = Outcome::Returned { reason: "312 NO_ROUTE".to_owned() };
    assert_eq!(publish(&mut *sink, std::slice::from_ref(&sent)).await.unwrap(), [returned]);

    direct.declare_queue(&queue, Arguments::default()).await;
    direct.bind(&queue, &exchange, "").await;
    assert_eq!(publish(&mut *sink, &[sent]).await.unwrap(), [Outcome::Confirmed]);
    sink.close().await.unwrap();
    // Lapin, which is the direct client, cannot read it.
    let take = json!({ "op": "get", "queue": queue, "max": 2 });
    let url = services::amqp();
    let seen = tokio::task::block_in_place(|| witness::raw_amqp(&url, &[take]).unwrap());
    let bytes = json!({ "hex": "636166e9" });
    let seen = &seen[0]["messages"][0];
    assert_eq!(seen["routing_key"], bytes);
    assert_eq!(seen["properties"], json!({ "headers": [[bytes, "I", 1]], "app_id": bytes }));
    direct.delete_queue(&queue).await;
    direct.delete_exchange(&exchange).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_users_name_is_refused_by_the_broker_as_unsendable() {
    let direct = Direct::connect().await;
    let queue = services::unique("sink-user");
    direct.declare_queue(&queue, Arguments::default()).await;
    let target = connect(to_queue(&queue));
    let mut sink = target.open().await.unwrap();
    let properties = Properties { user_id: Some(short("nobody")), ..Properties::default() };
    let forged = Message { properties, ..message("shop", "k", "x") };
    let error = publish(&mut *sink, &[forged]).await.unwrap_err();
    assert!(matches!(error, BusError::Unsendable { .. }), "{error:?}");
    assert!(error.to_string().contains("user_id"), "{error}");
    target.dismantle().await.unwrap();
    direct.delete_queue(&queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_virtual_host_is_refused_with_the_next_step() {
    let (wrong, _) = services::amqp_with_password("sesame");
    let good = services::amqp();
    let (good, _) = good.rsplit_once('/').unwrap();
    let elsewhere = format!("{good}/no-such-vhost");
    for (url, hint) in [(wrong.as_str(), "password"), (elsewhere.as_str(), "virtual host")] {
        let error =
            refusal(AmqpConnect { broker: broker_at(url), target: AmqpTarget::Original }).await;
        assert!(matches!(error, BusError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
        assert!(!error.to_string().contains("sesame"), "{error}");
        assert!(inspect(&broker_at(url), &AmqpTarget::Original).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_listening_is_worth_another_try() {
    let port = dacapo_integration::ports::free().unwrap();
    let broker = broker_at(&format!("amqp://127.0.0.1:{port}/%2f"));
    let error = refusal(AmqpConnect { broker, target: AmqpTarget::Original }).await;
    assert!(error.is_transient(), "{error:?}");
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_trusted_only_through_its_authority() {
    let Some(amqps) = services::amqps() else { return };
    let untrusted = broker_at(&amqps.url);
    let authorities = Some(std::fs::read_to_string(&amqps.authority).unwrap());
    let tls = Tls { authorities, identity: None };
    let trusted = Broker { tls, ..untrusted.clone() };

    let facts = inspect(&trusted, &AmqpTarget::Original).await.unwrap();
    assert_eq!(facts.product, "RabbitMQ");
    let refused = [
        refusal(AmqpConnect { broker: untrusted.clone(), target: AmqpTarget::Original }).await,
        inspect(&untrusted, &AmqpTarget::Original).await.unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, BusError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains("CA file"), "{error}");
    }
}

/// Needs a broker of its own, which it may alarm, halt and kill.
#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_blocks_and_a_kill_is_never_a_confirm() {
    let folder = RunFolder::create().unwrap();
    let mut rabbit =
        tokio::task::block_in_place(|| Rabbit::start(&folder.path().join("rabbit")).unwrap());
    let url = rabbit.amqp_url();
    let declare = json!({ "op": "declare_queue", "queue": "q" });
    tokio::task::block_in_place(|| witness::raw_amqp(&url, &[declare]).unwrap());

    let target = AmqpConnect { broker: broker_at(&url), target: to_queue("q") };
    let mut sink = target.open().await.unwrap();
    assert!(!sink.state().await.unwrap().blocked);

    let watermark = |value: &str| {
        let args = ["set_vm_memory_high_watermark", "absolute", value];
        tokio::task::block_in_place(|| rabbit.ctl(&args).unwrap());
    };
    watermark("1MB");
    // The broker says so once something is published.
    sink.send(&[message("shop", "k", "blocked")]).await.unwrap();
    until("blocked", async || sink.state().await.unwrap().blocked).await;
    // What is sent meanwhile waits without holding its sender up, who could not ask or stop.
    for body in ["second", "third"] {
        let batch = [message("shop", "k", body)];
        let sent = tokio::time::timeout(DEADLINE, sink.send(&batch)).await;
        sent.expect("no wait for the end of the alarm").unwrap();
    }
    assert!(sink.state().await.unwrap().blocked);
    watermark("2GB");
    until("unblocked", async || !sink.state().await.unwrap().blocked).await;
    let mut outcomes = Vec::new();
    while outcomes.len() < 3 {
        outcomes.extend(sink.outcomes().await.unwrap());
    }
    assert_eq!(outcomes, [Outcome::Confirmed, Outcome::Confirmed, Outcome::Confirmed]);
    let take = json!({ "op": "get", "queue": "q", "max": 4 });
    let taken = tokio::task::block_in_place(|| witness::raw_amqp(&url, &[take]).unwrap());
    let bodies = [0, 1, 2].map(|n| taken[0]["messages"][n]["body"].clone());
    assert_eq!(bodies, ["blocked", "second", "third"], "in order");

    tokio::task::block_in_place(|| rabbit.kill().unwrap());
    let lost = match sink.send(&[message("shop", "k", "lost")]).await {
        Ok(()) => tokio::time::timeout(DEADLINE, sink.outcomes()).await.unwrap().unwrap_err(),
        Err(error) => error,
    };
    assert!(lost.is_transient(), "{lost:?}");
}

/// Waits for a condition, which is asked a few times a second.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
        panic!("not {what} after {DEADLINE:?}");
    }
}
