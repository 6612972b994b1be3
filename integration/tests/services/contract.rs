//! What scripts rely on: one JSON object on stdout with members that do not change, times in UTC,
//! and exit codes that mean what `dacapo --help` says.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use dacapo_integration::dacapo::{Dacapo, Output};
use dacapo_integration::process::Signal;
use serde_json::{Value, json};

use super::fixtures::{check_refused, event, import, lines, ndjson, shop};
use super::services;

const DEADLINE: Duration = Duration::from_secs(60);

/// What a member must be.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    /// A number that is not negative and whole.
    Count,
    Number,
    Flag,
    Object,
    Array,
    /// RFC 3339 in UTC.
    Time,
}

use Kind::{Array, Count, Flag, Number, Object, Text, Time};

#[track_caller]
fn check_members(object: &Value, members: &[(&str, Kind)]) {
    for (name, kind) in members {
        let value = object.get(name).unwrap_or_else(|| panic!("no `{name}` in {object}"));
        let fits = match kind {
            Text => value.is_string(),
            Count => value.is_u64(),
            Number => value.as_f64().is_some_and(|number| number >= 0.0),
            Flag => value.is_boolean(),
            Object => value.is_object(),
            Array => value.is_array(),
            Time => value.as_str().is_some_and(is_utc),
        };
        assert!(fits, "`{name}` is no {kind:?}: {value}");
    }
}

/// Returns whether this is `2026-03-01T10:00:00[.123456]Z`.
fn is_utc(text: &str) -> bool {
    let Some((whole, rest)) = text.split_at_checked(19) else { return false };
    let shape: String = whole.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let fraction = rest.strip_suffix('Z').map(|rest| rest.strip_prefix('.').unwrap_or(rest));
    shape == "0000-00-00T00:00:00"
        && fraction.is_some_and(|digits| digits.chars().all(|c| c.is_ascii_digit()))
}

const IMPORT_OR_VERIFY: [(&str, Kind); 4] =
    [("events", Count), ("segments", Count), ("bytes", Count), ("problems", Array)];

const RECEIPT: [(&str, Kind); 12] = [
    ("replay", Text),
    ("state", Text),
    ("selected", Count),
    ("confirmed", Count),
    ("rejected", Count),
    ("remaining", Count),
    ("possible_repeats", Count),
    ("reordered", Count),
    ("bytes_read", Count),
    ("bytes_full_scan", Count),
    ("requests", Count),
    ("seconds", Number),
];

#[test]
fn import_verify_and_index_tell_what_they_counted() {
    let dacapo = Dacapo::new();
    let imported = import(&dacapo, "shop", &lines(30), &[]);
    check_members(&imported, &IMPORT_OR_VERIFY);
    assert_eq!((&imported["events"], &imported["segments"]), (&json!(30), &json!(1)));
    let verified = dacapo.json(["archive", "verify", "--json"]);
    check_members(&verified, &IMPORT_OR_VERIFY);
    for member in ["events", "segments", "bytes", "problems"] {
        assert_eq!(verified[member], imported[member], "{member}");
    }
    let on_disk = fs::metadata(&dacapo.segments()[0]).unwrap().len();
    assert_eq!(verified["bytes"], json!(on_disk));

    let synced = dacapo.json(["index", "sync", "--json"]);
    let stats = dacapo.json(["index", "stats", "--json"]);
    for (object, segments) in [(&synced, 1), (&stats, 1)] {
        check_members(object, &[("segments", Count), ("events", Count), ("bytes_on_disk", Count)]);
        assert_eq!((&object["segments"], &object["events"]), (&json!(segments), &json!(30)));
    }
    let of_a_sync =
        [("complete", Flag), ("added", Count), ("bytes_read", Count), ("requests", Count)];
    check_members(&synced, &of_a_sync);
    assert!(stats["bytes_on_disk"].as_u64() > Some(0));

    let listed = dacapo.json(["archive", "ls", "--json"]);
    let stream = &listed["streams"][0];
    check_members(
        stream,
        &[("stream", Text), ("events", Count), ("first_time", Time), ("last_time", Time)],
    );
}

#[test]
fn a_plan_tells_what_would_happen() {
    let dacapo = shop();
    let members = [
        ("events", Count),
        ("exact", Flag),
        ("bytes", Count),
        ("segments", Count),
        ("by_type", Object),
        ("first_time", Time),
        ("last_time", Time),
        ("requests", Count),
        ("seconds", Number),
        ("plan", Text),
    ];
    let all = dacapo.json(["plan", "--json", "--to-queue", "q"]);
    check_members(&all, &members);
    assert_eq!((&all["events"], &all["exact"]), (&json!(30), &json!(true)));
    assert_eq!(all["by_type"], json!({ "order.paid": 15, "order.placed": 15 }));
    assert_eq!(all["segments"].as_u64(), Some(dacapo.segments().len() as u64));
    assert_eq!(all["first_time"], "2026-03-01T10:00:00Z");
    assert_eq!(all["last_time"], "2026-03-01T10:29:00Z");

    // With --exact everything is that of the selected events, not of the segments they are in.
    let some = dacapo.json([
        "plan",
        "--json",
        "--exact",
        "--to-queue",
        "q",
        "--type",
        "order.paid",
        "--key",
        "order-3",
    ]);
    check_members(&some, &members);
    assert_eq!((&some["events"], &some["exact"]), (&json!(2), &json!(true)));
    assert_eq!(some["by_type"], json!({ "order.paid": 2 }));
    assert_eq!(some["first_time"], "2026-03-01T10:03:00Z");
    assert_eq!(some["last_time"], "2026-03-01T10:17:00Z");

    // By type alone the index has the count, but not the times.
    let typed =
        dacapo.json(["plan", "--json", "--exact", "--to-queue", "q", "--type", "order.paid"]);
    assert_eq!((&typed["events"], &typed["exact"]), (&json!(15), &json!(true)));
    assert_eq!(typed["first_time"], "2026-03-01T10:01:00Z");

    // At 10 a second, and the hash is that of what would be done.
    let paced = dacapo.json(["plan", "--json", "--to-queue", "q", "--rate", "10"]);
    assert_eq!(paced["seconds"].as_f64(), Some(3.0), "{paced}");
    assert_ne!(paced["plan"], all["plan"]);
    assert_eq!(dacapo.json(["plan", "--json", "--to-queue", "q"])["plan"], all["plan"]);

    let none = dacapo.json(["plan", "--json", "--to-queue", "q", "--type", "no.such"]);
    assert_eq!((&none["events"], &none["segments"]), (&json!(0), &json!(0)));
}

#[test]
fn a_receipt_balances_and_replays_are_listed_oldest_first() {
    let dacapo = shop();
    let mut expected = Vec::new();
    // Several within one second, so that the order is not that of the clock's seconds.
    for n in 0..6 {
        let out = format!("out-{n}.ndjson");
        let receipt = dacapo.json(["replay", "--to-file", &out, "--type", "order.paid", "--json"]);
        check_members(&receipt, &RECEIPT);
        assert_eq!(receipt["state"], "completed");
        assert_eq!((&receipt["selected"], &receipt["confirmed"]), (&json!(15), &json!(15)));
        for none in ["rejected", "remaining", "possible_repeats", "reordered"] {
            assert_eq!(receipt[none], 0, "{none}");
        }
        let (read, full) = (receipt["bytes_read"].as_u64(), receipt["bytes_full_scan"].as_u64());
        assert!(read <= full, "{receipt}");
        expected.push(json!(receipt["replay"]));
    }
    let list = dacapo.json(["replays", "ls", "--json"]);
    assert_eq!(list.as_object().unwrap().keys().collect::<Vec<_>>(), ["replays"]);
    let replays = list["replays"].as_array().unwrap();
    for replay in replays {
        check_members(replay, &[("replay", Text), ("state", Text)]);
    }
    let listed: Vec<Value> = replays.iter().map(|replay| replay["replay"].clone()).collect();
    assert_eq!(listed, expected);

    let id = expected[2].as_str().unwrap();
    let shown = dacapo.json(["replays", "show", id, "--json"]);
    check_members(&shown, &RECEIPT);
    assert_eq!(shown["replay"], id);
}

#[test]
fn events_are_one_json_object_a_line() {
    let dacapo = Dacapo::new();
    let binary = json!({ "id": "b", "time": "2026-03-01T09:00:00.25Z", "body_base64": "AP8=" });
    import(&dacapo, "shop", &ndjson([binary, event(0)]), &[]);
    dacapo.run(["replay", "--to-file", "out.ndjson"]).check(0);
    let file = fs::read_to_string(dacapo.folder().join("out.ndjson")).unwrap();
    let events = dacapo.run(["events", "--json", "--limit", "0"]);
    events.check(0);
    assert_eq!(file, events.stdout, "a file and a look at it differ");
    let events = events.ndjson();
    assert_eq!(events.len(), 2);
    for event in &events {
        check_members(
            event,
            &[
                ("id", Text),
                ("time", Time),
                ("type", Text),
                ("exchange", Text),
                ("routing_key", Text),
                ("headers", Object),
                ("properties", Object),
            ],
        );
        assert!(event["key"].is_string() || event["key"].is_null());
        assert!(event.get("body").is_some() != event.get("body_base64").is_some(), "{event}");
    }
    assert_eq!(
        (&events[0]["body_base64"], &events[0]["time"]),
        (&json!("AP8="), &json!("2026-03-01T09:00:00.25Z"))
    );
    let placed = &events[1];
    let expected = event(0);
    for member in ["id", "time", "type", "key", "exchange", "routing_key", "headers"] {
        assert_eq!(placed[member], expected[member], "{member}");
    }
    assert_eq!(placed["body"], expected["body"].to_string());

    // To stdout there is room for the events alone; the receipt is on stderr.
    let piped = dacapo.run(["replay", "--to-file", "-", "--json"]);
    piped.check(0);
    assert_eq!(piped.stdout, file);
    let receipt = piped.stderr.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
    check_members(&receipt.unwrap(), &RECEIPT);
}

/// What was exported can be imported into another archive, with everything that JSON can say.
#[test]
fn an_export_is_an_import() {
    let dacapo = shop();
    dacapo.run(["replay", "--to-file", "out.ndjson"]).check(0);
    let exported = fs::read_to_string(dacapo.folder().join("out.ndjson")).unwrap();
    let other = Dacapo::new();
    import(&other, "shop", &exported, &[]);
    let without_place = |events: Vec<Value>| -> Vec<Value> {
        let strip = |mut event: Value| {
            event.as_object_mut().unwrap().shift_remove("archived_at");
            event
        };
        events.into_iter().map(strip).collect()
    };
    let shown =
        |dacapo: &Dacapo| without_place(dacapo.run(["events", "--json", "--limit", "0"]).ndjson());
    assert_eq!(shown(&other), shown(&dacapo));
}

#[test]
fn an_error_is_an_object_too() {
    let dacapo = shop();
    for (args, status) in [
        (&["events", "--from", "x"][..], 2),
        (&["events", "--no-such-flag"], 2),
        (&["no-such-command"], 2),
        (&["replays", "show", "x"], 2),
        (&["--archive", "/no/such/place", "plan"], 3),
        (&["replay", "--to-queue", "q"], 3),
        (&["archive", "import", "/no/such/file"], 3),
    ] {
        let args = args.iter().copied().chain(["--json"]);
        let output = dacapo.run(args);
        check_refused(&output, status, &[]);
        let object = output.json();
        check_members(&object, &[("error", Text), ("status", Count)]);
        assert_eq!(object["status"], status);
    }
    // Without --json stdout stays empty.
    assert_eq!(dacapo.run(["events", "--from", "x"]).stdout, "");
}

/// Makes a command end with each exit code that the help promises.
fn provoke(status: i32) -> Output {
    let dacapo = shop();
    match status {
        0 => dacapo.run(["events"]),
        1 => {
            // A file is where a folder of the archive has to be.
            let dacapo = Dacapo::new();
            fs::create_dir(dacapo.archive()).expect("the folder is ours");
            dacapo.file("archive/segments", "");
            dacapo.file(
                "one.ndjson",
                "{\"id\":\"1\",\"time\":\"2026-03-01T00:00:00Z\",\"body\":{}}\n",
            );
            dacapo.run(["archive", "import", "one.ndjson"])
        }
        2 => dacapo.run(["events", "--from", "2026-03-02", "--to", "2026-03-01"]),
        3 => dacapo.run(["--archive", "/no/such/place", "events"]),
        4 => {
            fs::remove_file(&dacapo.segments()[0]).expect("the archive is ours");
            dacapo.run(["archive", "verify"])
        }
        5 => {
            let (amqp, queue) = (services::amqp(), services::unique("no-such-queue"));
            dacapo.run(["replay", "--to-queue", &queue, "--amqp", &amqp])
        }
        6 => {
            let running = dacapo.spawn(["replay", "--to-file", "out.ndjson", "--rate", "1"]);
            running.wait_for_line("replay     ", DEADLINE);
            running.signal(Signal::Interrupt).expect("it runs");
            running.wait(DEADLINE)
        }
        7 => {
            let running = dacapo.spawn(["replay", "--to-file", "out.ndjson", "--rate", "1"]);
            let line = running.wait_for_line("replay     ", DEADLINE);
            let id = line.split_whitespace().last().expect("the line has words");
            dacapo.run(["replay", "resume", id])
        }
        8 => dacapo.run(["plan", "--to-queue", "q", "--amqp", "amqp://guest:guest@127.0.0.1:1/"]),
        9 => {
            dacapo.file("bad.ndjson", "no event\n");
            dacapo.run(["archive", "import", "bad.ndjson"])
        }
        10 => {
            // A restore that cannot even begin is no restore, and has a report that says so.
            let described = "name = 'd'\n[environment]\nvhost = 'd'\n[target]\nqueue = 'q'\n";
            dacapo.file("drill.toml", described);
            dacapo.run(["drill", "drill.toml", "--amqp", "amqp://guest:guest@127.0.0.1:1/"])
        }
        other => panic!("exit code {other} has no test"),
    }
}

#[test]
fn every_exit_code_of_the_help_is_reached() {
    let help = Dacapo::new().run(["--help"]);
    help.check(0);
    let (_, statuses) = help.stdout.split_once("Exit status:\n").unwrap();
    let statuses: BTreeSet<i32> =
        statuses.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    assert!(statuses.len() >= 6, "{statuses:?}");
    for status in statuses {
        provoke(status).check(status);
    }
}
