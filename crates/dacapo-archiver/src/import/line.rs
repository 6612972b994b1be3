//! Reads one line of JSON as an event.
//!
//! Members are found without building a tree: each value stays the text that it is until it is
//! known what it is for.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use dacapo_event::attributes::{VALUE_BYTES_MAX, time_from_text};
use dacapo_event::{
    Event, FieldTable, Message, Properties, Sequence, ShortStr, StreamName, Timestamp, ndjson,
};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::compact::compact;
use super::{Field, FieldMap, HEADERS_BYTES_MAX};

/// What a line says of an event.
#[derive(Debug)]
pub(super) struct Parsed {
    id: Option<String>,
    time: Option<Timestamp>,
    kind: Option<String>,
    key: Option<String>,
    message: Message,
}

/// Why a line is not an event, as a fragment.
pub(super) type Problem = String;

/// Reads a line, which is not blank.
pub(super) fn parse(line: &[u8], fields: &FieldMap) -> Result<Parsed, Problem> {
    let text = std::str::from_utf8(line)
        .map_err(|error| format!("it is not UTF-8 from byte {}", error.valid_up_to() + 1))?;
    let members: Members<'_> = serde_json::from_str(text).map_err(|error| json_problem(&error))?;
    let get = |field: &Field| members.find(field.path());

    let id = attribute(&get, &fields.id)?;
    let time = scalar(&get, &fields.time)?
        .map(|text| time(&text).ok_or_else(|| not_a_time(&fields.time, &text)))
        .transpose()?;
    let kind = attribute(&get, &fields.kind)?;
    let key = attribute(&get, &fields.key)?;

    let mut properties = match object(&get, &fields.properties)? {
        Some(members) => ndjson::properties_from_json(&members).map_err(|e| e.to_string())?,
        None => Properties {
            message_id: id.as_deref().and_then(|id| ShortStr::try_from(id).ok()),
            kind: kind.as_deref().and_then(|kind| ShortStr::try_from(kind).ok()),
            timestamp: time.and_then(|time| u64::try_from(time.as_micros() / 1_000_000).ok()),
            ..Properties::default()
        },
    };
    properties.headers = object(&get, &fields.headers)?
        .filter(|members| !members.is_empty())
        .map(|members| ndjson::table_from_json(&members))
        .transpose()
        .map_err(|error| format!("`{}`: {error}", fields.headers))?;
    let headers = properties.headers.as_ref().map_or(0, FieldTable::weight);
    if headers > HEADERS_BYTES_MAX {
        let megabytes = HEADERS_BYTES_MAX / 1024 / 1024;
        return Err(format!("`{}` takes more than {megabytes} MiB in memory", fields.headers));
    }
    let message = Message {
        exchange: short(&get, &fields.exchange)?,
        routing_key: short(&get, &fields.routing_key)?,
        body: body(&get, fields)?,
        properties,
    };
    Ok(Parsed { id, time, kind, key, message })
}

impl Parsed {
    /// Returns the message alone; what the line says of the event is in its properties, unless
    /// those say something themselves.
    pub(super) fn into_message(self) -> Result<Message, Problem> {
        let Parsed { id, kind, mut message, .. } = self;
        let short = |text: String| {
            ShortStr::try_from(&*text)
                .map_err(|error| format!("`{text}` is no AMQP property: {error}"))
        };
        let properties = &mut message.properties;
        if let (None, Some(id)) = (&properties.message_id, id) {
            properties.message_id = Some(short(id)?);
        }
        if let (None, Some(kind)) = (&properties.kind, kind) {
            properties.kind = Some(short(kind)?);
        }
        Ok(message)
    }

    /// Returns the event at its place in the stream, filling in what the line did not say.
    pub(super) fn into_event(
        self,
        stream: &StreamName,
        sequence: Sequence,
        archived_at: Timestamp,
    ) -> Event {
        let Parsed { id, time, kind, key, message } = self;
        let properties = &message.properties;
        let text = |value: &Option<ShortStr>| {
            value.as_ref().map(|value| value.to_string()).filter(|value| !value.is_empty())
        };
        let id = id
            .or_else(|| text(&properties.message_id))
            .unwrap_or_else(|| Event::made_up_id(stream, sequence));
        let time =
            time.or_else(|| properties.timestamp.map(Timestamp::from_secs)).unwrap_or(archived_at);
        let kind = kind
            .or_else(|| text(&properties.kind))
            .unwrap_or_else(|| message.routing_key.to_string());
        Event { sequence, archived_at, time, id, kind, key, message }
    }
}

fn body<'a>(
    get: &impl Fn(&Field) -> Option<&'a RawValue>,
    fields: &FieldMap,
) -> Result<Bytes, Problem> {
    let base64 = get(&fields.body_base64).filter(|raw| !is_null(raw));
    match (get(&fields.body), base64) {
        (Some(body), Some(_)) if !is_null(body) => {
            Err(format!("it has both `{}` and `{}`", fields.body, fields.body_base64))
        }
        (_, Some(base64)) if base64.get().starts_with('"') => {
            ndjson::bytes_from_base64(&string(base64)?)
                .map_err(|error| format!("`{}` is {error}", fields.body_base64))
        }
        (_, Some(_)) => Err(format!("`{}` is not a string", fields.body_base64)),
        (Some(body), None) if body.get().starts_with('"') => Ok(string(body)?.into_owned().into()),
        (Some(body), None) => Ok(compact(body.get()).into()),
        (None, None) => Ok(Bytes::new()),
    }
}

/// Returns the text of a string, number or boolean; nothing if it is not there or null.
fn scalar<'a>(
    get: &impl Fn(&Field) -> Option<&'a RawValue>,
    field: &Field,
) -> Result<Option<Cow<'a, str>>, Problem> {
    let Some(raw) = get(field) else { return Ok(None) };
    match raw.get().as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') => string(raw).map(Some),
        Some(b'{' | b'[') => {
            Err(format!("`{field}` is an object or array, not a string or number"))
        }
        _ => Ok(Some(Cow::Borrowed(raw.get()))),
    }
}

/// Returns a scalar that says something.
fn attribute<'a>(
    get: &impl Fn(&Field) -> Option<&'a RawValue>,
    field: &Field,
) -> Result<Option<String>, Problem> {
    let Some(text) = scalar(get, field)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.len() <= VALUE_BYTES_MAX {
        true => Ok(Some(text.into_owned())),
        false => Err(format!("`{field}` has {} bytes, more than {VALUE_BYTES_MAX}", text.len())),
    }
}

fn short<'a>(
    get: &impl Fn(&Field) -> Option<&'a RawValue>,
    field: &Field,
) -> Result<ShortStr, Problem> {
    match scalar(get, field)? {
        Some(text) => ShortStr::try_from(&*text).map_err(|error| format!("`{field}`: {error}")),
        None => Ok(ShortStr::default()),
    }
}

fn object<'a>(
    get: &impl Fn(&Field) -> Option<&'a RawValue>,
    field: &Field,
) -> Result<Option<Map<String, Value>>, Problem> {
    let Some(raw) = get(field).filter(|raw| !is_null(raw)) else { return Ok(None) };
    if !raw.get().starts_with('{') {
        return Err(format!("`{field}` is not an object"));
    }
    serde_json::from_str(raw.get()).map(Some).map_err(|error| json_problem(&error))
}

fn string(raw: &RawValue) -> Result<Cow<'_, str>, Problem> {
    let quoted = raw.get();
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.contains('\\') => Ok(Cow::Borrowed(inner)),
        _ => serde_json::from_str(quoted).map(Cow::Owned).map_err(|error| json_problem(&error)),
    }
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// Returns the moment that a time's text names; numbers may have a fraction.
fn time(text: &str) -> Option<Timestamp> {
    /// Sizes of numbers since 1970, as in [`time_from_text`].
    const SECONDS_BELOW: f64 = 1e11;
    const MILLIS_BELOW: f64 = 1e14;
    if let Some(time) = time_from_text(text) {
        return Some(time);
    }
    let number: f64 = text.parse().ok().filter(|number: &f64| number.is_finite())?;
    let micros = match number.abs() {
        size if size < SECONDS_BELOW => number * 1e6,
        size if size < MILLIS_BELOW => number * 1e3,
        _ => number,
    };
    Some(Timestamp::from_micros(micros.round() as i64))
}

fn not_a_time(field: &Field, text: &str) -> Problem {
    const SHOWN_CHARS: usize = 40;
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    format!(
        "`{field}` is `{shown}`, not a time (RFC 3339, or seconds, milliseconds or microseconds since 1970)"
    )
}

/// A line is one line: the column says it all.
fn json_problem(error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    let words = text.split(" at line ").next().unwrap_or(&text);
    format!("{words} at column {}", error.column())
}

/// The members of an object in their order, values as text.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Returns the value at a path of names; of members of one name the last, as JSON parsers do.
    fn find(&self, path: &[String]) -> Option<&'a RawValue> {
        let (name, below) = path.split_first()?;
        let (_, value) = self.0.iter().rev().find(|(member, _)| member == name)?;
        if below.is_empty() { Some(value) } else { descend(value, below) }
    }
}

fn descend<'a>(value: &'a RawValue, path: &[String]) -> Option<&'a RawValue> {
    let Some((name, below)) = path.split_first() else { return Some(value) };
    if value.get().starts_with('[') {
        let elements: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
        return descend(elements.get(name.parse::<usize>().ok()?)?, below);
    }
    serde_json::from_str::<Members<'a>>(value.get()).ok()?.find(path)
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                /// An event has about this many members.
                const USUAL: usize = 12;
                let mut members = Vec::with_capacity(USUAL);
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A member's name, borrowed from the line unless it has escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }

        deserializer.deserialize_str(NameVisitor)
    }
}

#[cfg(test)]
mod tests;
