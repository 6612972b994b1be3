//! Events on their way to the bus, one after the other, and what became of them.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context;
use dacapo_bus::{Outcome, Sink};
use dacapo_event::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::exit::Failure;

/// Events without a confirm at the most: also how many may have been published past the one that an
/// error names.
const WINDOW: usize = 512;

/// How often the broker is asked whether it blocks publishers.
const LOOK: Duration = Duration::from_secs(1);

/// How long a broker that blocks nobody may take to confirm an event, as in a replay: a quorum queue
/// that lost its leader needs some seconds.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(120);

/// How long what is on its way may take once no more is published.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// An event, and its number in the input from 1 on; or why there is none.
pub(super) type Numbered = anyhow::Result<(u64, Message)>;

/// How far an emission is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) confirmed: u64,
    pub(super) sent: u64,
    /// Whether the broker has asked publishers to pause.
    pub(super) blocked: bool,
}

pub(super) struct Emission {
    pub(super) sink: Box<dyn Sink>,
    /// What their bodies may take together.
    bytes_max: u64,
    /// Events that were handed over and have no outcome, oldest first.
    unanswered: VecDeque<Sent>,
    /// Confirmed events before all that are not.
    confirmed: u64,
    /// Whether one was refused: what is confirmed after it counts no more.
    has_refused: bool,
    answered_at: Instant,
}

struct Sent {
    number: u64,
    bytes: u64,
}

impl Emission {
    pub(super) fn new(sink: Box<dyn Sink>, bytes_max: u64) -> Self {
        Emission {
            sink,
            bytes_max,
            unanswered: VecDeque::new(),
            confirmed: 0,
            has_refused: false,
            answered_at: Instant::now(),
        }
    }

    /// Returns how many events were confirmed, of all those before the first that was not.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Publishes all events in order, and returns when each is confirmed, or at the first that is
    /// not; what is on its way then may still be answered for. Cancel-safe in this sense, too.
    pub(super) async fn run(
        &mut self,
        mut events: mpsc::Receiver<Numbered>,
        mut progress: impl FnMut(Progress),
    ) -> anyhow::Result<()> {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut blocked = false;
        let mut ended = false;
        while !ended || !self.unanswered.is_empty() {
            let has_room = !ended && self.has_room();
            tokio::select! {
                biased;
                outcomes = self.sink.outcomes(), if !self.unanswered.is_empty() => {
                    self.settle(outcomes?)?;
                }
                event = events.recv(), if has_room => match event {
                    Some(event) => {
                        let (number, message) = event?;
                        self.send(number, message).await?;
                    }
                    None => ended = true,
                },
                _ = looks.tick() => {
                    blocked = self.sink.state().await?.blocked;
                    self.check_answered(blocked)?;
                }
            }
            let sent = self.confirmed + self.unanswered.len() as u64;
            progress(Progress { confirmed: self.confirmed, sent, blocked });
        }
        Ok(())
    }

    /// Waits a moment for what is on its way, and counts it.
    pub(super) async fn drain(&mut self) {
        let draining = async {
            while !self.unanswered.is_empty() {
                let Ok(outcomes) = self.sink.outcomes().await else { return };
                // Why it ended is known already.
                drop(self.settle(outcomes));
            }
        };
        drop(timeout(DRAIN_DEADLINE, draining).await);
    }

    fn has_room(&self) -> bool {
        let bytes: u64 = self.unanswered.iter().map(|sent| sent.bytes).sum();
        self.unanswered.len() < WINDOW && (self.unanswered.is_empty() || bytes < self.bytes_max)
    }

    async fn send(&mut self, number: u64, message: Message) -> anyhow::Result<()> {
        if self.unanswered.is_empty() {
            self.answered_at = Instant::now();
        }
        // Before it is sent: a dropped call may have sent it.
        self.unanswered.push_back(Sent { number, bytes: message.body.len() as u64 });
        self.sink
            .send(std::slice::from_ref(&message))
            .await
            .with_context(|| format!("event {number} was not sent"))
    }

    fn settle(&mut self, outcomes: Vec<Outcome>) -> anyhow::Result<()> {
        self.answered_at = Instant::now();
        for outcome in outcomes {
            let Sent { number, .. } =
                self.unanswered.pop_front().context("the broker answered too often")?;
            let reason = match outcome {
                Outcome::Confirmed => {
                    self.confirmed += u64::from(!self.has_refused);
                    continue;
                }
                Outcome::Nacked => "it nacked it (a full queue that rejects publishes?)".to_owned(),
                Outcome::Returned { reason } => {
                    format!(
                        "no queue is bound for it ({reason}); check --exchange and --routing-key"
                    )
                }
            };
            self.has_refused = true;
            let problem = format!("the broker refused event {number}: {reason}");
            return Err(Failure::refused(problem).into());
        }
        Ok(())
    }

    fn check_answered(&mut self, blocked: bool) -> anyhow::Result<()> {
        if blocked || self.unanswered.is_empty() {
            self.answered_at = Instant::now();
        }
        if self.answered_at.elapsed() < CONFIRM_DEADLINE {
            return Ok(());
        }
        let problem = format!(
            "the broker has confirmed nothing for {CONFIRM_DEADLINE:?}; look at the queues that are \
             bound (a quorum queue without a majority?)"
        );
        Err(Failure::unavailable(problem).into())
    }
}
