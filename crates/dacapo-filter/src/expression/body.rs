//! Bodies as expressions see them: JSON, a protobuf message, text or bytes.

use std::io::{self, Write};

use bytes::Bytes;
use dacapo_event::ParseError;
use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::value::RawValue;

use super::values::{self, OwnedVal};
use crate::FilterError;

/// The most values and names of members in a body: each is a byte or two that becomes a hundred.
/// Bodies of 16 MiB have as many if each takes 16 bytes.
const VALUES_MAX: usize = 1024 * 1024;

/// How bodies are decoded.
#[derive(Debug, Clone)]
pub(crate) enum BodyDecoder {
    /// As JSON; what is not JSON is a string, or bytes if it is not UTF-8.
    Json,
    /// As this protobuf message.
    Protobuf {
        message: MessageDescriptor,
        /// The most fields of a message of the set, all of which are there once decoded.
        fields_max: usize,
    },
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
        match (descriptor_set, message_type) {
            (Some(set), name) => {
                let (message, fields_max) = message_of(set, name)?;
                Ok(BodyDecoder::Protobuf { message, fields_max })
            }
            (None, Some(name)) => Err(refused(format!(
                "message `{name}` is asked for, but no set is given; make one with `protoc --descriptor_set_out=FILE --include_imports`"
            ))),
            (None, None) => Ok(BodyDecoder::Json),
        }
    }

    /// Returns the body as a value.
    ///
    /// # Errors
    /// The body is not the protobuf message it should be, or holds too many values.
    pub(crate) fn decode(&self, body: &[u8]) -> Result<OwnedVal, String> {
        match self {
            BodyDecoder::Json => {
                // A shorter one cannot hold as many.
                if body.len() > VALUES_MAX && values_of_json(body) > VALUES_MAX {
                    return match serde_json::from_slice::<&RawValue>(body) {
                        Ok(_) => Err(too_many()),
                        Err(_) => Ok(values::text_or_bytes(body)),
                    };
                }
                Ok(match serde_json::from_slice(body) {
                    Ok(json) => values::json(json),
                    Err(_) => values::text_or_bytes(body),
                })
            }
            BodyDecoder::Protobuf { message: descriptor, fields_max } => {
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
                if body.len().saturating_mul(fields_max + 1) > VALUES_MAX {
                    let counted = Counted { left: VALUES_MAX };
                    let mut counting = serde_json::Serializer::new(counted);
                    message.serialize_with_options(&mut counting, &options).map_err(|error| {
                        if error.is_io() { too_many() } else { not_one(&error) }
                    })?;
                }
                message
                    .serialize_with_options(serde_json::value::Serializer, &options)
                    .map(values::json)
                    .map_err(|error| not_one(&error))
            }
        }
    }
}

/// Makes protobuf bodies of JSON.
#[derive(Debug, Clone)]
pub struct BodyEncoder(MessageDescriptor);

impl BodyEncoder {
    /// Returns the encoder for a serialised `google.protobuf.FileDescriptorSet` and the message in
    /// it, whose name may be left out if there is only one.
    ///
    /// # Errors
    /// The set is not one, or does not say which message bodies are.
    pub fn new(descriptor_set: &Bytes, message_type: Option<&str>) -> Result<Self, FilterError> {
        message_of(descriptor_set, message_type).map(|(message, _)| BodyEncoder(message))
    }

    /// Returns the message whose JSON form this is (the canonical one of protobuf; names may be
    /// those of the `.proto` file, too).
    ///
    /// # Errors
    /// It is no JSON, or not that of the message: a member that the message has not, for example.
    pub fn encode(&self, json: &[u8]) -> Result<Bytes, String> {
        let BodyEncoder(descriptor) = self;
        let not_one = |error: serde_json::Error| {
            format!("the body is not the JSON of a `{}`: {error}", descriptor.full_name())
        };
        let mut reading = serde_json::Deserializer::from_slice(json);
        let message =
            DynamicMessage::deserialize(descriptor.clone(), &mut reading).map_err(not_one)?;
        reading.end().map_err(not_one)?;
        Ok(message.encode_to_vec().into())
    }
}

/// Returns the message of a descriptor set that bodies are, and the most fields of any message of it.
fn message_of(
    set: &Bytes,
    message_type: Option<&str>,
) -> Result<(MessageDescriptor, usize), FilterError> {
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
    let messages = pool.all_messages().filter(|message| !message.is_map_entry());
    let known: Vec<String> = messages.map(|message| message.full_name().to_owned()).collect();
    let fields_max = pool.all_messages().map(|message| message.fields().len()).max().unwrap_or(0);
    let name = match (message_type, known.as_slice()) {
        (Some(name), _) => name.trim_start_matches('.'),
        (None, [only]) => only,
        (None, names) => {
            return Err(refused(format!(
                "it does not say which message bodies are; name one of {}",
                listed(names)
            )));
        }
    };
    let expected = || format!("a message of the set; it has {}", listed(&known));
    let message = pool.get_message_by_name(name);
    let message = message.ok_or_else(|| refused(ParseError::new(name, expected()).to_string()))?;
    Ok((message, fields_max))
}

fn refused(reason: String) -> FilterError {
    FilterError::Descriptors { reason }
}

fn too_many() -> String {
    format!(
        "the body has more than {VALUES_MAX} values; leave such events out with flags or --where-errors skip"
    )
}

/// Returns how many values and names there are in a text if it is JSON: every one but the first
/// comes after one of these.
fn values_of_json(text: &[u8]) -> usize {
    let (mut values, mut quoted, mut escaped) = (1, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' | b':' | b'[' | b'{' if !quoted => values += 1,
            _ => {}
        }
    }
    values
}

/// Takes JSON until it has too many values, and keeps nothing.
struct Counted {
    left: usize,
}

impl Write for Counted {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // The serializer writes each of these by itself, and texts apart from them.
        if matches!(text, b"," | b":" | b"[" | b"{") {
            self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::OutOfMemory)?;
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
