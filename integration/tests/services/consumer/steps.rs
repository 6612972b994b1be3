//! The example service killed between every two steps of handling one event.
//!
//! Nothing in the service helps: `strace` shows which system calls on the database a run makes, and kills
//! another run, which does the same, as it enters one of them. SQLite reads a page as it comes to a
//! table, so there is a call between the mark, the effect and the outbox; it writes the log as it
//! commits, page by page. The steps on the bus are held by a proxy that knows frames.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dacapo_integration::campaign::wire::{Moment, Way, Wire};
use dacapo_integration::wait;
use serde_json::{Value, json};

use super::super::platform::{DEADLINE, Platform};
use super::super::services;
use super::service::{DATABASE_FILES, Service, event, settled};

/// The system calls by which SQLite locks, reads, writes and syncs.
const CALLS: [&str; 4] = ["fcntl", "pread64", "pwrite64", "fsync"];

/// One system call on the database: the so-manieth of this name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    call: String,
    number: usize,
    /// The call as `strace` tells it, without what is written.
    told: String,
}

/// Whether the transaction of an event is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Committed {
    No,
    Yes,
}

/// A service with an order that is placed, and an event at hand that settles it.
struct Scene {
    platform: Platform,
    service: Service,
    wire: Wire,
    /// The database's files as they are before that event.
    files: BTreeMap<PathBuf, Vec<u8>>,
    expected: Value,
}

impl Scene {
    fn new() -> Self {
        let platform = Platform::new();
        let mut service = Service::new(&platform);
        let url = services::amqp();
        let port = url.rsplit_once('@').and_then(|(_, at)| at.split(['/', ':']).nth(1));
        let port = port.and_then(|port| port.parse().ok()).expect("the broker's URL has a port");
        let wire = Wire::before(port).unwrap();
        service.declare();
        let placed = event("e-1", "order.placed", "order-0", 1, &json!({ "total": 100 }));
        platform.publish(&[placed]);
        service.drain();
        let files = service.database_files();
        // What comes of it where nothing is killed.
        platform.publish(&[paid()]);
        service.drain();
        assert_eq!(service.outbox(), json!([["order-0:settled", 1]]));
        assert_eq!(service.emitted(), (settled(1), 1));
        let expected = service.state();
        service.set_url(&wire.url(&url));
        Scene { platform, service, wire, files, expected }
    }

    /// Puts everything back to where the event has just been published.
    fn rewind(&self) {
        self.service.put_database_files(&self.files);
        self.wire.heal();
        self.platform.publish(&[paid()]);
    }

    /// Checks that what is on the disk is a state between two events.
    fn check_whole(&self, what: &str) -> Committed {
        let state = self.service.state();
        let done = state == self.expected;
        let marks = state[1].as_array().expect("rows of marks").len();
        let paid = state[0][0][2].as_u64();
        let outbox = state[2].as_array().expect("rows of the outbox").len();
        let expected = if done { (2, Some(100), 1) } else { (1, Some(0), 0) };
        assert_eq!((marks, paid, outbox), expected, "{what}: all of it or nothing");
        if done { Committed::Yes } else { Committed::No }
    }

    /// Kills it where the proxy holds it, and checks what it has then, and how often it emits.
    fn check_killed_where_held(
        &self,
        what: &str,
        committed: Committed,
        times: usize,
        hold: impl FnOnce(&Wire),
    ) {
        self.rewind();
        hold(&self.wire);
        let running = self.service.start();
        self.wire.await_hold(DEADLINE).unwrap();
        running.kill();
        assert_eq!(self.check_whole(what), committed, "{what}");
        self.check_recovers(what, times..=times);
    }

    /// Starts the service again, and checks that it comes to where one that was not killed is.
    fn check_recovers(&self, what: &str, times: std::ops::RangeInclusive<usize>) {
        self.wire.cut();
        self.wire.heal();
        self.service.drain();
        assert_eq!(self.service.state(), self.expected, "{what}");
        assert_eq!(self.service.outbox(), json!([["order-0:settled", 1]]), "{what}");
        let (ids, count) = self.service.emitted();
        assert_eq!(ids, settled(1), "{what}");
        assert!(times.contains(&count), "{what}: emitted {count} times");
    }

    /// Returns the command that traces the calls on the database into a file, beside the program and not
    /// as its parent, and injects what it is told.
    fn strace(&self, log: &str, inject: &[String]) -> Vec<String> {
        let mut words: Vec<String> =
            ["strace", "-D", "-f", "-q", "-s", "1", "-yy", "-o", log].map(str::to_owned).into();
        let folder = self.service.folder().canonicalize().unwrap();
        for file in DATABASE_FILES {
            words.extend(["-P".to_owned(), folder.join(file).display().to_string()]);
        }
        words.extend(["-e".to_owned(), format!("trace={}", CALLS.join(","))]);
        words.extend(inject.iter().flat_map(|inject| ["-e".to_owned(), inject.clone()]));
        words
    }

    /// Returns the system calls on the database of a run that is killed at this moment.
    fn calls_until(&self, held: Moment) -> Vec<Step> {
        self.rewind();
        self.wire.hold_before(held);
        let log = self.service.folder().join("trace");
        let running = self.service.start_under(&self.strace(&log.display().to_string(), &[]));
        self.wire.await_hold(DEADLINE).unwrap();
        running.kill();
        self.wire.cut();
        steps_of(&std::fs::read_to_string(log).unwrap())
    }

    /// Starts it again to be killed as it enters this call, and makes sure that it was there and nowhere
    /// else.
    fn kill_at(&self, step: &Step) {
        self.rewind();
        let log = self.service.folder().join("killed");
        let inject = format!("inject={}:signal=KILL:when={}", step.call, step.number);
        let words = self.strace(&log.display().to_string(), &[inject]);
        let output = self.service.start_under(&words).wait(DEADLINE);
        assert_eq!(output.status, None, "{step:?}: it is killed, {output:?}");
        let killed = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(text.contains("+++ killed by SIGKILL").then_some(text))
        };
        let text = wait::until("strace has told all", DEADLINE, killed).unwrap();
        let last = steps_of(&text).pop().expect("it was killed at a call");
        let place = |step: &Step| (step.call.clone(), step.number, step.file().to_owned());
        assert_eq!(place(&last), place(step), "{step:?}: {last:?}");
    }
}

impl Step {
    /// Returns which file it is on: `strace -yy` tells that after the descriptor.
    fn file(&self) -> &str {
        let told = self.told.split_once('<').map_or(self.told.as_str(), |(_, told)| told);
        told.split('>').next().unwrap_or(told)
    }
}

/// Returns the system calls that `strace` has told, in the order in which they began.
fn steps_of(text: &str) -> Vec<Step> {
    let mut numbers = BTreeMap::new();
    let calls = text.lines().filter_map(|line| {
        let told = line.split_once(' ')?.1.trim_start();
        let call = told.split_once('(')?.0;
        let number: &mut usize = numbers.entry(call.to_owned()).or_default();
        *number += 1;
        let told = told.split('"').next()?.to_owned();
        CALLS.contains(&call).then(|| Step { call: call.to_owned(), number: *number, told })
    });
    calls.collect()
}

/// Returns all but the middle ones of writes that follow each other on one file: between two pages of
/// the log nothing is begun and nothing is done. Between two that are read there is: a table is come to.
fn without_pages_of_the_log(steps: &[Step]) -> Vec<&Step> {
    let is_same = |one: &Step, other: Option<&Step>| {
        one.call == "pwrite64"
            && other.is_some_and(|other| one.call == other.call && one.file() == other.file())
    };
    let before = std::iter::once(None).chain(steps.iter().map(Some));
    let after = steps.iter().skip(1).map(Some).chain([None]);
    let mut ends = Vec::new();
    for ((step, before), after) in steps.iter().zip(before).zip(after) {
        if !(is_same(step, before) && is_same(step, after)) {
            ends.push(step);
        }
    }
    ends
}

fn paid() -> Value {
    event("e-2", "order.paid", "order-0", 2, &json!({ "amount": 100 }))
}

#[test]
fn killed_between_every_two_steps_on_its_database_it_has_all_of_an_event_or_nothing() {
    let scene = Scene::new();
    let before = scene.calls_until(Moment::Delivery).len();
    scene.check_recovers("held before its delivery", 1..=1);
    let all = scene.calls_until(Moment::Ack);
    scene.check_recovers("held before its ack", 1..=1);
    let steps = &all[before..];
    let told = |step: &Step, what: &str| step.told.contains(what);
    let writes = steps.iter().filter(|step| step.call == "pwrite64").count();
    let syncs = steps.iter().filter(|step| step.call == "fsync").count();
    assert!(writes >= 6 && syncs >= 2, "the event, and the mark that it was emitted: {steps:#?}");
    assert!(steps.iter().any(|step| told(step, "sqlite-wal")), "{steps:#?}");

    let mut outcomes = BTreeMap::new();
    for step in without_pages_of_the_log(steps) {
        scene.kill_at(step);
        let committed = scene.check_whole(&step.told);
        // What was on its way when it was killed may be emitted a second time, with the same id.
        scene.check_recovers(&step.told, 1..=2);
        *outcomes.entry(committed).or_insert(0) += 1;
    }
    println!("{} calls; killed, by whether it had committed: {outcomes:?}", steps.len());
    assert!(outcomes.len() == 2 && outcomes.values().all(|times| *times > 3), "{outcomes:?}");
}

#[test]
fn killed_between_every_two_steps_on_the_bus_it_comes_to_the_same() {
    let scene = Scene::new();
    scene.check_killed_where_held("before its delivery", Committed::No, 1, |wire| {
        wire.hold_before(Moment::Delivery);
    });
    scene.check_killed_where_held("before its emission", Committed::Yes, 1, |wire| {
        wire.hold_at(1, Way::Up);
    });
    scene.check_killed_where_held(
        "before the confirm of its emission",
        Committed::Yes,
        2,
        |wire| {
            wire.hold_at(1, Way::Down);
        },
    );
    scene.check_killed_where_held("before its ack", Committed::Yes, 1, |wire| {
        wire.hold_before(Moment::Ack);
    });
    // After its ack: nothing is left to do.
    scene.rewind();
    let running = scene.service.start();
    let emitted = || Ok((scene.service.outbox() == json!([["order-0:settled", 1]])).then_some(()));
    wait::until("it is emitted", DEADLINE, emitted).unwrap();
    running.kill();
    assert_eq!(scene.check_whole("after its ack"), Committed::Yes);
    scene.check_recovers("after its ack", 1..=1);
}
