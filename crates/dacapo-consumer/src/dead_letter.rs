//! The message that an event becomes when it is given up: as it was, with what is to be known of it
//! in headers, and without what would do harm on the way (`marking::neutralise`).

use std::error::Error;

use dacapo_event::marking::{self, ORIGINAL_EXCHANGE, ORIGINAL_ROUTING_KEY, Priority};
use dacapo_event::{DeliveryMode, FieldTable, FieldValue, Message, Properties, ShortStr};

/// Header: why the event was given up.
pub const DEAD_REASON: ShortStr = ShortStr::from_static("x-dacapo-dead-reason");
/// Header: how often it was tried.
pub const DEAD_ATTEMPTS: ShortStr = ShortStr::from_static("x-dacapo-dead-attempts");
/// Header: the queue that it was delivered from.
pub const DEAD_QUEUE: ShortStr = ShortStr::from_static("x-dacapo-dead-queue");
/// Header: the event's id, if it has one of at most 2 KiB; `dacapo replay --id` brings it back once it
/// can be handled.
pub const DEAD_EVENT_ID: ShortStr = ShortStr::from_static("x-dacapo-dead-event-id");

/// A reason or an id of this size has room beside the event's own headers in a frame of 128 KiB,
/// RabbitMQ's default.
const TEXT_BYTES_MAX: usize = 2_048;

/// Why an event was given up.
#[derive(Debug)]
pub(crate) struct Death {
    pub(crate) id: Option<String>,
    pub(crate) reason: String,
    pub(crate) attempts: u32,
}

impl Death {
    /// Returns the dead letter of `message`, with its exchange and routing key in headers.
    pub(crate) fn letter(&self, message: &Message, queue: &str) -> Message {
        let mut letter = message.clone();
        marking::neutralise(&mut letter.properties, Priority::Neutralise);
        self.mark(letter, queue)
    }

    /// Returns a dead letter of the body alone, where the bus does not take the properties.
    pub(crate) fn bare_letter(&self, message: &Message, queue: &str) -> Message {
        let delivery_mode = Some(DeliveryMode::Persistent);
        let properties = Properties { delivery_mode, ..Properties::default() };
        self.mark(Message { properties, ..message.clone() }, queue)
    }

    fn mark(&self, mut letter: Message, queue: &str) -> Message {
        let place = [
            (ORIGINAL_EXCHANGE, letter.exchange.clone()),
            (ORIGINAL_ROUTING_KEY, letter.routing_key.clone()),
        ];
        let headers = letter.properties.headers.get_or_insert_with(FieldTable::new);
        for (name, text) in place {
            headers.insert(name, FieldValue::text(text.to_str_lossy()));
        }
        headers.insert(DEAD_REASON, FieldValue::text(cut(&self.reason)));
        headers.insert(DEAD_ATTEMPTS, FieldValue::LongUInt(self.attempts));
        headers.insert(DEAD_QUEUE, FieldValue::text(queue));
        // What is cut of an id is another's, or nobody's.
        if let Some(id) = self.id.as_ref().filter(|id| id.len() <= TEXT_BYTES_MAX) {
            headers.insert(DEAD_EVENT_ID, FieldValue::text(id.as_str()));
        }
        letter
    }
}

/// Returns a cause with those behind it, in one line.
pub(crate) fn told(cause: &(dyn Error + 'static)) -> String {
    let mut told = cause.to_string();
    let mut behind = cause.source();
    while let Some(cause) = behind {
        told.push_str(": ");
        told.push_str(&cause.to_string());
        behind = cause.source();
    }
    told
}

/// Returns as much of a text as a header may have.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::tests::message;

    fn death(reason: String) -> Death {
        Death { id: Some("e-1".to_owned()), reason, attempts: 5 }
    }

    #[test]
    fn a_dead_letter_is_the_event_with_the_reason_and_its_place_in_headers() {
        let mut dead = message(Some("e-1"));
        dead.properties.expiration = Some(ShortStr::from_static("100"));
        let letter = death("no such order".to_owned()).letter(&dead, "orders");
        assert_eq!(letter.body, dead.body);
        assert_eq!(letter.properties.message_id, dead.properties.message_id);
        assert_eq!(letter.properties.expiration, None, "a dead letter waits for a person");
        let header = |name: &str| letter.properties.header(name).map(FieldValue::to_text_lossy);
        for (name, text) in [
            ("x-dacapo-dead-reason", "no such order"),
            ("x-dacapo-dead-attempts", "5"),
            ("x-dacapo-dead-queue", "orders"),
            ("x-dacapo-dead-event-id", "e-1"),
            ("x-dacapo-original-exchange", "shop"),
            ("x-dacapo-original-routing-key", "order.placed"),
            ("x-dacapo-original-expiration", "100"),
        ] {
            assert_eq!(header(name).as_deref(), Some(text), "{name}");
        }
        assert!(!marking::is_replayed(&letter));
    }

    #[test]
    fn a_reason_of_any_length_fits() {
        let letter = death("ü".repeat(10_000)).bare_letter(&message(Some("e-1")), "orders");
        let reason = letter.properties.header("x-dacapo-dead-reason").and_then(FieldValue::as_text);
        assert_eq!(reason.map(str::len), Some(TEXT_BYTES_MAX));
    }

    #[test]
    fn an_id_is_told_whole_or_not_at_all() {
        for (bytes, told) in [(TEXT_BYTES_MAX, Some(TEXT_BYTES_MAX)), (TEXT_BYTES_MAX + 1, None)] {
            let death = Death { id: Some("e".repeat(bytes)), ..death(String::new()) };
            let letter = death.letter(&message(Some("e-1")), "orders");
            let id =
                letter.properties.header("x-dacapo-dead-event-id").and_then(FieldValue::as_text);
            assert_eq!(id.map(str::len), told);
        }
    }
}
