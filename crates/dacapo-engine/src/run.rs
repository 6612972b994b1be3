//! Carries out a plan: reads, marks, publishes, and keeps the journal.
//!
//! Decides nothing about what is published or where; that is in the plan. Reading ahead
//! and publishing go on side by side within one future, bounded by a short queue.

use std::collections::VecDeque;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dacapo_archive::store::Store;
use dacapo_archive::store::metered::Metered;
use dacapo_bus::Connect;
use dacapo_event::{
    Clock, Digest, Event, MemoryBudget, Message, Sequence, ShortStr, StreamName, Timestamp, marking,
};
use dacapo_filter::Selection;
use dacapo_republish::{
    Config, Control, How, NackRetries, OnReject, Outgoing, Progress, Reject, RepublishError,
    Totals, WindowLimits, republish,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::EngineError;
use crate::export;
use crate::journal::{Counts, Journal, Phase, Standing};
use crate::merge::{Merge, Positions, Selected};
use crate::plan::Plan;
use crate::receipt::Receipt;
use crate::rejects::{RejectFile, Rejected, readable};
use crate::state::{Control as Asked, Locked, ReplayId, State};

/// Batches that lie ready between reading and publishing: one to go on with while the next is
/// decoded. Each may be a single large body, so that more would be memory.
const BATCHES_AHEAD: usize = 1;

/// How often the state directory is looked at for what another terminal asks.
const CONTROL_INTERVAL: Duration = Duration::from_millis(250);

/// How long removing what the target declared may take; nothing depends on it.
const DISMANTLE_DEADLINE: Duration = Duration::from_secs(30);

/// Is shown each event once, with the message that it is published as, before it is; how often that is
/// then published does not matter.
pub type Look<'a> = &'a (dyn Fn(&Event, &mut Message) + Sync);

/// A replay, ready to run.
pub struct Replay<'a> {
    /// Where its journal and receipt are.
    pub state: &'a State,
    /// Its lock; nobody else runs it.
    pub locked: &'a Locked,
    /// What it does.
    pub plan: &'a Plan,
    /// Where it reads.
    pub store: Arc<dyn Store>,
    /// Where it publishes.
    pub target: &'a dyn Connect,
    /// What it does about events that the target refuses; as the run before, if nothing.
    pub on_reject: Option<OnReject>,
    /// How often it tries one again that is nacked; as the run before, if nothing.
    pub nack_retries: Option<NackRetries>,
    /// Tells the time for the journal.
    pub clock: Clock,
    /// What reading and the window share.
    pub memory: MemoryBudget,
    /// Who looks on, if someone does.
    pub look: Option<Look<'a>>,
}

/// How a run ended: the receipt always, and what went wrong if something did.
#[derive(Debug)]
pub struct Finished {
    /// What was done, over all runs; written to the state directory.
    pub receipt: Receipt,
    /// Why it is not complete, unless it is or was interrupted on purpose.
    pub error: Option<EngineError>,
}

/// What lies between the archive and the bus, in order of publishing.
type Emitted = Arc<Mutex<VecDeque<Place>>>;

/// What a checkpoint has to know of an event.
struct Place {
    stream: StreamName,
    sequence: Sequence,
    /// Events before it that the expression failed on.
    skipped: u64,
    /// The rest is for the reject file; nothing of it is copied.
    time: Timestamp,
    kind: String,
    exchange: ShortStr,
    routing_key: ShortStr,
    body: Bytes,
}

impl Replay<'_> {
    /// Publishes what is not confirmed yet, until all is, `control` says stop, or something fails.
    ///
    /// # Errors
    /// The journal or the receipt cannot be written, or the replay has ended for good before.
    /// Everything else is in [`Finished::error`], beside the receipt.
    pub async fn run(
        &self,
        control: watch::Receiver<Control>,
        progress: &watch::Sender<Progress>,
    ) -> Result<Finished, EngineError> {
        let id = &self.locked.id;
        let (mut journal, standing) = Journal::open(&self.state.journal_path(id))?;
        if !standing.phase.is_resumable() {
            if !self.has_receipt(standing.phase)? {
                // The run before came to its end, and then was killed, or its disk was full.
                let receipt = self.leave(&standing, None).await?;
                return Ok(Finished { receipt, error: self.passed_over(&standing.counts) });
            }
            return Err(EngineError::WrongState {
                id: id.to_string(),
                state: standing.phase.as_str().to_owned(),
                hint: "there is nothing to resume; `dacapo replays show` prints its receipt"
                    .to_owned(),
            });
        }
        let mut rejects = RejectFile::open(&self.state.rejects_path(id), &standing)?;
        let on_reject = self.on_reject.unwrap_or(standing.on_reject);
        let nack_retries = self.nack_retries.unwrap_or(standing.nack_retries);
        let selection = Arc::new(Selection::compile(self.plan.request.selection.clone())?);
        let mut counts = self.counts_to_go_on_with(&standing);
        journal.began((self.clock)(), on_reject, nack_retries)?;
        counts.runs = counts.runs.saturating_add(1);
        // What the run before may have repeated is counted even if this one is killed at once.
        journal.checkpoint(&counts, &standing.positions)?;

        let metered = Arc::new(Metered::new(Arc::clone(&self.store)));
        let store: Arc<dyn Store> = Arc::clone(&metered) as Arc<dyn Store>;
        let streams = self.plan.streams(&standing.positions);
        let merge = Merge::new(store, selection, streams, self.memory);
        let emitted = Emitted::default();
        let (batches, input) = mpsc::channel(BATCHES_AHEAD);
        let mut checkpoints = Checkpoints {
            journal: &mut journal,
            rejects: &mut rejects,
            replay: self,
            emitted: Arc::clone(&emitted),
            popped: 0,
            skipped: 0,
            before: counts,
            counts,
            positions: standing.positions,
            metered: &metered,
            began: Instant::now(),
        };
        let config = Config {
            pace: self.plan.request.pace,
            window: WindowLimits {
                messages: NonZeroUsize::try_from(self.plan.request.window)
                    .expect("32 bits fit a usize on every platform with a broker"),
                bytes: NonZeroU64::new(self.memory.window())
                    .expect("the least budget has a window"),
            },
            on_reject: match on_reject {
                OnReject::Stop => OnReject::Stop,
                // The limit is one of all runs together.
                OnReject::Skip { most } => {
                    OnReject::Skip { most: most.saturating_sub(counts.rejected) }
                }
            },
            nack_retries,
        };
        let publish = republish(
            self.target,
            ReceiverStream::new(input),
            &config,
            &mut checkpoints,
            control,
            progress,
        );
        let read = self.read(merge, emitted, batches);
        let (ended, skipped) = tokio::join!(publish, read);

        checkpoints.update(&ended.totals);
        let Checkpoints { before, mut counts, positions, .. } = checkpoints;
        if matches!(ended.how, How::Completed) {
            // Those after the last event included.
            counts.where_skipped = before.where_skipped + skipped;
        }
        let (phase, refusal, error) = match ended.how {
            How::Completed => (Phase::Completed, None, self.passed_over(&counts)),
            How::Interrupted if self.state.control(id) == Asked::Cancel => {
                (Phase::Cancelled, None, None)
            }
            How::Interrupted => (Phase::Interrupted, None, None),
            How::Rejected { id: event, kind, reason } => {
                let refusal = format!("event `{event}` ({kind}): {reason}");
                let error = self.rejected(event, reason, on_reject, &counts);
                (Phase::Rejected, Some(refusal), Some(error))
            }
            How::Failed(error) => (Phase::Interrupted, None, Some(from_republish(error)?)),
        };
        journal.ended((self.clock)(), phase, &counts, &positions)?;
        let at_reject = phase == Phase::Rejected;
        let stands = Standing { phase, positions, counts, at_reject, ..Standing::default() };
        let receipt = self.leave(&stands, refusal).await?;
        Ok(Finished { receipt, error })
    }

    /// Returns whether the receipt of a run that ended so is written.
    fn has_receipt(&self, phase: Phase) -> Result<bool, EngineError> {
        let written = self.state.receipt(&self.locked.id)?;
        Ok(written.is_some_and(|receipt| receipt["state"] == phase.as_str()))
    }

    /// Writes the receipt of a run whose journal has ended, and removes what the target declared.
    async fn leave(
        &self,
        stands: &Standing,
        refusal: Option<String>,
    ) -> Result<Receipt, EngineError> {
        let id = &self.locked.id;
        let receipt =
            Receipt { refusal, ..Receipt::new(self.state, id.clone(), self.plan, stands) };
        self.state.write_receipt(id, &receipt.to_json())?;
        // What stays if this fails is an exchange without use; a resumed run declares it again.
        match timeout(DISMANTLE_DEADLINE, self.target.dismantle()).await {
            Ok(Ok(())) => {}
            Ok(Err(problem)) => {
                tracing::warn!(%problem, "what the target declared was not removed");
            }
            Err(_) => tracing::warn!("what the target declared was not removed in time"),
        }
        Ok(receipt)
    }

    /// A run that was killed may have published up to a window beyond its last checkpoint.
    fn counts_to_go_on_with(&self, standing: &Standing) -> Counts {
        let mut counts = standing.counts;
        if standing.phase == Phase::Running {
            let left = match self.plan.exact {
                true => self.plan.events.saturating_sub(counts.confirmed + counts.rejected),
                false => u64::MAX,
            };
            counts.possible_repeats += u64::from(self.plan.request.window.get()).min(left);
        }
        counts
    }

    /// Feeds the selected events to the publisher, until there are no more or it has ended; returns
    /// how many the expression failed on.
    async fn read(
        &self,
        mut merge: Merge,
        emitted: Emitted,
        batches: mpsc::Sender<Result<Vec<Outgoing<()>>, EngineError>>,
    ) -> u64 {
        let replay = ShortStr::try_from(self.locked.id.as_str())
            .expect("a replay's id is shorter than 255 bytes");
        loop {
            // When publishing has ended, a store that does not answer is not waited for.
            let batch = tokio::select! {
                batch = merge.next() => batch.transpose(),
                () = batches.closed() => None,
            };
            let Some(batch) = batch else { break };
            let failed = batch.is_err();
            let batch = batch.map(|selected| self.outgoing(selected, &replay, &emitted));
            // A closed channel means that publishing has ended; its reason is told there.
            if batches.send(batch).await.is_err() || failed {
                break;
            }
        }
        merge.where_skipped()
    }

    fn outgoing(
        &self,
        selected: Vec<Selected>,
        replay: &ShortStr,
        emitted: &Emitted,
    ) -> Vec<Outgoing<()>> {
        let mut queue = emitted.lock().expect("no holder of this lock panics");
        let request = &self.plan.request;
        let prepare = |selected: Selected| {
            let line = (!request.target.is_bus()).then(|| export::json_line(&selected));
            let looked_at = self.look.map(|look| (look, selected.event.clone()));
            let Selected { stream, event, skipped } = selected;
            let Event { sequence, id, time, kind, message: original, .. } = event;
            queue.push_back(Place {
                stream,
                sequence,
                skipped,
                time,
                kind,
                exchange: original.exchange.clone(),
                routing_key: original.routing_key.clone(),
                body: original.body.clone(),
            });
            let marked = || marking::mark_archived(original, &id, time, replay, request.priority);
            let mut message = line.unwrap_or_else(marked);
            if let Some((look, event)) = looked_at {
                look(&event, &mut message);
            }
            Outgoing { position: (), id, time, message }
        };
        selected.into_iter().map(prepare).collect()
    }

    fn rejected(
        &self,
        event: String,
        reason: String,
        on_reject: OnReject,
        counts: &Counts,
    ) -> EngineError {
        let (id, target) = (&self.locked.id, &self.plan.request.target);
        let mend = format!("mend {target} and go on with `dacapo replay resume {id}`");
        let hint = match on_reject {
            OnReject::Stop => {
                format!("{mend}, or pass over such events and record them with `--on-reject skip`")
            }
            OnReject::Skip { .. } => format!(
                "{} were passed over before it, as many as --max-rejects allows: {mend}, or allow \
                 more (`--on-reject skip --max-rejects N`)",
                counts.rejected
            ),
        };
        EngineError::Rejected { event, reason, hint }
    }

    /// Returns what is wrong with a replay that is complete but for what it passed over.
    fn passed_over(&self, counts: &Counts) -> Option<EngineError> {
        (counts.rejected > 0).then(|| EngineError::PassedOver {
            events: counts.rejected,
            path: self.state.rejects_path(&self.locked.id).display().to_string(),
            target: self.plan.request.target.to_string(),
        })
    }
}

/// Turns a republisher's failure into the engine's; that of the journal ends the run at once.
fn from_republish(
    error: RepublishError<EngineError, EngineError>,
) -> Result<EngineError, EngineError> {
    match error {
        RepublishError::Bus(error) => Ok(error.into()),
        RepublishError::Input(error) => Ok(error),
        RepublishError::Journal(error) => Err(error),
        RepublishError::GaveUp { attempts, source } => Ok(EngineError::GaveUp { attempts, source }),
        RepublishError::DepthUnknown => Ok(EngineError::DepthUnknown),
    }
}

/// Turns confirms and rejects, which come in order of publishing, into positions of streams and
/// lines of the reject file.
struct Checkpoints<'a> {
    journal: &'a mut Journal,
    rejects: &'a mut RejectFile,
    replay: &'a Replay<'a>,
    emitted: Emitted,
    /// How many of this run's events were taken off `emitted`, and how many were left out before
    /// the last of them.
    popped: u64,
    skipped: u64,
    before: Counts,
    counts: Counts,
    positions: Positions,
    metered: &'a Metered,
    began: Instant,
}

impl Checkpoints<'_> {
    fn update(&mut self, totals: &Totals) {
        let read = self.metered.totals();
        self.counts = Counts {
            confirmed: self.before.confirmed + totals.confirmed,
            possible_repeats: self.before.possible_repeats + totals.possible_repeats,
            reordered: self.before.reordered + totals.reordered,
            rejected: self.before.rejected + totals.rejected,
            bytes: self.before.bytes + totals.bytes,
            where_skipped: self.before.where_skipped + self.skipped,
            bytes_read: self.before.bytes_read + read.bytes,
            requests: self.before.requests + read.requests,
            seconds: self.before.seconds + self.began.elapsed().as_secs_f64(),
            ..self.before
        };
    }
}

impl dacapo_republish::Journal<()> for Checkpoints<'_> {
    type Error = EngineError;

    fn settled(&mut self, (): &(), totals: &Totals) -> Result<(), EngineError> {
        {
            let mut emitted = self.emitted.lock().expect("no holder of this lock panics");
            while self.popped < totals.confirmed + totals.rejected {
                let place = emitted.pop_front().expect("what is settled was emitted");
                self.popped += 1;
                self.skipped += place.skipped;
                self.positions.insert(place.stream, place.sequence);
            }
        }
        self.update(totals);
        self.journal.checkpoint(&self.counts, &self.positions)
    }

    fn rejected(&mut self, reject: &Reject<'_, ()>) -> Result<(), EngineError> {
        let rejected = {
            let emitted = self.emitted.lock().expect("no holder of this lock panics");
            let place = emitted.front().expect("what is rejected was emitted");
            Rejected {
                replay: self.replay.locked.id.to_string(),
                archive: self.replay.plan.archive.clone(),
                stream: place.stream.clone(),
                sequence: place.sequence,
                id: reject.id.to_owned(),
                time: place.time,
                event_type: place.kind.clone(),
                exchange: readable(place.exchange.as_bytes()),
                routing_key: readable(place.routing_key.as_bytes()),
                body_digest: Digest::of(&place.body),
                kind: reject.kind,
                reason: reject.reason.to_owned(),
            }
        };
        self.rejects.append(&rejected)
    }
}

/// Passes on what another terminal asks of a running replay, until dropped.
///
/// `stop` is sent as well when the operator cancels; whoever stops for another reason sends it
/// themselves.
pub async fn obey(state: &State, id: &ReplayId, control: &watch::Sender<Control>) {
    let mut ticks = tokio::time::interval(CONTROL_INTERVAL);
    loop {
        ticks.tick().await;
        let wanted = match state.control(id) {
            Asked::Run => Control::Run,
            Asked::Pause => Control::Pause,
            Asked::Cancel => Control::Stop,
        };
        control.send_if_modified(|current| {
            let change = *current != wanted && *current != Control::Stop;
            if change {
                *current = wanted;
            }
            change
        });
    }
}

#[cfg(test)]
mod tests;
