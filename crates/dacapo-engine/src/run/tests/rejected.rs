//! Events that the target refuses: passed over and recorded, whatever interrupts the replay, and
//! tried again from the reject file.

use tokio::time::sleep;

use super::*;
use crate::rejects::{LeftOut, ToTryAgain, read};

const EVENTS: u64 = 24;

/// Every third event is a mail; nothing is bound for those.
const MAILS: u64 = EVENTS / 3;

const SKIP: Option<OnReject> = Some(OnReject::Skip { most: 1_000 });

impl World {
    async fn shop() -> Self {
        let events = (0..EVENTS).map(|n| event(n, at(n))).collect();
        let world = World::new(Archive::of(vec![events], 5).await);
        world.bus.declare_exchange("shop", ExchangeKind::Topic).unwrap();
        world.bind("order.*");
        world
    }

    fn bind(&self, pattern: &'static str) {
        self.bus.bind("q", "shop", &ShortStr::from_static(pattern)).unwrap();
    }

    async fn plan_to_shop(&self, selection: SelectionSpec) -> Plan {
        let target = Target::Exchange { exchange: "shop".to_owned(), routing_key: None };
        self.plan(Request { target, ..windowed(4, selection) }).await
    }

    fn shop_target(&self) -> impl Connect + use<> {
        let exchange = self.bus.to_exchange("shop", RoutingKey::Original);
        Faulty::new(exchange, Vec::new(), CONFIRM_DELAY)
    }

    async fn run_skipping(&self, locked: &Locked, plan: &Plan) -> Finished {
        let (control, progress) = (watch::Sender::default(), watch::Sender::default());
        let target = self.shop_target();
        let replay = Replay { on_reject: SKIP, ..self.replay(locked, plan, &target) };
        let finished = replay.run(control.subscribe(), &progress).await.unwrap();
        self.check_written(&finished.receipt);
        finished
    }

    fn rejects(&self, locked: &Locked) -> ToTryAgain {
        read(&self.state.rejects_path(&locked.id)).unwrap()
    }
}

fn mails() -> Vec<(StreamName, Sequence)> {
    (0..EVENTS).filter(|n| n % 3 == 2).map(|n| ("s0".parse().unwrap(), n + 1)).collect()
}

#[tokio::test(start_paused = true)]
async fn refused_events_are_passed_over_recorded_and_tried_again_from_the_file() {
    let world = World::shop().await;
    let plan = world.plan_to_shop(everything()).await;
    let locked = world.create(&plan);
    let finished = world.run_skipping(&locked, &plan).await;
    let receipt = finished.receipt;
    assert_eq!((receipt.phase, receipt.rejected), (Phase::Completed, MAILS));
    assert_eq!((receipt.counts.confirmed, receipt.remaining()), (EVENTS - MAILS, 0));
    assert_eq!(receipt.counts.possible_repeats, 0);
    let error = finished.error.unwrap().to_string();
    let path = receipt.rejects.unwrap();
    assert!(error.contains(&format!("`dacapo replay --rejects {path}`")), "{error}");
    assert_eq!(world.arrived().await.len() as u64, EVENTS - MAILS);

    let again = world.rejects(&locked);
    assert_eq!((again.places(), again.torn), (mails(), false));
    assert_eq!(again.archive, plan.archive);
    assert!(again.replays.iter().eq([locked.id.as_str()]));
    let retry = SelectionSpec { places: again.places(), ..SelectionSpec::default() };
    let plan = world.plan_to_shop(retry.clone()).await;
    assert_eq!((plan.events, plan.exact), (MAILS, true));
    let mut read = Vec::new();
    let left_out = again.verify(&world.archive.store, &plan, |segments| read.push(segments)).await;
    assert_eq!(left_out.unwrap(), []);
    assert_eq!(read, (1..=plan.segments.len() as u64).collect::<Vec<_>>(), "how far it has come");
    world.bind("mail.*");
    let locked = world.state.create(ReplayId::new(clock(), &plan.hash(), 1), &plan).unwrap();
    let finished = world.run(&locked, &plan, &world.shop_target()).await;
    assert!(finished.error.is_none(), "{:?}", finished.error);
    assert_eq!((finished.receipt.selected, finished.receipt.counts.confirmed), (MAILS, MAILS));
    assert_eq!(ids(&world.arrived().await), world.ids(&retry));
}

/// A kill at every moment, so between a line of the file and the checkpoint that passes it as well.
#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_every_refused_event_is_recorded_once_and_the_receipt_balances() {
    // From the first moment on at which it has been polled.
    for millis in 1..60 {
        let world = World::shop().await;
        let plan = world.plan_to_shop(everything()).await;
        let locked = world.create(&plan);
        {
            let (control, progress) = (watch::Sender::default(), watch::Sender::default());
            let target = world.shop_target();
            let replay = Replay { on_reject: SKIP, ..world.replay(&locked, &plan, &target) };
            tokio::select! {
                biased;
                () = sleep(Duration::from_millis(millis)) => {}
                finished = replay.run(control.subscribe(), &progress) => drop(finished.unwrap()),
            }
        }
        let path = world.state.rejects_path(&locked.id);
        let standing = Journal::read(&world.state.journal_path(&locked.id)).unwrap();
        if standing.phase == Phase::Completed {
            continue;
        }
        // As if it had died in the middle of a line.
        if path.exists() {
            let text = std::fs::read_to_string(&path).unwrap();
            let torn = &text[..text.find('\n').unwrap_or(0)];
            std::fs::write(&path, format!("{text}{}", &torn[..torn.len() / 2])).unwrap();
        }
        // What it does about rejects is as it was told first.
        let receipt = world.run(&locked, &plan, &world.shop_target()).await.receipt;
        assert_eq!((receipt.phase, receipt.rejected), (Phase::Completed, MAILS), "{millis}");
        assert_eq!(receipt.counts.confirmed, EVENTS - MAILS);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count() as u64, MAILS);
        assert_eq!(world.rejects(&locked).places(), mails());
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_rejects_is_one_of_all_runs_and_can_be_raised() {
    let world = World::shop().await;
    let plan = world.plan_to_shop(everything()).await;
    let locked = world.create(&plan);
    let target = world.shop_target();
    let (control, progress) = (watch::Sender::default(), watch::Sender::default());
    for (most, passed_over) in [(2, 2), (2, 2), (3, 3)] {
        let on_reject = Some(OnReject::Skip { most });
        let replay = Replay { on_reject, ..world.replay(&locked, &plan, &target) };
        let finished = replay.run(control.subscribe(), &progress).await.unwrap();
        world.check_written(&finished.receipt);
        let receipt = finished.receipt;
        assert_eq!(receipt.phase, Phase::Rejected);
        assert_eq!((receipt.counts.rejected, receipt.rejected), (passed_over, passed_over + 1));
        assert_eq!(world.rejects(&locked).places().len() as u64, passed_over + 1);
        let error = finished.error.unwrap().to_string();
        assert!(error.contains(&format!("{passed_over} were passed over before it")), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_whose_reject_file_lacks_events_does_not_go_on() {
    let world = World::shop().await;
    let plan = world.plan_to_shop(everything()).await;
    let locked = world.create(&plan);
    let target = world.shop_target();
    let (control, progress) = (watch::Sender::default(), watch::Sender::default());
    let on_reject = Some(OnReject::Skip { most: 3 });
    let replay = Replay { on_reject, ..world.replay(&locked, &plan, &target) };
    replay.run(control.subscribe(), &progress).await.unwrap();
    let path = world.state.rejects_path(&locked.id);
    let text = std::fs::read_to_string(&path).unwrap();
    let (_, without_first) = text.split_once('\n').unwrap();
    for lacking in [without_first, ""] {
        std::fs::write(&path, lacking).unwrap();
        let refused = replay.run(control.subscribe(), &progress).await.unwrap_err().to_string();
        assert!(refused.contains("of the 3 events that were passed over"), "{refused}");
    }
    std::fs::write(&path, text).unwrap();
    assert_eq!(world.run_skipping(&locked, &plan).await.receipt.rejected, MAILS);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_gone_from_the_archive_or_another_is_named() {
    let world = World::shop().await;
    let plan = world.plan_to_shop(everything()).await;
    let locked = world.create(&plan);
    world.run_skipping(&locked, &plan).await;
    let again = world.rejects(&locked);

    let other = (0..EVENTS).map(|n| Event { id: format!("other-{n}"), ..event(n, at(n)) });
    let other = World::new(Archive::of(vec![other.collect()], 5).await);
    let places = SelectionSpec { places: again.places(), ..SelectionSpec::default() };
    let plan = other.plan(request(places.clone())).await;
    let error = again.verify(&other.archive.store, &plan, |_| {}).await.unwrap_err().to_string();
    assert!(error.starts_with("event `e-2` of `") && error.contains("`other-2`"), "{error}");

    let shorter = (0..5).map(|n| event(n, at(n))).collect();
    let shorter = World::new(Archive::of(vec![shorter], 5).await);
    let plan = shorter.plan(request(places)).await;
    let error = again.verify(&shorter.archive.store, &plan, |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("event `e-5`") && error.contains("is not at s0:6"), "{error}");
}

/// Both of an event and its repeat are refused, and compaction keeps only the first: the file was
/// useless for all other events, too.
#[tokio::test(start_paused = true)]
async fn a_reject_that_compaction_left_out_as_a_repeat_holds_up_none_of_the_others() {
    let mut events: Vec<Event> = (0..EVENTS).map(|n| event(n, at(n))).collect();
    events[11] = events[2].clone();
    let mut world = World::new(Archive::of(vec![events], 5).await);
    world.bus.declare_exchange("shop", ExchangeKind::Topic).unwrap();
    world.bind("order.*");
    let plan = world.plan_to_shop(everything()).await;
    let locked = world.create(&plan);
    world.run_skipping(&locked, &plan).await;
    let again = world.rejects(&locked);
    assert_eq!(again.places().len() as u64, MAILS);

    world.archive.compact(1 << 20, true).await;
    let retry = SelectionSpec { places: again.places(), ..SelectionSpec::default() };
    let plan = world.plan_to_shop(retry).await;
    let left_out = again.verify(&world.archive.store, &plan, |_| {}).await.unwrap();
    let stream = "s0".parse().unwrap();
    assert_eq!(left_out, [LeftOut { stream, sequence: 12, repeat_of: 3 }]);
    world.bind("mail.*");
    let locked = world.state.create(ReplayId::new(clock(), &plan.hash(), 1), &plan).unwrap();
    let finished = world.run(&locked, &plan, &world.shop_target()).await;
    let receipt = finished.receipt;
    assert_eq!((receipt.phase, receipt.counts.confirmed), (Phase::Completed, MAILS - 1));
    assert_eq!(receipt.remaining(), 0);
}
