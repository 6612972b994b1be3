//! `dacapo replays`: what other terminals and yesterday did.

use dacapo_engine::journal::{Journal, Phase, Standing};
use dacapo_engine::plan::Plan;
use dacapo_engine::receipt::Receipt;
use dacapo_engine::rejects::RejectFile;
use dacapo_engine::state::{Control, Locked, ReplayId, State};
use dacapo_engine::{EngineError, plan_json};
use serde_json::{Value, json};

use super::{plan, replay, target};
use crate::args::ReplaysCommand;
use crate::exit::Exit;
use crate::format;
use crate::output::{Output, words};
use crate::settings::Settings;

pub async fn run(
    command: &ReplaysCommand,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let state = State::new(&settings.state);
    match command {
        ReplaysCommand::Ls => ls(&state, output),
        ReplaysCommand::Show { id } => show(&state, id, output),
        ReplaysCommand::Pause { id } => tell(&state, id, Control::Pause, output),
        ReplaysCommand::Resume { id } => tell(&state, id, Control::Run, output),
        ReplaysCommand::Cancel { id } => cancel(&state, id, settings, output).await,
    }
}

/// How a replay stands: its journal, and whether a process runs it now.
struct Status {
    standing: Standing,
    word: &'static str,
}

fn status(state: &State, id: &ReplayId) -> Result<Status, EngineError> {
    let running = state.holder(id)?.is_some();
    let standing = Journal::read(&state.journal_path(id))?;
    let word = match (running, standing.phase) {
        (true, _) if state.control(id) == Control::Pause => "paused",
        (true, _) => "running",
        // It says that it runs, and nobody does: it was killed.
        (false, Phase::Running | Phase::New) => "interrupted",
        (false, phase) => phase.as_str(),
    };
    Ok(Status { standing, word })
}

fn ls(state: &State, output: &Output) -> anyhow::Result<Exit> {
    let (mut replays, mut rows) = (Vec::new(), Vec::new());
    for id in state.replays()? {
        let status = match status(state, &id) {
            Ok(status) => status,
            // One that cannot be read must not hide the others.
            Err(error) => {
                replays.push(json!({
                    "replay": id.as_str(),
                    "state": "unreadable",
                    "error": words(&error),
                }));
                rows.push(vec![id.to_string(), "unreadable".into(), "?".into(), words(&error)]);
                continue;
            }
        };
        let (target, planned) = match state.plan(&id) {
            Ok(plan) => (plan.request.target.to_string(), format::count(plan.events, plan.exact)),
            Err(error) => (error.to_string(), "?".to_owned()),
        };
        let counts = &status.standing.counts;
        replays.push(json!({
            "replay": id.as_str(),
            "state": status.word,
            "confirmed": counts.confirmed,
            "rejected": status.standing.rejected(),
            "target": target,
            "began_at": status.standing.began_at.map(|at| at.to_string()),
        }));
        let done = format!("{} of {planned}", format::number(counts.confirmed));
        rows.push(vec![id.to_string(), status.word.to_owned(), done, target]);
    }
    output.result(&json!({ "replays": replays }), || match rows.is_empty() {
        true => format!("no replays in {}\n", state.path().display()),
        false => format::table(&["REPLAY", "STATE", "CONFIRMED", "TARGET"], &rows),
    })?;
    Ok(Exit::Success)
}

fn show(state: &State, id: &str, output: &Output) -> anyhow::Result<Exit> {
    let id = state.find(id)?;
    let status = status(state, &id)?;
    let planned = state.plan(&id)?;
    let receipt = Receipt::new(state, id.clone(), &planned, &status.standing);
    // A receipt that was written knows more: the refusal.
    let mut json = match state.receipt(&id)? {
        Some(written)
            if written["confirmed"] == receipt.to_json()["confirmed"]
                && written["rejected"] == receipt.to_json()["rejected"] =>
        {
            written
        }
        _ => receipt.to_json(),
    };
    json["state"] = Value::from(status.word);
    json["began_at"] = status.standing.began_at.map(|at| at.to_string()).into();
    json["positions"] = status
        .standing
        .positions
        .iter()
        .map(|(stream, sequence)| (stream.to_string(), json!(sequence)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let mut plan_json = plan_json::to_json(&planned);
    plan_json["reads"] = Value::Null;
    json["planned"] = plan_json;
    output.result(&json, || {
        let refusal =
            json["refusal"].as_str().map_or(String::new(), |text| format!("refused    {text}\n"));
        format!(
            "replay     {id} ({})\n{}{refusal}\nits plan\n{}",
            status.word,
            replay::text(&receipt),
            plan::text(&planned)
        )
    })?;
    Ok(Exit::Success)
}

/// Pauses a running replay, or lets it go on.
fn tell(state: &State, id: &str, control: Control, output: &Output) -> anyhow::Result<Exit> {
    let id = state.find(id)?;
    let status = status(state, &id)?;
    if state.holder(&id)?.is_none() {
        let hint = match control {
            _ if !status.standing.phase.is_resumable() => "there is nothing left to do".to_owned(),
            Control::Run => format!("go on with `dacapo replay resume {id}`"),
            Control::Pause | Control::Cancel => {
                "no process runs it, so there is nothing to pause".to_owned()
            }
        };
        return Err(EngineError::WrongState {
            id: id.to_string(),
            state: status.word.to_owned(),
            hint,
        }
        .into());
    }
    state.set_control(&id, control)?;
    let word = if control == Control::Pause { "paused" } else { "running" };
    let json = json!({ "replay": id.as_str(), "state": word });
    output.result(&json, || format!("replay {id} is told; it is {word} within a second\n"))?;
    Ok(Exit::Success)
}

/// Ends a replay for good, whether a process runs it or not.
async fn cancel(
    state: &State,
    id: &str,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let id = state.find(id)?;
    let locked = match state.lock(id.clone()) {
        Ok(locked) => locked,
        Err(EngineError::Locked { .. }) => {
            state.set_control(&id, Control::Cancel)?;
            let json = json!({ "replay": id.as_str(), "state": "cancelling" });
            output.result(&json, || {
                format!("replay {id} is told; it finishes its window and ends\n")
            })?;
            return Ok(Exit::Success);
        }
        Err(error) => return Err(error.into()),
    };
    let planned = state.plan(&id)?;
    let (journal, standing) = Journal::open(&state.journal_path(&id))?;
    if !standing.phase.is_resumable() {
        let state = standing.phase.as_str().to_owned();
        let hint = "it has ended already".to_owned();
        return Err(EngineError::WrongState { id: id.to_string(), state, hint }.into());
    }
    let receipt = end(state, &locked, &planned, journal, standing, settings, output).await?;
    output.result(&receipt.to_json(), || replay::text(&receipt))?;
    Ok(Exit::Success)
}

/// Ends a replay for good that nobody runs, if it has not ended.
pub async fn end_unless_ended(
    state: &State,
    id: &ReplayId,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<()> {
    let locked = state.lock(id.clone())?;
    let planned = state.plan(id)?;
    let (journal, standing) = Journal::open(&state.journal_path(id))?;
    if standing.phase.is_resumable() {
        end(state, &locked, &planned, journal, standing, settings, output).await?;
    }
    Ok(())
}

/// Ends a replay for good: its journal, its receipt, and what it declared.
async fn end(
    state: &State,
    locked: &Locked,
    planned: &Plan,
    mut journal: Journal,
    standing: Standing,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Receipt> {
    let id = &locked.id;
    journal.ended(settings.now(), Phase::Cancelled, &standing.counts, &standing.positions)?;
    let refusal = match standing.at_reject {
        true => {
            state.receipt(id)?.and_then(|written| Some(written["refusal"].as_str()?.to_owned()))
        }
        false => {
            // A run that was killed may have recorded what no checkpoint has passed.
            if let Err(error) = RejectFile::open(&state.rejects_path(id), &standing) {
                output.talk(&format!("note: {error}"));
            }
            None
        }
    };
    let standing = Standing { phase: Phase::Cancelled, ..standing };
    let receipt = Receipt { refusal, ..Receipt::new(state, id.clone(), planned, &standing) };
    state.write_receipt(id, &receipt.to_json())?;
    if planned.request.target.is_bus() {
        let existing = dacapo_bus::file::Existing::Continue;
        let removed = match target::connect(&planned.request.target, id, existing, settings) {
            Ok(connect) => connect.dismantle().await.map_err(Into::into),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            let left = format!(
                "note: exchange `dacapo.replay.{id}` may be left on the broker ({error}); delete it by hand"
            );
            output.talk(&left);
        }
    }
    Ok(receipt)
}
