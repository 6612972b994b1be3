//! The acts of the story that need more than a line: archiving, emitting, planning, replaying.
//! Each is what the command of that name does, on parts of the demo's own.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use dacapo_archive::store::Store;
use dacapo_archiver::{ArchiverConfig, Metrics, RollPolicy, WriteOnce};
use dacapo_bus::Outcome;
use dacapo_engine::plan::{Plan, plan};
use dacapo_engine::receipt::Receipt;
use dacapo_engine::request::{Request, Target, WINDOW_DEFAULT};
use dacapo_engine::run::Replay;
use dacapo_engine::state::{ReplayId, State};
use dacapo_engine::survey::{Depth, survey};
use dacapo_engine::sync;
use dacapo_event::attributes::AttributeRules;
use dacapo_event::marking::Priority;
use dacapo_event::{ShortStr, StreamName};
use dacapo_filter::{Selection, SelectionSpec};
use dacapo_index::{Holder, Index};
use dacapo_republish::{Control, Pace, Progress};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::Story;
use super::bus::Role;
use super::crew::{Crew, Worker};
use super::report::Archive;
use super::services::{PREFETCH, Service, serve};
use super::shop::{Shop, What};
use crate::format;
use crate::progress::Steps;

/// The stream of the demo's archiver.
const STREAM: &str = "demo";

/// What the shop draws its orders from: the same orders every time.
const SEED: u64 = 20_260_101;

/// Segments that the archiver makes of all events: enough to see that a plan reads some of them.
const SEGMENTS: u64 = 8;

/// The last segment is finished this long after the shop has gone quiet.
const ROLL_AGE: Duration = Duration::from_secs(1);

/// Messages that the shop publishes before it waits for their confirms.
const BATCH: usize = 500;

/// How long the replay is made to take: there is something to watch, and a rate to be kept.
const REPLAY_SECONDS: u64 = 5;

impl Story<'_> {
    /// Starts the archiver.
    pub(super) fn begin_to_archive(
        &self,
        crew: &mut Crew,
        store: &Arc<dyn Store>,
    ) -> anyhow::Result<()> {
        let a_segment = NonZeroU64::new(self.events.div_ceil(SEGMENTS)).unwrap_or(NonZeroU64::MIN);
        let a_segment = a_segment.min(RollPolicy::DELIVERIES);
        // Twice what is finished at once, so that the next segment fills meanwhile.
        let prefetch = u16::try_from(2 * a_segment.get()).unwrap_or(RollPolicy::PREFETCH);
        let prefetch = NonZeroU16::new(prefetch).unwrap_or(NonZeroU16::MIN);
        let subscription = self.bus.subscription(Role::Archiver, prefetch);
        let config = ArchiverConfig {
            stream: stream()?,
            rules: AttributeRules::default(),
            roll: RollPolicy { age: ROLL_AGE, deliveries: a_segment, ..RollPolicy::default() },
            clock: self.settings.clock,
            write_once: WriteOnce::Proven,
        };
        let metrics = Metrics::register(&mut Registry::default(), self.settings.clock);
        let store = Arc::clone(store);
        crew.archiver.start(|_, stop| async move {
            let shutdown = async { drop(stop.await) };
            Ok(dacapo_archiver::run(config, store, &*subscription, &metrics, shutdown).await?)
        });
        Ok(())
    }

    /// Starts a service on its queue.
    pub(super) async fn begin<S: Service>(
        &self,
        worker: &mut Worker<S>,
        role: Role,
        service: S,
    ) -> anyhow::Result<()> {
        let prefetch = NonZeroU16::new(PREFETCH).expect("not zero");
        let source = self.bus.subscription(role, prefetch).open().await?;
        worker.start(|handled, stop| serve(service, source, handled, stop));
        Ok(())
    }

    /// The shop emits everything; returns how many events of each type.
    pub(super) async fn emit(&self) -> anyhow::Result<BTreeMap<What, u64>> {
        let exchange = ShortStr::try_from(self.bus.exchange())?;
        let mut shop = Shop::new(SEED, self.events, exchange, self.settings.now());
        let mut sink = self.bus.to_everyone().open().await?;
        let mut steps = Steps::new(self.output, "emitting");
        let (mut by_type, mut emitted) = (BTreeMap::new(), 0);
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            for (what, message) in shop.by_ref().take(BATCH) {
                *by_type.entry(what).or_default() += 1;
                batch.push(message);
            }
            if batch.is_empty() {
                break;
            }
            sink.send(&batch).await?;
            let mut unanswered = batch.len();
            while unanswered > 0 {
                let outcomes = sink.outcomes().await?;
                if let Some(other) = outcomes.iter().find(|one| **one != Outcome::Confirmed) {
                    bail!("the bus did not take an event of the shop: {other:?}");
                }
                unanswered -= outcomes.len();
            }
            emitted += batch.len() as u64;
            steps.at(emitted, self.events);
        }
        sink.close().await?;
        steps.finish();
        let of =
            |(what, count): (&What, &u64)| format!("{} {}", format::number(*count), what.word());
        let types: Vec<String> = by_type.iter().map(of).collect();
        self.step(
            "1 shop",
            &[
                &format!(
                    "emits {} events to everyone, over a week of its time:",
                    format::number(emitted)
                ),
                &types.join(", "),
            ],
        );
        Ok(by_type)
    }

    /// Waits until the archiver has everything, and brings the index up to date.
    pub(super) async fn archived(
        &self,
        crew: &mut Crew,
        store: &Arc<dyn Store>,
    ) -> anyhow::Result<Archive> {
        let mut steps = Steps::new(self.output, "archiving");
        let done = |last| steps.at(last, self.events);
        crew.archiver.until_durable(&**store, &stream()?, self.events, done).await?;
        steps.finish();
        let index = self.index()?;
        sync::sync(store, &index, |_| {}).await?;
        let (mut segments, mut bytes, mut body_bytes) = (0, 0, 0);
        for summary in index.segments() {
            let summary = summary?;
            segments += 1;
            bytes += summary.size;
            body_bytes += summary.body_bytes;
        }
        let events = index.stats()?.events;
        index.close()?;
        self.step(
            "2 archiver",
            &[
                &format!(
                    "keeps {} events, acked only once they are durable:",
                    format::number(events)
                ),
                &format!(
                    "{segments} segments, {} for {} of bodies",
                    format::bytes(bytes),
                    format::bytes(body_bytes),
                ),
            ],
        );
        Ok(Archive { events, segments, bytes })
    }

    fn index(&self) -> anyhow::Result<Index> {
        let holder = Holder { command: "dacapo demo".to_owned(), since: self.settings.now() };
        Ok(Index::open(&self.folder.index(), &holder)?)
    }

    /// Asks index and target, then decides.
    pub(super) async fn plan(&self, store: &Arc<dyn Store>) -> anyhow::Result<Plan> {
        let rate = u32::try_from(self.events / REPLAY_SECONDS).ok().and_then(NonZeroU32::new);
        let routing_keys = vec!["orders.#".to_owned()];
        let request = Request {
            selection: SelectionSpec { routing_keys, ..SelectionSpec::default() },
            target: Target::Queue { queue: self.bus.queue(Role::Orders) },
            pace: Pace { rate, ..Pace::default() },
            window: WINDOW_DEFAULT,
            priority: Priority::Neutralise,
        };
        let selection = Arc::new(Selection::compile(request.selection.clone())?);
        let facts = self.bus.facts(Role::Orders).await?;
        let index = self.index()?;
        let summaries = index.segments().map(|summary| summary.map_err(Into::into));
        let (from, now) = (Arc::clone(store), self.settings.now());
        let survey = survey(from, summaries, &selection, Depth::Index, facts, now).await?;
        let plan = plan(request, survey);
        // Before the first publish, as every replay does.
        index.close()?;
        self.step(
            "5 plan",
            &[
                &format!(
                    "to {}: {} events",
                    plan.request.target,
                    format::count(plan.events, plan.exact)
                ),
                &format!(
                    "reads {} in about {} requests, takes about {}",
                    format::bytes(plan.bytes_read),
                    plan.requests,
                    format::seconds(plan.seconds),
                ),
            ],
        );
        Ok(plan)
    }

    /// Plays the plan to `orders` alone.
    pub(super) async fn replay(
        &self,
        plan: &Plan,
        store: Arc<dyn Store>,
    ) -> anyhow::Result<Receipt> {
        let state = State::new(self.folder.state());
        let id = ReplayId::new(self.settings.now(), &plan.hash(), std::process::id());
        let locked = state.create(id, plan)?;
        let target = self.bus.to_queue_of(Role::Orders);
        let clock = self.settings.clock;
        let replay = Replay {
            state: &state,
            locked: &locked,
            plan,
            store,
            target: &*target,
            on_reject: None,
            nack_retries: None,
            clock,
            memory: self.settings.memory,
            look: None,
        };
        let (_control, controlled) = watch::channel(Control::Run);
        let (progress, mut watched) = watch::channel(Progress::default());
        let show = async {
            let mut steps = Steps::new(self.output, "replaying");
            while watched.changed().await.is_ok() {
                steps.at(watched.borrow_and_update().totals.confirmed, plan.events);
            }
            steps.finish();
        };
        let running = async {
            let finished = replay.run(controlled, &progress).await;
            // Ends the show.
            drop(progress);
            finished
        };
        let (finished, ()) = tokio::join!(running, show);
        let finished = finished?;
        if let Some(error) = finished.error {
            return Err(error.into());
        }
        let receipt = finished.receipt;
        let counts = &receipt.counts;
        self.step(
            "6 replay",
            &[
                &format!(
                    "{} confirmed, {} rejected, {} remaining, {} possible repeats",
                    format::number(counts.confirmed),
                    receipt.rejected,
                    receipt.remaining(),
                    counts.possible_repeats,
                ),
                &format!(
                    "took {} (at most {}/s, so that there is something to watch)",
                    format::seconds(counts.seconds),
                    plan.request
                        .pace
                        .rate
                        .map_or_else(String::new, |rate| format::number(rate.get().into())),
                ),
            ],
        );
        Ok(receipt)
    }
}

fn stream() -> anyhow::Result<StreamName> {
    Ok(STREAM.parse()?)
}
