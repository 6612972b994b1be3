//! `archive verify` and `archive repair` as an operator meets them on the day.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dacapo_integration::dacapo::Dacapo;
use serde_json::Value;

use super::fixtures::shop;

/// Returns every object of an archive in a folder that is part of it, by its key.
fn objects(dacapo: &Dacapo) -> BTreeMap<String, Vec<u8>> {
    fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).expect("the archive is ours") {
            let path = entry.expect("it is there").path();
            let key = path.strip_prefix(root).expect("it is below").display().to_string();
            match path.is_dir() {
                true => collect(root, &path, found),
                false => drop(found.insert(key, fs::read(&path).expect("it is there"))),
            }
        }
    }
    let mut found = BTreeMap::new();
    let root = PathBuf::from(dacapo.archive());
    for prefix in ["segments", "chain", "heads", "compacted", "compactions"] {
        // The last two are only there if it is compacted.
        if root.join(prefix).exists() {
            collect(&root, &root.join(prefix), &mut found);
        }
    }
    found
}

fn path(dacapo: &Dacapo, key: &str) -> PathBuf {
    Path::new(dacapo.archive()).join(key)
}

fn chain(dacapo: &Dacapo) -> Vec<String> {
    objects(dacapo).into_keys().filter(|key| key.starts_with("chain/")).collect()
}

fn named(list: &Value, member: &str) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|found| found[member].as_str().expect("a key").to_owned()).collect()
}

#[test]
fn entries_and_heads_are_rebuilt_and_nothing_is_changed_by_a_dry_run() {
    let dacapo = shop();
    let sound = objects(&dacapo);
    let entries = chain(&dacapo);
    fs::remove_file(path(&dacapo, &entries[1])).unwrap();
    fs::write(path(&dacapo, &entries[2]), "{").unwrap();
    fs::remove_file(path(&dacapo, "heads/shop.json")).unwrap();
    dacapo.run(["archive", "verify"]).check(4);

    let damaged = objects(&dacapo);
    let told = dacapo.json(["archive", "repair", "--dry-run", "--json"]);
    assert_eq!(objects(&dacapo), damaged);
    let done = dacapo.json(["archive", "repair", "--json"]);
    assert_eq!(told["mended"], done["mended"]);
    assert_eq!(
        named(&done["mended"], "object"),
        [entries[1].as_str(), &entries[2], "heads/shop.json"]
    );
    let kept = done["mended"][1]["kept"].as_str().expect("it was damaged");
    assert_eq!(fs::read_to_string(path(&dacapo, kept)).unwrap(), "{");

    let mut mended = objects(&dacapo);
    let (_, before) = sound.iter().find(|(key, _)| key.starts_with("heads/")).unwrap();
    let moved = mended.insert("heads/shop.json".to_owned(), before.clone()).unwrap();
    let head = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap()["digest"].take();
    assert_eq!(head(&moved), head(before));
    assert_eq!(mended, sound);
    dacapo.run(["archive", "verify"]).check(0);
    assert_eq!(dacapo.json(["archive", "repair", "--json"])["mended"], Value::Array(vec![]));
    assert_eq!(dacapo.run(["events", "--json", "--limit", "0"]).ndjson().len(), 30);
}

#[test]
fn a_lost_segment_is_listed_with_its_sequences_and_times_and_is_sound_when_it_is_back() {
    let dacapo = shop();
    let entries = chain(&dacapo);
    let entry: Value = serde_json::from_slice(&objects(&dacapo)[&entries[1]]).unwrap();
    let segment = entry["segment"].as_str().unwrap();
    let bytes = fs::read(path(&dacapo, segment)).unwrap();
    fs::remove_file(path(&dacapo, segment)).unwrap();

    let text = dacapo.run(["archive", "repair"]);
    text.check(4);
    let (first, last) = (&entry["first_sequence"], &entry["last_sequence"]);
    for words in [format!("REMAINS  {segment}"), format!("sequences {first} to {last}")] {
        assert!(text.stdout.contains(&words), "{}", text.stdout);
    }
    assert!(text.stdout.contains("--accept-gaps"), "{}", text.stdout);
    let output = dacapo.run(["archive", "repair", "--json"]);
    output.check(4);
    let remaining = &output.json()["remaining"][0];
    assert_eq!((&remaining["first_sequence"], &remaining["last_sequence"]), (first, last));
    assert!(remaining["after_time"].is_string() && remaining["before_time"].is_string());

    fs::write(path(&dacapo, segment), bytes).unwrap();
    dacapo.run(["archive", "repair"]).check(0);
}

#[test]
fn where_segments_were_merged_and_deleted_their_entries_are_rebuilt_from_the_output() {
    let dacapo = shop();
    let all = dacapo.run(["events", "--json", "--limit", "0"]).ndjson();
    let at_once = ["archive", "compact", "--older-than", "0s", "--grace", "0s", "--json"];
    let deleted = &dacapo.json(at_once)["streams"][0]["deleted"];
    let sound = objects(&dacapo);
    let entries = chain(&dacapo);
    assert_eq!(deleted.as_u64(), Some(entries.len() as u64 - 1));
    let compaction = "compactions/shop/00000000000000000001.json";
    let lost = [entries[0].as_str(), &entries[1], "heads/shop.json"];
    for key in lost {
        fs::remove_file(path(&dacapo, key)).unwrap();
    }
    fs::write(path(&dacapo, compaction), "{").unwrap();
    dacapo.run(["archive", "verify"]).check(4);

    let told = dacapo.json(["archive", "repair", "--dry-run", "--json"]);
    let done = dacapo.json(["archive", "repair", "--json"]);
    assert_eq!(told["mended"], done["mended"]);
    let mended = [entries[0].as_str(), &entries[1], compaction, "heads/shop.json"];
    assert_eq!(named(&done["mended"], "object"), mended);
    // When it was made is not known any more.
    let made = |bytes: &[u8]| {
        let mut json: Value = serde_json::from_slice(bytes).unwrap();
        for member in ["compacted_at", "checksum", "moved_at"] {
            json.as_object_mut().unwrap().remove(member);
        }
        json
    };
    let result = objects(&dacapo);
    assert_eq!(result.keys().collect::<Vec<_>>(), sound.keys().collect::<Vec<_>>());
    for (key, before) in &sound {
        match [compaction, "heads/shop.json"].contains(&key.as_str()) {
            true => assert_eq!(made(&result[key]), made(before), "{key}"),
            false => assert_eq!(&result[key], before, "{key}"),
        }
    }
    dacapo.run(["archive", "verify"]).check(0);
    assert_eq!(dacapo.run(["events", "--json", "--limit", "0"]).ndjson(), all);
    assert_eq!(dacapo.json(["archive", "repair", "--json"])["mended"], Value::Array(vec![]));

    // What nothing proves is listed, between the times of what is around it.
    let output = sound.keys().find(|key| key.starts_with("compacted/")).unwrap();
    fs::remove_file(path(&dacapo, output)).unwrap();
    let report = dacapo.run(["archive", "repair", "--json"]);
    report.check(4);
    let remaining = &report.json()["remaining"][0];
    assert_eq!(remaining["segment"], output.as_str());
    assert!(remaining["before_time"].is_string(), "{remaining}");
}

#[test]
fn a_success_of_verify_is_recorded_and_a_failure_is_not() {
    let dacapo = shop();
    let record = path(&dacapo, "verified.json");
    let (head, aside) = (path(&dacapo, "heads/shop.json"), dacapo.folder().join("head"));
    fs::rename(&head, &aside).unwrap();
    dacapo.run(["archive", "verify"]).check(4);
    assert!(!record.exists());
    fs::rename(&aside, &head).unwrap();
    let report = dacapo.json(["archive", "verify", "--json"]);
    let recorded: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    assert_eq!(recorded["at"], report["verified_at"]);
    assert_eq!(recorded["events"], 30);
}

#[test]
fn of_two_imports_of_one_stream_at_once_one_succeeds_and_the_other_is_told_that_it_is_busy() {
    let dacapo = Dacapo::new();
    let line = |n| format!("{{\"id\":\"e{n}\",\"body\":{n}}}\n");
    let file = dacapo.file("events.ndjson", (0..2_000).map(line).collect::<String>());
    let file = file.to_str().expect("a path of ours");
    let import = ["archive", "import", file, "--name", "shop", "--roll-bytes", "4000"];
    let both = [dacapo.spawn(import), dacapo.spawn(import)];
    let ended = both.map(|running| running.wait(super::platform::DEADLINE));
    let mut statuses = ended.each_ref().map(|output| output.status);
    statuses.sort_unstable();
    // The second may also have come when the first was done.
    let expected = [[Some(0), Some(7)], [Some(0), Some(0)]];
    assert!(expected.contains(&statuses), "{ended:?}");
    let report = dacapo.json(["archive", "verify", "--json"]);
    assert_eq!((&report["events"], &report["streams"]), (&2_000.into(), &1.into()));
}
