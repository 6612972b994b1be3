//! Where an event's id, time, type and key come from.
//!
//! A platform says so once, as places to look in order; the defaults work for one
//! with no convention at all. Nothing here can fail on a message: what is not found
//! or not readable falls through to the next place, and at last to a value that is
//! always there.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::{Event, FieldValue, Message, ParseError, Sequence, ShortStr, StreamName, Timestamp};

/// A longer value is passed over as if it were not there: an id, type or key of megabytes, out of a
/// body, would be in statistics, indexes and every table that shows it. The longest header that a
/// broker can deliver has twice as much.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// One place in a message where an attribute may be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `property:message_id`: a basic property, by its AMQP name with `_`.
    Property(BasicProperty),
    /// `header:NAME`: a header, as text.
    Header(String),
    /// `cloudevents:ATTRIBUTE`: the header `cloudEvents:ATTRIBUTE` or `cloudEvents_ATTRIBUTE`.
    CloudEvents(String),
    /// `json:/pointer`: a JSON pointer (RFC 6901) into a JSON body.
    Json(String),
    /// `envelope:FIELD`: a field of `dacapo.envelope.v1.Envelope` in the body.
    Envelope(String),
    /// `routing_key`.
    RoutingKey,
}

/// The basic properties that can carry an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BasicProperty {
    /// `message_id`
    MessageId,
    /// `correlation_id`
    CorrelationId,
    /// `timestamp`
    Timestamp,
    /// `type`
    Type,
    /// `app_id`
    AppId,
}

/// The places of every attribute, each looked at in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeRules {
    /// Unique for each event. Not found: `stream:sequence`.
    pub id: Vec<Place>,
    /// When it happened. Not found: when it was archived.
    pub time: Vec<Place>,
    /// What happened. Not found: empty.
    pub kind: Vec<Place>,
    /// Which entity it happened to. Not found: none.
    pub key: Vec<Place>,
}

impl Default for AttributeRules {
    /// Returns rules for a platform with no convention: AMQP's own properties, CloudEvents
    /// headers, and the routing key as the type of last resort.
    fn default() -> Self {
        let cloud = |name: &str| Place::CloudEvents(name.to_owned());
        AttributeRules {
            id: vec![Place::Property(BasicProperty::MessageId), cloud("id")],
            time: vec![
                cloud("time"),
                Place::Header("timestamp_in_ms".to_owned()),
                Place::Property(BasicProperty::Timestamp),
            ],
            kind: vec![Place::Property(BasicProperty::Type), cloud("type"), Place::RoutingKey],
            key: vec![cloud("partitionkey"), cloud("subject")],
        }
    }
}

/// What a message says of itself; the archive makes up what is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Its id.
    pub id: Option<String>,
    /// When it happened.
    pub time: Option<Timestamp>,
    /// What happened; empty if nothing says so.
    pub kind: String,
    /// Which entity it happened to.
    pub key: Option<String>,
}

impl AttributeRules {
    /// Returns rules for a platform whose bodies are all in the envelope
    /// ([`crate::envelope::Envelope`]).
    pub fn enveloped() -> Self {
        let field = |name: &str| vec![Place::Envelope(name.to_owned())];
        AttributeRules {
            id: field("id"),
            time: field("time"),
            kind: field("type"),
            key: field("key"),
        }
    }

    /// Returns what `message` says of itself.
    pub fn read(&self, message: &Message) -> Attributes {
        let mut body = LazyJson::NotParsed;
        let mut find = |places: &[Place]| first(places, message, &mut body);
        Attributes {
            id: find(&self.id),
            time: find(&self.time).and_then(|text| time_from_text(&text)),
            kind: find(&self.kind).unwrap_or_default(),
            key: find(&self.key),
        }
    }

    /// Returns the event that `message` is, at its place in a stream.
    pub fn event(
        &self,
        message: Message,
        stream: &StreamName,
        sequence: Sequence,
        archived_at: Timestamp,
    ) -> Event {
        let Attributes { id, time, kind, key } = self.read(&message);
        let id = id.unwrap_or_else(|| Event::made_up_id(stream, sequence));
        let time = time.unwrap_or(archived_at);
        Event { sequence, archived_at, time, id, kind, key, message }
    }
}

/// Returns what stands in the first of `places` that has something, by the rules of attributes.
pub fn text_at(places: &[Place], message: &Message) -> Option<String> {
    first(places, message, &mut LazyJson::NotParsed)
}

fn first(places: &[Place], message: &Message, body: &mut LazyJson) -> Option<String> {
    places
        .iter()
        .filter_map(|place| place.find(message, body))
        .find(|value| value.len() <= VALUE_BYTES_MAX)
        .filter(|text| !text.is_empty())
}

/// The body as JSON, parsed at most once a message and only if a place asks for it.
enum LazyJson {
    NotParsed,
    Parsed(Option<Value>),
}

impl LazyJson {
    fn pointer(&mut self, body: &[u8], pointer: &str) -> Option<String> {
        if matches!(self, LazyJson::NotParsed) {
            *self = LazyJson::Parsed(serde_json::from_slice(body).ok());
        }
        let LazyJson::Parsed(Some(json)) = self else { return None };
        match json.pointer(pointer)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }
}

impl Place {
    fn find(&self, message: &Message, json: &mut LazyJson) -> Option<String> {
        let properties = &message.properties;
        let text = |value: &Option<ShortStr>| Some(value.as_ref()?.to_str_lossy().into_owned());
        match self {
            Place::Property(BasicProperty::MessageId) => text(&properties.message_id),
            Place::Property(BasicProperty::CorrelationId) => text(&properties.correlation_id),
            Place::Property(BasicProperty::Type) => text(&properties.kind),
            Place::Property(BasicProperty::AppId) => text(&properties.app_id),
            Place::Property(BasicProperty::Timestamp) => Some(properties.timestamp?.to_string()),
            Place::Header(name) => properties.header(name).map(FieldValue::to_text_lossy),
            Place::CloudEvents(name) => ["cloudEvents:", "cloudEvents_"]
                .iter()
                .find_map(|prefix| properties.header(&format!("{prefix}{name}")))
                .map(FieldValue::to_text_lossy),
            Place::Json(pointer) => json.pointer(&message.body, pointer),
            Place::Envelope(field) => crate::envelope::field(&message.body, field),
            Place::RoutingKey => Some(message.routing_key.to_str_lossy().into_owned()),
        }
    }
}

/// Returns the moment that `text` names: RFC 3339, or a number since 1970 in seconds,
/// milliseconds or microseconds, told apart by its size (10¹¹ seconds are the year 5138,
/// 10¹⁴ milliseconds likewise).
pub fn time_from_text(text: &str) -> Option<Timestamp> {
    const SECONDS_BELOW: i64 = 100_000_000_000;
    const MILLIS_BELOW: i64 = 100_000_000_000_000;
    match text.parse::<i64>() {
        Ok(seconds) if seconds.abs() < SECONDS_BELOW => {
            Some(Timestamp::from_micros(seconds.saturating_mul(1_000_000)))
        }
        Ok(millis) if millis.abs() < MILLIS_BELOW => Some(Timestamp::from_millis(millis)),
        Ok(micros) => Some(Timestamp::from_micros(micros)),
        Err(_) => text.parse().ok(),
    }
}

const PLACE_EXPECTED: &str = "a place (`property:message_id`, `property:correlation_id`, \
     `property:timestamp`, `property:type`, `property:app_id`, `header:NAME`, \
     `cloudevents:ATTRIBUTE`, `json:/pointer`, `envelope:FIELD` or `routing_key`)";

impl FromStr for Place {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = || ParseError::new(text, PLACE_EXPECTED);
        if text == "routing_key" {
            return Ok(Place::RoutingKey);
        }
        let (kind, name) = text.split_once(':').ok_or_else(refused)?;
        match (kind, name) {
            (_, "") => Err(refused()),
            ("property", "message_id") => Ok(Place::Property(BasicProperty::MessageId)),
            ("property", "correlation_id") => Ok(Place::Property(BasicProperty::CorrelationId)),
            ("property", "timestamp") => Ok(Place::Property(BasicProperty::Timestamp)),
            ("property", "type") => Ok(Place::Property(BasicProperty::Type)),
            ("property", "app_id") => Ok(Place::Property(BasicProperty::AppId)),
            ("header", name) => Ok(Place::Header(name.to_owned())),
            ("cloudevents", name) => Ok(Place::CloudEvents(name.to_owned())),
            ("json", pointer) if pointer.starts_with('/') => Ok(Place::Json(pointer.to_owned())),
            ("envelope", "id" | "time" | "type" | "key") => Ok(Place::Envelope(name.to_owned())),
            _ => Err(refused()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Property(property) => {
                let name = match property {
                    BasicProperty::MessageId => "message_id",
                    BasicProperty::CorrelationId => "correlation_id",
                    BasicProperty::Timestamp => "timestamp",
                    BasicProperty::Type => "type",
                    BasicProperty::AppId => "app_id",
                };
                write!(f, "property:{name}")
            }
            Place::Header(name) => write!(f, "header:{name}"),
            Place::CloudEvents(name) => write!(f, "cloudevents:{name}"),
            Place::Json(pointer) => write!(f, "json:{pointer}"),
            Place::Envelope(field) => write!(f, "envelope:{field}"),
            Place::RoutingKey => f.write_str("routing_key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Properties;

    fn stream() -> StreamName {
        "shop".parse().unwrap()
    }

    fn archived_at() -> Timestamp {
        Timestamp::from_secs(1_800_000_000)
    }

    fn event_by(rules: &AttributeRules, message: Message) -> Event {
        rules.event(message, &stream(), 42, archived_at())
    }

    #[test]
    fn a_bare_message_gets_values_that_are_always_there() {
        let message =
            Message { routing_key: ShortStr::from_static("orders.placed"), ..Message::default() };
        let event = event_by(&AttributeRules::default(), message);
        assert_eq!(event.id, "shop:42");
        assert_eq!(event.time, archived_at());
        assert_eq!(event.kind, "orders.placed");
        assert_eq!(event.key, None);
    }

    #[test]
    fn amqp_properties_are_the_default_places() {
        let properties = Properties {
            message_id: Some(ShortStr::from_static("m-1")),
            timestamp: Some(1_700_000_000),
            kind: Some(ShortStr::from_static("order.placed")),
            ..Properties::default()
        };
        let event =
            event_by(&AttributeRules::default(), Message { properties, ..Message::default() });
        assert_eq!((event.id.as_str(), event.kind.as_str()), ("m-1", "order.placed"));
        assert_eq!(event.time, Timestamp::from_secs(1_700_000_000));
    }

    #[test]
    fn a_json_pointer_reaches_into_the_body_and_a_broken_body_does_not_fail() {
        let rules = AttributeRules {
            key: vec!["json:/order/number".parse().unwrap()],
            ..AttributeRules::default()
        };
        let with = |body: &'static str| Message {
            body: Bytes::from_static(body.as_bytes()),
            ..Message::default()
        };
        assert_eq!(event_by(&rules, with(r#"{"order":{"number":17}}"#)).key.as_deref(), Some("17"));
        assert_eq!(event_by(&rules, with("{")).key, None);
        assert_eq!(event_by(&rules, with(r#"{"order":{"number":[]}}"#)).key, None);
    }

    #[test]
    fn everything_is_in_the_envelope_where_a_platform_says_so() {
        let envelope = crate::envelope::Envelope {
            id: "e-1".to_owned(),
            time: Timestamp::from_secs(1_700_000_000),
            kind: "order.placed".to_owned(),
            key: "k".to_owned(),
            causation_id: String::new(),
            content_type: String::new(),
            payload: Bytes::new(),
        };
        let message = Message { body: envelope.encode(), ..Message::default() };
        let expected = Attributes {
            id: Some(envelope.id),
            time: Some(envelope.time),
            kind: envelope.kind,
            key: Some(envelope.key),
        };
        assert_eq!(AttributeRules::enveloped().read(&message), expected);
    }

    #[test]
    fn a_value_of_absurd_length_is_passed_over() {
        let places = |text: &str| vec!["json:/x".parse().unwrap(), text.parse().unwrap()];
        let rules = AttributeRules {
            id: places("json:/y"),
            kind: places("routing_key"),
            key: places("json:/y"),
            ..AttributeRules::default()
        };
        let check = |bytes: usize, id: &str, kind: &str, key: Option<&str>| {
            let text = "x".repeat(bytes);
            let message = Message {
                routing_key: ShortStr::from_static("orders.placed"),
                body: format!(r#"{{"x":"{text}","y":"y"}}"#).into(),
                ..Message::default()
            };
            let event = event_by(&rules, message);
            let found = (event.id.as_str(), event.kind.as_str(), event.key.as_deref());
            assert!(found == (id, kind, key), "{bytes}");
        };
        let longest = "x".repeat(VALUE_BYTES_MAX);
        check(VALUE_BYTES_MAX, &longest, &longest, Some(&longest));
        check(VALUE_BYTES_MAX + 1, "y", "orders.placed", Some("y"));
        // And there may be nothing else.
        let rules = AttributeRules { id: vec!["json:/x".parse().unwrap()], ..rules };
        let body = format!(r#"{{"x":"{longest}x"}}"#).into();
        assert_eq!(event_by(&rules, Message { body, ..Message::default() }).id, "shop:42");
    }

    #[test]
    fn times_are_told_apart_by_their_size() {
        let expected = Timestamp::from_secs(1_700_000_000);
        for text in ["1700000000", "1700000000000", "1700000000000000", "2023-11-14T22:13:20Z"] {
            assert_eq!(time_from_text(text), Some(expected), "{text}");
        }
        assert_eq!(time_from_text("yesterday"), None);
    }

    #[test]
    fn places_are_shown_as_they_are_parsed() {
        for text in [
            "property:app_id",
            "header:x",
            "cloudevents:id",
            "json:/a/b",
            "envelope:key",
            "routing_key",
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", "header:", "json:a", "property:priority", "envelope:payload", "body"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
