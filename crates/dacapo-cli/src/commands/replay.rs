//! `dacapo replay`: plan, then do; or do a saved plan; or go on with one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dacapo_archive::store::Store;
use dacapo_bus::file::Existing;
use dacapo_engine::EngineError;
use dacapo_engine::journal::{Journal, Phase};
use dacapo_engine::plan::{Plan, PlannedSegment};
use dacapo_engine::plan_json;
use dacapo_engine::receipt::Receipt;
use dacapo_engine::run::{Finished, Replay, obey};
use dacapo_engine::scan::open_expected;
use dacapo_engine::state::{Control as Asked, ReplayId, State};
use dacapo_engine::survey::Depth;
use dacapo_engine::sync::SyncReport;
use dacapo_index::Index;
use dacapo_republish::{Control, Phase as Doing, Progress};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{blast, plan, preflight, rejects, target};
use crate::args::{PreflightArgs, ReplayArgs, ReplayCommand, RunningArgs, read_bounded};
use crate::exit::{Exit, Failure};
use crate::format;
use crate::open::{self, Access};
use crate::output::{Form, Output, words};
use crate::progress::Steps;
use crate::settings::Settings;
use crate::signals::Signals;

mod metrics;

/// Planned segments looked at at once before a saved plan is run.
const CHECKED_AT_ONCE: usize = 8;

/// How often progress is shown while nothing moves.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);

pub async fn run(args: &ReplayArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let state = State::new(&settings.state);
    if let Some(ReplayCommand::Resume { id, preflight, running }) = &args.resume {
        return resume(&state, id, preflight, running, settings, output).await;
    }
    let on_reject = args.running.on_reject()?;
    let store = open::store(settings, Access::Read).await?;
    let mut plan = match &args.plan {
        Some(path) => {
            let text = read_bounded(path, plan_json::PLAN_BYTES_MAX)?;
            let mut plan = plan_json::from_json(&path.display().to_string(), &text)?;
            let (index, report) = check_saved(&plan, &store, settings, output).await?;
            let looked = look_again(&plan, 0, &args.preflight, settings).await?;
            plan.preflight = looked.preflight;
            let known =
                |segment: &PlannedSegment| Ok(index.segment(&segment.stream, segment.first)?);
            let (topology, checks) = (&looked.topology, &args.preflight);
            let looked = blast::look(&plan, topology, checks, known, &store, settings, output);
            let looked = looked.await?;
            index.close()?;
            blast::refuse_less_known(plan.blast_radius.as_ref(), looked.as_ref())?;
            plan.blast_radius = looked;
            refuse_gaps(&report, &plan, args)?;
            plan
        }
        None => {
            if args.target.target().is_none() && args.selection.rejects.is_none() {
                let problem = "where to? give --to-queue QUEUE (one consumer), --to-exchange, --to-original or \
                               --to-file FILE; `dacapo plan` says beforehand what would happen";
                return Err(Failure::usage(problem).into());
            }
            let depth = if args.exact { Depth::Exact } else { Depth::Index };
            let again = rejects::read(&args.selection)?;
            let request =
                plan::request(&args.selection, again.as_ref(), &args.target, &args.pace, settings)?;
            args.preflight.refuse_unfit(&request.target)?;
            if request.target.is_bus() {
                // Asked for before the work of a plan.
                settings.broker("dacapo replay")?;
            }
            let (index, report) = open::synced_index(settings, &store, output, "replay").await?;
            open::refuse_empty(&index, &report, &store)?;
            let mut plan =
                plan::make(request, depth, &args.preflight, &store, &index, settings, output)
                    .await?;
            plan.add_gaps(&report.gaps);
            index.close()?;
            refuse_gaps(&report, &plan, args)?;
            if let Some(again) = &again {
                rejects::verify(again, &plan, &store, settings, output).await?;
            }
            plan
        }
    };
    target::refuse_unfit(&plan.request.target)?;
    preflight::refuse(&plan.preflight)?;
    let everyone = blast::Everyone::of(&args.running);
    blast::approve(&mut plan, args.running.approve, everyone, output)?;
    if output.form() == Form::Text {
        output.talk(plan::text(&plan).trim_end());
    }
    let salt = std::process::id();
    let id = ReplayId::new(settings.now(), &plan.hash(), salt);
    let connect = target::connect(&plan.request.target, &id, Existing::Refuse, settings)?;
    // From here on an interruption is one of this replay: it ends resumable, not killed.
    let signals = Signals::take()?;
    let locked = state.create(id, &plan)?;
    output.talk(&format!("replay     {}", locked.id));
    let replay = Replay {
        state: &state,
        locked: &locked,
        plan: &plan,
        store,
        target: &*connect,
        on_reject,
        nack_retries: args.running.nack_retries(),
        clock: settings.clock,
        memory: settings.memory,
        look: None,
    };
    carry_out(&replay, &args.running, signals, output).await
}

async fn resume(
    state: &State,
    id: &str,
    checks: &PreflightArgs,
    running: &RunningArgs,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let on_reject = running.on_reject()?;
    let id = state.find(id)?;
    let signals = Signals::take()?;
    let locked = state.lock(id)?;
    let mut plan = state.plan(&locked.id)?;
    let standing = Journal::read(&state.journal_path(&locked.id))?;
    let phase = standing.phase;
    let store = open::store(settings, Access::Read).await?;
    if phase.is_resumable() {
        target::refuse_shortened(&plan.request.target, standing.counts.confirmed)?;
        let looked = look_again(&plan, standing.counts.confirmed, checks, settings).await;
        // The same as at the first start: a wrong URL is told at once, and whoever starts it again
        // decides how long to wait for a broker that is down.
        let preflight::Looked { preflight: mut found, topology } =
            looked.with_context(|| as_it_was(&locked.id))?;
        preflight::refuse(&found)?;
        found.remember(&plan.preflight);
        plan.preflight = found;
        // The index is left to others while a replay runs.
        let looked = blast::look(&plan, &topology, checks, |_| Ok(None), &store, settings, output);
        let looked = looked.await.with_context(|| as_it_was(&locked.id))?;
        let earlier = std::mem::replace(&mut plan.blast_radius, looked);
        let approved = blast::approve_again(&mut plan, earlier, running.approve, output);
        approved.with_context(|| as_it_was(&locked.id))?;
        locked.write_plan(&plan)?;
    }
    let connect = target::connect(&plan.request.target, &locked.id, Existing::Continue, settings)?;
    // What another terminal asked of the run before is over.
    state.set_control(&locked.id, Asked::Run)?;
    // The run refuses any other.
    if phase.is_resumable() {
        output.talk(&format!("replay     {} goes on, to {}", locked.id, plan.request.target));
    }
    let replay = Replay {
        state,
        locked: &locked,
        plan: &plan,
        store,
        target: &*connect,
        on_reject,
        nack_retries: running.nack_retries(),
        clock: settings.clock,
        memory: settings.memory,
        look: None,
    };
    carry_out(&replay, running, signals, output).await
}

/// Says that a resumed replay has not begun, before the reason.
fn as_it_was(id: &ReplayId) -> String {
    format!(
        "replay `{id}` does not go on and is as it was; start `dacapo replay resume {id}` again once this is mended"
    )
}

/// Makes sure that a saved plan's segments are what they were, and mentions newer ones.
async fn check_saved(
    plan: &Plan,
    store: &Arc<dyn Store>,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<(Index, SyncReport)> {
    if plan.archive != store.location() {
        let problem = format!(
            "the plan was made of {}, and --archive is {}; name that archive, or make a new plan",
            plan.archive,
            store.location()
        );
        return Err(Failure::configuration(problem).into());
    }
    let mut steps = Steps::new(output, "checking the planned segments");
    let all = plan.segments.len() as u64;
    let wanted: Vec<_> = plan.segments.iter().map(|segment| segment.to_read()).collect();
    let mut checks = stream::iter(&wanted)
        .map(|segment| open_expected(Arc::clone(store), segment))
        .buffered(CHECKED_AT_ONCE);
    let mut done = 0;
    while checks.try_next().await?.is_some() {
        done += 1;
        steps.at(done, all);
    }
    steps.finish();
    let (index, report) = open::synced_index(settings, store, output, "replay").await?;
    let known = index.stats()?.segments;
    if known > all {
        let more = format::counted(known - all, "segment");
        output.talk(&format!("note       the archive has {more} that the plan does not read"));
    }
    Ok((index, report))
}

/// Looks at the target of a plan as it is now; what was found when the plan was made is old.
async fn look_again(
    plan: &Plan,
    confirmed: u64,
    checks: &PreflightArgs,
    settings: &Settings,
) -> anyhow::Result<preflight::Looked> {
    checks.refuse_unfit(&plan.request.target)?;
    let facts = target::facts(&plan.request.target, &plan.request.pace, settings).await?;
    let wishes = checks.wishes(&plan.preflight.wishes);
    preflight::look(plan, confirmed, &facts, wishes, settings).await
}

/// Refuses to replay an archive that lacks events as if it were whole: a service would be rebuilt
/// with a hole that nobody notices.
fn refuse_gaps(report: &SyncReport, plan: &Plan, args: &ReplayArgs) -> anyhow::Result<()> {
    // A plan may have been made when more was missing, and does not read what came back.
    let gap = report.gaps.iter().chain(&plan.gaps).next();
    let lacking = match (gap, report.unreadable.first()) {
        _ if args.accept_gaps => return Ok(()),
        (None, None) => return Ok(()),
        (Some(gap), _) => {
            format!("stream `{}` lacks sequences {} to {}", gap.stream, gap.first, gap.last)
        }
        (None, Some((object, problem))) => format!("`{object}`: {problem}"),
    };
    let problem = format!(
        "the archive at {} lacks events: {lacking}; run `dacapo archive verify` to see why, or \
         replay what there is with --accept-gaps",
        plan.archive
    );
    Err(Failure::damaged(problem).into())
}

/// Runs until the end, a signal, or what another terminal asks; prints the receipt.
async fn carry_out(
    replay: &Replay<'_>,
    running: &RunningArgs,
    mut signals: Signals,
    output: &Output,
) -> anyhow::Result<Exit> {
    let (control, controlled) = watch::channel(Control::Run);
    let (progress, watched) = watch::channel(Progress::default());
    let serving =
        metrics::serve(running.metrics, watched.clone(), replay.plan, replay.clock).await?;
    let show = show(watched, replay.plan, output);
    let obey = obey(replay.state, &replay.locked.id, &control);
    let stop = async {
        signals.next().await;
        output.talk("stopping: waiting for the last confirms; a second signal ends at once");
        control.send_replace(Control::Stop);
        signals.next().await;
    };
    let finished = tokio::select! {
        finished = replay.run(controlled, &progress) => match finished {
            Ok(finished) => finished,
            Err(error) => {
                if let Some(step) = step_after(&error, &replay.locked.id) {
                    output.talk(&step);
                }
                return Err(error.into());
            }
        },
        () = stop => {
            output.talk("ended at once; the last checkpoint is kept");
            return Ok(Exit::Resumable);
        }
        () = async { tokio::join!(show, obey, serving); } => unreachable!("they do not end"),
    };
    report(&finished, replay, output)
}

/// Returns how to go on after a run that could not even write its receipt: what its journal says
/// is confirmed stays so.
fn step_after(error: &EngineError, id: &ReplayId) -> Option<String> {
    let unwritten = matches!(error, EngineError::State { .. });
    unwritten.then(|| format!("once that is mended, go on with: dacapo replay resume {id}"))
}

/// Shows progress for ever.
pub(super) async fn show(mut watched: watch::Receiver<Progress>, plan: &Plan, output: &Output) {
    let mut steps = Steps::new(output, "replaying");
    loop {
        let progress = watched.borrow_and_update().clone();
        let remark = match &progress.phase {
            Doing::Publishing => String::new(),
            Doing::Paused => "paused by its operator".to_owned(),
            Doing::Blocked => "the broker has blocked publishers (memory or disk alarm)".to_owned(),
            Doing::TooDeep { depth } => format!("waiting, {} in the queue", format::number(*depth)),
            Doing::Retrying { reason, delay } => {
                format!("trying again in {}: {reason}", format::duration(*delay))
            }
            Doing::Finishing => "waiting for the last confirms".to_owned(),
        };
        let totals = progress.totals;
        let remark = match (totals.rejected, remark.as_str()) {
            (0, _) => remark,
            (rejected, "") => format!("{} rejected", format::number(rejected)),
            (rejected, remark) => format!("{} rejected, {remark}", format::number(rejected)),
        };
        steps.show(totals.confirmed + totals.rejected, plan.events, &remark);
        // What waits does not change, and is to be told all the same.
        if let Ok(Err(_)) = timeout(SHOW_INTERVAL, watched.changed()).await {
            std::future::pending::<()>().await;
        }
    }
}

fn report(finished: &Finished, replay: &Replay<'_>, output: &Output) -> anyhow::Result<Exit> {
    let receipt = &finished.receipt;
    let mut json = receipt.to_json();
    let exit = match (&finished.error, receipt.phase) {
        (Some(error), _) => {
            json["error"] = words(error).into();
            exit_of(error)
        }
        (None, Phase::Completed | Phase::Cancelled) => Exit::Success,
        (None, _) => Exit::Resumable,
    };
    if target::writes_to_stdout(&replay.plan.request.target) {
        // stdout is the events; the receipt is in the state directory and told on stderr.
        match output.form() {
            Form::Json => output.talk(&json.to_string()),
            Form::Text => output.talk(text(receipt).trim_end()),
        }
    } else {
        output.result(&json, || text(receipt))?;
    }
    if let Some(error) = &finished.error {
        output.talk(&format!("error: {}", words(error)));
    }
    if receipt.phase.is_resumable() {
        output.talk(&format!("go on with: dacapo replay resume {}", receipt.id));
    }
    Ok(exit)
}

/// A replay that the target or the archive stopped has their status; one that lost its broker or
/// store can simply go on later.
fn exit_of(error: &EngineError) -> Exit {
    match crate::exit::of_engine_error(error) {
        Exit::Unavailable => Exit::Resumable,
        exit => exit,
    }
}

/// Returns a receipt as a person reads it.
pub fn text(receipt: &Receipt) -> String {
    let counts = &receipt.counts;
    let about = if receipt.selected_exact { "" } else { "about " };
    let mut lines = vec![
        format!("state      {}", receipt.phase.as_str()),
        format!(
            "events     {about}{} selected = {} confirmed + {} rejected + {about}{} remaining",
            format::number(receipt.selected),
            format::number(counts.confirmed),
            format::number(receipt.rejected),
            format::number(receipt.remaining()),
        ),
        format!(
            "delivery   {} possible repeats, {} reordered",
            format::number(counts.possible_repeats),
            format::number(counts.reordered),
        ),
        format!(
            "read       {} of {} in {} requests",
            format::bytes(counts.bytes_read),
            format::bytes(receipt.bytes_full_scan),
            format::number(counts.requests),
        ),
        format!(
            "took       {} ({}/s)",
            format::seconds(counts.seconds),
            format::number((counts.confirmed as f64 / counts.seconds.max(0.001)) as u64),
        ),
    ];
    if counts.where_skipped > 0 {
        lines.push(format!(
            "skipped    {} on which --where failed",
            format::number(counts.where_skipped)
        ));
    }
    if !receipt.overridden.is_empty() {
        lines.push(format!("overridden {}", receipt.overridden.join(", ")));
    }
    if let Some(approval) = &receipt.approval {
        lines.push(format!("approved   {} ({})", approval.hash, approval.by.as_str()));
    }
    if let Some(path) = &receipt.rejects {
        lines.push(format!("rejects    {path}"));
    }
    if let Some(refusal) = &receipt.refusal {
        lines.push(format!("refused    {refusal}"));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fault campaign (`state-full`).
    #[test]
    fn a_replay_whose_journal_cannot_be_written_says_how_to_go_on() {
        let plan = dacapo_event::Hasher::default().finish();
        let id = ReplayId::new(dacapo_event::Timestamp::from_secs(0), &plan, 0);
        let full = EngineError::State {
            action: "write",
            path: "journal".to_owned(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let step = step_after(&full, &id).unwrap();
        assert!(step.ends_with(&format!("dacapo replay resume {id}")), "{step}");
        assert_eq!(step_after(&EngineError::DepthUnknown, &id), None);
    }
}
