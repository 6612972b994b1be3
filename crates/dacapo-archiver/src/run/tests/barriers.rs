//! Barriers: what an answer says is durable, whatever breaks.

use dacapo_archive::barrier::{Reached, reached};
use dacapo_bus::Parked;
use dacapo_event::barrier::{self, BarrierId};

use super::*;

fn id(text: &str) -> BarrierId {
    text.parse().unwrap()
}

fn publish_barrier(bus: &MemoryBus, name: &str) {
    bus.publish(barrier::message(&id(name), ShortStr::from_static(QUEUE))).unwrap();
}

async fn answers(store: &MemoryStore, name: &str) -> Vec<Reached> {
    reached(store, &id(name)).await.unwrap()
}

/// The one answer that is due.
async fn answer(store: &MemoryStore, name: &str) -> u64 {
    let answers = answers(store, name).await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].stream, stream());
    answers[0].sequence
}

#[tokio::test(start_paused = true)]
async fn a_barrier_says_the_last_sequence_before_it_at_once_and_is_no_event() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        publish_barrier(&bus, "empty");
        drained(&bus).await;
        assert_eq!(answer(&inner, "empty").await, 0);
        publish(&bus, 1..=2);
        publish_barrier(&bus, "two");
        publish(&bus, 3..=3);
        publish_barrier(&bus, "three");
        publish_barrier(&bus, "three-again");
        let begun = Instant::now();
        drained(&bus).await;
        assert!(begun.elapsed() < RollPolicy::AGE / 2, "it waits for no roll");
        publish_barrier(&bus, "quiet");
        drained(&bus).await;
    };
    let totals = run(config(100), inner.clone(), &subscription, &metrics, story).await.unwrap();
    let expected_answers = [("two", 2), ("three", 3), ("three-again", 3), ("quiet", 3)];
    for (name, sequence) in expected_answers {
        assert_eq!(answer(&inner, name).await, sequence, "{name}");
    }
    assert_eq!(totals.events, 3);
    assert_eq!(ids(&sound(&inner).await), expected(1..=3));
}

#[tokio::test(start_paused = true)]
async fn a_barrier_that_lost_its_place_is_dropped_and_one_sent_to_the_parking_queue_is_answered() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    publish(&bus, 1..=1);
    publish_barrier(&bus, "displaced");
    publish_barrier(&bus, "there");
    for reason in ["expired", "expired", Parked::PUBLISHED] {
        assert!(bus.park_oldest(QUEUE, reason));
    }
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        until(|| metrics.barriers_answered() == 1).await;
        drained(&bus).await;
    };
    run(config(100), inner.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!(answers(&inner, "displaced").await, []);
    assert_eq!(answer(&inner, "there").await, 1);
    assert_eq!(ids(&sound(&inner).await), expected(1..=1));
}

/// Asserts of every answer that is there that the first so many events are durable where it says.
async fn assert_answers_hold(store: &Arc<MemoryStore>) {
    for (name, events) in [("four", 4), ("eight", 8)] {
        for answer in answers(store, name).await {
            let durable = archived(store).await;
            let within = usize::try_from(answer.sequence).unwrap();
            assert!(within <= durable.len(), "`{name}` names what is not durable");
            for id in expected(1..=events) {
                let is_within = durable[..within].iter().any(|event| event.id == id);
                assert!(is_within, "{id} came before `{name}` and is not within {within}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_store_call_what_an_answer_says_is_durable_and_every_barrier_is_answered() {
    let mut kills = 0;
    for nth in 1.. {
        let mut reached = false;
        for side in [Side::Before, Side::After] {
            let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
            publish(&bus, 1..=4);
            publish_barrier(&bus, "four");
            publish(&bus, 5..=8);
            publish_barrier(&bus, "eight");
            publish(&bus, 9..=10);
            let watched = || {
                let seen = Arc::clone(&inner);
                let mut store = FaultyStore::new(Arc::clone(&inner));
                store.hook = Some(Box::new(move |_, _| {
                    let seen = Arc::clone(&seen);
                    Box::pin(async move { assert_answers_hold(&seen).await })
                }));
                store
            };
            let mut store = watched();
            store.kill = Some((nth, side));
            let store = Arc::new(store);
            let (first, metrics) = (subscription(&bus), metrics());
            let killed = tokio::select! {
                ended = run(config(3), store.clone(), &first, &metrics, drained(&bus)) => {
                    ended.unwrap();
                    false
                }
                () = store.killed.notified() => true,
            };
            reached |= killed;
            assert_answers_hold(&inner).await;

            let again = subscription(&bus);
            run(config(3), Arc::new(watched()), &again, &metrics, drained(&bus)).await.unwrap();
            assert_answers_hold(&inner).await;
            for name in ["four", "eight"] {
                assert!(answer(&inner, name).await >= 4, "after {nth} {side:?}");
            }
            sound(&inner).await;
        }
        if !reached {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 14, "two answers and four segments are more than {kills} calls");
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_a_barrier_waits_and_goes_back_to_the_queue_in_time() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let store = Arc::new(FaultyStore::new(Arc::clone(&inner)));
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        publish(&bus, 1..=2);
        drained(&bus).await;
        store.down.store(true, Ordering::SeqCst);
        publish_barrier(&bus, "waits");
        tokio::time::sleep(16 * 60 * SECOND).await;
        assert_eq!((bus.unacked(QUEUE), bus.depth(QUEUE)), (Some(0), Some(1)));
        assert_ne!(metrics.health(), Health::Ok);
        store.down.store(false, Ordering::SeqCst);
        drained(&bus).await;
    };
    run(config(10), store.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!(answer(&inner, "waits").await, 2);
}
