//! The restore itself: plans and replays as `dacapo replay` does, waits for the service, checks, and
//! writes down what it finds as it goes, so that a drill that is broken off has evidence, too.

use std::collections::BTreeMap;
use std::sync::Arc;

use dacapo_archive::chain;
use dacapo_archive::store::Store;
use dacapo_bus::Connect;
use dacapo_bus::file::Existing;
use dacapo_drill::report::{self, Archive, Drained, Facts, Reconciliation, ServiceSeen, manifest};
use dacapo_engine::plan::Plan;
use dacapo_engine::run::{Finished, Replay, obey};
use dacapo_engine::state::{Control as AskedOfReplay, ReplayId, State};
use dacapo_engine::survey::Depth;
use dacapo_engine::sync::SyncReport;
use dacapo_republish::{Control, Progress};
use tokio::sync::watch;

use super::Asked;
use super::drain::Drain;
use super::environment::Environment;
use super::queries::{self, Told};
use super::rehearsal::{Ending, INTERRUPTED, Stopwatch};
use super::witness::{Counted, Published, Witnessed};
use super::{checks, service};
use crate::commands::{plan, preflight, replay, target};
use crate::exit::Failure;
use crate::open::{self, Access};
use crate::output::{Output, words};
use crate::settings::Settings;

/// Gaps that a report names.
const GAPS_SHOWN: usize = 100;

/// What a drill works with.
pub struct Stage<'a> {
    pub asked: &'a Asked,
    pub told: &'a Told,
    pub counted: &'a Counted,
    pub ending: &'a Ending,
    pub output: &'a Output,
}

impl Stage<'_> {
    /// Everything that is timed.
    pub async fn work(
        &self,
        environment: &mut Environment,
        running: &mut Option<service::Running>,
        facts: &mut Facts,
        watch: &mut Stopwatch,
    ) -> anyhow::Result<()> {
        let description = &self.asked.description;
        watch.part("environment", self.output);
        environment.make(description).await?;
        watch.part("service", self.output);
        *running = service::start(&description.service, self.told)?;
        let restored = async {
            let broker = environment.broker()?;
            service::ready(description, &broker, self.told).await?;
            facts.service.ready = true;
            self.restore(environment, facts, watch).await
        };
        let ended = match running {
            None => Err(restored.await),
            Some(running) => tokio::select! {
                restored = restored => Err(restored),
                ended = running.ended() => Ok(ended),
            },
        };
        match ended {
            Err(restored) => restored,
            Ok(how) => {
                let problem = format!("the service ended by itself ({how}); see service.log");
                facts.service.ended = Some(how);
                Err(Failure::unavailable(problem).into())
            }
        }
    }

    /// Plans and replays as `dacapo replay` does, and waits until the checks are green.
    async fn restore(
        &self,
        environment: &mut Environment,
        facts: &mut Facts,
        watch: &mut Stopwatch,
    ) -> anyhow::Result<()> {
        let settings = environment.settings.clone();
        watch.part("plan", self.output);
        let store = open::store(&settings, Access::Read).await?;
        let plan = self.plan(&store, &settings, facts).await?;

        watch.part("replay", self.output);
        let id = ReplayId::new(settings.now(), &plan.hash(), std::process::id());
        let exchange = format!("dacapo.replay.{id}");
        environment.replays_through(exchange.clone());
        let target = target::connect(&plan.request.target, &id, Existing::Refuse, &settings)?;
        let (published, told) = watch::channel(Published::Some);
        let broker = environment.broker()?;
        let Some(witness) = environment.witness.clone() else {
            self.play(&plan, id, &*target, store, &settings, &published, facts).await?;
            return self.drain_and_check(environment, facts, watch).await;
        };
        let queue = witness.clone();
        let target = Witnessed { target, broker: broker.clone(), exchange, queue };
        let restored = async {
            let played = self.play(&plan, id, &target, store, &settings, &published, facts).await;
            published.send_if_modified(|published| {
                let unknown = *published == Published::Some;
                if unknown {
                    *published = Published::Over;
                }
                unknown
            });
            played?;
            self.drain_and_check(environment, facts, watch).await
        };
        // It is read meanwhile, so that the broker need not keep everything twice.
        let read = self.counted.read(&broker, &witness, told);
        let (restored, read) = tokio::join!(restored, read);
        restored.and(read)
    }

    async fn plan(
        &self,
        store: &Arc<dyn Store>,
        settings: &Settings,
        facts: &mut Facts,
    ) -> anyhow::Result<Plan> {
        let Asked { description, rehearsed, .. } = self.asked;
        // Before the index: it is made of these at least.
        let heads = chain::heads(&**store).await?;
        let (index, report) = open::synced_index(settings, store, self.output, "drill").await?;
        facts.archive = Some(Archive {
            location: store.location(),
            manifest: manifest(
                heads.iter().map(|head| (head.stream.as_str(), head.last, head.digest)),
            ),
            streams: heads.len() as u64,
            gaps: gaps(&report, None),
        });
        open::refuse_empty(&index, &report, store)?;
        let request = plan::request(
            &rehearsed.selection,
            None,
            &rehearsed.target,
            &rehearsed.pace,
            settings,
        )?;
        let depth = Depth::Index;
        let checks = &rehearsed.preflight;
        let plan = plan::make(request, depth, checks, store, &index, settings, self.output).await?;
        index.close()?;
        if let Some(archive) = &mut facts.archive {
            archive.gaps = gaps(&report, Some(&plan));
        }
        let selection = description.selection.iter().map(|flag| flag.0.clone());
        facts.plan = Some(report::Plan {
            hash: plan.hash(),
            selection: selection.collect(),
            target: plan.request.target.to_string(),
            events: plan.events,
            exact: plan.exact,
            segments: plan.segments.len() as u64,
        });
        preflight::refuse(&plan.preflight)?;
        Ok(plan)
    }

    /// Replays a plan through the same functions as `dacapo replay`.
    #[expect(clippy::too_many_arguments, reason = "what a replay needs, once")]
    async fn play(
        &self,
        plan: &Plan,
        id: ReplayId,
        target: &dyn Connect,
        store: Arc<dyn Store>,
        settings: &Settings,
        published: &watch::Sender<Published>,
        facts: &mut Facts,
    ) -> anyhow::Result<()> {
        let state = State::new(&settings.state);
        let locked = state.create(id, plan)?;
        let look = |event: &_, message: &mut _| self.counted.look(event, message);
        let replay = Replay {
            state: &state,
            locked: &locked,
            plan,
            store,
            target,
            on_reject: None,
            nack_retries: None,
            clock: settings.clock,
            memory: settings.memory,
            look: Some(&look),
        };
        let (control, controlled) = watch::channel(Control::Run);
        let (progress, watched) = watch::channel(Progress::default());
        let show = replay::show(watched, plan, self.output);
        let obey = obey(&state, &locked.id, &control);
        let end = async {
            self.ending.is_asked().await;
            // For good: its queue is taken down.
            if let Err(error) = state.set_control(&locked.id, AskedOfReplay::Cancel) {
                tracing::warn!(error = words(&error), "the replay was not cancelled");
            }
            control.send_replace(Control::Stop);
            std::future::pending::<()>().await;
        };
        self.ending.replaying.send_replace(true);
        let finished = tokio::select! {
            finished = replay.run(controlled, &progress) => finished,
            () = async { tokio::join!(show, obey, end); } => unreachable!("they do not end"),
        };
        self.ending.replaying.send_replace(false);
        let known = match &finished {
            Ok(Finished { receipt, error: None }) if receipt.counts.possible_repeats == 0 => {
                Published::All(receipt.counts.confirmed)
            }
            _ => Published::Over,
        };
        published.send_replace(known);
        let Finished { receipt, error } = finished?;
        facts.replay = Some(report::Replay {
            id: receipt.id.to_string(),
            state: receipt.phase.as_str().to_owned(),
            selected: receipt.selected,
            confirmed: receipt.counts.confirmed,
            rejected: receipt.rejected,
            remaining: receipt.remaining(),
            possible_repeats: receipt.counts.possible_repeats,
        });
        match error {
            Some(error) => Err(error.into()),
            None if *self.ending.asked.borrow() => Err(Failure::usage(INTERRUPTED).into()),
            None => Ok(()),
        }
    }

    async fn drain_and_check(
        &self,
        environment: &Environment,
        facts: &mut Facts,
        watch: &mut Stopwatch,
    ) -> anyhow::Result<()> {
        let description = &self.asked.description;
        watch.part("drain", self.output);
        let broker = environment.broker()?;
        let within = description.service.drain_within;
        let management = environment.settings.management();
        let drain =
            Drain::new(&broker, management, environment.vhost(), &description.queue, within);
        if let Err(why) = drain.until_nothing_waits().await? {
            facts.service.drained = Drained::No(why);
            return Ok(());
        }
        // Whether everything is acked shows some seconds late, which is no part of the recovery; when it
        // was is.
        let checked = async {
            if !description.checks.is_empty() {
                watch.part("checks", self.output);
            }
            let results = checks::run(&description.checks, self.told).await;
            let took = watch.end();
            watch.part("confirm", self.output);
            (results, took)
        };
        let (acked, (results, took)) = tokio::join!(drain.until_nothing_is_unacked(), checked);
        facts.checks = results;
        let acked = acked?;
        facts.service.drained = acked.drained;
        if facts.service.drained == Drained::Yes {
            // One that was green too early may not be any more.
            checks::again(&description.checks, self.told, &mut facts.checks).await;
            let green = facts.checks.iter().all(|result| result.green);
            let acked = acked.since.map_or(took, |since| watch.at_moment(since));
            facts.rto = green.then_some(took.max(acked));
        }
        Ok(())
    }

    /// Sets archive, target and service side by side, as far as the drill came.
    pub async fn reconcile(&self, environment: &Environment, facts: &mut Facts) {
        if facts.replay.is_none() {
            return;
        }
        let (seen, counts) = match &self.asked.description.counts {
            None => (ServiceSeen::NotAsked, BTreeMap::new()),
            Some(query) => {
                let answer = tokio::select! {
                    answer = queries::ask(query, self.told) => answer,
                    () = self.ending.is_asked() => Err("not asked to the end".to_owned()),
                };
                match answer.and_then(|answer| queries::counts(&answer)) {
                    Ok(counts) => (ServiceSeen::Asked, counts),
                    Err(problem) => {
                        let problem = self.told.hide(&problem);
                        self.output.talk(&format!("warning: the service's counts: {problem}"));
                        (ServiceSeen::Failed, BTreeMap::new())
                    }
                }
            }
        };
        let (given, got) = (self.counted.given(), self.counted.got());
        let got = environment.witness.is_some().then_some(&*got);
        facts.reconciliation = Some(Reconciliation::new(&given.tallies, got, seen, &counts));
    }
}

/// Returns what the archive lacks, in words.
fn gaps(report: &SyncReport, plan: Option<&Plan>) -> Vec<String> {
    let planned = plan.iter().flat_map(|plan| &plan.gaps);
    let lacking = report.gaps.iter().chain(planned).map(|gap| {
        format!("stream `{}` lacks sequences {} to {}", gap.stream, gap.first, gap.last)
    });
    let unreadable = report.unreadable.iter().map(|(object, why)| format!("`{object}`: {why}"));
    let mut gaps: Vec<String> = lacking.chain(unreadable).collect();
    gaps.sort();
    gaps.dedup();
    if gaps.len() > GAPS_SHOWN {
        let more = gaps.len() - GAPS_SHOWN;
        gaps.truncate(GAPS_SHOWN);
        gaps.push(format!("and {more} more"));
    }
    gaps
}
