//! Messages ↔ lapin's types.
//!
//! Lossless for every value that RabbitMQ accepts. Short strings that are not UTF-8 have no form
//! in lapin, and RabbitMQ closes the connection over a float that is not finite (Erlang has none),
//! so a message with either is refused by name before anything is sent.

use dacapo_bus::BusError;
use dacapo_event::{DeliveryMode, FieldTable, FieldValue, Properties, ShortStr};
use lapin::BasicProperties;
use lapin::types::{self as amqp, AMQPValue, ShortString};

/// Returns a message's properties in lapin's form.
///
/// A header name that occurs twice is sent once, with its first value, as `FieldTable::get` has
/// it.
///
/// # Errors
/// A property or header name is not UTF-8, or a float is not finite.
pub(crate) fn to_lapin(properties: &Properties) -> Result<BasicProperties, BusError> {
    let p = properties;
    let mut to = BasicProperties::default();
    let texts: [(&str, &Option<ShortStr>, With); 10] = [
        ("content_type", &p.content_type, BasicProperties::with_content_type),
        ("content_encoding", &p.content_encoding, BasicProperties::with_content_encoding),
        ("correlation_id", &p.correlation_id, BasicProperties::with_correlation_id),
        ("reply_to", &p.reply_to, BasicProperties::with_reply_to),
        ("expiration", &p.expiration, BasicProperties::with_expiration),
        ("message_id", &p.message_id, BasicProperties::with_message_id),
        ("type", &p.kind, BasicProperties::with_type),
        ("user_id", &p.user_id, BasicProperties::with_user_id),
        ("app_id", &p.app_id, BasicProperties::with_app_id),
        ("cluster_id", &p.cluster_id, BasicProperties::with_cluster_id),
    ];
    for (name, text, with) in texts {
        if let Some(text) = text {
            to = with(to, utf8(text, name)?);
        }
    }
    if let Some(headers) = &p.headers {
        to = to.with_headers(table_to_lapin(headers)?);
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
    Ok(to)
}

type With = fn(BasicProperties, ShortString) -> BasicProperties;

/// Returns what lapin received as a message's properties.
pub(crate) fn from_lapin(from: &BasicProperties) -> Properties {
    let short = |text: &Option<ShortString>| text.as_ref().map(short_from_lapin);
    Properties {
        content_type: short(from.content_type()),
        content_encoding: short(from.content_encoding()),
        headers: from.headers().as_ref().map(table_from_lapin),
        delivery_mode: from.delivery_mode().map(DeliveryMode::from),
        priority: *from.priority(),
        correlation_id: short(from.correlation_id()),
        reply_to: short(from.reply_to()),
        expiration: short(from.expiration()),
        message_id: short(from.message_id()),
        timestamp: *from.timestamp(),
        kind: short(from.kind()),
        user_id: short(from.user_id()),
        app_id: short(from.app_id()),
        cluster_id: short(from.cluster_id()),
    }
}

/// Returns a short string in lapin's form, or an error that names the field.
pub(crate) fn utf8(text: &ShortStr, field: &str) -> Result<ShortString, BusError> {
    let unsendable = || BusError::Unsendable {
        reason: format!("its {field} `{text}` is not UTF-8, which the client library cannot send"),
    };
    Ok(ShortString::from(text.as_str().ok_or_else(unsendable)?))
}

pub(crate) fn short_from_lapin(text: &ShortString) -> ShortStr {
    ShortStr::try_from(text.as_str()).expect("lapin holds short strings to 255 bytes")
}

fn table_to_lapin(table: &FieldTable) -> Result<amqp::FieldTable, BusError> {
    let mut to = amqp::FieldTable::default();
    for (name, value) in table.iter() {
        let name = utf8(name, "header name")?;
        if !to.contains_key(name.as_str()) {
            to.insert(name, value_to_lapin(value)?);
        }
    }
    Ok(to)
}

fn value_to_lapin(value: &FieldValue) -> Result<AMQPValue, BusError> {
    Ok(match value {
        FieldValue::Boolean(flag) => AMQPValue::Boolean(*flag),
        FieldValue::ShortShortInt(n) => AMQPValue::ShortShortInt(*n),
        FieldValue::ShortShortUInt(n) => AMQPValue::ShortShortUInt(*n),
        FieldValue::ShortInt(n) => AMQPValue::ShortInt(*n),
        FieldValue::ShortUInt(n) => AMQPValue::ShortUInt(*n),
        FieldValue::LongInt(n) => AMQPValue::LongInt(*n),
        FieldValue::LongUInt(n) => AMQPValue::LongUInt(*n),
        FieldValue::LongLongInt(n) => AMQPValue::LongLongInt(*n),
        FieldValue::Float(x) if x.is_finite() => AMQPValue::Float(*x),
        FieldValue::Double(x) if x.is_finite() => AMQPValue::Double(*x),
        FieldValue::Float(_) | FieldValue::Double(_) => {
            let reason = "a number in its headers is infinite or not a number, \
                          which RabbitMQ closes the connection over"
                .to_owned();
            return Err(BusError::Unsendable { reason });
        }
        FieldValue::Decimal { scale, value } => {
            AMQPValue::DecimalValue(amqp::DecimalValue { scale: *scale, value: *value })
        }
        FieldValue::LongString(bytes) => AMQPValue::LongString(bytes.to_vec().into()),
        FieldValue::Array(values) => {
            let values: Result<Vec<_>, _> = values.iter().map(value_to_lapin).collect();
            AMQPValue::FieldArray(values?.into())
        }
        FieldValue::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        FieldValue::Table(table) => AMQPValue::FieldTable(table_to_lapin(table)?),
        FieldValue::Void => AMQPValue::Void,
        FieldValue::ByteArray(bytes) => AMQPValue::ByteArray(bytes.to_vec().into()),
    })
}

fn table_from_lapin(table: &amqp::FieldTable) -> FieldTable {
    table
        .into_iter()
        .map(|(name, value)| (short_from_lapin(name), value_from_lapin(value)))
        .collect()
}

fn value_from_lapin(value: &AMQPValue) -> FieldValue {
    match value {
        AMQPValue::Boolean(flag) => FieldValue::Boolean(*flag),
        AMQPValue::ShortShortInt(n) => FieldValue::ShortShortInt(*n),
        AMQPValue::ShortShortUInt(n) => FieldValue::ShortShortUInt(*n),
        AMQPValue::ShortInt(n) => FieldValue::ShortInt(*n),
        AMQPValue::ShortUInt(n) => FieldValue::ShortUInt(*n),
        AMQPValue::LongInt(n) => FieldValue::LongInt(*n),
        AMQPValue::LongUInt(n) => FieldValue::LongUInt(*n),
        AMQPValue::LongLongInt(n) => FieldValue::LongLongInt(*n),
        AMQPValue::Float(x) => FieldValue::Float(*x),
        AMQPValue::Double(x) => FieldValue::Double(*x),
        AMQPValue::DecimalValue(d) => FieldValue::Decimal { scale: d.scale, value: d.value },
        // Lapin has this type for its own use and never receives it.
        AMQPValue::ShortString(text) => FieldValue::text(text.as_str()),
        AMQPValue::LongString(bytes) => FieldValue::LongString(bytes.as_bytes().to_vec().into()),
        AMQPValue::FieldArray(values) => {
            FieldValue::Array(values.as_slice().iter().map(value_from_lapin).collect())
        }
        AMQPValue::Timestamp(seconds) => FieldValue::Timestamp(*seconds),
        AMQPValue::FieldTable(table) => FieldValue::Table(table_from_lapin(table)),
        AMQPValue::Void => FieldValue::Void,
        AMQPValue::ByteArray(bytes) => FieldValue::ByteArray(bytes.as_slice().to_vec().into()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
