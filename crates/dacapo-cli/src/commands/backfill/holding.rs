//! Holding live events, passing them on, and the switch to the live stream.

use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use dacapo_amqp::{AmqpConnect, AmqpQueue, AmqpTarget, Via};
use dacapo_engine::backfill::held::{DRAIN_QUIET, EXPIRED_QUIET, Ended, Forwarder, Holding, Until};
use dacapo_engine::backfill::{Happened, Mark, Past, Remembered, mark_message};
use dacapo_engine::preflight::{Facts, Load, check_holding};
use dacapo_engine::request::Target;
use dacapo_event::ShortStr;
use dacapo_republish::{Config, Control, OnReject, Progress, WindowLimits};
use tokio::sync::watch;

use super::super::preflight;
use super::begin::{pace_of_held, refuse_bound, topology};
use super::broker::{bindings, pause, persist, publish};
use super::drive::{Done, Parts, Run};
use super::rounds::LiveLoad;
use crate::format;
use crate::output::words;

/// The plugin's statistics of a queue are as old as this at the most, or the queue changed since:
/// RabbitMQ collects them every 5 s.
const STATISTICS_AGE: Duration = Duration::from_secs(10);

/// Assumed for the time a rest of history takes when no rate is asked for: as plans do.
const UNPACED_EVENTS_PER_SECOND: f64 = 10_000.0;

/// What else passes while events are held, beside three margins: three answers of archivers, and some
/// for what takes longer.
const ASKING_SECONDS: f64 = 60.0;

impl Run<'_> {
    fn holding_queue(&self) -> String {
        self.locked.id.holding_queue(self.description.queue())
    }

    /// Makes the holding queue, looks whether there is room, and binds it.
    pub async fn bind(&mut self) -> anyhow::Result<Done> {
        let Some(load) = self.live_load().await? else { return Ok(Done::Interrupted) };
        self.refuse_bound().await?;
        let Parts { settings, output, .. } = &self.parts;
        let (holding, control) = (self.holding_queue(), self.control.subscribe());
        let declared = persist("making the holding queue", &control, output, async || {
            let broker = settings.broker("dacapo backfill")?;
            Ok(dacapo_amqp::declare_holding(&broker, &holding).await?)
        });
        if declared.await?.is_none() {
            return Ok(Done::Interrupted);
        }
        if let Err(refused) = self.check_room(&holding, load).await {
            // It is not bound, so nothing is in it.
            let broker = settings.broker("dacapo backfill")?;
            let exchange = self.locked.id.exchange();
            if let Err(left) = dacapo_amqp::remove_holding(&broker, &holding, &exchange).await {
                output.talk(&format!("note: queue `{holding}` is left: {}", words(&left)));
            }
            return Err(refused);
        }
        let live = bindings(&self.description.bindings);
        let bound = persist("binding the holding queue", &control, output, async || {
            let broker = settings.broker("dacapo backfill")?;
            Ok(dacapo_amqp::bind(&broker, &holding, &live).await?)
        });
        let margin = self.description.margin;
        if bound.await?.is_none() || pause(margin, &control).await == Control::Stop {
            return Ok(Done::Interrupted);
        }
        Ok(Done::Happened(Happened::Bound))
    }

    /// Refuses if meanwhile the target is bound to the live stream, as far as the plugin tells.
    async fn refuse_bound(&self) -> anyhow::Result<()> {
        let topology = topology(self.parts.settings).await?;
        refuse_bound(&topology, self.description.queue(), &self.description.bindings)
    }

    /// Returns about how long the rest of history takes: as long as the slowest of the limits.
    fn seconds_of_rest(&self, live: LiveLoad) -> f64 {
        let pace = &self.description.request.pace;
        let rate = pace.rate.map_or(UNPACED_EVENTS_PER_SECOND, |rate| f64::from(rate.get()));
        let by_rate = live.left as f64 / rate;
        let by_bytes =
            pace.byte_rate.map_or(0.0, |rate| live.left_bytes as f64 / rate.get() as f64);
        by_rate.max(by_bytes)
    }

    /// Refuses if what is to be held has no room on the broker; says so if nobody can tell.
    async fn check_room(&self, holding: &str, live: LiveLoad) -> anyhow::Result<()> {
        let Parts { settings, output, .. } = &self.parts;
        let margins = 3.0 * self.description.margin.as_secs_f64();
        let seconds = self.seconds_of_rest(live) + margins + ASKING_SECONDS;
        let events = (live.events_per_second * seconds) as u64;
        let bytes = (live.bytes_per_second * seconds) as u64;
        let target = Target::Queue { queue: holding.to_owned() };
        let none = std::collections::BTreeSet::new();
        let load = Load {
            target: &target,
            exchanges: &none,
            exchanges_exact: true,
            events,
            bytes,
            depth_max: None,
        };
        let topology = topology(settings).await?;
        let nodes = match settings.management() {
            Some(management) => management.nodes().await.map_err(|error| words(&error)),
            None => Err("AMQP cannot tell; name the management plugin (--management)".to_owned()),
        };
        let facts = Facts {
            exists: Some(true),
            depth: Some(0),
            // It is consumed only once history is played.
            consumers: Some(0),
            denied: Ok(Vec::new()),
            missing: Default::default(),
            unasked: Default::default(),
            nodes,
            topology,
        };
        let room = check_holding(&load, &facts, self.description.wishes.clone());
        output.talk(&format!(
            "holding    about {} ({}) are to be held meanwhile, at {}/s",
            format::counted(events, "live event"),
            format::bytes(bytes),
            format::number(live.events_per_second as u64),
        ));
        for line in preflight::lines(&room) {
            output.talk(&line);
        }
        preflight::refuse(&room)
    }

    /// Takes the holding queue away again.
    pub async fn release(&mut self) -> anyhow::Result<Done> {
        if !self.remove_holding().await? {
            return Ok(Done::Interrupted);
        }
        Ok(Done::Happened(Happened::Stale))
    }

    /// Deletes the holding queue at the end.
    pub async fn remove(&mut self) -> anyhow::Result<Done> {
        if !self.remove_holding().await? {
            return Ok(Done::Interrupted);
        }
        Ok(Done::Happened(Happened::Removed))
    }

    async fn remove_holding(&self) -> anyhow::Result<bool> {
        let Parts { settings, output, .. } = &self.parts;
        let (holding, exchange) = (self.holding_queue(), self.locked.id.exchange());
        let control = self.control.subscribe();
        let removed = persist("deleting the holding queue", &control, output, async || {
            let broker = settings.broker("dacapo backfill")?;
            Ok(dacapo_amqp::remove_holding(&broker, &holding, &exchange).await?)
        });
        Ok(removed.await?.is_some())
    }

    pub async fn mark(&mut self) -> anyhow::Result<Done> {
        // An archiver may have what is still on its way to the holding queue.
        let control = self.control.subscribe();
        if pause(self.description.margin, &control).await == Control::Stop {
            return Ok(Done::Interrupted);
        }
        match self.publish_mark(Mark::History).await? {
            true => Ok(Done::Happened(Happened::Marked)),
            false => Ok(Done::Interrupted),
        }
    }

    async fn publish_mark(&self, mark: Mark) -> anyhow::Result<bool> {
        let Parts { settings, output, .. } = &self.parts;
        let holding = ShortStr::try_from(self.holding_queue())?;
        let mark = mark_message(&self.locked.id, mark, holding);
        let control = self.control.subscribe();
        let published = persist("marking the holding queue", &control, output, async || {
            publish(std::slice::from_ref(&mark), settings).await
        });
        Ok(published.await?.is_some())
    }

    /// Binds the target between two marks, and the holding queue no longer. Whatever of it was done
    /// before a kill is done again: the first of each mark counts.
    pub async fn switch(&mut self) -> anyhow::Result<Done> {
        if !self.publish_mark(Mark::Open).await? {
            return Ok(Done::Interrupted);
        }
        let Parts { settings, output, .. } = &self.parts;
        let live = bindings(&self.description.bindings);
        let (queue, holding) = (self.description.queue(), self.holding_queue());
        let control = self.control.subscribe();
        let bound = persist("binding the queue", &control, output, async || {
            let broker = settings.broker("dacapo backfill")?;
            Ok(dacapo_amqp::bind(&broker, queue, &live).await?)
        });
        let margin = self.description.margin;
        if bound.await?.is_none() || pause(margin, &control).await == Control::Stop {
            return Ok(Done::Interrupted);
        }
        if !self.publish_mark(Mark::Close).await? {
            return Ok(Done::Interrupted);
        }
        let unbound = persist("unbinding the holding queue", &control, output, async || {
            let broker = settings.broker("dacapo backfill")?;
            Ok(dacapo_amqp::unbind(&broker, &holding, &live).await?)
        });
        if unbound.await?.is_none() {
            return Ok(Done::Interrupted);
        }
        Ok(Done::Happened(Happened::Switched))
    }

    pub async fn forward(&mut self) -> anyhow::Result<Done> {
        let remembered = match self.standing.past {
            Past::Nothing => match self.remembered().await? {
                Some(remembered) => remembered,
                None => return Ok(Done::Interrupted),
            },
            _ => Remembered::default(),
        };
        if self.standing.past == Past::Nothing {
            self.standing.counts.between_barriers = remembered.events;
            self.standing.counts.not_remembered = remembered.not_remembered;
        }
        if !self.pass_all(&remembered, Until::LittleHeld, DRAIN_QUIET).await? {
            return Ok(Done::Interrupted);
        }
        // Here, for the switch binds it.
        self.refuse_bound().await?;
        Ok(Done::Happened(Happened::LittleHeld))
    }

    /// Passes on the rest, and waits for what the broker may still have as dead letters.
    pub async fn drain(&mut self) -> anyhow::Result<Done> {
        let mut quiet = match self.parts.settings.management() {
            Some(_) => STATISTICS_AGE,
            None => DRAIN_QUIET,
        };
        loop {
            let none = Remembered::default();
            if !self.pass_all(&none, Until::Closed, quiet).await? {
                return Ok(Done::Interrupted);
            }
            match self.messages_left().await {
                Some(0) => break,
                // It has some that nobody gets: the broker tries them again.
                Some(_) => {}
                None if !self.standing.may_expire || quiet >= EXPIRED_QUIET => break,
                None => {
                    quiet = EXPIRED_QUIET;
                    self.parts.output.talk(&format!(
                        "waiting for {}: something that was held had an expiration, and the broker may \
                         try again to hand it on (with --management it would tell)",
                        format::duration(quiet)
                    ));
                }
            }
        }
        Ok(Done::Happened(Happened::Drained))
    }

    /// Returns how many messages the holding queue has, dead letters on their way among them, if the
    /// plugin tells.
    async fn messages_left(&self) -> Option<u64> {
        let settings = self.parts.settings;
        let management = settings.management()?;
        let broker = settings.broker("dacapo backfill").ok()?;
        let told = management.messages(broker.url.vhost(), &self.holding_queue()).await;
        told.inspect_err(|error| tracing::warn!(%error, "what the holding queue has is not told"))
            .ok()
            .flatten()
    }

    /// Passes on as far as asked, publishing marks again that lost their place; returns false if it
    /// was told to stop.
    async fn pass_all(
        &mut self,
        remembered: &Remembered,
        until: Until,
        quiet: Duration,
    ) -> anyhow::Result<bool> {
        let mut marked_again = Vec::new();
        loop {
            match self.pass_on(remembered, until, quiet, &marked_again).await? {
                Ended::Done => return Ok(true),
                Ended::Interrupted => return Ok(false),
                Ended::Displaced(mark) => {
                    if !self.publish_mark(mark).await? {
                        return Ok(false);
                    }
                    marked_again.push(mark);
                }
            }
        }
    }

    async fn pass_on(
        &mut self,
        remembered: &Remembered,
        until: Until,
        quiet: Duration,
        marked_again: &[Mark],
    ) -> anyhow::Result<Ended> {
        let id = &self.locked.id;
        let holding_queue = self.holding_queue();
        let Parts { settings, running, .. } = &self.parts;
        let client = format!("dacapo backfill {id}");
        let request = &self.description.request;
        let window = u16::try_from(request.window.get()).unwrap_or(u16::MAX);
        let window = NonZeroU16::new(window).expect("a window is above 0");
        let source = AmqpQueue::new(
            settings.broker(client.clone())?,
            &holding_queue,
            window,
            settings.memory.waiting(),
        )?
        .with_parking()?;
        let target = AmqpConnect {
            broker: settings.broker(client)?,
            target: AmqpTarget::Queue {
                queue: self.description.queue().to_owned(),
                via: Via::OwnExchange { name: id.exchange() },
            },
        };
        let config = Config {
            pace: pace_of_held(&request.pace),
            window: WindowLimits {
                messages: NonZeroUsize::from(window),
                bytes: NonZeroU64::new(settings.memory.window())
                    .expect("the least budget has a window"),
            },
            on_reject: OnReject::Stop,
            nack_retries: running.nack_retries(),
        };
        let forwarder = Forwarder {
            id,
            source: &source,
            target: &target,
            rules: &self.description.rules,
            remembered,
            marked_again,
            quiet,
            priority: request.priority,
            config,
            clock: settings.clock,
        };
        let (progress, watched) = watch::channel(Progress::default());
        let (holding, held) = watch::channel(Holding::default());
        let show = self.telling.show_held(watched, held, until, &self.standing);
        let standing = &mut self.standing;
        let journal = &mut self.journal;
        let control = self.control.subscribe();
        let passing = forwarder.run(until, standing, journal, control, &progress, &holding);
        tokio::select! {
            ended = passing => Ok(ended?),
            () = show => unreachable!("it does not end"),
        }
    }
}
