//! From a target that was named to one that can be asked and opened.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use dacapo_amqp::{AmqpConnect, AmqpTarget, Via};
use dacapo_bus::Connect;
use dacapo_bus::file::{Existing, FileTarget};
use dacapo_engine::request::Target;
use dacapo_engine::state::ReplayId;
use dacapo_engine::survey::TargetFacts;
use dacapo_republish::Pace;

use crate::exit::Failure;
use crate::settings::Settings;

/// Asks how the target is. Without a broker (`plan` does not need one) nothing is known.
pub async fn facts(
    target: &Target,
    pace: &Pace,
    settings: &Settings,
) -> anyhow::Result<TargetFacts> {
    let mut facts = TargetFacts::default();
    if let Target::File { path } = target {
        facts.exists = Some(is_stdout(path) || path.exists());
        if !is_stdout(path) && path.exists() {
            facts.warnings.push(format!(
                "file `{}` is there already; a replay refuses to write to it",
                path.display()
            ));
        }
        if pace.queue_depth_max.is_some() {
            facts.warnings.push("--max-queue-depth needs one queue as target".to_owned());
        }
        return Ok(facts);
    }
    let Some(broker) = settings.broker_if_named("dacapo plan")? else {
        facts.warnings.push("no broker was named (--amqp), so the target was not asked".to_owned());
        return Ok(facts);
    };
    let asked = dacapo_amqp::inspect(&broker, &amqp_target(target, None)).await?;
    facts.exists = Some(asked.exists);
    facts.depth = asked.depth;
    facts.consumers = asked.consumers;
    let mut warn = |warning: String| facts.warnings.push(warning);
    match target {
        Target::Queue { queue } if asked.exists && asked.consumers == Some(0) => {
            warn(format!("nobody consumes queue `{queue}` now"));
        }
        Target::QueueViaDefaultExchange { queue } => {
            warn(format!(
                "the routing key of every event becomes `{queue}`; the original is in header x-dacapo-original-routing-key"
            ));
        }
        Target::Exchange { exchange, .. } => {
            warn(format!("everyone bound to exchange `{exchange}` sees the events"));
        }
        Target::Original => {
            warn("everyone sees the events, as when they were first published".to_owned());
        }
        _ => {}
    }
    if asked.depth.is_some_and(|depth| depth > 0) {
        let depth = asked.depth.unwrap_or(0);
        facts.warnings.push(format!(
            "{depth} messages are waiting in the queue; the replay comes after them"
        ));
    }
    if pace.queue_depth_max.is_some() && asked.depth.is_none() {
        facts.warnings.push("--max-queue-depth needs one queue as target".to_owned());
    }
    Ok(facts)
}

/// Opens nothing yet; returns what a replay connects to.
pub fn connect(
    target: &Target,
    id: &ReplayId,
    existing: Existing,
    settings: &Settings,
) -> anyhow::Result<Box<dyn Connect>> {
    if let Target::File { path } = target {
        return Ok(match is_stdout(path) {
            true => Box::new(FileTarget::writer("standard output", Box::new(tokio::io::stdout()))),
            false => Box::new(FileTarget::new(path, existing)),
        });
    }
    let broker = settings.broker(format!("dacapo replay {id}"))?;
    Ok(Box::new(AmqpConnect { broker, target: amqp_target(target, Some(id)) }))
}

/// Returns whether the target is standard output, which then has no room for a receipt.
pub fn writes_to_stdout(target: &Target) -> bool {
    matches!(target, Target::File { path } if is_stdout(path))
}

/// Refuses a file that cannot be written, before anything is made for it.
pub fn refuse_unfit(target: &Target) -> anyhow::Result<()> {
    if let Target::File { path } = target
        && !is_stdout(path)
    {
        let shown = path.display();
        if path.symlink_metadata().is_ok() {
            let problem = format!("file `{shown}` is there already; move it away or name another");
            return Err(Failure::refused(problem).into());
        }
        if !path.parent().is_some_and(Path::is_dir) {
            let problem = format!("there is no directory to put `{shown}` into; make it first");
            return Err(Failure::configuration(problem).into());
        }
    }
    Ok(())
}

/// Refuses to go on writing to a file that is not what the replay has written so far: what is
/// missing from it would be counted as confirmed.
pub fn refuse_shortened(target: &Target, confirmed: u64) -> anyhow::Result<()> {
    let Target::File { path } = target else { return Ok(()) };
    if is_stdout(path) || confirmed == 0 {
        return Ok(());
    }
    let lines = match File::open(path) {
        Ok(file) => lines_of(file).map_err(|error| Failure::file("read", path, &error))?,
        Err(_) => 0,
    };
    if lines < confirmed {
        let problem = format!(
            "`{}` has {lines} of the {confirmed} events that were written to it; put it back, or begin \
             a new replay",
            path.display()
        );
        return Err(Failure::refused(problem).into());
    }
    Ok(())
}

fn lines_of(file: File) -> std::io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut lines = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(lines);
        }
        lines += buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
        let length = buffer.len();
        reader.consume(length);
    }
}

/// Returns the target as a replay of this id, or one to come, publishes to it.
pub fn amqp_target(target: &Target, id: Option<&ReplayId>) -> AmqpTarget {
    match target.clone() {
        Target::Queue { queue } => {
            let name = format!("dacapo.replay.{}", id.map_or("", ReplayId::as_str));
            AmqpTarget::Queue { queue, via: Via::OwnExchange { name } }
        }
        Target::QueueViaDefaultExchange { queue } => {
            AmqpTarget::Queue { queue, via: Via::DefaultExchange }
        }
        Target::Exchange { exchange, routing_key } => {
            AmqpTarget::Exchange { exchange, routing_key }
        }
        Target::Original | Target::File { .. } => AmqpTarget::Original,
    }
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}
