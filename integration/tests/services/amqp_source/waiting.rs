//! Sources of which more deliveries wait than may: what happens in what order, and that none is lost.

use super::*;

/// The connection was given up as a lost one, and what had been taken could not be acked any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_deliveries_are_too_large_hands_out_what_waits_and_is_opened_anew() {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let bindings = everything(&setting.exchange);
    let prefetch = NonZeroU16::new(40).unwrap();
    // Room for 40 of 5 KiB, which it begins with, and for three of those that come: all 40 would be too
    // much for the broker to keep.
    let room = 40 * 5 * 1024;
    let subscribe = AmqpSubscribe::new(broker(), &setting.queue, bindings, prefetch, room);
    subscribe.open().await.unwrap().close().await.unwrap();
    for number in 0..40 {
        let body = Bytes::from(format!("{number:>60000}"));
        setting.direct.publish(&Message { body, ..setting.message("k") }).await;
    }
    let (mut seen, mut prefetches) = (Vec::new(), Vec::new());
    while seen.len() < 40 {
        let mut source = subscribe.open().await.unwrap();
        prefetches.push(source.prefetch().unwrap().get());
        while seen.len() < 40 {
            let delivery = tokio::time::timeout(DEADLINE, source.next()).await;
            let Some(delivery) = delivery.expect("it goes on").unwrap() else { break };
            let body = String::from_utf8(delivery.message.body.to_vec()).unwrap();
            seen.push(body.trim().parse::<u32>().unwrap());
            // Nobody takes more until all that comes is on its way, and an answer behind it.
            while prefetches.len() == 1 && source.depth().await.unwrap() > 0 {}
            source.depth().await.unwrap();
            source.ack(delivery.tag).await.unwrap();
        }
        source.close().await.unwrap();
    }
    assert_eq!(seen, (0..40).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(prefetches[0], 40);
    assert!(prefetches.len() > 1 && prefetches[1] < 20, "{prefetches:?}");
    setting.remove().await;
}

/// Returns a setting with so many bodies of 4 KB in its queue, and a way to it: 320 of them are
/// delivered at once, of which some 90 may wait.
async fn too_many(bodies: u32) -> (Setting, AmqpSubscribe) {
    let setting = Setting::new(ExchangeKind::Topic).await;
    let broker = broker_at(&format!("{}?heartbeat=1", services::amqp()));
    let (bindings, prefetch) = (everything(&setting.exchange), NonZeroU16::new(320).unwrap());
    let room = 320 * 5 * 1024 / 4;
    let subscribe = AmqpSubscribe::new(broker, &setting.queue, bindings, prefetch, room);
    subscribe.open().await.unwrap().close().await.unwrap();
    for number in 0..bodies {
        let body = Bytes::from(format!("{number:>4000}"));
        setting.direct.publish(&Message { body, ..setting.message("k") }).await;
    }
    (setting, subscribe)
}

fn number_in(delivery: &Delivery) -> u32 {
    std::str::from_utf8(&delivery.message.body).unwrap().trim().parse().unwrap()
}

/// It was opened anew whenever more waited than may, with half of what it had asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_which_too_much_waits_goes_on_once_some_of_it_is_taken() {
    let (setting, subscribe) = too_many(1_000).await;
    let mut source = subscribe.open().await.unwrap();
    for number in 0..1_000 {
        if number % 300 == 0 {
            // More comes meanwhile than may wait; if not, nothing is shown and nothing fails.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let delivery = next(&mut *source).await;
        assert_eq!((delivery.tag, number_in(&delivery)), (u64::from(number) + 1, number));
        assert!(!delivery.redelivered, "{number}");
        if delivery.tag.is_multiple_of(50) {
            source.ack(delivery.tag).await.unwrap();
        }
    }
    source.close().await.unwrap();
    assert_eq!(subscribe.open().await.unwrap().prefetch().unwrap().get(), 320);
    setting.remove().await;
}

/// RabbitMQ gives up a connection that reads nothing for 15 seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_which_too_much_waits_for_long_hands_out_what_waits_and_is_opened_anew() {
    let (setting, subscribe) = too_many(400).await;
    let mut source = subscribe.open().await.unwrap();
    // Nobody takes any for as long as the source may read nothing.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut seen = Vec::new();
    while let Some(delivery) =
        tokio::time::timeout(DEADLINE, source.next()).await.expect("it goes on").unwrap()
    {
        seen.push(number_in(&delivery));
        assert_eq!(delivery.tag, seen.len() as u64);
    }
    assert!((80..320).contains(&seen.len()), "{}", seen.len());
    // Once, and waited for: a channel that ends keeps acks to itself if it had many to pass on.
    source.ack(seen.len() as u64).await.unwrap();
    source.depth().await.unwrap();
    source.close().await.unwrap();
    let mut successor = subscribe.open().await.unwrap();
    let prefetch = successor.prefetch().unwrap().get();
    assert!(prefetch < 160, "{prefetch}");
    while seen.len() < 400 {
        let delivery = next(&mut *successor).await;
        seen.push(number_in(&delivery));
        successor.ack(delivery.tag).await.unwrap();
    }
    assert_eq!(seen, (0..400).collect::<Vec<_>>(), "each once, in order");
    successor.close().await.unwrap();
    setting.remove().await;
}
