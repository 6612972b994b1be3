//! An archived event: a message, its attributes, and its place in a stream.

use crate::{Digest, Hasher, Message, StreamName, Timestamp, wire};

/// The place of an event in its stream, from 1; contiguous within a stream.
pub type Sequence = u64;

/// One message as it was on the bus, with its place in the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its place in the stream, from 1.
    pub sequence: Sequence,
    /// When the archiver took it off the bus (an import: when it was read).
    pub archived_at: Timestamp,
    /// When it happened.
    pub time: Timestamp,
    /// Its id; `stream:sequence` if the platform gave it none.
    pub id: String,
    /// What happened; empty if nothing says so.
    pub kind: String,
    /// Which entity it happened to.
    pub key: Option<String>,
    /// The message.
    pub message: Message,
}

impl Event {
    /// Returns the id of an event that the platform gave none: `stream:sequence`.
    pub fn made_up_id(stream: &StreamName, sequence: Sequence) -> String {
        format!("{stream}:{sequence}")
    }

    /// Returns whether the platform gave it its id, and not its place in the stream.
    pub fn has_own_id(&self, stream: &StreamName) -> bool {
        self.id != Event::made_up_id(stream, self.sequence)
    }

    /// Returns the digest of its id and all its content: two events with the same are exact repeats
    /// of each other. Only its place and the moment of archiving are no content; its time is, so
    /// that whatever selects one selects the other.
    ///
    /// Of an event without an id of its own it says nothing ([`Event::has_own_id`]).
    pub fn identity(&self) -> Digest {
        let mut hasher = Hasher::default();
        // No text stands for a key that is absent.
        hasher.update(&[u8::from(self.key.is_some())]);
        for part in [
            self.id.as_bytes(),
            self.kind.as_bytes(),
            self.key.as_deref().unwrap_or_default().as_bytes(),
            &self.time.as_micros().to_le_bytes(),
            self.message.exchange.as_bytes(),
            self.message.routing_key.as_bytes(),
            &wire::encode_properties(&self.message),
            &self.message.body,
        ] {
            hasher.update_framed(part);
        }
        hasher.finish()
    }

    /// Returns roughly how many bytes the event takes in memory.
    pub fn weight(&self) -> usize {
        self.message.weight()
            + self.id.len()
            + self.kind.len()
            + self.key.as_ref().map_or(0, String::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Properties, ShortStr};

    fn event() -> Event {
        Event {
            sequence: 1,
            archived_at: Timestamp::from_secs(20),
            time: Timestamp::from_secs(10),
            id: "e-1".to_owned(),
            kind: "order.placed".to_owned(),
            key: Some("k".to_owned()),
            message: Message { body: "body".into(), ..Message::default() },
        }
    }

    /// Checks whether an event that differs from another in this is an exact repeat of it.
    #[track_caller]
    fn check(repeat: bool, change: impl FnOnce(&mut Event)) {
        let mut other = event();
        change(&mut other);
        assert_eq!(event().identity() == other.identity(), repeat, "{other:?}");
    }

    #[test]
    fn a_repeat_differs_in_nothing_but_its_place_and_when_it_was_archived() {
        let short = |text: &str| ShortStr::try_from(text).unwrap();
        check(true, |_| {});
        check(true, |event| event.sequence = 9);
        check(true, |event| event.archived_at = Timestamp::from_secs(21));
        check(false, |event| event.id = "e-2".to_owned());
        check(false, |event| event.time = Timestamp::from_secs(11));
        check(false, |event| event.kind.clear());
        check(false, |event| event.key = None);
        check(false, |event| event.key = Some(String::new()));
        let without = Event { key: None, ..event() };
        for key in ["", "\0"] {
            let with = Event { key: Some(key.to_owned()), ..event() };
            assert_ne!(with.identity(), without.identity(), "{key:?}");
        }
        check(false, |event| event.message.exchange = short("shop"));
        check(false, |event| event.message.routing_key = short("shop"));
        check(false, |event| event.message.body = "bodY".into());
        check(false, |event| {
            event.message.properties =
                Properties { priority: Some(1), ..event.message.properties.clone() };
        });
        // What leaves one text and begins the next is not the same.
        check(false, |event| {
            event.id = "e-1o".to_owned();
            event.kind = "rder.placed".to_owned();
        });
    }

    #[test]
    fn an_id_made_of_the_place_is_not_its_own() {
        let stream: StreamName = "s".parse().unwrap();
        assert!(event().has_own_id(&stream));
        assert!(!Event { id: "s:1".to_owned(), ..event() }.has_own_id(&stream));
        assert!(Event { id: "s:2".to_owned(), ..event() }.has_own_id(&stream));
    }
}
