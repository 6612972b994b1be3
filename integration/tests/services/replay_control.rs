//! A replay under its operator's hands: paused, resumed, cancelled, interrupted, slowed, refused.

mod own_broker;
mod refused;

use dacapo_integration::process::Signal;
use dacapo_integration::wait;
use serde_json::Value;

use super::platform::{self, DEADLINE, Platform, await_depth, check_receipt, event_ids, ids};
use super::witness::Queue;

const EVENTS: usize = 1_500;

/// Returns a platform with history, a queue, and the flags of a replay to it that takes seconds.
fn setting() -> (Platform, Queue, Vec<String>) {
    let platform = Platform::new();
    platform.import(EVENTS);
    let queue = Queue::new("controlled");
    let args = ["--to-queue", queue.name(), "--rate", "400", "--window", "50"];
    let args = args.iter().map(|&arg| arg.to_owned()).collect();
    (platform, queue, args)
}

fn start(platform: &Platform, args: &[String]) -> (dacapo_integration::dacapo::Running, String) {
    platform.start_replay(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Waits until the depth of a queue stays as it is, and returns it.
fn settled_depth(queue: &Queue) -> u64 {
    let mut last = queue.depth();
    let same = || {
        // Between two looks lies a connection of the witness: many events at this rate.
        let now = queue.depth();
        let before = std::mem::replace(&mut last, now);
        Ok((before == now).then_some(now))
    };
    wait::until("the queue grows no more", DEADLINE, same).unwrap()
}

#[test]
fn a_replay_is_paused_and_resumed_from_another_terminal() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 100);
    assert_eq!(platform.state_of(&id), "running");
    let told = platform.dacapo.json(["replays", "pause", &id, "--json"]);
    assert_eq!((&told["replay"], &told["state"]), (&id.as_str().into(), &"paused".into()));
    assert_eq!(platform.state_of(&id), "paused");
    // Any unambiguous part of the id names it.
    let shown = platform.dacapo.json(["replays", "show", &id[id.len() - 4..], "--json"]);
    assert_eq!(shown["replay"], *id);
    let depth = settled_depth(&queue);
    assert!(depth < EVENTS as u64, "it was over before it was paused");

    platform.dacapo.run(["replays", "resume", &id]).check(0);
    let output = replay.wait(DEADLINE);
    output.check(0);
    check_receipt(&output.json(), "completed", EVENTS, EVENTS);
    assert_eq!(platform.state_of(&id), "completed");
    assert_eq!(event_ids(&queue.take(EVENTS + 1)), ids(EVENTS), "a pause repeats nothing");
    platform.dacapo.run(["replays", "pause", &id]).check(2);
}

#[test]
fn a_cancelled_replay_ends_for_good_and_says_how_far_it_came() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 100);
    platform.dacapo.run(["replays", "cancel", &id]).check(0);
    let output = replay.wait(DEADLINE);
    output.check(0);
    let receipt = output.json();
    let confirmed = usize::try_from(receipt["confirmed"].as_u64().unwrap()).unwrap();
    assert!((100..EVENTS).contains(&confirmed), "{receipt}");
    check_receipt(&receipt, "cancelled", EVENTS, confirmed);
    assert_eq!(event_ids(&queue.take(EVENTS)), ids(confirmed), "what it says, and no more");
    assert_eq!(platform.state_of(&id), "cancelled");
    platform.check_no_exchange_of(&id);
    let again = platform.dacapo.run(["replay", "resume", &id]);
    again.check(2);
    assert!(again.stderr.contains("cancelled"), "{again:?}");
}

#[test]
fn a_killed_replay_can_be_cancelled_and_leaves_no_exchange() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 50);
    replay.kill();
    let receipt = platform.dacapo.json(["replays", "cancel", &id, "--json"]);
    assert_eq!(receipt["state"], "cancelled");
    platform.check_no_exchange_of(&id);
    assert_eq!(platform.state_of(&id), "cancelled");
}

#[test]
fn the_first_interrupt_finishes_the_window_and_the_replay_can_be_resumed() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 100);
    replay.signal(Signal::Interrupt).unwrap();
    let output = replay.wait(DEADLINE);
    output.check(6);
    let hint = format!("go on with: dacapo replay resume {id}");
    assert!(output.stderr.contains(&hint), "{output:?}");
    let receipt = output.json();
    let confirmed = usize::try_from(receipt["confirmed"].as_u64().unwrap()).unwrap();
    check_receipt(&receipt, "interrupted", EVENTS, confirmed);
    assert_eq!(receipt["possible_repeats"], 0, "it waited for its confirms");
    assert_eq!(queue.depth(), confirmed as u64);

    let receipt = platform.dacapo.json(["replay", "resume", &id, "--json"]);
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    assert_eq!(receipt["possible_repeats"], 0);
    assert_eq!(event_ids(&queue.take(EVENTS + 1)), ids(EVENTS), "each once, in order");
}

#[test]
fn a_replay_that_runs_is_resumed_by_nobody_else_and_the_runner_is_named() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 50);
    replay.kill();
    let first = platform.dacapo.spawn(["replay", "resume", &id, "--json"]);
    first.wait_for_line("goes on", DEADLINE);
    let second = platform.dacapo.run(["replay", "resume", &id, "--json"]);
    second.check(7);
    let holder = format!("process {}", first.pid());
    assert!(second.stderr.contains(&holder) && second.stderr.contains(&id), "{second:?}");
    let output = first.wait(DEADLINE);
    output.check(0);
    check_receipt(&output.json(), "completed", EVENTS, EVENTS);
}

#[test]
fn of_two_that_resume_at_once_one_runs() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 50);
    replay.kill();
    let both = [(); 2].map(|()| platform.dacapo.spawn(["replay", "resume", &id, "--json"]));
    let mut ends = both.map(|running| running.wait(DEADLINE).status);
    ends.sort_unstable();
    assert_eq!(ends, [Some(0), Some(7)]);
    let mut arrived = event_ids(&queue.take(EVENTS * 2));
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived, ids(EVENTS));
}

#[test]
fn a_running_replay_does_not_hold_the_index() {
    let (platform, queue, args) = setting();
    let (replay, id) = start(&platform, &args);
    await_depth(&queue, 50);
    let stats = platform.dacapo.json(["index", "stats", "--json"]);
    assert_eq!(stats["events"], EVENTS);
    assert_eq!(platform.events().len(), EVENTS);
    let other = Queue::new("other");
    let receipt = platform.dacapo.json(["replay", "--json", "--to-queue", other.name()]);
    check_receipt(&receipt, "completed", EVENTS, EVENTS);
    assert_eq!(platform.state_of(&id), "running", "it ran all the while");
    let listed = platform.dacapo.json(["replays", "ls", "--json"]);
    let listed: Vec<&Value> =
        listed["replays"].as_array().unwrap().iter().map(|listed| &listed["replay"]).collect();
    assert_eq!(listed, [&Value::from(id), &receipt["replay"]], "oldest first");
    replay.wait(DEADLINE).check(0);
}

#[test]
fn the_target_never_gets_deeper_than_asked() {
    const DEPTH: u64 = 20;
    let platform = Platform::new();
    platform.import(100);
    let queue = Queue::new("shallow");
    let depth = DEPTH.to_string();
    let args = ["--to-queue", queue.name(), "--max-queue-depth", &depth];
    let (replay, _) = platform.start_replay(&args);
    await_depth(&queue, DEPTH);
    replay.wait_for_line(&format!("waiting, {DEPTH} in the queue"), DEADLINE);
    let mut arrived = Vec::new();
    while arrived.len() < 100 {
        let depth = queue.depth();
        assert!(depth <= DEPTH, "{depth} are waiting");
        arrived.extend(event_ids(&queue.take(7)));
    }
    assert_eq!(arrived, ids(100));
    let output = replay.wait(DEADLINE);
    output.check(0);
    check_receipt(&output.json(), "completed", 100, 100);
}
