//! One message in the form in which it is sent, and whether a returned one is it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dacapo_bus::BusError;
use dacapo_event::{FieldValue, Message, Properties, ShortStr};

use super::PUBLISHES;
use crate::wire::frame::{END_BYTES, HEAD_BYTES, HEADER, put_frame, put_method, put_short};
use crate::wire::link::methods;
use crate::wire::properties;

/// The class of basic methods, which a content header begins with.
const BASIC: u16 = 60;

/// The bit of `basic.publish` that asks for what cannot be routed to be returned.
const MANDATORY: u8 = 1;

/// Class, weight and body size in a content header, before the properties.
const CONTENT_BYTES: usize = 2 + 2 + 8;

/// RabbitMQ takes no body larger than 512 MiB, whatever its `max_message_size` says.
const BODY_BYTES_MAX: usize = 512 * 1024 * 1024;

/// What a message's frames but those of its body mostly take, and some more.
const HEAD_BYTES_USUAL: usize = 640;

/// A message on its way. All but its body is encoded, in a buffer that it shares with those it is
/// sent with.
#[derive(Debug)]
pub(crate) struct Publish {
    exchange: ShortStr,
    routing_key: ShortStr,
    /// The frames of the method and of the content header.
    head: Bytes,
    body: Bytes,
}

/// What a message asks for in case no queue takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unroutable {
    /// To come back, so that it is no success (`mandatory`).
    Returned,
    /// To be confirmed all the same.
    #[cfg(feature = "losing")]
    Lost,
}

/// What the broker returned.
#[derive(Debug, PartialEq)]
pub(super) struct Returned {
    pub(super) exchange: ShortStr,
    pub(super) routing_key: ShortStr,
    pub(super) properties: Properties,
    pub(super) body: Bytes,
    /// The broker's words, for example `312 NO_ROUTE`.
    pub(super) reason: String,
}

/// How much of a returned message must be as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Likeness {
    /// All but headers that the broker took off (`BCC`).
    Exact,
    /// Exchange, routing key, body and ids: an interceptor of the broker may have changed the rest.
    Near,
}

impl Publish {
    /// Returns what is wrong with a message that no broker with this `frame_max` would take.
    ///
    /// # Errors
    /// `TooLarge` or `Unsendable`.
    pub(crate) fn check(message: &Message, frame_max: u32) -> Result<(), BusError> {
        let body = message.body.len();
        if body > BODY_BYTES_MAX {
            let reason =
                format!("message size {body} is larger than RabbitMQ can take ({BODY_BYTES_MAX})");
            return Err(BusError::TooLarge { reason });
        }
        let header = properties::encoded_len(&message.properties);
        let header_max = piece_max(frame_max);
        if header > header_max {
            let reason = format!(
                "its properties and headers take {header} bytes, and the broker takes {header_max} \
                 (`frame_max`)"
            );
            return Err(BusError::Unsendable { reason });
        }
        if !properties::is_finite(&message.properties) {
            let reason = "a number in its headers is infinite or not a number, \
                          which RabbitMQ closes the connection over"
                .to_owned();
            return Err(BusError::Unsendable { reason });
        }
        Ok(())
    }

    /// Returns messages, which were checked, in the form in which they are sent; `address` says
    /// each one's exchange and routing key.
    pub(crate) fn all<'a>(
        messages: &'a [Message],
        unroutable: Unroutable,
        address: impl Fn(&'a Message) -> (&'a ShortStr, &'a ShortStr),
    ) -> Vec<Self> {
        let mut heads = BytesMut::with_capacity(messages.len() * HEAD_BYTES_USUAL);
        let encode = |message: &'a Message| {
            let (exchange, routing_key) = address(message);
            put_head(&mut heads, exchange, routing_key, unroutable, message);
            let (exchange, routing_key) = (exchange.clone(), routing_key.clone());
            let (head, body) = (heads.split().freeze(), message.body.clone());
            Publish { exchange, routing_key, head, body }
        };
        messages.iter().map(encode).collect()
    }

    /// Returns the frames that come before those of the body.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    pub(super) fn body(&self) -> &Bytes {
        &self.body
    }

    pub(super) fn is_returned(&self, returned: &Returned, likeness: Likeness) -> bool {
        let place = (&self.exchange, &self.routing_key, &self.body);
        if place != (&returned.exchange, &returned.routing_key, &returned.body) {
            return false;
        }
        let mut sent = self.properties();
        match likeness {
            Likeness::Exact => {
                sent == returned.properties || {
                    take_bcc(&mut sent);
                    sent == returned.properties
                }
            }
            Likeness::Near => ids_of(&sent) == ids_of(&returned.properties),
        }
    }

    /// Returns the properties that were sent.
    fn properties(&self) -> Properties {
        // Class, method, a reserved field, the names with their lengths, and the bits.
        let method = 4 + 2 + self.exchange.as_bytes().len() + self.routing_key.as_bytes().len() + 3;
        let mut from = self.head.clone();
        from.advance(HEAD_BYTES + method + END_BYTES + HEAD_BYTES + CONTENT_BYTES);
        from.truncate(from.len() - END_BYTES);
        properties::decode(from).0
    }
}

/// Returns how many bytes of a body, or of anything else, a frame holds.
pub(super) fn piece_max(frame_max: u32) -> usize {
    frame_max as usize - HEAD_BYTES - END_BYTES
}

fn put_head(
    to: &mut BytesMut,
    exchange: &ShortStr,
    routing_key: &ShortStr,
    unroutable: Unroutable,
    message: &Message,
) {
    let bits = match unroutable {
        Unroutable::Returned => MANDATORY,
        #[cfg(feature = "losing")]
        Unroutable::Lost => 0,
    };
    put_method(to, PUBLISHES, methods::BASIC_PUBLISH, |to| {
        to.put_u16(0);
        put_short(to, exchange.as_bytes());
        put_short(to, routing_key.as_bytes());
        to.put_u8(bits);
    });
    put_frame(to, HEADER, PUBLISHES, |to| {
        to.put_u16(BASIC);
        to.put_u16(0);
        to.put_u64(message.body.len() as u64);
        properties::encode(to, &message.properties);
    });
}

/// Takes off what RabbitMQ takes off. A table with nothing else in it stays, empty.
fn take_bcc(properties: &mut Properties) {
    if let Some(headers) = &mut properties.headers {
        headers.remove("BCC");
    }
}

/// Returns what tells one event from another: every replayed message has the second.
fn ids_of(properties: &Properties) -> (Option<&ShortStr>, Option<&FieldValue>) {
    (properties.message_id.as_ref(), properties.header("x-dacapo-event-id"))
}

#[cfg(test)]
mod tests;
