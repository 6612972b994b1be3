//! `dacapo events`: look at events.

use std::sync::Arc;

use anyhow::bail;
use bytes::Bytes;
use dacapo_engine::merge::{Merge, Positions, Selected};
use dacapo_engine::plan::{Plan, plan};
use dacapo_engine::request::{Request, Target, WINDOW_DEFAULT};
use dacapo_engine::survey::{Depth, TargetFacts, survey};
use dacapo_event::marking::Priority;
use dacapo_event::ndjson;
use dacapo_filter::{Selection, SelectionSpec};
use dacapo_republish::Pace;

use super::rejects;
use crate::args::EventsArgs;
use crate::exit::{Exit, Failure};
use crate::format;
use crate::open::{self, Access};
use crate::output::{Form, Output};
use crate::settings::Settings;

/// Characters of a body in the table.
const BODY_CHARS: usize = 60;

/// Characters of a name in the table.
const NAME_CHARS: usize = 40;

pub async fn run(args: &EventsArgs, settings: &Settings, output: &Output) -> anyhow::Result<Exit> {
    let again = rejects::read(&args.selection)?;
    let spec = args.selection.to_spec(settings.now(), again.as_ref())?;
    let selection = Arc::new(Selection::compile(spec.clone())?);
    let store = open::store(settings, Access::Read).await?;
    let (index, report) = open::synced_index(settings, &store, output, "events").await?;
    open::refuse_empty(&index, &report, &store)?;
    let plan = plan_of(spec, &selection, &store, &index, settings).await?;
    index.close()?;
    if let Some(again) = &again {
        rejects::verify(again, &plan, &store, settings, output).await?;
    }

    let streams = plan.streams(&Positions::new());
    let mut merge = Merge::new(Arc::clone(&store), selection, streams, settings.memory);
    let limit = if args.raw { 2 } else { args.limit };
    let mut printer = Printer { args, output, rows: Vec::new(), printed: 0, raw: None };
    'all: while let Some(events) = merge.next().await? {
        for selected in events {
            if limit > 0 && printer.printed == limit {
                break 'all;
            }
            printer.print(&selected)?;
        }
    }
    let left_out = merge.where_skipped();
    if left_out > 0 {
        let left_out = format::counted(left_out, "event");
        output.talk(&format!("note: {left_out} left out because --where failed on them"));
    }
    printer.finish(&plan)?;
    Ok(open::exit_of(&report))
}

/// Events are read through a plan, too: the index says which segments can matter.
async fn plan_of(
    spec: SelectionSpec,
    selection: &Arc<Selection>,
    store: &Arc<dyn dacapo_archive::store::Store>,
    index: &dacapo_index::Index,
    settings: &Settings,
) -> anyhow::Result<Plan> {
    let summaries = index.segments().map(|summary| summary.map_err(Into::into));
    let facts = TargetFacts::default();
    let (store, now) = (Arc::clone(store), settings.now());
    let survey = survey(store, summaries, selection, Depth::Index, facts, now).await?;
    let request = Request {
        selection: spec,
        target: Target::File { path: "-".into() },
        pace: Pace::default(),
        window: WINDOW_DEFAULT,
        priority: Priority::Keep,
    };
    Ok(plan(request, survey))
}

struct Printer<'a> {
    args: &'a EventsArgs,
    output: &'a Output,
    rows: Vec<Vec<String>>,
    printed: u64,
    /// The body for `--raw`, until it is known that there is no other.
    raw: Option<Bytes>,
}

impl Printer<'_> {
    fn print(&mut self, selected: &Selected) -> anyhow::Result<()> {
        self.printed += 1;
        let event = &selected.event;
        if self.args.raw {
            if self.printed > 1 {
                bail!(Failure::usage(
                    "more than one event is selected; --raw prints the body of one (add --id)"
                ));
            }
            self.raw = Some(event.message.body.clone());
            return Ok(());
        }
        if self.output.form() == Form::Json {
            let json = ndjson::event_to_json(&selected.stream, event);
            return Ok(self.output.data(format!("{json}\n").as_bytes())?);
        }
        self.rows.push(vec![
            event.time.to_string(),
            format::one_line(&event.kind, NAME_CHARS),
            format::one_line(event.key.as_deref().unwrap_or("-"), NAME_CHARS),
            format::one_line(&event.message.routing_key.to_str_lossy(), NAME_CHARS),
            format::one_line(&event.id, NAME_CHARS),
            body(&event.message.body),
        ]);
        Ok(())
    }

    fn finish(self, plan: &Plan) -> anyhow::Result<()> {
        if self.args.raw {
            let Some(body) = self.raw else {
                bail!(Failure::usage("no event is selected, so there is no body to print"));
            };
            return Ok(self.output.data(&body)?);
        }
        if self.output.form() == Form::Text {
            let header = ["TIME", "TYPE", "KEY", "ROUTING KEY", "ID", "BODY"];
            if !self.rows.is_empty() {
                self.output.data(format::table(&header, &self.rows).as_bytes())?;
            }
            let shown = format::number(self.printed);
            let all = format::count(plan.events, plan.exact);
            self.output.talk(&match self.printed {
                0 => "no event is selected".to_owned(),
                printed if self.args.limit == printed && (plan.events > printed || !plan.exact) => {
                    format!("{shown} shown of {all}; --limit 0 shows all, --json whole events")
                }
                _ => format!("{shown} shown"),
            });
        }
        Ok(())
    }
}

/// Returns the beginning of a body: JSON in compact form, other text as it is, else its size.
fn body(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        Ok(text) => match serde_json::from_str::<serde_json::Value>(text) {
            Ok(json) => format::one_line(&json.to_string(), BODY_CHARS),
            Err(_) => format::one_line(text, BODY_CHARS),
        },
        Err(_) => format!("{} not UTF-8", format::bytes(body.len() as u64)),
    }
}
