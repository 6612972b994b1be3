//! Holding live events, passing them on, and the switch to the live stream.

use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use dacapo_amqp::{AmqpConnect, AmqpQueue, AmqpTarget, Via};
use dacapo_engine::backfill::held::{Ended, Forwarder, Holding, Until};
use dacapo_engine::backfill::{Happened, Mark, Past, Remembered, mark_message};
use dacapo_engine::preflight::{Facts, Load, check_holding};
use dacapo_engine::request::Target;
use dacapo_event::ShortStr;
use dacapo_republish::{Config, Control, OnReject, Progress, WindowLimits};
use tokio::sync::watch;

use super::super::preflight;
use super::begin::{pace_of_held, topology};
use super::broker::{bindings, pause, persist, publish};
use super::drive::{Done, Parts, Run};
use super::rounds::LiveLoad;
use crate::format;
use crate::output::words;

/// How long after a binding what was routed without it may still come: a publisher's process looks
/// up the queues and then delivers, within milliseconds unless it is suspended or blocked by flow
/// control; and from RabbitMQ 4.0 the other nodes of a cluster learn of a binding a moment later.
const MARGIN: Duration = Duration::from_secs(5);

/// Assumed for the time a rest of history takes when no rate is asked for: as plans do.
const UNPACED_EVENTS_PER_SECOND: f64 = 10_000.0;

/// What else passes while events are held: two answers of archivers, two margins, and some for what
/// takes longer.
const ASKING_SECONDS: f64 = 60.0;

impl Run<'_> {
    fn holding_queue(&self) -> String {
        self.locked.id.holding_queue(self.description.queue())
    }

    /// Makes the holding queue, looks whether there is room, and binds it.
    pub async fn bind(&mut self) -> anyhow::Result<Done> {
        let Some(load) = self.live_load().await? else { return Ok(Done::Interrupted) };
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
        if bound.await?.is_none() || pause(MARGIN, &control).await == Control::Stop {
            return Ok(Done::Interrupted);
        }
        Ok(Done::Happened(Happened::Bound))
    }

    /// Refuses if what is to be held has no room on the broker; says so if nobody can tell.
    async fn check_room(&self, holding: &str, live: LiveLoad) -> anyhow::Result<()> {
        let Parts { settings, output, .. } = &self.parts;
        let pace = &self.description.request.pace;
        let rate = pace.rate.map_or(UNPACED_EVENTS_PER_SECOND, |rate| f64::from(rate.get()));
        let seconds = live.left as f64 / rate + ASKING_SECONDS;
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
            // It is consumed as soon as history is played.
            consumers: Some(1),
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
        if bound.await?.is_none() || pause(MARGIN, &control).await == Control::Stop {
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
        match self.pass_on(&remembered, Until::LittleHeld).await? {
            Ended::Done => Ok(Done::Happened(Happened::LittleHeld)),
            Ended::Interrupted => Ok(Done::Interrupted),
        }
    }

    pub async fn drain(&mut self) -> anyhow::Result<Done> {
        match self.pass_on(&Remembered::default(), Until::Closed).await? {
            Ended::Done => Ok(Done::Happened(Happened::Drained)),
            Ended::Interrupted => Ok(Done::Interrupted),
        }
    }

    async fn pass_on(&mut self, remembered: &Remembered, until: Until) -> anyhow::Result<Ended> {
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
