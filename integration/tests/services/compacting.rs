//! `archive compact` through the binary, on files and on S3: same events, same plans, killed and
//! run again, with DuckDB as a witness.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dacapo_integration::dacapo::Dacapo;
use dacapo_integration::environment;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::fixtures::{SMALL_SEGMENTS, check_refused, event, ids, import, lines, ndjson, path};
use super::witness;

/// Imported just now, and to be deleted at once.
const AT_ONCE: [&str; 4] = ["--older-than", "0s", "--grace", "0s"];

/// Events of one day, of which five are there twice, far apart.
fn with_repeats() -> String {
    let repeated = [3, 4, 10, 11, 60].map(event);
    ndjson((0..150).map(event).chain(repeated).chain((150..200).map(event)))
}

/// The ids in [`with_repeats`], each once, as they come.
fn once() -> Vec<String> {
    (0..200).map(|n| format!("e-{n}")).collect()
}

#[track_caller]
fn compact(dacapo: &Dacapo, flags: &[&str]) -> Value {
    let args: Vec<&str> = ["archive", "compact", "--json"].iter().chain(flags).copied().collect();
    let told = dacapo.json(args);
    assert_eq!(told["problems"], json!([]), "{told}");
    told["streams"][0].clone()
}

/// Returns the segments that are still there as they were written.
fn originals(dacapo: &Dacapo) -> Vec<PathBuf> {
    let folder = Path::new(dacapo.archive()).join("segments");
    dacapo.segments().into_iter().filter(|path| path.starts_with(&folder)).collect()
}

fn check_whole_way(dacapo: &Dacapo) {
    let imported = import(dacapo, "shop", &with_repeats(), &[SMALL_SEGMENTS]);
    let segments = imported["segments"].as_u64().unwrap();
    dacapo.run(["plan", "--to-file", "out.ndjson", "--out", "plan.json"]).check(0);
    dacapo.run(["index", "sync"]).check(0);

    let told = compact(dacapo, &["--older-than", "0s", "--dry-run"]);
    assert_eq!((&told["merged"], &told["outputs"]), (&json!(segments - 1), &json!(1)), "{told}");
    let done = compact(dacapo, &["--older-than", "0s"]);
    assert_eq!((&done["merged"], &done["dropped"]), (&json!(segments - 1), &json!(5)), "{done}");
    assert_eq!((&done["waiting"], &done["deleted"]), (&json!(segments - 1), &json!(0)), "{done}");
    assert_eq!(ids(dacapo), once());
    let done = compact(dacapo, &AT_ONCE);
    assert_eq!((&done["waiting"], &done["deleted"]), (&json!(0), &json!(segments - 1)), "{done}");

    assert_eq!(ids(dacapo), once());
    let verified = dacapo.json(["archive", "verify", "--json"]);
    assert_eq!(
        (&verified["segments"], &verified["compacted"]),
        (&json!(segments), &json!(segments - 1))
    );
    assert_eq!((&verified["events"], &verified["repeats_dropped"]), (&json!(200), &json!(5)));
    assert_eq!(verified["notes"], json!([]));
    let listed = dacapo.json(["archive", "ls", "--segments", "--json"]);
    assert_eq!((&listed["streams"][0]["events"], &listed["complete"]), (&json!(200), &json!(true)));
    let rebuilt = dacapo.json(["index", "rebuild", "--json"]);
    assert_eq!((&rebuilt["events"], &rebuilt["segments"]), (&json!(200), &json!(2)), "{rebuilt}");
    assert_eq!(dacapo.json(["archive", "ls", "--segments", "--json"]), listed);
    // By key and by time, out of the output.
    let one = dacapo.run(["events", "--json", "--id", "e-60"]).ndjson();
    assert_eq!((one.len(), &one[0]["key"]), (1, &json!("order-4")));

    // The plan was made when none of that had happened.
    let receipt = dacapo.json(["replay", "--plan", "plan.json", "--json"]);
    assert_eq!((&receipt["state"], &receipt["confirmed"]), (&json!("completed"), &json!(200)));
    assert_eq!(receipt["remaining"], 0);
    let written = fs::read_to_string(dacapo.folder().join("out.ndjson")).unwrap();
    let written: Vec<Value> =
        written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = written.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids, once());

    // The import goes on where it was.
    let again = import(dacapo, "shop", &with_repeats(), &[SMALL_SEGMENTS]);
    assert_eq!((&again["events"], &again["already"]), (&json!(0), &json!(205)));
}

#[test]
fn an_archive_in_a_folder_is_compacted_and_reads_the_same() {
    check_whole_way(&Dacapo::new());
}

#[test]
fn an_archive_on_s3_is_compacted_and_reads_the_same() {
    check_whole_way(&Dacapo::on_s3());
}

/// A text of so many bytes that takes half of them compressed.
fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        format!("{state:016x}")
    });
    words.take(bytes / 16).collect()
}

/// Segments as large as those of a platform: below and above what compaction reads at once.
fn check_megabytes(dacapo: &Dacapo) {
    let streams = [("middling", "1536Ki", 200), ("large", "5Mi", 400)];
    for (stream, roll, events) in streams {
        let lines = (0..events).map(|n| {
            let mut event = event(n);
            event["body"]["note"] = json!(noise(n + roll.len() as u64, 100_000));
            event
        });
        import(dacapo, stream, &ndjson(lines), &["--roll-bytes", roll]);
    }
    let before = ids(dacapo);
    let segments: Vec<u64> = dacapo.json(["archive", "ls", "--json"])["streams"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stream| stream["segments"].as_u64().unwrap())
        .collect();
    let merged: Vec<u64> = segments.iter().map(|count| count - 1).collect();
    assert!(merged.iter().all(|count| *count >= 3), "{segments:?}");
    for (flags, key) in [(&AT_ONCE[..2], "merged"), (&AT_ONCE, "deleted")] {
        let args = ["archive", "compact", "--json"].iter().chain(flags);
        let told = dacapo.json(args);
        assert_eq!(told["problems"], json!([]), "{told}");
        let counts: Vec<u64> = told["streams"]
            .as_array()
            .unwrap()
            .iter()
            .map(|stream| stream[key].as_u64().unwrap())
            .collect();
        assert_eq!(counts, merged, "{key}");
        let verified = dacapo.json(["archive", "verify", "--json"]);
        assert_eq!((&verified["problems"], &verified["events"]), (&json!([]), &json!(600)));
    }
    assert_eq!(ids(dacapo), before);
}

#[test]
fn segments_of_megabytes_in_a_folder_are_merged_and_deleted() {
    check_megabytes(&Dacapo::new());
}

#[test]
fn segments_of_megabytes_on_s3_are_merged_and_deleted() {
    check_megabytes(&Dacapo::on_s3());
}

/// Killed again and again while it merges and deletes, until it has come to its end.
#[test]
fn killed_at_any_moment_and_run_again_nothing_is_lost() {
    let dacapo = Dacapo::new();
    import(&dacapo, "shop", &lines(2_000), &[SMALL_SEGMENTS]);
    let expected: Vec<String> = (0..2_000).map(|n| format!("e-{n}")).collect();
    let args = ["archive", "compact", "--roll-bytes", "40k"];
    let args: Vec<&str> = args.iter().chain(&AT_ONCE).copied().collect();
    let began = Instant::now();
    dacapo.run(args.iter().chain(&["--dry-run"])).check(0);
    let (mut kills, mut wait) = (0, began.elapsed());
    loop {
        assert!(kills < 200, "it comes to no end");
        let mut running = dacapo.spawn(&args);
        // Where it is struck differs each time; it is given more and more of it.
        let until = Instant::now() + wait;
        while Instant::now() < until && running.is_running().unwrap() {
            std::thread::yield_now();
        }
        if !running.is_running().unwrap() {
            running.wait(Duration::from_secs(60)).check(0);
            break;
        }
        running.kill();
        kills += 1;
        wait += Duration::from_millis(7);
        if kills % 10 == 0 {
            dacapo.run(["archive", "verify"]).check(0);
        }
    }
    dacapo.run(&args).check(0);
    dacapo.run(["archive", "verify"]).check(0);
    assert_eq!(ids(&dacapo), expected);
    assert_eq!(originals(&dacapo).len(), 1, "after {kills} kills");
}

/// An output that was damaged before its inputs were deleted keeps them.
#[test]
fn damage_keeps_what_was_merged_and_ends_with_status_4() {
    let dacapo = Dacapo::new();
    import(&dacapo, "shop", &lines(100), &[SMALL_SEGMENTS]);
    let before = originals(&dacapo);
    compact(&dacapo, &["--older-than", "0s"]);
    let ls = dacapo.json(["archive", "ls", "--segments", "--json"]);
    let output = ls["segments"][0]["segment"].as_str().unwrap().to_owned();
    assert!(output.starts_with("compacted/stream=shop/"), "{output}");
    let file = Path::new(dacapo.archive()).join(&output);
    let mut bytes = fs::read(&file).unwrap();
    bytes[300] ^= 1;
    fs::write(&file, bytes).unwrap();
    let refused = dacapo.run(["archive", "compact"].iter().chain(&AT_ONCE));
    refused.check(4);
    assert!(refused.stdout.contains(&output), "{refused:?}");
    assert!(refused.stdout.contains("digest differs"), "{refused:?}");
    assert_eq!(originals(&dacapo), before);
    let verified = dacapo.run(["archive", "verify"]);
    verified.check(4);
    assert!(verified.stdout.contains(&output), "{verified:?}");
}

/// Neither a lost segment nor a damaged head of one stream holds up another.
#[test]
fn what_one_stream_lacks_is_named_and_the_other_is_compacted() {
    let dacapo = Dacapo::new();
    import(&dacapo, "shop", &lines(100), &[SMALL_SEGMENTS]);
    import(&dacapo, "zoo", &lines(100), &[SMALL_SEGMENTS]);
    let head = Path::new(dacapo.archive()).join("heads/shop.json");
    let gone = originals(&dacapo).remove(0);
    assert!(gone.to_str().unwrap().contains("stream=shop/"), "{gone:?}");
    fs::remove_file(&gone).unwrap();
    for found in ["00000000000000000001.parquet: it is missing", "heads/shop.json: "] {
        let told = dacapo.run(["archive", "compact", "--older-than", "0s"]);
        told.check(4);
        assert!(told.stdout.contains(found), "{told:?}");
        assert!(told.stdout.contains("\nzoo"), "{told:?}");
        fs::write(&head, "damaged").unwrap();
    }
    assert!(Path::new(dacapo.archive()).join("compactions/zoo").is_dir());
}

#[test]
fn what_cannot_be_asked_for_is_refused() {
    let dacapo = Dacapo::new();
    import(&dacapo, "shop", &lines(3), &[]);
    check_refused(
        &dacapo.run(["archive", "compact", "--stream", "mail"]),
        3,
        &["there is no stream `mail`", "dacapo archive ls"],
    );
    for (memory, most) in [("128Mi", "48Mi"), ("64Mi", "24Mi")] {
        let large = ["archive", "compact", "--memory", memory, "--roll-bytes", "64Mi"];
        check_refused(&dacapo.run(large), 2, &[most, "--memory"]);
    }
    let time = dacapo.run(["archive", "compact", "--grace", "7 moons"]);
    check_refused(&time, 2, &["is not a duration"]);
}

/// During the grace period and after it, the documented query sees each event once.
#[test]
fn duckdb_reads_a_compacted_archive_as_documented() {
    let document = environment::root().join("docs/archive-format.md");
    let document = fs::read_to_string(document).unwrap();
    let (_, section) = document.split_once("## Reading it with other tools").unwrap();
    let query = section.split("```sql\n").nth(2).unwrap().split_once("```").unwrap().0;
    let query = query.trim().trim_end_matches(';');
    let query = format!("SELECT id FROM ({query})");

    let dacapo = Dacapo::new();
    import(&dacapo, "shop", &lines(100), &[SMALL_SEGMENTS]);
    for flags in [&AT_ONCE[..2], &AT_ONCE] {
        compact(&dacapo, flags);
        let input = json!({
            "archive": dacapo.archive(),
            "queries": [query],
            "pandas": "pandas.read_parquet('ARCHIVE/compacted')",
        });
        let told = witness::run("documented.py", &[], &input.to_string()).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let rows = told["queries"][0].as_array().unwrap();
        let seen: BTreeSet<&str> = rows.iter().map(|row| row[0].as_str().unwrap()).collect();
        assert_eq!((rows.len(), seen.len()), (100, 100), "{flags:?}");
    }
    assert!(Path::new(&path(&dacapo, "archive/compacted")).is_dir());
}
