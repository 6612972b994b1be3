//! Whether the nodes have room.

use dacapo_bus::broker::Node;

use super::{Check, EVENT_BYTES, Found, Load};

pub(super) fn check(load: &Load<'_>, nodes: &[Node], found: &mut Found) {
    // What is consumed meanwhile makes room again; how much that is nobody knows beforehand.
    let events = load.events.min(load.depth_max.unwrap_or(u64::MAX));
    let share = events as f64 / load.events.max(1) as f64;
    let needed = (load.bytes as f64 * share) as u64 + events * EVENT_BYTES;
    for node in nodes.iter().filter(|node| node.runs) {
        let name = &node.name;
        if node.memory_alarm {
            found.refuse(
                Check::BrokerMemoryAlarm,
                format!("node `{name}` has a memory alarm and blocks every publisher"),
                "let its queues be consumed, or give it more memory",
            );
        }
        if node.disk_alarm {
            found.refuse(
                Check::BrokerDiskLow,
                format!("node `{name}` has a disk alarm and blocks every publisher"),
                "make room on its disk",
            );
            continue;
        }
        let (Some(free), Some(limit)) = (node.disk_free, node.disk_limit) else { continue };
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
}
