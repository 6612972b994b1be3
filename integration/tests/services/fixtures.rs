//! Archives that tests of several commands begin with, and what every refusal must look like.

use std::path::PathBuf;

use dacapo_integration::dacapo::{Dacapo, Output};
use serde_json::{Value, json};

/// Makes a segment of about ten events of [`line`].
pub(super) const SMALL_SEGMENTS: &str = "--roll-bytes=8k";

/// The stream of [`shop`].
pub(super) const SHOP: &str = "shop";

/// Returns event `n` (from 0) of a shop, in the JSON that is imported; one a minute from
/// 2026-03-01 10:00 on, paid ones and placed ones in turn, of seven orders.
pub(super) fn event(n: u64) -> Value {
    let minutes = 10 * 60 + n;
    let (day, hour, minute) = (1 + minutes / 1_440, minutes / 60 % 24, minutes % 60);
    json!({
        "id": format!("e-{n}"),
        "time": format!("2026-03-{day:02}T{hour:02}:{minute:02}:00Z"),
        "type": if n.is_multiple_of(2) { "order.placed" } else { "order.paid" },
        "key": format!("order-{}", n % 7),
        "exchange": "shop",
        "routing_key": format!("orders.{}", n % 7),
        "headers": { "tenant": "acme" },
        "body": { "n": n, "note": "x".repeat(300) },
    })
}

/// Returns values one a line.
pub(super) fn ndjson(values: impl IntoIterator<Item = Value>) -> String {
    values.into_iter().map(|value| format!("{value}\n")).collect()
}

/// Returns the first `count` events of a shop, one a line.
pub(super) fn lines(count: u64) -> String {
    ndjson((0..count).map(event))
}

/// Imports lines as a stream, and returns what the command says.
#[track_caller]
pub(super) fn import(dacapo: &Dacapo, stream: &str, lines: &str, flags: &[&str]) -> Value {
    let file = dacapo.file(&format!("{stream}.ndjson"), lines);
    let file = file.to_str().expect("a UTF-8 path");
    let mut args = vec!["archive", "import", "--json", "--name", stream, file];
    args.extend(flags);
    dacapo.json(args)
}

/// Returns an archive of 30 events in some segments of one stream.
#[track_caller]
pub(super) fn shop() -> Dacapo {
    let dacapo = Dacapo::new();
    let imported = import(&dacapo, SHOP, &lines(30), &[SMALL_SEGMENTS]);
    assert_eq!(imported["events"], 30);
    assert!(imported["segments"].as_u64() >= Some(3), "{imported}");
    dacapo
}

/// Returns the path of a file in the installation's folder, as text.
pub(super) fn path(dacapo: &Dacapo, name: &str) -> String {
    dacapo.folder().join(name).display().to_string()
}

/// Returns the ids of the selected events as they are archived.
#[track_caller]
pub(super) fn ids(dacapo: &Dacapo) -> Vec<String> {
    let output = dacapo.run(["events", "--json", "--limit", "0"]);
    output.check(0);
    let id = |event: &Value| event["id"].as_str().expect("an id").to_owned();
    output.ndjson().iter().map(id).collect()
}

/// Returns the body of the one event with this id.
#[track_caller]
pub(super) fn raw(dacapo: &Dacapo, id: &str) -> Vec<u8> {
    let output = dacapo.run(["events", "--raw", "--id", id]);
    output.check(0);
    output.stdout_bytes
}

/// Deletes the index, as an operator may at any time.
pub(super) fn delete_index(dacapo: &Dacapo) {
    std::fs::remove_dir_all(dacapo.folder().join("index")).expect("the index is there");
}

/// Returns the middle one of the archive's segments, and the name that the archive knows it by.
#[track_caller]
pub(super) fn middle_segment(dacapo: &Dacapo) -> (PathBuf, String) {
    let mut segments = dacapo.segments();
    assert!(segments.len() >= 3, "{segments:?}");
    let path = segments.swap_remove(segments.len() / 2);
    let name = path.strip_prefix(dacapo.archive()).expect("it is in the archive");
    let name = name.display().to_string();
    (path, name)
}

/// Checks that a command refused: its exit code, and an error that has all of `words` (the thing,
/// the place, the next step), said once, on stderr.
#[track_caller]
pub(super) fn check_refused(output: &Output, status: i32, words: &[&str]) {
    output.check(status);
    let stderr = &output.stderr;
    assert!(!stderr.contains("panicked"), "{stderr}");
    let all = format!("\n{stderr}");
    let errors: Vec<&str> = all.split("\nerror: ").skip(1).collect();
    let [error] = errors[..] else { panic!("{} errors in: {stderr}", errors.len()) };
    for word in words {
        assert!(error.contains(word), "no “{word}” in: {error}");
    }
    // The parser of the command line has a style of its own.
    let ours = !error.contains("try '--help'");
    assert!(!(ours && error.trim_end().ends_with('.')), "a full stop: {error}");
}
