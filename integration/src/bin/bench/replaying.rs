//! Replays, beside the reference publisher and at a pace.

use std::path::Path;

use anyhow::{Context, Result};
use dacapo_integration::reference::arrivals;
use dacapo_integration::witness::Queue;
use serde_json::{Value, json};

use crate::archive::Archive;
use crate::report::{Bar, Measure, Report, Row};
use crate::{EVENTS, events};

/// How long a paced replay runs, in seconds.
const PACED_SECONDS: u64 = 10;

/// The pace that is measured where the broker takes it, in events a second; where it does not, the
/// next one that it takes.
const PACES: [u64; 4] = [20_000, 10_000, 5_000, 2_000];

/// How much faster than a pace the broker must take events for the pace to be measured.
const HEADROOM: f64 = 1.2;

pub(crate) fn measure(large: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let quorum = json!([["x-queue-type", "S", "quorum"]]);
    let classic = json!([["x-queue-type", "S", "classic"]]);
    let rate = beside_reference(large, "quorum", &quorum, runs, report)?;
    beside_reference(large, "classic", &classic, runs, report)?;
    let small = Archive::make(beside(large)?, "1 KB", EVENTS, 1_000)?;
    beside_reference(&small, "quorum", &quorum, runs, report)?;
    sink_alone(large, runs, report)?;
    starting(large, runs, report)?;
    paced(large, rate, &quorum, report)
}

/// Sizes of bodies for [`measure_sizes`], and how many events of each are replayed. RabbitMQ keeps
/// messages of up to 4,096 bytes, properties included, with the queue's own records, and larger ones
/// apart from them.
const SIZES: [(&str, u64, usize); 6] = [
    ("256 B", 200_000, 256),
    ("3,000 B", 100_000, 3_000),
    ("4,000 B", 100_000, 4_000),
    ("4,200 B", 100_000, 4_200),
    ("64 KB", 10_000, 65_536),
    ("1 MB", 600, 1_000_000),
];

/// How the cost grows with the size of events: one pair each, without a bar.
pub(crate) fn measure_sizes(archive: &Archive, _runs: usize, report: &mut Report) -> Result<()> {
    let quorum = json!([["x-queue-type", "S", "quorum"]]);
    for (size, events, body_bytes) in SIZES {
        let archive = Archive::make(beside(archive)?, size, events, body_bytes)?;
        let queue = Queue::with_arguments("bench", &quorum);
        let cost = reference(&archive, &queue)?;
        report.rows.push(Row { name: format!("reference publisher, {size}"), events, cost });
        let queue = Queue::with_arguments("bench", &quorum);
        let cost = archive.dacapo(&["replay", "--to-queue", queue.name()])?;
        report.rows.push(Row { name: format!("replay, {size}"), events, cost });
    }
    Ok(())
}

/// Where further archives are put.
fn beside(archive: &Archive) -> Result<&Path> {
    archive.folder.parent().context("it is in a folder of the bench")
}

/// Replays against the reference publisher, into queues of one kind. Returns the events a second
/// of the slowest replay.
fn beside_reference(
    archive: &Archive,
    kind: &str,
    arguments: &Value,
    runs: usize,
    report: &mut Report,
) -> Result<f64> {
    let (mut rates, mut micros, mut slowest) = (Vec::new(), Vec::new(), f64::INFINITY);
    for run in 1..=runs {
        let cost = reference(archive, &Queue::with_arguments("bench", arguments))?;
        let queue = Queue::with_arguments("bench", arguments);
        let replay = archive.dacapo(&["replay", "--to-queue", queue.name()])?;
        slowest = slowest.min(replay.rate(EVENTS));
        rates.push(replay.rate(EVENTS) / cost.rate(EVENTS));
        micros.push(replay.cpu_micros(EVENTS));
        let name = format!("reference publisher, {}, {kind}, {run}", archive.size);
        report.rows.push(Row { name, events: EVENTS, cost });
    }
    let name = |what: &str| format!("replay, {}, {kind}: {what}", archive.size);
    report.add(name("rate against reference"), Bar::AtLeast(0.95), rates);
    report.add(name("CPU µs an event"), Bar::AtMost(12.0), micros);
    Ok(slowest)
}

fn reference(archive: &Archive, queue: &Queue) -> Result<crate::timed::Cost> {
    let (events, bytes) = (archive.events, archive.body_bytes / archive.events);
    let (events, bytes) = (events.to_string(), bytes.to_string());
    let url = dacapo_integration::services::amqp();
    archive.inside(&["publish", &url, queue.name(), &events, &bytes])
}

/// An exchange that every broker has, and that the bench binds nothing to.
const NOWHERE: &str = "amq.headers";

/// The sink alone, against the reference publisher, where the broker's intake is the only limit.
fn sink_alone(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let (url, events) = (dacapo_integration::services::amqp(), EVENTS.to_string());
    let mut values = Vec::new();
    for _ in 0..runs {
        let side = |side| archive.inside(&[side, &url, NOWHERE, &events, "4000"]);
        let (reference, sink) = (side("publish-nowhere")?, side("sink")?);
        values.push(sink.rate(EVENTS) / reference.rate(EVENTS));
    }
    let name = "sink alone, 4 KB, no queue: rate against reference".to_owned();
    report.add(name, Bar::AtLeast(0.5), values);
    Ok(())
}

/// A replay of one event: no command confirms its first later.
fn starting(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let to = until(1);
    let mut seconds = Vec::new();
    for _ in 0..runs {
        let queue = Queue::new("bench");
        let args = ["replay", "--to", &to, "--to-queue", queue.name()];
        seconds.push(archive.dacapo(&args)?.wall_seconds);
    }
    report.add("replay of one event: seconds".to_owned(), Bar::AtMost(0.5), seconds);
    Ok(())
}

/// A replay at a pace, judged by what arrives at the queue in each second.
fn paced(archive: &Archive, taken: f64, queue: &Value, report: &mut Report) -> Result<()> {
    let pace = PACES.into_iter().find(|pace| *pace as f64 * HEADROOM < taken);
    let pace = pace.context("the broker takes no pace that is measured")?;
    let events = (pace * PACED_SECONDS).min(EVENTS);
    let queue = Queue::with_arguments("bench", queue);
    let (url, name) = (dacapo_integration::services::amqp(), queue.name().to_owned());
    let consumer = std::thread::spawn(move || arrivals(&url, &name, events));
    let (to, rate) = (until(events), pace.to_string());
    archive.dacapo(&["replay", "--to", &to, "--rate", &rate, "--to-queue", queue.name()])?;
    let arrived = consumer.join().expect("it does not panic")?;
    let last = arrived.last().context("events arrived")?.as_secs_f64();
    // The first event is there at 0, so that one less came after it.
    let mean = (events - 1) as f64 / last / pace as f64;
    let name = |what: &str| format!("replay, --rate {pace}: {what}");
    report.add(name("mean against it"), Bar::Within(0.01), vec![mean]);
    let most = (0..arrived.len()).map(|from| {
        let end = arrived[from] + std::time::Duration::from_secs(1);
        arrived.partition_point(|at| *at < end) - from
    });
    let most = most.max().context("events arrived")? as f64 / pace as f64;
    report.add(name("fullest second"), Bar::AtMost(1.05), vec![most]);
    Ok(())
}

/// Returns the end of a range of times that selects so many events.
fn until(events: u64) -> String {
    let at = dacapo_event::Timestamp::from_millis((events::FIRST_MS + events).cast_signed());
    at.to_string()
}

impl Report {
    pub(crate) fn add(&mut self, name: String, bar: Bar, values: Vec<f64>) {
        self.measures.push(Measure { name, bar, values });
    }
}
