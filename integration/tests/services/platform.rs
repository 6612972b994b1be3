//! A platform of a test's own: an exchange and queues on a real broker, and an installation of
//! dacapo that archives and replays what goes over them. What the broker holds is seen through the
//! witness, never through dacapo.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dacapo_integration::dacapo::{Dacapo, Output, Running};
use dacapo_integration::process::Signal;
use dacapo_integration::secrets::Secrets;
use dacapo_integration::wait;
use serde_json::{Value, json};

use super::services;
use super::witness::{self, Queue};

/// No condition of a test takes longer on a loaded machine; one that does never comes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Messages that [`Traffic`] publishes through one connection: a fraction of a second's worth.
const TRAFFIC_BATCH: usize = 20;

/// An exchange, an archiver's queue and an installation; what is on the broker goes when dropped.
pub(crate) struct Platform {
    pub(crate) dacapo: Dacapo,
    pub(crate) exchange: String,
    pub(crate) archive_queue: String,
    url: String,
}

impl Platform {
    /// Returns one on the broker under test, with an archive in a folder.
    pub(crate) fn new() -> Self {
        Platform::on(&services::amqp(), Dacapo::new())
    }

    /// Returns one on another broker or with another installation.
    pub(crate) fn on(url: &str, mut dacapo: Dacapo) -> Self {
        dacapo.set("DACAPO_AMQP", url);
        let exchange = services::unique("platform");
        ask(url, json!({ "op": "declare_exchange", "exchange": exchange }));
        let archive_queue = services::unique("archive");
        Platform { dacapo, exchange, archive_queue, url: url.to_owned() }
    }

    /// Performs one operation on its broker.
    pub(crate) fn ask(&self, operation: Value) -> Value {
        ask(&self.url, operation)
    }

    /// Returns a service's queue that is bound to everything on the exchange.
    pub(crate) fn service(&self, name: &str) -> Queue {
        let queue = Queue::new(name);
        queue.bind(&self.exchange, "#");
        queue
    }

    /// Publishes to the exchange, in order; every message must be routed.
    pub(crate) fn publish(&self, messages: &[Value]) {
        publish(&self.url, &self.exchange, messages);
    }

    /// Starts an archiver of the exchange and returns when it consumes.
    pub(crate) fn start_archiver(&self, more: &[&str]) -> Archiver {
        let mut args = vec!["archive", "run", "--json"];
        if !more.contains(&"--log") {
            // The least at which it says that it consumes.
            args.extend(["--log", "info"]);
        }
        args.extend(["--metrics", "127.0.0.1:0", "--bind", &self.exchange]);
        args.extend(["--queue", &self.archive_queue]);
        args.extend(more);
        let running = self.dacapo.spawn(args);
        let told = running.wait_for_line("metrics: http://", DEADLINE);
        let (_, address) = told.split_once("http://").expect("it was looked for");
        let (address, _) = address.split_once("/metrics").expect("it is the address of metrics");
        running.wait_for_line("consuming", DEADLINE);
        Archiver { address: address.to_owned(), running }
    }

    /// Archives these messages, and nothing else: starts an archiver, publishes, stops it.
    pub(crate) fn archive(&self, messages: &[Value]) {
        let archiver = self.start_archiver(&[]);
        self.publish(messages);
        archiver.await_metric("unacked", messages.len());
        assert_eq!(archiver.stop()["events"], messages.len());
    }

    /// Imports `count` events with the ids [`id`] gives, a second apart, into the archive.
    pub(crate) fn import(&self, count: usize) {
        let line = |n: usize| {
            let time = format!("2026-01-02T{:02}:{:02}:{:02}Z", n / 3600, n / 60 % 60, n % 60);
            let event = json!({
                "id": id(n), "time": time, "type": "order.placed", "key": format!("k-{}", n % 7),
                "exchange": "shop", "routing_key": format!("order.placed.{}", n % 3),
                "body": { "n": n },
            });
            format!("{event}\n")
        };
        let lines: String = (0..count).map(line).collect();
        let output = self
            .dacapo
            .run_with_input(["archive", "import", "-", "--name", "history"], lines.into_bytes());
        output.check(0);
    }

    /// Returns all events of the archive as `dacapo events` tells them.
    pub(crate) fn events(&self) -> Vec<Value> {
        let output = self.dacapo.run(["events", "--json", "--limit", "0"]);
        output.check(0);
        output.ndjson()
    }

    /// Returns how often each id is in the archive.
    pub(crate) fn archived_ids(&self) -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        for event in self.events() {
            *ids.entry(event["id"].as_str().expect("an id is text").to_owned()).or_default() += 1;
        }
        ids
    }

    /// Checks that the archive is sound, and returns the report.
    #[track_caller]
    pub(crate) fn verify(&self) -> Value {
        let report = self.dacapo.json(["archive", "verify", "--json"]);
        assert_eq!(report["problems"], json!([]), "{report}");
        report
    }

    /// Starts a replay and returns it with its id.
    #[track_caller]
    pub(crate) fn start_replay(&self, args: &[&str]) -> (Running, String) {
        let running = self.dacapo.spawn(["replay", "--json"].iter().chain(args));
        let told = running.wait_for_line("replay     ", DEADLINE);
        let id = told.split_whitespace().nth(1).expect("the line ends with the id");
        (running, id.to_owned())
    }

    /// Returns the state of a replay, as `dacapo replays ls` tells it.
    #[track_caller]
    pub(crate) fn state_of(&self, replay: &str) -> String {
        let listed = self.dacapo.json(["replays", "ls", "--json"]);
        let mut replays = listed["replays"].as_array().expect("a list").iter();
        let found = replays.find(|listed| listed["replay"] == replay);
        found.unwrap_or_else(|| panic!("{replay} is not listed"))["state"].as_str().unwrap().into()
    }

    /// Checks that the exchange which a replay made for itself is gone.
    #[track_caller]
    pub(crate) fn check_no_exchange_of(&self, replay: &str) {
        let exchange = format!("dacapo.replay.{replay}");
        let asked = json!({ "op": "declare_exchange", "exchange": exchange, "passive": true });
        let answer = witness::raw_amqp(&self.url, &[asked]).expect("the broker answers");
        let error = answer[0]["error"].as_str().unwrap_or("it is there");
        assert!(error.starts_with("404"), "{exchange}: {error}");
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        let parked = format!("{}.parked", self.archive_queue);
        let delete = [
            json!({ "op": "delete_queue", "queue": self.archive_queue }),
            json!({ "op": "delete_queue", "queue": parked }),
            json!({ "op": "delete_exchange", "exchange": self.exchange }),
        ];
        // A broker that is down at the end of a test keeps them, and no other test minds.
        witness::raw_amqp(&self.url, &delete).ok();
    }
}

/// A user of the management plugin with the documented tag and no permission, gone when dropped.
pub(crate) struct Watcher {
    management: String,
    user: String,
}

impl Watcher {
    /// Makes one through the plugin at this URL.
    pub(crate) fn new(management: &str) -> Self {
        let watcher =
            Watcher { management: management.to_owned(), user: services::unique("watcher") };
        let user = json!({ "password": "sesame", "tags": "monitoring" });
        let nothing = json!({ "configure": "^$", "write": "^$", "read": "^$" });
        let make = json!([
            ["PUT", format!("users/{}", watcher.user), user],
            ["PUT", format!("permissions/%2F/{}", watcher.user), nothing],
        ]);
        witness::management(management, &make).expect("it is made");
        watcher
    }

    /// Returns the plugin's URL with its account.
    pub(crate) fn url(&self) -> String {
        let (_, place) = self.management.rsplit_once('@').expect("the URL has credentials");
        format!("http://{}:sesame@{place}", self.user)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // A broker that is down at the end of a test keeps it, and no other test minds.
        let user = json!([["DELETE", format!("users/{}", self.user), null]]);
        witness::management(&self.management, &user).ok();
    }
}

/// A running archiver and the address of its metrics.
pub(crate) struct Archiver {
    pub(crate) running: Running,
    address: String,
}

impl Archiver {
    /// Returns where its metrics are served, `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Returns a metric by its name without `dacapo_archiver_`, or nothing if it is not there.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let (status, text) = get(&self.address, "/metrics");
        assert_eq!(status, 200);
        metric_in(&text, &format!("dacapo_archiver_{name}"))
    }

    /// Waits until a metric has at least this value.
    #[track_caller]
    pub(crate) fn await_metric(&self, name: &str, value: usize) {
        let enough = || Ok((self.metric(name).unwrap_or(0.0) >= value as f64).then_some(()));
        if let Err(error) = wait::until(&format!("{name} is {value}"), DEADLINE, enough) {
            panic!("{error}; {:?}", get(&self.address, "/metrics"));
        }
    }

    /// Returns status and text of `/health`.
    pub(crate) fn health(&self) -> (u16, String) {
        get(&self.address, "/health")
    }

    /// Ends it in order, and returns its totals.
    #[track_caller]
    pub(crate) fn stop(self) -> Value {
        self.running.signal(Signal::Terminate).expect("it runs");
        let output = self.running.wait(DEADLINE);
        output.check(0);
        output.json()
    }

    /// Ends it at once.
    pub(crate) fn kill(self) -> Output {
        self.running.kill()
    }
}

/// A publisher in the background, until it is stopped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Traffic {
    /// Starts to publish messages with ids of their own.
    pub(crate) fn start(platform: &Platform) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, url, exchange) =
            (Arc::clone(&stop), platform.url.clone(), platform.exchange.clone());
        let thread = std::thread::spawn(move || {
            let mut ids = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let batch: Vec<String> = (0..TRAFFIC_BATCH).map(|n| id(ids.len() + n)).collect();
                let messages: Vec<Value> = batch.iter().map(|id| message(id)).collect();
                publish(&url, &exchange, &messages);
                ids.extend(batch);
            }
            ids
        });
        Traffic { stop, thread }
    }

    /// Stops, and returns the ids of everything that the broker has confirmed.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every message was confirmed")
    }
}

/// Returns the id of the event with this number; ids sort as numbers do.
pub(crate) fn id(number: usize) -> String {
    format!("e-{number:06}")
}

/// Returns the ids of the first so many events.
pub(crate) fn ids(count: usize) -> Vec<String> {
    (0..count).map(id).collect()
}

/// Returns a small persistent message with this id.
pub(crate) fn message(id: &str) -> Value {
    json!({
        "routing_key": "order.placed",
        "properties": { "message_id": id, "delivery_mode": 2 },
        "body": format!("body of {id}"),
    })
}

/// Returns so many small messages.
pub(crate) fn messages(count: usize) -> Vec<Value> {
    ids(count).iter().map(|id| message(id)).collect()
}

/// Returns the headers of a message that the witness took, by name: tag and value.
pub(crate) fn headers(message: &Value) -> BTreeMap<String, Value> {
    let rows = message["properties"]["headers"].as_array().into_iter().flatten();
    rows.map(|row| (row[0].to_string(), json!([row[1], row[2]]))).collect()
}

/// Returns the event id in a replayed message's marking.
#[track_caller]
pub(crate) fn event_id(message: &Value) -> String {
    match headers(message).get("\"x-dacapo-event-id\"") {
        Some(value) => value[1].as_str().expect("an id is text").to_owned(),
        None => panic!("it has no event id: {message}"),
    }
}

/// Returns the event ids of replayed messages, in order of arrival.
pub(crate) fn event_ids(messages: &[Value]) -> Vec<String> {
    messages.iter().map(event_id).collect()
}

/// Waits until a queue has at least so many messages waiting.
#[track_caller]
pub(crate) fn await_depth(queue: &Queue, depth: u64) {
    let what = format!("{} has {depth} messages", queue.name());
    wait::until(&what, DEADLINE, || Ok((queue.depth() >= depth).then_some(()))).unwrap();
}

/// Checks that a receipt balances, and has these counts.
#[track_caller]
pub(crate) fn check_receipt(receipt: &Value, state: &str, selected: usize, confirmed: usize) {
    let count = |name: &str| receipt[name].as_u64().unwrap_or_else(|| panic!("{name}: {receipt}"));
    assert_eq!(receipt["state"], state, "{receipt}");
    assert_eq!(count("selected"), selected as u64, "{receipt}");
    assert_eq!(count("confirmed"), confirmed as u64, "{receipt}");
    assert_eq!(
        count("selected"),
        count("confirmed") + count("rejected") + count("remaining"),
        "{receipt}"
    );
}

/// Performs one operation on a broker, which must not refuse it.
#[track_caller]
pub(crate) fn ask(url: &str, operation: Value) -> Value {
    let results = witness::raw_amqp(url, std::slice::from_ref(&operation));
    let result = results.unwrap_or_else(|error| panic!("{operation}: {error:#}")).remove(0);
    assert_eq!(result.get("error"), None, "{operation}: {result}");
    result
}

fn publish(url: &str, exchange: &str, messages: &[Value]) {
    let publish = |message: &Value| {
        let mut operation = message.clone();
        operation["op"] = "publish".into();
        operation["exchange"] = exchange.into();
        operation
    };
    let operations: Vec<Value> = messages.iter().map(publish).collect();
    let results = witness::raw_amqp(url, &operations).expect("the broker takes messages");
    for (result, operation) in results.iter().zip(&operations) {
        assert_eq!(*result, json!({ "outcome": "ack", "returned": null }), "{operation}");
    }
}

/// Gets a path of a server of `--metrics`; returns the status and the text.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it serves");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    assert_eq!(Secrets::of_suite().told(answer.as_bytes()), None, "{path}: {answer}");
    let (head, text) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("an answer has a status"), text.to_owned())
}

/// Returns the value of the metric `name`, labels included, in the text of `/metrics`.
pub(crate) fn metric_in(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
