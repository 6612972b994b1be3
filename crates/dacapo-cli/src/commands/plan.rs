//! `dacapo plan`: what a replay would do.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use dacapo_archive::store::Store;
use dacapo_engine::plan::{Plan, PlannedSegment, plan};
use dacapo_engine::plan_json;
use dacapo_engine::rejects::ToTryAgain;
use dacapo_engine::request::{Request, Target};
use dacapo_engine::survey::{Depth, survey};
use dacapo_filter::Selection;
use dacapo_index::Index;

use super::{blast, preflight, rejects, target};
use crate::args::{PaceArgs, PlanArgs, PreflightArgs, SelectionArgs, TargetArgs};
use crate::exit::{Exit, Failure};
use crate::format;
use crate::open::{self, Access};
use crate::output::Output;
use crate::settings::Settings;

/// Types shown to a person; `--json` has all.
const TYPES_SHOWN: usize = 20;

pub async fn run(args: &PlanArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let depth = if args.exact { Depth::Exact } else { Depth::Index };
    let again = rejects::read(&args.selection)?;
    let request = request(&args.selection, again.as_ref(), &args.target, &args.pace, settings)?;
    args.preflight.refuse_unfit(&request.target)?;
    let store = open::store(settings, Access::Read).await?;
    let (index, report) = open::synced_index(settings, &store, output, "plan").await?;
    open::refuse_empty(&index, &report, &store)?;
    let mut plan = make(request, depth, &args.preflight, &store, &index, settings, output).await?;
    plan.add_gaps(&report.gaps);
    index.close()?;
    if let Some(again) = &again {
        rejects::verify(again, &plan, &store, settings, output).await?;
    }
    let json = plan_json::to_json(&plan);
    if let Some(path) = &args.out {
        save(path, &json)?;
        output.talk(&format!("saved; run it with: dacapo replay --plan {}", path.display()));
    }
    output.result(&json, || text(&plan))?;
    Ok(open::exit_of(&report))
}

/// Returns the request that the flags make; `again` is what the reject file has, if one is named.
/// Without a target, events would go to stdout.
pub fn request(
    selection: &SelectionArgs,
    again: Option<&ToTryAgain>,
    target: &TargetArgs,
    pace: &PaceArgs,
    settings: &Settings,
) -> anyhow::Result<Request> {
    let again_to = match (target.target(), again) {
        (None, Some(again)) => Some(rejects::target(again, settings)?),
        _ => None,
    };
    let selection = selection.to_spec(settings.now(), again)?;
    // What was typed wrongly is said before anything is opened.
    Selection::compile(selection.clone())?;
    Ok(Request {
        selection,
        target: match target.target().or(again_to) {
            // A replay may be resumed from another directory.
            Some(Target::File { path }) if path != Path::new("-") => {
                Target::File { path: std::path::absolute(path)? }
            }
            Some(target) => target,
            None => Target::File { path: "-".into() },
        },
        pace: pace.pace(),
        window: pace.window,
        priority: target.priority(),
    })
}

/// Asks index and target, then decides.
pub async fn make(
    request: Request,
    depth: Depth,
    checks: &PreflightArgs,
    store: &Arc<dyn Store>,
    index: &Index,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Plan> {
    let selection = Arc::new(Selection::compile(request.selection.clone())?);
    let facts = target::facts(&request.target, &request.pace, settings).await?;
    let summaries = index.segments().map(|summary| summary.map_err(Into::into));
    let now = settings.now();
    let survey = survey(Arc::clone(store), summaries, &selection, depth, facts, now).await?;
    let mut plan = plan(request, survey);
    let wishes = checks.wishes(&plan.preflight.wishes);
    let looked = preflight::look(&plan, 0, &plan.target, wishes, settings).await?;
    plan.preflight = looked.preflight;
    let known = |segment: &PlannedSegment| Ok(index.segment(&segment.stream, segment.first)?);
    plan.blast_radius =
        blast::look(&plan, &looked.topology, checks, known, store, settings, output).await?;
    Ok(plan)
}

fn save(path: &Path, json: &serde_json::Value) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(json).context("a plan becomes JSON")?;
    std::fs::write(path, text).map_err(|error| Failure::file("write", path, &error).into())
}

/// Returns a plan as a person reads it.
pub fn text(plan: &Plan) -> String {
    let mut lines = vec![
        format!("target     {}{}", plan.request.target, target_state(plan)),
        format!("events     {}", format::count(plan.events, plan.exact)),
    ];
    let mut types: Vec<_> = plan.by_type.iter().collect();
    types.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let width = types.iter().take(TYPES_SHOWN).map(|(kind, _)| kind.chars().count()).max();
    for (kind, count) in types.iter().take(TYPES_SHOWN) {
        let kind = format::one_line(if kind.is_empty() { "(no type)" } else { kind }, 60);
        let count = format::count(**count, plan.by_type_exact);
        lines.push(format!("           {kind:<width$}  {count}", width = width.unwrap_or(0)));
    }
    if types.len() > TYPES_SHOWN {
        lines.push(format!(
            "           and {} types more (--json has all)",
            types.len() - TYPES_SHOWN
        ));
    }
    if let (Some(first), Some(last)) = (plan.first_time, plan.last_time) {
        let bounds = if plan.times_exact { "" } else { " (bounds)" };
        lines.push(format!("from       {first}\nto         {last}{bounds}"));
    }
    lines.push(format!("bodies     about {}", format::bytes(plan.bytes)));
    lines.push(format!(
        "reads      about {} of {} ({}, {})",
        format::bytes(plan.bytes_read),
        format::bytes(plan.bytes_full_scan),
        format::counted(plan.segments.len() as u64, "segment"),
        format::counted(plan.requests, "request"),
    ));
    lines.push(format!("takes      {}", format::seconds(plan.seconds)));
    if !plan.request.selection.places.is_empty() {
        let refused = format::counted(plan.request.selection.places.len() as u64, "event");
        lines.push(format!("note       exactly the {refused} of a reject file"));
    }
    for gap in &plan.gaps {
        lines.push(format!(
            "GAP        stream `{}` lacks sequences {} to {}",
            gap.stream, gap.first, gap.last
        ));
    }
    for warning in &plan.target.warnings {
        lines.push(format!("note       {warning}"));
    }
    lines.extend(blast::lines(plan));
    lines.extend(preflight::lines(&plan.preflight));
    if !plan.exact || !plan.times_exact {
        lines.push(
            "note       some figures are estimates or bounds; --exact reads until they are not"
                .to_owned(),
        );
    }
    lines.push(format!("plan       {}\n", plan.hash()));
    lines.join("\n")
}

fn target_state(plan: &Plan) -> String {
    match (plan.target.depth, plan.target.consumers) {
        (Some(depth), Some(consumers)) => {
            format!(" ({} waiting, {consumers} consumers)", format::number(depth))
        }
        _ => String::new(),
    }
}
