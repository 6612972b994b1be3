//! What policies put on the archiver's queues that can lose events: looked at while it runs, told
//! in the log and in a metric.
//!
//! It stops nothing, and an archiver starts in spite of it: a queue that nobody empties loses more
//! to such a limit than one that is emptied.

use std::time::Duration;

use dacapo_bus::broker::{Imposed, Overflow, Setting, parked_queue};
use dacapo_management::Management;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::MissedTickBehavior;

use crate::output::words;

/// How often policies are looked at: soon enough to be seen before what they limit has run out.
const EVERY: Duration = Duration::from_secs(60);

/// Looks at the policies of one queue and its parking queue for as long as it is polled.
#[derive(Debug)]
pub struct Limits {
    management: Management,
    vhost: String,
    queue: String,
    found: Gauge,
}

impl Limits {
    /// Registers `dacapo_archiver_broker_lossy_limits`.
    pub fn register(
        registry: &mut Registry,
        management: Management,
        vhost: String,
        queue: String,
    ) -> Self {
        let found = Gauge::default();
        registry.sub_registry_with_prefix("dacapo_archiver_broker").register(
            "lossy_limits",
            "Limits of policies on the archiver's queues that can lose events; the log names them",
            found.clone(),
        );
        Limits { management, vhost, queue, found }
    }

    /// Looks again and again; never returns. What is found is told once, and again when it changes.
    pub async fn run(self) {
        let parked = parked_queue(&self.queue);
        let mut told: Vec<String> = Vec::new();
        let mut answers = true;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let imposed = self.management.imposed(&self.vhost, [&self.queue, &parked]).await;
            let [main, aside] = match imposed {
                Ok(imposed) => imposed,
                Err(error) => {
                    if answers {
                        let error = words(&error);
                        tracing::warn!(error, "what policies put on the queues is not known");
                    }
                    answers = false;
                    continue;
                }
            };
            answers = true;
            let found = lossy(&self.queue, &main, &aside);
            self.found.set(i64::try_from(found.len()).unwrap_or(i64::MAX));
            for limit in found.iter().filter(|limit| !told.contains(limit)) {
                tracing::warn!(limit, "a policy can lose events; exempt the archiver's queues");
            }
            if found.is_empty() && !told.is_empty() {
                tracing::info!("no policy can lose events any more");
            }
            told = found;
        }
    }
}

/// Returns what can lose events, one sentence each.
///
/// The queue itself parks what a TTL takes from it, so that this is late but not lost; the parking
/// queue has nowhere to put it. Both refuse what is too much for them, unless a policy has them drop
/// their oldest instead.
fn lossy(queue: &str, main: &Imposed, parked: &Imposed) -> Vec<String> {
    let mut found = Vec::new();
    let aside = parked_queue(queue);
    for (name, imposed) in [(queue, main), (aside.as_str(), parked)] {
        if let Some(Setting { value, by }) = &imposed.expires {
            found.push(format!(
                "`{name}` is deleted, with all that waits in it, {value} ms after its last consumer is gone ({by})"
            ));
        }
    }
    if let Some(Setting { value, by }) = &parked.message_ttl {
        found.push(format!("`{aside}` drops what waits for {value} ms ({by})"));
    }
    for (set, unit) in [(&main.length_max, "messages"), (&main.bytes_max, "bytes")] {
        if let Some(Setting { value, by }) = set {
            found.push(format!("`{queue}` takes no more than {value} {unit} ({by})"));
        }
    }
    let drops = |imposed: &Imposed| match &imposed.overflow {
        Some(Setting { value: Overflow::DropHead, by }) => Some(by.clone()),
        _ => None,
    };
    if let Some(by) = drops(main) {
        found.push(format!("`{queue}` parks what it gives up at most once instead of at least once, for it drops its oldest messages when full ({by})"));
    }
    if let Some(by) = drops(parked)
        && (parked.length_max.is_some() || parked.bytes_max.is_some())
    {
        found.push(format!("`{aside}` drops its oldest messages when full ({by})"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<T>(value: T) -> Option<Setting<T>> {
        Some(Setting { value, by: "policy `p`".to_owned() })
    }

    #[track_caller]
    fn check(main: &Imposed, parked: &Imposed, expected: &[&str]) {
        assert_eq!(lossy("q", main, parked), expected);
    }

    #[test]
    fn a_limit_is_lossy_where_nothing_catches_what_it_takes() {
        let none = Imposed::default();
        let ttl = Imposed { message_ttl: set(5), ..Imposed::default() };
        check(&none, &none, &[]);
        check(&ttl, &none, &[]);
        check(&none, &ttl, &["`q.parked` drops what waits for 5 ms (policy `p`)"]);
        let expires = Imposed { expires: set(9), ..Imposed::default() };
        check(
            &expires,
            &expires,
            &[
                "`q` is deleted, with all that waits in it, 9 ms after its last consumer is gone (policy `p`)",
                "`q.parked` is deleted, with all that waits in it, 9 ms after its last consumer is gone (policy `p`)",
            ],
        );
    }

    #[test]
    fn a_full_parking_queue_makes_the_other_wait_unless_it_drops() {
        let most = Imposed { length_max: set(7), bytes_max: set(8), ..Imposed::default() };
        let none = Imposed::default();
        check(
            &most,
            &none,
            &[
                "`q` takes no more than 7 messages (policy `p`)",
                "`q` takes no more than 8 bytes (policy `p`)",
            ],
        );
        check(&none, &most, &[]);
        let rejects = Imposed { overflow: set(Overflow::Reject), ..most.clone() };
        check(&none, &rejects, &[]);
        let drops = Imposed { overflow: set(Overflow::DropHead), ..most };
        check(&none, &drops, &["`q.parked` drops its oldest messages when full (policy `p`)"]);
        let only_says_so = Imposed { overflow: set(Overflow::DropHead), ..Imposed::default() };
        check(&none, &only_says_so, &[]);
        assert_eq!(lossy("q", &only_says_so, &none).len(), 1);
    }
}
