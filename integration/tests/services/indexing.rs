//! The index: derived, disposable, held by one process at a time, and never believed over the
//! archive.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::process::Signal;
use dacapo_integration::wait;
use serde_json::{Value, json};

use super::fixtures::{
    SMALL_SEGMENTS, check_refused, delete_index, event, ids, import, lines, ndjson, path, shop,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A queue of nobody and a listener that accepts and never answers: a store that hangs.
fn silent_store() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, format!("http://127.0.0.1:{port}"))
}

#[test]
fn a_second_process_is_told_who_holds_the_index_and_does_not_wait() {
    let (_listener, endpoint) = silent_store();
    let mut dacapo = shop();
    dacapo.set("AWS_ENDPOINT_URL", &endpoint);
    // It has opened the index and waits for the first answer of its archive.
    let holder = dacapo.spawn(["--archive", "s3://bucket/prefix", "index", "sync"]);
    let lock = dacapo.folder().join("index/lock");
    wait::until("the index is held", DEADLINE, || {
        let text = fs::read_to_string(&lock).unwrap_or_default();
        Ok((text.lines().count() == 3).then_some(()))
    })
    .unwrap();
    let pid = format!("process {}", holder.pid());
    for command in [
        &["index", "sync"][..],
        &["index", "rebuild"],
        &["index", "stats"],
        &["events"],
        &["plan"],
        &["replay", "--to-file", "out.ndjson"],
        &["archive", "ls"],
    ] {
        let words = [&path(&dacapo, "index"), &pid, "`dacapo index sync`", "--index DIR", "wait"];
        check_refused(&dacapo.run(command), 7, &words);
    }
    // What needs no index is not disturbed, and another index is free.
    dacapo.run(["archive", "verify"]).check(0);
    dacapo.run(["--index", "another", "events"]).check(0);
    // A holder that was killed holds nothing.
    holder.kill();
    dacapo.run(["events"]).check(0);
}

#[test]
fn a_running_replay_does_not_hold_the_index() {
    let dacapo = shop();
    let running = dacapo.spawn(["replay", "--to-file", "out.ndjson", "--rate", "5"]);
    let line = running.wait_for_line("replay     ", DEADLINE);
    let id = line.split_whitespace().last().unwrap().to_owned();
    for command in [&["events"][..], &["plan"], &["index", "rebuild"]] {
        dacapo.run(command).check(0);
    }
    delete_index(&dacapo);
    running.signal(Signal::Interrupt).unwrap();
    let stopped = running.wait(DEADLINE);
    stopped.check(6);
    assert!(stopped.stderr.contains(&format!("dacapo replay resume {id}")), "{stopped:?}");
    // Deleted in the middle, the index takes no checkpoint with it.
    let receipt = dacapo.json(["replay", "resume", &id, "--json"]);
    assert_eq!((&receipt["state"], &receipt["selected"]), (&json!("completed"), &json!(30)));
    let written = fs::read_to_string(dacapo.folder().join("out.ndjson")).unwrap();
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].clone();
    let ids: Vec<Value> = written.lines().map(id).collect();
    assert_eq!(ids, (0..30).map(|n| json!(format!("e-{n}"))).collect::<Vec<_>>());
}

/// What an archive answers to every kind of question, without what may differ.
fn answers(dacapo: &Dacapo) -> Vec<Value> {
    let mut answers = Vec::new();
    for flags in [
        &[][..],
        &["--type", "order.paid"],
        &["--key", "order-3", "--from", "2026-03-01T10:05:00Z"],
        &["--routing-key", "orders.*", "--to", "2026-03-01T10:20:00Z"],
        &["--id", "e-17"],
        &["--where", "body.n > 20"],
    ] {
        let with = |command: &[&'static str]| [command, flags].concat();
        let events = dacapo.run(with(&["events", "--json", "--limit", "0"]));
        events.check(0);
        answers.push(events.ndjson().into());
        let mut plan = dacapo.json(with(&["plan", "--json", "--to-queue", "q"]));
        plan.as_object_mut().expect("an object").shift_remove("made_at");
        answers.push(plan);
    }
    answers.push(dacapo.json(["archive", "ls", "--segments", "--json"]));
    answers
}

#[test]
fn deleting_or_rebuilding_the_index_changes_no_answer() {
    let dacapo = shop();
    import(&dacapo, "more", &ndjson((20..25).map(event)), &[]);
    let before = answers(&dacapo);
    delete_index(&dacapo);
    assert_eq!(answers(&dacapo), before);
    let rebuilt = dacapo.json(["index", "rebuild", "--json"]);
    assert_eq!(answers(&dacapo), before);
    let synced = dacapo.json(["index", "sync", "--json"]);
    for member in ["streams", "segments", "events", "complete"] {
        assert_eq!(rebuilt[member], synced[member], "{member}");
    }
    assert_eq!(synced["added"], 0);
}

#[test]
fn commands_bring_the_index_up_to_date_by_themselves() {
    let dacapo = shop();
    assert_eq!(ids(&dacapo).len(), 30);
    import(&dacapo, "later", &ndjson([event(100)]), &[]);
    assert_eq!(ids(&dacapo).len(), 31);
    let synced = dacapo.json(["index", "sync", "--json"]);
    assert_eq!((&synced["added"], &synced["complete"]), (&json!(0), &json!(true)));
    import(&dacapo, "last", &ndjson([event(200)]), &[]);
    let synced = dacapo.json(["index", "sync", "--json"]);
    assert_eq!((&synced["added"], &synced["events"]), (&json!(1), &json!(32)));
    // Statistics are of the index as it is.
    import(&dacapo, "unseen", &ndjson([event(300)]), &[]);
    assert_eq!(dacapo.json(["index", "stats", "--json"])["events"], 32);
}

#[test]
fn a_stream_with_a_hole_is_not_complete_until_it_is_mended() {
    let dacapo = shop();
    let hole = &dacapo.segments()[1];
    let bytes = fs::read(hole).unwrap();
    fs::remove_file(hole).unwrap();
    for _ in 0..2 {
        let synced = dacapo.run(["index", "sync", "--json"]);
        synced.check(4);
        assert_eq!(synced.json()["complete"], false);
        assert!(synced.stderr.contains("stream `shop` lacks sequences"), "{synced:?}");
    }
    fs::write(hole, bytes).unwrap();
    let synced = dacapo.json(["index", "sync", "--json"]);
    assert_eq!((&synced["complete"], &synced["added"]), (&json!(true), &json!(1)));
    assert_eq!(ids(&dacapo).len(), 30);
}

/// An index directory that once was of another archive: made again, or believed by nobody.
#[test]
fn an_index_of_another_archive_is_not_mixed_with_this_one() {
    let dacapo = shop();
    assert_eq!(ids(&dacapo).len(), 30);
    let other = Dacapo::new();
    import(&other, "shop", &lines(12), &[SMALL_SEGMENTS]);
    let index = path(&dacapo, "index");
    let output = other.run(["--index", &index, "events", "--json", "--limit", "0"]);
    if output.status == Some(0) {
        assert_eq!(output.ndjson().len(), 12);
    } else {
        check_refused(&output, 3, &[&index, "dacapo index rebuild"]);
    }
}
