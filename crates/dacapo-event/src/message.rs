//! One AMQP message: where it was published, its basic properties, its body.

use bytes::Bytes;

use crate::{FieldTable, ShortStr};

/// A message as a publisher handed it to the bus.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// The exchange it was published to; empty for the default exchange.
    pub exchange: ShortStr,
    /// The routing key it was published with.
    pub routing_key: ShortStr,
    /// The basic properties, headers among them.
    pub properties: Properties,
    /// The payload, never interpreted.
    pub body: Bytes,
}

/// The basic properties of AMQP 0-9-1 (class 60), each absent if it was absent on the bus.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Properties {
    /// MIME type of the body.
    pub content_type: Option<ShortStr>,
    /// MIME encoding of the body.
    pub content_encoding: Option<ShortStr>,
    /// The header table; absent is not the same as empty.
    pub headers: Option<FieldTable>,
    /// Whether the broker keeps the message on disk.
    pub delivery_mode: Option<DeliveryMode>,
    /// 0 to 255.
    pub priority: Option<u8>,
    /// Correlates a reply with a request.
    pub correlation_id: Option<ShortStr>,
    /// Where a reply is expected.
    pub reply_to: Option<ShortStr>,
    /// Time to live in milliseconds, as text.
    pub expiration: Option<ShortStr>,
    /// The publisher's id for the message.
    pub message_id: Option<ShortStr>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// The publisher's name for the kind of message.
    pub kind: Option<ShortStr>,
    /// The publisher's user; RabbitMQ refuses another than the connection's.
    pub user_id: Option<ShortStr>,
    /// The publisher's application.
    pub app_id: Option<ShortStr>,
    /// Deprecated by the specification, still passed on.
    pub cluster_id: Option<ShortStr>,
}

/// The `delivery-mode` property; other values than 1 and 2 are passed on as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMode {
    /// 1: lost when the broker restarts.
    Transient,
    /// 2: kept on disk.
    Persistent,
    /// Outside the specification, kept as it was.
    Other(u8),
}

impl DeliveryMode {
    /// Returns the octet on the wire.
    pub const fn octet(self) -> u8 {
        match self {
            DeliveryMode::Transient => 1,
            DeliveryMode::Persistent => 2,
            DeliveryMode::Other(octet) => octet,
        }
    }
}

impl From<u8> for DeliveryMode {
    fn from(octet: u8) -> Self {
        match octet {
            1 => DeliveryMode::Transient,
            2 => DeliveryMode::Persistent,
            other => DeliveryMode::Other(other),
        }
    }
}

impl Message {
    /// Returns roughly how many bytes the message takes in memory.
    pub fn weight(&self) -> usize {
        /// Fixed fields, and what allocations take beside what was asked for.
        const FIXED_BYTES: usize = 512;
        let place = self.exchange.as_bytes().len() + self.routing_key.as_bytes().len();
        FIXED_BYTES + place + self.content_weight()
    }

    /// Returns what of [`Message::weight`] others decide: its body and its properties.
    pub fn content_weight(&self) -> usize {
        self.body.len() + self.properties.weight()
    }
}

impl Properties {
    /// Returns roughly how many bytes they take in memory beside their fixed fields: a table that
    /// takes 100 KB on the bus may take a megabyte.
    pub fn weight(&self) -> usize {
        let Properties {
            content_type,
            content_encoding,
            headers,
            correlation_id,
            reply_to,
            expiration,
            message_id,
            kind,
            user_id,
            app_id,
            cluster_id,
            delivery_mode: _,
            priority: _,
            timestamp: _,
        } = self;
        let texts = [
            content_type,
            content_encoding,
            correlation_id,
            reply_to,
            expiration,
            message_id,
            kind,
            user_id,
            app_id,
            cluster_id,
        ];
        let texts: usize = texts.into_iter().flatten().map(|text| text.as_bytes().len()).sum();
        texts + headers.as_ref().map_or(0, FieldTable::weight)
    }

    /// Returns the header of that name.
    pub fn header(&self, name: &str) -> Option<&crate::FieldValue> {
        self.headers.as_ref()?.get(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FieldValue;

    #[test]
    fn headers_weigh_what_they_take_however_they_nest() {
        let fields = |count: usize, value: &FieldValue| -> FieldTable {
            (0..count)
                .map(|n| (ShortStr::try_from(&*n.to_string()).unwrap(), value.clone()))
                .collect()
        };
        let of = |headers: FieldTable| {
            let headers = Some(headers);
            let properties = Properties { headers, ..Properties::default() };
            Message { properties, ..Message::default() }.weight()
        };
        let a_field = size_of::<(ShortStr, FieldValue)>();
        let plain = Message::default().weight();
        assert_eq!(of(fields(10, &FieldValue::Void)), plain + 10 * (a_field + 1));
        let text = FieldValue::text("x".repeat(1_000));
        assert_eq!(of(fields(10, &text)), plain + 10 * (a_field + 1 + 1_000));
        let inner = FieldValue::Table(fields(10, &FieldValue::Void));
        assert_eq!(of(fields(1, &inner)), plain + 11 * (a_field + 1));
        let array = FieldValue::Array(vec![FieldValue::Void; 100]);
        let an_array = 100 * size_of::<FieldValue>();
        assert_eq!(of(fields(1, &array)), plain + a_field + 1 + an_array);
    }
}
