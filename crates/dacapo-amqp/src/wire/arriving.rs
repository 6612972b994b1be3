//! A delivery while its frames come: method, content header, body.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dacapo_bus::{Delivery, DeliveryTag, Parked};
use dacapo_event::{Message, Properties, ShortStr};

use super::Malformed;
use super::frame::take_short;
use super::properties::{self, Reading};
use crate::parked;

/// The most that a body may claim to have: RabbitMQ's own limit on `max_message_size`.
const BODY_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Room that is made for a body before its bytes come, whatever it claims to have: the largest
/// messages that RabbitMQ 4 takes by default. A larger one is moved as it grows.
const BODY_BYTES_AHEAD: usize = 16 * 1024 * 1024;

/// The reason of a message that is not text where AMQP says it is.
const UNREADABLE: &str = "unreadable";

/// A delivery whose frames have not all come.
pub(super) struct Arriving {
    parked: bool,
    tag: DeliveryTag,
    redelivered: bool,
    exchange: ShortStr,
    routing_key: ShortStr,
    content: Option<Content>,
}

struct Content {
    properties: Properties,
    reading: Reading,
    size: usize,
    body: Body,
}

/// A body is mostly one frame, whose bytes are taken as they are.
enum Body {
    Whole(Bytes),
    Growing(BytesMut),
}

impl Arriving {
    /// Begins with the arguments of `basic.deliver`; one to the consumer `parked` was parked.
    pub(super) fn new(mut from: Bytes, parked: &[u8]) -> Result<Self, Malformed> {
        let consumer = take_short(&mut from)?;
        Ok(Arriving {
            parked: consumer.as_bytes() == parked,
            tag: from.try_get_u64()?,
            redelivered: from.try_get_u8()? & 1 != 0,
            exchange: take_short(&mut from)?,
            routing_key: take_short(&mut from)?,
            content: None,
        })
    }

    /// Takes the content header: class, weight, body size and properties.
    pub(super) fn take_header(&mut self, mut from: Bytes) -> Result<(), Malformed> {
        let _class = from.try_get_u16()?;
        let _weight = from.try_get_u16()?;
        let size = from.try_get_u64()?;
        if size > BODY_BYTES_MAX {
            return Err(Malformed);
        }
        let size = usize::try_from(size).map_err(|_| Malformed)?;
        let (properties, reading) = properties::decode(from);
        let body = Body::Whole(Bytes::new());
        self.content = Some(Content { properties, reading, size, body });
        Ok(())
    }

    /// Takes one frame of the body.
    pub(super) fn take_body(&mut self, payload: Bytes) -> Result<(), Malformed> {
        let content = self.content.as_mut().ok_or(Malformed)?;
        content.body = match std::mem::replace(&mut content.body, Body::Whole(Bytes::new())) {
            Body::Whole(bytes) if bytes.is_empty() => Body::Whole(payload),
            Body::Whole(first) => {
                let mut growing = BytesMut::with_capacity(content.size.min(BODY_BYTES_AHEAD));
                growing.put(first);
                growing.put(payload);
                Body::Growing(growing)
            }
            Body::Growing(mut growing) => {
                growing.put(payload);
                Body::Growing(growing)
            }
        };
        if content.body.len() > content.size { Err(Malformed) } else { Ok(()) }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.content.as_ref().is_some_and(|content| content.body.len() == content.size)
    }

    /// Returns the delivery, as it was published; `queue` is the one it was parked from.
    pub(super) fn into_delivery(self, queue: &ShortStr) -> Delivery {
        let Arriving { parked, tag, redelivered, exchange, routing_key, content } = self;
        let Content { properties, reading, body, .. } =
            content.expect("asked only for a delivery that is whole");
        let mut message = Message { exchange, routing_key, properties, body: body.into_bytes() };
        parked::remove_broker_headers(&mut message);
        let readable = reading == Reading::Whole && properties::is_text(&message);
        let reason = if parked {
            Some(parked::restore(&mut message, queue))
        } else {
            (!readable).then(|| UNREADABLE.to_owned())
        };
        let parked = reason.map(|reason| Parked { reason });
        Delivery { tag, redelivered, parked, message }
    }
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Body::Whole(bytes) => bytes.len(),
            Body::Growing(bytes) => bytes.len(),
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Body::Whole(bytes) => bytes,
            Body::Growing(bytes) => bytes.freeze(),
        }
    }
}
