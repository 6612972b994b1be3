//! The blast radius of a replay to exchanges: looks at it, tells it, and refuses what nobody approved.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, stdin};
use std::sync::Arc;

use dacapo_archive::SegmentSummary;
use dacapo_archive::store::Store;
use dacapo_bus::broker::Topology;
use dacapo_bus::broker::routing::Router;
use dacapo_engine::EngineError;
use dacapo_engine::blast::{
    Approval, ApprovedBy, BlastRadius, Destinations, Reached, ReachedQueue, count,
};
use dacapo_engine::plan::{Plan, PlannedSegment};
use dacapo_engine::request::Target;
use dacapo_event::Digest;

use crate::args::{PreflightArgs, RunningArgs};
use crate::confirm;
use crate::exit::Failure;
use crate::format;
use crate::output::{Output, words};
use crate::progress::Steps;
use crate::settings::Settings;

/// Queues shown to a person; `--json` has all.
const QUEUES_SHOWN: usize = 20;

/// What is shown of a name on one line.
const NAME_CHARS_MAX: usize = 60;

/// Consumers of one queue that are named to a person.
const CONSUMERS_SHOWN: usize = 2;

/// Looks at which queues a plan reaches, if it goes to exchanges and there is a management plugin to
/// ask. What the plugin does not tell is no error but said in the outcome.
pub async fn look(
    plan: &Plan,
    topology: &Result<Topology, String>,
    checks: &PreflightArgs,
    known: impl Fn(&PlannedSegment) -> Result<Option<SegmentSummary>, EngineError>,
    store: &Arc<dyn Store>,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Option<BlastRadius>> {
    let before = plan.blast_radius.iter().flat_map(|blast| &blast.asked_for);
    let asked_for: BTreeSet<String> =
        before.chain(&checks.expected_queues).map(String::to_owned).collect();
    if !goes_to_exchanges(&plan.request.target) {
        return Ok(None);
    }
    let unknown = |why: &str| BlastRadius {
        asked_for: asked_for.clone(),
        reached: Err(why.to_owned()),
        approval: None,
    };
    let Some(management) = settings.management() else {
        if plan.blast_radius.is_some() {
            // Who leaves the plugin out now gets round nothing by it.
            let why = "the plugin that the plan was made with is not named (--management)";
            return Ok(Some(unknown(why)));
        }
        if asked_for.is_empty() {
            return Ok(None);
        }
        let problem =
            "--expect-queue needs --management, for AMQP does not tell which queues are reached";
        return Err(Failure::usage(problem).into());
    };
    let topology = match topology {
        Ok(topology) => topology,
        Err(why) => return Ok(Some(unknown(why))),
    };
    let exchanges = plan.exchanges_exact.then_some(&plan.exchanges);
    let request = &plan.request;
    let destinations =
        Destinations::new(Router::new(topology), &request.target, request.priority, exchanges);
    let mut steps = Steps::new(output, "looking where events come (segments)");
    let all = plan.segments.len() as u64;
    let reached = count(store, plan, known, destinations, |done| steps.at(done, all)).await;
    steps.finish();
    let mut reached = reached?;
    let vhost = settings.vhost().unwrap_or("/");
    reached.consumed(management.consumers(vhost).await.map_err(|error| words(&error)));
    Ok(Some(BlastRadius { asked_for, reached: Ok(reached), approval: None }))
}

/// Returns whether events go to whatever is bound to exchanges.
pub fn goes_to_exchanges(target: &Target) -> bool {
    matches!(target, Target::Exchange { .. } | Target::Original)
}

/// Whether a person is to be asked before events go to everyone, where it is not known who that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Everyone {
    /// Yes.
    Ask,
    /// No, `--yes` was given.
    Yes,
    /// No, that was asked when the replay began.
    AskedBefore,
}

impl Everyone {
    /// Returns what the flags say of a replay that begins.
    pub fn of(running: &RunningArgs) -> Self {
        if running.yes { Everyone::Yes } else { Everyone::Ask }
    }
}

/// Makes sure that somebody approved where the events go, before anything is published.
///
/// With a known blast radius, more than one queue (or one that was not asked for) needs the hash that a
/// plan printed, or a person at a terminal; `--yes` is neither. Where it is not known, `--yes` or a
/// person is enough, and is asked of the original exchanges, and of a plugin that did not answer.
pub fn approve(
    plan: &mut Plan,
    given: Option<Digest>,
    everyone: Everyone,
    output: &Output,
) -> anyhow::Result<()> {
    let (hash, told) = (plan.hash(), lines(plan));
    let events = format::count(plan.events, plan.exact);
    let events = format!("{events} events go to {}", plan.request.target);
    let asks = everyone == Everyone::Ask;
    let asks_originals = asks && plan.request.target == Target::Original;
    let Some(blast) = &mut plan.blast_radius else {
        if given.is_some() {
            let problem = "--approve needs --management, and --to-exchange or --to-original: nothing \
                           else has a blast radius";
            return Err(Failure::usage(problem).into());
        }
        return if asks_originals { ask_everyone(output, &events, "") } else { Ok(()) };
    };
    let reached = match &blast.reached {
        Ok(reached) => reached,
        Err(why) if given.is_some() => {
            let problem = format!(
                "nothing was published, because it is not known which queues are reached, to hold \
                 --approve against: {why}"
            );
            return Err(Failure::refused(problem).into());
        }
        Err(why) if asks => {
            return ask_everyone(output, &events, &format!(" (who that is, is not known: {why})"));
        }
        Err(_) => return Ok(()),
    };
    let current = reached.hash(&hash);
    let by = match given {
        Some(given) if given == current => ApprovedBy::Hash,
        Some(_) => {
            let problem = format!(
                "nothing was published, because --approve is of another plan, or bindings have changed \
                 since: now {}; look at it with `dacapo plan`, then give `--approve {current}`",
                in_words(reached)
            );
            return Err(Failure::refused(problem).into());
        }
        None if blast.needs_approval(reached) => {
            if !stdin().is_terminal() {
                return Err(unapproved(reached, current, everyone).into());
            }
            output.talk(&told.join("\n"));
            // What is typed has no thin spaces.
            let word = match reached.queues.len() {
                1 => "1 queue".to_owned(),
                count => format!("{count} queues"),
            };
            confirm::ask(output, &in_words(reached), &word, "give --approve HASH")?;
            ApprovedBy::Terminal
        }
        None if asks_originals => return ask_everyone(output, &events, ""),
        None => return Ok(()),
    };
    blast.approval = Some(Approval { hash: current, by });
    Ok(())
}

/// Refuses a saved plan that was known to need an approval and of which nothing is known now: who
/// leaves the plugin out gets round nothing by it, whatever else was said.
pub fn refuse_less_known(
    saved: Option<&BlastRadius>,
    now: Option<&BlastRadius>,
) -> Result<(), Failure> {
    let (Some(saved), Some(BlastRadius { reached: Err(why), .. })) = (saved, now) else {
        return Ok(());
    };
    match &saved.reached {
        Ok(reached) if saved.needs_approval(reached) => Err(Failure::refused(format!(
            "nothing was published: when the plan was made, {}, and whether they still would is not \
             known: {why}",
            in_words(reached)
        ))),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// As [`approve`], of a replay that goes on: what was approved stands, unless another queue is reached,
/// or one by more events. Where that is not known now, it stands, and that is told.
pub fn approve_again(
    plan: &mut Plan,
    earlier: Option<BlastRadius>,
    given: Option<Digest>,
    output: &Output,
) -> anyhow::Result<()> {
    match &mut plan.blast_radius {
        _ if given.is_some() => {}
        Some(blast @ BlastRadius { reached: Ok(_), .. }) => {
            if earlier.as_ref().is_some_and(|earlier| blast.is_within(earlier)) {
                blast.approval = earlier.and_then(|earlier| earlier.approval);
                return Ok(());
            }
        }
        // What was known when it began says more.
        unknown => {
            if let Some(BlastRadius { reached: Err(why), .. }) = unknown {
                output.talk(&format!(
                    "note: which queues are reached now is not known ({why}); what was approved stands"
                ));
            }
            *unknown = earlier.or(unknown.take());
            return Ok(());
        }
    }
    approve(plan, given, Everyone::AskedBefore, output)
}

fn unapproved(reached: &Reached, current: Digest, everyone: Everyone) -> Failure {
    let yes = match everyone {
        Everyone::Yes => " (--yes does not approve that)",
        Everyone::Ask | Everyone::AskedBefore => "",
    };
    Failure::refused(format!(
        "nothing was published, because nobody approved that {}{yes}; look at it with `dacapo plan`, then \
         give `--approve {current}`, or publish to one queue (--to-queue)",
        in_words(reached)
    ))
}

fn ask_everyone(output: &Output, events: &str, remark: &str) -> anyhow::Result<()> {
    let question = format!("{events}, and everyone sees them again{remark}");
    confirm::ask(output, &question, "everyone", "give --yes if that is meant")
}

/// Returns which queues are reached, as the end of a sentence.
fn in_words(reached: &Reached) -> String {
    let queue = |(name, queue): (&String, &ReachedQueue)| {
        let name = format::one_line(name, NAME_CHARS_MAX);
        format!("`{name}` ({})", format::counted(queue.events, "event"))
    };
    let mut names: Vec<String> = reached.queues.iter().take(QUEUES_SHOWN).map(queue).collect();
    let more = reached.queues.len() - names.len();
    if more > 0 {
        names.push(format!("{more} more"));
    }
    let queues = format::counted(reached.queues.len() as u64, "queue");
    match names.is_empty() {
        true => "no queue is reached".to_owned(),
        false => format!("{queues} would receive events: {}", names.join(", ")),
    }
}

/// Returns the blast radius as lines of a plan.
pub fn lines(plan: &Plan) -> Vec<String> {
    let Some(blast) = &plan.blast_radius else {
        let unasked = goes_to_exchanges(&plan.request.target).then(|| {
            "unchecked  which queues are reached: AMQP cannot tell; name the management plugin \
             (--management)"
                .to_owned()
        });
        return unasked.into_iter().collect();
    };
    let reached = match &blast.reached {
        Ok(reached) => reached,
        Err(why) => return vec![format!("unchecked  which queues are reached: {why}")],
    };
    let unexpected = blast.not_asked_for(reached).count() as u64;
    let unexpected = match (unexpected, blast.asked_for.is_empty()) {
        (0, _) => String::new(),
        (_, true) => ", none of them asked for by name (--expect-queue)".to_owned(),
        (count, false) => format!(", {} NOT ASKED FOR", format::number(count)),
    };
    let queues = format::counted(reached.queues.len() as u64, "queue");
    let mut lines = vec![format!("reaches    {queues}{unexpected}")];
    if !reached.queues.is_empty() {
        let rows: Vec<Vec<String>> =
            reached.queues.iter().take(QUEUES_SHOWN).map(|queue| row(blast, queue)).collect();
        let table = format::table(&["QUEUE", "EVENTS", "CONSUMERS"], &rows);
        lines.extend(table.lines().map(|line| format!("           {}", line.trim_end())));
    }
    if reached.queues.len() > QUEUES_SHOWN {
        let more = reached.queues.len() - QUEUES_SHOWN;
        lines.push(format!("           and {more} queues more (--json has all)"));
    }
    for queue in blast.asked_for.iter().filter(|queue| !reached.queues.contains_key(*queue)) {
        lines.push(format!(
            "UNREACHED  queue `{}` was asked for, and no event reaches it",
            format::one_line(queue, NAME_CHARS_MAX)
        ));
    }
    if reached.unrouted > 0 {
        let events = format::counted(reached.unrouted, "event");
        let least = if reached.is_exact() { "" } else { "at least " };
        lines.push(format!(
            "UNROUTED   {least}{events} of these reach no queue, and would be refused"
        ));
    }
    if !reached.is_exact() {
        let exchange = |name: &String| match name.as_str() {
            "" => "the default exchange".to_owned(),
            name => format!("`{}`", format::one_line(name, NAME_CHARS_MAX)),
        };
        let names: Vec<String> =
            reached.undecided.iter().take(QUEUES_SHOWN).map(exchange).collect();
        lines.push(format!(
            "note       where {} leads, the management API does not tell of every event; counts with `up \
             to` are the most there can be",
            names.join(", ")
        ));
    }
    if let Some(why) = &reached.consumers_unknown {
        lines.push(format!("unchecked  who consumes them: {why}"));
    }
    if blast.needs_approval(reached) {
        let hash = reached.hash(&plan.hash());
        let is_approved = blast.approval.as_ref().is_some_and(|approval| approval.hash == hash);
        lines.push(match is_approved {
            true => format!("approved   {hash}"),
            false => format!("approve    a replay asks for --approve {hash}"),
        });
    }
    lines
}

fn row(blast: &BlastRadius, (name, queue): (&String, &ReachedQueue)) -> Vec<String> {
    let events = match queue.events == queue.certain {
        true => format::number(queue.events),
        false => format!("up to {}", format::number(queue.events)),
    };
    let named: Vec<String> = queue
        .consumed_by
        .iter()
        .take(CONSUMERS_SHOWN)
        .map(|consumer| match &consumer.connection {
            Some(connection) => format::one_line(connection, NAME_CHARS_MAX),
            None => format::one_line(&consumer.tag, NAME_CHARS_MAX),
        })
        .collect();
    let consumers = match (queue.consumers, named.len() as u64) {
        (None, _) => "?".to_owned(),
        (Some(0), _) => "nobody".to_owned(),
        (Some(count), shown) if count > shown => {
            format!("{}: {}, …", format::number(count), named.join(", "))
        }
        (Some(count), _) => format!("{}: {}", format::number(count), named.join(", ")),
    };
    let unexpected = !blast.asked_for.is_empty() && !blast.asked_for.contains(name);
    let mark = if unexpected { "  NOT ASKED FOR" } else { "" };
    vec![format::one_line(name, NAME_CHARS_MAX), events, format!("{consumers}{mark}")]
}
