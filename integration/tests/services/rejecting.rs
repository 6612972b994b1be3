//! Events that the target refuses: recorded, passed over on request, and tried again from the
//! reject file, on a real broker that returns them or closes the channel over them.

use std::path::Path;

use dacapo_integration::dacapo::{Dacapo, Output};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::Rabbit;
use serde_json::{Value, json};

use super::platform::messages;
use super::platform::{DEADLINE, Platform, ask, await_depth, check_receipt, event_ids, id, ids};
use super::witness::Queue;

const EVENTS: usize = 600;

/// Events `n` with `n % 3 == 2` go where nothing is bound at first.
const LOST: &str = "order.placed.2";

/// A platform with history, and a queue bound to two of its three routing keys.
fn setting() -> (Platform, Queue) {
    let platform = Platform::new();
    platform.import(EVENTS);
    let queue = Queue::new("partly-bound");
    queue.bind(&platform.exchange, "order.placed.0");
    queue.bind(&platform.exchange, "order.placed.1");
    (platform, queue)
}

fn lost_ids() -> Vec<String> {
    (0..EVENTS).filter(|n| n % 3 == 2).map(id).collect()
}

fn found_ids() -> Vec<String> {
    (0..EVENTS).filter(|n| n % 3 != 2).map(id).collect()
}

/// Returns the ids and kinds in a reject file.
fn rejects(path: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let json: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| json[name].as_str().unwrap().to_owned();
        (text("id"), text("kind"))
    };
    text.lines().map(line).collect()
}

fn of_kind(ids: Vec<String>, kind: &str) -> Vec<(String, String)> {
    ids.into_iter().map(|id| (id, kind.to_owned())).collect()
}

/// Checks a replay that is complete but for what it passed over; returns its reject file.
#[track_caller]
fn check_passed_over(output: &Output, selected: usize, rejected: usize) -> String {
    output.check(5);
    let receipt = output.json();
    check_receipt(&receipt, "completed", selected, selected - rejected);
    assert_eq!(receipt["rejected"], rejected, "{receipt}");
    assert_eq!(receipt["remaining"], 0, "{receipt}");
    let path = receipt["rejects"].as_str().unwrap().to_owned();
    let hint = format!("dacapo replay --rejects {path}");
    assert!(output.stderr.contains(&hint), "{output:?}");
    path
}

#[test]
fn unroutable_events_are_passed_over_and_arrive_once_bound_each_exactly_once() {
    let (platform, queue) = setting();
    let args = ["replay", "--json", "--to-exchange", &platform.exchange, "--on-reject", "skip"];
    let output = platform.dacapo.run(args);
    let file = check_passed_over(&output, EVENTS, EVENTS / 3);
    assert_eq!(output.json()["possible_repeats"], 0, "what follows a reject is not held up");
    assert_eq!(rejects(&file), of_kind(lost_ids(), "unroutable"));
    assert_eq!(event_ids(&queue.take(EVENTS)), found_ids());
    let replay = output.json()["replay"].as_str().unwrap().to_owned();
    let shown = platform.dacapo.json(["replays", "show", &replay, "--json"]);
    assert_eq!((&shown["rejected"], &shown["rejects"]), (&json!(EVENTS / 3), &json!(file)));

    let planned = platform.dacapo.json(["plan", "--json", "--rejects", &file]);
    assert_eq!((&planned["events"], &planned["exact"]), (&json!(EVENTS / 3), &json!(true)));
    let exchange = format!("exchange `{}`", platform.exchange);
    assert_eq!(planned["target"]["name"], exchange, "the same target");

    // Not mended yet: refused again, into the file of that replay.
    let again = platform.dacapo.run(["replay", "--json", "--rejects", &file]);
    again.check(5);
    check_receipt(&again.json(), "rejected", EVENTS / 3, 0);
    queue.bind(&platform.exchange, LOST);
    let receipt = platform.dacapo.json(["replay", "--json", "--rejects", &file]);
    check_receipt(&receipt, "completed", EVENTS / 3, EVENTS / 3);
    assert_eq!((&receipt["rejected"], &receipt["rejects"]), (&json!(0), &json!(null)));
    assert_eq!(event_ids(&queue.take(EVENTS)), lost_ids());
}

/// It was read three times, and a line that its replay wrote meanwhile was taken for an event that is
/// gone. What comes through a pipe can be read once.
#[test]
fn a_reject_file_is_read_once_and_may_be_a_pipe() {
    let (platform, queue) = setting();
    let args = ["replay", "--json", "--to-exchange", &platform.exchange, "--on-reject", "skip"];
    let file = check_passed_over(&platform.dacapo.run(args), EVENTS, EVENTS / 3);
    queue.bind(&platform.exchange, LOST);
    let folder = RunFolder::create().unwrap();
    let pipe = folder.path().join("rejects");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let path = pipe.to_str().unwrap();
    let receipt = std::thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&pipe, std::fs::read(&file).unwrap()).unwrap());
        platform.dacapo.json(["replay", "--json", "--rejects", path])
    });
    check_receipt(&receipt, "completed", EVENTS / 3, EVENTS / 3);
}

#[test]
fn looking_at_rejects_shows_the_events_that_were_refused_and_never_those_of_another_archive() {
    let (platform, _queue) = setting();
    let args = ["replay", "--json", "--to-exchange", &platform.exchange, "--on-reject", "skip"];
    let file = check_passed_over(&platform.dacapo.run(args), EVENTS, EVENTS / 3);
    let look = ["events", "--rejects", &file, "--json", "--limit", "0"];
    let output = platform.dacapo.run(look);
    output.check(0);
    let id_of = |event: &Value| event["id"].as_str().unwrap().to_owned();
    assert_eq!(output.ndjson().iter().map(id_of).collect::<Vec<_>>(), lost_ids());

    let other = Platform::new();
    other.import(EVENTS);
    let output = other.dacapo.run(look);
    output.check(3);
    assert!(output.stderr.contains("name that archive"), "{output:?}");
    for archive in [platform.dacapo.archive(), other.dacapo.archive()] {
        assert!(output.stderr.contains(archive), "{output:?}");
    }
    assert_eq!(output.ndjson().len(), 1, "the error, and no event: {output:?}");
}

#[test]
fn a_replay_that_is_cancelled_where_it_stopped_keeps_the_event_in_its_receipt() {
    let (platform, _queue) = setting();
    let args = ["replay", "--json", "--to-exchange", &platform.exchange, "--window", "20"];
    let stopped = platform.dacapo.run(args);
    stopped.check(5);
    let mut expected = stopped.json();
    expected["state"] = json!("cancelled");
    expected.as_object_mut().unwrap().remove("error");
    let replay = expected["replay"].as_str().unwrap();
    let cancelled = platform.dacapo.json(["replays", "cancel", replay, "--json"]);
    assert_eq!(cancelled, expected);
    let shown = platform.dacapo.json(["replays", "show", replay, "--json"]);
    for member in ["state", "selected", "confirmed", "rejected", "rejects", "remaining", "refusal"]
    {
        assert_eq!(shown[member], expected[member], "{member}");
    }
}

#[test]
fn a_replay_that_stops_records_the_event_and_can_be_told_to_pass_over_it() {
    let (platform, queue) = setting();
    let args = ["replay", "--json", "--to-exchange", &platform.exchange, "--window", "20"];
    let output = platform.dacapo.run(args);
    output.check(5);
    let receipt = output.json();
    check_receipt(&receipt, "rejected", EVENTS, 2);
    let file = receipt["rejects"].as_str().unwrap();
    assert_eq!(rejects(file), [(id(2), "unroutable".to_owned())]);
    assert!(output.stderr.contains("--on-reject skip"), "{output:?}");

    let replay = receipt["replay"].as_str().unwrap();
    let few = ["replay", "resume", replay, "--json", "--on-reject", "skip", "--max-rejects", "3"];
    let output = platform.dacapo.run(few);
    output.check(5);
    assert!(output.stderr.contains("3 were passed over before it"), "{output:?}");
    check_receipt(&output.json(), "rejected", EVENTS, 8);
    assert_eq!(rejects(file).len(), 4);

    let output = platform.dacapo.run(["replay", "resume", replay, "--json", "--on-reject", "skip"]);
    assert_eq!(check_passed_over(&output, EVENTS, EVENTS / 3), file);
    assert_eq!(rejects(file), of_kind(lost_ids(), "unroutable"));
    let mut arrived = event_ids(&queue.take(EVENTS * 2));
    let repeats = arrived.len() - found_ids().len();
    assert!(repeats as u64 <= output.json()["possible_repeats"].as_u64().unwrap());
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived, found_ids());
}

#[test]
fn killed_in_the_middle_and_resumed_every_refused_event_is_recorded_once() {
    let (platform, queue) = setting();
    let pace = ["--on-reject", "skip", "--rate", "300", "--window", "20"];
    let to = ["--to-exchange", &platform.exchange];
    let (replay, id) = platform.start_replay(&[&to[..], &pace[..]].concat());
    await_depth(&queue, 60);
    replay.kill();
    for _ in 0..2 {
        let replay = platform.dacapo.spawn(["replay", "resume", &id, "--json"]);
        let before = queue.depth();
        await_depth(&queue, before + 60);
        replay.kill();
    }
    // It goes on as it was told when it began.
    let output = platform.dacapo.run(["replay", "resume", &id, "--json"]);
    let file = check_passed_over(&output, EVENTS, EVENTS / 3);
    assert_eq!(rejects(&file), of_kind(lost_ids(), "unroutable"));
    let mut arrived = event_ids(&queue.take(EVENTS * 2));
    let repeats = (arrived.len() - found_ids().len()) as u64;
    let possible = output.json()["possible_repeats"].as_u64().unwrap();
    assert!(repeats <= possible && possible <= 3 * 20, "{repeats} of {possible}");
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived, found_ids());

    queue.bind(&platform.exchange, LOST);
    let receipt = platform.dacapo.json(["replay", "--json", "--rejects", &file]);
    check_receipt(&receipt, "completed", EVENTS / 3, EVENTS / 3);
    assert_eq!(event_ids(&queue.take(EVENTS)), lost_ids());
}

/// A full queue nacks at once and for as long as nobody consumes it.
#[test]
fn an_event_nacked_as_often_as_was_allowed_is_recorded_passed_over_and_tried_again() {
    const ROOM: usize = 10;
    const SELECTED: usize = 13;
    let platform = Platform::new();
    platform.import(SELECTED);
    let arguments = json!([["x-max-length", "I", ROOM], ["x-overflow", "S", "reject-publish"]]);
    let queue = Queue::with_arguments("full", &arguments);
    let args = ["replay", "--json", "--to-queue", queue.name(), "--window", "4"];
    let output = platform.dacapo.run(args.iter().chain(&["--nack-retries", "1"]));
    output.check(5);
    let receipt = output.json();
    check_receipt(&receipt, "rejected", SELECTED, ROOM);
    let refusal = format!("event `{}` (nacked): nacked 2 times", id(ROOM));
    assert_eq!(receipt["refusal"], refusal, "{receipt}");
    let file = receipt["rejects"].as_str().unwrap().to_owned();
    assert_eq!(rejects(&file), of_kind(vec![id(ROOM)], "nacked"));

    // It goes on as it was told when it began, or this would take a quarter of an hour.
    let replay = receipt["replay"].as_str().unwrap();
    let output = platform.dacapo.run(["replay", "resume", replay, "--json", "--on-reject", "skip"]);
    assert_eq!(check_passed_over(&output, SELECTED, SELECTED - ROOM), file);
    let refused: Vec<String> = (ROOM..SELECTED).map(id).collect();
    assert_eq!(rejects(&file), of_kind(refused.clone(), "nacked"));
    assert!(std::fs::read_to_string(&file).unwrap().contains("nacked 2 times"));

    // Still full: refused again, at the first nack.
    let again = ["replay", "--json", "--rejects", &file, "--nack-retries", "0"];
    let output = platform.dacapo.run(again);
    output.check(5);
    check_receipt(&output.json(), "rejected", SELECTED - ROOM, 0);
    assert!(output.stderr.contains("nacked once"), "{output:?}");

    assert_eq!(event_ids(&queue.take(SELECTED)), ids(ROOM));
    let receipt = platform.dacapo.json(again);
    check_receipt(&receipt, "completed", SELECTED - ROOM, SELECTED - ROOM);
    assert_eq!(event_ids(&queue.take(SELECTED)), refused);
}

/// RabbitMQ closes the channel over a body of more than `max_message_size`; headers that filled a
/// frame fill more than one with those that say where an event came from.
#[test]
fn events_that_are_too_large_or_cannot_be_sent_are_found_among_the_others() {
    const QUEUE: &str = "orders";
    let folder = RunFolder::create().unwrap();
    let rabbit = Rabbit::start(&folder.path().join("rabbit")).unwrap();
    let url = rabbit.amqp_url();
    ask(&url, json!({ "op": "declare_queue", "queue": QUEUE }));
    let platform = Platform::on(&url, Dacapo::new());
    let mut published = messages(60);
    for n in [7, 8, 40] {
        published[n]["body"] = json!({ "repeat": "x", "times": 50_000 });
    }
    let headers = json!([["large", "S", "x".repeat(130_900)]]);
    published[20]["properties"]["headers"] = headers;
    platform.archive(&published);

    limit_message_size(&rabbit, 20_000);
    let skip = ["--on-reject", "skip", "--window", "10"];
    let output = platform.dacapo.run(["replay", "--json", "--to-queue", QUEUE].iter().chain(&skip));
    let file = check_passed_over(&output, 60, 4);
    let told = rejects(&file);
    let large = |n| (id(n), "too-large".to_owned());
    assert_eq!(told, [large(7), large(8), (id(20), "unsendable".to_owned()), large(40)]);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("message size 50000 is larger"), "{text}");
    let mut arrived = take(&url, QUEUE);
    let repeats = (arrived.len() - 56) as u64;
    let possible = output.json()["possible_repeats"].as_u64().unwrap();
    assert!(repeats <= possible && possible <= 4 * 10, "{repeats} of {possible}");
    arrived.sort();
    arrived.dedup();
    let others = ids(60).into_iter().filter(|id| told.iter().all(|(told, _)| told != id));
    assert_eq!(arrived, others.collect::<Vec<_>>());

    // Mended: what is left over is what can never be sent.
    limit_message_size(&rabbit, 100_000);
    let again = platform.dacapo.run(["replay", "--json", "--rejects", &file].iter().chain(&skip));
    let left = check_passed_over(&again, 4, 1);
    assert_eq!(rejects(&left), [(id(20), "unsendable".to_owned())]);
    let mut arrived = take(&url, QUEUE);
    arrived.dedup();
    assert_eq!(arrived, [id(7), id(8), id(40)]);
}

/// As `max_message_size` in `rabbitmq.conf`, for channels that are opened from now on.
fn limit_message_size(rabbit: &Rabbit, bytes: u32) {
    let set = format!(
        "application:set_env(rabbit, max_message_size, {bytes}), \
         persistent_term:put(max_message_size, {bytes})."
    );
    rabbit.ctl(&["eval", &set]).unwrap();
}

fn take(url: &str, queue: &str) -> Vec<String> {
    let taken = ask(url, json!({ "op": "get", "queue": queue, "max": 1_000 }));
    event_ids(taken["messages"].as_array().unwrap())
}

#[test]
fn a_reject_file_that_is_damaged_empty_or_of_another_archive_is_refused() {
    let (platform, queue) = setting();
    let args = ["replay", "--json", "--to-exchange", &platform.exchange, "--on-reject", "skip"];
    let file = check_passed_over(&platform.dacapo.run(args), EVENTS, EVENTS / 3);
    let text = std::fs::read_to_string(&file).unwrap();
    let check = |name: &str, text: &str, status: i32, words: &str| {
        let path = platform.dacapo.file(name, text);
        let path = path.to_str().unwrap();
        let to = ["replay", "--to-queue", queue.name(), "--rejects", path];
        let output = platform.dacapo.run(to);
        output.check(status);
        assert!(output.stderr.contains(words) && output.stderr.contains(name), "{output:?}");
    };
    check("empty.jsonl", "", 3, "it has no events");
    check("changed.jsonl", &text.replacen("e-000005", "e-000006", 1), 3, "line 2: it was changed");
    check("prose.jsonl", "what is this\n", 3, "line 1: it is no reject");

    let other = Platform::new();
    other.import(3);
    let to = ["replay", "--to-queue", queue.name(), "--rejects", &file];
    let output = other.dacapo.run(to);
    output.check(3);
    assert!(output.stderr.contains("name that archive"), "{output:?}");
    assert!(Path::new(&file).exists());

    // Where the replay is not known, its target is not either.
    let output = other.dacapo.run(["replay", "--rejects", &file]);
    output.check(2);
    assert!(output.stderr.contains("--to-queue"), "{output:?}");
    // What was picked out of it is as good.
    let picked: String = text.lines().take(2).map(|line| format!("{line}\n")).collect();
    let picked = platform.dacapo.file("picked.jsonl", &picked);
    let picked = picked.to_str().unwrap();
    let receipt =
        platform.dacapo.json(["replay", "--json", "--to-queue", queue.name(), "--rejects", picked]);
    check_receipt(&receipt, "completed", 2, 2);
    queue.take(EVENTS);
    dacapo_integration::wait::until("the queue is empty", DEADLINE, || {
        Ok((queue.depth() == 0).then_some(()))
    })
    .unwrap();
}
