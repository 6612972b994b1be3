//! The content of a message while its frames come: header, body.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dacapo_event::Properties;

use super::Malformed;
use super::properties::{self, Reading};

/// The most that a body may claim to have: RabbitMQ's own limit on `max_message_size`.
const BODY_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Room that is made for a body before its bytes come, whatever it claims to have: the largest
/// messages that RabbitMQ 4 takes by default. A larger one is moved as it grows.
const BODY_BYTES_AHEAD: usize = 16 * 1024 * 1024;

/// A content whose frames have not all come.
pub(super) struct Content {
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

impl Content {
    /// Begins with the content header: class, weight, body size and properties.
    pub(super) fn begin(mut from: Bytes) -> Result<Self, Malformed> {
        let _class = from.try_get_u16()?;
        let _weight = from.try_get_u16()?;
        let size = from.try_get_u64()?;
        if size > BODY_BYTES_MAX {
            return Err(Malformed);
        }
        let size = usize::try_from(size).map_err(|_| Malformed)?;
        let (properties, reading) = properties::decode(from);
        Ok(Content { properties, reading, size, body: Body::Whole(Bytes::new()) })
    }

    /// Returns how long the body says it is.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Takes one frame of the body.
    pub(super) fn take_body(&mut self, payload: Bytes) -> Result<(), Malformed> {
        self.body = match std::mem::replace(&mut self.body, Body::Whole(Bytes::new())) {
            Body::Whole(bytes) if bytes.is_empty() => Body::Whole(payload),
            Body::Whole(first) => {
                let mut growing = BytesMut::with_capacity(self.size.min(BODY_BYTES_AHEAD));
                growing.put(first);
                growing.put(payload);
                Body::Growing(growing)
            }
            Body::Growing(mut growing) => {
                growing.put(payload);
                Body::Growing(growing)
            }
        };
        if self.body.len() > self.size { Err(Malformed) } else { Ok(()) }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.body.len() == self.size
    }

    pub(super) fn into_parts(self) -> (Properties, Reading, Bytes) {
        (self.properties, self.reading, self.body.into_bytes())
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
