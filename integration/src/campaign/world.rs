//! A platform that faults strike: an exchange, an archiver on it, an archive, and the proxies
//! between them and the servers. What is true of it is read past the proxies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::disk::SmallDisk;
use super::kind::Kind;
use super::ledger::{self, Archived, Object, Row};
use super::objects::Objects;
use super::wire::Wire;
use crate::dacapo::{Dacapo, Output, Running};
use crate::process::Signal;
use crate::rabbit::Rabbit;
use crate::seaweed::{self, Seaweed};
use crate::{http, services, wait, witness};

/// No recovery takes longer on a loaded machine, waiting for a timeout of 30 s included; one that
/// does never comes.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// How long an event may be on its way with an idle archiver: longer than the broker takes to see
/// that a silent consumer is gone.
const LOST_AFTER: Duration = Duration::from_secs(30);

/// Deliveries that the archiver holds at the most: fewer than a fault finds published, so that one
/// that archives them all again is found.
const PREFETCH: u64 = 50;

/// Events of the history that each world begins with.
const HISTORY: usize = 400;

/// What all worlds share.
#[derive(Debug)]
pub struct Servers {
    /// Never taken away itself; the proxies before it do the harm.
    pub seaweed: Seaweed,
    /// Where the broker of each lane has its data.
    pub folder: PathBuf,
    /// The binary under test.
    pub binary: PathBuf,
    /// Variables of the binary under test.
    pub variables: Vec<(String, String)>,
}

/// Where the archive of a world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the S3 server.
    S3,
    /// On a disk that can be filled.
    SmallDisk,
}

/// One platform.
#[derive(Debug)]
pub struct World<'a> {
    /// What all share.
    pub servers: &'a Servers,
    /// The installation.
    pub dacapo: Dacapo,
    /// Before the broker, for the archiver.
    pub to_archiver: Wire,
    /// Before the broker, for replays.
    pub to_replay: Wire,
    /// Before the S3 server.
    pub objects: Objects,
    /// The disk of the archive, if it has one.
    pub disk: Option<SmallDisk>,
    place: Place,
    broker: String,
    exchange: String,
    queue: String,
    archiver: Option<Archiver>,
    published: Vec<String>,
    /// How often the archiver was interrupted since the last look at the ledger.
    interruptions: u64,
    /// Repeats in the archive at the last look.
    repeats: u64,
    /// Digests of segments that were read, by their key.
    seen: BTreeMap<String, String>,
}

/// A running archiver.
#[derive(Debug)]
struct Archiver {
    running: Running,
    metrics: String,
}

impl<'a> World<'a> {
    /// Makes one with a history in its archive.
    ///
    /// # Errors
    /// A server does not do it.
    pub fn new(servers: &'a Servers, rabbit: &Rabbit, place: Place) -> Result<Self> {
        let (port, broker) = (rabbit.port(), rabbit.amqp_url());
        let mut dacapo = Dacapo::of_binary(servers.binary.clone());
        let disk = match place {
            Place::S3 => {
                let archive = services::unique("campaign");
                dacapo.set_archive(format!("s3://{}/{archive}", seaweed::BUCKET));
                None
            }
            Place::SmallDisk => {
                let disk = SmallDisk::mount(&dacapo.folder().join("disk"))?;
                dacapo.set_archive(disk.path().join("archive").display().to_string());
                Some(disk)
            }
        };
        let defaults = [
            ("AWS_ENDPOINT_URL", servers.seaweed.endpoint()),
            ("AWS_ACCESS_KEY_ID", seaweed::ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_KEY.to_owned()),
            ("AWS_REGION", seaweed::REGION.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
            ("DACAPO_AMQP", broker.clone()),
        ];
        for (name, value) in defaults {
            dacapo.set(name, &value);
        }
        for (name, value) in &servers.variables {
            dacapo.set(name, value);
        }
        let world = World {
            servers,
            dacapo,
            to_archiver: Wire::before(port)?,
            to_replay: Wire::before(port)?,
            objects: Objects::before(servers.seaweed.port())?,
            disk,
            place,
            broker,
            exchange: services::unique("campaign"),
            queue: services::unique("campaign-archive"),
            archiver: None,
            published: Vec::new(),
            interruptions: 0,
            repeats: 0,
            seen: BTreeMap::new(),
        };
        world.ask(json!({ "op": "declare_exchange", "exchange": world.exchange }))?;
        world.with_history()
    }

    fn with_history(mut self) -> Result<Self> {
        let line = |n: usize| {
            let event = json!({
                "id": format!("h-{n:05}"),
                "time": format!("2026-01-02T{:02}:{:02}:{:02}Z", n / 3_600, n / 60 % 60, n % 60),
                "type": "order.placed",
                "exchange": "shop",
                "routing_key": format!("order.placed.{}", n % 3),
                "body": { "n": n, "text": "x".repeat(200) },
            });
            format!("{event}\n")
        };
        let lines: String = (0..HISTORY).map(line).collect();
        // Small segments, so that a replay reads while it publishes.
        let import = ["archive", "import", "-", "--name", "history", "--roll-bytes", "8k"];
        succeeded(&self.dacapo.run_with_input(import, lines.into_bytes()))?;
        self.published.extend((0..HISTORY).map(|n| format!("h-{n:05}")));
        Ok(self)
    }

    /// Performs one operation on the broker, past the proxies.
    ///
    /// # Errors
    /// It refuses.
    pub fn ask(&self, operation: Value) -> Result<Value> {
        let results = witness::raw_amqp(&self.broker, std::slice::from_ref(&operation))?;
        let result = results.into_iter().next().context("one result for one operation")?;
        ensure!(result.get("error").is_none(), "{operation}: {result}");
        Ok(result)
    }

    /// Publishes so many events to the exchange; all are confirmed when it returns.
    ///
    /// # Errors
    /// The broker does not take one.
    pub fn publish(&mut self, count: usize) -> Result<()> {
        let first = self.published.len();
        let ids: Vec<String> = (first..first + count).map(|n| format!("e-{n:05}")).collect();
        let operation = |id: &String| {
            json!({
                "op": "publish", "exchange": self.exchange, "routing_key": "order.paid.1",
                "properties": { "message_id": id, "delivery_mode": 2 },
                "body": format!("body of {id}"),
            })
        };
        let operations: Vec<Value> = ids.iter().map(operation).collect();
        for result in witness::raw_amqp(&self.broker, &operations)? {
            ensure!(result == json!({ "outcome": "ack", "returned": null }), "publish: {result}");
        }
        self.published.extend(ids);
        Ok(())
    }

    /// Starts the archiver if none runs, and returns when it consumes.
    ///
    /// # Errors
    /// It ended.
    pub fn start_archiver(&mut self, more: &[(&str, String)]) -> Result<()> {
        if self.archiver.is_some() {
            return Ok(());
        }
        let amqp = self.to_archiver.url(&self.broker);
        let prefetch = PREFETCH.to_string();
        let args = [
            "archive",
            "run",
            "--json",
            "--log",
            "info",
            "--metrics",
            "127.0.0.1:0",
            "--roll-age",
            "200ms",
            "--prefetch",
            &prefetch,
            "--bind",
            &self.exchange,
            "--queue",
            &self.queue,
            "--amqp",
            &amqp,
        ];
        let endpoint = self.objects.endpoint();
        let mut variables = vec![("AWS_ENDPOINT_URL", endpoint.as_str())];
        variables.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
        let running = self.dacapo.spawn_with(args, &variables);
        let told = running.wait_for_line("metrics: http://", DEADLINE);
        let (_, address) = told.split_once("http://").context("it was looked for")?;
        let (address, _) = address.split_once("/metrics").context("it is an address")?;
        let metrics = address.to_owned();
        running.wait_for_line("consuming", DEADLINE);
        self.archiver = Some(Archiver { running, metrics });
        Ok(())
    }

    /// Ends the archiver at once.
    pub fn kill_archiver(&mut self) {
        if let Some(archiver) = self.archiver.take() {
            archiver.running.kill();
        }
    }

    /// Asks the archiver to end; what it was doing goes on meanwhile.
    ///
    /// # Errors
    /// It has ended by itself.
    pub fn terminate_archiver(&mut self) -> Result<Option<Running>> {
        let archiver = self.archiver.take();
        let running = archiver.map(|archiver| archiver.running);
        if let Some(running) = &running {
            running.signal(Signal::Terminate)?;
        }
        Ok(running)
    }

    /// Returns a metric of the archiver by its name without `dacapo_archiver_`.
    ///
    /// # Errors
    /// It does not run, or does not tell.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let archiver = self.archiver.as_ref().context("no archiver runs")?;
        let (status, text) = http::get(&archiver.metrics, "/metrics")?;
        ensure!(status == 200, "the archiver's metrics: {status}");
        let name = format!("dacapo_archiver_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
        value.with_context(|| format!("the archiver has no metric `{name}`"))
    }

    /// Notes that a fault interrupts the archiver so often.
    pub fn note_interruptions(&mut self, times: u64) {
        self.interruptions += times;
    }

    /// Starts a replay through the proxies.
    pub fn spawn(&self, args: &[&str], more: &[(&str, String)]) -> Running {
        let (endpoint, amqp) = (self.objects.endpoint(), self.to_replay.url(&self.broker));
        let mut variables = vec![("AWS_ENDPOINT_URL", endpoint.as_str()), ("DACAPO_AMQP", &amqp)];
        variables.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
        self.dacapo.spawn_with(args, &variables)
    }

    /// Waits until the archiver has nothing left to do, and returns the archive's events in order
    /// of streams and sequences. What is still missing then is lost.
    ///
    /// # Errors
    /// It is not in time.
    pub fn settled(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        // An idle archiver proves nothing while the broker takes a dead one's deliveries for its.
        let complete = wait::until("everything published is in the archive", LOST_AFTER, || {
            self.await_idle()?;
            rows = self.rows()?;
            let held: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
            let complete = self.published.iter().all(|id| held.contains(id.as_str()));
            Ok(complete.then_some(()))
        });
        match complete {
            Err(error) if rows.is_empty() => Err(error),
            Ok(()) | Err(_) => Ok(rows),
        }
    }

    fn await_idle(&mut self) -> Result<()> {
        self.start_archiver(&[])?;
        let idle = wait::until("the archiver is idle", DEADLINE, || {
            let archiver = self.archiver.as_mut().context("no archiver runs")?;
            if !archiver.running.is_running()? {
                let (_, talk) = archiver.running.written();
                anyhow::bail!("the archiver ended by itself: {}", tail(&talk));
            }
            let unacked = || self.metric("unacked");
            let idle = unacked()? == 0.0 && self.waiting()? == 0 && unacked()? == 0.0;
            Ok(idle.then_some(()))
        });
        idle.map_err(|error| {
            let talk = self.archiver.as_ref().map(|archiver| archiver.running.written().1);
            error.context(tail(&talk.unwrap_or_default()))
        })
    }

    fn waiting(&self) -> Result<u64> {
        let asked = json!({ "op": "declare_queue", "queue": self.queue, "passive": true });
        // After the broker was away the queue may be without a leader for a moment.
        let results = witness::raw_amqp(&self.broker, &[asked]).unwrap_or_default();
        Ok(results.first().and_then(|result| result["messages"].as_u64()).unwrap_or(u64::MAX))
    }

    /// Returns the archive's events in order of streams and sequences.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn rows(&self) -> Result<Vec<Row>> {
        let output = self.dacapo.run(["events", "--json", "--limit", "0"]);
        succeeded(&output)?;
        let row = |event: Value| -> Option<Row> {
            Some(Row {
                stream: event["stream"].as_str()?.to_owned(),
                sequence: event["sequence"].as_u64()?,
                id: event["id"].as_str()?.to_owned(),
            })
        };
        let rows: Option<Vec<Row>> = output.ndjson().into_iter().map(row).collect();
        let mut rows = rows.context("an event has no place")?;
        rows.sort_by(|a, b| (&a.stream, a.sequence).cmp(&(&b.stream, b.sequence)));
        Ok(rows)
    }

    /// Returns what is wrong with the archive: the ledger of everything since the world began.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn check(&mut self, rows: &[Row]) -> Result<Vec<String>> {
        let mut findings = ledger::check_archive(&Archived {
            published: &self.published,
            rows,
            repeats_before: self.repeats,
            interruptions: std::mem::take(&mut self.interruptions),
            window: PREFETCH,
        });
        self.repeats = ledger::repeats(rows);
        let verified = self.dacapo.run(["archive", "verify", "--json"]);
        if verified.status != Some(0) {
            findings.push(format!("archive verify: {}{}", verified.stdout, tail(&verified.stderr)));
        }
        findings.extend(ledger::check_objects(&self.segments()?));
        findings.extend(self.check_index(&[])?);
        Ok(findings)
    }

    /// Holds the index that grew, the world's own or the one that `variables` name, against one
    /// made anew, by everything that a plan is made of.
    ///
    /// # Errors
    /// A command fails.
    pub fn check_index(&self, variables: &[(&str, &str)]) -> Result<Vec<String>> {
        let anew = self.dacapo.folder().join("index-anew").display().to_string();
        let facts = |variables: &[(&str, &str)], command: &str| -> Result<Value> {
            let index = self.dacapo.spawn_with(["index", command, "--json"], variables);
            let index = index.wait(DEADLINE);
            succeeded(&index)?;
            let plan = ["plan", "--json", "--to-file", "nowhere"];
            let plan = self.dacapo.spawn_with(plan, variables).wait(DEADLINE);
            succeeded(&plan)?;
            let (index, mut plan) = (index.json(), plan.json());
            plan["made_at"] = Value::Null;
            let counts = ["streams", "segments", "events", "complete"];
            let counts: Vec<&Value> = counts.iter().map(|name| &index[*name]).collect();
            Ok(json!([counts, plan]))
        };
        let grown = facts(variables, "sync")?;
        let rebuilt = facts(&[("DACAPO_INDEX", &anew)], "rebuild")?;
        fs::remove_dir_all(&anew).context("failed to remove the second index")?;
        let same = grown == rebuilt;
        Ok((!same)
            .then(|| format!("the index is not its rebuild: {grown} {rebuilt}"))
            .into_iter()
            .collect())
    }

    /// Returns all objects under `segments/`, committed or not, as the server itself has them.
    fn segments(&mut self) -> Result<Vec<Object>> {
        match self.place {
            Place::SmallDisk => {
                let digest = |path: PathBuf| -> Result<Object> {
                    let bytes = fs::read(&path).context("failed to read a segment")?;
                    Ok(Object { key: path.display().to_string(), digest: digest(&bytes) })
                };
                self.dacapo.segments().into_iter().map(digest).collect()
            }
            Place::S3 => {
                let archive = self.dacapo.archive().replacen("s3://", "", 1);
                for (key, bytes) in self
                    .servers
                    .seaweed
                    .read_new(&format!("{archive}/segments"), |key| !self.seen.contains_key(key))?
                {
                    let path = self
                        .witnessed()
                        .join(key.replacen(&archive, "", 1).trim_start_matches('/'));
                    let folder = path.parent().context("a segment is in a folder")?;
                    fs::create_dir_all(folder).context("failed to make a folder")?;
                    fs::write(&path, &bytes).context("failed to keep a segment")?;
                    self.seen.insert(key, digest(&bytes));
                }
                let object = |(key, digest): (&String, &String)| Object {
                    key: key.clone(),
                    digest: digest.clone(),
                };
                Ok(self.seen.iter().map(object).collect())
            }
        }
    }

    fn witnessed(&self) -> PathBuf {
        self.dacapo.folder().join("witnessed")
    }

    /// Ends the archiver in order, and returns what is wrong at the end: what DuckDB finds in the
    /// archive besides.
    ///
    /// # Errors
    /// It does not end, or cannot be read.
    pub fn end(mut self) -> Result<Vec<String>> {
        let rows = self.settled()?;
        if let Some(running) = self.terminate_archiver()? {
            succeeded(&running.wait(DEADLINE))?;
        }
        let mut findings = self.check(&rows)?;
        let folder = match self.place {
            Place::S3 => self.witnessed().join("segments"),
            Place::SmallDisk => Path::new(self.dacapo.archive()).join("segments"),
        };
        let read = witness::read_segment(&folder)?;
        for reader in ["duckdb", "pandas"] {
            let rows = read[reader]["rows"].as_array().context("a witness tells rows")?;
            let ids: Vec<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
            let lost = self.published.iter().filter(|id| !ids.contains(&id.as_str())).count();
            if lost > 0 {
                findings.push(format!("{reader} misses {lost} published events"));
            }
        }
        let parked = format!("{}.parked", self.queue);
        for queue in [&self.queue, &parked] {
            self.ask(json!({ "op": "delete_queue", "queue": queue }))?;
        }
        self.ask(json!({ "op": "delete_exchange", "exchange": self.exchange }))?;
        Ok(findings)
    }
}

/// Takes the broker away.
///
/// # Errors
/// It does not stop.
pub fn take_away(kind: Kind, rabbit: &mut Rabbit) -> Result<()> {
    match kind {
        Kind::BrokerStopped => rabbit.stop(),
        _ => rabbit.kill(),
    }
}

/// How long a fault lasts that mends itself and that nobody need notice.
pub const BAD_TIME: Duration = Duration::from_secs(2);

/// What each frame of a slowed connection takes.
pub const SLOW_FRAME: Duration = Duration::from_millis(5);

/// How far a clock is set back: less than the 15 minutes at which S3 refuses a signature.
pub const CLOCK_BACK: Duration = Duration::from_secs(600);

/// Returns the end of a log, where the reason is.
pub fn tail(text: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Checks that a command ended well.
///
/// # Errors
/// It did not; the message holds its words.
pub fn succeeded(output: &Output) -> Result<()> {
    let Output { status, stdout, stderr, .. } = output;
    ensure!(*status == Some(0), "status {status:?}: {} {}", tail(stdout), tail(stderr));
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    format!(
        "{:016x}-{}",
        BuildHasherDefault::<DefaultHasher>::default().hash_one(bytes),
        bytes.len()
    )
}
