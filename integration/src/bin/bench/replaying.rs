//! Replays, beside the reference publisher and at a pace.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dacapo_integration::campaign::wire::Wire;
use dacapo_integration::services;
use dacapo_integration::witness::Queue;
use serde_json::{Value, json};

use crate::apart::apart;
use crate::archive::Archive;
use crate::report::{Bar, Measure, Report, Row};
use crate::{EVENTS, events, timed};

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

/// Replays against the reference publisher, into queues of one kind: as everything shares the
/// processors, and with the broker on its own. Returns the events a second of the slowest replay.
fn beside_reference(
    archive: &Archive,
    kind: &str,
    arguments: &Value,
    runs: usize,
    report: &mut Report,
) -> Result<f64> {
    let pairs = pairs(archive, arguments, runs)?;
    let ratios = |pairs: &[Pair]| pairs.iter().map(Pair::ratio).collect();
    let name = |what: &str| format!("replay, {}, {kind}: {what}", archive.size);
    report.add(name("rate against reference"), Bar::AtLeast(0.95), ratios(&pairs));
    if let Some(pairs) = apart(|| self::pairs(archive, arguments, runs))? {
        report.add(name("rate, broker apart"), Bar::AtLeast(0.95), ratios(&pairs));
    }
    let micros = |of: fn(&Pair) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
    let taken = micros(|pair| pair.replay.cost.cpu_micros(EVENTS));
    report.add(name("CPU µs an event"), Bar::AtMost(12.0), taken);
    if services::broker_pid().is_some() {
        let brokers = micros(|pair| pair.replay.broker_micros());
        report.add(name("the broker's CPU µs an event"), Bar::None, brokers);
        let brokers = micros(|pair| pair.reference.broker_micros());
        report.add(name("the same beside the reference"), Bar::None, brokers);
    }
    for (pair, run) in pairs.iter().zip(1..) {
        let name = format!("reference publisher, {}, {kind}, {run}", archive.size);
        report.rows.push(Row { name, events: EVENTS, cost: pair.reference.cost });
    }
    let rates = pairs.iter().map(|pair| pair.replay.cost.rate(EVENTS));
    Ok(rates.fold(f64::INFINITY, f64::min))
}

/// Both of a pair, one right after the other.
struct Pair {
    reference: Side,
    replay: Side,
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.replay.cost.rate(EVENTS) / self.reference.cost.rate(EVENTS)
    }
}

/// What one of a pair took, and the broker meanwhile.
struct Side {
    cost: timed::Cost,
    broker_seconds: f64,
}

impl Side {
    fn broker_micros(&self) -> f64 {
        self.broker_seconds * 1e6 / EVENTS as f64
    }
}

/// Makes pairs; each side comes first in every other one, for it may leave the broker work.
fn pairs(archive: &Archive, arguments: &Value, runs: usize) -> Result<Vec<Pair>> {
    let side = |publish: &dyn Fn(&Queue) -> Result<timed::Cost>| {
        let queue = Queue::with_arguments("bench", arguments);
        let broker = || services::broker_pid().map_or(Ok(0.0), timed::cpu_seconds);
        let before = broker()?;
        let cost = publish(&queue)?;
        Ok::<_, anyhow::Error>(Side { cost, broker_seconds: broker()? - before })
    };
    let reference = |queue: &Queue| reference(archive, queue);
    let replay = |queue: &Queue| archive.dacapo(&["replay", "--to-queue", queue.name()]);
    let pair = |run: usize| {
        if run.is_multiple_of(2) {
            let reference = side(&reference)?;
            return Ok(Pair { reference, replay: side(&replay)? });
        }
        let replay = side(&replay)?;
        Ok(Pair { reference: side(&reference)?, replay })
    };
    (0..runs).map(pair).collect()
}

fn reference(archive: &Archive, queue: &Queue) -> Result<timed::Cost> {
    let (events, bytes) = (archive.events, archive.body_bytes / archive.events);
    let (events, bytes) = (events.to_string(), bytes.to_string());
    let url = services::amqp();
    archive.inside(&["publish", &url, queue.name(), &events, &bytes])
}

/// An exchange that every broker has, and that the bench binds nothing to.
const NOWHERE: &str = "amq.headers";

/// The sink alone, against the reference publisher, where the broker's intake is the only limit.
fn sink_alone(archive: &Archive, runs: usize, report: &mut Report) -> Result<()> {
    let (url, events) = (services::amqp(), EVENTS.to_string());
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

/// Between two looks at how much was published, which is as exact as a second is told.
const LOOK: Duration = Duration::from_millis(2);

/// A replay at a pace, judged by what it has published in each second: a queue's consumer would see
/// the broker's pauses, too.
#[expect(clippy::disallowed_methods, reason = "a bench measures the wall clock")]
fn paced(archive: &Archive, taken: f64, queue: &Value, report: &mut Report) -> Result<()> {
    let pace = PACES.into_iter().find(|pace| *pace as f64 * HEADROOM < taken);
    let pace = pace.context("the broker takes no pace that is measured")?;
    let events = (pace * PACED_SECONDS).min(EVENTS);
    let queue = Queue::with_arguments("bench", queue);
    let broker = services::amqp();
    let (_, port) = broker.rsplit_once(':').context("the broker's URL has a port")?;
    let port = port.split('/').next().unwrap_or(port).parse()?;
    let wire = Wire::before(port)?;
    let (to, rate, url) = (until(events), pace.to_string(), wire.url(&broker));
    let replay =
        ["replay", "--to", &to, "--rate", &rate, "--to-queue", queue.name(), "--amqp", &url];
    let ended = AtomicBool::new(false);
    // When so many were published.
    let looks = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = vec![(Instant::now(), 0)];
            while !ended.load(Ordering::Relaxed) {
                let published = wire.published();
                if published > looks.last().map_or(0, |(_, published)| *published) {
                    looks.push((Instant::now(), published));
                }
                std::thread::sleep(LOOK);
            }
            looks
        });
        let replayed = archive.dacapo(&replay);
        ended.store(true, Ordering::Relaxed);
        replayed.map(|_| looking.join().expect("it does not panic"))
    })?;
    let (first, last) = (looks.get(1).context("it published")?, looks[looks.len() - 1]);
    let seconds = last.0.duration_since(first.0).as_secs_f64();
    let mean = (last.1 - first.1) as f64 / seconds / pace as f64;
    let name = |what: &str| format!("replay, --rate {pace}: {what}");
    report.add(name("mean against it"), Bar::Within(0.01), vec![mean]);
    let most = looks.iter().map(|(begin, before)| {
        let end = looks.partition_point(|(at, _)| at.duration_since(*begin).as_secs_f64() < 1.0);
        looks[end - 1].1 - before
    });
    let most = most.max().context("it published")? as f64 / pace as f64;
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
