//! `dacapo backfill ls`, `show` and `cancel`, and a receipt as a person reads it.

use dacapo_engine::EngineError;
use dacapo_engine::backfill::{BackfillId, Backfills, Happened, Journal, Receipt, Stage, Standing};
use dacapo_engine::state::State;
use serde_json::json;

use super::super::replays;
use super::broker;
use crate::exit::{Exit, Failure};
use crate::format;
use crate::output::{Output, words};
use crate::settings::Settings;

/// How a backfill stands, and whether a process runs it now.
fn status(backfills: &Backfills, id: &BackfillId) -> Result<(Standing, &'static str), EngineError> {
    let running = backfills.holder(id)?.is_some();
    let standing = Journal::read(&backfills.journal_path(id))?;
    let word = match (running, standing.stage) {
        (_, Stage::Completed) => "completed",
        (_, Stage::Cancelled) => "cancelled",
        (true, _) => "running",
        (false, _) => "interrupted",
    };
    Ok((standing, word))
}

pub fn ls(backfills: &Backfills, output: &Output) -> anyhow::Result<Exit> {
    let (mut listed, mut rows) = (Vec::new(), Vec::new());
    for id in backfills.list()? {
        let read = status(backfills, &id)
            .and_then(|(standing, word)| Ok((standing, word, backfills.description(&id)?)));
        let (standing, word, description) = match read {
            Ok(read) => read,
            // One that cannot be read must not hide the others.
            Err(error) => {
                let error = words(&error);
                listed.push(json!({
                    "backfill": id.as_str(),
                    "state": "unreadable",
                    "error": error,
                }));
                rows.push(vec![id.to_string(), "unreadable".into(), "?".into(), error]);
                continue;
            }
        };
        listed.push(json!({
            "backfill": id.as_str(),
            "state": word,
            "phase": standing.stage.phase(),
            "queue": description.queue(),
            "began_at": standing.began_at.map(|at| at.to_string()),
        }));
        let queue = format!("queue `{}`", description.queue());
        rows.push(vec![id.to_string(), word.to_owned(), standing.stage.phase().to_owned(), queue]);
    }
    output.result(&json!({ "backfills": listed }), || match rows.is_empty() {
        true => "no backfills here\n".to_owned(),
        false => format::table(&["BACKFILL", "STATE", "PHASE", "QUEUE"], &rows),
    })?;
    Ok(Exit::Success)
}

pub fn show(id: &str, backfills: &Backfills, output: &Output) -> anyhow::Result<Exit> {
    let id = backfills.find(id)?;
    let (standing, word) = status(backfills, &id)?;
    let description = backfills.description(&id)?;
    let receipt = Receipt { id: &id, description: &description, standing: &standing };
    let mut json = receipt.to_json();
    json["state"] = word.into();
    output.result(&json, || format!("backfill   {id} ({word})\n{}", text(&receipt)))?;
    Ok(Exit::Success)
}

/// Ends a backfill that nobody runs.
pub async fn cancel(
    id: &str,
    holding_is_gone: bool,
    backfills: &Backfills,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let id = backfills.find(id)?;
    let locked = backfills.lock(id)?;
    let description = backfills.description(&locked.id)?;
    let (mut journal, mut standing) = Journal::open(&backfills.journal_path(&locked.id))?;
    if !standing.is_resumable() {
        let state = standing.stage.as_str().to_owned();
        let hint = "it has ended already".to_owned();
        let id = locked.id.to_string();
        return Err(EngineError::BackfillState { id, state, hint }.into());
    }
    let state = State::new(&settings.state);
    if let Some(round) = &standing.round
        && state.has(&round.replay)
    {
        replays::end_unless_ended(&state, &round.replay, settings, output).await?;
    }
    let queue = description.queue();
    let mut held = 0;
    if standing.may_hold() {
        // First, so that whatever fails here can be done again.
        broker::check(&description, settings).await?;
        let broker = settings.broker("dacapo backfill")?;
        let holding = locked.id.holding_queue(queue);
        let state = dacapo_amqp::queue_state(&broker, &holding).await?;
        // It is about to be made, or deleted.
        let may_be_gone = matches!(standing.stage, Stage::Binding | Stage::Removing);
        if state.is_none() && !may_be_gone && !holding_is_gone {
            let problem = format!(
                "holding queue `{holding}` is not there; is --amqp the broker that the backfill began on? \
                 If it is gone, cancel with --holding-is-gone"
            );
            return Err(Failure::refused(problem).into());
        }
        held = state.map_or(0, |state| state.ready);
        let exchange = locked.id.exchange();
        dacapo_amqp::remove_holding(&broker, &holding, &exchange).await?;
    }
    let was = standing.stage;
    standing.apply(Happened::Cancelled);
    journal.write(&standing)?;
    let receipt = Receipt { id: &locked.id, description: &description, standing: &standing };
    let mut json = receipt.to_json();
    json["held_messages_deleted"] = held.into();
    backfills.write_receipt(&locked.id, &json)?;
    output.result(&json, || text(&receipt))?;
    if held > 0 {
        let held = format::counted(held, "held message");
        output.talk(&format!("{held} went with the holding queue; the archive has them"));
    }
    if was == Stage::Preparing {
        output.talk(&format!("left: nothing (queue `{queue}` is there only if somebody made it)"));
        return Ok(Exit::Success);
    }
    let bound = match was {
        Stage::Switching | Stage::Draining | Stage::Removing => {
            let bindings = broker::bindings(&description.bindings);
            let bindings: Vec<String> = bindings.iter().map(|it| format!("`{it}`")).collect();
            format!(", and maybe its live bindings ({})", bindings.join(", "))
        }
        _ => String::new(),
    };
    output.talk(&format!("left: queue `{queue}` with what it has{bound}"));
    Ok(Exit::Success)
}

/// Returns a receipt as a person reads it.
pub fn text(receipt: &Receipt<'_>) -> String {
    let Receipt { description, standing, .. } = receipt;
    let counts = &standing.counts;
    let number = format::number;
    let mut lines = vec![
        format!("state      {} ({})", receipt.state(), standing.stage.phase()),
        format!("queue      `{}`", description.queue()),
        format!(
            "history    {} in {}",
            format::counted(counts.history.events, "event"),
            format::counted(standing.rounds, "round"),
        ),
        format!(
            "held       {} passed on, {} dropped as repeats, {} that came live",
            number(counts.forwarded),
            number(counts.dropped),
            number(counts.came_live),
        ),
        format!(
            "twice      {} possible repeats: {} of history, {} between the barriers, {} passed on again, {} \
             at the switch",
            number(counts.possible_repeats()),
            number(counts.history.possible_repeats),
            number(counts.not_remembered),
            number(counts.passed_again),
            number(counts.live_as_well),
        ),
        format!(
            "order      {} may have come out of order: {} of history, {} at the switch",
            number(counts.possibly_reordered()),
            number(counts.history.reordered),
            number(counts.reordered),
        ),
    ];
    if let Some(played_to) = standing.played_to.filter(|_| standing.is_resumable()) {
        lines.insert(3, format!("reached    what was archived by {played_to}"));
    }
    if counts.replays > 0 {
        let replays = format::counted(counts.replays, "held message");
        lines.push(format!("replays    {replays} of other replays, passed on as they are"));
    }
    lines.extend(description.unchecked.iter().cloned());
    lines.join("\n") + "\n"
}
