//! `bench`: what dacapo costs on this machine beside the leanest client and the plainest tools, in
//! one run.
//!
//! Started by `just bench`, which builds it in release beside the `dacapo` that it measures and
//! gives it private servers. Asserts nothing: prints each measure beside its bar, and writes
//! `target/bench/report.json`. On a shared machine only ratios within one run mean anything, so
//! what is compared is measured in pairs, one after the other, as often as `--runs` says.

mod events;
mod report;
mod timed;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use dacapo_integration::reference;
use dacapo_integration::witness::Queue;
use serde_json::{Value, json};

use report::{Bar, Measure, Report, Row};
use timed::Cost;

/// Events of an archive: enough to make start-up small beside them.
const EVENTS: u64 = 60_000;

/// Pairs of each measure, if `--runs` does not say otherwise.
const RUNS: usize = 5;

/// Paces that are measured, in events a second, each for [`PACED_SECONDS`].
const PACES: [u64; 2] = [500, 5_000];

/// How long a paced replay runs.
const PACED_SECONDS: u64 = 8;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        // The other side of a pair, as a process of its own.
        ["publish", url, queue, events, bytes] => {
            reference::publish(url, queue, events.parse()?, bytes.parse()?)
        }
        ["consume", url, queue, events] => reference::consume(url, queue, events.parse()?),
        [] => bench(RUNS),
        ["--runs", runs] => bench(runs.parse().context("--runs takes a number")?),
        _ => bail!("usage: bench [--runs N]"),
    }
}

fn bench(runs: usize) -> Result<()> {
    let folder = PathBuf::from("target/bench");
    fs::remove_dir_all(&folder).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let quorum = json!([["x-queue-type", "S", "quorum"]]);
    let classic = json!([["x-queue-type", "S", "classic"]]);
    let mut report = Report::default();

    let large = Archive::make(&folder, "4 KB", 4_000)?;
    report.compression = large.compression()?;
    report.measures.push(large.import_beside_gzip(runs)?);
    large.replay_beside_reference("quorum", &quorum, runs, &mut report)?;
    large.replay_beside_reference("classic", &classic, runs, &mut report)?;
    let small = Archive::make(&folder, "1 KB", 1_000)?;
    small.replay_beside_reference("quorum", &quorum, runs, &mut report)?;

    report.rows.extend(large.scans()?);
    for pace in PACES {
        report.rows.push(large.paced(pace, &quorum)?);
    }
    report.tell(&folder)
}

/// An archive of events of one size, and what it was made of.
struct Archive {
    /// What it is called in the report.
    size: &'static str,
    folder: PathBuf,
    /// Of all bodies.
    bytes: u64,
}

impl Archive {
    fn make(folder: &Path, size: &'static str, body_bytes: usize) -> Result<Self> {
        let folder = folder.join(size.replace(' ', "-"));
        fs::create_dir_all(&folder)?;
        let bytes = events::generate(&folder.join("events.ndjson"), EVENTS, body_bytes)?;
        let archive = Archive { size, folder, bytes };
        archive.import("events.ndjson", "archive")?;
        Ok(archive)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn dacapo(&self, args: &[&str]) -> Result<Cost> {
        let archive = self.path("archive");
        let args: Vec<&str> = args.iter().copied().chain(["--archive", &archive]).collect();
        timed::run(&timed::dacapo()?, &args, &self.folder)
    }

    fn import(&self, input: &str, archive: &str) -> Result<Cost> {
        let (input, archive) = (self.path(input), self.path(archive));
        let args = ["archive", "import", &input, "--name", "history", "--archive", &archive];
        timed::run(&timed::dacapo()?, &args, &self.folder)
    }

    /// Returns how many times smaller the archive is than the bodies in it.
    fn compression(&self) -> Result<f64> {
        Ok(self.bytes as f64 / bytes_in(&self.folder.join("archive"))? as f64)
    }

    /// An import against `gzip -dc` of its input, in seconds of one processor.
    fn import_beside_gzip(&self, runs: usize) -> Result<Measure> {
        let input = self.path("events.ndjson");
        timed::run(Path::new("gzip"), &["--keep", &input], &self.folder)?;
        let mut values = Vec::new();
        for run in 0..runs {
            let packed = format!("{input}.gz");
            let plain = timed::run(Path::new("gzip"), &["-dc", &packed], &self.folder)?;
            let archive = format!("imported-{run}");
            let import = self.import("events.ndjson.gz", &archive)?;
            fs::remove_dir_all(self.folder.join(archive))?;
            values.push(import.cpu_seconds / plain.cpu_seconds);
        }
        let name = "import of gzip: CPU against gzip -dc".to_owned();
        Ok(Measure { name, bar: Bar::AtMost(3.0), values })
    }

    /// Replays against the reference publisher, into queues of one kind.
    fn replay_beside_reference(
        &self,
        kind: &str,
        arguments: &Value,
        runs: usize,
        report: &mut Report,
    ) -> Result<()> {
        let (mut rates, mut micros) = (Vec::new(), Vec::new());
        for run in 1..=runs {
            let cost = self.reference(&Queue::with_arguments("bench", arguments))?;
            let queue = Queue::with_arguments("bench", arguments);
            let replay = self.dacapo(&["replay", "--to-queue", queue.name()])?;
            rates.push(replay.rate(EVENTS) / cost.rate(EVENTS));
            micros.push(replay.cpu_micros(EVENTS));
            let name = format!("reference publisher, {}, {kind}, {run}", self.size);
            report.rows.push(Row { name, events: EVENTS, cost });
        }
        let name = |what: &str| format!("replay, {}, {kind}: {what}", self.size);
        let rate = name("rate against reference");
        report.measures.push(Measure { name: rate, bar: Bar::AtLeast(0.95), values: rates });
        let cost = name("CPU µs an event");
        report.measures.push(Measure { name: cost, bar: Bar::AtMost(12.0), values: micros });
        Ok(())
    }

    fn reference(&self, queue: &Queue) -> Result<Cost> {
        let (events, bytes) = (EVENTS.to_string(), (self.bytes / EVENTS).to_string());
        let url = dacapo_integration::services::amqp();
        let args = ["publish", &url, queue.name(), &events, &bytes];
        timed::run(&std::env::current_exe()?, &args, &self.folder)
    }

    fn scans(&self) -> Result<Vec<Row>> {
        let scans: [(&str, &[&str]); 3] = [
            ("scan, attributes", &["plan", "--exact", "--header", "no=1"]),
            ("scan, bodies and CEL", &["plan", "--exact", "--where", "body.amount < 0"]),
            ("scan to JSON lines", &["replay", "--to-file", "-"]),
        ];
        let row = |(name, args): (&str, &[&str])| {
            Ok(Row { name: name.to_owned(), events: EVENTS, cost: self.dacapo(args)? })
        };
        scans.into_iter().map(row).collect()
    }

    fn paced(&self, pace: u64, queue: &Value) -> Result<Row> {
        let queue = Queue::with_arguments("bench", queue);
        let events = (pace * PACED_SECONDS).min(EVENTS);
        let to = dacapo_event::Timestamp::from_millis((events::FIRST_MS + events).cast_signed());
        let (to, rate) = (to.to_string(), pace.to_string());
        let args = ["replay", "--to", &to, "--rate", &rate, "--to-queue", queue.name()];
        let name = format!("replay, --rate {pace}");
        Ok(Row { name, events, cost: self.dacapo(&args)? })
    }
}

fn bytes_in(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => bytes_in(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}
