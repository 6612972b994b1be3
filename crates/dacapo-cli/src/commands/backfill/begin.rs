//! From flags to a backfill that is described: asks the broker all that can be asked, and refuses
//! before anything is made.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use dacapo_amqp::Binding;
use dacapo_archive::store::Store;
use dacapo_bus::broker::{Destination, ExchangeKind, Topology};
use dacapo_engine::backfill::{BackfillId, Backfills, Bound, Description, Journal};
use dacapo_engine::preflight::{Wishes, archivers_of, check_archived};
use dacapo_engine::request::{Request, Target};
use dacapo_event::marking::Priority;
use dacapo_filter::{Binding as Routed, Selection, SelectionSpec, parse_time};
use dacapo_republish::Pace;

use super::super::preflight;
use super::{broker, drive};
use crate::args::BackfillArgs;
use crate::exit::{Exit, Failure};
use crate::open::{self, Access};
use crate::output::{Output, words};
use crate::settings::Settings;
use crate::signals::Signals;

/// The archiver's queue if none is named, as `archive run` has it.
const ARCHIVER_QUEUE: &str = "dacapo.archive";

pub async fn run(
    args: &BackfillArgs,
    backfills: &Backfills,
    settings: &Settings,
    output: &Output,
) -> anyhow::Result<Exit> {
    let queue = args.queue.clone().context("clap asks for --queue")?;
    let wishes = args.preflight.wishes(&Wishes::default());
    args.preflight.refuse_unfit(&Target::Queue { queue: queue.clone() })?;
    refuse_name(&queue)?;
    settings.broker("dacapo backfill")?;
    let store = open::store(settings, Access::Read).await?;
    refuse_second(backfills, &queue)?;
    let mut unchecked = Vec::new();
    let topology = topology(settings).await?;
    let routed = routed(&args.bindings, &topology, settings, &mut unchecked).await?;
    let bound = |binding: &Binding| Bound {
        exchange: binding.exchange.clone(),
        key: binding.pattern.clone(),
    };
    let bindings: Vec<Bound> = args.bindings.iter().map(bound).collect();
    let archiver_queues = archivers(args, &topology, &bindings, settings).await?;
    if archiver_queues.contains(&queue) {
        let problem =
            format!("queue `{queue}` is an archiver's; name the queue of the new service");
        return Err(Failure::usage(problem).into());
    }
    refuse_bound(&topology, &queue, &bindings)?;
    if let Err(why) = &topology {
        unchecked.push(format!(
            "unchecked  whether queue `{queue}` is bound to these exchanges already, which would give it \
             live events before their history: {why}"
        ));
    }
    let archived = check_archived(&topology, &bindings, &archiver_queues, wishes.clone());
    preflight::refuse(&archived)?;
    unchecked.extend(preflight::lines(&archived));
    broker::refuse_denied(&queue, &args.bindings, settings).await?;
    let now = settings.now();
    let from = args.from.as_deref().map(|text| parse_time(text, now)).transpose();
    let selection = SelectionSpec {
        from: from.context("--from")?,
        bindings: routed,
        ..SelectionSpec::default()
    };
    Selection::compile(selection.clone())?;
    let broker = settings.broker("dacapo backfill")?;
    let description = Description {
        request: Request {
            selection,
            target: Target::Queue { queue: queue.clone() },
            pace: args.pace.pace(),
            window: args.pace.window,
            priority: Priority::Neutralise,
        },
        bindings,
        archiver_queues,
        behind_max: args.max_behind,
        margin: args.margin,
        accept_gaps: args.accept_gaps,
        rules: args.attributes.rules(),
        wishes,
        archive: store.location(),
        vhost: Some(broker.url.vhost().to_owned()),
        cluster: dacapo_amqp::cluster(&broker).await?,
        unchecked,
        made_at: now,
    };
    for note in &description.unchecked {
        output.talk(note);
    }
    let id = BackfillId::new(now, &queue, std::process::id());
    let signals = Signals::take()?;
    let locked = backfills.create(id, &description)?;
    let (journal, standing) = Journal::open(&backfills.journal_path(&locked.id))?;
    output.talk(&format!("backfill   {}", locked.id));
    let parts = drive::Parts { backfills, settings, output, running: &args.running, store };
    drive::run(&locked, description, journal, standing, parts, signals).await
}

/// Refuses a queue whose holding queue would have no name.
fn refuse_name(queue: &str) -> anyhow::Result<()> {
    /// What a name has in AMQP, without what a holding queue's parking queue adds to it:
    /// `.holding.`, an id of 23 bytes, and `.parked`.
    const BYTES_MAX: usize = 255 - 39;
    let problem = match queue.len() {
        0 => "--queue is empty; name the queue of the new service".to_owned(),
        bytes if bytes > BYTES_MAX => {
            format!("--queue has {bytes} bytes, and may have {BYTES_MAX}; use a shorter name")
        }
        _ => return Ok(()),
    };
    Err(Failure::usage(problem).into())
}

/// Refuses to go on with another archive than it began with.
pub fn check_archive(description: &Description, store: &Arc<dyn Store>) -> anyhow::Result<()> {
    if description.archive == store.location() {
        return Ok(());
    }
    let problem = format!(
        "the backfill is of {}, and --archive is {}; name that archive",
        description.archive,
        store.location()
    );
    Err(Failure::configuration(problem).into())
}

/// Two at once would give the queue everything twice.
fn refuse_second(backfills: &Backfills, queue: &str) -> anyhow::Result<()> {
    for id in backfills.list()? {
        let standing = Journal::read(&backfills.journal_path(&id));
        // One that cannot be read cannot go on either, and `ls` tells of it.
        let (Ok(description), Ok(standing)) = (backfills.description(&id), standing) else {
            continue;
        };
        if description.queue() == queue && standing.is_resumable() {
            let problem = format!(
                "backfill `{id}` of queue `{queue}` is not over; go on with `dacapo backfill resume \
                 {id}`, or end it with `dacapo backfill cancel {id}`"
            );
            return Err(Failure::usage(problem).into());
        }
    }
    Ok(())
}

/// Returns what of history each binding would have routed, by the type of its exchange.
async fn routed(
    bindings: &[Binding],
    topology: &Result<Topology, String>,
    settings: &Settings,
    unchecked: &mut Vec<String>,
) -> anyhow::Result<Vec<Routed>> {
    let types = dacapo_amqp::exchange_types(&settings.broker("dacapo backfill")?, bindings).await?;
    let mut routed = Vec::new();
    for Binding { exchange, pattern } in bindings {
        let has_wildcard = pattern.split('.').any(|word| matches!(word, "*" | "#"));
        let told = types.get(exchange).and_then(Option::as_deref);
        let kind = told.or_else(|| kind_of(topology.as_ref().ok()?, exchange));
        let pattern = match kind {
            Some("direct") if has_wildcard => {
                let problem = format!(
                    "exchange `{exchange}` is a direct exchange, which takes `{pattern}` literally; give \
                     each routing key (--bind {exchange}=KEY)"
                );
                return Err(Failure::usage(problem).into());
            }
            Some("direct" | "topic") => pattern.as_str(),
            // Whatever they are bound with.
            Some("fanout" | "headers") => "#",
            Some(other) => {
                let problem = format!(
                    "exchange `{exchange}` is of type `{other}`, and what it would have routed to a new \
                     queue cannot be told from history; bind the exchanges behind it"
                );
                return Err(Failure::usage(problem).into());
            }
            None => {
                unchecked.push(format!(
                    "note       exchange `{exchange}` is taken for a topic exchange: this user may not ask \
                     for its type"
                ));
                pattern.as_str()
            }
        };
        routed.push(Routed { exchange: exchange.clone(), pattern: pattern.to_owned() });
    }
    Ok(routed)
}

/// Returns the type of an exchange by what the plugin tells of it, in AMQP's word.
fn kind_of(topology: &Topology, exchange: &str) -> Option<&'static str> {
    match topology.exchanges.get(exchange)?.kind {
        ExchangeKind::Direct => Some("direct"),
        ExchangeKind::Fanout => Some("fanout"),
        ExchangeKind::Topic => Some("topic"),
        ExchangeKind::Headers => Some("headers"),
        ExchangeKind::Other => None,
    }
}

/// Returns what is in the virtual host, or why that is not known.
pub async fn topology(settings: &Settings) -> anyhow::Result<Result<Topology, String>> {
    let Some(management) = settings.management() else {
        return Ok(Err("AMQP cannot tell; name the management plugin (--management)".to_owned()));
    };
    let broker = settings.broker("dacapo backfill")?;
    Ok(management.topology(broker.url.vhost()).await.map_err(|error| words(&error)))
}

/// Returns the archivers' queues, all of which must be there.
async fn archivers(
    args: &BackfillArgs,
    topology: &Result<Topology, String>,
    bindings: &[Bound],
    settings: &Settings,
) -> anyhow::Result<Vec<String>> {
    let known = topology.as_ref().map(|topology| archivers_of(topology, bindings));
    let queues: BTreeSet<String> = match (args.archiver_queues.is_empty(), known) {
        (false, _) => args.archiver_queues.iter().cloned().collect(),
        (true, Ok(known)) if !known.is_empty() => known,
        (true, _) => [ARCHIVER_QUEUE.to_owned()].into(),
    };
    let broker = settings.broker("dacapo backfill")?;
    for queue in &queues {
        if dacapo_amqp::queue_state(&broker, queue).await?.is_none() {
            let problem = format!(
                "queue `{queue}` of an archiver does not exist; start the archiver (`dacapo archive run`), \
                 or name its queue (--archiver-queue)"
            );
            return Err(Failure::refused(problem).into());
        }
    }
    Ok(queues.into_iter().collect())
}

/// Refuses a queue that gets live events already: these would come before history, and again.
pub fn refuse_bound(
    topology: &Result<Topology, String>,
    queue: &str,
    bindings: &[Bound],
) -> anyhow::Result<()> {
    let Ok(topology) = topology else { return Ok(()) };
    let reached = |bound: &&Bound| {
        topology.bindings.iter().any(|binding| {
            binding.source == bound.exchange
                && binding.destination == Destination::Queue(queue.to_owned())
        })
    };
    let Some(bound) = bindings.iter().find(reached) else { return Ok(()) };
    let problem = format!(
        "queue `{queue}` is bound to exchange `{}` already, so live events would come before their \
         history and be counted nowhere; take the binding away, or name another queue",
        bound.exchange
    );
    Err(Failure::refused(problem).into())
}

/// Returns a pace for what is held: the original timing is over.
pub fn pace_of_held(pace: &Pace) -> Pace {
    Pace { speed: None, ramp: None, ..*pace }
}
