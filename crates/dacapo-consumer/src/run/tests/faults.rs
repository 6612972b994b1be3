//! The loop where the bus fails, and where it is ended at any moment.

use dacapo_bus::{AskedDepth, DeliveryTag, Source};

use super::*;

/// RabbitMQ's `consumer_timeout`: a delivery that is not acked by then costs the connection.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Watches over how long deliveries are held.
struct Watchful(Box<dyn Subscribe>);

struct WatchfulSource {
    inner: Box<dyn Source>,
    opened: Instant,
}

impl WatchfulSource {
    fn check(&self) {
        assert!(self.opened.elapsed() < CONSUMER_TIMEOUT, "held for {:?}", self.opened.elapsed());
    }
}

#[async_trait]
impl Subscribe for Watchful {
    async fn open(&self) -> Result<Box<dyn Source>, BusError> {
        Ok(Box::new(WatchfulSource { inner: self.0.open().await?, opened: Instant::now() }))
    }
}

/// Everything is delivered as the source is opened, so every ack and the end must come in time.
#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
impl Source for WatchfulSource {
    async fn next(&mut self) -> Result<Option<dacapo_bus::Delivery>, BusError> {
        self.inner.next().await
    }

    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
        self.check();
        self.inner.ack(tag).await
    }

    fn prefetch(&self) -> Option<std::num::NonZeroU16> {
        self.inner.prefetch()
    }

    async fn depth(&mut self) -> Result<u64, BusError> {
        self.inner.depth().await
    }

    fn ask_depth(&mut self) -> AskedDepth {
        self.inner.ask_depth()
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.check();
        self.inner.close().await
    }
}

impl Setting {
    fn watched(mut self) -> Self {
        let prefetch = NonZeroUsize::new(10).unwrap();
        let inner = self.bus.subscription(QUEUE, QueueOptions::default(), vec![], prefetch);
        self.consumer.source = Box::new(Watchful(Box::new(inner)));
        self
    }
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_of_hours_deliveries_go_back_before_the_broker_wants_them_back() {
    let setting = Setting::new().watched();
    setting.publish(&[("e-1", 1), ("e-2", 2)]);
    let outage = Duration::from_secs(3 * 60 * 60);
    let ledger = Ledger::failing((0..1_200).map(|_| Failure::unavailable("down")).collect());
    let start = Instant::now();
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert!(start.elapsed() > outage, "{:?}", start.elapsed());
    assert_eq!(ledger.ids(), ["e-1", "e-2"], "in order");
    assert_eq!(setting.bus.depth(DEAD), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_not_taken_for_hours_does_not_hold_the_delivery() {
    let bus = MemoryBus::new();
    for queue in [QUEUE, DEAD] {
        bus.declare_queue(queue, QueueOptions::default());
    }
    let faults = (1..=1_100).map(|nth| Fault::Nack { nth }).collect();
    let letters =
        Faulty::new(bus.to_queue_by_default_exchange(DEAD), faults, Duration::from_millis(1));
    let setting = Setting::with_letters(bus, Box::new(letters)).watched();
    setting.publish(&[("e-1", 1), ("e-2", 2)]);
    setting.drain(&mut Poisoned).await.unwrap();
    let ids = setting.dead_letters().await.into_iter().map(|(id, _, _)| id);
    assert_eq!(ids.collect::<Vec<_>>(), ["e-1", "e-2"]);
}

/// Takes two minutes for everything.
struct Thorough;

#[async_trait]
impl Handler for Thorough {
    async fn handle(&mut self, _: &Delivery) -> Result<Handled, Failure> {
        tokio::time::sleep(Duration::from_secs(120)).await;
        Ok(Handled::Done)
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_slow_events_goes_back_before_the_broker_wants_it_back() {
    let setting = Setting::new().watched();
    for n in 0..30 {
        setting.publish(&[(&format!("e-{n}"), n)]);
    }
    setting.drain(&mut Thorough).await.unwrap();
    setting.check_metrics(&["events_total{outcome=\"handled\",origin=\"live\"} 30"]);
}

/// Takes everything for poison.
struct Poisoned;

#[async_trait]
impl Handler for Poisoned {
    async fn handle(&mut self, _: &Delivery) -> Result<Handled, Failure> {
        Err(Failure::poison("no JSON"))
    }
}

/// Loses the connection at every ack whose number it is told.
struct Flaky {
    inner: Box<dyn Subscribe>,
    acks: Arc<Mutex<(u64, Vec<u64>)>>,
}

struct FlakySource {
    inner: Box<dyn Source>,
    acks: Arc<Mutex<(u64, Vec<u64>)>>,
}

#[async_trait]
impl Subscribe for Flaky {
    async fn open(&self) -> Result<Box<dyn Source>, BusError> {
        let inner = self.inner.open().await?;
        Ok(Box::new(FlakySource { inner, acks: self.acks.clone() }))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "a wrapper passes on everything")]
impl Source for FlakySource {
    async fn next(&mut self) -> Result<Option<dacapo_bus::Delivery>, BusError> {
        self.inner.next().await
    }

    async fn ack(&mut self, tag: DeliveryTag) -> Result<(), BusError> {
        let lost = {
            let mut acks = self.acks.lock().unwrap();
            acks.0 += 1;
            let count = acks.0;
            acks.1.contains(&count)
        };
        if lost {
            let (peer, reason) = ("a flaky bus".to_owned(), "the script says so".to_owned());
            return Err(BusError::Disconnected { peer, reason });
        }
        self.inner.ack(tag).await
    }

    fn prefetch(&self) -> Option<std::num::NonZeroU16> {
        self.inner.prefetch()
    }

    async fn depth(&mut self) -> Result<u64, BusError> {
        self.inner.depth().await
    }

    fn ask_depth(&mut self) -> AskedDepth {
        self.inner.ask_depth()
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.inner.close().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_opened_anew_and_what_was_not_acked_is_a_repeat() {
    let mut setting = Setting::new();
    let prefetch = NonZeroUsize::new(10).unwrap();
    let inner = setting.bus.subscription(QUEUE, QueueOptions::default(), vec![], prefetch);
    let acks = Arc::new(Mutex::new((0, vec![1, 3])));
    setting.consumer.source = Box::new(Flaky { inner: Box::new(inner), acks });
    setting.publish(&[("e-1", 1), ("e-2", 2)]);
    let ledger = Ledger::default();
    setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap();
    assert_eq!(ledger.ids(), ["e-1", "e-2"]);
    // What was handled is counted with its ack, and by then it is a repeat.
    setting.check_metrics(&[
        "events_total{outcome=\"repeat\",origin=\"live\"} 2",
        "reconnections_total 2",
    ]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_not_taken_is_tried_until_it_is_and_only_then_acked() {
    let bus = MemoryBus::new();
    for queue in [QUEUE, DEAD] {
        bus.declare_queue(queue, QueueOptions::default());
    }
    let faults = vec![Fault::RefuseOpen { nth: 1 }, Fault::Nack { nth: 1 }, Fault::Nack { nth: 2 }];
    let letters =
        Faulty::new(bus.to_queue_by_default_exchange(DEAD), faults, Duration::from_secs(1));
    let setting = Setting::with_letters(bus, Box::new(letters));
    setting.publish(&[("e-1", 1)]);
    let ledger = Ledger::failing(vec![Failure::poison("no JSON")]);
    let watching = async {
        // As long as no letter is there, the event is.
        while setting.bus.depth(DEAD) == Some(0) {
            let held = (setting.bus.depth(QUEUE), setting.bus.unacked(QUEUE));
            assert!(held == (Some(1), Some(0)) || held == (Some(0), Some(1)), "{held:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut handler = ledger.remembering(Order::Accept);
    let (drained, ()) = tokio::join!(setting.drain(&mut handler), watching);
    drained.unwrap();
    assert_eq!(setting.dead_letters().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_of_dead_letters_nothing_is_consumed() {
    let setting = Setting::new();
    setting.bus.delete_queue(DEAD);
    setting.publish(&[("e-1", 1)]);
    let ledger = Ledger::default();
    let error = setting.drain(&mut ledger.remembering(Order::Accept)).await.unwrap_err();
    assert!(
        matches!(
            &error,
            ConsumerError::DeadLettersRefused { source: BusError::NotFound { .. }, .. }
        ),
        "{error}"
    );
    assert_eq!(ledger.ids(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn poison_is_not_acked_where_its_dead_letter_is_returned() {
    let setting = Setting::new();
    setting.publish(&[("e-1", 1)]);
    let bus = setting.bus.clone();
    let ledger = Ledger::failing(vec![Failure::poison("no JSON"), Failure::retry("locked")]);
    let deleting = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bus.delete_queue(DEAD);
    };
    let mut handler = ledger.remembering(Order::Accept);
    let (drained, ()) = tokio::join!(setting.drain(&mut handler), deleting);
    let error = drained.unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to bury event `e-1`: the dead letter was returned (312 NO_ROUTE); declare the queue \
         of dead letters and start again"
    );
    assert_eq!(setting.bus.depth(QUEUE), Some(1), "it is still there");
}

/// A service whose effect and mark are one transaction, with waits before and after it.
struct Transactional(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Handler for Transactional {
    async fn handle(&mut self, delivery: &Delivery) -> Result<Handled, Failure> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let handled = {
            let mut applied = self.0.lock().unwrap();
            if applied.contains(&delivery.id) {
                Handled::Repeat
            } else {
                applied.push(delivery.id.clone());
                Handled::Done
            }
        };
        tokio::time::sleep(Duration::from_millis(1)).await;
        if delivery.id == "poison" { Err(Failure::poison("it always fails")) } else { Ok(handled) }
    }
}

#[tokio::test(start_paused = true)]
async fn ended_at_any_moment_every_event_is_applied_once_and_none_acked_before() {
    let ids = ["e-1", "e-2", "poison", "e-3"];
    for moment in 0..20 {
        let setting = Setting::new();
        let applied = Arc::default();
        for id in ids.into_iter().chain(ids) {
            setting.publish(&[(id, 1)]);
        }
        let killed = {
            let mut handler = Transactional(Arc::clone(&applied));
            let running = setting.consumer.run(&mut handler, std::future::pending());
            tokio::time::timeout(Duration::from_millis(moment), running).await
        };
        assert!(killed.is_err(), "it was ended from outside");
        let left = setting.bus.depth(QUEUE).unwrap() + setting.bus.unacked(QUEUE).unwrap();
        let acked = ids.len() * 2 - usize::try_from(left).unwrap();
        let known = applied.lock().unwrap().len();
        assert!(acked.min(ids.len()) <= known, "{acked} were acked, and {known} applied");

        setting.drain(&mut Transactional(Arc::clone(&applied))).await.unwrap();
        assert_eq!(*applied.lock().unwrap(), ids, "ended after {moment} ms");
        assert!(setting.bus.depth(DEAD) >= Some(2), "each delivery of the poison is buried");
    }
}
