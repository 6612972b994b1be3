//! A message that asks an archiver how far it has come, and is no event
//! (docs/decisions/0006-barriers.md).
//!
//! It is published to the archiver's queue. The queue hands out in order, so what was routed there
//! before it is durable by the time it is answered.

use std::fmt;
use std::str::FromStr;

use crate::{DeliveryMode, FieldTable, FieldValue, Message, ParseError, Properties, ShortStr};

/// Header: the id of the barrier that this message is.
pub const BARRIER: ShortStr = ShortStr::from_static("x-dacapo-barrier");

/// What tells one barrier from another: 1 to 128 ASCII letters, digits, `.`, `_` or `-`, the first
/// of them a letter or a digit, so that it is part of an object key as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BarrierId(String);

impl BarrierId {
    /// The most characters an id has.
    pub const LENGTH_MAX: usize = 128;

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BarrierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BarrierId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let begins = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        match begins && text.len() <= Self::LENGTH_MAX && text.bytes().all(known) {
            true => Ok(BarrierId(text.to_owned())),
            false => Err(ParseError::new(
                text,
                "a barrier's id of 1 to 128 ASCII letters, digits, `.`, `_` or `-`",
            )),
        }
    }
}

/// Returns the barrier to publish to `queue`, through the default exchange; persistent, so that a
/// broker that restarts still has it.
pub fn message(id: &BarrierId, queue: ShortStr) -> Message {
    let mut headers = FieldTable::new();
    headers.insert(BARRIER, FieldValue::text(id.as_str()));
    Message {
        routing_key: queue,
        properties: Properties {
            headers: Some(headers),
            delivery_mode: Some(DeliveryMode::Persistent),
            ..Properties::default()
        },
        ..Message::default()
    }
}

/// Returns the barrier that a message is, if it is one.
///
/// An event cannot be taken for one by accident: a barrier came through the default exchange, which
/// no binding reaches, has no body, and its header is a barrier's id.
pub fn of(message: &Message) -> Option<BarrierId> {
    if !message.exchange.as_bytes().is_empty() || !message.body.is_empty() {
        return None;
    }
    let headers = message.properties.headers.as_ref()?;
    headers.get(BARRIER.as_str()?)?.as_text()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn id(text: &str) -> BarrierId {
        text.parse().unwrap()
    }

    #[test]
    fn a_barrier_is_known_by_what_it_is_made_of() {
        let message = message(&id("b-1"), ShortStr::from_static("archiver"));
        assert_eq!(message.routing_key.as_str(), Some("archiver"));
        assert_eq!(of(&message), Some(id("b-1")));
    }

    #[track_caller]
    fn check_is_an_event(change: impl FnOnce(&mut Message)) {
        let mut message = message(&id("b"), ShortStr::from_static("q"));
        change(&mut message);
        assert_eq!(of(&message), None);
    }

    #[test]
    fn what_is_not_quite_a_barrier_is_an_event() {
        check_is_an_event(|message| message.exchange = ShortStr::from_static("orders"));
        check_is_an_event(|message| message.body = Bytes::from_static(b"{}"));
        check_is_an_event(|message| message.properties.headers = None);
        for value in [FieldValue::text("../b"), FieldValue::text(""), FieldValue::LongInt(1)] {
            check_is_an_event(|message| {
                message.properties.headers.as_mut().unwrap().insert(BARRIER, value);
            });
        }
    }

    #[track_caller]
    fn check_refused(text: &str) {
        let refused = text.parse::<BarrierId>().unwrap_err().to_string();
        assert!(refused.contains("a barrier's id"), "{refused}");
    }

    #[test]
    fn an_id_is_part_of_an_object_key_as_it_is() {
        for refused in ["", ".", "..", ".b", "-", "a/b", "a b", "ä", &"a".repeat(129)] {
            check_refused(refused);
        }
        for taken in ["a", "0", "A.b_c-9", &"a".repeat(128)] {
            assert_eq!(id(taken).to_string(), taken);
        }
    }
}
