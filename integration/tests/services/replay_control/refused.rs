//! Targets that refuse: said at once where it can be known, and never counted as delivered.

use serde_json::json;

use super::{DEADLINE, EVENTS, Platform, Queue, await_depth, check_receipt, event_ids, ids};
use super::{setting, start};
use crate::services;

/// Checks that a replay is refused with these words, and leaves nothing behind.
#[track_caller]
fn check_refused(platform: &Platform, args: &[&str], words: &[&str]) {
    let output = platform.dacapo.run(["replay", "--json"].iter().chain(args));
    output.check(5);
    for word in words {
        assert!(output.stderr.contains(word), "no “{word}” in {}", output.stderr);
    }
    let error = output.json();
    assert_eq!(error["status"], 5, "{error}");
    let listed = platform.dacapo.json(["replays", "ls", "--json"]);
    assert_eq!(listed, json!({ "replays": [] }), "a replay was left behind");
}

#[test]
fn a_queue_that_is_not_there_is_named_and_no_replay_is_left_behind() {
    let platform = Platform::new();
    platform.import(3);
    let missing = services::unique("nowhere");
    let named = format!("queue `{missing}` does not exist");
    check_refused(&platform, &["--to-queue", &missing], &[&named, "check its name"]);
    let plan = platform.dacapo.run(["plan", "--to-queue", &missing]);
    plan.check(0);
    assert!(plan.stdout.contains(&named), "a plan says it, too: {plan:?}");
}

#[test]
fn an_exchange_that_is_not_there_is_named_and_no_replay_is_left_behind() {
    let platform = Platform::new();
    platform.import(3);
    let missing = services::unique("nowhere");
    let named = format!("exchange `{missing}` does not exist");
    check_refused(&platform, &["--to-exchange", &missing], &[&named, "check its name"]);
}

#[test]
fn a_wrong_virtual_host_is_named() {
    let platform = Platform::new();
    platform.import(3);
    let queue = Queue::new("there");
    let vhost = services::unique("nowhere");
    let url = services::amqp();
    let (place, _) = url.rsplit_once('/').expect("the URL has a virtual host");
    let url = format!("{place}/{vhost}");
    check_refused(
        &platform,
        &["--to-queue", queue.name(), "--amqp", &url],
        &[&vhost, "virtual host"],
    );
}

#[test]
fn a_wrong_password_is_told_and_never_shown() {
    const WRONG: &str = "not-the-pass-word";
    let platform = Platform::new();
    platform.import(3);
    let queue = Queue::new("there");
    let (url, _) = services::amqp_with_password(WRONG);
    let to = ["--to-queue", queue.name(), "--amqp", &url, "--log", "debug"];
    check_refused(&platform, &to, &["ACCESS_REFUSED", "password"]);
    let output = platform.dacapo.run(["replay"].iter().chain(&to));
    assert!(!output.stderr.contains(WRONG) && !output.stdout.contains(WRONG), "{output:?}");
}

#[test]
fn without_a_broker_to_ask_the_replay_is_refused_as_misconfigured() {
    let mut platform = Platform::new();
    platform.import(3);
    platform.dacapo.set("DACAPO_AMQP", "");
    let output = platform.dacapo.run(["replay", "--to-queue", "any"]);
    output.check(3);
    assert!(output.stderr.contains("--amqp"), "{output:?}");
}

#[test]
fn a_broker_that_does_not_answer_is_unavailable() {
    let platform = Platform::new();
    platform.import(3);
    // A port that was free a moment ago: nobody listens there.
    let port = dacapo_integration::ports::free().unwrap();
    let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let output = platform.dacapo.run(["replay", "--to-queue", "any", "--amqp", &url]);
    output.check(8);
    assert!(output.stderr.contains(&format!("127.0.0.1:{port}")), "{output:?}");
}

#[test]
fn an_event_that_is_unroutable_in_the_middle_is_named_and_never_counted_as_delivered() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 100);
    let exchange = format!("dacapo.replay.{id}");
    platform.ask(json!({ "op": "unbind_queue", "queue": queue.name(), "exchange": exchange }));
    let output = replay.wait(DEADLINE);
    output.check(5);
    let receipt = output.json();
    let confirmed = usize::try_from(receipt["confirmed"].as_u64().unwrap()).unwrap();
    check_receipt(&receipt, "rejected", EVENTS, confirmed);
    assert_eq!(receipt["rejected"], 1, "{receipt}");
    assert_eq!(queue.depth(), confirmed as u64, "what is confirmed is there");
    let first_lost = format!("event `{}`", ids(EVENTS)[confirmed]);
    let refusal = receipt["refusal"].as_str().unwrap();
    assert!(refusal.contains(&first_lost) && refusal.contains("NO_ROUTE"), "{receipt}");
    assert!(output.stderr.contains(&first_lost), "{output:?}");
    assert!(output.stderr.contains(&format!("dacapo replay resume {id}")), "{output:?}");
    assert_eq!(platform.state_of(&id), "rejected");

    let receipt = platform.dacapo.json(["replay", "resume", &id, "--json"]);
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    assert_eq!(receipt["refusal"], json!(null));
    assert_eq!(event_ids(&queue.take(EVENTS * 2)), ids(EVENTS), "from the one that was refused");
}

/// Whether the broker says first that an event has nowhere to go or that the queue is gone is up to
/// it.
#[test]
fn a_queue_deleted_in_the_middle_stops_the_replay_which_goes_on_when_it_is_back() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 100);
    platform.ask(json!({ "op": "delete_queue", "queue": queue.name() }));
    let output = replay.wait(DEADLINE);
    output.check(5);
    assert!(output.stderr.contains(queue.name()), "{output:?}");
    assert!(output.stderr.contains(&format!("dacapo replay resume {id}")), "{output:?}");
    let receipt = output.json();
    let confirmed = usize::try_from(receipt["confirmed"].as_u64().unwrap()).unwrap();
    let state = receipt["state"].as_str().unwrap();
    check_receipt(&receipt, state, EVENTS, confirmed);
    assert!((100..EVENTS).contains(&confirmed), "{receipt}");

    // Not mended: it is refused again, and still can go on.
    let again = platform.dacapo.run(["replay", "resume", &id, "--json"]);
    again.check(5);
    assert!(again.stderr.contains(queue.name()), "{again:?}");
    platform.ask(json!({ "op": "declare_queue", "queue": queue.name() }));
    let receipt = platform.dacapo.json(["replay", "resume", &id, "--json"]);
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    let arrived = event_ids(&queue.take(EVENTS * 2));
    assert_eq!(arrived, ids(EVENTS)[confirmed..], "from the first that was not confirmed");
    platform.check_no_exchange_of(&id);
}

#[test]
fn an_exchange_that_routes_nowhere_is_a_failure_until_something_is_bound() {
    let platform = Platform::new();
    platform.import(9);
    let to = ["replay", "--json", "--to-exchange", &platform.exchange];
    let output = platform.dacapo.run(to);
    output.check(5);
    let receipt = output.json();
    check_receipt(&receipt, "rejected", 9, 0);
    let refusal = receipt["refusal"].as_str().unwrap();
    assert!(refusal.contains("`e-000000`") && refusal.contains("NO_ROUTE"), "{refusal}");

    let queue = platform.service("bound");
    let replay = receipt["replay"].as_str().unwrap();
    let receipt = platform.dacapo.json(["replay", "resume", replay, "--json"]);
    check_receipt(&receipt, "completed", 9, 9);
    assert_eq!(event_ids(&queue.take(10)), ids(9));
}

/// A queue that refuses when it is full nacks; the replay waits and goes on when there is room.
#[test]
fn a_full_queue_that_refuses_is_retried_until_it_has_room() {
    let platform = Platform::new();
    platform.import(30);
    let arguments = json!([["x-max-length", "I", 10], ["x-overflow", "S", "reject-publish"]]);
    let queue = Queue::with_arguments("full", &arguments);
    let (replay, _) = platform.start_replay(&["--to-queue", queue.name(), "--window", "5"]);
    let mut arrived = Vec::new();
    let all = || {
        arrived.extend(event_ids(&queue.take(10)));
        Ok((arrived.last() == Some(&ids(30)[29])).then_some(()))
    };
    dacapo_integration::wait::until("the last event comes", DEADLINE, all).unwrap();
    let output = replay.wait(DEADLINE);
    output.check(0);
    let receipt = output.json();
    check_receipt(&receipt, "completed", 30, 30);
    let mut first: Vec<String> = Vec::new();
    for id in &arrived {
        if !first.contains(id) {
            first.push(id.clone());
        }
    }
    first.sort();
    assert_eq!(first, ids(30));
    let repeats = (arrived.len() - 30) as u64;
    assert!(repeats <= receipt["possible_repeats"].as_u64().unwrap(), "{receipt}");
}
