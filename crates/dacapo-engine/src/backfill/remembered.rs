//! Which events of history may be held as well.

use std::collections::HashSet;
use std::sync::Arc;

use dacapo_archive::store::Store;
use dacapo_event::{Digest, Hasher, MemoryBudget, Message, wire};
use dacapo_filter::Selection;

use crate::EngineError;
use crate::merge::{Merge, Positions};
use crate::plan::Plan;

/// What a remembered digest takes: its 32 bytes in a table that is at least seven sixteenths full
/// after it grew, and the old table while it grows.
const ENTRY_BYTES: u64 = 128;

/// The contents that are remembered, and how many events are not.
#[derive(Debug, Default)]
pub struct Remembered {
    contents: HashSet<Digest>,
    /// Selected events between the barriers.
    pub events: u64,
    /// Those whose repeats cannot be told: without an id of their own, or more than there is memory
    /// for.
    pub not_remembered: u64,
}

impl Remembered {
    /// Returns whether history has an event with an id of its own and this content.
    pub(super) fn has(&self, message: &Message) -> bool {
        !self.contents.is_empty() && self.contents.contains(&content(message))
    }
}

/// Returns the digest of everything that a publisher says in a message: exchange, routing key,
/// properties, body. An id is part of it, wherever the platform keeps it.
fn content(message: &Message) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update_framed(message.exchange.as_bytes());
    hasher.update_framed(message.routing_key.as_bytes());
    hasher.update_framed(&wire::encode_properties(message));
    hasher.update_framed(&message.body);
    hasher.finish()
}

/// Reads the selected events between the barriers out of the last round, of which `plan` is the
/// plan, and remembers those that have an id of their own, as far as `memory` allows.
///
/// `progress` is told how many were read. A message without an id is no repeat of another, however equal they are; so it is never dropped.
///
/// # Errors
/// Reading fails.
pub async fn remember(
    store: Arc<dyn Store>,
    plan: &Plan,
    between: Selection,
    memory: MemoryBudget,
    mut progress: impl FnMut(u64),
) -> Result<Remembered, EngineError> {
    let most = usize::try_from(memory.remembered() / ENTRY_BYTES).unwrap_or(usize::MAX);
    let mut remembered = Remembered::default();
    let streams = plan.streams(&Positions::new());
    let mut merge = Merge::new(store, Arc::new(between), streams, memory);
    while let Some(batch) = merge.next().await? {
        for selected in batch {
            remembered.events += 1;
            let fits = remembered.contents.len() < most;
            match fits && selected.event.has_own_id(&selected.stream) {
                true => drop(remembered.contents.insert(content(&selected.event.message))),
                false => remembered.not_remembered += 1,
            }
        }
        progress(remembered.events);
    }
    Ok(remembered)
}
