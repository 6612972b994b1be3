//! Pruning and counting against the only truth there is: asking every event.

use dacapo_event::{Event, Message, Sequence, ShortStr, StreamName};
use proptest::prelude::*;

use super::*;
use crate::{Binding, Place, SelectionSpec, SequenceRange};

fn shop() -> StreamName {
    "shop".parse().unwrap()
}

/// Everything of an event that a selection without expression asks about, in small alphabets so
/// that selections hit and miss.
#[derive(Debug, Clone)]
struct Facts {
    time: i64,
    kind: &'static str,
    exchange: &'static str,
    routing_key: &'static [u8],
    key: Option<&'static str>,
    id: Option<&'static str>,
}

const ROUTING_KEYS: [&[u8]; 7] =
    [b"", b"a", b"a.b", b"a.b.c", b"b.a", b"a.\xff", "a.\u{FFFD}".as_bytes()];
const EXCHANGES: [&str; 3] = ["", "x", "y"];
const KINDS: [&str; 4] = ["", "k", "kk", "l"];
const KEYS: [&str; 4] = ["", "1", "11", "2"];
const IDS: [&str; 5] = ["i", "j", "shop:3", "shop:7", "other:3"];
const PATTERNS: [&str; 8] = ["", "#", "a", "a.*", "a.#", "*.a", "a.\u{FFFD}", "zz.#"];

fn facts() -> impl Strategy<Value = Facts> {
    let one_of = |values: &'static [&'static str]| prop::sample::select(values);
    (
        0..20_i64,
        one_of(&KINDS),
        one_of(&EXCHANGES),
        prop::sample::select(&ROUTING_KEYS[..]),
        prop::option::of(one_of(&KEYS)),
        prop::option::weighted(0.3, one_of(&IDS)),
    )
        .prop_map(|(time, kind, exchange, routing_key, key, id)| Facts {
            time,
            kind,
            exchange,
            routing_key,
            key,
            id,
        })
}

fn event(facts: &Facts, sequence: Sequence) -> Event {
    Event {
        sequence,
        archived_at: Timestamp::EPOCH,
        time: Timestamp::from_micros(facts.time),
        id: facts.id.map_or_else(|| Event::made_up_id(&shop(), sequence), str::to_owned),
        kind: facts.kind.to_owned(),
        key: facts.key.map(str::to_owned),
        message: Message {
            exchange: ShortStr::from_static(facts.exchange),
            routing_key: ShortStr::new(facts.routing_key).unwrap(),
            ..Message::default()
        },
    }
}

fn spec() -> impl Strategy<Value = SelectionSpec> {
    let some_of = |values: &'static [&'static str]| {
        prop_oneof![
            2 => Just(Vec::new()),
            1 => prop::collection::vec(prop::sample::select(values).prop_map(str::to_owned), 1..3),
        ]
    };
    (
        prop::option::of(-2..22_i64),
        prop::option::of(1..24_i64),
        some_of(&KINDS),
        some_of(&PATTERNS),
        some_of(&EXCHANGES),
        some_of(&KEYS),
        some_of(&IDS),
        prop_oneof![
            3 => Just(Vec::new()),
            1 => prop::collection::vec((prop::bool::weighted(0.8), 1..12_u64), 1..6),
        ],
        prop::option::weighted(0.1, Just("sequence % 2 == 0".to_owned())),
        (
            prop_oneof![
                3 => Just(Vec::new()),
                1 => prop::collection::vec((prop::bool::weighted(0.8), 0..14_u64, 0..18_u64), 1..4),
            ],
            prop_oneof![
                3 => Just(Vec::new()),
                1 => prop::collection::vec(
                    (prop::sample::select(&EXCHANGES[..]), prop::sample::select(&PATTERNS[..])),
                    1..5,
                ),
            ],
        ),
    )
        .prop_map(
            |(from, length, types, routing_keys, exchanges, keys, ids, places, where_, runs)| {
                let (ranges, bindings) = runs;
                let range = |(here, after, until): (bool, u64, u64)| SequenceRange {
                    stream: if here { shop() } else { "other".parse().unwrap() },
                    after,
                    until,
                };
                let binding = |(exchange, pattern): (&str, &str)| Binding {
                    exchange: exchange.to_owned(),
                    pattern: pattern.to_owned(),
                };
                let place = |(here, sequence)| match here {
                    true => (shop(), sequence),
                    false => ("other".parse().unwrap(), sequence),
                };
                let to = match (from, length) {
                    (Some(from), Some(length)) => Some(from + length),
                    (None, length) => length,
                    (Some(_), None) => None,
                };
                SelectionSpec {
                    from: from.map(Timestamp::from_micros),
                    to: to.map(Timestamp::from_micros),
                    types,
                    routing_keys,
                    exchanges,
                    keys,
                    ids,
                    places: places.into_iter().map(place).collect(),
                    ranges: ranges.into_iter().map(range).collect(),
                    bindings: bindings.into_iter().map(binding).collect(),
                    where_,
                    ..SelectionSpec::default()
                }
            },
        )
}

/// How much a run of events tells of a column.
#[derive(Debug, Clone, Copy)]
enum Detail {
    Nothing,
    Range,
    /// Shortened to one byte, the greatest without being made greater.
    ShortRange,
    Counts,
    /// Counts of the first value only; the rest together.
    FewCounts,
    Filter,
}

fn detail() -> impl Strategy<Value = Detail> {
    use Detail as D;
    prop::sample::select(vec![
        D::Nothing,
        D::Range,
        D::ShortRange,
        D::Counts,
        D::FewCounts,
        D::Filter,
    ])
}

/// Owns what [`TextFacts`] borrow.
struct Column {
    detail: Detail,
    values: Vec<String>,
    min: String,
    max: String,
    counts: BTreeMap<String, u64>,
    other: u64,
}

impl Column {
    fn new(detail: Detail, values: Vec<String>) -> Self {
        let mut counts = BTreeMap::new();
        let mut other = 0;
        for value in &values {
            let few = matches!(detail, Detail::FewCounts);
            if few && !counts.is_empty() && !counts.contains_key(value) {
                other += 1;
            } else {
                *counts.entry(value.clone()).or_insert(0) += 1;
            }
        }
        let cut = |text: Option<&String>| -> String {
            let kept = if matches!(detail, Detail::ShortRange) { 1 } else { usize::MAX };
            text.map(|text| text.chars().take(kept).collect()).unwrap_or_default()
        };
        let (min, max) = (cut(values.iter().min()), cut(values.iter().max()));
        Column { detail, values, min, max, counts, other }
    }

    fn facts<'a>(&'a self, filter: &'a dyn Fn(&str) -> bool) -> TextFacts<'a> {
        match self.detail {
            Detail::Nothing => TextFacts::default(),
            _ if self.values.is_empty() => {
                TextFacts { bounds: TextBounds::Absent, may_contain: None }
            }
            Detail::Range | Detail::ShortRange => {
                TextFacts::range(self.min.as_bytes(), self.max.as_bytes())
            }
            Detail::Counts | Detail::FewCounts => TextFacts::counts(&self.counts, self.other),
            Detail::Filter => TextFacts::default().with_filter(filter),
        }
    }
}

fn by_type<'a>(events: impl Iterator<Item = &'a Event>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    events.for_each(|event| *counts.entry(event.kind.clone()).or_insert(0) += 1);
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6_000))]
    #[test]
    fn nothing_is_claimed_that_reading_would_not_find(
        facts in prop::collection::vec(facts(), 1..12),
        first in 1..6_u64,
        spec in spec(),
        details in [detail(), detail(), detail(), detail(), detail()],
        know_time in any::<bool>(),
        know_place in any::<bool>(),
    ) {
        let stream = shop();
        let events: Vec<Event> =
            (first..).zip(&facts).map(|(sequence, facts)| event(facts, sequence)).collect();
        let column = |at: usize, value: &dyn Fn(&Event) -> Option<String>| {
            Column::new(details[at], events.iter().filter_map(value).collect())
        };
        let kind = column(0, &|event| Some(event.kind.clone()));
        let exchange = column(1, &|event| Some(event.message.exchange.to_string()));
        let routing_key = column(2, &|event| Some(event.message.routing_key.to_string()));
        let key = column(3, &|event| event.key.clone());
        let id = column(4, &|event| Some(event.id.clone()));
        let filter = |column: &Column| {
            let values = column.values.clone();
            move |value: &str| values.iter().any(|other| other == value)
        };
        let filters = (filter(&kind), filter(&exchange), filter(&routing_key), filter(&key), filter(&id));
        let times = || events.iter().map(|event| event.time);
        let n = events.len() as u64;
        let bounds = Bounds {
            events: n,
            place: know_place.then_some(Place { stream: &stream, first, last: first + n - 1 }),
            time: know_time.then(|| (times().min().unwrap(), times().max().unwrap())),
            kind: kind.facts(&filters.0),
            exchange: exchange.facts(&filters.1),
            routing_key: routing_key.facts(&filters.2),
            key: key.facts(&filters.3),
            id: id.facts(&filters.4),
        };

        let selection = Selection::compile(spec).unwrap();
        let selected: Vec<&Event> =
            events.iter().filter(|event| selection.matches(&stream, event).unwrap()).collect();
        let found = selected.len() as u64;
        match selection.prune(&bounds) {
            Verdict::None => prop_assert_eq!(found, 0),
            Verdict::All => prop_assert_eq!(found, n),
            Verdict::Some => {}
        }
        let count = selection.count(&bounds);
        prop_assert!(found <= count.at_most, "{:?}", count);
        prop_assert!(count.events <= count.at_most, "{:?}", count);
        if count.exact {
            prop_assert_eq!(count.events, found);
        }
        if count.by_type_exact {
            prop_assert_eq!(count.by_type, by_type(selected.into_iter()));
        }
    }
}

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|(text, count)| ((*text).to_owned(), *count)).collect()
}

fn compiled(spec: SelectionSpec) -> Selection {
    Selection::compile(spec).unwrap()
}

fn of_types(types: &[&str]) -> SelectionSpec {
    SelectionSpec {
        types: types.iter().map(|kind| (*kind).to_owned()).collect(),
        ..SelectionSpec::default()
    }
}

/// A segment as the index knows it: 100 events in the first 100 microseconds.
fn segment<'a>(
    stream: &'a StreamName,
    kinds: &'a BTreeMap<String, u64>,
    routing_keys: &'a BTreeMap<String, u64>,
) -> Bounds<'a> {
    Bounds {
        place: Some(Place { stream, first: 1, last: 100 }),
        time: Some((Timestamp::from_micros(0), Timestamp::from_micros(99))),
        kind: TextFacts::counts(kinds, 0),
        routing_key: TextFacts::counts(routing_keys, 0),
        ..Bounds::unknown(100)
    }
}

#[test]
fn one_counted_flag_is_exact_and_two_are_an_estimate() {
    let (stream, kinds, keys) =
        (shop(), counts(&[("a", 60), ("b", 40)]), counts(&[("k.1", 50), ("m", 50)]));
    let bounds = segment(&stream, &kinds, &keys);
    let everything = compiled(SelectionSpec::default());
    assert_eq!(everything.prune(&bounds), Verdict::All);
    let count = everything.count(&bounds);
    assert_eq!((count.events, count.exact, count.by_type_exact), (100, true, true));
    assert_eq!(count.by_type, kinds);

    let count = compiled(of_types(&["a", "zz"])).count(&bounds);
    assert_eq!((count.events, count.exact, count.by_type_exact), (60, true, true));
    assert_eq!(count.by_type, counts(&[("a", 60)]));

    let routed = SelectionSpec { routing_keys: vec!["k.*".to_owned()], ..SelectionSpec::default() };
    let count = compiled(routed.clone()).count(&bounds);
    assert_eq!((count.events, count.exact, count.by_type_exact), (50, true, false));
    assert_eq!(count.by_type, counts(&[("a", 30), ("b", 20)]));

    let both = SelectionSpec { types: vec!["a".to_owned()], ..routed };
    let count = compiled(both).count(&bounds);
    assert_eq!((count.events, count.exact, count.at_most), (30, false, 50));
    assert_eq!(compiled(of_types(&["zz"])).prune(&bounds), Verdict::None);
}

#[test]
fn a_part_of_the_time_is_an_estimate_and_all_of_it_exact() {
    let (stream, kinds, keys) = (shop(), counts(&[("a", 100)]), counts(&[("k", 100)]));
    let bounds = segment(&stream, &kinds, &keys);
    let range = |from, to| {
        let spec = SelectionSpec {
            from: Some(Timestamp::from_micros(from)),
            to: Some(Timestamp::from_micros(to)),
            ..SelectionSpec::default()
        };
        let selection = compiled(spec);
        let count = selection.count(&bounds);
        (selection.prune(&bounds), count.events, count.exact)
    };
    assert_eq!(range(0, 100), (Verdict::All, 100, true));
    assert_eq!(range(0, 99), (Verdict::Some, 99, false));
    assert_eq!(range(50, 1_000), (Verdict::Some, 50, false));
    assert_eq!(range(100, 200), (Verdict::None, 0, true));
    assert_eq!(range(-10, 0), (Verdict::None, 0, true));
}

#[test]
fn ids_that_are_places_prune_their_own_stream_only() {
    let (stream, kinds, keys) = (shop(), counts(&[("a", 100)]), counts(&[("k", 100)]));
    let bounds = segment(&stream, &kinds, &keys);
    let ids = |ids: &[&str]| {
        compiled(SelectionSpec {
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..SelectionSpec::default()
        })
    };
    assert_eq!(ids(&["shop:101", "shop:0"]).prune(&bounds), Verdict::Some);
    assert_eq!(ids(&["shop:101"]).prune(&bounds), Verdict::None);
    let count = ids(&["shop:1", "shop:100", "shop:500"]).count(&bounds);
    assert_eq!((count.events, count.exact), (2, true));
    assert_eq!(ids(&["other:7"]).prune(&bounds), Verdict::Some);
}

#[test]
fn counts_add_up() {
    let (stream, kinds, keys) = (shop(), counts(&[("a", 60), ("b", 40)]), counts(&[("k", 100)]));
    let bounds = segment(&stream, &kinds, &keys);
    let mut sum = Count::default();
    sum += &compiled(of_types(&["a"])).count(&bounds);
    assert!(sum.exact);
    let failing = SelectionSpec { where_: Some("true".to_owned()), ..of_types(&["b"]) };
    sum += &compiled(failing).count(&bounds);
    assert_eq!((sum.events, sum.exact, sum.at_most), (100, false, 100));
    assert_eq!(sum.by_type, kinds);
}

#[test]
fn counts_that_do_not_add_up_to_the_events_are_not_believed() {
    let kinds = counts(&[("a", 60)]);
    let bounds = Bounds { kind: TextFacts::counts(&kinds, 0), ..Bounds::unknown(50) };
    let count = compiled(of_types(&["a"])).count(&bounds);
    assert_eq!((count.exact, count.at_most), (false, 50));
}
