//! The platform envelope of `schemas/dacapo/envelope/v1`: read where a place says so, but never
//! required; written by services that use it.

use bytes::Bytes;
use prost::Message as _;

use crate::r#gen::envelope::Envelope as Wire;
use crate::{EventError, Timestamp};

/// An event in the platform's envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Unique for each event; the same on every delivery of it.
    pub id: String,
    /// When it happened.
    pub time: Timestamp,
    /// What happened.
    pub kind: String,
    /// Which entity it happened to; empty if to none.
    pub key: String,
    /// The id of the event or command that caused it; empty if it is not known.
    pub causation_id: String,
    /// Media type of `payload`.
    pub content_type: String,
    /// What the platform's services agree on.
    pub payload: Bytes,
}

impl Envelope {
    /// Returns the envelope as a body on the bus.
    pub fn encode(&self) -> Bytes {
        let Envelope { id, time, kind, key, causation_id, content_type, payload } = self.clone();
        let wire = Wire {
            id,
            time_unix_us: time.as_micros(),
            r#type: kind,
            key,
            causation_id,
            content_type,
            payload: payload.into(),
        };
        wire.encode_to_vec().into()
    }

    /// Returns the envelope that `body` is. A time out of range is held to the last that can be
    /// shown.
    ///
    /// # Errors
    /// The bytes are no such protobuf message.
    pub fn decode(body: &[u8]) -> Result<Self, EventError> {
        let refused =
            |error: prost::DecodeError| EventError::Envelope { reason: error.to_string() };
        let wire = Wire::decode(body).map_err(refused)?;
        Ok(Envelope {
            id: wire.id,
            time: Timestamp::from_micros(wire.time_unix_us),
            kind: wire.r#type,
            key: wire.key,
            causation_id: wire.causation_id,
            content_type: wire.content_type,
            payload: wire.payload.into(),
        })
    }
}

/// Returns a field of the envelope as text, or nothing if `body` is not an envelope, the field
/// is empty, or there is no field of that name (`id`, `time`, `type`, `key`).
///
/// `time` is given in microseconds since 1970.
pub fn field(body: &[u8], name: &str) -> Option<String> {
    let envelope = Wire::decode(body).ok()?;
    let text = match name {
        "id" => envelope.id,
        "type" => envelope.r#type,
        "key" => envelope.key,
        "time" if envelope.time_unix_us != 0 => envelope.time_unix_us.to_string(),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, proptest};

    use super::*;

    fn envelopes() -> impl Strategy<Value = Envelope> {
        let payload = proptest::collection::vec(any::<u8>(), 0..64);
        (any::<[String; 5]>(), any::<i64>(), payload).prop_map(|(texts, micros, payload)| {
            let [id, kind, key, causation_id, content_type] = texts;
            let time = Timestamp::from_micros(micros);
            let payload = payload.into();
            Envelope { id, time, kind, key, causation_id, content_type, payload }
        })
    }

    proptest! {
        #[test]
        fn every_envelope_comes_back_as_it_was_and_its_fields_are_found(envelope in envelopes()) {
            let body = envelope.encode();
            assert_eq!(Envelope::decode(&body).unwrap(), envelope);
            for (name, text) in [("id", envelope.id), ("type", envelope.kind), ("key", envelope.key)] {
                assert_eq!(field(&body, name), (!text.is_empty()).then_some(text));
            }
        }
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        let error = Envelope::decode(b"{\"id\":1}").unwrap_err().to_string();
        assert!(error.starts_with("body is not an envelope: "), "{error}");
    }
}
