//! What a consumer tells of itself, for Prometheus.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::delivery::Delivery;
use crate::handler::Handled;

/// A consumer's metrics, all named `dacapo_consumer_…`.
///
/// | metric | counts |
/// |---|---|
/// | `events_total{outcome,origin}` | events acked: `handled`, `repeat`, `older`, `dead_lettered`; `live` or `replay` |
/// | `retries_total` | attempts after the first, those during an outage included |
/// | `reconnections_total` | connections lost |
/// | `in_flight` | deliveries taken and not acked: 1 while one is handled |
#[derive(Debug, Clone)]
pub struct Metrics {
    events: Family<Labels, Counter>,
    pub(crate) retries: Counter,
    pub(crate) reconnections: Counter,
    pub(crate) in_flight: Gauge,
}

type Labels = [(&'static str, &'static str); 2];

/// What became of an event, counted once it is acked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    outcome: &'static str,
    origin: &'static str,
}

impl Outcome {
    pub(crate) fn handled(handled: Handled, delivery: &Delivery) -> Self {
        Outcome { outcome: outcome(handled), origin: origin(Some(delivery)) }
    }

    /// Returns that of a dead letter; of a message that is no event it is not known where it comes
    /// from.
    pub(crate) fn dead(delivery: Option<&Delivery>) -> Self {
        Outcome { outcome: DEAD_LETTERED, origin: origin(delivery) }
    }
}

const DEAD_LETTERED: &str = "dead_lettered";

impl Metrics {
    /// Registers the metrics. Every series is there from the start, for one that begins with its
    /// first event shows Prometheus no increase.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("dacapo_consumer");
        let metrics = Metrics {
            events: Family::default(),
            retries: Counter::default(),
            reconnections: Counter::default(),
            in_flight: Gauge::default(),
        };
        let handled = [Handled::Done, Handled::Repeat, Handled::Older].map(outcome);
        for outcome in handled.into_iter().chain([DEAD_LETTERED]) {
            for origin in ["live", "replay"] {
                drop(metrics.events.get_or_create(&labels(outcome, origin)));
            }
        }
        let events = metrics.events.clone();
        registry.register("events", "Events acked, by outcome and origin", events);
        let retries = metrics.retries.clone();
        registry.register("retries", "Attempts after the first", retries);
        let reconnections = metrics.reconnections.clone();
        registry.register("reconnections", "Connections to the bus that were lost", reconnections);
        let in_flight = metrics.in_flight.clone();
        registry.register("in_flight", "Deliveries taken and not acked", in_flight);
        metrics
    }

    pub(crate) fn count(&self, Outcome { outcome, origin }: Outcome) {
        self.events.get_or_create(&labels(outcome, origin)).inc();
    }
}

fn labels(outcome: &'static str, origin: &'static str) -> Labels {
    [("outcome", outcome), ("origin", origin)]
}

fn outcome(handled: Handled) -> &'static str {
    match handled {
        Handled::Done => "handled",
        Handled::Repeat => "repeat",
        Handled::Older => "older",
    }
}

fn origin(delivery: Option<&Delivery>) -> &'static str {
    if delivery.is_some_and(|delivery| delivery.replay().is_some()) { "replay" } else { "live" }
}
