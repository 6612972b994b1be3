//! Properties ↔ protobuf: the only protobuf conversion of the workspace.
//!
//! Lossless in both directions for everything that AMQP can say; the message's
//! exchange and routing key travel along only if the segment's text columns could
//! not hold them.

use bytes::Bytes;
use prost::Message as _;

use crate::r#gen::archive as pb;
use crate::{DeliveryMode, EventError, FieldTable, FieldValue, Message, Properties, ShortStr};

/// How deep tables and arrays may nest in what is read: AMQP sets no limit, RabbitMQ's parser
/// recurses too, and 100 is what protobuf decoders allow by default.
pub const NESTING_MAX: usize = 48;

/// Returns the `properties` column of a message: its properties, and its exchange and routing
/// key if they are not UTF-8.
pub fn encode_properties(message: &Message) -> Vec<u8> {
    let not_text = |text: &ShortStr| text.as_str().is_none().then(|| text.as_bytes().to_vec());
    let p = &message.properties;
    let short = |text: &Option<ShortStr>| text.as_ref().map(|text| text.as_bytes().to_vec());
    let message = pb::Properties {
        content_type: short(&p.content_type),
        content_encoding: short(&p.content_encoding),
        headers: p.headers.as_ref().map(table_to_pb),
        delivery_mode: p.delivery_mode.map(|mode| u32::from(mode.octet())),
        priority: p.priority.map(u32::from),
        correlation_id: short(&p.correlation_id),
        reply_to: short(&p.reply_to),
        expiration: short(&p.expiration),
        message_id: short(&p.message_id),
        timestamp: p.timestamp,
        r#type: short(&p.kind),
        user_id: short(&p.user_id),
        app_id: short(&p.app_id),
        cluster_id: short(&p.cluster_id),
        exchange: not_text(&message.exchange),
        routing_key: not_text(&message.routing_key),
    };
    message.encode_to_vec()
}

/// Returns the message that a row of a segment means.
///
/// `exchange` and `routing_key` are the text columns; the bytes in `properties` win over them.
///
/// # Errors
/// `properties` is not the protobuf message, holds a value that AMQP cannot, or nests deeper
/// than [`NESTING_MAX`].
pub fn decode_message(
    exchange: ShortStr,
    routing_key: ShortStr,
    properties: &[u8],
    body: Bytes,
) -> Result<Message, EventError> {
    let pb = pb::Properties::decode(properties).map_err(|error| refused(error.to_string()))?;
    let or_text = |bytes: Option<Vec<u8>>, text| bytes.map_or(Ok(text), ShortStr::new);
    Ok(Message {
        exchange: or_text(pb.exchange, exchange)?,
        routing_key: or_text(pb.routing_key, routing_key)?,
        properties: Properties {
            content_type: short_from_pb(pb.content_type)?,
            content_encoding: short_from_pb(pb.content_encoding)?,
            headers: pb.headers.map(|table| table_from_pb(table, 0)).transpose()?,
            delivery_mode: pb.delivery_mode.map(narrow::<u8>).transpose()?.map(DeliveryMode::from),
            priority: pb.priority.map(narrow).transpose()?,
            correlation_id: short_from_pb(pb.correlation_id)?,
            reply_to: short_from_pb(pb.reply_to)?,
            expiration: short_from_pb(pb.expiration)?,
            message_id: short_from_pb(pb.message_id)?,
            timestamp: pb.timestamp,
            kind: short_from_pb(pb.r#type)?,
            user_id: short_from_pb(pb.user_id)?,
            app_id: short_from_pb(pb.app_id)?,
            cluster_id: short_from_pb(pb.cluster_id)?,
        },
        body,
    })
}

fn refused(reason: impl Into<String>) -> EventError {
    EventError::Properties { reason: reason.into() }
}

fn short_from_pb(bytes: Option<Vec<u8>>) -> Result<Option<ShortStr>, EventError> {
    bytes.map(ShortStr::new).transpose()
}

fn narrow<T: TryFrom<u32>>(value: u32) -> Result<T, EventError> {
    T::try_from(value).map_err(|_| refused(format!("{value} is out of range")))
}

fn narrow_signed<T: TryFrom<i32>>(value: i32) -> Result<T, EventError> {
    T::try_from(value).map_err(|_| refused(format!("{value} is out of range")))
}

fn table_to_pb(table: &FieldTable) -> pb::Table {
    let field = |(name, value): (&ShortStr, &FieldValue)| pb::Field {
        name: name.as_bytes().to_vec(),
        value: Some(value_to_pb(value)),
    };
    pb::Table { fields: table.iter().map(field).collect() }
}

fn value_to_pb(value: &FieldValue) -> pb::Value {
    use pb::value::Kind;
    let kind = match value {
        FieldValue::Boolean(flag) => Kind::Boolean(*flag),
        FieldValue::ShortShortInt(n) => Kind::ShortShortInt(i32::from(*n)),
        FieldValue::ShortShortUInt(n) => Kind::ShortShortUint(u32::from(*n)),
        FieldValue::ShortInt(n) => Kind::ShortInt(i32::from(*n)),
        FieldValue::ShortUInt(n) => Kind::ShortUint(u32::from(*n)),
        FieldValue::LongInt(n) => Kind::LongInt(*n),
        FieldValue::LongUInt(n) => Kind::LongUint(*n),
        FieldValue::LongLongInt(n) => Kind::LongLongInt(*n),
        FieldValue::Float(x) => Kind::Float(*x),
        FieldValue::Double(x) => Kind::Double(*x),
        FieldValue::Decimal { scale, value } => {
            Kind::Decimal(pb::Decimal { scale: u32::from(*scale), value: *value })
        }
        FieldValue::LongString(bytes) => Kind::LongString(bytes.to_vec()),
        FieldValue::Array(values) => {
            Kind::Array(pb::Array { values: values.iter().map(value_to_pb).collect() })
        }
        FieldValue::Timestamp(seconds) => Kind::Timestamp(*seconds),
        FieldValue::Table(table) => Kind::Table(table_to_pb(table)),
        FieldValue::Void => Kind::Void(pb::Void {}),
        FieldValue::ByteArray(bytes) => Kind::ByteArray(bytes.to_vec()),
    };
    pb::Value { kind: Some(kind) }
}

fn table_from_pb(table: pb::Table, depth: usize) -> Result<FieldTable, EventError> {
    if depth > NESTING_MAX {
        return Err(refused(format!("tables nest deeper than {NESTING_MAX}")));
    }
    let field = |field: pb::Field| {
        let value = field.value.ok_or_else(|| refused("a field has no value"))?;
        Ok((ShortStr::new(field.name)?, value_from_pb(value, depth + 1)?))
    };
    table.fields.into_iter().map(field).collect()
}

fn value_from_pb(value: pb::Value, depth: usize) -> Result<FieldValue, EventError> {
    use pb::value::Kind;
    if depth > NESTING_MAX {
        return Err(refused(format!("values nest deeper than {NESTING_MAX}")));
    }
    let kind = value.kind.ok_or_else(|| refused("a value has no kind that this version knows"))?;
    Ok(match kind {
        Kind::Boolean(flag) => FieldValue::Boolean(flag),
        Kind::ShortShortInt(n) => FieldValue::ShortShortInt(narrow_signed(n)?),
        Kind::ShortShortUint(n) => FieldValue::ShortShortUInt(narrow(n)?),
        Kind::ShortInt(n) => FieldValue::ShortInt(narrow_signed(n)?),
        Kind::ShortUint(n) => FieldValue::ShortUInt(narrow(n)?),
        Kind::LongInt(n) => FieldValue::LongInt(n),
        Kind::LongUint(n) => FieldValue::LongUInt(n),
        Kind::LongLongInt(n) => FieldValue::LongLongInt(n),
        Kind::Float(x) => FieldValue::Float(x),
        Kind::Double(x) => FieldValue::Double(x),
        Kind::Decimal(d) => FieldValue::Decimal { scale: narrow(d.scale)?, value: d.value },
        Kind::LongString(bytes) => FieldValue::LongString(bytes.into()),
        Kind::Array(array) => {
            let values = array.values.into_iter().map(|value| value_from_pb(value, depth + 1));
            FieldValue::Array(values.collect::<Result<_, _>>()?)
        }
        Kind::Timestamp(seconds) => FieldValue::Timestamp(seconds),
        Kind::Table(table) => FieldValue::Table(table_from_pb(table, depth + 1)?),
        Kind::Void(pb::Void {}) => FieldValue::Void,
        Kind::ByteArray(bytes) => FieldValue::ByteArray(bytes.into()),
    })
}

#[cfg(test)]
mod tests;
