//! Replays on disk: found, locked, and never half-written.

use proptest::prelude::*;
use serde_json::json;
use std::io::Read as _;
use tempfile::TempDir;

use super::*;
use crate::survey::Depth;
use crate::testing::{Archive, at, block_on, clock, event, everything};

fn plan() -> Plan {
    block_on(async {
        let archive = Archive::of(vec![vec![event(0, at(0))]], 1).await;
        archive.plan(everything(), Depth::Index).await
    })
}

fn id(text: &str) -> ReplayId {
    ReplayId(text.to_owned())
}

/// A state directory with replays of these ids.
fn state(ids: &[&str]) -> (TempDir, State) {
    let dir = tempfile::tempdir().unwrap();
    let state = State::new(dir.path().join("state"));
    let plan = plan();
    for text in ids {
        drop(state.create(id(text), &plan).unwrap());
    }
    (dir, state)
}

#[test]
fn a_replay_is_run_by_one_at_a_time_and_the_other_is_told_by_whom() {
    let (_dir, state) = state(&["r1", "r2"]);
    let locked = state.lock(id("r1")).unwrap();
    let error = state.lock(id("r1")).unwrap_err().to_string();
    let expected = format!(
        "replay `r1` is running already in process {}; pause or cancel it with `dacapo replays`, or wait",
        std::process::id()
    );
    assert_eq!(error, expected);
    let holder = format!(" in process {}", std::process::id());
    assert_eq!(state.holder(&id("r1")).unwrap(), Some(holder));
    drop(state.lock(id("r2")).unwrap());

    drop(locked);
    assert_eq!(state.holder(&id("r1")).unwrap(), None);
    drop(state.lock(id("r1")).unwrap());
}

#[test]
fn a_killed_process_leaves_its_name_and_no_lock() {
    let (dir, state) = state(&["r1"]);
    fs::write(dir.path().join("state/replays/r1/lock"), "4194304\n").unwrap();
    assert_eq!(state.holder(&id("r1")).unwrap(), None);
    drop(state.lock(id("r1")).unwrap());
}

#[test]
fn looking_whether_a_replay_runs_does_not_keep_it_from_running() {
    let (_dir, state) = state(&["r1"]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = || {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                state.holder(&id("r1")).unwrap();
            }
        };
        scope.spawn(looking);
        scope.spawn(looking);
        let locks: Vec<_> = (0..500).map(|_| state.lock(id("r1")).map(drop)).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for lock in locks {
            lock.unwrap();
        }
    });
}

#[test]
fn a_replay_is_found_by_either_end_of_its_id_if_there_is_one() {
    let (_dir, state) =
        state(&["20261123-080000-ab12", "20261123-090000-cd34", "20261124-080000-ef12"]);
    let found = |text: &str| state.find(text).map(|id| id.0).map_err(|error| error.to_string());
    assert_eq!(found("20261123-090000-cd34").as_deref(), Ok("20261123-090000-cd34"));
    assert_eq!(found("cd34").as_deref(), Ok("20261123-090000-cd34"));
    assert_eq!(found("20261124").as_deref(), Ok("20261124-080000-ef12"));
    let several = "replay `20261123` is one of several (`20261123-080000-ab12`, \
                   `20261123-090000-cd34`); give more of its id";
    assert_eq!(found("20261123"), Err(several.to_owned()));
    for none in ["", "ffff", "../20261124-080000-ef12"] {
        let error = found(none).unwrap_err();
        assert!(error.starts_with(&format!("there is no replay `{none}` in ")), "{error}");
    }
}

#[test]
fn an_exact_id_wins_over_longer_ones() {
    let (_dir, state) = state(&["r1", "r12"]);
    assert_eq!(state.find("r1").unwrap(), id("r1"));
}

proptest! {
    #[test]
    fn ids_sort_by_when_the_replay_began(a in 0_u64..4_000_000_000, b in 0_u64..4_000_000_000) {
        let plan = Digest::of(b"plan");
        let of = |seconds| ReplayId::new(Timestamp::from_secs(seconds), &plan, 0);
        if a != b {
            prop_assert_eq!(of(a) < of(b), a < b);
        }
    }
}

#[test]
fn ids_of_one_moment_differ_by_plan_and_salt() {
    let of = |plan: &[u8], salt| ReplayId::new(clock(), &Digest::of(plan), salt);
    let ids = std::collections::BTreeSet::from([of(b"a", 0), of(b"a", 1), of(b"b", 0)]);
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| id.as_str().starts_with("20270115-080000000-")), "{ids:?}");
}

#[test]
fn replays_are_listed_oldest_first_and_other_things_are_not() {
    let (dir, state) = state(&["20261124-b", "20261123-a"]);
    // A replay whose process was killed before its plan was there.
    fs::create_dir(dir.path().join("state/replays/20261125-c")).unwrap();
    fs::write(dir.path().join("state/replays/notes.txt"), "").unwrap();
    assert_eq!(state.replays().unwrap(), [id("20261123-a"), id("20261124-b")]);
    assert!(State::new(dir.path().join("nowhere")).replays().unwrap().is_empty());
}

#[test]
fn a_new_replay_has_its_plan_and_does_not_take_the_place_of_another() {
    let (_dir, state) = state(&["r1"]);
    assert_eq!(state.plan(&id("r1")).unwrap(), plan());
    let error = state.create(id("r1"), &plan()).unwrap_err();
    assert!(error.to_string().starts_with("failed to create `"), "{error}");
}

#[test]
fn what_an_operator_asks_is_what_is_read() {
    let (dir, state) = state(&["r1"]);
    assert_eq!(state.control(&id("r1")), Control::Run);
    for control in [Control::Pause, Control::Run, Control::Cancel] {
        state.set_control(&id("r1"), control).unwrap();
        assert_eq!(state.control(&id("r1")), control);
    }
    fs::write(dir.path().join("state/replays/r1/control"), "nonsense").unwrap();
    assert_eq!(state.control(&id("r1")), Control::Run);
}

#[test]
fn a_receipt_is_the_old_one_or_the_new_one() {
    let (dir, state) = state(&["r1"]);
    let replay = dir.path().join("state/replays/r1");
    assert_eq!(state.receipt(&id("r1")).unwrap(), None);
    state.write_receipt(&id("r1"), &json!({"confirmed": 1})).unwrap();

    // Killed while it wrote the next one.
    fs::write(replay.join("receipt.tmp"), "{\"confi").unwrap();
    assert_eq!(state.receipt(&id("r1")).unwrap(), Some(json!({"confirmed": 1})));
    assert_eq!(state.replays().unwrap(), [id("r1")]);

    // A reader that opened the old one reads the old one to its end.
    let mut old = File::open(replay.join("receipt.json")).unwrap();
    state.write_receipt(&id("r1"), &json!({"confirmed": 2})).unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), json!({"confirmed": 1}));
    assert_eq!(state.receipt(&id("r1")).unwrap(), Some(json!({"confirmed": 2})));
    assert!(!replay.join("receipt.tmp").exists());
}

#[test]
fn what_cannot_be_read_is_named() {
    let (dir, state) = state(&["r1"]);
    let replay = dir.path().join("state/replays/r1");
    fs::write(replay.join("plan.json"), "{").unwrap();
    fs::write(replay.join("receipt.json"), "{").unwrap();
    for error in [state.plan(&id("r1")).unwrap_err(), state.receipt(&id("r1")).unwrap_err()] {
        let error = error.to_string();
        assert!(error.starts_with(&format!("`{}/", replay.display())), "{error}");
    }
}
