//! Which queues a replay to exchanges reaches: what `plan` predicts is what a real RabbitMQ then does,
//! and a replay to more than one queue asks for an approval first.

use std::collections::BTreeMap;

use dacapo_integration::campaign::schedule::Dice;
use dacapo_integration::dacapo::{Dacapo, Output};
use dacapo_integration::environment;
use dacapo_integration::process::Signal;
use dacapo_integration::wait;
use dacapo_integration::witness::python;
use serde_json::{Value, json};

use super::platform::{self, DEADLINE, Platform, Watcher, ask, await_depth, id};
use super::witness::Queue;
use super::{services, witness};

/// A platform whose dacapo may ask the management plugin, with exchanges and queues of its own.
struct Stage {
    platform: Platform,
    watcher: Watcher,
    exchanges: BTreeMap<&'static str, String>,
    queues: BTreeMap<String, Queue>,
}

impl Stage {
    /// Returns one, unless the broker has no management plugin.
    fn new() -> Option<Self> {
        let management = services::management()?;
        let watcher = Watcher::new(&management);
        let mut dacapo = Dacapo::new();
        dacapo.set("DACAPO_MANAGEMENT", &watcher.url());
        let platform = Platform::on(&services::amqp(), dacapo);
        Some(Stage { platform, watcher, exchanges: BTreeMap::new(), queues: BTreeMap::new() })
    }

    /// Declares an exchange, which hands on what it routes nowhere to another one, if one is named.
    fn exchange(&mut self, name: &'static str, kind: &str, alternate: Option<&str>) {
        let arguments = match alternate {
            Some(alternate) => {
                let alternate = self.exchanges.get(alternate).map_or(alternate, String::as_str);
                json!([["alternate-exchange", "S", alternate]])
            }
            None => json!([]),
        };
        let exchange = services::unique(name);
        self.platform.ask(json!({
            "op": "declare_exchange", "exchange": exchange, "type": kind, "arguments": arguments,
        }));
        self.exchanges.insert(name, exchange);
    }

    /// Binds a queue of this name, which is made if it is not there.
    fn bind(&mut self, exchange: &str, key: &str, queue: &str, arguments: &Value) {
        let made = || Queue::new(queue);
        let queue = self.queues.entry(queue.to_owned()).or_insert_with(made).name().to_owned();
        self.platform.ask(json!({
            "op": "bind_queue", "exchange": self.exchanges[exchange], "queue": queue,
            "routing_key": key, "arguments": arguments,
        }));
    }

    /// Binds an exchange to another one.
    fn bind_exchange(&self, source: &str, key: &str, destination: &str) {
        let management = services::management().expect("the stage was made with it");
        let path =
            format!("bindings/%2F/e/{}/e/{}", self.exchanges[source], self.exchanges[destination]);
        let body = json!({ "routing_key": key, "arguments": {} });
        witness::management(&management, &json!([["POST", path, body]])).unwrap();
    }

    /// Imports an event for each place and header table, with the ids that [`id`] gives.
    fn import(&self, events: &[(&str, &str, Value)]) {
        let line = |(n, (exchange, key, headers)): (usize, &(&str, &str, Value))| {
            let exchange = self.exchanges.get(exchange).map_or(*exchange, String::as_str);
            let event = json!({
                "id": id(n), "time": "2026-01-02T00:00:00Z", "type": "t", "exchange": exchange,
                "routing_key": key, "headers": headers, "body": "b",
            });
            format!("{event}\n")
        };
        let lines: String = events.iter().enumerate().map(line).collect();
        let import = ["archive", "import", "-", "--name", "history"];
        self.platform.dacapo.run_with_input(import, lines.into_bytes()).check(0);
    }

    fn plan(&self, flags: &[&str]) -> Value {
        self.platform.dacapo.json(["plan", "--json"].iter().chain(flags))
    }

    fn replay(&self, flags: &[&str]) -> Output {
        self.platform.dacapo.run(["replay", "--json"].iter().chain(flags))
    }

    /// Checks that a replay brings to each queue what the plan says, and returns the plan's words.
    #[track_caller]
    fn check(&self, flags: &[&str]) -> Value {
        let radius = self.plan(flags)["blast_radius"].clone();
        let approve = radius["approve"].as_str().expect("a hash");
        let how = [
            "--approve",
            approve,
            "--on-reject",
            "skip",
            "--override",
            "alternate-exchange",
            "--override",
            "target-missing",
        ];
        let replayed = self.replay(&[flags, &how].concat());
        let receipt = replayed.json();
        let count = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value}: {receipt}"));
        assert_eq!(receipt["approval"], json!({ "hash": approve, "by": "hash" }), "{receipt}");
        assert_eq!(count(&receipt["selected"]), count(&radius["events"]));
        assert_eq!(count(&receipt["remaining"]), 0, "{receipt}");
        if radius["exact"] == true {
            assert_eq!(count(&receipt["rejected"]), count(&radius["unrouted"]), "{radius}");
        }
        let predicted = predicted(&radius);
        let names: Vec<&str> = self.queues.values().map(Queue::name).collect();
        for name in predicted.keys() {
            assert!(names.contains(&name.as_str()), "{name} is a queue of nobody's");
        }
        let mut wrong = Vec::new();
        for (short, queue) in &self.queues {
            let (least, most) = predicted.get(queue.name()).copied().unwrap_or((0, 0));
            let came = queue.depth();
            if came < least || came > most {
                wrong.push(format!("{short}: {came} came, {least} to {most} predicted"));
            }
            assert!(least == most || radius["exact"] == false, "{radius}");
            self.platform.ask(json!({ "op": "purge_queue", "queue": queue.name() }));
        }
        assert!(wrong.is_empty(), "{flags:?}: {wrong:#?} {radius:#}");
        radius
    }

    fn name(&self, queue: &str) -> &str {
        self.queues[queue].name()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let delete = |name: &String| json!({ "op": "delete_exchange", "exchange": name });
        let delete: Vec<Value> = self.exchanges.values().map(delete).collect();
        // A broker that is down at the end of a test keeps them, and no other test minds.
        witness::raw_amqp(&services::amqp(), &delete).ok();
    }
}

/// Returns the least and the most that each queue would receive.
fn predicted(radius: &Value) -> BTreeMap<String, (u64, u64)> {
    let queues = radius["queues"].as_array().expect("a list");
    let of = |queue: &Value| {
        let name = queue["queue"].as_str().expect("a name").to_owned();
        let count = |member: &str| queue[member].as_u64().expect("a count");
        (name, (count("events_certain"), count("events")))
    };
    queues.iter().map(of).collect()
}

/// Keys with no word, empty words, one and many.
const KEYS: [&str; 14] = [
    "",
    ".",
    "..",
    "order",
    "order.",
    ".order",
    "order.placed",
    "order..placed",
    "order.placed.eu",
    "order.paid.eu.de",
    "user.placed",
    "user",
    "eu",
    "a.b.c.d.e",
];

const PATTERNS: [&str; 22] = [
    "",
    "#",
    "*",
    "*.*",
    "#.#",
    "#.*",
    "*.#",
    "*.#.*",
    ".",
    "order",
    "order.",
    "order.#",
    "order.*",
    "#.eu",
    "*.placed",
    "order.*.eu",
    "order.#.eu",
    "#.placed.#",
    "order..placed",
    "*.*.*",
    "#.b.#.d.#",
    "user.#",
];

#[test]
fn topic_patterns_match_as_the_broker_matches_them() {
    let Some(mut stage) = Stage::new() else { return };
    stage.exchange("topic", "topic", None);
    for (n, pattern) in PATTERNS.iter().enumerate() {
        stage.bind("topic", pattern, &format!("q{n}"), &json!([]));
    }
    let events: Vec<_> = KEYS.iter().map(|key| ("shop", *key, json!({}))).collect();
    stage.import(&events);
    let topic = stage.exchanges["topic"].clone();
    let radius = stage.check(&["--to-exchange", &topic]);
    assert_eq!((&radius["exact"], &radius["events"]), (&json!(true), &json!(KEYS.len())));
    stage.check(&["--to-exchange", &topic, "--with-routing-key", "order.placed"]);
    stage.check(&["--to-exchange", &topic, "--routing-key", "order.#"]);
}

#[test]
fn headers_are_compared_as_the_broker_compares_them() {
    let Some(mut stage) = Stage::new() else { return };
    stage.exchange("headers", "headers", None);
    let bindings = [
        json!([]),
        json!([["x-match", "S", "any"]]),
        json!([["x-match", "S", "all"], ["to", "S", "eu"]]),
        json!([["x-match", "S", "all"], ["to", "S", "eu"], ["kind", "S", "a"]]),
        json!([["x-match", "S", "any"], ["to", "S", "eu"], ["kind", "S", "a"]]),
        json!([["to", "S", "eu"], ["x-own", "S", "1"]]),
        json!([["x-match", "S", "all-with-x"], ["to", "S", "eu"], ["x-own", "S", "1"]]),
        json!([["x-match", "S", "any-with-x"], ["to", "S", "us"], ["x-own", "S", "1"]]),
        json!([["x-match", "S", "any-with-x"], ["x-dacapo-event-id", "S", "e-000001"]]),
        json!([["flag", "t", true]]),
    ];
    for (n, arguments) in bindings.iter().enumerate() {
        stage.bind("headers", "", &format!("h{n}"), arguments);
    }
    let headers = [
        json!({}),
        json!({ "to": "eu" }),
        json!({ "to": "eu", "kind": "a" }),
        json!({ "to": "us", "kind": "a" }),
        json!({ "to": "eu", "x-own": "1" }),
        json!({ "x-own": "1" }),
        json!({ "to": null }),
        json!({ "flag": true }),
        json!({ "flag": false, "to": 7 }),
    ];
    let events: Vec<_> = headers.iter().map(|headers| ("shop", "k", headers.clone())).collect();
    stage.import(&events);
    let exchange = stage.exchanges["headers"].clone();
    let radius = stage.check(&["--to-exchange", &exchange]);
    assert_eq!(radius["exact"], true, "{radius}");
    // Of which type a number in a binding is, and whether there is a value, the plugin does not tell.
    stage.bind("headers", "", "there", &json!([["to", "V", null]]));
    stage.bind("headers", "", "number", &json!([["to", "I", 7]]));
    let radius = stage.check(&["--to-exchange", &exchange]);
    assert_eq!(radius["undecided_exchanges"], json!([exchange]), "{radius}");
    assert_eq!(predicted(&radius)[stage.name("number")], (0, 1));
    assert_eq!(predicted(&radius)[stage.name("there")], (0, 6));
}

/// `topic` leads to all others, some of which lead back; what it routes nowhere is spilled.
fn all_kinds(stage: &mut Stage) {
    stage.exchange("spill", "fanout", None);
    stage.exchange("topic", "topic", Some("spill"));
    stage.exchange("direct", "direct", Some("topic"));
    stage.exchange("fanout", "fanout", None);
    stage.exchange("headers", "headers", Some("direct"));
    stage.exchange("dropping", "direct", Some(""));
    stage.exchange("unbound", "topic", None);
    let none = json!([]);
    stage.bind("topic", "order.#", "orders", &none);
    stage.bind("topic", "order.#", "audit", &none);
    stage.bind("topic", "#.eu", "eu", &none);
    stage.bind("direct", "user", "users", &none);
    stage.bind("fanout", "ignored", "audit", &none);
    stage.bind("headers", "", "tenant", &json!([["tenant", "S", "acme"]]));
    stage.bind("spill", "", "spilled", &none);
    stage.bind_exchange("topic", "order.placed", "fanout");
    stage.bind_exchange("fanout", "", "topic");
    stage.bind_exchange("direct", "order", "headers");
    stage.bind_exchange("topic", "*.placed", "direct");
}

#[test]
fn exchanges_of_all_kinds_lead_where_the_plan_says() {
    let Some(mut stage) = Stage::new() else { return };
    all_kinds(&mut stage);
    let mut events = Vec::new();
    for exchange in ["topic", "direct", "fanout", "headers", "dropping", "unbound", ""] {
        for (n, key) in KEYS.iter().enumerate() {
            let tenant = if n % 2 == 0 { json!({ "tenant": "acme" }) } else { json!({}) };
            events.push((exchange, *key, tenant));
        }
    }
    let users = stage.name("users").to_owned();
    events.push(("", &users, json!({})));
    events.push(("dropping", &users, json!({})));
    stage.import(&events);
    for exchange in stage.exchanges.clone().into_values() {
        stage.check(&["--to-exchange", &exchange]);
    }
    let radius = stage.check(&["--to-original"]);
    assert_eq!(radius["events"], events.len(), "{radius}");
    // Whether the default exchange takes what another one hands on is not the same everywhere.
    assert_eq!(radius["undecided_exchanges"], json!([""]), "{radius}");
}

/// A topology that nobody thought of, the same each time.
#[test]
fn exchanges_that_are_bound_at_random_lead_where_the_plan_says() {
    let Some(mut stage) = Stage::new() else { return };
    let mut dice = Dice::new(5);
    let names = ["a", "b", "c", "d", "e", "f"];
    let kinds = ["topic", "direct", "fanout", "headers", "topic", "direct"];
    for (n, (name, kind)) in names.into_iter().zip(kinds).enumerate() {
        let alternate = names[..n].last().filter(|_| dice.below(3) > 0);
        stage.exchange(name, kind, alternate.copied());
    }
    let queues = ["q", "r", "s", "t", "u", "v", "w", "x"];
    let asked = [
        json!([["to", "S", "eu"]]),
        json!([["to", "S", "us"], ["kind", "S", "a"]]),
        json!([["x-match", "S", "any"], ["to", "S", "us"], ["kind", "S", "a"]]),
    ];
    let words = [&KEYS[..], &PATTERNS].concat();
    for _ in 0..24 {
        let arguments = asked[usize::try_from(dice.below(3)).unwrap()].clone();
        let (exchange, queue) = (dice.choose(&names), dice.choose(&queues));
        stage.bind(exchange, dice.choose(&words), queue, &arguments);
    }
    for _ in 0..9 {
        let (source, destination) = (dice.choose(&names), dice.choose(&names));
        stage.bind_exchange(source, dice.choose(&words), destination);
    }
    let mut headers =
        || json!({ "to": dice.choose(&["eu", "us", "jp"]), "kind": dice.choose(&["a", "b"]) });
    let mut events = Vec::new();
    for exchange in names {
        events.extend(KEYS.map(|key| (exchange, key, headers())));
    }
    stage.import(&events);
    let mut reached = 0;
    for exchange in stage.exchanges.clone().into_values() {
        let radius = stage.check(&["--to-exchange", &exchange]);
        assert_eq!(radius["exact"], true, "{radius}");
        reached += predicted(&radius).len();
    }
    assert!(reached > 12, "{reached} are few");
    stage.check(&["--to-original"]);
}

#[test]
fn a_plan_says_who_consumes_and_which_queues_were_not_asked_for() {
    let Some(mut stage) = Stage::new() else { return };
    let archiver = stage.platform.start_archiver(&[]);
    stage.exchanges.insert("live", stage.platform.exchange.clone());
    stage.bind("live", "order.#", "orders", &json!([]));
    let events = ["order.placed", "order.paid", "mail"].map(|key| ("live", key, json!({})));
    stage.import(&events);
    let exchange = stage.platform.exchange.clone();
    let flags = ["--to-exchange", &exchange, "--expect-queue", stage.name("orders")];
    // The plugin tells of a consumer after some seconds.
    let radius = wait::until("the archiver is seen", DEADLINE, || {
        let radius = stage.plan(&flags)["blast_radius"].clone();
        let mut queues = radius["queues"].as_array().expect("a list").iter();
        Ok(queues.any(|queue| queue["consumers"] == 1).then_some(radius))
    })
    .unwrap();
    let of = |name: &str| {
        let mut queues = radius["queues"].as_array().expect("a list").iter();
        queues.find(|queue| queue["queue"] == name).expect("it is reached").clone()
    };
    let archive = of(&stage.platform.archive_queue);
    assert_eq!((&archive["events"], &archive["asked_for"]), (&json!(3), &json!(false)));
    assert_eq!(archive["consumers"], 1, "{radius}");
    let consumer = &archive["consumed_by"][0];
    assert!(consumer["tag"].is_string() && consumer["connection"].is_string(), "{radius}");
    let orders = of(stage.name("orders"));
    assert_eq!((&orders["events"], &orders["asked_for"]), (&json!(2), &json!(true)));
    assert_eq!(orders["consumers"], 0, "{radius}");
    let text = stage.platform.dacapo.run(["plan"].iter().chain(&flags)).stdout;
    for words in ["reaches    2 queues, 1 NOT ASKED FOR", "nobody", "approve    a replay asks for"]
    {
        assert!(text.contains(words), "no “{words}” in {text}");
    }
    archiver.stop();
}

/// Checks that a replay is refused before anything is published, and returns the hash it asks for.
#[track_caller]
fn refused(stage: &Stage, flags: &[&str], words: &str) -> String {
    let output = stage.replay(flags);
    output.check(5);
    for word in ["nothing was published", words, "--approve"] {
        assert!(output.stderr.contains(word), "no “{word}” in {}", output.stderr);
    }
    for queue in stage.queues.values() {
        assert_eq!(queue.depth(), 0, "{}", queue.name());
    }
    assert_eq!(stage.platform.dacapo.json(["replays", "ls", "--json"])["replays"], json!([]));
    let (_, hash) = output.stderr.split_once("give `--approve ").expect("it names the hash");
    hash.split('`').next().expect("it ends").to_owned()
}

#[test]
fn a_replay_to_more_than_one_queue_asks_for_an_approval_of_just_that() {
    let Some(mut stage) = Stage::new() else { return };
    stage.exchange("topic", "topic", None);
    stage.bind("topic", "order.#", "orders", &json!([]));
    stage.import(&["order.placed", "order.paid"].map(|key| ("topic", key, json!({}))));
    let exchange = stage.exchanges["topic"].clone();
    let to = ["--to-exchange", exchange.as_str()];
    stage.bind("topic", "#", "audit", &json!([]));
    let hash = refused(&stage, &to, "2 queues would receive events");
    assert_eq!(stage.plan(&to)["blast_radius"]["approve"], hash);
    assert_eq!(stage.plan(&to)["blast_radius"]["needs_approval"], true);
    refused(&stage, &[&to[..], &["--yes"]].concat(), "--yes does not approve that");
    assert_eq!(refused(&stage, &["--to-original", "--yes"], "2 queues").len(), 64);

    let approved = [&to[..], &["--approve", &hash]].concat();
    stage.bind("topic", "*.paid", "mail", &json!([]));
    let now = refused(&stage, &approved, "bindings have changed");
    assert_ne!(now, hash);
    let saved = [&to[..], &["--out", "plan.json"]].concat();
    let out = stage.plan(&saved)["blast_radius"]["approve"].clone();
    assert_eq!(out, now);
    refused(&stage, &["--plan", "plan.json"], "3 queues");
    refused(&stage, &["--plan", "plan.json", "--approve", &hash], "bindings have changed");
    for more in [&[][..], &["--yes"]] {
        let saved = ["replay", "--plan", "plan.json"].iter().chain(more);
        let without = stage.platform.dacapo.spawn_with(saved, &[("DACAPO_MANAGEMENT", "")]);
        let without = without.wait(DEADLINE);
        without.check(5);
        assert!(without.stderr.contains("that the plan was made with is not named"), "{without:?}");
    }
    // The same queues with other counts are not what was looked at.
    let fewer = [&to[..], &["--routing-key", "*.paid", "--approve", &now]].concat();
    refused(&stage, &fewer, "--approve is of another plan");

    let receipt = stage.replay(&["--plan", "plan.json", "--approve", &now]);
    receipt.check(0);
    let receipt = receipt.json();
    assert_eq!(receipt["approval"], json!({ "hash": now, "by": "hash" }), "{receipt}");
    let id = receipt["replay"].as_str().expect("an id");
    let shown = stage.platform.dacapo.json(["replays", "show", id, "--json"]);
    assert_eq!(shown["approval"]["hash"], now, "{shown}");
    let depths = ["orders", "audit", "mail"].map(|queue| stage.queues[queue].depth());
    assert_eq!(depths, [2, 2, 1]);
}

#[test]
fn a_person_at_a_terminal_approves_by_typing_how_many_queues_it_is() {
    let Some(mut stage) = Stage::new() else { return };
    stage.exchange("topic", "topic", None);
    stage.bind("topic", "#", "orders", &json!([]));
    stage.bind("topic", "#", "audit", &json!([]));
    stage.import(&[("topic", "order.placed", json!({}))]);
    let mut terminal = Dacapo::of_binary(python());
    terminal.set_archive(stage.platform.dacapo.archive().to_owned());
    terminal.set("DACAPO_AMQP", &services::amqp());
    terminal.set("DACAPO_MANAGEMENT", &stage.watcher.url());
    let script = environment::root().join("integration/witness/terminal.py");
    let script = script.to_str().expect("the path is text");
    let binary = stage.platform.dacapo.binary().to_str().expect("the path is text");
    let exchange = stage.exchanges["topic"].clone();
    let typed = |line: &str| {
        let command = [script, line, binary, "replay", "--json", "--to-exchange", &exchange];
        terminal.run(command)
    };
    let refused = typed("everyone");
    refused.check(2);
    assert!(refused.stderr.contains("not confirmed; nothing was published"), "{refused:?}");
    assert!(refused.stderr.contains("reaches    2 queues"), "{}", refused.stderr);
    assert_eq!(stage.queues["audit"].depth(), 0);
    let receipt = typed("2 queues");
    receipt.check(0);
    assert_eq!(receipt.json()["approval"]["by"], "terminal");
    assert_eq!(stage.queues["audit"].depth(), 1);
}

#[test]
fn a_replay_to_one_queue_needs_no_approval_unless_another_was_asked_for() {
    let Some(mut stage) = Stage::new() else { return };
    stage.exchange("topic", "topic", None);
    stage.bind("topic", "order.#", "orders", &json!([]));
    stage.import(&["order.placed", "order.paid"].map(|key| ("topic", key, json!({}))));
    let exchange = stage.exchanges["topic"].clone();
    let to = ["--to-exchange", exchange.as_str()];
    let elsewhere = [&to[..], &["--expect-queue", "elsewhere"]].concat();
    refused(&stage, &elsewhere, "1 queue would receive events");
    let receipt = stage.replay(&to);
    receipt.check(0);
    assert_eq!(receipt.json()["approval"], Value::Null);
    assert_eq!(stage.queues["orders"].depth(), 2);
    // Everyone is one queue here, and is asked about all the same.
    stage.replay(&["--to-original"]).check(2);
    stage.replay(&["--to-original", "--yes"]).check(0);
    stage.replay(&["--to-queue", stage.name("orders"), "--approve", &"0".repeat(64)]).check(2);
}

#[test]
fn a_resumed_replay_asks_again_only_if_another_queue_is_reached() {
    let Some(mut stage) = Stage::new() else { return };
    stage.exchange("topic", "topic", None);
    stage.bind("topic", "#", "orders", &json!([]));
    stage.bind("topic", "#", "audit", &json!([]));
    stage.platform.import(1_000);
    let exchange = stage.exchanges["topic"].clone();
    let to = ["--to-exchange", &exchange, "--rate", "200", "--window", "50"];
    let approve = stage.plan(&to)["blast_radius"]["approve"].as_str().unwrap().to_owned();
    let interrupted = |running: dacapo_integration::dacapo::Running, depth| {
        await_depth(&stage.queues["orders"], depth);
        running.signal(Signal::Terminate).unwrap();
        running.wait(DEADLINE).check(6);
    };
    let flags = [&to[..], &["--approve", &approve]].concat();
    let (running, replay) = stage.platform.start_replay(&flags);
    interrupted(running, 50);
    // The same queues: what was approved stands.
    let resume = ["replay", "resume", "--json", &replay];
    let running = stage.platform.dacapo.spawn(resume);
    let before = stage.queues["orders"].depth();
    interrupted(running, before + 50);

    stage.bind("topic", "#", "late", &json!([]));
    let refused = stage.platform.dacapo.run(resume);
    refused.check(5);
    assert!(refused.stderr.contains("3 queues would receive events"), "{}", refused.stderr);
    assert_eq!(stage.queues["late"].depth(), 0);
    let (_, hash) = refused.stderr.split_once("give `--approve ").expect("it names the hash");
    let hash = hash.split('`').next().unwrap();
    let resumed = stage.platform.dacapo.run(resume.iter().chain(&["--approve", hash]));
    resumed.check(0);
    assert_eq!(resumed.json()["approval"]["hash"], hash);
    assert!(stage.queues["late"].depth() > 0);
}

#[test]
fn where_the_plugin_does_not_answer_somebody_has_to_say_yes() {
    let mut platform = Platform::new();
    platform.import(2);
    let queue = platform.service("orders");
    let to = ["--to-exchange", platform.exchange.as_str()].map(str::to_owned);
    // Without a plugin nobody can tell, as ever.
    let plan = platform.dacapo.run(["plan"].iter().copied().chain(to.iter().map(String::as_str)));
    assert!(plan.stdout.contains("unchecked  which queues are reached"), "{}", plan.stdout);
    platform.dacapo.run(["replay"].iter().copied().chain(to.iter().map(String::as_str))).check(0);
    assert_eq!(queue.take(3).len(), 2);

    platform.dacapo.set("DACAPO_MANAGEMENT", "http://guest:guest@127.0.0.1:1");
    let run = |more: &[&str]| {
        let flags = to.iter().map(String::as_str).chain(more.iter().copied());
        platform.dacapo.run(["replay"].iter().copied().chain(flags))
    };
    let asked = run(&[]);
    asked.check(2);
    assert!(asked.stderr.contains("give --yes if that is meant"), "{}", asked.stderr);
    run(&["--approve", &"0".repeat(64)]).check(5);
    assert_eq!(queue.depth(), 0);
    run(&["--yes"]).check(0);
    assert_eq!(platform::event_ids(&queue.take(3)), platform::ids(2));
    ask(&services::amqp(), json!({ "op": "purge_queue", "queue": queue.name() }));
}
