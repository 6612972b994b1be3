//! A new service gets all history and then the live stream, whatever kills its backfill on the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use dacapo_integration::dacapo::{Dacapo, Running};
use dacapo_integration::process::Signal;
use dacapo_integration::{reference, wait};
use serde_json::{Value, json};

use super::platform::{DEADLINE, Platform, Watcher, id, ids, message, messages};
use super::{services, witness};

mod refused;

/// Events a second that are published throughout.
const RATE: u64 = 2_000;

/// Events that are history when the backfill begins.
const HISTORY: usize = 8_000;

/// The most that is published and not confirmed, so that kills can repeat little.
const WINDOW: &str = "200";

/// A backfill of a queue of the test's own; both are gone when dropped.
struct Backfill<'a> {
    platform: &'a Platform,
    queue: String,
}

impl<'a> Backfill<'a> {
    fn new(platform: &'a Platform) -> Self {
        Backfill { platform, queue: services::unique("loyalty") }
    }

    /// Starts it; returns it with its id.
    fn start(&self, more: &[&str]) -> (Running, String) {
        let mut args = vec!["backfill", "--queue", &self.queue, "--bind", &self.platform.exchange];
        args.extend(["--archiver-queue", &self.platform.archive_queue, "--json"]);
        args.extend(more);
        let running = self.platform.dacapo.spawn(args);
        let told = running.wait_for_line("backfill   ", DEADLINE);
        let id = told.split_whitespace().nth(1).expect("the line ends with the id");
        (running, id.to_owned())
    }

    /// Starts it, and interrupts it while it holds live events; returns its id.
    fn interrupt_holding(&self) -> String {
        let (running, id) = self.start(&[]);
        running.wait_for_line("live events are held", DEADLINE);
        running.signal(Signal::Terminate).unwrap();
        running.wait(DEADLINE).check(6);
        id
    }

    fn resume(&self, id: &str) -> Running {
        self.platform.dacapo.spawn(["backfill", "resume", id, "--json"])
    }

    fn holding_queue(&self, id: &str) -> String {
        format!("{}.holding.{id}", self.queue)
    }

    fn is_there(&self, queue: &str) -> bool {
        let asked = json!({ "op": "declare_queue", "queue": queue, "passive": true });
        let answer = witness::raw_amqp(&services::amqp(), &[asked]).expect("the broker answers");
        answer[0].get("error").is_none()
    }

    fn depth(&self) -> u64 {
        let asked = json!({ "op": "declare_queue", "queue": self.queue, "passive": true });
        self.platform.ask(asked)["messages"].as_u64().expect("a count")
    }

    /// Takes everything that waits in the queue, and returns the bodies.
    fn take(&self) -> Vec<String> {
        let bodies = reference::take_bodies(&services::amqp(), &self.queue, self.depth()).unwrap();
        bodies.into_iter().map(|body| String::from_utf8(body).unwrap()).collect()
    }

    /// Returns where its journal says that it is: the stage, and how long the journal is.
    fn journal(&self, id: &str) -> (String, u64) {
        let path: PathBuf = self.platform.dacapo.folder().join("state/backfills").join(id);
        let journal = fs::read(path.join("journal")).unwrap_or_default();
        let text = String::from_utf8_lossy(&journal);
        // The last line may be torn.
        let last = text.trim_end_matches(|c| c != '\n').trim_end().lines().next_back();
        let json = last.and_then(|line| serde_json::from_str::<Value>(line.get(9..)?).ok());
        let stage = json.and_then(|json| Some(json["stage"].as_str()?.to_owned()));
        (stage.unwrap_or_default(), journal.len() as u64)
    }

    /// Waits until it is at this stage, or past it.
    #[track_caller]
    fn await_stage(&self, id: &str, stage: &str) {
        let at = |stage: &str| STAGES.iter().position(|known| *known == stage);
        let wanted = at(stage).expect("a stage");
        let reached = || Ok((at(&self.journal(id).0) >= Some(wanted)).then_some(()));
        wait::until(&format!("stage {stage}"), DEADLINE, reached).unwrap();
    }
}

impl Drop for Backfill<'_> {
    fn drop(&mut self) {
        // A broker that is down at the end of a test keeps it, and no other test minds.
        let delete = json!({ "op": "delete_queue", "queue": self.queue });
        witness::raw_amqp(&services::amqp(), &[delete]).ok();
    }
}

/// The stages from the first barrier on, which are passed once and in this order.
const STAGES: [&str; 9] = [
    "first_barrier",
    "binding",
    "second_barrier",
    "marking",
    "closing",
    "held",
    "switching",
    "draining",
    "removing",
];

/// A publisher in the background that keeps its rate until it is stopped.
struct Steady {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    thread: JoinHandle<usize>,
}

impl Steady {
    fn start(exchange: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let published = Arc::new(AtomicU64::new(0));
        let (told, count, exchange) =
            (Arc::clone(&stop), Arc::clone(&published), exchange.to_owned());
        let publish = move || {
            let (url, key) = (services::amqp(), "order.placed");
            reference::publish_steadily(&url, &exchange, key, RATE, id, &told, &count).unwrap()
        };
        Steady { stop, published, thread: std::thread::spawn(publish) }
    }

    /// Waits until so many more are published.
    fn await_more(&self, more: u64) {
        let wanted = self.published.load(Ordering::Relaxed) + more;
        let enough = || Ok((self.published.load(Ordering::Relaxed) >= wanted).then_some(()));
        wait::until("more is published", DEADLINE, enough).unwrap();
    }

    /// Stops, and returns how many were published.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every message was confirmed")
    }
}

/// Small, and the same on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Checks that everything arrived, and that what came twice or late is within what was told.
#[track_caller]
fn check_arrived(arrived: &[String], published: usize, receipt: &Value) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    arrived.iter().for_each(|id| *counts.entry(id).or_default() += 1);
    let missing: Vec<String> =
        ids(published).into_iter().filter(|id| !counts.contains_key(id.as_str())).collect();
    assert_eq!(missing, Vec::<String>::new(), "of {published}: {receipt}");
    assert_eq!(counts.len(), published);
    let repeats = arrived.len() - published;
    let told = |name: &str| receipt[name].as_u64().unwrap() as usize;
    assert!(repeats <= told("possible_repeats"), "{repeats} repeats: {receipt}");
    let (mut seen, mut last, mut late) = (std::collections::BTreeSet::new(), "", 0);
    for id in arrived {
        if seen.insert(id) {
            late += usize::from(id.as_str() < last);
            last = last.max(id);
        }
    }
    assert!(late <= told("possibly_reordered"), "{late} late: {receipt}");
}

#[test]
fn killed_at_random_points_under_traffic_nothing_is_missing_and_repeats_are_counted() {
    let platform = Platform::new();
    let archiver = platform.start_archiver(&["--roll-age", "1s"]);
    let traffic = Steady::start(&platform.exchange);
    archiver.await_metric("events_total", HISTORY);
    let backfill = Backfill::new(&platform);
    let pace = ["--window", WINDOW, "--max-behind", "10s"];
    let (mut running, id) = backfill.start(&pace);
    let mut dice = Dice(0x2026_1126);
    // The first while history is played, the others at each stage from there on, up to so many live
    // events later: the margins of holding and switching are some seconds.
    let kills = [
        (None, 300),
        (Some("first_barrier"), 600),
        (Some("binding"), 4_000),
        (Some("second_barrier"), 1_200),
        (Some("closing"), 600),
        (Some("held"), 300),
        (Some("switching"), 6_000),
        (Some("draining"), 300),
        (Some("removing"), 40),
    ];
    let mut killed = 0;
    for (stage, later) in kills {
        if let Some(stage) = stage {
            backfill.await_stage(&id, stage);
        }
        traffic.await_more(dice.roll(later));
        if !running.is_running().unwrap() {
            break;
        }
        running.kill();
        killed += 1;
        running = backfill.resume(&id);
    }
    assert!(killed >= 7, "{killed} kills");
    let ended = running.wait(DEADLINE);
    let shown = platform.dacapo.json(["backfill", "show", &id, "--json"]);
    // The last one may have been killed after all was done.
    assert!(matches!(ended.status, Some(0 | 2)), "{ended:?}");
    assert_eq!(shown["state"], "completed", "{shown} {ended:?}");
    assert!(!backfill.is_there(&backfill.holding_queue(&id)));
    assert!(!backfill.is_there(&format!("{}.parked", backfill.holding_queue(&id))));
    let published = traffic.stop();
    check_arrived(&backfill.take(), published, &shown);
    // And it is live. The broker may give back what was taken when the last acks were under way.
    platform.publish(&[message("one more")]);
    let mut seen = Vec::new();
    let live = || {
        seen.extend(backfill.take());
        Ok(seen.iter().any(|body| body == "body of one more").then_some(()))
    };
    let awaited = wait::until("a live event arrives", DEADLINE, live);
    assert!(awaited.is_ok(), "it did not among {}: {:?}", seen.len(), seen.last());
    archiver.stop();
}

#[test]
fn on_a_quiet_bus_it_completes_and_repeats_nothing() {
    let platform = Platform::on(&services::amqp(), Dacapo::on_s3());
    platform.archive(&messages(300));
    let archiver = platform.start_archiver(&[]);
    let backfill = Backfill::new(&platform);
    let metrics = ["--metrics", "127.0.0.1:0", "--log", "info"];
    let (running, id) = backfill.start(&metrics);
    let ended = running.wait(DEADLINE);
    ended.check(0);
    let receipt = ended.json();
    assert_eq!(receipt["state"], "completed", "{ended:?}");
    assert_eq!(
        (&receipt["possible_repeats"], &receipt["possibly_reordered"]),
        (&json!(0), &json!(0))
    );
    let expected: Vec<String> = ids(300).iter().map(|id| format!("body of {id}")).collect();
    assert_eq!(backfill.take(), expected);
    assert!(
        ended.stderr.contains("is made, as a service of dacapo declares it"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("not-archived: AMQP cannot tell"), "{}", ended.stderr);
    for phrase in ["live events are held", "live: the queue gets live events", "done"] {
        assert!(ended.stderr.contains(phrase), "{phrase} is not in {}", ended.stderr);
    }
    platform.dacapo.run(["backfill", "resume", &id]).check(2);
    platform.dacapo.run(["backfill", "cancel", &id]).check(2);
    archiver.stop();
}

#[test]
fn without_an_archiver_it_waits_and_says_so_holds_nothing_and_is_cancelled() {
    let platform = Platform::new();
    platform.archive(&messages(20));
    let backfill = Backfill::new(&platform);
    let (running, id) = backfill.start(&[]);
    let told = running.wait_for_line("to say how far it is", DEADLINE);
    assert!(told.contains(&platform.archive_queue) && told.contains("1 waiting message"), "{told}");
    assert!(!backfill.is_there(&backfill.holding_queue(&id)));
    // Whoever looks sees it, and nobody else runs it.
    let listed = platform.dacapo.json(["backfill", "ls", "--json"]);
    assert_eq!(
        (&listed["backfills"][0]["state"], &listed["backfills"][0]["phase"]),
        (&json!("running"), &json!("history"))
    );
    platform.dacapo.run(["backfill", "cancel", &id]).check(7);
    running.signal(Signal::Interrupt).unwrap();
    running.wait(DEADLINE).check(6);
    let second = platform.dacapo.run(start_again(&backfill));
    second.check(2);
    assert!(second.stderr.contains("is not over"), "{}", second.stderr);
    let cancelled = platform.dacapo.run(["backfill", "cancel", &id]);
    cancelled.check(0);
    assert!(cancelled.stderr.contains("left: queue"), "{}", cancelled.stderr);
    assert_eq!(backfill.depth(), 20);
    platform.dacapo.run(["backfill", "resume", &id]).check(2);
    let shown = platform.dacapo.json(["backfill", "show", &id, "--json"]);
    assert_eq!(shown["state"], "cancelled");
}

fn start_again<'a>(backfill: &'a Backfill<'_>) -> [&'a str; 7] {
    let platform = backfill.platform;
    let (queue, exchange) = (&backfill.queue, &platform.exchange);
    let archiver = platform.archive_queue.as_str();
    ["backfill", "--queue", queue, "--bind", exchange, "--archiver-queue", archiver]
}

/// A message's own expiration and a kill while events are held lose nothing.
#[test]
fn what_expires_while_it_is_held_arrives_all_the_same() {
    let platform = Platform::new();
    platform.archive(&messages(20));
    let archiver = platform.start_archiver(&["--roll-age", "1s"]);
    let backfill = Backfill::new(&platform);
    let (running, id) = backfill.start(&[]);
    running.wait_for_line("live events are held", DEADLINE);
    running.kill();
    let mut expiring = message("expiring");
    expiring["properties"]["expiration"] = "1".into();
    platform.publish(&[expiring, message("lasting")]);
    archiver.await_metric("events_total", 2);
    let Some(management) = services::management() else { return };
    // Which tells that no dead letter is left; else it waits for minutes.
    let watcher = Watcher::new(&management);
    let url = watcher.url();
    let ended = platform.dacapo.run(["backfill", "resume", &id, "--management", &url]);
    ended.check(0);
    let mut arrived = backfill.take();
    arrived.sort();
    arrived.dedup();
    let mut expected: Vec<String> = ids(20).iter().map(|id| format!("body of {id}")).collect();
    expected.extend(["body of expiring".to_owned(), "body of lasting".to_owned()]);
    assert_eq!(arrived, expected, "{ended:?}");
    archiver.stop();
}

/// Cancelled while it holds: the holding queue goes with what is in it.
#[test]
fn cancelled_while_it_holds_it_leaves_the_queue_and_nothing_else() {
    let platform = Platform::new();
    platform.archive(&messages(20));
    let archiver = platform.start_archiver(&[]);
    let backfill = Backfill::new(&platform);
    let id = backfill.interrupt_holding();
    let holding = backfill.holding_queue(&id);
    assert!(backfill.is_there(&holding));
    platform.publish(&[message("held")]);
    platform.dacapo.run(["backfill", "cancel", &id]).check(0);
    assert!(!backfill.is_there(&holding) && !backfill.is_there(&format!("{holding}.parked")));
    assert!(backfill.is_there(&backfill.queue));
    archiver.stop();
}
