//! `dacapo archive compact`: small segments become large ones, repeats and, later, what was merged
//! go.

use std::num::NonZeroU64;
use std::sync::Arc;

use dacapo_archive::compact::{Mode, Options, Report, StreamReport, compact};
use dacapo_archive::store::Store;
use dacapo_archive::{chain, probe_write_once};
use dacapo_event::MemoryBudget;
use serde_json::{Value, json};

use crate::args::CompactArgs;
use crate::exit::{Exit, Failure};
use crate::format;
use crate::open::{self, Access};
use crate::output::Output;
use crate::progress::Steps;
use crate::settings::Settings;

pub async fn run(args: &CompactArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let store = open::store(settings, Access::Read).await?;
    refuse_unknown(args, &store).await?;
    let options = Options {
        streams: args.streams.clone(),
        older_than: args.older_than,
        grace: args.grace,
        output_bytes: output_bytes(args.roll_bytes, settings.memory)?,
        memory: settings.memory,
        mode: if args.dry_run { Mode::DryRun } else { Mode::Apply },
        clock: settings.clock,
    };
    if options.mode == Mode::Apply && !args.single_writer {
        probe_write_once(&*store, settings.clock).await?;
    }
    let mut steps = Steps::new(output, "compacting (MB)");
    let report = compact(Arc::clone(&store), &options, |progress| {
        steps.at(progress.bytes / 1_000_000, progress.bytes_all / 1_000_000);
    })
    .await?;
    steps.finish();
    output.result(&to_json(&report, options.mode), || to_text(&report, options.mode))?;
    Ok(if report.problems.is_empty() { Exit::Success } else { Exit::Damaged })
}

/// Returns the size at which an output is finished.
fn output_bytes(asked: Option<NonZeroU64>, memory: MemoryBudget) -> anyhow::Result<u64> {
    let bytes = asked.map_or(memory.output(), NonZeroU64::get);
    if bytes <= memory.output_max() {
        return Ok(bytes);
    }
    let most = memory.output_max() / 1024 / 1024;
    let problem = format!(
        "a merged segment is held in memory: --roll-bytes is at most {most}Mi, three eighths of --memory"
    );
    Err(Failure::usage(problem).into())
}

async fn refuse_unknown(args: &CompactArgs, store: &Arc<dyn Store>) -> anyhow::Result<()> {
    let streams = chain::streams(&**store).await?;
    if streams.is_empty() {
        return Err(open::empty(store).into());
    }
    for name in &args.streams {
        if !streams.contains(name) {
            let problem = format!(
                "there is no stream `{name}` in {}; `dacapo archive ls` lists those there are",
                store.location()
            );
            return Err(Failure::configuration(problem).into());
        }
    }
    Ok(())
}

fn to_json(report: &Report, mode: Mode) -> Value {
    let stream = |done: &StreamReport| {
        json!({
            "stream": done.stream.as_str(),
            "merged": done.merged,
            "merged_bytes": done.merged_bytes,
            "outputs": done.outputs,
            "output_bytes": done.output_bytes,
            "dropped": done.dropped,
            "taken_over": done.taken_over,
            "deleted": done.deleted,
            "deleted_bytes": done.deleted_bytes,
            "waiting": done.waiting,
            "leftovers": done.leftovers,
        })
    };
    let problems: Vec<Value> = report
        .problems
        .iter()
        .map(|found| json!({ "segment": found.key, "problem": found.problem }))
        .collect();
    json!({
        "dry_run": mode == Mode::DryRun,
        "streams": report.streams.iter().map(stream).collect::<Vec<_>>(),
        "problems": problems,
    })
}

fn to_text(report: &Report, mode: Mode) -> String {
    let rows: Vec<Vec<String>> = report
        .streams
        .iter()
        .map(|done| {
            let into = match mode {
                Mode::Apply => format!(
                    "{} ({} to {})",
                    format::number(done.outputs),
                    format::bytes(done.merged_bytes),
                    format::bytes(done.output_bytes)
                ),
                Mode::DryRun => format!(
                    "{} ({})",
                    format::number(done.outputs),
                    format::bytes(done.merged_bytes)
                ),
            };
            vec![
                done.stream.to_string(),
                format::number(done.merged),
                into,
                format::number(done.dropped),
                format::number(done.waiting),
                format!("{} ({})", format::number(done.deleted), format::bytes(done.deleted_bytes)),
            ]
        })
        .collect();
    let header = ["STREAM", "MERGED", "INTO", "REPEATS", "IN GRACE", "DELETED"];
    let mut text = format::table(&header, &rows);
    for found in &report.problems {
        text += &format!("DAMAGED  {}: {}\n", found.key, found.problem);
    }
    if !report.problems.is_empty() {
        text += "nothing was deleted that these touch; run `dacapo archive verify`\n";
    } else if mode == Mode::DryRun {
        text += "nothing was changed (--dry-run)\n";
    }
    text
}
