//! How long the broker's disk lasts: while the store is down, the broker keeps what is published,
//! until a node has no more free disk than its limit and blocks every publisher.
//!
//! [`Watch`] decides, as a plain function of readings and times; [`Watching`] asks and tells.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dacapo_archiver::Metrics;
use dacapo_bus::broker::Node;
use dacapo_management::Management;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::{Instant, MissedTickBehavior};

use crate::format;
use crate::output::words;

/// How often the broker is asked: as often as Prometheus scrapes, and three times as rarely as
/// RabbitMQ collects the figures.
const EVERY: Duration = Duration::from_secs(15);

/// The time that an estimate looks back on: past the bursts of a quorum queue's log, which grows
/// and is cut in pieces of up to 512 MB, and short enough to follow a change of load.
const WINDOW: Duration = Duration::from_secs(600);

/// Fewer readings make no estimate: with two, one burst would look like the end.
const READINGS_MIN: usize = 3;

/// While the store is down the time left is logged this often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Less time than this is worth a warning of its own, whatever the reason.
const SHORT: Duration = Duration::from_secs(3_600);

const UP_HELP: &str = "1 if the broker's management plugin gave its last answer, 0 if it did not; absent without --management";
const FREE_HELP: &str =
    "Free disk of the broker's node whose disk lasts the shortest; absent while it is not known";
const LEFT_HELP: &str = "How long it takes until a node of the broker has as little free disk as its limit \
     allows and blocks publishers, at the rate of the last ten minutes; infinite while free disk does not \
     fall, absent while it is not known";

/// A node's disk, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The node's name.
    pub node: String,
    /// What is free.
    pub free: u64,
    /// With no more than this free the node blocks publishers.
    pub limit: u64,
}

/// Returns a node's disk, if the node runs and can tell how full it is.
fn disk_of(node: Node) -> Option<Disk> {
    let disk = Disk { node: node.name, free: node.disk_free?, limit: node.disk_limit? };
    node.runs.then_some(disk)
}

/// How long a disk lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outlook {
    /// So long, if it goes on like this.
    Lasts(Duration),
    /// It is not filling up.
    Steady,
    /// Too few readings.
    Unknown,
}

/// The disk that lasts the shortest, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    disk: Disk,
    outlook: Outlook,
}

/// What is worth telling an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Warning {
    /// The store is down, and this is how long the broker can wait.
    StoreDown,
    /// Less than [`SHORT`] is left.
    Short,
}

/// One reading of a node's free disk.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Since the watch began.
    at: Duration,
    free: u64,
}

/// The readings of all nodes, and what was told of them.
#[derive(Debug, Default)]
struct Watch {
    nodes: BTreeMap<String, VecDeque<Sample>>,
    store_is_down: bool,
    told_store_down: Option<Duration>,
    told_short: bool,
}

impl Watch {
    /// Takes whether the store is down. When that changes, so does the rate: what was read before
    /// would make the time left look many times too long for as long as the window.
    fn store(&mut self, is_down: bool) {
        if self.store_is_down != is_down {
            self.nodes.clear();
        }
        self.store_is_down = is_down;
    }

    /// Takes what the broker said at a moment, and returns the disk that lasts the shortest.
    fn take(&mut self, at: Duration, disks: Vec<Disk>) -> Option<Reading> {
        self.nodes.retain(|node, _| disks.iter().any(|disk| disk.node == *node));
        let reading = |disk: Disk| {
            let samples = self.nodes.entry(disk.node.clone()).or_default();
            samples.push_back(Sample { at, free: disk.free });
            while samples.front().is_some_and(|first| first.at + WINDOW < at) {
                samples.pop_front();
            }
            Reading { outlook: outlook(samples, disk.limit), disk }
        };
        let room = |reading: &Reading| reading.disk.free.saturating_sub(reading.disk.limit);
        disks.into_iter().map(reading).min_by_key(|reading| (reading.outlook, room(reading)))
    }

    /// Decides whether to tell an operator now.
    fn warning(&mut self, at: Duration, outlook: Outlook) -> Option<Warning> {
        let short = matches!(outlook, Outlook::Lasts(left) if left < SHORT);
        // A disk that lasts twice as long again is out of danger; in between it has been told of.
        if !matches!(outlook, Outlook::Lasts(left) if left < 2 * SHORT) {
            self.told_short = false;
        }
        if !self.store_is_down {
            self.told_store_down = None;
        } else if outlook != Outlook::Unknown
            && self.told_store_down.is_none_or(|told| at >= told + WARN_EVERY)
        {
            self.told_store_down = Some(at);
            self.told_short |= short;
            return Some(Warning::StoreDown);
        }
        if short && !self.told_short {
            self.told_short = true;
            return Some(Warning::Short);
        }
        None
    }
}

/// Returns how long a disk lasts: the rate is the slope of the straight line that fits all samples
/// best, so that one burst counts as little as it should.
fn outlook(samples: &VecDeque<Sample>, limit: u64) -> Outlook {
    let Some(last) = samples.back() else { return Outlook::Unknown };
    if last.free <= limit {
        return Outlook::Lasts(Duration::ZERO);
    }
    if samples.len() < READINGS_MIN {
        return Outlook::Unknown;
    }
    let count = samples.len() as f64;
    let seconds = |sample: &Sample| sample.at.as_secs_f64();
    let free = |sample: &Sample| sample.free as f64;
    let mean_seconds = samples.iter().map(seconds).sum::<f64>() / count;
    let mean_free = samples.iter().map(free).sum::<f64>() / count;
    let (mut both, mut square) = (0.0, 0.0);
    for sample in samples {
        let offset = seconds(sample) - mean_seconds;
        both += offset * (free(sample) - mean_free);
        square += offset * offset;
    }
    let falling = -both / square;
    if falling.is_nan() || falling <= 0.0 {
        return Outlook::Steady;
    }
    // Longer than a `Duration` holds is for ever.
    Duration::try_from_secs_f64((last.free - limit) as f64 / falling)
        .map_or(Outlook::Steady, Outlook::Lasts)
}

/// Asks the broker for as long as it is polled, and tells in metrics and log.
#[derive(Debug)]
pub struct Watching {
    management: Management,
    latest: Latest,
}

/// What was last known; no reading while the broker does not answer, for an old time left is none.
#[derive(Debug, Clone, Default)]
struct Latest(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Whether the broker gave its last answer; nothing before it was asked.
    up: Option<bool>,
    reading: Option<Reading>,
}

impl Watching {
    /// Registers the metrics `dacapo_archiver_broker_disk_…`.
    pub fn register(registry: &mut Registry, management: Management) -> Self {
        let latest = Latest::default();
        registry
            .sub_registry_with_prefix("dacapo_archiver_broker")
            .register_collector(Box::new(latest.clone()));
        Watching { management, latest }
    }

    /// Asks again and again; never returns. A broker that does not answer is asked again.
    pub async fn run(self, metrics: &Metrics) {
        let (mut watch, began) = (Watch::default(), Instant::now());
        let mut answers = true;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let nodes = self.management.nodes().await;
            let at = began.elapsed();
            watch.store(metrics.store_trouble().is_some());
            let reading = match nodes {
                Ok(nodes) => {
                    answers = true;
                    watch.take(at, nodes.into_iter().filter_map(disk_of).collect())
                }
                Err(error) => {
                    if answers {
                        let error = words(&error);
                        tracing::warn!(error, "how long the broker's disk lasts is not known");
                    }
                    answers = false;
                    None
                }
            };
            *self.latest.lock() = Known { up: Some(answers), reading: reading.clone() };
            if let Some(Reading { disk, outlook }) = &reading
                && let Some(warning) = watch.warning(at, *outlook)
            {
                tell(warning, disk, *outlook);
            }
        }
    }
}

fn tell(warning: Warning, disk: &Disk, outlook: Outlook) {
    let left = match outlook {
        Outlook::Lasts(left) => format::seconds(left.as_secs_f64()),
        Outlook::Steady => "not filling up".to_owned(),
        Outlook::Unknown => "not known".to_owned(),
    };
    let Disk { node, free, limit } = disk;
    match warning {
        Warning::StoreDown => tracing::warn!(
            left,
            node,
            free,
            limit,
            "the store is down, and the broker's disk is what keeps events"
        ),
        Warning::Short => tracing::warn!(
            left,
            node,
            free,
            limit,
            "the broker's disk lasts less than an hour; then it blocks publishers"
        ),
    }
}

impl Latest {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Collector for Latest {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (up, reading) = {
            let known = self.lock();
            (known.up, known.reading.clone())
        };
        if let Some(up) = up {
            let up = ConstGauge::new(i64::from(up));
            let kind = up.metric_type();
            up.encode(encoder.encode_descriptor("management_up", UP_HELP, None, kind)?)?;
        }
        let Some(Reading { disk, outlook }) = reading else { return Ok(()) };
        let free = ConstGauge::new(disk.free);
        let kind = free.metric_type();
        let unit = Unit::Bytes;
        free.encode(encoder.encode_descriptor("disk_free", FREE_HELP, Some(&unit), kind)?)?;
        let left = match outlook {
            Outlook::Lasts(left) => left.as_secs_f64(),
            Outlook::Steady => f64::INFINITY,
            Outlook::Unknown => return Ok(()),
        };
        let left = ConstGauge::new(left);
        let unit = Unit::Seconds;
        left.encode(encoder.encode_descriptor("disk", LEFT_HELP, Some(&unit), kind)?)
    }
}

#[cfg(test)]
mod tests;
