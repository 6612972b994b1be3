//! What every [`Sink`](crate::Sink) and [`Source`](crate::Source) must do, as suites that an
//! adapter runs in its own tests.
//!
//! The adapter supplies a harness: a fresh queue, and a way to it that does not go through the
//! code under test. A suite panics at the first promise that is not kept, and says which.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use dacapo_event::{DeliveryMode, FieldTable, FieldValue, Message, Properties, ShortStr};

mod sink;
mod source;

pub use sink::{Fidelity, SinkHarness, check_sink};
pub use source::{SourceHarness, check_source};

/// How long a suite waits for anything: far more than a broker on the same machine needs, so that
/// a slow one is not taken for a broken one.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The largest body that a suite sends: several frames of any AMQP connection (128 KiB each).
const LARGE_BODY_BYTES: usize = 1024 * 1024;

/// Returns a message with every basic property and every field type that RabbitMQ accepts.
///
/// `user_id` is left out: a broker refuses another than the connection's.
pub fn full_message(exchange: &ShortStr) -> Message {
    let short = ShortStr::from_static;
    let nested: FieldTable = [
        (short("inner"), FieldValue::LongInt(-4)),
        (
            short("deeper"),
            FieldValue::Table([(short("x"), FieldValue::Void)].into_iter().collect()),
        ),
    ]
    .into_iter()
    .collect();
    let headers = [
        (short("boolean"), FieldValue::Boolean(true)),
        (short("i8"), FieldValue::ShortShortInt(i8::MIN)),
        (short("u8"), FieldValue::ShortShortUInt(u8::MAX)),
        (short("i16"), FieldValue::ShortInt(i16::MIN)),
        (short("u16"), FieldValue::ShortUInt(u16::MAX)),
        (short("i32"), FieldValue::LongInt(i32::MIN)),
        (short("u32"), FieldValue::LongUInt(u32::MAX)),
        (short("i64"), FieldValue::LongLongInt(i64::MIN)),
        (short("f32"), FieldValue::Float(1.5)),
        (short("f64"), FieldValue::Double(-0.1)),
        (short("decimal"), FieldValue::Decimal { scale: 2, value: 12_345 }),
        (short("text"), FieldValue::text("Grüße")),
        (short("not text"), FieldValue::LongString(Bytes::from_static(&[0xff, 0x00]))),
        (
            short("array"),
            FieldValue::Array(vec![FieldValue::Boolean(false), FieldValue::text("a")]),
        ),
        (short("time"), FieldValue::Timestamp(1_700_000_000)),
        (short("table"), FieldValue::Table(nested)),
        (short("void"), FieldValue::Void),
        (short("bytes"), FieldValue::ByteArray(Bytes::from_static(&[1, 2, 3]))),
    ];
    Message {
        exchange: exchange.clone(),
        routing_key: short("orders.placed"),
        properties: Properties {
            content_type: Some(short("application/json")),
            content_encoding: Some(short("identity")),
            headers: Some(headers.into_iter().collect()),
            delivery_mode: Some(DeliveryMode::Persistent),
            priority: Some(7),
            correlation_id: Some(short("c-1")),
            reply_to: Some(short("replies")),
            expiration: Some(short("3600000")),
            message_id: Some(short("m-1")),
            timestamp: Some(1_700_000_000),
            kind: Some(short("order.placed")),
            user_id: None,
            app_id: Some(short("shop")),
            cluster_id: Some(short("k")),
        },
        body: Bytes::from_static(b"{\"total\":10}"),
    }
}

/// Returns messages whose bodies are `from..to` as text.
fn numbered(exchange: &ShortStr, numbers: std::ops::Range<u32>) -> Vec<Message> {
    numbers
        .map(|number| Message {
            exchange: exchange.clone(),
            routing_key: ShortStr::from_static("numbers"),
            body: Bytes::from(number.to_string()),
            ..Message::default()
        })
        .collect()
}

fn large_body() -> Bytes {
    (0..LARGE_BODY_BYTES).map(|index| b'a' + u8::try_from(index % 23).expect("below 23")).collect()
}

fn bodies(messages: &[Message]) -> Vec<Bytes> {
    messages.iter().map(|message| message.body.clone()).collect()
}

/// Awaits `future`, and panics with `what` if it takes longer than [`DEADLINE`].
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing after {DEADLINE:?}"),
    }
}

/// Polls `future` once and drops it, as `select!` does with the branches that lose.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}
