//! One drill: makes the environment, restores there, measures, takes everything down, and tells what
//! was measured. What goes wrong on the way is a fact of the report.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use dacapo_drill::report::{
    self, Cause, Facts, Failure as BrokenOff, Part, Report, Rpo, RpoSource,
};
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

    /// Returns how long after the start a moment was.
    pub fn at_moment(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.began)
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

    /// Waits for the signal that ends a drill at once, while its evidence is gathered and everything is
    /// taken down: the second that came.
    async fn at_once(&self, signals: &mut Signals) {
        if !*self.asked.borrow() {
            signals.next().await;
            self.asked.send_replace(true);
        }
        signals.next().await;
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

    let (counted, ending) = (Counted::until(facts.began), Ending::default());
    let stage = Stage { asked, told: &told, counted: &counted, ending: &ending, output };
    let mut running = None;
    let mut watch = Stopwatch::start();
    let worked = tokio::select! {
        worked = stage.work(&mut environment, &mut running, &mut facts, &mut watch) => worked,
        () = ending.of(signals) => Err(Failure::usage(INTERRUPTED).into()),
    };
    let was_asked = *ending.asked.borrow();
    if let Err(error) = worked {
        let problem = told.hide(&words(error.as_ref()));
        output.talk(&format!("broken off during {}: {problem}", watch.at()));
        let cause = if was_asked { Cause::Signal } else { Cause::Trouble };
        facts.failure = Some(BrokenOff { during: watch.at(), cause, problem });
    }
    watch.end();

    let evidence_and_end = async {
        stage.reconcile(&environment, &mut facts).await;
        if let Some(running) = running
            && let Some(ended) = running.stop().await
        {
            facts.service.ended = Some(ended);
        }
        environment.take_down().await
    };
    let left = tokio::select! {
        left = evidence_and_end => Some(left),
        () = ending.at_once(signals) => None,
    };
    if !was_asked && *ending.asked.borrow() {
        interrupted(&mut facts.failure);
    }
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

/// Notes that a signal came while the evidence was gathered or everything was taken down.
fn interrupted(failure: &mut Option<BrokenOff>) {
    let before = failure.take();
    let (during, problem) = match before {
        None => ("evidence".to_owned(), INTERRUPTED.to_owned()),
        Some(before) => (before.during, format!("{}; then {INTERRUPTED}", before.problem)),
    };
    *failure = Some(BrokenOff { during, cause: Cause::Signal, problem });
}

/// Returns what commands are told.
fn told(asked: &Asked, id: &ReplayId, environment: &Environment) -> anyhow::Result<Told> {
    let folder = asked.out.join(id.as_str());
    let made = std::fs::create_dir_all(&asked.out).and_then(|()| {
        // What a service and commands say besides is nobody else's.
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)
    });
    made.map_err(|error| Failure::file("make", &folder, &error))?;
    let url = environment.broker()?.url.reveal();
    let variables = vec![
        ("DACAPO_DRILL_ID", id.to_string()),
        ("DACAPO_DRILL_AMQP", url.clone()),
        ("DACAPO_DRILL_VHOST", environment.vhost().to_owned()),
        ("DACAPO_DRILL_QUEUE", asked.description.queue.clone()),
        ("DACAPO_DRILL_FOLDER", folder.display().to_string()),
    ];
    Ok(Told { variables, secrets: secrets(url), folder })
}

/// Returns what must not be shown of a broker's URL: all of it, and its password in each form.
fn secrets(url: String) -> Vec<String> {
    let login = url.split_once("://").and_then(|(_, rest)| Some(rest.split_once('@')?.0));
    let encoded = login.and_then(|login| login.split_once(':')).map(|(_, password)| password);
    let encoded = encoded.unwrap_or_default().to_owned();
    let password = dacapo_event::percent::decode(&encoded).unwrap_or_default();
    let mut secrets = vec![url, password, encoded];
    secrets.retain(|secret| !secret.is_empty());
    secrets
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
    if newest.is_none() && facts.replay.is_some() && lag.is_none() {
        output.talk("warning: nothing that was replayed was archived before the drill began");
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_noted_beside_what_went_wrong_before() {
        let mut failure = None;
        interrupted(&mut failure);
        let noted = failure.as_ref().unwrap();
        assert_eq!((noted.cause, noted.problem.as_str()), (Cause::Signal, INTERRUPTED));
        let (during, problem) = ("plan".to_owned(), "no host".to_owned());
        failure = Some(BrokenOff { during, cause: Cause::Trouble, problem });
        interrupted(&mut failure);
        let noted = failure.unwrap();
        assert_eq!(noted.during, "plan");
        assert_eq!(noted.problem, format!("no host; then {INTERRUPTED}"));
    }

    #[test]
    fn a_password_is_hidden_in_each_form() {
        let url = "amqp://u:se%2Fsame@h:5672/v".to_owned();
        let told = Told { variables: Vec::new(), secrets: secrets(url.clone()), folder: "".into() };
        let hidden = told.hide(&format!("{url} se/same se%2Fsame"));
        assert!(!hidden.contains("same"), "{hidden}");
        assert_eq!(secrets("amqps://h:5671/v?auth_mechanism=external".to_owned()).len(), 1);
    }
}
