//! Lines that are no events, files that cannot be read.

use std::fs;

use dacapo_integration::dacapo::Dacapo;
use serde_json::{Value, json};

use super::super::fixtures::{check_refused, event, ids, lines, ndjson, path};

/// Returns lines of which the third and the fifth are no events.
fn with_bad_lines() -> String {
    let good: Vec<String> = (0..4).map(|n| event(n).to_string()).collect();
    let [a, b, c, d] = &good[..] else { unreachable!("four") };
    format!("{a}\n{b}\n{{\"id\": \"x\", oops}}\n{c}\n{{\"id\":\"y\",\"time\":\"noon\"}}\n{d}\n")
}

#[test]
fn a_line_that_is_no_event_stops_the_import_with_its_number() {
    let dacapo = Dacapo::new();
    dacapo.file("in.ndjson", with_bad_lines());
    let output = dacapo.run(["archive", "import", "in.ndjson"]);
    let words = ["line 3 of `in.ndjson`", "column 13", "oops", "correct it", "--skip-bad"];
    check_refused(&output, 9, &words);
}

#[test]
fn what_is_before_a_bad_line_is_kept_once_the_line_is_mended() {
    let dacapo = Dacapo::new();
    let bad = lines(40) + "no event\n" + &event(40).to_string() + "\n";
    dacapo.file("in.ndjson", &bad);
    let args = ["archive", "import", "in.ndjson", "--roll-bytes", "8k", "--json"];
    let stopped = dacapo.run(args);
    stopped.check(9);
    assert!(stopped.stderr.contains("line 41"), "{stopped:?}");
    dacapo.file("in.ndjson", bad.replace("no event\n", ""));
    let again = dacapo.json(args);
    assert_eq!(again["events"].as_u64().unwrap() + again["already"].as_u64().unwrap(), 41);
    assert_eq!(ids(&dacapo), (0..41).map(|n| format!("e-{n}")).collect::<Vec<_>>());
}

#[test]
fn skipped_lines_are_counted_and_kept_in_a_reject_file() {
    let dacapo = Dacapo::new();
    dacapo.file("in.ndjson", with_bad_lines());
    let output = dacapo.run(["archive", "import", "in.ndjson", "--skip-bad", "--json"]);
    output.check(0);
    let report = output.json();
    assert_eq!((&report["events"], &report["skipped"]), (&json!(4), &json!(2)));
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{report}");
    assert_eq!((&problems[0]["line"], &problems[1]["line"]), (&json!(3), &json!(5)));
    assert!(problems[1]["problem"].as_str().unwrap().contains("`noon`"), "{report}");
    assert!(output.stderr.contains("2 lines"), "{output:?}");
    assert!(output.stderr.contains("`in.ndjson.rejects.ndjson`"), "{output:?}");

    let rejects = fs::read_to_string(dacapo.folder().join("in.ndjson.rejects.ndjson")).unwrap();
    let rejects: Vec<Value> =
        rejects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rejects.len(), 2);
    assert_eq!(rejects[0]["line"], 3);
    assert!(rejects[0].to_string().contains("oops"), "{}", rejects[0]);
    assert_eq!(ids(&dacapo), ["e-0", "e-1", "e-2", "e-3"]);
}

#[test]
fn the_reject_file_can_be_named_and_is_not_left_when_it_is_empty() {
    let dacapo = Dacapo::new();
    dacapo.file("bad.ndjson", with_bad_lines());
    dacapo.file("good.ndjson", lines(3));
    for file in ["bad.ndjson", "good.ndjson"] {
        let rejects = format!("{file}.kept");
        dacapo.run(["archive", "import", file, "--skip-bad", "--rejects", &rejects]).check(0);
    }
    assert!(dacapo.folder().join("bad.ndjson.kept").exists());
    assert!(!dacapo.folder().join("good.ndjson.kept").exists());
}

#[test]
fn members_of_the_wrong_kind_are_named() {
    let dacapo = Dacapo::new();
    for (line, words) in [
        (json!({ "headers": [1] }), &["`headers` is not an object"][..]),
        (json!({ "properties": "x" }), &["`properties` is not an object"]),
        (json!({ "properties": { "colour": 1 } }), &["`colour` is not an AMQP property"]),
        (json!({ "id": {} }), &["`id` is an object"]),
        (json!({ "body_base64": "***" }), &["`body_base64` is not base64"]),
        (json!({ "body": "a", "body_base64": "YQ==" }), &["both `body` and `body_base64`"]),
        (json!({ "routing_key": "k".repeat(256) }), &["`routing_key`", "255"]),
        (json!([1, 2]), &["line 1"]),
    ] {
        dacapo.file("in.ndjson", ndjson([line]));
        let output = dacapo.run(["archive", "import", "in.ndjson"]);
        check_refused(&output, 9, words);
        assert!(output.stderr.contains("line 1 of `in.ndjson`"), "{output:?}");
    }
}

#[test]
fn bytes_that_are_not_utf8_are_a_bad_line() {
    let dacapo = Dacapo::new();
    let mut bytes = lines(1).into_bytes();
    bytes.extend(b"{\"body\":\"\xff\xfe\"}\n");
    dacapo.file("in.ndjson", bytes);
    let output = dacapo.run(["archive", "import", "in.ndjson"]);
    check_refused(&output, 9, &["line 2 of `in.ndjson`", "not UTF-8 from byte 10"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let dacapo = Dacapo::new();
    let output = dacapo.run(["archive", "import", "no.ndjson"]);
    check_refused(&output, 3, &["failed to read `no.ndjson`"]);
    // A compressed file that was cut.
    dacapo.file("cut.ndjson.gz", [0x1f, 0x8b, 8, 0, 0, 0]);
    let output = dacapo.run(["archive", "import", "cut.ndjson.gz"]);
    check_refused(&output, 9, &["failed to read `cut.ndjson.gz`", "whole", "again"]);
    let output = dacapo.run_with_input(["archive", "import", "-"], lines(1).into_bytes());
    check_refused(&output, 2, &["standard input", "--name"]);
    dacapo.file("a.ndjson", lines(1));
    let output = dacapo.run(["archive", "import", "a.ndjson", "a.ndjson", "--name", "x"]);
    check_refused(&output, 2, &["--name", "one file"]);
    assert!(!std::path::Path::new(&path(&dacapo, "archive/heads/x.json")).exists());
}
