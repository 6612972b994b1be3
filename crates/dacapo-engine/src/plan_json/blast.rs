//! The blast radius of a plan, as a saved plan has it.

use std::collections::{BTreeMap, BTreeSet};

use dacapo_bus::broker::Consumer;
use dacapo_event::Digest;
use serde::{Deserialize, Serialize};

use super::Parse;
use crate::EngineError;
use crate::blast::{Approval, BlastRadius, Reached, ReachedQueue};

#[derive(Serialize, Deserialize)]
pub(super) struct BlastRadiusJson {
    asked_for: BTreeSet<String>,
    approval: Option<ApprovalJson>,
    #[serde(flatten)]
    reached: ReachedJson,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ReachedJson {
    Unknown {
        /// Why it is not known.
        unknown: String,
    },
    Known {
        /// What `--approve` takes.
        approve: String,
        /// For scripts: whether a replay asks for it.
        needs_approval: bool,
        /// Whether every count is exact.
        exact: bool,
        events: u64,
        unrouted: u64,
        undecided_exchanges: BTreeSet<String>,
        consumers_unknown: Option<String>,
        queues: Vec<QueueJson>,
    },
}

#[derive(Serialize, Deserialize)]
struct QueueJson {
    queue: String,
    /// At the most, and at the least.
    events: u64,
    events_certain: u64,
    asked_for: bool,
    consumers: Option<u64>,
    consumed_by: Vec<ConsumerJson>,
}

#[derive(Serialize, Deserialize)]
struct ConsumerJson {
    tag: String,
    connection: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct ApprovalJson {
    hash: String,
    by: String,
}

/// `plan` is the hash of the plan.
pub(super) fn to_wire(blast: &BlastRadius, plan: &Digest) -> BlastRadiusJson {
    let consumer = |consumer: &Consumer| ConsumerJson {
        tag: consumer.tag.clone(),
        connection: consumer.connection.clone(),
    };
    let queue = |(name, queue): (&String, &ReachedQueue)| QueueJson {
        queue: name.clone(),
        events: queue.events,
        events_certain: queue.certain,
        asked_for: blast.asked_for.contains(name),
        consumers: queue.consumers,
        consumed_by: queue.consumed_by.iter().map(consumer).collect(),
    };
    BlastRadiusJson {
        asked_for: blast.asked_for.clone(),
        approval: blast.approval.as_ref().map(|approval| ApprovalJson {
            hash: approval.hash.to_string(),
            by: approval.by.as_str().to_owned(),
        }),
        reached: match &blast.reached {
            Err(why) => ReachedJson::Unknown { unknown: why.clone() },
            Ok(reached) => ReachedJson::Known {
                approve: reached.hash(plan).to_string(),
                needs_approval: blast.needs_approval(reached),
                exact: reached.is_exact(),
                events: reached.events,
                unrouted: reached.unrouted,
                undecided_exchanges: reached.undecided.clone(),
                consumers_unknown: reached.consumers_unknown.clone(),
                queues: reached.queues.iter().map(queue).collect(),
            },
        },
    }
}

pub(super) fn from_wire(
    parse: &Parse<'_>,
    json: BlastRadiusJson,
) -> Result<BlastRadius, EngineError> {
    let queue = |json: QueueJson| {
        let of = |consumer: ConsumerJson| Consumer {
            queue: json.queue.clone(),
            tag: consumer.tag,
            connection: consumer.connection,
        };
        let queue = ReachedQueue {
            events: json.events,
            certain: json.events_certain,
            consumers: json.consumers,
            consumed_by: json.consumed_by.into_iter().map(of).collect(),
        };
        (json.queue.clone(), queue)
    };
    let approval = |json: ApprovalJson| -> Result<Approval, EngineError> {
        Ok(Approval { hash: parse.text(&json.hash)?, by: parse.text(&json.by)? })
    };
    Ok(BlastRadius {
        asked_for: json.asked_for,
        approval: json.approval.map(approval).transpose()?,
        reached: match json.reached {
            ReachedJson::Unknown { unknown } => Err(unknown),
            ReachedJson::Known {
                events,
                unrouted,
                undecided_exchanges,
                consumers_unknown,
                queues,
                approve: _,
                needs_approval: _,
                exact: _,
            } => Ok(Reached {
                queues: queues.into_iter().map(queue).collect::<BTreeMap<_, _>>(),
                events,
                unrouted,
                undecided: undecided_exchanges,
                consumers_unknown,
            }),
        },
    })
}
