//! Segments that are not what was written: found by every command that would rely on them.

use std::fs;
use std::path::Path;

use dacapo_event::Digest;
use dacapo_integration::dacapo::{Dacapo, Output};
use serde_json::Value;

use super::super::fixtures::{check_refused, middle_segment, shop};

/// What happens to a segment.
type Damage = fn(&mut Vec<u8>);

/// What the footer shows, so that a sync without the body finds it.
const SHOWN_BY_FOOTER: [(&str, Damage); 5] = [
    ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
    ("empty", Vec::clear),
    ("not Parquet", |bytes| *bytes = b"id,type,body\n1,order.placed,{}\n".to_vec()),
    ("not Parquet, of the same size", |bytes| bytes.fill(b'x')),
    ("no end", |bytes| bytes.truncate(bytes.len() - 1)),
];

fn damage(path: &Path, damage: Damage) {
    let mut bytes = fs::read(path).expect("the segment is there");
    damage(&mut bytes);
    fs::write(path, bytes).expect("the archive is ours");
}

/// Checks that `archive verify` names the segment, and only that one, for people and for scripts.
#[track_caller]
fn check_verify(dacapo: &Dacapo, segment: &str, problem: &str) {
    let text = dacapo.run(["archive", "verify"]);
    text.check(4);
    let line = text.stdout.lines().find(|line| line.starts_with("DAMAGED  "));
    let line = line.unwrap_or_else(|| panic!("{text:?}"));
    assert!(line.contains(segment) && line.contains(problem), "{line}");

    let json = dacapo.run(["archive", "verify", "--json"]);
    json.check(4);
    let json = json.json();
    let problems = json["problems"].as_array().expect("a list");
    assert!(!problems.is_empty());
    for found in problems {
        assert_eq!(found["segment"], segment, "{json}");
    }
    let text = problems[0]["problem"].as_str().expect("words");
    assert!(text.contains(problem), "{text}");
}

/// Checks that a command which goes on without the segment says so, and has the exit code.
#[track_caller]
fn check_warned(output: &Output, segment: &str) {
    output.check(4);
    assert!(output.stderr.contains(segment), "{}", output.stderr);
    assert!(output.stderr.contains("dacapo archive verify"), "{}", output.stderr);
}

#[test]
fn a_segment_whose_end_is_broken_is_named_by_every_command() {
    for (what, harm) in SHOWN_BY_FOOTER {
        let dacapo = shop();
        let (path, segment) = middle_segment(&dacapo);
        damage(&path, harm);
        println!("{what}");
        check_verify(&dacapo, &segment, "");
        check_warned(&dacapo.run(["index", "sync"]), &segment);
        check_warned(&dacapo.run(["archive", "ls"]), &segment);
        let stats = dacapo.run(["index", "sync", "--json"]);
        assert_eq!(stats.json()["complete"], false);
        // What is whole can still be looked at.
        let events = dacapo.run(["events", "--json", "--limit", "0"]);
        check_warned(&events, &segment);
        assert!(!events.ndjson().is_empty() && events.ndjson().len() < 30);
        let plan = dacapo.run(["plan", "--json", "--to-queue", "q"]);
        check_warned(&plan, &segment);
        assert_eq!(plan.json()["gaps"].as_array().map(Vec::len), Some(1), "{plan:?}");
    }
}

#[test]
fn a_replay_of_an_archive_with_a_hole_is_refused_unless_the_hole_is_accepted() {
    let dacapo = shop();
    let (path, segment) = middle_segment(&dacapo);
    damage(&path, |bytes| bytes.truncate(100));
    let refused = dacapo.run(["replay", "--to-file", "out.ndjson"]);
    check_refused(
        &refused,
        4,
        &["stream `shop` lacks sequences", "archive verify", "--accept-gaps"],
    );
    assert!(refused.stderr.contains(&segment), "{refused:?}");
    assert!(!dacapo.folder().join("out.ndjson").exists());
    assert_eq!(dacapo.json(["replays", "ls", "--json"])["replays"], Value::Array(vec![]));

    // A saved plan with the hole is no way around it.
    dacapo.run(["plan", "--to-file", "planned.ndjson", "--out", "plan.json"]).check(4);
    let refused = dacapo.run(["replay", "--plan", "plan.json"]);
    check_refused(&refused, 4, &["stream `shop` lacks sequences", "--accept-gaps"]);

    let accepted = dacapo.run(["replay", "--to-file", "out.ndjson", "--accept-gaps", "--json"]);
    accepted.check(0);
    let confirmed = accepted.json()["confirmed"].as_u64().unwrap();
    assert!(confirmed > 0 && confirmed < 30, "{confirmed}");
}

#[test]
fn damage_to_the_last_segment_is_no_end_of_the_stream() {
    let dacapo = shop();
    let last = dacapo.segments().pop().unwrap();
    damage(&last, |bytes| bytes.truncate(100));
    dacapo.run(["events"]).check(4);
    let refused = dacapo.run(["replay", "--to-file", "out.ndjson"]);
    check_refused(&refused, 4, &["stream `shop` lacks sequences", "to 30"]);
}

#[test]
fn a_segment_that_was_deleted_is_missing_at_its_place() {
    let dacapo = shop();
    let (path, segment) = middle_segment(&dacapo);
    fs::remove_file(path).unwrap();
    check_verify(&dacapo, &segment, "is missing");
    check_warned(&dacapo.run(["index", "sync"]), &segment);
    let refused = dacapo.run(["replay", "--to-file", "out.ndjson"]);
    check_refused(&refused, 4, &["stream `shop` lacks sequences"]);
}

/// A flipped bit in a body is no business of the footer: it is found where the body is read.
#[test]
fn a_flipped_byte_in_the_rows_is_found_by_reading_them() {
    let dacapo = shop();
    let (path, segment) = middle_segment(&dacapo);
    // The first bytes of a segment are pages of rows.
    damage(&path, |bytes| bytes[200] ^= 0x10);
    check_verify(&dacapo, &segment, "digest differs");
    let events = dacapo.run(["events", "--limit", "0"]);
    check_refused(&events, 4, &[&segment, "is damaged", "dacapo archive verify"]);
    let replay = dacapo.run(["replay", "--to-file", "out.ndjson"]);
    check_refused(&replay, 4, &[&segment, "is damaged", "dacapo archive verify"]);
    // The events before it were confirmed, none after it, and it can go on when it is mended.
    let list = dacapo.json(["replays", "ls", "--json"]);
    assert_eq!(list["replays"][0]["state"], "interrupted", "{list}");
}

/// No single flipped byte may pass, wherever it is.
#[test]
fn a_flipped_byte_anywhere_is_found_by_verify() {
    let dacapo = shop();
    let (path, segment) = middle_segment(&dacapo);
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 12) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x01;
        fs::write(&path, flipped).unwrap();
        check_verify(&dacapo, &segment, "digest differs");
    }
    fs::write(&path, whole).unwrap();
    dacapo.run(["archive", "verify"]).check(0);
}

#[test]
fn a_segment_that_changed_under_an_index_is_not_taken_for_the_old_one() {
    let dacapo = shop();
    dacapo.run(["index", "sync"]).check(0);
    let (path, segment) = middle_segment(&dacapo);
    damage(&path, |bytes| bytes.truncate(bytes.len() / 2));
    for command in [&["events", "--limit", "0"][..], &["replay", "--to-file", "out.ndjson"]] {
        let words = [&segment, "size differs", "dacapo archive verify", "dacapo index rebuild"];
        check_refused(&dacapo.run(command), 4, &words);
    }
    check_warned(&dacapo.run(["index", "rebuild"]), &segment);
}

/// A segment as a later version would write it: sound in itself, with its entry and head.
#[test]
fn a_segment_of_a_newer_format_asks_for_a_newer_dacapo() {
    let dacapo = shop();
    // The last one, because the next would name the digest, too.
    let path = dacapo.segments().pop().unwrap();
    let segment = path.strip_prefix(dacapo.archive()).unwrap().display().to_string();
    make_newer(&path, Path::new(dacapo.archive()));
    let words = "has format version 7, this dacapo reads up to 2; use a newer dacapo";
    check_verify(&dacapo, &segment, words);
    let sync = dacapo.run(["index", "sync"]);
    check_warned(&sync, &segment);
    assert!(sync.stderr.contains(words), "{sync:?}");
    dacapo.run(["events"]).check(4);
    dacapo.run(["plan"]).check(4);
    let refused = dacapo.run(["replay", "--to-file", "out.ndjson"]);
    check_refused(&refused, 4, &["stream `shop` lacks sequences"]);
    assert!(refused.stderr.contains(words), "{refused:?}");
}

/// Rewrites a segment's version, its digest, and whatever names the digest.
fn make_newer(segment: &Path, archive: &Path) {
    /// Bytes between a pair's key and its value, as the format's description says.
    const BETWEEN: usize = 2;
    let mut bytes = fs::read(segment).expect("the segment is there");
    let after = |bytes: &[u8], key: &[u8]| {
        let at = bytes.windows(key.len()).rposition(|window| window == key);
        at.expect("the footer has the pair") + key.len() + BETWEEN
    };
    let version = after(&bytes, b"dacapo.format");
    assert_eq!(bytes[version], b'1');
    bytes[version] = b'7';
    let digits = after(&bytes, b"dacapo.digest");
    let digits = digits..digits + 64;
    let old = String::from_utf8(bytes[digits.clone()].to_vec()).expect("digits");
    bytes[digits.clone()].fill(b'0');
    let new = Digest::of(&bytes).to_string();
    bytes[digits].copy_from_slice(new.as_bytes());
    fs::write(segment, bytes).expect("the archive is ours");
    for folder in ["chain/shop", "heads"] {
        for entry in fs::read_dir(archive.join(folder)).expect("the folder is there") {
            let path = entry.expect("an entry").path();
            let mut text = fs::read_to_string(&path).expect("JSON").replace(&old, &new);
            // A head may be without its checksum, which comes last.
            if let Some(at) = text.find(",\n  \"checksum\"") {
                text.truncate(at);
                text += "\n}";
            }
            fs::write(&path, text).expect("the archive is ours");
        }
    }
}
