//! The platform envelope of `schemas/dacapo/envelope/v1`, read but never required.

use prost::Message as _;

use crate::r#gen::envelope::Envelope;

/// Returns a field of the envelope as text, or nothing if `body` is not an envelope, the field
/// is empty, or there is no field of that name (`id`, `time`, `type`, `key`).
///
/// `time` is given in microseconds since 1970.
pub fn field(body: &[u8], name: &str) -> Option<String> {
    let envelope = Envelope::decode(body).ok()?;
    let text = match name {
        "id" => envelope.id,
        "type" => envelope.r#type,
        "key" => envelope.key,
        "time" if envelope.time_unix_us != 0 => envelope.time_unix_us.to_string(),
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}
