//! Pausing, stopping, and a target that says nothing.

use dacapo_bus::TargetState;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_paused_run_publishes_nothing_and_goes_on_when_told() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), DELAY);
    let pace = Pace { rate: NonZeroU32::new(100), ..Pace::default() };
    let config = Config { pace, ..Config::default() };
    let started = Instant::now();
    let run = fixture.run(&target, batches(1..=300, 10), &config);
    let operate = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        fixture.control.send_replace(Control::Pause);
        fixture.until_phase(|phase| *phase == Phase::Paused).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        let before = fixture.progress.borrow().totals;
        assert_eq!(before.confirmed, before.published, "confirms are taken while paused");
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        assert_eq!(fixture.progress.borrow().totals, before);
        fixture.control.send_replace(Control::Run);
    };
    let (ended, ()) = tokio::join!(run, operate);
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    let took = started.elapsed();
    assert!((1_002..=1_004).contains(&took.as_secs()), "the pace goes on as it was: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_paused_run_whose_operator_is_gone_goes_on() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), DELAY);
    let control = watch::Sender::new(Control::Pause);
    let receiver = control.subscribe();
    drop(control);
    let input = tokio_stream::iter(batches(1..=5, 5));
    let mut journal = fixture.journal();
    let config = Config::default();
    let ended = republish(&target, input, &config, &mut journal, receiver, &fixture.progress).await;
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_for_the_window_and_writes_its_checkpoint() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), Duration::from_secs(1));
    let config = Config { window: window(50), ..Config::default() };
    let run = fixture.run(&target, batches(1..=500, 50), &config);
    let operate = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        fixture.control.send_replace(Control::Stop);
    };
    let (ended, ()) = tokio::join!(run, operate);
    assert!(matches!(ended.how, How::Interrupted), "{:?}", ended.how);
    assert_eq!((ended.totals.published, ended.totals.confirmed), (50, 50));
    assert_eq!(fixture.log.last_written(), 50);
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_ever() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), Duration::from_secs(100));
    let config = Config { window: window(50), ..Config::default() };
    let started = Instant::now();
    let run = fixture.run(&target, batches(1..=500, 50), &config);
    let operate = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        fixture.control.send_replace(Control::Stop);
    };
    let (ended, ()) = tokio::join!(run, operate);
    assert!(matches!(ended.how, How::Interrupted), "{:?}", ended.how);
    assert_eq!(ended.totals.possible_repeats, 50, "a resumed replay publishes them again");
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_a_wait_for_a_target_that_is_away() {
    let fixture = Fixture::new();
    let mut faults = vec![Fault::Lose { after: 5, noticed: Noticed::Sending }];
    faults.extend((2..=100).map(|nth| Fault::RefuseOpen { nth }));
    let target = fixture.target(faults, DELAY);
    let started = Instant::now();
    let config = Config::default();
    let run = fixture.run(&target, batches(1..=10, 10), &config);
    let operate = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        fixture.control.send_replace(Control::Stop);
    };
    let (ended, ()) = tokio::join!(run, operate);
    assert!(matches!(ended.how, How::Interrupted), "{:?}", ended.how);
    assert_eq!(started.elapsed().as_secs(), 30);
}

/// A target whose `state` never answers, as behind a broker that stopped reading.
struct Deaf<C>(C);

struct DeafSink(Box<dyn Sink>);

#[async_trait::async_trait]
impl<C: Connect> Connect for Deaf<C> {
    async fn open(&self) -> Result<Box<dyn Sink>, BusError> {
        Ok(Box::new(DeafSink(self.0.open().await?)))
    }

    async fn dismantle(&self) -> Result<(), BusError> {
        self.0.dismantle().await
    }
}

#[async_trait::async_trait]
impl Sink for DeafSink {
    async fn send(&mut self, messages: &[Message]) -> Result<(), BusError> {
        self.0.send(messages).await
    }

    async fn outcomes(&mut self) -> Result<Vec<Outcome>, BusError> {
        self.0.outcomes().await
    }

    async fn state(&mut self) -> Result<TargetState, BusError> {
        std::future::pending().await
    }

    async fn close(&mut self) -> Result<(), BusError> {
        self.0.close().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_does_not_say_how_it_is_counts_as_blocked_and_can_be_left() {
    let fixture = Fixture::new();
    let target = Deaf(fixture.target(Vec::new(), DELAY));
    let config = Config::default();
    let run = fixture.run(&target, batches(1..=5, 5), &config);
    let operate = async {
        fixture.until_phase(|phase| *phase == Phase::Blocked).await;
        fixture.control.send_replace(Control::Stop);
    };
    let (ended, ()) = tokio::join!(run, operate);
    assert!(matches!(ended.how, How::Interrupted), "{:?}", ended.how);
    assert_eq!(ended.totals, Totals::default());
}

/// A blocked target confirms nothing: neither a full window nor the last of the events may wait for
/// that in silence.
#[tokio::test(start_paused = true)]
async fn a_target_that_blocks_with_everything_on_its_way_is_seen_at_once() {
    for events in [5, 10] {
        let fixture = Fixture::new();
        let slow = Duration::from_secs(30);
        let target = fixture.target(vec![Fault::Block { after: 5, asked: 100 }], slow);
        let config = Config { window: window(5), ..Config::default() };
        let run = fixture.run(&target, batches(1..=events, 10), &config);
        let blocked = fixture.until_phase(|phase| *phase == Phase::Blocked);
        let (ended, seen) = tokio::join!(run, timeout(Duration::from_secs(1), blocked));
        assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
        assert_eq!((ended.totals.published, ended.totals.retries), (events, 0));
        assert!(seen.is_ok(), "nobody was told that {events} events are held up");
    }
}
