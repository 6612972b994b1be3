//! One drill: makes the environment, restores there, measures, takes everything down, and tells what
//! was measured. What goes wrong on the way is a fact of the report.

use std::time::Duration;

use dacapo_drill::report::{self, Facts, Failure as BrokenOff, Part, Report, Rpo, RpoSource};
use dacapo_engine::state::ReplayId;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Asked;
use super::environment::Environment;
use super::queries::Told;
use super::restore::Stage;
use super::witness::Counted;
use super::{checks, lag};
use crate::exit::Failure;
use crate::output::{Output, words};
use crate::settings::Settings;
use crate::signals::Signals;

/// What a report says of a drill that a signal ended.
pub const INTERRUPTED: &str = "interrupted by a signal";

/// How long a replay may take to end in order once a signal came: its last confirms, and the receipt.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// Tells the parts of a drill apart, on a clock that nobody sets.
#[derive(Debug)]
pub struct Stopwatch {
    began: Instant,
    parts: Vec<Part>,
    open: Option<(&'static str, Duration)>,
}

impl Stopwatch {
    fn start() -> Self {
        Stopwatch { began: Instant::now(), parts: Vec::new(), open: None }
    }

    /// Ends the part before and begins another one.
    pub fn part(&mut self, name: &'static str, output: &Output) {
        self.end();
        output.talk(&format!("{name:<11} begins"));
        self.open = Some((name, self.began.elapsed()));
    }

    /// Ends the part at hand, and returns how long everything took.
    pub fn end(&mut self) -> Duration {
        let now = self.began.elapsed();
        if let Some((name, from)) = self.open.take() {
            self.parts.push(Part { name: name.to_owned(), from, took: now - from });
        }
        now
    }

    /// Returns the part at hand, or the last one.
    fn at(&self) -> String {
        let last = || self.parts.last().map_or("start", |part| part.name.as_str());
        self.open.map_or_else(|| last().to_owned(), |(name, _)| name.to_owned())
    }
}

/// Whether a signal came, and whether a replay runs that is to end in order then; all else is dropped.
#[derive(Debug, Default)]
pub struct Ending {
    pub asked: watch::Sender<bool>,
    pub replaying: watch::Sender<bool>,
}

impl Ending {
    /// Waits for a signal, and then until a replay has ended, a second signal comes, or it takes too long.
    async fn of(&self, signals: &mut Signals) {
        signals.next().await;
        self.asked.send_replace(true);
        let mut replaying = self.replaying.subscribe();
        tokio::select! {
            _ = replaying.wait_for(|replaying| !replaying) => {}
            () = tokio::time::sleep(END_DEADLINE) => {}
            () = signals.next() => {}
        }
    }

    /// Waits until a signal came.
    pub async fn is_asked(&self) {
        let mut asked = self.asked.subscribe();
        // The sender lives as long as this.
        if asked.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Carries out one drill, until it is done or a signal ends it; what it made is taken down in any case.
pub async fn rehearse(
    asked: &Asked,
    id: &ReplayId,
    settings: &Settings,
    signals: &mut Signals,
    output: &Output,
) -> anyhow::Result<Report> {
    let description = &asked.description;
    let witnessed = !asked.rehearsed.target.via_default_exchange;
    let mut environment =
        Environment::choose(description, settings, id.as_str(), witnessed).await?;
    let told = told(asked, id, &environment)?;
    let mut facts = nothing_yet(asked, id, settings, &environment);
    output.talk(&format!("drill      {id}, in {}", facts.environment.broker));
    let lag = match &description.archiver_metrics {
        None => None,
        Some(url) => Some(lag::of_archiver(url).await),
    };

    let (counted, ending) = (Counted::default(), Ending::default());
    let stage = Stage { asked, told: &told, counted: &counted, ending: &ending, output };
    let mut running = None;
    let mut watch = Stopwatch::start();
    let worked = tokio::select! {
        worked = stage.work(&mut environment, &mut running, &mut facts, &mut watch) => worked,
        () = ending.of(signals) => Err(Failure::usage(INTERRUPTED).into()),
    };
    if let Err(error) = worked {
        let problem = words(error.as_ref());
        output.talk(&format!("broken off during {}: {problem}", watch.at()));
        facts.failure = Some(BrokenOff { during: watch.at(), problem });
    }
    watch.end();

    let evidence_and_end = async {
        stage.reconcile(&environment, &mut facts).await;
        if let Some(running) = running {
            running.stop().await;
        }
        environment.take_down().await
    };
    let left = tokio::select! {
        left = evidence_and_end => Some(left),
        () = signals.next() => None,
    };
    let left = left.unwrap_or_else(|| environment.what_is_left());
    for what in &left {
        output.talk(&format!("warning: could not take down {what}"));
    }
    facts.parts = watch.parts;
    facts.rpo = rpo(lag, &counted, &facts, output);
    facts.environment = environment.told(left);
    facts.ended = settings.now();
    Ok(Report::new(facts))
}

/// Returns what commands are told.
fn told(asked: &Asked, id: &ReplayId, environment: &Environment) -> anyhow::Result<Told> {
    let folder = asked.out.join(id.as_str());
    std::fs::create_dir_all(&folder).map_err(|error| Failure::file("make", &folder, &error))?;
    let variables = vec![
        ("DACAPO_DRILL_ID", id.to_string()),
        ("DACAPO_DRILL_AMQP", environment.broker()?.url.reveal()),
        ("DACAPO_DRILL_VHOST", environment.vhost().to_owned()),
        ("DACAPO_DRILL_QUEUE", asked.description.queue.clone()),
        ("DACAPO_DRILL_FOLDER", folder.display().to_string()),
    ];
    Ok(Told { variables, folder })
}

fn nothing_yet(
    asked: &Asked,
    id: &ReplayId,
    settings: &Settings,
    environment: &Environment,
) -> Facts {
    let description = &asked.description;
    let now = settings.now();
    Facts {
        id: id.to_string(),
        name: description.name.clone(),
        by: asked.by.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        description: asked.digest,
        began: now,
        ended: now,
        failure: None,
        environment: environment.told(Vec::new()),
        archive: None,
        plan: None,
        replay: None,
        reconciliation: None,
        service: report::Service {
            program: description.service.command.as_ref().map(|words| words[0].clone()),
            ..report::Service::default()
        },
        checks: description.checks.iter().map(checks::unasked).collect(),
        parts: Vec::new(),
        rto: None,
        rto_target: description.targets.rto,
        rpo: None,
        rpo_target: description.targets.rpo,
        signed_by: asked.key.as_ref().map(|key| key.public().fingerprint()),
    }
}

/// Returns what would have been lost, had production been lost when the drill began.
fn rpo(
    lag: Option<Result<Duration, String>>,
    counted: &Counted,
    facts: &Facts,
    output: &Output,
) -> Option<Rpo> {
    let newest = counted.given().newest;
    match lag {
        Some(Ok(time)) => Some(Rpo { time, newest, source: RpoSource::ArchiverLag }),
        Some(Err(problem)) => {
            output.talk(&format!("warning: the archiver's lag is not known: {problem}"));
            None
        }
        None => newest.map(|newest| Rpo {
            time: facts.began.since(newest),
            newest: Some(newest),
            source: RpoSource::UpperBound,
        }),
    }
}
