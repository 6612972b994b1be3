//! Whether the target queue keeps what it gets.

use dacapo_bus::broker::{Overflow, Queue, Setting, Topology};

use super::{Check, Facts, Found, Load};

pub(super) fn check(
    load: &Load<'_>,
    facts: &Facts,
    topology: &Topology,
    name: &str,
    found: &mut Found,
) {
    let Some(queue) = topology.queues.get(name) else { return };
    if let Some(Setting { value, by }) = &queue.message_ttl {
        let fate = match &queue.dead_letter {
            Some(dead_letter) if dead_letter.exchange.is_empty() => {
                "dead-letters to the default exchange".to_owned()
            }
            Some(dead_letter) => format!("dead-letters to exchange `{}`", dead_letter.exchange),
            None => "drops".to_owned(),
        };
        found.refuse(
            Check::QueueTtl,
            format!("queue `{name}` {fate} what waits longer than {value} ms ({by})"),
            "take the limit away while the replay runs and its events are consumed",
        );
    }
    drops_head(load, facts, queue, name, found);
    expires(facts, queue, name, found);
}

fn drops_head(load: &Load<'_>, facts: &Facts, queue: &Queue, name: &str, found: &mut Found) {
    if queue.overflow == Overflow::Reject {
        return;
    }
    let waiting = facts.depth.unwrap_or(0);
    let all = waiting.saturating_add(load.events);
    let events = all.min(load.depth_max.unwrap_or(u64::MAX).max(waiting));
    let share = events.saturating_sub(waiting) as f64 / load.events.max(1) as f64;
    let bytes = queue.bytes.unwrap_or(0).saturating_add((load.bytes as f64 * share) as u64);
    for (limit, reached, unit) in
        [(&queue.length_max, events, "messages"), (&queue.bytes_max, bytes, "bytes")]
    {
        let Some(Setting { value, by }) = limit else { continue };
        let limit = format!("queue `{name}` drops its oldest messages past {value} {unit} ({by})");
        if reached > *value {
            found.refuse(
                Check::QueueDropsHead,
                format!("{limit}, and may come to {reached}"),
                "raise the limit, set overflow to `reject-publish`, or give --max-queue-depth so that \
                 fewer events wait at once",
            );
        } else {
            found.warn(
                Check::QueueDropsHead,
                format!("{limit}; the replay alone brings it to {reached} at the most"),
                "watch its depth while others publish, too",
            );
        }
    }
}

fn expires(facts: &Facts, queue: &Queue, name: &str, found: &mut Found) {
    let consumed = facts.consumers.is_some_and(|consumers| consumers > 0);
    let next_step = "start its service first, or take the limit away";
    if let Some(Setting { value, by }) = &queue.expires {
        let what = format!("queue `{name}` is deleted after {value} ms without a consumer ({by})");
        match consumed {
            true => found.warn(Check::QueueExpires, what, "keep its service running"),
            false => found.refuse(Check::QueueExpires, what, next_step),
        }
    }
    if queue.auto_delete {
        let what = format!("queue `{name}` is deleted with its last consumer (auto-delete)");
        found.warn(Check::QueueExpires, what, "keep its service running");
    }
}
