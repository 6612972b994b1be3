//! Each promise is broken once and must be found, and nothing else with it.

use serde_json::json;

use super::*;

fn rows(ids: &str) -> Vec<Row> {
    let row = |(place, id): (usize, char)| Row {
        stream: "s".to_owned(),
        sequence: place as u64 + 1,
        id: id.to_string(),
    };
    ids.chars().enumerate().map(row).collect()
}

fn arrivals(ids: &str) -> Vec<Arrival> {
    ids.chars().map(|id| Arrival { event: id.to_string(), message: id.to_string() }).collect()
}

fn texts(ids: &str) -> Vec<String> {
    ids.chars().map(|id| id.to_string()).collect()
}

#[track_caller]
fn check_found(findings: &[String], expected: &[&str]) {
    assert_eq!(findings.len(), expected.len(), "{findings:?}");
    for (finding, expected) in findings.iter().zip(expected) {
        assert!(finding.contains(expected), "no “{expected}” in {findings:?}");
    }
}

#[track_caller]
fn check_archived(published: &str, held: &str, interruptions: u64, expected: &[&str]) {
    let (published, rows) = (texts(published), rows(held));
    let archived = Archived {
        published: &published,
        rows: &rows,
        repeats_before: 0,
        interruptions,
        window: 2,
    };
    check_found(&check_archive(&archived), expected);
}

#[test]
fn an_archive_holds_all_and_repeats_within_its_window() {
    check_archived("abc", "abc", 0, &[]);
    check_archived("abc", "abcbc", 1, &[]);
    check_archived("abc", "acb", 0, &[]);
}

#[test]
fn a_loss_a_stranger_and_a_repeat_too_many_are_found() {
    check_archived("abc", "ac", 0, &["lost: published and not in the archive: 1 (b)"]);
    check_archived("ab", "abz", 0, &["never published: 1 (z)"]);
    check_archived("abc", "abcabc", 1, &["3 new repeats"]);
}

#[test]
fn a_hole_in_the_sequences_is_found() {
    let mut rows = rows("abc");
    rows[2].sequence = 4;
    let published = texts("abc");
    let archived = Archived {
        published: &published,
        rows: &rows,
        repeats_before: 0,
        interruptions: 0,
        window: 1,
    };
    check_found(&check_archive(&archived), &["sequence 4 of `s` where 3 was due"]);
}

#[test]
fn what_an_earlier_fault_was_allowed_is_not_allowed_to_the_next() {
    let (published, rows) = (texts("abc"), rows("abcbcaa"));
    let mut archived = Archived {
        published: &published,
        rows: &rows,
        repeats_before: 2,
        interruptions: 1,
        window: 2,
    };
    check_found(&check_archive(&archived), &[]);
    archived.repeats_before = 1;
    check_found(&check_archive(&archived), &["3 new repeats"]);
    archived.repeats_before = 3;
    archived.interruptions = 0;
    check_found(&check_archive(&archived), &["1 new repeats"]);
}

#[test]
fn a_segment_under_two_names_is_found() {
    let object =
        |key: &str, digest: &str| Object { key: key.to_owned(), digest: digest.to_owned() };
    check_found(&check_objects(&[object("a", "1"), object("b", "2")]), &[]);
    check_found(&check_objects(&[object("a", "1"), object("b", "1")]), &["a, b"]);
}

fn receipt(selected: u64, possible_repeats: u64) -> Value {
    json!({
        "state": "completed", "selected": selected, "confirmed": selected, "rejected": 0,
        "remaining": 0, "possible_repeats": possible_repeats,
    })
}

#[track_caller]
fn check_replayed(selected: &str, arrived: &str, receipt: &Value, expected: &[&str]) {
    let (rows, arrived) = (rows(selected), arrivals(arrived));
    let replayed =
        Replayed { rows: &rows, arrived: &arrived, receipt, window: 2, interruptions: Some(1) };
    check_found(&check_replay(&replayed), expected);
}

#[test]
fn a_replay_delivers_all_in_order_and_repeats_within_its_window() {
    check_replayed("abcd", "abcd", &receipt(4, 0), &[]);
    check_replayed("abcd", "abcbcd", &receipt(4, 2), &[]);
    // What came late the first time came in order the last time.
    check_replayed("abcd", "acbcd", &receipt(4, 2), &[]);
    // The archive holds `b` twice.
    check_replayed("abcb", "abcb", &receipt(4, 0), &[]);
}

#[test]
fn every_broken_promise_of_a_replay_is_found() {
    let lost =
        ["lost: selected and never at the target: 1 (c)", "4 confirmed, and the target got 3"];
    check_replayed("abcd", "abd", &receipt(4, 0), &lost);
    check_replayed("abcd", "abcdz", &receipt(4, 1), &["not selected: 1 (z)"]);
    check_replayed("abcd", "acbd", &receipt(4, 0), &["out of order in `s`: 1 (c)"]);
    check_replayed(
        "abcd",
        "abcbcd",
        &receipt(4, 1),
        &["2 repeats, and the receipt says at most 1"],
    );
    let many = ["3 repeats, 1 interruptions", "3 possible repeats in the receipt, 1 interruptions"];
    check_replayed("abcd", "abcabcd", &receipt(4, 3), &many);
}

#[test]
fn a_receipt_that_does_not_add_up_is_found() {
    let mut wrong = receipt(4, 0);
    wrong["remaining"] = json!(1);
    check_replayed("abcd", "abcd", &wrong, &["does not balance"]);
    check_replayed("abcd", "abcd", &receipt(3, 0), &["3 selected, not 4", "3 confirmed, not 4"]);
}

#[test]
fn a_message_with_another_id_in_its_marking_is_found() {
    let rows = rows("ab");
    let mut arrived = arrivals("ab");
    arrived[1].message = "c".to_owned();
    let receipt = receipt(2, 0);
    let replayed = Replayed {
        rows: &rows,
        arrived: &arrived,
        receipt: &receipt,
        window: 1,
        interruptions: None,
    };
    check_found(&check_replay(&replayed), &["marked with another event's id: 1 (c)"]);
}

#[track_caller]
fn check_checkpointed(confirmed: u64, position: u64, arrived: &str, expected: &[&str]) {
    let status = json!({ "confirmed": confirmed, "positions": { "s": position } });
    check_found(&check_checkpoint(&status, &rows("abcd"), &arrivals(arrived)), expected);
}

#[test]
fn a_checkpoint_ahead_of_the_target_is_found() {
    check_checkpointed(2, 2, "ab", &[]);
    check_checkpointed(2, 2, "abcd", &[]);
    check_checkpointed(3, 3, "ab", &["not at the target: 1 (c)"]);
    // Repeats are no arrivals of what comes later.
    check_checkpointed(4, 4, "ababcc", &["not at the target: 1 (d)"]);
    check_checkpointed(2, 3, "abcd", &["2 confirmed, and is after 3"]);
    let none = json!({ "confirmed": 0, "positions": {} });
    check_found(&check_checkpoint(&none, &rows("ab"), &[]), &[]);
}
