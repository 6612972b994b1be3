//! What the archiver tells of itself: metrics for Prometheus and its health.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use dacapo_bus::Parked;
use dacapo_event::{Clock, Timestamp};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

/// The archiver's metrics, all named `dacapo_archiver_…`, and its [`Health`].
#[derive(Debug)]
pub struct Metrics {
    events: Counter,
    body_bytes: Counter,
    object_bytes: Counter,
    segments: Counter,
    parked: Family<[(&'static str, &'static str); 1], Counter>,
    skipped: Counter,
    barriers: Family<[(&'static str, &'static str); 1], Counter>,
    failed_puts: Counter,
    fenced: Counter,
    store_up: Gauge,
    connected: Gauge,
    active: Gauge,
    last_put: Gauge<f64, AtomicU64>,
    shared: Arc<Shared>,
    troubles: Mutex<Troubles>,
}

/// Whether the archiver does its work; shown as `ok` or as what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It is connected and the store answers; a hot standby is healthy too.
    Ok,
    /// What is wrong.
    Failing(String),
}

#[derive(Debug)]
struct Troubles {
    bus: Option<String>,
    store: Option<String>,
}

/// What the lag is computed of, at the moment of a scrape.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    unacked: Gauge,
    queue_depth: Gauge,
    connected: Gauge,
    /// Microseconds since 1970: everything published before this moment is durable.
    durable_until: AtomicI64,
}

/// Why messages are parked, as far as is known before one was: a series that begins with its first
/// event shows Prometheus no increase. RabbitMQ's reasons, then ours ([`Parked`]).
///
/// Whoever may publish to the parking queue may write any reason into it; all others are
/// [`OTHER_REASON`], for each would be a series for ever.
const PARKED_REASONS: [&str; 6] =
    ["expired", "rejected", "maxlen", "delivery_limit", "unreadable", "published"];

const OTHER_REASON: &str = "other";

/// What became of a barrier.
const ANSWERED: &str = "answered";
const DISPLACED: &str = "displaced";

const NOT_YET: &str = "not connected to the bus yet";

const LAG_HELP: &str = "How old the newest loss would be if the broker were lost now: 0 while the queue is \
     empty and nothing is unacked, else now minus the later of the newest durable event's time and the \
     moment at which the queue was last seen empty with nothing unacked";

impl Metrics {
    /// Registers the metrics. `clock` is read when they are scraped.
    pub fn register(registry: &mut Registry, clock: Clock) -> Self {
        let registry = registry.sub_registry_with_prefix("dacapo_archiver");
        let connected = Gauge::default();
        let shared = Arc::new(Shared {
            clock,
            unacked: Gauge::default(),
            queue_depth: Gauge::default(),
            connected: connected.clone(),
            durable_until: AtomicI64::new(clock().as_micros()),
        });
        let metrics = Metrics {
            events: Counter::default(),
            body_bytes: Counter::default(),
            object_bytes: Counter::default(),
            segments: Counter::default(),
            parked: Family::default(),
            skipped: Counter::default(),
            barriers: Family::default(),
            failed_puts: Counter::default(),
            fenced: Counter::default(),
            store_up: Gauge::default(),
            connected,
            active: Gauge::default(),
            last_put: Gauge::default(),
            shared,
            troubles: Mutex::new(Troubles { bus: Some(NOT_YET.to_owned()), store: None }),
        };
        // The command has used the store before it archives; a failure shows with the first put.
        metrics.store_up.set(1);
        for reason in PARKED_REASONS.into_iter().chain([OTHER_REASON]) {
            drop(metrics.parked.get_or_create(&[("reason", reason)]));
        }
        for outcome in [ANSWERED, DISPLACED] {
            drop(metrics.barriers.get_or_create(&[("outcome", outcome)]));
        }
        registry.register("events", "Events made durable", metrics.events.clone());
        registry.register(
            "body_bytes",
            "Bytes of the bodies made durable, uncompressed",
            metrics.body_bytes.clone(),
        );
        registry.register(
            "object_bytes",
            "Bytes of the segments put",
            metrics.object_bytes.clone(),
        );
        registry.register("segments", "Segments put and committed", metrics.segments.clone());
        registry.register(
            "parked",
            "Deliveries by way of the parking queue, by why the broker set them aside; they are archived",
            metrics.parked.clone(),
        );
        registry.register(
            "skipped_replayed",
            "Deliveries that were replays of archived events and were not archived again",
            metrics.skipped.clone(),
        );
        registry.register(
            "barriers",
            "Barriers taken off the queue, by whether they were answered or had lost their place",
            metrics.barriers.clone(),
        );
        registry.register(
            "failed_puts",
            "Attempts to put or commit a segment that failed and were made again",
            metrics.failed_puts.clone(),
        );
        registry.register(
            "fenced",
            "Times that another archiver had extended the stream, and this one began again at its new end",
            metrics.fenced.clone(),
        );
        registry.register(
            "store_up",
            "1 while the store answers, 0 from a failure until it answers again; nothing is acked until then",
            metrics.store_up.clone(),
        );
        registry.register(
            "unacked",
            "Deliveries taken and not acked, because their segment is not durable yet",
            metrics.shared.unacked.clone(),
        );
        registry.register(
            "queue_depth",
            "Messages that waited in the queue when it was last asked",
            metrics.shared.queue_depth.clone(),
        );
        registry.register("connected", "1 while consuming, else 0", metrics.connected.clone());
        registry.register(
            "active",
            "1 if this archiver has had a delivery since it connected, 0 for a hot standby",
            metrics.active.clone(),
        );
        registry.register_with_unit(
            "last_put_timestamp",
            "When a segment was last made durable, seconds since 1970; 0 if none was since the start",
            Unit::Seconds,
            metrics.last_put.clone(),
        );
        registry.register_collector(Box::new(Lag(Arc::clone(&metrics.shared))));
        metrics
    }

    /// Returns whether the archiver does its work, now.
    pub fn health(&self) -> Health {
        let troubles = self.troubles();
        let parts: Vec<&str> = [&troubles.bus, &troubles.store]
            .into_iter()
            .filter_map(|trouble| trouble.as_deref())
            .collect();
        if parts.is_empty() { Health::Ok } else { Health::Failing(parts.join("; ")) }
    }

    /// Returns how old the newest loss would be if the broker were lost now; see the help of
    /// `dacapo_archiver_lag_seconds`.
    pub fn lag(&self) -> Duration {
        self.shared.lag()
    }

    pub(crate) fn connected(&self) {
        self.connected.set(1);
        let trouble = self.troubles().bus.take();
        if trouble.is_some() {
            tracing::info!("consuming");
        }
    }

    /// Notes that there is no connection to the bus, and logs it the first time.
    pub(crate) fn disconnected(&self, error: &(dyn Error + 'static)) {
        self.connected.set(0);
        self.active.set(0);
        self.set_unacked(0);
        let before =
            self.troubles().bus.replace(format!("no connection to the bus: {}", chain(error)));
        if before.is_none_or(|before| before == NOT_YET) {
            tracing::warn!(error, "there is no connection to the bus, trying until there is");
        }
    }

    /// Notes that deliveries were given back on purpose.
    pub(crate) fn paused(&self, reason: &str) {
        self.connected.set(0);
        self.active.set(0);
        self.set_unacked(0);
        self.troubles().bus = Some(reason.to_owned());
    }

    /// Notes that another archiver has extended the stream, and deliveries were given back.
    pub(crate) fn fenced(&self) {
        self.fenced.inc();
        self.paused("another archiver has extended the stream, beginning again");
    }

    pub(crate) fn store_answers(&self) {
        self.store_up.set(1);
        let trouble = self.troubles().store.take();
        if trouble.is_some() {
            tracing::info!("the store answers again");
        }
    }

    /// Notes that the store fails, and logs it if it did not before.
    pub(crate) fn store_fails(&self, error: &(dyn Error + 'static)) {
        self.store_up.set(0);
        let was_failing = self.troubles().store.replace(chain(error));
        if was_failing.is_none() {
            tracing::warn!(error, "the store fails; nothing is acked until it answers again");
        }
    }

    pub(crate) fn put_failed(&self) {
        self.failed_puts.inc();
    }

    pub(crate) fn answered_a_barrier(&self) {
        self.barriers.get_or_create(&[("outcome", ANSWERED)]).inc();
    }

    #[cfg(test)]
    pub(crate) fn barriers_answered(&self) -> u64 {
        self.barriers.get_or_create(&[("outcome", ANSWERED)]).get()
    }

    pub(crate) fn dropped_a_barrier(&self) {
        self.barriers.get_or_create(&[("outcome", DISPLACED)]).inc();
    }

    pub(crate) fn skipped(&self) {
        self.skipped.inc();
    }

    /// Counts a parked delivery; returns its reason, if that is one that is known.
    pub(crate) fn parked(&self, parked: &Parked) -> &'static str {
        let known = PARKED_REASONS.into_iter().find(|reason| *reason == parked.reason);
        let reason = known.unwrap_or(OTHER_REASON);
        self.parked.get_or_create(&[("reason", reason)]).inc();
        reason
    }

    pub(crate) fn took_a_delivery(&self) {
        self.active.set(1);
    }

    pub(crate) fn set_unacked(&self, unacked: u64) {
        self.shared.unacked.set(i64::try_from(unacked).unwrap_or(i64::MAX));
    }

    /// Notes how deep the queue is; if it is empty and nothing is unacked, all that was published
    /// until now is durable.
    pub(crate) fn set_queue_depth(&self, depth: u64) {
        self.shared.queue_depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
        if depth == 0 && self.shared.unacked.get() == 0 {
            self.durable_until((self.shared.clock)());
        }
    }

    pub(crate) fn durable_until(&self, until: Timestamp) {
        self.shared.durable_until.fetch_max(until.as_micros(), Ordering::Relaxed);
    }

    /// Sets what is durable when the archiver starts, which may be long ago.
    pub(crate) fn durable_at_start(&self, until: Timestamp) {
        self.shared.durable_until.store(until.as_micros(), Ordering::Relaxed);
    }

    pub(crate) fn segment_is_durable(&self, events: u64, body_bytes: u64, object_bytes: u64) {
        self.segments.inc();
        self.events.inc_by(events);
        self.body_bytes.inc_by(body_bytes);
        self.object_bytes.inc_by(object_bytes);
        let micros = (self.shared.clock)().as_micros();
        self.last_put.set(Duration::from_micros(u64::try_from(micros).unwrap_or(0)).as_secs_f64());
    }

    /// Returns what is wrong with the store, if anything; until it is mended the broker keeps what
    /// is published.
    pub fn store_trouble(&self) -> Option<String> {
        self.troubles().store.clone()
    }

    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().expect("nothing panics while it holds this lock")
    }
}

impl Shared {
    fn lag(&self) -> Duration {
        let empty = self.queue_depth.get() == 0 && self.unacked.get() == 0;
        let durable_until = Timestamp::from_micros(self.durable_until.load(Ordering::Relaxed));
        match (self.connected.get(), empty) {
            (1, true) => Duration::ZERO,
            _ => (self.clock)().since(durable_until),
        }
    }
}

/// Computes the lag when it is scraped, so that it grows even while the archiver waits.
#[derive(Debug)]
struct Lag(Arc<Shared>);

impl Collector for Lag {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let lag = ConstGauge::new(self.0.lag().as_secs_f64());
        let unit = Unit::Seconds;
        let metric = encoder.encode_descriptor("lag", LAG_HELP, Some(&unit), lag.metric_type())?;
        lag.encode(metric)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Ok => f.write_str("ok"),
            Health::Failing(reason) => f.write_str(reason),
        }
    }
}

/// Returns an error with its causes on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noon() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn registered() -> (Registry, Metrics) {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, noon);
        (registry, metrics)
    }

    /// Checks the lag with the newest durable event a minute before noon.
    #[track_caller]
    fn check(connected: bool, depth: u64, unacked: u64, expected: u64) {
        let (_, metrics) = registered();
        if connected {
            metrics.connected();
        }
        metrics.durable_at_start(noon().minus(Duration::from_secs(60)));
        metrics.set_unacked(unacked);
        metrics.shared.queue_depth.set(i64::try_from(depth).unwrap());
        assert_eq!(metrics.lag(), Duration::from_secs(expected));
    }

    #[test]
    fn the_lag_is_zero_only_while_nothing_is_known_to_wait() {
        check(true, 0, 0, 0);
        check(true, 1, 0, 60);
        check(true, 0, 1, 60);
        check(false, 0, 0, 60);
    }

    #[test]
    fn an_event_after_a_long_silence_is_not_a_lag_of_the_silence() {
        let (_, metrics) = registered();
        metrics.connected();
        metrics.durable_at_start(noon().minus(Duration::from_secs(86_400)));
        metrics.set_queue_depth(0);
        metrics.set_unacked(1);
        assert_eq!(metrics.lag(), Duration::ZERO, "the queue was seen empty just now");
    }

    #[test]
    fn health_says_what_is_wrong() {
        let (_, metrics) = registered();
        assert_eq!(metrics.health().to_string(), "not connected to the bus yet");
        metrics.connected();
        assert_eq!(metrics.health(), Health::Ok);
        metrics.store_fails(&fmt::Error);
        assert_eq!(metrics.health(), Health::Failing(fmt::Error.to_string()));
        assert_eq!(metrics.store_up.get(), 0);
        metrics.store_answers();
        assert_eq!(metrics.health().to_string(), "ok");
        assert_eq!(metrics.store_up.get(), 1);
    }

    /// A publisher could make a series of his own with every message, and write into the log.
    #[test]
    fn reasons_that_are_not_known_are_one_series() {
        let (registry, metrics) = registered();
        for reason in ["x".repeat(100_000), "y\n".to_owned(), String::new()] {
            assert_eq!(metrics.parked(&Parked { reason }), "other");
        }
        assert_eq!(metrics.parked(&Parked { reason: "expired".to_owned() }), "expired");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let series = text.lines().filter(|line| line.starts_with("dacapo_archiver_parked_total{"));
        assert_eq!(series.count(), PARKED_REASONS.len() + 1);
        assert!(text.contains("dacapo_archiver_parked_total{reason=\"other\"} 3"), "{text}");
    }

    #[test]
    fn every_metric_has_its_name() {
        let (registry, metrics) = registered();
        metrics.parked(&Parked { reason: "expired".to_owned() });
        metrics.segment_is_durable(3, 12, 900);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "dacapo_archiver_events_total 3",
            "dacapo_archiver_body_bytes_total 12",
            "dacapo_archiver_object_bytes_total 900",
            "dacapo_archiver_segments_total 1",
            "dacapo_archiver_parked_total{reason=\"expired\"} 1",
            "dacapo_archiver_skipped_replayed_total 0",
            "dacapo_archiver_parked_total{reason=\"delivery_limit\"} 0",
            "dacapo_archiver_failed_puts_total 0",
            "dacapo_archiver_fenced_total 0",
            "dacapo_archiver_store_up 1",
            "dacapo_archiver_unacked 0",
            "dacapo_archiver_queue_depth 0",
            "dacapo_archiver_connected 0",
            "dacapo_archiver_active 0",
            "dacapo_archiver_last_put_timestamp_seconds 1795435200.0",
            "dacapo_archiver_lag_seconds 0.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
