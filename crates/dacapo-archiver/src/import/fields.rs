//! Where a line has the parts of an event.

use std::fmt;
use std::str::FromStr;

use dacapo_event::{Hasher, ParseError};

/// The place of one part in a line: the name of a member, or a JSON pointer (RFC 6901).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    text: String,
    path: Vec<String>,
}

/// The places of all parts, by default members of their own names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldMap {
    /// The event's id.
    pub id: Field,
    /// When it happened.
    pub time: Field,
    /// What happened.
    pub kind: Field,
    /// Which entity it happened to.
    pub key: Field,
    /// The exchange it was published to.
    pub exchange: Field,
    /// The routing key it was published with.
    pub routing_key: Field,
    /// The headers, an object.
    pub headers: Field,
    /// The other AMQP properties, an object.
    pub properties: Field,
    /// The body, as text or JSON.
    pub body: Field,
    /// The body, as base64.
    pub body_base64: Field,
}

impl Default for FieldMap {
    fn default() -> Self {
        let named = |name: &str| Field { text: name.to_owned(), path: vec![name.to_owned()] };
        FieldMap {
            id: named("id"),
            time: named("time"),
            kind: named("type"),
            key: named("key"),
            exchange: named("exchange"),
            routing_key: named("routing_key"),
            headers: named("headers"),
            properties: named("properties"),
            body: named("body"),
            body_base64: named("body_base64"),
        }
    }
}

impl FieldMap {
    /// Returns what the mark of an input begins with: another mapping makes other events.
    pub(super) fn hasher(&self) -> Hasher {
        /// Changes when the meaning of a mapping does.
        const FORM: &[u8] = b"dacapo import 1";
        let mut hasher = Hasher::default();
        hasher.update_framed(FORM);
        let FieldMap {
            id,
            time,
            kind,
            key,
            exchange,
            routing_key,
            headers,
            properties,
            body,
            body_base64,
        } = self;
        for field in
            [id, time, kind, key, exchange, routing_key, headers, properties, body, body_base64]
        {
            hasher.update_framed(field.text.as_bytes());
        }
        hasher
    }
}

impl Field {
    /// Returns the names to descend by; there is at least one.
    pub(super) fn path(&self) -> &[String] {
        &self.path
    }
}

impl FromStr for Field {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let path = match text.strip_prefix('/') {
            Some(pointer) => {
                pointer.split('/').map(|part| part.replace("~1", "/").replace("~0", "~")).collect()
            }
            None if text.is_empty() => {
                let expected = "a field (the name of a member, or a JSON pointer like `/meta/id`)";
                return Err(ParseError::new(text, expected));
            }
            None => vec![text.to_owned()],
        };
        Ok(Field { text: text.to_owned(), path })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(text.parse::<Field>().unwrap().path(), expected);
    }

    #[test]
    fn names_and_pointers_are_told_apart() {
        check("id", &["id"]);
        check("meta.id", &["meta.id"]);
        check("a/b", &["a/b"]);
        check("/meta/id", &["meta", "id"]);
        check("/a~1b/m~0n", &["a/b", "m~n"]);
        assert!("".parse::<Field>().is_err());
    }

    #[test]
    fn another_mapping_has_another_mark() {
        let changed = FieldMap { key: "customer".parse().unwrap(), ..FieldMap::default() };
        assert_ne!(changed.hasher().finish(), FieldMap::default().hasher().finish());
    }
}
