//! What speaks against a target: shown by `plan`, refused by `replay`, overridden by name, and then in
//! the receipt. The management plugin is asked as a user with the documented tag and no permission.

use dacapo_integration::dacapo::{Dacapo, Output};
use dacapo_integration::folder::RunFolder;
use dacapo_integration::rabbit::Rabbit;
use dacapo_integration::wait;
use serde_json::{Value, json};

use super::platform::{DEADLINE, Platform, Watcher, ask};
use super::{services, witness};

const EVENTS: usize = 3;

/// A platform with some archived events, and names on the broker that nobody else has.
struct Stage {
    platform: Platform,
    management: String,
    _watcher: Watcher,
    queue: String,
}

impl Stage {
    /// Returns one, unless the broker has no management plugin.
    fn new() -> Option<Self> {
        Some(Stage::on(&services::amqp(), &services::management()?))
    }

    fn on(amqp: &str, management: &str) -> Self {
        let watcher = Watcher::new(management);
        let mut dacapo = Dacapo::new();
        dacapo.set("DACAPO_MANAGEMENT", &watcher.url());
        let platform = Platform::on(amqp, dacapo);
        platform.import(EVENTS);
        let management = management.to_owned();
        Stage { platform, management, _watcher: watcher, queue: services::unique("queue") }
    }

    fn put(&self, path: &str, body: Value) {
        witness::management(&self.management, &json!([["PUT", path, body]])).expect("it is made");
    }

    /// Declares the stage's queue.
    fn queue(&self, arguments: Value) {
        let body = json!({ "durable": true, "arguments": arguments });
        self.put(&format!("queues/%2F/{}", self.queue), body);
    }

    fn bind(&self, exchange: &str, queue: &str) {
        self.platform.ask(json!({
            "op": "bind_queue", "exchange": exchange, "queue": queue, "routing_key": "#",
        }));
    }

    fn run(&self, command: &[&str], flags: &[&str]) -> Output {
        self.platform.dacapo.run(command.iter().chain(flags))
    }

    /// Checks that exactly this is found and refused, and that the override is in the receipt.
    #[track_caller]
    fn check(&self, flags: &[&str], name: &str, words: &str) {
        let plan = self.platform.dacapo.json(["plan", "--json"].iter().chain(flags));
        let preflight = &plan["preflight"];
        let findings = preflight["findings"].as_array().expect("a list");
        let refusals: Vec<&Value> =
            findings.iter().filter(|finding| finding["severity"] == "refusal").collect();
        let [finding] = refusals[..] else { panic!("{preflight}") };
        assert_eq!(finding["name"], name, "{preflight}");
        assert!(finding["what"].as_str().expect("text").contains(words), "{finding}");
        assert_eq!((&preflight["refuses"], &preflight["unchecked"]), (&json!(true), &json!([])));

        let refused = self.run(&["replay"], flags);
        refused.check(5);
        let flag = format!("--override {name}");
        for word in [name, words, &flag, "nothing was published"] {
            assert!(refused.stderr.contains(word), "no “{word}” in {}", refused.stderr);
        }

        let receipt = self.run(&["replay", "--json", "--override", name], flags);
        receipt.check(0);
        let receipt = receipt.json();
        assert_eq!(receipt["overridden"], json!([name]), "{receipt}");
        assert_eq!(receipt["confirmed"], EVENTS, "{receipt}");
        let shown = receipt["replay"].as_str().expect("an id");
        let shown = self.platform.dacapo.json(["replays", "show", shown, "--json"]);
        assert_eq!(shown["overridden"], json!([name]), "{shown}");
    }

    #[track_caller]
    fn check_queue(&self, name: &str, words: &str) {
        self.check(&["--to-queue", &self.queue], name, words);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A broker that is down at the end of a test keeps it, and no other test minds.
        let queue = json!([["DELETE", format!("queues/%2F/{}", self.queue), null]]);
        witness::management(&self.management, &queue).ok();
    }
}

#[test]
fn a_queue_that_drops_after_a_time_is_refused_whoever_says_so() {
    let Some(stage) = Stage::new() else { return };
    stage.queue(json!({ "x-message-ttl": 60_000_000 }));
    stage.check_queue("queue-ttl", "60000000 ms (argument `x-message-ttl`)");
    let Some(stage) = Stage::new() else { return };
    stage.queue(json!({}));
    let (pattern, definition) =
        (format!("^{}$", stage.queue), json!({ "message-ttl": 70_000_000 }));
    let policy = json!({ "pattern": pattern, "definition": definition, "apply-to": "queues" });
    stage.put(&format!("operator-policies/%2F/{}", stage.queue), policy);
    stage.check_queue("queue-ttl", &format!("(operator policy `{}`)", stage.queue));
    let policy = format!("operator-policies/%2F/{}", stage.queue);
    witness::management(&stage.management, &json!([["DELETE", policy, null]])).unwrap();
}

#[test]
fn a_queue_that_would_drop_its_oldest_events_is_refused() {
    let Some(stage) = Stage::new() else { return };
    stage.queue(json!({ "x-max-length": EVENTS - 1 }));
    stage.check_queue("queue-drops-head", "past 2 messages (argument `x-max-length`)");
}

#[test]
fn a_queue_that_nobody_consumes_and_that_then_vanishes_is_refused() {
    let Some(stage) = Stage::new() else { return };
    stage.queue(json!({ "x-expires": 60_000_000 }));
    stage.check_queue("queue-expires", "without a consumer");
}

#[test]
fn a_queue_whose_rejects_come_back_to_it_is_refused() {
    let Some(stage) = Stage::new() else { return };
    stage.queue(json!({
        "x-dead-letter-exchange": "", "x-dead-letter-routing-key": stage.queue,
    }));
    stage.check_queue("dead-letter-loop", "dead-lettered back to it");
}

#[test]
fn a_queue_without_a_consumer_is_refused_if_one_is_required() {
    let Some(stage) = Stage::new() else { return };
    stage.queue(json!({}));
    stage.check(
        &["--to-queue", &stage.queue, "--require-consumer"],
        "no-consumer",
        "nobody consumes",
    );
    let output = stage.run(&["replay"], &["--to-queue", &stage.queue]);
    output.check(0);
}

#[test]
fn an_exchange_that_feeds_an_archiver_is_refused() {
    let Some(stage) = Stage::new() else { return };
    let archiver = stage.platform.start_archiver(&[]);
    archiver.stop();
    let exchange = &stage.platform.exchange;
    let words = format!("leads to the archiver's queue `{}`", stage.platform.archive_queue);
    stage.check(&["--to-exchange", exchange], "feeds-archiver", &words);
    let parked = format!("{}.parked", stage.platform.archive_queue);
    stage.check(&["--to-queue", &parked], "feeds-archiver", "is an archiver's");
}

#[test]
fn an_exchange_that_hides_what_no_queue_takes_is_refused() {
    let Some(stage) = Stage::new() else { return };
    stage.queue(json!({}));
    let exchange = services::unique("hiding");
    let arguments = json!({ "alternate-exchange": "amq.fanout" });
    let body = json!({ "type": "topic", "durable": true, "arguments": arguments });
    stage.put(&format!("exchanges/%2F/{exchange}"), body);
    stage.bind(&exchange, &stage.queue);
    stage.check(&["--to-exchange", &exchange], "alternate-exchange", "to exchange `amq.fanout`");
    stage.platform.ask(json!({ "op": "delete_exchange", "exchange": exchange }));
}

/// It passed, and failed at the broker in the middle.
#[test]
fn a_replay_to_the_original_exchanges_is_refused_if_one_is_gone() {
    let Some(stage) = Stage::new() else { return };
    // The exchange that imported events name was never on this broker.
    let refused = stage.run(&["replay", "--yes"], &["--to-original"]);
    refused.check(5);
    let words = "target-missing: exchange `shop`, to which events were first published";
    assert!(refused.stderr.contains(words), "{refused:?}");
}

#[test]
fn what_is_overridden_and_then_fails_at_the_broker_fails_there() {
    let Some(stage) = Stage::new() else { return };
    let flags = ["--to-queue", &stage.queue];
    let refused = stage.run(&["replay"], &flags);
    refused.check(5);
    assert!(refused.stderr.contains("target-missing: queue"), "{refused:?}");
    let failed = stage.run(&["replay", "--json", "--override", "target-missing"], &flags);
    failed.check(5);
    let receipt = failed.json();
    assert_eq!(receipt["overridden"], json!(["target-missing"]), "{failed:?}");
    assert_eq!(receipt["confirmed"], 0, "{failed:?}");
}

#[test]
fn a_saved_plan_keeps_its_overrides_and_is_looked_at_again() {
    let Some(stage) = Stage::new() else { return };
    stage.queue(json!({ "x-message-ttl": 60_000_000 }));
    let flags = ["--to-queue", &stage.queue, "--out", "plan.json"];
    stage.run(&["plan", "--override", "queue-ttl"], &flags).check(0);
    let replayed = stage.run(&["replay", "--json", "--plan", "plan.json"], &[]);
    replayed.check(0);
    assert_eq!(replayed.json()["overridden"], json!(["queue-ttl"]));
    stage.run(&["plan"], &flags).check(0);
    stage.run(&["replay", "--plan", "plan.json"], &[]).check(5);
    let path = format!("queues/%2F/{}", stage.queue);
    witness::management(&stage.management, &json!([["DELETE", path, null]])).unwrap();
    stage.queue(json!({}));
    let replayed = stage.run(&["replay", "--json", "--plan", "plan.json"], &[]);
    replayed.check(0);
    assert_eq!(replayed.json()["overridden"], json!([]));
}

#[test]
fn without_the_management_plugin_a_plan_says_what_was_not_looked_at() {
    let platform = Platform::new();
    platform.import(EVENTS);
    let queue = witness::Queue::new("unchecked");
    let plan = platform.dacapo.run(["plan", "--to-queue", queue.name()]);
    plan.check(0);
    let unchecked = "unchecked  queue-ttl, queue-drops-head, queue-expires, dead-letter-loop, \
                     broker-disk-low, broker-memory-alarm, feeds-archiver: AMQP cannot tell";
    assert!(plan.stdout.contains(unchecked), "{}", plan.stdout);
    assert!(!plan.stdout.contains("REFUSED"), "{}", plan.stdout);
    platform.dacapo.run(["replay", "--to-queue", queue.name()]).check(0);
}

#[test]
fn alarms_of_a_real_broker_are_refused_while_they_last() {
    let folder = RunFolder::create().unwrap();
    let rabbit = Rabbit::start(&folder.path().join("rabbit")).unwrap();
    let url = rabbit.amqp_url();
    let stage = Stage::on(&url, &rabbit.management_url());
    ask(&url, json!({ "op": "declare_queue", "queue": stage.queue }));
    let flags = ["--to-queue", stage.queue.as_str()];
    let refuses = |name: &str| {
        let what = format!("the plan tells of {name}");
        let told = || {
            let plan = stage.platform.dacapo.json(["plan", "--json"].iter().chain(&flags));
            let findings = plan["preflight"]["findings"].as_array().expect("a list").clone();
            Ok(findings.iter().any(|finding| finding["name"] == name).then_some(()))
        };
        wait::until(&what, DEADLINE, told).unwrap();
        let refused = stage.run(&["replay"], &flags);
        refused.check(5);
        assert!(refused.stderr.contains(name), "{refused:?}");
    };
    rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"]).unwrap();
    refuses("broker-memory-alarm");
    rabbit.ctl(&["set_vm_memory_high_watermark", "absolute", "2GB"]).unwrap();
    // More than any disk has.
    rabbit.ctl(&["set_disk_free_limit", "1000000GB"]).unwrap();
    refuses("broker-disk-low");
    rabbit.ctl(&["set_disk_free_limit", "50MB"]).unwrap();
    let clear = || {
        let output = stage.run(&["replay"], &flags);
        Ok((output.status == Some(0)).then_some(()))
    };
    wait::until("a replay is let through again", DEADLINE, clear).unwrap();
}
