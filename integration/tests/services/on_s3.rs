//! The whole way on a real S3 server: import, list, verify, look, plan, replay; and what a server
//! refuses.

mod proxy;

use std::fs;

use dacapo_integration::campaign::schedule::Dice;
use dacapo_integration::dacapo::Dacapo;
use serde_json::{Value, json};

use self::proxy::Proxy;
use super::fixtures::{
    SMALL_SEGMENTS, check_refused, delete_index, event, ids, import, lines, ndjson,
};
use super::services;

#[test]
fn import_list_verify_look_plan_and_replay() {
    let dacapo = Dacapo::on_s3();
    let imported = import(&dacapo, "shop", &lines(30), &[SMALL_SEGMENTS]);
    let segments = imported["segments"].as_u64().unwrap();
    assert_eq!(imported["events"], 30);

    let listed = dacapo.json(["archive", "ls", "--segments", "--json"]);
    assert_eq!(listed["archive"], dacapo.archive());
    assert_eq!(listed["segments"].as_array().map(Vec::len), usize::try_from(segments).ok());
    let verified = dacapo.json(["archive", "verify", "--json"]);
    for member in ["events", "segments", "bytes", "problems"] {
        assert_eq!(verified[member], imported[member], "{member}");
    }
    assert_eq!(ids(&dacapo), (0..30).map(|n| format!("e-{n}")).collect::<Vec<_>>());
    let flags = ["--type", "order.paid", "--to-file", "out.ndjson"];
    let plan: Vec<&str> = ["plan", "--json"].iter().chain(&flags).copied().collect();
    let plan = dacapo.json(plan);
    assert_eq!((&plan["events"], &plan["segments"]), (&json!(15), &imported["segments"]));
    let replay: Vec<&str> = ["replay", "--json"].iter().chain(&flags).copied().collect();
    let receipt = dacapo.json(replay);
    assert_eq!((&receipt["state"], &receipt["confirmed"]), (&json!("completed"), &json!(15)));
    assert_eq!(receipt["bytes_full_scan"], imported["bytes"]);
    let written = fs::read_to_string(dacapo.folder().join("out.ndjson")).unwrap();
    let looked = dacapo.run(["events", "--json", "--limit", "0", "--type", "order.paid"]);
    assert_eq!(written, looked.stdout);

    // Run again, an import adds nothing twice here, either.
    let again = import(&dacapo, "shop", &lines(30), &[SMALL_SEGMENTS]);
    assert_eq!((&again["events"], &again["already"]), (&json!(0), &json!(30)));
}

#[test]
fn a_bucket_that_does_not_exist_is_named() {
    let mut dacapo = Dacapo::new();
    dacapo.set("AWS_ENDPOINT_URL", &services::s3().endpoint);
    let archive = format!("s3://{}/archive", services::unique("no-such-bucket"));
    for command in [&["events"][..], &["archive", "verify"], &["archive", "ls"], &["plan"]] {
        let mut args = vec!["--archive", archive.as_str()];
        args.extend(command);
        let words =
            [archive.as_str(), "does not exist", "check the bucket's name", "AWS_ENDPOINT_URL"];
        check_refused(&dacapo.run(args), 3, &words);
    }
    dacapo.file("in.ndjson", lines(1));
    let output = dacapo.run(["--archive", &archive, "archive", "import", "in.ndjson"]);
    check_refused(&output, 3, &[&archive, "does not exist"]);
}

#[test]
fn a_prefix_without_an_archive_is_empty_and_not_sound() {
    let dacapo = Dacapo::on_s3();
    for command in [&["events"][..], &["archive", "verify"], &["plan"]] {
        let words = [dacapo.archive(), "is empty", "check --archive"];
        check_refused(&dacapo.run(command), 3, &words);
    }
}

#[test]
fn wrong_credentials_are_refused_and_not_shown() {
    let mut dacapo = Dacapo::on_s3();
    import(&dacapo, "shop", &lines(1), &[]);
    const SECRET: &str = "a-wrong-and-secret-key";
    dacapo.set("AWS_SECRET_ACCESS_KEY", SECRET);
    for command in [&["events"][..], &["archive", "verify"], &["archive", "import", "shop.ndjson"]]
    {
        let output = dacapo.run(command.iter().copied().chain(["--log", "debug"]));
        output.check(3);
        let error = output.stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
        for word in [dacapo.archive(), "was refused", "check the credentials"] {
            assert!(error.contains(word), "no “{word}” in {error}");
        }
        assert!(!output.stderr.contains(SECRET), "{output:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_unavailable() {
    let mut dacapo = Dacapo::on_s3();
    dacapo.set("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    let output = dacapo.run(["events"]);
    check_refused(&output, 8, &[dacapo.archive(), "did not take or give"]);
}

/// SeaweedFS knows no cold storage; a proxy before it answers for a segment as S3 does.
#[test]
fn an_object_in_cold_storage_asks_to_be_restored() {
    let mut dacapo = Dacapo::on_s3();
    import(&dacapo, "shop", &lines(30), &[SMALL_SEGMENTS]);
    let listed = dacapo.json(["archive", "ls", "--segments", "--json"]);
    let cold = listed["segments"][1]["segment"].as_str().unwrap().to_owned();
    let proxy = Proxy::before(&services::s3().endpoint, Some(&cold));
    dacapo.set("AWS_ENDPOINT_URL", &proxy.endpoint());
    let words = [cold.as_str(), "in cold storage (GLACIER)", "restore-object", "try again"];
    check_refused(&dacapo.run(["events", "--limit", "0"]), 8, &words);
    check_refused(&dacapo.run(["replay", "--to-file", "out.ndjson"]), 6, &words);
    delete_index(&dacapo);
    check_refused(&dacapo.run(["index", "sync"]), 8, &words);
    // Nothing is wrong with an archive that is only cold, but nobody has seen it sound, either.
    let verified = dacapo.run(["archive", "verify", "--json"]);
    verified.check(4);
    assert!(verified.stdout.contains("in cold storage"), "{verified:?}");
    // An interrupted replay goes on once the object is back.
    let list = dacapo.json(["replays", "ls", "--json"]);
    let id = list["replays"][0]["replay"].as_str().unwrap();
    dacapo.set("AWS_ENDPOINT_URL", &services::s3().endpoint);
    let receipt = dacapo.json(["replay", "resume", id, "--json"]);
    assert_eq!((&receipt["state"], &receipt["confirmed"]), (&json!("completed"), &json!(30)));
}

#[test]
fn a_sync_reads_only_what_is_new() {
    let mut dacapo = Dacapo::on_s3();
    let first = import(&dacapo, "shop", &lines(60), &[SMALL_SEGMENTS]);
    let proxy = Proxy::before(&services::s3().endpoint, None);
    dacapo.set("AWS_ENDPOINT_URL", &proxy.endpoint());
    let reads = |proxy: &Proxy| -> (usize, usize) {
        let seen = proxy.take_requests();
        let segments = seen.iter().filter(|path| path.contains(".parquet")).count();
        (segments, seen.len())
    };

    let synced = dacapo.json(["index", "sync", "--json"]);
    assert_eq!(synced["added"], first["segments"]);
    let (footers, _) = reads(&proxy);
    assert_eq!(json!(footers), first["segments"], "one request a footer");

    // Nothing new: one look at the heads, whatever the number of segments.
    assert_eq!(dacapo.json(["index", "sync", "--json"])["added"], 0);
    let (footers, requests) = reads(&proxy);
    assert_eq!(footers, 0);
    assert!(requests <= 4, "{requests} requests for nothing new");

    // One segment more in one stream of two.
    import(&dacapo, "later", &ndjson([event(100)]), &[]);
    reads(&proxy);
    assert_eq!(dacapo.json(["index", "sync", "--json"])["added"], 1);
    let (footers, requests) = reads(&proxy);
    assert_eq!(footers, 1);
    assert!(requests <= 8, "{requests} requests for one new segment");
}

/// Returns event `n` of a large shop: a key of its own in no order, and a body that does not
/// compress well.
fn distinct(n: u64) -> Value {
    let mut dice = Dice::new(n);
    let hex: String = (0..16).map(|_| format!("{:016x}", dice.roll())).collect();
    let mut event = event(0);
    let (hour, minute, second) = (n / 3_600, n / 60 % 60, n % 60);
    event["id"] = json!(format!("e-{n}"));
    event["time"] = json!(format!("2026-03-01T{hour:02}:{minute:02}:{second:02}Z"));
    event["key"] = json!(format!("order-{}", &hex[..12]));
    event["body"] = json!(hex);
    event
}

#[test]
fn a_question_about_one_key_reads_a_small_part_of_a_large_archive() {
    /// Several segments with several row groups each.
    const EVENTS: u64 = 60_000;
    let dacapo = Dacapo::on_s3();
    let imported =
        import(&dacapo, "large", &ndjson((0..EVENTS).map(distinct)), &["--roll-bytes=8M"]);
    assert_eq!(imported["events"], EVENTS);
    let key = distinct(41_234)["key"].as_str().unwrap().to_owned();
    let receipt = dacapo.json(["replay", "--to-file", "out.ndjson", "--key", &key, "--json"]);
    assert_eq!((&receipt["selected"], &receipt["confirmed"]), (&json!(1), &json!(1)));
    assert_eq!(receipt["bytes_full_scan"], imported["bytes"]);
    let (read, full) = (&receipt["bytes_read"], &receipt["bytes_full_scan"]);
    let share = read.as_f64().unwrap() / full.as_f64().unwrap();
    assert!(share < 0.1, "{share} of {full} bytes were read for one event: {receipt}");

    // Nobody has this key: the filters say so without a row.
    let receipt = dacapo.json(["replay", "--to-file", "none.ndjson", "--key", "nobody", "--json"]);
    assert_eq!(receipt["selected"], 0);
    assert!(receipt["bytes_read"].as_f64() < read.as_f64(), "{receipt}");
}
