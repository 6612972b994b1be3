//! What docs/decisions/0004-retention-and-erasure.md says of an archive that lacks its beginning or
//! a stream, through the binary.

use std::fs;
use std::path::{Path, PathBuf};

use dacapo_integration::dacapo::Dacapo;
use serde_json::{Value, json};

/// Events of each stream, each a segment of its own.
const EVENTS: usize = 3;

/// An archive of the streams `old` and `new`.
fn archive() -> Dacapo {
    let dacapo = Dacapo::new();
    let lines: String = (1..=EVENTS)
        .map(|n| json!({ "id": format!("e-{n}"), "time": format!("2026-01-0{n}T00:00:00Z") }))
        .map(|event| format!("{event}\n"))
        .collect();
    for stream in ["old", "new"] {
        let args = ["archive", "import", "-", "--name", stream, "--roll-bytes", "1"];
        dacapo.run_with_input(args, lines.clone().into_bytes()).check(0);
    }
    assert_eq!(dacapo.segments().len(), 2 * EVENTS);
    dacapo
}

fn in_archive(dacapo: &Dacapo, path: &str) -> PathBuf {
    Path::new(dacapo.archive()).join(path)
}

fn first_segment(dacapo: &Dacapo) -> PathBuf {
    let segments = dacapo.segments().into_iter();
    let mut old = segments.filter(|path| path.to_string_lossy().contains("stream=old/"));
    old.find(|path| path.ends_with("00000000000000000001.parquet")).expect("it is there")
}

/// Checks that it counts as damaged, with this problem, and that what is left can be had.
#[track_caller]
fn check_damaged(dacapo: &Dacapo, problem: &str) {
    let verified = dacapo.run(["archive", "verify"]);
    verified.check(4);
    assert!(verified.stdout.contains(problem), "{verified:?}");
    let shown = dacapo.run(["events", "--json", "--limit", "0"]);
    shown.check(4);
    assert_eq!(shown.ndjson().len(), 2 * EVENTS - 1);
    let to_file = ["replay", "--to-file", "-"];
    dacapo.run(to_file).check(4);
    let replayed = dacapo.run(to_file.iter().chain(&["--accept-gaps"]));
    replayed.check(0);
    assert_eq!(replayed.ndjson().len(), 2 * EVENTS - 1);
}

#[test]
fn segments_that_expired_by_age_are_damage() {
    let dacapo = archive();
    fs::remove_file(first_segment(&dacapo)).unwrap();
    check_damaged(&dacapo, "is missing");
}

#[test]
fn a_beginning_that_expired_with_its_chain_is_damage() {
    let dacapo = archive();
    fs::remove_file(first_segment(&dacapo)).unwrap();
    fs::remove_file(in_archive(&dacapo, "chain/old/00000000000000000001.json")).unwrap();
    check_damaged(&dacapo, "is missing, sequences 1 to 1");
}

#[test]
fn a_stream_that_is_removed_whole_leaves_a_sound_archive() {
    let dacapo = archive();
    let heads = dacapo.folder().join("heads.json");
    let heads = heads.to_str().unwrap();
    dacapo.run(["archive", "verify", "--write-heads", heads]).check(0);
    dacapo.run(["archive", "ls"]).check(0);

    fs::remove_file(in_archive(&dacapo, "heads/old.json")).unwrap();
    fs::remove_dir_all(in_archive(&dacapo, "chain/old")).unwrap();
    // Until it is done it looks like what it would be if nobody had meant it.
    dacapo.run(["archive", "verify"]).check(4);

    fs::remove_dir_all(in_archive(&dacapo, "segments/stream=old")).unwrap();
    let gone = dacapo.json(["archive", "verify", "--json"]);
    assert_eq!((&gone["problems"], &gone["notes"]), (&json!([]), &json!([])), "{gone}");
    let told = dacapo.run(["archive", "verify", "--expect-heads", heads]);
    told.check(4);
    assert!(told.stdout.contains("stream `old` is gone"), "{told:?}");

    dacapo.run(["index", "rebuild"]).check(0);
    let events: Vec<Value> = dacapo.run(["events", "--json", "--limit", "0"]).ndjson();
    assert_eq!(events.len(), EVENTS);
    let replayed = dacapo.run(["replay", "--to-file", "-"]);
    replayed.check(0);
    assert_eq!(replayed.ndjson().len(), EVENTS);
}
