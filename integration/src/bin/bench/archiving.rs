//! What takes events in: the archiver, beside a consumer that only acks, and imports.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::process::Signal;
use dacapo_integration::{http, reference, services};
use serde_json::json;

use crate::archive::Archive;
use crate::broker::{Broker, Place, QUEUE};
use crate::report::{Bar, Report};
use crate::{EVENTS, events, timed};

/// Longer than a full queue takes to be archived on any machine.
const DEADLINE: Duration = Duration::from_secs(300);

/// Between two looks at how far an archiver is.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn measure(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    beside_consumer(archive, runs, report)?;
    beside_gzip(archive, runs, report)
}

/// An archiver on S3 against a consumer that only acks, each from a full quorum queue of a broker of
/// its own.
fn beside_consumer(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let bodies =
        events::bodies(&archive.folder.join("events.ndjson"))?.collect::<Result<Vec<_>>>()?;
    let (mut ratios, mut rates, mut micros, mut brokers) = (vec![], vec![], vec![], vec![]);
    let mut of_consumers = vec![];
    for _ in 0..runs {
        let consumed = consumed(archive, &bodies)?;
        let archived = archived(&bodies)?;
        ratios.push(archived.rate / consumed);
        rates.push(archived.rate);
        of_consumers.push(consumed);
        micros.push(archived.cpu_seconds * 1e6 / EVENTS as f64);
        brokers.push(archived.broker_seconds * 1e6 / EVENTS as f64);
    }
    report.add("archiver: rate against acking only".to_owned(), Bar::AtLeast(0.9), ratios);
    report.add("archiver: events/s".to_owned(), Bar::None, rates);
    report.add("acking only: events/s".to_owned(), Bar::None, of_consumers);
    report.add("archiver: CPU µs an event".to_owned(), Bar::AtMost(25.0), micros);
    report.add("archiver: the broker's CPU µs".to_owned(), Bar::None, brokers);
    Ok(())
}

/// Returns the events a second of a consumer that only acks.
fn consumed(archive: &Archive, bodies: &[Vec<u8>]) -> Result<f64> {
    let broker = Broker::start(&json!([
        ["x-queue-type", "S", "quorum"],
        ["x-single-active-consumer", "t", true]
    ]))?;
    let url = broker.url();
    reference::publish_bodies(&url, QUEUE, bodies)?;
    let args = ["consume", &url, QUEUE, &EVENTS.to_string()];
    Ok(broker.beside(Place::Shared, || archive.inside(&args))?.rate(EVENTS))
}

/// What an archiver did.
struct Archived {
    /// Events a second, while its queue was full.
    rate: f64,
    /// Of a processor, for all events.
    cpu_seconds: f64,
    /// The same of the broker.
    broker_seconds: f64,
}

/// Runs an archiver on a full queue.
#[expect(clippy::disallowed_methods, reason = "a bench measures the wall clock")]
fn archived(bodies: &[Vec<u8>]) -> Result<Archived> {
    let broker = Broker::start(&json!([]))?;
    let mut dacapo = Dacapo::on_s3();
    dacapo.set("DACAPO_AMQP", &broker.url());
    let queue = services::unique("bench");
    let args = [
        "archive",
        "run",
        "--log",
        "info",
        "--metrics",
        "127.0.0.1:0",
        "--roll-age",
        "1s",
        "--bind",
        "amq.fanout",
        "--queue",
        &queue,
    ];
    // Makes its queue.
    let first = dacapo.spawn(args);
    first.wait_for_line("consuming", DEADLINE);
    first.signal(Signal::Terminate)?;
    first.wait(DEADLINE).check(0);
    reference::publish_bodies(&broker.url(), &queue, bodies)?;

    broker.rest()?;
    let before = broker.cpu_seconds()?;
    let archiver = dacapo.spawn(args);
    let told = archiver.wait_for_line("metrics: http://", DEADLINE);
    let (_, address) = told.split_once("http://").context("it was looked for")?;
    let (address, _) = address.split_once("/metrics").context("it is an address")?;
    let begun = Instant::now();
    let mut looks = Vec::new();
    let mut durable = 0;
    while durable < EVENTS {
        ensure!(begun.elapsed() < DEADLINE, "the archiver did not come to an end");
        std::thread::sleep(LOOK);
        let events = events_of(address)?;
        if events > durable {
            looks.push((begun.elapsed(), events));
        }
        durable = events;
    }
    // From one segment to another, while the queue is full: the last one waits for its age.
    let end = looks.iter().find(|(_, events)| events * 4 >= EVENTS * 3);
    let (first, last) = (looks[0], *end.context("it came to the end")?);
    let rate = (last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64();
    let cpu_seconds = timed::cpu_seconds(archiver.pid())?;
    let broker_seconds = broker.cpu_seconds()? - before;
    archiver.signal(Signal::Terminate)?;
    archiver.wait(DEADLINE).check(0);
    Ok(Archived { rate, cpu_seconds, broker_seconds })
}

/// Returns how many events are durable, by the archiver's metrics.
fn events_of(address: &str) -> Result<u64> {
    let (_, text) = http::get(address, "/metrics")?;
    let value = text.lines().find_map(|line| line.strip_prefix("dacapo_archiver_events_total "));
    Ok(value.map_or(Ok(0), str::parse)?)
}

/// An import against `gzip -dc` of its input, in seconds of one processor.
fn beside_gzip(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let input = archive.path("events.ndjson");
    timed::run(Path::new("gzip"), &["--keep", &input], &archive.folder)?;
    let packed = format!("{input}.gz");
    let mut values = Vec::new();
    for run in 0..runs {
        let plain = timed::run(Path::new("gzip"), &["-dc", &packed], &archive.folder)?;
        let imported = archive.path(&format!("imported-{run}"));
        let import = archive.import("events.ndjson.gz", &imported)?;
        fs::remove_dir_all(imported)?;
        values.push(import.cpu_seconds / plain.cpu_seconds);
    }
    report.add("import of gzip: CPU against gzip -dc".to_owned(), Bar::AtMost(3.0), values);
    Ok(())
}
