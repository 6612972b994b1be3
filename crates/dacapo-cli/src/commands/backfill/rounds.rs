//! History: rounds, each a replay like any other.

use std::sync::Arc;
use std::time::Duration;

use dacapo_archive::SegmentSummary;
use dacapo_bus::file::Existing;
use dacapo_engine::EngineError;
use dacapo_engine::backfill::{Happened, Played, Remembered, Round, remember};
use dacapo_engine::journal::{Counts, Journal, Phase};
use dacapo_engine::merge::Positions;
use dacapo_engine::plan::{Plan, plan};
use dacapo_engine::run::{Replay, obey};
use dacapo_engine::survey::{Depth, TargetFacts, survey};
use dacapo_engine::sync::SyncReport;
use dacapo_event::Timestamp;
use dacapo_filter::{Selection, SequenceRange};
use dacapo_index::{Index, IndexError};
use dacapo_republish::{Control, OnReject, Progress};
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::{preflight, target};
use super::broker::pause;
use super::drive::{Done, Parts, Run};
use crate::args::PreflightArgs;
use crate::exit::Failure;
use crate::open;
use crate::progress::Steps;

/// How often the index is tried again that another command has.
const INDEX_INTERVAL: Duration = Duration::from_secs(1);

/// How often in all: longer than a rebuild of a large archive's index takes.
const INDEX_TRIES_MAX: u32 = 1_800;

/// How often an archive is looked at that is not as long yet as its archiver said.
const ARCHIVE_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is asked how much is held while the last round is played; each takes a connection.
const HELD_INTERVAL: Duration = Duration::from_secs(10);

/// Over how long live events are counted, to tell how many there are in a second.
const LIVE_SPAN: Duration = Duration::from_secs(600);

/// What is published live, about.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiveLoad {
    pub events_per_second: f64,
    pub bytes_per_second: f64,
    /// Selected events that are not played yet.
    pub left: u64,
    /// Bytes of their bodies, about.
    pub left_bytes: u64,
}

impl Run<'_> {
    /// Opens the index, in step with the archive; nothing if it was told to stop.
    async fn index(&self) -> anyhow::Result<Option<Index>> {
        let Parts { settings, output, store, .. } = &self.parts;
        let control = self.control.subscribe();
        for tried in 1.. {
            let opened = open::synced_index(settings, store, output, "backfill").await;
            let error = match opened {
                Ok((index, report)) => {
                    self.refuse_gaps(&report)?;
                    return Ok(Some(index));
                }
                Err(error) => error,
            };
            let is_busy =
                matches!(error.downcast_ref::<IndexError>(), Some(IndexError::Busy { .. }));
            if !is_busy || tried >= INDEX_TRIES_MAX {
                return Err(error);
            }
            if tried == 1 {
                output.talk(&format!("waiting for the index: {error}"));
            }
            if pause(INDEX_INTERVAL, &control).await == Control::Stop {
                return Ok(None);
            }
        }
        unreachable!("the last attempt returns")
    }

    fn refuse_gaps(&self, report: &SyncReport) -> anyhow::Result<()> {
        if self.description.accept_gaps || report.is_complete() {
            return Ok(());
        }
        let lacking = match (report.gaps.first(), report.unreadable.first()) {
            (Some(gap), _) => {
                format!("stream `{}` lacks sequences {} to {}", gap.stream, gap.first, gap.last)
            }
            (None, Some((object, problem))) => format!("`{object}`: {problem}"),
            (None, None) => return Ok(()),
        };
        let problem = format!(
            "the archive at {} lacks events: {lacking}; run `dacapo archive verify` to see why, or cancel \
             this backfill and begin one with --accept-gaps",
            self.description.archive
        );
        Err(Failure::damaged(problem).into())
    }

    /// Returns where the streams of the archive end now; nothing if it was told to stop.
    pub async fn ends(&self) -> anyhow::Result<Option<Positions>> {
        let Some(index) = self.index().await? else { return Ok(None) };
        let streams = index.streams()?;
        index.close()?;
        Ok(Some(streams.into_iter().map(|progress| (progress.stream, progress.last)).collect()))
    }

    pub async fn await_archive(&mut self) -> anyhow::Result<Done> {
        self.telling.archive_is_short();
        let control = self.control.subscribe();
        Ok(match pause(ARCHIVE_INTERVAL, &control).await {
            Control::Stop => Done::Interrupted,
            _ => Done::Again,
        })
    }

    /// Plays a round, or goes on with it.
    pub async fn play(&mut self, round: Round) -> anyhow::Result<Done> {
        let ranges = self.standing.beyond(&round.until);
        if ranges.is_empty() {
            return Ok(Done::Happened(Happened::RoundPlayed(Played::default())));
        }
        let id = round.replay.clone();
        let (locked, plan) = if self.state.has(&id) {
            let locked = self.state.lock(id)?;
            let plan = self.state.plan(&locked.id)?;
            (locked, plan)
        } else {
            let Some(plan) = self.plan(ranges).await? else { return Ok(Done::Interrupted) };
            if plan.segments.is_empty() {
                return Ok(Done::Happened(Happened::RoundPlayed(Played::default())));
            }
            preflight::refuse(&plan.preflight)?;
            (self.state.create(id, &plan)?, plan)
        };
        let before = Journal::read(&self.state.journal_path(&locked.id))?;
        match before.phase {
            Phase::Completed => {
                return Ok(Done::Happened(Happened::RoundPlayed(played(&before.counts))));
            }
            Phase::Cancelled => {
                let played = played(&before.counts);
                return Ok(Done::Happened(Happened::RoundEnded(played, before.positions)));
            }
            _ => {}
        }
        self.telling.round_begins(&round, &plan);
        let Parts { settings, store, running, .. } = &self.parts;
        let connect =
            target::connect(&plan.request.target, &locked.id, Existing::Continue, settings)?;
        let (progress, watched) = watch::channel(Progress::default());
        let replay = Replay {
            state: &self.state,
            locked: &locked,
            plan: &plan,
            store: Arc::clone(store),
            target: &*connect,
            on_reject: Some(OnReject::Stop),
            nack_retries: Some(running.nack_retries()),
            clock: settings.clock,
            memory: settings.memory,
            look: None,
        };
        let held = self.watch_held(round.is_last);
        let show = self.telling.show_round(watched, &round, &plan, self.standing.played_to);
        let finished = tokio::select! {
            finished = replay.run(self.control.subscribe(), &progress) => finished?,
            () = async { tokio::join!(show, held, obey(&self.state, &locked.id, self.control)); } => {
                unreachable!("they do not end")
            }
        };
        // Paused is the round, not what comes after it.
        self.control.send_if_modified(|control| {
            let is_paused = *control == Control::Pause;
            if is_paused {
                *control = Control::Run;
            }
            is_paused
        });
        if let Some(error) = finished.error {
            return Err(error.into());
        }
        let counts = finished.receipt.counts;
        match finished.receipt.phase {
            Phase::Completed => Ok(Done::Happened(Happened::RoundPlayed(played(&counts)))),
            // Its journal says how far it came; it is looked at when this goes on.
            _ => Ok(Done::Interrupted),
        }
    }

    /// Asks now and then how much is held while the last round is played; never returns.
    async fn watch_held(&self, is_last: bool) {
        if !is_last {
            return std::future::pending().await;
        }
        let holding = self.locked.id.holding_queue(self.description.queue());
        loop {
            let depth = async {
                let broker = self.parts.settings.broker("dacapo backfill")?;
                anyhow::Ok(
                    dacapo_amqp::queue_state(&broker, &holding).await?.map(|state| state.ready),
                )
            };
            match depth.await {
                Ok(depth) => self.telling.holds(depth.unwrap_or(0)),
                // The replay beside it says what is wrong with the broker.
                Err(error) => tracing::debug!(%error, "how much is held is not known"),
            }
            sleep(HELD_INTERVAL).await;
        }
    }

    async fn plan(&self, ranges: Vec<SequenceRange>) -> anyhow::Result<Option<Plan>> {
        let Some(index) = self.index().await? else { return Ok(None) };
        let Parts { settings, output, store, .. } = &self.parts;
        let mut request = self.description.request.clone();
        request.selection.ranges = ranges;
        let checks = PreflightArgs {
            overrides: self.description.wishes.overrides.iter().copied().collect(),
            require_consumer: self.description.wishes.require_consumer,
            expected_queues: Vec::new(),
        };
        let made = super::super::plan::make(
            request,
            Depth::Index,
            &checks,
            store,
            &index,
            settings,
            output,
        );
        let made = made.await;
        index.close()?;
        made.map(Some)
    }

    /// Reads which events between the barriers may be held as well; nothing if it was told to stop.
    pub async fn remembered(&self) -> anyhow::Result<Option<Remembered>> {
        let between = self.standing.between_barriers();
        if between.is_empty() {
            return Ok(Some(Remembered::default()));
        }
        let Some(index) = self.index().await? else { return Ok(None) };
        let Parts { settings, output, store, .. } = &self.parts;
        let mut request = self.description.request.clone();
        request.selection.ranges = between;
        let selection = Arc::new(Selection::compile(request.selection.clone())?);
        let facts = TargetFacts::default();
        let summaries = index.segments().map(|summary| summary.map_err(EngineError::from));
        let (store, now) = (Arc::clone(store), settings.now());
        let survey = survey(Arc::clone(&store), summaries, &selection, Depth::Index, facts, now);
        let survey = survey.await?;
        index.close()?;
        let plan = plan(request, survey);
        let selection = Arc::unwrap_or_clone(selection);
        let mut steps = Steps::new(output, "reading what may be held as well");
        let remembered = remember(store, &plan, selection, settings.memory, |events| {
            steps.at(events, plan.events);
        });
        let remembered = remembered.await?;
        steps.finish();
        Ok(Some(remembered))
    }

    /// Returns what is published live in a second, as far as the archive tells, and what is left of
    /// history; nothing if it was told to stop.
    pub async fn live_load(&self) -> anyhow::Result<Option<LiveLoad>> {
        let Some(index) = self.index().await? else { return Ok(None) };
        let selection = Selection::compile(self.description.request.selection.clone())?;
        let now = self.parts.settings.now();
        let mut load = LiveLoad::default();
        for summary in index.segments() {
            self.add(&summary?, &selection, now, &mut load);
        }
        index.close()?;
        Ok(Some(load))
    }

    fn add(
        &self,
        summary: &SegmentSummary,
        selection: &Selection,
        now: Timestamp,
        load: &mut LiveLoad,
    ) {
        let played = self.standing.positions.get(&summary.stream).copied().unwrap_or(0);
        let is_recent = summary.archived_max >= now.minus(LIVE_SPAN);
        if !is_recent && summary.last <= played {
            return;
        }
        let count = selection.count(&dacapo_engine::survey::bounds(summary));
        let share = count.events as f64 / summary.events().max(1) as f64;
        let bytes = summary.body_bytes as f64 * share;
        if summary.last > played {
            load.left += count.events;
            load.left_bytes += bytes as u64;
        }
        // An import of a moment ago is no live stream.
        if is_recent && summary.source_mark.is_none() {
            load.events_per_second += count.events as f64 / LIVE_SPAN.as_secs_f64();
            load.bytes_per_second += bytes / LIVE_SPAN.as_secs_f64();
        }
    }
}

fn played(counts: &Counts) -> Played {
    Played {
        events: counts.confirmed,
        bytes: counts.bytes,
        possible_repeats: counts.possible_repeats,
        reordered: counts.reordered,
    }
}
