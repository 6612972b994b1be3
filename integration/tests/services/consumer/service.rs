//! The example service, run as a team would run it, and its events.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dacapo_event::Timestamp;
use dacapo_event::envelope::Envelope;
use dacapo_integration::dacapo::{Dacapo, Running};
use dacapo_integration::process::{self, Signal};
use dacapo_integration::{environment, wait};
use serde_json::{Value, json};

use super::super::platform::{DEADLINE, Platform, ask};
use super::super::services;
use super::super::witness::{self, Queue};

/// The types of events that the service consumes, as a selection.
pub(crate) const CAUSES: [&str; 6] =
    ["--type", "order.placed", "--type", "order.paid", "--type", "order.moved"];
/// The type of those that it emits.
pub(crate) const OWN: [&str; 2] = ["--type", "order.settled"];

/// An archiver's flags that say what the service's rules say.
pub(crate) const ENVELOPED: [&str; 8] = [
    "--id-from",
    "envelope:id",
    "--time-from",
    "envelope:time",
    "--type-from",
    "envelope:type",
    "--key-from",
    "envelope:key",
];

/// The files of its database; the last two are not there where it was closed in order.
pub(crate) const DATABASE_FILES: [&str; 3] =
    ["orders.sqlite", "orders.sqlite-wal", "orders.sqlite-shm"];

/// The body of a message that is no event.
const LAST: &str = "the last one";

/// An example service with a folder and queues of its own.
pub(crate) struct Service {
    installation: Dacapo,
    queue: String,
    exchange: String,
    url: String,
    /// Gets what it emits: what nobody gets is not taken.
    listening: Queue,
}

/// What it told in a run.
#[derive(Debug)]
pub(crate) struct Told {
    metrics: String,
    log: String,
}

impl Told {
    /// Returns how many mails it sent.
    pub(crate) fn mails(&self) -> usize {
        self.log.matches("a mail is sent").count()
    }

    /// Returns how many of its own events reached nobody.
    pub(crate) fn unroutable(&self) -> usize {
        let line =
            self.metrics.lines().find_map(|line| line.strip_prefix("orders_unroutable_total "));
        line.and_then(|count| count.parse().ok()).expect("it counts them")
    }

    /// Returns the names of its metrics without `dacapo_consumer_`.
    pub(crate) fn metrics(&self) -> BTreeSet<&str> {
        let lines = self.metrics.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.strip_prefix("dacapo_consumer_")?.split(['{', ' ']).next())
            .collect()
    }

    /// Returns the value of a metric by its name without `dacapo_consumer_`.
    #[track_caller]
    pub(crate) fn of(&self, name: &str) -> usize {
        let full = format!("dacapo_consumer_{name} ");
        let value = self.metrics.lines().find_map(|line| line.strip_prefix(&full));
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {}", self.metrics))
    }
}

impl Service {
    /// Returns one that consumes and emits on the platform's exchange.
    pub(crate) fn new(platform: &Platform) -> Self {
        let listening = Queue::new("settled");
        listening.bind(&platform.exchange, "order.settled");
        Service {
            listening,
            installation: Dacapo::of_binary(binary()),
            queue: services::unique("orders"),
            exchange: platform.exchange.clone(),
            url: services::amqp(),
        }
    }

    /// Lets it connect through something else from now on.
    pub(crate) fn set_url(&mut self, url: &str) {
        self.url = url.to_owned();
    }

    /// Returns the name of its queue.
    pub(crate) fn queue(&self) -> &str {
        &self.queue
    }

    /// Starts it.
    #[track_caller]
    pub(crate) fn start(&self) -> Running {
        let arguments = [&self.queue, &self.exchange, "orders.sqlite"];
        self.installation.spawn_with(arguments, &[("ORDERS_AMQP", &self.url)])
    }

    /// Starts it through another program, the first of these words.
    #[track_caller]
    pub(crate) fn start_under(&self, words: &[String]) -> Running {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let arguments = [&self.queue, &self.exchange, "orders.sqlite"];
        self.installation.spawn_under(&words, arguments, &[("ORDERS_AMQP", &self.url)])
    }

    /// Returns the folder that it runs in.
    pub(crate) fn folder(&self) -> &Path {
        self.installation.folder()
    }

    /// Returns the files of its database, while it does not run.
    pub(crate) fn database_files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = DATABASE_FILES.map(|file| self.folder().join(file)).into_iter();
        files.filter_map(|file| Some((file.clone(), std::fs::read(file).ok()?))).collect()
    }

    /// Puts the files of its database in the place of what there is.
    pub(crate) fn put_database_files(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        for file in DATABASE_FILES {
            std::fs::remove_file(self.folder().join(file)).ok();
        }
        for (file, content) in files {
            std::fs::write(file, content).expect("the folder is ours");
        }
    }

    /// Returns how a supervisor would start and stop it: as files in its folder.
    pub(crate) fn scripts(&self) -> Scripts {
        let orders = self.installation.binary().display().to_string();
        let scripts = Scripts { folder: self.folder().to_owned(), url: self.url.clone() };
        let folder = self.folder().display();
        let (queue, exchange) = (&self.queue, &self.exchange);
        // Bounded, for a supervisor's service outlives whoever has started it.
        let start = format!(
            "cd '{folder}'\nsetsid timeout 300 '{orders}' {queue} {exchange} orders.sqlite \
             < /dev/null >> orders.out 2>> orders.log &\necho $! > orders.pid\n"
        );
        let stop = format!(
            "pid=$(cat '{folder}/orders.pid')\nkill -TERM \"$pid\"\n\
             while kill -0 \"$pid\" 2> /dev/null; do sleep 0.05; done\n"
        );
        scripts.write("start", &start);
        scripts.write("stop", &stop);
        scripts
    }

    /// Lets it make its queues and its database.
    #[track_caller]
    pub(crate) fn declare(&self) {
        let running = self.start();
        running.wait_for_line("consuming", DEADLINE);
        stop(running);
    }

    /// Lets it handle all there is in one run, and returns what it told of that.
    ///
    /// It handles in order, so it has acked everything once a last message, which is no event, has
    /// come to the queue of dead letters.
    #[track_caller]
    pub(crate) fn drain(&self) -> Told {
        self.drain_burying(0)
    }

    /// Does the same where so many dead letters come of it.
    #[track_caller]
    pub(crate) fn drain_burying(&self, letters: u64) -> Told {
        let buried = self.ready(&self.letters()) + letters + 1;
        let last = json!({ "op": "publish", "routing_key": self.queue, "body": LAST });
        assert_eq!(ask(&services::amqp(), last)["outcome"], "ack");
        let running = self.start();
        let done = || Ok((self.ready(&self.letters()) == buried).then_some(()));
        if let Err(error) = wait::until("the last message is buried", DEADLINE, done) {
            panic!("{error}; {:?}", running.written());
        }
        let told = stop(running);
        assert_eq!(self.ready(&self.queue), 0, "everything is acked");
        told
    }

    /// Returns how many events are marked.
    pub(crate) fn handled(&self) -> usize {
        let rows = self.query(&["SELECT count(*) FROM handled"]);
        rows[0][0][0].as_u64().unwrap_or(0).try_into().expect("a count")
    }

    /// Returns all that its database says, but for what of its own events it knows from where: a
    /// replay gives these back.
    pub(crate) fn state(&self) -> Value {
        self.query(&[
            "SELECT number, total, paid, changed_at, address, moved_at FROM orders ORDER BY number",
            "SELECT id FROM handled WHERE id NOT LIKE '%:settled' ORDER BY id",
            "SELECT id, hex(body) FROM outbox ORDER BY id",
        ])
    }

    /// Returns what it has emitted or is to emit, and whether it knows that it did.
    pub(crate) fn outbox(&self) -> Value {
        self.query(&["SELECT id, sent FROM outbox ORDER BY id"])[0].take()
    }

    /// Takes the dead letters.
    pub(crate) fn dead_letters(&self) -> Vec<Value> {
        let get = json!({ "op": "get", "queue": self.letters(), "max": 1_000 });
        let mut letters = ask(&services::amqp(), get)["messages"].take();
        let letters = letters.as_array_mut().expect("a list of messages");
        letters.retain(|letter| letter["body"] != LAST);
        std::mem::take(letters)
    }

    /// Takes what it has emitted, and returns the ids and how many messages that was.
    pub(crate) fn emitted(&self) -> (BTreeSet<String>, usize) {
        let messages = self.listening.take(100_000);
        let id = |message: &Value| message["properties"]["message_id"].as_str().map(str::to_owned);
        (messages.iter().filter_map(id).collect(), messages.len())
    }

    /// Lets nobody get what it emits from now on.
    pub(crate) fn is_not_heard(&self) {
        ask(&services::amqp(), json!({ "op": "delete_queue", "queue": self.listening.name() }));
    }

    /// Deletes its database, as a lost disk would.
    pub(crate) fn lose_database(&self) {
        self.put_database_files(&BTreeMap::new());
        assert_eq!(self.handled(), 0);
    }

    fn letters(&self) -> String {
        format!("{}.dead", self.queue)
    }

    fn query(&self, queries: &[&str]) -> Value {
        let database = self.installation.folder().join("orders.sqlite");
        let input = json!({ "queries": queries }).to_string();
        let output = witness::run("sqlite.py", &[database.to_str().expect("UTF-8")], &input);
        serde_json::from_str(&output.expect("SQLite reads it")).expect("rows")
    }

    fn ready(&self, queue: &str) -> u64 {
        let asked = json!({ "op": "declare_queue", "queue": queue, "passive": true });
        let answers = witness::raw_amqp(&services::amqp(), &[asked]).expect("the broker answers");
        answers[0]["messages"].as_u64().unwrap_or(0)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let queues = [self.queue.clone(), self.letters()];
        let delete = queues.map(|queue| json!({ "op": "delete_queue", "queue": queue }));
        // A broker that is down at the end of a test keeps them, and no other test minds.
        witness::raw_amqp(&services::amqp(), &delete).ok();
    }
}

/// Returns the program.
pub(crate) fn binary() -> PathBuf {
    let dacapo = environment::get(environment::BIN).expect("the test is run by `servers`");
    // Examples lie beside the binary in a debug build, whatever binary is under test.
    let debug = environment::root().join("target/debug/examples/orders");
    let beside = PathBuf::from(dacapo).with_file_name("examples").join("orders");
    if beside.exists() { beside } else { debug }
}

/// How a service is started and stopped from outside, and what it logs.
pub(crate) struct Scripts {
    folder: PathBuf,
    url: String,
}

impl Scripts {
    fn write(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\nset -eu\n{text}")).expect("the folder is ours");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, executable).expect("the file is ours");
        path.display().to_string()
    }

    /// Returns a script that changes its database as a new version would.
    pub(crate) fn database(&self, name: &str, sql: &str) -> String {
        let python = witness::python().display().to_string();
        let database = self.folder.join("orders.sqlite").display().to_string();
        let change =
            "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=30).execute(sys.argv[2])";
        self.write(name, &format!("'{python}' -c '{change}' '{database}' \"{sql}\"\n"))
    }

    pub(crate) fn start_path(&self) -> String {
        self.folder.join("start").display().to_string()
    }

    pub(crate) fn stop_path(&self) -> String {
        self.folder.join("stop").display().to_string()
    }

    pub(crate) fn log_path(&self) -> String {
        self.folder.join("orders.log").display().to_string()
    }

    /// Returns what the service has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("orders.log")).unwrap_or_default()
    }

    pub(crate) fn start(&self) {
        self.run(&self.start_path());
    }

    pub(crate) fn stop(&self) {
        self.run(&self.stop_path());
    }

    /// Runs one of its scripts.
    pub(crate) fn run(&self, script: &str) {
        let status = std::process::Command::new(script).env("ORDERS_AMQP", &self.url).status();
        assert!(status.expect("it can be run").success(), "{script}");
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        // After a test that failed it may still run.
        let pid = std::fs::read_to_string(self.folder.join("orders.pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse() {
            process::signal(pid, Signal::Terminate).ok();
        }
    }
}

/// Ends it in order, and returns what it tells.
#[track_caller]
fn stop(running: Running) -> Told {
    running.signal(Signal::Terminate).expect("it runs");
    let output = running.wait(DEADLINE);
    output.check(0);
    Told { metrics: output.stdout, log: output.stderr }
}

/// Returns after a time, for a kill at an instant that follows from nothing the service does.
pub(crate) fn pause(time: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(async { tokio::time::sleep(time).await });
}

/// Returns an event in the platform's envelope, as a message; it happened at this second.
pub(crate) fn event(id: &str, kind: &str, order: &str, second: u64, payload: &Value) -> Value {
    let envelope = Envelope {
        id: id.to_owned(),
        time: Timestamp::from_secs(1_700_000_000 + second),
        kind: kind.to_owned(),
        key: order.to_owned(),
        causation_id: String::new(),
        content_type: "application/json".to_owned(),
        payload: payload.to_string().into(),
    };
    let body: String = envelope.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "routing_key": kind,
        "properties": { "message_id": id, "delivery_mode": 2 },
        "body": { "hex": body },
    })
}

/// Returns the events of so many orders, each placed, moved twice, and paid in two parts.
pub(crate) fn history(orders: usize) -> Vec<Value> {
    let mut events = Vec::new();
    for n in 0..orders {
        let order = format!("order-{n}");
        for (kind, payload) in [
            ("order.placed", json!({ "total": 100 })),
            ("order.moved", json!({ "address": format!("{n} Old Road") })),
            ("order.paid", json!({ "amount": 60 })),
            ("order.moved", json!({ "address": format!("{n} New Street") })),
            ("order.paid", json!({ "amount": 40 })),
        ] {
            let number = events.len();
            events.push(event(&format!("e-{number}"), kind, &order, number as u64, &payload));
        }
    }
    events
}

/// Returns the ids of what a service emits after the whole history of so many orders.
pub(crate) fn settled(orders: usize) -> BTreeSet<String> {
    (0..orders).map(|n| format!("order-{n}:settled")).collect()
}
