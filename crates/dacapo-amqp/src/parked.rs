//! A delivered message as it was published: what the broker added is taken off, and what
//! dead-lettering changed is put back. Pure.
//!
//! RabbitMQ dead-letters a message into the parking queue with a new exchange and routing key,
//! without its `expiration` and without `CC`, and says what they were in the newest entry of
//! `x-death`.

use bytes::Bytes;
use dacapo_bus::Parked;
use dacapo_event::{FieldTable, FieldValue, Message, ShortStr};

/// Headers that a quorum queue adds on delivery. A publisher's own of that name is overwritten by
/// the broker before it reaches us.
const ADDED_ON_DELIVERY: [&str; 2] = ["x-delivery-count", "x-acquired-count"];

/// The header of dead-lettering, newest entry first.
const DEATHS: &str = "x-death";
/// Headers that repeat the oldest and the newest entry.
const FIRST_DEATH: [&str; 3] =
    ["x-first-death-queue", "x-first-death-reason", "x-first-death-exchange"];
const LAST_DEATH: [(&str, &str); 3] = [
    ("x-last-death-queue", "queue"),
    ("x-last-death-reason", "reason"),
    ("x-last-death-exchange", "exchange"),
];

/// Takes off what the broker adds on delivery. A table with nothing else in it was not there:
/// publishers leave headers out far more often than they send an empty table.
pub(crate) fn remove_broker_headers(message: &mut Message) {
    if let Some(headers) = &mut message.properties.headers {
        let before = headers.len();
        for name in ADDED_ON_DELIVERY {
            headers.remove(name);
        }
        if headers.is_empty() && before > 0 {
            message.properties.headers = None;
        }
    }
}

/// Gives a parked message its exchange, routing key, expiration and CC back, takes off the
/// headers of its dead-lettering from `queue`, and returns the broker's reason.
///
/// Entries of earlier dead-lettering, which the message was published with, stay.
pub(crate) fn restore(message: &mut Message, queue: &ShortStr) -> String {
    let Some(headers) = &mut message.properties.headers else {
        return Parked::PUBLISHED.to_owned();
    };
    let Some(FieldValue::Array(mut deaths)) = headers.remove(DEATHS) else {
        return Parked::PUBLISHED.to_owned();
    };
    let ours = deaths.iter().position(|death| text_of(death, "queue") == Some(queue.as_bytes()));
    let Some(FieldValue::Table(death)) = ours.map(|at| deaths.remove(at)) else {
        headers.insert(ShortStr::from_static(DEATHS), FieldValue::Array(deaths));
        return Parked::PUBLISHED.to_owned();
    };

    let first_is_ours = headers.get(FIRST_DEATH[0]).and_then(bytes_of) == Some(queue.as_bytes());
    if first_is_ours {
        for name in FIRST_DEATH {
            headers.remove(name);
        }
    }
    restore_last_death(headers, deaths.first());
    if !deaths.is_empty() {
        headers.insert(ShortStr::from_static(DEATHS), FieldValue::Array(deaths));
    }

    if let Some(exchange) = short_of(death.get("exchange")) {
        message.exchange = exchange;
    }
    if let Some(FieldValue::Array(keys)) = death.get("routing-keys") {
        if let Some(key) = short_of(keys.first()) {
            message.routing_key = key;
        }
        // The broker lists the message's own key first and its CC after it.
        if keys.len() > 1 {
            let cc = FieldValue::Array(keys[1..].to_vec());
            headers.insert(ShortStr::from_static("CC"), cc);
        }
    }
    if headers.is_empty() {
        message.properties.headers = None;
    }
    if let Some(expiration) = short_of(death.get("original-expiration")) {
        message.properties.expiration = Some(expiration);
    }
    death.get("reason").map(FieldValue::to_text_lossy).unwrap_or_default()
}

/// Sets the headers of the newest death back to what `earlier`, now the newest, says; without
/// an earlier one they go.
fn restore_last_death(headers: &mut FieldTable, earlier: Option<&FieldValue>) {
    for (name, field) in LAST_DEATH {
        if headers.remove(name).is_some()
            && let Some(FieldValue::Table(earlier)) = earlier
            && let Some(value) = earlier.get(field)
        {
            headers.insert(ShortStr::from_static(name), value.clone());
        }
    }
}

fn text_of<'a>(death: &'a FieldValue, field: &str) -> Option<&'a [u8]> {
    match death {
        FieldValue::Table(death) => death.get(field).and_then(bytes_of),
        _ => None,
    }
}

fn bytes_of(value: &FieldValue) -> Option<&[u8]> {
    match value {
        FieldValue::LongString(bytes) => Some(bytes),
        _ => None,
    }
}

fn short_of(value: Option<&FieldValue>) -> Option<ShortStr> {
    ShortStr::new(Bytes::copy_from_slice(bytes_of(value?)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dacapo_event::Properties;

    fn short(text: &str) -> ShortStr {
        ShortStr::try_from(text).unwrap()
    }

    fn table(fields: &[(&str, FieldValue)]) -> FieldTable {
        fields.iter().map(|(name, value)| (short(name), value.clone())).collect()
    }

    fn texts(texts: &[&str]) -> FieldValue {
        FieldValue::Array(texts.iter().map(|text| FieldValue::text(*text)).collect())
    }

    fn death(queue: &str, keys: &[&str], expiration: Option<&str>) -> FieldValue {
        let mut death = table(&[
            ("count", FieldValue::LongLongInt(1)),
            ("reason", FieldValue::text("expired")),
            ("queue", FieldValue::text(queue)),
            ("exchange", FieldValue::text("shop")),
            ("routing-keys", texts(keys)),
        ]);
        if let Some(expiration) = expiration {
            death.insert(short("original-expiration"), FieldValue::text(expiration));
        }
        FieldValue::Table(death)
    }

    fn parked(headers: FieldTable) -> Message {
        Message {
            routing_key: short("q.parked"),
            properties: Properties { headers: Some(headers), ..Properties::default() },
            ..Message::default()
        }
    }

    #[track_caller]
    fn check(headers: FieldTable, reason: &str, expected: &Message) {
        let mut message = parked(headers);
        remove_broker_headers(&mut message);
        assert_eq!(restore(&mut message, &short("q")), reason);
        assert_eq!(&message, expected);
    }

    #[test]
    fn an_expired_message_is_as_it_was_published() {
        let headers = table(&[
            ("x-death", FieldValue::Array(vec![death("q", &["a.b"], Some("50"))])),
            ("x-first-death-queue", FieldValue::text("q")),
            ("x-first-death-reason", FieldValue::text("expired")),
            ("x-first-death-exchange", FieldValue::text("shop")),
            ("x-last-death-queue", FieldValue::text("q")),
            ("x-delivery-count", FieldValue::LongLongInt(0)),
        ]);
        let published = Message {
            exchange: short("shop"),
            routing_key: short("a.b"),
            properties: Properties { expiration: Some(short("50")), ..Properties::default() },
            ..Message::default()
        };
        check(headers, "expired", &published);
    }

    #[test]
    fn earlier_deaths_cc_and_other_headers_stay() {
        let older = death("older", &["x"], None);
        let headers = table(&[
            ("h", FieldValue::LongInt(1)),
            ("x-death", FieldValue::Array(vec![death("q", &["a.b", "c.d"], None), older.clone()])),
            ("x-first-death-queue", FieldValue::text("older")),
            ("x-last-death-queue", FieldValue::text("q")),
        ]);
        let published = Message {
            exchange: short("shop"),
            routing_key: short("a.b"),
            properties: Properties {
                headers: Some(table(&[
                    ("h", FieldValue::LongInt(1)),
                    ("x-death", FieldValue::Array(vec![older])),
                    ("x-first-death-queue", FieldValue::text("older")),
                    ("x-last-death-queue", FieldValue::text("older")),
                    ("CC", texts(&["c.d"])),
                ])),
                ..Properties::default()
            },
            ..Message::default()
        };
        check(headers, "expired", &published);
    }

    #[test]
    fn what_someone_published_to_the_parking_queue_is_left_alone() {
        let headers = table(&[("x-death", FieldValue::Array(vec![death("other", &["k"], None)]))]);
        check(headers.clone(), "published", &parked(headers));
        check(table(&[]), "published", &parked(table(&[])));
    }

    #[test]
    fn a_delivery_count_leaves_no_trace() {
        let mut message = parked(table(&[("x-delivery-count", FieldValue::LongLongInt(3))]));
        remove_broker_headers(&mut message);
        assert_eq!(message.properties.headers, None);
    }
}
