//! `dacapo drill` on a real broker, with the example service of `dacapo-consumer` under test: drills
//! that meet their targets and drills that miss each, and what is left of them.

mod report;
pub(crate) mod stage;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use dacapo_integration::process::Signal;
use dacapo_integration::{wait, witness};
use serde_json::{Value, json};

use super::consumer::service::ENVELOPED;
use super::fixtures::{check_refused, middle_segment};
use super::platform::{DEADLINE, ask};
use super::services;
use stage::{Drilled, EVENTS, ORDERS, Stage};

#[test]
fn a_restore_that_meets_its_targets_is_proven() {
    let Some(stage) = Stage::new() else { return };
    let drilled = stage.drill(&stage.description("rto = '10m'\nrpo = '1h'"));
    drilled.check_met();
    let mode = std::fs::metadata(&drilled.folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "a service may log what it likes");
    let facts = &drilled.report["facts"];
    assert_eq!(facts["replay"]["confirmed"], EVENTS, "{facts}");
    assert_eq!(facts["service"]["drained"], json!({ "state": "yes" }), "{facts}");
    assert_eq!(facts["environment"]["isolation"], "made");
    assert_eq!(facts["environment"]["made"], json!({ "exchanges": 1, "queues": 1, "bindings": 1 }));
    assert_eq!(facts["environment"]["left_out"], json!(["users (1)", "policies (1)"]));
    let rows = facts["reconciliation"]["rows"].as_array().unwrap();
    let row = |row: &Value| {
        assert_eq!(row["archive"], row["target"], "{row}");
        (row["type"].as_str().unwrap().to_owned(), row["service"].as_u64().unwrap())
    };
    let expected = [("order.moved", 2), ("order.paid", 2), ("order.placed", 1)];
    let expected = expected.map(|(kind, each)| (kind.to_owned(), each * ORDERS as u64));
    assert_eq!(rows.iter().map(row).collect::<Vec<_>>(), expected);
    let parts = facts["parts"].as_array().unwrap().iter().map(|part| &part["name"]);
    let expected = ["environment", "service", "plan", "replay", "drain", "checks", "confirm"];
    assert_eq!(parts.collect::<Vec<_>>(), expected);

    let verified = stage.verify(&drilled);
    verified.check(0);
    assert_eq!(verified.json()["verdict"], "met");
    stage.check_signed_by_openssl(&drilled);
    // What is archived has not grown by what was replayed.
    assert_eq!(stage.platform.events().len(), EVENTS);
    report::check_shown(&stage, &drilled);
}

#[test]
fn each_target_that_is_missed_is_named_and_costs_the_status() {
    let Some(stage) = Stage::new() else { return };
    let targets = "rto = '1ms'\nrpo = '1ms'\n";
    let described = stage.description(targets).replace("2 * count(*)", "3 * count(*)");
    let drilled = stage.drill(&described);
    drilled.check_missed(&[
        ("recovery time (RTO)", "missed"),
        ("recovery point (RPO)", "missed"),
        ("service has what the archive gave", "missed"),
    ]);
    stage.verify(&drilled).check(0);

    let archiver = stage.platform.start_archiver(&ENVELOPED);
    let (lag, health) = (archiver.address(), archiver.address());
    let targets =
        format!("rto = '10m'\nrpo = '1h'\n[rpo]\narchiver_metrics = 'http://{lag}/metrics'\n");
    let asks = format!(
        "\n[[check]]\nname = 'it archives'\nhttp = 'http://{health}/health'\nexpect = 'ok'\n"
    ) + "[[check]]\nname = 'green too early'\n\
         command = ['sh', '-c', 'mkdir \"$DACAPO_DRILL_FOLDER/asked\"; echo $?']\nexpect = '0'\n\
         [[check]]\nname = 'tells'\ncommand = ['sh', '-c', 'echo \"$DACAPO_DRILL_AMQP\"']\n";
    let described = stage.description(&targets).replace("expect_number = 0", "expect = 'x'");
    let described = described.replace("SELECT 'order.moved'", "SELECT no_such_column") + &asks;
    let drilled = stage.drill(&described);
    archiver.stop();
    drilled.check_missed(&[
        ("recovery time (RTO)", "not-measured"),
        ("service has what the archive gave", "not-measured"),
        ("check: nothing is left to send", "missed"),
        ("check: green too early", "missed"),
    ]);
    assert_eq!(drilled.report["facts"]["rpo"]["source"], "archiver-lag");
    let found = |at: usize| drilled.report["facts"]["checks"][at]["found"].as_str().unwrap();
    assert_eq!(found(3), "green before everything was acked, not after it: 1");
    assert_eq!(found(4), "(hidden)");
}

#[test]
fn a_gap_in_the_archive_is_told_and_the_rest_is_restored() {
    let Some(stage) = Stage::of_segments() else { return };
    let (segment, _) = middle_segment(&stage.platform.dacapo);
    std::fs::remove_file(segment).unwrap();
    stage.keep_definitions("drilled");
    let from = "definitions = 'archive'\ndefinitions_vhost = 'drilled'";
    let described = stage.description("").replace("definitions = 'definitions.json'", from);
    let described = described.replace("within = '20s'", "within = '1s'");
    let drilled = stage.drill(&described);
    let missed = drilled.missed();
    assert!(
        missed.contains(&("archive without gaps".to_owned(), "missed".to_owned())),
        "{missed:?}"
    );
    let from = drilled.report["facts"]["environment"]["copied_from"].as_str().unwrap();
    assert!(from.contains("of the archive") && from.contains("`drilled`"), "{from}");
    let replay = &drilled.report["facts"]["replay"];
    assert!(replay["confirmed"].as_u64() > Some(0) && replay["confirmed"] != EVENTS, "{replay}");
    let target = ("target has what the archive gave".to_owned(), "missed".to_owned());
    assert!(!missed.contains(&target), "what there is was replayed: {missed:?}");
}

#[test]
fn a_service_that_dies_or_does_nothing_is_no_restore() {
    let Some(stage) = Stage::new() else { return };
    let described = stage.description("");
    let dies = stage.with_service(&described, "['sh', '-c', 'echo cannot >&2; exit 3']", "");
    let drilled = stage.drill(&dies);
    let missed = drilled.missed();
    assert_eq!(missed[0], ("drill carried out".to_owned(), "missed".to_owned()));
    assert_eq!(drilled.report["facts"]["service"]["ended"], "exit status: 3");
    assert_eq!(std::fs::read_to_string(drilled.folder.join("service.log")).unwrap(), "cannot\n");

    let lazy =
        "ready = ['true']\ndrain_within = '1s'\n[[check]]\nname = 'late'\ncommand = ['true']";
    let arguments = "arguments = { x-queue-type = 'quorum', x-delivery-limit = 5 }";
    let queue = format!("[[queue]]\nname = '{}'\n{arguments}\n", stage.queue);
    // Where the replay may not make an exchange, there is no witness either.
    let described = described.replace("[pace]", "via_default_exchange = true\n[pace]");
    let sleeps = stage.with_service(&described, "['sleep', '600']", lazy) + &queue;
    let drilled = stage.drill(&sleeps);
    assert_eq!(drilled.report["facts"]["reconciliation"]["target"], "receipt");
    drilled.check_missed(&[
        ("service drained its queue", "missed"),
        ("service has what the archive gave", "not-measured"),
        ("check: late", "not-measured"),
    ]);
    let why = drilled.report["facts"]["service"]["drained"]["how"].as_str().unwrap();
    assert!(why.starts_with(&format!("{EVENTS} still wait")), "{why}");
}

/// Takes everything at once, and acks it 12 seconds later.
const ACKS_LATE: &str = "import os, pika
broker = pika.BlockingConnection(pika.URLParameters(os.environ['DACAPO_DRILL_AMQP']))
channel = broker.channel()
tags = []
def take(channel, method, properties, body):
    if not tags:
        broker.call_later(12, lambda: channel.basic_ack(0, multiple=True))
    tags.append(method.delivery_tag)
channel.basic_consume(os.environ['DACAPO_DRILL_QUEUE'], take)
channel.start_consuming()
";

#[test]
fn what_is_delivered_and_not_acked_is_not_restored() {
    let Some(stage) = Stage::new() else { return };
    stage.platform.dacapo.file("late.py", ACKS_LATE);
    let described = stage.description("rto = '10m'");
    let command = format!("['{}', 'late.py']", witness::python().display());
    let queue = format!("[[queue]]\nname = '{}'\n", stage.queue);
    let described = stage.with_service(&described, &command, "") + &queue;
    let drilled = stage.drill(&described);
    drilled.check_missed(&[("service has what the archive gave", "not-measured")]);
    // RabbitMQ's statistics tell to within 6 s.
    let took = drilled.report["facts"]["rto_ms"].as_u64().unwrap();
    assert!(took >= 6_000, "{took} ms");
}

#[test]
fn a_signal_in_the_middle_takes_everything_down() {
    let Some(stage) = Stage::new() else { return };
    let described = stage.description("").replace("[pace]\n", "[pace]\nrate = 1\n");
    stage.platform.dacapo.file("drill.toml", described);
    let running = stage.platform.dacapo.spawn(stage.command("drill.toml"));
    running.wait_for_line("replay      begins", DEADLINE);
    let plays = || {
        let listed = stage.platform.dacapo.json(["replays", "ls", "--json"]);
        Ok((listed["replays"][0]["state"] == "running").then_some(()))
    };
    wait::until("the replay runs", DEADLINE, plays).unwrap();
    let pid = stage.service_pid().expect("the service runs");
    running.signal(Signal::Interrupt).unwrap();
    let output = running.wait(DEADLINE);
    output.check(10);
    let drilled = Drilled::of(output);
    let failure = &drilled.report["facts"]["failure"];
    assert_eq!(failure["problem"], "interrupted by a signal", "{failure}");
    let replay = &drilled.report["facts"]["replay"];
    assert_eq!(replay["state"], "cancelled", "it has no queue to go on to: {replay}");
    stage.check_gone(&drilled);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the service still runs");

    // While the evidence is gathered: all of it is taken down, and nothing is met.
    let asks =
        "command = ['sh', '-c', 'echo asked >&2; exec sleep 600']\ntimeout = '10m'\n[targets]";
    let described = stage.description("");
    let (before, rest) = described.split_once("[counts]\n").unwrap();
    let (_, after) = rest.split_once("[targets]").unwrap();
    stage.platform.dacapo.file("drill.toml", format!("{before}[counts]\n{asks}{after}"));
    let running = stage.platform.dacapo.spawn(stage.command("drill.toml"));
    let is_asked = || {
        let drills = stage.platform.dacapo.folder().join("state/drills");
        let folders = std::fs::read_dir(drills)?.flatten();
        let logs = folders.map(|it| std::fs::read_to_string(it.path().join("checks.log")));
        let asked = logs.flatten().any(|log| log.contains("asked"));
        Ok(asked.then_some(()))
    };
    wait::until("the service's counts are asked for", DEADLINE, is_asked).unwrap();
    running.signal(Signal::Hangup).unwrap();
    let output = running.wait(DEADLINE);
    output.check(10);
    let drilled = Drilled::of(output);
    stage.check_gone(&drilled);
    let failure = &drilled.report["facts"]["failure"];
    let expected = json!({
        "during": "evidence", "cause": "signal", "problem": "interrupted by a signal"
    });
    assert_eq!(failure, &expected);

    // While the virtual host is made, or just after.
    let running = stage.platform.dacapo.spawn(stage.command("drill.toml"));
    running.wait_for_line("environment begins", DEADLINE);
    running.signal(Signal::Interrupt).unwrap();
    let output = running.wait(DEADLINE);
    output.check(10);
    stage.check_gone(&Drilled::of(output));
}

#[test]
fn a_virtual_host_that_is_taken_keeps_what_it_had() {
    let Some(stage) = Stage::new() else { return };
    let taken = stage.description("").replace("[environment]", "[environment]\nvhost = '/'");
    stage.platform.dacapo.file("taken.toml", &taken);
    let refused = stage.platform.dacapo.run(stage.command("taken.toml"));
    check_refused(&refused, 5, &["production's own virtual host", "allow_shared"]);

    // Another address of the same broker does not make it another one.
    let elsewhere = services::amqp().replace("127.0.0.1", "localhost");
    let renamed = taken.replace("vhost = '/'", &format!("vhost = '/'\namqp = '{elsewhere}'"));
    stage.platform.dacapo.file("taken.toml", &renamed);
    let refused = stage.platform.dacapo.run(stage.command("taken.toml"));
    check_refused(&refused, 5, &["production's own virtual host", "allow_shared"]);

    // Another virtual host of it is not called apart. Nothing is ready there, so that it is short.
    let beside = services::unique("beside");
    let management = services::management().expect("a stage has one");
    let of_broker = |calls: Value| witness::management(&management, &calls).unwrap();
    let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
    of_broker(json!([
        ["PUT", format!("vhosts/{beside}"), {}],
        ["PUT", format!("permissions/{beside}/guest"), all],
    ]));
    let described = stage.with_service(&stage.description(""), "['false']", "");
    let described =
        described.replace("[environment]", &format!("[environment]\nvhost = '{beside}'"));
    let drilled = stage.drill(&described);
    assert_eq!(drilled.report["facts"]["environment"]["isolation"], "same-broker");
    of_broker(json!([["DELETE", format!("vhosts/{beside}"), null]]));

    let allowed = taken.replace("vhost = '/'", "vhost = '/'\nallow_shared = true");
    let drilled = stage.drill(&allowed);
    drilled.check_met();
    let environment = &drilled.report["facts"]["environment"];
    assert_eq!(environment["isolation"], "shared");
    let found = json!([format!("exchange `{}`", stage.platform.exchange)]);
    assert_eq!(environment["found"], found);
    assert_eq!(environment["made"], json!({ "exchanges": 0, "queues": 1, "bindings": 0 }));
    let left_out = environment["left_out"].as_array().unwrap();
    assert_eq!(left_out.last().unwrap(), "bindings with an end that was there already (1)");
    // Was there, and stays; was made by the drill, and is gone.
    stage.platform.ask(json!({
        "op": "declare_exchange", "exchange": stage.platform.exchange, "passive": true
    }));
    let gone = |queue: &str| {
        let asked = json!({ "op": "declare_queue", "queue": queue, "passive": true });
        let answers = witness::raw_amqp(&services::amqp(), &[asked]).unwrap();
        assert!(answers[0]["error"].as_str().is_some_and(|it| it.starts_with("404")), "{queue}");
    };
    gone(&stage.settled);
    gone(&format!("dacapo.drill.witness.{}", drilled.id()));

    // The service's own queue is there, and has something in it.
    ask(&services::amqp(), json!({ "op": "publish", "routing_key": stage.queue, "body": "x" }));
    let busy = stage.drill(&allowed);
    assert_eq!(busy.missed()[0].0, "drill carried out");
    let failure = busy.report["facts"]["failure"]["problem"].as_str().unwrap().to_owned();
    assert!(failure.contains("1 messages already"), "{failure}");
    for queue in [stage.queue.clone(), format!("{}.dead", stage.queue)] {
        ask(&services::amqp(), json!({ "op": "delete_queue", "queue": queue }));
    }
}

#[test]
fn a_report_that_was_changed_is_not_believed() {
    let Some(stage) = Stage::new() else { return };
    // Nothing is ready, so that it is short.
    let described = stage.with_service(&stage.description(""), "['false']", "");
    let drilled = stage.drill(&described);
    stage.verify(&drilled).check(0);
    let path = drilled.folder.join("report.json");
    let page = drilled.folder.join("report.html");
    let (report, shown) = (std::fs::read(&path).unwrap(), std::fs::read_to_string(&page).unwrap());

    std::fs::write(&page, shown.replace("targets missed", "targets met")).unwrap();
    check_refused(&stage.verify(&drilled), 9, &["is not the page of this report"]);
    std::fs::write(&page, shown).unwrap();
    let changed = String::from_utf8(report.clone()).unwrap().replace("\"missed\"", "\"met\"");
    std::fs::write(&path, changed).unwrap();
    check_refused(&stage.verify(&drilled), 9, &["signature does not fit", "report.json"]);
    std::fs::write(&path, report).unwrap();
    stage.verify(&drilled).check(0);
    // Whoever signs it anew did not run it.
    let folder = stage.platform.dacapo.folder();
    let openssl = |words: &[&str]| {
        let done = Command::new("openssl").args(words).current_dir(folder).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    let (report, signature) = (path.to_str().unwrap(), drilled.folder.join("report.json.sig"));
    let signed = std::fs::read(&signature).unwrap();
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "other.key"]);
    openssl(&["pkey", "-pubout", "-in", "other.key", "-out", "other.pub"]);
    let out = signature.to_str().unwrap();
    openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", "other.key", "-in", report, "-out", out]);
    let anew = stage.platform.dacapo.run(["drill", "verify", report, "--key", "other.pub"]);
    check_refused(&anew, 9, &["is not who ran it"]);
    std::fs::write(&signature, signed).unwrap();

    std::fs::remove_file(&page).unwrap();
    let pageless = stage.verify(&drilled);
    pageless.check(0);
    assert_eq!(pageless.json()["page"], "none");
    std::fs::remove_file(drilled.folder.join("report.json.sig")).unwrap();
    check_refused(&stage.verify(&drilled), 9, &["no signature", "--key"]);
}

#[test]
fn what_is_described_wrongly_is_told_before_anything_is_made() {
    let Some(stage) = Stage::new() else { return };
    let good = stage.description("");
    let check = |text: String, status: i32, words: &[&str]| {
        stage.platform.dacapo.file("wrong.toml", text);
        check_refused(&stage.platform.dacapo.run(stage.command("wrong.toml")), status, words);
    };
    check(good.replace("name = 'orders", "nmae = 'orders"), 2, &["wrong.toml", "line 1", "nmae"]);
    check(good.replace("[pace]", "[pace]\nrate = 'fast'"), 2, &["--rate", "whole number"]);
    check(good.replace("[selection]", "[selection]\nwhere = 'body.'"), 2, &["wrong.toml"]);
    let no_place = stage.platform.dacapo.run(["drill", "nowhere.toml"]);
    check_refused(&no_place, 3, &["nowhere.toml"]);
    let no_key = ["drill", "wrong.toml", "--key", "wrong.toml"];
    stage.platform.dacapo.file("wrong.toml", good);
    check_refused(&stage.platform.dacapo.run(no_key), 3, &["wrong.toml", "openssl genpkey"]);
    let example = stage.platform.dacapo.run(["drill", "--example"]);
    example.check(0);
    assert!(example.stdout.starts_with("# What `dacapo drill` rehearses"), "{}", example.stdout);
}
