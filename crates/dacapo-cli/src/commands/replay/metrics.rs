//! What a running replay tells Prometheus.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;

use dacapo_engine::plan::Plan;
use dacapo_event::Clock;
use dacapo_republish::{Phase, Progress, Totals};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use crate::{process, serve};

/// Serves `/metrics` and `/health` until dropped, if an address was given.
pub async fn serve(
    address: Option<SocketAddr>,
    watched: watch::Receiver<Progress>,
    plan: &Plan,
    clock: Clock,
) -> anyhow::Result<impl Future<Output = ()>> {
    let serving = match address {
        None => None,
        Some(address) => {
            let mut registry = process::registry(clock);
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
        let Progress { totals, phase } = self.watched.borrow().clone();
        let counters = [
            ("published", "Messages handed to the broker, repeats counted", totals.published),
            ("confirmed", "Events confirmed without a hole before them", totals.confirmed),
            (
                "rejected",
                "Events that the broker refused and that were passed over",
                totals.rejected,
            ),
            (
                "possible_repeats",
                "Messages that may have been delivered more than once",
                totals.possible_repeats,
            ),
            ("reordered", "Events whose first delivery may have come too early", totals.reordered),
            (
                "refused",
                "Times that the broker answered for a message with a nack or a return",
                totals.refused,
            ),
            ("body_bytes", "Bytes of confirmed bodies", totals.bytes),
            ("retries", "Times that publishing started again", totals.retries),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            let name = format!("dacapo_replay_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        let gauges = [
            (
                "planned_events",
                "Events that the plan selects, an estimate unless it is exact",
                self.planned,
            ),
            (
                "unconfirmed",
                "Messages handed to the broker that wait for its answer or for that to an earlier one",
                unconfirmed(&totals),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let name = format!("dacapo_replay_{name}");
            gauge.encode(encoder.encode_descriptor(&name, help, None, gauge.metric_type())?)?;
        }
        let help = "1 for what the replay is doing, 0 for what else it could";
        let mut family =
            encoder.encode_descriptor("dacapo_replay_phase", help, None, MetricType::Gauge)?;
        let now = name_of(&phase);
        for phase in PHASES {
            let gauge = ConstGauge::new(i64::from(phase == now));
            gauge.encode(family.encode_family(&[("phase", phase)])?)?;
        }
        Ok(())
    }
}

/// Every name that [`name_of`] returns.
const PHASES: [&str; 6] = ["publishing", "paused", "blocked", "too_deep", "retrying", "finishing"];

fn name_of(phase: &Phase) -> &'static str {
    match phase {
        Phase::Publishing => "publishing",
        Phase::Paused => "paused",
        Phase::Blocked => "blocked",
        Phase::TooDeep { .. } => "too_deep",
        Phase::Retrying { .. } => "retrying",
        Phase::Finishing => "finishing",
    }
}

/// What is left of the published when all that has an end is taken off; see [`Totals`].
fn unconfirmed(totals: &Totals) -> u64 {
    totals.published.saturating_sub(totals.confirmed + totals.refused + totals.possible_repeats)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::registry::Registry;

    use super::*;

    /// Checks lines of what Prometheus is told of this progress.
    #[track_caller]
    fn check(progress: Progress, lines: &[&str]) {
        let mut registry = Registry::default();
        let (_, watched) = watch::channel(progress);
        registry.register_collector(Box::new(Replaying { watched, planned: 100 }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_waits_for_an_answer_is_told() {
        let totals = Totals {
            published: 90,
            confirmed: 50,
            rejected: 1,
            refused: 3,
            possible_repeats: 7,
            ..Totals::default()
        };
        let lines = [
            "dacapo_replay_planned_events 100",
            "dacapo_replay_unconfirmed 30",
            "dacapo_replay_rejected_total 1",
            "dacapo_replay_refused_total 3",
            "dacapo_replay_phase{phase=\"publishing\"} 1",
            "dacapo_replay_phase{phase=\"blocked\"} 0",
        ];
        check(Progress { totals, phase: Phase::Publishing }, &lines);
    }

    #[test]
    fn every_phase_is_one_of_those_that_are_listed() {
        let retrying = Phase::Retrying { reason: String::new(), delay: Duration::ZERO };
        for (phase, name) in [
            (Phase::Paused, "paused"),
            (Phase::Blocked, "blocked"),
            (Phase::TooDeep { depth: 7 }, "too_deep"),
            (retrying, "retrying"),
            (Phase::Finishing, "finishing"),
        ] {
            let line = format!("dacapo_replay_phase{{phase=\"{name}\"}} 1");
            let other = "dacapo_replay_phase{phase=\"publishing\"} 0";
            check(Progress { phase, ..Progress::default() }, &[&line, other]);
        }
    }
}
