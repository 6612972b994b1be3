//! Whole replays on the bus in memory: completed, stopped, killed, refused.

use std::num::{NonZeroU32, NonZeroUsize};
use std::pin::pin;

use dacapo_bus::file::{Existing, FileTarget};
use dacapo_bus::memory::faulty::{Fault, Faulty, Noticed};
use dacapo_bus::memory::{ExchangeKind, MemoryBus, QueueOptions, RoutingKey};
use dacapo_bus::{Connect, Source as _};
use dacapo_event::{Event, FieldValue, Message};
use dacapo_filter::SelectionSpec;
use tempfile::TempDir;

use super::*;
use crate::request::{Request, Target};
use crate::survey::Depth;
use crate::testing::{Archive, at, clock, event, everything, request};

mod interrupted;
mod refused;
mod rejected;

/// How long a confirm takes: long enough for a run to be interrupted in the middle.
const CONFIRM_DELAY: Duration = Duration::from_millis(5);

/// An archive, a bus with a queue `q`, and a state directory.
struct World {
    archive: Archive,
    bus: MemoryBus,
    state: State,
    dir: TempDir,
}

impl World {
    fn new(archive: Archive) -> Self {
        let bus = MemoryBus::new();
        bus.declare_queue("q", QueueOptions::default());
        let dir = tempfile::tempdir().unwrap();
        World { archive, bus, state: State::new(dir.path().join("state")), dir }
    }

    /// Two streams of 20 events each, in segments of 7.
    async fn small() -> Self {
        let events = |from: u64| (from..from + 20).map(|n| event(n, at(n))).collect();
        Self::new(Archive::of(vec![events(0), events(100)], 7).await)
    }

    async fn plan(&self, request: Request) -> Plan {
        let survey = self.archive.survey(request.selection.clone(), Depth::Exact).await.unwrap();
        crate::plan::plan(request, survey)
    }

    fn create(&self, plan: &Plan) -> Locked {
        self.state.create(ReplayId::new(clock(), &plan.hash(), 0), plan).unwrap()
    }

    fn replay<'a>(
        &'a self,
        locked: &'a Locked,
        plan: &'a Plan,
        target: &'a dyn Connect,
    ) -> Replay<'a> {
        let store = Arc::clone(&self.archive.store);
        Replay {
            state: &self.state,
            locked,
            plan,
            store,
            target,
            on_reject: None,
            nack_retries: None,
            clock,
            memory: MemoryBudget::DEFAULT,
            look: None,
        }
    }

    /// Runs to the end.
    async fn run(&self, locked: &Locked, plan: &Plan, target: &dyn Connect) -> Finished {
        let control = watch::Sender::default();
        let replay = self.replay(locked, plan, target);
        let finished = replay.run(control.subscribe(), &watch::Sender::default()).await.unwrap();
        self.check_written(&finished.receipt);
        finished
    }

    /// Checks that a receipt balances and is the one on disk.
    fn check_written(&self, receipt: &Receipt) {
        let balance = receipt.counts.confirmed + receipt.rejected + receipt.remaining();
        assert_eq!(receipt.selected, balance);
        assert_eq!(self.state.receipt(&receipt.id).unwrap(), Some(receipt.to_json()));
        let standing = Journal::read(&self.state.journal_path(&receipt.id)).unwrap();
        assert_eq!(
            (standing.phase, standing.counts.confirmed),
            (receipt.phase, receipt.counts.confirmed)
        );
    }

    fn queue(&self) -> impl Connect + use<> {
        self.bus.to_queue("q", "dacapo.replay")
    }

    fn slow_queue(&self) -> impl Connect + use<> {
        Faulty::new(self.queue(), Vec::new(), CONFIRM_DELAY)
    }

    /// Takes everything out of the queue.
    async fn arrived(&self) -> Vec<Message> {
        let mut source = self.bus.consume("q", NonZeroUsize::MAX).unwrap();
        let mut messages = Vec::new();
        while self.bus.depth("q") != Some(0) {
            let delivery = source.next().await.unwrap().unwrap();
            source.ack(delivery.tag).await.unwrap();
            messages.push(delivery.message);
        }
        messages
    }

    /// The ids of what a selection finds, in order.
    fn ids(&self, spec: &SelectionSpec) -> Vec<String> {
        let event = |(stream, sequence): (StreamName, Sequence)| {
            let events = &self.archive.events[&stream];
            events[usize::try_from(sequence).unwrap() - 1].id.clone()
        };
        self.archive.in_order(spec).into_iter().map(event).collect()
    }
}

fn ids(messages: &[Message]) -> Vec<String> {
    let id = |message: &Message| {
        let id = message.properties.header("x-dacapo-event-id").and_then(FieldValue::as_text);
        id.unwrap().to_owned()
    };
    messages.iter().map(id).collect()
}

fn windowed(window: u32, selection: SelectionSpec) -> Request {
    Request { window: NonZeroU32::new(window).unwrap(), ..request(selection) }
}

#[tokio::test(start_paused = true)]
async fn a_replay_delivers_every_event_once_in_order_and_marked() {
    let world = World::small().await;
    let plan = world.plan(request(everything())).await;
    let locked = world.create(&plan);
    let finished = world.run(&locked, &plan, &world.queue()).await;
    assert!(finished.error.is_none(), "{:?}", finished.error);
    let receipt = finished.receipt;
    assert_eq!(
        (receipt.phase, receipt.selected, receipt.selected_exact),
        (Phase::Completed, 40, true)
    );
    let counts = receipt.counts;
    assert_eq!((counts.confirmed, counts.rejected, receipt.remaining()), (40, 0, 0));
    assert_eq!((counts.possible_repeats, counts.reordered, counts.runs), (0, 0, 1));
    assert!(counts.bytes_read > 0 && counts.requests > 0);

    let messages = world.arrived().await;
    assert_eq!(ids(&messages), world.ids(&everything()));
    assert_eq!(counts.bytes, messages.iter().map(|m| m.body.len() as u64).sum::<u64>());
    for message in &messages {
        assert!(marking::is_replayed(message));
        let replay = message.properties.header("x-dacapo-replay").and_then(FieldValue::as_text);
        assert_eq!(replay, Some(locked.id.as_str()));
        assert_ne!(message.routing_key.as_str(), Some("q"), "the routing key arrives as it was");
    }
}

#[tokio::test(start_paused = true)]
async fn who_looks_on_is_shown_each_event_once_whatever_is_published_again() {
    let world = World::small().await;
    let plan = world.plan(windowed(10, everything())).await;
    let locked = world.create(&plan);
    let lost = Fault::Lose { after: 15, noticed: Noticed::Later };
    let target = Faulty::new(world.queue(), vec![lost], CONFIRM_DELAY);
    let seen = Mutex::new(Vec::new());
    let look = |event: &Event, message: &mut Message| {
        seen.lock().unwrap().push(event.id.clone());
        let headers = message.properties.headers.as_mut().unwrap();
        headers.insert(ShortStr::from_static("x-seen"), FieldValue::Boolean(true));
    };
    let replay = Replay { look: Some(&look), ..world.replay(&locked, &plan, &target) };
    let control = watch::Sender::default();
    let finished = replay.run(control.subscribe(), &watch::Sender::default()).await.unwrap();
    assert!(finished.receipt.counts.possible_repeats > 0, "{:?}", finished.receipt);
    assert_eq!(seen.into_inner().unwrap(), world.ids(&everything()));
    let messages = world.arrived().await;
    assert!(
        messages.len() > 40 && messages.iter().all(|m| m.properties.header("x-seen").is_some())
    );
}

#[tokio::test(start_paused = true)]
async fn only_what_is_selected_is_read_and_delivered() {
    let world = World::small().await;
    let spec = SelectionSpec { to: Some(at(5)), ..everything() };
    let plan = world.plan(request(spec.clone())).await;
    let finished = world.run(&world.create(&plan), &plan, &world.queue()).await;
    let receipt = finished.receipt;
    assert_eq!((receipt.selected, receipt.counts.confirmed), (5, 5));
    assert!(receipt.counts.bytes_read < receipt.bytes_full_scan / 2, "{receipt:?}");
    assert_eq!(ids(&world.arrived().await), world.ids(&spec));
}

#[tokio::test(start_paused = true)]
async fn a_replay_of_nothing_completes() {
    let world = World::small().await;
    let plan = world.plan(request(SelectionSpec { from: Some(at(9_000)), ..everything() })).await;
    let receipt = world.run(&world.create(&plan), &plan, &world.queue()).await.receipt;
    assert_eq!((receipt.phase, receipt.selected, receipt.remaining()), (Phase::Completed, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_complete_cannot_be_resumed() {
    let world = World::small().await;
    let plan = world.plan(request(everything())).await;
    let locked = world.create(&plan);
    world.run(&locked, &plan, &world.queue()).await;
    let (control, progress) = (watch::Sender::default(), watch::Sender::default());
    let target = world.queue();
    let again = world.replay(&locked, &plan, &target).run(control.subscribe(), &progress).await;
    let expected = format!(
        "replay `{}` is completed; there is nothing to resume; `dacapo replays show` prints its receipt",
        locked.id
    );
    assert_eq!(again.unwrap_err().to_string(), expected);
    assert_eq!(world.arrived().await.len(), 40);
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_costs_a_window_of_repeats_and_nothing_else() {
    let world = World::small().await;
    let plan = world.plan(windowed(6, everything())).await;
    let locked = world.create(&plan);
    let faults = vec![
        Fault::Lose { after: 9, noticed: Noticed::Later },
        Fault::Lose { after: 20, noticed: Noticed::Sending },
    ];
    let target = Faulty::new(world.queue(), faults, CONFIRM_DELAY);
    let receipt = world.run(&locked, &plan, &target).await.receipt;
    assert_eq!((receipt.phase, receipt.counts.confirmed), (Phase::Completed, 40));
    let repeats = world.arrived().await.len() as u64 - 40;
    let possible = receipt.counts.possible_repeats;
    assert!(repeats <= possible && possible <= 2 * 6, "{repeats} of {possible}");
}

#[tokio::test(start_paused = true)]
async fn a_file_gets_a_line_for_each_event_as_it_was() {
    let world = World::small().await;
    let path = world.dir.path().join("events.ndjson");
    let target = Target::File { path: path.clone() };
    let plan = world.plan(Request { target, ..request(everything()) }).await;
    let target = FileTarget::new(&path, Existing::Refuse);
    let receipt = world.run(&world.create(&plan), &plan, &target).await.receipt;
    assert_eq!((receipt.phase, receipt.counts.confirmed), (Phase::Completed, 40));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids, world.ids(&everything()));
    assert_eq!(lines[0]["body"], r#"{"n":0}"#);
    assert!(!text.contains("x-dacapo"), "what is exported is not marked as a replay");
}

#[tokio::test(start_paused = true)]
async fn what_another_terminal_asks_is_passed_on_until_it_is_to_stop() {
    let world = World::small().await;
    let plan = world.plan(request(everything())).await;
    let locked = world.create(&plan);
    let control = watch::Sender::default();
    let mut seen = control.subscribe();
    let asking = async {
        for (asked, expected) in [
            (Asked::Pause, Control::Pause),
            (Asked::Run, Control::Run),
            (Asked::Cancel, Control::Stop),
        ] {
            world.state.set_control(&locked.id, asked).unwrap();
            seen.wait_for(|control| *control == expected).await.unwrap();
        }
        world.state.set_control(&locked.id, Asked::Run).unwrap();
        tokio::time::sleep(4 * CONTROL_INTERVAL).await;
        assert_eq!(*seen.borrow(), Control::Stop, "a run that is to stop stops");
    };
    tokio::select! {
        () = obey(&world.state, &locked.id, &control) => unreachable!("it goes on until dropped"),
        () = asking => {}
    }
}
