//! What needs a broker of its own: one that is short of memory, one that dies, and an account whose
//! password is looked for everywhere.

use dacapo_integration::dacapo::{Dacapo, Running};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::process::Signal;
use dacapo_integration::rabbit::Rabbit;
use dacapo_integration::secrets::Secrets;
use dacapo_integration::wait;
use serde_json::{Value, json};

use super::platform::{ask, get, metric_in};
use super::{DEADLINE, EVENTS, Platform, check_receipt, event_ids, ids};
use crate::platform::messages;

const QUEUE: &str = "orders";

/// With characters that a URL must encode, so that both forms are looked for.
const SECRET: &str = "Pl4nted/s3cret:42";

fn depth(url: &str) -> u64 {
    let asked = ask(url, json!({ "op": "declare_queue", "queue": QUEUE, "passive": true }));
    asked["messages"].as_u64().unwrap()
}

#[track_caller]
fn await_depth(url: &str, least: u64) {
    let deep = || Ok((depth(url) >= least).then_some(()));
    wait::until("the queue is deep enough", DEADLINE, deep).unwrap();
}

fn take(url: &str) -> Vec<Value> {
    let taken = ask(url, json!({ "op": "get", "queue": QUEUE, "max": EVENTS * 2 }));
    taken["messages"].as_array().unwrap().clone()
}

/// Returns where a replay serves its metrics; needs `--log info` and `--metrics`.
fn address_of(replay: &Running) -> String {
    let line = replay.wait_for_line("serving /metrics and /health", DEADLINE);
    line.rsplit_once("address=").expect("it is a field of the line").1.trim().to_owned()
}

#[test]
fn a_replay_pauses_while_the_broker_is_short_of_memory() {
    let folder = RunFolder::create().unwrap();
    let rabbit = Rabbit::start(&folder.path().join("rabbit")).unwrap();
    let url = rabbit.amqp_url();
    let platform = Platform::on(&url, Dacapo::new());
    platform.import(EVENTS);
    ask(&url, json!({ "op": "declare_queue", "queue": QUEUE }));
    let watched = ["--metrics", "127.0.0.1:0", "--log", "info"];
    // Long enough for `rabbitmqctl`, which takes seconds on a loaded machine.
    let pace = ["--to-queue", QUEUE, "--rate", "150", "--window", "50"];
    let (replay, _) = platform.start_replay(&[&watched[..], &pace[..]].concat());
    let address = address_of(&replay);
    await_depth(&url, 100);
    assert_eq!(get(&address, "/health"), (200, "ok\n".to_owned()));

    rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).unwrap();
    let blocked = || Ok(Some(get(&address, "/health")).filter(|(status, _)| *status == 503));
    let (_, problem) = wait::until("the replay is blocked", DEADLINE, blocked).unwrap();
    assert!(problem.contains("blocked"), "{problem}");
    let before = depth(&url);
    assert!(before < EVENTS as u64, "it was over before");
    let confirmed = || metric_in(&get(&address, "/metrics").1, "dacapo_replay_confirmed_total");
    assert!(confirmed() < Some(EVENTS as f64));

    rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"]).unwrap();
    let output = replay.wait(DEADLINE);
    output.check(0);
    let receipt = output.json();
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    assert_eq!(receipt["possible_repeats"], 0, "it waited, and lost no connection");
    assert_eq!(event_ids(&take(&url)), ids(EVENTS));
}

/// The broker dies and comes back in the middle, so that the messages of lost connections are
/// among what is looked at.
#[test]
fn a_broker_that_dies_in_the_middle_loses_nothing_and_no_output_tells_the_password() {
    let folder = RunFolder::create().unwrap();
    let mut rabbit = Rabbit::start(&folder.path().join("rabbit")).unwrap();
    let url = rabbit.amqp_url();
    rabbit.ctl(&["add_user", "teller", SECRET]).unwrap();
    rabbit.ctl(&["set_permissions", "teller", ".*", ".*", ".*"]).unwrap();
    ask(&url, json!({ "op": "declare_queue", "queue": QUEUE }));
    let mut platform = Platform::on(&url, Dacapo::new());
    platform.dacapo.set("DACAPO_AMQP", &rabbit.amqp_url_as("teller", SECRET));
    let mut seen = Vec::new();

    let archiver = platform.start_archiver(&["--log", "trace", "--roll-age", "100ms"]);
    platform.publish(&messages(10));
    archiver.await_metric("events_total", 10);
    let metrics = archiver.health().1;
    platform.import(EVENTS);
    let history = ["--exchange", "shop", "--to-queue", QUEUE, "--exact"];
    let debug = ["--log", "debug"];
    let plan = platform
        .dacapo
        .run(["plan"].iter().chain(&history).chain(&debug).chain(&["--out", "plan.json"]));
    plan.check(0);
    let pace = ["--rate", "500", "--window", "50", "--log", "trace", "--metrics", "127.0.0.1:0"];
    let (replay, id) = platform.start_replay(&[&history[..], &pace[..]].concat());
    let address = address_of(&replay);
    await_depth(&url, 100);

    rabbit.ctl(&["eval", "[dets:sync(Table) || Table <- dets:all()]."]).unwrap();
    rabbit.kill().unwrap();
    for (what, health) in [("the archiver", None), ("the replay", Some(&address))] {
        let ill = || {
            let (status, problem) = match health {
                None => archiver.health(),
                Some(address) => get(address, "/health"),
            };
            Ok((status == 503).then_some(problem))
        };
        seen.push(wait::until(&format!("{what} has lost the broker"), DEADLINE, ill).unwrap());
    }
    let refused = platform.dacapo.run(["replay", "--to-queue", QUEUE, "--log", "debug"]);
    refused.check(8);
    rabbit.start_again().unwrap();
    let output = replay.wait(DEADLINE);
    output.check(0);
    let receipt = output.json();
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    let mut arrived = event_ids(&take(&url));
    let repeats = arrived.len() - EVENTS;
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived, ids(EVENTS));
    assert!(repeats as u64 <= receipt["possible_repeats"].as_u64().unwrap(), "{receipt}");

    let shown = platform.dacapo.run(["replays", "show", &id, "--json"]);
    shown.check(0);
    let password = ["--amqp", &rabbit.amqp_url_as("teller", "x"), "--to-queue", QUEUE];
    let wrong = platform.dacapo.run(["replay", "--log", "debug"].iter().chain(&password));
    wrong.check(5);
    platform.dacapo.set("DACAPO_AMQP_PASSWORD", SECRET);
    let right = platform.dacapo.run(["plan"].iter().chain(&password));
    right.check(0);
    let back = || Ok((archiver.health().0 == 200).then_some(()));
    wait::until("the archiver is back", DEADLINE, back).unwrap();
    archiver.stop();

    seen.push(metrics);
    // What its commands wrote is looked at by the harness, as in every test.
    let mut secrets = Secrets::default();
    secrets.add("test", SECRET.as_bytes());
    assert_eq!(secrets.told(seen.concat().as_bytes()), None);
}

/// Whether the URL is wrong or the broker down cannot be told, so a resumed replay waits no longer
/// than a new one.
#[test]
fn a_replay_resumed_while_the_broker_is_down_ends_at_once_and_is_as_it_was() {
    let folder = RunFolder::create().unwrap();
    let mut rabbit = Rabbit::start(&folder.path().join("rabbit")).unwrap();
    let url = rabbit.amqp_url();
    let platform = Platform::on(&url, Dacapo::new());
    platform.import(EVENTS);
    ask(&url, json!({ "op": "declare_queue", "queue": QUEUE }));
    let pace = ["--to-queue", QUEUE, "--rate", "500", "--window", "50"];
    let (replay, id) = platform.start_replay(&pace);
    await_depth(&url, 100);
    replay.signal(Signal::Interrupt).unwrap();
    replay.wait(DEADLINE).check(6);
    let arrived = event_ids(&take(&url));
    let shown = || platform.dacapo.json(["replays", "show", &id, "--json"]);
    let before = shown();

    rabbit.ctl(&["eval", "[dets:sync(Table) || Table <- dets:all()]."]).unwrap();
    rabbit.kill().unwrap();
    for _ in 0..2 {
        let output = platform.dacapo.spawn(["replay", "resume", &id]).wait(DEADLINE);
        output.check(8);
        for words in ["does not go on and is as it was", &format!("dacapo replay resume {id}")] {
            assert!(output.stderr.contains(words), "no “{words}” in {output:?}");
        }
        assert_eq!(shown(), before);
    }
    rabbit.start_again().unwrap();
    let receipt = platform.dacapo.json(["replay", "resume", &id, "--json"]);
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    let arrived = [arrived, event_ids(&take(&url))].concat();
    assert_eq!(arrived, ids(EVENTS), "none is lost, and none comes twice");
}
