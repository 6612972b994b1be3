//! Each message has one outcome, in order, whatever is answered for in which order.

use bytes::Bytes;
use dacapo_event::{Message, Properties, ShortStr};

use super::*;
use crate::wire::Unroutable;

struct Sending(Answers);

/// Sends a message for each body, all with the same routing key.
fn sending(bodies: &[&'static str]) -> Sending {
    let mut answers = Answers::new();
    let of = |body: &&'static str| {
        let body = Bytes::from_static(body.as_bytes());
        Message { routing_key: ShortStr::from_static("k"), body, ..Message::default() }
    };
    let messages: Vec<Message> = bodies.iter().map(of).collect();
    let publishes = Publish::all(&messages, Unroutable::Returned, |message| {
        (&message.exchange, &message.routing_key)
    });
    publishes.into_iter().for_each(|publish| answers.sent(publish));
    Sending(answers)
}

impl Sending {
    #[track_caller]
    fn ack(&mut self, tag: Tag, reach: Reach) {
        self.0.answered(tag, reach, Verdict::Ack).unwrap();
    }

    #[track_caller]
    fn nack(&mut self, tag: Tag, reach: Reach) {
        self.0.answered(tag, reach, Verdict::Nack).unwrap();
    }

    fn come_back(&mut self, body: &'static str) -> Result<(), Unfit> {
        self.0.returned(&Returned {
            exchange: ShortStr::default(),
            routing_key: ShortStr::from_static("k"),
            properties: Properties::default(),
            body: Bytes::from_static(body.as_bytes()),
            reason: format!("312 {body}"),
        })
    }

    /// Returns what is known, a sign for each message.
    fn known(&mut self) -> String {
        let outcomes = std::iter::from_fn(|| self.0.settle());
        let signs = outcomes.map(|outcome| match outcome {
            Outcome::Confirmed => "+".to_owned(),
            Outcome::Nacked => "-".to_owned(),
            Outcome::Returned { reason } => format!("({reason})"),
        });
        signs.collect()
    }
}

#[test]
fn outcomes_come_in_order_of_sending_and_all_that_are_known() {
    let mut sending = sending(&["a", "b", "c"]);
    assert_eq!(sending.known(), "");
    sending.ack(2, Reach::One);
    assert_eq!(sending.known(), "");
    sending.nack(1, Reach::One);
    assert_eq!(sending.known(), "-+");
    sending.ack(3, Reach::One);
    assert_eq!(sending.known(), "+");
    assert_eq!(sending.known(), "");
}

#[test]
fn an_answer_to_all_up_to_one_leaves_those_that_were_answered() {
    let mut sending = sending(&["a", "b", "c", "d", "e"]);
    sending.nack(2, Reach::One);
    sending.ack(3, Reach::UpTo);
    sending.nack(5, Reach::UpTo);
    assert_eq!(sending.known(), "+-+--");
}

#[test]
fn what_comes_back_is_its_own_messages_whatever_else_is_confirmed() {
    let mut sending = sending(&["a", "unroutable", "c", "lost"]);
    sending.ack(1, Reach::One);
    assert_eq!(sending.known(), "+");
    sending.come_back("unroutable").unwrap();
    sending.come_back("lost").unwrap();
    sending.ack(4, Reach::UpTo);
    assert_eq!(sending.known(), "(312 unroutable)+(312 lost)");
}

#[test]
fn of_equal_messages_each_comes_back_once() {
    let mut sending = sending(&["same", "same", "same"]);
    sending.come_back("same").unwrap();
    sending.come_back("same").unwrap();
    sending.ack(3, Reach::UpTo);
    assert_eq!(sending.known(), "(312 same)(312 same)+");
}

#[test]
fn a_message_that_came_back_and_is_nacked_came_back() {
    let mut sending = sending(&["a"]);
    sending.come_back("a").unwrap();
    sending.nack(1, Reach::One);
    assert_eq!(sending.known(), "(312 a)");
}

#[test]
fn what_was_not_sent_or_is_confirmed_already_cannot_come_back() {
    let mut sending = sending(&["a", "b"]);
    sending.ack(1, Reach::One);
    for body in ["a", "c"] {
        let Unfit(said) = sending.come_back(body).unwrap_err();
        assert!(said.contains("routing key `k` that was not sent"), "{said}");
    }
    assert!(!sending.0.may_return(2));
    assert!(sending.0.may_return(1));
    sending.come_back("b").unwrap();
    assert!(!sending.0.may_return(1));
    sending.ack(2, Reach::One);
    assert_eq!(sending.known(), "+(312 b)");
}

#[test]
fn an_answer_to_nothing_that_waits_is_an_error_not_a_confirm() {
    for reach in [Reach::One, Reach::UpTo] {
        let mut sending = sending(&["a", "b", "c"]);
        sending.ack(1, Reach::One);
        assert_eq!(sending.known(), "+");
        sending.ack(3, Reach::One);
        // None, one before those that wait, one that is answered, and ones never sent.
        for tag in [0, 1, 3, 4, u64::MAX] {
            let unfit = sending.0.answered(tag, reach, Verdict::Ack).unwrap_err();
            assert!(unfit.0.contains(&format!("message {tag},")), "{unfit:?}");
        }
        assert_eq!(sending.known(), "", "{reach:?}");
    }
}
