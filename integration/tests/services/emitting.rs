//! `dacapo emit`: new events on a real broker, each confirmed, seen through the witness.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use dacapo_integration::process::Signal;
use serde_json::{Value, json};

use super::platform::{DEADLINE, Platform, await_depth, id};
use super::witness::Queue;

/// More than a window, so that confirms are waited for on the way.
const EVENTS: usize = 1_500;

fn bodies(messages: &[Value]) -> Vec<&str> {
    messages.iter().map(|message| message["body"].as_str().unwrap()).collect()
}

/// Writes a file of events for a platform, each with its id and number.
fn file(platform: &Platform, numbers: std::ops::Range<usize>) -> String {
    let line = |n: usize| {
        let event = json!({
            "id": id(n), "type": "order.placed", "exchange": platform.exchange,
            "routing_key": format!("order.{n}"), "body": { "n": n },
        });
        format!("{event}\n")
    };
    let lines: String = numbers.map(line).collect();
    platform.dacapo.file("events.ndjson", lines).display().to_string()
}

#[test]
fn one_event_arrives_with_what_the_flags_say_and_an_id_of_its_own() {
    let platform = Platform::new();
    let queue = platform.service("service");
    let args = [
        "emit",
        "--json",
        "--exchange",
        &platform.exchange,
        "--routing-key",
        "order.placed",
        "--type",
        "order.placed",
        "--header",
        "tenant=acme",
        "--body",
        r#"{"order": 7}"#,
    ];
    assert_eq!(platform.dacapo.json(args), json!({ "confirmed": 1, "skipped": 0 }));
    assert_eq!(platform.dacapo.json(args)["confirmed"], 1);
    let taken = queue.take(10);
    assert_eq!(bodies(&taken), [r#"{"order": 7}"#; 2]);
    let [first, second] = taken.as_slice() else { panic!("{taken:?}") };
    assert_eq!(first["routing_key"], "order.placed");
    let properties = &first["properties"];
    assert_eq!(properties["content_type"], "application/json");
    assert_eq!(properties["delivery_mode"], 2);
    assert_eq!(properties["type"], "order.placed");
    assert_eq!(properties["headers"], json!([["tenant", "S", "acme"]]));
    assert!(properties["timestamp"].as_u64().unwrap() > 1_700_000_000, "{first}");
    let ids = [first, second].map(|message| message["properties"]["message_id"].to_string());
    assert!(ids[0] != ids[1] && ids[0].len() == "\"00000000-0000-0000-0000-000000000000\"".len());
}

#[test]
fn a_file_arrives_in_order_and_is_archived_as_new_events() {
    let platform = Platform::new();
    let queue = platform.service("service");
    let archiver = platform.start_archiver(&[]);
    let events = file(&platform, 0..EVENTS);
    assert_eq!(platform.dacapo.json(["emit", "--json", &events])["confirmed"], EVENTS);
    let taken = queue.take(EVENTS + 1);
    let expected: Vec<String> = (0..EVENTS).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
    assert_eq!(bodies(&taken), expected);
    assert_eq!(taken[17]["properties"]["message_id"], id(17));
    archiver.await_metric("unacked", EVENTS);
    assert_eq!(archiver.stop()["events"], EVENTS);
    assert_eq!(platform.archived_ids().len(), EVENTS);
}

#[test]
fn what_replay_writes_to_a_file_can_be_emitted_elsewhere() {
    let platform = Platform::new();
    platform.import(20);
    let queue = platform.service("service");
    let lines = platform.dacapo.folder().join("lines.ndjson").display().to_string();
    platform.dacapo.run(["replay", "--to-file", &lines]).check(0);
    let args = ["emit", "--json", &lines, "--exchange", &platform.exchange];
    assert_eq!(platform.dacapo.json(args)["confirmed"], 20);
    let taken = queue.take(100);
    assert_eq!(taken[3]["routing_key"], "order.placed.0", "as it was");
    assert_eq!(taken[3]["properties"]["message_id"], id(3));
}

#[test]
fn an_unroutable_event_is_named_and_skip_goes_on_after_what_was_confirmed() {
    let platform = Platform::new();
    let queue = Queue::new("service");
    for n in 0..5 {
        queue.bind(&platform.exchange, &format!("order.{n}"));
    }
    let events = file(&platform, 0..8);
    let output = platform.dacapo.run(["emit", "--json", &events]);
    output.check(5);
    for words in ["event 6", "NO_ROUTE", "--skip 5", "--routing-key"] {
        assert!(output.stderr.contains(words), "{words}: {output:?}");
    }
    queue.bind(&platform.exchange, "#");
    let rest = platform.dacapo.json(["emit", "--json", &events, "--skip", "5"]);
    assert_eq!(rest, json!({ "confirmed": 3, "skipped": 5 }));
    assert_eq!(queue.take(100).len(), 8);
}

#[test]
fn what_is_no_event_ends_it_with_its_line_and_what_was_before_is_confirmed() {
    let platform = Platform::new();
    let queue = platform.service("service");
    let good = fs::read_to_string(file(&platform, 0..3)).unwrap();
    for (bad, words) in [
        ("{\"id\": \"x\"", "EOF"),
        ("[1]", "a JSON object"),
        ("{\"body\": 1, \"body_base64\": \"AA==\"}", "both"),
    ] {
        let text = format!("{good}\n\n{bad}\n{good}");
        let path = platform.dacapo.file("bad.ndjson", text).display().to_string();
        let output = platform.dacapo.run(["emit", "--json", &path]);
        output.check(9);
        for words in [words, "line 6 of", "--skip 3"] {
            assert!(output.stderr.contains(words), "{words}: {output:?}");
        }
        assert_eq!(queue.take(100).len(), 3, "{bad}");
    }
}

#[test]
fn a_lines_id_arrives_whatever_else_its_properties_say() {
    let platform = Platform::new();
    let queue = platform.service("service");
    let line = |id: &str| {
        let line = json!({
            "id": id, "type": "order.placed", "exchange": platform.exchange, "routing_key": "k",
            "properties": { "content_type": "text/plain" }, "body": "x",
        });
        format!("{line}\r\n")
    };
    // As a tool on another system writes it.
    let text = format!("\u{feff}{}{}", line("order-1"), line("order-2"));
    let path = platform.dacapo.file("events.ndjson", text).display().to_string();
    assert_eq!(platform.dacapo.json(["emit", "--json", &path])["confirmed"], 2);
    for (message, id) in queue.take(9).iter().zip(["order-1", "order-2"]) {
        let properties = &message["properties"];
        assert_eq!(properties["message_id"], id, "{message}");
        assert_eq!(properties["type"], "order.placed", "{message}");
        assert_eq!(properties["content_type"], "text/plain", "{message}");
    }
    let path = platform.dacapo.file("long.ndjson", line(&"x".repeat(300))).display().to_string();
    platform.dacapo.run(["emit", &path]).check(9);
}

#[test]
fn an_event_that_cannot_be_sent_is_named_and_those_before_it_are_confirmed() {
    let platform = Platform::new();
    let queue = platform.service("service");
    let good = fs::read_to_string(file(&platform, 0..2)).unwrap();
    let bad = json!({ "headers": { "h": "x".repeat(200_000) }, "exchange": platform.exchange });
    let path = platform.dacapo.file("bad.ndjson", format!("{good}{bad}\n{good}"));
    let output = platform.dacapo.run(["emit".as_ref(), path.as_os_str()]);
    output.check(5);
    for words in ["event 3 was not sent", "frame_max", "--skip 2"] {
        assert!(output.stderr.contains(words), "{words}: {output:?}");
    }
    assert_eq!(queue.take(9).len(), 2);
}

/// Its archiver would take it for what it has already.
#[test]
fn a_message_that_is_marked_as_a_replay_is_not_emitted() {
    let platform = Platform::new();
    platform.import(1);
    let (target, service) = (Queue::new("target"), platform.service("service"));
    platform.dacapo.run(["replay", "--to-queue", target.name()]).check(0);
    let message = target.take(1).remove(0);
    let headers: Vec<Value> = message["properties"]["headers"].as_array().unwrap().clone();
    let headers: serde_json::Map<String, Value> = headers
        .iter()
        .map(|header| (header[0].as_str().unwrap().to_owned(), header[2].clone()))
        .collect();
    let line =
        json!({ "headers": headers, "body": message["body"], "exchange": platform.exchange });
    let path = platform.dacapo.file("marked.ndjson", format!("{line}\n")).display().to_string();
    let output = platform.dacapo.run(["emit", &path]);
    output.check(9);
    assert!(output.stderr.contains("dacapo replay --id"), "{output:?}");
    assert_eq!(service.depth(), 0);
}

#[test]
fn a_dry_run_prints_what_would_be_published_and_publishes_nothing() {
    let platform = Platform::new();
    let queue = platform.service("service");
    let events = file(&platform, 0..3);
    let output = platform.dacapo.run(["emit", "--dry-run", &events, "--routing-key", "other"]);
    output.check(0);
    let printed = output.ndjson();
    assert_eq!(printed.len(), 3);
    assert_eq!(printed[2]["routing_key"], "other");
    assert_eq!(printed[2]["body"], r#"{"n":2}"#);
    assert_eq!(queue.depth(), 0);
    // And is itself a file of events.
    let path = platform.dacapo.file("printed.ndjson", &output.stdout).display().to_string();
    assert_eq!(platform.dacapo.json(["emit", "--json", &path])["confirmed"], 3);
    assert_eq!(queue.take(9)[1]["properties"]["message_id"], id(1));
}

#[test]
fn a_body_becomes_the_protobuf_message_of_a_descriptor_set() {
    let platform = Platform::new();
    let queue = platform.service("service");
    let set = platform.dacapo.file("envelope.binpb", envelope()).display().to_string();
    let emit = |body: &str| {
        platform.dacapo.run([
            "emit",
            "--exchange",
            &platform.exchange,
            "--routing-key",
            "k",
            "--descriptor-set",
            &set,
            "--message",
            "dacapo.envelope.v1.Envelope",
            "--body",
            body,
        ])
    };
    emit(r#"{"id": "e1", "timeUnixUs": "5", "payload": "YQ=="}"#).check(0);
    let message = queue.take(1).remove(0);
    assert_eq!(message["body"], "\n\u{2}e1\u{10}\u{5}:\u{1}a", "fields 1, 2 and 7");
    assert_eq!(message["properties"]["content_type"], "application/x-protobuf");
    let given = ["--content-type", "application/json"];
    let args = [
        "emit",
        "--exchange",
        &platform.exchange,
        "--routing-key",
        "k",
        "--descriptor-set",
        &set,
        "--body",
        "{}",
    ];
    platform.dacapo.run(args.iter().chain(&given)).check(0);
    assert_eq!(queue.take(1)[0]["properties"]["content_type"], "application/json", "as was said");
    let output = emit(r#"{"id": "e1", "colour": "red"}"#);
    output.check(2);
    for words in ["dacapo.envelope.v1.Envelope", "colour"] {
        assert!(output.stderr.contains(words), "{words}: {output:?}");
    }
}

fn envelope() -> Vec<u8> {
    let schemas: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas");
    let mut compiler = protox::Compiler::new([&schemas]).unwrap();
    compiler.open_file(schemas.join("dacapo/envelope/v1/envelope.proto")).unwrap();
    compiler.encode_file_descriptor_set()
}

#[test]
fn an_exchange_that_is_not_there_is_refused() {
    let platform = Platform::new();
    let args = ["emit", "--exchange", "no-such", "--routing-key", "k", "--body", "x"];
    let output = platform.dacapo.run(args);
    output.check(5);
    assert!(output.stderr.contains("no-such"), "{output:?}");
}

#[test]
fn wrong_flags_are_explained() {
    let platform = Platform::new();
    let events = file(&platform, 0..2);
    for (args, words) in [
        (vec!["emit"], "required"),
        (vec!["emit", "--body", "x"], "--exchange"),
        (vec!["emit", &events, "--body", "x"], "cannot be used"),
        (vec!["emit", &events, "--skip", "3"], "has 2 events"),
        (vec!["emit", &events, "--id", "x"], "cannot be used"),
        (
            vec!["emit", "--exchange", "e", "--routing-key", "k", "--body", "x", "--header", "y"],
            "NAME=VALUE",
        ),
    ] {
        let output = platform.dacapo.run(args);
        output.check(2);
        assert!(output.stderr.contains(words), "{words}: {output:?}");
    }
    platform.dacapo.run(["emit", "/nowhere.ndjson"]).check(3);
}

/// The input goes on, as that of a pipe does whose writer is at work.
#[test]
fn an_interruption_says_how_to_go_on() {
    let platform = Platform::new();
    let queue = platform.service("service");
    let lines = fs::read(file(&platform, 0..3)).unwrap();
    let pipe = platform.dacapo.folder().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let running = platform.dacapo.spawn(["emit".as_ref(), pipe.as_os_str()]);
    let mut writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    writer.write_all(&lines).unwrap();
    await_depth(&queue, 3);
    running.signal(Signal::Interrupt).unwrap();
    let output = running.wait(DEADLINE);
    output.check(6);
    assert!(output.stderr.contains("--skip 3"), "{output:?}");
}
