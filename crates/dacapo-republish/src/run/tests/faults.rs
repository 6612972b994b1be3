//! At least once, in order, and counted, whatever fails where.

use proptest::prelude::*;

use super::*;

/// Sent more often than any script is long, so that every fault strikes somewhere.
const EVENTS: u64 = 120;

#[derive(Debug, Clone)]
struct Case {
    window: WindowLimits,
    batch: usize,
    pad: usize,
    delay: Duration,
    rate: Option<NonZeroU32>,
    faults: Vec<Fault>,
    stop_at: Option<u64>,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => (1..200_u64, prop_oneof![Just(Noticed::Sending), Just(Noticed::Later)])
            .prop_map(|(after, noticed)| Fault::Lose { after, noticed }),
        3 => (1..200_u64).prop_map(|nth| Fault::Nack { nth }),
        1 => (0..200_u64, 1..5_u32).prop_map(|(after, asked)| Fault::Block { after, asked }),
        1 => (2..6_u64).prop_map(|nth| Fault::RefuseOpen { nth }),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    (
        1..40_usize,
        1..400_u64,
        1..50_usize,
        0..30_usize,
        0..5_u64,
        prop::option::of(50..5_000_u32),
        prop::collection::vec(fault(), 0..10),
        prop::option::of(1..EVENTS),
    )
        .prop_map(|(messages, bytes, batch, pad, delay, rate, faults, stop_at)| Case {
            window: WindowLimits {
                messages: NonZeroUsize::new(messages).unwrap(),
                bytes: NonZeroU64::new(bytes).unwrap(),
            },
            batch,
            pad,
            delay: Duration::from_millis(delay),
            rate: rate.and_then(NonZeroU32::new),
            faults,
            stop_at,
        })
}

fn padded(numbers: std::ops::RangeInclusive<u64>, case: &Case) -> Batches {
    let mut input = batches(numbers, case.batch);
    for outgoing in input.iter_mut().flatten().flatten() {
        let length = usize::try_from(outgoing.position).unwrap() % (case.pad + 1);
        let body = format!("{:length$}", outgoing.position);
        outgoing.message.body = Bytes::from(body);
    }
    input
}

async fn play(case: &Case) {
    let fixture = Fixture::new();
    let pace = Pace { rate: case.rate, ..Pace::default() };
    let config = Config { window: case.window, pace, ..Config::default() };
    let target = fixture.target(case.faults.clone(), case.delay);
    let mut journal = Journaled { stop_at: case.stop_at, ..fixture.journal() };
    let ended = fixture.run_with(&target, padded(1..=EVENTS, case), &config, &mut journal).await;
    fixture.log.check(case.window);
    fixture.log.check_totals(&ended.totals);
    let written = fixture.log.last_written();
    assert_eq!(ended.totals.confirmed, written);
    match ended.how {
        How::Completed => {
            fixture.log.check_complete(case.window, EVENTS, &ended.totals);
            let loses = |fault: &Fault| matches!(fault, Fault::Lose { .. });
            if !case.faults.iter().any(loses) {
                let arrivals = fixture.log.arrivals();
                let repeats = arrivals.len() as u64 - EVENTS;
                assert_eq!(
                    ended.totals.possible_repeats, repeats,
                    "nacks alone are counted exactly"
                );
                assert_eq!(ended.totals.reordered, log::reordered(&arrivals));
            }
            if case.window.messages.get() == 1 {
                assert_eq!(ended.totals.reordered, 0, "a window of 1 is strict");
            }
        }
        How::Interrupted => {
            assert!(case.stop_at.is_some());
            // A resumed replay begins behind the checkpoint.
            fixture.control.send_replace(Control::Run);
            let target = fixture.target(Vec::new(), case.delay);
            let again = fixture.run(&target, padded(written + 1..=EVENTS, case), &config).await;
            assert!(matches!(again.how, How::Completed), "{:?}", again.how);
            fixture.log.check(case.window);
            let arrivals = fixture.log.arrivals();
            log::check_order(&arrivals, EVENTS);
            let repeats = arrivals.len() as u64 - EVENTS;
            assert!(repeats <= ended.totals.possible_repeats, "{repeats} {:?}", ended.totals);
        }
        how => panic!("{how:?}"),
    }
    let arrived = fixture.log.arrivals();
    assert_eq!(fixture.take_all().await, arrived, "the log is what the queue has");
}

fn check(case: &Case) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(play(case));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_arrives_and_no_promise_is_broken_whatever_fails(case in case()) {
        check(&case);
    }
}

#[test]
fn each_fault_at_each_place_of_a_window_is_survived() {
    for window in [1, 2, 7, 200] {
        for at in 1..=EVENTS {
            for fault in [
                Fault::Nack { nth: at },
                Fault::Lose { after: at, noticed: Noticed::Sending },
                Fault::Lose { after: at, noticed: Noticed::Later },
            ] {
                // Twice, so that the second strikes while the first is being made good.
                let again = match fault {
                    Fault::Nack { nth } => Fault::Nack { nth: nth + 3 },
                    Fault::Lose { after, noticed } => Fault::Lose { after: after + 3, noticed },
                    other => other,
                };
                check(&Case {
                    window: super::window(window),
                    batch: 16,
                    pad: 0,
                    delay: DELAY,
                    rate: None,
                    faults: vec![fault, again],
                    stop_at: None,
                });
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_lost_more_often_than_the_budget_is_no_end_while_there_is_progress() {
    let fixture = Fixture::new();
    let losses = u64::from(LOSSES_MAX) + 20;
    let faults = (1..=losses).map(|n| Fault::Lose { after: 3 * n, noticed: Noticed::Later });
    let target = fixture.target(faults.collect(), DELAY);
    let config = Config { window: window(2), ..Config::default() };
    let ended = fixture.run(&target, batches(1..=EVENTS, 10), &config).await;
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    assert!(ended.totals.retries > u64::from(LOSSES_MAX), "{:?}", ended.totals);
    fixture.log.check_complete(config.window, EVENTS, &ended.totals);
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_is_asked_how_it_is_before_anything_is_sent() {
    let fixture = Fixture::new();
    let faults = vec![
        Fault::Lose { after: 5, noticed: Noticed::Later },
        Fault::Block { after: 5, asked: 10 },
    ];
    let target = fixture.target(faults, DELAY);
    let config = Config { window: window(5), ..Config::default() };
    let run = fixture.run(&target, batches(1..=5, 5), &config);
    let watch = fixture.until_phase(|phase| *phase == Phase::Blocked);
    let (ended, sent) = tokio::join!(run, async {
        watch.await;
        fixture.progress.borrow().totals.published
    });
    assert_eq!(sent, 5, "nothing more while it is blocked");
    assert_eq!(ended.totals.published, 10);
}
