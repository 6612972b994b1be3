//! Whether a queue is drained: nothing waits in it, and nothing that was delivered is not acked.
//!
//! AMQP tells what waits, now. What is unacked only the management plugin tells, from statistics that
//! are some seconds old; so it is believed once it is newer than the last look at what waits.

use std::time::Duration;

use dacapo_amqp::{Broker, queue_state};
use dacapo_drill::report::Drained;
use dacapo_management::{Management, ManagementError, Unacked};
use tokio::time::{Instant, sleep};

use crate::output::words;

/// Between two looks by AMQP: soon enough not to blur a recovery time of seconds.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How old the plugin's statistics may be: RabbitMQ gathers them each 5 s, and a second is its margin.
const STATISTICS_AGE_MAX: Duration = Duration::from_secs(6);

/// Between two looks at the plugin.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);

/// How long a queue that has messages may be without a consumer: past the restart of one.
const ALONE_MAX: Duration = Duration::from_secs(30);

/// Whether everything was acked, and since when.
#[derive(Debug)]
pub struct Acked {
    /// Whether it is.
    pub drained: Drained,
    /// When statistics first said so, less their greatest age: it was no more than that later. Nothing
    /// if it was not or is not known.
    pub since: Option<Instant>,
}

impl Acked {
    fn not(drained: Drained) -> Self {
        Acked { drained, since: None }
    }
}

/// Since when figures say without a break that nothing waits and nothing is unacked.
#[derive(Debug, Default)]
struct Quiet(Option<Instant>);

impl Quiet {
    /// Notes what figures say now, and returns since when they say so.
    fn note(&mut self, figures: Option<Unacked>, now: Instant) -> Option<Instant> {
        match figures {
            Some(Unacked { ready: 0, unacked: 0 }) => Some(*self.0.get_or_insert(now)),
            // Nothing new.
            None => self.0,
            Some(_) => {
                self.0 = None;
                None
            }
        }
    }
}

/// A queue that is to be drained.
pub struct Drain<'a> {
    broker: &'a Broker,
    management: Option<&'a Management>,
    vhost: &'a str,
    queue: &'a str,
    within: Duration,
    deadline: Instant,
}

impl<'a> Drain<'a> {
    /// Begins to look.
    pub fn new(
        broker: &'a Broker,
        management: Option<&'a Management>,
        vhost: &'a str,
        queue: &'a str,
        within: Duration,
    ) -> Self {
        let deadline = Instant::now() + within;
        Drain { broker, management, vhost, queue, within, deadline }
    }

    /// Waits until nothing waits in the queue; or returns why that does not come.
    pub async fn until_nothing_waits(&self) -> anyhow::Result<Result<(), String>> {
        let mut alone_since = None;
        loop {
            let now = Instant::now();
            let state = match queue_state(self.broker, self.queue).await {
                Ok(Some(state)) => state,
                Ok(None) => return Ok(Err(format!("queue `{}` is gone", self.queue))),
                // A broker that restarts costs recovery time, and is no end of a restore.
                Err(error) if error.is_transient() && now < self.deadline => {
                    tracing::warn!(error = words(&error), "the queue was not looked at");
                    sleep(LOOK_INTERVAL).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match state.consumers {
                _ if state.ready == 0 => return Ok(Ok(())),
                0 if now - *alone_since.get_or_insert(now) > ALONE_MAX => {
                    let ready = state.ready;
                    return Ok(Err(format!(
                        "{ready} wait, and nobody has consumed for {ALONE_MAX:?}"
                    )));
                }
                0 => {}
                _ => alone_since = None,
            }
            if now > self.deadline {
                return Ok(Err(format!("{} still wait after {:?}", state.ready, self.within)));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until nothing is unacked either, as far as that can be known.
    pub async fn until_nothing_is_unacked(&self) -> anyhow::Result<Acked> {
        let Some(management) = self.management else {
            // What a consumer gave back would wait again.
            sleep(STATISTICS_INTERVAL).await;
            return Ok(Acked::not(match self.until_nothing_waits().await? {
                Ok(()) => Drained::NothingWaits,
                Err(why) => Drained::No(why),
            }));
        };
        let looked = Instant::now();
        let mut quiet = Quiet::default();
        loop {
            sleep(STATISTICS_INTERVAL).await;
            let figures = match management.unacked(self.vhost, self.queue).await {
                Ok(figures) => figures,
                Err(error @ ManagementError::Unavailable { .. })
                    if Instant::now() < self.deadline =>
                {
                    tracing::warn!(error = words(&error), "the queue was not looked at");
                    None
                }
                Err(error) => return Err(error.into()),
            };
            let fresh = looked.elapsed() > STATISTICS_AGE_MAX;
            let since = quiet.note(figures, Instant::now());
            match figures {
                Some(Unacked { ready: 0, unacked: 0 }) if fresh => {
                    let since = since.and_then(|since| since.checked_sub(STATISTICS_AGE_MAX));
                    return Ok(Acked { drained: Drained::Yes, since });
                }
                _ if Instant::now() < self.deadline || !fresh => {}
                None => {
                    let why = "the plugin has no figures of it".to_owned();
                    return Ok(Acked::not(Drained::No(why)));
                }
                Some(Unacked { ready, unacked }) => {
                    let within = self.within;
                    let why = format!("{unacked} are unacked and {ready} wait after {within:?}");
                    return Ok(Acked::not(Drained::No(why)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_quiet_since_the_last_time_that_it_was_not() {
        let (mut quiet, began) = (Quiet::default(), Instant::now());
        let mut note = |second: u64, figures: Option<(u64, u64)>| {
            let figures = figures.map(|(ready, unacked)| Unacked { ready, unacked });
            let since = quiet.note(figures, began + Duration::from_secs(second));
            since.map(|since| (since - began).as_secs())
        };
        // The first figures are older than the first message.
        assert_eq!(note(1, Some((0, 0))), Some(1));
        assert_eq!(note(2, Some((0, 5))), None);
        assert_eq!(note(20, Some((0, 0))), Some(20));
        assert_eq!(note(21, None), Some(20));
        assert_eq!(note(22, Some((0, 0))), Some(20));
    }
}
