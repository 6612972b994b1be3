//! A delivery while its frames come: method, content header, body.

use bytes::{Buf, Bytes};
use dacapo_bus::{Delivery, DeliveryTag, Parked};
use dacapo_event::{Message, ShortStr};

use super::Malformed;
use super::content::Content;
use super::frame::take_short;
use super::properties::{self, Reading};
use crate::parked;

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

    /// Takes the content header.
    pub(super) fn take_header(&mut self, from: Bytes) -> Result<(), Malformed> {
        self.content = Some(Content::begin(from)?);
        Ok(())
    }

    /// Takes one frame of the body.
    pub(super) fn take_body(&mut self, payload: Bytes) -> Result<(), Malformed> {
        self.content.as_mut().ok_or(Malformed)?.take_body(payload)
    }

    pub(super) fn is_whole(&self) -> bool {
        self.content.as_ref().is_some_and(Content::is_whole)
    }

    /// Returns the delivery, as it was published; `queue` is the one it was parked from.
    pub(super) fn into_delivery(self, queue: &ShortStr) -> Delivery {
        let Arriving { parked, tag, redelivered, exchange, routing_key, content } = self;
        let content = content.expect("asked only for a delivery that is whole");
        let (properties, reading, body) = content.into_parts();
        let mut message = Message { exchange, routing_key, properties, body };
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
