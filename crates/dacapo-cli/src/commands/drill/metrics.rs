//! What drills that run on schedule tell Prometheus.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dacapo_drill::report::Report;
use dacapo_drill::verdict::Verdict;
use dacapo_event::{Clock, Timestamp};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::{process, serve};

type Seconds = Gauge<f64, AtomicU64>;

/// The metrics, all named `dacapo_drill_…`, with the drill's name as a label.
#[derive(Debug)]
pub struct Metrics {
    name: String,
    runs: Family<[(&'static str, &'static str); 1], Counter>,
    met: Gauge,
    last_run: Seconds,
    interval: Seconds,
    rto: Seconds,
    rpo: Seconds,
    /// What is wrong with the last one, if anything is.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Metrics {
    /// Returns those of a drill that did not run yet.
    pub fn new(name: &str, every: Duration) -> Self {
        let metrics = Metrics {
            name: name.to_owned(),
            runs: Family::default(),
            met: Gauge::default(),
            last_run: Seconds::default(),
            interval: Seconds::default(),
            rto: Seconds::default(),
            rpo: Seconds::default(),
            trouble: Arc::default(),
        };
        metrics.interval.set(every.as_secs_f64());
        metrics.rto.set(f64::NAN);
        metrics.rpo.set(f64::NAN);
        for verdict in [Verdict::Met, Verdict::Missed] {
            drop(metrics.runs.get_or_create(&[("verdict", verdict.as_str())]));
        }
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let label = ("drill".into(), self.name.clone().into());
        let registry =
            registry.sub_registry_with_prefix("dacapo_drill").sub_registry_with_label(label);
        registry.register("runs", "Drills that ended, by verdict", self.runs.clone());
        registry.register(
            "met",
            "1 if the last drill met every target, 0 if not or if none ran yet",
            self.met.clone(),
        );
        let seconds = [
            (
                "last_run_timestamp",
                "When the last drill ended, seconds since 1970; 0 before",
                &self.last_run,
            ),
            ("interval", "How often it is to run", &self.interval),
            ("rto", "Recovery time of the last drill; NaN if it was not measured", &self.rto),
            ("rpo", "Recovery point of the last drill; NaN if it was not measured", &self.rpo),
        ];
        for (name, help, gauge) in seconds {
            registry.register_with_unit(name, help, Unit::Seconds, gauge.clone());
        }
    }

    /// Serves `/metrics` and `/health` until dropped, if an address was given.
    pub async fn serve(
        &self,
        address: Option<SocketAddr>,
        clock: Clock,
    ) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let serving = match address {
            None => None,
            Some(address) => {
                let mut registry = process::registry(clock);
                self.register(&mut registry);
                let trouble = Arc::clone(&self.trouble);
                let health: serve::Health = Arc::new(move || {
                    match &*trouble.lock().unwrap_or_else(PoisonError::into_inner) {
                        None => Ok(()),
                        Some(trouble) => Err(trouble.clone()),
                    }
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

    /// Notes that a drill ended; nothing if it could not begin.
    pub fn ended(&self, report: Option<&Report>, now: Timestamp) {
        let verdict = report.map_or(Verdict::Missed, |report| report.verdict);
        self.runs.get_or_create(&[("verdict", verdict.as_str())]).inc();
        self.met.set(i64::from(verdict == Verdict::Met));
        self.last_run.set(now.since(Timestamp::EPOCH).as_secs_f64());
        let seconds = |time: Option<Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64());
        self.rto.set(seconds(report.and_then(|report| report.facts.rto)));
        let rpo = report.and_then(|report| report.facts.rpo.as_ref());
        self.rpo.set(seconds(rpo.map(|rpo| rpo.time)));
        let trouble = match (verdict, report) {
            (Verdict::Met, _) => None,
            (Verdict::Missed, Some(report)) => {
                Some(format!("drill {} missed a target; see its report", report.facts.id))
            }
            (Verdict::Missed, None) => Some("the last drill could not begin".to_owned()),
        };
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}
