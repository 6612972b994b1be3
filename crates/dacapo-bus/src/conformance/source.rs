//! The suite of [`Source`]s.

use std::num::NonZeroUsize;

use async_trait::async_trait;
use bytes::Bytes;
use dacapo_event::{Message, ShortStr};

use super::{bodies, full_message, large_body, numbered, poll_once, within};
use crate::{Delivery, Source, Subscribe};

/// What an adapter supplies so that its sources can be checked.
#[async_trait]
pub trait SourceHarness: Sync {
    /// Makes a fresh, empty queue that every message to [`SourceHarness::exchange`] reaches, and
    /// returns what opens sources on it, with at most `prefetch` messages unacked. The one before
    /// is of no more interest and may be removed.
    async fn queue(&self, prefetch: NonZeroUsize) -> Box<dyn Subscribe>;

    /// Returns the exchange that leads to the queue.
    fn exchange(&self) -> ShortStr;

    /// Publishes a message without the code under test; when it returns, the queue has it.
    async fn publish(&self, message: Message);
}

/// Checks every promise of [`Source`] and [`Subscribe`].
///
/// # Panics
/// At the first promise that is not kept.
pub async fn check_source(harness: &impl SourceHarness) {
    deliveries_come_in_order_with_tags_from_1(harness).await;
    every_property_header_type_and_size_arrives(harness).await;
    next_may_be_dropped_at_any_time(harness).await;
    an_ack_is_cumulative(harness).await;
    no_more_than_the_prefetch_is_unacked(harness).await;
    what_a_dropped_source_had_comes_again_in_order(harness).await;
    what_a_closed_source_had_comes_again(harness).await;
    a_second_source_stands_by(harness).await;
}

fn prefetch(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).expect("the suite asks for at least one")
}

async fn open(queue: &dyn Subscribe) -> Box<dyn Source> {
    within("open", queue.open()).await.expect("the queue can be consumed")
}

async fn publish(harness: &impl SourceHarness, numbers: std::ops::Range<u32>) -> Vec<Message> {
    let messages = numbered(&harness.exchange(), numbers);
    for message in &messages {
        within("publish", harness.publish(message.clone())).await;
    }
    messages
}

async fn next(source: &mut dyn Source) -> Delivery {
    let delivery = within("next", source.next()).await.expect("the source delivers");
    delivery.expect("the source was not closed")
}

async fn take(source: &mut dyn Source, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(next(source).await);
    }
    taken
}

fn bodies_of(deliveries: &[Delivery]) -> Vec<Bytes> {
    deliveries.iter().map(|delivery| delivery.message.body.clone()).collect()
}

/// Waits until the queue says that so many wait; a broker may count a moment late.
async fn until_depth(source: &mut dyn Source, depth: u64) {
    within("depth", async {
        while source.depth().await.expect("the source knows its depth") != depth {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn deliveries_come_in_order_with_tags_from_1(harness: &impl SourceHarness) {
    let queue = harness.queue(prefetch(100)).await;
    let mut source = open(&*queue).await;
    let sent = publish(harness, 0..50).await;
    let deliveries = take(&mut *source, 50).await;
    assert_eq!(bodies_of(&deliveries), bodies(&sent), "in order");
    let tags: Vec<u64> = deliveries.iter().map(|delivery| delivery.tag).collect();
    assert_eq!(tags, (1..=50).collect::<Vec<u64>>(), "tags count from 1");
    assert!(deliveries.iter().all(|delivery| !delivery.redelivered && delivery.parked.is_none()));
    source.ack(50).await.expect("acks");
    within("close", source.close()).await.expect("closes in order");
    let after =
        within("next after close", source.next()).await.expect("a closed source is no error");
    assert_eq!(after, None, "nothing comes after close");
}

async fn every_property_header_type_and_size_arrives(harness: &impl SourceHarness) {
    let queue = harness.queue(prefetch(10)).await;
    let mut source = open(&*queue).await;
    let bare = Message { exchange: harness.exchange(), ..Message::default() };
    let sent = [
        full_message(&harness.exchange()),
        bare.clone(),
        Message { body: large_body(), ..bare.clone() },
        Message { routing_key: ShortStr::from_static("bestellung.geändert.🛒"), ..bare },
    ];
    for message in &sent {
        within("publish", harness.publish(message.clone())).await;
    }
    for message in &sent {
        let came = next(&mut *source).await.message;
        assert_eq!(came.exchange, message.exchange);
        assert_eq!(came.routing_key, message.routing_key);
        assert_eq!(came.properties, message.properties, "every property arrives as it was");
        assert!(came.body == message.body, "the body arrives as it was");
    }
    within("close", source.close()).await.expect("closes in order");
}

async fn next_may_be_dropped_at_any_time(harness: &impl SourceHarness) {
    let queue = harness.queue(prefetch(200)).await;
    let mut source = open(&*queue).await;
    assert!(poll_once(source.next()).await.is_none(), "pends while the queue is empty");
    let sent = publish(harness, 0..100).await;
    let mut came = Vec::new();
    within("100 deliveries", async {
        while came.len() < 100 {
            match poll_once(source.next()).await {
                Some(delivery) => came.push(delivery.expect("delivers").expect("is open")),
                None => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    })
    .await;
    assert_eq!(bodies_of(&came), bodies(&sent), "no delivery is lost or turned round");
    within("close", source.close()).await.expect("closes in order");
}

async fn an_ack_is_cumulative(harness: &impl SourceHarness) {
    let queue = harness.queue(prefetch(100)).await;
    let mut source = open(&*queue).await;
    let sent = publish(harness, 0..10).await;
    take(&mut *source, 10).await;
    source.ack(7).await.expect("acks");
    within("close", source.close()).await.expect("closes in order");
    let mut successor = open(&*queue).await;
    let left = take(&mut *successor, 3).await;
    assert_eq!(bodies_of(&left), bodies(&sent[7..]), "1 to 7 are gone, 8 to 10 come again");
    successor.ack(left[2].tag).await.expect("acks");
    until_depth(&mut *successor, 0).await;
    within("close", successor.close()).await.expect("closes in order");
}

async fn no_more_than_the_prefetch_is_unacked(harness: &impl SourceHarness) {
    let queue = harness.queue(prefetch(5)).await;
    let mut source = open(&*queue).await;
    publish(harness, 0..8).await;
    take(&mut *source, 5).await;
    until_depth(&mut *source, 3).await;
    assert!(poll_once(source.next()).await.is_none(), "a sixth would be beyond the prefetch");
    source.ack(5).await.expect("acks");
    assert_eq!(take(&mut *source, 3).await[0].tag, 6, "an ack makes room");
    within("close", source.close()).await.expect("closes in order");
}

async fn what_a_dropped_source_had_comes_again_in_order(harness: &impl SourceHarness) {
    let queue = harness.queue(prefetch(4)).await;
    let mut source = open(&*queue).await;
    let sent = publish(harness, 0..8).await;
    take(&mut *source, 4).await;
    source.ack(1).await.expect("acks");
    drop(source);
    let mut successor = open(&*queue).await;
    let mut came = take(&mut *successor, 4).await;
    successor.ack(4).await.expect("acks");
    // An ack may be lost with its connection, so the first may come again, but never out of order.
    let acked = usize::from(came[0].message.body == sent[1].body);
    let missing = 8 - acked - 4;
    while came.len() < 4 + missing {
        let delivery = next(&mut *successor).await;
        successor.ack(delivery.tag).await.expect("acks");
        came.push(delivery);
    }
    assert_eq!(bodies_of(&came), bodies(&sent[acked..]), "in the old order, before the others");
    assert!(came[0].redelivered, "it was delivered before");
    assert!(!came[came.len() - 1].redelivered, "it was not");
    within("close", successor.close()).await.expect("closes in order");
}

async fn what_a_closed_source_had_comes_again(harness: &impl SourceHarness) {
    let queue = harness.queue(prefetch(10)).await;
    let mut source = open(&*queue).await;
    let sent = publish(harness, 0..3).await;
    take(&mut *source, 3).await;
    within("close", source.close()).await.expect("closes with deliveries unacked");
    let mut successor = open(&*queue).await;
    let again = take(&mut *successor, 3).await;
    assert_eq!(bodies_of(&again), bodies(&sent));
    assert_eq!(again[0].tag, 1, "each source counts for itself");
    within("close", successor.close()).await.expect("closes in order");
}

async fn a_second_source_stands_by(harness: &impl SourceHarness) {
    let queue = harness.queue(prefetch(10)).await;
    let mut active = open(&*queue).await;
    let sent = publish(harness, 0..1).await;
    let first = next(&mut *active).await;
    let mut standby = open(&*queue).await;
    publish(harness, 1..2).await;
    assert_eq!(next(&mut *active).await.tag, 2, "the first stays the active one");
    assert!(poll_once(standby.next()).await.is_none(), "the second waits");
    active.ack(first.tag).await.expect("acks");
    within("close", active.close()).await.expect("closes in order");
    let taken_over = within("take-over", standby.next()).await.expect("delivers").expect("is open");
    assert_ne!(taken_over.message.body, sent[0].body, "what was acked does not come again");
    within("close", standby.close()).await.expect("closes in order");
}
