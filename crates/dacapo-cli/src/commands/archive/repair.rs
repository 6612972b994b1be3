//! `dacapo archive repair`: rebuilds what the archive can prove, and lists what it cannot.

use std::sync::Arc;

use dacapo_archive::repair::{Mended, Report, repair};
use dacapo_archive::store::Store;
use dacapo_archive::store::overlay::Overlay;
use dacapo_archive::verify::{Finding, verify};
use dacapo_archive::{layout, verify};
use dacapo_event::Timestamp;
use dacapo_index::IndexError;
use serde_json::{Value, json};

use super::{finding_json, finding_text};
use crate::args::RepairArgs;
use crate::exit::Exit;
use crate::format;
use crate::open::{self, Access};
use crate::output::Output;
use crate::progress::Steps;
use crate::settings::Settings;

const WHAT_REMAINS: &str = "\
what remains cannot be rebuilt from the archive itself: bring the objects back from the bucket's
versions or a backup and run this again; until then `dacapo replay --accept-gaps` replays the rest
";

pub async fn run(args: &RepairArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let archive = open::store(settings, Access::Read).await?;
    let store: Arc<dyn Store> = match args.dry_run {
        true => Arc::new(Overlay::new(Arc::clone(&archive))),
        false => Arc::clone(&archive),
    };
    let mut steps = Steps::new(output, "reading the chain");
    let report = repair(Arc::clone(&store), settings.clock, |progress| {
        steps.at(progress.objects, progress.objects_all);
    })
    .await?;
    steps.finish();
    let mut steps = Steps::new(output, "verifying (MB)");
    let after = verify(Arc::clone(&store), &[], |progress| {
        steps.at(progress.bytes / 1_000_000, progress.bytes_all / 1_000_000);
    })
    .await?;
    steps.finish();
    if report.streams == 0 {
        return Err(open::empty(&store).into());
    }
    if !args.dry_run {
        mend_index(settings, &archive, output, !report.mended.is_empty()).await?;
    }
    let json = json!({
        "dry_run": args.dry_run,
        "streams": report.streams,
        "mended": report.mended.iter().map(mended_json).collect::<Vec<_>>(),
        "remaining": after.problems.iter().map(|finding| remaining_json(&report, finding)).collect::<Vec<_>>(),
    });
    output.result(&json, || text(args, &report, &after))?;
    Ok(if after.problems.is_empty() { Exit::Success } else { Exit::Damaged })
}

/// Makes the index anew if the chain it was made of was another, or if it cannot be opened; who
/// has it open brings it up to date.
async fn mend_index(
    settings: &Settings,
    store: &Arc<dyn Store>,
    output: &Output,
    changed: bool,
) -> anyhow::Result<()> {
    const COMMAND: &str = "archive repair";
    let is_busy = |error: &anyhow::Error| {
        matches!(error.downcast_ref::<IndexError>(), Some(IndexError::Busy { .. }))
    };
    let opened = match changed {
        true => open::index_anew(settings, store, COMMAND),
        false => match open::index(settings, store, COMMAND) {
            Err(error) if !is_busy(&error) => open::index_anew(settings, store, COMMAND),
            opened => opened,
        },
    };
    match opened {
        Ok(index) => drop(open::sync_index(store, &index, output).await?),
        Err(error) if is_busy(&error) => {
            output.talk(&format!("note: the index was not rebuilt: {error}"));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

fn mended_json(mended: &Mended) -> Value {
    json!({
        "object": mended.key.as_str(),
        "what": mended.what,
        "first_sequence": mended.sequences.0,
        "last_sequence": mended.sequences.1,
        "kept": mended.kept.as_ref().map(|kept| kept.as_str()),
    })
}

fn remaining_json(report: &Report, finding: &Finding) -> Value {
    let (after, before) = times_around(report, finding);
    let mut json = finding_json(finding);
    json["after_time"] = after.map(|time| time.to_string()).into();
    json["before_time"] = before.map(|time| time.to_string()).into();
    json
}

fn text(args: &RepairArgs, report: &Report, after: &verify::Report) -> String {
    let mut text = String::new();
    let done = if args.dry_run { "to mend" } else { "mended" };
    for mended in &report.mended {
        let kept = match &mended.kept {
            Some(kept) => format!("; what was there is kept at {kept}"),
            None => String::new(),
        };
        text += &format!("{done:<8} {}: {}{kept}\n", mended.key, mended.what);
    }
    for finding in &after.problems {
        let times = match times_around(report, finding) {
            (Some(after), Some(before)) => format!(", between {after} and {before}"),
            (Some(after), None) => format!(", after {after}"),
            (None, Some(before)) => format!(", before {before}"),
            (None, None) => String::new(),
        };
        text += &format!("REMAINS  {}{times}\n", finding_text(finding));
    }
    let verdict = match after.problems.len() {
        0 => "sound".to_owned(),
        count => format!("{WHAT_REMAINS}DAMAGED: {}", format::counted(count as u64, "problem")),
    };
    text + &format!(
        "{verdict}; {done} {} of {}\n",
        format::counted(report.mended.len() as u64, "object"),
        format::counted(report.streams, "stream"),
    )
}

/// Returns between which times the events happened that a finding concerns.
fn times_around(report: &Report, finding: &Finding) -> (Option<Timestamp>, Option<Timestamp>) {
    let stream = finding.key.parse().ok().and_then(|key| layout::stream_of(&key));
    match (stream, finding.sequences) {
        (Some(stream), Some(sequences)) => report.times_around(&stream, sequences),
        _ => (None, None),
    }
}
