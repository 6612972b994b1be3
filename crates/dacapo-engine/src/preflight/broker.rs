//! Whether the nodes have room.

use dacapo_bus::broker::Node;

use super::{Check, EVENT_BYTES, Found, Load};

pub(super) fn check(load: &Load<'_>, nodes: &[Node], found: &mut Found) {
    // What is consumed meanwhile makes room again; how much that is nobody knows beforehand.
    let events = load.events.min(load.depth_max.unwrap_or(u64::MAX));
    let share = events as f64 / load.events.max(1) as f64;
    let bodies = (load.bytes as f64 * share) as u64;
    let needed = bodies.saturating_add(events.saturating_mul(EVENT_BYTES));
    let mut running = nodes.iter().filter(|node| node.runs).peekable();
    if running.peek().is_none() {
        let why = "the management plugin tells of no node that runs";
        found.unchecked(&[Check::BrokerDiskLow, Check::BrokerMemoryAlarm], why);
    }
    for node in running {
        memory(node, found);
        disk(node, needed, found);
    }
}

fn memory(node: &Node, found: &mut Found) {
    let name = &node.name;
    match node.memory_alarm {
        Some(false) => {}
        Some(true) => found.refuse(
            Check::BrokerMemoryAlarm,
            format!("node `{name}` has a memory alarm and blocks every publisher"),
            "let its queues be consumed, or give it more memory",
        ),
        None => {
            let why = format!("node `{name}` does not tell whether it has a memory alarm");
            found.unchecked(&[Check::BrokerMemoryAlarm], &why);
        }
    }
}

fn disk(node: &Node, needed: u64, found: &mut Found) {
    let name = &node.name;
    if node.disk_alarm == Some(true) {
        found.refuse(
            Check::BrokerDiskLow,
            format!("node `{name}` has a disk alarm and blocks every publisher"),
            "make room on its disk",
        );
        return;
    }
    let (Some(free), Some(limit)) = (node.disk_free, node.disk_limit) else {
        let why = format!(
            "node `{name}` does not tell how much disk it has; look there \
             (`rabbitmq-diagnostics status`)"
        );
        found.unchecked(&[Check::BrokerDiskLow], &why);
        return;
    };
    let room = free.saturating_sub(limit);
    if room < needed {
        found.refuse(
            Check::BrokerDiskLow,
            format!(
                "node `{name}` has {room} bytes of disk above its limit, and the events take about \
                 {needed}; when it is full, every publisher is blocked"
            ),
            "make room on its disk, or give --max-queue-depth so that fewer events wait at once",
        );
    }
}
