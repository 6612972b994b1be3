//! Whether an event is to be handled: a repeat, an older one, or new. Plain functions of what is
//! known; whoever knows it, a transaction of the service or a store, only asks.

use crate::delivery::Delivery;

/// Where an event stands among those of its key: its time in microseconds, or the platform's own
/// sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub i64);

/// What becomes of an event that comes after a newer one of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It is handled like any other: the effects of a key's events may be applied in any order.
    Accept,
    /// It is passed over: each event holds all that there is to know of its key.
    DropOlder,
    /// It is handled, and the service is told that it is late.
    HandOver,
}

/// What is known of an event before it is handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Whether its id is marked as handled.
    pub handled: bool,
    /// The newest position that was handled of its key.
    pub newest: Option<Position>,
}

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it was handled.
    Repeat,
    /// Nothing: a newer one was handled.
    Older,
    /// Handle it.
    Handle(Turn),
}

/// Whether an event comes after those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing newer of its key was handled, as far as is known.
    InOrder,
    /// Something newer was.
    Late,
}

impl Order {
    /// Returns what to do with a delivery. Events of the same position are in order.
    pub fn judge(self, delivery: &Delivery, known: Known) -> Verdict {
        if known.handled {
            return Verdict::Repeat;
        }
        let place = delivery.place().map(|(_, position)| position);
        let late = place.zip(known.newest).is_some_and(|(position, newest)| position < newest);
        match (self, late) {
            (Order::Accept, _) | (_, false) => Verdict::Handle(Turn::InOrder),
            (Order::DropOlder, true) => Verdict::Older,
            (Order::HandOver, true) => Verdict::Handle(Turn::Late),
        }
    }

    /// Returns the key and position that are to be remembered for this order.
    pub(crate) fn remembered(self, delivery: &Delivery) -> Option<(&str, Position)> {
        match self {
            Order::Accept => None,
            Order::DropOlder | Order::HandOver => delivery.place(),
        }
    }
}

#[cfg(test)]
mod tests {
    use dacapo_event::{Message, Timestamp};

    use super::*;

    fn at(position: Option<i64>) -> Delivery {
        Delivery {
            id: "e-1".to_owned(),
            time: Timestamp::EPOCH,
            kind: String::new(),
            key: Some("k".to_owned()),
            position: position.map(Position),
            attempt: 1,
            redelivered: false,
            message: Message::default(),
            replay: None,
        }
    }

    #[track_caller]
    fn check(position: impl Into<Option<i64>>, newest: Option<i64>, expected: [Verdict; 3]) {
        let known = Known { handled: false, newest: newest.map(Position) };
        let delivery = at(position.into());
        let orders = [Order::Accept, Order::DropOlder, Order::HandOver];
        assert_eq!(orders.map(|order| order.judge(&delivery, known)), expected);
        let handled = Known { handled: true, ..known };
        assert_eq!(orders.map(|order| order.judge(&delivery, handled)), [Verdict::Repeat; 3]);
    }

    #[test]
    fn only_an_older_event_of_a_key_whose_newest_is_known_is_late() {
        const IN_ORDER: Verdict = Verdict::Handle(Turn::InOrder);
        check(5, None, [IN_ORDER; 3]);
        check(5, Some(4), [IN_ORDER; 3]);
        check(5, Some(5), [IN_ORDER; 3]);
        check(None, Some(5), [IN_ORDER; 3]);
        check(4, Some(5), [IN_ORDER, Verdict::Older, Verdict::Handle(Turn::Late)]);
    }

    #[test]
    fn an_event_without_a_key_is_never_late() {
        let delivery = Delivery { key: None, ..at(Some(1)) };
        let known = Known { handled: false, newest: Some(Position(2)) };
        assert_eq!(Order::DropOlder.judge(&delivery, known), Verdict::Handle(Turn::InOrder));
    }
}
