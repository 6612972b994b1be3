//! `dacapo index`: the local catalogue.

use dacapo_engine::sync::SyncReport;
use dacapo_index::Index;
use serde_json::json;

use crate::args::IndexCommand;
use crate::exit::Exit;
use crate::format;
use crate::open::{self, Access};
use crate::output::Output;
use crate::settings::Settings;

pub async fn run(
    command: &IndexCommand,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let store = open::store(settings, Access::Read).await?;
    match command {
        IndexCommand::Sync => {
            let (index, report) =
                open::synced_index(settings, &store, output, "index sync").await?;
            print(&index, Some(&report), output)
        }
        IndexCommand::Stats => {
            let index = open::index(settings, &store, "index stats")?;
            print(&index, None, output)
        }
        IndexCommand::Rebuild => {
            let index = open::index_anew(settings, &store, "index rebuild")?;
            let report = open::sync_index(&store, &index, output).await?;
            print(&index, Some(&report), output)
        }
    }
}

fn print(index: &Index, report: Option<&SyncReport>, output: &Output) -> anyhow::Result<Exit> {
    let stats = index.stats()?;
    let complete = report.map(SyncReport::is_complete);
    let json = json!({
        "streams": stats.streams,
        "segments": stats.segments,
        "events": stats.events,
        "bytes_on_disk": stats.bytes_on_disk,
        "added": report.map(|report| report.added),
        "complete": complete,
    });
    output.result(&json, || {
        let added = report
            .map_or(String::new(), |report| format!(" ({} new)", format::number(report.added)));
        let state = match complete {
            Some(true) => "complete: every stream is known up to its head\n",
            Some(false) => "incomplete: see the warnings; run `dacapo archive verify`\n",
            None => "",
        };
        format!(
            "streams   {}\nsegments  {}{added}\nevents    {}\non disk   {}\n{state}",
            format::number(stats.streams),
            format::number(stats.segments),
            format::number(stats.events),
            format::bytes(stats.bytes_on_disk),
        )
    })?;
    Ok(report.map_or(Exit::Success, open::exit_of))
}
