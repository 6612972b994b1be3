//! Whole runs against the bus in memory, with every kind of fault, on tokio's paused clock.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dacapo_bus::Source as _;
use dacapo_bus::file::{Existing, FileTarget};
use dacapo_bus::memory::faulty::{Fault, Faulty, Noticed};
use dacapo_bus::memory::{MemoryBus, QueueOptions};
use dacapo_event::{Message, ShortStr, Timestamp};

use super::*;
use crate::retry::LOSSES_MAX;

mod faults;
mod log;
mod operator;
mod rejects;

use log::{Entry, Log, Recorder};

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
struct Broken(&'static str);

type How = crate::How<Broken, Broken>;
type Ended = crate::Ended<Broken, Broken>;

fn message(number: u64) -> Message {
    Message {
        routing_key: ShortStr::from_static("orders.placed"),
        body: Bytes::from(number.to_string()),
        ..Message::default()
    }
}

fn outgoing(number: u64) -> Outgoing<u64> {
    Outgoing {
        position: number,
        id: format!("e-{number}"),
        time: Timestamp::from_secs(number),
        message: message(number),
    }
}

type Batches = Vec<Result<Vec<Outgoing<u64>>, Broken>>;

fn batches(numbers: std::ops::RangeInclusive<u64>, size: usize) -> Batches {
    let all: Vec<_> = numbers.map(outgoing).collect();
    all.chunks(size).map(|batch| Ok(batch.to_vec())).collect()
}

fn window(messages: usize) -> WindowLimits {
    WindowLimits { messages: NonZeroUsize::new(messages).unwrap(), ..WindowLimits::default() }
}

/// A queue on a bus in memory, and everything that happens around a run.
struct Fixture {
    bus: MemoryBus,
    log: Log,
    control: watch::Sender<Control>,
    progress: watch::Sender<Progress>,
}

/// Writes checkpoints into the log; tells the run to stop, or fails, where the test says so.
struct Journaled<'a> {
    log: Log,
    control: &'a watch::Sender<Control>,
    stop_at: Option<u64>,
    fail_at: Option<u64>,
    /// How many more calls are carried out before one fails, as a process that is killed does.
    calls_left: Option<u64>,
}

impl Journal<u64> for Journaled<'_> {
    type Error = Broken;

    fn settled(&mut self, last: &u64, totals: &Totals) -> Result<(), Broken> {
        assert!(totals.confirmed + totals.rejected > 0);
        self.call()?;
        if self.fail_at.is_some_and(|at| *last >= at) {
            return Err(Broken("disk full"));
        }
        self.log.add(Entry::Written(*last));
        if self.stop_at.is_some_and(|at| *last >= at) {
            self.control.send_replace(Control::Stop);
        }
        Ok(())
    }

    fn rejected(&mut self, reject: &Reject<'_, u64>) -> Result<(), Broken> {
        self.call()?;
        self.log.add(Entry::Rejected(*reject.position, reject.kind));
        Ok(())
    }
}

impl Journaled<'_> {
    fn call(&mut self) -> Result<(), Broken> {
        match &mut self.calls_left {
            Some(0) => Err(Broken("killed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Fixture {
    fn new() -> Self {
        Self::with(QueueOptions::default())
    }

    fn with(options: QueueOptions) -> Self {
        let bus = MemoryBus::new();
        bus.declare_queue("q", options);
        let (control, progress) = (watch::Sender::default(), watch::Sender::default());
        Fixture { bus, log: Log::default(), control, progress }
    }

    /// Returns the queue as a target that records, and fails as scripted.
    fn target(&self, faults: Vec<Fault>, delay: Duration) -> impl Connect + use<> {
        let queue = Recorder::arrivals(self.bus.to_queue("q", "replay"), self.log.clone());
        Recorder::attempts(Faulty::new(queue, faults, delay), self.log.clone())
    }

    fn journal(&self) -> Journaled<'_> {
        Journaled {
            log: self.log.clone(),
            control: &self.control,
            stop_at: None,
            fail_at: None,
            calls_left: None,
        }
    }

    async fn run(&self, target: &dyn Connect, input: Batches, config: &Config) -> Ended {
        self.run_with(target, input, config, &mut self.journal()).await
    }

    async fn run_with(
        &self,
        target: &dyn Connect,
        input: Batches,
        config: &Config,
        journal: &mut Journaled<'_>,
    ) -> Ended {
        let control = self.control.subscribe();
        republish(target, tokio_stream::iter(input), config, journal, control, &self.progress).await
    }

    async fn take_all(&self) -> Vec<u64> {
        let mut source = self.bus.consume("q", NonZeroUsize::MAX).unwrap();
        let mut bodies = Vec::new();
        while self.bus.depth("q") != Some(0) {
            let delivery = source.next().await.unwrap().unwrap();
            source.ack(delivery.tag).await.unwrap();
            bodies.push(log::number(&delivery.message));
        }
        bodies
    }

    /// Waits, without letting go of the run, until it says that it does this.
    async fn until_phase(&self, wanted: impl Fn(&Phase) -> bool) {
        let mut progress = self.progress.subscribe();
        progress.wait_for(|progress| wanted(&progress.phase)).await.unwrap();
    }
}

const DELAY: Duration = Duration::from_millis(2);

#[tokio::test(start_paused = true)]
async fn everything_arrives_once_and_in_order_when_nothing_fails() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), DELAY);
    let config = Config { window: window(100), ..Config::default() };
    let ended = fixture.run(&target, batches(1..=1_000, 37), &config).await;
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    let bytes = (1..=1_000_u64).map(|number| number.to_string().len() as u64).sum();
    let expected = Totals { published: 1_000, confirmed: 1_000, bytes, ..Totals::default() };
    assert_eq!(ended.totals, expected);
    assert_eq!(fixture.progress.borrow().totals, expected);
    assert_eq!(fixture.take_all().await, (1..=1_000).collect::<Vec<_>>());
    fixture.log.check(config.window);
}

#[tokio::test(start_paused = true)]
async fn an_empty_input_is_complete_at_once() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), DELAY);
    for input in [Vec::new(), vec![Ok(Vec::new())]] {
        let ended = fixture.run(&target, input, &Config::default()).await;
        assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
        assert_eq!(ended.totals, Totals::default());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unroutable_event_ends_the_run_and_is_named() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), DELAY);
    let config = Config { window: window(10), ..Config::default() };
    let run = fixture.run(&target, batches(1..=100, 10), &config);
    let delete = async {
        let mut progress = fixture.progress.subscribe();
        progress.wait_for(|progress| progress.totals.confirmed >= 20).await.unwrap();
        fixture.bus.delete_queue("q");
    };
    let (ended, ()) = tokio::join!(run, delete);
    let last = fixture.log.last_written();
    assert!((20..100).contains(&last), "{last}");
    match ended.how {
        How::Rejected { id, kind, reason } => {
            assert_eq!((id, reason), (format!("e-{}", last + 1), "312 NO_ROUTE".to_owned()));
            assert_eq!(kind, RejectKind::Unroutable);
        }
        how => panic!("{how:?}"),
    }
    let totals = ended.totals;
    assert_eq!((totals.confirmed, totals.rejected), (last, 0), "it is not passed over");
    assert_eq!(fixture.log.rejects(), [(last + 1, RejectKind::Unroutable)]);
    assert_eq!(totals.published, totals.confirmed + totals.refused + totals.possible_repeats);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_stays_full_rejects_the_first_event_it_would_not_take() {
    let fixture = Fixture::with(QueueOptions { length_max: 5, ..QueueOptions::default() });
    let target = fixture.target(Vec::new(), DELAY);
    let ended = fixture.run(&target, batches(1..=20, 20), &Config::default()).await;
    match ended.how {
        How::Rejected { id, kind, reason } => {
            assert_eq!((id.as_str(), reason.as_str()), ("e-6", "nacked 40 times"));
            assert_eq!(kind, RejectKind::Nacked);
        }
        how => panic!("{how:?}"),
    }
    let totals = ended.totals;
    assert_eq!((totals.confirmed, totals.rejected, totals.possible_repeats), (5, 0, 0));
    assert_eq!(fixture.log.rejects(), [(6, RejectKind::Nacked)]);
    // The whole window once, and then one at a time.
    assert_eq!((totals.published, totals.retries), (20 + 39, 39));
    assert_eq!(fixture.take_all().await, [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn an_event_is_tried_again_as_often_as_was_asked_for() {
    for (retries, told) in [(0, "nacked once"), (1, "nacked 2 times"), (5, "nacked 6 times")] {
        let fixture = Fixture::with(QueueOptions { length_max: 5, ..QueueOptions::default() });
        let target = fixture.target(Vec::new(), DELAY);
        let nack_retries = NackRetries::new(retries).unwrap();
        let config = Config { nack_retries, ..Config::default() };
        let ended = fixture.run(&target, batches(1..=6, 6), &config).await;
        match ended.how {
            How::Rejected { id, reason, .. } => {
                assert_eq!((id.as_str(), reason.as_str()), ("e-6", told));
            }
            how => panic!("{how:?}"),
        }
        assert_eq!(ended.totals.retries, u64::from(retries));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_that_drains_gets_everything_in_order() {
    let fixture = Fixture::with(QueueOptions { length_max: 5, ..QueueOptions::default() });
    let target = fixture.target(Vec::new(), DELAY);
    let config = Config { window: window(50), ..Config::default() };
    let run = fixture.run(&target, batches(1..=200, 20), &config);
    let consume = async {
        let mut source = fixture.bus.consume("q", NonZeroUsize::MIN).unwrap();
        loop {
            let delivery = source.next().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
            source.ack(delivery.tag).await.unwrap();
        }
    };
    let ended = tokio::select! { ended = run => ended, () = consume => unreachable!() };
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    fixture.log.check_complete(config.window, 200, &ended.totals);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_sent_is_found_and_all_before_it_is_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events");
    let target = FileTarget::new(&path, Existing::Refuse);
    let fixture = Fixture::new();
    let mut input = batches(1..=50, 50);
    input[0].as_mut().unwrap()[29].message.body = Bytes::from_static(b"two\nlines");
    let ended = fixture.run(&target, input, &Config::default()).await;
    match &ended.how {
        How::Rejected { id, kind, reason } => {
            assert_eq!((id.as_str(), *kind), ("e-30", RejectKind::Unsendable));
            assert!(reason.starts_with("its body has a line break"), "{reason}");
        }
        how => panic!("{how:?}"),
    }
    let totals = ended.totals;
    assert_eq!((totals.confirmed, totals.rejected), (29, 0));
    assert_eq!(fixture.log.rejects(), [(30, RejectKind::Unsendable)]);
    assert_eq!(totals.published, totals.confirmed + totals.refused + totals.possible_repeats);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 29);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_target_fails_at_once() {
    let fixture = Fixture::new();
    let target = fixture.bus.to_queue("gone", "replay");
    let ended = fixture.run(&target, batches(1..=1, 1), &Config::default()).await;
    assert!(matches!(ended.how, How::Failed(RepublishError::Bus(BusError::NotFound { .. }))));
    let down = fixture.target(vec![Fault::RefuseOpen { nth: 1 }], DELAY);
    let ended = fixture.run(&down, batches(1..=1, 1), &Config::default()).await;
    assert!(matches!(ended.how, How::Failed(RepublishError::Bus(BusError::Disconnected { .. }))));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_stays_away_is_given_up() {
    let fixture = Fixture::new();
    let mut faults = vec![Fault::Lose { after: 5, noticed: Noticed::Later }];
    faults.extend((2..=100).map(|nth| Fault::RefuseOpen { nth }));
    let target = fixture.target(faults, DELAY);
    let ended = fixture.run(&target, batches(1..=10, 10), &Config::default()).await;
    match ended.how {
        How::Failed(RepublishError::GaveUp { attempts, .. }) => assert_eq!(attempts, LOSSES_MAX),
        how => panic!("{how:?}"),
    }
    assert_eq!(ended.totals.possible_repeats, 10);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_goes_silent_counts_as_lost_unless_it_is_blocked() {
    let fixture = Fixture::new();
    let started = Instant::now();
    let silent = fixture.target(Vec::new(), Duration::from_secs(3_600 * 24 * 365));
    let ended = fixture.run(&silent, batches(1..=1, 1), &Config::default()).await;
    match ended.how {
        How::Failed(RepublishError::GaveUp { source, .. }) => {
            assert_eq!(
                source.to_string(),
                "the connection to the target was lost: it confirmed nothing for 120 s"
            );
        }
        how => panic!("{how:?}"),
    }
    assert!(started.elapsed() > CONFIRM_DEADLINE * (LOSSES_MAX - 1));

    let fixture = Fixture::new();
    let blocked = vec![Fault::Block { after: 1, asked: 10_000 }];
    let slow = fixture.target(blocked, CONFIRM_DEADLINE * 9 / 2);
    let ended = fixture.run(&slow, batches(1..=1, 1), &Config::default()).await;
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    assert_eq!((ended.totals.published, ended.totals.retries), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_blocked_target_is_waited_for_at_no_cost() {
    let fixture = Fixture::new();
    let target = fixture.target(vec![Fault::Block { after: 0, asked: 1_000 }], DELAY);
    let started = Instant::now();
    let config = Config::default();
    let run = fixture.run(&target, batches(1..=50, 10), &config);
    let watch = fixture.until_phase(|phase| *phase == Phase::Blocked);
    let (ended, ()) = tokio::join!(run, watch);
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    assert_eq!(ended.totals.retries, 0);
    assert!(started.elapsed() >= Duration::from_secs(99), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_queue_never_gets_deeper_than_asked() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), DELAY);
    let pace = Pace { queue_depth_max: NonZeroU64::new(30), ..Pace::default() };
    let config = Config { pace, ..Config::default() };
    let run = fixture.run(&target, batches(1..=500, 100), &config);
    let consume = async {
        let mut source = fixture.bus.consume("q", NonZeroUsize::MIN).unwrap();
        loop {
            let delivery = source.next().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_millis(7)).await;
            assert!(fixture.bus.depth("q").unwrap() <= 30);
            source.ack(delivery.tag).await.unwrap();
        }
    };
    let watch = fixture.until_phase(|phase| matches!(phase, Phase::TooDeep { .. }));
    let run = async { tokio::join!(run, watch).0 };
    let ended = tokio::select! { ended = run => ended, () = consume => unreachable!() };
    assert!(matches!(ended.how, How::Completed), "{:?}", ended.how);
    assert_eq!((ended.totals.published, ended.totals.retries), (500, 0));
}

#[tokio::test(start_paused = true)]
async fn a_depth_limit_needs_a_target_with_a_depth() {
    let fixture = Fixture::new();
    let target = fixture.bus.to_original();
    let pace = Pace { queue_depth_max: NonZeroU64::new(30), ..Pace::default() };
    let config = Config { pace, ..Config::default() };
    let ended = fixture.run(&target, batches(1..=5, 5), &config).await;
    assert!(matches!(ended.how, How::Failed(RepublishError::DepthUnknown)), "{:?}", ended.how);
}

#[tokio::test(start_paused = true)]
async fn an_input_that_fails_leaves_what_came_before_confirmed() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), DELAY);
    let mut input = batches(1..=20, 10);
    input.push(Err(Broken("segment damaged")));
    let ended = fixture.run(&target, input, &Config::default()).await;
    match ended.how {
        How::Failed(RepublishError::Input(error)) => assert_eq!(error, Broken("segment damaged")),
        how => panic!("{how:?}"),
    }
    assert_eq!(fixture.log.last_written(), ended.totals.confirmed);
    assert_eq!(ended.totals.confirmed, ended.totals.published);
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_cannot_be_written_stops_publishing() {
    let fixture = Fixture::new();
    let target = fixture.target(Vec::new(), DELAY);
    let config = Config { window: window(10), ..Config::default() };
    let mut journal = Journaled { fail_at: Some(35), ..fixture.journal() };
    let ended = fixture.run_with(&target, batches(1..=100, 10), &config, &mut journal).await;
    match ended.how {
        How::Failed(RepublishError::Journal(error)) => assert_eq!(error, Broken("disk full")),
        how => panic!("{how:?}"),
    }
    let written = fixture.log.last_written();
    assert!(ended.totals.published <= written + 10, "{written} {:?}", ended.totals);
}

#[test]
fn a_run_can_be_spawned() {
    fn is_send<T: Send>(_: &T) {}
    let fixture = Fixture::new();
    let target = fixture.bus.to_original();
    let (config, mut journal) = (Config::default(), fixture.journal());
    let input = tokio_stream::iter(batches(1..=1, 1));
    let control = fixture.control.subscribe();
    is_send(&republish(&target, input, &config, &mut journal, control, &fixture.progress));
}
