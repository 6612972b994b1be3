//! A publisher that keeps its rate whatever happens elsewhere, and a consumer that keeps what came.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    ACK, BODY, CONFIRM_SELECT, CONFIRM_SELECT_OK, Connection, DELIVER, METHOD, Route, WINDOW,
    consumer, message_with_id,
};

/// How often the publisher looks how many are due.
const TURN: Duration = Duration::from_millis(5);

/// Publishes so many events a second to an exchange until it is told to stop, and returns how many
/// are confirmed; `count` is kept up to date with how many are published. The id of each, which is its body as well, is `name` of its number, from 0.
///
/// # Errors
/// The broker cannot be reached, refuses something, or nacks.
#[expect(clippy::disallowed_methods, reason = "a blocking client has no runtime's clock")]
pub fn publish_steadily(
    url: &str,
    exchange: &str,
    routing_key: &str,
    per_second: u64,
    name: fn(usize) -> String,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Result<usize> {
    let mut connection = Connection::open(url)?;
    connection.ask(1, CONFIRM_SELECT, &[0], CONFIRM_SELECT_OK)?;
    let (mut published, mut confirmed) = (0_u64, 0_u64);
    let began = Instant::now();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let due = (began.elapsed().as_micros() as u64) * per_second / 1_000_000;
        let mut batch = Vec::new();
        while !stopping && published < due && published - confirmed < WINDOW {
            let id = name(usize::try_from(published)?);
            let route = Route { exchange, routing_key, mandatory: true };
            batch.extend(message_with_id(route, &id, id.as_bytes(), &[])?);
            published += 1;
        }
        connection.stream.write_all(&batch)?;
        count.store(published, Ordering::Relaxed);
        if stopping && confirmed == published {
            return Ok(usize::try_from(published)?);
        }
        if confirmed == published {
            sleep(TURN);
            continue;
        }
        let (method, arguments) = connection.method()?;
        ensure!(method == ACK, "the broker answered {method:?} to a publish");
        let tag = u64::from_be_bytes(arguments[..8].try_into()?);
        confirmed = if arguments[8] & 1 == 1 { tag.max(confirmed) } else { confirmed + 1 };
    }
}

/// Takes so many messages from a queue, acks them, and returns their bodies, in order.
///
/// # Errors
/// The broker cannot be reached, or refuses something.
pub fn take_bodies(url: &str, queue: &str, events: u64) -> Result<Vec<Vec<u8>>> {
    let mut connection = consumer(url, queue)?;
    let mut bodies = Vec::new();
    for taken in 1..=events {
        let (method, arguments) = connection.method()?;
        ensure!(method == DELIVER, "the broker sent {method:?} for a delivery");
        let (kind, header) = connection.frame()?;
        ensure!(kind != METHOD, "a delivery has no header");
        // Class and weight come first.
        let size = u64::from_be_bytes(header[4..12].try_into()?) as usize;
        let mut body = Vec::new();
        while body.len() < size {
            let (kind, piece) = connection.frame()?;
            ensure!(kind == BODY, "a delivery has no body");
            body.extend(piece);
        }
        bodies.push(body);
        connection.ack(&arguments, taken, events)?;
    }
    Ok(bodies)
}
