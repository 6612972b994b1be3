//! Basic properties from and to their bytes. Reading is total: what cannot be read is kept as bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dacapo_event::{DeliveryMode, FieldTable, FieldValue, Message, Properties, ShortStr};

use super::Malformed;
use super::frame::{put_short, take_short};
use super::table::{self, take_table};

/// Header that stands in for a header table that could not be read, with its bytes.
const UNREAD_HEADERS: ShortStr = ShortStr::from_static("x-dacapo-unread-headers");
/// Header that stands in for properties that could not be read, with their bytes.
const UNREAD_PROPERTIES: ShortStr = ShortStr::from_static("x-dacapo-unread-properties");

/// Whether all of it could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Yes.
    Whole,
    /// A part is kept as bytes under a name of ours.
    Kept,
}

/// Returns the properties in a content header, from its flags on.
pub(crate) fn decode(bytes: Bytes) -> (Properties, Reading) {
    match read(bytes.clone()) {
        Ok(read) => read,
        Err(Malformed) => {
            let headers = [(UNREAD_PROPERTIES, FieldValue::ByteArray(bytes))];
            let headers = Some(headers.into_iter().collect());
            (Properties { headers, ..Properties::default() }, Reading::Kept)
        }
    }
}

fn read(mut bytes: Bytes) -> Result<(Properties, Reading), Malformed> {
    let from = &mut bytes;
    let flags = from.try_get_u16()?;
    // The lowest bit says that further flags follow; AMQP 0-9-1 defines none.
    if flags & 1 != 0 {
        return Err(Malformed);
    }
    let has = |bit: u32| flags & (1 << bit) != 0;
    let short = |bit: u32, from: &mut Bytes| has(bit).then(|| take_short(from)).transpose();

    let mut reading = Reading::Whole;
    let content_type = short(15, from)?;
    let content_encoding = short(14, from)?;
    let headers = has(13).then(|| take_table(from)).transpose()?.map(|bytes| {
        table::decode(bytes.clone()).unwrap_or_else(|Malformed| {
            reading = Reading::Kept;
            [(UNREAD_HEADERS, FieldValue::ByteArray(bytes))].into_iter().collect()
        })
    });
    let properties = Properties {
        content_type,
        content_encoding,
        headers,
        delivery_mode: has(12).then(|| from.try_get_u8()).transpose()?.map(DeliveryMode::from),
        priority: has(11).then(|| from.try_get_u8()).transpose()?,
        correlation_id: short(10, from)?,
        reply_to: short(9, from)?,
        expiration: short(8, from)?,
        message_id: short(7, from)?,
        timestamp: has(6).then(|| from.try_get_u64()).transpose()?,
        kind: short(5, from)?,
        user_id: short(4, from)?,
        app_id: short(3, from)?,
        cluster_id: short(2, from)?,
    };
    if from.has_remaining() { Err(Malformed) } else { Ok((properties, reading)) }
}

/// Writes the properties as a content header has them, from its flags on. Short strings and header
/// names are written as they are, UTF-8 or not, and names that occur twice as often as they do.
pub(crate) fn encode(to: &mut BytesMut, properties: &Properties) {
    let p = properties;
    let present = [
        p.content_type.is_some(),
        p.content_encoding.is_some(),
        p.headers.is_some(),
        p.delivery_mode.is_some(),
        p.priority.is_some(),
        p.correlation_id.is_some(),
        p.reply_to.is_some(),
        p.expiration.is_some(),
        p.message_id.is_some(),
        p.timestamp.is_some(),
        p.kind.is_some(),
        p.user_id.is_some(),
        p.app_id.is_some(),
        p.cluster_id.is_some(),
    ];
    let bit = |at: usize| 1 << (15 - at);
    let flags = present.iter().enumerate().filter(|(_, is)| **is).map(|(at, _)| bit(at));
    to.put_u16(flags.sum());
    let short = |to: &mut BytesMut, text: &Option<ShortStr>| {
        if let Some(text) = text {
            put_short(to, text.as_bytes());
        }
    };
    short(to, &p.content_type);
    short(to, &p.content_encoding);
    if let Some(headers) = &p.headers {
        table::encode(to, headers);
    }
    if let Some(mode) = p.delivery_mode {
        to.put_u8(mode.octet());
    }
    if let Some(priority) = p.priority {
        to.put_u8(priority);
    }
    for text in [&p.correlation_id, &p.reply_to, &p.expiration, &p.message_id] {
        short(to, text);
    }
    if let Some(timestamp) = p.timestamp {
        to.put_u64(timestamp);
    }
    for text in [&p.kind, &p.user_id, &p.app_id, &p.cluster_id] {
        short(to, text);
    }
}

/// Returns how many bytes a content header with these properties takes, all but the frame around
/// it. AMQP has it in one frame, and the broker closes the connection on a larger one.
pub(crate) fn encoded_len(properties: &Properties) -> usize {
    /// Class, weight, body size and flags.
    const FIXED_BYTES: usize = 2 + 2 + 8 + 2;
    let p = properties;
    let short = |text: &Option<ShortStr>| text.as_ref().map_or(0, |text| 1 + text.as_bytes().len());
    let texts = [
        &p.content_type,
        &p.content_encoding,
        &p.correlation_id,
        &p.reply_to,
        &p.expiration,
        &p.message_id,
        &p.kind,
        &p.user_id,
        &p.app_id,
        &p.cluster_id,
    ];
    FIXED_BYTES
        + texts.into_iter().map(short).sum::<usize>()
        + p.headers.as_ref().map_or(0, table::encoded_len)
        + p.delivery_mode.map_or(0, |_| 1)
        + p.priority.map_or(0, |_| 1)
        + p.timestamp.map_or(0, |_| 8)
}

/// Returns whether every number in the headers is one, as [`table::is_finite`] says.
pub(crate) fn is_finite(properties: &Properties) -> bool {
    properties.headers.as_ref().is_none_or(table::is_finite)
}

/// Returns whether every short string of a message is UTF-8, as AMQP says it should be.
pub(crate) fn is_text(message: &Message) -> bool {
    let p = &message.properties;
    let texts = [
        &p.content_type,
        &p.content_encoding,
        &p.correlation_id,
        &p.reply_to,
        &p.expiration,
        &p.message_id,
        &p.kind,
        &p.user_id,
        &p.app_id,
        &p.cluster_id,
    ];
    message.exchange.as_str().is_some()
        && message.routing_key.as_str().is_some()
        && texts.into_iter().flatten().all(|text| text.as_str().is_some())
        && p.headers.as_ref().is_none_or(names_are_text)
}

fn names_are_text(table: &FieldTable) -> bool {
    table.iter().all(|(name, value)| name.as_str().is_some() && value_is_text(value))
}

fn value_is_text(value: &FieldValue) -> bool {
    match value {
        FieldValue::Table(table) => names_are_text(table),
        FieldValue::Array(values) => values.iter().all(value_is_text),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
