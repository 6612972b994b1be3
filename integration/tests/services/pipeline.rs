//! From the bus to the archive and back: what arrives, where, and how often.

mod fidelity;
mod resume;

use serde_json::json;

use super::platform::{
    Platform, await_depth, check_receipt, event_id, event_ids, headers, ids, messages,
};
use super::services;
use super::witness::Queue;

#[test]
fn a_replay_to_one_queue_leaves_every_other_queue_untouched() {
    const EVENTS: usize = 60;
    let platform = Platform::new();
    let (orders, mailer) = (platform.service("orders"), platform.service("mailer"));
    platform.archive(&messages(EVENTS));
    assert_eq!(orders.take(EVENTS + 1).len(), EVENTS, "its live events");
    assert_eq!(mailer.depth(), EVENTS as u64, "it has not looked yet");

    let receipt = platform.dacapo.json(["replay", "--json", "--to-queue", orders.name()]);
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    let replayed = orders.take(EVENTS + 1);
    assert_eq!(event_ids(&replayed), ids(EVENTS));
    for message in &replayed {
        assert_eq!(message["routing_key"], "order.placed");
    }
    let untouched = mailer.take(EVENTS + 1);
    assert_eq!(untouched.len(), EVENTS);
    assert!(untouched.iter().all(|message| headers(message).is_empty()), "a replayed one came");
    let replay = receipt["replay"].as_str().unwrap();
    platform.check_no_exchange_of(replay);
    assert_eq!(platform.state_of(replay), "completed");
}

#[test]
fn via_the_default_exchange_the_routing_key_is_the_queue_and_the_original_is_kept() {
    let platform = Platform::new();
    platform.import(5);
    let queue = Queue::new("default");
    let to = ["--to-queue", queue.name(), "--via-default-exchange"];
    let planned = platform.dacapo.run(["plan"].iter().chain(&to));
    planned.check(0);
    assert!(planned.stdout.contains("the routing key of every event becomes"), "{planned:?}");
    let receipt = platform.dacapo.json(["replay", "--json"].iter().chain(&to));
    check_receipt(&receipt, "completed", 5, 5);
    let messages = queue.take(6);
    assert_eq!(event_ids(&messages), ids(5));
    assert_eq!(messages[1]["routing_key"], queue.name());
    let original = &headers(&messages[1])["\"x-dacapo-original-routing-key\""];
    assert_eq!(*original, json!(["S", "order.placed.1"]));
}

#[test]
fn replayed_events_are_not_archived_again_and_a_forged_one_is() {
    const EVENTS: usize = 40;
    let platform = Platform::new();
    let service = platform.service("service");
    platform.archive(&messages(EVENTS));
    service.take(EVENTS);

    let archiver = platform.start_archiver(&["--roll-age", "200ms"]);
    let to = ["replay", "--json", "--to-exchange", &platform.exchange];
    check_receipt(&platform.dacapo.json(to), "completed", EVENTS, EVENTS);
    archiver.await_metric("skipped_replayed_total", EVENTS);
    let mut replayed = service.take(EVENTS + 1);
    assert_eq!(event_ids(&replayed), ids(EVENTS), "every service sees them");

    // The same headers on other content are a live event.
    let mut forged = replayed.swap_remove(0);
    forged["body"] = "{\"refund\":1000000}".into();
    platform.publish(&[json!({
        "routing_key": forged["routing_key"],
        "properties": forged["properties"],
        "body": forged["body"],
    })]);
    archiver.await_metric("events_total", 1);
    let totals = archiver.stop();
    assert_eq!(totals["skipped_replayed"], EVENTS);
    assert_eq!(totals["events"], 1);
    let events = platform.events();
    assert_eq!(events.len(), EVENTS + 1);
    assert_eq!(events.iter().filter(|event| event["body"] == forged["body"]).count(), 1);
    assert_eq!(platform.verify()["events"], EVENTS + 1);
}

#[test]
fn a_replay_to_the_original_exchanges_asks_first_and_reaches_everyone() {
    let platform = Platform::new();
    let (one, two) = (platform.service("one"), platform.service("two"));
    platform.archive(&messages(7));
    one.take(8);
    two.take(8);
    let refused = platform.dacapo.run(["replay", "--to-original"]);
    assert_ne!(refused.status, Some(0), "it did not ask: {refused:?}");
    assert_eq!((one.depth(), two.depth()), (0, 0));

    let receipt = platform.dacapo.json(["replay", "--json", "--to-original", "--yes"]);
    check_receipt(&receipt, "completed", 7, 7);
    for queue in [one, two] {
        let messages = queue.take(8);
        assert_eq!(event_ids(&messages), ids(7));
        assert_eq!(messages[0]["exchange"], *platform.exchange);
    }
}

#[test]
fn a_replay_to_an_exchange_can_rewrite_the_routing_key() {
    let platform = Platform::new();
    platform.import(4);
    let queue = Queue::new("rewritten");
    queue.bind(&platform.exchange, "recovery.one");
    let to = ["--to-exchange", &platform.exchange, "--with-routing-key", "recovery.one"];
    let receipt = platform.dacapo.json(["replay", "--json"].iter().chain(&to));
    check_receipt(&receipt, "completed", 4, 4);
    let messages = queue.take(5);
    assert_eq!(event_ids(&messages), ids(4));
    assert!(messages.iter().all(|message| message["routing_key"] == "recovery.one"));
}

#[test]
fn a_selection_publishes_what_it_selects_and_nothing_else() {
    let platform = Platform::new();
    platform.import(70);
    let queue = Queue::new("selected");
    let selected = ["--key", "k-3", "--routing-key", "order.*.1", "--where", "body.n > 10"];
    let to = ["replay", "--json", "--to-queue", queue.name()];
    let receipt = platform.dacapo.json(to.iter().chain(&selected));
    let wanted: Vec<String> =
        (11..70).filter(|n| n % 7 == 3 && n % 3 == 1).map(super::platform::id).collect();
    assert!(!wanted.is_empty());
    check_receipt(&receipt, "completed", wanted.len(), wanted.len());
    let messages = queue.take(70);
    assert_eq!(event_ids(&messages), wanted);
    assert_eq!(event_id(&messages[0]), wanted[0]);
}
