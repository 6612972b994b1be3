//! The order of steps: nothing is acked before it is durable, and nothing is held without bound.

use std::num::NonZeroU64;

use bytes::Bytes;
use dacapo_event::{Event, Message, ShortStr};

use super::*;
use crate::testing::{noon, stream};

fn core(deliveries: u64) -> Core {
    let policy =
        RollPolicy { deliveries: NonZeroU64::new(deliveries).unwrap(), ..RollPolicy::default() };
    Core::new(stream(), Arc::new(AttributeRules::default()), policy)
}

fn message() -> Message {
    Message { body: Bytes::from_static(b"{}"), ..Message::default() }
}

fn replayed() -> Message {
    let event = Event {
        sequence: 1,
        archived_at: noon(),
        time: noon(),
        id: "e".to_owned(),
        kind: String::new(),
        key: None,
        message: message(),
    };
    marking::mark(&event, &ShortStr::from_static("r"), marking::Priority::Neutralise)
}

fn take(core: &mut Core, tag: DeliveryTag, message: Message) -> Intake {
    let delivery = Delivery { tag, redelivered: false, parked: None, message };
    core.delivered(delivery, noon(), Instant::now())
}

fn step(core: &mut Core) -> Option<Step> {
    core.step(Instant::now())
}

/// Carries out the opening and the sealing that the core asks for; returns what is to be appended.
async fn until_append(core: &mut Core) -> Finished {
    loop {
        match step(core).expect("there is something to do") {
            Step::Open => core.opened(1, None),
            Step::Encode(encode) => core.encoded(encode.start().await.unwrap().unwrap()),
            Step::Seal(encode, previous) => {
                core.encoded(encode.start_sealing(previous).await.unwrap().unwrap());
            }
            Step::Append(finished) => return finished,
            Step::Ack(tag) => panic!("{tag} was acked before the append"),
            Step::Answer(barrier, _) => panic!("`{barrier}` was answered before the append"),
            Step::GiveBack | Step::Stop => panic!("there is more to append"),
        }
    }
}

#[track_caller]
fn check_ack(core: &mut Core, expected: DeliveryTag) {
    match step(core) {
        Some(Step::Ack(tag)) => assert_eq!(tag, expected),
        _ => panic!("an ack of {expected} is due"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_ack_follows_the_append_and_covers_the_replayed_events_between() {
    let mut core = core(4);
    assert_eq!(take(&mut core, 1, replayed()), Intake::Replayed);
    assert_eq!(take(&mut core, 2, message()), Intake::Event);
    assert_eq!(take(&mut core, 3, message()), Intake::Event);
    assert_eq!(take(&mut core, 4, replayed()), Intake::Replayed);
    let finished = until_append(&mut core).await;
    assert_eq!(finished.sealed.summary.events(), 2);
    assert!(step(&mut core).is_none(), "nothing to do while it is being put");
    assert_eq!(core.unacked(), 4);
    core.appended();
    check_ack(&mut core, 4);
    assert_eq!(core.unacked(), 0);
}

#[tokio::test(start_paused = true)]
async fn while_one_segment_is_put_the_next_one_fills_and_no_third_begins() {
    let mut core = core(2);
    take(&mut core, 1, message());
    take(&mut core, 2, message());
    assert!(!core.wants_delivery(Instant::now()), "full until it is sealed");
    let first = until_append(&mut core).await;
    assert!(core.wants_delivery(Instant::now()));
    take(&mut core, 3, message());
    take(&mut core, 4, message());
    assert!(step(&mut core).is_none());
    assert!(!core.wants_delivery(Instant::now()));
    core.appended();
    check_ack(&mut core, 2);
    let second = until_append(&mut core).await;
    assert_eq!((second.sealed.summary.first, second.sealed.summary.last), (3, 4));
    assert_eq!(second.sealed.summary.previous, Some(first.sealed.summary.digest));
}

#[tokio::test(start_paused = true)]
async fn a_run_of_replayed_events_is_acked_by_age_but_never_past_a_segment_in_flight() {
    let mut core = core(2);
    take(&mut core, 1, message());
    take(&mut core, 2, message());
    let _first = until_append(&mut core).await;
    take(&mut core, 3, replayed());
    tokio::time::advance(RollPolicy::AGE).await;
    assert!(step(&mut core).is_none(), "2 is not durable");
    core.appended();
    check_ack(&mut core, 2);
    check_ack(&mut core, 3);
    take(&mut core, 4, replayed());
    assert!(step(&mut core).is_none());
    let deadline = core.deadline(Instant::now()).unwrap();
    assert_eq!(deadline, Instant::now() + RollPolicy::AGE);
    tokio::time::advance(RollPolicy::AGE).await;
    check_ack(&mut core, 4);
}

#[tokio::test(start_paused = true)]
async fn deliveries_are_given_back_before_the_broker_would_close_the_channel() {
    let mut core = core(100);
    take(&mut core, 1, message());
    assert!(matches!(step(&mut core), Some(Step::Open)));
    tokio::time::advance(HOLD_MAX - Duration::from_secs(1)).await;
    assert!(step(&mut core).is_none());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(matches!(step(&mut core), Some(Step::GiveBack)));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_encoded_yet_is_bounded() {
    let mut core = core(1_000_000);
    let mut taken = 0;
    while core.wants_delivery(Instant::now()) {
        taken += 1;
        take(&mut core, taken, message());
    }
    assert!(taken > 1_000 && taken <= 2 * BATCH_EVENTS as u64, "{taken} were taken");
}

fn barrier(id: &str) -> Message {
    barrier::message(&id.parse().unwrap(), ShortStr::from_static("archive"))
}

#[track_caller]
fn check_answer(core: &mut Core, expected: &str, sequence: Sequence) {
    match step(core) {
        Some(Step::Answer(barrier, at)) => {
            assert_eq!((barrier.as_str(), at), (expected, sequence));
        }
        _ => panic!("an answer to `{expected}` is due"),
    }
    assert!(step(core).is_none(), "nothing to do while it is being put");
    core.answered();
}

#[tokio::test(start_paused = true)]
async fn a_barrier_seals_and_is_answered_between_the_append_and_the_ack() {
    let mut core = core(100);
    take(&mut core, 1, message());
    assert_eq!(take(&mut core, 2, barrier("a")), Intake::Barrier);
    take(&mut core, 3, message());
    take(&mut core, 4, barrier("b"));
    let first = until_append(&mut core).await;
    assert_eq!(first.sealed.summary.events(), 2);
    // These fill the next segment meanwhile.
    take(&mut core, 5, message());
    take(&mut core, 6, barrier("c"));
    assert!(step(&mut core).is_none());
    core.appended();
    check_answer(&mut core, "a", 1);
    check_answer(&mut core, "b", 2);
    check_ack(&mut core, 4);
    until_append(&mut core).await;
    core.appended();
    check_answer(&mut core, "c", 3);
    check_ack(&mut core, 6);
    take(&mut core, 7, replayed());
    take(&mut core, 8, barrier("d"));
    check_answer(&mut core, "d", 3);
    check_ack(&mut core, 8);
    assert_eq!(core.unacked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_barriers_is_taken_little_by_little() {
    let mut core = core(1_000_000);
    core.opened(1, None);
    for round in 0..3 {
        let mut taken = 0;
        while core.wants_delivery(Instant::now()) {
            taken += 1;
            take(&mut core, round * BARRIERS_MAX as u64 + taken, barrier(&format!("b-{taken}")));
        }
        assert_eq!(taken, BARRIERS_MAX as u64);
        for number in 1..=taken {
            check_answer(&mut core, &format!("b-{number}"), 0);
        }
        check_ack(&mut core, (round + 1) * BARRIERS_MAX as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_barrier_that_cannot_be_answered_is_given_back_before_the_broker_would_close_the_channel()
{
    let mut core = core(100);
    take(&mut core, 1, barrier("a"));
    assert!(matches!(step(&mut core), Some(Step::Open)));
    assert!(step(&mut core).is_none());
    core.opened(1, None);
    assert!(matches!(step(&mut core), Some(Step::Answer(..))));
    let deadline = core.deadline(Instant::now()).unwrap();
    tokio::time::advance(HOLD_MAX).await;
    assert_eq!(deadline, Instant::now());
    assert!(matches!(step(&mut core), Some(Step::GiveBack)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_seals_what_there_is() {
    let mut core = core(100);
    take(&mut core, 1, message());
    take(&mut core, 2, replayed());
    core.stop();
    assert!(!core.wants_delivery(Instant::now()));
    assert_eq!(until_append(&mut core).await.sealed.summary.events(), 1);
    assert!(step(&mut core).is_none());
    core.appended();
    check_ack(&mut core, 2);
    assert!(matches!(step(&mut core), Some(Step::Stop)));
}

#[tokio::test(start_paused = true)]
async fn a_stop_with_nothing_in_hand_is_the_end() {
    let mut core = core(100);
    core.stop();
    assert!(matches!(step(&mut core), Some(Step::Stop)));
}
