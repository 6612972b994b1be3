//! Asks the broker what speaks against a replay, tells it, and refuses.

use dacapo_amqp::Objections;
use dacapo_bus::broker::Topology;
use dacapo_engine::plan::Plan;
use dacapo_engine::preflight::{Check, Facts, Load, Preflight, Severity, Wishes, check};
use dacapo_engine::request::Target;
use dacapo_engine::survey::TargetFacts;

use super::target;
use crate::exit::Failure;
use crate::output::words;
use crate::settings::Settings;

/// What a look at a target found.
pub struct Looked {
    /// What speaks against it.
    pub preflight: Preflight,
    /// What is in its virtual host, or why that is not known.
    pub topology: Result<Topology, String>,
}

/// Looks at the target of a plan of which so many events are confirmed already.
///
/// Nothing on the broker is changed. What cannot be asked is not an error but said in the outcome.
pub async fn look(
    plan: &Plan,
    confirmed: u64,
    target: &TargetFacts,
    wishes: Wishes,
    settings: &Settings,
) -> anyhow::Result<Looked> {
    let load = Load::of(plan, confirmed);
    let (exists, depth, consumers) = (target.exists, target.depth, target.consumers);
    let Some(broker) = settings.broker_if_named("dacapo plan")? else {
        let why = "no broker was named (--amqp)".to_owned();
        let (denied, nodes, topology) = (Err(why.clone()), Err(why.clone()), Err(why));
        let (missing, unasked) = Default::default();
        let facts = Facts { exists, depth, consumers, denied, missing, unasked, nodes, topology };
        return Ok(Looked { preflight: check(&load, &facts, wishes), topology: facts.topology });
    };
    if !load.target.is_bus() {
        let preflight = Preflight { wishes, ..Preflight::default() };
        return Ok(Looked { preflight, topology: Err("a file has no bindings".to_owned()) });
    }
    let Objections { denied, missing, unasked } = match exists {
        // Who lacks permission for what is not there is not the question.
        Some(false) => Objections::default(),
        _ => {
            let target = target::amqp_target(load.target, None);
            dacapo_amqp::objections(&broker, &target, load.exchanges).await?
        }
    };
    let (nodes, topology) = match settings.management() {
        None => {
            let why = "AMQP cannot tell; name the management plugin (--management)".to_owned();
            (Err(why.clone()), Err(why))
        }
        Some(management) => {
            let (nodes, topology) =
                tokio::join!(management.nodes(), management.topology(broker.url.vhost()));
            let nodes = nodes.map_err(|error| words(&error));
            let topology = topology.map_err(|error| words(&error));
            let found = load.exchanges.difference(&missing);
            let found = found.filter(|exchange| !unasked.contains(*exchange));
            let found: Vec<&str> = found.map(String::as_str).collect();
            let other = match &topology {
                Ok(topology) if exists == Some(true) => {
                    of_another_broker(topology, load.target, &found, management)
                }
                _ => None,
            };
            match other {
                Some(why) => (Err(why.clone()), Err(why)),
                None => (nodes, topology),
            }
        }
    };
    let denied = Ok(denied);
    let facts = Facts { exists, depth, consumers, denied, missing, unasked, nodes, topology };
    Ok(Looked { preflight: check(&load, &facts, wishes), topology: facts.topology })
}

/// Returns why what the plugin tells is not of the broker that AMQP asked, if that shows.
/// `exchanges` are those that AMQP found for a replay to the original ones.
fn of_another_broker(
    topology: &Topology,
    target: &Target,
    exchanges: &[&str],
    management: &impl std::fmt::Display,
) -> Option<String> {
    let has = |exchange: &str| exchange.is_empty() || topology.exchanges.contains_key(exchange);
    let known = match target {
        Target::Queue { queue } | Target::QueueViaDefaultExchange { queue } => {
            topology.queues.contains_key(queue)
        }
        Target::Exchange { exchange, .. } => has(exchange),
        Target::Original => exchanges.iter().all(|exchange| has(exchange)),
        Target::File { .. } => true,
    };
    (!known).then(|| {
        format!(
            "{management} does not know {target}, which --amqp does; name the management plugin of the \
             same broker"
        )
    })
}

/// Refuses a target with something against it that the operator has not overridden.
pub fn refuse(preflight: &Preflight) -> anyhow::Result<()> {
    let refusals: Vec<_> = preflight.refusals().collect();
    if refusals.is_empty() {
        return Ok(());
    }
    let mut lines = vec!["nothing was published, because the target is not fit".to_owned()];
    lines.extend(refusals.iter().map(|finding| {
        let name = finding.check;
        format!(
            "{name}: {}; {}, or go on with `--override {name}`",
            finding.what, finding.next_step
        )
    }));
    Err(Failure::refused(lines.join("\n  ")).into())
}

/// Returns the outcome as lines of a plan.
pub fn lines(preflight: &Preflight) -> Vec<String> {
    let mut lines: Vec<String> = preflight
        .findings
        .iter()
        .map(|finding| {
            let word = match (finding.severity, finding.overridden) {
                (Severity::Warning, _) => "note       ",
                (Severity::Refusal, true) => "OVERRIDDEN ",
                (Severity::Refusal, false) => "REFUSED    ",
            };
            format!("{word}{}: {}; {}", finding.check, finding.what, finding.next_step)
        })
        .collect();
    for unchecked in &preflight.unchecked {
        let names: Vec<&str> = unchecked.checks.iter().copied().map(Check::as_str).collect();
        lines.push(format!("unchecked  {}: {}", names.join(", "), unchecked.why));
    }
    if preflight.refusals().next().is_some() {
        lines.push(
            "note       a replay refuses this target, unless each REFUSED check is given to --override"
                .to_owned(),
        );
    }
    lines
}
