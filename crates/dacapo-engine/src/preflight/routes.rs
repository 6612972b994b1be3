//! Where events would go besides: back, to an archiver, or where nobody sees that no queue took
//! them.

use std::collections::BTreeSet;

use dacapo_bus::broker::Topology;

use super::{Check, Found, Load};
use crate::request::Target;

/// Why an event that comes to an archiver again may do no harm, and still should not.
const SKIPPED: &str = "an archiver skips what a replay marked and counts it, so nothing is archived twice, but it \
     has to take all of it";

pub(super) fn of_queue(load: &Load<'_>, topology: &Topology, name: &str, found: &mut Found) {
    if topology.queues.get(name).is_some_and(|queue| queue.is_archivers) {
        found.refuse(
            Check::FeedsArchiver,
            format!("queue `{name}` is an archiver's; {SKIPPED}"),
            "name the queue of a service",
        );
    }
    // The routing key with which an event arrives is its own, unless the queue says another.
    let arrives_with = match load.target {
        Target::QueueViaDefaultExchange { queue } => Some(queue.as_str()),
        _ => None,
    };
    let (dead_lettered, routing_key) = topology.dead_lettered(name, arrives_with);
    let next_step =
        "end the loop (the queue's dead-letter exchange or a binding) while the replay runs";
    if dead_lettered.contains(name) {
        let what = format!("what queue `{name}` gives up is dead-lettered back to it, for ever");
        found.refuse(Check::DeadLetterLoop, what, next_step);
        return;
    }
    if let Some(archivers) = archivers(topology, &dead_lettered) {
        found.refuse(
            Check::DeadLetterLoop,
            format!(
                "what queue `{name}` gives up is dead-lettered to the archiver's queue `{archivers}`; \
                 {SKIPPED}"
            ),
            next_step,
        );
        return;
    }
    let after = after(topology, name, dead_lettered, routing_key);
    if let Some(through) = after.back_through {
        found.warn(
            Check::DeadLetterLoop,
            format!("what queue `{name}` gives up comes back to it through queue `{through}`"),
            "make sure that its service counts attempts, or an event that it cannot handle stays for ever",
        );
    }
    if let Some(queue) = after.unknown_from {
        found.warn(
            Check::DeadLetterLoop,
            format!(
                "what queue `{queue}` gives up goes to the queue that its routing key names, through the \
                 default exchange, and that key is each event's own"
            ),
            "give its dead letters a routing key (x-dead-letter-routing-key), or make sure that no event \
             has a queue's name as routing key",
        );
    }
}

/// What becomes of what a queue gives up.
#[derive(Debug, Default)]
struct After<'a> {
    /// The queue through which it comes back.
    back_through: Option<&'a str>,
    /// The queue from which it goes on by a routing key that is not known.
    unknown_from: Option<&'a str>,
}

/// Follows what `name` gives up, which comes to the queues of `first`.
fn after<'a>(
    topology: &'a Topology,
    name: &'a str,
    first: BTreeSet<&'a str>,
    routing_key: Option<&'a str>,
) -> After<'a> {
    let goes_by_its_key = |queue: &str, routing_key: Option<&str>| {
        let dead_letter = topology.queues.get(queue).and_then(|queue| queue.dead_letter.as_ref());
        dead_letter.is_some_and(|to| to.exchange.is_empty()) && routing_key.is_none()
    };
    let mut after = After::default();
    if goes_by_its_key(name, routing_key) {
        after.unknown_from = Some(name);
    }
    let mut seen = first.clone();
    let mut left: Vec<(&str, Option<&str>)> =
        first.into_iter().map(|queue| (queue, routing_key)).collect();
    while let Some((queue, routing_key)) = left.pop() {
        let (next, routing_key) = topology.dead_lettered(queue, routing_key);
        if next.contains(name) {
            after.back_through.get_or_insert(queue);
            continue;
        }
        if goes_by_its_key(queue, routing_key) {
            after.unknown_from.get_or_insert(queue);
        }
        for queue in next {
            if seen.insert(queue) {
                left.push((queue, routing_key));
            }
        }
    }
    after
}

pub(super) fn of_exchanges(load: &Load<'_>, topology: &Topology, found: &mut Found) {
    let (exchanges, routing_key): (Vec<&str>, _) = match load.target {
        Target::Exchange { exchange, routing_key } => (vec![exchange], routing_key.as_deref()),
        _ => (load.exchanges.iter().map(String::as_str).collect(), None),
    };
    let mut passed = BTreeSet::new();
    for exchange in exchanges {
        if exchange.is_empty() && routing_key.is_none() {
            found.unchecked(
                &[Check::FeedsArchiver],
                "what goes to the default exchange comes to the queue that its routing key names, which \
                 is each event's own",
            );
        }
        passed.extend(topology.passed(exchange, routing_key));
        let reached = topology.reached(exchange, routing_key);
        if let Some(archivers) = archivers(topology, &reached) {
            found.refuse(
                Check::FeedsArchiver,
                format!(
                    "exchange `{exchange}` leads to the archiver's queue `{archivers}`; {SKIPPED}"
                ),
                "publish to one queue (--to-queue), or stop the archiver from seeing it meanwhile",
            );
        }
    }
    // Of all that an event can come through: each hands on by itself what it routes nowhere.
    for exchange in passed {
        let alternate = topology.exchanges.get(exchange).and_then(|it| it.alternate.as_ref());
        if let Some(alternate) = alternate {
            found.refuse(
                Check::AlternateExchange,
                format!(
                    "exchange `{exchange}` hands what no queue takes to exchange `{}` ({}), and the \
                     receipt would count it as confirmed",
                    alternate.value, alternate.by
                ),
                "publish to one queue (--to-queue), or take the alternate exchange away meanwhile",
            );
        }
    }
}

fn archivers<'a>(topology: &Topology, queues: &BTreeSet<&'a str>) -> Option<&'a str> {
    let is_archivers =
        |name: &&&str| topology.queues.get(**name).is_some_and(|queue| queue.is_archivers);
    queues.iter().find(is_archivers).copied()
}
