//! What is counted is what looking at every event, one by one, finds.

use std::sync::{Arc, Mutex};

use dacapo_archive::SegmentSummary;
use dacapo_bus::broker::{
    Binding, Destination, Exchange, ExchangeKind, HeaderAsked, HeadersAsked, Matching, Queue,
    Topology,
};
use dacapo_filter::SelectionSpec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::EngineError;
use crate::plan::{Plan, PlannedSegment, plan};
use crate::request::Request;
use crate::survey::Depth;
use crate::testing::{
    Archive, any_selection, any_streams, at, block_on, event, everything, request,
};

fn binding(source: &str, key: &str, queue: &str) -> Binding {
    Binding {
        source: source.to_owned(),
        destination: Destination::Queue(queue.to_owned()),
        routing_key: key.to_owned(),
        headers: HeadersAsked::default(),
    }
}

fn of_tenant(source: &str, asked: HeaderAsked, queue: &str) -> Binding {
    let fields = [("tenant".to_owned(), asked)].into();
    Binding {
        headers: HeadersAsked { matching: Matching::All, fields },
        ..binding(source, "", queue)
    }
}

/// `shop` → `orders` (orders.#), `eu` (#.eu) and exchange `tenants` (*.paid), which has a queue for one
/// tenant and one for those that were replayed; `plugin` → `anything`.
fn topology() -> Topology {
    let exchange = |name: &str, kind| (name.to_owned(), Exchange { kind, alternate: None });
    let mut through = binding("shop", "*.paid", "");
    through.destination = Destination::Exchange("tenants".to_owned());
    let text = |text: &str| HeaderAsked::Text(text.to_owned());
    let mut marked = of_tenant("tenants", HeaderAsked::Present, "replayed");
    marked.headers.fields = [("x-dacapo-event-id".to_owned(), text("e-7"))].into();
    Topology {
        exchanges: [
            exchange("shop", ExchangeKind::Topic),
            exchange("tenants", ExchangeKind::Headers),
            exchange("plugin", ExchangeKind::Other),
        ]
        .into(),
        queues: ["orders", "eu", "one", "replayed", "anything", "orders.placed"]
            .map(|name| (name.to_owned(), Queue::default()))
            .into(),
        bindings: vec![
            binding("shop", "orders.#", "orders"),
            binding("shop", "#.eu", "eu"),
            through,
            of_tenant("tenants", text("t1"), "one"),
            marked,
            binding("plugin", "", "anything"),
        ],
    }
}

fn to(exchange: &str, routing_key: Option<&str>) -> Target {
    Target::Exchange { exchange: exchange.to_owned(), routing_key: routing_key.map(str::to_owned) }
}

async fn planned(archive: &Archive, selection: SelectionSpec, target: Target) -> Plan {
    let survey = archive.survey(selection.clone(), Depth::Index).await.unwrap();
    plan(Request { target, ..request(selection) }, survey)
}

fn index_of(
    archive: &Archive,
) -> impl Fn(&PlannedSegment) -> Result<Option<SegmentSummary>, EngineError> {
    |wanted| Ok(archive.summaries.iter().find(|summary| summary.key == wanted.key).cloned())
}

async fn counted(
    archive: &Archive,
    plan: &Plan,
    topology: &Topology,
    known: impl Fn(&PlannedSegment) -> Result<Option<SegmentSummary>, EngineError>,
) -> Reached {
    let exchanges = plan.exchanges_exact.then_some(&plan.exchanges);
    let (target, priority) = (&plan.request.target, plan.request.priority);
    let destinations = Destinations::new(Router::new(topology), target, priority, exchanges);
    let steps = Mutex::new(0);
    let step = |done| *steps.lock().unwrap() = done;
    let reached = count(&archive.store, plan, known, destinations, step).await.unwrap();
    assert_eq!(steps.into_inner().unwrap(), plan.segments.len() as u64);
    reached
}

/// Routes every selected event by itself, as it is published.
fn naive(
    archive: &Archive,
    selection: &SelectionSpec,
    target: &Target,
    topology: &Topology,
) -> Reached {
    let router = Router::new(topology);
    let mut reached = Reached::default();
    for event in archive.selected(selection).0.into_values().flatten() {
        let message = mark(&event, &ShortStr::default(), Priority::Neutralise);
        let (exchange, key) = match target {
            Target::Exchange { exchange, routing_key } => (
                exchange.clone(),
                routing_key.clone().map_or(message.routing_key.as_bytes().to_vec(), Into::into),
            ),
            _ => {
                let exchange = message.exchange.to_str_lossy().into_owned();
                (exchange, message.routing_key.as_bytes().to_vec())
            }
        };
        let routes = router.route(&exchange, &key, &message.properties.headers.unwrap());
        reached.events += 1;
        if *target == Target::Original && event.message.exchange.as_str().is_none() {
            reached.undecided.insert(exchange.clone());
        }
        reached.unrouted += u64::from(routes.queues.is_empty());
        reached.undecided.extend(routes.undecided.iter().map(|name| (*name).to_owned()));
        for (name, reach) in routes.queues {
            let queue = reached.queues.entry(name.to_owned()).or_default();
            queue.events += 1;
            queue.certain += u64::from(reach == Reach::Certain);
        }
    }
    reached
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_selected_event_is_counted_where_it_comes(
        (streams, segment_events) in any_streams(3, 30),
        selections in prop::collection::vec(any_selection(), 3),
        target in select(vec![
            Target::Original,
            to("shop", None),
            to("shop", Some("a.paid")),
            to("tenants", None),
            to("plugin", None),
            to("", Some("eu")),
            to("", None),
        ]),
    ) {
        block_on(async {
            let archive = Archive::of(streams, segment_events).await;
            let topology = topology();
            for selection in selections.into_iter().chain([everything()]) {
                let plan = planned(&archive, selection.clone(), target.clone()).await;
                let expected = naive(&archive, &selection, &target, &topology);
                let by_index = counted(&archive, &plan, &topology, index_of(&archive)).await;
                assert_eq!(by_index, expected, "{selection:?}");
                let by_reading = counted(&archive, &plan, &topology, |_| Ok(None)).await;
                assert_eq!(by_reading, expected, "{selection:?}");
            }
        });
    }
}

#[test]
fn footers_are_enough_where_they_tell_all() {
    block_on(async {
        let events: Vec<Event> = (0..20).map(|n| event(n, at(n))).collect();
        let mut archive = Archive::of(vec![events], 5).await;
        let plan = planned(&archive, everything(), Target::Original).await;
        // Nothing can be read from there.
        archive.store = Arc::new(dacapo_archive::store::memory::MemoryStore::new());
        let mut flat = topology();
        flat.bindings.truncate(2);
        flat.bindings[0].routing_key = "order.*".to_owned();
        let reached = counted(&archive, &plan, &flat, index_of(&archive)).await;
        assert_eq!((reached.events, reached.unrouted), (20, 6));
        assert_eq!(reached.queues["orders"].events, 14);
    });
}

#[test]
fn many_routing_keys_take_no_more_memory_than_is_allowed() {
    let topology = topology();
    let target = to("shop", None);
    let mut destinations =
        Destinations::new(Router::new(&topology), &target, Priority::Neutralise, None);
    let events = 2 * PENDING_MAX as u64 + 7;
    for n in 0..events {
        let key = ShortStr::try_from(format!("orders.{n}")).unwrap();
        destinations.add_alike(ShortStr::default(), key, 1);
        assert!(destinations.pending.len() < PENDING_MAX);
    }
    let reached = destinations.finish();
    assert_eq!((reached.events, reached.queues["orders"].events), (events, events));
}

fn reached(queues: &[(&str, u64)]) -> Reached {
    let queue = |events| ReachedQueue { events, certain: events, ..ReachedQueue::default() };
    Reached {
        queues: queues.iter().map(|(name, events)| ((*name).to_owned(), queue(*events))).collect(),
        events: 9,
        ..Reached::default()
    }
}

#[test]
fn an_approval_is_of_one_plan_and_what_it_reaches() {
    let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
    let known = reached(&[("a", 9), ("b", 3)]);
    assert_eq!(known.hash(&one), known.hash(&one));
    assert_ne!(known.hash(&one), known.hash(&other));
    for changed in [
        reached(&[("a", 9)]),
        reached(&[("a", 9), ("b", 4)]),
        reached(&[("a", 9), ("c", 3)]),
        Reached { unrouted: 1, ..known.clone() },
        Reached { events: 10, ..known.clone() },
    ] {
        assert_ne!(changed.hash(&one), known.hash(&one), "{changed:?}");
    }
    let mut consumed = known.clone();
    consumed.consumed(Ok(vec![Consumer { queue: "a".to_owned(), ..Consumer::default() }]));
    assert_eq!(consumed.hash(&one), known.hash(&one));
}

#[track_caller]
fn check_approval(asked_for: &[&str], queues: &[(&str, u64)], expected: bool) {
    let reached = reached(queues);
    let blast = BlastRadius {
        asked_for: asked_for.iter().map(|name| (*name).to_owned()).collect(),
        reached: Ok(reached.clone()),
        approval: None,
    };
    assert_eq!(blast.needs_approval(&reached), expected, "{asked_for:?} {queues:?}");
}

#[test]
fn more_than_one_queue_or_another_than_asked_for_needs_an_approval() {
    check_approval(&[], &[], false);
    check_approval(&[], &[("a", 1)], false);
    check_approval(&[], &[("a", 1), ("b", 1)], true);
    check_approval(&["a"], &[("a", 1)], false);
    check_approval(&["a"], &[("b", 1)], true);
    check_approval(&["a", "b"], &[("a", 1), ("b", 1)], true);
}

#[test]
fn what_was_approved_stands_while_no_other_queue_and_no_more_events_are_reached() {
    let blast = |asked_for: &[&str], reached| BlastRadius {
        asked_for: asked_for.iter().map(|name| (*name).to_owned()).collect(),
        reached,
        approval: None,
    };
    let before = blast(&[], Ok(reached(&[("a", 2), ("b", 2)])));
    assert!(blast(&[], Ok(reached(&[("a", 2), ("b", 1)]))).is_within(&before));
    assert!(blast(&[], Ok(reached(&[("b", 2)]))).is_within(&before));
    assert!(!blast(&[], Ok(reached(&[("a", 2), ("c", 2)]))).is_within(&before));
    assert!(!blast(&[], Ok(reached(&[("a", 3), ("b", 2)]))).is_within(&before), "more events");
    assert!(!blast(&["a"], Ok(reached(&[("a", 2)]))).is_within(&before));
    assert!(!blast(&[], Err("no answer".to_owned())).is_within(&before));
    assert!(!before.is_within(&blast(&[], Err("no answer".to_owned()))));
}

#[test]
fn consumers_are_counted_and_the_first_are_told() {
    let consumer = |queue: &str, n: usize| Consumer {
        queue: queue.to_owned(),
        tag: format!("c-{n:02}"),
        connection: None,
    };
    let mut known = reached(&[("a", 1), ("b", 1)]);
    let many = (0..12).rev().map(|n| consumer("a", n)).chain([consumer("elsewhere", 1)]);
    known.consumed(Ok(many.collect()));
    let a = &known.queues["a"];
    assert_eq!((a.consumers, a.consumed_by.len()), (Some(12), CONSUMERS_TOLD_MAX));
    assert_eq!(a.consumed_by[0].tag, "c-00");
    assert_eq!(known.queues["b"].consumers, Some(0));
    let mut unknown = reached(&[("a", 1)]);
    unknown.consumed(Err("no answer".to_owned()));
    assert_eq!(unknown.queues["a"].consumers, None);
    assert_eq!(unknown.consumers_unknown.as_deref(), Some("no answer"));
}
