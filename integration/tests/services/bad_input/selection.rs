//! Selections that cannot be meant, and expressions that fail on an event.

use dacapo_integration::dacapo::Dacapo;
use serde_json::json;

use super::super::fixtures::{check_refused, event, import, ndjson, shop};

/// Commands that select.
const SELECTING: [&[&str]; 3] =
    [&["events"], &["plan", "--to-queue", "q"], &["replay", "--to-file", "out.ndjson"]];

#[track_caller]
fn check_selection(dacapo: &Dacapo, flags: &[&str], words: &[&str]) {
    for command in SELECTING {
        let args: Vec<&str> = command.iter().chain(flags).copied().collect();
        check_refused(&dacapo.run(args), 2, words);
    }
    assert!(!dacapo.folder().join("out.ndjson").exists());
}

#[test]
fn a_range_of_time_the_wrong_way_round_is_refused_with_both_ends() {
    let dacapo = shop();
    check_selection(
        &dacapo,
        &["--from", "2026-03-02", "--to", "2026-03-01"],
        &["the wrong way round", "2026-03-02T00:00:00Z", "2026-03-01T00:00:00Z", "swap"],
    );
    check_selection(
        &dacapo,
        &["--from", "2h ago", "--to", "3h ago"],
        &["the wrong way round", "swap them"],
    );
    // Half-open: a range from a moment to itself holds nothing.
    check_selection(&dacapo, &["--from", "2026-03-01", "--to", "2026-03-01"], &["time range"]);
}

#[test]
fn a_time_that_is_none_is_quoted_with_examples() {
    let dacapo = shop();
    for flag in ["--from", "--to"] {
        let words = [flag, "`next tuesday`", "is not a time", "2h ago"];
        check_selection(&dacapo, &[flag, "next tuesday"], &words);
    }
}

#[test]
fn a_mistake_in_an_expression_is_shown_at_its_place() {
    let dacapo = shop();
    check_selection(
        &dacapo,
        &["--where", "type == 'order.paid' && body.n >"],
        &["where expression", "line 1, column 33", "type == 'order.paid' && body.n >\n"],
    );
    check_selection(
        &dacapo,
        &["--where", "typ == 'order.paid'"],
        &["line 1, column 1", "`typ`", "`type`", "\ntyp == 'order.paid'\n^"],
    );
    check_selection(&dacapo, &["--where", ""], &["where expression"]);
}

#[test]
fn an_event_that_the_expression_fails_on_is_named_and_can_be_skipped() {
    let dacapo = shop();
    let mut odd = event(50);
    odd["id"] = json!("the-odd-one");
    odd["body"] = json!({ "other": true });
    import(&dacapo, "odd", &ndjson([odd]), &[]);
    let expression = ["--where", "body.n < 10"];
    let words = ["`the-odd-one`", "`n`", "--where-errors skip", "has("];
    for command in [&["events", "--limit", "0"][..], &["plan", "--exact"]] {
        let args: Vec<&str> = command.iter().chain(&expression).copied().collect();
        check_refused(&dacapo.run(args), 2, &words);
    }
    let replay = dacapo.run(["replay", "--to-file", "a.ndjson", "--where", "body.n < 10"]);
    check_refused(&replay, 2, &words);
    let hints = replay.stderr.matches("--where-errors skip").count();
    assert_eq!(hints, 1, "one hint is enough: {}", replay.stderr);

    let skipping = ["--where", "body.n < 10", "--where-errors", "skip"];
    let plan: Vec<&str> = ["plan", "--exact", "--json"].iter().chain(&skipping).copied().collect();
    let plan = dacapo.json(plan);
    assert_eq!((&plan["events"], &plan["exact"]), (&json!(10), &json!(true)));
    let replay: Vec<&str> =
        ["replay", "--to-file", "b.ndjson", "--json"].iter().chain(&skipping).copied().collect();
    let receipt = dacapo.json(replay);
    assert_eq!((&receipt["confirmed"], &receipt["where_skipped"]), (&json!(10), &json!(1)));
}

#[test]
fn flags_with_values_that_cannot_be_meant_are_quoted() {
    let dacapo = shop();
    check_selection(&dacapo, &["--header", "tenant"], &["--header", "`tenant`", "NAME=VALUE"]);
    check_selection(&dacapo, &["--where-errors", "ignore"], &["ignore", "stop", "skip"]);
    let ids = dacapo.file("ids.txt", "\n\n");
    let ids = format!("@{}", ids.display());
    check_selection(&dacapo, &["--id", &ids], &["ids.txt", "has no ids", "one a line"]);
    for command in SELECTING {
        let args: Vec<&str> = command.iter().copied().chain(["--id", "@no-such.txt"]).collect();
        check_refused(&dacapo.run(args), 3, &["failed to read `no-such.txt`"]);
    }
}

#[test]
fn raw_prints_one_body_or_none() {
    let dacapo = shop();
    let many = dacapo.run(["events", "--raw"]);
    check_refused(&many, 2, &["more than one event", "--raw", "--id"]);
    assert_eq!(many.stdout, "", "half an answer is none");
    let none = dacapo.run(["events", "--raw", "--id", "no-such-event"]);
    check_refused(&none, 2, &["no event is selected"]);
}

#[test]
fn a_replay_without_a_target_asks_for_one() {
    let dacapo = shop();
    let words = ["--to-queue", "--to-exchange", "--to-original", "--to-file", "dacapo plan"];
    check_refused(&dacapo.run(["replay"]), 2, &words);
    let words = ["which broker?", "--amqp", "DACAPO_AMQP"];
    for target in [&["--to-queue", "q"][..], &["--to-exchange", "x"], &["--to-original", "--yes"]] {
        let args: Vec<&str> = ["replay"].iter().chain(target).copied().collect();
        check_refused(&dacapo.run(args), 3, &words);
    }
}

#[test]
fn a_pace_that_is_none_is_refused() {
    let dacapo = shop();
    for (flags, words) in [
        (&["--rate", "0"][..], &["--rate", "`0`", "above 0"][..]),
        (&["--byte-rate", "fast"], &["--byte-rate", "`fast`", "500k"]),
        (&["--speed", "-1"], &["--speed", "-1"]),
        (&["--window", "0"], &["--window", "above 0"]),
        (&["--rate", "5", "--ramp", "soon"], &["--ramp", "`soon`", "30s"]),
        (&["--ramp", "5m"], &["--rate", "--byte-rate"]),
    ] {
        let args = ["replay", "--to-file", "out.ndjson"].iter().chain(flags).copied();
        check_refused(&dacapo.run(args), 2, words);
    }
    assert!(!dacapo.folder().join("out.ndjson").exists());
}
