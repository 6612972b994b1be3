//! What a running backfill tells Prometheus.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use dacapo_event::Clock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::telling::Told;
use crate::{process, serve};

/// Serves `/metrics` and `/health` until dropped, if an address was given.
pub async fn serve(
    address: Option<SocketAddr>,
    watched: watch::Receiver<Told>,
    clock: Clock,
) -> anyhow::Result<impl Future<Output = ()>> {
    let serving = match address {
        None => None,
        Some(address) => {
            let mut registry = process::registry(clock);
            let health = watched.clone();
            registry.register_collector(Box::new(Backfilling { watched }));
            let health: serve::Health = Arc::new(move || match &health.borrow().trouble {
                Some(trouble) => Err(trouble.clone()),
                None => Ok(()),
            });
            Some(serve::listen(address, Arc::new(registry), health).await?.1)
        }
    };
    Ok(async move {
        match serving {
            Some(serving) => serving.await,
            None => pending().await,
        }
    })
}

#[derive(Debug)]
struct Backfilling {
    watched: watch::Receiver<Told>,
}

/// The phases of a backfill, in order.
const PHASES: [&str; 3] = ["history", "catching-up", "live"];

impl Collector for Backfilling {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let told = self.watched.borrow().clone();
        let counts = &told.counts;
        let help = "1 for where the backfill is, 0 for where else it could be";
        let mut family =
            encoder.encode_descriptor("dacapo_backfill_phase", help, None, MetricType::Gauge)?;
        for phase in PHASES {
            let gauge = ConstGauge::new(i64::from(phase == told.stage.phase()));
            gauge.encode(family.encode_family(&[("phase", phase)])?)?;
        }
        let help = "Events that the queue got, or that were dropped as repeats, by where from";
        let mut family =
            encoder.encode_descriptor("dacapo_backfill_events", help, None, MetricType::Counter)?;
        for (from, events) in [
            ("history", counts.history.events + told.round.confirmed),
            ("held", counts.forwarded),
            ("dropped", counts.dropped),
        ] {
            ConstCounter::new(events).encode(family.encode_family(&[("from", from)])?)?;
        }
        let help = "Messages that may have come more than once, at the most";
        let repeats = counts.possible_repeats() + told.round.possible_repeats;
        let counter = ConstCounter::new(repeats);
        let name = "dacapo_backfill_possible_repeats";
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        let help = "Messages in the holding queue when it was last asked";
        let gauge = ConstGauge::new(i64::try_from(told.held).unwrap_or(i64::MAX));
        let name = "dacapo_backfill_held";
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        if let Some(behind) = told.behind {
            let help = "How old what the queue lacks may be; absent while history is played for the \
                        first time";
            let gauge = ConstGauge::new(behind.as_secs_f64());
            let unit = Some(&Unit::Seconds);
            let name = "dacapo_backfill_behind";
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dacapo_engine::backfill::Stage;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn where_it_is_and_how_far_behind_is_told() {
        let mut told = Told { stage: Stage::Held, held: 7, ..Told::default() };
        told.behind = Some(Duration::from_millis(1_500));
        told.counts.dropped = 3;
        told.counts.live_as_well = 2;
        let mut registry = Registry::default();
        let (_, watched) = watch::channel(told);
        registry.register_collector(Box::new(Backfilling { watched }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "dacapo_backfill_phase{phase=\"catching-up\"} 1",
            "dacapo_backfill_phase{phase=\"history\"} 0",
            "dacapo_backfill_events_total{from=\"dropped\"} 3",
            "dacapo_backfill_possible_repeats_total 2",
            "dacapo_backfill_held 7",
            "dacapo_backfill_behind_seconds 1.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
