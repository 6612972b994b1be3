//! The suite of [`Sink`]s.

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_event::{Message, ShortStr};

use super::{bodies, full_message, large_body, numbered, poll_once, within};
use crate::{Connect, Outcome, Sink};

/// What an adapter supplies so that its sinks can be checked.
#[async_trait]
pub trait SinkHarness: Sync {
    /// Makes a fresh, empty queue (or file) and returns the way to it alone. The one before is of
    /// no more interest and may be removed.
    async fn target(&self) -> Box<dyn Connect>;

    /// Returns what of a message arrives.
    fn fidelity(&self) -> Fidelity;

    /// Returns, and takes away, all messages in the queue, oldest first, read without the code
    /// under test. Asked only when every outcome is known, so what is confirmed must be there.
    async fn arrived(&self) -> Vec<Message>;

    /// Deletes the queue, so that the target leads nowhere. Only asked of [`Fidelity::Message`].
    async fn delete_queue(&self);
}

/// What of a message arrives at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fidelity {
    /// Routing key, properties and body: a queue.
    Message,
    /// The body alone: a file. Nothing is ever unroutable.
    Body,
}

/// Checks every promise of [`Sink`] and [`Connect`].
///
/// # Panics
/// At the first promise that is not kept.
pub async fn check_sink(harness: &impl SinkHarness) {
    outcomes_come_in_order_and_confirmed_is_in_the_queue(harness).await;
    empty_and_large_bodies_arrive(harness).await;
    outcomes_may_be_dropped_at_any_time(harness).await;
    close_answers_for_what_was_sent(harness).await;
    a_second_connection_goes_on(harness).await;
    state_can_be_asked_while_outcomes_are_out(harness).await;
    if harness.fidelity() == Fidelity::Message {
        every_property_and_header_type_arrives(harness).await;
        what_leads_nowhere_is_returned(harness).await;
        a_queue_deleted_in_the_middle_is_no_success(harness).await;
    }
}

async fn open(target: &dyn Connect) -> Box<dyn Sink> {
    within("open", target.open()).await.expect("the target can be opened")
}

async fn collect(sink: &mut dyn Sink, wanted: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    while outcomes.len() < wanted {
        let more = within("outcomes", sink.outcomes()).await.expect("the target answers");
        assert!(!more.is_empty(), "outcomes are never empty");
        outcomes.extend(more);
    }
    assert_eq!(outcomes.len(), wanted, "one outcome for each message");
    outcomes
}

fn key() -> ShortStr {
    ShortStr::from_static("shop")
}

async fn outcomes_come_in_order_and_confirmed_is_in_the_queue(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let mut sink = open(&*target).await;
    let messages = numbered(&key(), 0..500);
    for batch in messages.chunks(70) {
        within("send", sink.send(batch)).await.expect("the target takes messages");
    }
    let outcomes = collect(&mut *sink, messages.len()).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Confirmed), "all are routable");
    let arrived = harness.arrived().await;
    assert_eq!(bodies(&arrived), bodies(&messages), "confirmed means in the queue, in order");
    within("close", sink.close()).await.expect("closes in order");
    target.dismantle().await.expect("can be dismantled");
    target.dismantle().await.expect("dismantling is idempotent");
}

async fn empty_and_large_bodies_arrive(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let mut sink = open(&*target).await;
    let messages: Vec<Message> =
        [Bytes::new(), large_body(), Bytes::from_static(b"between"), Bytes::new()]
            .into_iter()
            .map(|body| Message { exchange: key(), body, ..Message::default() })
            .collect();
    within("send", sink.send(&messages)).await.expect("the target takes messages");
    collect(&mut *sink, messages.len()).await;
    let arrived = harness.arrived().await;
    assert!(
        bodies(&arrived) == bodies(&messages),
        "bodies of 0 bytes and 1 MiB arrive as they were"
    );
    within("close", sink.close()).await.expect("closes in order");
    target.dismantle().await.expect("can be dismantled");
}

async fn outcomes_may_be_dropped_at_any_time(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let mut sink = open(&*target).await;
    assert!(poll_once(sink.outcomes()).await.is_none(), "pends while nothing is unanswered");
    let messages = numbered(&key(), 0..200);
    let mut outcomes = Vec::new();
    for batch in messages.chunks(20) {
        within("send", sink.send(batch)).await.expect("the target takes messages");
        // Each poll may be dropped with outcomes half gathered.
        for _ in 0..5 {
            if let Some(more) = poll_once(sink.outcomes()).await {
                outcomes.extend(more.expect("the target answers"));
            }
            tokio::task::yield_now().await;
        }
    }
    let left = messages.len() - outcomes.len();
    outcomes.extend(collect(&mut *sink, left).await);
    assert_eq!(outcomes, vec![Outcome::Confirmed; messages.len()], "no outcome is lost");
    assert_eq!(bodies(&harness.arrived().await), bodies(&messages));
    within("close", sink.close()).await.expect("closes in order");
    target.dismantle().await.expect("can be dismantled");
}

async fn close_answers_for_what_was_sent(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let mut sink = open(&*target).await;
    let messages = numbered(&key(), 0..50);
    within("send", sink.send(&messages)).await.expect("the target takes messages");
    within("close", sink.close()).await.expect("closes in order");
    assert_eq!(
        bodies(&harness.arrived().await),
        bodies(&messages),
        "close waits for what was sent"
    );
    target.dismantle().await.expect("can be dismantled");
}

async fn a_second_connection_goes_on(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let messages = numbered(&key(), 0..20);
    for half in messages.chunks(10) {
        let mut sink = open(&*target).await;
        within("send", sink.send(half)).await.expect("the target takes messages");
        collect(&mut *sink, half.len()).await;
        // Dropped, not closed, as after a fault.
    }
    assert_eq!(bodies(&harness.arrived().await), bodies(&messages));
    target.dismantle().await.expect("can be dismantled");
}

async fn state_can_be_asked_while_outcomes_are_out(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let mut sink = open(&*target).await;
    let messages = numbered(&key(), 0..30);
    within("send", sink.send(&messages)).await.expect("the target takes messages");
    let state = within("state", sink.state()).await.expect("the target says how it is");
    assert!(!state.blocked);
    collect(&mut *sink, messages.len()).await;
    if harness.fidelity() == Fidelity::Message {
        // A broker may count a moment late.
        within("depth of 30", async {
            while sink.state().await.expect("the target says how it is").depth != Some(30) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    within("close", sink.close()).await.expect("closes in order");
    target.dismantle().await.expect("can be dismantled");
}

async fn every_property_and_header_type_arrives(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let mut sink = open(&*target).await;
    let bare = Message { exchange: key(), body: Bytes::from_static(b"bare"), ..Message::default() };
    let long_key = ShortStr::new(vec![b'k'; ShortStr::BYTES_MAX]).expect("is 255 bytes");
    let messages = [
        full_message(&key()),
        Message { routing_key: long_key, ..bare.clone() },
        Message { routing_key: ShortStr::from_static("bestellung.geändert.🛒"), ..bare },
    ];
    within("send", sink.send(&messages)).await.expect("the target takes messages");
    collect(&mut *sink, messages.len()).await;
    let arrived = harness.arrived().await;
    assert_eq!(arrived.len(), messages.len());
    for (arrived, sent) in arrived.iter().zip(&messages) {
        assert_eq!(arrived.routing_key, sent.routing_key, "the routing key arrives as it was");
        assert_eq!(arrived.properties, sent.properties, "every property arrives as it was");
        assert_eq!(arrived.body, sent.body);
    }
    within("close", sink.close()).await.expect("closes in order");
    target.dismantle().await.expect("can be dismantled");
}

async fn what_leads_nowhere_is_returned(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let mut sink = open(&*target).await;
    harness.delete_queue().await;
    within("send", sink.send(&numbered(&key(), 0..3))).await.expect("the exchange is still there");
    for outcome in collect(&mut *sink, 3).await {
        assert!(
            matches!(&outcome, Outcome::Returned { reason } if !reason.is_empty()),
            "{outcome:?} for a message that no queue took"
        );
    }
}

async fn a_queue_deleted_in_the_middle_is_no_success(harness: &impl SinkHarness) {
    let target = harness.target().await;
    let mut sink = open(&*target).await;
    within("send", sink.send(&numbered(&key(), 0..10))).await.expect("the target takes messages");
    assert_eq!(collect(&mut *sink, 10).await, vec![Outcome::Confirmed; 10]);
    harness.delete_queue().await;
    within("send", sink.send(&numbered(&key(), 10..20)))
        .await
        .expect("the exchange is still there");
    for outcome in collect(&mut *sink, 10).await {
        assert!(
            matches!(outcome, Outcome::Returned { .. }),
            "{outcome:?} after the queue was deleted"
        );
    }
    target.dismantle().await.expect("dismantling needs no queue");
}
