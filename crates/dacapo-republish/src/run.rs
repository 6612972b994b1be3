//! The loop: waits for confirms, input, pace, target and operator, and carries out what the plain
//! parts decide.

use std::pin::{Pin, pin};
use std::time::Duration;

use dacapo_bus::{BusError, Connect, Outcome, Sink};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::{Stream, StreamExt as _};

mod recover;

use recover::silent;

use crate::control::Operator;
use crate::gate::{Gate, NoDepth};
use crate::pacer::{Admit, Pacer};
use crate::rejects::{OnReject, Reject};
use crate::retry::{NackRetries, Retry};
use crate::window::{Rejected, Settled, Window};
use crate::{
    Control, Ended, How, Outgoing, Pace, Phase, Progress, RejectKind, RepublishError, Totals,
    WindowLimits,
};

/// The most messages handed over in one call: enough to make its cost vanish, few enough that
/// confirms and the operator are looked at every few milliseconds.
const BATCH_MAX: usize = 200;

/// No more input is taken while bodies and properties of so many bytes wait: two calls of usual events, and large
/// ones must not gather here while the target is slow.
const PENDING_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// How long a target may take no messages before it counts as lost.
const SEND_DEADLINE: Duration = Duration::from_secs(60);

/// How long a target that is not blocked may confirm nothing before it counts as lost. A queue
/// that elects a new leader is silent for seconds, not minutes.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(120);

/// How long to wait for the state of a target: a blocked one may not answer at all.
const STATE_DEADLINE: Duration = Duration::from_secs(5);

/// Nothing is waited for longer than this without looking at everything again.
const TURN_MAX: Duration = Duration::from_secs(60);

/// How a run publishes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Config {
    /// How fast.
    pub pace: Pace,
    /// How far beyond the checkpoint.
    pub window: WindowLimits,
    /// What to do about an event that the bus will not take.
    pub on_reject: OnReject,
    /// How often an event that the bus nacks is published again before it will not take it.
    pub nack_retries: NackRetries,
}

/// Keeps the checkpoint and the rejects.
pub trait Journal<P> {
    /// Why one of them could not be written.
    type Error;

    /// Writes the checkpoint: everything up to and including `last` is confirmed, or was told to
    /// [`Journal::rejected`]. Called each time that moves, with the counts at that moment, and
    /// before anything else is published; it is written when this returns.
    fn settled(&mut self, last: &P, totals: &Totals) -> Result<(), Self::Error>;

    /// Records an event that the bus would not take, durably when this returns. Everything before
    /// it has been told to [`Journal::settled`]. If the run passes over the event, its position is
    /// settled next; if the run ends here, it is not, and a resumed run meets the event again.
    fn rejected(&mut self, reject: &Reject<'_, P>) -> Result<(), Self::Error>;
}

/// Publishes the batches of `input` in order, at least once, until all are confirmed or something
/// ends it before; the target is left as it is (see [`Connect::dismantle`]).
///
/// A lost connection or a nack starts publishing again at the first unconfirmed message, with
/// growing delays and a bounded budget that any progress refills. An event that is returned
/// (unroutable), nacked beyond the budget, too large, or that cannot be sent at all is recorded,
/// and ends the run as [`How::Rejected`] or is passed over, as [`Config::on_reject`] says. Each
/// event has a budget of nacks of its own: a full queue rejects what follows no faster. Waiting for a blocked or too deep target costs no budget. The first
/// connection is not tried again: it is more likely to be wrong than broken.
///
/// `control` is obeyed at any time; when its sender is dropped, a paused run goes on. `progress`
/// is told of every change.
///
/// Not cancel-safe in one respect: a dropped run does not wait for its confirms, so a resumed one
/// repeats up to a window.
pub async fn republish<P, S, E, J>(
    target: &dyn Connect,
    input: S,
    config: &Config,
    journal: &mut J,
    control: watch::Receiver<Control>,
    progress: &watch::Sender<Progress>,
) -> Ended<E, J::Error>
where
    S: Stream<Item = Result<Vec<Outgoing<P>>, E>>,
    J: Journal<P>,
{
    let now = Instant::now();
    let mut run = Run {
        target,
        sink: None,
        window: Window::new(config.window),
        pacer: Pacer::new(&config.pace, now),
        gate: Gate::new(config.pace.queue_depth_max),
        retry: Retry::new(config.nack_retries),
        on_reject: config.on_reject,
        journal,
        operator: Operator::new(control),
        progress,
        totals: Totals::default(),
        heard: now,
    };
    let how = match run.first_open().await {
        Ok(()) => {
            run.pacer = Pacer::new(&config.pace, Instant::now());
            match run.publish(pin!(input)).await {
                Ok(()) => How::Completed,
                Err(how) => how,
            }
        }
        Err(how) => how,
    };
    run.end(how).await
}

struct Run<'a, P, J> {
    target: &'a dyn Connect,
    sink: Option<Box<dyn Sink>>,
    window: Window<P>,
    pacer: Pacer,
    gate: Gate,
    retry: Retry,
    on_reject: OnReject,
    journal: &'a mut J,
    operator: Operator,
    progress: &'a watch::Sender<Progress>,
    totals: Totals,
    /// When the target last confirmed something, or had nothing to confirm.
    heard: Instant,
}

/// What to do next.
enum Step {
    Publish(usize),
    Wait { until: Option<Instant>, phase: Phase },
    Complete,
}

/// Whether more can come from the input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    Ended,
}

/// What a wait ended with.
enum Turn<P, E> {
    Outcomes(Result<Vec<Outcome>, BusError>),
    Input(Option<Result<Vec<Outgoing<P>>, E>>),
    Look,
}

impl<P, J: Journal<P>> Run<'_, P, J> {
    async fn first_open<E>(&mut self) -> Result<(), How<E, J::Error>> {
        match self.open().await {
            Some(Ok(sink)) => self.sink = Some(sink),
            Some(Err(error)) => return Err(How::Failed(RepublishError::Bus(error))),
            None => return Err(How::Interrupted),
        }
        Ok(())
    }

    /// Publishes until all of the input is confirmed, or says how it ended before.
    async fn publish<S, E>(&mut self, mut input: Pin<&mut S>) -> Result<(), How<E, J::Error>>
    where
        S: Stream<Item = Result<Vec<Outgoing<P>>, E>>,
    {
        let mut left = Input::Open;
        loop {
            if self.operator.wants() == Control::Stop {
                return Err(self.finish(How::Interrupted).await);
            }
            if let Some(refusal) = self.window.take_refusal() {
                self.refused(refusal).await?;
                continue;
            }
            if self.sink.is_none() {
                self.reopen().await?;
                continue;
            }
            let now = Instant::now();
            if self.must_ask(now) {
                self.ask(now).await?;
                continue;
            }
            match self.decide(now, left) {
                Step::Complete => return Ok(()),
                Step::Publish(count) => {
                    self.report(Phase::Publishing);
                    self.send(count).await?;
                }
                Step::Wait { until, phase } => {
                    self.report(phase);
                    match self.wait(until, &mut input, left).await {
                        Turn::Look => self.check_silence().await?,
                        Turn::Outcomes(Ok(outcomes)) => self.answered(outcomes)?,
                        Turn::Outcomes(Err(error)) => self.fault(error).await?,
                        Turn::Input(None) => left = Input::Ended,
                        Turn::Input(Some(Ok(batch))) => self.window.push(batch),
                        Turn::Input(Some(Err(error))) => {
                            let failed = How::Failed(RepublishError::Input(error));
                            return Err(self.finish(failed).await);
                        }
                    }
                }
            }
        }
    }

    fn must_ask(&self, now: Instant) -> bool {
        self.operator.wants() == Control::Run
            && !self.window.is_empty()
            && !self.window.is_refused()
            && self.gate.ask_at().is_none_or(|at| at <= now)
    }

    fn decide(&mut self, now: Instant, input: Input) -> Step {
        let idle = |phase| Step::Wait { until: None, phase };
        if self.window.is_refused() {
            return idle(Phase::Publishing);
        }
        if self.window.is_empty() && input == Input::Ended {
            return Step::Complete;
        }
        if self.operator.wants() == Control::Pause {
            self.pacer.hold(now);
            return idle(Phase::Paused);
        }
        if self.window.is_empty() {
            return idle(Phase::Publishing);
        }
        // A target that has blocked the connection confirms nothing either, so it is asked while
        // all that may be published is on its way.
        let waiting = |phase| Step::Wait { until: self.gate.ask_at(), phase };
        match self.gate.shut() {
            // Nothing is held back by a depth when nothing is left to publish.
            Some(Phase::TooDeep { .. }) if self.window.pending() == 0 => {}
            Some(phase) => {
                self.pacer.hold(now);
                return waiting(phase);
            }
            None => {}
        }
        let sendable = self.window.sendable(BATCH_MAX.min(self.gate.room()));
        if sendable == 0 {
            return waiting(Phase::Publishing);
        }
        match self.pacer.admit(now, self.window.next(sendable)) {
            Admit::Now(count) => Step::Publish(count),
            Admit::At(at) => Step::Wait { until: Some(at), phase: Phase::Publishing },
        }
    }

    async fn wait<S, E>(
        &mut self,
        until: Option<Instant>,
        input: &mut Pin<&mut S>,
        left: Input,
    ) -> Turn<P, E>
    where
        S: Stream<Item = Result<Vec<Outgoing<P>>, E>>,
    {
        let unanswered = self.window.unanswered() > 0;
        let hungry = left == Input::Open
            && self.window.pending() < BATCH_MAX
            && self.window.pending_bytes() < PENDING_BYTES_MAX;
        let mut wake = Instant::now() + TURN_MAX;
        if let Some(until) = until {
            wake = wake.min(until);
        }
        if unanswered {
            wake = wake.min(self.heard + CONFIRM_DEADLINE);
        }
        let sink = self.sink.as_mut().expect("a run waits only while it is connected");
        tokio::select! {
            biased;
            () = self.operator.changed() => Turn::Look,
            outcomes = sink.outcomes(), if unanswered => Turn::Outcomes(outcomes),
            batch = input.next(), if hungry => Turn::Input(batch),
            () = sleep_until(wake) => Turn::Look,
        }
    }

    /// Hands `count` pending messages to the sink.
    async fn send<E>(&mut self, count: usize) -> Result<(), How<E, J::Error>> {
        let mut left = count;
        while left > 0 {
            if self.window.unanswered() == 0 {
                self.heard = Instant::now();
            }
            let range = self.window.publish(left, &mut self.totals);
            left -= range.len();
            self.gate.published(range.len());
            let sink = self.sink.as_mut().expect("a run publishes only while it is connected");
            let sent = timeout(SEND_DEADLINE, sink.send(self.window.slice(range))).await;
            if let Err(error) =
                sent.unwrap_or_else(|_| Err(silent("took no messages", SEND_DEADLINE)))
            {
                return self.fault(error).await;
            }
        }
        Ok(())
    }

    fn answered<E>(&mut self, outcomes: Vec<Outcome>) -> Result<(), How<E, J::Error>> {
        self.heard = Instant::now();
        let mut last = None;
        for outcome in outcomes {
            let verdict = self.on_reject.verdict(self.totals.rejected);
            match self.window.answer(outcome, verdict, &mut self.totals) {
                Some(Settled::Confirmed(position)) => last = Some(position),
                Some(Settled::Returned { rejected, reason }) => {
                    self.settle(last.take())?;
                    self.pass_over(rejected, RejectKind::Unroutable, &reason)?;
                }
                None => {}
            }
        }
        self.settle(last)
    }

    /// Writes the checkpoint, if it moved.
    fn settle<E>(&mut self, last: Option<P>) -> Result<(), How<E, J::Error>> {
        let Some(last) = last else { return Ok(()) };
        self.retry.progressed();
        let written = self.journal.settled(&last, &self.totals);
        written.map_err(|error| How::Failed(RepublishError::Journal(error)))
    }

    /// Records an event that the bus will not take, and only then moves the checkpoint past it.
    fn pass_over<E>(
        &mut self,
        rejected: Rejected<P>,
        kind: RejectKind,
        reason: &str,
    ) -> Result<(), How<E, J::Error>> {
        let Rejected { position, id } = rejected;
        let reject = Reject { position: &position, id: &id, kind, reason };
        let recorded = self.journal.rejected(&reject);
        recorded.map_err(|error| How::Failed(RepublishError::Journal(error)))?;
        self.totals.rejected += 1;
        self.settle(Some(position))
    }

    /// Asks the target how it is.
    async fn ask<E>(&mut self, now: Instant) -> Result<(), How<E, J::Error>> {
        let sink = self.sink.as_mut().expect("a run asks only while it is connected");
        let state = tokio::select! {
            biased;
            () = self.operator.changed() => return Ok(()),
            state = timeout(STATE_DEADLINE, sink.state()) => state,
        };
        match state {
            Err(_) => self.gate.silent(Instant::now()),
            Ok(Err(error)) => return self.fault(error).await,
            Ok(Ok(state)) => {
                let known = self.gate.answer(state, self.window.unanswered() as u64, now);
                known.map_err(|NoDepth| How::Failed(RepublishError::DepthUnknown))?;
            }
        }
        Ok(())
    }

    /// Gives a target up that confirms nothing although it is not blocked.
    async fn check_silence<E>(&mut self) -> Result<(), How<E, J::Error>> {
        let now = Instant::now();
        if self.window.unanswered() == 0 || now < self.heard + CONFIRM_DEADLINE {
            return Ok(());
        }
        let sink = self.sink.as_mut().expect("a run waits only while it is connected");
        match timeout(STATE_DEADLINE, sink.state()).await {
            Ok(Ok(state)) if state.blocked => {
                self.heard = now;
                Ok(())
            }
            Ok(Err(error)) => self.fault(error).await,
            Ok(Ok(_)) | Err(_) => self.fault(silent("confirmed nothing", CONFIRM_DEADLINE)).await,
        }
    }

    fn report(&self, phase: Phase) {
        let totals = self.totals;
        self.progress.send_if_modified(|progress| {
            let changed = progress.totals != totals || progress.phase != phase;
            if changed {
                *progress = Progress { totals, phase };
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests;
