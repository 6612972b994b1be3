//! Each finding from facts that are made up.

use dacapo_bus::broker::{
    Binding, DeadLetter, Destination, Exchange, ExchangeKind, HeadersAsked, Overflow, Queue,
    Setting,
};

use super::*;

const QUEUE: &str = "orders.v1";
const ARCHIVE: &str = "dacapo.archive";

/// A broker with nothing against a replay: `shop` (topic) → the queue and an archiver's; `replays`
/// (fanout) → the queue alone.
fn topology(queue: Queue) -> Topology {
    let archivers = Queue {
        overflow: Overflow::Reject,
        dead_letter: dead_letter("", Some("dacapo.archive.parked")),
        is_archivers: true,
        ..Queue::default()
    };
    let exchange = |kind| Exchange { kind, alternate: None };
    Topology {
        exchanges: [
            ("shop".to_owned(), exchange(ExchangeKind::Topic)),
            ("replays".to_owned(), exchange(ExchangeKind::Fanout)),
            ("dead".to_owned(), exchange(ExchangeKind::Fanout)),
        ]
        .into(),
        queues: [(QUEUE.to_owned(), queue), (ARCHIVE.to_owned(), archivers)].into(),
        bindings: vec![
            binding("shop", "orders.#", QUEUE),
            binding("shop", "#", ARCHIVE),
            binding("replays", "", QUEUE),
        ],
    }
}

fn binding(source: &str, routing_key: &str, queue: &str) -> Binding {
    Binding {
        source: source.to_owned(),
        destination: Destination::Queue(queue.to_owned()),
        routing_key: routing_key.to_owned(),
        headers: HeadersAsked::default(),
    }
}

fn dead_letter(exchange: &str, routing_key: Option<&str>) -> Option<DeadLetter> {
    let routing_key = routing_key.map(str::to_owned);
    Some(DeadLetter { exchange: exchange.to_owned(), routing_key })
}

fn set<T>(value: T) -> Option<Setting<T>> {
    Some(Setting { value, by: "policy `p`".to_owned() })
}

fn node() -> Node {
    Node {
        name: "rabbit@a".to_owned(),
        runs: true,
        disk_free: Some(1_000_000_000),
        disk_limit: Some(50_000_000),
        disk_alarm: Some(false),
        memory_alarm: Some(false),
    }
}

fn facts(topology: Topology) -> Facts {
    Facts {
        exists: Some(true),
        depth: Some(10),
        consumers: Some(1),
        denied: Ok(Vec::new()),
        missing: BTreeSet::new(),
        unasked: BTreeSet::new(),
        nodes: Ok(vec![node()]),
        topology: Ok(topology),
    }
}

fn to_queue() -> Target {
    Target::Queue { queue: QUEUE.to_owned() }
}

fn to_exchange(exchange: &str, routing_key: Option<&str>) -> Target {
    let routing_key = routing_key.map(str::to_owned);
    Target::Exchange { exchange: exchange.to_owned(), routing_key }
}

/// 1,000 events of 4 KB.
fn load<'a>(target: &'a Target, exchanges: &'a BTreeSet<String>) -> Load<'a> {
    let exchanges_exact = true;
    Load { target, exchanges, exchanges_exact, events: 1_000, bytes: 4_000_000, depth_max: None }
}

fn told(preflight: &Preflight) -> Vec<String> {
    let told = |finding: &Finding| match finding.severity {
        Severity::Refusal => finding.check.to_string(),
        Severity::Warning => format!("({})", finding.check),
    };
    preflight.findings.iter().map(told).collect()
}

/// Checks what is found; warnings are in brackets.
#[track_caller]
fn check_facts(target: &Target, facts: &Facts, expected: &[&str]) {
    let exchanges = ["shop".to_owned(), "replays".to_owned()].into();
    let preflight = check(&load(target, &exchanges), facts, Wishes::default());
    assert_eq!(told(&preflight), expected, "{:?}", preflight.findings);
}

#[track_caller]
fn check_queue(queue: Queue, expected: &[&str]) {
    check_facts(&to_queue(), &facts(topology(queue)), expected);
}

#[test]
fn a_sound_target_has_nothing_against_it() {
    check_queue(Queue::default(), &[]);
    check_facts(&to_exchange("replays", None), &facts(topology(Queue::default())), &[]);
}

#[test]
fn what_amqp_tells_is_found_without_more() {
    let sound = facts(topology(Queue::default()));
    let missing = Facts { exists: Some(false), ..sound.clone() };
    check_facts(&to_queue(), &missing, &["target-missing"]);
    let denied = Ok(vec!["ACCESS_REFUSED - access to …".to_owned()]);
    check_facts(&to_queue(), &Facts { denied, ..sound }, &["no-permission"]);
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn of_the_exchanges_that_events_came_from_those_that_are_gone_are_found() {
    let mut quiet = topology(Queue::default());
    quiet.bindings.clear();
    let sound = facts(quiet);
    let gone = Facts { missing: names(&["old"]), ..sound.clone() };
    check_facts(&Target::Original, &gone, &["target-missing"]);
    check_facts(&to_queue(), &gone, &[]);
    // What AMQP was not asked about, the plugin knows.
    let told = |unasked: &[&str], exchanges_exact, topology| {
        let facts = Facts { unasked: names(unasked), topology, ..sound.clone() };
        let exchanges = names(&["", "shop"]);
        let load = Load { exchanges_exact, ..load(&Target::Original, &exchanges) };
        let preflight = check(&load, &facts, Wishes::default());
        let mut unchecked: Vec<Check> =
            preflight.unchecked.iter().flat_map(|unchecked| unchecked.checks.clone()).collect();
        unchecked.sort();
        unchecked.dedup();
        let unchecked: Vec<&str> = unchecked.into_iter().map(Check::as_str).collect();
        (told(&preflight).join(" "), unchecked.join(" "))
    };
    let expect = |refused: &str, unchecked: &str| (refused.to_owned(), unchecked.to_owned());
    let known = || sound.topology.clone();
    // Where an event of the default exchange goes, its routing key decides.
    assert_eq!(told(&[], true, known()), expect("", "feeds-archiver"));
    let unchecked = "no-permission feeds-archiver";
    assert_eq!(told(&["shop"], true, known()), expect("", unchecked));
    assert_eq!(told(&["old", "older"], true, known()), expect("target-missing", unchecked));
    let blind = Err("AMQP cannot tell".to_owned());
    let unchecked = "target-missing no-permission feeds-archiver alternate-exchange";
    assert_eq!(told(&["old"], true, blind), expect("", unchecked));
    assert_eq!(told(&[], false, known()), expect("", unchecked));
}

#[test]
fn a_queue_that_forgets_is_found() {
    check_queue(Queue { message_ttl: set(60_000), ..Queue::default() }, &["queue-ttl"]);
    check_queue(Queue { expires: set(60_000), ..Queue::default() }, &["(queue-expires)"]);
    check_queue(Queue { auto_delete: true, ..Queue::default() }, &["(queue-expires)"]);
    let idle = topology(Queue { expires: set(60_000), ..Queue::default() });
    let idle = Facts { consumers: Some(0), ..facts(idle) };
    check_facts(&to_queue(), &idle, &["queue-expires"]);
}

#[test]
fn a_queue_drops_its_head_when_what_waits_and_what_comes_exceed_its_limit() {
    let length = |value| Queue { length_max: set(value), ..Queue::default() };
    check_queue(length(1_009), &["queue-drops-head"]);
    check_queue(length(1_010), &["(queue-drops-head)"]);
    check_queue(Queue { overflow: Overflow::Reject, ..length(1) }, &[]);
    let bytes = |value, now| Queue { bytes_max: set(value), bytes: Some(now), ..Queue::default() };
    check_queue(bytes(4_000_009, 10), &["queue-drops-head"]);
    check_queue(bytes(4_000_010, 10), &["(queue-drops-head)"]);
}

#[test]
fn a_replay_that_waits_below_a_depth_fills_no_queue_and_no_disk_beyond_it() {
    let target = to_queue();
    let (none, queue) = (BTreeSet::new(), Queue { length_max: set(300), ..Queue::default() });
    let small = Node { disk_free: Some(51_000_000), ..node() };
    let tight = Facts { nodes: Ok(vec![small]), ..facts(topology(queue)) };
    let all = load(&target, &none);
    let shallow = Load { depth_max: Some(100), ..all.clone() };
    let found = check(&all, &tight, Wishes::default());
    assert_eq!(told(&found), ["queue-drops-head", "broker-disk-low"]);
    assert_eq!(told(&check(&shallow, &tight, Wishes::default())), ["(queue-drops-head)"]);
}

#[test]
fn a_node_without_room_is_found_and_one_that_is_down_is_not() {
    let with = |node| Facts { nodes: Ok(vec![node]), ..facts(topology(Queue::default())) };
    let check = |node, expected: &[&str]| check_facts(&to_queue(), &with(node), expected);
    check(Node { memory_alarm: Some(true), ..node() }, &["broker-memory-alarm"]);
    check(Node { disk_alarm: Some(true), ..node() }, &["broker-disk-low"]);
    // 4,000,000 bytes of bodies and 1,024 for each of 1,000 events above the limit.
    check(Node { disk_free: Some(50_000_000 + 5_023_999), ..node() }, &["broker-disk-low"]);
    check(Node { disk_free: Some(50_000_000 + 5_024_000), ..node() }, &[]);
    let alarm = Some(true);
    check(Node { runs: false, memory_alarm: alarm, disk_alarm: alarm, ..node() }, &[]);
}

/// What a node does not tell was taken for enough.
#[test]
fn what_no_node_tells_is_unchecked() {
    #[track_caller]
    fn check_nodes(nodes: Vec<Node>, expected: &[&str]) {
        let facts = Facts { nodes: Ok(nodes), ..facts(topology(Queue::default())) };
        let (target, none) = (to_queue(), BTreeSet::new());
        let preflight = check(&load(&target, &none), &facts, Wishes::default());
        assert_eq!(preflight.refusals().count(), 0);
        let unchecked = preflight.unchecked.iter().flat_map(|unchecked| &unchecked.checks);
        assert_eq!(unchecked.map(|check| check.as_str()).collect::<Vec<_>>(), expected);
    }
    let both = ["broker-disk-low", "broker-memory-alarm"];
    check_nodes(vec![node()], &[]);
    check_nodes(vec![], &both);
    check_nodes(vec![Node { runs: false, ..node() }], &both);
    check_nodes(vec![node(), Node { disk_free: None, ..node() }], &["broker-disk-low"]);
    check_nodes(vec![Node { memory_alarm: None, ..node() }], &["broker-memory-alarm"]);
}

#[test]
fn an_exchange_that_leads_to_an_archiver_is_found() {
    let sound = facts(topology(Queue::default()));
    check_facts(&to_exchange("shop", None), &sound, &["feeds-archiver"]);
    check_facts(&Target::Original, &sound, &["feeds-archiver"]);
    let archivers = Target::Queue { queue: ARCHIVE.to_owned() };
    check_facts(&archivers, &sound, &["feeds-archiver"]);
    let mut through = topology(Queue::default());
    through.bindings.push(Binding {
        destination: Destination::Exchange("shop".to_owned()),
        ..binding("replays", "", "")
    });
    check_facts(&to_exchange("replays", None), &facts(through.clone()), &["feeds-archiver"]);
    // Archived are only orders, and these are not.
    through.bindings[1].routing_key = "orders.*".to_owned();
    check_facts(&to_exchange("shop", Some("invoices")), &facts(through), &[]);
}

#[test]
fn an_exchange_that_hides_what_no_queue_takes_is_found() {
    let mut hiding = topology(Queue::default());
    let exchange = hiding.exchanges.get_mut("replays").unwrap();
    exchange.alternate = set("unrouted".to_owned());
    let found = facts(hiding);
    check_facts(&to_exchange("replays", None), &found, &["alternate-exchange"]);
    check_facts(&Target::Original, &found, &["feeds-archiver", "alternate-exchange"]);
    check_facts(&to_queue(), &found, &[]);
    // One behind it hides as well.
    let mut behind = topology(Queue::default());
    let alternate = set("unrouted".to_owned());
    behind.exchanges.insert("late".to_owned(), Exchange { kind: ExchangeKind::Topic, alternate });
    behind.bindings.push(Binding {
        destination: Destination::Exchange("late".to_owned()),
        ..binding("replays", "", "")
    });
    check_facts(&to_exchange("replays", None), &facts(behind), &["alternate-exchange"]);
}

#[track_caller]
fn check_dead_letter(exchange: &str, routing_key: Option<&str>, expected: &[&str]) {
    check_dead_letter_at(&to_queue(), exchange, routing_key, expected);
}

#[track_caller]
fn check_dead_letter_at(
    target: &Target,
    exchange: &str,
    routing_key: Option<&str>,
    expected: &[&str],
) {
    let queue = Queue { dead_letter: dead_letter(exchange, routing_key), ..Queue::default() };
    let mut topology = topology(queue);
    let back = Queue { dead_letter: dead_letter("", Some(QUEUE)), ..Queue::default() };
    topology.queues.insert("orders.v1.retry".to_owned(), back);
    topology.queues.insert("orders.v1.dead".to_owned(), Queue::default());
    topology.queues.insert(
        "orders.v1.on".to_owned(),
        Queue { dead_letter: dead_letter("", None), ..Queue::default() },
    );
    topology.bindings.push(binding("dead", "", "orders.v1.dead"));
    topology
        .exchanges
        .insert("on".to_owned(), Exchange { kind: ExchangeKind::Fanout, alternate: None });
    topology.bindings.push(binding("on", "", "orders.v1.on"));
    check_facts(target, &facts(topology), expected);
}

#[test]
fn a_dead_letter_loop_is_found_by_where_it_leads() {
    check_dead_letter("dead", None, &[]);
    check_dead_letter("", Some("orders.v1.dead"), &[]);
    check_dead_letter("", Some(QUEUE), &["dead-letter-loop"]);
    check_dead_letter("replays", None, &["dead-letter-loop"]);
    check_dead_letter("shop", Some("invoices"), &["dead-letter-loop"]);
    check_dead_letter("", Some(ARCHIVE), &["dead-letter-loop"]);
    check_dead_letter("", Some("orders.v1.retry"), &["(dead-letter-loop)"]);
}

/// Through the default exchange an event's routing key is the queue's name, and so it comes back.
#[test]
fn a_dead_letter_loop_by_the_routing_key_is_found_where_that_is_known() {
    let by_name = Target::QueueViaDefaultExchange { queue: QUEUE.to_owned() };
    check_dead_letter_at(&by_name, "", None, &["dead-letter-loop"]);
    check_dead_letter_at(&by_name, "dead", None, &[]);
    check_dead_letter_at(&by_name, "on", None, &["(dead-letter-loop)"]);
    // Where it is each event's own, nobody knows beforehand.
    check_dead_letter("", None, &["(dead-letter-loop)"]);
    check_dead_letter("on", None, &["(dead-letter-loop)"]);
    check_dead_letter("on", Some("orders.v1.dead"), &[]);
}

#[test]
fn a_consumer_is_missed_only_if_one_was_asked_for() {
    let target = to_queue();
    let none = BTreeSet::new();
    let idle = Facts { consumers: Some(0), ..facts(topology(Queue::default())) };
    let found = |require_consumer| {
        let wishes = Wishes { require_consumer, ..Wishes::default() };
        told(&check(&load(&target, &none), &idle, wishes))
    };
    assert_eq!(found(false), Vec::<String>::new());
    assert_eq!(found(true), ["no-consumer"]);
}

#[test]
fn consumers_that_are_not_known_are_not_taken_for_some() {
    let target = to_queue();
    let none = BTreeSet::new();
    let unchecked = |facts: &Facts, require_consumer| -> Vec<(Vec<Check>, String)> {
        let wishes = Wishes { require_consumer, ..Wishes::default() };
        let preflight = check(&load(&target, &none), facts, wishes);
        let told = preflight.unchecked.into_iter();
        told.map(|unchecked| (unchecked.checks, unchecked.why)).collect()
    };
    let silent = Facts { consumers: None, ..facts(topology(Queue::default())) };
    assert_eq!(unchecked(&silent, false), []);
    let why = "the broker does not say who consumes queue `orders.v1`".to_owned();
    assert_eq!(unchecked(&silent, true), [(vec![Check::NoConsumer], why)]);

    let unasked = Facts { exists: None, denied: Err("no broker was named".to_owned()), ..silent };
    let [(checks, why)] = &unchecked(&unasked, true)[..] else { panic!("one reason") };
    assert_eq!(why, "no broker was named");
    assert_eq!(*checks, [Check::TargetMissing, Check::NoPermission, Check::NoConsumer]);
}

#[test]
fn what_is_overridden_refuses_no_longer_and_is_remembered() {
    let target = to_queue();
    let none = BTreeSet::new();
    let bad = facts(topology(Queue { message_ttl: set(1), ..Queue::default() }));
    let bad = Facts { exists: Some(false), ..bad };
    let found = |facts: &Facts, overrides: &[Check]| {
        let overrides = overrides.iter().copied().collect();
        check(&load(&target, &none), facts, Wishes { overrides, ..Wishes::default() })
    };
    let refusals = |preflight: &Preflight| -> Vec<Check> {
        preflight.refusals().map(|finding| finding.check).collect()
    };
    assert_eq!(refusals(&found(&bad, &[])), [Check::TargetMissing, Check::QueueTtl]);
    assert_eq!(refusals(&found(&bad, &[Check::QueueTtl])), [Check::TargetMissing]);
    let both = found(&bad, &[Check::QueueTtl, Check::TargetMissing, Check::NoConsumer]);
    assert_eq!(refusals(&both), []);
    assert_eq!(both.overridden(), [Check::TargetMissing, Check::QueueTtl].into());
    let mut later = found(&facts(topology(Queue::default())), &[]);
    assert_eq!(later.overridden(), BTreeSet::new());
    later.remember(&both);
    assert_eq!(later.overridden(), both.overridden());
    assert_eq!(refusals(&later), []);
}

#[test]
fn what_could_not_be_asked_is_unchecked_and_refuses_nothing() {
    let why = || "AMQP cannot tell".to_owned();
    let blind = Facts { nodes: Err(why()), topology: Err(why()), ..facts(Topology::default()) };
    let none = BTreeSet::new();
    let unchecked = |target: &Target, facts: &Facts| {
        let preflight = check(&load(target, &none), facts, Wishes::default());
        assert_eq!(preflight.refusals().count(), 0);
        let [unchecked] = &preflight.unchecked[..] else { panic!("{preflight:?}") };
        assert_eq!(unchecked.why, why());
        unchecked.checks.iter().map(Check::to_string).collect::<Vec<_>>()
    };
    let queues = [
        "queue-ttl",
        "queue-drops-head",
        "queue-expires",
        "dead-letter-loop",
        "broker-disk-low",
        "broker-memory-alarm",
        "feeds-archiver",
    ];
    assert_eq!(unchecked(&to_queue(), &blind), queues);
    let exchanges =
        ["broker-disk-low", "broker-memory-alarm", "feeds-archiver", "alternate-exchange"];
    assert_eq!(unchecked(&to_exchange("shop", None), &blind), exchanges);
    let nothing = Facts { exists: None, denied: Err(why()), ..blind };
    assert_eq!(unchecked(&to_queue(), &nothing).len(), queues.len() + 2);
    let file = Target::File { path: "-".into() };
    assert_eq!(check(&load(&file, &none), &nothing, Wishes::default()), Preflight::default());
}

#[test]
fn every_check_is_known_by_its_name() {
    for check in Check::ALL {
        assert_eq!(check.as_str().parse(), Ok(check));
    }
    assert!("queue-tt".parse::<Check>().is_err());
}
