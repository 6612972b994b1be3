//! What the broker says, in its order, and what it must not say.

use bytes::BytesMut;
use dacapo_event::Message;
use dacapo_fuzz::Attack;

use super::*;
use crate::wire::Unroutable;
use crate::wire::frame::{FRAME_BYTES_MAX, Inbox};

struct Broker {
    core: Core,
    outbox: Outbox,
}

fn connected() -> Broker {
    let core = Core::new("h:5672/%2F".to_owned(), FRAME_BYTES_MAX);
    Broker { core, outbox: Outbox::default() }
}

fn message(body: impl Into<Bytes>) -> Message {
    let routing_key = ShortStr::from_static("k");
    Message { routing_key, body: body.into(), ..Message::default() }
}

impl Broker {
    fn send(&mut self, messages: &[Message]) {
        let sent = Publish::all(messages, Unroutable::Returned, |message| {
            (&message.exchange, &message.routing_key)
        });
        self.core.publish(sent);
        self.core.fill(&mut self.outbox);
    }

    /// Takes what was written, as (kind, channel, length).
    fn written(&mut self) -> Vec<(u8, u16, usize)> {
        let bytes = self.outbox.take();
        let mut inbox = Inbox::new();
        let mut frames = Vec::new();
        for part in bytes.chunks(100_000) {
            inbox.room()[..part.len()].copy_from_slice(part);
            inbox.filled(part.len());
            while let Some(frame) = inbox.next().unwrap() {
                frames.push((frame.kind, frame.channel, frame.payload.len()));
            }
        }
        frames
    }

    fn says(&mut self, kind: u8, channel: u16, payload: &[u8]) -> Result<(), BusError> {
        let payload = Bytes::copy_from_slice(payload);
        self.core.take(Frame { kind, channel, payload }, &mut self.outbox)
    }

    fn method(
        &mut self,
        channel: u16,
        (class, method): (u16, u16),
        arguments: impl FnOnce(&mut BytesMut),
    ) -> Result<(), BusError> {
        let mut payload = BytesMut::new();
        payload.put_u16(class);
        payload.put_u16(method);
        arguments(&mut payload);
        self.says(METHOD, channel, &payload)
    }

    fn ack(&mut self, tag: u64) -> Result<(), BusError> {
        self.method(PUBLISHES, methods::BASIC_ACK, |to| {
            to.put_u64(tag);
            // Multiple.
            to.put_u8(1);
        })
    }

    fn comes_back(&mut self, body: &'static [u8], claimed: u64) -> Result<(), BusError> {
        self.method(PUBLISHES, methods::BASIC_RETURN, |to| {
            to.put_u16(312);
            put_short(to, b"NO_ROUTE");
            put_short(to, b"");
            put_short(to, b"k");
        })?;
        let mut header = BytesMut::new();
        header.put_u32(60 << 16);
        header.put_u64(claimed);
        header.put_u16(0);
        self.says(HEADER, PUBLISHES, &header)?;
        self.says(BODY, PUBLISHES, body)
    }

    fn close(&mut self, channel: u16, code: u16, text: &str) -> Result<(), BusError> {
        let method = match channel {
            0 => methods::CONNECTION_CLOSE,
            _ => methods::CHANNEL_CLOSE,
        };
        self.method(channel, method, |to| {
            to.put_u16(code);
            put_short(to, text.as_bytes());
            to.put_u32(0);
        })
    }

    #[track_caller]
    fn check_refuses(&mut self, said: Result<(), BusError>, words: &str) {
        let error = said.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains("h:5672"), "{error}");
        assert_eq!(self.core.take_settled(), [], "nothing is confirmed by it");
    }
}

#[test]
fn a_return_before_its_ack_is_no_confirm() {
    let mut broker = connected();
    broker.send(&[message("a"), message("bc"), message("")]);
    broker.comes_back(b"bc", 2).unwrap();
    assert!(!broker.core.has_settled());
    broker.ack(3).unwrap();
    let returned = Outcome::Returned { reason: "312 NO_ROUTE".to_owned() };
    assert_eq!(broker.core.take_settled(), [Outcome::Confirmed, returned, Outcome::Confirmed]);
}

#[test]
fn outcomes_are_handed_over_together_unless_few_are_to_come() {
    let mut broker = connected();
    broker.send(&vec![message("a"); 100]);
    for (acked, enough) in [(30, false), (49, false), (50, true), (64, true), (100, true)] {
        broker.ack(acked).unwrap();
        assert_eq!(broker.core.has_settled_enough(), enough, "{acked}");
    }
}

#[test]
fn a_body_longer_than_a_frame_is_written_in_pieces_and_one_write_holds_no_more_than_some() {
    let mut broker = connected();
    let piece = FRAME_BYTES_MAX as usize - 8;
    broker.send(&[message(vec![1; 4 * piece + 5]), message("")]);
    let head = [(METHOD, PUBLISHES, 10), (HEADER, PUBLISHES, 14)];
    let body = |length| (BODY, PUBLISHES, length);
    assert_eq!(broker.written(), [head[0], head[1], body(piece), body(piece)]);
    broker.core.fill(&mut broker.outbox);
    assert_eq!(broker.written(), [body(piece), body(piece)]);
    broker.core.fill(&mut broker.outbox);
    // What comes after it, too; an empty body has no frame.
    assert_eq!(broker.written(), [body(5), head[0], head[1]]);
}

#[test]
fn while_it_is_blocked_nothing_is_written_and_nobody_is_held_up() {
    let mut broker = connected();
    broker.method(0, methods::CONNECTION_BLOCKED, |to| put_short(to, b"low on memory")).unwrap();
    assert_eq!(broker.core.standing(), Standing::Blocked);
    broker.send(&[message(vec![1; 2 * WAITING_BYTES])]);
    assert_eq!(broker.written(), []);
    assert_eq!(broker.core.standing(), Standing::Blocked);
    broker.method(0, methods::CONNECTION_UNBLOCKED, |_| {}).unwrap();
    assert_eq!(broker.core.standing(), Standing::Full);
    broker.core.fill(&mut broker.outbox);
    assert_eq!(broker.core.standing(), Standing::Open);
    assert_ne!(broker.written(), []);
}

#[test]
fn a_broker_that_says_what_it_cannot_is_no_confirm() {
    let sent = || {
        let mut broker = connected();
        broker.send(&[message("a")]);
        broker
    };
    for tag in [0, 2, u64::MAX] {
        let mut broker = sent();
        let said = broker.ack(tag);
        broker.check_refuses(said, "does not wait for an answer");
    }
    let mut broker = sent();
    let said = broker.comes_back(b"b", 1);
    broker.check_refuses(said, "not sent like this");
    // Half a gigabyte, that it claims and does not send.
    let mut broker = sent();
    let said = broker.comes_back(b"a", 500_000_000);
    broker.check_refuses(said, "500000000 bytes that was not sent");
    let mut broker = sent();
    let said = broker.comes_back(b"ab", 1);
    broker.check_refuses(said, "not AMQP");

    let garbled: [(u8, u16, &[u8]); 7] = [
        (METHOD, PUBLISHES, &[0, 60, 0]),
        (METHOD, PUBLISHES, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1]),
        (METHOD, PUBLISHES, &[0, 60, 0, 60]),
        (METHOD, QUESTIONS, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        (HEADER, PUBLISHES, &[0; 14]),
        (BODY, PUBLISHES, b"a"),
        (9, 0, b""),
    ];
    for (kind, channel, payload) in garbled {
        let mut broker = sent();
        let said = broker.says(kind, channel, payload);
        broker.check_refuses(said, "not AMQP");
    }
}

#[test]
fn a_close_has_the_brokers_words() {
    let sent = || {
        let mut broker = connected();
        broker.send(&[message("a")]);
        broker
    };
    let said = sent().close(PUBLISHES, 404, "NOT_FOUND - no exchange 'shop' in vhost '/'");
    let BusError::NotFound { thing, .. } = said.unwrap_err() else { panic!("another error") };
    assert_eq!(thing, "exchange `shop`");
    let said = sent().close(PUBLISHES, 406, "PRECONDITION_FAILED - message size 2 is larger");
    assert!(matches!(said.unwrap_err(), BusError::TooLarge { .. }));
    let said = sent().close(PUBLISHES, 403, "ACCESS_REFUSED - access to exchange 'x' refused");
    assert!(matches!(said.unwrap_err(), BusError::Refused { .. }));
    let said = sent().close(0, 320, "CONNECTION_FORCED - broker forced connection closure");
    assert!(said.unwrap_err().is_transient());
}

#[test]
fn a_depth_is_that_of_the_last_question_and_its_failure_its_own() {
    let queue = ShortStr::from_static("q");
    let mut broker = connected();
    let ask = |broker: &mut Broker| {
        let (asker, answer) = oneshot::channel();
        broker.core.ask(&queue, asker, &mut broker.outbox);
        answer
    };
    let depth = |broker: &mut Broker, ready: u32| {
        broker.method(QUESTIONS, methods::QUEUE_DECLARE_OK, |to| {
            put_short(to, b"q");
            to.put_u32(ready);
            to.put_u32(0);
        })
    };
    drop(ask(&mut broker));
    let mut answer = ask(&mut broker);
    depth(&mut broker, 7).unwrap();
    assert!(answer.try_recv().is_err(), "that was the first one's");
    depth(&mut broker, 8).unwrap();
    assert_eq!(answer.try_recv().unwrap().unwrap(), 8);

    let mut answer = ask(&mut broker);
    broker.close(QUESTIONS, 404, "NOT_FOUND - no queue 'q' in vhost '/'").unwrap();
    assert!(matches!(answer.try_recv().unwrap(), Err(BusError::NotFound { .. })));
    broker.written();
    let mut answer = ask(&mut broker);
    assert_eq!(broker.written().len(), 2, "the channel is opened again");
    depth(&mut broker, 9).unwrap();
    assert_eq!(answer.try_recv().unwrap().unwrap(), 9);
}

/// An inbox, and a returned message; its properties are of a frame, and each field 64 bytes once
/// decoded.
const MEMORY: usize = 32 * 1024 * 1024;

#[test]
fn whatever_a_broker_says_no_more_is_confirmed_than_was_sent() {
    let mut honest = Outbox::default();
    honest.method(PUBLISHES, methods::BASIC_RETURN, |to| {
        to.put_u16(312);
        put_short(to, b"NO_ROUTE");
        put_short(to, b"");
        put_short(to, b"k");
    });
    honest.frames(b"\x02\0\x01\0\0\0\x0e\0\x3c\0\0\0\0\0\0\0\0\0\x01\0\0\xce");
    honest.body(PUBLISHES, b"b");
    for (tag, multiple) in [(2, 1), (3, 0)] {
        honest.method(PUBLISHES, methods::BASIC_ACK, |to| {
            to.put_u64(tag);
            to.put_u8(multiple);
        });
    }
    honest.method(0, methods::CONNECTION_BLOCKED, |to| put_short(to, b"low on memory"));
    let seed = honest.take().to_vec();
    let attack = Attack::new(env!("CARGO_MANIFEST_DIR"), "publisher", MEMORY).seeds([seed]);
    attack.slow(4).run(|bytes| {
        let mut broker = connected();
        broker.send(&["a", "b", "c", "d"].map(message));
        let mut inbox = Inbox::new();
        for part in bytes.chunks(FRAME_BYTES_MAX as usize) {
            inbox.room()[..part.len()].copy_from_slice(part);
            inbox.filled(part.len());
            while let Ok(Some(frame)) = inbox.next() {
                if broker.core.take(frame, &mut broker.outbox).is_err() {
                    break;
                }
            }
        }
        assert!(broker.core.take_settled().len() <= 4);
    });
}
