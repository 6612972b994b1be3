//! `dacapo drill`: a rehearsed restore, with evidence.

mod checks;
mod drain;
mod environment;
mod lag;
mod metrics;
mod queries;
mod rehearsal;
mod restore;
mod service;
mod verify;
mod witness;

use std::path::{Path, PathBuf};

use anyhow::Context;
use dacapo_drill::description::{DESCRIPTION_BYTES_MAX, Description, Flag};
use dacapo_drill::page::page;
use dacapo_drill::report::{Cause, Report};
use dacapo_drill::signature::SigningKey;
use dacapo_drill::verdict::{Outcome, Requirement, Verdict};
use dacapo_engine::state::ReplayId;
use dacapo_event::Digest;
use dacapo_filter::Selection;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::args::{DrillArgs, DrillCommand, Rehearsed, read_bounded};
use crate::exit::{Exit, Failure};
use crate::format;
use crate::output::Output;
use crate::settings::Settings;
use crate::signals::Signals;

/// A description with everything in it.
const EXAMPLE: &str = include_str!("drill/example.toml");

/// A key in PEM form has 119 bytes; a whole chain of certificates by mistake has less.
const KEY_BYTES_MAX: u64 = 64 * 1024;

/// What is asked for.
#[derive(Debug)]
struct Asked {
    description: Description,
    /// What the description says in flags of `dacapo replay`.
    rehearsed: Rehearsed,
    /// Of the description.
    digest: Digest,
    key: Option<SigningKey>,
    by: String,
    /// Where reports go, a folder each.
    out: PathBuf,
}

pub async fn run(args: &DrillArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    if let Some(DrillCommand::Verify(args)) = &args.command {
        return verify::run(args, output);
    }
    let path = match (&args.description, args.example) {
        (Some(path), false) => path,
        _ => {
            output.data(EXAMPLE.as_bytes())?;
            return Ok(Exit::Success);
        }
    };
    let asked = Asked::read(path, args, settings)?;
    let mut signals = Signals::take()?.and_hangup()?;
    match args.every {
        None => Ok(exit_of(once(&asked, settings, &mut signals, output).await?.verdict)),
        Some(every) => {
            let metrics = metrics::Metrics::new(&asked.description.name, every);
            let serving = metrics.serve(args.metrics, settings.clock).await?;
            tokio::select! {
                ended = again_and_again(&asked, every, &metrics, settings, &mut signals, output) => ended,
                () = serving => unreachable!("it does not end"),
            }
        }
    }
}

/// Drills until a signal comes between two of them; one that comes during a drill ends both.
async fn again_and_again(
    asked: &Asked,
    every: std::time::Duration,
    metrics: &metrics::Metrics,
    settings: &Settings,
    signals: &mut Signals,
    output: &Output,
) -> anyhow::Result<Exit> {
    loop {
        let began = Instant::now();
        // What cannot even begin counts as missed, and may be mended by the next time.
        let exit = match once(asked, settings, signals, output).await {
            Ok(report) => {
                metrics.ended(Some(&report), settings.now());
                let interrupted = is_interrupted(&report);
                let exit = exit_of(report.verdict);
                if interrupted {
                    return Ok(exit);
                }
                exit
            }
            Err(error) => {
                let exit = crate::exit::classify(&error);
                output.error(&error, exit);
                metrics.ended(None, settings.now());
                exit
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(began + every) => {}
            () = signals.next() => return Ok(exit),
        }
    }
}

fn is_interrupted(report: &Report) -> bool {
    report.facts.failure.as_ref().is_some_and(|failure| failure.cause == Cause::Signal)
}

fn exit_of(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Met => Exit::Success,
        Verdict::Missed => Exit::Missed,
    }
}

/// Carries out one drill, leaves its report, and tells it.
async fn once(
    asked: &Asked,
    settings: &Settings,
    signals: &mut Signals,
    output: &Output,
) -> anyhow::Result<Report> {
    let id = ReplayId::new(settings.now(), &asked.digest, std::process::id());
    let report = rehearsal::rehearse(asked, &id, settings, signals, output).await?;
    let folder = asked.out.join(id.as_str());
    let bytes = report.to_json();
    let path = write(&folder, "report.json", &bytes)?;
    // What is shown is what is read back.
    let report = Report::parse(&bytes).context("a report that was just written is read")?;
    write(&folder, "report.html", page(&report, &Digest::of(&bytes)).as_bytes())?;
    if let Some(key) = &asked.key {
        write(&folder, "report.json.sig", &key.sign(&bytes))?;
    }
    output.result(&summary(&report, &path), || text(&report, &path))?;
    Ok(report)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).map_err(|error| Failure::file("write", &path, &error))?;
    Ok(path)
}

/// Returns what scripts are told; the report has all of it.
fn summary(report: &Report, path: &Path) -> Value {
    let facts = &report.facts;
    let seconds = |time: Option<std::time::Duration>| time.map(|time| time.as_secs_f64());
    let missed = report.requirements.iter().filter(|it| it.outcome != Outcome::Met);
    json!({
        "drill": facts.id,
        "verdict": report.verdict.as_str(),
        "rto_seconds": seconds(facts.rto),
        "rpo_seconds": seconds(facts.rpo.as_ref().map(|rpo| rpo.time)),
        "missed": missed.map(|it| it.name.as_str()).collect::<Vec<_>>(),
        "left_behind": facts.environment.left_behind,
        "report": path.display().to_string(),
    })
}

fn text(report: &Report, path: &Path) -> String {
    let row = |it: &Requirement| {
        let outcome = match it.outcome {
            Outcome::Met => "met",
            Outcome::Missed => "MISSED",
            Outcome::NotMeasured => "NOT MEASURED",
        };
        let cell = |text: &str| format::one_line(text, 70);
        vec![it.name.clone(), outcome.to_owned(), cell(&it.measured), cell(&it.target)]
    };
    let rows: Vec<Vec<String>> = report.requirements.iter().map(row).collect();
    let table = format::table(&["REQUIREMENT", "OUTCOME", "MEASURED", "TARGET"], &rows);
    let verdict = report.verdict.as_str().to_uppercase();
    format!("{table}\nverdict    {verdict}\nreport     {}\n", path.display())
}

impl Asked {
    /// Reads everything, so that mistakes are told before anything is begun.
    fn read(path: &Path, args: &DrillArgs, settings: &Settings) -> anyhow::Result<Self> {
        let bytes = read_bounded(path, DESCRIPTION_BYTES_MAX)?;
        let digest = Digest::of(&bytes);
        let utf8 = |_| Failure::usage(format!("`{}` is not UTF-8 text", path.display()));
        let text = String::from_utf8(bytes).map_err(utf8)?;
        let named = || format!("failed to read `{}`", path.display());
        let description = Description::parse(&text).with_context(named)?;
        let queue = Flag(format!("--to-queue={}", description.queue));
        let flags = [&description.selection, &description.target, &description.pace];
        let flags = flags.into_iter().flatten().chain([&queue]);
        let rehearsed = Rehearsed::of(flags).with_context(named)?;
        let selection = rehearsed.selection.to_spec(settings.now(), None).with_context(named)?;
        Selection::compile(selection).with_context(named)?;
        settings.archive()?;
        let key = match &args.key {
            None => None,
            Some(path) => {
                let pem = read_bounded(path, KEY_BYTES_MAX)?;
                let named = || format!("failed to use `{}`", path.display());
                Some(SigningKey::from_pem(&pem).with_context(named)?)
            }
        };
        let out = args.out.clone().unwrap_or_else(|| settings.state.join("drills"));
        let by = args.by.clone().unwrap_or_else(user);
        Ok(Asked { description, rehearsed, digest, key, by, out: std::path::absolute(out)? })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the composition root is where the environment is read"
)]
fn user() -> String {
    let named = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    named("USER").or_else(|| named("LOGNAME")).unwrap_or_else(|| "nobody who said so".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_description_and_its_flags_are_known() {
        let example = Description::parse(EXAMPLE).unwrap();
        let flags = [&example.selection, &example.target, &example.pace];
        let rehearsed = Rehearsed::of(flags.into_iter().flatten()).unwrap();
        let now = "2026-11-26T12:00:00Z".parse().unwrap();
        Selection::compile(rehearsed.selection.to_spec(now, None).unwrap()).unwrap();
        assert!(!example.checks.is_empty() && example.counts.is_some());
        assert!(example.service.command.is_some() && example.targets.rto.is_some());
    }

    #[test]
    fn a_flag_that_is_none_is_told_without_a_page_of_help() {
        let error = Rehearsed::of(&[Flag("--rate=fast".to_owned())]).unwrap_err().to_string();
        assert!(error.contains("--rate") && !error.contains('\n'), "{error}");
        assert!(Rehearsed::of(&[Flag("--ramp=5s".to_owned())]).is_err());
    }
}
