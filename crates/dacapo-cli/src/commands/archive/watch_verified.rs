//! When the archive was last found sound, as a metric of the archiver: verifications are started
//! by a timer, and one that is not started any more is not noticed otherwise.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use dacapo_archive::store::Store;
use dacapo_archive::verified;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// How often the record is read: verifications are days apart.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// Registers `dacapo_archive_verified_timestamp_seconds`, and returns what keeps it up to date and
/// never ends.
pub fn follow(registry: &mut Registry, store: Arc<dyn Store>) -> impl Future<Output = ()> + use<> {
    let gauge = Gauge::<f64, AtomicU64>::default();
    registry.sub_registry_with_prefix("dacapo_archive").register_with_unit(
        "verified_timestamp",
        "When `dacapo archive verify` last found the archive sound, seconds since 1970; 0 if never",
        Unit::Seconds,
        gauge.clone(),
    );
    async move {
        loop {
            match verified::last(&*store).await {
                Ok(at) => {
                    let micros = at.map_or(0, |at| u64::try_from(at.as_micros()).unwrap_or(0));
                    gauge.set(Duration::from_micros(micros).as_secs_f64());
                }
                // The store's troubles are told by who needs it; what was known still holds.
                Err(error) => tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the record of the last verification was not read"
                ),
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}
