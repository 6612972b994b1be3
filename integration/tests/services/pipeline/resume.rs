//! A replay that is killed goes on: nothing is missing, repeats are bounded and counted.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::{Platform, Queue, await_depth, check_receipt, event_ids, ids};

const EVENTS: usize = 3_000;
const WINDOW: usize = 100;

/// Checks that every event arrived, in order as far as last deliveries go, and that the repeats
/// are within a window a kill and within what the receipt says.
#[track_caller]
fn check_arrived(messages: &[Value], receipt: &Value, kills: usize) {
    let arrived = event_ids(messages);
    let mut last = BTreeMap::new();
    for (place, id) in arrived.iter().enumerate() {
        last.insert(place, id);
        // Only the last delivery of each counts.
        if let Some(before) = arrived[..place].iter().rposition(|other| other == id) {
            last.remove(&before);
        }
    }
    let last: Vec<String> = last.into_values().cloned().collect();
    assert_eq!(last, ids(EVENTS), "last deliveries are all there, and in order");
    let repeats = arrived.len() - EVENTS;
    assert!(repeats <= kills * WINDOW, "{repeats} repeats after {kills} kills");
    let possible = receipt["possible_repeats"].as_u64().unwrap();
    assert!(repeats as u64 <= possible, "{repeats} repeats, {possible} told");
    assert!(possible <= (kills * WINDOW) as u64, "{possible} is more than can be");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Index {
    Kept,
    Deleted,
}

/// Kills a replay as soon as the queue is so deep, each time it goes on; then lets it finish.
#[track_caller]
fn check(kill_at: &[u64], index: Index) {
    let platform = Platform::new();
    platform.import(EVENTS);
    let queue = Queue::new("killed");
    let window = WINDOW.to_string();
    let args = ["--to-queue", queue.name(), "--rate", "1500", "--window", &window];
    let (mut replay, id) = platform.start_replay(&args);
    for (kill, depth) in kill_at.iter().enumerate() {
        await_depth(&queue, *depth);
        let killed = replay.kill();
        assert_eq!(killed.status, None, "it had ended by itself: {killed:?}");
        assert!(queue.depth() < EVENTS as u64, "it was not in the middle");
        assert_eq!(platform.state_of(&id), "interrupted");
        if index == Index::Deleted {
            fs::remove_dir_all(platform.dacapo.folder().join("index")).unwrap();
        }
        replay = platform.dacapo.spawn(["replay", "resume", &id, "--json"]);
        if kill + 1 < kill_at.len() {
            replay.wait_for_line("goes on", super::super::platform::DEADLINE);
        }
    }
    let output = replay.wait(super::super::platform::DEADLINE);
    output.check(0);
    let receipt = output.json();
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    assert_eq!(receipt["rejected"], 0);
    assert_eq!(receipt["runs"], kill_at.len() + 1);
    assert_eq!(platform.state_of(&id), "completed");
    platform.check_no_exchange_of(&id);
    let again = platform.dacapo.run(["replay", "resume", &id]);
    again.check(2);
    check_arrived(&queue.take(EVENTS * 2), &receipt, kill_at.len());
}

#[test]
fn a_replay_killed_in_the_middle_goes_on_where_it_was() {
    check(&[600], Index::Kept);
}

#[test]
fn a_replay_goes_on_without_its_index() {
    check(&[900], Index::Deleted);
}

#[test]
fn a_replay_killed_again_and_again_still_delivers_everything() {
    check(&[1, 400, 1_000, 1_800], Index::Kept);
}
