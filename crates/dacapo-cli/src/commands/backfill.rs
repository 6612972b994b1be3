//! `dacapo backfill`: all history to a new service's queue, then the live stream, without a gap.
//!
//! What comes next `dacapo_engine::backfill` decides; the modules here ask for facts and carry out.

use dacapo_engine::EngineError;
use dacapo_engine::backfill::{Backfills, Journal};

use crate::args::{BackfillArgs, BackfillChangeArgs, BackfillCommand, BackfillRunningArgs};
use crate::exit::Exit;
use crate::open::{self, Access};
use crate::output::Output;
use crate::settings::Settings;
use crate::signals::Signals;

mod barriers;
mod begin;
mod broker;
mod drive;
mod holding;
mod metrics;
mod rounds;
mod show;
mod telling;

pub async fn run(
    args: &BackfillArgs,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let backfills = Backfills::new(&settings.state);
    match &args.command {
        None => begin::run(args, &backfills, settings, output).await,
        Some(BackfillCommand::Resume { id, changes, running }) => {
            resume(id, changes, running, &backfills, settings, output).await
        }
        Some(BackfillCommand::Ls) => show::ls(&backfills, output),
        Some(BackfillCommand::Show { id }) => show::show(id, &backfills, output),
        Some(BackfillCommand::Cancel { id, holding_is_gone }) => {
            show::cancel(id, *holding_is_gone, &backfills, settings, output).await
        }
    }
}

async fn resume(
    id: &str,
    changes: &BackfillChangeArgs,
    running: &BackfillRunningArgs,
    backfills: &Backfills,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let id = backfills.find(id)?;
    let locked = backfills.lock(id)?;
    let mut description = backfills.description(&locked.id)?;
    let (journal, standing) = Journal::open(&backfills.journal_path(&locked.id))?;
    if !standing.is_resumable() {
        let hint =
            "there is nothing to resume; `dacapo backfill show` prints its receipt".to_owned();
        let state = standing.stage.as_str().to_owned();
        return Err(EngineError::BackfillState { id: locked.id.to_string(), state, hint }.into());
    }
    let store = open::store(settings, Access::Read).await?;
    begin::check_archive(&description, &store)?;
    // Told before anything goes on: whoever starts it again decides how long to wait for a broker
    // that is down.
    broker::check(&description, settings).await?;
    broker::check_target(&description, &standing, settings).await?;
    if let Some(changed) = changes.apply(&description) {
        backfills.write_description(&locked, &changed)?;
        description = changed;
    }
    let signals = Signals::take()?;
    output.talk(&format!("backfill   {} goes on ({})", locked.id, standing.stage.phase()));
    let parts = drive::Parts { backfills, settings, output, running, store };
    drive::run(&locked, description, journal, standing, parts, signals).await
}
