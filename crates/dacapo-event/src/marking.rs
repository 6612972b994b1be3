//! What a replayed message carries that the original did not, and what is taken from
//! it because it would do harm a second time.
//!
//! A replayed event names its replay, its id and the digest of its body. The archiver
//! skips a message only if that digest matches the body that came: one with copied
//! headers but other content is a live event and is archived.

use std::fmt::{Display, Write as _};

use bytes::BytesMut;

use crate::{
    DeliveryMode, Digest, Event, FieldTable, FieldValue, Message, Properties, ShortStr, Timestamp,
};

/// Header: the id of the replay that published this message.
pub const REPLAY: ShortStr = ShortStr::from_static("x-dacapo-replay");
/// Header: the event's id, the same on every delivery of it.
pub const EVENT_ID: ShortStr = ShortStr::from_static("x-dacapo-event-id");
/// Header: SHA-256 of the body, 64 hexadecimal digits.
pub const BODY_DIGEST: ShortStr = ShortStr::from_static("x-dacapo-body-digest");
/// Header: when the event happened, RFC 3339.
pub const ORIGINAL_TIME: ShortStr = ShortStr::from_static("x-dacapo-original-time");
/// Header: the exchange that the event was first published to.
pub const ORIGINAL_EXCHANGE: ShortStr = ShortStr::from_static("x-dacapo-original-exchange");
/// Header: the routing key that the event was first published with.
pub const ORIGINAL_ROUTING_KEY: ShortStr = ShortStr::from_static("x-dacapo-original-routing-key");

const ORIGINAL_USER_ID: ShortStr = ShortStr::from_static("x-dacapo-original-user-id");
const ORIGINAL_EXPIRATION: ShortStr = ShortStr::from_static("x-dacapo-original-expiration");
const ORIGINAL_REPLY_TO: ShortStr = ShortStr::from_static("x-dacapo-original-reply-to");
const ORIGINAL_DELIVERY_MODE: ShortStr = ShortStr::from_static("x-dacapo-original-delivery-mode");
const ORIGINAL_PRIORITY: ShortStr = ShortStr::from_static("x-dacapo-original-priority");

/// Headers that RabbitMQ acts on, and where their values are kept instead.
const ACTED_ON: [(&str, ShortStr); 3] = [
    ("CC", ShortStr::from_static("x-dacapo-original-cc")),
    ("BCC", ShortStr::from_static("x-dacapo-original-bcc")),
    ("x-death", ShortStr::from_static("x-dacapo-original-x-death")),
];

/// How many headers every replayed message is given.
const MARKS: usize = 6;

/// Bytes that a digest and a time mostly take.
const DIGEST_AND_TIME: usize = 64 + 32;

/// Whether a replayed message keeps its `priority`, and so may overtake others in a priority queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Taken off and kept in a header: order is worth more.
    Neutralise,
    /// Left as it was.
    Keep,
}

/// Returns the message that replays `event`: everything as it was, marked, and with what would
/// do harm moved into headers ([`neutralise`]). Exchange and routing key are the original's; the
/// target may replace them.
pub fn mark(event: &Event, replay: &ShortStr, priority: Priority) -> Message {
    mark_archived(event.message.clone(), &event.id, event.time, replay, priority)
}

/// Returns what [`mark`] returns of the event whose message, id and time these are, without a copy.
pub fn mark_archived(
    mut message: Message,
    id: &str,
    time: Timestamp,
    replay: &ShortStr,
    priority: Priority,
) -> Message {
    neutralise(&mut message.properties, priority);
    put_marks(&mut message, Some(id), Some(time), replay);
    message
}

/// Returns a live message that was held back as a replay would publish it: marked, and with what
/// would do harm moved into headers ([`neutralise`]). `id` and `time` are those that the message
/// itself says; without an id the marking has none either, for nobody has given it one yet. What is
/// marked already ([`is_replayed`]) keeps its marking.
pub fn mark_held(
    mut message: Message,
    id: Option<&str>,
    time: Option<Timestamp>,
    replay: &ShortStr,
    priority: Priority,
) -> Message {
    let marked = is_replayed(&message);
    neutralise(&mut message.properties, priority);
    if marked {
        return message;
    }
    put_marks(&mut message, id, time, replay);
    message
}

fn put_marks(message: &mut Message, id: Option<&str>, time: Option<Timestamp>, replay: &ShortStr) {
    let headers = message.properties.headers.get_or_insert_with(FieldTable::new);
    let mut texts = BytesMut::with_capacity(id.map_or(0, str::len) + DIGEST_AND_TIME);
    let mut text = |value: &dyn Display| {
        write!(texts, "{value}").expect("memory takes any text");
        FieldValue::LongString(texts.split().freeze())
    };
    headers.insert(REPLAY, short_value(replay));
    if let Some(id) = id {
        headers.insert(EVENT_ID, text(&id));
    }
    headers.insert(BODY_DIGEST, text(&Digest::of(&message.body)));
    if let Some(time) = time {
        headers.insert(ORIGINAL_TIME, text(&time));
    }
    headers.insert(ORIGINAL_EXCHANGE, short_value(&message.exchange));
    headers.insert(ORIGINAL_ROUTING_KEY, short_value(&message.routing_key));
}

/// Moves into headers what would do harm when a message is published a second time.
///
/// Moved: `user_id` (the broker refuses another's), `expiration` (would drop history on arrival),
/// `reply_to` (would answer dead queues), `CC` and `BCC` (would route copies elsewhere), `x-death`
/// (cycle detection would drop it), `delivery_mode` unless 2 (published persistent), `priority`
/// unless kept.
pub fn neutralise(properties: &mut Properties, priority: Priority) {
    let headers = properties.headers.get_or_insert_with(FieldTable::new);
    headers.reserve(MARKS);

    for (acted_on, kept_in) in &ACTED_ON {
        if let Some(value) = headers.remove(acted_on) {
            headers.insert(kept_in.clone(), value);
        }
    }
    let moved = [
        (ORIGINAL_USER_ID, properties.user_id.take()),
        (ORIGINAL_EXPIRATION, properties.expiration.take()),
        (ORIGINAL_REPLY_TO, properties.reply_to.take()),
    ];
    for (name, value) in moved {
        if let Some(value) = value {
            headers.insert(name, short_value(&value));
        }
    }
    if let Some(mode) = properties.delivery_mode.filter(|mode| *mode != DeliveryMode::Persistent) {
        headers.insert(ORIGINAL_DELIVERY_MODE, FieldValue::ShortShortUInt(mode.octet()));
    }
    properties.delivery_mode = Some(DeliveryMode::Persistent);
    if priority == Priority::Neutralise
        && let Some(priority) = properties.priority.take()
    {
        headers.insert(ORIGINAL_PRIORITY, FieldValue::ShortShortUInt(priority));
    }
}

/// What the marking of a replayed message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// The id of the replay; empty if the marking has none.
    pub id: String,
    /// The id that the archive knows the event by.
    pub event_id: String,
    /// When the event happened.
    pub original_time: Option<Timestamp>,
    /// The exchange that it was first published to.
    pub original_exchange: Option<ShortStr>,
    /// The routing key that it was first published with.
    pub original_routing_key: Option<ShortStr>,
}

/// Returns what the marking says of a message that is a replay by [`is_replayed`].
pub fn replay_of(message: &Message) -> Option<Replay> {
    if !is_replayed(message) {
        return None;
    }
    let value = |name: &ShortStr| message.properties.header(name.as_str()?);
    let text = |name| value(name).map(FieldValue::to_text_lossy);
    let short = |name| match value(name)? {
        FieldValue::LongString(bytes) => ShortStr::new(bytes.clone()).ok(),
        _ => None,
    };
    Some(Replay {
        id: text(&REPLAY).unwrap_or_default(),
        event_id: text(&EVENT_ID)?,
        original_time: text(&ORIGINAL_TIME).and_then(|time| time.parse().ok()),
        original_exchange: short(&ORIGINAL_EXCHANGE),
        original_routing_key: short(&ORIGINAL_ROUTING_KEY),
    })
}

fn short_value(text: &ShortStr) -> FieldValue {
    FieldValue::LongString(text.to_bytes())
}

/// Returns whether this message is a replay of an event that the archive has already:
/// it is marked with an event id, and the digest in its marking is that of its body.
pub fn is_replayed(message: &Message) -> bool {
    let properties = &message.properties;
    properties.header("x-dacapo-event-id").is_some()
        && properties
            .header("x-dacapo-body-digest")
            .and_then(FieldValue::as_text)
            .and_then(|text| text.parse::<Digest>().ok())
            .is_some_and(|claimed| claimed == Digest::of(&message.body))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn short(text: &str) -> ShortStr {
        ShortStr::try_from(text).unwrap()
    }

    fn event(properties: Properties) -> Event {
        Event {
            sequence: 7,
            archived_at: Timestamp::EPOCH,
            time: Timestamp::EPOCH,
            id: "e-7".to_owned(),
            kind: "order.placed".to_owned(),
            key: None,
            message: Message {
                exchange: short("shop"),
                routing_key: short("orders.placed"),
                properties,
                body: Bytes::from_static(b"{}"),
            },
        }
    }

    #[test]
    fn a_marked_message_is_recognised_until_its_body_changes() {
        let event = event(Properties::default());
        let mut replayed = mark(&event, &short("r1"), Priority::Neutralise);
        assert!(is_replayed(&replayed));
        assert!(!is_replayed(&event.message));
        replayed.body = Bytes::from_static(b"{\"forged\":true}");
        assert!(!is_replayed(&replayed), "copied headers on other content are a live event");
    }

    #[test]
    fn the_marking_says_what_it_was_made_of() {
        let event = event(Properties::default());
        let mut replayed = mark(&event, &short("r1"), Priority::Neutralise);
        let expected = Replay {
            id: "r1".to_owned(),
            event_id: "e-7".to_owned(),
            original_time: Some(Timestamp::EPOCH),
            original_exchange: Some(short("shop")),
            original_routing_key: Some(short("orders.placed")),
        };
        assert_eq!(replay_of(&replayed), Some(expected));
        assert_eq!(replay_of(&event.message), None);
        replayed.body = Bytes::from_static(b"{\"forged\":true}");
        assert_eq!(replay_of(&replayed), None);
    }

    #[test]
    fn what_would_do_harm_is_moved_into_headers_and_the_rest_is_as_it_was() {
        let headers: FieldTable = [
            (short("CC"), FieldValue::Array(vec![FieldValue::text("elsewhere")])),
            (short("x-death"), FieldValue::Array(vec![])),
            (short("tenant"), FieldValue::LongInt(4)),
        ]
        .into_iter()
        .collect();
        let original = Properties {
            headers: Some(headers),
            user_id: Some(short("shop")),
            expiration: Some(short("100")),
            reply_to: Some(short("amq.gen-1")),
            delivery_mode: Some(DeliveryMode::Transient),
            priority: Some(9),
            message_id: Some(short("m")),
            ..Properties::default()
        };
        let replayed = mark(&event(original), &short("r1"), Priority::Neutralise).properties;

        assert_eq!(replayed.user_id, None);
        assert_eq!(replayed.expiration, None);
        assert_eq!(replayed.reply_to, None);
        assert_eq!(replayed.priority, None);
        assert_eq!(replayed.delivery_mode, Some(DeliveryMode::Persistent));
        assert_eq!(replayed.message_id, Some(short("m")));
        assert_eq!(replayed.header("CC"), None);
        assert_eq!(replayed.header("x-death"), None);
        assert_eq!(replayed.header("tenant"), Some(&FieldValue::LongInt(4)));
        for kept in
            ["user-id", "expiration", "reply-to", "cc", "x-death", "delivery-mode", "priority"]
        {
            assert!(replayed.header(&format!("x-dacapo-original-{kept}")).is_some(), "{kept}");
        }
    }

    #[test]
    fn priority_is_kept_on_request() {
        let original = Properties { priority: Some(9), ..Properties::default() };
        let replayed = mark(&event(original), &short("r1"), Priority::Keep);
        assert_eq!(replayed.properties.priority, Some(9));
    }
    #[test]
    fn a_held_message_is_marked_like_an_event_and_a_replay_keeps_its_marking() {
        let live = event(Properties { expiration: Some(short("5")), ..Properties::default() });
        let marked = mark(&live, &short("r"), Priority::Neutralise);
        let (id, time) = (Some(live.id.as_str()), Some(live.time));
        let held = |message, id| mark_held(message, id, time, &short("r"), Priority::Neutralise);
        assert_eq!(held(live.message.clone(), id), marked);
        let again = mark_held(marked.clone(), None, None, &short("other"), Priority::Neutralise);
        assert_eq!(again, marked);
        let without = held(live.message.clone(), None);
        assert_eq!(without.properties.header("x-dacapo-event-id"), None);
        assert!(!is_replayed(&without));
    }
}
