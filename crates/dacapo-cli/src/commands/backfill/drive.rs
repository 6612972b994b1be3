//! The loop of a backfill: facts, what comes next, doing it, writing it down.

use std::sync::Arc;

use dacapo_archive::store::Store;
use dacapo_engine::EngineError;
use dacapo_engine::backfill::{
    Backfills, Barrier, Description, Facts, Happened, Journal, Locked, Receipt, Standing, Step,
    next,
};
use dacapo_engine::merge::Positions;
use dacapo_engine::state::State;
use dacapo_republish::Control;
use tokio::sync::watch;

use super::telling::{Telling, Told};
use super::{broker, metrics, show};
use crate::args::BackfillRunningArgs;
use crate::exit::Exit;
use crate::output::{Output, words};
use crate::settings::Settings;
use crate::signals::Signals;

/// What a run is made of.
pub struct Parts<'a> {
    pub backfills: &'a Backfills,
    pub settings: &'a Settings,
    pub output: &'a Output,
    pub running: &'a BackfillRunningArgs,
    pub store: Arc<dyn Store>,
}

/// A backfill that runs.
pub struct Run<'a> {
    pub parts: Parts<'a>,
    pub locked: &'a Locked,
    pub description: Description,
    pub state: State,
    pub journal: Journal,
    pub standing: Standing,
    /// Sent on to whatever publishes; `Stop` ends the run in order.
    pub control: &'a watch::Sender<Control>,
    pub telling: Telling<'a>,
}

/// How a step ended.
pub enum Done {
    /// It is done; this is to be written down.
    Happened(Happened),
    /// It was told to stop.
    Interrupted,
    /// Not yet; look again.
    Again,
}

/// Runs until the end, or a signal; prints the receipt.
pub async fn run(
    locked: &Locked,
    description: Description,
    journal: Journal,
    standing: Standing,
    parts: Parts<'_>,
    mut signals: Signals,
) -> anyhow::Result<Exit> {
    let (control, _controlled) = watch::channel(Control::Run);
    let (told, watched) = watch::channel(Told::of(&standing));
    let serving = metrics::serve(parts.running.metrics, watched, parts.settings.clock).await?;
    let (backfills, output) = (parts.backfills, parts.output);
    let telling = Telling::new(output, &told, parts.settings.clock);
    let state = State::new(&parts.settings.state);
    let mut run =
        Run { parts, locked, description, state, journal, standing, control: &control, telling };
    let stop = async {
        signals.next().await;
        output.talk("stopping: finishing what is in flight; a second signal ends at once");
        control.send_replace(Control::Stop);
        signals.next().await;
    };
    let ended = tokio::select! {
        ended = run.drive() => ended,
        () = stop => {
            output.talk("ended at once; the journal is kept");
            return Ok(Exit::Resumable);
        }
        () = serving => unreachable!("it does not end"),
    };
    let Run { description, standing, .. } = &run;
    let receipt = Receipt { id: &locked.id, description, standing };
    let mut json = receipt.to_json();
    backfills.write_receipt(&locked.id, &json)?;
    let exit = match &ended {
        Ok(()) if standing.is_resumable() => Exit::Resumable,
        Ok(()) => Exit::Success,
        Err(error) => {
            json["error"] = words(error.as_ref()).into();
            exit_of(error)
        }
    };
    output.result(&json, || show::text(&receipt))?;
    if let Err(error) = &ended {
        output.talk(&format!("error: {}", words(error.as_ref())));
    }
    if standing.is_resumable() {
        output.talk(&format!("go on with: dacapo backfill resume {}", locked.id));
    }
    Ok(exit)
}

/// What lost its broker or store goes on later.
fn exit_of(error: &anyhow::Error) -> Exit {
    match crate::exit::classify(error) {
        Exit::Unavailable => Exit::Resumable,
        exit => exit,
    }
}

impl Run<'_> {
    async fn drive(&mut self) -> anyhow::Result<()> {
        let now = self.parts.settings.now();
        self.note(Happened::Began(now))?;
        while !self.is_stopped() {
            let ends = match self.standing.needs_ends() {
                true => match self.ends().await? {
                    Some(ends) => ends,
                    None => return Ok(()),
                },
                false => Positions::new(),
            };
            let now = self.parts.settings.now();
            let facts = Facts { now, ends, salt: std::process::id() };
            self.telling.behind(&self.standing, &facts);
            let step = next(&self.locked.id, &self.description, &self.standing, &facts);
            if step == Step::Nothing {
                return Ok(());
            }
            match self.perform(step).await? {
                Done::Happened(happened) => self.note(happened)?,
                Done::Interrupted => return Ok(()),
                Done::Again => {}
            }
        }
        Ok(())
    }

    pub fn is_stopped(&self) -> bool {
        *self.control.borrow() == Control::Stop
    }

    /// Writes down what happened.
    fn note(&mut self, happened: Happened) -> Result<(), EngineError> {
        self.telling.happened(&happened, &self.standing);
        self.standing.apply(happened);
        self.journal.write(&self.standing)?;
        self.telling.stands(&self.standing);
        Ok(())
    }

    async fn perform(&mut self, step: Step) -> anyhow::Result<Done> {
        match step {
            Step::Note(happened) => Ok(Done::Happened(happened)),
            Step::Prepare => self.prepare().await,
            Step::Play(round) => self.play(round).await,
            Step::Ask(which) => {
                let Some(reached) = self.ask(which).await? else { return Ok(Done::Interrupted) };
                Ok(Done::Happened(match which {
                    Barrier::First => Happened::FirstAnswered(reached),
                    Barrier::Second => Happened::SecondAnswered(reached),
                    Barrier::Parked => Happened::ParkedAnswered(reached),
                }))
            }
            Step::Bind => self.bind().await,
            Step::Release => self.release().await,
            Step::Mark => self.mark().await,
            Step::AwaitArchive => self.await_archive().await,
            Step::Forward => self.forward().await,
            Step::Switch => self.switch().await,
            Step::Drain => self.drain().await,
            Step::Remove => self.remove().await,
            Step::Nothing => Ok(Done::Again),
        }
    }

    async fn prepare(&mut self) -> anyhow::Result<Done> {
        let Parts { settings, output, .. } = &self.parts;
        let queue = self.description.queue();
        let control = self.control.subscribe();
        let made = broker::persist("making the queue", &control, output, async || {
            let broker = settings.broker("dacapo backfill")?;
            Ok(dacapo_amqp::ensure_queue(&broker, queue).await?)
        });
        let Some(made) = made.await? else { return Ok(Done::Interrupted) };
        let word = match made {
            dacapo_amqp::Found::There => "is there, and stays as it is",
            dacapo_amqp::Found::Made => "is made, as a service of dacapo declares it",
        };
        output.talk(&format!("queue      `{queue}` {word}"));
        Ok(Done::Happened(Happened::Prepared))
    }
}
