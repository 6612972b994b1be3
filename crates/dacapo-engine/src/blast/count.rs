//! Reads where the selected events of a plan are published: from footers where these decide, else from
//! the columns that do.

use std::sync::{Arc, Mutex, PoisonError};

use dacapo_archive::store::Store;
use dacapo_archive::{ColumnSet, SegmentSummary, Tally};
use dacapo_event::{Event, ShortStr};
use dacapo_filter::{Selection, Verdict};
use futures::{StreamExt, TryStreamExt, stream};

use super::{Destinations, Reached, short};
use crate::EngineError;
use crate::plan::{Plan, PlannedSegment};
use crate::request::Target;
use crate::scan::Scan;
use crate::survey::{self, COUNT_BATCH_BYTES, COUNTED_AT_ONCE};

/// Segments read at once where two short columns are enough: hides the store's latency.
const READ_AT_ONCE: usize = 8;

/// Stands for what was not UTF-8 in lossy text.
const REPLACEMENT: char = '\u{fffd}';

/// Counts where the selected events of a plan come, each of them exactly; `known` is what the index
/// tells of a segment, and `step` is told how many segments are done.
///
/// Bodies are read only if the selection asks about them.
///
/// # Errors
/// The index fails; reading fails, or the expression fails on an event.
pub async fn count(
    store: &Arc<dyn Store>,
    plan: &Plan,
    known: impl Fn(&PlannedSegment) -> Result<Option<SegmentSummary>, EngineError>,
    mut destinations: Destinations<'_>,
    mut step: impl FnMut(u64),
) -> Result<Reached, EngineError> {
    let selection = Arc::new(Selection::compile(plan.request.selection.clone())?);
    let mut done = 0;
    let mut unread = Vec::new();
    for segment in &plan.segments {
        let summary = known(segment)?.filter(|summary| summary.digest == segment.digest);
        let told = match (summary, destinations.needs_headers()) {
            (Some(summary), false) => told(&summary, &selection, &plan.request.target),
            _ => None,
        };
        match told {
            Some(told) => {
                for Alike { exchange, routing_key, events } in told {
                    destinations.add_alike(exchange, routing_key, events);
                }
                done += 1;
            }
            None => unread.push(segment),
        }
    }
    step(done);
    let at_once = match selection.needs_body() || destinations.needs_headers() {
        true => COUNTED_AT_ONCE,
        false => READ_AT_ONCE,
    };
    let needs_headers = destinations.needs_headers();
    // Scans take turns on one task; none holds it over a wait.
    let counted = Mutex::new(destinations);
    let add = |event: &Event| counted.lock().unwrap_or_else(PoisonError::into_inner).add(event);
    let mut reading = stream::iter(unread)
        .map(|segment| read(store, segment, &selection, needs_headers, &add))
        .buffer_unordered(at_once);
    while reading.try_next().await?.is_some() {
        done += 1;
        step(done);
    }
    drop(reading);
    Ok(counted.into_inner().unwrap_or_else(PoisonError::into_inner).finish())
}

/// Adds the selected events of a segment, each once.
async fn read(
    store: &Arc<dyn Store>,
    segment: &PlannedSegment,
    selection: &Arc<Selection>,
    needs_headers: bool,
    add: &impl Fn(&Event),
) -> Result<(), EngineError> {
    let open = || {
        let (store, selection) = (Arc::clone(store), Arc::clone(selection));
        async move { Scan::open(store, &segment.to_read(), selection, 0, COUNT_BATCH_BYTES).await }
    };
    let columns = ColumnSet::EXCHANGE | ColumnSet::ROUTING_KEY;
    let whole = columns | ColumnSet::PROPERTIES | ColumnSet::ID;
    if needs_headers {
        return open().await?.count(whole, add).await.map(drop);
    }
    let mut lossy = false;
    let readable = |event: &Event| match is_lossy(event) {
        true => lossy = true,
        false => add(event),
    };
    open().await?.count(columns, readable).await?;
    if lossy {
        // The bytes that these were are in another column.
        let others = |event: &Event| {
            if is_lossy(event) {
                add(event);
            }
        };
        open().await?.count(whole, others).await?;
    }
    Ok(())
}

/// Returns whether where an event is published was not UTF-8, or looks so.
fn is_lossy(event: &Event) -> bool {
    let message = &event.message;
    let lossy = |text: &ShortStr| text.to_str_lossy().contains(REPLACEMENT);
    lossy(&message.exchange) || lossy(&message.routing_key)
}

/// Events of a segment that are published alike.
struct Alike {
    exchange: ShortStr,
    routing_key: ShortStr,
    events: u64,
}

/// Returns where the selected events of a segment are published, if its footer tells all of it.
fn told(summary: &SegmentSummary, selection: &Selection, target: &Target) -> Option<Vec<Alike>> {
    let bounds = survey::bounds(summary);
    let alike = |exchange: &str, routing_key: &str, events| {
        let (exchange, routing_key) = (short(exchange)?, short(routing_key)?);
        Some(Alike { exchange, routing_key, events })
    };
    if let Target::Exchange { exchange, routing_key: Some(routing_key) } = target {
        let count = selection.count(&bounds);
        return if count.exact {
            Some(vec![alike(exchange, routing_key, count.events)?])
        } else {
            None
        };
    }
    if selection.prune(&bounds) != Verdict::All {
        return None;
    }
    let (exchanges, keys) = (&summary.by_exchange, &summary.by_routing_key);
    match target {
        Target::Exchange { exchange, .. } => {
            texts(keys)?.map(|(key, events)| alike(exchange, key, events)).collect()
        }
        // Footers count exchanges and routing keys apart.
        _ => match (only(exchanges), only(keys)) {
            (Some(exchange), _) => {
                texts(keys)?.map(|(key, events)| alike(exchange, key, events)).collect()
            }
            (None, Some(key)) => {
                texts(exchanges)?.map(|(exchange, events)| alike(exchange, key, events)).collect()
            }
            (None, None) => None,
        },
    }
}

/// Returns all texts of a tally with their counts, if they are all there and as they were.
fn texts(tally: &Tally) -> Option<impl Iterator<Item = (&str, u64)>> {
    let whole = tally.other == 0 && !tally.counts.keys().any(|text| text.contains(REPLACEMENT));
    whole.then(|| tally.counts.iter().map(|(text, events)| (text.as_str(), *events)))
}

/// Returns the only text of a tally.
fn only(tally: &Tally) -> Option<&str> {
    let mut texts = texts(tally)?;
    let (first, _) = texts.next()?;
    texts.next().is_none().then_some(first)
}
