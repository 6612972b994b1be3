//! Replays, beside the reference publisher and at a pace.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dacapo_integration::campaign::wire::Wire;
use dacapo_integration::services;
use dacapo_integration::witness::Queue;
use serde_json::{Value, json};

use crate::archive::Archive;
use crate::broker::{Broker, Place, QUEUE, places};
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
        let [pair] = &pairs(&archive, &quorum, Place::Shared, 1)?[..] else {
            unreachable!("one was asked for")
        };
        pair.tell(size, report);
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
    let size = archive.size;
    let mut slowest = f64::INFINITY;
    for place in places()? {
        let pairs = pairs(archive, arguments, *place, runs)?;
        let each = |of: fn(&Pair) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
        let (place, bar) = match place {
            Place::Shared => ("", Bar::AtMost(12.0)),
            Place::Apart => (", broker apart", Bar::None),
        };
        let name = |what: &str| format!("replay, {size}, {kind}{place}: {what}");
        report.add(name("rate against reference"), Bar::AtLeast(0.95), each(Pair::ratio));
        report.add(name("CPU µs an event"), bar, each(|pair| pair.replay.micros()));
        report.add(name("CPU against the reference's"), Bar::None, each(Pair::cpu_ratio));
        let brokers = each(|pair| pair.replay.broker_micros());
        report.add(name("the broker's CPU µs"), Bar::None, brokers);
        let brokers = each(|pair| pair.reference.broker_micros());
        report.add(name("the same beside the reference"), Bar::None, brokers);
        for (pair, run) in pairs.iter().zip(1..) {
            pair.tell(&format!("{size}, {kind}{place}, {run}"), report);
        }
        slowest = pairs.iter().map(|pair| pair.replay.rate()).fold(slowest, f64::min);
    }
    Ok(slowest)
}

/// Both of a pair, one right after the other, each with a broker of its own.
struct Pair {
    reference: Side,
    replay: Side,
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.replay.rate() / self.reference.rate()
    }

    fn cpu_ratio(&self) -> f64 {
        self.replay.micros() / self.reference.micros()
    }

    /// Adds what each took to the report.
    fn tell(&self, of: &str, report: &mut Report) {
        for (who, Side { events, cost, .. }) in
            [("reference publisher", &self.reference), ("replay", &self.replay)]
        {
            report.rows.push(Row { name: format!("{who}, {of}"), events: *events, cost: *cost });
        }
    }
}

/// What one of a pair took for so many events, and the broker meanwhile.
struct Side {
    events: u64,
    cost: timed::Cost,
    broker_seconds: f64,
}

impl Side {
    fn rate(&self) -> f64 {
        self.cost.rate(self.events)
    }

    fn micros(&self) -> f64 {
        self.cost.cpu_micros(self.events)
    }

    fn broker_micros(&self) -> f64 {
        self.broker_seconds * 1e6 / self.events as f64
    }
}

/// Makes pairs; each side comes first in every other one, for the machine may tire.
fn pairs(archive: &Archive, queue: &Value, place: Place, runs: usize) -> Result<Vec<Pair>> {
    let side = |publish: &dyn Fn(&str) -> Result<timed::Cost>| {
        let broker = Broker::start(queue)?;
        broker.beside(place, || {
            let before = broker.cpu_seconds()?;
            let cost = publish(&broker.url())?;
            let broker_seconds = broker.cpu_seconds()? - before;
            Ok(Side { events: archive.events, cost, broker_seconds })
        })
    };
    let (events, bytes) = (archive.events, archive.body_bytes / archive.events);
    let (events, bytes) = (events.to_string(), bytes.to_string());
    let reference = |url: &str| archive.inside(&["publish", url, QUEUE, &events, &bytes]);
    let replay = |url: &str| archive.dacapo(&["replay", "--to-queue", QUEUE, "--amqp", url]);
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
