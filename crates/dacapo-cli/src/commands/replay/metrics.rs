//! What a running replay tells Prometheus.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use dacapo_engine::plan::Plan;
use dacapo_republish::{Phase, Progress};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::serve;

/// Serves `/metrics` and `/health` until dropped, if an address was given.
pub async fn serve(
    address: Option<SocketAddr>,
    watched: watch::Receiver<Progress>,
    plan: &Plan,
) -> anyhow::Result<impl Future<Output = ()>> {
    let serving = match address {
        None => None,
        Some(address) => {
            let mut registry = Registry::default();
            let planned = plan.events;
            let health = watched.clone();
            registry.register_collector(Box::new(Replaying { watched, planned }));
            let health: serve::Health = Arc::new(move || match &health.borrow().phase {
                Phase::Blocked => Err("the broker has blocked publishers".to_owned()),
                Phase::Retrying { reason, .. } => Err(format!("trying again: {reason}")),
                _ => Ok(()),
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
struct Replaying {
    watched: watch::Receiver<Progress>,
    planned: u64,
}

impl Collector for Replaying {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let totals = self.watched.borrow().totals;
        let counters = [
            ("published", "Messages handed to the broker, repeats counted", totals.published),
            ("confirmed", "Events confirmed without a hole before them", totals.confirmed),
            (
                "possible_repeats",
                "Messages that may have been delivered more than once",
                totals.possible_repeats,
            ),
            ("reordered", "Events whose first delivery may have come too early", totals.reordered),
            ("body_bytes", "Bytes of confirmed bodies", totals.bytes),
            ("retries", "Times that publishing started again", totals.retries),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let name = format!("dacapo_replay_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        let planned = ConstGauge::new(i64::try_from(self.planned).unwrap_or(i64::MAX));
        let help = "Events that the plan selects, an estimate unless it is exact";
        let metric = encoder.encode_descriptor(
            "dacapo_replay_planned_events",
            help,
            None,
            planned.metric_type(),
        )?;
        planned.encode(metric)
    }
}
