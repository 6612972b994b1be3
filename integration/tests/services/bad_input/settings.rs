//! Wrong configuration: the file, the state, the index, the log, the broker's URL.

use std::fs;

use super::super::fixtures::{check_refused, shop};

const PASSWORD: &str = "hunter2-very-secret";

/// Passwords that TOML takes for something else where the quotes are left out.
const NUMBER: &str = "48151623";
const FRACTION: &str = "4815.1623";
const DATE: &str = "1815-12-10";

#[test]
fn a_mistake_in_the_configuration_is_named_with_its_line_and_no_password_is_shown() {
    let dacapo = shop();
    let amqp = format!("amqp = \"amqp://user:{PASSWORD}@host/\"\n");
    for (text, words) in [
        (format!("{amqp}archiv = \"x\"\n"), &["line 2", "`archiv`", "`archive`"][..]),
        (format!("{amqp}[[[\n"), &["line 2"]),
        (format!("\n\nindex = 5\n{amqp}"), &["line 3: `index`: expected text in quotes"]),
        (format!("archive = \"x\"\namqp_password = \"{PASSWORD}\n"), &["line 2"]),
        (format!("archive = \"x\"\namqp_password = [\"{PASSWORD}\"]\n"), &["line 2", "in quotes"]),
        (format!("amqp_password = {NUMBER}\n"), &["line 1", "`amqp_password`", "in quotes"]),
        (format!("amqp_password = -{NUMBER}\n"), &["line 1", "`amqp_password`", "in quotes"]),
        (format!("amqp_password = {FRACTION}\n"), &["line 1", "`amqp_password`", "in quotes"]),
        (format!("amqp_password = {DATE}\n"), &["line 1", "`amqp_password`", "in quotes"]),
        (format!("amqp_password = {PASSWORD}\n"), &["line 1"]),
        (format!("amqp_password = {{ x = {NUMBER} }}\n"), &["line 1", "in quotes"]),
        (format!("amqp = \"amqp://user:{PASSWORD}@host:port/\"\n"), &["amqp://user:password@host"]),
        (format!("amqp = \"http://user:{PASSWORD}@host/\"\n"), &["broker's URL", "amqps://"]),
    ] {
        dacapo.file("bad.toml", &text);
        for form in [&[][..], &["--json"]] {
            let output = dacapo.run(["--config", "bad.toml", "events"].iter().chain(form).copied());
            check_refused(&output, 3, words);
            if words[0].starts_with("line") {
                assert!(output.stderr.contains("`bad.toml`"), "{output:?}");
            }
            for secret in [PASSWORD, NUMBER, FRACTION, DATE] {
                assert!(!output.stderr.contains(secret), "{output:?}");
                assert!(!output.stdout.contains(secret), "{output:?}");
            }
        }
    }
    let output = dacapo.run(["--config", "no.toml", "events"]);
    check_refused(&output, 3, &["failed to read `no.toml`"]);
}

#[test]
fn a_password_on_the_command_line_is_in_no_message() {
    let dacapo = shop();
    for url in [
        format!("amqp://user:{PASSWORD}@127.0.0.1:1/"),
        format!("amqp://user:{PASSWORD}@127.0.0.1:99999/"),
        format!("user:{PASSWORD}@host"),
    ] {
        for command in [&["plan", "--to-queue", "q"][..], &["replay", "--to-queue", "q"]] {
            let args = command.iter().copied().chain(["--amqp", &url, "--log", "trace", "--json"]);
            let output = dacapo.run(args);
            assert_ne!(output.status, Some(0));
            assert!(!output.stderr.contains(PASSWORD), "{output:?}");
            assert!(!output.stdout.contains(PASSWORD), "{output:?}");
        }
    }
}

#[test]
fn a_state_that_is_no_directory_is_named() {
    let dacapo = shop();
    dacapo.file("occupied", "not a directory");
    for command in [
        &["replays", "ls"][..],
        &["replays", "show", "x"],
        &["replay", "resume", "x"],
        &["replay", "--to-file", "out.ndjson"],
    ] {
        let args = ["--state", "occupied"].iter().chain(command).copied();
        check_refused(&dacapo.run(args), 3, &["`occupied/replays`", "--state"]);
    }
    assert!(!dacapo.folder().join("out.ndjson").exists());
}

#[test]
fn what_a_replay_left_is_told_to_be_unreadable_and_hides_no_other() {
    let dacapo = shop();
    let (whole, broken) = ("a.ndjson", "b.ndjson");
    let first = dacapo.json(["replay", "--to-file", whole, "--json"]);
    let second = dacapo.json(["replay", "--to-file", broken, "--json"]);
    let broken = second["replay"].as_str().unwrap();
    let folder = dacapo.folder().join("state/replays").join(broken);
    fs::write(folder.join("plan.json"), "garbage").unwrap();
    for command in [["replays", "show", broken], ["replay", "resume", broken]] {
        check_refused(&dacapo.run(command), 3, &[broken, "plan.json", "is not readable"]);
    }
    let list = dacapo.json(["replays", "ls", "--json"]);
    assert_eq!(list["replays"][0]["replay"], first["replay"], "{list}");
    assert_eq!(list["replays"][1]["replay"], broken, "{list}");

    // A journal of garbage, too, is one replay's trouble and not the list's.
    fs::write(folder.join("journal"), "garbage\ngarbage\n").unwrap();
    let list = dacapo.run(["replays", "ls", "--json"]);
    let list = list.json();
    assert_eq!(list["replays"][0]["state"], "completed", "{list}");
}

#[test]
fn an_index_of_garbage_is_rebuilt_when_asked_and_never_believed() {
    let dacapo = shop();
    dacapo.run(["index", "sync"]).check(0);
    let index = dacapo.folder().join("index");
    let mut files = vec![index];
    let mut harmed = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.components().any(|part| part.as_os_str() == "sled") {
            let size = fs::metadata(&path).unwrap().len() as usize;
            fs::write(&path, vec![0xa5; size.max(512)]).unwrap();
            harmed += 1;
        }
    }
    assert!(harmed > 0);
    for command in [&["events"][..], &["index", "sync"], &["index", "stats"], &["plan"]] {
        let words = ["index `", "is damaged", "`dacapo index rebuild`"];
        check_refused(&dacapo.run(command), 3, &words);
    }
    let rebuilt = dacapo.json(["index", "rebuild", "--json"]);
    assert_eq!((&rebuilt["events"], &rebuilt["complete"]), (&30.into(), &true.into()));
    dacapo.run(["events"]).check(0);
}

#[test]
fn an_index_that_cannot_be_made_is_named() {
    let dacapo = shop();
    dacapo.file("occupied", "not a directory");
    let output = dacapo.run(["--index", "occupied", "events"]);
    check_refused(&output, 3, &["index `occupied`", "--index"]);
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let dacapo = shop();
    let output = dacapo.run(["--log", "dacapo=chatty", "events"]);
    check_refused(&output, 2, &["--log", "`dacapo=chatty`", "warn", "dacapo=debug"]);
}

#[test]
fn a_variable_that_is_set_to_nothing_says_nothing() {
    let mut dacapo = shop();
    for name in ["AMQP", "MANAGEMENT", "MEMORY", "STATE", "INDEX", "CONFIG", "LOG", "LOG_FORMAT"] {
        dacapo.set(&format!("DACAPO_{name}"), "");
    }
    dacapo.run(["replay", "--to-file", "out.ndjson"]).check(0);
    for default in [".local/state/dacapo/replays", ".cache/dacapo"] {
        assert!(dacapo.folder().join(default).is_dir(), "{default}");
    }
    let least = dacapo.run(["--memory", "1Mi", "events"]);
    check_refused(&least, 3, &["at least 32Mi"]);
    check_refused(&dacapo.run(["--memory", "much", "events"]), 2, &["--memory", "`much`"]);
}

#[test]
fn a_bound_on_what_is_passed_over_is_for_replays_that_pass_over_something() {
    let dacapo = shop();
    let flags = ["--on-reject", "stop", "--max-rejects", "5"];
    for command in [&["replay", "--to-queue", "q"][..], &["replay", "resume", "x"]] {
        let output = dacapo.run(command.iter().chain(&flags));
        check_refused(&output, 2, &["--max-rejects", "--on-reject skip"]);
    }
}
