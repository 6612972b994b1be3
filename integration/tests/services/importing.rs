//! Imports: every packing, any names, restartable, and bodies as they were.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::wait;
use serde_json::{Value, json};

use super::fixtures::{check_refused, event, ids, import, lines, ndjson, raw};
use super::witness;

const DEADLINE: Duration = Duration::from_secs(120);

/// Compresses by a program that is not ours: Python's own.
fn packed(how: &str, text: &str) -> Vec<u8> {
    let program = match how {
        "gzip" => {
            "import sys, gzip; sys.stdout.buffer.write(gzip.compress(sys.stdin.buffer.read()))"
        }
        "zstd" => {
            "import sys, pyarrow; \
             sys.stdout.buffer.write(pyarrow.compress(sys.stdin.buffer.read(), 'zstd', asbytes=True))"
        }
        other => panic!("{other}"),
    };
    let mut python = Command::new(witness::python())
        .args(["-c", program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python runs");
    let mut stdin = python.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).expect("it reads everything first");
    drop(stdin);
    let output = python.wait_with_output().expect("it ends");
    assert!(output.status.success());
    output.stdout
}

#[test]
fn plain_gzip_zstd_and_stdin_are_the_same_events() {
    let text = lines(25);
    let expected: Vec<String> = (0..25).map(|n| format!("e-{n}")).collect();
    for (name, bytes) in [
        ("in.ndjson", text.clone().into_bytes()),
        ("in.ndjson.gz", packed("gzip", &text)),
        ("in.ndjson.zst", packed("zstd", &text)),
        // The content says what it is, not the name.
        ("misnamed.txt", packed("gzip", &text)),
        ("no-last-line-end.ndjson", text.trim_end().as_bytes().to_vec()),
    ] {
        let dacapo = Dacapo::new();
        dacapo.file(name, bytes);
        assert_eq!(dacapo.json(["archive", "import", "--json", name])["events"], 25, "{name}");
        assert_eq!(ids(&dacapo), expected, "{name}");
    }
    for bytes in [text.clone().into_bytes(), packed("zstd", &text)] {
        let dacapo = Dacapo::new();
        let args = ["archive", "import", "--json", "--name", "from-a-pipe", "-"];
        let output = dacapo.run_with_input(args, bytes);
        output.check(0);
        assert_eq!(output.json()["events"], 25);
        assert_eq!(ids(&dacapo), expected);
        let listed = dacapo.json(["archive", "ls", "--json"]);
        assert_eq!(listed["streams"][0]["stream"], "from-a-pipe");
    }
}

#[test]
fn several_files_are_a_stream_each_named_after_it() {
    let dacapo = Dacapo::new();
    dacapo.file("orders 2026.ndjson", lines(3));
    dacapo.file("refunds.jsonl.gz", packed("gzip", &ndjson((10..14).map(event))));
    let args = ["archive", "import", "--json", "orders 2026.ndjson", "refunds.jsonl.gz"];
    let imported = dacapo.json(args);
    assert_eq!((&imported["events"], &imported["segments"]), (&json!(7), &json!(2)));
    let listed = dacapo.json(["archive", "ls", "--json"]);
    let names: Vec<&Value> =
        listed["streams"].as_array().unwrap().iter().map(|stream| &stream["stream"]).collect();
    assert_eq!(names, ["import-orders-2026", "import-refunds"]);
    let again = dacapo.json(args);
    assert_eq!((&again["events"], &again["already"]), (&json!(0), &json!(7)));
    assert_eq!(ids(&dacapo).len(), 7);
}

/// Killed wherever it is, as often as it is: run again, nothing is there twice and nothing is
/// missing.
#[test]
fn an_import_that_was_killed_goes_on_and_adds_nothing_twice() {
    /// Enough for hundreds of segments, so that a kill is in the middle.
    const EVENTS: u64 = 12_000;
    let dacapo = Dacapo::new();
    dacapo.file("in.ndjson", lines(EVENTS));
    let args = ["archive", "import", "--json", "in.ndjson", "--roll-bytes", "16k"];
    let mut durable = 0;
    for _ in 0..3 {
        let running = dacapo.spawn(args);
        wait::until("the import has written some segments", DEADLINE, || {
            Ok((dacapo.segments().len() >= durable + 5).then_some(()))
        })
        .unwrap();
        let killed = running.kill();
        assert_eq!(killed.status, None, "it had ended before it was killed: {killed:?}");
        durable = dacapo.segments().len();
    }
    // What is committed so far is sound; what was put and not committed is told.
    let verified = dacapo.json(["archive", "verify", "--json"]);
    let so_far = verified["events"].as_u64().unwrap();
    assert!(so_far > 0 && so_far < EVENTS, "{verified}");

    let finished = dacapo.json(args);
    let count = |member: &str| finished[member].as_u64().unwrap();
    // A segment that was put and not yet committed is taken over as it is, not written again.
    assert!(count("already") >= so_far, "{finished}");
    assert_eq!(count("events") + count("already"), EVENTS, "{finished}");
    let found = ids(&dacapo);
    assert_eq!(found.len() as u64, EVENTS);
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len() as u64, EVENTS);
    assert_eq!(dacapo.json(["archive", "verify", "--json"])["events"], EVENTS);
    assert_eq!(dacapo.json(args)["events"], 0);
}

#[test]
fn a_file_that_grew_is_continued_and_one_that_changed_is_refused_with_a_way_out() {
    let dacapo = Dacapo::new();
    import(&dacapo, "shop", &lines(10), &[]);
    let grown = import(&dacapo, "shop", &lines(15), &[]);
    assert_eq!((&grown["events"], &grown["already"]), (&json!(5), &json!(10)));

    let changed = lines(20).replacen("\"e-3\"", "\"e-changed\"", 1);
    dacapo.file("shop.ndjson", changed);
    let words = ["stream `shop`", "`shop.ndjson`", "has changed", "--name"];
    let refused = dacapo.run(["archive", "import", "--name", "shop", "shop.ndjson"]);
    check_refused(&refused, 9, &words);
    // Another mapping makes other events, too.
    dacapo.file("shop.ndjson", lines(20));
    let mapped = ["archive", "import", "--name", "shop", "shop.ndjson", "--key-field", "type"];
    check_refused(&dacapo.run(mapped), 9, &words);
    assert_eq!(ids(&dacapo).len(), 15);
    // The way out works.
    dacapo.run(["archive", "import", "--name", "shop-2", "shop.ndjson"]).check(0);
    assert_eq!(ids(&dacapo).len(), 35);
}

#[test]
fn members_of_other_names_and_places_are_mapped() {
    let dacapo = Dacapo::new();
    let line = json!({
        "meta": { "uuid": "m-1", "at": 1_772_359_200_000_u64 },
        "name": "order.placed",
        "entity": 17,
        "topic": "orders.eu",
        "bus": "shop",
        "attributes": { "tenant": "acme" },
        "payload": { "total": 1 },
    });
    import(
        &dacapo,
        "mapped",
        &ndjson([line]),
        &[
            "--id-field=/meta/uuid",
            "--time-field=/meta/at",
            "--type-field=name",
            "--key-field=entity",
            "--routing-key-field=topic",
            "--exchange-field=bus",
            "--headers-field=attributes",
            "--body-field=payload",
        ],
    );
    let events = dacapo.run(["events", "--json"]).ndjson();
    let expected = json!({
        "id": "m-1",
        "time": "2026-03-01T10:00:00Z",
        "type": "order.placed",
        "key": "17",
        "routing_key": "orders.eu",
        "exchange": "shop",
        "headers": { "tenant": "acme" },
        "body": "{\"total\":1}",
    });
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(&events[0][member], value, "{member}");
    }
}

/// A body that is JSON is kept as that JSON without the spaces: no member moved, no number
/// rewritten, no escape changed in meaning.
#[test]
fn a_json_body_keeps_its_order_and_its_numbers() {
    let dacapo = Dacapo::new();
    let bodies = [
        r#"{ "z": 1.50, "a": 1e3, "m": 12345678901234567890123, "z2": -0.0 }"#,
        r#"[ 1.0,  2.00 , {"b" : null,"a":true} ]"#,
        r#""just text, \"quoted\", é""#,
        "17.10",
        "true",
        r#"{"dup":1, "dup":2}"#,
        r#"{"spaces in  a  string": "  kept  "}"#,
    ];
    let expected = [
        r#"{"z":1.50,"a":1e3,"m":12345678901234567890123,"z2":-0.0}"#,
        r#"[1.0,2.00,{"b":null,"a":true}]"#,
        "just text, \"quoted\", é",
        "17.10",
        "true",
        r#"{"dup":1,"dup":2}"#,
        r#"{"spaces in  a  string":"  kept  "}"#,
    ];
    let lines: String = bodies
        .iter()
        .enumerate()
        .map(|(n, body)| {
            format!("{{\"id\":\"b-{n}\", \"time\":\"2026-03-01T00:00:00Z\", \"body\": {body}}}\n")
        })
        .collect();
    import(&dacapo, "bodies", &lines, &[]);
    for (n, expected) in expected.iter().enumerate() {
        assert_eq!(String::from_utf8(raw(&dacapo, &format!("b-{n}"))).unwrap(), *expected);
    }
}

#[test]
fn blank_lines_and_windows_line_ends_are_no_events() {
    let dacapo = Dacapo::new();
    let text = format!("\n{}\r\n\r\n  \n{}\r\n", event(0), event(1));
    assert_eq!(import(&dacapo, "dos", &text, &[])["events"], 2);
    assert_eq!(ids(&dacapo), ["e-0", "e-1"]);
}

#[test]
fn an_import_of_nothing_makes_no_archive_that_looks_damaged() {
    let dacapo = Dacapo::new();
    dacapo.file("empty.ndjson", "");
    let report = dacapo.json(["archive", "import", "empty.ndjson", "--json"]);
    assert_eq!((&report["events"], &report["segments"]), (&json!(0), &json!(0)));
    assert!(!Path::new(dacapo.archive()).join("heads").exists() || dacapo.segments().is_empty());
    assert!(fs::read_dir(dacapo.archive()).is_ok());
}
