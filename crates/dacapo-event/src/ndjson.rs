//! The JSON form of an event, one a line: what people read and other tools load.
//!
//! Readable, not lossless: integer widths and the order of equal names are not told.
//! The archive is where an event is as it was.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Map, Number, Value, json};

use crate::{
    DeliveryMode, Event, EventError, FieldTable, FieldValue, Message, Properties, ShortStr,
    StreamName,
};

/// Returns the event as a JSON object with the members `id`, `time`, `type`, `key`, `exchange`,
/// `routing_key`, `headers`, `properties`, then `body` (UTF-8) or `body_base64`, then its place in
/// the archive: `stream`, `sequence`, `archived_at`.
pub fn event_to_json(stream: &StreamName, event: &Event) -> Value {
    let mut object = Map::new();
    object.insert("id".to_owned(), json!(event.id));
    object.insert("time".to_owned(), json!(event.time.to_string()));
    object.insert("type".to_owned(), json!(event.kind));
    object.insert("key".to_owned(), json!(event.key));
    add_message(&mut object, &event.message);
    object.insert("stream".to_owned(), json!(stream.as_str()));
    object.insert("sequence".to_owned(), json!(event.sequence));
    object.insert("archived_at".to_owned(), json!(event.archived_at.to_string()));
    Value::Object(object)
}

/// Returns a message as a JSON object with the members of [`event_to_json`] that are the message's:
/// `exchange`, `routing_key`, `headers`, `properties`, and `body` or `body_base64`.
pub fn message_to_json(message: &Message) -> Value {
    let mut object = Map::new();
    add_message(&mut object, message);
    Value::Object(object)
}

fn add_message(object: &mut Map<String, Value>, message: &Message) {
    object.insert("exchange".to_owned(), json!(message.exchange.to_str_lossy()));
    object.insert("routing_key".to_owned(), json!(message.routing_key.to_str_lossy()));
    let headers = message.properties.headers.as_ref().map_or_else(|| json!({}), table_to_json);
    object.insert("headers".to_owned(), headers);
    object.insert("properties".to_owned(), properties_to_json(&message.properties));
    match std::str::from_utf8(&message.body) {
        Ok(text) => object.insert("body".to_owned(), json!(text)),
        Err(_) => object.insert("body_base64".to_owned(), json!(BASE64.encode(&message.body))),
    };
}

/// Returns a header table as a JSON object.
pub fn table_to_json(table: &FieldTable) -> Value {
    let members = table.iter().map(|(name, value)| (name.to_string(), field_to_json(value)));
    Value::Object(members.collect())
}

/// Returns one header value as JSON: numbers as numbers, text as strings, bytes that are not
/// UTF-8 as `{"base64": …}`, timestamps as seconds, a decimal as a string, void as null.
pub fn field_to_json(value: &FieldValue) -> Value {
    match value {
        FieldValue::Boolean(flag) => json!(flag),
        FieldValue::ShortShortInt(n) => json!(n),
        FieldValue::ShortShortUInt(n) => json!(n),
        FieldValue::ShortInt(n) => json!(n),
        FieldValue::ShortUInt(n) => json!(n),
        FieldValue::LongInt(n) => json!(n),
        FieldValue::LongUInt(n) => json!(n),
        FieldValue::LongLongInt(n) => json!(n),
        FieldValue::Float(x) => Number::from_f64(f64::from(*x)).map_or(Value::Null, Value::Number),
        FieldValue::Double(x) => Number::from_f64(*x).map_or(Value::Null, Value::Number),
        FieldValue::Decimal { scale, value } => json!(decimal_text(*scale, *value)),
        FieldValue::LongString(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => json!({ "base64": BASE64.encode(bytes) }),
        },
        FieldValue::ByteArray(bytes) => json!({ "base64": BASE64.encode(bytes) }),
        FieldValue::Array(values) => Value::Array(values.iter().map(field_to_json).collect()),
        FieldValue::Timestamp(seconds) => json!(seconds),
        FieldValue::Table(table) => table_to_json(table),
        FieldValue::Void => Value::Null,
    }
}

fn decimal_text(scale: u8, value: u32) -> String {
    if scale == 0 {
        return value.to_string();
    }
    let scale = usize::from(scale);
    let digits = format!("{value:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{whole}.{fraction}")
}

/// Returns the header value that JSON means: string, boolean, null, array and object as such,
/// an integer as a 64-bit one, another number as a double.
///
/// # Errors
/// A member name of more than 255 bytes.
pub fn field_from_json(value: &Value) -> Result<FieldValue, EventError> {
    Ok(match value {
        Value::Null => FieldValue::Void,
        Value::Bool(flag) => FieldValue::Boolean(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => FieldValue::LongLongInt(integer),
            (None, Some(double)) => FieldValue::Double(double),
            (None, None) => FieldValue::text(number.to_string()),
        },
        Value::String(text) => FieldValue::text(text.clone()),
        Value::Array(values) => {
            FieldValue::Array(values.iter().map(field_from_json).collect::<Result<_, _>>()?)
        }
        Value::Object(members) => FieldValue::Table(table_from_json(members)?),
    })
}

/// Returns the header table that a JSON object means, in its order.
///
/// # Errors
/// A member name of more than 255 bytes.
pub fn table_from_json(members: &Map<String, Value>) -> Result<FieldTable, EventError> {
    members
        .iter()
        .map(|(name, value)| Ok((ShortStr::try_from(name.as_str())?, field_from_json(value)?)))
        .collect()
}

/// Returns the basic properties without headers as a JSON object; absent ones are left out.
pub fn properties_to_json(properties: &Properties) -> Value {
    let mut object = Map::new();
    let mut text = |name: &str, value: &Option<ShortStr>| {
        if let Some(value) = value {
            object.insert(name.to_owned(), json!(value.to_str_lossy()));
        }
    };
    text("content_type", &properties.content_type);
    text("content_encoding", &properties.content_encoding);
    text("correlation_id", &properties.correlation_id);
    text("reply_to", &properties.reply_to);
    text("expiration", &properties.expiration);
    text("message_id", &properties.message_id);
    text("type", &properties.kind);
    text("user_id", &properties.user_id);
    text("app_id", &properties.app_id);
    text("cluster_id", &properties.cluster_id);
    if let Some(mode) = properties.delivery_mode {
        object.insert("delivery_mode".to_owned(), json!(mode.octet()));
    }
    if let Some(priority) = properties.priority {
        object.insert("priority".to_owned(), json!(priority));
    }
    if let Some(seconds) = properties.timestamp {
        object.insert("timestamp".to_owned(), json!(seconds));
    }
    Value::Object(object)
}

/// Returns the basic properties that a JSON object means: the inverse of [`properties_to_json`].
///
/// # Errors
/// An unknown member, or one whose value does not fit its property; the message names it.
pub fn properties_from_json(members: &Map<String, Value>) -> Result<Properties, EventError> {
    let mut properties = Properties::default();
    for (name, value) in members {
        let refused =
            |expected: &str| EventError::Json(format!("property `{name}` is not {expected}"));
        let short = || -> Result<Option<ShortStr>, EventError> {
            Ok(Some(ShortStr::try_from(value.as_str().ok_or_else(|| refused("a string"))?)?))
        };
        let octet = || {
            value
                .as_u64()
                .and_then(|n| u8::try_from(n).ok())
                .ok_or_else(|| refused("a number from 0 to 255"))
        };
        match name.as_str() {
            "content_type" => properties.content_type = short()?,
            "content_encoding" => properties.content_encoding = short()?,
            "correlation_id" => properties.correlation_id = short()?,
            "reply_to" => properties.reply_to = short()?,
            "expiration" => properties.expiration = short()?,
            "message_id" => properties.message_id = short()?,
            "type" => properties.kind = short()?,
            "user_id" => properties.user_id = short()?,
            "app_id" => properties.app_id = short()?,
            "cluster_id" => properties.cluster_id = short()?,
            "delivery_mode" => properties.delivery_mode = Some(DeliveryMode::from(octet()?)),
            "priority" => properties.priority = Some(octet()?),
            "timestamp" => {
                properties.timestamp =
                    Some(value.as_u64().ok_or_else(|| refused("a number of seconds since 1970"))?);
            }
            _ => return Err(EventError::Json(format!("`{name}` is not an AMQP property"))),
        }
    }
    Ok(properties)
}

/// Returns the bytes that a base64 text (RFC 4648, with padding) means.
///
/// # Errors
/// The text is not base64.
pub fn bytes_from_base64(text: &str) -> Result<Bytes, EventError> {
    BASE64
        .decode(text)
        .map(Bytes::from)
        .map_err(|error| EventError::Json(format!("not base64: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_written_as_people_write_them() {
        for (scale, value, expected) in [(0, 17, "17"), (2, 314, "3.14"), (3, 5, "0.005")] {
            assert_eq!(decimal_text(scale, value), expected);
        }
    }

    #[test]
    fn properties_come_back_from_their_json() {
        let properties = Properties {
            content_type: Some(ShortStr::from_static("application/json")),
            delivery_mode: Some(DeliveryMode::Persistent),
            priority: Some(3),
            timestamp: Some(17),
            kind: Some(ShortStr::from_static("t")),
            ..Properties::default()
        };
        let Value::Object(json) = properties_to_json(&properties) else { panic!("an object") };
        assert_eq!(properties_from_json(&json).unwrap(), properties);
    }

    #[test]
    fn a_property_that_does_not_fit_is_named() {
        let members = serde_json::from_str::<Map<String, Value>>(r#"{"priority": 300}"#).unwrap();
        let error = properties_from_json(&members).unwrap_err().to_string();
        assert_eq!(error, "property `priority` is not a number from 0 to 255");
    }
}
