//! Runs that end before all is confirmed, and are taken up again.

use dacapo_archive::store::{ByteRange, ListPage, ObjectKey, Put, StoreError};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::sleep;

use super::*;
use crate::testing::{any_selection, any_streams, block_on};

#[derive(Debug, Clone, Copy)]
enum Interruption {
    /// As `kill -9` does: the future is dropped, nothing more is written.
    Kill,
    /// As the first SIGINT does.
    Stop,
}

/// Runs a replay for a while; returns nothing if it was killed.
async fn run_for(
    replay: &Replay<'_>,
    time: Duration,
    interruption: Interruption,
) -> Option<Finished> {
    let (control, progress) = (watch::Sender::default(), watch::Sender::default());
    let mut run = pin!(replay.run(control.subscribe(), &progress));
    tokio::select! {
        biased;
        finished = &mut run => return Some(finished.unwrap()),
        () = sleep(time) => {}
    }
    match interruption {
        Interruption::Kill => None,
        Interruption::Stop => {
            control.send_replace(Control::Stop);
            Some(run.await.unwrap())
        }
    }
}

/// Checks that all arrived and that the last deliveries are in order; returns how many repeats
/// there were.
#[track_caller]
fn check_arrivals(arrived: &[String], expected: &[String]) -> u64 {
    let mut last: Vec<&String> = Vec::new();
    for id in arrived {
        last.retain(|earlier| *earlier != id);
        last.push(id);
    }
    assert_eq!(last, expected.iter().collect::<Vec<_>>());
    (arrived.len() - expected.len()) as u64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_interrupts_a_replay_every_event_arrives_in_order_and_repeats_are_counted(
        (streams, segment_events) in any_streams(4, 20),
        spec in prop_oneof![Just(everything()), any_selection()],
        depth in prop_oneof![Just(Depth::Index), Just(Depth::Exact)],
        window in 1_u32..8,
        interruptions in vec((any::<bool>(), 0_u64..60), 0..5),
    ) {
        let mut streams = streams;
        for (number, event) in streams.iter_mut().flatten().enumerate() {
            event.id = format!("u-{number}");
        }
        block_on(check_interrupted(
            Archive::of(streams, segment_events),
            (spec, depth),
            window,
            interruptions,
        ));
    }
}

async fn check_interrupted(
    archive: impl Future<Output = Archive>,
    (spec, depth): (SelectionSpec, Depth),
    window: u32,
    interruptions: Vec<(bool, u64)>,
) {
    let world = World::new(archive.await);
    let survey = world.archive.survey(spec.clone(), depth).await.unwrap();
    let plan = crate::plan::plan(windowed(window, spec.clone()), survey);
    let expected = world.ids(&spec);
    let id = world.create(&plan).id.clone();
    let target = world.slow_queue();
    let (mut kills, mut runs) = (0, 0);
    let mut completed = None;
    for (kill, millis) in interruptions {
        let how = if kill { Interruption::Kill } else { Interruption::Stop };
        let locked = world.state.lock(id.clone()).unwrap();
        let replay = world.replay(&locked, &plan, &target);
        runs += 1;
        let Some(finished) = run_for(&replay, Duration::from_millis(millis), how).await else {
            kills += 1;
            continue;
        };
        assert!(finished.error.is_none(), "{:?}", finished.error);
        world.check_written(&finished.receipt);
        if finished.receipt.phase == Phase::Completed {
            completed = Some(finished.receipt);
            break;
        }
        assert_eq!(finished.receipt.phase, Phase::Interrupted);
    }
    let receipt = match completed {
        Some(receipt) => receipt,
        None => {
            runs += 1;
            let locked = world.state.lock(id).unwrap();
            world.run(&locked, &plan, &target).await.receipt
        }
    };
    let repeats = check_arrivals(&ids(&world.arrived().await), &expected);
    let (counts, selected) = (receipt.counts, expected.len() as u64);
    assert_eq!(receipt.phase, Phase::Completed);
    assert_eq!((counts.confirmed, receipt.selected), (selected, selected));
    assert!(repeats <= counts.possible_repeats, "{repeats} repeats, {counts:?}");
    assert!(counts.possible_repeats <= kills * u64::from(window), "{kills} kills, {counts:?}");
    assert_eq!(counts.runs, runs);
    let failed = world.archive.selected(&spec).1;
    // An exact survey leaves segments out in which nothing is selected.
    let counted = counts.where_skipped == failed;
    assert!(counted || depth == Depth::Exact && counts.where_skipped < failed, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_finishes_the_window_and_leaves_the_rest_to_a_resume() {
    let world = World::small().await;
    let plan = world.plan(windowed(5, everything())).await;
    let locked = world.create(&plan);
    let target = world.slow_queue();
    let replay = world.replay(&locked, &plan, &target);
    let stopped = run_for(&replay, Duration::from_millis(18), Interruption::Stop).await;
    let receipt = stopped.unwrap().receipt;
    world.check_written(&receipt);
    let confirmed = receipt.counts.confirmed;
    assert!((1..40).contains(&confirmed), "{confirmed}");
    assert_eq!((receipt.phase, receipt.remaining()), (Phase::Interrupted, 40 - confirmed));
    assert_eq!(world.bus.depth("q"), Some(confirmed), "all that was published is confirmed");

    let receipt = world.run(&locked, &plan, &target).await.receipt;
    assert_eq!((receipt.phase, receipt.counts.confirmed), (Phase::Completed, 40));
    assert_eq!((receipt.counts.possible_repeats, receipt.counts.runs), (0, 2));
    assert_eq!(ids(&world.arrived().await), world.ids(&everything()));
}

#[tokio::test(start_paused = true)]
async fn two_kills_without_progress_count_two_windows() {
    let world = World::small().await;
    let plan = world.plan(windowed(4, everything())).await;
    let locked = world.create(&plan);
    let target = world.slow_queue();
    for _ in 0..2 {
        // Before the first confirm.
        let time = CONFIRM_DELAY - Duration::from_millis(2);
        let replay = world.replay(&locked, &plan, &target);
        assert!(run_for(&replay, time, Interruption::Kill).await.is_none());
    }
    assert_eq!(world.bus.depth("q"), Some(8));
    let receipt = world.run(&locked, &plan, &target).await.receipt;
    assert_eq!((receipt.counts.possible_repeats, receipt.counts.runs), (8, 3));
    assert_eq!(check_arrivals(&ids(&world.arrived().await), &world.ids(&everything())), 8);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_replay_is_over() {
    let world = World::small().await;
    let plan = world.plan(windowed(2, everything())).await;
    let locked = world.create(&plan);
    let target = Faulty::new(world.queue(), Vec::new(), CONTROL_INTERVAL);
    let (control, progress) = (watch::Sender::default(), watch::Sender::default());
    let replay = world.replay(&locked, &plan, &target);
    let run = replay.run(control.subscribe(), &progress);
    let cancel = async {
        let mut progress = progress.subscribe();
        progress.wait_for(|progress| progress.totals.confirmed >= 4).await.unwrap();
        world.state.set_control(&locked.id, Asked::Cancel).unwrap();
        obey(&world.state, &locked.id, &control).await;
    };
    let finished = tokio::select! {
        finished = run => finished.unwrap(),
        () = cancel => unreachable!("it goes on until dropped"),
    };
    assert!(finished.error.is_none());
    world.check_written(&finished.receipt);
    assert_eq!(finished.receipt.phase, Phase::Cancelled);
    assert!((4..40).contains(&finished.receipt.counts.confirmed), "{:?}", finished.receipt);
    let again = replay.run(control.subscribe(), &progress).await.unwrap_err();
    assert!(matches!(again, EngineError::WrongState { .. }), "{again}");
}

/// Found by the fault campaign (`state-full`).
#[tokio::test(start_paused = true)]
async fn a_replay_that_ended_before_its_receipt_was_written_gets_it_when_resumed() {
    let world = World::small().await;
    let plan = world.plan(windowed(5, everything())).await;
    let locked = world.create(&plan);
    let target = world.slow_queue();
    let replay = world.replay(&locked, &plan, &target);
    let stopped = run_for(&replay, Duration::from_millis(18), Interruption::Stop).await.unwrap();
    let written = world.run(&locked, &plan, &target).await.receipt.to_json();
    // What a full disk leaves: nothing, or the receipt of the run before.
    let path = world.state.path().join("replays").join(locked.id.as_str()).join("receipt.json");
    std::fs::remove_file(path).unwrap();
    for _ in 0..2 {
        let finished = world.run(&locked, &plan, &target).await;
        assert!(finished.error.is_none(), "{:?}", finished.error);
        world.check_written(&finished.receipt);
        assert_eq!(finished.receipt.to_json(), written);
        world.state.write_receipt(&locked.id, &stopped.receipt.to_json()).unwrap();
    }
    assert_eq!(ids(&world.arrived().await), world.ids(&everything()), "nothing is sent again");
}

#[tokio::test(start_paused = true)]
async fn an_archive_that_changed_ends_a_run_with_what_was_out_confirmed() {
    let events = |from: u64| (from..from + 10).map(|n| event(n, at(n))).collect::<Vec<_>>();
    let world = World::new(Archive::of(vec![[events(0), events(10)].concat()], 10).await);
    let store = Arc::clone(&world.archive.store);
    let plan = world.plan(windowed(50, everything())).await;
    let locked = world.create(&plan);
    let second = &plan.segments[1].key;
    let sound = store.get(second, ByteRange::Full).await.unwrap();
    let target = world.slow_queue();

    store.delete(second).await.unwrap();
    let finished = world.run(&locked, &plan, &target).await;
    let gone = format!("the archive is not what the plan or the index says: `{second}` is gone;");
    let error = finished.error.unwrap().to_string();
    assert!(error.starts_with(&gone), "{error}");
    let receipt = finished.receipt;
    let confirmed = receipt.counts.confirmed;
    assert_eq!((receipt.phase, receipt.remaining()), (Phase::Interrupted, 20 - confirmed));
    assert_eq!(receipt.counts.possible_repeats, 0, "what was published was waited for");
    assert_eq!(world.bus.depth("q"), Some(confirmed));

    let other = Archive::of(vec![[events(0), events(50)].concat()], 10).await;
    let replaced = other.store.get(second, ByteRange::Full).await.unwrap();
    store.replace(second, replaced).await.unwrap();
    let error = world.run(&locked, &plan, &target).await.error.unwrap();
    assert!(matches!(error, EngineError::ArchiveChanged { .. }), "{error}");

    store.replace(second, sound).await.unwrap();
    assert_eq!(world.run(&locked, &plan, &target).await.receipt.phase, Phase::Completed);
    assert_eq!(ids(&world.arrived().await), world.ids(&everything()));
}

#[tokio::test(start_paused = true)]
async fn an_expression_that_fails_ends_the_run_and_names_the_event() {
    let mut events: Vec<Event> = (0..20).map(|n| event(n, at(n))).collect();
    events[13].message.body = "{}".into();
    let world = World::new(Archive::of(vec![events], 5).await);
    let spec = SelectionSpec { where_: Some("body.n >= 0".to_owned()), ..SelectionSpec::default() };
    let survey = world.archive.survey(spec.clone(), Depth::Index).await.unwrap();
    let plan = crate::plan::plan(request(spec), survey);
    let finished = world.run(&world.create(&plan), &plan, &world.queue()).await;
    let error = finished.error.unwrap().to_string();
    assert!(error.starts_with("where expression failed on event `e-13`: "), "{error}");
    assert_eq!(finished.receipt.phase, Phase::Interrupted);
    assert!(!finished.receipt.selected_exact);
}

/// A store that after some gets never answers again.
#[derive(Debug)]
struct Stuck {
    store: Arc<dyn Store>,
    gets: Mutex<u64>,
}

#[async_trait::async_trait]
#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
impl Store for Stuck {
    async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<Put, StoreError> {
        self.store.put_new(key, bytes).await
    }

    async fn replace(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StoreError> {
        self.store.replace(key, bytes).await
    }

    async fn get(&self, key: &ObjectKey, range: ByteRange) -> Result<Bytes, StoreError> {
        let left = {
            let mut gets = self.gets.lock().unwrap();
            let left = *gets;
            *gets = gets.saturating_sub(1);
            left
        };
        if left == 0 {
            std::future::pending::<()>().await;
        }
        self.store.get(key, range).await
    }

    async fn list(&self, prefix: &str, after: Option<&ObjectKey>) -> Result<ListPage, StoreError> {
        self.store.list(prefix, after).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.store.delete(key).await
    }

    fn location(&self) -> String {
        self.store.location()
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_does_not_hold_up_a_stop() {
    let world = World::small().await;
    let plan = world.plan(request(everything())).await;
    let locked = world.create(&plan);
    let target = world.slow_queue();
    let stuck = Stuck { store: Arc::clone(&world.archive.store), gets: Mutex::new(5) };
    let replay = Replay { store: Arc::new(stuck), ..world.replay(&locked, &plan, &target) };
    let run = run_for(&replay, Duration::from_secs(1), Interruption::Stop);
    let stopped = timeout(Duration::from_secs(10), run).await.expect("it stops").unwrap();
    world.check_written(&stopped.receipt);
    assert_eq!(stopped.receipt.phase, Phase::Interrupted);
    let receipt = world.run(&locked, &plan, &target).await.receipt;
    assert_eq!((receipt.phase, receipt.counts.confirmed), (Phase::Completed, 40));
}

#[tokio::test(start_paused = true)]
async fn a_file_is_continued_where_it_was_left() {
    let world = World::small().await;
    let path = world.dir.path().join("events.ndjson");
    let target = Target::File { path: path.clone() };
    let plan = world.plan(Request { target, ..windowed(3, everything()) }).await;
    let locked = world.create(&plan);
    let slow = Faulty::new(FileTarget::new(&path, Existing::Refuse), Vec::new(), CONFIRM_DELAY);
    let replay = world.replay(&locked, &plan, &slow);
    let stopped = run_for(&replay, Duration::from_millis(22), Interruption::Stop).await.unwrap();
    assert_eq!(stopped.receipt.phase, Phase::Interrupted);
    let target = FileTarget::new(&path, Existing::Continue);
    let receipt = world.run(&locked, &plan, &target).await.receipt;
    assert_eq!((receipt.phase, receipt.counts.confirmed), (Phase::Completed, 40));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 40);
}

/// Of both streams one event is a repeat of another, in another segment.
async fn with_repeats() -> World {
    let events = |from: u64| {
        let mut events: Vec<Event> = (from..from + 20).map(|n| event(n, at(n))).collect();
        events[12] = events[3].clone();
        events
    };
    World::new(Archive::of(vec![events(0), events(100)], 5).await)
}

/// Merged and deleted before the plan is carried out, or when half of it is done.
#[tokio::test(start_paused = true)]
async fn a_saved_plan_and_a_half_done_replay_go_on_after_compaction() {
    for half_done in [false, true] {
        let mut world = with_repeats().await;
        let plan = world.plan(windowed(5, everything())).await;
        let text = crate::plan_json::to_json(&plan).to_string();
        let plan = crate::plan_json::from_json("plan.json", text.as_bytes()).unwrap();
        let all = world.ids(&everything());
        let id = world.create(&plan).id.clone();
        let target = world.slow_queue();
        let mut confirmed = 0;
        if half_done {
            let locked = world.state.lock(id.clone()).unwrap();
            let replay = world.replay(&locked, &plan, &target);
            let stopped = run_for(&replay, Duration::from_millis(18), Interruption::Stop).await;
            confirmed = stopped.unwrap().receipt.counts.confirmed;
            assert!((1..40).contains(&confirmed), "{confirmed}");
        }
        world.archive.compact(1 << 20, true).await;
        let locked = world.state.lock(id).unwrap();
        let receipt = world.run(&locked, &plan, &target).await.receipt;
        assert_eq!(receipt.phase, Phase::Completed, "{half_done}");
        let arrived = ids(&world.arrived().await);
        let (done, rest) = all.split_at(usize::try_from(confirmed).unwrap());
        // Every event, in order; of what was still to do, repeats in the archive only once.
        let mut expected = done.to_vec();
        for id in rest {
            if !expected.contains(id) {
                expected.push(id.clone());
            }
        }
        assert_eq!(arrived, expected, "{half_done}");
        assert_eq!((receipt.counts.confirmed, receipt.remaining()), (arrived.len() as u64, 0));
    }
}

/// The segments that are read go away in the middle of the replay.
#[tokio::test(start_paused = true)]
async fn a_replay_goes_on_when_what_it_reads_is_compacted_and_deleted() {
    let world = World::small().await;
    let plan = world.plan(windowed(2, everything())).await;
    let expected = world.ids(&everything());
    let locked = world.create(&plan);
    let target = world.slow_queue();
    // The replay has the store's objects as they are when it asks.
    let mut compacted = Archive::new();
    compacted.store = Arc::clone(&world.archive.store);
    compacted.events.clone_from(&world.archive.events);
    let replay = world.replay(&locked, &plan, &target);
    let (control, progress) = (watch::Sender::default(), watch::Sender::default());
    let mut run = pin!(replay.run(control.subscribe(), &progress));
    tokio::select! {
        biased;
        _ = &mut run => panic!("it is not that fast"),
        () = sleep(Duration::from_millis(11)) => {}
    }
    compacted.compact(1 << 20, true).await;
    let receipt = run.await.unwrap().receipt;
    assert_eq!((receipt.phase, receipt.remaining()), (Phase::Completed, 0));
    assert_eq!(ids(&world.arrived().await), expected);
}
