//! The leanest AMQP client that is still correct: what a broker can do with a publisher or a
//! consumer that costs next to nothing. The bench holds dacapo against it.
//!
//! One blocking socket, frames that are built once, 64 messages a write. Whatever the broker
//! says that is not expected ends it. Frames, methods and properties are those of AMQP 0-9-1
//! (specification, sections 2.3.5, 4.2.3 and 4.2.6), confirms RabbitMQ's extension of it.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, bail, ensure};

mod steady;

pub use steady::{publish_steadily, take_bodies};

/// Messages in one write, and deliveries for one ack.
const BATCH: u64 = 64;

/// Publishes that are not confirmed at the most, and deliveries that are not acked.
const WINDOW: u64 = 1_000;

/// What RabbitMQ offers; larger frames are not asked for.
const FRAME_MAX: u32 = 131_072;

/// Type, channel, size and end of a frame.
const FRAME_AROUND: usize = 8;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xCE;

/// Class and method.
type Method = (u16, u16);

const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
const CHANNEL_OPEN: Method = (20, 10);
const CHANNEL_OPEN_OK: Method = (20, 11);
const CONFIRM_SELECT: Method = (85, 10);
const CONFIRM_SELECT_OK: Method = (85, 11);
const QOS: Method = (60, 10);
const QOS_OK: Method = (60, 11);
const CONSUME: Method = (60, 20);
const CONSUME_OK: Method = (60, 21);
const PUBLISH: Method = (60, 40);
const DELIVER: Method = (60, 60);
const ACK: Method = (60, 80);

/// The class of basic methods, which a content header begins with.
const BASIC: u16 = 60;

/// Which properties follow: content type, headers, delivery mode, message id and type.
const PROPERTIES: u16 = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 5;

const PERSISTENT: u8 = 2;

/// Publishes `events` persistent messages with bodies of `body_bytes` to a queue, by way of the
/// default exchange, each with the properties and headers of a replayed event, and returns when all
/// are confirmed.
///
/// # Errors
/// The broker cannot be reached, refuses something, or nacks.
pub fn publish(url: &str, queue: &str, events: u64, body_bytes: usize) -> Result<()> {
    publish_copies(url, Route::to(queue), events, body_bytes)
}

/// Publishes as [`publish`] does, to an exchange to which no queue is bound: the broker's intake is
/// the only limit.
///
/// # Errors
/// As [`publish`].
pub fn publish_nowhere(url: &str, exchange: &str, events: u64, body_bytes: usize) -> Result<()> {
    let route = Route { exchange, routing_key: "order.placed", mandatory: false };
    publish_copies(url, route, events, body_bytes)
}

fn publish_copies(url: &str, route: Route<'_>, events: u64, body_bytes: usize) -> Result<()> {
    let message = message(route, &vec![b'x'; body_bytes], &MARKING)?;
    publish_all(url, events, |batch| {
        batch.extend_from_slice(&message);
        Ok(())
    })
}

/// Publishes these bodies as an event's own publisher does, which marks nothing.
///
/// # Errors
/// As [`publish`], or there is no next body.
pub fn publish_bodies(url: &str, queue: &str, bodies: &[Vec<u8>]) -> Result<()> {
    let mut left = bodies.iter();
    publish_all(url, bodies.len() as u64, |batch| {
        let body = left.next().context("there are no more bodies")?;
        batch.extend_from_slice(&message(Route::to(queue), body, &[])?);
        Ok(())
    })
}

/// Publishes so many messages, which `next` adds to a batch one by one.
fn publish_all(
    url: &str,
    events: u64,
    mut next: impl FnMut(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    let mut connection = Connection::open(url)?;
    connection.ask(1, CONFIRM_SELECT, &[0], CONFIRM_SELECT_OK)?;
    let (mut published, mut confirmed) = (0, 0);
    let mut batch = Vec::new();
    while confirmed < events {
        let count = BATCH.min(events - published).min(WINDOW - (published - confirmed));
        // With confirms on their way, a whole batch is worth waiting for.
        if count > 0 && (count == BATCH || count == events - published) {
            batch.clear();
            (0..count).try_for_each(|_| next(&mut batch))?;
            connection.stream.write_all(&batch)?;
            published += count;
            continue;
        }
        let (method, arguments) = connection.method()?;
        ensure!(method == ACK, "the broker answered {method:?} to a publish");
        let tag = u64::from_be_bytes(arguments[..8].try_into()?);
        confirmed = if arguments[8] & 1 == 1 { tag.max(confirmed) } else { confirmed + 1 };
    }
    Ok(())
}

/// Takes `events` messages from a queue, and only acks them.
///
/// # Errors
/// The broker cannot be reached, or refuses something.
pub fn consume(url: &str, queue: &str, events: u64) -> Result<()> {
    let mut connection = consumer(url, queue)?;
    for taken in 1..=events {
        let (method, arguments) = connection.method()?;
        ensure!(method == DELIVER, "the broker sent {method:?} for a delivery");
        connection.ack(&arguments, taken, events)?;
    }
    Ok(())
}

/// Returns a connection on which a queue is consumed.
fn consumer(url: &str, queue: &str) -> Result<Connection> {
    let mut connection = Connection::open(url)?;
    let mut prefetch = vec![0; 4];
    prefetch.extend_from_slice(&u16::try_from(WINDOW)?.to_be_bytes());
    prefetch.push(0);
    connection.ask(1, QOS, &prefetch, QOS_OK)?;
    let mut arguments = vec![0; 2];
    short_string(&mut arguments, queue)?;
    short_string(&mut arguments, "reference")?;
    arguments.extend_from_slice(&[0; 5]);
    connection.ask(1, CONSUME, &arguments, CONSUME_OK)?;
    Ok(connection)
}

/// The headers of a replayed event, and how long their values are.
const MARKING: [(&str, usize); 6] = [
    ("x-dacapo-replay", 12),
    ("x-dacapo-event-id", 32),
    ("x-dacapo-body-digest", 64),
    ("x-dacapo-original-time", 24),
    ("x-dacapo-original-exchange", 4),
    ("x-dacapo-original-routing-key", 9),
];

/// Where a message goes.
struct Route<'a> {
    exchange: &'a str,
    routing_key: &'a str,
    mandatory: bool,
}

impl<'a> Route<'a> {
    /// To a queue, and `mandatory`, as every message of a replay.
    fn to(queue: &'a str) -> Self {
        Route { exchange: "", routing_key: queue, mandatory: true }
    }
}

/// Returns the frames of one publish.
fn message(route: Route<'_>, body: &[u8], headers: &[(&str, usize)]) -> Result<Vec<u8>> {
    message_with_id(route, &"0".repeat(32), body, headers)
}

/// Returns the frames of one publish of a message with this id.
fn message_with_id(
    route: Route<'_>,
    id: &str,
    body: &[u8],
    headers: &[(&str, usize)],
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut publish = vec![0; 2];
    short_string(&mut publish, route.exchange)?;
    short_string(&mut publish, route.routing_key)?;
    publish.push(u8::from(route.mandatory));
    method_frame(&mut bytes, 1, PUBLISH, &publish);

    let mut header = Vec::new();
    header.extend_from_slice(&BASIC.to_be_bytes());
    header.extend_from_slice(&[0; 2]);
    header.extend_from_slice(&(body.len() as u64).to_be_bytes());
    header.extend_from_slice(&PROPERTIES.to_be_bytes());
    short_string(&mut header, "application/json")?;
    let mut table = Vec::new();
    for (name, bytes) in headers {
        short_string(&mut table, name)?;
        table.push(b'S');
        long_string(&mut table, &vec![b'x'; *bytes])?;
    }
    long_string(&mut header, &table)?;
    header.push(PERSISTENT);
    short_string(&mut header, id)?;
    short_string(&mut header, "order.placed")?;
    frame(&mut bytes, HEADER, 1, &header);

    for piece in body.chunks(FRAME_MAX as usize - FRAME_AROUND) {
        frame(&mut bytes, BODY, 1, piece);
    }
    Ok(bytes)
}

struct Connection {
    stream: TcpStream,
    /// What was read and not looked at yet begins at `at`.
    bytes: Vec<u8>,
    at: usize,
}

impl Connection {
    /// Connects, and opens channel 1.
    fn open(url: &str) -> Result<Self> {
        let place = url.strip_prefix("amqp://").context("it is no amqp:// URL")?;
        let (login, place) = place.rsplit_once('@').context("the URL has no credentials")?;
        let (user, password) = login.split_once(':').context("the URL has no password")?;
        let (server, vhost) = place.split_once('/').unwrap_or((place, "%2f"));
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        let mut connection = Connection { stream, bytes: Vec::new(), at: 0 };
        connection.stream.write_all(b"AMQP\0\0\x09\x01")?;
        connection.expect(START)?;
        let mut start = vec![0; 4];
        short_string(&mut start, "PLAIN")?;
        long_string(
            &mut start,
            format!("\0{}\0{}", decoded(user)?, decoded(password)?).as_bytes(),
        )?;
        short_string(&mut start, "en_US")?;
        connection.ask(0, START_OK, &start, TUNE)?;
        let mut tune = 1_u16.to_be_bytes().to_vec();
        tune.extend_from_slice(&FRAME_MAX.to_be_bytes());
        // No heartbeats: it never rests.
        tune.extend_from_slice(&[0; 2]);
        connection.say(0, TUNE_OK, &tune)?;
        let mut open = Vec::new();
        short_string(&mut open, &decoded(vhost)?)?;
        open.extend_from_slice(&[0; 2]);
        connection.ask(0, OPEN, &open, OPEN_OK)?;
        connection.ask(1, CHANNEL_OPEN, &[0], CHANNEL_OPEN_OK)?;
        Ok(connection)
    }

    fn say(&mut self, channel: u16, method: Method, arguments: &[u8]) -> Result<()> {
        let mut bytes = Vec::new();
        method_frame(&mut bytes, channel, method, arguments);
        Ok(self.stream.write_all(&bytes)?)
    }

    fn ask(
        &mut self,
        channel: u16,
        method: Method,
        arguments: &[u8],
        answer: Method,
    ) -> Result<()> {
        self.say(channel, method, arguments)?;
        self.expect(answer)
    }

    /// Acks a delivery and all before it, if it ends a batch or is the last of `events`.
    fn ack(&mut self, delivery: &[u8], taken: u64, events: u64) -> Result<()> {
        if !taken.is_multiple_of(BATCH) && taken != events {
            return Ok(());
        }
        let tag = 1 + usize::from(delivery[0]);
        let mut ack = delivery[tag..tag + 8].to_vec();
        // This one and all before it.
        ack.push(1);
        self.say(1, ACK, &ack)
    }

    fn expect(&mut self, expected: Method) -> Result<()> {
        let (method, arguments) = self.method()?;
        if method != expected {
            let words = String::from_utf8_lossy(&arguments);
            bail!("the broker said {method:?} and not {expected:?}: {words}");
        }
        Ok(())
    }

    /// Returns the next method and its arguments; passes over headers and bodies.
    fn method(&mut self) -> Result<(Method, Vec<u8>)> {
        loop {
            let (kind, payload) = self.frame()?;
            if kind == METHOD {
                let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
                return Ok(((number(0), number(2)), payload[4..].to_vec()));
            }
        }
    }

    /// Returns the type and the payload of the next frame.
    fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        let head = self.take(7)?;
        let size = u32::from_be_bytes(self.bytes[head + 3..head + 7].try_into()?) as usize;
        let kind = self.bytes[head];
        let payload = self.take(size + 1)?;
        Ok((kind, self.bytes[payload..payload + size].to_vec()))
    }

    /// Takes so many bytes, and returns where they are.
    fn take(&mut self, count: usize) -> Result<usize> {
        if self.bytes.len() < self.at + count {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        while self.bytes.len() < count {
            let filled = self.bytes.len();
            self.bytes.resize(filled + FRAME_MAX as usize, 0);
            let read = self.stream.read(&mut self.bytes[filled..])?;
            self.bytes.truncate(filled + read);
            ensure!(read > 0, "the broker closed the connection");
        }
        let at = self.at;
        self.at += count;
        Ok(at)
    }
}

fn method_frame(bytes: &mut Vec<u8>, channel: u16, (class, method): Method, arguments: &[u8]) {
    let mut payload = class.to_be_bytes().to_vec();
    payload.extend_from_slice(&method.to_be_bytes());
    payload.extend_from_slice(arguments);
    frame(bytes, METHOD, channel, &payload);
}

fn frame(bytes: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    bytes.push(kind);
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.push(END);
}

fn short_string(bytes: &mut Vec<u8>, text: &str) -> Result<()> {
    bytes.push(u8::try_from(text.len()).context("the text is too long")?);
    bytes.extend_from_slice(text.as_bytes());
    Ok(())
}

fn long_string(bytes: &mut Vec<u8>, text: &[u8]) -> Result<()> {
    bytes.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
    bytes.extend_from_slice(text);
    Ok(())
}

/// Returns a part of a URL without its percent-encoding.
fn decoded(text: &str) -> Result<String> {
    dacapo_event::percent::decode(text).with_context(|| format!("`{text}` is no part of a URL"))
}
