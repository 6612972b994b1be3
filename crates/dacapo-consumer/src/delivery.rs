//! An event as a service sees it: read from a message by the platform's rules, the same whether it
//! comes live or from a replay.
//!
//! The rules look into the message first, which a replay leaves as it was, so an event has the same
//! id live and replayed whatever rules the archive was made by. Only what the message itself does
//! not say comes from the replay's marking.

use dacapo_event::attributes::{AttributeRules, Attributes, Place, text_at};
use dacapo_event::marking::{self, Replay};
use dacapo_event::{Message, Timestamp};

use crate::order::Position;

/// One event that was delivered.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Its id, the same on every delivery, live or replayed.
    pub id: String,
    /// When it happened; when it came, if nothing says so.
    pub time: Timestamp,
    /// What happened; empty if nothing says so.
    pub kind: String,
    /// Which entity it happened to.
    pub key: Option<String>,
    /// Where it stands among the events of its key, if anything says so.
    pub position: Option<Position>,
    /// How often this run of the consumer has tried it, from 1.
    pub attempt: u32,
    /// Whether the bus may have delivered it before.
    pub redelivered: bool,
    /// The message as it was first published: a replayed one has its exchange and routing key back.
    pub message: Message,
    pub(crate) replay: Option<Replay>,
}

impl Delivery {
    /// Returns the replay that it comes from; nothing if it is live. What must not happen a second
    /// time (a mail, a payment) is done for live events only.
    pub fn replay(&self) -> Option<&Replay> {
        self.replay.as_ref()
    }

    /// Returns key and position, if it has both: what an order is kept by.
    pub fn place(&self) -> Option<(&str, Position)> {
        Some((self.key.as_deref()?, self.position?))
    }
}

/// A message that is no event of this platform.
#[derive(Debug, PartialEq)]
pub(crate) struct Unfit {
    pub(crate) reason: &'static str,
    pub(crate) message: Message,
}

/// Reads a delivery by the rules; `position` are the places of a sequence number, and without one
/// the event's time is its position.
pub(crate) fn read(
    delivery: dacapo_bus::Delivery,
    rules: &AttributeRules,
    position: &[Place],
    now: Timestamp,
) -> Result<Delivery, Box<Unfit>> {
    let dacapo_bus::Delivery { redelivered, parked, mut message, tag: _ } = delivery;
    if parked.is_some() {
        let reason = "its properties cannot be read as text or as a table";
        return Err(Box::new(Unfit { reason, message }));
    }
    let replay = marking::replay_of(&message);
    if let Some(Replay { original_exchange, original_routing_key, .. }) = replay.clone() {
        message.exchange = original_exchange.unwrap_or(message.exchange);
        message.routing_key = original_routing_key.unwrap_or(message.routing_key);
    }
    let Attributes { id, time, kind, key } = rules.read(&message);
    let marked = replay.as_ref();
    let Some(id) = id.or_else(|| marked.map(|marked| marked.event_id.clone())) else {
        let reason = "it has no id, so it cannot be told from a repeat of itself";
        return Err(Box::new(Unfit { reason, message }));
    };
    let time = time.or_else(|| marked.and_then(|marked| marked.original_time));
    let position = if position.is_empty() {
        time.map(|time| Position(time.as_micros()))
    } else {
        text_at(position, &message).and_then(|text| text.parse().ok()).map(Position)
    };
    let time = time.unwrap_or(now);
    Ok(Delivery { id, time, kind, key, position, attempt: 1, redelivered, message, replay })
}

#[cfg(test)]
pub(crate) mod tests {
    use dacapo_event::marking::{Priority, mark};
    use dacapo_event::{Event, Properties, ShortStr, StreamName};

    use super::*;

    const NOW: Timestamp = Timestamp::EPOCH;

    fn short(text: &str) -> ShortStr {
        ShortStr::try_from(text).unwrap()
    }

    /// A message of a platform that says little.
    pub(crate) fn message(id: Option<&str>) -> Message {
        let properties = Properties {
            message_id: id.map(short),
            timestamp: id.map(|_| 1_700_000_000),
            ..Properties::default()
        };
        Message {
            exchange: short("shop"),
            routing_key: short("order.placed"),
            properties,
            body: r#"{"version":7}"#.into(),
        }
    }

    fn delivered(message: Message) -> dacapo_bus::Delivery {
        dacapo_bus::Delivery { tag: 1, redelivered: false, parked: None, message }
    }

    fn read_with(message: Message, position: &[&str]) -> Result<Delivery, Box<Unfit>> {
        let places: Vec<Place> = position.iter().map(|place| place.parse().unwrap()).collect();
        read(delivered(message), &AttributeRules::default(), &places, NOW)
    }

    /// What a replay to a queue by way of the default exchange publishes.
    fn replayed(message: Message) -> Message {
        let stream: StreamName = "shop".parse().unwrap();
        let archived_at = Timestamp::from_secs(1_700_000_100);
        let event: Event = AttributeRules::default().event(message, &stream, 42, archived_at);
        let mut message = mark(&event, &short("r-1"), Priority::Neutralise);
        (message.exchange, message.routing_key) = (short(""), short("orders"));
        message
    }

    #[test]
    fn an_event_is_the_same_live_and_replayed() {
        let live = read_with(message(Some("e-1")), &[]).unwrap();
        assert_eq!(live.replay(), None);
        assert_eq!((live.id.as_str(), live.kind.as_str()), ("e-1", "order.placed"));
        assert_eq!(live.position, Some(Position(1_700_000_000_000_000)));

        let again = read_with(replayed(message(Some("e-1"))), &[]).unwrap();
        assert_eq!(again.replay().map(|replay| replay.id.as_str()), Some("r-1"));
        assert_eq!((&again.id, &again.kind, again.time), (&live.id, &live.kind, live.time));
        assert_eq!(again.position, live.position);
        assert_eq!(again.message.exchange, short("shop"));
        assert_eq!(again.message.routing_key, short("order.placed"));
    }

    #[test]
    fn copied_marking_on_other_content_is_a_live_event() {
        let mut forged = replayed(message(Some("e-1")));
        forged.body = "{}".into();
        assert_eq!(read_with(forged, &[]).unwrap().replay(), None);
    }

    #[test]
    fn an_event_without_an_id_is_unfit_live_and_has_the_archives_id_replayed() {
        assert!(read_with(message(None), &[]).unwrap_err().reason.starts_with("it has no id"));
        let again = read_with(replayed(message(None)), &[]).unwrap();
        assert_eq!(
            (again.id.as_str(), again.time),
            ("shop:42", Timestamp::from_secs(1_700_000_100))
        );
    }

    #[test]
    fn what_cannot_be_read_is_unfit() {
        let parked = Some(dacapo_bus::Parked { reason: "unreadable".to_owned() });
        let delivery = dacapo_bus::Delivery { parked, ..delivered(message(Some("e-1"))) };
        assert!(read(delivery, &AttributeRules::default(), &[], NOW).is_err());
    }

    #[test]
    fn a_sequence_number_of_the_platforms_is_the_position_where_there_is_one() {
        let of = |place| read_with(message(Some("e-1")), &[place]).unwrap().position;
        assert_eq!(of("json:/version"), Some(Position(7)));
        assert_eq!(of("json:/nothing"), None);
    }
}
