//! Targets that do not take what they are given.

use std::num::NonZeroU64;

use dacapo_republish::Pace;

use super::*;

#[tokio::test(start_paused = true)]
async fn an_unroutable_event_is_a_failure_that_can_be_mended() {
    let events = (0..10).map(|n| event(n, at(n))).collect();
    let world = World::new(Archive::of(vec![events], 4).await);
    world.bus.declare_exchange("shop", ExchangeKind::Topic).unwrap();
    world.bus.bind("q", "shop", &ShortStr::from_static("order.*")).unwrap();
    let target = Target::Exchange { exchange: "shop".to_owned(), routing_key: None };
    let plan = world.plan(Request { target, ..request(everything()) }).await;
    let locked = world.create(&plan);
    let target = world.bus.to_exchange("shop", RoutingKey::Original);

    let finished = world.run(&locked, &plan, &target).await;
    let error = finished.error.unwrap().to_string();
    let start = "event `e-2` was refused by the target: ";
    let id = &locked.id;
    let way_on = format!("; mend exchange `shop` and go on with `dacapo replay resume {id}`, or");
    assert!(error.starts_with(start) && error.contains(&way_on), "{error}");
    let receipt = finished.receipt;
    assert_eq!((receipt.phase, receipt.selected), (Phase::Rejected, 10));
    let counts = receipt.counts;
    assert_eq!((counts.confirmed, receipt.rejected, receipt.remaining()), (2, 1, 7));
    assert!(receipt.refusal.unwrap().starts_with("event `e-2` (unroutable): "));
    let file = world.state.rejects_path(&locked.id);
    assert_eq!(receipt.rejects, Some(file.display().to_string()));
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1);

    world.bus.bind("q", "shop", &ShortStr::from_static("mail.*")).unwrap();
    let receipt = world.run(&locked, &plan, &target).await.receipt;
    assert_eq!(receipt.phase, Phase::Completed);
    assert_eq!((receipt.counts.confirmed, receipt.rejected), (10, 0));
    assert_eq!((receipt.refusal, receipt.rejects), (None, None));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "", "what was delivered is no reject");
    let arrived = ids(&world.arrived().await);
    assert_eq!(arrived[arrived.len() - 8..], world.ids(&everything())[2..]);
    assert!(arrived.len() as u64 - 10 <= receipt.counts.possible_repeats);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_not_there_refuses_before_anything_is_published() {
    let world = World::small().await;
    let plan = world.plan(request(everything())).await;
    let locked = world.create(&plan);
    let finished = world.run(&locked, &plan, &world.bus.to_queue("nowhere", "x")).await;
    assert!(matches!(finished.error, Some(EngineError::Bus(_))), "{:?}", finished.error);
    let receipt = finished.receipt;
    assert_eq!((receipt.phase, receipt.remaining()), (Phase::Interrupted, 40));
    assert_eq!(receipt.counts.possible_repeats, 0);
    assert_eq!(world.run(&locked, &plan, &world.queue()).await.receipt.phase, Phase::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_stays_away_is_given_up_and_can_be_resumed() {
    let world = World::small().await;
    let plan = world.plan(windowed(5, everything())).await;
    let locked = world.create(&plan);
    let mut faults = vec![Fault::Lose { after: 3, noticed: Noticed::Later }];
    faults.extend((2..100).map(|nth| Fault::RefuseOpen { nth }));
    let away = Faulty::new(world.queue(), faults, CONFIRM_DELAY);
    let finished = world.run(&locked, &plan, &away).await;
    let error = finished.error.unwrap();
    assert!(matches!(error, EngineError::GaveUp { .. }), "{error}");
    assert_eq!(finished.receipt.phase, Phase::Interrupted);
    let receipt = world.run(&locked, &plan, &world.queue()).await.receipt;
    assert_eq!((receipt.phase, receipt.counts.confirmed), (Phase::Completed, 40));
    let repeats = world.arrived().await.len() as u64 - 40;
    assert!(repeats <= receipt.counts.possible_repeats, "{repeats}: {receipt:?}");
}

#[tokio::test(start_paused = true)]
async fn a_depth_limit_needs_a_target_with_a_depth() {
    let world = World::small().await;
    let path = world.dir.path().join("events.ndjson");
    let pace = Pace { queue_depth_max: NonZeroU64::new(10), ..Pace::default() };
    let target = Target::File { path: path.clone() };
    let plan = world.plan(Request { target, pace, ..request(everything()) }).await;
    let target = FileTarget::new(&path, Existing::Refuse);
    let finished = world.run(&world.create(&plan), &plan, &target).await;
    assert!(matches!(finished.error, Some(EngineError::DepthUnknown)), "{:?}", finished.error);
}
