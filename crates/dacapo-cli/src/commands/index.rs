//! `dacapo index`: the local catalogue.

use std::sync::Arc;

use dacapo_archive::store::Store;
use dacapo_archive::store::metered::{Metered, ReadTotals};
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
    let metered = Arc::new(Metered::new(open::store(settings, Access::Read).await?));
    let store: Arc<dyn Store> = Arc::<Metered>::clone(&metered);
    match command {
        IndexCommand::Sync => {
            let (index, report) =
                open::synced_index(settings, &store, output, "index sync").await?;
            print(&index, Some((&report, metered.totals())), output)
        }
        IndexCommand::Stats => {
            let index = open::index(settings, &store, "index stats")?;
            print(&index, None, output)
        }
        IndexCommand::Rebuild => {
            let index = open::index_anew(settings, &store, "index rebuild")?;
            let report = open::sync_index(&store, &index, output).await?;
            print(&index, Some((&report, metered.totals())), output)
        }
    }
}

fn print(
    index: &Index,
    synced: Option<(&SyncReport, ReadTotals)>,
    output: &Output,
) -> anyhow::Result<Exit> {
    let stats = index.stats()?;
    let (report, read) = synced.unzip();
    let complete = report.map(SyncReport::is_complete);
    let json = json!({
        "streams": stats.streams,
        "segments": stats.segments,
        "events": stats.events,
        "bytes_on_disk": stats.bytes_on_disk,
        "added": report.map(|report| report.added),
        "complete": complete,
        "bytes_read": read.map(|read| read.bytes),
        "requests": read.map(|read| read.requests),
    });
    output.result(&json, || {
        let added = report
            .map_or(String::new(), |report| format!(" ({} new)", format::number(report.added)));
        let read = read.map_or(String::new(), |read| {
            let (bytes, requests) = (format::bytes(read.bytes), format::number(read.requests));
            format!("read      {bytes} in {requests} requests\n")
        });
        let state = match complete {
            Some(true) => "complete: every stream is known up to its head\n",
            Some(false) => "incomplete: see the warnings; run `dacapo archive verify`\n",
            None => "",
        };
        format!(
            "streams   {}\nsegments  {}{added}\nevents    {}\non disk   {}\n{read}{state}",
            format::number(stats.streams),
            format::number(stats.segments),
            format::number(stats.events),
            format::bytes(stats.bytes_on_disk),
        )
    })?;
    Ok(report.map_or(Exit::Success, open::exit_of))
}
