//! Bodies as expressions see them: JSON, a protobuf message, text or bytes.

use bytes::Bytes;
use dacapo_event::ParseError;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use super::values::{self, OwnedVal};
use crate::FilterError;

/// How bodies are decoded.
#[derive(Debug, Clone)]
pub(crate) enum BodyDecoder {
    /// As JSON; what is not JSON is a string, or bytes if it is not UTF-8.
    Json,
    /// As this protobuf message.
    Protobuf(MessageDescriptor),
}

impl BodyDecoder {
    /// Returns the decoder for a descriptor set and the message in it.
    ///
    /// # Errors
    /// The set is not one, or does not say which message bodies are.
    pub(crate) fn new(
        descriptor_set: Option<&Bytes>,
        message_type: Option<&str>,
    ) -> Result<Self, FilterError> {
        let refused = |reason: String| FilterError::Descriptors { reason };
        let Some(set) = descriptor_set else {
            return match message_type {
                Some(name) => Err(refused(format!(
                    "message `{name}` is asked for, but no set is given; make one with `protoc --descriptor_set_out=FILE --include_imports`"
                ))),
                None => Ok(BodyDecoder::Json),
            };
        };
        let not_readable = |error: &dyn std::fmt::Display| {
            refused(format!(
                "not readable: {error}; make it with `protoc --descriptor_set_out=FILE --include_imports`"
            ))
        };
        // The library panics while it describes a mistake in a second file.
        let decoded = std::panic::catch_unwind(|| DescriptorPool::decode(set.as_ref()));
        let pool = decoded
            .map_err(|_| not_readable(&"its files contradict each other"))?
            .map_err(|error| not_readable(&error))?;
        let known = || {
            let names: Vec<String> = pool
                .all_messages()
                .filter(|message| !message.is_map_entry())
                .map(|message| message.full_name().to_owned())
                .collect();
            names
        };
        match message_type {
            Some(name) => {
                let name = name.trim_start_matches('.');
                let expected = || format!("a message of the set; it has {}", listed(&known()));
                let message = pool.get_message_by_name(name);
                message
                    .map(BodyDecoder::Protobuf)
                    .ok_or_else(|| refused(ParseError::new(name, expected()).to_string()))
            }
            None => match known().as_slice() {
                [only] => Ok(BodyDecoder::Protobuf(
                    pool.get_message_by_name(only).expect("the name came from the set"),
                )),
                names => Err(refused(format!(
                    "it does not say which message bodies are; name one of {}",
                    listed(names)
                ))),
            },
        }
    }

    /// Returns the body as a value.
    ///
    /// # Errors
    /// The body is not the protobuf message it should be.
    pub(crate) fn decode(&self, body: &[u8]) -> Result<OwnedVal, String> {
        match self {
            BodyDecoder::Json => Ok(match serde_json::from_slice(body) {
                Ok(json) => values::json(json),
                Err(_) => values::text_or_bytes(body),
            }),
            BodyDecoder::Protobuf(descriptor) => {
                let not_one = |error: &dyn std::fmt::Display| {
                    format!("the body is not a `{}`: {error}", descriptor.full_name())
                };
                // Names as in the .proto file, numbers as numbers, and fields at their default
                // are there: an expression can ask for every field that the message has.
                let options = SerializeOptions::new()
                    .stringify_64_bit_integers(false)
                    .use_proto_field_name(true)
                    .skip_default_fields(false);
                let message = DynamicMessage::decode(descriptor.clone(), body)
                    .map_err(|error| not_one(&error))?;
                message
                    .serialize_with_options(serde_json::value::Serializer, &options)
                    .map(values::json)
                    .map_err(|error| not_one(&error))
            }
        }
    }
}

/// Names for a message, as many as are readable.
fn listed(names: &[String]) -> String {
    const LISTED_MAX: usize = 10;
    let mut text = names
        .iter()
        .take(LISTED_MAX)
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > LISTED_MAX {
        text.push_str(&format!(" and {} more", names.len() - LISTED_MAX));
    }
    if names.is_empty() { "no message".to_owned() } else { text }
}
