//! Files that are named as output: none of the user's is lost, and none is taken for whole.

use std::fs;
use std::time::Duration;

use dacapo_integration::dacapo::Dacapo;

use super::super::fixtures::{check_refused, event, ndjson, shop};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_reject_file_never_replaces_a_file_of_the_users() {
    let dacapo = Dacapo::new();
    let input = ndjson([event(1), event(2)]);
    dacapo.file("in.ndjson", &input);
    dacapo.file("precious.txt", "precious\n");
    for rejects in ["in.ndjson", "./in.ndjson", "precious.txt"] {
        let args = ["archive", "import", "in.ndjson", "--skip-bad", "--rejects", rejects];
        check_refused(&dacapo.run(args), 2, &[rejects, "--rejects FILE"]);
    }
    assert_eq!(fs::read_to_string(dacapo.folder().join("in.ndjson")).unwrap(), input);
    assert_eq!(fs::read_to_string(dacapo.folder().join("precious.txt")).unwrap(), "precious\n");
}

#[test]
fn an_earlier_reject_file_is_replaced() {
    let dacapo = Dacapo::new();
    dacapo.file("in.ndjson", format!("no event\n{}", ndjson([event(1)])));
    for _ in 0..2 {
        dacapo.run(["archive", "import", "in.ndjson", "--skip-bad"]).check(0);
        let rejects = fs::read_to_string(dacapo.folder().join("in.ndjson.rejects.ndjson")).unwrap();
        assert_eq!(rejects.lines().count(), 1, "{rejects}");
    }
}

#[test]
fn a_replay_does_not_go_on_into_a_file_that_lacks_what_it_wrote() {
    let dacapo = shop();
    let replay = dacapo.spawn(["replay", "--to-file", "out.ndjson", "--rate", "20"]);
    let out = dacapo.folder().join("out.ndjson");
    let some =
        || Ok((fs::read_to_string(&out).unwrap_or_default().lines().count() > 3).then_some(()));
    dacapo_integration::wait::until("some events are written", DEADLINE, some).unwrap();
    replay.kill();
    let whole = fs::read(&out).unwrap();
    let list = dacapo.json(["replays", "ls", "--json"]);
    let id = list["replays"][0]["replay"].as_str().unwrap().to_owned();

    fs::remove_file(&out).unwrap();
    check_refused(&dacapo.run(["replay", "resume", &id]), 5, &["out.ndjson", "put it back"]);
    fs::write(&out, &whole).unwrap();
    dacapo.run(["replay", "resume", &id]).check(0);
}

#[test]
fn a_file_that_cannot_be_made_is_refused_before_there_is_a_replay() {
    let dacapo = shop();
    let refused = dacapo.run(["replay", "--to-file", "no/such/folder/out.ndjson"]);
    check_refused(&refused, 3, &["no/such/folder", "make it first"]);
    assert_eq!(dacapo.json(["replays", "ls", "--json"])["replays"].as_array().unwrap().len(), 0);
}

#[test]
fn a_file_that_cannot_be_read_or_written_is_wrong_configuration_whatever_it_is_for() {
    let dacapo = shop();
    dacapo.file("in.ndjson", "no event\n");
    let missing = "no/such/file";
    for command in [
        &["archive", "verify", "--expect-heads", missing][..],
        &["archive", "verify", "--write-heads", missing],
        &["archive", "import", "in.ndjson", "--skip-bad", "--rejects", missing],
        &["plan", "--out", missing],
        &["replay", "--plan", missing],
        &["events", "--rejects", missing],
    ] {
        check_refused(&dacapo.run(command), 3, &["`no/such/file`"]);
    }
}
