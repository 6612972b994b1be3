//! The archiver with every fault between bus and store.

use tokio::sync::Notify;

use super::*;

/// A store that asserts at every call that what was acked is durable. All events are of [`publish`].
fn watched(inner: &Arc<MemoryStore>, bus: &Bus) -> FaultyStore {
    let (seen, bus) = (Arc::clone(inner), bus.clone());
    let mut store = FaultyStore::new(Arc::clone(inner));
    store.hook = Some(Box::new(move |_, _| {
        let (seen, bus) = (Arc::clone(&seen), bus.clone());
        Box::pin(async move { assert_acked_is_durable(&seen, &bus).await })
    }));
    store
}

async fn assert_acked_is_durable(store: &Arc<MemoryStore>, bus: &Bus) {
    let kept = bus.depth(QUEUE).unwrap() + bus.unacked(QUEUE).unwrap();
    let acked = bus.published.load(Ordering::SeqCst) - usize::try_from(kept).unwrap();
    let durable = archived(store).await;
    for id in expected(1..=acked as u64) {
        assert!(durable.iter().any(|event| event.id == id), "{id} was acked and is not durable");
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_any_store_call_every_event_is_archived_and_none_acked_before() {
    const EVENTS: usize = 8;
    let mut kills = 0;
    for nth in 1.. {
        let mut reached = false;
        for side in [Side::Before, Side::After] {
            let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
            publish(&bus, 1..=EVENTS as u64);
            let mut store = watched(&inner, &bus);
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
            assert_acked_is_durable(&inner, &bus).await;

            let second = Arc::new(watched(&inner, &bus));
            let again = subscription(&bus);
            run(config(3), second, &again, &metrics, drained(&bus)).await.unwrap();
            let events = sound(&inner).await;
            for id in expected(1..=EVENTS as u64) {
                assert!(ids(&events).contains(&id.as_str()), "{id} after {nth} {side:?}");
            }
            assert!(events.len() <= EVENTS + 3, "at most one segment twice, after {nth} {side:?}");
        }
        if !reached {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 12, "probe, opening and three segments are more than {kills} calls");
}

#[tokio::test(start_paused = true)]
async fn any_one_failing_call_costs_nothing() {
    const EVENTS: usize = 8;
    for nth in 6.. {
        let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
        publish(&bus, 1..=EVENTS as u64);
        let mut store = watched(&inner, &bus);
        store.fail = Some(nth);
        let store = Arc::new(store);
        let metrics = metrics();
        run(config(3), store.clone(), &subscription(&bus), &metrics, drained(&bus)).await.unwrap();
        assert_eq!(ids(&sound(&inner).await), expected(1..=EVENTS as u64), "call {nth}");
        if store.calls.load(Ordering::SeqCst) < nth {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_nothing_is_acked_and_taking_stops_and_it_resumes_by_itself() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let store = Arc::new(watched(&inner, &bus));
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        until(|| metrics.health() == Health::Ok).await;
        store.down.store(true, Ordering::SeqCst);
        publish(&bus, 1..=50);
        tokio::time::sleep(300 * SECOND).await;
        assert_eq!(bus.unacked(QUEUE), Some(10), "one segment filled and none acked");
        assert_eq!(bus.depth(QUEUE), Some(40));
        assert_ne!(metrics.health(), Health::Ok);
        store.down.store(false, Ordering::SeqCst);
        drained(&bus).await;
        assert_eq!(metrics.health(), Health::Ok);
    };
    run(config(10), store.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!(ids(&sound(&inner).await), expected(1..=50));
}

#[tokio::test(start_paused = true)]
async fn in_a_long_outage_the_queue_has_its_messages_back_and_nothing_is_archived_twice() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let store = Arc::new(watched(&inner, &bus));
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        publish(&bus, 1..=4);
        drained(&bus).await;
        store.down.store(true, Ordering::SeqCst);
        publish(&bus, 5..=6);
        tokio::time::sleep(14 * 60 * SECOND).await;
        assert_eq!(bus.unacked(QUEUE), Some(2));
        tokio::time::sleep(2 * 60 * SECOND).await;
        assert_eq!((bus.unacked(QUEUE), bus.depth(QUEUE)), (Some(0), Some(2)));
        tokio::time::sleep(3_600 * SECOND).await;
        assert_eq!((bus.unacked(QUEUE), bus.depth(QUEUE)), (Some(0), Some(2)));
        store.down.store(false, Ordering::SeqCst);
        drained(&bus).await;
    };
    run(config(10), store.clone(), &subscription, &metrics, story).await.unwrap();
    assert_eq!(ids(&sound(&inner).await), expected(1..=6));
}

#[tokio::test(start_paused = true)]
async fn stopped_while_the_store_is_down_it_says_that_nothing_is_lost() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let store = Arc::new(watched(&inner, &bus));
    let (subscription, metrics) = (subscription(&bus), metrics());
    let story = async {
        until(|| metrics.health() == Health::Ok).await;
        store.down.store(true, Ordering::SeqCst);
        publish(&bus, 1..=2);
        until(|| bus.unacked(QUEUE) == Some(2)).await;
    };
    let error = run(config(10), store.clone(), &subscription, &metrics, story).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "stopped with 2 deliveries not archived (memory: did not take or give `heads/shop.json`: \
         the script says so); nothing is lost, the queue delivers them again to the next archiver"
    );
    assert_eq!((bus.unacked(QUEUE), bus.depth(QUEUE)), (Some(0), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_at_the_start_is_an_error() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    store.down.store(true, Ordering::SeqCst);
    let bus = bus();
    let ended =
        run(config(10), store, &subscription(&bus), &metrics(), std::future::pending()).await;
    assert!(matches!(ended, Err(ArchiverError::Archive(ArchiveError::Store(_)))));
}

#[tokio::test(start_paused = true)]
async fn overtaken_by_another_archiver_it_acks_nothing_and_begins_again_at_the_new_end() {
    for later in [Duration::ZERO, 3_600 * SECOND] {
        for overtaken_at in ["segments/", "chain/"] {
            let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
            publish(&bus, 1..=4);
            let mut store = FaultyStore::new(Arc::clone(&inner));
            let (seen, bus_seen, times) = (Arc::clone(&inner), bus.clone(), AtomicUsize::new(0));
            store.hook = Some(Box::new(move |operation, key| {
                let strikes = operation == "put_new"
                    && key.starts_with(overtaken_at)
                    && times.fetch_add(1, Ordering::SeqCst) < 2;
                let (seen, bus) = (Arc::clone(&seen), bus_seen.clone());
                Box::pin(async move {
                    if strikes {
                        rival_appends(&seen, later).await;
                        assert_eq!(bus.unacked(QUEUE), Some(4));
                    }
                })
            }));
            let (subscription, metrics) = (subscription(&bus), metrics());
            let ran = run(config(4), Arc::new(store), &subscription, &metrics, drained(&bus));
            ran.await.unwrap();
            let events = sound(&inner).await;
            let rivals = ids(&events).iter().filter(|id| **id == "rival").count();
            assert!(rivals > 0, "the rival was there");
            let ours: Vec<&str> = ids(&events).into_iter().filter(|id| *id != "rival").collect();
            assert_eq!(ours, expected(1..=4), "{overtaken_at} {later:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hot_standby_takes_over_where_the_first_was_killed() {
    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    let active = Arc::new(watched(&inner, &bus));
    let standby = Arc::new(watched(&inner, &bus));
    let (first, second) = (subscription(&bus), subscription(&bus));
    let (first_metrics, second_metrics) = (metrics(), metrics());
    let killed = AtomicUsize::new(0);
    let one = async {
        let never = std::future::pending();
        tokio::select! {
            ended = run(config(3), active, &first, &first_metrics, never) => panic!("{ended:?}"),
            () = until(|| bus.depth(QUEUE) == Some(0) && bus.unacked(QUEUE) == Some(2)) => {}
        }
        killed.store(1, Ordering::SeqCst);
    };
    let two = async {
        until(|| first_metrics.health() == Health::Ok).await;
        run(config(3), standby, &second, &second_metrics, async {
            until(|| second_metrics.health() == Health::Ok).await;
            publish(&bus, 1..=8);
            until(|| killed.load(Ordering::SeqCst) == 1).await;
            publish(&bus, 9..=9);
            drained(&bus).await;
        })
        .await
        .unwrap()
    };
    let ((), totals) = tokio::join!(one, two);
    assert_eq!(totals.events, 3);
    assert_eq!(ids(&sound(&inner).await), expected(1..=9));
}

/// A source that is lost after some deliveries, or when it is cut.
struct LossySource {
    source: Box<dyn Source>,
    left: u64,
    cut: Arc<Notify>,
}

fn lost() -> BusError {
    BusError::Disconnected { peer: "here".to_owned(), reason: "test".to_owned() }
}

#[async_trait]
impl Source for LossySource {
    async fn next(&mut self) -> Result<Option<Delivery>, BusError> {
        if self.left == 0 {
            return Err(lost());
        }
        let next = tokio::select! {
            () = self.cut.notified() => return Err(lost()),
            next = self.source.next() => next,
        };
        self.left -= 1;
        next
    }
    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
        self.source.ack(tag).await
    }
    fn prefetch(&self) -> Option<NonZeroU16> {
        self.source.prefetch()
    }
    async fn depth(&mut self) -> Result<u64, BusError> {
        self.source.depth().await
    }
    fn ask_depth(&mut self) -> AskedDepth {
        self.source.ask_depth()
    }
    async fn close(&mut self) -> Result<(), BusError> {
        self.source.close().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_loses_nothing() {
    /// A bus whose sources are lost after some deliveries.
    struct Lossy(MemoryBus, AtomicUsize);

    #[async_trait]
    impl Subscribe for Lossy {
        async fn open(&self) -> Result<Box<dyn Source>, BusError> {
            // The first opening and one in the middle are refused.
            match self.1.fetch_add(1, Ordering::SeqCst) {
                0 | 3 => Err(lost()),
                _ => Ok(Box::new(LossySource {
                    source: subscription(&self.0).open().await?,
                    left: 5,
                    cut: Arc::default(),
                })),
            }
        }
    }

    let (inner, bus) = (Arc::new(MemoryStore::new()), bus());
    publish(&bus, 1..=12);
    let store = Arc::new(watched(&inner, &bus));
    let lossy = Lossy(bus.bus.clone(), AtomicUsize::new(0));
    run(config(2), store, &lossy, &metrics(), drained(&bus)).await.unwrap();
    let events = sound(&inner).await;
    for id in expected(1..=12) {
        assert!(ids(&events).contains(&id.as_str()), "{id}");
    }
    assert!(lossy.1.load(Ordering::SeqCst) > 4, "it was opened again and again");
}

/// Checks that an archiver whose put failed, and which then lost its connection, knows again that
/// the store answers, though it never has anything more to put; `refused` is how often the bus
/// refuses it before it stands by.
async fn check_the_trouble_with_the_store_ends(refused: usize) {
    /// A bus whose first source can be cut, and whose next one stands by.
    struct Cut {
        bus: MemoryBus,
        cut: Arc<Notify>,
        refused: usize,
        opened: AtomicUsize,
    }

    #[async_trait]
    impl Subscribe for Cut {
        async fn open(&self) -> Result<Box<dyn Source>, BusError> {
            match self.opened.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    let source = subscription(&self.bus).open().await?;
                    Ok(Box::new(LossySource { source, left: u64::MAX, cut: Arc::clone(&self.cut) }))
                }
                nth if nth <= self.refused => Err(lost()),
                // Another archiver has the queue: nothing is delivered, and nothing waits.
                _ => {
                    self.bus.declare_queue("idle", QueueOptions::default());
                    let prefetch = NonZeroUsize::new(1_000).unwrap();
                    let options = QueueOptions::default();
                    self.bus.subscription("idle", options, Vec::new(), prefetch).open().await
                }
            }
        }
    }

    let (inner, bus, cut) = (Arc::new(MemoryStore::new()), bus(), Arc::new(Notify::new()));
    let store = Arc::new(FaultyStore::new(Arc::clone(&inner)));
    let lossy =
        Cut { bus: bus.bus.clone(), cut: Arc::clone(&cut), refused, opened: AtomicUsize::new(0) };
    let metrics = metrics();
    let story = async {
        until(|| metrics.health() == Health::Ok).await;
        store.down.store(true, Ordering::SeqCst);
        publish(&bus, 1..=1);
        until(|| metrics.store_trouble().is_some()).await;
        cut.notify_one();
        until(|| lossy.opened.load(Ordering::SeqCst) > 1).await;
        tokio::time::sleep(60 * SECOND).await;
        assert!(metrics.store_trouble().is_some(), "it does not answer yet");
        store.down.store(false, Ordering::SeqCst);
        tokio::time::sleep(60 * SECOND).await;
        assert_eq!(metrics.store_trouble(), None, "it answers, refused {refused} times");
    };
    run(config(10), store.clone(), &lossy, &metrics, story).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn trouble_with_the_store_does_not_outlive_it_on_a_standby() {
    check_the_trouble_with_the_store_ends(0).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_with_the_store_does_not_outlive_it_without_a_connection() {
    check_the_trouble_with_the_store_ends(usize::MAX).await;
}
