//! What a run does when something went wrong, and how it ends.

use std::time::Duration;

use dacapo_bus::{BusError, Sink};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{Journal, Run};
use crate::rejects::{Reject, Verdict};
use crate::retry::{Exhausted, LOSSES_MAX};
use crate::window::Refusal;
use crate::{Ended, How, Phase, RejectKind, RepublishError};

/// How long an open may take, TLS and a slow name server included.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);

/// How long a run that was told to stop waits for the last confirms. What is not confirmed by then
/// is repeated when it is resumed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// How long closing in order may take; nothing depends on it but a file's last sync.
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);

impl<P, J: Journal<P>> Run<'_, P, J> {
    /// Deals with a sink that failed; it is of no further use.
    pub(super) async fn fault<E>(&mut self, error: BusError) -> Result<(), How<E, J::Error>> {
        self.sink = None;
        let unfit = match &error {
            BusError::Unsendable { reason } => Some((RejectKind::Unsendable, reason)),
            BusError::TooLarge { reason } => Some((RejectKind::TooLarge, reason)),
            _ => None,
        };
        if let Some((kind, reason)) = unfit {
            if self.window.unanswered() == 1 && !self.window.is_refused() {
                self.window.refuse_unsent(&mut self.totals);
                return self.give_up(kind, reason);
            }
            self.window.send_singly();
            self.window.lose(&mut self.totals);
            self.totals.retries += 1;
            return Ok(());
        }
        self.window.lose(&mut self.totals);
        if !error.is_transient() {
            return Err(How::Failed(RepublishError::Bus(error)));
        }
        if self.window.is_refused() {
            // The refusal has its own delay and budget.
            return Ok(());
        }
        match self.retry.lost() {
            Ok(delay) => {
                self.back_off(delay, error.to_string()).await;
                Ok(())
            }
            Err(Exhausted) => {
                Err(How::Failed(RepublishError::GaveUp { attempts: LOSSES_MAX, source: error }))
            }
        }
    }

    /// Deals with a message that the bus refused, once everything else is answered for.
    pub(super) async fn refused<E>(&mut self, refusal: Refusal) -> Result<(), How<E, J::Error>> {
        match refusal {
            Refusal::Returned { reason } => self.give_up(RejectKind::Unroutable, &reason),
            Refusal::Nacked => match self.retry.nacked() {
                Ok(delay) => {
                    let reason = format!("`{}` was nacked", self.window.front_id());
                    self.back_off(delay, reason).await;
                    Ok(())
                }
                Err(Exhausted) => {
                    let times = match self.retry.nacks_max() {
                        1 => "once".to_owned(),
                        times => format!("{times} times"),
                    };
                    self.give_up(RejectKind::Nacked, &format!("nacked {times}"))
                }
            },
        }
    }

    /// Deals with a front that the bus will not take, with nothing on its way.
    fn give_up<E>(&mut self, kind: RejectKind, reason: &str) -> Result<(), How<E, J::Error>> {
        match self.on_reject.verdict(self.totals.rejected) {
            Verdict::Skip => {
                let rejected = self.window.reject_front();
                self.pass_over(rejected, kind, reason)
            }
            Verdict::Stop => Err(self.stop_at_front(kind, reason)),
        }
    }

    /// Records the front, which the bus will not take, and returns the end of the run.
    fn stop_at_front<E>(&mut self, kind: RejectKind, reason: &str) -> How<E, J::Error> {
        let (position, id) = self.window.front().expect("what was refused is at the front");
        let reject = Reject { position, id, kind, reason };
        if let Err(error) = self.journal.rejected(&reject) {
            return How::Failed(RepublishError::Journal(error));
        }
        How::Rejected { id: self.window.front_id().to_owned(), kind, reason: reason.to_owned() }
    }

    /// Waits for the delay, or until the operator wants to stop.
    async fn back_off(&mut self, delay: Duration, reason: String) {
        let now = Instant::now();
        self.totals.retries += 1;
        self.pacer.hold(now);
        tracing::warn!(reason, ?delay, "publishing starts again");
        self.report(Phase::Retrying { reason, delay });
        tokio::select! {
            biased;
            () = self.operator.stop() => {}
            () = sleep_until(now + delay) => {}
        }
    }

    pub(super) async fn reopen<E>(&mut self) -> Result<(), How<E, J::Error>> {
        match self.open().await {
            None => {}
            Some(Ok(sink)) => {
                self.sink = Some(sink);
                self.gate.reset();
            }
            Some(Err(error)) => self.fault(error).await?,
        }
        Ok(())
    }

    /// Opens a connection, unless the operator wants to stop.
    pub(super) async fn open(&mut self) -> Option<Result<Box<dyn Sink>, BusError>> {
        tokio::select! {
            biased;
            () = self.operator.stop() => None,
            opened = timeout(OPEN_DEADLINE, self.target.open()) => {
                Some(opened.unwrap_or_else(|_| Err(silent("did not open", OPEN_DEADLINE))))
            }
        }
    }

    /// Publishes nothing more, and waits for what is out; returns `how`, or what came between.
    pub(super) async fn finish<E>(&mut self, how: How<E, J::Error>) -> How<E, J::Error> {
        self.report(Phase::Finishing);
        let by = Instant::now() + STOP_DEADLINE;
        while self.window.unanswered() > 0
            && let Some(sink) = &mut self.sink
        {
            match timeout_at(by, sink.outcomes()).await {
                Ok(Ok(outcomes)) => {
                    if let Err(failed) = self.answered(outcomes) {
                        return failed;
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the last confirms did not come");
                    self.sink = None;
                }
                Err(_) => {
                    tracing::warn!(deadline = ?STOP_DEADLINE, "the last confirms did not come in time");
                    break;
                }
            }
        }
        match self.window.take_refusal() {
            // With a limit of rejects, one can be returned that is not passed over.
            Some(Refusal::Returned { reason }) => {
                self.stop_at_front(RejectKind::Unroutable, &reason)
            }
            _ => how,
        }
    }

    pub(super) async fn end<E>(mut self, how: How<E, J::Error>) -> Ended<E, J::Error> {
        self.window.lose(&mut self.totals);
        self.report(Phase::Finishing);
        let mut how = how;
        if let Some(mut sink) = self.sink.take() {
            match timeout(CLOSE_DEADLINE, sink.close()).await {
                // What a file could not keep was not written after all.
                Ok(Err(error @ BusError::File { .. })) => {
                    if matches!(how, How::Completed | How::Interrupted) {
                        how = How::Failed(RepublishError::Bus(error));
                    }
                }
                // Everything was answered for, or is counted as a possible repeat.
                Ok(Err(error)) => tracing::debug!(%error, "the connection did not close in order"),
                Err(_) => tracing::debug!("the connection did not close in time"),
                Ok(Ok(())) => {}
            }
        }
        Ended { how, totals: self.totals }
    }
}

/// Returns the error of a target that does not answer.
pub(super) fn silent(what: &str, deadline: Duration) -> BusError {
    BusError::Disconnected {
        peer: "the target".to_owned(),
        reason: format!("it {what} for {} s", deadline.as_secs()),
    }
}
