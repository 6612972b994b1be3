//! The router agrees with the plainest reading of the broker's rules.

use bytes::Bytes;
use dacapo_event::ShortStr;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::broker::{Exchange, Setting};

const EXCHANGES: [&str; 5] = ["a", "b", "c", "d", "e"];
const QUEUES: [&str; 4] = ["q", "r", "x.y", "t"];
const KEYS: [&str; 6] = ["", "x", "x.y", "y.x", "x.y.x", "q"];
const PATTERNS: [&str; 8] = ["", "x", "x.y", "x.*", "#", "#.x", "*.y.#", "x.#"];
const NAMES: [&str; 3] = ["h", "i", "x-j"];

fn any_value() -> impl Strategy<Value = FieldValue> {
    prop_oneof![
        select(vec!["1", "eu", "undefined"]).prop_map(FieldValue::text),
        any::<bool>().prop_map(FieldValue::Boolean),
        (0..2_i32).prop_map(FieldValue::LongInt),
        Just(FieldValue::ByteArray(Bytes::from_static(b"eu"))),
        Just(FieldValue::Void),
    ]
}

fn any_asked() -> impl Strategy<Value = HeaderAsked> {
    prop_oneof![
        Just(HeaderAsked::Present),
        Just(HeaderAsked::PresentOrUndefined),
        select(vec!["1", "eu"]).prop_map(|text| HeaderAsked::Text(text.to_owned())),
        any::<bool>().prop_map(HeaderAsked::Boolean),
        (0..2_i64).prop_map(HeaderAsked::Integer),
        Just(HeaderAsked::Other),
    ]
}

fn any_binding() -> impl Strategy<Value = Binding> {
    let to_queue = select(&QUEUES[..]).prop_map(|name| Destination::Queue(name.to_owned()));
    let to_exchange =
        select(&EXCHANGES[..]).prop_map(|name| Destination::Exchange(name.to_owned()));
    let fields =
        prop::collection::btree_map(select(&NAMES[..]).prop_map(str::to_owned), any_asked(), 0..3);
    let headers = (any::<bool>(), fields).prop_map(|(all, fields)| HeadersAsked {
        matching: if all { Matching::All } else { Matching::Any },
        fields,
    });
    let destination = prop_oneof![to_queue, to_exchange];
    (select(&EXCHANGES[..]), destination, select(&PATTERNS[..]), headers).prop_map(
        |(source, destination, key, headers)| Binding {
            source: source.to_owned(),
            destination,
            routing_key: key.to_owned(),
            headers,
        },
    )
}

fn any_topology() -> impl Strategy<Value = Topology> {
    let kinds = select(vec![
        ExchangeKind::Direct,
        ExchangeKind::Fanout,
        ExchangeKind::Topic,
        ExchangeKind::Topic,
        ExchangeKind::Headers,
        ExchangeKind::Other,
    ]);
    // One of them is not there, and one is the default exchange.
    let alternates = select(vec!["a", "b", "e", "gone", ""]);
    let alternate = prop::option::of(
        alternates.prop_map(|name| Setting { value: name.to_owned(), by: "a test".to_owned() }),
    );
    let exchanges = prop::collection::vec((kinds, alternate), EXCHANGES.len());
    let bindings = prop::collection::vec(any_binding(), 0..9);
    (exchanges, bindings).prop_map(|(exchanges, bindings)| Topology {
        exchanges: EXCHANGES
            .iter()
            .zip(exchanges)
            .map(|(name, (kind, alternate))| ((*name).to_owned(), Exchange { kind, alternate }))
            .collect(),
        queues: QUEUES.map(|name| (name.to_owned(), Queue::default())).into(),
        bindings,
    })
}

fn any_headers() -> impl Strategy<Value = FieldTable> {
    prop::collection::btree_map(select(&NAMES[..]), any_value(), 0..3).prop_map(|fields| {
        fields.into_iter().map(|(name, value)| (ShortStr::try_from(name).unwrap(), value)).collect()
    })
}

/// One way in which what cannot be told may be: each doubtful thing is, or is not, by its number.
type World = u32;

fn topic_takes(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern.split_first(), key.split_first()) {
        (None, None) => true,
        (Some((&"#", others)), _) => (0..=key.len()).any(|n| topic_takes(others, &key[n..])),
        (Some((&"*", others)), Some((_, rest))) => topic_takes(others, rest),
        (Some((word, others)), Some((first, rest))) => word == first && topic_takes(others, rest),
        _ => false,
    }
}

fn words(text: &str) -> Vec<&str> {
    if text.is_empty() { Vec::new() } else { text.split('.').collect() }
}

/// Whether a header is as asked for, in a world in which doubtful ones all are or none is.
fn header_is(asked: &HeaderAsked, value: Option<&FieldValue>, doubtful: bool) -> bool {
    match (asked, value) {
        (_, None) => false,
        (HeaderAsked::Present, Some(_)) => true,
        (HeaderAsked::Text(asked), Some(FieldValue::LongString(text))) => asked.as_bytes() == text,
        (HeaderAsked::Text(asked), Some(FieldValue::ByteArray(text))) => {
            asked.as_bytes() == text && doubtful
        }
        (HeaderAsked::Boolean(asked), Some(FieldValue::Boolean(value))) => asked == value,
        (HeaderAsked::Integer(asked), Some(FieldValue::LongInt(value))) => {
            *asked == i64::from(*value) && doubtful
        }
        (HeaderAsked::PresentOrUndefined, Some(value)) => {
            value.as_text() == Some("undefined") || doubtful
        }
        (HeaderAsked::Other, Some(_)) => doubtful,
        _ => false,
    }
}

/// The rules word by word: a message is at an exchange, goes over every binding that takes it, and if
/// there is none, over the alternate exchange; until nothing new is reached.
fn naive(
    topology: &Topology,
    start: &str,
    key: &str,
    headers: &FieldTable,
    world: World,
) -> BTreeSet<String> {
    let is = |number: usize| world & (1 << number) != 0;
    let takes = |number: usize, binding: &Binding| match topology.exchanges[&binding.source].kind {
        ExchangeKind::Direct => binding.routing_key == key,
        ExchangeKind::Fanout => true,
        ExchangeKind::Topic => topic_takes(&words(&binding.routing_key), &words(key)),
        ExchangeKind::Other => is(number),
        ExchangeKind::Headers => {
            let asked = &binding.headers;
            let mut fields = asked
                .fields
                .iter()
                .map(|(name, asked)| header_is(asked, headers.get(name), is(number)));
            match asked.matching {
                Matching::All => fields.all(|field| field),
                Matching::Any => fields.any(|field| field),
            }
        }
    };
    let mut queues = BTreeSet::new();
    let mut exchanges: BTreeSet<String> = [start.to_owned()].into();
    loop {
        let before = (queues.len(), exchanges.len());
        for name in exchanges.clone() {
            let default_routes = name == start || is(topology.bindings.len());
            if name.is_empty() && topology.queues.contains_key(key) && default_routes {
                queues.insert(key.to_owned());
            }
            let Some(exchange) = topology.exchanges.get(&name) else { continue };
            let numbered = topology.bindings.iter().enumerate();
            let taking: Vec<&Binding> = numbered
                .filter(|(number, binding)| binding.source == name && takes(*number, binding))
                .map(|(_, binding)| binding)
                .collect();
            for binding in &taking {
                match &binding.destination {
                    Destination::Queue(queue) => drop(queues.insert(queue.clone())),
                    Destination::Exchange(exchange) => drop(exchanges.insert(exchange.clone())),
                }
            }
            if let (true, Some(alternate)) = (taking.is_empty(), &exchange.alternate) {
                exchanges.insert(alternate.value.clone());
            }
        }
        if before == (queues.len(), exchanges.len()) {
            return queues;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_queue_is_left_out_and_a_certain_one_is_reached_whatever_cannot_be_told(
        topology in any_topology(),
        start in select(vec!["a", "b", "c", "d", "gone", ""]),
        key in select(&KEYS[..]),
        headers in any_headers(),
    ) {
        let router = Router::new(&topology);
        let routes = router.route(start, key.as_bytes(), &headers);
        let worlds: Vec<BTreeSet<String>> = (0..1 << (topology.bindings.len() + 1))
            .map(|world| naive(&topology, start, key, &headers, world))
            .collect();
        for queue in QUEUES {
            let reach = routes.queues.get(queue).copied();
            let everywhere = worlds.iter().all(|world| world.contains(queue));
            let anywhere = worlds.iter().any(|world| world.contains(queue));
            prop_assert!(!anywhere || reach.is_some(), "{queue} is left out");
            prop_assert!(reach != Some(Reach::Certain) || everywhere, "{queue} is not certain");
            if routes.undecided.is_empty() {
                prop_assert_eq!(reach.is_some(), anywhere, "{}", queue);
                prop_assert_ne!(reach, Some(Reach::Possible));
            }
        }
        // Over bindings that ask for the same headers, the others decide nothing.
        let asked = router.headers_asked(start, Some(key));
        let fewer = headers.into_iter().filter(|(name, _)| asked.contains(name.as_str().unwrap()));
        prop_assert_eq!(router.route(start, key.as_bytes(), &fewer.collect()), routes);
    }
}

#[test]
fn a_message_that_is_handed_on_to_the_default_exchange_may_reach_the_queue_of_its_key() {
    let alternate = Some(Setting { value: String::new(), by: "a test".to_owned() });
    let topology = Topology {
        exchanges: [("a".to_owned(), Exchange { kind: ExchangeKind::Direct, alternate })].into(),
        queues: [("q".to_owned(), Queue::default())].into(),
        bindings: Vec::new(),
    };
    let routes = Router::new(&topology).route("a", b"q", &FieldTable::new());
    assert_eq!(routes.queues, [("q", Reach::Possible)].into());
    assert_eq!(routes.undecided, [""].into());
}
