//! Lapin used directly: what the tests of the AMQP crate set up and look at, past the code under
//! test. The conversions are written again here on purpose.

use bytes::Bytes;
use dacapo_amqp::{AmqpUrl, Broker, Tls};
use dacapo_event::{DeliveryMode, FieldTable, FieldValue, Message, Properties, ShortStr};
use dacapo_integration::services;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{self as amqp, AMQPValue, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};

/// Returns the broker under test, for the code under test.
pub(crate) fn broker() -> Broker {
    broker_at(&services::amqp())
}

pub(crate) fn broker_at(url: &str) -> Broker {
    let url: AmqpUrl = url.parse().expect("the test's URL is one");
    Broker { url, tls: Tls::default(), client_name: "dacapo test".to_owned() }
}

/// A connection of the test's own.
pub(crate) struct Direct {
    channel: Channel,
    _connection: Connection,
}

impl Direct {
    pub(crate) async fn connect() -> Self {
        let connection = Connection::connect(&services::amqp(), ConnectionProperties::default())
            .await
            .expect("the broker takes a connection");
        let channel = connection.create_channel().await.expect("a channel");
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .expect("a channel in confirm mode");
        Direct { channel, _connection: connection }
    }

    pub(crate) async fn declare_exchange(&self, name: &str, kind: ExchangeKind) {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let arguments = amqp::FieldTable::default();
        self.channel
            .exchange_declare(name.into(), kind, options, arguments)
            .await
            .expect("the exchange is declared");
    }

    pub(crate) async fn delete_exchange(&self, name: &str) {
        let options = ExchangeDeleteOptions::default();
        self.channel.exchange_delete(name.into(), options).await.expect("the exchange is deleted");
    }

    pub(crate) async fn declare_queue(&self, name: &str, arguments: amqp::FieldTable) {
        let options = QueueDeclareOptions::durable();
        self.channel
            .queue_declare(name.into(), options, arguments)
            .await
            .expect("the queue is declared");
    }

    pub(crate) async fn bind(&self, queue: &str, exchange: &str, pattern: &str) {
        let (options, arguments) = (QueueBindOptions::default(), amqp::FieldTable::default());
        self.channel
            .queue_bind(queue.into(), exchange.into(), pattern.into(), options, arguments)
            .await
            .expect("the queue is bound");
    }

    pub(crate) async fn delete_queue(&self, name: &str) {
        let options = QueueDeleteOptions::default();
        self.channel.queue_delete(name.into(), options).await.expect("the queue is deleted");
    }

    /// Publishes, and returns when a queue has it.
    pub(crate) async fn publish(&self, message: &Message) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = self
            .channel
            .basic_publish(
                text(&message.exchange),
                text(&message.routing_key),
                options,
                &message.body,
                to_amqp(&message.properties),
            )
            .await
            .expect("the message is sent");
        let confirmation = confirm.await.expect("the broker answers");
        assert!(confirmation.is_ack());
        assert!(confirmation.take_message().is_none(), "it was returned");
    }

    /// Takes all messages out of a queue.
    pub(crate) async fn take_all(&self, queue: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) =
            self.channel.basic_get(queue.into(), options).await.expect("the queue can be read")
        {
            let delivery = got.delivery;
            messages.push(Message {
                exchange: short(&delivery.exchange),
                routing_key: short(&delivery.routing_key),
                properties: from_amqp(&delivery.properties),
                body: Bytes::from(delivery.data),
            });
        }
        messages
    }
}

fn text(text: &ShortStr) -> ShortString {
    text.as_str().expect("the test sends text").into()
}

fn short(text: &ShortString) -> ShortStr {
    ShortStr::try_from(text.as_str()).expect("lapin holds short strings to 255 bytes")
}

fn to_amqp(p: &Properties) -> BasicProperties {
    type With = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&Option<ShortStr>, With); 10] = [
        (&p.content_type, BasicProperties::with_content_type),
        (&p.content_encoding, BasicProperties::with_content_encoding),
        (&p.correlation_id, BasicProperties::with_correlation_id),
        (&p.reply_to, BasicProperties::with_reply_to),
        (&p.expiration, BasicProperties::with_expiration),
        (&p.message_id, BasicProperties::with_message_id),
        (&p.kind, BasicProperties::with_type),
        (&p.user_id, BasicProperties::with_user_id),
        (&p.app_id, BasicProperties::with_app_id),
        (&p.cluster_id, BasicProperties::with_cluster_id),
    ];
    let mut to = BasicProperties::default();
    for (value, with) in texts {
        if let Some(value) = value {
            to = with(to, text(value));
        }
    }
    if let Some(headers) = &p.headers {
        to = to.with_headers(table_to_amqp(headers));
    }
    if let Some(mode) = p.delivery_mode {
        to = to.with_delivery_mode(mode.octet());
    }
    if let Some(priority) = p.priority {
        to = to.with_priority(priority);
    }
    if let Some(timestamp) = p.timestamp {
        to = to.with_timestamp(timestamp);
    }
    to
}

fn table_to_amqp(table: &FieldTable) -> amqp::FieldTable {
    let mut to = amqp::FieldTable::default();
    for (name, value) in table.iter() {
        to.insert(text(name), value_to_amqp(value));
    }
    to
}

fn value_to_amqp(value: &FieldValue) -> AMQPValue {
    match value {
        FieldValue::Boolean(x) => (*x).into(),
        FieldValue::ShortShortInt(x) => (*x).into(),
        FieldValue::ShortShortUInt(x) => (*x).into(),
        FieldValue::ShortInt(x) => (*x).into(),
        FieldValue::ShortUInt(x) => (*x).into(),
        FieldValue::LongInt(x) => (*x).into(),
        FieldValue::LongUInt(x) => (*x).into(),
        FieldValue::LongLongInt(x) => (*x).into(),
        FieldValue::Float(x) => (*x).into(),
        FieldValue::Double(x) => (*x).into(),
        FieldValue::Decimal { scale, value } => {
            amqp::DecimalValue { scale: *scale, value: *value }.into()
        }
        FieldValue::LongString(x) => AMQPValue::LongString(x.to_vec().into()),
        FieldValue::Array(x) => {
            AMQPValue::FieldArray(x.iter().map(value_to_amqp).collect::<Vec<_>>().into())
        }
        FieldValue::Timestamp(x) => AMQPValue::Timestamp(*x),
        FieldValue::Table(x) => AMQPValue::FieldTable(table_to_amqp(x)),
        FieldValue::Void => AMQPValue::Void,
        FieldValue::ByteArray(x) => AMQPValue::ByteArray(x.to_vec().into()),
    }
}

fn from_amqp(p: &BasicProperties) -> Properties {
    let some = |text: &Option<ShortString>| text.as_ref().map(short);
    Properties {
        content_type: some(p.content_type()),
        content_encoding: some(p.content_encoding()),
        headers: p.headers().as_ref().map(table_from_amqp),
        delivery_mode: p.delivery_mode().map(DeliveryMode::from),
        priority: *p.priority(),
        correlation_id: some(p.correlation_id()),
        reply_to: some(p.reply_to()),
        expiration: some(p.expiration()),
        message_id: some(p.message_id()),
        timestamp: *p.timestamp(),
        kind: some(p.kind()),
        user_id: some(p.user_id()),
        app_id: some(p.app_id()),
        cluster_id: some(p.cluster_id()),
    }
}

fn table_from_amqp(table: &amqp::FieldTable) -> FieldTable {
    table.into_iter().map(|(name, value)| (short(name), value_from_amqp(value))).collect()
}

fn value_from_amqp(value: &AMQPValue) -> FieldValue {
    match value {
        AMQPValue::Boolean(x) => FieldValue::Boolean(*x),
        AMQPValue::ShortShortInt(x) => FieldValue::ShortShortInt(*x),
        AMQPValue::ShortShortUInt(x) => FieldValue::ShortShortUInt(*x),
        AMQPValue::ShortInt(x) => FieldValue::ShortInt(*x),
        AMQPValue::ShortUInt(x) => FieldValue::ShortUInt(*x),
        AMQPValue::LongInt(x) => FieldValue::LongInt(*x),
        AMQPValue::LongUInt(x) => FieldValue::LongUInt(*x),
        AMQPValue::LongLongInt(x) => FieldValue::LongLongInt(*x),
        AMQPValue::Float(x) => FieldValue::Float(*x),
        AMQPValue::Double(x) => FieldValue::Double(*x),
        AMQPValue::DecimalValue(x) => FieldValue::Decimal { scale: x.scale, value: x.value },
        AMQPValue::ShortString(x) => panic!("RabbitMQ sends no short string in a table: {x}"),
        AMQPValue::LongString(x) => FieldValue::LongString(x.as_bytes().to_vec().into()),
        AMQPValue::FieldArray(x) => {
            FieldValue::Array(x.as_slice().iter().map(value_from_amqp).collect())
        }
        AMQPValue::Timestamp(x) => FieldValue::Timestamp(*x),
        AMQPValue::FieldTable(x) => FieldValue::Table(table_from_amqp(x)),
        AMQPValue::Void => FieldValue::Void,
        AMQPValue::ByteArray(x) => FieldValue::ByteArray(x.as_slice().to_vec().into()),
    }
}
