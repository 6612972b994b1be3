//! Events that the bus will not take: passed over, counted, recorded before the checkpoint passes
//! them, and never more of them than allowed.

use dacapo_bus::memory::{ExchangeKind, RoutingKey};
use proptest::prelude::*;

use super::*;
use crate::rejects::OnReject;

const EVENTS: u64 = 60;

/// Events whose number is one of these go where nothing is bound.
fn input(unroutable: &[u64]) -> Batches {
    let mut input = batches(1..=EVENTS, 16);
    for outgoing in input.iter_mut().flatten().flatten() {
        if unroutable.contains(&outgoing.position) {
            outgoing.message.routing_key = ShortStr::from_static("nowhere");
        }
    }
    input
}

/// Returns what is left of an input behind a checkpoint.
fn behind(written: u64, input: Batches) -> Batches {
    let left = |batch: Vec<Outgoing<u64>>| {
        batch.into_iter().filter(|outgoing| outgoing.position > written).collect()
    };
    input.into_iter().map(|batch| batch.map(left)).collect()
}

impl Fixture {
    /// A queue behind an exchange that routes to it what is not meant to go nowhere.
    fn routed() -> Self {
        let fixture = Self::new();
        fixture.bus.declare_exchange("x", ExchangeKind::Direct).unwrap();
        fixture.bus.bind("q", "x", &ShortStr::from_static("orders.placed")).unwrap();
        fixture
    }

    fn exchange(&self, faults: Vec<Fault>) -> impl Connect + use<> {
        let exchange = self.bus.to_exchange("x", RoutingKey::Original);
        let exchange = Recorder::arrivals(exchange, self.log.clone());
        Recorder::attempts(Faulty::new(exchange, faults, DELAY), self.log.clone())
    }
}

fn skipping(messages: usize, most: u64) -> Config {
    Config { window: window(messages), on_reject: OnReject::Skip { most }, ..Config::default() }
}

/// Checks that all but the rejected arrived, and that each reject is recorded once.
#[track_caller]
fn check_complete(fixture: &Fixture, unroutable: &[u64]) {
    let recorded: Vec<u64> = fixture.log.rejects().iter().map(|(number, _)| *number).collect();
    assert_eq!(recorded, unroutable);
    let arrivals = fixture.log.arrivals();
    let routable = (1..=EVENTS).filter(|number| !unroutable.contains(number));
    let mut arrived = arrivals.clone();
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!(arrived, routable.collect::<Vec<_>>());
    log::check_last_in_order(&arrivals);
}

#[tokio::test(start_paused = true)]
async fn returned_events_are_recorded_in_order_and_what_follows_goes_on_without_a_repeat() {
    for unroutable in [vec![1], vec![EVENTS], vec![3, 4, 5, 20, 59], (1..=EVENTS).collect()] {
        for messages in [1, 7, 1_000] {
            let fixture = Fixture::routed();
            let target = fixture.exchange(Vec::new());
            let ended = fixture.run(&target, input(&unroutable), &skipping(messages, EVENTS)).await;
            assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
            check_complete(&fixture, &unroutable);
            fixture.log.check(window(messages));
            fixture.log.check_totals(&ended.totals);
            let rejected = unroutable.len() as u64;
            let expected = (EVENTS - rejected, rejected, 0, EVENTS);
            let totals = ended.totals;
            let counted =
                (totals.confirmed, totals.rejected, totals.possible_repeats, totals.published);
            assert_eq!(counted, expected);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_more_than_may_be_passed_over_stops_the_run_and_is_recorded() {
    let fixture = Fixture::routed();
    let target = fixture.exchange(Vec::new());
    let unroutable = [10, 20, 30, 40];
    let ended = fixture.run(&target, input(&unroutable), &skipping(25, 2)).await;
    match ended.how {
        How::Rejected { id, kind, .. } => {
            assert_eq!((id.as_str(), kind), ("e-30", RejectKind::Unroutable));
        }
        how => panic!("{how:?}"),
    }
    assert_eq!((ended.totals.confirmed, ended.totals.rejected), (27, 2));
    assert_eq!(fixture.log.last_written(), 29);
    let recorded: Vec<u64> = fixture.log.rejects().iter().map(|(number, _)| *number).collect();
    assert_eq!(recorded, [10, 20, 30]);
    fixture.log.check_totals(&ended.totals);
}

/// More of them than input is taken while they wait: what is passed over must not count as waiting.
#[tokio::test(start_paused = true)]
async fn large_events_that_are_passed_over_do_not_keep_the_rest_from_coming() {
    const LARGE: usize = 1024 * 1024;
    let unroutable = [1, 2, 3];
    let fixture = Fixture::routed();
    let target = fixture.exchange(Vec::new());
    let mut input = input(&unroutable);
    for outgoing in input.iter_mut().flatten().flatten() {
        if unroutable.contains(&outgoing.position) {
            let number = outgoing.position.to_string();
            outgoing.message.body = [vec![b' '; LARGE], number.into()].concat().into();
        }
    }
    let config = skipping(10, EVENTS);
    let run = fixture.run(&target, input, &config);
    let ended = timeout(Duration::from_secs(3_600), run).await.expect("it goes on");
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    assert_eq!((ended.totals.confirmed, ended.totals.rejected), (EVENTS - 3, 3));
}

/// A full queue is no fault of an event: each is tried as patiently as the first.
#[tokio::test(start_paused = true)]
async fn a_queue_that_stays_full_rejects_one_event_after_the_other_patiently() {
    let fixture = Fixture::with(QueueOptions { length_max: 5, ..QueueOptions::default() });
    let target = fixture.target(Vec::new(), DELAY);
    let started = Instant::now();
    let ended = fixture.run(&target, batches(1..=9, 9), &skipping(4, 100)).await;
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    let rejects: Vec<_> = (6..=9).map(|number| (number, RejectKind::Nacked)).collect();
    assert_eq!(fixture.log.rejects(), rejects);
    assert!(started.elapsed() > 4 * Duration::from_secs(300), "{:?}", started.elapsed());
    assert_eq!((ended.totals.confirmed, ended.totals.rejected), (5, 4));
    fixture.log.check_totals(&ended.totals);
    assert_eq!(fixture.take_all().await, [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn events_that_cannot_be_sent_are_passed_over_wherever_they_are() {
    for unsendable in [vec![1], vec![30], vec![49, 50], vec![10, 11, 12]] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let target = FileTarget::new(&path, Existing::Refuse);
        let fixture = Fixture::new();
        let mut input = batches(1..=50, 50);
        for number in &unsendable {
            let at = usize::try_from(number - 1).unwrap();
            input[0].as_mut().unwrap()[at].message.body = Bytes::from_static(b"two\nlines");
        }
        let ended = fixture.run(&target, input, &skipping(20, 100)).await;
        assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
        let recorded: Vec<u64> = fixture.log.rejects().iter().map(|(number, _)| *number).collect();
        assert_eq!(recorded, unsendable);
        let totals = ended.totals;
        let rejected = unsendable.len() as u64;
        assert_eq!((totals.confirmed, totals.rejected), (50 - rejected, rejected));
        assert_eq!(totals.published, totals.confirmed + totals.refused + totals.possible_repeats);
        assert!(totals.possible_repeats <= 20 * rejected, "{totals:?}");
    }
}

async fn killed_and_resumed(unroutable: &[u64], messages: usize, faults: &[Fault], calls: u64) {
    let fixture = Fixture::routed();
    let target = fixture.exchange(faults.to_vec());
    let config = skipping(messages, EVENTS);
    let mut journal = Journaled { calls_left: Some(calls), ..fixture.journal() };
    let mut ended = fixture.run_with(&target, input(unroutable), &config, &mut journal).await;
    let mut settled = ended.totals.confirmed + ended.totals.rejected;
    if let How::Failed(RepublishError::Journal(Broken("killed"))) = ended.how {
        // What was not written when it died is not known to the next run.
        settled = fixture.log.last_written();
        fixture.log.forget_unsettled_rejects();
        let left = behind(settled, input(unroutable));
        ended = fixture.run(&target, left, &config).await;
        settled += ended.totals.confirmed + ended.totals.rejected;
    }
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    assert_eq!(settled, EVENTS);
    check_complete(&fixture, unroutable);
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_write_and_resumed_every_reject_is_recorded_once_and_the_rest_arrives() {
    let unroutable = [1, 2, 17, 18, 30, EVENTS];
    for calls in 0..60 {
        for messages in [1, 5, 100] {
            killed_and_resumed(&unroutable, messages, &[], calls).await;
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        (1..90_u64, prop_oneof![Just(Noticed::Sending), Just(Noticed::Later)])
            .prop_map(|(after, noticed)| Fault::Lose { after, noticed }),
        (1..90_u64).prop_map(|nth| Fault::Nack { nth }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_else_fails_each_reject_is_recorded_once_and_the_rest_arrives_in_order(
        unroutable in prop::collection::btree_set(1..=EVENTS, 0..20),
        messages in 1..30_usize,
        faults in prop::collection::vec(fault(), 0..6),
        calls in 0..150_u64,
    ) {
        let unroutable: Vec<u64> = unroutable.into_iter().collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(killed_and_resumed(&unroutable, messages, &faults, calls));
    }
}
