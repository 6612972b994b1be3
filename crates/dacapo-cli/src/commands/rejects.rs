//! Events that were refused and are tried again: where they go, and whether the archive still has
//! them.

use std::sync::Arc;

use dacapo_archive::store::Store;
use dacapo_engine::journal::Journal;
use dacapo_engine::plan::Plan;
use dacapo_engine::rejects::{self, LeftOut, ToTryAgain};
use dacapo_engine::request::Target;
use dacapo_engine::state::State;

use crate::args::SelectionArgs;
use crate::exit::Failure;
use crate::output::Output;
use crate::progress::Steps;
use crate::settings::Settings;

/// Reads the reject file, if one is named: once for all that is done with it, because the replay that
/// writes it may still run.
pub fn read(selection: &SelectionArgs) -> anyhow::Result<Option<ToTryAgain>> {
    Ok(selection.rejects.as_deref().map(rejects::read).transpose()?)
}

/// Returns the target to which these events were refused.
pub fn target(again: &ToTryAgain, settings: &Settings) -> anyhow::Result<Target> {
    let state = State::new(&settings.state);
    let mut targets = Vec::new();
    for replay in &again.replays {
        let known = state.find(replay).and_then(|id| state.plan(&id));
        let target =
            known.map_err(|error| unknown_target(again, &error.to_string()))?.request.target;
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    match targets.as_slice() {
        [target] => Ok(target.clone()),
        _ => Err(unknown_target(again, "its events were refused by several targets").into()),
    }
}

fn unknown_target(again: &ToTryAgain, why: &str) -> Failure {
    Failure::usage(format!(
        "where are the events of `{}` to go? {why}; give --to-queue, --to-exchange or --to-original",
        again.path
    ))
}

/// Makes sure that the archive has every event as it was refused; says what else is worth knowing.
pub async fn verify(
    again: &ToTryAgain,
    plan: &Plan,
    store: &Arc<dyn Store>,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<()> {
    if again.archive != plan.archive {
        let problem = format!(
            "the events of `{}` are in {}, and --archive is {}; name that archive",
            again.path, again.archive, plan.archive
        );
        return Err(Failure::configuration(problem).into());
    }
    let mut steps = Steps::new(output, "looking for the rejected events (segments)");
    let all = plan.segments.len() as u64;
    let left_out = again.verify(store, plan, |read| steps.at(read, all)).await?;
    steps.finish();
    if let Some(LeftOut { stream, sequence, repeat_of }) = left_out.first() {
        output.talk(&format!(
            "note       {} of its events are exact repeats that compaction left out (the first, at \
             {stream}:{sequence}, of that at {stream}:{repeat_of}); what they repeat was \
             refused, too, and has a line of its own, or was delivered before them",
            left_out.len()
        ));
    }
    if again.torn {
        output.talk("note       the last line of the reject file is torn; it is left out");
    }
    let state = State::new(&settings.state);
    for replay in &again.replays {
        let Ok(id) = state.find(replay) else { continue };
        if Journal::read(&state.journal_path(&id))?.phase.is_resumable() {
            output.talk(&format!(
                "note       replay {id} is not over; resumed, it tries the event it stands at again"
            ));
        }
    }
    Ok(())
}
