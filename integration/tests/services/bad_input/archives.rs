//! An archive that is not there, is empty, or is not named rightly.

use dacapo_integration::dacapo::Dacapo;

use super::super::fixtures::{check_refused, event, ndjson, path, shop};

/// Every command that reads an archive.
const READERS: [&[&str]; 8] = [
    &["archive", "ls"],
    &["archive", "verify"],
    &["index", "sync"],
    &["index", "stats"],
    &["index", "rebuild"],
    &["events"],
    &["plan", "--to-queue", "q"],
    &["replay", "--to-file", "out.ndjson"],
];

#[test]
fn an_archive_that_does_not_exist_is_named_by_every_command() {
    let dacapo = Dacapo::new();
    let place = format!("file://{}", dacapo.archive());
    for command in READERS {
        check_refused(&dacapo.run(command), 3, &[&place, "does not exist", "check the path"]);
    }
    // Looking must not have made it: the next look would find an empty one.
    assert!(!std::path::Path::new(dacapo.archive()).exists());
}

#[test]
fn an_empty_archive_is_no_archive_to_look_at_verify_or_replay() {
    let dacapo = Dacapo::new();
    std::fs::create_dir(dacapo.archive()).unwrap();
    let place = format!("file://{}", dacapo.archive());
    for command in [
        &["events"][..],
        &["archive", "verify"],
        &["plan", "--to-queue", "q"],
        &["replay", "--to-file", "out.ndjson"],
    ] {
        let words = [&place, "is empty", "check --archive", "dacapo archive import"];
        check_refused(&dacapo.run(command), 3, &words);
    }
    // One that nothing was written to yet can still be listed.
    let listed = dacapo.run(["archive", "ls"]);
    listed.check(0);
    assert_eq!(listed.stdout, format!("no events in {place}\n"));
    assert!(!dacapo.folder().join("out.ndjson").exists());
}

#[test]
fn what_is_no_archives_url_is_quoted_with_what_would_be_one() {
    let dacapo = Dacapo::new();
    for url in ["http://host/archive", "s3://", "file://relative/path", "ftp://x"] {
        let output = dacapo.run(["--archive", url, "events"]);
        check_refused(&output, 3, &[&format!("`{url}`"), "`file:///dir`", "`s3://bucket/prefix`"]);
    }
}

#[test]
fn an_archive_that_is_a_file_is_refused() {
    let dacapo = Dacapo::new();
    let file = dacapo.file("file", "no directory");
    let file = file.to_str().unwrap();
    check_refused(&dacapo.run(["--archive", file, "events"]), 3, &[file]);
    let events = dacapo.file("events.ndjson", ndjson([event(0)]));
    let events = events.to_str().unwrap();
    let output = dacapo.run(["--archive", file, "archive", "import", events]);
    assert_ne!(output.status, Some(0), "{output:?}");
    assert!(output.stderr.contains(file), "{output:?}");
    assert_eq!(std::fs::read(file).unwrap(), b"no directory");
}

#[test]
fn no_archive_at_all_says_how_one_is_named() {
    let dacapo = shop();
    let config = dacapo.file("empty.toml", "");
    let output = dacapo.run(["--archive", "", "--config", config.to_str().unwrap(), "events"]);
    check_refused(
        &output,
        3,
        &["which archive?", "--archive URL", "DACAPO_ARCHIVE", "dacapo.toml"],
    );
    // A path works as well as a URL.
    let url = format!("file://{}", path(&dacapo, "archive"));
    dacapo.run(["--archive", &url, "events"]).check(0);
}
