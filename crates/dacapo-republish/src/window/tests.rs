//! The window by itself: what is counted and sent again after each kind of answer.

use bytes::Bytes;
use dacapo_event::{FieldValue, Properties, ShortStr};

use super::*;

fn window(messages: usize, bytes: u64, bodies: &[usize]) -> Window<usize> {
    let of = |bytes: &usize| Message { body: vec![b'x'; *bytes].into(), ..Message::default() };
    window_of(messages, bytes, bodies.iter().map(of))
}

fn window_of(
    messages: usize,
    bytes: u64,
    pending: impl IntoIterator<Item = Message>,
) -> Window<usize> {
    let mut window = Window::new(WindowLimits {
        messages: NonZeroUsize::new(messages).unwrap(),
        bytes: NonZeroU64::new(bytes).unwrap(),
    });
    let numbered = pending.into_iter().zip(1..).map(|(message, position)| Outgoing {
        position,
        id: format!("e-{position}"),
        time: Timestamp::EPOCH,
        message,
    });
    window.push(numbered.collect());
    window
}

fn publish_all(window: &mut Window<usize>, totals: &mut Totals) -> usize {
    let mut published = 0;
    loop {
        let count = window.sendable(usize::MAX);
        if count == 0 {
            return published;
        }
        let range = window.publish(count, totals);
        assert_eq!(window.slice(range.clone()).len(), range.len());
        published += range.len();
    }
}

/// Takes an outcome where a return is a reason to stop.
fn answer(window: &mut Window<usize>, outcome: Outcome, totals: &mut Totals) -> Option<usize> {
    window.answer(outcome, Verdict::Stop, totals).map(|settled| match settled {
        Settled::Confirmed(position) => position,
        Settled::Returned { .. } => panic!("{settled:?}"),
    })
}

const RETURNED: Outcome = Outcome::Returned { reason: String::new() };

#[test]
fn messages_and_bytes_are_bounded_and_a_large_one_goes_alone() {
    let mut totals = Totals::default();
    assert_eq!(publish_all(&mut window(3, 1_000, &[1; 9]), &mut totals), 3);
    assert_eq!(publish_all(&mut window(100, 10, &[4, 4, 4]), &mut totals), 2);
    let mut large = window(100, 10, &[50, 1]);
    assert_eq!(publish_all(&mut large, &mut totals), 1);
    assert_eq!(answer(&mut large, Outcome::Confirmed, &mut totals), Some(1));
    assert_eq!(publish_all(&mut large, &mut totals), 1);
}

#[test]
fn a_confirm_moves_the_checkpoint_and_counts_bytes() {
    let mut totals = Totals::default();
    let mut window = window(10, 100, &[2, 3]);
    publish_all(&mut window, &mut totals);
    assert_eq!(answer(&mut window, Outcome::Confirmed, &mut totals), Some(1));
    assert_eq!(answer(&mut window, Outcome::Confirmed, &mut totals), Some(2));
    assert!(window.is_empty());
    assert_eq!(totals, Totals { published: 2, confirmed: 2, bytes: 5, ..Totals::default() });
}

#[test]
fn after_a_nack_what_was_taken_behind_it_is_a_repeat_out_of_order() {
    let mut totals = Totals::default();
    let mut window = window(10, 100, &[1; 4]);
    publish_all(&mut window, &mut totals);
    assert_eq!(answer(&mut window, Outcome::Confirmed, &mut totals), Some(1));
    for outcome in [Outcome::Nacked, Outcome::Confirmed] {
        assert_eq!(answer(&mut window, outcome, &mut totals), None);
    }
    assert_eq!(window.sendable(10), 0, "nothing new goes until all answers are in");
    assert_eq!(window.take_refusal(), None, "one answer is to come");
    assert_eq!(answer(&mut window, Outcome::Nacked, &mut totals), None);
    assert_eq!(window.take_refusal(), Some(Refusal::Nacked));
    let expected = Totals {
        published: 4,
        confirmed: 1,
        refused: 2,
        possible_repeats: 1,
        reordered: 1,
        bytes: 1,
        ..Totals::default()
    };
    assert_eq!(totals, expected);
    assert_eq!(window.front_id(), "e-2");
    assert_eq!(window.sendable(10), 1, "one goes first, to see whether it is taken now");
    window.publish(1, &mut totals);
    assert_eq!(answer(&mut window, Outcome::Confirmed, &mut totals), Some(2));
    assert_eq!(window.sendable(10), 2, "and then twice as many");
}

#[test]
fn a_lost_connection_makes_repeats_of_the_unanswered_but_keeps_their_order() {
    let mut totals = Totals::default();
    let mut window = window(10, 100, &[1; 3]);
    publish_all(&mut window, &mut totals);
    answer(&mut window, Outcome::Confirmed, &mut totals);
    window.lose(&mut totals);
    assert_eq!((totals.possible_repeats, totals.reordered), (2, 0));
    assert_eq!((window.unanswered(), window.pending()), (0, 2));
    assert_eq!(publish_all(&mut window, &mut totals), 2);
}

#[test]
fn a_connection_lost_after_a_nack_may_have_turned_the_rest_round() {
    let mut totals = Totals::default();
    let mut window = window(10, 100, &[1; 3]);
    publish_all(&mut window, &mut totals);
    answer(&mut window, Outcome::Nacked, &mut totals);
    window.lose(&mut totals);
    assert_eq!((totals.possible_repeats, totals.reordered), (2, 2));
    assert_eq!(window.take_refusal(), Some(Refusal::Nacked));
}

#[test]
fn a_return_is_told_from_a_nack_by_the_first_of_them() {
    let mut totals = Totals::default();
    let mut window = window(10, 100, &[1; 2]);
    publish_all(&mut window, &mut totals);
    answer(&mut window, RETURNED, &mut totals);
    answer(&mut window, Outcome::Nacked, &mut totals);
    assert_eq!(window.take_refusal(), Some(Refusal::Returned { reason: String::new() }));
}

#[test]
fn small_batches_wait_for_room_while_confirms_are_on_their_way() {
    let mut totals = Totals::default();
    let mut window = window(400, 10_000, &[1; 1_000]);
    assert_eq!(publish_all(&mut window, &mut totals), 400);
    for _ in 0..BATCH_MIN - 1 {
        answer(&mut window, Outcome::Confirmed, &mut totals);
        assert_eq!(window.sendable(200), 0);
    }
    answer(&mut window, Outcome::Confirmed, &mut totals);
    assert_eq!(window.sendable(200), BATCH_MIN);
}

#[test]
fn a_return_that_is_passed_over_holds_up_nothing_and_repeats_nothing() {
    let mut totals = Totals::default();
    let mut window = window(10, 100, &[1; 4]);
    publish_all(&mut window, &mut totals);
    assert_eq!(answer(&mut window, Outcome::Confirmed, &mut totals), Some(1));
    for position in [2, 3] {
        match window.answer(RETURNED, Verdict::Skip, &mut totals) {
            Some(Settled::Returned { rejected, .. }) => assert_eq!(rejected.position, position),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(answer(&mut window, Outcome::Confirmed, &mut totals), Some(4));
    assert!(window.is_empty() && !window.is_refused());
    let expected = Totals { published: 4, confirmed: 2, refused: 2, bytes: 2, ..Totals::default() };
    assert_eq!(totals, expected);
}

#[test]
fn a_return_behind_a_nack_waits_for_the_nacked_one() {
    let mut totals = Totals::default();
    let mut window = window(10, 100, &[1; 2]);
    publish_all(&mut window, &mut totals);
    assert_eq!(window.answer(Outcome::Nacked, Verdict::Skip, &mut totals), None);
    assert_eq!(window.answer(RETURNED, Verdict::Skip, &mut totals), None);
    assert_eq!(window.take_refusal(), Some(Refusal::Nacked));
    assert_eq!(window.reject_front().position, 1);
    assert_eq!(window.front().map(|(position, _)| *position), Some(2));
    assert_eq!(totals.published, totals.refused);
}

/// Headers counted for nothing, and a window of empty bodies could take gigabytes.
#[test]
fn headers_are_bounded_with_the_bodies_and_counted_as_no_body() {
    let mut totals = Totals::default();
    let header = (ShortStr::from_static("h"), FieldValue::text("x".repeat(300)));
    let headers = Some([header].into_iter().collect());
    let properties = Properties { headers, ..Properties::default() };
    let message = Message { properties, body: Bytes::from_static(b"x"), ..Message::default() };
    let mut window = window_of(10, 1_000, vec![message; 4]);
    assert_eq!(publish_all(&mut window, &mut totals), 2);
    for position in 1..=2 {
        assert_eq!(answer(&mut window, Outcome::Confirmed, &mut totals), Some(position));
    }
    assert_eq!(publish_all(&mut window, &mut totals), 2);
    assert_eq!(totals.bytes, 2);
}

#[test]
fn whatever_becomes_of_a_message_its_bytes_go_with_it() {
    let mut totals = Totals::default();
    let mut window = window(10, 1_000, &[1, 20, 300]);
    publish_all(&mut window, &mut totals);
    answer(&mut window, Outcome::Confirmed, &mut totals);
    window.answer(RETURNED, Verdict::Skip, &mut totals);
    answer(&mut window, Outcome::Nacked, &mut totals);
    assert_eq!(window.take_refusal(), Some(Refusal::Nacked));
    assert_eq!(window.pending_bytes(), 300);
    window.reject_front();
    assert!(window.is_empty());
    assert_eq!(window.pending_bytes(), 0);
}
