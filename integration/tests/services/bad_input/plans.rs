//! Saved plans that are no longer true, or are no plans; targets that are there already.

use std::fs;

use dacapo_integration::dacapo::Dacapo;
use serde_json::{Value, json};

use super::super::fixtures::{
    SHOP, check_refused, event, import, middle_segment, ndjson, path, shop,
};

/// Returns a shop with a plan to write all of its events to `out.ndjson`.
fn planned() -> Dacapo {
    let dacapo = shop();
    dacapo.run(["plan", "--to-file", "out.ndjson", "--out", "plan.json"]).check(0);
    dacapo
}

#[track_caller]
fn check_nothing_began(dacapo: &Dacapo) {
    assert!(!dacapo.folder().join("out.ndjson").exists());
    assert_eq!(dacapo.json(["replays", "ls", "--json"]), json!({ "replays": [] }));
}

#[test]
fn a_plan_whose_segment_was_deleted_is_not_run() {
    let dacapo = planned();
    let (file, segment) = middle_segment(&dacapo);
    fs::remove_file(file).unwrap();
    let output = dacapo.run(["replay", "--plan", "plan.json"]);
    check_refused(&output, 4, &["the archive", "plan", &segment, "is gone", "make a new plan"]);
    check_nothing_began(&dacapo);
}

#[test]
fn a_plan_whose_segment_was_replaced_is_not_run() {
    let dacapo = planned();
    let (file, segment) = middle_segment(&dacapo);
    let other = shop_of_other_events();
    fs::copy(middle_segment(&other).0, file).unwrap();
    let output = dacapo.run(["replay", "--plan", "plan.json"]);
    check_refused(&output, 4, &[&segment, "is another than before", "differs", "make a new plan"]);
    check_nothing_began(&dacapo);
}

/// Returns one that has a segment of the same name and size with other events.
fn shop_of_other_events() -> Dacapo {
    let dacapo = Dacapo::new();
    let lines = (0..30).map(|n| {
        let mut event = event(n);
        event["id"] = json!(format!("o-{n}"));
        event
    });
    import(&dacapo, SHOP, &ndjson(lines), &[super::super::fixtures::SMALL_SEGMENTS]);
    dacapo
}

#[test]
fn newer_segments_are_only_mentioned_and_a_plan_stays_what_it_was() {
    let dacapo = planned();
    import(&dacapo, "later", &ndjson([event(100)]), &[]);
    let output = dacapo.run(["replay", "--plan", "plan.json", "--json"]);
    output.check(0);
    assert!(output.stderr.contains("1 segment that the plan does not read"), "{output:?}");
    assert_eq!(output.json()["confirmed"], 30);
}

#[test]
fn a_plan_for_another_archive_says_which() {
    let dacapo = planned();
    let other = shop();
    let plan = path(&dacapo, "plan.json");
    let output = other.run(["replay", "--plan", &plan]);
    check_refused(&output, 3, &[dacapo.archive(), other.archive(), "--archive"]);
}

#[test]
fn a_plan_that_was_edited_or_is_none_is_refused() {
    let dacapo = planned();
    let saved = fs::read_to_string(dacapo.folder().join("plan.json")).unwrap();
    let mut edited: Value = serde_json::from_str(&saved).unwrap();
    edited["request"]["target"] = json!({ "kind": "queue", "queue": "production" });
    let mut newer: Value = serde_json::from_str(&saved).unwrap();
    newer["format"] = json!(99);
    let cut = &saved[..saved.len() / 2];
    for (text, words) in [
        (edited.to_string(), &["was changed after it was saved", "make a new plan"][..]),
        (newer.to_string(), &["99"]),
        (cut.to_owned(), &["is not a plan of `dacapo plan --out`", "line"]),
        ("garbage".to_owned(), &["is not a plan of `dacapo plan --out`", "line 1 column 1"]),
        ("{}".to_owned(), &["is not a plan of `dacapo plan --out`"]),
        (String::new(), &["is not a plan of `dacapo plan --out`"]),
    ] {
        dacapo.file("bad.json", text);
        let output = dacapo.run(["replay", "--plan", "bad.json"]);
        check_refused(&output, 3, words);
        assert!(output.stderr.contains("`bad.json`"), "{output:?}");
    }
    let output = dacapo.run(["replay", "--plan", "no.json"]);
    check_refused(&output, 3, &["failed to read `no.json`"]);
    check_nothing_began(&dacapo);
    // The one that was not touched still runs.
    dacapo.run(["replay", "--plan", "plan.json"]).check(0);
}

#[test]
fn a_file_that_is_there_is_not_written_over() {
    let dacapo = planned();
    dacapo.file("out.ndjson", "precious");
    let plan = dacapo.json(["plan", "--to-file", "out.ndjson", "--json"]);
    let warnings = plan["target"]["warnings"].to_string();
    assert!(warnings.contains("is there already"), "{warnings}");
    for command in [&["replay", "--to-file", "out.ndjson"][..], &["replay", "--plan", "plan.json"]]
    {
        let words = ["/out.ndjson` is there already", "move it away or name another"];
        check_refused(&dacapo.run(command), 5, &words);
    }
    assert_eq!(fs::read(dacapo.folder().join("out.ndjson")).unwrap(), b"precious");
    assert_eq!(dacapo.json(["replays", "ls", "--json"]), json!({ "replays": [] }));
}

#[test]
fn plan_and_selection_flags_exclude_each_other() {
    let dacapo = planned();
    for flags in
        [&["--type", "order.paid"][..], &["--to-file", "x"], &["--rate", "5"], &["--exact"]]
    {
        let mut args = vec!["replay", "--plan", "plan.json"];
        args.extend(flags);
        check_refused(&dacapo.run(args), 2, &[flags[0], "cannot be used with", "--plan"]);
    }
    check_nothing_began(&dacapo);
}

#[test]
fn a_consumer_is_required_of_a_queue_alone_and_nothing_is_published_without_knowing() {
    let dacapo = planned();
    for target in [
        &["--to-exchange", "shop"][..],
        &["--to-original", "--yes"],
        &["--to-file", "other.ndjson"],
        &["--plan", "plan.json"],
    ] {
        let output = dacapo.run(["replay", "--require-consumer"].iter().chain(target).copied());
        check_refused(&output, 2, &["--require-consumer needs a queue", "--to-queue"]);
    }
    check_refused(&dacapo.run(["plan", "--require-consumer"]), 2, &["needs a queue"]);
    check_nothing_began(&dacapo);

    let plan = dacapo.json(["plan", "--require-consumer", "--to-queue", "orders", "--json"]);
    let unchecked = &plan["preflight"]["unchecked"][0];
    assert!(unchecked["names"].as_array().unwrap().contains(&json!("no-consumer")), "{plan}");
}
