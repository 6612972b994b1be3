//! Small archives in memory, the selections to try on them, and the plainest reading of what is
//! selected in which order.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dacapo_archive::chain::ChainEntry;
use dacapo_archive::compact::{self, Mode, Options};
use dacapo_archive::compaction;
use dacapo_archive::store::memory::MemoryStore;
use dacapo_archive::store::{ObjectKey, Store};
use dacapo_archive::{Segment, SegmentBuilder, SegmentSummary, StreamWriter};
use dacapo_event::marking::Priority;
use dacapo_event::{
    Event, FieldTable, FieldValue, MemoryBudget, Message, Properties, Sequence, ShortStr,
    StreamName, Timestamp,
};
use dacapo_filter::{Binding, Selection, SelectionSpec, SequenceRange, WhereErrors};
use dacapo_republish::Pace;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::EngineError;
use crate::plan::{Plan, plan};
use crate::request::{Request, Target};
use crate::survey::{Depth, Survey, TargetFacts, survey};

pub(crate) fn name(text: &str) -> StreamName {
    text.parse().unwrap()
}

/// A moment some seconds after the beginning of the tests' time.
pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + seconds)
}

pub(crate) fn clock() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

fn short(text: &str) -> ShortStr {
    ShortStr::try_from(text).unwrap()
}

/// Runs a future on a runtime of its own with tokio's clock paused.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(future)
}

/// An event at a time, with attributes that follow from `n`.
pub(crate) fn event(n: u64, time: Timestamp) -> Event {
    let kind = ["order.placed", "order.paid", "mail.sent"][(n % 3) as usize];
    let headers: FieldTable =
        [(short("tenant"), FieldValue::text(format!("t{}", n % 2)))].into_iter().collect();
    Event {
        sequence: 0,
        archived_at: clock(),
        time,
        id: format!("e-{n}"),
        kind: kind.to_owned(),
        key: Some(format!("k{}", n % 5)),
        message: Message {
            exchange: short("shop"),
            routing_key: short(kind),
            properties: Properties { headers: Some(headers), ..Properties::default() },
            body: format!(r#"{{"n":{n}}}"#).into(),
        },
    }
}

/// An archive in memory, and what is in it.
pub(crate) struct Archive {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) events: BTreeMap<StreamName, Vec<Event>>,
    pub(crate) summaries: Vec<SegmentSummary>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        Archive { store, events: BTreeMap::new(), summaries: Vec::new() }
    }

    /// Returns an archive of streams `s0`, `s1`, …, each with segments of at most `segment_events`.
    pub(crate) async fn of(streams: Vec<Vec<Event>>, segment_events: usize) -> Self {
        let mut archive = Archive::new();
        for (at, events) in streams.into_iter().enumerate() {
            for segment in events.chunks(segment_events) {
                archive.append(&format!("s{at}"), segment.to_vec()).await;
            }
        }
        archive
    }

    /// Appends a segment to a stream; the events get their sequences.
    pub(crate) async fn append(&mut self, stream: &str, events: Vec<Event>) -> ObjectKey {
        let stream = name(stream);
        let mut writer =
            StreamWriter::open(Arc::clone(&self.store), stream.clone(), clock).await.unwrap();
        let mut builder = SegmentBuilder::new(stream.clone(), writer.next());
        let known = self.events.entry(stream).or_default();
        for event in events {
            let event = Event { sequence: builder.next(), ..event };
            known.push(event.clone());
            builder.push(event).unwrap();
        }
        let sealed = builder.seal(writer.tip(), clock(), None).unwrap();
        writer.append(&sealed).await.unwrap();
        let key = sealed.summary.key.clone();
        self.summaries.push(sealed.summary);
        self.summaries.sort_by_key(|summary| (summary.stream.clone(), summary.first));
        key
    }

    /// Merges small segments and drops exact repeats; `later` deletes what was merged, too. What
    /// the archive holds afterwards, `events` and `summaries` say.
    pub(crate) async fn compact(&mut self, output_bytes: u64, later: bool) -> compact::Report {
        let options = Options {
            streams: Vec::new(),
            older_than: Duration::ZERO,
            grace: if later { Duration::ZERO } else { compact::GRACE },
            output_bytes,
            memory: MemoryBudget::DEFAULT,
            mode: Mode::Apply,
            // The day of all events is over.
            clock: || clock().plus(Duration::from_secs(86_400)),
        };
        let report = compact::compact(Arc::clone(&self.store), &options, |_| {}).await.unwrap();
        assert!(report.problems.is_empty(), "{report:?}");
        for (stream, events) in &mut self.events {
            for first in compaction::entries_of(&*self.store, stream).await.unwrap() {
                let entry = compaction::entry(&*self.store, stream, first).await.unwrap().unwrap();
                let ChainEntry { segment, size, first, last, .. } = entry.output;
                let opened = Segment::open(Arc::clone(&self.store), &segment, Some(size));
                let opened = opened.await.unwrap();
                if let Some(made) = opened.compaction() {
                    events.retain(|event| !made.has_dropped(event.sequence));
                }
                self.summaries.retain(|summary| {
                    summary.stream != *stream || summary.last < first || summary.first > last
                });
                self.summaries.push(opened.summary().clone());
            }
        }
        self.summaries.sort_by_key(|summary| (summary.stream.clone(), summary.first));
        report
    }

    /// Returns the plan of a selection, by a queue `q`.
    pub(crate) async fn plan(&self, selection: SelectionSpec, depth: Depth) -> Plan {
        let request = request(selection.clone());
        let survey = self.survey(selection, depth).await.unwrap();
        plan(request, survey)
    }

    pub(crate) async fn survey(
        &self,
        selection: SelectionSpec,
        depth: Depth,
    ) -> Result<Survey, EngineError> {
        let selection = Arc::new(Selection::compile(selection).unwrap());
        let store = Arc::clone(&self.store);
        let summaries = self.summaries.iter().cloned().map(Ok);
        survey(store, summaries, &selection, depth, TargetFacts::default(), clock()).await
    }

    /// Returns what a selection finds by looking at every event, by stream, and how many events
    /// its expression failed on.
    pub(crate) fn selected(&self, spec: &SelectionSpec) -> (BTreeMap<StreamName, Vec<Event>>, u64) {
        let selection = Selection::compile(spec.clone()).unwrap();
        let mut failed = 0;
        let mut by_stream = BTreeMap::new();
        for (stream, events) in &self.events {
            let selected: Vec<Event> = events
                .iter()
                .filter(|event| {
                    let matches = selection.matches(stream, event);
                    failed += u64::from(matches.is_err());
                    matches.unwrap_or(false)
                })
                .cloned()
                .collect();
            by_stream.insert(stream.clone(), selected);
        }
        (by_stream, failed)
    }

    /// Returns what a selection finds in the order of a replay.
    pub(crate) fn in_order(&self, spec: &SelectionSpec) -> Vec<(StreamName, Sequence)> {
        let mut all = Vec::new();
        for (stream, events) in self.selected(spec).0 {
            let mut reached = Timestamp::MIN;
            for event in events {
                reached = reached.max(event.time);
                all.push((reached, stream.clone(), event.sequence));
            }
        }
        all.sort();
        all.into_iter().map(|(_, stream, sequence)| (stream, sequence)).collect()
    }
}

pub(crate) fn request(selection: SelectionSpec) -> Request {
    Request {
        selection,
        target: Target::Queue { queue: "q".to_owned() },
        pace: Pace::default(),
        window: NonZeroU32::new(1_000).unwrap(),
        priority: Priority::Neutralise,
    }
}

/// Everything; what an expression fails on is left out.
pub(crate) fn everything() -> SelectionSpec {
    SelectionSpec { where_errors: WhereErrors::Skip, ..SelectionSpec::default() }
}

prop_compose! {
    /// An event with few different values, so that selections find some of them; times go back and
    /// forth, ids repeat, some texts are not UTF-8, some bodies not JSON.
    pub(crate) fn any_event()(
        time in 0_u64..40,
        kind in 0_usize..4,
        key in proptest::option::of(0_u8..4),
        id in 0_u8..30,
        place in 0_usize..4,
        tenant in proptest::option::of(0_u8..3),
        body in 0_usize..5,
        n in 0_u8..9,
    ) -> Event {
        let raw = |bytes: &'static [u8]| ShortStr::new(bytes).unwrap();
        let (exchange, routing_key) = [
            (raw(b""), raw(b"orders.placed")),
            (raw(b"shop"), raw(b"orders.paid")),
            (raw(b"shop"), raw(b"orders.\xff.eu")),
            (raw(b"m\xfe"), raw(b"")),
        ][place].clone();
        let header = |tenant| [(short("tenant"), FieldValue::text(format!("t{tenant}")))];
        let headers = tenant.map(|tenant| header(tenant).into_iter().collect::<FieldTable>());
        Event {
            sequence: 0,
            archived_at: clock(),
            time: at(time),
            id: if id < 3 { format!("s0:{id}") } else { format!("e-{id}") },
            kind: ["order.placed", "order.paid", "mail", ""][kind].to_owned(),
            key: key.map(|key| format!("k{key}")),
            message: Message {
                exchange,
                routing_key,
                properties: Properties { headers, ..Properties::default() },
                body: match body {
                    0 => Bytes::new(),
                    1 => Bytes::from_static(b"\xff no JSON"),
                    2 => Bytes::from_static(b"{}"),
                    _ => format!(r#"{{"n":{n}}}"#).into(),
                },
            },
        }
    }
}

/// Up to `streams` streams of up to `events` events, and the most events in a segment.
pub(crate) fn any_streams(
    streams: usize,
    events: usize,
) -> impl Strategy<Value = (Vec<Vec<Event>>, usize)> {
    (vec(vec(any_event(), 1..=events), 1..=streams), 1_usize..12)
}

/// Some of the values, or none, which asks nothing.
fn some(values: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let asked = proptest::sample::subsequence(values, 1..=values.len().min(3));
    let asked = asked.prop_map(|values| values.into_iter().map(str::to_owned).collect());
    prop_oneof![3 => Just(Vec::new()), 1 => asked]
}

/// Expressions over attributes, bodies, or both; most fail on some events.
const EXPRESSIONS: [&str; 8] = [
    "type == 'order.placed' || key == 'k1'",
    "headers.tenant == 't1'",
    "sequence > 4 && routing_key.startsWith('orders')",
    "time > timestamp('2023-11-14T22:13:30Z')",
    "body.n > 3",
    "has(body.n) && body.n > 3",
    "headers.tenant == 't0' && body.n < 7",
    "body.n > 3 || headers.tenant == 't2'",
];

fn any_ranges() -> impl Strategy<Value = Vec<SequenceRange>> {
    let stream = proptest::sample::select(&["s0", "s1", "s9"][..]);
    let range = (stream, 0_u64..30, 0_u64..60).prop_map(|(stream, after, until)| SequenceRange {
        stream: name(stream),
        after,
        until,
    });
    prop_oneof![3 => Just(Vec::new()), 1 => vec(range, 1..4)]
}

fn any_bindings() -> impl Strategy<Value = Vec<Binding>> {
    let exchange = proptest::sample::select(&["", "shop", "other"][..]);
    let pattern = proptest::sample::select(&["#", "orders.*", "orders.placed", "#.eu", ""][..]);
    let binding = (exchange, pattern).prop_map(|(exchange, pattern)| Binding {
        exchange: exchange.to_owned(),
        pattern: pattern.to_owned(),
    });
    prop_oneof![3 => Just(Vec::new()), 1 => vec(binding, 1..4)]
}

prop_compose! {
    /// A selection that any flag may be part of; what its expression fails on is left out.
    pub(crate) fn any_selection()(
        range in proptest::option::of((0_u64..40, 1_u64..40)),
        types in some(&["order.placed", "order.paid", "mail", "", "other"]),
        routing_keys in some(&["orders.*", "orders.placed", "orders.*.eu", "#.eu", "", "mail.#"]),
        exchanges in some(&["", "shop", "other"]),
        keys in some(&["k0", "k1", "k2", "k9"]),
        ids in some(&["e-3", "e-4", "e-5", "e-6", "e-7", "s0:1", "s0:2", "s1:3", "s9:1"]),
        tenants in some(&["t0", "t1", "t9"]),
        expression in proptest::option::weighted(0.4, 0..EXPRESSIONS.len()),
        ranges in any_ranges(),
        bindings in any_bindings(),
    ) -> SelectionSpec {
        SelectionSpec {
            from: range.map(|(from, _)| at(from)),
            to: range.map(|(from, seconds)| at(from + seconds)),
            types,
            routing_keys,
            exchanges,
            keys,
            ids,
            ranges,
            bindings,
            headers: tenants.into_iter().map(|value| ("tenant".to_owned(), value)).collect(),
            where_: expression.map(|which| EXPRESSIONS[which].to_owned()),
            ..everything()
        }
    }
}
