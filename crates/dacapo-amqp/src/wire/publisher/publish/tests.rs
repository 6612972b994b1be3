//! A message as it is sent, what no broker takes, and what is it when it comes back.

use dacapo_event::{FieldTable, FieldValue};

use super::*;
use crate::wire::frame::FRAME_BYTES_MAX;

fn short(text: &'static str) -> ShortStr {
    ShortStr::from_static(text)
}

fn message(headers: &[(&'static str, &str)]) -> Message {
    let field = |(name, value): &(&'static str, &str)| (short(name), FieldValue::text(*value));
    let headers: FieldTable = headers.iter().map(field).collect();
    let properties = Properties {
        headers: Some(headers),
        message_id: Some(short("m-1")),
        ..Properties::default()
    };
    Message {
        exchange: short("shop"),
        routing_key: short("orders.placed"),
        properties,
        body: Bytes::from_static(b"body"),
    }
}

fn publish(message: &Message) -> Publish {
    let messages = std::slice::from_ref(message);
    Publish::all(messages, Unroutable::Returned, |message| {
        (&message.exchange, &message.routing_key)
    })
    .remove(0)
}

fn returned(message: &Message) -> Returned {
    let Message { exchange, routing_key, properties, body } = message.clone();
    Returned { exchange, routing_key, properties, body, reason: "312 NO_ROUTE".to_owned() }
}

#[test]
fn the_frames_are_those_of_the_specification() {
    let mut bare = Message { properties: Properties::default(), ..message(&[]) };
    bare.routing_key = ShortStr::new(&b"caf\xe9"[..]).unwrap();
    let method = b"\x01\0\x01\0\0\0\x11\0\x3c\0\x28\0\0\x04shop\x04caf\xe9\x01\xce";
    let header = b"\x02\0\x01\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\0\0\x04\0\0\xce";
    assert_eq!(publish(&bare).head(), [&method[..], header].concat());
}

#[track_caller]
fn check(sent: &Message, back: &Message, exact: bool, near: bool) {
    let (sent, back) = (publish(sent), returned(back));
    assert_eq!(sent.is_returned(&back, Likeness::Exact), exact);
    assert_eq!(sent.is_returned(&back, Likeness::Near), near);
}

#[test]
fn a_return_is_of_what_was_sent_whatever_the_broker_took_off_or_added() {
    let sent = message(&[("BCC", "other"), ("x", "1")]);
    check(&sent, &sent, true, true);
    check(&sent, &message(&[("x", "1")]), true, true);
    check(&sent, &message(&[("x", "1"), ("x-added", "now")]), false, true);
    check(&sent, &message(&[("x", "2")]), false, true);
    let other_key = Message { routing_key: short("orders.paid"), ..sent.clone() };
    check(&sent, &other_key, false, false);
    let other_body = Message { body: Bytes::from_static(b"Body"), ..sent.clone() };
    check(&sent, &other_body, false, false);
    let mut other_id = sent.clone();
    other_id.properties.message_id = Some(short("m-2"));
    check(&sent, &other_id, false, false);
    let other_exchange = Message { exchange: short("stock"), ..sent.clone() };
    check(&sent, &other_exchange, false, false);
    // Not all of what was sent is another message.
    check(&message(&[("x", "1"), ("y", "2")]), &message(&[("x", "1")]), false, true);
    let of = |id| message(&[("x-dacapo-event-id", id)]);
    check(&of("e-1"), &of("e-2"), false, false);
}

#[test]
fn what_no_broker_takes_is_refused_by_what_is_wrong_with_it() {
    assert!(Publish::check(&message(&[("x", "1")]), FRAME_BYTES_MAX).is_ok());

    let text = "x".repeat(5_000);
    let long = message(&[("x", &text)]);
    assert!(Publish::check(&long, FRAME_BYTES_MAX).is_ok());
    let error = Publish::check(&long, 4_096).unwrap_err();
    assert_eq!(
        error.to_string(),
        "message cannot be sent: its properties and headers take 5029 bytes, and the broker takes \
         4088 (`frame_max`)"
    );
    for number in [FieldValue::Float(f32::NAN), FieldValue::Double(f64::INFINITY)] {
        let headers = [(short("n"), FieldValue::Array(vec![number]))];
        let headers = Some(headers.into_iter().collect());
        let properties = Properties { headers, ..Properties::default() };
        let odd = Message { properties, ..message(&[]) };
        let error = Publish::check(&odd, FRAME_BYTES_MAX).unwrap_err();
        assert!(matches!(error, BusError::Unsendable { .. }), "{error:?}");
    }
}
